{#- Takes away the sudoers file, which the roles sidekiq and deploy share: where one of them stays, its next run puts
    back what that needs. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

The deploy user {{ settings.deploy.user }} may no longer do anything by sudo:
  sidekiq.sudoers_absent:
    - name: {{ settings.deploy.sudoers | tojson }}
