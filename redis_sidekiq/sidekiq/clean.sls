{#- Takes away the services, their files and the sudoers file. The app's folders and the deploy user stay: releases,
    keys and whatever else belongs to him are not the formula's. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

include:
  - redis_sidekiq.deploy.sudoers_clean

{%- for service in settings.sidekiq.services %}

Sidekiq service {{ service.name }} is stopped and disabled:
  service.dead:
    - names: {{ service.units | tojson }}
    - enable: false

{%- for path in [service.unit_file, service.env_file, "/etc/sidekiq/" ~ service.name ~ ".yml"] %}

{{ path }} is gone:
  file.absent:
    - name: {{ path }}
    - require:
{%- for unit in service.units %}
      - service: {{ unit }}
{%- endfor %}
{%- endfor %}

systemd forgets Sidekiq service {{ service.name }}:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
      - file: {{ service.unit_file }}
{%- endfor %}

The folder for Sidekiq's settings is gone, unless it holds files of others:
  sidekiq.folder_absent:
    - name: /etc/sidekiq
