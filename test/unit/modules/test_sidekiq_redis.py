"""The pure parts of _modules/sidekiq_redis.py: what Sidekiq's keys say, recorded from real ones."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def redis_side(load):
    """The module with one service that has a Redis, and one that has none."""
    module = load("_modules/sidekiq_redis.py")
    services = [{"name": "sidekiq", "env": {"REDIS_URL": "redis://:sesame@127.0.0.1:1/0"}}, {"name": "bare", "env": {}}]
    module.__salt__ = {"redis_sidekiq.settings": lambda reveal: {"sidekiq": {"services": services}}}
    return module


@pytest.mark.parametrize("version", ["6.4.1", "7.3.2"])
def test_a_heartbeat_of_each_line_is_read(redis_side, version):
    raw = json.loads((DATA / f"heartbeat-{version}.json").read_text())
    beat = redis_side._read_beat(raw["identity"], raw["fields"], expiry=57_900)
    hostname, pid, _ = raw["identity"].split(":")
    assert (beat["hostname"], beat["pid"], beat["quiet"], beat["beat_age"]) == (hostname, int(pid), False, 2.1)
    assert (beat["queues"], beat["concurrency"]) == (["default"], 10)
    assert beat["version"] in (None, version)


def test_a_beats_age_does_not_depend_on_another_hosts_clock(redis_side):
    fields = {"info": "{}", "beat": str(time.time() + 3600)}
    assert redis_side._read_beat("h:1:abc", fields, expiry=50_000)["beat_age"] == 10
    # A ghost from a restored backup has no expiry.
    fields["beat"] = str(time.time() - 3600)
    assert redis_side._read_beat("h:1:abc", fields, expiry=-1)["beat_age"] >= 3600


@pytest.mark.parametrize("at", [lambda: time.time() - 5, lambda: int(time.time() * 1000) - 5000])
def test_jobs_are_told_without_their_arguments(redis_side, at):
    payload = {"jid": "ab12", "class": "Wrapper", "wrapped": "Mail", "args": ["sesame"]}
    for form in (payload, json.dumps(payload)):
        job = redis_side._read_job("h:1:abc", json.dumps({"queue": "queue:default", "payload": form, "run_at": at()}))
        assert (job["jid"], job["class"], job["queue"], job["identity"]) == ("ab12", "Mail", "queue:default", "h:1:abc")
        assert 4.9 < job["seconds"] < 7 and "sesame" not in json.dumps(job)


@pytest.mark.parametrize("at", [lambda: time.time() - 5, lambda: int(time.time() * 1000) - 5000])
def test_latency_is_the_oldest_jobs(redis_side, at):
    assert 4.9 < redis_side._latency(json.dumps({"enqueued_at": at()})) < 7
    assert redis_side._latency(None) == redis_side._latency("{}") == 0.0


def test_a_redis_that_is_down_is_told_without_its_login(redis_side):
    with pytest.raises(CommandExecutionError, match="The Redis of sidekiq cannot be reached: is it up?") as err:
        redis_side.beats("sidekiq")
    assert "sesame" not in str(err.value)
    assert "cannot be reached" in redis_side.refusal("sidekiq")


def test_a_service_without_redis_is_told_what_to_set(redis_side):
    with pytest.raises(CommandExecutionError, match="set redis or redis_url of the service"):
        redis_side.queues("bare")
    with pytest.raises(SaltInvocationError, match="is not a Sidekiq service"):
        redis_side.queues("ssh")
