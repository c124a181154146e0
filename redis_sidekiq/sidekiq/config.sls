{#- Who Sidekiq runs as and what it reads: the deploy user, the app's folder, and for each service its unit, its
    environment (secrets: written by a state of its own, which takes them from the settings) and its sidekiq.yml. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}
{%- set deploy = settings.deploy %}

include:
  - redis_sidekiq.deploy.user

The folder for Sidekiq's settings is there:
  file.directory:
    - name: /etc/sidekiq
    - user: root
    - group: root
    - mode: '0755'

{%- for service in settings.sidekiq.services %}

The app's folder of Sidekiq service {{ service.name }} is there:
  file.directory:
    - name: {{ service.app_dir | tojson }}
    - user: {{ deploy.user | tojson }}
    - makedirs: true

{%- if service.config_file %}

Sidekiq service {{ service.name }} has its sidekiq.yml:
  file.serialize:
    - name: {{ service.config_file | tojson }}
    - serializer: yaml
    - dataset: {{ service.config | tojson }}
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - file: /etc/sidekiq
{%- else %}

Sidekiq service {{ service.name }} has no sidekiq.yml of ours:
  file.absent:
    - name: /etc/sidekiq/{{ service.name }}.yml
{%- endif %}

Sidekiq service {{ service.name }} has its environment:
  sidekiq.environment_file:
    - name: {{ service.env_file | tojson }}
    - service: {{ service.name | tojson }}
    - require:
      - file: /etc/sidekiq

Sidekiq service {{ service.name }} has its unit:
  file.managed:
    - name: {{ service.unit_file }}
    - source: salt://redis_sidekiq/sidekiq/files/sidekiq.service.jinja
    - template: jinja
    - context:
        service: {{ service | tojson }}
    - user: root
    - group: root
    - mode: '0644'
{%- endfor %}
