"""The states through Salt's loader, on a private copy of UFW's files; `ufw` and `sshd` are played by small programs.

The played ufw knows what the states ask of ufw 0.36.2 and no more. The real one is tried in test/hosts.
"""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

DEFAULTS = 'IPV6=yes\nDEFAULT_INPUT_POLICY="{}"\nDEFAULT_OUTPUT_POLICY="ACCEPT"\nDEFAULT_FORWARD_POLICY="DROP"\n'

UFW = r"""#!{python}
import os, re, sys
words = sys.argv[1:]
root = [word.partition("=")[2] for word in words if word.startswith("--rootdir=")][0]
words = [word for word in words if not word.startswith("--")]
log, mode = os.environ["UFW_LOG"], os.environ.get("UFW_MODE", "")
open(log, "a").write(" ".join(words) + "\n")
if mode == "fail" or mode == "fail " + words[0]:
    sys.exit("ERROR: problem running ufw-init")
def edit(path, pattern, text):
    old = open(root + path).read()
    open(root + path, "w").write(re.sub(pattern, text, old))
if words[0] in ("enable", "disable"):
    edit("/etc/ufw/ufw.conf", "ENABLED=.*", "ENABLED=" + dict(enable="yes", disable="no")[words[0]])
elif words[0] == "default":
    chain = dict(incoming="INPUT", outgoing="OUTPUT")[words[2]]
    policy = dict(allow="ACCEPT", deny="DROP", reject="REJECT")[words[1]]
    edit("/etc/default/ufw", "DEFAULT_%s_POLICY=.*" % chain, 'DEFAULT_%s_POLICY="%s"' % (chain, policy))
elif words[0] == "logging":
    for name in ("user", "user6"):
        open(root + "/etc/ufw/%s.rules" % name, "a").write("\nCOMMIT\n")
elif mode == "skip":
    print("Skipping adding existing rule")
else:
    remove = words[0] == "delete"
    words = words[remove:]
    place = int(words[1]) - 1 if words[0] == "insert" else None
    words = words[2:] if place is not None else words
    action, _, proto, _, source, _, _, _, port, _, comment = words
    families = {"any": "46"}.get(source, "6" if ":" in source else "4")
    v4 = sum("### tuple" in line for line in open(root + "/etc/ufw/user.rules"))
    for family in families:
        path = root + "/etc/ufw/user%s.rules" % family.replace("4", "")
        zero = {"4": "0.0.0.0/0", "6": "::/0"}[family]
        match = "%s %s %s any %s in" % (proto, port, zero, zero if source == "any" else source)
        line = "### tuple ### %s %s comment=%s" % (action, match, comment.encode().hex())
        lines = [old for old in open(path).read().splitlines() if old.startswith("### tuple")]
        same = [old for old in lines if " %s " % match in old + " "]
        if remove:
            lines = [old for old in lines if old != line]
        elif same:
            lines = [line if old in same else old for old in lines]
        else:
            at = len(lines) if place is None else place - (v4 if family == "6" else 0)
            if not 0 <= at <= len(lines):
                sys.exit("ERROR: Invalid position '%d'" % (place + 1))
            lines.insert(at, line)
        open(path, "w").write("\n".join(lines + ["COMMIT", ""]))
    print("Rules updated")
"""

SSH, HTTP = {"name": "ssh", "port": 22}, {"name": "http", "port": 80}
REDIS = {"name": "redis_6379", "port": "6379", "from": "10.1.2.3/8"}


class Copy:
    """A private copy of UFW's files, and what was asked of ufw."""

    def __init__(self, root):
        self.root = root
        (root / "etc/ufw").mkdir(parents=True)
        (root / "etc/default").mkdir()
        self.write("etc/default/ufw", DEFAULTS.format("DROP"))
        self.write("etc/ufw/ufw.conf", "ENABLED=no\nLOGLEVEL=low\n")
        self.write("etc/ufw/user.rules", "COMMIT\n")
        self.write("etc/ufw/user6.rules", "COMMIT\n")

    def write(self, path, text):
        (self.root / path).write_text(text)

    def read(self, path):
        return (self.root / path).read_text()

    def rules(self, family="4"):
        """ACTION PORT SOURCE COMMENT of each tuple, in order."""
        found = []
        for line in self.read({"4": "etc/ufw/user.rules", "6": "etc/ufw/user6.rules"}[family]).splitlines():
            if line.startswith("### tuple"):
                words = line.split()
                comment = re.search("comment=(.*)", line)
                found.append(
                    f"{words[3]} {words[5]} {words[8]} {bytes.fromhex(comment[1]).decode() if comment else '-'}"
                )
        return found

    def asked(self):
        """The commands since the last look."""
        log = self.root / "ufw.log"
        found = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    def content(self):
        return {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "ufw": UFW.replace("{python}", sys.executable),
        "sshd": "#!/bin/sh\necho port ${SSHD_PORT:-22}\n",
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    copy = Copy(tmp_path / "copy")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("UFW_LOG", str(copy.root / "ufw.log"))
    return copy


@pytest.fixture
def managed(states, copy):
    def _managed(*rules, test=False, **wish):
        return states.ufw_rules.managed("fw", rules=list(rules), root=str(copy.root), test=test, **wish)

    return _managed


@pytest.fixture
def absent(states, copy):
    return lambda test=False: states.ufw_rules.absent("fw", root=str(copy.root), test=test)


def test_from_nothing_to_converged_and_again(copy, managed):
    ret = managed(SSH, HTTP, REDIS)
    assert ret.result is True
    assert ret.changes == {
        "rules": {
            "added": [
                "ssh: allow tcp 22 from any",
                "http: allow tcp 80 from any",
                "redis_6379: allow tcp 6379 from 10.0.0.0/8",
            ]
        },
        "enabled": {"old": False, "new": True},
    }
    assert copy.asked() == [
        "allow proto tcp from any to any port 22 comment redis_sidekiq:ssh",
        "allow proto tcp from any to any port 80 comment redis_sidekiq:http",
        "allow proto tcp from 10.0.0.0/8 to any port 6379 comment redis_sidekiq:redis_6379",
        "enable",
    ]
    for _ in range(2):
        again = managed(SSH, HTTP, REDIS)
        assert again.result is True and again.changes == {} and copy.asked() == []


def test_test_mode_touches_nothing(copy, managed):
    before = copy.content()
    ret = managed(SSH, test=True)
    assert ret.result is None and ret.changes["rules"]["added"] == ["ssh: allow tcp 22 from any"]
    assert copy.content() == before


def test_ssh_first_then_policies_then_denials_then_deletions_then_the_switch(copy, managed, monkeypatch):
    managed({"name": "old", "port": 9}, SSH)
    copy.write("etc/ufw/ufw.conf", "ENABLED=no\n")
    copy.write("etc/default/ufw", DEFAULTS.format("ACCEPT"))
    copy.asked()
    monkeypatch.setenv("SSHD_PORT", "2222")
    managed(
        HTTP,
        {"name": "block", "port": 80, "action": "deny", "from": "192.0.2.0/24"},
        SSH,
        {"name": "ssh2", "port": 2222},
    )
    assert [re.sub(" proto.*:", " ", words) for words in copy.asked()] == [
        "allow ssh2",
        "allow http",
        "default deny incoming",
        "deny block",
        "delete allow old",
        "enable",
    ]


def test_rule_that_left_the_pillar_goes_and_others_stay(copy, managed):
    mine = "### tuple ### allow tcp 9 0.0.0.0/0 any 0.0.0.0/0 in comment=6d696e65\n"
    copy.write("etc/ufw/user.rules", mine + "### tuple ### allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in\nCOMMIT\n")
    managed(SSH, HTTP, REDIS)
    assert copy.rules() == [
        "allow 9 0.0.0.0/0 mine",
        "allow 80 0.0.0.0/0 -",
        "allow 22 0.0.0.0/0 redis_sidekiq:ssh",
        "allow 6379 10.0.0.0/8 redis_sidekiq:redis_6379",
    ]
    assert copy.rules("6") == ["allow 22 ::/0 redis_sidekiq:ssh", "allow 80 ::/0 redis_sidekiq:http"]
    ret = managed(SSH)
    assert ret.changes == {
        "rules": {"removed": ["redis_6379: allow tcp 6379 from 10.0.0.0/8", "http: allow tcp 80 from any (IPv6 only)"]}
    }
    assert copy.rules() == ["allow 9 0.0.0.0/0 mine", "allow 80 0.0.0.0/0 -", "allow 22 0.0.0.0/0 redis_sidekiq:ssh"]


def test_denial_goes_before_the_rule_that_it_limits(copy, managed):
    block = {"name": "block", "port": 80, "action": "deny", "from": "2001:db8::1/32"}
    managed(SSH, HTTP)
    managed(SSH, block, HTTP)
    assert copy.rules("6")[1] == "deny 80 2001:db8::/32 redis_sidekiq:block"
    copy.asked()
    assert managed(SSH, block, HTTP).changes == {}
    moved = managed(SSH, HTTP, block)
    assert moved.changes == {"rules": {"added": ["block: deny tcp 80 from 2001:db8::/32 (moved)"]}}
    assert copy.rules("6")[2] == "deny 80 2001:db8::/32 redis_sidekiq:block"


@pytest.mark.parametrize("test", [False, True])
def test_refuses_to_shut_out_ssh(copy, managed, monkeypatch, test):
    monkeypatch.setenv("SSHD_PORT", "2022")
    before = copy.content()
    ret = managed(SSH, HTTP, test=test)
    assert ret.result is False and ret.changes == {}
    assert "port 2022" in ret.comment and "Nothing was changed" in ret.comment
    assert copy.content().keys() - before.keys() <= {str(copy.root / "run/redis_sidekiq-ufw.lock")}
    assert copy.asked() == []


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_success_that_ufw_only_claims_is_no_success(copy, managed, monkeypatch, action):
    managed(SSH, enabled=False)
    monkeypatch.setenv("UFW_MODE", "skip")
    ret = managed(SSH, {"name": "web", "port": 80, "action": action})
    assert ret.result is False and "was not added. ufw said: Skipping adding existing rule" in ret.comment
    assert "enable" not in copy.asked(), "no rule, no switch"


def test_ufw_that_fails_is_quoted_and_switched_off_again(copy, managed, monkeypatch):
    monkeypatch.setenv("UFW_MODE", "fail enable")
    ret = managed(SSH)
    assert ret.result is False
    assert "problem running ufw-init" in ret.comment and "nobody is shut out" in ret.comment
    assert ret.changes == {"rules": {"added": ["ssh: allow tcp 22 from any"]}}
    assert copy.asked()[-1] == "disable"


def test_wrong_rule_is_a_sentence(managed):
    ret = managed({"name": "web", "port": "http"})
    assert ret.result is False and "found port 'http'" in ret.comment


def test_file_that_was_cut_off_is_written_anew(copy, managed):
    managed(SSH, HTTP)
    copy.write("etc/ufw/user.rules", copy.read("etc/ufw/user.rules").replace("COMMIT\n", ""))
    ret = managed(SSH, HTTP)
    assert ret.result is True and ret.changes == {"files": ["/etc/ufw/user.rules"]}
    assert managed(SSH, HTTP).changes == {}


def test_absent_when_ufw_was_off_before(copy, managed, absent):
    copy.write("etc/default/ufw", DEFAULTS.format("ACCEPT"))
    managed(SSH, HTTP)
    record = copy.root / "var/lib/redis_sidekiq/firewall.json"
    assert json.loads(record.read_text()) == {"enabled": False, "incoming": "allow", "outgoing": "allow"}
    before = copy.content()
    assert absent(test=True).result is None
    assert copy.content() == before

    copy.asked()
    ret = absent()
    assert ret.result is True
    assert ret.changes["enabled"] == {"old": True, "new": False}
    assert ret.changes["policies"] == {"incoming": {"old": "deny", "new": "allow"}}
    assert copy.asked()[0] == "disable"
    assert copy.rules() == copy.rules("6") == [] and not record.exists()
    assert absent().changes == {}


def test_record_is_of_before_the_first_change(copy, managed):
    managed(SSH)
    managed(SSH, HTTP)
    managed(SSH, incoming="reject")
    record = json.loads(copy.read("var/lib/redis_sidekiq/firewall.json"))
    assert record == {"enabled": False, "incoming": "deny", "outgoing": "allow"}


def test_absent_when_ufw_was_on_before_keeps_ssh_open(copy, managed, absent):
    copy.write("etc/ufw/ufw.conf", "ENABLED=yes\n")
    managed(SSH, HTTP)
    ret = absent()
    assert ret.result is True and "ssh: allow tcp 22 from any" in ret.comment
    assert ret.changes["rules"] == {"removed": ["http: allow tcp 80 from any"]}
    assert copy.rules() == ["allow 22 0.0.0.0/0 redis_sidekiq:ssh"]
    again = absent()
    assert again.result is True and again.changes == {} and "ssh" in again.comment


def test_absent_needs_no_rule_of_ours_where_another_lets_ssh_in(copy, managed, absent):
    copy.write("etc/ufw/ufw.conf", "ENABLED=yes\n")
    copy.write("etc/ufw/user.rules", "### tuple ### limit tcp 22 0.0.0.0/0 any 0.0.0.0/0 in\nCOMMIT\n")
    copy.write("etc/ufw/user6.rules", "### tuple ### limit tcp 22 ::/0 any ::/0 in\nCOMMIT\n")
    managed({"name": "all", "port": "1:1024"})
    assert absent().changes["rules"] == {"removed": ["all: allow tcp 1:1024 from any"]}
    assert copy.rules() == ["limit 22 0.0.0.0/0 -"]
