{#- The deploy user, of the roles sidekiq and deploy. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set deploy = settings.deploy %}

{%- if deploy.create_user %}

The deploy user {{ deploy.user }} is there:
  user.present:
    - name: {{ deploy.user | tojson }}
    - home: {{ deploy.home | tojson }}
    - shell: /bin/bash
    # Who exists already keeps his groups.
    - remove_groups: false
{%- endif %}
