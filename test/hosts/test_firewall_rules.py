"""The firewall's rules on real hosts: every form of the contract, what was there before, the workers of Salt's mine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from test.hosts.harness.host import Host
from test.hosts.lab import FILE_ROOT, Master, StateRun, apply_locally, make_masterless, put_pillar, salt_call

LAB = Path(__file__).parent / "ufw_lab.py"
SLS = "redis_sidekiq.firewall"
STATE = "The firewall lets in what the pillar names and nothing else"
RULES = ("/etc/ufw/user.rules", "/etc/ufw/user6.rules")


def pillar(rules: dict | None = None, roles=("firewall",), redis: dict | None = None, **firewall) -> dict:
    return {
        "redis_sidekiq": {
            "roles": list(roles),
            "firewall": {"rules": rules or {}, **firewall},
            **({"redis": redis} if redis else {}),
        }
    }


@pytest.fixture(scope="module", params=["bookworm", pytest.param("trixie", marks=pytest.mark.soak)])
def host(request, module_hosts) -> Host:
    """A host with sshd, and without ufw."""
    host = module_hosts(f"fw-rules-{request.param}", image=request.param)
    host.run(["apt-get", "install", "-y", "openssh-server"], timeout=300)
    make_masterless(host, pillar())
    salt_call(host, "saltutil.sync_all")
    return host


def apply(host: Host, wish: dict, test: bool = False) -> StateRun:
    put_pillar(host, wish)
    return apply_locally(host, SLS, test=test)


def settled(host: Host, wish: dict) -> dict:
    """Apply after it was announced, and once more for nothing; returns the changes of the firewall's state."""
    announced = apply(host, wish, test=True).states[STATE]["changes"]
    run = apply(host, wish).assert_ok()
    assert run.states[STATE]["changes"] == announced
    apply(host, wish).assert_unchanged()
    return announced


def tuples(host: Host, ours: bool | None = None) -> list[str]:
    found = []
    for path in RULES:
        for line in host.run(["cat", path]).stdout.splitlines():
            of_ours = b"redis_sidekiq:".hex() in line
            if line.startswith("### tuple") and ours in (None, of_ours):
                found.append(line)
    return found


def forget(host: Host) -> None:
    """UFW as its package brings it: off, without rules."""
    host.run(["apt-get", "install", "-y", "ufw"], timeout=300)
    host.run(["sh", "-c", "ufw --force reset; ufw default deny incoming; rm -rf /var/lib/redis_sidekiq"])


def others(count: int) -> str:
    """A rule file with rules that somebody made, as ufw writes their first lines."""
    lines = [f"### tuple ### allow tcp {2000 + n} 0.0.0.0/0 any 203.0.113.{n} in" for n in range(count)]
    return "*filter\n:ufw-user-input - [0:0]\n### RULES ###\n" + "\n\n".join(lines) + "\n### END RULES ###\nCOMMIT\n"


@pytest.mark.parametrize("before", ["without", pytest.param("inactive", marks=pytest.mark.soak), "active", "many"])
def test_any_host_comes_to_the_same_end(host, before):
    """From a host without UFW, with UFW off, on, with 200 rules of others."""
    if before != "without":
        forget(host)
        if before == "many":
            host.write(RULES[0], others(200))
            host.run(["ufw", "logging", "low"])
        host.run(["ufw", "allow", "9/tcp", "comment", "mine"])
        host.run(["ufw", "allow", "OpenSSH"])
        if before == "active":
            host.run(["ufw", "--force", "enable"])
    theirs = tuples(host, ours=False) if before != "without" else []
    wish = pillar({"ssh": {"port": "ssh"}, "web": {"port": [443, 8080]}})
    first = apply(host, wish).assert_ok()
    second = apply(host, wish).assert_unchanged()
    print(f"{before}: {first.seconds:.1f} s, then {second.seconds:.1f} s; {first.states[STATE]['changes']}")
    assert tuples(host, ours=False) == theirs
    assert "Status: active" in host.run(["ufw", "status"]).stdout
    names = {line.split()[4] + "/" + line.split()[3] for line in tuples(host)}
    assert {"tcp/allow"} == names and len(tuples(host, ours=True)) == (8 if before == "without" else 6)
    done = host.run(["sh", "-c", "iptables -S | grep -c ufw-user-input"]).stdout
    assert int(done) >= 5
    if before == "many":
        assert second.seconds < 6


EVERYTHING = {
    "ssh": {"app": "OpenSSH", "comment": 'the "admins" $(id) {{ 7*7 }} é'},
    "http": {"port": "http", "interface": "eth0", "action": "limit"},
    "https": None,
    "web": {"port": [443, 8080, "6000:6010"], "from": ["10.0.0.9/8", "fd00::1/8"], "to": ["10.0.0.5"]},
    "noisy": {"port": 23, "action": "reject", "log": "log", "family": "ipv4"},
    "vpn": {"proto": "esp", "from": ["192.0.2.7"]},
    "six": {"proto": "ipv6", "from": ["192.0.2.8"]},
    "back": {"port": "any", "proto": "any", "from": ["10.9.0.0/16"], "interface": "wg+", "log": "log-all"},
    "mail": {"port": 25, "direction": "out", "action": "deny", "comment": "no mail from here"},
    "dns": {"port": 53, "proto": "any", "direction": "out", "interface": "eth0"},
}


def test_every_form_of_a_rule_is_in_force(host):
    forget(host)
    settled(host, pillar(EVERYTHING, routed="reject", logging="medium"))
    found = salt_call(host, "ufw_rules.status")
    assert found["gaps"] == [] and (found["routed"], found["logging"]) == ("reject", "medium")
    # iptables names the protocols that it knows, and those depend on its release.
    chains = host.run(["iptables", "-S"]).stdout.replace("-p 41 ", "-p ipv6 ")
    for words in (
        "-A ufw-user-input -i eth0 -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -m recent --update",
        "-A ufw-user-input -s 10.0.0.0/8 -d 10.0.0.5/32 -p tcp -m multiport --dports 443,6000:6010,8080 -j ACCEPT",
        "-A ufw-user-input -s 192.0.2.7/32 -p esp -j ACCEPT",
        "-A ufw-user-input -s 192.0.2.8/32 -p ipv6 -j ACCEPT",
        "-A ufw-user-input -s 10.9.0.0/16 -i wg+ -j ACCEPT",
        "-A ufw-user-output -p tcp -m tcp --dport 25 -j DROP",
        "-A ufw-user-output -o eth0 -p udp -m udp --dport 53 -j ACCEPT",
        "-A ufw-user-input -p tcp -m tcp --dport 23 -j REJECT",
    ):
        assert words in chains, words
    assert 'the "admins" $(id) {{ 7*7 }} é' in host.run(["ufw", "show", "added"]).stdout
    # One more word in a comment, another log level: only these change.
    again = {**EVERYTHING, "mail": {**EVERYTHING["mail"], "comment": "none at all"}}
    changes = settled(host, pillar(again, routed="reject", logging="off"))
    assert changes == {
        "rules": {
            "added": ["mail: deny out tcp 25 from any # none at all"],
            "removed": ["mail: deny out tcp 25 from any # no mail from here"],
        },
        "logging": {"old": "medium", "new": "off"},
    }


@pytest.mark.soak
def test_clean_puts_back_log_level_and_policy_of_routed_packets(host):
    forget(host)
    host.run(["ufw", "logging", "high"])
    host.run(["ufw", "default", "allow", "routed"])
    apply(host, pillar()).assert_ok()
    assert "logging" not in host.run(["cat", "/var/lib/redis_sidekiq/firewall.json"]).stdout, "not ours as yet"
    host.run(["ufw", "logging", "medium"])
    settled(host, pillar(EVERYTHING, routed="reject", logging="off"))
    settled(host, pillar(routed="deny", logging="full"))
    apply_locally(host, f"{SLS}.clean").assert_ok()
    found = salt_call(host, "ufw_rules.status")
    assert (found["routed"], found["logging"], found["rules"]) == ("allow", "medium", [])
    apply_locally(host, f"{SLS}.clean").assert_unchanged()


def test_only_ours(host):
    forget(host)
    apply(host, pillar()).assert_ok()
    route = "route allow in on eth0 out on eth1"
    for words in ("allow OpenSSH", "allow 80/tcp comment theirs", route, "deny from 192.0.2.9"):
        host.run(["ufw", *words.split()])
    changes = settled(host, pillar(only_ours=True))
    assert set(changes) == {"rules"}
    assert {"allow tcp 22 from any (OpenSSH)", "route allow in on eth0 out on eth1 any any from any"} <= set(
        changes["rules"]["removed"]
    )
    assert tuples(host, ours=False) == [] and len(tuples(host)) == 6
    refused = apply(host, pillar({"ssh": {"port": 2222}}, only_ours=True))
    assert "port 22" in refused.failed[STATE] and len(tuples(host)) == 6


def test_workers_of_the_mine_are_let_in(host):
    mine = {"target": "*", "function": "network.ip_addrs"}
    instance = {"bind": ["0.0.0.0"], "password": "long-and-random", "allow_from_mine": mine}

    def wish(**more) -> dict:
        entry = {**instance, "allow_from_mine": {**mine, **more}}
        return pillar(roles=("redis", "firewall"), redis={"instances": {"6379": entry}})

    forget(host)
    salt_call(host, "mine.flush")
    apply(host, pillar()).assert_ok()
    before = tuples(host)
    refused = apply(host, wish())
    assert "allow_from_mine: the mine knows no address of '*'" in "\n".join(refused.errors) and tuples(host) == before
    salt_call(host, "mine.send", "network.ip_addrs")
    changes = settled(host, wish())
    assert changes == {"rules": {"added": [f"redis_6379: allow tcp 6379 from {host.address}"]}}
    with_one = tuples(host)
    salt_call(host, "data.update", "mine_cache", json.dumps({"network.ip_addrs": [host.address, "198.18.94.77"]}))
    run = apply(host, wish()).assert_ok()
    assert run.states[STATE]["changes"] == {"rules": {"added": ["redis_6379: allow tcp 6379 from 198.18.94.77"]}}
    with_two = tuples(host)
    for broken in ({"network.ip_addrs": ["0.0.0.0/0"]}, {}):
        salt_call(host, "data.update", "mine_cache", json.dumps(broken))
        assert "redis_sidekiq:redis:instances:6379:allow_from_mine: " in "\n".join(apply(host, wish()).errors)
        assert tuples(host) == with_two != with_one
    run = apply(host, wish(may_be_empty=True)).assert_ok()
    assert run.states[STATE]["changes"]["rules"]["removed"] == [
        f"redis_6379: allow tcp 6379 from {address}" for address in (host.address, "198.18.94.77")
    ]


@pytest.mark.soak
def test_new_worker_of_a_master_is_let_in(module_hosts):
    """A real mine: a second worker comes, the next run opens its way; the mine is emptied, and nothing closes."""
    hub, queue, *workers = (module_hosts(f"fw-mine-{name}") for name in ("master", "queue", "worker1", "worker2"))
    mine = {"target": "fw-mine-worker*", "networks": ["198.18.94.0/24"]}
    instance = {"bind": ["0.0.0.0"], "password": "long-and-random", "allow_from_mine": mine}
    master = Master(hub, pillar(roles=("redis", "firewall"), redis={"instances": {"6379": instance}}))
    master.attach(queue, workers[0])
    for worker in workers:
        if worker is workers[1]:
            master.attach(worker)
        master.call(worker, "mine.send", "network.ip_addrs")
        master.apply(queue, SLS).assert_ok()
        assert f" {worker.address} in" in queue.run(["cat", RULES[0]]).stdout
    master.apply(queue, SLS).assert_unchanged()
    before = tuples(queue)
    assert sum(b"redis_sidekiq:redis_6379".hex() in line for line in before) == 2
    hub.run(["salt-run", "cache.clear_mine", "fw-mine-worker*"])
    assert "the mine knows no address" in "\n".join(master.apply(queue, SLS).errors) and tuples(queue) == before


@pytest.mark.parametrize(
    ("first", "last"), [(0, 2), *(pytest.param(at, at + 25, marks=pytest.mark.soak) for at in range(100, 250, 25))]
)
def test_any_ruleset_reads_back_as_it_was_wished(host, first, last):
    """On the real ufw: facts equal the wish; B after A equals B alone; rules of others stay, or go with only_ours."""
    host.write("/root/ufw_lab.py", LAB.read_text())
    module = f"{FILE_ROOT}/_modules/ufw_rules.py"
    words = ["/opt/salt/bin/python", "/root/ufw_lab.py", module, str(first), str(last), "6" if first == 0 else "10"]
    found = json.loads(host.run(words, timeout=1800).stdout.splitlines()[-1])
    assert found["wrong"] == [] and found["commands"] > 20, found
