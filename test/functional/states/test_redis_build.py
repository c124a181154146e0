"""The states through Salt's loader, with a real build in a folder of the tests' own."""

from __future__ import annotations

import os

import pytest

from test.functional.conftest import REDIS


@pytest.fixture
def wish(prefix, redis_flags):
    return {"prefix": str(prefix), "user": "nobody", **redis_flags}


def test_a_build_is_announced_made_and_left_alone_and_is_not_current_by_that(states, make_tarball, wish, prefix):
    tarball = make_tarball()
    ret = states.redis_build.present(REDIS, **tarball, **wish, test=True)
    assert ret.result is None and set(ret.changes) == {"built"}
    assert "has the digest wanted" in ret.comment
    assert not prefix.exists()

    ret = states.redis_build.present(REDIS, **tarball, **wish)
    assert ret.result is True and set(ret.changes) == {"built"}
    assert "was compiled in" in ret.comment
    assert os.listdir(prefix) == [ret.changes["built"]]

    for test in (True, False):
        ret = states.redis_build.present(REDIS, **tarball, **wish, test=test)
        assert (ret.result, ret.changes) == (True, {})


def test_a_build_becomes_the_current_one(states, make_tarball, wish, prefix):
    tarball = make_tarball()
    source_hash = tarball["source_hash"]
    ret = states.redis_build.current(REDIS, source_hash=source_hash, **wish)
    assert ret.result is False and "There is no build" in ret.comment
    build = states.redis_build.present(REDIS, **tarball, **wish).changes["built"]
    ret = states.redis_build.current(REDIS, source_hash=source_hash, **wish, test=True)
    assert (ret.result, ret.changes) == (None, {"current": {"old": "", "new": build}})
    assert os.listdir(prefix) == [build]
    ret = states.redis_build.current(REDIS, source_hash=source_hash, **wish)
    assert (ret.result, ret.changes) == (True, {"current": {"old": "", "new": build}})
    assert os.readlink(prefix / "current") == build
    for test in (True, False):
        ret = states.redis_build.current(REDIS, source_hash=source_hash, **wish, test=test)
        assert (ret.result, ret.changes) == (True, {})


@pytest.mark.parametrize("test", [True, False])
def test_a_tarball_that_is_wrong_or_missing_fails_in_test_mode_too(states, make_tarball, wish, prefix, test):
    tarball = make_tarball()
    ret = states.redis_build.present(REDIS, **{**tarball, "source_hash": "sha256=" + "0" * 64}, **wish, test=test)
    assert ret.result is False and "0" * 64 in ret.comment and tarball["source_hash"][7:] in ret.comment
    ret = states.redis_build.present(REDIS, **{**tarball, "source": "/no/such.tar.gz"}, **wish, test=test)
    assert ret.result is False and "/no/such.tar.gz cannot be read" in ret.comment
    assert not prefix.exists() or os.listdir(prefix) == []


def test_the_compilers_words_are_in_the_comment(states, make_tarball, wish):
    bad = make_tarball(redis_server="echo 'this is not C;' > server.c && $(CC) -c server.c -o $@")
    ret = states.redis_build.present(REDIS, **bad, **wish)
    assert ret.result is False
    assert "server.c:1" in ret.comment and "error:" in ret.comment


def test_leftovers_of_a_cut_off_run_are_removed(states, make_tarball, wish, prefix):
    tarball = make_tarball()
    states.redis_build.present(REDIS, **tarball, **wish)
    (prefix / ".build-x" / "work").mkdir(parents=True)
    ret = states.redis_build.present(REDIS, **tarball, **wish, test=True)
    assert (ret.result, ret.changes) == (None, {"removed": [".build-x"]})
    ret = states.redis_build.present(REDIS, **tarball, **wish)
    assert (ret.result, ret.changes) == (True, {"removed": [".build-x"]})
    assert not (prefix / ".build-x").exists()


def test_links_and_the_way_back(states, make_tarball, wish, prefix):
    tarball = make_tarball()
    states.redis_build.present(REDIS, **tarball, **wish)
    states.redis_build.current(REDIS, source_hash=tarball["source_hash"], **wish)
    folder = prefix.parent / "bin"
    assert states.redis_build.linked(str(folder), prefix=str(prefix), test=True).result is None
    assert not folder.exists()
    ret = states.redis_build.linked(str(folder), prefix=str(prefix))
    assert ret.result is True and len(ret.changes) == 6
    assert (folder / "redis-cli").resolve().parent.parent.parent == prefix.resolve()
    assert states.redis_build.linked(str(folder), prefix=str(prefix)).changes == {}

    assert states.redis_build.unlinked(str(folder), prefix=str(prefix), test=True).result is None
    assert len(states.redis_build.unlinked(str(folder), prefix=str(prefix)).changes["removed"]) == 6
    assert states.redis_build.unlinked(str(folder), prefix=str(prefix)).changes == {}
    assert states.redis_build.absent(str(prefix), test=True).result is None
    assert states.redis_build.absent(str(prefix)).result is True
    assert not prefix.exists()
    assert states.redis_build.absent(str(prefix)).changes == {}
