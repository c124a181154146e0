{#- An instance that the settings no longer name is stopped, with care for its data, which stay unless
    redis_sidekiq:redis:purge_data says otherwise. Before the others are served, for they may take over its addresses. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.packages

Redis runs in no instance that the settings do not name:
  redis_instances.only:
    - keep: {{ settings.redis.instances | map(attribute="name") | list | tojson }}
    - purge_data: {{ settings.redis.purge_data | tojson }}
    - require:
      - sls: redis_sidekiq.packages
