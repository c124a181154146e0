{#- For each app a command without arguments that sends its deploy event. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

{%- for event in settings.deploy.events %}

The deploy event of {{ event.app }} has its command:
  file.managed:
    - name: {{ event.command }}
    - source: salt://redis_sidekiq/deploy/files/sidekiq-deployed.jinja
    - template: jinja
    - context:
        event: {{ event | tojson }}
        salt_call: {{ settings.deploy.salt_call | tojson }}
    - user: root
    - group: root
    - mode: '0755'
{%- endfor %}
