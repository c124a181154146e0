{#- Takes our rules out of UFW and puts back its policies and switch of before our first change. A rule without which
    sshd could not be reached stays; the run says so. The package stays. #}
The firewall is as it was before this formula:
  ufw_rules.absent: []
