"""Who has a port, whose a file is, and the words for it."""

from __future__ import annotations

import os
import socket

import pytest


@pytest.fixture
def takeover(load):
    module = load("_modules/redis_sidekiq_takeover.py")
    module.__salt__ = {"ufw_guard.listeners": load("_modules/ufw_guard.py").listeners}
    return module


def listening(takeover) -> list:
    return takeover.__salt__["ufw_guard.listeners"]()


def test_a_port_has_its_process(takeover):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [one] = [one for one in listening(takeover) if one["port"] == port]
        assert one["address"] == "127.0.0.1"
        assert takeover._owners({one["inode"]}) == {one["inode"]: [os.getpid()]}
    assert port not in [one["port"] for one in listening(takeover)]


def test_a_connection_holds_no_port(takeover):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getsockname()[1] not in [one["port"] for one in listening(takeover)]


@pytest.mark.parametrize(
    "listens, bind, meets",
    [
        ("127.0.0.1", ["127.0.0.1", "-::1"], True),
        ("::1", ["127.0.0.1", "-::1"], True),
        ("10.0.0.5", ["127.0.0.1", "-::1"], False),
        ("0.0.0.0", ["127.0.0.1"], True),
        ("::", ["127.0.0.1"], True),
        ("10.0.0.5", ["*", "-::*"], True),
        ("10.0.0.5", ["10.0.0.5"], True),
        ("fe80::1", ["fe80::1%eth0"], True),
        ("10.0.0.5", ["10.0.0.6"], False),
    ],
)
def test_who_listens_elsewhere_is_not_in_the_way(takeover, listens, bind, meets):
    assert takeover._meets(listens, bind) is meets


def test_holders_are_those_of_others(takeover):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        redis = {
            "instances": [
                {"name": name, "port": own, "tls": {}, "config": "/no/such", "bind": ["127.0.0.1"]}
                for name, own in (("6379", port), ("6380", 0))
            ]
        }
        known = {}
        takeover.__salt__ |= {
            "redis_sidekiq.settings": lambda: {"redis": redis},
            "redis_instances.found": lambda: known,
            "redis_server.status": lambda name, ask: {"pid": os.getpid()},
        }
        [holder] = takeover.holders()
        assert (holder["instance"], holder["port"], holder["pid"], holder["redis"]) == (
            "6379",
            port,
            os.getpid(),
            False,
        )
        assert str(os.getpid()) in holder["who"]
        known["6379"] = ["/etc/redis/6379.conf"]
        assert takeover.holders() == []


def test_a_process_that_cannot_be_seen_is_said_to_be_one(takeover):
    holder = takeover._holder({"name": "6379", "config": "/no/such"}, 6379, 0)
    assert holder["who"] == "a process that cannot be seen from here" and not holder["redis"]


def test_data_are_found_in_both_forms(takeover, tmp_path):
    (tmp_path / "appendonlydir").mkdir()
    for name in ("dump.rdb", "appendonlydir/appendonly.aof.1.base.rdb", "appendonlydir/x.manifest", "log.txt"):
        (tmp_path / name).write_text("x" * 1234)
    assert takeover._data(str(tmp_path)) == [
        "appendonlydir/appendonly.aof.1.base.rdb of 1 234 bytes",
        "appendonlydir/x.manifest of 1 234 bytes",
        "dump.rdb of 1 234 bytes",
    ]


def test_rules_in_words(takeover):
    rule = {
        "action": "allow",
        "direction": "in",
        "port": "22",
        "proto": "tcp",
        "interface": "",
        "from": "any",
        "to": "any",
    }
    assert takeover._rule_words(rule) == "allow in 22/tcp from any"
    rule |= {"interface": "eth0", "to": "10.0.0.1"}
    assert takeover._rule_words(rule) == "allow in 22/tcp on eth0 from any to 10.0.0.1"


def test_a_rule_of_sudo_that_goes_beyond_stops_the_run(takeover, whole_files):
    meant, more = (
        {"runas": "root", "command": command, "where": [place]}
        for command, place in (("/bin/systemctl restart sidekiq", "/etc/sudoers.d/x:1"), ("ALL", "/etc/sudoers:47"))
    )
    takeover.__salt__ = {
        **whole_files,
        "user.info": lambda user: {"name": user},
        "redis_sidekiq.settings": lambda: {"roles": ["deploy"], "deploy": {"user": "deploy", "sudoers": "/no/such"}},
        "sidekiq_sudo.sudo_installed": lambda: True,
        "sidekiq_sudo.sudo_check": lambda user, thorough=True: {"rules": [meant, more], "beyond": [more]},
    }
    found = takeover.found()
    assert [line.partition(": ")[0] for line in found["takes_over"]] == ["/etc/sudoers.d/x:1", "/etc/sudoers:47"]
    [line] = found["problems"]
    assert line.startswith("redis_sidekiq:deploy:user: ") and line.endswith("(root) ALL, by /etc/sudoers:47")


def test_a_program_of_others_in_a_links_place_stops_the_run(takeover):
    links = {
        "/usr/local/bin/redis-server": {"old": "a file of others", "new": "x"},
        "/usr/local/bin/redis-cli": {"old": "installed by hand", "new": "x"},
        "/usr/local/bin/redis-sentinel": {"old": "/opt/redis/current/bin/redis-sentinel", "new": "x"},
        "/usr/local/bin/redis-check-rdb": {"old": "", "new": "x"},
    }
    takeover.__salt__ = {"redis_build.links": lambda *_: links}
    redis = {"bin_dir": "/usr/local/bin", "prefix": "/opt/redis", "flavor": "redis", "instances": []}
    [line] = takeover._unlinkable(takeover._programs(redis))
    assert line.startswith("redis_sidekiq:redis:bin_dir: ") and line.endswith(": /usr/local/bin/redis-server")
    assert takeover._redis(redis, takeover._programs(redis))[0].startswith(
        "/usr/local/bin/redis-cli, /usr/local/bin/redis-server: made by others"
    )
