"""The pure parts of _modules/redis_acl.py: what is compared with what, and what follows."""

from __future__ import annotations

import hashlib

import pytest


def digest(password: str) -> str:
    return "#" + hashlib.sha256(password.encode()).hexdigest()


WORKER = {"name": "worker", "rules": ["~*", "+@all", "-@admin"], "hashes": [digest("new"), digest("old")]}
WISH = {"name": "6379", "unit": "redis_6379", "password": "boss", "users": [WORKER], "binary": "/no/such"}
MEANING = {"users": {"default": "on ~* &* +@all", "worker": "on ~* resetchannels +@all -@admin"}}


@pytest.fixture
def acl(load, monkeypatch):
    module = load("_modules/redis_acl.py")
    monkeypatch.setattr(module, "_runs_another_build", lambda server, wish: False)
    return module


class Server:
    """Answers as a Redis does that has these users."""

    def __init__(self, *lines, password="boss"):
        self.lines, self.password = lines, password

    def execute_command(self, *words):
        assert words == ("ACL", "LIST")
        return [f"user {line}" for line in self.lines]

    def info(self, section):
        return {"process_id": 1}

    def config_get(self, name):
        return {name: self.password}


DEFAULT = f"default on sanitize-payload {digest('boss')} ~* &* +@all"
RIGHT = f"worker on {digest('old')} {digest('new')} ~* resetchannels +@all -@admin"


@pytest.mark.parametrize(
    "lines, found",
    [
        ([DEFAULT, RIGHT], {}),
        ([DEFAULT, RIGHT.replace("on ", "on sanitize-payload ", 1)], {}),
        ([DEFAULT], {"worker": {"there": {"running": False, "wished": True}}}),
        ([DEFAULT, RIGHT, "x off"], {"x": {"there": {"running": True, "wished": False}}}),
        ([DEFAULT, RIGHT.replace(digest("old"), digest("x"))], {"worker": {"passwords": {"missing": 1, "surplus": 1}}}),
        ([DEFAULT, f"{RIGHT} -get"], {"worker": {"rules": {"running": "on ~* resetchannels +@all -@admin -get"}}}),
        ([DEFAULT, RIGHT.replace(" on ", " off ")], {"worker": {"rules": {}}}),
        (["default on nopass ~* &* +@all", RIGHT], {"default": {"passwords": {"missing": 1, "surplus": 1}}}),
        ([f"{DEFAULT} -flushall", RIGHT], {"default": {"rules": {}}}),
    ],
)
def test_users_are_compared_by_rules_and_digests(acl, lines, found):
    users = acl._compare(Server(*lines), WISH, MEANING)["users"]
    assert users.keys() == found.keys()
    for name, entry in found.items():
        assert users[name].keys() == entry.keys()
        for key, part in entry.items():
            assert part.items() <= users[name][key].items()


def test_a_new_password_of_the_default_user_is_the_affair_of_the_directives(acl):
    found = acl._compare(Server(DEFAULT.replace(digest("boss"), digest("x")), RIGHT, password="x"), WISH, MEANING)
    assert found == {"users": {}, "unasked": ""}


def test_while_another_build_runs_rules_are_not_compared(acl, monkeypatch):
    monkeypatch.setattr(acl, "_runs_another_build", lambda server, wish: True)
    assert acl._compare(Server(DEFAULT, f"{RIGHT} -get"), WISH, MEANING)["users"] == {}
    assert set(acl._compare(Server(DEFAULT), WISH, MEANING)["users"]) == {"worker"}


def test_who_takes_no_password_known_here_is_not_compared(acl):
    assert acl._compare(None, WISH, MEANING)["unasked"] == "it takes no password known here"


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("~* +@all -keys -sort", "~* +@all -sort -keys", True),
        ("+@all -keys -@admin", "+@all -@admin -keys", False),
        ("+get +@all", "+@all +get", False),
        ("-config +config|get", "+config|get -config", False),
        ("+a -config +config|get", "-config +config|get +a", True),
        ("on (~a +get +set) (~b +x)", "on (~a +set +get) (~b +x)", True),
        ("on (~a +get) (~b +set)", "on (~a +set) (~b +get)", False),
        ("+get (~a +set)", "+set (~a +get)", False),
        ("+get ~a", "~a +get", False),
    ],
)
def test_only_single_commands_in_a_row_may_change_places(acl, one, other, same):
    assert (acl._ordered(one) == acl._ordered(other)) is same


def test_a_user_is_made_from_nothing_and_strangers_go_last(acl):
    found = {"a": {}, "default": {}, "worker": {}}
    commands = acl._commands(WISH, found)
    assert list(commands.items()) == [
        ("default", ["ACL SETUSER", "default", "reset", "on", digest("boss"), "~*", "&*", "+@all"]),
        ("worker", ["ACL SETUSER", "worker", "reset", "on", *WORKER["hashes"], *WORKER["rules"]]),
        ("a", ["ACL DELUSER", "a"]),
    ]
    assert acl._commands({**WISH, "password": "", "users": []}, {"default": {}})["default"][4] == "nopass"
