{#- Sidekiq: its user and files, what the deploy user may do, and at last the running service. #}
include:
  - redis_sidekiq.sidekiq.config
  - redis_sidekiq.deploy.sudoers
  - redis_sidekiq.sidekiq.service
