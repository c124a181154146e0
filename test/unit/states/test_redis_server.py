"""The decisions of _states/redis_server.py, with the execution module's answers given."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError


def facts(**more):
    found = {"unit": "redis_6379", "loaded": True, "enabled": True, "active": "active", "pid": 10, "stale": []}
    found |= {"needs_reload": False, "info": {"process_id": more.get("pid", 10)}, "info_error": "", "unfollowed": ""}
    found |= {"build": "8.0.6-new", "under_way": "", "drains": False}
    return found | more


GOOD = facts(pid=11)
STOPPED = {"active": "inactive", "pid": 0, "info": None}


@pytest.fixture
def state(load):
    """The state module; ``state.answers``: functions' answers in order, the last stays; ``state.acts``: the rest."""
    module = load("_states/redis_server.py")
    module.__opts__ = {"test": False}
    module.acts, module.answers = [], {}

    class Functions(dict):
        def __missing__(self, name):
            def call(*args, **kwargs):
                given = module.answers.get(name.partition(".")[2])
                if given is None:
                    module.acts.append((name, *args))
                    return {"result": True, "comment": "done"}
                answer = given.pop(0) if len(given) > 1 else given[0]
                if isinstance(answer, Exception):
                    raise answer
                return answer

            return call

    module.__salt__ = Functions()
    server = load("_modules/redis_server.py")
    server.in_window = module.__salt__["redis_server.in_window"]
    module.__salt__["redis_server.restart_waits"] = server.restart_waits
    return module


def acts(state):
    return [act[0].partition(".")[2] for act in state.acts]


# running ------------------------------------------------------------------------------------------------------------

NEEDS = {
    "new unit": (
        facts(loaded=False, enabled=False, **STOPPED),
        ["reload_manager", "enable", "start"],
        "loaded anew, enabled at boot, started",
    ),
    "disabled": (facts(enabled=False), ["enable"], "enabled at boot"),
    "stopped": (facts(**STOPPED), ["start"], "started"),
    "failed": (facts(**{**STOPPED, "active": "failed"}), ["start"], "started"),
    "starting again and again": (facts(**{**STOPPED, "active": "activating"}), ["start"], "started"),
    "older than its config": (facts(stale=["changed: /c"]), ["restart"], "restarted, because changed: /c"),
    "another build": (facts(stale=["it runs /a, not /b"]), ["restart"], "restarted, because it runs /a, not /b"),
    "cut off when the new build served": (
        facts(under_way="7.0.15-old"),
        ["finish"],
        "left with 8.0.6-new, with no way back to 7.0.15-old",
    ),
    "an older unit is loaded": (
        facts(needs_reload=True),
        ["reload_manager", "restart"],
        "loaded anew, restarted, because it runs with an older unit",
    ),
    "stale and deaf": (facts(stale=["changed: /c"], info=None), ["restart"], "restarted, because changed: /c"),
}


@pytest.mark.parametrize("need", NEEDS)
def test_running_does_what_is_needed_and_asks_again(state, need):
    found, wanted, _ = NEEDS[need]
    state.answers["status"] = [found, GOOD]
    ret = state.running("6379")
    assert (ret["result"], acts(state)) == (True, wanted), ret
    assert ret["changes"]


@pytest.mark.parametrize("need", NEEDS)
def test_running_announces_and_touches_nothing(state, need):
    state.__opts__["test"] = True
    state.answers["status"] = [NEEDS[need][0]]
    ret = state.running("6379")
    assert (ret["result"], acts(state)) == (None, [])
    assert ret["comment"] == f"redis_6379 would be {NEEDS[need][2]}"
    assert ret["changes"]


@pytest.mark.parametrize("test", [False, True])
def test_running_leaves_what_is_right_alone(state, test):
    state.__opts__["test"] = test
    state.answers["status"] = [GOOD]
    ret = state.running(6379)
    assert ret == {"name": 6379, "result": True, "changes": {}, "comment": "redis_6379 serves, pid 11"}
    assert acts(state) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (facts(info=None, info_error="TimeoutError: slow"), "does not answer: TimeoutError: slow"),
        (facts(info={"process_id": 99}), "its port is answered by process 99"),
        (facts(unfollowed="io-threads is '1', not '4'"), "was started with its config, and yet io-threads is '1'"),
    ],
)
def test_running_fails_for_a_server_that_is_right_and_does_not_serve(state, found, words):
    state.answers["status"] = [found]
    ret = state.running("6379")
    assert (ret["result"], ret["changes"], acts(state)) == (False, {}, [])
    assert words in ret["comment"]


def test_running_fails_with_the_records_words(state):
    state.answers["status"] = [facts(**STOPPED)]
    state.answers["start"] = [{"result": False, "comment": "redis_6379 did not start; its log ends with:\nboom"}]
    ret = state.running("6379")
    assert (ret["result"], ret["comment"]) == (False, "redis_6379 did not start; its log ends with:\nboom")


def test_running_fails_when_it_is_still_different(state):
    state.answers["status"] = [facts(enabled=False)]
    ret = state.running("6379")
    assert (ret["result"], ret["comment"]) == (False, "redis_6379 is still to be enabled at boot")


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("need", ["older than its config", "another build"])
def test_a_restart_that_is_left_to_a_person_is_a_warning_and_no_change(state, need, test):
    state.__opts__["test"] = test
    state.answers["status"] = [NEEDS[need][0]]
    why = NEEDS[need][0]["stale"][0]
    for ret in (state.running("6379", restart="never"), state.mod_watch("6379", restart="never")):
        assert (ret["result"], ret["changes"], acts(state)) == (True, {}, [])
        assert why in ret["comment"] and [why in line for line in ret["warnings"]] == [True]


@pytest.mark.parametrize("test", [False, True])
def test_workers_that_will_be_drained_are_told(state, test):
    state.__opts__["test"] = test
    state.answers |= {"status": [facts(stale=["changed: /c"], drains=True), GOOD], "beside": [["sidekiq.service"]]}
    ret = state.running("6379")
    assert ret["changes"]["drained"] == ["sidekiq.service"] and acts(state) == ([] if test else ["restart"])
    if test:
        assert "restarted, because changed: /c, with sidekiq.service drained and stopped meanwhile" in ret["comment"]


def test_nobody_who_would_be_drained_is_told(state):
    state.__opts__["test"] = True
    state.answers |= {"status": [facts(stale=["changed: /c"], drains=True)], "beside": [[]]}
    ret = state.running("6379")
    assert "drained" not in ret["changes"] and ret["comment"].endswith("would be restarted, because changed: /c")


@pytest.mark.parametrize("test", [False, True])
def test_a_restart_waits_for_its_window(state, test):
    state.__opts__["test"] = test
    state.answers |= {"status": [facts(stale=["changed: /c"])], "in_window": [False]}
    for ret in (
        state.running("6379", "window", "03:00-05:00"),
        state.mod_watch("6379", "running", "window", "03:00-05:00"),
    ):
        assert (ret["result"], ret["changes"], acts(state)) == (True, {}, [])
        assert (
            "a restart waits for a run between 03:00 and 05:00 (restart: window) for: changed: /c" in ret["warnings"][0]
        )
    state.answers |= {"status": [facts(stale=["changed: /c"]), GOOD], "in_window": [True]}
    assert state.running("6379", "window", "03:00-05:00")["result"] is (None if test else True)
    assert acts(state) == ([] if test else ["restart"])


def test_an_older_unit_is_loaded_anew_where_a_restart_is_left_to_a_person(state):
    state.answers["status"] = [facts(needs_reload=True), facts(stale=["changed: /u"])]
    ret = state.running("6379", restart="never")
    assert (ret["result"], acts(state), "changed: /u" in ret["warnings"][0]) == (True, ["reload_manager"], True)


def test_what_does_not_run_is_started_whatever_is_said_of_restarts(state):
    state.answers["status"] = [facts(**STOPPED), GOOD]
    assert state.running("6379", restart="never")["result"] is True
    assert acts(state) == ["start"]


def test_a_watched_change_is_announced_although_the_files_are_still_old(state):
    state.__opts__["test"] = True
    state.answers["status"] = [GOOD]
    ret = state.mod_watch("6379", sfun="running", __reqs__={})
    assert (ret["result"], bool(ret["changes"])) == (None, True)
    state.__opts__["test"] = False
    ret = state.mod_watch("6379", sfun="running")
    assert (ret["result"], ret["changes"], acts(state)) == (True, {}, [])
    assert state.mod_watch("6379", sfun="config")["result"] is False


# Files and services ------------------------------------------------------------------------------------------------

WISHES = {
    "client": (
        lambda state: state.client_installed("x"),
        "client",
        [{"suits": False, "version": "", "wanted": "r"}, {"suits": True, "version": "7.4.1", "wanted": "r"}],
        "client_install",
    ),
    "config": (lambda state: state.config("/c", 6379), "config_diff", [{"diff": "+port"}, {}], "config_write"),
    "no service": (
        lambda state: state.service_absent(6379, "sysv"),
        "service_files",
        [["/etc/init.d/redis_6379"], []],
        "service_remove",
    ),
}


@pytest.mark.parametrize("wish", WISHES)
def test_a_wish_is_announced_then_done_then_left_alone(state, wish):
    call, fact, (wrong, right), act = WISHES[wish]
    state.__opts__["test"] = True
    state.answers = {fact: [wrong], "config_check": ["fine"]}
    ret = call(state)
    assert (ret["result"], bool(ret["changes"]), acts(state)) == (None, True, [])

    state.__opts__["test"] = False
    state.answers = {fact: [wrong, right]}
    ret = call(state)
    assert (ret["result"], bool(ret["changes"]), acts(state)) == (True, True, [act])

    state.answers = {fact: [right]}
    ret = call(state)
    assert (ret["result"], ret["changes"], acts(state)) == (True, {}, [act])

    state.answers = {fact: [wrong]}  # the act has no effect
    assert call(state)["result"] is False


def test_a_config_is_judged_in_test_mode_too(state):
    state.__opts__["test"] = True
    state.answers = {"config_diff": [{"diff": "+x"}], "config_check": [CommandExecutionError("Redis refuses")]}
    ret = state.config("/c", "6379")
    assert (ret["result"], ret["comment"], acts(state)) == (False, "Redis refuses", [])


@pytest.mark.parametrize("error", [CommandExecutionError, SaltInvocationError])
def test_no_state_raises(state, error):
    state.answers = {name: [error("a sentence")] for name in (*(wish[1] for wish in WISHES.values()), "status")}
    for call in [wish[0] for wish in WISHES.values()]:
        assert (call(state)["result"], call(state)["comment"]) == (False, "a sentence")
    for ret in (state.running("6379"), state.mod_watch("6379")):
        assert (ret["result"], ret["comment"]) == (False, "a sentence")
