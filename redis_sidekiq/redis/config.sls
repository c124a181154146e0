{#- Who Redis runs as, where its data lie, and each instance's redis.conf (its password: taken from the settings by the
    state itself, which lets the new build judge the file before it lands). #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set redis = settings.redis %}

include:
  - redis_sidekiq.redis.build

The group {{ redis.group }} is there:
  group.present:
    - name: {{ redis.group | tojson }}
    - system: true

The user {{ redis.user }}, who runs Redis, is there:
  user.present:
    - name: {{ redis.user | tojson }}
    - system: true
    - gid: {{ redis.group | tojson }}
    - home: /var/redis
    - createhome: false
    - shell: /usr/sbin/nologin
    - remove_groups: false
    - require:
      - group: The group {{ redis.group }} is there

# Open to all, for a server of others may have its config here; each file of the formula's guards itself.
The folder for Redis' settings is there:
  file.directory:
    - name: /etc/redis
    - user: root
    - group: root
    - mode: '0755'
{%- if redis.instances %}
    - require:
{%- for instance in redis.instances %}
      - redis_upgrade: Redis instance {{ instance.name }} may run the build of the settings
{%- endfor %}
{%- endif %}

The folder for Redis' data is there:
  file.directory:
    - name: /var/redis
    - user: root
    - group: root
    - mode: '0755'

{%- if redis.service_manager == "sysv" %}

The folder for Redis' logs is there:
  file.directory:
    - name: /var/log/redis
    - user: {{ redis.user | tojson }}
    - group: {{ redis.group | tojson }}
    - mode: '0750'
    - require:
      - user: The user {{ redis.user }}, who runs Redis, is there
{%- endif %}

{%- for instance in redis.instances %}

Redis instance {{ instance.name }} has its config:
  redis_server.config:
    - name: {{ instance.config | tojson }}
    - instance: {{ instance.name | tojson }}
    - require:
      - redis_upgrade: Redis instance {{ instance.name }} may run the build of the settings
      - user: The user {{ redis.user }}, who runs Redis, is there
      - file: /etc/redis

# After the config: a server of somebody else's, that is taken over, may still write there as another user until then.
Redis instance {{ instance.name }} has a folder for its data:
  file.directory:
    - name: {{ instance.dir | tojson }}
    - user: {{ redis.user | tojson }}
    - group: {{ redis.group | tojson }}
    - mode: '0700'
    - makedirs: true
    - require:
      - user: The user {{ redis.user }}, who runs Redis, is there
      - file: /var/redis
      - redis_server: {{ instance.config }}
{%- endfor %}
