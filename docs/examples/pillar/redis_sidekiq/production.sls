# More memory, backups, restarts of Redis at night; one queue more, no plain http.
redis_sidekiq:
  redis:
    restart: window
    restart_window: "03:00-05:00"
    backup:
      enabled: true
    instances:
      6379:
        maxmemory: 2gb
  firewall:
    rules:
      http: null
      metrics: {from: [10.1.0.0/24]}
  sidekiq:
    services:
      sidekiq:
        # A list replaces the one of base.sls as a whole.
        queues: [critical, default, mail]
        timeout: 60
