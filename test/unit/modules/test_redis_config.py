"""The pure parts of _modules/redis_config.py: what is compared with what, and what is kept."""

from __future__ import annotations

import json
import os

import pytest

VALUES = {
    "maxmemory": "1073741824",
    "appendonly": "no",  # of the server that judged the config
    "port": "0",
    "bind": "*",
    "dir": "/run/scratch",
    "unixsocketperm": "700",
    "maxclients": "1000",
    "slave-priority": "100",
    "replica-priority": "100",
    "lua-time-limit": "5000",
    "busy-reply-threshold": "5000",
    "server_cpulist": "",
    "replicaof": "10.0.0.1 6379",
}
LINES = [
    ["bind", "127.0.0.1 -::1"],
    ["port", "6379"],
    ["dir", "/var/redis/6379"],
    ["appendonly", "yes"],
    ["maxclients", "010"],
    ["maxclients", '"20"'],
    ["unixsocketperm", "0770"],
]
WISH = {"name": "6379", "unit": "redis_6379", "directives": LINES, "password": "", "binary": "/b", "config": "/c"}


@pytest.fixture
def redis_config(load, tmp_path, monkeypatch):
    """The module, with its folder in the test's own."""
    module = load("_modules/redis_config.py")
    monkeypatch.setattr(module, "_FOLDER", str(tmp_path / "kept"))
    monkeypatch.setattr(module, "_wish", lambda instance: WISH)
    return module


def test_where_the_judging_server_has_values_of_its_own_the_config_says_them(redis_config):
    wished = redis_config._wished(WISH, {"values": VALUES})
    assert wished == {
        "maxmemory": "1073741824",
        "appendonly": "yes",
        "port": "6379",
        "bind": "127.0.0.1 -::1",
        "dir": "/var/redis/6379",
        "unixsocketperm": "770",
        "maxclients": "20",
        "replica-priority": "100",
        "busy-reply-threshold": "5000",
        "server_cpulist": "",
        "requirepass": "",
    }
    assert redis_config._wished({**WISH, "directives": []}, {"values": VALUES})["maxclients"] == "10000"


def test_two_names_of_one_directive_are_compared_once(redis_config):
    named = redis_config._named(
        {"slave-priority": "1", "replica-priority": "1", "server_cpulist": "", "server-cpulist": ""}
    )
    assert named == {"replica-priority": "1", "server-cpulist": ""}
    assert redis_config._named({"slave-priority": "1"}) == {"slave-priority": "1"}  # an old release has this one alone


def test_a_password_is_never_shown(redis_config):
    entries = redis_config._entries({"requirepass": ("old", "new"), "hz": ("10", "20")}, {"hz"})
    assert entries["requirepass"] == {"running": "******", "wished": "******", "live": True}
    assert entries["hz"] == {"running": "10", "wished": "20", "live": False}
    assert redis_config._entries({"requirepass": ("old", "")}, set())["requirepass"]["wished"] == ""


# Directives that CONFIG GET does not know ----------------------------------------------------------------------------

MODULE = [["loadmodule", "/a.so"], ["loadmodule", "/b.so x"], ["slaveof", "h 1"], ["slave-priority", "5"]]


def test_lines_that_cannot_be_compared(redis_config):
    found = redis_config._unseen([*LINES, *MODULE], VALUES)
    assert found == {"loadmodule": ["/a.so", "/b.so x"], "replicaof": ["h 1"]}


def test_such_lines_are_late_only_for_a_process_that_is_older(redis_config):
    old = {"loadmodule": {"lines": ["/a.so"], "before": [], "since": 100.5}}
    aged = redis_config._aged(old, {"loadmodule": ["/b.so"]}, 200.5)
    assert aged == {"loadmodule": {"lines": ["/b.so"], "before": ["/a.so"], "since": 200.5}}
    assert redis_config._aged(old, {"loadmodule": ["/a.so"]}, 200.5) == old
    gone = redis_config._aged(old, {}, 200.5)
    assert gone["loadmodule"]["lines"] == [] and redis_config._aged(gone, {}, 300.5) == gone

    def late(started):
        return redis_config._late(aged, {"server_time_usec": 300_900_000, "uptime_in_seconds": 300 - started})

    assert late(150) == {"loadmodule": {"running": "/a.so", "wished": "/b.so", "live": False}}
    assert late(200) == {} == late(250)
    assert (
        redis_config._late(
            {"loadmodule": {"lines": ["x"], "since": 0}}, {"server_time_usec": 1, "uptime_in_seconds": 0}
        )
        == {}
    )


# What is kept --------------------------------------------------------------------------------------------------------


@pytest.fixture
def meanings(redis_config, whole_files, tmp_path):
    """The keys that a server was started for; ``meanings.key`` is that of the settings."""

    class Meanings(list):
        key = "a"

    asked = Meanings()

    def config_meaning(instance, known=None):
        if known and known.get("key") == asked.key:
            return known
        asked.append(asked.key)
        return {"key": asked.key, "values": {"hz": "10"}, "fixed": [], "users": {}}

    redis_config.__salt__ = {"redis_server.config_meaning": config_meaning, **whole_files}
    return asked


def test_a_server_is_asked_once_for_a_config(redis_config, meanings):
    for _ in range(3):
        redis_config.remember("6379")
    assert meanings == ["a"]
    meanings.key = "b"
    redis_config.remember("6379")
    redis_config.remember("6379")
    assert meanings == ["a", "b"]
    path = redis_config._path("6379")
    assert (os.stat(path).st_mode & 0o777, os.listdir(os.path.dirname(path))) == (0o600, ["redis_6379.json"])


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"key": "a"}'])
def test_what_was_kept_and_is_no_use_is_asked_anew(redis_config, meanings, text):
    redis_config.remember("6379")
    path = redis_config._path("6379")
    if text is None:
        os.unlink(path)
    else:
        with open(path, "w") as stream:
            stream.write(text)
    redis_config.remember("6379")
    assert meanings == ["a", "a"]
    with open(path) as stream:
        assert json.load(stream)["key"] == "a"


def test_without_what_was_kept_no_line_is_young(redis_config, meanings, monkeypatch, tmp_path):
    config = tmp_path / "6379.conf"
    config.write_text("# x\nport 1\n LoadModule  /a.so\nrequirepass sesame\nmasterauth sesame\nuser x >sesame\n")
    now = {**WISH, "config": str(config), "directives": [["loadmodule", "/a.so"]]}
    monkeypatch.setattr(redis_config, "_wish", lambda instance: now)
    assert redis_config._record("6379")["unseen"]["loadmodule"]["since"] == 0
    now["directives"] = [["loadmodule", "/b.so"]]
    assert "sesame" not in json.dumps(redis_config._record("6379"))
    assert redis_config._record("6379")["unseen"]["loadmodule"]["since"] > 0


# What a record says --------------------------------------------------------------------------------------------------


def test_what_still_differs_was_not_set_whatever_redis_said(redis_config):
    left = {
        "hz": {"running": "10", "wished": "20", "live": True},
        "databases": {"running": "16", "wished": "32", "live": False},
        "io": {"running": "1", "wished": "2", "live": True},
        "new": {"running": "1", "wished": "2", "live": True},
    }
    refused = {"io": "ERR no", "new": "CONFIG SET failed - can't set immutable config"}
    record = redis_config._said(["hz", "io", "maxmemory", "new"], left, refused)
    assert record == {
        "set": ["maxmemory"],
        "restart": ["databases", "new"],
        "failed": {"hz": "it says 10", "io": "ERR no"},
    }
