"""A host with Redis alone: its pillar, its states, its keys."""

from __future__ import annotations

from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import StateRun, put_pillar, redis_version, tarball

IMAGES = ["bookworm", "trixie"]
CONFIG = "Redis instance 6379 has its config"
LIVE = "Redis instance 6379 works by its config"
SERVES = "Redis instance 6379 serves"


def configure(host: Host, instance: dict | None = None, **redis) -> None:
    """Make a pillar with Redis alone: settings of the instance 6379, settings of Redis."""
    version = redis_version(host.run(["cat", "/etc/image"]).stdout.strip())
    redis = {**tarball(version), **redis, "instances": {"6379": instance or {}}}
    put_pillar(host, {"redis_sidekiq": {"roles": ["redis"], "redis": redis}})


def changed(run: StateRun) -> set:
    return set(run.assert_ok().changed)


def pid(host: Host) -> str:
    return app.main_pid(host, "redis_6379")


def fill(host: Host, count: int = 300) -> None:
    """Write keys that are not in any snapshot yet."""
    host.run(["redis-cli"], input="".join(f"set key:{number} {'x' * 1000}\n" for number in range(count)))
    assert app.redis(host, "dbsize") == str(count)
