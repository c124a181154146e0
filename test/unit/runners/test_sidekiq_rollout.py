"""Roll-outs without Salt: settings, who may restart together, requests that meet, records."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from types import SimpleNamespace

import pytest
from salt.exceptions import SaltInvocationError

APP = {"minions": ["web1", "web2", "web3", "web4"]}


@pytest.fixture
def rollout(load, tmp_path):
    """The runner, with an app ``shop`` of four hosts; ``opts(KEY=…)`` gives that app more settings."""
    module = load("_runners/sidekiq_rollout.py")
    module.opts = lambda **settings: {
        "cachedir": str(tmp_path),
        "redis_sidekiq": {"apps": {"shop": {**APP, **settings}}},
    }
    module.__opts__, module.__context__ = module.opts(), {}
    module._CALM, module._STORM = 0.01, 0.5
    return module


def facts(due=True, strategy="handover", here=1, elsewhere=3, problem=""):
    """What a host says of one service."""
    queues = {"default": {"here": here, "elsewhere": elsewhere}}
    reasons = ["it works in another release"] if due else []
    return {"problem": problem, "due": reasons, "strategy": strategy, "budget": 60.0, "queues": queues}


@pytest.fixture
def run(rollout):
    """``run(said, answers, **settings)``: a roll-out over hosts that say this of themselves, and answer so at a restart.

    Returns its record, and what was called in which order, as (function, hosts).
    """
    module = rollout

    def _run(said, answers=None, **settings):
        calls = []

        def call(self, hosts, fun, arguments, budget):
            calls.append((fun, list(hosts)))
            for host in hosts:
                known = said if fun == "sidekiq.ready" else (answers or {})
                answer = known.get(host, RESTARTED if fun == "sidekiq.restart" else facts())
                if answer is not None:
                    yield host, {"ret": {"sidekiq": answer} if fun == "sidekiq.ready" else answer}

        module._Rollout.call = call
        module._fire = lambda opts, tag, data: calls.append((tag, data["id"])) if "rollout" not in tag else None
        opts = module.opts(**settings)
        module.__opts__ = opts
        return module._Rollout(opts, "shop", module._Ledger(opts, "shop"), {"serial": 1, "asked": []}).run(), calls

    return _run


RESTARTED = {"result": True, "comment": "works", "processes": [], "jobs": {"a": {"fate": "finished"}}, "warnings": []}


def states(record):
    return {host: entry["state"] for host, entry in record["hosts"].items()}


def restarts(calls):
    return [hosts for fun, hosts in calls if fun == "sidekiq.restart"]


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"minions": "web* or N@workers", "batch": "25%", "canary": 0, "pause": 0.5, "strategy": "drain"},
        {"failures": 3, "deadline": 60, "services": ["a", "b"], "secret_file": "/etc/salt/x"},
    ],
)
def test_settings_that_are_right(rollout, settings):
    assert rollout._settings(rollout.opts(**settings), "shop")["services"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"minions": []}, "shop:minions: found [], allowed: a list of minion ids"),
        ({"minions": ["*"]}, "shop:minions: found ['*']"),
        ({"minions": ["a", "a"]}, "shop:minions: found ['a', 'a']"),
        ({"minions": None}, "shop:minions: found None"),
        ({"services": "sidekiq"}, "shop:services: found 'sidekiq', allowed: a list of names"),
        ({"services": ["sidekiq; id"]}, "shop:services"),
        ({"batch": 0}, "shop:batch: found 0, allowed: how many hosts go at once"),
        ({"batch": "0%"}, "shop:batch"),
        ({"batch": "101%"}, "shop:batch"),
        ({"batch": True}, "shop:batch"),
        ({"canary": "1"}, "shop:canary: found '1'"),
        ({"strategy": "rolling"}, "shop:strategy: found 'rolling', allowed: handover or drain"),
        ({"failures": 0}, "shop:failures: found 0"),
        ({"deadline": "1h"}, "shop:deadline: found '1h', allowed: seconds"),
        ({"secret_file": "secret"}, "shop:secret_file: found 'secret', allowed: absolute path"),
        ({"minion": ["web1"]}, "shop:minion is not known; did you mean minions?"),
    ],
)
def test_settings_that_are_wrong_are_told(rollout, settings, sentence):
    with pytest.raises(SaltInvocationError) as told:
        rollout._settings(rollout.opts(**settings), "shop")
    assert sentence in str(told.value)


def test_all_that_is_wrong_is_told_at_once(rollout):
    with pytest.raises(SaltInvocationError) as told:
        rollout._settings(rollout.opts(batch=0, canary=-1, pauze=3), "shop")
    assert len(str(told.value).splitlines()) == 4


@pytest.mark.parametrize("app", ["nosuch", "", "../shop", None, ["shop"], {"a": 1}, "shop\n"])
def test_an_unknown_app_is_refused_before_anything_is_written(rollout, tmp_path, app):
    for answer in (rollout.request(app), rollout.start(app), rollout.check(app), rollout.watch(app)):
        assert not answer["result"] and answer["retcode"] == 1
        assert "There is no app" in answer["comment"]
    assert list(tmp_path.iterdir()) == []


# The order of things


def test_hosts_follow_the_canary_in_batches(run):
    record, calls = run({}, batch=2)
    assert restarts(calls) == [["web1"], ["web2", "web3"], ["web4"]]
    assert record["result"] and set(states(record).values()) == {"done"}
    assert calls[-1][0] == "redis_sidekiq/deployed/shop"
    assert record["hosts"]["web1"]["services"]["sidekiq"]["jobs"] == {"finished": 1}


@pytest.mark.parametrize(
    ("batch", "canary", "order"),
    [("50%", 0, [2, 2]), ("25%", 1, [1, 1, 1, 1]), ("1%", 0, [1, 1, 1, 1]), ("100%", 1, [1, 3]), (9, 2, [2, 2])],
)
def test_batches_of_a_share(run, batch, canary, order):
    assert list(map(len, restarts(run({}, batch=batch, canary=canary)[1]))) == order


def test_who_is_current_is_left_alone(run):
    record, calls = run({"web1": facts(due=False), "web3": facts(due=False)})
    assert restarts(calls) == [["web2"], ["web4"]]
    assert record["result"] and states(record)["web1"] == "current"


def test_nothing_to_do_is_one_question(run):
    record, calls = run(dict.fromkeys(APP["minions"], facts(due=False)))
    assert [fun for fun, _ in calls] == ["sidekiq.ready", "redis_sidekiq/deployed/shop"]
    assert record["result"]


def test_a_problem_anywhere_stops_it_before_the_first_restart(run):
    record, calls = run({"web4": facts(problem="Redis is loading")})
    assert restarts(calls) == []
    assert states(record) == {"web1": "skipped", "web2": "skipped", "web3": "skipped", "web4": "failed"}
    assert "web4 failed: sidekiq: Redis is loading" in record["comment"]
    assert calls[-1][0] == "redis_sidekiq/deploy_failed/shop"


def test_the_first_failure_stops_it(run):
    record, calls = run({}, {"web1": {**RESTARTED, "result": False, "comment": "no boot"}})
    assert restarts(calls) == [["web1"]]
    assert states(record) == {"web1": "failed", "web2": "skipped", "web3": "skipped", "web4": "skipped"}
    assert "no boot" in record["comment"] and "Not touched: web2, web3, web4" in record["comment"]


def test_more_failures_may_be_allowed(run):
    record, calls = run({}, {"web1": {**RESTARTED, "result": False}}, failures=2)
    assert len(restarts(calls)) == 4 and not record["result"]
    assert states(record)["web4"] == "done"


def test_who_does_not_answer_is_listed_and_the_others_go_on(run):
    record, calls = run({"web2": None})
    assert restarts(calls) == [["web1"], ["web3"], ["web4"]]
    assert not record["result"] and "Unreachable: web2" in record["comment"]


def test_who_vanishes_while_it_restarts_has_failed(run):
    record, _ = run({}, {"web1": None})
    assert states(record)["web1"] == "failed" and states(record)["web2"] == "skipped"


@pytest.mark.parametrize("answer", ["Traceback", 7, [], {}, {"result": True}, {"result": True, "processes": 7}])
def test_an_answer_that_is_no_record_is_a_failure(run, answer):
    record, _ = run({}, {"web1": answer})
    assert states(record)["web1"] == "failed"
    assert "did not answer sidekiq.restart as expected" in record["hosts"]["web1"]["comment"]


@pytest.mark.parametrize(
    "said",
    [
        "'sidekiq.ready' is not available.",
        7,
        [],
        {"problem": None},
        {"problem": "", "due": "x"},
        {**facts(), "budget": "x"},
    ],
)
def test_an_answer_that_is_no_readiness_is_a_failure(run, said):
    record, calls = run({"web1": said})
    assert states(record)["web1"] == "failed" and restarts(calls) == []


def test_after_the_deadline_nothing_begins(run, rollout):
    clock = map(float, itertools.count(0, 100))
    rollout.time = SimpleNamespace(time=lambda: next(clock), monotonic=time.monotonic, sleep=time.sleep)
    record, calls = run({}, deadline=1)
    assert restarts(calls) == [] and "deadline" in record["comment"]


# Consumers


def test_hosts_that_drain_go_one_by_one_when_nobody_else_is_left(run):
    said = {host: facts(strategy="drain", elsewhere=1) for host in ("web1", "web2")}
    record, calls = run(said, minions=["web1", "web2"], batch=2, canary=0)
    assert restarts(calls) == [["web1"], ["web2"]] and record["result"]


def test_hosts_that_drain_go_together_when_others_work(run):
    said = {host: facts(strategy="drain", elsewhere=3) for host in APP["minions"]}
    assert restarts(run(said, batch=4, canary=0)[1]) == [["web1", "web2", "web3"], ["web4"]]


def test_the_apps_strategy_counts_as_well(run):
    said = {host: facts(elsewhere=1) for host in ("web1", "web2")}
    assert len(restarts(run(said, minions=["web1", "web2"], batch=2, canary=0, strategy="drain")[1])) == 2
    assert len(restarts(run(said, minions=["web1", "web2"], batch=2, canary=0)[1])) == 1


def test_the_only_consumer_may_drain_alone(run):
    record, calls = run({"web1": facts(strategy="drain", elsewhere=0)}, minions=["web1"])
    assert restarts(calls) == [["web1"]] and record["result"]


# Requests


@pytest.fixture
def spawned(rollout):
    """Serials of the requests that started a worker; none is really started, so that the lock is free again."""
    apps = []
    rollout._spawn = lambda opts, app, lock: apps.append(app)
    return apps


def test_a_request_starts_a_worker(rollout, spawned):
    assert rollout.request("shop", "event")["state"] == "started"
    assert spawned == ["shop"]


def test_requests_while_one_runs_wait_together(rollout, spawned):
    ledger = rollout._Ledger(rollout.__opts__, "shop")
    with ledger.try_lock():
        for _ in range(200):
            assert rollout.request("shop", "event")["state"] == "waiting"
    assert spawned == []
    asked = ledger.take()
    assert asked["serial"] == 200 and [(ask["by"], ask["count"]) for ask in asked["asked"]] == [("event", 200)]
    assert ledger.take() == {}


def test_a_request_that_was_there_before_is_refused(rollout, spawned):
    assert rollout.request("shop", "webhook", "abc")["result"]
    assert not rollout.request("shop", "webhook", "abc")["result"]
    assert rollout.request("shop", "webhook", "abd")["result"]
    assert len(rollout._Ledger(rollout.__opts__, "shop").book()["seen"]) == 2


def test_a_worker_serves_all_and_then_lets_go(rollout, spawned):
    served = []
    rollout._Rollout.run = lambda self: (
        served.append(self.record["serial"]) or (rollout.request("shop", "late") if len(served) == 1 else None)
    )
    rollout.request("shop")
    rollout.work("shop")
    assert served == [1, 2]
    assert rollout._Ledger(rollout.__opts__, "shop").is_free()


def test_no_request_is_left_lying(rollout, spawned):
    """Requests from many threads, while workers come and go as they do in life."""
    served, threads = [], []
    rollout._Rollout.run = lambda self: served.append(self.record["serial"])

    def spawn(opts, app, lock):
        spawned.append(app)
        kept = os.dup(lock)
        threads.append(threading.Thread(target=rollout.work, args=(app, kept)))
        threads[-1].start()

    rollout._spawn = spawn
    askers = [threading.Thread(target=lambda: [rollout.request("shop", "event") for _ in range(20)]) for _ in range(8)]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join()
    for thread in threads:
        thread.join()
    assert max(served) == 160 and served == sorted(set(served))
    assert rollout._Ledger(rollout.__opts__, "shop").take() == {}


def test_a_lock_that_is_another_files_is_refused(rollout, tmp_path):
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    with pytest.raises(SaltInvocationError, match="is not the lock"):
        rollout.work("shop", descriptor)


# Records


def test_a_roll_out_that_was_cut_off_is_told_by_the_next(run, rollout):
    ledger = rollout._Ledger(rollout.__opts__, "shop")
    ledger.write("current", {"app": "shop", "id": "1", "began": 1.0, "ended": None, "result": None, "hosts": {}})
    record, calls = run({})
    assert [tag for tag, _ in calls if tag.startswith("redis")] == [
        "redis_sidekiq/deploy_failed/shop",
        "redis_sidekiq/deployed/shop",
    ]
    shown = rollout.show("shop")["shop"]
    assert shown["last"]["id"] == record["id"] and shown["before"][0]["comment"].startswith("This roll-out was cut off")


def test_records_are_kept_for_the_master_alone(run, rollout, tmp_path):
    run({})
    paths = [path for path in tmp_path.rglob("*.json")]
    assert paths and all(path.stat().st_mode & 0o077 == 0 for path in paths)


def test_old_records_go(run, rollout):
    for _ in range(rollout._KEPT + 3):
        run({})
    assert len(rollout.show()["shop"]["before"]) == rollout._KEPT


def test_an_event_of_very_many_hosts_has_those_to_look_at(rollout):
    hosts = {f"web{n}": {"state": "failed" if n == 999 else "done"} for n in range(1000)}
    event = rollout._for_event({"hosts": hosts})
    assert next(iter(event["hosts"])) == "web999" and event["hosts_left_out"] == 1000 - rollout._EVENT_HOSTS
    assert len(json.dumps(event)) < 1 << 20
