{#- What the deploy user may do as root: the verbs of the settings on exactly the Sidekiq units, and the commands that
    send his apps' deploy events. One file for the roles sidekiq and deploy, because sudo has one policy about him, and
    the state compares with all of it. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set deploy = settings.deploy %}

include:
  - redis_sidekiq.deploy.user
  - redis_sidekiq.deploy.events

{%- if deploy.units or deploy.commands %}

The deploy user {{ deploy.user }} may do by sudo what the settings say, and nothing else:
  sidekiq.sudoers:
    - name: {{ deploy.sudoers | tojson }}
    - user: {{ deploy.user | tojson }}
    - units: {{ deploy.units | tojson }}
    - verbs: {{ deploy.verbs | tojson }}
    - commands: {{ deploy.commands | tojson }}
    - group: {{ deploy.group | tojson }}
    - strict: {{ deploy.strict | tojson }}
    - require:
{%- if deploy.create_user %}
      - user: The deploy user {{ deploy.user }} is there
{%- endif %}
{%- for path in deploy.commands %}
      - file: {{ path }}
{%- endfor %}
{%- else %}

Nobody may act on Sidekiq services by sudo:
  sidekiq.sudoers_absent:
    - name: {{ deploy.sudoers | tojson }}
{%- endif %}
