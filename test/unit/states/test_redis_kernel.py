"""The decisions of _states/redis_kernel.py, with the execution module's answers given."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError

NOTHING = {"values": {}, "files": {}, "blocked": [], "forget": False, "kept": {}}
MEMORY = {**NOTHING, "values": {"vm.overcommit_memory": {"old": "0", "new": "1"}}}
BLOCKED = {**NOTHING, "blocked": ["vm.overcommit_memory is 0 and should be 1, but ..."]}


@pytest.fixture
def state(load):
    """The state module; ``state.found``: what facts answers, in order."""
    module = load("_states/redis_kernel.py")
    module.__opts__, module.acts, module.found = {"test": False}, [], []
    module.__salt__ = {
        "redis_kernel.facts": lambda settings: module.found.pop(0),
        "redis_kernel.apply": module.acts.append,
    }
    return module


def test_nothing_is_done_when_nothing_differs(state):
    state.found = [NOTHING]
    ret = state.managed("kernel", {})
    assert (ret["result"], ret["changes"], state.acts) == (True, {}, []) and "warnings" not in ret


def test_what_differs_is_announced_and_then_set(state):
    state.__opts__["test"], state.found = True, [MEMORY]
    announced = state.managed("kernel", {"vm.overcommit_memory": "1"})
    assert announced["result"] is None and state.acts == []
    state.__opts__["test"], state.found = False, [MEMORY, NOTHING]
    ret = state.managed("kernel", {"vm.overcommit_memory": "1"})
    assert ret["result"] is True and ret["changes"] == announced["changes"] == MEMORY["values"]
    assert state.acts == [{"vm.overcommit_memory": "1"}]


def test_what_was_set_and_still_differs_fails(state):
    state.found = [MEMORY, MEMORY]
    ret = state.managed("kernel", {"vm.overcommit_memory": "1"})
    assert ret["result"] is False and "still differ" in ret["comment"]


def test_what_cannot_be_set_here_is_a_warning(state):
    state.found = [BLOCKED]
    ret = state.managed("kernel", {"vm.overcommit_memory": "1"})
    assert (ret["result"], ret["changes"], ret["warnings"]) == (True, {}, BLOCKED["blocked"])
    assert BLOCKED["blocked"][0] in ret["comment"]


def test_an_error_of_the_module_is_the_comment(state):
    def broken(settings):
        raise CommandExecutionError("Cannot write it")

    state.__salt__["redis_kernel.facts"] = broken
    ret = state.managed("kernel", {})
    assert (ret["result"], ret["comment"], ret["changes"]) == (False, "Cannot write it", {})
