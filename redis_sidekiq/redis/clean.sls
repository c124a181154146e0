{#- Takes away the services, configs, links and builds, last made first, and gives the kernel its settings back. The data
    stay, and with them the user who owns them, and the backups, unless redis_sidekiq:redis:purge_data says otherwise. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set redis = settings.redis %}

include:
  - redis_sidekiq.redis.dropped

No instance of Redis is backed up:
  redis_backup.only:
    - keep: []

The program that backed up Redis is gone:
  file.absent:
    - name: /usr/local/lib/redis_sidekiq/redis_backup.py
    - require:
      - redis_backup: No instance of Redis is backed up

The folder of that program is gone, unless it holds files of others:
  sidekiq.folder_absent:
    - name: /usr/local/lib/redis_sidekiq
    - require:
      - file: The program that backed up Redis is gone

{%- for instance in redis.instances %}

{%- for manager in ["systemd", "sysv"] %}

Redis instance {{ instance.name }} is stopped, and {{ manager }} knows nothing of it:
  redis_server.service_absent:
    - name: {{ instance.name | tojson }}
    - manager: {{ manager }}
{%- endfor %}

{{ instance.config }} is gone:
  file.absent:
    - name: {{ instance.config | tojson }}
    - require:
      - redis_server: Redis instance {{ instance.name }} is stopped, and systemd knows nothing of it
      - redis_server: Redis instance {{ instance.name }} is stopped, and sysv knows nothing of it

The certificates of Redis instance {{ instance.name }} are gone:
  file.absent:
    - name: /etc/redis/tls/{{ instance.name }}
    - require:
      - file: {{ instance.config }} is gone

What the config of Redis instance {{ instance.name }} means is forgotten:
  file.absent:
    - names:
      - /var/lib/redis_sidekiq/redis_{{ instance.name }}.json
      - /var/lib/redis_sidekiq/redis_{{ instance.name }}_upgrade.json
      - /var/lib/redis_sidekiq/redis_{{ instance.name }}_refused.json
      - /var/lib/redis_sidekiq/redis_{{ instance.name }}_before.conf

{%- if redis.purge_data %}

The data of Redis instance {{ instance.name }} are gone:
  file.absent:
    - names:
      - {{ instance.dir | tojson }}
      - /var/log/redis/{{ instance.name }}.log
      - {{ instance.backup.dir | tojson }}
    - require:
      - file: {{ instance.config }} is gone
{%- endif %}
{%- endfor %}

The folder for Redis' certificates is gone, unless it holds files of others:
  sidekiq.folder_absent:
    - name: /etc/redis/tls

The folder for Redis' settings is gone, unless it holds files of others:
  sidekiq.folder_absent:
    - name: /etc/redis

The programs of Redis are gone from {{ redis.bin_dir }}:
  redis_build.unlinked:
    - name: {{ redis.bin_dir | tojson }}
    - prefix: {{ redis.prefix | tojson }}

The builds of Redis are gone from {{ redis.prefix }}:
  redis_build.absent:
    - name: {{ redis.prefix | tojson }}
    - require:
{%- for instance in redis.instances %}
      - file: {{ instance.config }} is gone
{%- endfor %}
      - redis_build: The programs of Redis are gone from {{ redis.bin_dir }}

The user {{ redis.build.user }}, who compiled Redis, is gone:
  user.absent:
    - name: {{ redis.build.user | tojson }}

The kernel has what it had before:
  redis_kernel.managed:
    - settings: {}

{%- if redis.purge_data %}

{%- for path in ["/var/redis", "/var/log/redis", redis.backup.dir] %}

{{ path }} is gone, unless it holds files of others:
  sidekiq.folder_absent:
    - name: {{ path }}
{%- endfor %}

The user {{ redis.user }}, who ran Redis, is gone:
  user.absent:
    - name: {{ redis.user | tojson }}

The group {{ redis.group }} is gone:
  group.absent:
    - name: {{ redis.group | tojson }}
{%- endif %}
