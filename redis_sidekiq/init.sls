{#- Everything a minion gets, by its roles (pillar redis_sidekiq:roles). #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.packages
{%- for role in settings.roles %}
  - redis_sidekiq.{{ role }}
{%- endfor %}
