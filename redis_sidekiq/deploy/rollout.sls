#!py
"""
A roll-out as a step of an orchestration, on the master: with steps of your own before and after it.

    salt-run state.orchestrate redis_sidekiq.deploy.rollout pillar='{"app": "shop"}'
"""


def run():
    app = __pillar__["app"]  # noqa: F821 (Salt puts __pillar__ here)
    return {f"Every Sidekiq process of {app} works in the current release": {"salt.runner": [{"name": "sidekiq_rollout.start"}, {"app": app}]}}
