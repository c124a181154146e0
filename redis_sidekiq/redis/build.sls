{#- Redis compiled from its tarball as an unprivileged user, and the links to its programs: to those of the build that the
    instances may run, so that what a person calls knows their data. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set redis = settings.redis %}

include:
  - redis_sidekiq.packages

The user {{ redis.build.user }}, who compiles Redis, is there:
  user.present:
    - name: {{ redis.build.user | tojson }}
    - system: true
    - home: /nonexistent
    - createhome: false
    - shell: /usr/sbin/nologin
    # Who exists already keeps his groups.
    - remove_groups: false

{{ redis.flavor | capitalize }} {{ redis.version }} is built:
  redis_build.present:
    - name: {{ redis.version | tojson }}
    - source: {{ redis.source | tojson }}
    - source_hash: {{ redis.source_hash | tojson }}
    - prefix: {{ redis.prefix | tojson }}
    - user: {{ redis.build.user | tojson }}
    - jobs: {{ redis.build.jobs }}
    - pack: {{ redis.pack.source | tojson }}
    - pack_hash: {{ redis.pack.hash | tojson }}
    - pack_name: {{ redis.pack.name | tojson }}
    - malloc: {{ redis.build.malloc }}
    - tls: {{ redis.build.tls | tojson }}
    - flavor: {{ redis.flavor }}
    - require:
      - sls: redis_sidekiq.packages
      - user: The user {{ redis.build.user }}, who compiles Redis, is there

{%- for instance in redis.instances %}

Redis instance {{ instance.name }} may run the build of the settings:
  redis_upgrade.allowed:
    - name: {{ instance.name | tojson }}
    - require:
      - redis_build: {{ redis.flavor | capitalize }} {{ redis.version }} is built
{%- endfor %}

{{ redis.flavor | capitalize }} {{ redis.version }} is the current build:
  redis_build.current:
    - name: {{ redis.version | tojson }}
    - source_hash: {{ redis.source_hash | tojson }}
    - prefix: {{ redis.prefix | tojson }}
    - user: {{ redis.build.user | tojson }}
    - malloc: {{ redis.build.malloc }}
    - tls: {{ redis.build.tls | tojson }}
    - flavor: {{ redis.flavor }}
    - require:
      - redis_build: {{ redis.flavor | capitalize }} {{ redis.version }} is built
{%- for instance in redis.instances %}
      - redis_upgrade: Redis instance {{ instance.name }} may run the build of the settings
{%- endfor %}

The programs of Redis are in {{ redis.bin_dir }}:
  redis_build.linked:
    - name: {{ redis.bin_dir | tojson }}
    - prefix: {{ redis.prefix | tojson }}
    - flavor: {{ redis.flavor }}
    - require:
      - redis_build: {{ redis.flavor | capitalize }} {{ redis.version }} is the current build
