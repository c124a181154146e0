"""Deploy events on a real bus: what the master publishes for a good one, and that hostile ones set off nothing."""

from __future__ import annotations

import json
import time

import pytest
from test.integration.conftest import SECRET, SERVICE

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
            # The tests' own commands are jobs too, and roll-outs ask who is still at work.
            own = ("event.send", "event.fire_master", "test.ping", "saltutil.find_job")
            jobs = [job for job in jobs if job["fun"] not in own]
            if (enough and len(jobs) >= enough) or time.monotonic() > until:
                return [{key: job[key] for key in ("fun", "tgt", "tgt_type", "arg")} for job in jobs]
            time.sleep(0.1)

    return _published


@pytest.fixture
def the_call(minion):
    """The one job that an event of the app may set off here: the host is asked, and has no such unit to restart."""
    arg = [{"__kwarg__": True, "services": [SERVICE]}]
    return {"fun": "sidekiq.ready", "tgt": [minion.id], "tgt_type": "list", "arg": arg}


@pytest.fixture(autouse=True)
def nothing_rolls(master):
    """No test sees the roll-outs of the one before."""
    yield
    cli, until = master.salt_run_cli(timeout=60), time.monotonic() + 60
    while True:
        apps = cli.run("sidekiq_rollout.show").data
        if all(app["state"] == "idle" and not app["waiting"] for app in apps.values()):
            return
        assert time.monotonic() < until, apps
        time.sleep(0.2)


@pytest.fixture
def last(master):
    """The app's last roll-out."""
    return lambda app="shop": master.salt_run_cli(timeout=60).run("sidekiq_rollout.show", app).data[app]["last"]


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


def test_a_deploy_event_asks_the_apps_minions(published, send_event, the_call, last):
    assert published(lambda: send_event(EVENT), wait=20.0, enough=1) == [the_call]
    assert last()["asked"][0]["by"] == "event"


def test_an_event_from_the_master_does_too(published, master, the_call):
    send = master.salt_run_cli(timeout=60)
    assert published(lambda: send.run("event.send", EVENT), wait=20.0, enough=1) == [the_call]


def test_a_roll_out_that_fails_says_why_and_ends_so(published, master, minion, the_call):
    cli = master.salt_run_cli(timeout=60)
    ended = []
    assert published(lambda: ended.append(cli.run("sidekiq_rollout.start", "shop")), wait=2.0) == [the_call]
    assert ended[0].returncode == 1 and not ended[0].data["result"]
    assert f"{minion.id} failed: {SERVICE}: " in ended[0].data["comment"]
    assert f"{minion.id}: failed" in ended[0].stderr


def test_an_orchestration_fails_with_its_roll_out(master):
    ended = master.salt_run_cli(timeout=60).run(
        "state.orchestrate", "redis_sidekiq.deploy.rollout", "pillar={app: shop}"
    )
    assert ended.returncode == 1
    assert f"{SERVICE}: " in str(ended.data)


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
    "another app": {"app": "other", "data": {"app": "other"}, "tag": "redis_sidekiq/deploy/other"},
    "a strategy": {"strategy": "drain", "batch": "100%", "canary": 0, "failures": 99, "lock": 3, "once": "x"},
    "no dictionary within": {"data": [1, 2, 3]},
    "a webhook's shape": {"post": {"service": "ssh"}, "headers": {"X": "1"}, "body": "{{ 7 * 7 }}"},
    "shell metacharacters": {"rev": "; touch MARKER; $(touch MARKER) `touch MARKER` | touch MARKER"},
    "very much": {"rev": "x" * 700_000},
    "very deep": json.loads("[" * 300 + "]" * 300),
}
TAGS = [
    *["unknown", "", "*", "shop/x", "shop\n", "shop\nlocal.cmd.run: {}", "../shop", "{{ 'shop' }}", "a" * 500, "shop "],
    *["shop;id", "$(id)", "shop\0", "%2e%2e/shop", "SHOP", "sh\u00f6p", "shop#", "__opts__", ".", "-shop"],
]


def test_hostile_data_set_off_the_same_call_and_nothing_else(published, forge, the_call, tmp_path, last):
    marker, before = tmp_path / "owned", last().get("serial", 0)
    hostile = json.loads(json.dumps(HOSTILE).replace("MARKER", str(marker)))
    events = [{"tag": EVENT, "data": data if isinstance(data, dict) else {"data": data}} for data in hostile.values()]

    def send():
        for event in events:
            forge(event)

    calls = published(send, wait=8.0)
    assert calls and all(call == the_call for call in calls)
    assert last()["serial"] == before + len(events)
    assert not marker.exists()


def test_hostile_tags_set_off_nothing(published, forge):
    events = [{"tag": f"redis_sidekiq/deploy/{tag}", "data": {"id": "web1"}} for tag in TAGS]
    assert published(lambda: forge(*events), wait=6.0) == []


def hook(load, body=b"{}", secret=SECRET, **changed):
    """An event as salt-api makes it of a signed call, with headers changed."""
    headers = {**load("docs/examples/deploy_hook.py").headers(secret.encode(), body), **changed}
    return {
        "tag": "salt/netapi/hook/redis_sidekiq/deploy/shop",
        "data": {"headers": headers, "body": body.decode(), "post": {}},
    }


def test_a_signed_webhook_counts_once(published, forge, the_call, load, last):
    call = hook(load)
    assert published(lambda: forge(call), wait=20.0, enough=1) == [the_call]
    assert last()["asked"][0]["by"] == "webhook"
    assert published(lambda: forge(call, call, call), wait=4.0) == []


def test_webhooks_with_something_wrong_set_off_nothing(published, forge, load):
    right = hook(load)
    other = {**right, "tag": right["tag"].replace("/shop", "/other")}  # an app without a secret
    calls = [
        hook(load, secret="another-secret-of-that-length"),
        hook(load, **{"Webhook-Signature": ""}),
        hook(load, **{"Webhook-Timestamp": "1"}),
        hook(load, **{"Webhook-Id": "another"}),
        {**right, "data": {**right["data"], "body": "{ }"}},
        {**right, "data": {**right["data"], "headers": {}}},
        {**right, "data": {"id": "master"}},
        {**right, "tag": right["tag"].replace("/shop", "/nosuch")},
        other,
    ]
    assert published(lambda: forge(*calls), wait=6.0) == []


def test_a_burst_of_events_is_two_calls(published, forge, the_call, last):
    before = last().get("serial", 0)
    burst = [{"tag": EVENT, "data": {"n": n, "id": f"web{n}"}} for n in range(200)]
    assert published(lambda: forge(*burst), wait=60.0, enough=2) == [the_call] * 2
    assert last()["serial"] == before + 200
