{#- Each Sidekiq service is enabled and works the current release, started after its files last changed. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.sidekiq.config

{%- for service in settings.sidekiq.services %}

Sidekiq service {{ service.name }} works:
  sidekiq.current:
    - name: {{ service.name | tojson }}
    - watch:
      - file: {{ service.unit_file }}
      - sidekiq: {{ service.env_file }}
{%- if service.config_file %}
      - file: {{ service.config_file }}
{%- endif %}
{%- endfor %}
