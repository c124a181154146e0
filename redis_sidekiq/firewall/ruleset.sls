{#- UFW's rules, policies and switch in one state: their order decides whether ssh stays reachable, so it is the state
    that keeps it (allow first, then the policies, the switch last). Rules of others stay as they are. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.packages

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
    - require:
      - sls: redis_sidekiq.packages
