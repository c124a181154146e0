{#- What the roles need from the distribution, in one transaction: one question to dpkg in a run that changes nothing. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

The distribution's packages are installed:
  pkg.installed:
    - pkgs: {{ settings.packages | tojson }}
    # A change here makes Salt look for modules anew. Where all packages are there already, Salt 3008 would not find
    # those that this very run has synced.
    - force_reload_modules: {{ "sidekiq.status" not in salt }}

{%- if settings.roles != ["deploy"] %}

Salt has a client for Redis:
  redis_server.client_installed: []
{%- endif %}
