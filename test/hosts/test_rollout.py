"""Deploy events over several hosts: who is restarted when, and what happens when something goes wrong on the way."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from test.hosts import app
from test.hosts.fleet import PASSWORD, Fleet
from test.hosts.lab import wait_for
from test.hosts.load import load, now

EVENT = "redis_sidekiq/deploy/app"
NO_BOOT = 'raise "no boot as meant"'


@pytest.fixture(scope="module")
def made_fleet(session_hosts, masterless):
    """Two app servers, their Redis, a master. Each server is an app of its own too."""
    image = masterless("bookworm").image
    return Fleet(session_hosts, image, ["fa", "fb"], {"shop": ["fa"], "blog": ["fb"]})


@pytest.fixture
def fleet(made_fleet):
    """The fleet with its own settings, an unbroken release everywhere, and nothing under way."""
    made_fleet.configure_apps()
    for name in made_fleet.apps:
        made_fleet.wait_idle(name)
    if len(set(made_fleet.releases().values())) > 1 or not all(map(app.is_whole, made_fleet.servers)):
        made_fleet.deploy(next(RELEASES))
        assert made_fleet.roll()["result"]
    return made_fleet


RELEASES = map(str, range(10, 10_000))


def states(record: dict) -> dict[str, str]:
    return {host: entry["state"] for host, entry in record["hosts"].items()}


def test_an_event_rolls_the_hosts_one_after_the_other_and_no_job_waits(fleet):
    release = next(RELEASES)
    fa = fleet.servers[0]
    with load(fa, depth=60, even=True, redis=fleet.redis_cli, url=fleet.url) as verdict:
        with fleet.events("redis_sidekiq/*") as seen:
            fleet.deploy(release)
            begun = now(fa)
            fleet.master.fire(EVENT)
            wait_for(lambda: any(tag.startswith("redis_sidekiq/deployed/") for tag, _ in seen), 150, "the outcome")
        ended = now(fa)
    assert fleet.releases() == {"fa": release, "fb": release}
    assert verdict.missing == [] and verdict.begun_again == 0
    assert verdict.gap(begun, ended) < 1.0

    (outcome,) = [data for tag, data in seen if tag == "redis_sidekiq/deployed/app"]
    assert outcome["result"] and outcome["asked"] == [{"by": "event", "count": 1, "last": outcome["asked"][0]["last"]}]
    for host in ("fa", "fb"):
        (process,) = outcome["hosts"][host]["services"]["sidekiq"]["processes"]
        assert process["release"].endswith(f"/{release}") and process["strategy"] == "handover" and process["gap"] == 0
    told = [(data["host"], data["state"]) for tag, data in seen if tag == "redis_sidekiq/rollout/app"]
    assert told.index(("fa", "done")) < told.index(("fb", "restarting"))


def test_an_event_that_changes_nothing_costs_one_look_per_host(fleet):
    pids = fleet.pids()
    with fleet.events("salt/job/*/new") as seen:
        record = fleet.roll()
    assert record["result"] and states(record) == {"fa": "current", "fb": "current"}
    assert [data["fun"] for _, data in seen if data["fun"].startswith("sidekiq")] == ["sidekiq.ready"]
    assert fleet.pids() == pids


def test_a_release_that_cannot_boot_stops_at_the_canary_and_the_next_one_mends_it(fleet):
    good = fleet.releases()
    pids = fleet.pids()
    fleet.deploy(next(RELEASES), NO_BOOT)
    with fleet.events("redis_sidekiq/deploy_failed/*") as seen:
        fleet.master.fire(EVENT)
        wait_for(lambda: seen, 90, "the failure's event")
    tag, failure = seen[0]
    assert tag == "redis_sidekiq/deploy_failed/app"
    assert states(failure) == {"fa": "failed", "fb": "skipped"}
    assert "no boot as meant" in failure["comment"] and "Not touched: fb" in failure["comment"]
    assert fleet.releases() == good and fleet.pids() == pids

    better = next(RELEASES)
    fleet.deploy(better)
    fleet.master.fire(EVENT)
    wait_for(lambda: set(fleet.releases().values()) == {better}, 120, "the next release on both hosts")
    assert fleet.wait_idle()["result"]


def test_a_storm_of_events_for_two_apps_rolls_each_at_most_twice(fleet):
    newest = next(RELEASES)
    fleet.deploy(newest)
    with fleet.events("redis_sidekiq/deployed/*") as seen:
        most = storm(fleet, ["shop", "blog"], 200)
        records = {name: fleet.wait_idle(name) for name in ("shop", "blog")}
    assert all(record["result"] for record in records.values())
    assert fleet.releases() == {"fa": newest, "fb": newest}
    for name in ("shop", "blog"):
        outcomes = [data for tag, data in seen if tag.endswith(f"/{name}")]
        assert len(outcomes) <= 2
        assert sum(ask["count"] for data in outcomes for ask in data["asked"]) == 100
        assert sum(data["totals"]["done"] for data in outcomes) == 1
    assert most <= 2


def storm(fleet: Fleet, names: list[str], count: int) -> int:
    """Send events for these apps in turn, all within a second; returns how many roll-outs ran at once at most."""
    script = (
        "import json, sys, salt.config, salt.utils.event\n"
        "opts = salt.config.master_config('/etc/salt/master')\n"
        "names, count = json.loads(sys.argv[1])\n"
        "with salt.utils.event.get_master_event(opts, opts['sock_dir'], listen=False) as bus:\n"
        "    for n in range(count):\n"
        "        bus.fire_event({}, 'redis_sidekiq/deploy/' + names[n % len(names)])\n"
    )
    master = fleet.master.host
    begun = time.monotonic()
    master.run(["/opt/salt/bin/python", "-c", script, json.dumps([names, count])])
    most = 0
    while time.monotonic() < begun + 15:
        listed = master.run(["pgrep", "-fc", "sidekiq_rollout.work"], check=False).stdout
        most = max(most, int(listed))
        time.sleep(0.2)
    return most


def test_a_host_that_does_not_answer_is_listed_and_not_waited_for(fleet):
    release = next(RELEASES)
    fleet.deploy(release)
    fa = fleet.servers[0]
    fa.run(["systemctl", "stop", "salt-minion"])
    begun = time.monotonic()
    record = fleet.roll()
    fa.run(["systemctl", "start", "salt-minion"])
    fleet.master.wait_for(fa)
    assert states(record) == {"fa": "unreachable", "fb": "done"}
    assert not record["result"] and "Unreachable: fa" in record["comment"]
    assert time.monotonic() - begun < 90
    assert states(fleet.roll()) == {"fa": "done", "fb": "current"}


def test_hosts_that_drain_leave_a_consumer_for_each_queue(fleet):
    fleet.configure_apps(strategy="drain", canary=0, batch=2)
    fleet.deploy(next(RELEASES))
    assert fleet.master.runner("sidekiq_rollout.check", "app")["batches"] == [["fa"], ["fb"]]
    with load(fleet.servers[0], depth=60, even=True, redis=fleet.redis_cli, url=fleet.url) as verdict:
        begun = now(fleet.servers[0])
        record = fleet.roll()
        ended = now(fleet.servers[0])
    assert record["result"] and verdict.missing == []
    assert verdict.gap(begun, ended) < 1.0
    fleet.configure_apps(batch="100%", canary=0)
    fleet.deploy(next(RELEASES))
    assert fleet.master.runner("sidekiq_rollout.check", "app")["batches"] == [["fa", "fb"]]


def test_a_redis_that_takes_nothing_stops_it_before_the_first_restart(fleet):
    pids = fleet.pids()
    fleet.deploy(next(RELEASES))
    fleet.redis_cli("config", "set", "maxmemory", "1")
    record = fleet.roll()
    fleet.redis_cli("config", "set", "maxmemory", "0")
    assert set(states(record).values()) == {"failed"}
    assert fleet.pids() == pids


INTERRUPTIONS = {
    "the master restarts": lambda fleet: fleet.master.host.run(["systemctl", "restart", "salt-master"]),
    "the minion restarts": lambda fleet: fleet.servers[0].run(["systemctl", "restart", "salt-minion"]),
    "the host loses its power": lambda fleet: fleet.servers[0].power_cut(),
    "the network is cut": lambda fleet: fleet.servers[0].run(["ip", "link", "set", "host0", "down"]),
    "the roll-out is killed": lambda fleet: fleet.master.host.run(["pkill", "-KILL", "-f", "sidekiq_rollout.work"]),
}


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=() if what == "the master restarts" else pytest.mark.soak) for what in INTERRUPTIONS],
)
@pytest.mark.parametrize(
    "step",
    [pytest.param("prove the helper", marks=pytest.mark.soak), "quiet", pytest.param("prove", marks=pytest.mark.soak)],
)
def test_an_interruption_leaves_no_host_quiet_and_the_next_event_finishes_the_job(fleet, what, step):
    fa, fb = fleet.servers
    release = next(RELEASES)
    fleet.deploy(release)
    with fleet.events("redis_sidekiq/restart/*") as seen:
        fleet.master.fire(EVENT)
        wait_for(lambda: any(data["data"]["step"] == step for _, data in seen), 60, f"the step {step!r}")
    INTERRUPTIONS[what](fleet)
    assert app.main_pid(fb) != "0"
    if what == "the host loses its power":
        time.sleep(5)
        fa.start()
    if what == "the network is cut":
        time.sleep(45)
        restore_network(fa)
    fleet.master.wait_for(fa)
    fleet.master.wait_for(fb)
    fleet.wait_idle()
    wait_for(lambda: not app.is_restarting(fa), 120, "the end of the restart")
    wait_for(lambda: is_consuming(fleet, "fa") and is_consuming(fleet, "fb"), 60, "both hosts at work")

    fleet.master.fire(EVENT)
    wait_for(lambda: set(fleet.releases().values()) == {release}, 150, "the release on both hosts")
    assert fleet.wait_idle()["result"]
    assert is_consuming(fleet, "fa") and is_consuming(fleet, "fb")


def restore_network(host) -> None:
    """A link that was down has lost its routes."""
    host.run(["ip", "link", "set", "host0", "up"])


def is_consuming(fleet: Fleet, name: str) -> bool:
    """Whether a process of this host beats, and is not quiet."""
    beats = fleet.redis_cli("smembers", "processes").splitlines()
    mine = [beat for beat in beats if beat.split(":")[0] == name]
    return any(fleet.redis_cli("hget", beat, "quiet") == "false" for beat in mine)


WRONG = {
    "no such app": ("nosuch", {}, "There is no app 'nosuch'"),
    "a misspelt key": ("app", {"batsh": 2}, "redis_sidekiq:apps:app:batsh is not known; did you mean batch?"),
    "wrong values": (
        "app",
        {"batch": "0%", "canary": -1},
        "redis_sidekiq:apps:app:canary: found -1, allowed: how many",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_settings_are_told_and_nothing_is_touched(fleet, kind):
    name, settings, sentence = WRONG[kind]
    fleet.configure_apps(**settings)
    done = fleet.master.host.run(["salt-run", "sidekiq_rollout.start", name], check=False)
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr


def test_secrets_are_in_no_record(fleet):
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(
                lambda place: fleet.master.host.run(["grep", "-rl", PASSWORD, place], check=False).stdout,
                ["/var/cache/salt/master/redis_sidekiq", "/var/log/salt"],
            )
        )
    assert found == ["", ""]
