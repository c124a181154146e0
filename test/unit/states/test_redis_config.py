"""The decisions of _states/redis_config.py, with the execution module's answers given."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError


def entry(running, wished, live=True):
    return {"running": running, "wished": wished, "live": live}


HZ, IO = {"hz": entry("10", "20")}, {"io-threads": entry("1", "4", live=False)}


@pytest.fixture
def state(load):
    """The state module; ``state.drifts``: what drift answers, in order; ``state.record``: what apply returns."""
    module = load("_states/redis_config.py")
    module.__opts__, module.acts = {"test": False}, []
    module.drifts, module.record = [{}], {"set": ["hz"], "restart": [], "failed": {}}

    def drift(name):
        found = module.drifts.pop(0) if len(module.drifts) > 1 else module.drifts[0]
        if isinstance(found, Exception):
            raise found
        return found if "unasked" in found else {"directives": found, "unasked": ""}

    def apply(name):
        module.acts.append("apply")
        return module.record

    module.__salt__ = {
        "redis_config.drift": drift,
        "redis_config.apply": apply,
        "redis_config.remember": lambda name: module.acts.append("remember"),
    }
    return module


def test_what_differs_is_announced_set_and_left_alone(state):
    state.__opts__["test"] = True
    state.drifts = [{**HZ, **IO}]
    ret = state.live("6379")
    assert (ret["result"], ret["changes"], state.acts) == (None, {"hz": {"old": "10", "new": "20"}}, [])
    assert ret["comment"].endswith("hz would be set live; io-threads can only be changed by a restart")

    state.__opts__["test"] = False
    state.drifts, state.record = [{**HZ, **IO}, IO], {"set": ["hz"], "restart": ["io-threads"], "failed": {}}
    ret = state.live("6379")
    assert (ret["result"], ret["changes"]) == (True, {"hz": {"old": "10", "new": "20"}})
    assert ret["comment"].endswith("hz set live; io-threads can only be changed by a restart")
    assert state.acts == ["remember", "apply"]

    state.drifts = [{}]
    ret = state.live("6379")
    assert (ret["result"], ret["changes"], ret["comment"]) == (True, {}, "Redis instance 6379 works by its config")


@pytest.mark.parametrize("test", [False, True])
def test_what_takes_a_restart_is_named_and_no_change(state, test):
    state.__opts__["test"] = test
    state.drifts = [IO]
    ret = state.live("6379")
    assert (ret["result"], ret["changes"], "apply" in state.acts) == (True, {}, False)
    assert "io-threads can only be changed by a restart" in ret["comment"]


@pytest.mark.parametrize("test", [False, True])
def test_a_server_that_cannot_be_asked_is_left_to_its_start(state, test):
    state.__opts__["test"] = test
    state.drifts = [{"directives": {}, "unasked": "no server answers"}]
    ret = state.live("6379")
    assert (ret["result"], ret["changes"]) == (True, {})
    assert "no server answers" in ret["comment"]


def test_a_directive_that_is_refused_fails_and_the_others_are_changes(state):
    state.drifts = [{**HZ, "maxclients": entry("1", "2")}]
    state.record = {"set": ["hz"], "restart": [], "failed": {"maxclients": "ERR try with 5"}}
    ret = state.live("6379")
    assert (ret["result"], set(ret["changes"])) == (False, {"hz"})
    assert "maxclients could not be set: ERR try with 5" in ret["comment"]


def test_a_directive_that_differs_again_fails(state):
    state.drifts = [HZ]
    ret = state.live("6379")
    assert (ret["result"], "hz differ again" in ret["comment"]) == (False, True)


def test_no_state_raises(state):
    state.drifts = [CommandExecutionError("a sentence")]
    assert (state.live("6379")["result"], state.live("6379")["comment"]) == (False, "a sentence")
