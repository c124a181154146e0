#!py
"""
A deploy event asks for a roll-out of its app: redis_sidekiq/deploy/APP

Any minion can send any event with any data, its sender's name included. So nothing of an event is believed: the app's
name comes from the tag, it has to be one of redis_sidekiq:apps in the master's configuration, and that says all else
(docs/deploy-events.md). This is Python (`#!py`) so that no template ever sees the event's data.
"""

import logging
import re

log = logging.getLogger(__name__)

TAG = re.compile(r"redis_sidekiq/deploy/([A-Za-z0-9][A-Za-z0-9_-]{0,63})")


def run():
    match = TAG.fullmatch(tag)  # noqa: F821 (Salt puts tag and __opts__ here)
    if not match:
        log.warning("A deploy event was ignored, its tag names no app: %r", tag[:200])  # noqa: F821
        return {}
    settings = __opts__.get("redis_sidekiq")  # noqa: F821
    apps = settings.get("apps") if isinstance(settings, dict) else None
    if not isinstance(apps, dict) or match[1] not in apps:
        log.warning("A deploy event was ignored, redis_sidekiq:apps of the master's configuration has no %r", match[1])
        return {}
    arguments = [{"app": match[1]}, {"source": "event"}]
    return {f"Roll out {match[1]}": {"runner.sidekiq_rollout.request": [{"args": arguments}]}}
