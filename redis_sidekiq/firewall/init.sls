{#- The role `firewall`: UFW with the rules of the pillar and of the Redis instances' allow_from. #}
include:
  - redis_sidekiq.firewall.ruleset
