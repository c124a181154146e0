{#- Each instance runs under the service manager of the settings, and under no other: the current build, with its config
    in force. What a running server can change is set first, so that only what is left takes a restart. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set redis = settings.redis %}

include:
  - redis_sidekiq.redis.config

{%- for instance in redis.instances %}

{%- if redis.service_manager == "systemd" %}
{%- set service_file = "/etc/systemd/system/" ~ instance.unit ~ ".service" %}

Redis instance {{ instance.name }} has its unit:
  file.managed:
    - name: {{ service_file }}
    - source: salt://redis_sidekiq/redis/files/redis.service.jinja
    - template: jinja
    - context:
        redis: {{ redis | tojson }}
        instance: {{ instance | tojson }}
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - redis_server: {{ instance.config }}

Redis instance {{ instance.name }} has no init script:
  redis_server.service_absent:
    - name: {{ instance.name | tojson }}
    - manager: sysv
    - start: true
    - require:
      - file: {{ service_file }}
      - file: {{ instance.dir }}
{%- else %}
{%- set service_file = "/etc/init.d/" ~ instance.unit %}

Redis instance {{ instance.name }} has its init script:
  file.managed:
    - name: {{ service_file }}
    - source: salt://redis_sidekiq/redis/files/redis.init.jinja
    - template: jinja
    - context:
        redis: {{ redis | tojson }}
        instance: {{ instance | tojson }}
    - user: root
    - group: root
    - mode: '0755'
    - require:
      - redis_server: {{ instance.config }}

Redis instance {{ instance.name }} has no unit:
  redis_server.service_absent:
    - name: {{ instance.name | tojson }}
    - manager: systemd
    - start: true
    - require:
      - file: {{ service_file }}
      - file: {{ instance.dir }}
{%- endif %}

Redis instance {{ instance.name }} works by its config:
  redis_config.live:
    - name: {{ instance.name | tojson }}
    - require:
      - redis_server: {{ instance.config }}

# The default user's password is a directive. No user is held up by another directive that could not be set live.
Redis instance {{ instance.name }} has its users:
  redis_acl.live:
    - name: {{ instance.name | tojson }}
    - require:
      - redis_server: {{ instance.config }}

# Not held up by a directive that could not be set live.
Redis instance {{ instance.name }} serves:
  redis_server.running:
    - name: {{ instance.name | tojson }}
    - restart: {{ instance.restart }}
    - window: {{ instance.restart_window | tojson }}
    - require:
      - file: {{ instance.dir }}
      - redis_server: {{ instance.config }}
    - watch:
      - redis_build: {{ redis.flavor | capitalize }} {{ redis.version }} is built
      - redis_build: {{ redis.flavor | capitalize }} {{ redis.version }} is the current build
      - file: {{ service_file }}

{%- if instance.tls %}

Redis instance {{ instance.name }} shows its certificate:
  redis_tls.live:
    - name: {{ instance.name | tojson }}
    - require:
      - redis_server: Redis instance {{ instance.name }} serves
{%- endif %}
{%- endfor %}
