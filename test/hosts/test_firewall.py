"""UFW on real hosts: what a second host can reach before, during and after a run, and after one that was cut off."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass

import pytest

from test.hosts.harness.host import Host
from test.hosts.lab import FILE_ROOT, StateRun, apply_locally, cut_off, wait_for

# Both carry ufw 0.36.2: what is not about iptables or the kernel is tried on one of them, in full by `make soak`.
IMAGES = ["bookworm", pytest.param("trixie", marks=pytest.mark.soak)]
on_both = pytest.mark.parametrize("host", ["bookworm", "trixie"], indirect=True)
CLEAN = '#!json\n{"fw": {"ufw_rules.absent": []}}'
SSH, HTTP = {"name": "ssh", "port": 22}, {"name": "http", "port": 80}
REDIS = {"name": "redis_6379", "port": 6379, "from": "10.1.2.3/8"}
FACTS = (
    "cat /etc/ufw/*.rules /etc/ufw/ufw.conf /etc/default/ufw; iptables -S; ip6tables -S; ls -A /var/lib/redis_sidekiq"
)

# New connections every 50 ms until the file /tmp/stop is there; prints when and for how long a port did not answer.
PROBE = """
import json, os, socket, sys, threading, time
address, port, found, threads = sys.argv[1], int(sys.argv[2]), [], []
def connect():
    start = time.time()
    try:
        socket.create_connection((address, port), 1).close()
        found.append((start, True))
    except OSError:
        found.append((start, False))
print("ready", flush=True)
while not os.path.exists("/tmp/stop"):
    threads.append(threading.Thread(target=connect))
    threads[-1].start()
    time.sleep(0.05)
for thread in threads:
    thread.join()
print(json.dumps({"open": sum(ok for _, ok in found), "shut": sorted(at for at, ok in found if not ok)}))
"""


@pytest.fixture(params=IMAGES)
def host(request, firewall_image, make_host) -> Host:
    """A host with ufw installed and off, sshd running, and something that listens on port 9999."""
    host = make_host(f"fw-in-{request.param}", image=firewall_image(request.param))
    listen(host)
    return host


@pytest.fixture(scope="module")
def outside(module_hosts) -> Host:
    """The outside world: nothing of it changes, so one host stands for all tests."""
    return module_hosts("fw-out")


def listen(host: Host) -> None:
    """Make something answer on port 9999, and wait until it does."""
    host.popen(["python3", "-m", "http.server", "9999"])
    connect = ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 9999), 2)"]
    wait_for(lambda: host.run(connect, check=False).returncode == 0, 20, "port 9999 open")


def firewall(host: Host, *rules: dict, test: bool = False, **wish) -> StateRun:
    """Run one state that wishes these rules."""
    state = {"fw": {"ufw_rules.managed": [{"rules": list(rules)}, *({key: value} for key, value in wish.items())]}}
    host.write(f"{FILE_ROOT}/fw.sls", "#!json\n" + json.dumps(state))
    return apply_locally(host, "fw", test=test)


def clean(host: Host) -> StateRun:
    host.write(f"{FILE_ROOT}/fwclean.sls", CLEAN)
    return apply_locally(host, "fwclean")


def facts(host: Host) -> str:
    return host.run(["sh", "-c", FACTS], check=False).stdout


def reaches(client: Host, host: Host, port: int) -> bool:
    code = f"import socket; socket.create_connection(({host.address!r}, {port}), 2)"
    return client.run(["python3", "-c", code], check=False).returncode == 0


def added(host: Host) -> list[str]:
    """UFW's own list of rules."""
    return [line for line in host.run(["ufw", "show", "added"]).stdout.splitlines() if line.startswith("ufw ")]


@dataclass
class Probed:
    """What a probe saw: how many connections opened, and the times at which one did not."""

    open: int = 0
    shut: tuple = ()


@contextlib.contextmanager
def probe(client: Host, host: Host, port: int):
    """Open a new connection from ``client`` to a port of ``host`` every 50 ms; the result is filled in at the end."""
    client.run(["rm", "-f", "/tmp/stop"])
    loop = client.popen(["python3", "-c", PROBE, host.address, str(port)])
    time.sleep(1)
    probed = Probed()
    yield probed
    time.sleep(1)
    client.run(["touch", "/tmp/stop"])
    found = json.loads(loop.communicate(timeout=30)[0].splitlines()[-1])
    probed.open, probed.shut = found["open"], tuple(found["shut"])


@on_both
def test_from_nothing_to_converged(host, outside):
    before = facts(host)
    planned = firewall(host, SSH, HTTP, REDIS, test=True)
    assert planned.pending == ["fw"] and facts(host) == before

    with probe(outside, host, 22) as ssh:
        first = firewall(host, SSH, HTTP, REDIS).assert_ok()
    assert ssh.shut == () and ssh.open > 20
    assert first.changed == planned.changed
    assert added(host) == [
        "ufw allow 22/tcp comment 'redis_sidekiq:ssh'",
        "ufw allow 80/tcp comment 'redis_sidekiq:http'",
        "ufw allow from 10.0.0.0/8 to any port 6379 proto tcp comment 'redis_sidekiq:redis_6379'",
    ]
    assert "Status: active" in host.run(["ufw", "status"]).stdout
    assert reaches(outside, host, 22) and not reaches(outside, host, 9999)

    after = facts(host)
    for _ in range(2):
        firewall(host, SSH, HTTP, REDIS).assert_unchanged()
    assert facts(host) == after


# Connects, says nothing, and tells what it hears: a minion and its master's publications.
LISTENER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7000), 10)
print("connected", flush=True)
connection.settimeout(30)
print(connection.recv(99).decode(), flush=True)
"""
SPEAKER = """
import os, socket, sys, time
server = socket.create_server(("", 7000))
print("ready", flush=True)
listener, _ = server.accept()
web = socket.create_connection((sys.argv[1], 9999), 10)
while not os.path.exists("/tmp/speak"):
    time.sleep(0.05)
listener.sendall(b"publication")
web.settimeout(10)
web.sendall(b"HEAD / HTTP/1.0\\r\\n\\r\\n")
print(web.recv(99).decode().split()[1], flush=True)
"""


def test_connections_that_stand_go_on_though_they_were_silent(host, outside):
    outside.run(["rm", "-f", "/tmp/speak"])
    speaker = outside.popen(["python3", "-c", SPEAKER, host.address])
    assert speaker.stdout.readline() == "ready\n"
    listener = host.popen(["python3", "-c", LISTENER, outside.address])
    assert listener.stdout.readline() == "connected\n"
    time.sleep(0.5)
    firewall(host, SSH).assert_ok()
    assert not reaches(outside, host, 9999)
    outside.run(["touch", "/tmp/speak"])
    begun = time.monotonic()
    assert listener.stdout.readline() == "publication\n"
    assert speaker.stdout.readline() == "200\n"
    assert time.monotonic() - begun < 3


def test_run_that_changes_nothing_starts_no_process(host):
    firewall(host, SSH, HTTP).assert_ok()
    _, programs = host.processes_spawned(["salt-call", "--local", "state.apply", "fw"])
    names = {argv[0].rpartition("/")[2] for argv in programs}
    # Salt itself starts systemctl, for its grains.
    assert not names & {"ufw", "sshd", "iptables", "ip6tables", "nft"}, programs


def test_rule_that_left_the_pillar_goes_and_others_stay(host):
    host.run(["ufw", "allow", "9/tcp", "comment", "mine"])
    host.run(["ufw", "allow", "80/tcp"])
    firewall(host, SSH, HTTP, REDIS).assert_ok()
    gone = firewall(host, SSH).assert_ok()
    assert gone.changed["fw"] == {"rules": {"removed": ["redis_6379: allow tcp 6379 from 10.0.0.0/8"]}}
    assert added(host) == [
        "ufw allow 9/tcp comment 'mine'",
        "ufw allow 80/tcp",
        "ufw allow 22/tcp comment 'redis_sidekiq:ssh'",
    ]
    firewall(host, SSH).assert_unchanged()


def test_denial_wins_against_the_rule_after_it(host, outside):
    open_door = {"name": "web", "port": 9999}
    firewall(host, SSH, open_door).assert_ok()
    assert reaches(outside, host, 9999)
    for source in (f"{outside.address}/32", "fd00:9::/64", "any"):
        door = {"name": "no", "port": "9990:9999", "action": "deny", "from": source}
        firewall(host, SSH, door, open_door).assert_ok()
        firewall(host, SSH, door, open_door).assert_unchanged()
        assert reaches(outside, host, 9999) is (source == "fd00:9::/64")
    firewall(host, SSH, open_door, door).assert_ok()
    firewall(host, SSH, open_door, door).assert_unchanged()
    assert reaches(outside, host, 9999)


def test_policy_of_a_running_firewall_changes_without_shutting_ssh(host, outside):
    host.run(["ufw", "default", "allow", "incoming"])
    host.run(["ufw", "--force", "enable"])
    with probe(outside, host, 22) as ssh:
        firewall(host, SSH).assert_ok()
    assert ssh.shut == () and not reaches(outside, host, 9999)
    with probe(outside, host, 22) as ssh:
        clean(host).assert_ok()
    assert ssh.shut == () and reaches(outside, host, 9999)
    assert "Status: active" in host.run(["ufw", "status"]).stdout and added(host) == []
    clean(host).assert_unchanged()


def test_refuses_to_shut_out_ssh(host):
    host.run(["sh", "-c", "echo 'Port 2022' > /etc/ssh/sshd_config.d/port.conf"])
    before = facts(host)
    for test in (True, False):
        run = firewall(host, SSH, HTTP, test=test)
        assert "port 2022" in run.failed["fw"] and facts(host) == before
    # The sshd that runs still listens on 22, the next one will on 2022: both have to stay open.
    both = {"name": "ssh2", "port": 2022}
    assert "port 22," in firewall(host, HTTP, both).failed["fw"]
    firewall(host, SSH, both).assert_ok()


@on_both
def test_reboot_keeps_it_on(host, outside):
    firewall(host, SSH, HTTP).assert_ok()
    host.power_cut()
    host.start()
    listen(host)
    time.sleep(1)
    assert reaches(outside, host, 22) and not reaches(outside, host, 9999)
    firewall(host, SSH, HTTP).assert_unchanged()


DAMAGES = (
    "/usr/lib/ufw/ufw-init stop",
    "ip6tables -P INPUT ACCEPT",
    "head -c 700 /etc/ufw/user6.rules > /tmp/x; cat /tmp/x > /etc/ufw/user6.rules",
    "systemctl disable ufw",
)
MORE_DAMAGES = ("iptables -D ufw-user-input 2", "sed -i /^COMMIT/d /etc/ufw/user.rules")


@pytest.mark.parametrize("damages", [DAMAGES, pytest.param(MORE_DAMAGES, marks=pytest.mark.soak)], ids=["some", "more"])
def test_what_runs_counts(host, outside, damages):
    """ENABLED=yes says nothing about the kernel, nor about the next boot."""
    firewall(host, SSH, HTTP).assert_ok()
    good = sorted(host.run(["sh", "-c", "iptables -S; ip6tables -S"]).stdout.split("\n"))
    for damage in damages:
        host.run(["sh", "-c", damage])
        with probe(outside, host, 22) as ssh:
            assert firewall(host, SSH, HTTP).assert_ok().changed, damage
        assert sorted(host.run(["sh", "-c", "iptables -S; ip6tables -S"]).stdout.split("\n")) == good, damage
        assert host.run(["systemctl", "is-enabled", "ufw"]).stdout.strip() == "enabled", damage
        firewall(host, SSH, HTTP).assert_unchanged()
        assert ssh.shut == (), damage


def test_ufw_that_cannot_start_is_quoted_and_shuts_nobody_out(host, outside):
    host.run(["sed", "-i", "s/^COMMIT/-A ufw-before-input -j NOSUCH\\nCOMMIT/", "/etc/ufw/before.rules"])
    failed = firewall(host, SSH, HTTP).failed["fw"]
    assert "NOSUCH" in failed and "nobody is shut out" in failed
    assert reaches(outside, host, 22)
    assert "Status: inactive" in host.run(["ufw", "status"]).stdout
    assert "ENABLED=no" in host.run(["cat", "/etc/ufw/ufw.conf"]).stdout


def test_clean_puts_back_a_firewall_that_was_off(host, outside):
    host.run(["ufw", "default", "reject", "incoming"])
    host.run(["ufw", "allow", "9/tcp"])
    firewall(host, SSH, HTTP).assert_ok()
    with probe(outside, host, 22) as ssh:
        clean(host).assert_ok()
    assert ssh.shut == ()
    assert added(host) == ["ufw allow 9/tcp"]
    assert "Status: inactive" in host.run(["ufw", "status"]).stdout
    assert 'DEFAULT_INPUT_POLICY="REJECT"' in host.run(["cat", "/etc/default/ufw"]).stdout
    clean(host).assert_unchanged()


def test_clean_keeps_ssh_open_in_a_firewall_that_was_on(host, outside):
    host.run(["ufw", "allow", "22/tcp"])
    host.run(["ufw", "--force", "enable"])
    firewall(host, SSH, HTTP).assert_ok()
    host.run(["ufw", "delete", "allow", "22/tcp"])
    firewall(host, SSH, HTTP).assert_ok()
    run = clean(host).assert_ok()
    assert "ssh: allow tcp 22 from any" in run.states["fw"]["comment"]
    assert added(host) == ["ufw allow 22/tcp comment 'redis_sidekiq:ssh'"]
    assert reaches(outside, host, 22)
    clean(host).assert_unchanged()


def test_two_runs_at_once(host):
    firewall(host, SSH, test=True)
    runs = [
        host.popen(["salt-call", "--local", "--out=json", "state.sls_id", "fw", "fw", "concurrent=True"]) for _ in "12"
    ]
    for run in runs:
        run.communicate(timeout=120)
        assert run.returncode == 0
    firewall(host, SSH).assert_unchanged()


@pytest.mark.parametrize("moments", [(14, 19, 24), pytest.param(range(8, 34, 2), marks=pytest.mark.soak)])
@pytest.mark.parametrize("start", ["off", pytest.param("allow", marks=pytest.mark.soak), "clean"])
def test_run_that_is_cut_off_never_shuts_out_ssh(host, outside, start, moments):
    """kill -9 to the whole run, ufw too, at moments spread over it; then ssh answers, and the next run is right."""
    web = {"name": "no", "port": 80, "action": "deny", "from": "192.0.2.0/24"}
    wish = (SSH, web, HTTP)
    for tenths in moments:
        host.run(["sh", "-c", "ufw --force reset; ufw default deny incoming; rm -rf /var/lib/redis_sidekiq"])
        if start == "allow":
            host.run(["sh", "-c", "ufw default allow incoming; ufw --force enable"])
        if start == "clean":
            firewall(host, *wish).assert_ok()
        else:
            firewall(host, *wish, test=True)
        host.write(f"{FILE_ROOT}/fwclean.sls", CLEAN)
        sls = "fwclean" if start == "clean" else "fw"
        cut = f"setsid salt-call --local state.apply {sls} & sleep {tenths / 10}; kill -9 -- -$!"
        host.run(["sh", "-c", cut], check=False)
        assert reaches(outside, host, 22), f"cut off after {tenths / 10} s"
        again = clean(host) if start == "clean" else firewall(host, *wish)
        again.assert_ok()
        (clean(host) if start == "clean" else firewall(host, *wish)).assert_unchanged()


STEPS = (
    r"start (ufw|ip6?tables|ip6?tables-restore|systemd-run|systemctl stop) |[a-z]+ /(etc|var/lib)/.*(ufw|redis_sidekiq)"
)


@pytest.mark.soak
@pytest.mark.parametrize("start", ["off", "on", "clean"])
def test_run_that_is_cut_off_before_any_step_never_shuts_out_ssh(host, outside, start):
    """The same before each of its steps: each program that it starts, each file that it puts in place or removes."""
    web = {"name": "no", "port": 80, "action": "deny", "from": "192.0.2.0/24"}
    wish = (SSH, web, HTTP)
    sls = "fwclean" if start == "clean" else "fw"

    def begin() -> None:
        host.run(["sh", "-c", "ufw --force reset; ufw default deny incoming; rm -rf /var/lib/redis_sidekiq"])
        host.write(f"{FILE_ROOT}/fwclean.sls", CLEAN)
        if start != "off":
            firewall(host, *({"on": (SSH, REDIS), "clean": wish}[start])).assert_ok()
        firewall(host, *wish, incoming="reject" if start == "on" else "deny", test=True)

    begin()
    steps = cut_off(host, 0, STEPS, "state.apply", sls)
    assert len(steps) > 8, steps
    for last in range(1, len(steps) + 1):
        begin()
        assert len(cut_off(host, last, STEPS, "state.apply", sls)) == last
        assert reaches(outside, host, 22), steps[last - 1]
        apply_locally(host, sls).assert_ok()
        apply_locally(host, sls).assert_unchanged()
        assert reaches(outside, host, 22) and reaches(outside, host, 9999) is (start == "clean"), steps[last - 1]
