{#- The way back: takes away what the roles made, last made first. Redis' data stay unless redis_sidekiq:redis:purge_data
    says otherwise; the distribution's packages and the deploy user stay, others may use them. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
{%- for role in settings.roles | reverse %}
  - redis_sidekiq.{{ role }}.clean
{%- endfor %}

The folder for what the roles remembered is gone, unless it holds files of others:
  sidekiq.folder_absent:
    - name: /var/lib/redis_sidekiq
    - require:
{%- for role in settings.roles | reverse %}
      - sls: redis_sidekiq.{{ role }}.clean
{%- endfor %}
