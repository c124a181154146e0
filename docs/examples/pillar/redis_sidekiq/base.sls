# What all environments have in common.
redis_sidekiq:
  redis:
    version: 8.0.6
    instances:
      6379:
        maxmemory: 256mb
  firewall:
    rules:
      metrics: {port: 9100, from: [10.0.0.0/24]}
  sidekiq:
    services:
      sidekiq:
        app_dir: /srv/app
        concurrency: 5
        queues: [critical, default]
