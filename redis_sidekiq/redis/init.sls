{#- Redis: the build, each instance's config, and at last the running servers. #}
include:
  - redis_sidekiq.redis.build
  - redis_sidekiq.redis.config
  - redis_sidekiq.redis.service
