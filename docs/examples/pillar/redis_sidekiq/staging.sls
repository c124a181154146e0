# The office alone sees staging, and its jobs stay in their own Rails environment.
redis_sidekiq:
  firewall:
    rules:
      http: {from: [192.0.2.0/24]}
      https: {from: [192.0.2.0/24]}
  sidekiq:
    services:
      sidekiq:
        environment: staging
        concurrency: 2
