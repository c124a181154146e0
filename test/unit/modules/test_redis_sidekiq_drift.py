"""The rows of a drift: what differs, in whose words, and the table of them."""

from __future__ import annotations

import json

import pytest
from salt.exceptions import CommandExecutionError


@pytest.fixture
def drift(load):
    module = load("_modules/redis_sidekiq_drift.py")
    module.__salt__ = {}
    return module


def run(**more):
    return {"states": [], "failed": [], "refused": [], **more}


def state(function, name="", comment=""):
    return {"id": "a state", "function": function, "name": name, "comment": comment}


def test_a_row_is_text(drift):
    row = drift._row("redis_6379", "x", True, None, [], "a\n b", 1700000000.5)
    assert row == {
        **{"subject": "redis_6379", "what": "x", "wished": "yes", "runs": "", "why": "a b", "differs": False},
        "since": "2023-11-14T22:13:20Z",
    }


def test_a_table_has_the_columns_that_say_something(drift):
    rows = [
        drift._row("redis_6379", "maxclients", 10000, 900, True),
        drift._row("ufw", "incoming", "x" * 99, "allow", True),
    ]
    assert drift.table(rows).splitlines() == [
        "subject     what        wished" + " " * 56 + "runs",
        "redis_6379  maxclients  10000" + " " * 57 + "900",
        f"ufw         incoming    {'x' * 57}...  allow",
    ]
    assert drift.table([]) == "all is as wished"


def test_passwords_are_counted_and_never_shown(drift):
    users = {
        "jobs": {"passwords": {"missing": 1, "surplus": 2}, "rules": {"wished": "~* +@all", "running": "~*"}},
        "by_hand": {"there": {"wished": False, "running": True}},
    }
    rows = list(drift._user_rows("redis_6379", {"users": users, "unasked": ""}))
    assert [(row["what"], row["wished"], row["runs"]) for row in rows] == [
        ("user jobs: rules", "~* +@all", "~*"),
        ("user jobs: passwords", "as the settings say", "1 missing, 2 too many"),
        ("user by_hand", "not there", "there"),
    ]
    assert all(row["differs"] for row in rows) and "#" not in json.dumps(rows)


def test_a_look_that_fails_is_a_row_and_the_others_go_on(drift):
    def fails(*_, **__):
        raise CommandExecutionError("sudo is not on this host")

    drift.__salt__ = {
        "redis_sidekiq.settings": lambda: {"roles": ["deploy"], "deploy": {"user": "deploy"}},
        "sidekiq_sudo.sudo_check": fails,
        "redis_sidekiq_preflight.next_run": lambda: run(states=[state("pkg.installed", "", "sudo would be installed")]),
    }
    rows = drift.rows()
    assert [(row["subject"], row["what"], row["why"]) for row in rows] == [
        ("sudo", "facts", "sudo is not on this host"),
        ("a state", "pkg.installed", "sudo would be installed"),
    ]


def test_what_has_facts_of_its_own_is_told_once(drift):
    wrong = {
        "missing": ["/usr/bin/systemctl restart sidekiq"],
        "beyond": [{"runas": "ALL", "command": "ALL", "where": ["/etc/sudoers:47"]}],
    }
    drift.__salt__ = {
        "redis_sidekiq.settings": lambda: {"roles": ["deploy"], "deploy": {"user": "deploy"}},
        "sidekiq_sudo.sudo_check": lambda *_, **__: wrong,
        "redis_sidekiq_preflight.next_run": lambda: run(
            states=[state("redis_server.running", "6379"), state("sidekiq.current", "sidekiq")],
            failed=[state("sidekiq.sudoers", "/etc/sudoers.d/x"), state("file.managed", "/etc/y")],
            refused=["run: another one is under way"],
        ),
    }
    assert [(row["subject"], row["runs"], row["why"]) for row in drift.rows()] == [
        ("sudo", "not allowed", ""),
        ("sudo", "allowed", "by /etc/sudoers:47"),
        ("/etc/y", "fails", ""),
        ("run", "not asked", "run: another one is under way"),
    ]
    wrong.update(missing=[], beyond=[])
    assert [row["subject"] for row in drift.rows()] == ["/etc/sudoers.d/x", "/etc/y", "run"]
    assert [row["subject"] for row in drift.rows(all=True)][0] == "sudo"


def test_the_firewalls_changes_row_by_row(drift):
    asked = {}
    changes = {
        "rules": {"added": ["http: allow tcp 80 from any"], "removed": ["x"]},
        "policies": {"incoming": {"old": "", "new": "deny"}},
        "enabled": {"old": False, "new": True},
        "sysctls": {"net.ipv4.ip_forward": {"old": "1", "new": "0"}},
    }
    drift.__salt__ = {
        "ufw_guard.guards": lambda: ["ssh", "dns"],
        "ufw_rules.differences": lambda rules, **words: asked.update(words) or changes,
    }
    words = ("rules", "incoming", "outgoing", "routed", "logging", "only_ours", "enabled", "confirm", "confirm_within")
    rows = list(drift._firewall({"firewall": dict.fromkeys(words)}))
    assert [(row["what"], row["wished"], row["runs"]) for row in rows] == [
        ("http: allow tcp 80 from any", "there", "missing"),
        ("x", "not there", "there"),
        ("incoming", "deny", "unset"),
        ("enabled", "yes", "no"),
        ("net.ipv4.ip_forward", "0", "1"),
    ]
    assert asked["allow_lockout"] == ["ssh", "dns"]
    changes.clear()
    assert [row["differs"] for row in drift._firewall({"firewall": dict.fromkeys(words)})] == [False]


def test_a_certificate_that_ends_soon_differs(drift):
    facts = {"sha256": "ab" * 32, "since": 0, "until": 1700000000}
    found = {
        "wished": facts,
        "shown": facts,
        "same": True,
        "reads": True,
        "unasked": "",
        "expires": "it ends on 2023-11-14",
    }
    rows = list(drift._certificate_rows("redis_6379", found))
    assert [(row["what"], row["differs"]) for row in rows] == [("certificate", False), ("certificate's end", True)]
    rows = list(drift._certificate_rows("redis_6379", {**found, "shown": {}, "same": False, "expires": ""}))
    assert [(row["runs"], row["differs"]) for row in rows] == [("none", True), ("2023-11-14", False)]


def test_a_service_that_nothing_is_deployed_for_does_not_differ(drift):
    one = {
        **{"unit": "sidekiq.service", "process": None, "masked": False, "enabled": True, "active": "inactive"},
        **{"started": None, "loaded": True, "needs_reload": True, "drop_ins": [], "stale": []},
    }
    rows = list(drift._process(one, {"deployed": False, "release": "", "version": ""}))
    assert not any(row["differs"] for row in rows)
    rows = list(drift._process(one, {"deployed": True, "release": "", "version": ""}))
    assert [row["what"] for row in rows if row["differs"]] == ["running", "unit"]
