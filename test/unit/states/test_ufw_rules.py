"""What the states say and in which order they ask: facts and acts are played by the test."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

RULES = [{"name": "ssh", "port": 22}]
PLANNED = {
    "rules": {"added": ["ssh: allow tcp 22 from any", "http: allow tcp 80 from any"]},
    "policies": {"incoming": {"old": "allow", "new": "deny"}},
    "enabled": {"old": False, "new": True},
}


@pytest.fixture
def play(load):
    """The state module with an execution module that answers in turn, or raises. Returns (states, calls)."""

    def _play(test=False, waits=None, **answers):
        states, calls = load("_states/ufw_rules.py"), []

        def answer(name):
            queue = list(answers.get(name, []))

            def function(*args, **kwargs):
                calls.append(name)
                found = queue.pop(0)
                if isinstance(found, Exception):
                    raise found
                return found

            return function

        names = ("differences", "apply", "leftovers", "withdraw")
        states.__salt__ = {f"ufw_rules.{name}": answer(name) for name in names}
        states.__salt__["ufw_guard.pending"] = lambda: waits or {}
        states.__opts__ = {"test": test, "id": "web1"}
        return states, calls

    return _play


def test_nothing_to_do(play):
    states, calls = play(differences=[{}])
    assert states.managed("fw", RULES) == {"name": "fw", "result": True, "changes": {}, "comment": "UFW is as wished"}
    assert calls == ["differences"]


def test_test_mode_asks_only(play):
    states, calls = play(test=True, differences=[PLANNED])
    ret = states.managed("fw", RULES)
    assert ret["result"] is None and ret["changes"] == PLANNED
    assert "added ssh: allow tcp 22 from any" in ret["comment"] and "incoming allow -> deny" in ret["comment"]
    assert calls == ["differences"]


def test_changed_and_asked_again(play):
    states, calls = play(differences=[PLANNED, {}], apply=[PLANNED])
    ret = states.managed("fw", RULES)
    assert ret["result"] is True and ret["changes"] == PLANNED and "switched on" in ret["comment"]
    assert calls == ["differences", "apply", "differences"]


def test_still_different_after_acting_is_a_failure(play):
    left = {"rules": {"added": ["http: allow tcp 80 from any"]}}
    states, _ = play(differences=[PLANNED, left], apply=[PLANNED])
    ret = states.managed("fw", RULES)
    assert ret["result"] is False and "still differs: added http: allow tcp 80 from any" in ret["comment"]


def test_run_that_failed_half_way_says_what_it_did(play):
    left = {"rules": {"added": ["http: allow tcp 80 from any"]}, "enabled": PLANNED["enabled"]}
    states, _ = play(differences=[PLANNED, left], apply=[CommandExecutionError("ufw said no")])
    ret = states.managed("fw", RULES)
    assert ret["result"] is False and ret["comment"] == "ufw said no"
    assert ret["changes"] == {"rules": {"added": ["ssh: allow tcp 22 from any"]}, "policies": PLANNED["policies"]}


@pytest.mark.parametrize("error", [CommandExecutionError("shut out"), SaltInvocationError("wrong rule")])
@pytest.mark.parametrize("test", [False, True])
def test_refusal_changes_nothing_in_test_mode_too(play, error, test):
    states, calls = play(test=test, differences=[error])
    assert states.managed("fw", RULES) == {"name": "fw", "result": False, "changes": {}, "comment": str(error)}
    assert calls == ["differences"]


def test_who_confirms_a_change_is_said(play):
    waits = {"until": "2026-01-01 00:01:00 UTC"}
    for answers in ({"differences": [{}]}, {"differences": [PLANNED, {}], "apply": [PLANNED]}):
        states, _ = play(waits=waits, **answers)
        comment = states.managed("fw", RULES, confirm="master")["comment"]
        assert "`salt web1 ufw_guard.confirm`: the former rules come back at 2026-01-01" in comment
    states, _ = play(test=True, differences=[PLANNED])
    comment = states.managed("fw", RULES, confirm="master", confirm_within=9)["comment"]
    assert comment.endswith("the former rules come back unless it is confirmed within 9 s")


def test_two_runs_at_once(play):
    states, _ = play(differences=[PLANNED, {}], apply=[{}])
    ret = states.managed("fw", RULES)
    assert ret["result"] is True and ret["changes"] == {} and "another run" in ret["comment"]


def test_kernel_that_lost_the_rules_is_named(play):
    planned = {"enabled": {"old": "IPv4: UFW's rules are not in the kernel", "new": True}}
    states, _ = play(differences=[planned, {}], apply=[planned])
    assert "in force again (IPv4: UFW's rules are not in the kernel)" in states.managed("fw", RULES)["comment"]


GONE = {"rules": {"removed": ["http: allow tcp 80 from any"]}, "enabled": {"old": True, "new": False}}


def test_absent(play):
    states, calls = play(
        leftovers=[{"changes": GONE, "kept": []}, {"changes": {}, "kept": []}], withdraw=[{"changes": GONE, "kept": []}]
    )
    ret = states.absent("fw")
    assert ret["result"] is True and ret["changes"] == GONE and "switched off" in ret["comment"]
    assert calls == ["leftovers", "withdraw", "leftovers"]


def test_absent_in_test_mode(play):
    states, calls = play(test=True, leftovers=[{"changes": GONE, "kept": []}])
    ret = states.absent("fw")
    assert ret["result"] is None and ret["changes"] == GONE and calls == ["leftovers"]


def test_absent_says_what_it_keeps_and_is_then_content(play):
    states, _ = play(leftovers=[{"changes": {}, "kept": ["ssh: allow tcp 22 from any"]}])
    ret = states.absent("fw")
    assert ret["result"] is True and ret["changes"] == {} and "ssh: allow tcp 22 from any" in ret["comment"]


def test_absent_that_did_not_work(play):
    states, _ = play(
        leftovers=[{"changes": GONE, "kept": []}, {"changes": GONE, "kept": []}],
        withdraw=[{"changes": GONE, "kept": []}],
    )
    assert states.absent("fw")["result"] is False
    states, _ = play(leftovers=[CommandExecutionError("no sshd")])
    assert states.absent("fw")["comment"] == "no sshd"
