"""What the state makes of each answer."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError

WISHED = {"sha256": "bb", "since": 0, "until": 9}
SAME = {"wished": WISHED, "shown": WISHED, "same": True, "reads": True, "unasked": "", "expires": ""}
OTHER = {**SAME, "shown": {**WISHED, "sha256": "aa"}, "same": False}
CHANGE = {"certificate": {"old": "sha256 aa", "new": "sha256 bb"}}


@pytest.fixture
def run(load):
    """``run(answers, test)``: the state's return and what it did."""
    module = load("_states/redis_tls.py")

    def _run(*answers, test=False, refuses=""):
        left, acts = list(answers), []

        def reload(name):
            acts.append("reload")
            if refuses:
                raise CommandExecutionError(refuses)

        module.__opts__ = {"test": test}
        module.__salt__ = {
            "redis_tls.status": lambda name: left.pop(0),
            "redis_tls.reload": reload,
            "redis_tls.tidy": lambda name: acts.append("tidy"),
        }
        return module.live("6379"), acts

    return _run


def test_what_is_right_is_left_alone(run):
    assert run(SAME)[0] == {
        "name": "6379",
        "result": True,
        "changes": {},
        "comment": "Redis instance 6379 shows its certificate",
    }
    assert run(SAME, test=True)[1] == []


def test_files_that_were_changed_in_place_are_read_anew(run):
    ret, acts = run(OTHER, test=True)
    assert (ret["result"], ret["changes"], acts) == (None, CHANGE, [])
    ret, acts = run(OTHER, SAME)
    assert (ret["result"], ret["changes"], acts) == (True, CHANGE, ["reload", "tidy"])


def test_a_server_that_still_shows_another_one_fails(run):
    ret, _ = run(OTHER, OTHER)
    assert ret["result"] is False and "yet shows another certificate, sha256 aa" in ret["comment"]
    ret, _ = run(OTHER, refuses="Redis' words")
    assert (ret["result"], ret["changes"], ret["comment"]) == (False, {}, "Redis' words")


@pytest.mark.parametrize("test", [True, False])
def test_a_server_that_waits_for_its_settings_is_left_to_others(run, test):
    ret, acts = run({**OTHER, "reads": False}, test=test)
    assert (ret["result"], ret["changes"]) == (True, {}) and "until its settings are at work" in ret["comment"]
    assert "reload" not in acts


def test_nobody_who_shows_a_certificate_fails_a_real_run(run):
    silent = {**OTHER, "shown": {}, "unasked": "no certificate is shown at port 6390: refused"}
    assert run(silent, test=True)[0]["result"] is True
    ret, _ = run(silent)
    assert ret["result"] is False and "no certificate is shown at port 6390" in ret["comment"]


def test_an_end_that_is_near_is_warned_of(run):
    ret, _ = run({**SAME, "expires": "its certificate ends on 2026-01-01: renew it"})
    assert ret["warnings"] == ["Redis instance 6379: its certificate ends on 2026-01-01: renew it"]
