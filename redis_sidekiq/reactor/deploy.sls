#!py
"""
A deploy event brings the app's Sidekiq services to the current release: redis_sidekiq/deploy/APP

Any minion can send any event with any data, its sender's name included. So nothing of an event is believed: the app's
name comes from the tag, and what it stands for from a map in the master's own configuration:

    redis_sidekiq:
      apps:
        shop: {minions: [web1.example.org, web2.example.org], services: [sidekiq]}

This is Python (`#!py`) so that no template ever sees the event's data.
"""

import logging
import re

log = logging.getLogger(__name__)

TAG = re.compile(r"redis_sidekiq/deploy/([A-Za-z0-9][A-Za-z0-9_-]{0,63})")
MINION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9@_-]*")


def run():
    app, target = _app(tag), {}  # noqa: F821 (Salt puts tag and __opts__ here)
    if app:
        target = _target(__opts__, app)  # noqa: F821
    return _reaction(app, target) if target else {}


def _app(event_tag):
    match = TAG.fullmatch(event_tag)
    if not match:
        log.warning("A deploy event was ignored, its tag names no app: %r", event_tag[:200])
        return ""
    return match[1]


def _target(opts, app):
    """The app's entry in the master's configuration, or {} with a line in the log that says what is wrong with it."""
    settings = opts.get("redis_sidekiq")
    apps = settings.get("apps") if isinstance(settings, dict) else None
    target = apps.get(app) if isinstance(apps, dict) else None
    if not isinstance(target, dict):
        log.warning("A deploy event was ignored, redis_sidekiq:apps of the master's configuration has no app %r", app)
        return {}
    for key, allowed in (("minions", MINION), ("services", SERVICE)):
        names = target.get(key)
        if not isinstance(names, list) or not names or not all(_plain(name, allowed) for name in names):
            log.error("redis_sidekiq:apps:%s:%s in the master's configuration must be a list of names", app, key)
            return {}
    return target


def _plain(name, allowed):
    return isinstance(name, str) and allowed.fullmatch(name) is not None


def _reaction(app, target):
    """What a deploy sets off; every word of it is a constant or comes from the master's configuration."""
    return {
        f"Deploy of {app} restarts {service}": {
            "local.sidekiq.restart": [
                {"tgt": list(target["minions"])},
                {"tgt_type": "list"},
                {"args": [{"service": service}, {"stale_only": True}]},
            ]
        }
        for service in target["services"]
    }
