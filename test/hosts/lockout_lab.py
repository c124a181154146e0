"""The hosts of test/lockouts.py made real: sshd, UFW, addresses, who is logged in, masters and minions; and a second host
that is everybody else: people, the master, its minions, the nameserver.
"""

from __future__ import annotations

import contextlib
import json

from test.hosts.harness.host import Host
from test.hosts.lab import FILE_ROOT, Master, StateRun, put_pillar, wait_for
from test.lockouts import HERE, at

OTHERS = ("10.0.0.1/16", "10.0.0.2/16", "10.0.0.8/16", "192.0.2.7/32", "203.0.113.9/32", "198.51.100.4/32",
          "2001:db8::1/64", "2001:db8:1::7/128")  # fmt: skip
NAMESERVER = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.0.0.2", 53))
print("ready", flush=True)
while True:
    asked, client = server.recvfrom(512)
    question = asked[12 : asked.index(0, 12) + 5]
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\x0a\\0\\0\\1" if question[-3] == 1 else b""
    count = b"\\0\\1" if answer else b"\\0\\0"
    server.sendto(asked[:2] + b"\\x85\\x80\\0\\1" + count + b"\\0\\0\\0\\0" + question + answer, client)
"""
CONNECT = """
import socket, sys, time
stands = socket.create_connection(("10.0.0.5", 4505), 10, source_address=(sys.argv[1], 0))
print("stands", flush=True)
time.sleep(600)
"""
# The harness calls the interface host0; a host of its own has no route to nowhere.
RENAME = """
ip link set host0 down && ip link set host0 name eth0 && ip link set eth0 up
ip address flush dev eth0
ip -6 address flush dev eth0
"""


def rule(text: str, number: int) -> dict:
    """Return a rule of test/lockouts.py as ``ufw_rules.managed`` takes it."""
    action, proto, port, *rest = text.split()
    named = dict(zip(rest[::2], rest[1::2]))
    action, _, log = action.partition("_")
    wish = {"action": action, "proto": proto, "port": port.split(",") if "," in port else port, "log": log}
    wish |= {key: named[key] for key in ("from", "to") if key in named}
    wish |= {"interface": named.get("on", ""), "direction": named.get("way", "in")}
    family = {"4": "ipv4", "6": "ipv6"}.get(named.get("by", ""), "any")
    return {"name": f"r{number}", **wish, "family": family}


def foreign(texts: list[str]) -> list[str]:
    """Return the ``ufw`` commands for those rules that a pillar cannot say, but another hand can."""
    words = {"sport 1023": "ufw allow proto tcp from any port 1023 to any port 22",
             "route:allow": "ufw route allow proto tcp to any port 22"}  # fmt: skip
    return [command for text in texts for key, command in words.items() if key in text]


def states(cases: list) -> dict:
    """Return an SLS with a state for each case."""
    return {
        case[0]: {
            "ufw_rules.managed": [
                {"rules": [rule(text, number) for number, text in enumerate(case[1]) if not foreign([text])]},
                *({key: value} for key, value in case[3].items()),
            ]
        }
        for case in cases
    }


class Lab:
    """A host, and another one that is everybody else."""

    def __init__(self, host: Host, other: Host) -> None:
        self.host, self.other = host, other
        for one in (host, other):
            one.run(["sh", "-ec", RENAME])
        address = "".join(f"ip address add {each} dev eth0{' nodad' * (':' in each)}\n" for each in OTHERS)
        other.run(["sh", "-ec", f"{address}ip route add default dev eth0; ip -6 route add default dev eth0"])
        other.run(["sh", "-c", "mkdir -p /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"])
        host.write("/root/.ssh/authorized_keys", other.run(["cat", "/root/.ssh/id_ed25519.pub"]).stdout, mode=0o600)
        self.master = None
        self.nameserver = None

    @contextlib.contextmanager
    def world(self, host: dict, rules: list[str] = ()):
        """Make this host of test/lockouts.py, with these rules of others; gives the words of `salt-call` on it."""
        with contextlib.ExitStack() as stack:
            addresses = host.get("addresses") or at(*(("eth0", address) for address in HERE.values()))
            self._address(addresses)
            self._sshd(ports=(22,))
            self._ufw(host.get("ipv6", True), rules)
            stack.enter_context(self._logged_in(host.get("people", ())))
            if "sshd" in host or "listen" in host:
                self._sshd(host.get("sshd", (22,)), host.get("listen", ()))
            if "master" in host:
                stack.enter_context(self._runs_a_master(host.get("minions", ())))
            words = ["salt-call", "--local"]
            if host.get("masters"):
                self._has_a_master((host.get("lookups") or host["masters"])[0])
                words = ["salt-call"]
            yield words

    def apply(self, words: list[str], sls: dict, test: bool = False) -> StateRun:
        """Run these states there."""
        for one in (self.host, *([self.master.host] if self.master else [])):
            one.write(f"{FILE_ROOT}/lockouts.sls", "#!json\n" + json.dumps(sls))
        done = self.host.run([*words, "--out=json", "state.apply", "lockouts", f"test={test}"], check=False)
        return StateRun.parse(json.loads(done.stdout)["local"])

    def _address(self, addresses: list) -> None:
        script = ["ip address flush dev eth0 scope global", "ip link del eth1 2>/dev/null || true"]
        for name in dict.fromkeys(name for name, _ in addresses):
            script += [f"ip link show {name} >/dev/null 2>&1 || ip link add {name} type veth peer name {name}p"]
            script.append(f"ip link set {name} up")
        for name, address in addresses:
            length, nodad = (("16", ""), ("64", " nodad"))[address.version == 6]
            script.append(f"ip address add {address}/{length} dev {name}{nodad}")
        script += ["ip route replace default dev eth0", "ip -6 route replace default dev eth0"]
        self.host.run(["sh", "-ec", "\n".join(script)])

    def _sshd(self, ports: tuple, listen: tuple = ()) -> None:
        lines = [f"Port {port}" for port in ports] if not listen else [f"ListenAddress {address}" for address in listen]
        self.host.write("/etc/ssh/sshd_config.d/lab.conf", "\n".join(lines) + "\n")
        self.host.run(["sh", "-c", "systemctl reset-failed ssh; systemctl restart ssh"])

    def _ufw(self, ipv6: bool, rules: list[str]) -> None:
        yes = "yes" if ipv6 else "no"
        script = "ufw --force disable; cp /usr/share/ufw/user*.rules /etc/ufw; ufw default deny incoming; "
        script += f"sed -i s/^IPV6=.*/IPV6={yes}/ /etc/default/ufw"
        self.host.run(["sh", "-c", "; ".join([script, *foreign(rules)])])

    @contextlib.contextmanager
    def _logged_in(self, people: tuple):
        sessions = [self.other.popen(self._ssh(*person)) for person in people]
        assert all(session.stdout.readline() == "in\n" for session in sessions)
        yield
        for session in sessions:
            session.kill()
        wait_for(lambda: not self._sessions(), 20, "nobody logged in")

    def _ssh(self, source: str, port: int = 22, address: str = "") -> list[str]:
        address = address or HERE["6" if ":" in source else "4"]
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=10"]
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-q", *words, "-b", source, "-p", str(port), f"root@{address}", "echo in; exec sleep 600"]

    def _sessions(self) -> str:
        return self.host.run(["ss", "-Htn", "state", "established", "sport", "=", ":22"]).stdout.strip()

    @contextlib.contextmanager
    def _runs_a_master(self, minions: tuple):
        self.host.run(["systemctl", "start", "salt-master"])
        listening = ["sh", "-c", "ss -Hltn | grep -q :4505 && ss -Hltn | grep -q :4506"]
        wait_for(lambda: self.host.run(listening, check=False).returncode == 0, 60, "a master")
        stands = [self.other.popen(["python3", "-c", CONNECT, minion]) for minion in minions]
        assert all(one.stdout.readline() == "stands\n" for one in stands)
        yield
        for one in stands:
            one.kill()
        self.host.run(["systemctl", "kill", "--signal=KILL", "salt-master"])
        self.host.run(["systemctl", "stop", "salt-master"])

    def _has_a_master(self, name: str) -> None:
        if not self.master:
            self.master = Master(self.other, {}, {"interface": "::", "ipv6": True})
            self.nameserver = self.other.popen(["python3", "-c", NAMESERVER])
            assert self.nameserver.stdout.readline() == "ready\n"
            put_pillar(self.other, {"redis_sidekiq": {}})
            self.host.write("/etc/resolv.conf", "nameserver 10.0.0.2\n")
        config = {"master": name, "id": self.host.name, "ipv6": ":" in name, "file_client": "remote"}
        self.host.write("/etc/salt/minion.d/zz-master.conf", json.dumps(config))
