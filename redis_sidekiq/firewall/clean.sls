{#- Takes our rules out of UFW and puts back its policies and switch of before our first change. A rule without which
    sshd could not be reached stays; the run says so. The package stays. #}
The firewall is as it was before this formula:
  ufw_rules.absent: []

The program that puts the former rules of the firewall back is gone:
  file.absent:
    - name: /usr/local/lib/redis_sidekiq/ufw_rollback.py
    - require:
      - ufw_rules: The firewall is as it was before this formula

The folder of the firewall's program is gone, unless it holds files of others:
  sidekiq.folder_absent:
    - name: /usr/local/lib/redis_sidekiq
    - require:
      - file: The program that puts the former rules of the firewall back is gone
