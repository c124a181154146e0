"""A firewall that lets nobody be locked out: what a second host sees every 20 ms, guards, and the way back by a timer."""

from __future__ import annotations

import contextlib
import json
import re
import time

import pytest

from test.hosts.conftest import ROLLBACK
from test.hosts.harness.host import Host
from test.hosts.lab import FILE_ROOT, Master, apply_locally, put_pillar, salt_call, wait_for
from test.hosts.lockout_lab import Lab, foreign, states
from test.hosts.test_firewall import (  # noqa: F401  (fixtures)
    HTTP,
    SSH,
    added,
    facts,
    firewall,
    host,
    listen,
    outside,
    probe,
    reaches,
)
from test.lockouts import LOCKOUTS

WEB = {"name": "web", "port": 9999}
FILES = "cat /etc/ufw/user.rules /etc/ufw/user6.rules /etc/ufw/ufw.conf /etc/default/ufw"
PLAN = "/var/lib/redis_sidekiq/firewall-rollback/plan.json"
BOOT_UNIT = "/etc/systemd/system/redis_sidekiq-ufw-rollback.service"

# Every 20 ms a new connection to each port, and a line on one that stands; until the file /tmp/stop is there.
PROBE = """
import json, os, socket, sys, threading, time
address, ports, found, threads = sys.argv[1], [int(port) for port in sys.argv[2:]], [], []
def connect(port):
    start = time.time()
    try:
        socket.create_connection((address, port), 1).close()
        found.append((start, port, True))
    except OSError:
        found.append((start, port, False))
stands, lines = socket.create_connection((address, 7777), 5), []
stands.settimeout(5)
def talk():
    while not os.path.exists("/tmp/stop"):
        start = time.time()
        try:
            stands.sendall(b"x")
            lines.append((start, time.time() - start if stands.recv(1) else -1))
        except OSError:
            lines.append((start, -1))
            return
        time.sleep(0.02)
threads.append(threading.Thread(target=talk))
threads[0].start()
print("ready", flush=True)
while not os.path.exists("/tmp/stop"):
    for port in ports:
        threads.append(threading.Thread(target=connect, args=(port,)))
        threads[-1].start()
    time.sleep(0.02)
for thread in threads:
    thread.join()
seen = {port: sorted((at, ok) for at, one, ok in found if one == port) for port in ports}
print(json.dumps({"ports": seen, "stands": lines}))
"""
ECHO = """
import socket, threading
server = socket.create_server(("", 7777))
def serve(one):
    while data := one.recv(99):
        one.sendall(data)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


class Seen:
    """What a probe saw, filled in at its end."""

    ports: dict
    stands: list

    def assert_allowed(self, port: int = 22) -> None:
        shut = [at for at, ok in self.ports[str(port)] if not ok]
        assert len(self.ports[str(port)]) > 40 and not shut, f"{port} was shut {len(shut)} times: {shut[:3]}"

    def assert_denied(self, port: int = 9999, first: bool = False) -> None:
        """Never open; in a first run only until it is shut."""
        found = [ok for _, ok in self.ports[str(port)]]
        found = found[found.index(False) :] if first else found
        assert found and not any(found), f"{port} was open {sum(found)} times of {len(found)}"

    def assert_stands(self) -> None:
        assert len(self.stands) > 40 and all(0 <= seconds < 3 for _, seconds in self.stands), self.stands[-3:]


@contextlib.contextmanager
def watched(client: Host, host: Host):
    """Probe ports 22 and 9999 of ``host`` and a connection to 7777 that stands."""
    client.run(["rm", "-f", "/tmp/stop"])
    loop = client.popen(["python3", "-c", PROBE, host.address, "22", "9999"])
    assert loop.stdout.readline() == "ready\n"
    seen = Seen()
    time.sleep(0.5)
    yield seen
    time.sleep(0.5)
    client.run(["touch", "/tmp/stop"])
    found = json.loads(loop.communicate(timeout=60)[0].splitlines()[-1])
    seen.ports, seen.stands = found["ports"], found["stands"]


@pytest.fixture
def echoing(host):  # noqa: F811
    """The host, with something that answers on port 7777; connections to it stand before the firewall comes."""
    host.popen(["python3", "-c", ECHO])
    connect = ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 7777), 2)"]
    wait_for(lambda: host.run(connect, check=False).returncode == 0, 20, "port 7777 open")
    return host


ECHOES = {"name": "echo", "port": 7777}
DENY = {"name": "no", "port": "9000:9998", "action": "deny"}
MANY = {"name": "many", "port": "9000:9100"}
CHANGES = {
    "nothing": (SSH, ECHOES),
    "rule added": (SSH, ECHOES, HTTP),
    "rule with a network": (SSH, ECHOES, {**HTTP, "from": "10.0.0.0/8"}),
    "denial before": (SSH, DENY, ECHOES, MANY),
    "denial moved": (SSH, ECHOES, MANY, DENY),
    "action changed": ({**SSH, "action": "limit", "port": "20:21"}, SSH, ECHOES, {**HTTP, "action": "deny"}),
    "rule removed": (SSH, ECHOES),
}
SHORT = ("nothing", "denial before", "action changed", "rule removed")


@pytest.mark.parametrize("changes", [SHORT, pytest.param(tuple(CHANGES), marks=pytest.mark.soak)], ids=["some", "all"])
def test_what_a_second_host_sees_of_each_change(echoing, outside, changes):  # noqa: F811
    host = echoing  # noqa: F811
    with watched(outside, host) as seen:
        firewall(host, SSH, ECHOES).assert_ok()
    seen.assert_allowed()
    seen.assert_denied(first=True)
    seen.assert_stands()
    with watched(outside, host) as seen:
        for name in changes:
            run = firewall(host, *CHANGES[name]).assert_ok()
            assert bool(run.changed) is (name != "nothing"), name
    seen.assert_allowed()
    seen.assert_denied()
    seen.assert_stands()
    firewall(host, *CHANGES[changes[-1]]).assert_unchanged()


@pytest.mark.parametrize("policy", ["reject", pytest.param("allow", marks=pytest.mark.soak)])
def test_what_a_second_host_sees_of_a_policy_that_changes(echoing, outside, policy):  # noqa: F811
    host = echoing  # noqa: F811
    shut = {"name": "shut", "port": 9999, "action": "deny"}
    firewall(host, SSH, ECHOES, shut).assert_ok()
    with watched(outside, host) as seen:
        firewall(host, SSH, ECHOES, shut, incoming=policy).assert_ok()
        firewall(host, SSH, ECHOES, shut, incoming=policy).assert_unchanged()
        firewall(host, SSH, ECHOES, shut, outgoing="reject").assert_ok()
        firewall(host, SSH, ECHOES, shut).assert_ok()
        firewall(host, SSH, ECHOES, shut).assert_unchanged()
    seen.assert_allowed()
    seen.assert_denied()
    seen.assert_stands()


def kernel(host: Host) -> list[str]:  # noqa: F811
    """The kernel's rules; in what order chains were made says nothing."""
    found = host.run(["sh", "-c", "iptables -S; ip6tables -S"]).stdout.splitlines()
    chains = [line for line in found if line.startswith(("-P", "-N"))]
    return sorted(chains) + sorted((line for line in found if line.startswith("-A")), key=lambda line: line.split()[1])


def test_routed_policy_and_log_level(echoing, outside):  # noqa: F811
    """They change with what is there in force, and come back unless they are confirmed."""
    host = echoing  # noqa: F811
    shut = {"name": "shut", "port": 9999, "action": "deny"}
    firewall(host, SSH, ECHOES, shut).assert_ok()
    before, files = kernel(host), host.run(["sh", "-c", FILES]).stdout
    wish = {"routed": "allow", "incoming": "allow", "logging": "medium"}
    firewall(host, SSH, ECHOES, shut, **wish, confirm="master", confirm_within=5).assert_ok()
    assert "-P FORWARD ACCEPT" in kernel(host) and kernel(host) != before
    wait_for(lambda: not is_armed(host), 30, "the former rules back")
    assert kernel(host) == before and host.run(["sh", "-c", FILES]).stdout == files

    with watched(outside, host) as seen:
        for one in (wish, {**wish, "routed": "reject"}, {**wish, "incoming": "deny"}):
            firewall(host, SSH, ECHOES, shut, **one).assert_ok()
            firewall(host, SSH, ECHOES, shut, **one).assert_unchanged()
            assert 'log-prefix "[UFW ALLOW] "' in "".join(line for line in kernel(host) if "after-logging" in line)
    seen.assert_allowed()
    seen.assert_denied()
    seen.assert_stands()
    ours = kernel(host)
    host.run(["ufw", "reload"])
    assert kernel(host) == ours, "what ufw itself makes of these files"


# --- the way back ------------------------------------------------------------------------------------------------------


def is_armed(host: Host) -> bool:  # noqa: F811
    return host.exists(PLAN)


def assert_no_trace(host: Host) -> None:  # noqa: F811
    """Of the way back; the program that went it may be at its end still."""
    assert not is_armed(host)
    wait_for(lambda: not (host.exists(BOOT_UNIT) or rollback_units(host)), 5, "no trace of the way back")


def rollback_units(host: Host) -> str:  # noqa: F811
    found = ["systemctl", "list-units", "--all", "--no-legend", "redis_sidekiq-ufw-rollback-*"]
    return host.run(found).stdout.strip()


def test_forced_lockout_that_nobody_confirms_goes_back(host, outside):  # noqa: F811
    """Everybody is out meanwhile."""
    firewall(host, SSH).assert_ok()
    assert_no_trace(host)
    refused = firewall(host, WEB).failed["fw"]
    assert "shut out ssh" in refused and "allow_lockout: [ssh]" in refused
    forced = {"allow_lockout": ["ssh"], "confirm": "master", "confirm_within": 12}
    planned = firewall(host, WEB, **forced, test=True)
    assert "come back unless it is confirmed within 12 s" in planned.states["fw"]["comment"] and not is_armed(host)
    with probe(outside, host, 22) as ssh:
        waiting = firewall(host, WEB, **forced).assert_ok()
        assert "ufw_guard.confirm" in waiting.states["fw"]["comment"] and reaches(outside, host, 9999)
        host.run(["ufw", "allow", "9/tcp", "comment", "mine"])
        wait_for(lambda: not is_armed(host), 30, "the former rules back")
    assert ssh.shut and added(host) == [
        "ufw allow 22/tcp comment 'redis_sidekiq:ssh'",
        "ufw allow 9/tcp comment 'mine'",
    ]
    assert reaches(outside, host, 22) and not reaches(outside, host, 9999)
    journal = host.run(["journalctl", "--no-pager", "-o", "cat", "-u", "redis_sidekiq-ufw-rollback*"]).stdout
    assert "was not confirmed within 12 s" in journal and "somebody else's since: ### tuple ### allow tcp 9 " in journal
    assert_no_trace(host)


def test_change_that_is_confirmed_stays(host, outside):  # noqa: F811
    firewall(host, SSH, WEB, confirm="master", confirm_within=60).assert_ok()
    again = firewall(host, SSH, WEB, confirm="master").assert_unchanged()
    assert "waits for" in again.states["fw"]["comment"]
    assert "waits for its confirmation" in firewall(host, SSH, confirm="master").failed["fw"]
    assert "is confirmed" in salt_call(host, "ufw_guard.confirm")
    assert_no_trace(host)
    assert reaches(outside, host, 9999)
    firewall(host, SSH, WEB).assert_unchanged()


FORCED = {
    "no rule": ((HTTP,), "ssh"),
    "a denial first": (({"name": "no", "port": "any", "proto": "any", "action": "deny"}, SSH), "ssh"),
    "an interface that is not here": (({**SSH, "interface": "eth7"},), "ssh"),
    "another port": (({**SSH, "port": 2222},), "ssh"),
    "one IP version": (({**SSH, "from": "2001:db8::/32"},), "ssh_ipv4"),
}


@pytest.mark.soak
@pytest.mark.parametrize("enabled", [True, False])
def test_forced_lockouts_end_by_themselves(host, outside, enabled):  # noqa: F811
    """Of each kind; from UFW off, and from UFW on."""
    if enabled:
        firewall(host, SSH).assert_ok()
    host.run(["ip", "address", "add", "2001:db8::5/64", "dev", "host0", "nodad"])
    for kind, (rules, guard) in FORCED.items():
        assert f"allow_lockout: [{guard}]" in firewall(host, *rules).failed["fw"], kind
        forced = {"allow_lockout": [guard], "confirm": "master", "confirm_within": 5}
        with probe(outside, host, 22) as ssh:
            firewall(host, *rules, **forced).assert_ok()
            wait_for(lambda: not is_armed(host), 40, "the former rules back")
        assert ssh.shut and reaches(outside, host, 22), kind
        assert reaches(outside, host, 9999) is not enabled
        assert ("Status: active" in host.run(["ufw", "status"]).stdout) is enabled
        assert_no_trace(host)


@pytest.mark.parametrize("tenths", [(19,), pytest.param(range(8, 34, 2), marks=pytest.mark.soak)])
def test_run_that_is_cut_off_goes_back_though_no_run_follows(host, outside, tenths):  # noqa: F811
    firewall(host, SSH, HTTP).assert_ok()
    before = added(host)
    wish = (SSH, {"name": "no", "port": 80, "action": "deny", "from": "192.0.2.0/24"}, HTTP, WEB)
    for tenth in tenths:
        firewall(host, *wish, test=True, confirm_within=5)
        cut = f"setsid salt-call --local state.apply fw & sleep {tenth / 10}; kill -9 -- -$!"
        host.run(["sh", "-c", cut], check=False)
        assert reaches(outside, host, 22), f"cut off after {tenth / 10} s"
        if added(host) != before and is_armed(host):
            wait_for(lambda: not is_armed(host), 30, "the former rules back")
            assert added(host) == before
        else:
            firewall(host, *wish).assert_ok()
            firewall(host, SSH, HTTP).assert_ok()
        assert reaches(outside, host, 22)
        time.sleep(1)


def test_power_cut_before_the_confirmation(host, outside):  # noqa: F811
    firewall(host, SSH).assert_ok()
    firewall(host, SSH, WEB, confirm="master", confirm_within=600).assert_ok()
    host.power_cut()
    host.start()
    listen(host)
    assert not is_armed(host), "ufw.service waits for it"
    assert added(host) == ["ufw allow 22/tcp comment 'redis_sidekiq:ssh'"]
    wait_for(lambda: not reaches(outside, host, 9999), 20, "the firewall up again")
    assert reaches(outside, host, 22)
    assert_no_trace(host)


# --- guards on real hosts ----------------------------------------------------------------------------------------------

LOOK = f"{FILES}; iptables -S; ip6tables -S; ls -A /var/lib/redis_sidekiq; systemctl list-units --all | grep rollback"


def worlds() -> dict:
    """The cases of test/lockouts.py by the host that each needs."""
    found = {}
    for case in LOCKOUTS:
        found.setdefault(repr((case[2], foreign(case[1]))), []).append(case)
    return found


# Two rules for the same packets, which a pillar may not have: refused before anybody asks who is shut out.
CONTRADICTIONS = ("reject first", "denied and logged first")


@pytest.mark.parametrize("salted", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_rules_that_would_lock_out_are_refused(host, make_host, firewall_image, salted):  # noqa: F811
    """All of test/lockouts.py on a host that is as each case says, with real masters and minions in the long form."""
    lab = Lab(host, make_host("fw-others", image=firewall_image("bookworm")))
    tried = 0
    for cases in worlds().values():
        wish, rules = cases[0][2], cases[0][1]
        if bool({"masters", "minions"} & set(wish)) is not salted:
            continue
        with lab.world(wish, rules) as words:
            before = host.run(["sh", "-c", LOOK], check=False).stdout
            run = lab.apply(words, states(cases))
            assert host.run(["sh", "-c", LOOK], check=False).stdout == before
        assert not run.errors and len(run.states) == len(cases), run.errors
        wrong = {case[0]: run.states[case[0]]["comment"] for case in cases if not is_refused(case, run.states[case[0]])}
        assert not wrong
        tried += len(cases)
    assert tried >= (12 if salted else 48)


def is_refused(case: tuple, state: dict) -> bool:
    """With this case's sentence, and for nothing else."""
    name, _, _, _, guard, words = case
    said = re.sub(r"`r\d+: ", "`", state["comment"])
    if state["result"] is not False or name in CONTRADICTIONS:
        return state["result"] is False and "match the same packets" in said
    match = re.fullmatch(r"This would .*\. Nothing was changed\. .*allow_lockout: \[(.*)\]", said)
    told = match[1].split(", ") if match else []
    return guard in told and set(told) <= {guard, "connection"} and words in said


# How sshd calls a session differs between them.
@pytest.mark.parametrize("host", ["trixie", pytest.param("bookworm", marks=pytest.mark.soak)], indirect=True)
def test_who_is_logged_in_is_not_shut_out(host, make_host, firewall_image):  # noqa: F811
    client = make_host("fw-person", image=firewall_image("bookworm"))
    client.run(["sh", "-c", "mkdir -p /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"])
    key = client.run(["cat", "/root/.ssh/id_ed25519.pub"]).stdout
    host.run(["mkdir", "-p", "-m", "700", "/root/.ssh"])
    host.write("/root/.ssh/authorized_keys", key, mode=0o600)
    ssh = ["ssh", "-q", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", f"root@{host.address}"]
    session = client.popen([*ssh, "echo in; sleep 60"])
    assert session.stdout.readline() == "in\n"
    elsewhere = {**SSH, "from": "198.51.100.0/24"}
    before = facts(host)
    refused = firewall(host, elsewhere).failed["fw"]
    assert f"who is logged in by ssh from {client.address}" in refused and facts(host) == before
    session.kill()
    host.run(["pkill", "-f", "sleep 60"], check=False)
    wait_for(lambda: not salt_call(host, "ufw_guard.facts")["people"], 20, "nobody logged in")
    firewall(host, elsewhere).assert_ok()


@pytest.mark.soak
def test_master_and_minion_do_not_lose_each_other(host, make_host, firewall_image):  # noqa: F811
    master = Master(make_host("fw-master", image=firewall_image("bookworm")), {"redis_sidekiq": {}})
    master.attach(host)
    deny = {"outgoing": "deny", "confirm_within": 60}
    firewall_sls(master, SSH, **deny)
    failed = master.apply(host, "fw").failed["fw"]
    assert f"master {master.host.address}: no rule lets it out to port 4505, 4506" in failed

    # Forced: the run sees that no new connection gets through, and goes back at once.
    firewall_sls(master, SSH, allow_lockout=["master"], **deny)
    forced = master.apply(host, "fw")
    assert "master cannot be reached any more" in forced.failed["fw"]
    assert "The former rules are back" in forced.failed["fw"]
    assert master.call(host, "test.ping") is True

    firewall_sls(master, SSH, confirm="master", confirm_within=60)
    assert "ufw_guard.confirm" in master.apply(host, "fw").assert_ok().states["fw"]["comment"]
    assert "is confirmed" in master.call(host, "ufw_guard.confirm")
    firewall_sls(master, SSH)
    master.apply(host, "fw").assert_unchanged()

    # The master's own firewall.
    refused = firewall(master.host, SSH).failed["fw"]
    assert "shut out the minions of this master: it listens at port 4505, 4506" in refused
    named = {"name": "salt", "port": "4505:4506", "from": "198.51.100.0/24"}
    assert f"{host.address} is connected" in firewall(master.host, SSH, named).failed["fw"]
    firewall(master.host, SSH, {**named, "from": f"{host.address}/16"}).assert_ok()
    assert master.call(host, "test.ping") is True
    firewall(master.host, SSH, {**named, "from": f"{host.address}/16"}).assert_unchanged()


def firewall_sls(master: Master, *rules: dict, **wish) -> None:
    state = {"fw": {"ufw_rules.managed": [{"rules": list(rules)}, *({key: value} for key, value in wish.items())]}}
    master.host.write(f"{FILE_ROOT}/fw.sls", "#!json\n" + json.dumps(state))


LEGACY = "for name in iptables ip6tables; do update-alternatives --set $name /usr/sbin/$name-legacy || exit; done"


@pytest.mark.soak
def test_legacy_iptables_is_seen_too(host, outside):  # noqa: F811
    host.run(["sh", "-c", LEGACY])
    if host.run(["iptables", "-S"], check=False).returncode:
        pytest.skip("this kernel has no ip_tables")
    firewall(host, SSH).assert_ok()
    with probe(outside, host, 22) as ssh:
        firewall(host, SSH, HTTP, incoming="reject").assert_ok()
    assert ssh.shut == ()
    firewall(host, SSH, HTTP, incoming="reject").assert_unchanged()
    host.run(["iptables", "-D", "ufw-user-input", "1"])
    assert firewall(host, SSH, HTTP, incoming="reject").assert_ok().changed
    waiting = firewall(host, SSH, WEB, incoming="reject", confirm="master", confirm_within=5).assert_ok()
    assert waiting.changed
    wait_for(lambda: not is_armed(host), 30, "the former rules back")
    firewall(host, SSH, HTTP, incoming="reject").assert_unchanged()


def test_role_brings_the_way_back_and_clean_takes_it_away(host):  # noqa: F811
    host.run(["rm", "-rf", "/usr/local/lib/redis_sidekiq"])
    put_pillar(host, {"redis_sidekiq": {"roles": ["firewall"], "firewall": {"confirm_within": 90}}})
    apply_locally(host, "redis_sidekiq.firewall", test=True).assert_ok()
    apply_locally(host, "redis_sidekiq.firewall").assert_ok()
    assert host.exists(ROLLBACK)
    assert_no_trace(host)
    apply_locally(host, "redis_sidekiq.firewall").assert_unchanged()
    apply_locally(host, "redis_sidekiq.firewall.clean").assert_ok()
    assert not host.exists("/usr/local/lib/redis_sidekiq")
    apply_locally(host, "redis_sidekiq.firewall.clean").assert_unchanged()
