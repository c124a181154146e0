"""A running Redis compared with its config and brought to it, with a real server of a real build."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import time

import pytest
import redis
from salt.exceptions import CommandExecutionError

from test.functional.conftest import REDIS

BASE = [["supervised", "no"], ["daemonize", "no"], ["pidfile", '""'], ["logfile", '""'], ["appendonly", "yes"]]
with open("/proc/sys/fs/nr_open") as kernel:
    MOST_FILES = int(kernel.read())
CHANGED = {
    "maxmemory": "1gb",
    "maxmemory-policy": "allkeys-lru",
    "maxmemory-clients": "5%",
    "client-output-buffer-limit": "pubsub 64mb 16mb 90",
    "notify-keyspace-events": "KEA",
    "oom-score-adj-values": "0 100 800",
    "slave-priority": "50",
    "hash-max-ziplist-entries": "64",
    "tcp-keepalive": "60",
    "lua-time-limit": "1000",
    "loglevel": "VERBOSE",
    "proto-max-bulk-len": "1g",
    "lazyfree-lazy-eviction": "yes",
    "maxclients": "500",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Instance:
    """One instance: what its settings say (``wish``), its server, and the modules' functions on it."""

    def __init__(self, load, prefix, folder, monkeypatch):
        self.server = load("_modules/redis_server.py")
        self.config = load("_modules/redis_config.py")
        build, sandbox = load("_modules/redis_build.py"), load("_modules/redis_sandbox.py")
        self.state = load("_states/redis_config.py")
        self.folder, self.prefix, self.process, self.boots = folder, prefix, None, 0
        self.port = free_port()
        self.data = folder / "data"
        self.data.mkdir()
        self.wish = {"name": "1", "unit": "redis_1", "port": self.port, "bind": ["127.0.0.1"], "dir": str(self.data)}
        self.wish["config"] = str(folder / "1.conf")
        self.say()
        settings = {
            "flavor": "redis",
            "version": REDIS,
            "source_hash": "",
            "build": {"malloc": "libc", "tls": False},
            "user": "nobody",
        }
        settings |= {"group": "root", "prefix": str(prefix), "instances": [self.wish]}
        functions = {"redis_sidekiq.settings": lambda reveal=False: {"redis": settings}}
        monkeypatch.setattr(self.server, "_LOCK_DIR", str(folder / "lock"))
        monkeypatch.setattr(self.config, "_FOLDER", str(folder / "kept"))
        monkeypatch.setattr(sandbox, "_FOLDER", str(folder / "lock"))
        monkeypatch.setattr(build, "name", lambda *_, **__: os.readlink(prefix / "current"))
        boot = sandbox.boot

        def counted(*args, **kwargs):
            self.boots += 1
            return boot(*args, **kwargs)

        monkeypatch.setattr(sandbox, "boot", counted)
        known = {"redis_server": self.server, "redis_config": self.config}
        known |= {"redis_build": build, "redis_sandbox": sandbox, "redis_upgrade": load("_modules/redis_upgrade.py")}
        known |= {name: load(f"_modules/{name}.py") for name in ("redis_instances", "whole_files")}
        for name, module in known.items():
            functions |= {f"{name}.{key}": value for key, value in vars(module).items() if callable(value)}
            module.__salt__, module.__context__ = functions, {}
        self.state.__salt__, self.state.__opts__ = functions, {"test": False}

    def say(self, directives: dict | None = None, password: str = "") -> None:
        lines = [["bind", "127.0.0.1"], ["port", str(self.port)], ["dir", str(self.data)], *BASE]
        for name, values in (directives or {}).items():
            lines = [line for line in lines if line[0] != name]
            lines += [[name, value] for value in ([values] if isinstance(values, str) else values)]
        self.wish.update(directives=lines, password=password)

    def write(self) -> None:
        self.new_run()
        self.server.config_write(self.wish["config"], "1")

    def new_run(self) -> None:
        """Forget what a run of its own would not know."""
        self.server.__context__.clear()

    def start(self) -> None:
        self.write()
        argv = [self.prefix / "current/bin/redis-server", self.wish["config"]]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=self.data)
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(redis.RedisError):
                if self.client().ping():
                    return
            assert time.monotonic() < until
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def client(self, password: str | None = None):
        password = self.wish["password"] if password is None else password
        return redis.Redis(port=self.port, password=password or None, decode_responses=True)

    def drift(self) -> dict:
        found = self.config.drift("1")
        assert found["unasked"] == ""
        return found["directives"]


@pytest.fixture
def instance(load, redis_build, open_folder, request, monkeypatch):
    folder = open_folder / f"c{abs(hash(request.node.nodeid)) % 10**8}"
    (folder / "lock").mkdir(parents=True)
    made = Instance(load, redis_build, folder, monkeypatch)
    yield made
    made.stop()


def test_a_server_that_was_started_with_its_config_does_not_differ(instance):
    instance.say(
        {**CHANGED, "save": ["900 1", "300 10"], "unixsocket": f'"{instance.folder}/s"', "unixsocketperm": "0770"}
    )
    instance.start()
    assert instance.drift() == {}
    assert instance.boots == 1  # that which judged the file


@pytest.mark.parametrize("save", [["900 1", "300 10"], '"900 1 300 10"', "900 1 300 10", '""'])
def test_save_points_are_compared_as_redis_means_them(instance, save):
    instance.say({"save": '""' if save == '""' else ["900 1", "300 10"]})
    instance.start()
    instance.say({"save": save})
    instance.write()
    assert instance.drift() == {}
    instance.say()
    instance.write()
    assert set(instance.drift()) == {"save"}


def test_what_changed_is_set_live_and_what_was_dropped_goes_back(instance):
    instance.start()
    process, before = instance.process.pid, instance.client().config_get("*")
    instance.say({**CHANGED, "save": '""', "databases": "32", "io-threads": "2"}, password="sesame-open")
    instance.write()
    found = instance.drift()
    fixed = {name for name, entry in found.items() if not entry["live"]}
    assert fixed == {"databases", "io-threads"}
    assert len(found) == len(CHANGED) + len({"save", "requirepass"} | fixed)
    assert found["maxmemory"] == {"running": "0", "wished": str(1 << 30), "live": True}
    assert found["requirepass"] == {"running": "", "wished": "******", "live": True}

    record = instance.config.apply("1")
    assert (set(record["set"]), record["restart"], record["failed"]) == (set(found) - fixed, sorted(fixed), {})
    assert "sesame" not in json.dumps([found, record])
    client = instance.client()
    said = client.config_get("*")
    assert (said["maxmemory"], said["save"], said["proto-max-bulk-len"]) == (str(1 << 30), "", "1000000000")
    assert said["client-output-buffer-limit"].startswith("normal 0 0 0 slave") and "pubsub 67108864" in str(said)
    assert client.info("server")["process_id"] == process
    assert set(instance.drift()) == fixed

    instance.say(password="sesame-open")
    instance.write()
    instance.config.apply("1")
    after = client.config_get("*")
    assert {name for name in before if before[name] != after[name]} == {"requirepass"}


def test_what_somebody_set_by_hand_is_put_right_without_a_boot(instance):
    instance.start()
    assert instance.state.live("1")["changes"] == {}
    client, boots = instance.client(), instance.boots
    client.config_set("maxmemory", "5mb")
    client.config_set("loglevel", "debug")
    client.config_set("appendonly", "no")
    instance.new_run()
    instance.state.__opts__["test"] = True
    announced = instance.state.live("1")
    assert (announced["result"], client.config_get("maxmemory")["maxmemory"]) == (None, str(5 << 20))
    instance.state.__opts__["test"] = False
    ret = instance.state.live("1")
    assert (ret["result"], ret["changes"]) == (True, announced["changes"])
    assert ret["changes"]["maxmemory"] == {"old": str(5 << 20), "new": "0"}
    assert client.info("persistence")["aof_enabled"] == 1
    assert (instance.state.live("1")["changes"], instance.boots) == ({}, boots)


def test_a_lost_or_old_memory_costs_one_boot_and_changes_nothing(instance):
    instance.say(password="sesame-open")
    instance.start()
    kept = instance.folder / "kept" / "redis_1.json"
    for spoil in (kept.unlink, lambda: kept.write_text("{"), lambda: kept.write_text('{"key": "x"}')):
        spoil()
        instance.new_run()
        boots = instance.boots
        assert instance.state.live("1")["changes"] == {}
        assert instance.state.live("1")["changes"] == {}
        assert instance.boots == boots + 1
    assert "sesame" not in kept.read_text()


def test_test_mode_keeps_nothing(instance):
    instance.start()
    (instance.folder / "kept" / "redis_1.json").unlink()
    instance.say({"hz": "20"})
    instance.state.__opts__["test"] = True
    assert instance.state.live("1")["changes"] == {"hz": {"old": "10", "new": "20"}}
    assert os.listdir(instance.folder / "kept") == []


def test_one_that_redis_refuses_keeps_no_other_from_being_set(instance):
    instance.start()
    # The judging server lowers it to what it can have, and so it lands.
    instance.say({"hz": "20", "maxclients": str(MOST_FILES + 1000)})
    instance.write()
    record = instance.config.apply("1")
    assert record["set"] == ["hz"] and set(record["failed"]) == {"maxclients"}
    assert "not able to handle" in record["failed"]["maxclients"]
    ret = instance.state.live("1")
    assert ret["result"] is False and "not able to handle" in ret["comment"]


def test_more_clients_than_the_process_may_have_files_take_a_restart(instance):
    instance.start()
    resource.prlimit(instance.process.pid, resource.RLIMIT_NOFILE, (1500, 1500))
    instance.say({"hz": "20", "maxclients": "1469"})
    instance.write()
    assert instance.config.drift("1")["directives"]["maxclients"]["live"] is False
    record = instance.config.apply("1")
    assert (record["set"], record["restart"], record["failed"]) == (["hz"], ["maxclients"], {})
    # More than anybody could give is for Redis to refuse.
    instance.say({"maxclients": str(MOST_FILES + 1000)})
    assert instance.config.drift("1")["directives"]["maxclients"]["live"] is True


@pytest.mark.parametrize("wish", ["no", "yes"])
def test_a_crash_right_after_aof_was_switched_finds_every_key(instance, wish):
    other = {"no": "yes", "yes": "no"}[wish]
    instance.say({"appendonly": other, "save": "3600 1"})
    instance.start()
    client = instance.client()
    client.mset({f"key:{number}": "x" * 100 for number in range(2000)})
    instance.say({"appendonly": wish, "save": "3600 1"})
    instance.write()
    assert instance.config.apply("1")["set"] == ["appendonly"]
    instance.stop()
    instance.start()
    assert instance.client().dbsize() == 2000
    assert instance.drift() == {}


def test_passwords_are_changed_under_a_connection_that_stays(instance):
    instance.say(password="first-sesame")
    instance.start()
    client = instance.client()
    assert client.ping()
    for password in ("second-sesame", 'a"b c\\d ü☃', ""):
        instance.say(password=password)
        instance.write()
        ret = instance.state.live("1")
        assert ret["result"] is True and set(ret["changes"]) == {"requirepass"}
        assert "sesame" not in json.dumps(ret) and "☃" not in json.dumps(ret, ensure_ascii=False)
        assert client.ping() and instance.client().ping()
    with pytest.raises(redis.AuthenticationError):
        instance.client("first-sesame").ping()


def test_a_server_that_takes_no_password_known_here_is_told_nothing(instance):
    instance.start()
    instance.client().config_set("requirepass", "of-somebody-else")
    assert instance.config.drift("1")["unasked"] == "it takes no password known here"
    with pytest.raises(CommandExecutionError, match="takes no password known here"):
        instance.config.apply("1")
    assert instance.state.live("1")["result"] is True


def test_a_server_that_is_down_is_told_nothing(instance):
    instance.write()
    assert instance.config.drift("1") == {"directives": {}, "unasked": "no server answers"}


def test_lines_that_config_get_does_not_know_take_a_restart_until_there_was_one(instance):
    instance.start()
    time.sleep(1.1)
    instance.say({"replicaof": "127.0.0.1 1"})
    assert instance.drift()["replicaof"] == {"running": "", "wished": "127.0.0.1 1", "live": False}  # not written yet
    instance.write()
    assert set(instance.drift()) == {"replicaof"}
    instance.stop()
    instance.start()
    assert instance.drift() == {}
    instance.client().replicaof("no", "one")  # a failover is nobody's mistake
    assert instance.drift() == {}


def test_every_directive_that_is_said_to_be_live_is_taken_in_one_command(instance):
    instance.start()
    record = instance.config._read("1")
    values = instance.config._named(record["values"])
    names = [name for name in values if name not in {*record["fixed"], *instance.config._FROM_TEXT}]
    assert len(names) > 100
    assert instance.client().execute_command("CONFIG SET", *[word for name in names for word in (name, values[name])])
    for name in ("databases", "unixsocket", "io-threads", "dir", "dbfilename", "tcp-backlog"):
        assert name in record["fixed"]


def test_a_server_of_another_build_is_compared_in_what_the_config_names(instance, monkeypatch):
    instance.say({"hz": "20"})
    instance.start()
    client = instance.client()
    client.config_set("hz", "30")
    client.config_set("maxmemory", "5mb")
    assert set(instance.drift()) == {"hz", "maxmemory"}
    monkeypatch.setattr(instance.config, "_runs_another_build", lambda *_: True)
    assert set(instance.drift()) == {"hz"}


def answers_at(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), 5):
        return True
    return False


def test_addresses_change_under_a_connection_that_stays(instance):
    instance.start()
    client = instance.client()
    assert client.ping() and not answers_at("127.0.0.2", instance.port)
    for bind in ("127.0.0.1 127.0.0.2", "127.0.0.1"):
        instance.say({"bind": bind})
        instance.write()
        assert instance.config.apply("1") == {"set": ["bind"], "restart": [], "failed": {}}
        assert client.ping() and answers_at("127.0.0.2", instance.port) is (bind != "127.0.0.1")


def test_an_address_that_cannot_be_had_leaves_the_server_where_it_was(instance):
    instance.start()
    with socket.socket() as other:
        other.bind(("127.0.0.2", instance.port))
        other.listen()
        instance.say({"bind": "127.0.0.1 127.0.0.2", "hz": "20"})
        instance.write()
        record = instance.config.apply("1")
    assert (record["set"], set(record["failed"])) == (["hz"], {"bind"})
    assert instance.client().config_get("bind") == {"bind": "127.0.0.1"}
    assert instance.config.apply("1")["set"] == ["bind"]
