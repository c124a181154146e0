{#- Takes away the right to send deploy events, and then the commands that send them. The deploy user stays. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.deploy.sudoers_clean

No app has a command for its deploy event:
  sidekiq.event_commands_absent:
    - name: /usr/local/sbin
    - keep: []
    - require:
      - sidekiq: {{ settings.deploy.sudoers }}
