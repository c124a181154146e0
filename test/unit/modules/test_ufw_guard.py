"""Whether a packet gets through, and which rules would shut whom out: pure, over rules as ufw_rules reads them."""

from __future__ import annotations

import ipaddress
import itertools
import random

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from test.lockouts import HERE, HTTP, LOCKOUTS, MASTER, MINION, NAMED, OFFICE, ON_MASTER, OUT, PEOPLE, SSH, at

ANY = {"4": "0.0.0.0/0", "6": "::/0"}


@pytest.fixture(scope="module")
def guard(load):
    module = load("_modules/ufw_guard.py")
    module.__opts__ = {"file_client": "local"}
    # Which address a host would send from is the kernel's business.
    module._leave = lambda target: ipaddress.ip_address(HERE[str(target.version)])
    return module


@pytest.fixture(scope="module")
def lines(load):
    """Return a function of texts like ``allow tcp 22 from any on eth0``: both families unless an address names one."""
    rules = load("_modules/ufw_rules.py")

    def parse(text):
        words = text.split()
        named = dict(zip(words[3::2], words[4::2]))
        source, to = named.get("from", "any"), named.get("to", "any")
        families = named.get("by", "")
        for address in (source, to):
            if address != "any":
                families = str(ipaddress.ip_network(address, strict=False).version)
        direction = named.get("way", "in") + (f"_{named['on']}" if "on" in named else "")
        return [
            rules.Line(
                family,
                words[0],
                words[1],
                words[2],
                rules._network(to, family),
                named.get("sport", "any"),
                rules._network(source, family),
                "",
                direction,
                named.get("named", ""),
            )
            for family in families or "46"
        ]

    return lambda texts: [line for text in texts for line in parse(text)]


def standing(guard, peer, port=22, local=None):
    peer = ipaddress.ip_address(peer)
    local = ipaddress.ip_address(local or HERE[str(peer.version)])
    return guard.Socket(str(peer.version), local, port, peer, 50000, guard.ESTABLISHED, "7")


@pytest.fixture(scope="module")
def known(guard):
    """Return a function that makes facts: sshd on port 22 of all addresses, one interface, nothing else."""

    def make(sshd=(22,), listen=None, people=(), master=(), minions=(), masters=(), **more):
        doors = [guard.Door(family, None, port) for port in sshd for family in "46"]
        return {
            "sshd": doors if listen is None else [guard._door(text) for text in listen],
            "master": [guard.Door("4", None, port) for port in master],
            "addresses": [("eth0", ipaddress.ip_address(address)) for address in HERE.values()],
            "people": [standing(guard, *one) for one in people],
            "minions": [standing(guard, peer, 4505) for peer in minions],
            "masters": [ipaddress.ip_address(address) for address in masters],
            "master_ports": [4505, 4506],
            "lookups": [],
            "nameservers": [],
            **more,
        }

    return make


def judge(guard, lines, texts, host, policies, make):
    host = dict(host)
    ipv6 = host.pop("ipv6", True)
    wish = {"incoming": "deny", "outgoing": "allow", **policies}
    return guard._found(lines(texts), wish, make(**host), ipv6)


@pytest.mark.parametrize(
    ("rules", "host", "policies", "name", "words"), [case[1:] for case in LOCKOUTS], ids=[case[0] for case in LOCKOUTS]
)
def test_rules_that_would_lock_out(guard, lines, known, rules, host, policies, name, words):
    found = judge(guard, lines, rules, host, policies, known)
    assert name in found, found
    assert words in found[name] and found[name].startswith("This would ")
    assert set(found) <= {name, "connection"}, "one cause, one sentence; who is logged in is named besides"


FINE = [
    ("ssh from anywhere", [SSH], {}, {}),
    ("ssh in a range", ["allow tcp 20:30"], {}, {}),
    ("ssh in a list", ["allow tcp 22,80,443"], {}, {}),
    ("ssh limited", ["limit tcp 22"], PEOPLE, {}),
    ("ssh logged", ["allow_log tcp 22"], {}, {}),
    ("ssh of all protocols", ["allow any 22"], {}, {}),
    ("ssh from a network of IPv4", ["allow tcp 22 from 10.0.0.0/8"], {}, {}),
    ("a host without IPv6", ["allow tcp 22 from 0.0.0.0/0"], {"addresses": at(("eth0", "10.0.0.5"))}, {}),
    ("a host without IPv6, UFW without", [SSH], {"ipv6": False, "addresses": at(("eth0", "10.0.0.5"))}, {}),
    ("a host without IPv4", ["allow tcp 22 from ::/0"], {"addresses": at(("eth0", "2001:db8::5"))}, {}),
    ("sshd on IPv4 alone", ["allow tcp 22 from 0.0.0.0/0"], {"listen": ["0.0.0.0:22"]}, {}),
    ("sshd on loopback alone", [], {"listen": []}, {}),
    ("no sshd", [HTTP], {"sshd": ()}, {}),
    ("all allowed", [], PEOPLE, {"incoming": "allow"}),
    ("a deny for some first", ["deny tcp 22 from 198.51.100.0/24", SSH], PEOPLE, {}),
    ("a deny for udp first", ["deny udp 22", SSH], {}, {}),
    ("a deny after", [SSH, "deny any any"], PEOPLE, {}),
    ("a deny on another interface", ["deny tcp 22 on eth7", SSH], PEOPLE, {}),
    ("the interface that is there", ["allow tcp 22 on eth0"], PEOPLE, {}),
    ("any interface of a kind", ["allow tcp 22 on eth+"], PEOPLE, {}),
    ("a route's deny", ["route:deny any any", SSH], PEOPLE, {}),
    ("a deny of what goes out", ["deny any any way out", SSH], PEOPLE, {}),
    ("who is here by a rule for all ports", [SSH, "allow any any from 192.0.2.7"], PEOPLE, {}),
    ("five sessions by limit", ["limit tcp 22"], {"people": [(OFFICE,)] * 5}, {}),
    ("six sessions by allow before limit", ["allow tcp 22 from 192.0.2.0/24", "limit tcp 22"],
     {"people": [(OFFICE,)] * 6}, {}),
    ("the way to the master", [SSH, *OUT], NAMED, {"outgoing": "deny"}),
    ("the way to this master", [SSH, "allow tcp 4505:4506 to 10.0.0.0/24 way out"], MINION, {"outgoing": "reject"}),
    ("one of two masters", [SSH, "allow tcp 4505:4506 to 10.0.0.1 way out"], {"masters": ["10.0.0.77", MASTER]},
     {"outgoing": "deny"}),
    ("masterless", [SSH], {}, {"outgoing": "deny"}),
    ("a list with a range", ["allow tcp 80,443,20:25"], PEOPLE, {}),
    ("each address by its rule", ["allow tcp 22 to 10.0.0.5", "allow tcp 22 to 2001:db8::5"], PEOPLE, {}),
    ("a deny for another address", ["deny any any to 10.0.0.9", SSH], PEOPLE, {}),
    ("a deny of a protocol without ports", ["deny esp any", SSH], PEOPLE, {}),
    ("a deny of a list of others", ["deny tcp 21,23:30", SSH], PEOPLE, {}),
    ("a reject on interfaces of another kind", ["reject_log tcp 22 on wg+", SSH], PEOPLE, {}),
    ("the way to the master on the interface", [SSH, "allow_log tcp 4505,4506 on eth+ way out"], MINION,
     {"outgoing": "deny"}),
    ("routed is shut", [SSH], {**PEOPLE, **MINION}, {"routed": "deny"}),
    ("a master", [SSH, "allow tcp 4505:4506 from 10.0.0.0/8"], {**ON_MASTER, "minions": ["10.0.0.8"]}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "host", "policies"), [case[1:] for case in FINE], ids=[case[0] for case in FINE])
def test_rules_that_shut_nobody_out(guard, lines, known, rules, host, policies):
    assert judge(guard, lines, rules, host, policies, known) == {}


def test_rule_is_named_without_the_users_own_words(guard, lines):
    line = lines(["deny_log tcp 22 from 10.0.0.0/8"])[0]._replace(comment="redis_sidekiq:no from here: not")
    assert guard._text(line) == "no: deny log tcp 22 from 10.0.0.0/8"


def test_refusal_names_every_guard_and_how_to_override(guard, lines, known):
    host = known(people=[(OFFICE,)], masters=[MASTER])
    deny = {"incoming": "deny", "outgoing": "deny"}
    with pytest.raises(CommandExecutionError) as refused:
        guard.refuse(lines([HTTP]), deny, known=host)
    text = str(refused.value)
    assert text.count("This would") == 3 and "Nothing was changed" in text
    assert text.endswith("redis_sidekiq:firewall:allow_lockout: [ssh, connection, master]")
    with pytest.raises(CommandExecutionError, match=r"allow_lockout: \[connection, master\]"):
        guard.refuse(lines([HTTP]), deny, told=["ssh"], known=host)
    told = guard.refuse(lines([HTTP]), deny, told=["ssh", "connection", "master"], known=host)
    assert set(told) == {"ssh", "connection", "master"}


def test_guard_that_does_not_exist(guard, known):
    with pytest.raises(SaltInvocationError, match="allow_lockout all; allowed: ssh, ssh_ipv4"):
        guard.refuse([], {"incoming": "allow", "outgoing": "allow"}, told=["all"], known=known())


def test_samples_stand_for_every_source(guard, lines):
    """Any source is judged as one of the samples is."""
    dice = random.Random(7)
    for _ in range(60):
        texts = []
        for _ in range(dice.randint(1, 6)):
            base = ipaddress.ip_address(dice.getrandbits(32))
            network = ipaddress.ip_network(f"{base}/{dice.choice((0, 1, 2, 3, 8, 16, 31, 32))}", strict=False)
            texts.append(f"{dice.choice(('allow', 'deny', 'limit'))} tcp 22 from {network}")
        rules = lines(texts)
        packet = guard.Packet("in", "4", "eth0", None, ipaddress.ip_address(HERE["4"]), 22)

        def verdict(source, rules=rules, packet=packet):
            return guard._verdict(rules, packet._replace(source=source), "deny")

        seen = [verdict(source) for source in guard._samples(rules, "4")]
        for _ in range(60):
            assert verdict(ipaddress.ip_address(dice.getrandbits(32) or 1)) in seen


@pytest.mark.parametrize(
    ("title", "session"),
    [
        ("sshd: root@pts/0", True),
        ("sshd: deploy@notty", True),
        ("sshd-session: deploy@pts/3", True),
        ("sshd: deploy [priv]", False),
        ("sshd: unknown [preauth]", False),
        ("sshd-session: root [net]", False),
        ("sshd: [accepted]", False),
        ("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups", False),
    ],
)
def test_who_only_knocks_is_not_logged_in(guard, title, session):
    assert guard._is_session(title) is session


def test_what_an_sshd_is_called(guard):
    assert guard._is_sshd("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups")
    assert guard._is_sshd("/usr/sbin/sshd -D") and guard._is_sshd("sshd")
    assert not guard._is_sshd("vim sshd_config") and not guard._is_sshd("/usr/bin/sshdfoo")


@pytest.fixture
def sshd(guard, monkeypatch):
    """Pretend what `sshd -T` and `systemctl show` say, and where an sshd listens."""

    def _sshd(stdout="", retcode=0, stderr="", listening=(), path="/usr/sbin/sshd", units=""):
        def run(argv):
            told = units if argv[0] == "systemctl" else stdout
            return {"stdout": told, "stderr": stderr, "retcode": retcode}

        monkeypatch.setattr(guard, "_run", run)
        monkeypatch.setattr(guard.salt.utils.path, "which", lambda name: path)
        monkeypatch.setattr(guard.os.path, "isdir", lambda path: bool(units))
        sockets = [
            guard.Socket("4", ipaddress.ip_address("0.0.0.0"), port, None, 0, guard.LISTEN, str(port))
            for port in listening
        ]
        return guard._sshd_doors(sockets, {str(port): ["/usr/sbin/sshd -D"] for port in listening})

    return _sshd


def ports(doors):
    return sorted({door.port for door in doors})


def test_ports_of_sshd(sshd):
    assert ports(sshd("port 2222\nport 22\naddressfamily any\nx11displayoffset 10\n")) == [22, 2222]
    assert ports(sshd("port 2222\n", listening=[22])) == [22, 2222], (
        "the running sshd has not seen its new configuration"
    )
    assert sshd(path=None) == []


def test_every_listen_address_of_sshd(sshd):
    said = "port 22\nlistenaddress [2001:db8::5]:22\nlistenaddress 10.0.0.5:2022\nlistenaddress 127.0.0.1:22\n"
    assert {(door.family, str(door.address), door.port) for door in sshd(said)} == {
        ("6", "2001:db8::5", 22),
        ("4", "10.0.0.5", 2022),
    }
    assert {
        (door.family, door.address) for door in sshd("port 22\nlistenaddress [::]:22\nlistenaddress 0.0.0.0:22\n")
    } == {
        ("4", None),
        ("6", None),
    }
    assert sshd("port 22\nlistenaddress 127.0.0.1:22\n") == []


def test_socket_of_systemd_listens_for_sshd(sshd):
    units = (
        "Listen=[::]:2222 (Stream)\nActiveState=inactive\nUnitFileState=enabled\n\n"
        "Listen=0.0.0.0:23 (Stream)\nActiveState=inactive\nUnitFileState=disabled\n"
    )
    assert ports(sshd("port 22\n", units=units)) == [22, 2222]
    assert {door.family for door in sshd("port 22\n", units=units) if door.port == 2222} == {"4", "6"}


def test_sshd_that_does_not_tell_its_ports(sshd):
    broken = {"retcode": 255, "stderr": "Missing privilege separation directory: /run/sshd"}
    assert ports(sshd(listening=[22], **broken)) == [22]
    with pytest.raises(CommandExecutionError, match="Missing privilege separation directory: /run/sshd"):
        sshd(**broken)


def test_who_listens(guard, monkeypatch):
    rest = "00000000:00000000 00:00000000 00000000     0        0"
    ends = {"4": ("0100007F", "00000000"), "6": ("00000000000000000000000001000000", "0" * 32)}
    rows = {
        guard.TABLES[family]: f"header\n 0: {own}:18EB {any_}:0000 0A {rest} {family} 1\n"
        for family, (own, any_) in ends.items()
    }
    rows[guard.TABLES["6"]] += f" 1: 0000000000000000FFFF00000500000A:18EB {'0' * 32}:0000 0A {rest} 7 1\n"
    rows[guard.TABLES["4"]] += f" 1: 0500000A:0016 070200C0:C350 01 {rest} 8 1\n"
    monkeypatch.setattr(guard, "_read", lambda path: rows[path])
    assert guard.listeners() == [
        {"address": "127.0.0.1", "port": 6379, "inode": "4"},
        {"address": "::1", "port": 6379, "inode": "6"},
        {"address": "10.0.0.5", "port": 6379, "inode": "7"},
    ]


def test_rows_of_the_kernels_tables(guard, monkeypatch):
    rows = {
        guard.TABLES["4"]: "header\n"
        "   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1\n"
        "   1: 0500000A:0016 070200C0:C350 01 00000000:00000000 00:00000000 00000000     0        0 12 1\n"
        "   2: 0500000A:0016 070200C0:C351 06 00000000:00000000 00:00000000 00000000     0        0 13 1\n",
        guard.TABLES["6"]: "header\n"
        "   0: 0000000000000000FFFF00000500000A:0016 0000000000000000FFFF0000070200C0:C352 01 0:0 0:0 0 0 0 14 1\n",
    }
    monkeypatch.setattr(guard, "_read", lambda path: rows[path])
    found = guard._sockets()
    assert [(one.family, str(one.local), one.port, str(one.peer), one.state) for one in found] == [
        ("4", "0.0.0.0", 22, "0.0.0.0", "0A"),
        ("4", "10.0.0.5", 22, "192.0.2.7", "01"),
        ("4", "10.0.0.5", 22, "192.0.2.7", "01"),
    ]


@pytest.mark.parametrize(
    ("opts", "addresses", "lookups"),
    [
        ({"file_client": "local", "master": "10.0.0.1"}, [], []),
        ({"master": "10.0.0.1", "master_ip": "10.0.0.1"}, ["10.0.0.1"], []),
        ({"master": "10.0.0.1:4506"}, ["10.0.0.1"], []),
        ({"master": ["10.0.0.1", "10.0.0.2"]}, ["10.0.0.1", "10.0.0.2"], []),
        ({"master": "salt", "master_ip": "10.0.0.9"}, ["10.0.0.9"], ["salt"]),
        ({"master": "written"}, ["10.0.0.3"], []),
        ({"master": "2001:db8::1"}, ["2001:db8::1"], []),
    ],
)
def test_which_masters_a_minion_calls(guard, monkeypatch, opts, addresses, lookups):
    def nobody(*_, **__):
        raise OSError

    monkeypatch.setattr(guard, "__opts__", {"file_client": "remote", **opts})
    monkeypatch.setattr(guard, "_read", lambda path: "127.0.0.1 localhost\n10.0.0.3 x written # salt\n")
    monkeypatch.setattr(guard.socket, "getaddrinfo", nobody)
    found, _, names = guard._masters([])
    assert ([str(address) for address in found], names) == (addresses, lookups)


def test_this_hosts_own_facts_can_be_read(guard, monkeypatch):
    monkeypatch.setattr(guard, "_configured", lambda: (set(), ""))
    monkeypatch.setattr(guard, "_socket_units", set)
    found = guard.facts()
    assert all(not address.is_loopback for _, address in found["addresses"])
    assert found["masters"] == []
    assert {key: guard.facts("/copy")[key] for key in ("addresses", "people")} == {"addresses": None, "people": []}


def test_the_pillar_knows_every_guard(guard, redis_sidekiq):
    assert redis_sidekiq.GUARDS == guard.GUARDS == tuple(guard._CHECKS)


def test_cases_are_told_apart():
    names = [case[0] for case in itertools.chain(LOCKOUTS, FINE)]
    assert len(set(names)) == len(names) and len(LOCKOUTS) >= 30
