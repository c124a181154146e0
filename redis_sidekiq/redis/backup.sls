{#- Backups of Redis' instances: the program that makes them, and a timer for each instance whose settings want it. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set redis = settings.redis %}
{%- set wanted = redis.instances | selectattr("backup.enabled") | list %}

include:
  - redis_sidekiq.redis.config

# There without a timer too: for a backup and a restore by hand.
The program that backs up Redis is there:
  file.managed:
    - name: /usr/local/lib/redis_sidekiq/redis_backup.py
    - source: salt://redis_sidekiq/redis/files/redis_backup.py
    - makedirs: true
    - dir_mode: '0755'
    - user: root
    - group: root
    - mode: '0755'

{%- for instance in wanted %}

Redis instance {{ instance.name }} has a folder for its backups:
  file.directory:
    - name: {{ instance.backup.dir | tojson }}
    - user: root
    - group: root
    - mode: '0700'
    - makedirs: true

Redis instance {{ instance.name }} is backed up:
  redis_backup.scheduled:
    - name: {{ instance.name | tojson }}
    - require:
      - file: /usr/local/lib/redis_sidekiq/redis_backup.py
      - file: {{ instance.backup.dir }}
      - redis_server: {{ instance.config }}
{%- endfor %}

No other instance of Redis is backed up:
  redis_backup.only:
    - keep: {{ wanted | map(attribute="name") | list | tojson }}
