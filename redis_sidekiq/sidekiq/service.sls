{#- Each Sidekiq service is enabled and works the current release, started after its files last changed. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.sidekiq.config

{%- for service in settings.sidekiq.services %}
{%- set unit_file = "/etc/systemd/system/" ~ service.unit %}

Sidekiq service {{ service.name }} works:
  sidekiq.running:
    - name: {{ service.name | tojson }}
    - current: {{ service.current | tojson }}
    - config_files: {{ [unit_file, service.env_file, service.config_file] | select | list | tojson }}
    - watch:
      - file: {{ unit_file }}
      - sidekiq: {{ service.env_file }}
{%- if service.config_file %}
      - file: {{ service.config_file }}
{%- endif %}
{%- endfor %}
