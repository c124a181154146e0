"""Restarts under load, and whatever can go wrong in the middle of one: no job is lost, and a process works in the end."""

from __future__ import annotations

import json
import re
import time

import pytest

from test.hosts import app
from test.hosts.conftest import make_whole
from test.hosts.harness.host import Host
from test.hosts.lab import REPO, apply_locally, put_pillar, salt_call, wait_for
from test.hosts.load import load, now, wait_until_in_flight

SLS = "redis_sidekiq.sidekiq"
PLAIN = "systemctl"

on_both = pytest.mark.parametrize("image", ["bookworm", "trixie"])
# What waits for long is tried with one Sidekiq, with both by `make soak`.
on_one = pytest.mark.parametrize("image", ["bookworm", pytest.param("trixie", marks=pytest.mark.soak)])


def some(cases: dict, *few: str) -> list:
    """Names of cases as parameters; these few in `make test`, all in `make soak`."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.soak) for name in cases]


@pytest.fixture
def host(sidekiq_hosts, image):
    """The host with the plain pillar and an unbroken release, working; and no trace of an earlier restart after it."""
    host = sidekiq_hosts(image)
    make_whole(host, app.sidekiq_pillar())
    yield host
    host.run(["pkill", "-KILL", "-f", "salt-call"], check=False)
    host.run(["systemctl", "start", "redis_6379"], check=False)


def restart(host: Host, strategy: str = "handover") -> dict:
    """Restart by the module, or in systemd's own way; returns the record."""
    if strategy == PLAIN:
        host.run(["systemctl", "restart", "sidekiq"], timeout=120)
        return {"result": True, "jobs": {}}
    return salt_call(host, "sidekiq.restart", "sidekiq", f"strategy={strategy}", check=False)


class Call:
    """A restart under way: its steps are read as salt-call prints them."""

    def __init__(self, host: Host, *words: str) -> None:
        words = words or ("sidekiq.restart", "sidekiq")
        argv = ["sh", "-c", 'exec salt-call --local --out=json "$@" 2>/tmp/steps', "call", *words]
        host.run(["rm", "-f", "/tmp/steps"])
        self.host, self.process = host, host.popen(argv)

    def wait_for_step(self, step: str) -> None:
        wait_for_step(self.host, step)

    def kill(self) -> None:
        self.host.run(["pkill", "-KILL", "-f", "salt-call --local"])
        self.process.wait(20)

    def result(self, timeout: float = 200) -> dict:
        return json.loads(self.process.communicate(timeout=timeout)[0])["local"]


def wait_for_step(host: Host, step: str) -> None:
    """Wait until a restart whose steps go to /tmp/steps begins this one."""
    wait_for(lambda: f": {step}\n" in host.run(["cat", "/tmp/steps"], check=False).stdout, 120, f"the step {step!r}")


def units(host: Host) -> dict[str, str]:
    """Unit -> state, of the service's units and what stands beside them."""
    text = host.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "sidekiq*"]).stdout
    return {line.split()[0]: line.split()[2] for line in text.splitlines()}


def assert_works(host: Host) -> None:
    """One process works, under no unit but its own, and is not quiet."""
    # With a Redis that was away for a while it takes up to ten seconds to the next beat.
    wait_for(lambda: salt_call(host, "sidekiq.status", "sidekiq")["processes"][0]["heartbeat"], 25, "a heartbeat")
    status = salt_call(host, "sidekiq.status", "sidekiq")
    (one,) = status["processes"]
    assert one["active"] == "active" and one["heartbeat"] and not one["heartbeat"]["quiet"], status
    assert status["leftover"] == status["disagree"] == one["stale"] == [], status
    assert {unit for unit, state in units(host).items() if state != "inactive"} == {"sidekiq.service"}
    assert one["process"]["release"] == host.run(["readlink", "-f", f"{app.HOME}/current"]).stdout.strip()


def assert_mended(host: Host) -> None:
    """After a cut-off restart: somebody works soon without a hand, and the next run of states tidies up."""
    jids = set(app.enqueue(host, 20))
    wait_for(lambda: jids <= set(app.redis(host, "smembers", "worked").split()), 90, "jobs worked without a hand")
    apply_locally(host, SLS).assert_ok()
    assert_works(host)
    apply_locally(host, SLS).assert_unchanged()


# Under load ----------------------------------------------------------------------------------------------------------


def run_under_load(host: Host, strategies: list[str]) -> None:
    spans, records = [], []
    with load(host) as verdict:
        for strategy in strategies:
            begun = now(host)
            records.append(restart(host, strategy))
            spans.append((strategy, begun, now(host)))
            assert records[-1]["result"] is True, json.dumps(records[-1], indent=1)
    for record in records[:3]:
        print([(step["step"], step["seconds"]) for step in record.get("steps", [])], record["jobs"])
    gaps = {strategy: [] for strategy in strategies}
    for strategy, begun, ended in spans:
        gaps[strategy].append(round(verdict.gap(begun, ended), 3))
    fates = [job["fate"] for record in records for job in record["jobs"].values()]
    print(
        f"{len(strategies)} restarts, {verdict.enqueued} jobs, {verdict.worked} worked, {verdict.failed} failed as meant, "
        f"missing {verdict.missing}, begun again {verdict.begun_again}, worked again {verdict.worked_again}; fates of "
        f"{len(fates)} jobs seen in flight: { {fate: fates.count(fate) for fate in set(fates)} }; gaps "
        f"{ {strategy: (min(each), max(each)) for strategy, each in gaps.items()} }"
    )
    assert verdict.missing == []
    assert verdict.enqueued > 20 * len(strategies)
    assert not {"not found"} & set(fates)
    # Most of the ten threads are in long jobs; what happens to quick ones alone is the next test's.
    assert max(gaps.get("handover", [0])) < 1.0, gaps
    assert_works(host)


def run_without_a_gap(host: Host, times: int, limit: float) -> None:
    """Handovers while nothing but jobs of 50 ms is to be done."""
    spans = []
    with load(host, even=True) as verdict:
        for _ in range(times):
            begun = now(host)
            record = restart(host, "handover")
            spans.append((begun, now(host)))
            assert record["result"] is True, json.dumps(record, indent=1)
    gaps = [round(verdict.gap(*span), 3) for span in spans]
    print(
        f"{times} handovers, {verdict.enqueued} jobs, missing {verdict.missing}; longest times without a job's end {gaps}"
    )
    assert verdict.missing == [] and verdict.begun_again == verdict.worked_again == 0
    assert max(gaps) < limit


@on_one
def test_restarts_under_load_lose_nothing(host):
    run_under_load(host, ["handover", "drain", PLAIN])


@pytest.mark.soak
@on_both
def test_a_hundred_restarts_under_load_lose_nothing(host):
    run_under_load(host, ["handover", "drain", "handover", PLAIN] * 25)


@on_both
def test_a_handover_leaves_no_gap(host):
    # A drain's gap is two seconds at least; a stall of a machine with other tests on it may take some tenths of one.
    run_without_a_gap(host, 1, limit=1.0)


@pytest.mark.soak
@on_both
def test_no_handover_of_many_leaves_a_gap(host):
    run_without_a_gap(host, 25, limit=0.25)


@on_one
def test_a_deployed_release_is_announced_then_worked_then_left_alone(host):
    old, before = app.working_directory(host), app.main_pid(host)
    new = app.deploy(host)
    announced = apply_locally(host, SLS, test=True).assert_ok()
    assert announced.pending == ["Sidekiq service sidekiq works"]
    assert (
        f"it works in {old}, and {app.HOME}/current is {new}"
        in announced.states["Sidekiq service sidekiq works"]["comment"]
    )
    assert app.main_pid(host) == before
    changed = apply_locally(host, SLS).assert_ok().changed["Sidekiq service sidekiq works"]
    assert changed["sidekiq.service pid"] == {"old": int(before), "new": int(app.main_pid(host))}
    assert app.working_directory(host) == new
    apply_locally(host, SLS).assert_unchanged()


# Cut off -------------------------------------------------------------------------------------------------------------

STEPS = [
    "start the helper", "prove the helper", "guard", "quiet", "drain", "stop", "start", "prove", "quiet the helper",
    "drain the helper", "stop the helper",
]  # fmt: skip


@on_one
@pytest.mark.parametrize("step", some(STEPS, "drain"))
def test_a_handover_that_is_killed_leaves_a_process_at_work(host, step):
    killed_at(host, step, "handover")


@pytest.mark.soak
@on_both
@pytest.mark.parametrize("step", [step for step in STEPS if "helper" not in step])
def test_a_drain_that_is_killed_leaves_a_process_at_work(host, step):
    killed_at(host, step, "drain")


def killed_at(host: Host, step: str, strategy: str) -> None:
    app.enqueue(host, 3, 6)
    app.deploy(host)
    call = Call(host, "sidekiq.restart", "sidekiq", f"strategy={strategy}")
    call.wait_for_step(step)
    call.kill()
    assert call.process.returncode != 0
    assert_mended(host)


@pytest.mark.soak
@on_both
@pytest.mark.parametrize("step", ["drain", "quiet the helper"])
def test_a_handover_whose_minion_is_killed_leaves_a_process_at_work(host, step):
    host.run(["systemctl", "reset-failed"])
    app.enqueue(host, 3, 6)
    app.deploy(host)
    run = [
        "systemd-run",
        "--unit=minion",
        "--collect",
        "sh",
        "-c",
        "exec salt-call --local sidekiq.restart sidekiq 2>/tmp/steps",
    ]
    host.run(["rm", "-f", "/tmp/steps"])
    host.run(run)
    wait_for_step(host, step)
    host.run(["systemctl", "kill", "--signal=KILL", "minion"])
    assert_mended(host)


@pytest.mark.soak
@on_both
@pytest.mark.parametrize("step", STEPS[1:])
def test_a_helper_that_is_killed_takes_nobody_with_it(host, step):
    before = app.main_pid(host)
    app.enqueue(host, 3, 6)
    app.deploy(host)
    call = Call(host)
    call.wait_for_step(step)
    host.run(["systemctl", "kill", "--signal=KILL", "sidekiq-handover"], check=False)
    record = call.result()
    if step == "prove the helper":
        assert record["result"] is False and "still works as before" in record["comment"], record
        assert app.main_pid(host) == before
    assert_mended(host)


@on_one
@pytest.mark.parametrize("step", some(STEPS[: STEPS.index("stop")], "drain"))
def test_an_old_process_that_is_killed_is_told_with_its_jobs(host, step):
    old_process_is_killed(host, step, "handover")


@pytest.mark.soak
@on_both
@pytest.mark.parametrize("step", ["quiet", "drain"])
def test_a_draining_process_that_is_killed_is_told_with_its_jobs(host, step):
    old_process_is_killed(host, step, "drain")


def old_process_is_killed(host: Host, step: str, strategy: str) -> None:
    app.redis(host, "del", "started", "worked")
    begun = app.enqueue(host, 3, 40)
    wait_until_in_flight(host, begun)
    call = Call(host, "sidekiq.restart", "sidekiq", f"strategy={strategy}")
    call.wait_for_step(step)
    host.run(["kill", "-KILL", app.main_pid(host)])
    record = call.result()
    # Open-source Sidekiq itself cannot keep the jobs of a process that is killed; the record says which.
    assert record["result"] is False, record
    assert sorted(jid for jid, job in record["jobs"].items() if job["fate"] == "not found") == sorted(begun), record
    assert "not found again" in record["comment"]
    assert_mended(host)


# Releases that do not work -------------------------------------------------------------------------------------------

BROKEN = {
    "a syntax error": "def x(",
    "a missing gem": 'require "no_such_gem"',
    "an exit after 3 s": 'Thread.new { sleep 3; warn "bye"; exit!(3) } if $0.include?("sidekiq")',
    "a boot that hangs": 'sleep 1000 if $0.include?("sidekiq")',
    "no beat": 'Sidekiq.configure_server { |c| c.redis = {url: "redis://127.0.0.1:6379/5"} }',
}


@on_one
@pytest.mark.parametrize("kind", some(BROKEN, "an exit after 3 s"))
def test_a_broken_release_leaves_the_old_process_at_work(host, kind):
    before = app.main_pid(host)
    app.deploy(host, BROKEN[kind])
    run = apply_locally(host, SLS)
    comment = run.failed["Sidekiq service sidekiq works"]
    assert f"sidekiq.service still works as before, pid {before}" in comment
    assert "its journal ends with" in comment or kind == "no beat"
    assert app.main_pid(host) == before
    done = app.worked(host)
    app.enqueue(host, 20)
    wait_for(lambda: app.worked(host) == done + 20, 30, "jobs worked by the old process")
    assert set(units(host)) == {"sidekiq.service"}
    app.deploy(host)
    apply_locally(host, SLS).assert_ok()
    assert_works(host)


@pytest.mark.soak
@on_both
def test_a_broken_release_is_loud_with_drain_and_works_again_when_it_is_mended(host):
    app.deploy(host, BROKEN["a syntax error"])
    record = restart(host, "drain")
    assert record["result"] is False and "did not start; its journal ends with" in record["comment"]
    app.deploy(host)
    # systemd goes on trying, so that nobody has to come.
    wait_for(lambda: units(host).get("sidekiq.service") == "active", 30, "a process in the mended release")
    apply_locally(host, SLS).assert_ok()
    assert_works(host)


# Redis in the middle -------------------------------------------------------------------------------------------------


UNWILLING = {
    "down": (["systemctl", "stop", "redis_6379"], ["systemctl", "start", "redis_6379"], "cannot be reached: is it up?"),
    "full": (
        ["redis-cli", "config", "set", "maxmemory", "1"],
        ["redis-cli", "config", "set", "maxmemory", "0"],
        "is full, it has reached its maxmemory",
    ),
    "read-only": (
        ["redis-cli", "replicaof", "127.0.0.1", "9"],
        ["redis-cli", "replicaof", "no", "one"],
        "is a replica and takes no writes",
    ),
    "another password": (
        ["redis-cli", "config", "set", "requirepass", "sesame-open"],
        ["redis-cli", "-a", "sesame-open", "config", "set", "requirepass", ""],
        "refuses the login",
    ),
}


@on_one
@pytest.mark.parametrize("kind", some(UNWILLING, "full"))
def test_a_process_that_could_not_push_back_its_jobs_is_left_alone(host, kind):
    break_it, mend_it, sentence = UNWILLING[kind]
    before = app.main_pid(host)
    app.deploy(host)
    host.run(break_it)
    try:
        begun = time.monotonic()
        record = restart(host)
        assert time.monotonic() - begun < 20
        assert record["result"] is False and sentence in record["comment"], record
        assert "was left as it is" in record["comment"]
        assert app.main_pid(host) == before
    finally:
        host.run(mend_it)
    wait_for(lambda: units(host)["sidekiq.service"] == "active", 30, "Sidekiq with its Redis again")
    apply_locally(host, SLS).assert_ok()
    assert_works(host)


@pytest.mark.soak
@on_both
@pytest.mark.parametrize("step", ["prove the helper", "drain", "prove"])
def test_redis_restarts_in_the_middle(host, step):
    app.enqueue(host, 3, 5)
    app.deploy(host)
    call = Call(host)
    call.wait_for_step(step)
    host.run(["systemctl", "restart", "redis_6379"])
    record = call.result()
    assert record["result"] in (True, False) and record["comment"]
    assert_mended(host)


@pytest.mark.soak
@on_both
@pytest.mark.parametrize(
    ("kind", "step"), [("down", "quiet"), ("down", "start"), *((kind, "drain") for kind in UNWILLING)]
)
def test_redis_becomes_unwilling_in_the_middle(host, kind, step):
    break_it, mend_it, _ = UNWILLING[kind]
    app.enqueue(host, 3, 5)
    app.deploy(host)
    call = Call(host)
    call.wait_for_step(step)
    host.run(break_it)
    try:
        record = call.result(300)
        assert record["result"] is False and record["comment"], record
    finally:
        host.run(mend_it)
    assert_mended(host)


# Jobs with a will of their own ---------------------------------------------------------------------------------------


@pytest.mark.soak
@on_both
def test_a_jobs_own_program_lives_until_the_job_ends(host):
    app.redis(host, "del", "started", "worked")
    app.enqueue(host, 3, 6, "ChildJob")
    wait_for(lambda: app.redis(host, "hlen", "started") == "3", 20, "three jobs begun")
    record = restart(host, "drain")
    assert record["result"] is True, record
    assert app.worked(host) == 3 and app.redis(host, "zcard", "retry") == "0"
    app.redis(host, "del", "started", "worked")
    app.enqueue(host, 3, 6, "ChildJob")
    wait_for(lambda: app.redis(host, "hlen", "started") == "3", 20, "three jobs begun")
    restart(host, PLAIN)
    wait_for(lambda: app.worked(host) == 3, 30, "three jobs worked")


@on_one
def test_a_job_that_outlasts_the_drain_is_pushed_back(host, image):
    put_pillar(host, app.sidekiq_pillar(drain_timeout=2, timeout=3))
    apply_locally(host, SLS).assert_ok()
    app.redis(host, "del", "started", "worked")
    # Sidekiq 6 beats every 5 s, 7 every 10 s: twice that passes before the jobs are interrupted.
    wait_until_in_flight(host, app.enqueue(host, 2, 20 if image == "bookworm" else 40))
    record = restart(host, "drain")
    assert record["result"] is True, record
    assert [job["fate"] for job in record["jobs"].values()] == ["pushed back"] * 2, record
    wait_for(lambda: app.worked(host) == 2, 90, "both jobs worked in the end")


@pytest.mark.soak
@on_both
def test_a_job_that_ignores_the_timeout_is_told(host):
    put_pillar(host, app.sidekiq_pillar(drain_timeout=2, timeout=2, stop_timeout=12))
    apply_locally(host, SLS).assert_ok()
    app.redis(host, "del", "started", "worked")
    wait_until_in_flight(host, app.enqueue(host, 1, 60, "StubbornJob"))
    begun = time.monotonic()
    record = restart(host, "drain")
    assert time.monotonic() - begun < 80
    assert record["jobs"] and all(job["fate"] != "finished" for job in record["jobs"].values()), record
    assert_works(host)


@pytest.mark.soak
@on_both
def test_a_wrapper_that_does_not_exec_is_told_and_loses_nothing(host):
    wrapper = '#!/bin/bash\n/usr/bin/bundle exec sidekiq "$@"\n'
    host.write("/srv/wrapper.sh", wrapper, mode=0o755)
    put_pillar(host, app.sidekiq_pillar(command=["/srv/wrapper.sh"]))
    apply_locally(host, SLS).assert_ok()
    app.redis(host, "del", "started", "worked")
    app.enqueue(host, 3, 5)
    wait_for(lambda: app.redis(host, "hlen", "started") == "3", 20, "three jobs begun")
    status = salt_call(host, "sidekiq.status", "sidekiq")
    assert any("is not Sidekiq but its parent" in sentence for sentence in status["disagree"]), status
    record = restart(host)
    assert record["result"] is True and any("with exec" in sentence for sentence in record["warnings"]), record
    assert app.worked(host) == 3
    assert not [job for job in record["jobs"].values() if job["fate"] != "finished"], record


# Many at once --------------------------------------------------------------------------------------------------------


@on_one
@pytest.mark.parametrize("count", [3, pytest.param(15, marks=pytest.mark.soak)])
def test_calls_at_once_restart_once(host, count):
    """As many calls of the function as of the state."""
    before = app.main_pid(host)
    app.deploy(host)
    host.run(["sh", "-c", "rm -f /tmp/call-*"])
    call = "salt-call --local --out=json"
    script = (
        f"for n in $(seq {count}); do {call} sidekiq.restart sidekiq > /tmp/call-r$n 2>/dev/null & "
        f"{call} state.apply redis_sidekiq.sidekiq concurrent=True > /tmp/call-c$n 2>/dev/null & done; wait"
    )
    host.run(["sh", "-c", script], timeout=500)
    records = [json.loads(host.run(["cat", f"/tmp/call-r{n}"]).stdout)["local"] for n in range(1, count + 1)]
    states = [json.loads(host.run(["cat", f"/tmp/call-c{n}"]).stdout)["local"] for n in range(1, count + 1)]
    assert all(record["result"] for record in records), records
    assert all(state["result"] for run in states for state in run.values()), states
    acted = sum(bool(record["processes"]) for record in records) + sum(
        bool(state["changes"]) for run in states for state in run.values()
    )
    assert acted == 1 and app.main_pid(host) != before
    assert_works(host)


@on_one
def test_restarts_in_a_row_never_leave_it_down(host):
    app.enqueue(host, 1000)
    host.run(["sh", "-c", "for n in $(seq 20); do systemctl restart sidekiq || exit 1; done"], timeout=120)
    apply_locally(host, SLS).assert_ok()
    assert_works(host)


@pytest.mark.soak
@on_both
def test_twenty_restarts_in_a_row_under_load_never_leave_it_down(host):
    run_under_load(host, ["drain"] * 20)
    run_under_load(host, [PLAIN] * 20)


# Who is who ----------------------------------------------------------------------------------------------------------


@on_one
def test_no_process_is_taken_for_another(host):
    pid, name = app.main_pid(host), host.run(["hostname"]).stdout.strip()
    true = salt_call(host, "sidekiq.status", "sidekiq")["processes"][0]["heartbeat"]
    fakes = {
        f"{name}:{pid}:aaaaaaaaaaaa": true["started"] - 30,  # another host of that name, its clock behind
        f"{name}:{pid}:bbbbbbbbbbbb": true["started"] + 30,  # another one, its clock ahead
        f"{name}0:{pid}:cccccccccccc": true["started"],  # another name that begins alike
    }
    try:
        for identity, started in fakes.items():
            info = {
                "hostname": name,
                "started_at": started,
                "pid": int(pid),
                "tag": "",
                "concurrency": 10,
                "queues": ["default"],
            }
            app.redis(host, "sadd", "processes", identity)
            app.redis(
                host, "hset", identity, "info", json.dumps(info), "busy", "0", "quiet", "true", "beat", str(started)
            )
            app.redis(host, "expire", identity, "60")
        (one,) = salt_call(host, "sidekiq.status", "sidekiq")["processes"]
        assert one["heartbeat"]["identity"] == true["identity"]
        record = restart(host, "drain")
        assert record["result"] is True, record
        assert record["processes"][0]["new"]["heartbeat"]["identity"] not in fakes
    finally:
        app.redis(host, "srem", "processes", *fakes)
        app.redis(host, "del", *fakes)


@pytest.mark.soak
@on_both
def test_each_command_of_the_documentation_works(host):
    lines = (REPO / "docs/restarts.md").read_text().splitlines()
    commands = [line.split() for line in lines if line.startswith("    salt-call")]
    assert len(commands) >= 9
    for command in commands:
        host.run(command, timeout=200)
    assert_works(host)


@on_one
def test_several_processes_are_replaced_one_after_the_other(host):
    put_pillar(host, app.sidekiq_pillar(processes=2))
    assert apply_locally(host, SLS, test=True).assert_ok().pending
    apply_locally(host, SLS).assert_ok()
    pair = {"sidekiq@1.service", "sidekiq@2.service"}
    assert {unit for unit, state in units(host).items() if state == "active"} - {"system-sidekiq.slice"} == pair
    apply_locally(host, SLS).assert_unchanged()
    before = {unit: app.main_pid(host, unit) for unit in pair}
    with load(host, even=True) as verdict:
        begun = now(host)
        record = restart(host, "drain")
        ended = now(host)
    assert record["result"] is True, record
    assert {entry["unit"]: str(entry["old"]["pid"]) for entry in record["processes"]} == before
    # One of the two works all the time.
    assert verdict.gap(begun, ended) < 0.5 and verdict.missing == []
    put_pillar(host, app.sidekiq_pillar())
    apply_locally(host, SLS).assert_ok()
    assert_works(host)
    apply_locally(host, SLS).assert_unchanged()


@on_one
def test_facts_are_told_as_data(host):
    app.redis(host, "del", "started", "worked")
    jids = set(app.enqueue(host, 12, 15))

    def in_flight() -> list[dict]:
        return [job for job in salt_call(host, "sidekiq.jobs_in_flight", "sidekiq") if job["jid"] in jids]

    wait_for(lambda: len(in_flight()) == 10, 20, "ten jobs in flight")
    job = in_flight()[0]
    assert (job["class"], job["queue"].removeprefix("queue:")) == ("SleepJob", "default")
    assert re.fullmatch(r"[0-9a-f]{24}", job["jid"])
    (queue,) = [each for each in salt_call(host, "sidekiq.queues", "sidekiq") if each["name"] == "default"]
    assert queue["size"] in (0, 1, 2)
    (process,) = [each for each in salt_call(host, "sidekiq.processes") if "unit" in each]
    assert (process["unit"], process["release"], process["concurrency"]) == (
        "sidekiq.service",
        app.working_directory(host),
        10,
    )
    assert salt_call(host, "sidekiq.stats", "sidekiq")["processes"] >= 1
    # Sidekiq counts what it has done with its beats.
    wait_for(lambda: salt_call(host, "sidekiq.stats", "sidekiq")["processed"] > 0, 45, "jobs counted as processed")
    assert salt_call(host, "sidekiq.stale") == []


@on_one
def test_two_services_of_a_host_are_restarted_one_after_the_other(host):
    pillar = app.sidekiq_pillar()
    services = pillar["redis_sidekiq"]["sidekiq"]["services"]
    services["second"] = services["sidekiq"]
    put_pillar(host, pillar)
    apply_locally(host, SLS).assert_ok()
    before = {name: app.main_pid(host, name) for name in services}
    with load(host, even=True) as verdict:
        begun = now(host)
        calls = [
            host.popen(
                ["salt-call", "--local", "--out=json", "--log-level=quiet", "sidekiq.restart", name, "strategy=drain"]
            )
            for name in services
        ]
        for call in calls:
            call.wait(120)
        ended = now(host)
    after = {name: app.main_pid(host, name) for name in services}
    assert "0" not in after.values() and all(before[name] != after[name] for name in services)
    assert verdict.gap(begun, ended) < 0.5 and verdict.missing == []
    put_pillar(host, app.sidekiq_pillar())
    host.run(["systemctl", "disable", "--now", "second"])
    apply_locally(host, SLS).assert_ok()
    assert_works(host)
