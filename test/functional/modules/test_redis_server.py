"""Configs of Redis, judged by a real server that starts with them."""

from __future__ import annotations

import contextlib
import os
import time

import pytest
from salt.exceptions import CommandExecutionError

from test.functional.conftest import REDIS

AWKWARD = [
    "plain",
    "two words",
    " edge ",
    'a"b',
    "it's",
    "back\\slash",
    "\\x41",
    "#no comment",
    "ü☃",
    "$x %d",
    '"',
    "\\",
]


def executing(folder) -> list[str]:
    """The processes whose program lies in a folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found += [pid] if os.readlink(f"/proc/{pid}/exe").startswith(f"{folder}/") else []
    return found


def wait_for(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def judge(load, whole_files, redis_build, open_folder, monkeypatch):
    """``judge(directives, password, bind)``: the module's config_check with these settings of an instance 6379."""
    module = load("_modules/redis_server.py")
    build, sandbox = load("_modules/redis_build.py"), load("_modules/redis_sandbox.py")
    monkeypatch.setattr(module, "_LOCK_DIR", str(open_folder))
    monkeypatch.setattr(sandbox, "_FOLDER", str(open_folder))
    monkeypatch.setattr(build, "name", lambda *_, **__: os.readlink(redis_build / "current"))
    functions = {f"redis_build.{name}": getattr(build, name) for name in ("binary", "builds", "name")}
    functions |= {f"redis_sandbox.{name}": getattr(sandbox, name) for name in ("account", "boot", "folder")}
    functions |= whole_files

    def check(directives=(), password="", bind=("127.0.0.1",)):
        base = [
            ["bind", "127.0.0.1"],
            ["port", "6379"],
            ["supervised", "systemd"],
            ["save", "60 1"],
            ["dir", "/no/such"],
        ]
        instance = {"name": "6379", "unit": "redis_6379", "config": "/etc/redis/6379.conf", "bind": list(bind)}
        instance |= {"directives": [*base, *directives], "password": password, "port": 6379}
        redis = {
            "flavor": "redis",
            "version": REDIS,
            "source_hash": "",
            "build": {"malloc": "libc", "tls": False},
            "user": "nobody",
            "group": "nogroup",
        }
        redis |= {"prefix": str(redis_build), "instances": [instance]}
        module.__salt__ = {**functions, "redis_sidekiq.settings": lambda reveal=False: {"redis": redis}}
        module.__context__ = {}
        return module.config_check("6379")

    return check


@pytest.mark.parametrize("password", AWKWARD)
def test_any_password_opens_the_server_that_reads_it(judge, password):
    assert judge(password=password) == f"Redis {REDIS} starts with it"


@pytest.mark.parametrize(
    ("directives", "words"),
    [
        ([["no-such-directive", "1"]], "Bad directive or wrong number of arguments"),
        ([["maxmemory", "lots"]], "argument must be a memory value"),
        ([["loadmodule", "/no/such.so"]], "Can't load module"),
        ([["requirepass", '"hush-hush" more']], "wrong number of arguments"),
    ],
)
def test_redis_own_words_are_told_without_a_password(judge, directives, words, open_folder):
    with pytest.raises(CommandExecutionError, match=f"(?s)Redis {REDIS} refuses the config.*{words}") as caught:
        judge(directives, password="sesame-open")
    assert "sesame" not in str(caught.value) and "hush" not in str(caught.value)
    assert "scratch" not in str(caught.value)
    assert [name for name in os.listdir(open_folder) if name.startswith("scratch")] == []


def test_no_server_is_left_of_a_judgement(judge, redis_build):
    judge()
    with pytest.raises(CommandExecutionError):
        judge(password="sesame-open", directives=[["loadmodule", "/no/such.so"]])
    wait_for(lambda: not executing(redis_build), 5)
