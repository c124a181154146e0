"""Sidekiq under load on a real host: a producer that never lets the queue run dry, and what became of each job."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import salt_call, wait_for

Redis = Callable[..., str]

STOP = "/tmp/load.stop"
TRACES = ("enqueued", "worked", "runs", "started", "ends", "retry", "dead", "schedule", "queue:default")


@dataclass
class Verdict:
    """What became of the jobs of a load.

    Attributes:
        enqueued: how many jobs there were.
        worked: how many ended well at least once.
        failed: how many are dead or wait for another try, as they were meant to.
        missing: the jids that are nowhere.
        begun_again: how many were interrupted and began again.
        worked_again: how many ended well more than once.
        ends: when jobs ended, in order (epoch s).
    """

    enqueued: int = 0
    worked: int = 0
    failed: int = 0
    missing: list = field(default_factory=list)
    begun_again: int = 0
    worked_again: int = 0
    ends: list = field(default_factory=list)

    def gap(self, begun: float, ended: float) -> float:
        """Return the longest time between two ends of jobs within a span (s)."""
        inside = [begun, *(moment for moment in self.ends if begun < moment < ended), ended]
        return max(after - before for before, after in zip(inside, inside[1:]))


@contextlib.contextmanager
def load(
    host: Host, depth: int = 200, even: bool = False, settle: float = 90, redis: Redis | None = None, url: str = ""
):
    """Keep ``depth`` jobs waiting; the verdict is filled in at the end, once all jobs had their turn.

    Args:
        host: a host with the test app, where the producer runs.
        depth: how many jobs wait all the time.
        even: whether all of them take 50 ms; else they are a mixture, with long and failing ones.
        settle: how long to wait for the last of them (s).
        redis: runs a Redis command; default: on the host's own instance.
        url: of that Redis, for the producer; default: Sidekiq's own, the local one.
    """
    redis = redis or functools.partial(app.redis, host)
    host.run(["rm", "-f", STOP])
    redis("del", *TRACES)
    folder = app.outside(host)
    words = f"{depth} {'even' if even else 'mixed'}"
    script = f"cd {folder} && exec bundle exec ruby load.rb {words} > /tmp/load.count"
    environment = [f"REDIS_URL={url}"] if url else []
    producer = host.popen(["env", *environment, "sh", "-c", script], user="deploy")
    wait_for(lambda: int(redis("zcard", "ends")) > 100, 60, "jobs worked under load")
    verdict = Verdict()
    try:
        yield verdict
        time.sleep(1)
    finally:
        host.run(["touch", STOP])
        producer.wait(30)
    with contextlib.suppress(AssertionError):  # what is missing then is told by the verdict
        wait_for(lambda: _is_done(redis), settle, "each job ended")
    judge(redis, verdict)
    assert verdict.enqueued >= int(host.run(["cat", "/tmp/load.count"]).stdout) > 0


def judge(redis: Redis, verdict: Verdict) -> None:
    """Fill in what became of the jobs."""
    enqueued, worked = _words(redis, "smembers", "enqueued"), set(_words(redis, "smembers", "worked"))
    failed = _failed(redis)
    queued = {json.loads(line)["jid"] for line in _words(redis, "lrange", "queue:default", "0", "-1")}
    ends = _words(redis, "zrange", "ends", "0", "-1", "withscores")
    verdict.enqueued, verdict.worked, verdict.failed = len(enqueued), len(worked), len(failed)
    verdict.missing = sorted(set(enqueued) - worked - failed - queued)
    verdict.worked_again = sum(int(count) > 1 for count in _words(redis, "hvals", "runs"))
    begun, runs = _counts(redis, "started"), _counts(redis, "runs")
    verdict.begun_again = sum(count > runs.get(jid, 0) for jid, count in begun.items() if jid in worked)
    verdict.ends = sorted(map(float, ends[1::2]))


def now(host: Host) -> float:
    """Return the host's time (epoch s), by the clock of the verdict's ends."""
    return float(host.run(["date", "+%s.%N"]).stdout)


def wait_until_in_flight(host: Host, jids: Collection[str]) -> None:
    """Wait until a beat tells of these jobs. It may tell of others too: a killed process' last one stays for a minute."""

    def told() -> bool:
        return set(jids) <= {job["jid"] for job in salt_call(host, "sidekiq.jobs_in_flight", "sidekiq")}

    wait_for(told, 25, "a beat that tells of the jobs")


def _words(redis: Redis, *command: str) -> list[str]:
    return [line for line in redis(*command).splitlines() if line]


def _counts(redis: Redis, key: str) -> dict[str, int]:
    words = _words(redis, "hgetall", key)
    return dict(zip(words[::2], map(int, words[1::2])))


def _is_done(redis: Redis) -> bool:
    """Each job has ended, well or not. Jobs on their way from queue to end are in neither, so a count would not do."""
    return not set(_words(redis, "sdiff", "enqueued", "worked")) - _failed(redis)


def _failed(redis: Redis) -> set[str]:
    return {json.loads(line)["jid"] for key in ("retry", "dead") for line in _words(redis, "zrange", key, "0", "-1")}
