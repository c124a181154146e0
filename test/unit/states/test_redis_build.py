"""The decisions of _states/redis_build.py, with the execution module's answers given."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

BUILD = "7.0.15-abc"
HASH = "sha256=00"
SOURCE = {"source": "/packages/redis-7.0.15.tar.gz", "source_hash": HASH}
RECORD = {"build": BUILD, "compiled": True, "taken": False, "seconds": 30.0}


@pytest.fixture
def state(load):
    """The state module; ``state.answers``: functions' answers in order, the last stays; ``state.acts``: the rest."""
    module = load("_states/redis_build.py")
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
    return module


def acts(state):
    return [act[0].partition(".")[2] for act in state.acts]


def build(**more):
    return {"build": BUILD, "present": True, "current": BUILD, "leftovers": [], **more}


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (build(present=False, current=""), {"built"}),
        (build(present=False), {"built"}),
        (build(current="6.2.0-old"), set()),
        (build(leftovers=[".build-x"]), {"removed"}),
        (build(), set()),
    ],
)
def test_present(state, test, found, changes):
    state.__opts__["test"] = test
    state.answers = {"facts": [found, build()], "make": [RECORD], "source_check": ["it has the digest wanted"]}
    ret = state.present("7.0.15", **SOURCE)
    assert set(ret["changes"]) == changes
    assert ret["result"] is (None if test and changes else True)
    assert ("has the digest" in ret["comment"]) is (test and not found["present"])
    assert acts(state) == []


def test_present_says_where_a_build_comes_from(state):
    pack = {"pack": "salt://redis-builds/x.tar.gz", "pack_hash": HASH, "pack_name": "x"}
    state.__opts__["test"] = True
    state.answers = {"facts": [build(present=False)], "source_check": ["it is fetched and verified then"]}
    assert "would be taken from salt://redis-builds/x.tar.gz" in state.present("7.0.15", **SOURCE, **pack)["comment"]
    state.__opts__["test"] = False
    taken = {**RECORD, "compiled": False, "taken": True}
    state.answers = {"facts": [build(present=False), build()], "make": [taken]}
    assert "was taken from salt://redis-builds/x.tar.gz in 30 s" in state.present("7.0.15", **SOURCE, **pack)["comment"]
    state.answers = {"facts": [build(present=False), build()], "make": [RECORD]}
    comment = state.present("7.0.15", **SOURCE, pack_name="x")["comment"]
    assert "was compiled in 30 s; redis_sidekiq:redis:build:packs has no x" in comment


def test_present_fails_in_test_mode_for_a_tarball_that_is_wrong(state):
    state.__opts__["test"] = True
    state.answers = {"facts": [build(present=False)], "source_check": [CommandExecutionError("not the one")]}
    ret = state.present("7.0.15", **SOURCE)
    assert (ret["result"], ret["comment"], acts(state)) == (False, "not the one", [])


def test_present_fails_when_it_is_still_not_there(state):
    state.answers = {"facts": [build(present=False)], "make": [RECORD]}
    ret = state.present("7.0.15", **SOURCE)
    assert ret["result"] is False
    assert "still not in place: built" in ret["comment"]


@pytest.mark.parametrize(
    ("found", "test", "result", "done"),
    [
        (build(current=""), False, True, ["use"]),
        (build(current="6.2.0-old"), False, True, ["use"]),
        (build(current="6.2.0-old"), True, None, []),
        (build(present=False, current=""), True, None, []),
        (build(present=False), True, True, []),
        (build(present=False), False, True, ["use"]),
        (build(), False, True, []),
    ],
)
def test_current(state, found, test, result, done):
    state.__opts__["test"] = test
    state.answers = {"facts": [found, build()]}
    ret = state.current("7.0.15", HASH)
    assert (ret["result"], acts(state)) == (result, done)
    assert ("current" in ret["changes"]) is bool(done or result is None)


def test_current_fails_when_another_one_is(state):
    state.answers = {"facts": [build(current="6.2.0-old")]}
    ret = state.current("7.0.15", HASH)
    assert (ret["result"], ret["comment"]) == (False, f"6.2.0-old is the current build, and not {BUILD}")


WISHES = {
    "old builds": (lambda state: state.kept("/opt/redis", 2, "7.0.15", HASH), "spare", [["6.2.0-old"], []], "discard"),
    "links": (lambda state: state.linked("/b"), "links", [{"/b/redis-cli": {"old": "", "new": "/t"}}, {}], "link"),
    "no links": (lambda state: state.unlinked("/b"), "linked", [["/b/redis-cli"], []], "unlink"),
    "no builds": (
        lambda state: state.absent("/opt/redis"),
        "prefix_facts",
        [{"there": True, "ours": [BUILD], "others": []}, {"there": False, "ours": [], "others": []}],
        "remove",
    ),
}


@pytest.mark.parametrize("wish", WISHES)
def test_a_wish_is_announced_then_done_then_left_alone(state, wish):
    call, fact, (wrong, right), act = WISHES[wish]
    state.__opts__["test"] = True
    state.answers = {fact: [wrong]}
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


def test_builds_of_nobody_keep_the_prefix(state):
    state.answers = {"prefix_facts": [{"there": True, "ours": [], "others": ["mine"]}]}
    ret = state.absent("/opt/redis")
    assert (ret["result"], ret["changes"], ret["comment"]) == (True, {}, "/opt/redis stays, it holds mine")


@pytest.mark.parametrize("error", [CommandExecutionError, SaltInvocationError])
def test_no_state_raises(state, error):
    state.answers = {name: [error("a sentence")] for name in (*(wish[1] for wish in WISHES.values()), "facts")}
    for call in [wish[0] for wish in WISHES.values()]:
        assert (call(state)["result"], call(state)["comment"]) == (False, "a sentence")
    for ret in (state.present("7.0.15", **SOURCE), state.current("7.0.15", HASH)):
        assert (ret["result"], ret["comment"]) == (False, "a sentence")
