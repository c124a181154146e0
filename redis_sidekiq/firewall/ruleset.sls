{#- UFW's rules, policies and switch in one state: their order decides whether ssh stays reachable, so it is the state
    that keeps it (allow first, then the policies, the switch last). Rules of others stay as they are. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.packages

The program that puts the former rules of the firewall back is there:
  file.managed:
    - name: /usr/local/lib/redis_sidekiq/ufw_rollback.py
    - source: salt://redis_sidekiq/firewall/files/ufw_rollback.py
    - makedirs: true
    - dir_mode: '0755'
    - user: root
    - group: root
    - mode: '0755'

The firewall lets in what the pillar names and nothing else:
  ufw_rules.managed:
    - rules: {{ settings.firewall.rules | tojson }}
    - incoming: {{ settings.firewall.incoming }}
    - outgoing: {{ settings.firewall.outgoing }}
    - routed: {{ settings.firewall.routed | tojson }}
    - logging: {{ settings.firewall.logging | tojson }}
    - only_ours: {{ settings.firewall.only_ours | tojson }}
    - enabled: {{ settings.firewall.enabled | tojson }}
    - allow_lockout: {{ settings.firewall.allow_lockout | tojson }}
    - confirm: {{ settings.firewall.confirm }}
    - confirm_within: {{ settings.firewall.confirm_within }}
    - require:
      - file: /usr/local/lib/redis_sidekiq/ufw_rollback.py
      - sls: redis_sidekiq.packages
