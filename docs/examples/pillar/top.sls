# Which minion gets which files, from the most general to the most special: a later file goes before an earlier one.
base:
  '*':
    - redis_sidekiq.base

  # The environment by the minion's id, which its accepted key vouches for. A grain is what the minion says of itself: one
  # that was broken into could call itself production, and be told production's secrets.
  'staging-*':
    - redis_sidekiq.staging
  'production-*':
    - redis_sidekiq.production

  # A grain will do for what is no secret.
  'num_cpus:16':
    - match: grain
    - redis_sidekiq.large
