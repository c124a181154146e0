{#- Redis: the kernel, the build, each instance's config, an end for instances that were dropped, the running servers, and
    backups, and an end for builds that nobody needs. #}
include:
  - redis_sidekiq.redis.kernel
  - redis_sidekiq.redis.build
  - redis_sidekiq.redis.config
  - redis_sidekiq.redis.dropped
  - redis_sidekiq.redis.service
  - redis_sidekiq.redis.backup
  - redis_sidekiq.redis.kept
