"""Deploy events on a real bus: what the master publishes for a good one, and that hostile ones set off nothing."""

from __future__ import annotations

import json
import time

import pytest
from test.integration.conftest import SERVICE

EVENT = "redis_sidekiq/deploy/shop"


@pytest.fixture
def published(master, minion, event_listener):
    """``published(send)``: the jobs that the master published within some seconds after ``send()``, no others'."""

    def _published(send, wait=6.0, enough=None):
        begun = time.time()
        send()
        until = time.monotonic() + wait
        while True:
            events = event_listener.get_events([(master.id, "salt/job/*/new")], after_time=begun)
            jobs = [event.data for event in sorted(events, key=lambda event: event.stamp)]
            # The tests' own commands are jobs too; a reaction has no command's name for its user's function.
            jobs = [job for job in jobs if job["fun"] not in ("event.send", "event.fire_master", "test.ping")]
            if (enough and len(jobs) >= enough) or time.monotonic() > until:
                return [{key: job[key] for key in ("fun", "tgt", "tgt_type", "arg")} for job in jobs]
            time.sleep(0.1)

    return _published


@pytest.fixture
def the_call(minion):
    """The one job that an event of the app may set off."""
    arg = [{"__kwarg__": True, "service": SERVICE, "stale_only": True}]
    return {"fun": "sidekiq.restart", "tgt": [minion.id], "tgt_type": "list", "arg": arg}


@pytest.fixture
def send_event(minion):
    """Send an event as users do: `salt-call event.send`."""
    cli = minion.salt_call_cli(timeout=60)

    def _send(tag):
        sent = cli.run("event.send", tag)
        assert sent.returncode == 0, sent

    return _send


@pytest.fixture
def forge(minion):
    """
    Send events as a minion that speaks to the master's request server by itself: Salt's own commands would mend a tag
    or an argument on the way, and never send a forged sender.
    """
    import salt.channel.client
    import salt.crypt

    opts = minion.config.copy()
    opts["master_uri"] = f"tcp://127.0.0.1:{opts['master_port']}"
    token = salt.crypt.SAuth(opts).gen_token(b"salt")

    def _forge(*events):
        load = {"id": minion.id, "tok": token, "cmd": "_minion_event", "events": list(events), "pretag": None}
        with salt.channel.client.ReqChannel.factory(opts) as channel:
            return channel.send(load, timeout=10)

    return _forge


def test_a_deploy_event_restarts_the_apps_service_on_its_minion(published, send_event, the_call):
    assert published(lambda: send_event(EVENT), wait=10.0, enough=1) == [the_call]


def test_an_event_from_the_master_does_too(published, master, the_call):
    send = master.salt_run_cli(timeout=60)
    assert published(lambda: send.run("event.send", EVENT), enough=1) == [the_call]


def test_the_minion_refuses_a_service_without_a_unit(salt):
    ret = salt("sidekiq.restart", SERVICE)
    assert ret.data["result"] is False
    assert ret.returncode != 0


HOSTILE = {
    "another function": {"fun": "cmd.run", "tgt": "*", "arg": ["touch MARKER"]},
    "a second reaction by line ends": {"rev": "1\nx:\n  local.cmd.run:\n    - tgt: '*'\n    - arg: ['touch MARKER']"},
    "a template": {"rev": "{{ salt['cmd.run']('touch MARKER') }}"},
    "a YAML tag": {"rev": "!!python/object/apply:os.system ['touch MARKER']"},
    "another service": {"service": "ssh", "services": ["ssh"], "args": [{"service": "ssh"}]},
    "a forged sender": {"id": "master", "minions": ["*"], "__pub_user": "root", "user": "root"},
    "no dictionary within": {"data": [1, 2, 3]},
    "a webhook's shape": {"post": {"service": "ssh"}, "headers": {"X": "1"}, "body": "{{ 7 * 7 }}"},
    "very much": {"rev": "x" * 100_000},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_data_sets_off_the_same_call_and_nothing_else(published, forge, the_call, tmp_path, kind):
    marker = tmp_path / "owned"
    data = json.loads(json.dumps(HOSTILE[kind]).replace("MARKER", str(marker)))
    assert published(lambda: forge({"tag": EVENT, "data": data}), wait=2.0) == [the_call]
    assert not marker.exists()


def test_hostile_tags_set_off_nothing(published, forge):
    tags = ["unknown", "", "*", "shop/x", "shop\n", "shop\nlocal.cmd.run: {}", "../shop", "{{ 'shop' }}", "a" * 500, "shop "]
    events = [{"tag": f"redis_sidekiq/deploy/{tag}", "data": {"id": "web1"}} for tag in tags]
    assert published(lambda: forge(*events), wait=4.0) == []


def test_a_burst_of_events_is_that_many_calls_of_the_one_function(published, forge, the_call):
    burst = [{"tag": EVENT, "data": {"n": n, "id": f"web{n}"}} for n in range(30)]
    assert published(lambda: forge(*burst), wait=20.0, enough=30) == [the_call] * 30
