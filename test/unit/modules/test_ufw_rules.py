"""ufw's files, rules and the kernel's answer: parsing and comparing, from what real hosts printed."""

from __future__ import annotations

import itertools
import random
import re
import struct
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

DATA = Path(__file__).parents[1] / "data"
RELEASES = sorted(path.name[len("user.rules-") : -len(".txt")] for path in DATA.glob("user.rules-ufw-*.txt"))


@pytest.fixture
def ufw_rules(load):
    module = load("_modules/ufw_rules.py")
    guard = load("_modules/ufw_guard.py")
    module.__opts__ = guard.__opts__ = {"file_client": "local"}
    module.__salt__ = {f"ufw_guard.{name}": getattr(guard, name) for name in ("facts", "refuse", "risks_of_ssh")}
    module.sshd_at = lambda *ports: setattr(
        guard, "_sshd_doors", lambda *_: [guard.Door(family, None, port) for port in ports for family in "46"]
    )
    module.sshd_at()
    return module


@pytest.fixture(params=RELEASES)
def recorded(request, tmp_path):
    """A private copy of a real host's files; yields (release, root)."""
    (tmp_path / "etc/ufw").mkdir(parents=True)
    (tmp_path / "etc/default").mkdir()
    for name, target in {
        "user.rules": "etc/ufw/user.rules",
        "user6.rules": "etc/ufw/user6.rules",
        "ufw.conf": "etc/ufw/ufw.conf",
        "default": "etc/default/ufw",
    }.items():
        (tmp_path / target).write_text((DATA / f"{name}-{request.param}.txt").read_text())
    return request.param, str(tmp_path)


def rule(name, port, action="allow", source="any", proto="tcp"):
    return {"name": name, "port": port, "action": action, "from": source, "proto": proto}


def lines(module, *rules):
    return module._wished(rules, True)


def foreign(line):
    return line._replace(comment="")


SSH, HTTP = rule("ssh", 22), rule("http", 80)


# --- files -----------------------------------------------------------------------------------------------------------


def test_recorded_releases_are_those_that_the_formula_runs_on():
    assert {"ufw-0.36.2-bookworm", "ufw-0.36.2-trixie"} <= set(RELEASES)


def test_recorded_files_are_understood(ufw_rules, recorded):
    _, root = recorded
    found = ufw_rules.status(root)
    assert found["enabled"] and found["installed"] and found["ipv6"]
    assert (found["incoming"], found["outgoing"]) == ("deny", "allow")
    shown = {
        (line["family"], line["action"], line["proto"], line["port"], line["from"], line["comment"])
        for line in found["rules"]
    }
    for family in "46":
        assert (family, "allow", "tcp", "22", "any", "redis_sidekiq:ssh") in shown
        assert (family, "limit", "tcp", "2222", "any", "redis_sidekiq:admin") in shown
        assert (family, "deny", "udp", "6000:6010", "any", "redis_sidekiq:x11") in shown
        assert (family, "allow", "any", "53", "any", "") in shown
        assert (family, "deny_log", "tcp", "23", "any", "") in shown
        assert (family, "allow", "tcp", "80,443", "any", "the web, ours") in shown
    assert ("4", "allow", "tcp", "6379", "10.0.0.0/8", "redis_sidekiq:redis_6379") in shown
    assert ("6", "allow", "tcp", "6379", "fd00::/64", "redis_sidekiq:redis_6379") in shown
    assert ("4", "allow", "any", "any", "192.0.2.7", "") in shown


def test_no_tuple_of_the_recorded_files_is_lost(ufw_rules, recorded):
    _, root = recorded
    written = sum((Path(root) / path[1:]).read_text().count("### tuple ###") for path in ufw_rules.RULES.values())
    assert len(ufw_rules.status(root)["rules"]) == written == 22


def test_recorded_host_needs_nothing_when_the_wish_is_what_it_has(ufw_rules, recorded):
    _, root = recorded
    wish = [
        SSH,
        rule("redis_6379", 6379, source="10.200.0.1/8"),
        rule("redis_6379", 6379, source="FD00::9/64"),
        rule("admin", 2222, "limit"),
        rule("x11", "6000:6010", "deny", proto="udp"),
    ]
    assert ufw_rules.differences(wish, root=root) == {}


@pytest.mark.parametrize("kept", [0, 40, 400, 1200, 2400])
def test_cut_off_file_is_seen(ufw_rules, recorded, kept):
    _, root = recorded
    path = Path(root) / "etc/ufw/user.rules"
    path.write_text(path.read_text()[:kept])
    assert ufw_rules._files(root)["cut_off"] == ["/etc/ufw/user.rules"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "### RULES ###",
        "-A ufw-user-input -p tcp --dport 22 -j ACCEPT",
        "### tuple ### allow tcp 22 0.0.0",
        "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0 in",
        "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=7",
        "### tuple ### a b c d e f g h i j",
    ],
)
def test_other_and_malformed_lines_are_no_rules(ufw_rules, text):
    assert ufw_rules._parse_line(text, "4") is None


def test_tuple_of_an_old_release_has_no_direction(ufw_rules):
    line = ufw_rules._parse_line("### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0", "4")
    assert line.direction == "in" and line.match == lines(ufw_rules, SSH)[0].match


def test_host_without_ufw(ufw_rules, tmp_path):
    found = ufw_rules.status(str(tmp_path))
    assert not found["installed"] and not found["enabled"] and found["rules"] == []
    changes = ufw_rules.differences([SSH], root=str(tmp_path))
    assert changes["policies"]["incoming"] == {"old": "", "new": "deny"}
    assert changes["enabled"] == {"old": False, "new": True}
    assert changes["rules"] == {"added": ["ssh: allow tcp 22 from any"]}


# --- the pillar's rules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "family", "written"),
    [
        ("10.0.0.5/24", "4", "10.0.0.0/24"),
        ("10.0.0.5", "4", "10.0.0.5"),
        ("10.0.0.5/32", "4", "10.0.0.5"),
        ("10.1.2.3/255.0.0.0", "4", "10.0.0.0/8"),
        ("0.0.0.0/0", "4", "0.0.0.0/0"),
        ("2001:DB8::5/32", "6", "2001:db8::/32"),
        ("2001:db8:0:0::1/128", "6", "2001:db8::1"),
        ("::/0", "6", "::/0"),
    ],
)
def test_source_is_written_as_ufw_writes_it(ufw_rules, source, family, written):
    [line] = lines(ufw_rules, rule("r", 1, source=source))
    assert (line.family, line.source) == (family, written)


def test_rule_from_anywhere_makes_both_families_or_one_if_ipv6_is_off(ufw_rules):
    assert [line.family for line in ufw_rules._wished([SSH], True)] == ["4", "6"]
    assert [line.family for line in ufw_rules._wished([SSH], False)] == ["4"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"name": "a b", "port": 1}, "name 'a b'"),
        ({"name": "it's", "port": 1}, "name"),
        ({"port": 1}, "name"),
        ({"name": "a"}, "port ''"),
        ({"name": "a", "port": 0}, "port '0'"),
        ({"name": "a", "port": 65536}, "port '65536'"),
        ({"name": "a", "port": "6010:6000"}, "lower port"),
        ({"name": "a", "port": "1:2", "proto": "any"}, "tcp or udp"),
        ({"name": "a", "port": "$(id)"}, "port"),
        ({"name": "a", "port": "22\n"}, "port"),
        ({"name": "a", "port": 1, "action": "accept"}, "allow, limit, deny, reject"),
        ({"name": "a", "port": 1, "proto": "sctp"}, "tcp, udp, any"),
        ({"name": "a", "port": 1, "proto": "gre"}, "has no ports"),
        ({"name": "a", "port": "1,2", "proto": "any"}, "tcp or udp"),
        ({"name": "a", "port": ",".join(map(str, range(1, 17)))}, "at most 15"),
        ({"name": "a", "port": 1, "direction": "both"}, "in, out"),
        ({"name": "a", "port": 1, "interface": "eth0;id"}, "interface"),
        ({"name": "a", "port": 1, "interface": "in"}, "interface 'in'"),
        ({"name": "a", "port": 1, "log": "yes"}, "log, log-all"),
        ({"name": "a", "port": 1, "comment": "it's"}, "comment"),
        ({"name": "a", "port": 1, "comment": "two\nlines"}, "comment"),
        ({"name": "a", "port": 1, "family": "ipv5"}, "any, ipv4, ipv6"),
        ({"name": "a", "port": 1, "family": "ipv6", "from": "10.0.0.1"}, "is IPv4"),
        ({"name": "a", "port": 1, "from": "10.0.0.1", "to": "fd00::1"}, "is IPv6"),
        ({"name": "a", "proto": "igmp", "from": "fd00::1"}, "protocol of IPv4 alone"),
        ({"name": "a", "port": 1, "from": "example.org"}, "a CIDR like 10.0.0.0/8"),
        ({"name": "a", "port": 1, "form": "10.0.0.1"}, "unknown keys form"),
    ],
)
def test_wrong_rule_is_refused_with_a_sentence(ufw_rules, wrong, word):
    with pytest.raises(SaltInvocationError, match=re.escape(word)):
        ufw_rules._wished([wrong], True)


def test_ipv6_source_where_ipv6_is_off(ufw_rules):
    with pytest.raises(SaltInvocationError, match="IPV6=yes"):
        ufw_rules._wished([rule("r", 1, source="fd00::/8")], False)


def test_same_packets_with_two_actions_are_refused(ufw_rules):
    with pytest.raises(SaltInvocationError, match="Rules web and web2 match the same packets"):
        ufw_rules._wished([rule("web", 80), rule("web2", 80, "deny")], True)


def test_two_names_for_one_rule_do_not_flap(ufw_rules):
    wish = lines(ufw_rules, rule("web", 80), rule("web2", 80))
    assert {line.comment for line in wish} == {"redis_sidekiq:web"}


def random_rules(seed, count):
    """Rules as a pillar might have them, each name and match once."""
    chance = random.Random(seed)
    found = {}
    for number in range(count):
        port = chance.choice(["22", "80", "443", "8080", "6000:6010", "6005:6020", str(chance.randint(1, 65535))])
        proto = chance.choice(["tcp", "udp"] if ":" in port else ["tcp", "udp", "any"])
        source = chance.choice(
            ["any", "10.0.0.0/8", f"10.{chance.randint(0, 3)}.0.0/16", "192.0.2.7", "2001:db8::/32", "fd00::1"]
        )
        action = chance.choice(["allow", "allow", "limit", "deny", "reject"])
        found.setdefault((port, proto, source), rule(f"r{number}", port, action, source, proto))
    return list(found.values())


def written(line):
    """The tuple as backend_iptables.py, _write_rules, writes it."""
    return (
        f"### tuple ### {line.action} {line.proto} {line.port} {line.to} {line.sport} {line.source} {line.direction}"
        f" comment={line.comment.encode().hex()}"
    )


@pytest.mark.parametrize("seed", range(40))
def test_rule_to_tuple_and_back(ufw_rules, seed):
    for line in lines(ufw_rules, *random_rules(seed, 12)):
        assert ufw_rules._parse_line(written(line), line.family) == line


@pytest.mark.parametrize("seed", range(40))
def test_outcome_is_the_wish_and_leaves_others_alone(ufw_rules, seed):
    """From any files: one run makes the wish true, a second has nothing to do, others' lines stay in order."""
    chance = random.Random(seed)
    before = [line for line in lines(ufw_rules, *random_rules(seed, 10))]
    before = [foreign(line) if chance.random() < 0.4 else line for line in before]
    wish = lines(ufw_rules, *random_rules(seed + 1000, 6))
    after = ufw_rules._outcome(before, wish)

    assert ufw_rules._missing(after, wish) == []
    assert ufw_rules._stale(after, wish) == []
    replaced = ufw_rules._replaced(before, wish)
    others = [line for line in before if not line.ours and line not in replaced]
    assert [line for line in after if not line.ours] == others
    if not ufw_rules._misplaced(after, wish):
        assert ufw_rules._outcome(after, wish) == after


# --- whose rule is whose ----------------------------------------------------------------------------------------------


def test_untagged_rule_counts_as_present_and_stays_its_owners(ufw_rules):
    wish = lines(ufw_rules, SSH)
    before = [foreign(line) for line in wish]
    assert ufw_rules._missing(before, wish) == []
    assert ufw_rules._outcome(before, wish) == before
    assert ufw_rules._stale(before, []) == []


def test_untagged_rule_with_another_action_is_replaced_and_reported(ufw_rules):
    wish = lines(ufw_rules, SSH)
    before = [foreign(line)._replace(action="deny") for line in wish]
    assert ufw_rules._replaced(before, wish) == before
    assert ufw_rules._outcome(before, wish) == wish


def test_rule_on_an_interface_is_another_rule(ufw_rules):
    wish = lines(ufw_rules, SSH)
    assert ufw_rules._missing([foreign(wish[0])._replace(direction="in_eth0")], wish) == wish


def test_rule_of_an_application_profile_is_the_rule_of_its_ports(ufw_rules):
    wish = lines(ufw_rules, SSH)
    profile = [foreign(line)._replace(apps="OpenSSH -") for line in wish]
    assert ufw_rules._missing(profile, wish) == []
    assert ufw_rules._missing([line._replace(action="deny") for line in profile], wish) == wish
    assert ufw_rules._stale(profile + wish, wish) == [], "what is there already stays"
    assert ufw_rules._missing(profile, wish, True) == wish
    assert ufw_rules._stale(profile, wish, True) == profile


def test_only_ours_takes_over_what_is_wished_and_drops_the_rest(ufw_rules):
    wish = lines(ufw_rules, SSH)
    before = [foreign(line) for line in lines(ufw_rules, SSH, HTTP)]
    route = before[0]._replace(action="route:allow", direction="in_eth0!out_eth1")
    assert ufw_rules._outcome([*before, route], wish, True) == wish
    assert ufw_rules._outcome(wish, wish, True) == wish


def test_host_bits_that_ufw_keeps_are_the_same_rule(ufw_rules):
    text = "### tuple ### allow tcp 22 ::/0 any 2001:db8::9/32 in"
    kept, [wished] = ufw_rules._parse_line(text, "6"), lines(ufw_rules, rule("ssh", 22, source="2001:db8::/32"))
    assert kept.match == wished.match and ufw_rules._missing([kept], [wished]) == []
    assert "2001:db8::9/32" in ufw_rules._rule_words(kept), "ufw finds it by its own spelling alone"
    assert ufw_rules._stale([kept, wished], [wished], True) == [kept]


@pytest.mark.parametrize(
    ("more", "words", "sentence"),
    [
        ({}, "allow proto tcp from any to any port 22", "allow tcp 22 from any"),
        ({"direction": "out"}, "allow out proto tcp from any to any port 22", "allow out tcp 22 from any"),
        (
            {"interface": "eth0"},
            "allow in on eth0 proto tcp from any to any port 22",
            "allow in on eth0 tcp 22 from any",
        ),
        ({"log": "log-all"}, "allow log-all proto tcp from any to any port 22", "allow log-all tcp 22 from any"),
        (
            {"direction": "out", "interface": "wg0", "log": "log", "action": "reject"},
            "reject out on wg0 log proto tcp from any to any port 22",
            "reject log out on wg0 tcp 22 from any",
        ),
        (
            {"to": "10.1.2.3", "from": "10.0.0.7/8"},
            "allow proto tcp from 10.0.0.0/8 to 10.1.2.3 port 22",
            "allow tcp 22 from 10.0.0.0/8 to 10.1.2.3",
        ),
        ({"to": "fd00::1"}, "allow proto tcp from ::/0 to fd00::1 port 22", "allow tcp 22 from any to fd00::1"),
        ({"family": "ipv6"}, "allow proto tcp from ::/0 to any port 22", "allow tcp 22 from any (IPv6 only)"),
        (
            {"port": [443, "80", "6000:6010"]},
            "allow proto tcp from any to any port 80,443,6000:6010",
            "80,443,6000:6010",
        ),
        ({"port": "any", "proto": "any"}, "allow proto any from any to any", "allow any any from any"),
        ({"port": "", "proto": "esp"}, "allow proto esp from any to any", "allow esp any from any"),
        (
            {"port": "", "proto": "igmp"},
            "allow proto igmp from 0.0.0.0/0 to any",
            "allow igmp any from any (IPv4 only)",
        ),
        ({"comment": 'a "b" $(c)'}, "allow proto tcp from any to any port 22", 'allow tcp 22 from any # a "b" $(c)'),
    ],
)
def test_rule_as_a_command_and_in_words(ufw_rules, more, words, sentence):
    wish = lines(ufw_rules, {"name": "r", "port": 22, **more})
    [found] = ufw_rules._commands(wish)
    comment = " ".join(filter(None, ("redis_sidekiq:r", more.get("comment"))))
    assert found == (*words.split(), "comment", comment)
    assert all(sentence in text for text in ufw_rules._describe(wish)) and len(ufw_rules._describe(wish)) == 1
    for line in wish:
        assert ufw_rules._parse_line(written(line), line.family) == line and ufw_rules._name(line) == "r"


def test_rules_of_others_as_commands(ufw_rules):
    texts = {
        "route:allow tcp 80 0.0.0.0/0 any 10.0.0.0/8 in_eth0!out_eth1": "allow in on eth0 out on eth1 proto tcp from "
        "10.0.0.0/8 to any port 80",
        "allow any 137,138/udp 0.0.0.0/0 any 0.0.0.0/0 Samba%20X - in": "allow from 0.0.0.0/0 to any app Samba X",
        "deny_log udp any 0.0.0.0/0 53 0.0.0.0/0 out comment=68690a": "deny out log proto udp from 0.0.0.0/0 port 53 to "
        "any comment hi\n",
    }
    for text, words in texts.items():
        line = ufw_rules._parse_line(f"### tuple ### {text}", "4")
        assert " ".join(ufw_rules._rule_words(line)) == words


def test_order_matters_only_where_a_packet_can_match_both(ufw_rules):
    def overlap(one, other):
        return ufw_rules._overlap(
            *(lines(ufw_rules, {"name": "r", "port": 80, "family": "ipv4", **more})[0] for more in (one, other))
        )

    assert overlap({}, {"port": [79, 80]}) and overlap({}, {"interface": "eth0"}) and overlap({}, {"port": "any"})
    assert overlap({"interface": "eth+"}, {"interface": "eth0"}) and overlap({"to": "10.0.0.1"}, {"to": "10.0.0.0/8"})
    assert not overlap({}, {"direction": "out"}) and not overlap({"interface": "eth0"}, {"interface": "eth1"})
    assert not overlap({"to": "10.0.0.1"}, {"to": "10.0.0.2"}) and not overlap({"proto": "esp", "port": ""}, {})


def test_application_profile_of_a_rule(ufw_rules, tmp_path):
    (tmp_path / "etc/ufw/applications.d").mkdir(parents=True)
    (tmp_path / "etc/ufw/applications.d/x").write_text("[Web Full]\nports=443,80/tcp|53\n[broken]\ntitle=%(x)s\n")
    expanded = ufw_rules._expanded([{"name": "w", "app": "Web Full", "from": "10.0.0.1"}], str(tmp_path))
    assert [line.port for line in ufw_rules._wished(expanded, True)] == ["80,443", "53"]
    with pytest.raises(SaltInvocationError, match="'OpenSSH'.*known here: Web Full, broken"):
        ufw_rules._expanded([{"name": "w", "app": "OpenSSH"}], str(tmp_path))
    with pytest.raises(SaltInvocationError, match="take them out"):
        ufw_rules._expanded([{"name": "w", "app": "Web Full", "port": 1}], str(tmp_path))


def test_number_as_ufw_counts(ufw_rules):
    """All rules of one profile are one to ufw when it looks whether a number is too high."""
    v4 = [line for line in lines(ufw_rules, SSH, HTTP, rule("x", 81)) if line.family == "4"]
    apps = [foreign(line)._replace(apps="Web -") for line in v4[1:]]
    before = [v4[0], *apps, *lines(ufw_rules, rule("six", 7, source="fd00::/8"))]
    assert ufw_rules._number(before, 3, "4") == 2 and ufw_rules._number(before, 1, "6") == 3
    assert ufw_rules._number(before, 0, "6") == 0


def test_record_holds_each_thing_as_it_was_before_its_first_change(ufw_rules, tmp_path):
    def wanted(**more):
        levels = [more.get(key) for key in ("routed", "logging")]
        return ufw_rules._wanted([], "deny", "allow", True, *levels, False, (), "run", 60)

    facts = {"enabled": False, "incoming": "allow", "outgoing": "allow", "routed": "deny", "loglevel": "low"}
    record = {"enabled": False, "incoming": "allow", "outgoing": "allow"}
    root = str(tmp_path)
    ufw_rules._write_record(root, facts, wanted())
    assert ufw_rules._read_record(root) == record
    facts = {"enabled": True, "incoming": "deny", "outgoing": "deny", "routed": "reject", "loglevel": "full"}
    ufw_rules._write_record(root, facts, wanted(routed="allow"))
    ufw_rules._write_record(root, {**facts, "routed": "allow"}, wanted(routed="allow", logging="off"))
    assert ufw_rules._read_record(root) == {**record, "routed": "reject", "logging": "full"}


def test_log_level_of_a_rule_file(ufw_rules, recorded):
    _, root = recorded
    assert ufw_rules.status(root)["logging"] == "low"
    low = '-A x -j LOG --log-prefix "[UFW AUDIT] "\n### LOGGING ###\n-A ufw-logging-deny -j LOG --log-prefix "[UFW BLOCK] " -m limit --limit 3/min'
    audit = f'{low}\n-I ufw-before-logging-input -j LOG --log-prefix "[UFW AUDIT] "'
    found = [ufw_rules._level(text) for text in ("", low, f"{audit} -m conntrack --ctstate NEW -m limit --limit 3/min")]
    assert found == ["off", "low", "medium"]
    assert [ufw_rules._level(text) for text in (f"{audit} -m limit --limit 3/min", audit)] == ["high", "full"]


def test_rule_that_left_the_pillar_is_stale(ufw_rules):
    before = lines(ufw_rules, SSH, HTTP)
    assert ufw_rules._describe(ufw_rules._stale(before, lines(ufw_rules, SSH))) == ["http: allow tcp 80 from any"]


def test_rule_of_one_family_only_says_so(ufw_rules):
    wish = lines(ufw_rules, SSH)
    assert ufw_rules._describe(ufw_rules._missing(wish[:1], wish)) == ["ssh: allow tcp 22 from any (IPv6 only)"]


# --- order ------------------------------------------------------------------------------------------------------------


def test_deny_is_placed_before_the_allow_that_it_limits(ufw_rules):
    wish = lines(ufw_rules, SSH, rule("block", 80, "deny", "192.0.2.0/24"), HTTP)
    before = lines(ufw_rules, SSH, HTTP)
    after = [ufw_rules._name(line) for line in ufw_rules._outcome(before, wish) if line.family == "4"]
    assert after == ["ssh", "block", "http"]
    assert ufw_rules._place(before, wish[2], wish) == 2


def test_deny_on_the_wrong_side_is_moved_and_the_allow_never(ufw_rules):
    block = rule("block", 80, "deny", "192.0.2.0/24")
    before = lines(ufw_rules, HTTP, block)
    wish = lines(ufw_rules, block, HTTP)
    assert ufw_rules._misplaced(before, wish) == lines(ufw_rules, block)
    assert ufw_rules._misplaced(lines(ufw_rules, block, HTTP), lines(ufw_rules, HTTP, block)) == lines(ufw_rules, block)


def test_order_of_rules_that_share_no_packet_does_not_matter(ufw_rules):
    block = rule("block", 81, "deny")
    assert ufw_rules._misplaced(lines(ufw_rules, HTTP, block), lines(ufw_rules, block, HTTP)) == []
    other = rule("block", 80, "deny", proto="udp")
    assert ufw_rules._misplaced(lines(ufw_rules, HTTP, other), lines(ufw_rules, other, HTTP)) == []


# --- never shut out ssh -----------------------------------------------------------------------------------------------


def test_every_port_of_sshd_must_be_open(ufw_rules, recorded):
    _, root = recorded
    ufw_rules.sshd_at(22, 2022)
    with pytest.raises(CommandExecutionError, match="port 2022.*ssh: {port: 2022}.*Nothing was changed"):
        ufw_rules.differences([SSH], root=root)


def test_deny_of_someone_else_before_our_allow_is_seen(ufw_rules, tmp_path):
    """UFW is off and has an old `deny 1:100/tcp`: switched on, it would win against our rule, which is appended."""
    (tmp_path / "etc/ufw").mkdir(parents=True)
    (tmp_path / "etc/ufw/user.rules").write_text("### tuple ### deny tcp 1:100 0.0.0.0/0 any 0.0.0.0/0 in\nCOMMIT\n")
    ufw_rules.sshd_at(22)
    with pytest.raises(CommandExecutionError, match="shut out ssh"):
        ufw_rules.differences([SSH], root=str(tmp_path))


def test_switching_off_needs_no_ssh_rule(ufw_rules, recorded):
    _, root = recorded
    ufw_rules.__salt__ = {"ufw_guard.facts": lambda root: pytest.fail("nobody needs to know")}
    assert ufw_rules.differences([], enabled=False, root=root)["enabled"] == {"old": True, "new": False}


def test_outgoing_deny_must_not_cut_off_the_master(ufw_rules, recorded):
    _, root = recorded
    ufw_rules.sshd_at(22)
    ufw_rules.__opts__.update({"file_client": "remote", "publish_port": 4505, "master_port": 4506})
    # The recorded host lets 4505 out, not 4506.
    with pytest.raises(CommandExecutionError, match="out to port 4506"):
        ufw_rules.differences([SSH], outgoing="deny", root=root)
    ufw_rules.__opts__["master_port"] = 4505
    assert "outgoing" in ufw_rules.differences([SSH], outgoing="deny", root=root)["policies"]


# --- the kernel -------------------------------------------------------------------------------------------------------


def kernel_of(module, release, monkeypatch):
    """The recorded `iptables -S` and `ip6tables -S`, read as a host with legacy iptables is read."""
    recorded = {
        "iptables": next(DATA.glob(f"iptables-S-*-{release}.txt")),
        "ip6tables": next(DATA.glob(f"ip6tables-S-*-{release}.txt")),
    }
    monkeypatch.setattr(
        module, "_run", lambda argv: {"stdout": recorded[argv[0]].read_text(), "stderr": "", "retcode": 0}
    )
    return module._kernel_legacy()


@pytest.fixture
def gaps(ufw_rules, recorded, monkeypatch):
    """Change the recorded kernel, then say where it differs from the recorded files."""
    release, root = recorded
    files = ufw_rules._files(root)
    kernel = kernel_of(ufw_rules, release.rpartition("-")[2], monkeypatch)

    def _gaps(change=lambda kernel: None):
        change(kernel)
        return ufw_rules._kernel_gaps(files, kernel)

    return _gaps


def test_recorded_kernel_is_what_the_recorded_files_say(gaps):
    assert gaps() == []


def test_rule_in_the_file_only(gaps):
    def forget(kernel):
        kernel["4"]["chains"]["ufw-user-input"] -= 1

    [gap] = gaps(forget)
    assert re.fullmatch(r"IPv4: ufw-user-input holds \d+ rules in the kernel, \d+ in /etc/ufw/user.rules", gap)


def test_family_that_is_not_loaded(gaps):
    def forget(kernel):
        kernel["6"]["chains"].clear()

    assert gaps(forget) == ["IPv6: UFW's rules are not in the kernel"]


@pytest.mark.parametrize(
    ("family", "chain", "policy"), [("4", "INPUT", "ACCEPT"), ("6", "INPUT", "ACCEPT"), ("4", "OUTPUT", "DROP")]
)
def test_policy_that_the_kernel_does_not_have(gaps, family, chain, policy):
    def change(kernel):
        kernel[family]["policy"][chain] = policy

    [gap] = gaps(change)
    assert chain in gap and f"IPv{family}" in gap


def netlink(kind, *messages):
    """Messages as nf_tables answers them: (family, {attribute: bytes})."""
    stream = b""
    for family, attributes in messages:
        body = struct.pack("=BBH", family, 0, 0)
        for key, value in attributes.items():
            body += struct.pack("=HH", len(value) + 4, key) + value + b"\0" * (-len(value) % 4)
        stream += struct.pack("=IHHII", len(body) + 16, 10 << 8 | kind, 2, 1, 0) + body
    return stream + struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


@pytest.fixture
def kernel_says(ufw_rules, monkeypatch):
    """Pretend the kernel's answers to the two questions, one datagram each."""

    def _says(*answers):
        queue = list(answers)

        class Socket:
            def __init__(self, *_):
                self.answer = queue.pop(0)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            settimeout = bind = send = lambda self, *_: None

            def recv(self, _):
                return self.answer

        monkeypatch.setattr(ufw_rules.socket, "socket", Socket)
        monkeypatch.setattr(ufw_rules.salt.utils.path, "which", lambda name: None)
        return ufw_rules._kernel

    return _says


def test_netlink_answers(kernel_says):
    chains = netlink(
        3,
        (2, {1: b"filter\0", 3: b"INPUT\0", 5: b"\0\0\0\0"}),
        (2, {1: b"filter\0", 3: b"ufw-user-input\0"}),
        (2, {1: b"nat\0", 3: b"ufw-user-output\0"}),
        (10, {1: b"filter\0", 3: b"OUTPUT\0", 5: b"\0\0\0\1"}),
        (1, {1: b"filter\0", 3: b"inet\0"}),
    )
    one = (2, {1: b"filter\0", 2: b"ufw-user-input\0"})
    kernel = kernel_says(chains, netlink(6, one, one, (10, {1: b"nat\0", 2: b"ufw-user-input\0"})))()
    assert kernel["4"]["policy"] == {"INPUT": "DROP"} and kernel["6"]["policy"] == {"OUTPUT": "ACCEPT"}
    assert kernel["4"]["chains"] == {"INPUT": 0, "ufw-user-input": 2}


def test_kernel_without_nf_tables_has_nothing_in_force(kernel_says, ufw_rules):
    error = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -22)
    assert not ufw_rules._loaded(kernel_says(error)())


def test_kernel_that_does_not_answer_is_no_empty_kernel(kernel_says):
    error = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -1)
    with pytest.raises(CommandExecutionError, match="Operation not permitted"):
        kernel_says(error)()


def test_answer_that_changed_under_way_is_asked_again(kernel_says):
    changing = struct.pack("=IHHII", 16, 3, 0x10, 1, 0)
    kernel = kernel_says(changing, netlink(3, (2, {1: b"filter\0", 3: b"ufw-user-input\0"})), netlink(6))()
    assert "ufw-user-input" in kernel["4"]["chains"]


# --- commands ---------------------------------------------------------------------------------------------------------


def test_rule_from_anywhere_is_one_command(ufw_rules):
    [words] = ufw_rules._commands(lines(ufw_rules, SSH))
    assert " ".join(words) == "allow proto tcp from any to any port 22 comment redis_sidekiq:ssh"


def test_one_family_of_a_rule_is_named_by_its_network(ufw_rules):
    wish = lines(ufw_rules, SSH)
    assert ["::/0" in words for words in ufw_rules._commands(wish[1:])] == [True]
    assert ["0.0.0.0/0" in words for words in ufw_rules._commands(wish[:1])] == [True]


def test_commands_are_made_for_every_line_once(ufw_rules):
    wish = lines(ufw_rules, *random_rules(7, 20))
    commands = ufw_rules._commands(wish)
    assert sorted(itertools.chain(*commands.values())) == sorted(wish)


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("0100007F:1F90", "127.0.0.1", 8080),
        ("0202A8C0:0016", "192.168.2.2", 22),
        ("0000000000000000FFFF00000202A8C0:0016", "192.168.2.2", 22),
        ("B80D01200000000067452301EFCDAB89:0050", "2001:db8::123:4567:89ab:cdef", 80),
    ],
)
def test_the_kernels_form_of_an_endpoint(ufw_rules, text, address, port):
    assert [str(part) for part in ufw_rules._endpoint(text)] == [address, str(port)]
