{#- What the roles need from the distribution, in one transaction: one question to dpkg in a run that changes nothing. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

The distribution's packages are installed:
  pkg.installed:
    - pkgs: {{ settings.packages | tojson }}

Salt has a client for Redis:
  redis_server.client_installed: []
