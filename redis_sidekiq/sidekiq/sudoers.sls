{#- What the deploy user may do as root: the verbs of the settings on exactly the Sidekiq units. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set deploy = settings.deploy %}

include:
  - redis_sidekiq.sidekiq.config

{%- if deploy.units %}

The deploy user {{ deploy.user }} may act on the Sidekiq services, and on nothing else:
  sidekiq.sudoers:
    - name: {{ deploy.sudoers | tojson }}
    - user: {{ deploy.user | tojson }}
    - units: {{ deploy.units | tojson }}
    - verbs: {{ deploy.verbs | tojson }}
{%- if deploy.create_user %}
    - require:
      - user: The deploy user {{ deploy.user }} is there
{%- endif %}
{%- else %}

Nobody may act on Sidekiq services by sudo:
  sidekiq.sudoers_absent:
    - name: {{ deploy.sudoers | tojson }}
{%- endif %}
