"""Deploy events over several hosts: who is restarted when, and what happens when something goes wrong on the way."""

from __future__ import annotations

import time

import pytest

from test.hosts import app
from test.hosts.bench_rollouts import storm
from test.hosts.fleet import PASSWORD, SECRET, Fleet
from test.hosts.lab import REPO, wait_for
from test.hosts.load import load, now

EVENT = "redis_sidekiq/deploy/app"
NO_BOOT = 'raise "no boot as meant"'


@pytest.fixture(scope="module")
def made_fleet(module_hosts, masterless):
    """Two app servers, their Redis, a master. Each server is an app of its own too."""
    image = masterless("bookworm").image
    return Fleet(module_hosts, image, ["fa", "fb"], {"shop": ["fa"], "blog": ["fb"]}, deployer=True)


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


def test_capistrano_deploys_and_the_event_rolls_the_servers_one_after_the_other(fleet):
    fa, fb = fleet.servers
    fleet.commit(f"release {next(RELEASES)}")
    watch = fleet.master.host.popen(["salt-run", "--out=json", "sidekiq_rollout.watch", "app", "wait=90"])
    with load(fa, depth=60, even=True, redis=fleet.redis_cli, url=fleet.url) as verdict:
        with fleet.events("redis_sidekiq/*") as seen:
            begun = now(fa)
            fleet.cap("production", "deploy")
            wait_for(lambda: any(tag.startswith("redis_sidekiq/deployed/") for tag, _ in seen), 150, "the outcome")
        ended = now(fa)
    newest = {server.name: newest_release(server) for server in (fa, fb)}
    assert fleet.releases() == newest and all(len(name) == 14 for name in newest.values())
    assert verdict.missing == [] and verdict.begun_again == 0
    assert verdict.gap(begun, ended) < 2.0

    (outcome,) = [data for tag, data in seen if tag == "redis_sidekiq/deployed/app"]
    assert outcome["result"] and [(ask["by"], ask["count"]) for ask in outcome["asked"]] == [("event", 1)]
    for host in ("fa", "fb"):
        (process,) = outcome["hosts"][host]["services"]["sidekiq"]["processes"]
        assert process["release"].endswith(f"/{newest[host]}")
        assert process["strategy"] == "handover" and process["gap"] == 0
    told = [(data["host"], data["state"]) for tag, data in seen if tag == "redis_sidekiq/rollout/app"]
    assert told.index(("fa", "done")) < told.index(("fb", "restarting"))
    watched = watch.communicate(timeout=60)[0]
    for line in (
        " fa: restarting",
        " fa:   prove the helper",
        " fb: done: sidekiq.service was handed over",
        '"result": true',
    ):
        assert line in watched


def newest_release(server) -> str:
    """The release that Capistrano's link points at."""
    return server.run(["readlink", "/srv/app/current"]).stdout.strip().rpartition("/")[2]


def test_capistrano_restarts_each_server_plainly_where_it_is_told_to(fleet):
    before = fleet.pids()
    fleet.cap("production", "redis_sidekiq:systemctl")
    after = fleet.pids()
    assert "0" not in after.values() and all(before[name] != after[name] for name in before)


def test_the_deploy_user_reads_no_secret_and_sends_no_other_event(fleet):
    deployer = fleet.deployer
    for argv in (
        ["sudo", "-n", "/usr/local/sbin/sidekiq-deployed-shop"],
        ["sudo", "-n", "/usr/local/sbin/sidekiq-deployed-app", "shop"],
        ["sudo", "-n", "salt-call", "event.send", "redis_sidekiq/deploy/shop"],
        ["salt-call", "event.send", "redis_sidekiq/deploy/shop"],
        ["cat", "/etc/salt/pki/minion/minion.pem"],
    ):
        assert deployer.run(argv, user="deploy", check=False).returncode != 0, argv
    for server in fleet.servers:
        assert server.run(["cat", "/etc/sidekiq/sidekiq.env"], user="deploy", check=False).returncode != 0


@pytest.fixture
def hook(fleet):
    """``hook(…)``: call the hook of the master's salt-api from the deploy host with the shipped client."""
    master, deployer = fleet.master.host, fleet.deployer
    if not master.exists("/etc/salt/pki/api/tls.key"):
        master.run(["mkdir", "-p", "/etc/salt/pki/api"])
        subject = ["-subj", "/CN=salt", "-addext", f"subjectAltName=IP:{master.address}"]
        files = ["-keyout", "/etc/salt/pki/api/tls.key", "-out", "/etc/salt/pki/api/tls.crt"]
        master.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", *subject, *files])
        master.copy_in(
            REPO / "docs/examples/master.d/redis_sidekiq_api.conf", "/etc/salt/master.d/redis_sidekiq_api.conf"
        )
        master.run(["systemctl", "start", "salt-api"])
        deployer.copy_in(REPO / "docs/examples/deploy_hook.py", "/usr/local/bin/deploy_hook.py")
        deployer.write("/etc/tls.crt", master.run(["cat", "/etc/salt/pki/api/tls.crt"]).stdout)
        deployer.write("/etc/right", SECRET)
        deployer.write("/etc/wrong", "another-secret-of-that-length")
        wait_for(lambda: ":8000" in master.run(["ss", "-ltnH"]).stdout, 30, "salt-api listens")

    def call(secret: str = "right", scheme: str = "https", app: str = "app", ca: str = "/etc/tls.crt"):
        url = f"{scheme}://{master.address}:8000/hook/redis_sidekiq/deploy/{app}"
        return deployer.run(
            ["python3", "/usr/local/bin/deploy_hook.py", url, f"/etc/{secret}", ca], check=False, timeout=60
        )

    return call


def test_a_signed_webhook_by_tls_asks_for_a_roll_out_and_nothing_else_does(fleet, hook):
    before = fleet.show()["last"].get("serial", 0)
    with fleet.events("salt/job/*/new") as seen:
        assert hook().returncode == 0
        last = wait_served(fleet, before + 1)
        assert [ask["by"] for ask in last["asked"]] == ["webhook"]
        # The answer does not tell a wrong signature from a right one.
        assert hook(secret="wrong").returncode == 0
        assert hook(app="nosuch").returncode == 0
        assert hook(scheme="http").returncode != 0
        assert hook(ca="/etc/ssl/certs/ca-certificates.crt").returncode != 0
        large = (
            "import ssl, sys, urllib.request as r\n"
            "r.urlopen(r.Request(sys.argv[1], b'x' * 3000000), context=ssl._create_unverified_context())"
        )
        url = f"https://{fleet.master.host.address}:8000/hook/redis_sidekiq/deploy/app"
        fleet.deployer.run(["python3", "-c", large, url], check=False)
        time.sleep(3)
    assert fleet.show()["last"]["serial"] == before + 1
    assert [data["fun"] for _, data in seen if data["fun"].startswith("sidekiq")] == ["sidekiq.ready"]
    log = fleet.master.host.run(["cat", "/var/log/salt/master"]).stdout
    assert "A webhook for app was refused: its signature is missing or wrong" in log
    assert SECRET not in log


def wait_served(fleet: Fleet, serial: int) -> dict:
    """Wait for the end of the roll-out that serves this request; returns its record."""
    wait_for(lambda: fleet.show()["last"].get("serial", 0) >= serial, 60, "the roll-out of this request")
    return fleet.show()["last"]


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
    seen = storm(fleet, ["shop", "blog"], 200)
    assert fleet.releases() == {"fa": newest, "fb": newest}
    for name in ("shop", "blog"):
        records = seen.outcomes[name]
        assert len(records) <= 2 and all(record["result"] for record in records)
        assert sum(ask["count"] for record in records for ask in record["asked"]) == 100
        assert seen.restarts(name) == 1
    assert seen.processes <= 2


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


def test_hosts_that_drain_leave_a_consumer_for_each_queue(fleet):
    fleet.configure_apps(strategy="drain", canary=0, batch=2)
    fleet.deploy(next(RELEASES))
    assert fleet.master.runner("sidekiq_rollout.check", "app")["batches"] == [["fa"], ["fb"]]
    with load(fleet.servers[0], depth=60, even=True, redis=fleet.redis_cli, url=fleet.url) as verdict:
        begun = now(fleet.servers[0])
        record = fleet.roll()
        ended = now(fleet.servers[0])
    assert record["result"] and verdict.missing == []
    assert verdict.gap(begun, ended) < 2.0
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
        fa.run(["ip", "link", "set", "host0", "up"])
    fleet.master.wait_for(fa)
    fleet.master.wait_for(fb)
    fleet.wait_idle()
    # What it could not finish it may leave to its helper, which works.
    wait_for(lambda: not is_locked(fa), 240, "the end of the restart")
    wait_for(lambda: is_consuming(fleet, "fa") and is_consuming(fleet, "fb"), 60, "both hosts at work")

    fleet.master.fire(EVENT)
    wait_for(lambda: set(fleet.releases().values()) == {release}, 150, "the release on both hosts")
    assert fleet.wait_idle()["result"]
    assert is_consuming(fleet, "fa") and is_consuming(fleet, "fb") and not app.is_restarting(fa)


def is_locked(host) -> bool:
    """Whether a restart is at work there."""
    lock = "/run/redis_sidekiq/sidekiq.lock"
    return host.exists(lock) and host.run(["flock", "--nonblock", lock, "true"], check=False).returncode != 0


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
    for place in ("/var/cache/salt/master/redis_sidekiq", "/var/log/salt"):
        found = fleet.master.host.run(["grep", "-rlE", f"{PASSWORD}|{SECRET}", place], check=False)
        assert (found.returncode, found.stdout) == (1, ""), found
