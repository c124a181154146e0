{#- Each instance runs under the service manager of the settings, and under no other: the current build, started after
    its files last changed. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set redis = settings.redis %}

include:
  - redis_sidekiq.redis.config

{%- for instance in redis.instances %}

{%- if redis.service_manager == "systemd" %}
{%- set service_file = "/etc/systemd/system/" ~ instance.unit ~ ".service" %}

Redis instance {{ instance.name }} has no init script:
  redis_server.service_absent:
    - name: {{ instance.name | tojson }}
    - manager: sysv
    - require:
      - redis_server: {{ instance.config }}

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
      - redis_server: Redis instance {{ instance.name }} has no init script
{%- else %}
{%- set service_file = "/etc/init.d/" ~ instance.unit %}

Redis instance {{ instance.name }} has no unit:
  redis_server.service_absent:
    - name: {{ instance.name | tojson }}
    - manager: systemd
    - require:
      - redis_server: {{ instance.config }}

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
      - redis_server: Redis instance {{ instance.name }} has no unit
{%- endif %}

Redis instance {{ instance.name }} serves:
  redis_server.running:
    - name: {{ instance.name | tojson }}
    - require:
      - file: {{ instance.dir }}
    - watch:
      - redis_server: Redis {{ redis.version }} is built and in place
      - redis_server: {{ instance.config }}
      - file: {{ service_file }}
{%- endfor %}
