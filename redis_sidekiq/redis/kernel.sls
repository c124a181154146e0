{#- What Redis asks of the kernel. A queue for connections counts when a server begins to listen, so before any does. #}
{%- from "redis_sidekiq/map.jinja" import settings with context %}

The kernel is set for Redis:
  redis_kernel.managed:
    - settings: {{ settings.redis.kernel | tojson }}
