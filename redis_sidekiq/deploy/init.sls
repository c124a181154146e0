{#- A host that deploys: its deploy user, for each of his apps the command that sends the app's deploy event, and the
    right to run it. An app that left the settings loses first the right, then the command. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.deploy.user
  - redis_sidekiq.deploy.events
  - redis_sidekiq.deploy.sudoers

No other app has a command for its deploy event:
  sidekiq.event_commands_absent:
    - name: /usr/local/sbin
    - keep: {{ settings.deploy.commands | tojson }}
    - require:
      - sidekiq: {{ settings.deploy.sudoers }}
