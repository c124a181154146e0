{#- Older builds go once every instance serves: until then one of them may be the way back. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set redis = settings.redis %}

include:
  - redis_sidekiq.redis.service

Older builds of Redis are gone from {{ redis.prefix }}:
  redis_build.kept:
    - name: {{ redis.prefix | tojson }}
    - keep: {{ redis.build.keep }}
    - version: {{ redis.version | tojson }}
    - source_hash: {{ redis.source_hash | tojson }}
    - malloc: {{ redis.build.malloc }}
    - tls: {{ redis.build.tls | tojson }}
    - flavor: {{ redis.flavor }}
    - require:
      - sls: redis_sidekiq.redis.service
