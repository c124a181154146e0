"""The words that _modules/redis_sandbox.py puts before a command, and whom it knows."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError


@pytest.fixture
def redis_sandbox(load):
    return load("_modules/redis_sandbox.py")


def test_a_sandbox_dies_with_its_parent_and_has_no_network(redis_sandbox):
    argv = redis_sandbox._argv({"user": "b", "uid": 7, "gid": 8}, ["/bin/make", "all"])
    text = " ".join(argv)
    assert argv[-2:] == ["/bin/make", "all"]
    for words in (
        "--pdeathsig KILL",
        "--pid --net",
        "--kill-child",
        "--reuid=7 --regid=8 --clear-groups",
        "--no-new-privs",
    ):
        assert words in text


def test_an_account_has_a_group_of_its_own_or_the_one_named(redis_sandbox):
    assert redis_sandbox.account("nobody")["uid"] == 65534
    assert redis_sandbox.account("nobody", "root") == {"user": "nobody", "uid": 65534, "gid": 0}
    with pytest.raises(CommandExecutionError, match="no user no-such"):
        redis_sandbox.account("no-such", "root")
    with pytest.raises(CommandExecutionError, match="no group no-such"):
        redis_sandbox.account("nobody", "no-such")


def test_a_server_to_be_asked_is_nothing_for_salts_bus(redis_sandbox):
    with pytest.raises(SaltInvocationError, match="for modules"):
        redis_sandbox.boot("/b", {}, "/f", None, __pub_fun="x")
