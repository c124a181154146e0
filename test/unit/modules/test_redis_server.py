"""The pure parts of _modules/redis_server.py: quoting, what is shown, what /proc says."""

from __future__ import annotations

import json
import os
import re
import time

import pytest
import redis
from salt.exceptions import CommandExecutionError, SaltInvocationError

INSTANCE = {
    "name": "6379",
    "port": 6379,
    "unit": "redis_6379",
    "config": "/etc/redis/6379.conf",
    "dir": "/var/redis/6379",
    "bind": ["127.0.0.1", "-::1"],
    "directives": [["port", "6379"], ["save", '""'], ["appendonly", "yes"], ["logfile", "/var/log/redis/6379.log"]],
    "password": "sesame-open",
}


@pytest.fixture
def redis_server(load):
    """The module with settings; every command is answered by ``redis_server.answers`` (a list, in order)."""
    module = load("_modules/redis_server.py")
    module.calls, module.answers, module.__context__ = [], [], {}

    def run_all(argv, **kwargs):
        assert kwargs["python_shell"] is False
        module.calls.append(argv)
        answer = module.answers.pop(0) if module.answers else ""
        return answer if isinstance(answer, dict) else {"retcode": 0, "stdout": answer, "stderr": ""}

    module.redis = {"instances": [INSTANCE], "prefix": "/opt/redis", "group": "root", "service_manager": "systemd"}
    module.redis |= {
        "drain_sidekiq": True,
        "flavor": "redis",
        "version": "7.0.15",
        "source_hash": "",
        "build": {"malloc": "libc", "tls": False},
    }
    module.drift = {"directives": {}, "unasked": ""}
    module.__salt__ = {
        "cmd.run_all": run_all,
        "redis_build.binary": lambda prefix, build: f"{prefix}/{build}/bin/redis-server",
        "redis_build.builds": lambda prefix: [{"build": "7.0.15-abc"}],
        "redis_build.name": lambda *flags, **more: "7.0.15-abc",
        "redis_config.drift": lambda instance: module.drift,
        "redis_instances.kept": lambda path: f"/nonexistent{path}",
        "redis_instances.others": lambda instance: [],
        "redis_sidekiq.settings": lambda reveal=False: {"redis": module.redis},
        "redis_upgrade.facts": lambda instance: {"under_way": "", "wished": "7.0.15-abc"},
    }
    module._tool = lambda name, package: f"/usr/bin/{name}"
    return module


# Config -------------------------------------------------------------------------------------------------------------

PASSWORDS = [
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
    "\\",
    '"',
]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_is_read_back_as_it_was(redis_server, password):
    line = redis_server._quoted(password)
    assert line.isascii() and "\n" not in line
    assert redis_server._password_in(f"port 1\nrequirepass {line}\n") == password


@pytest.mark.parametrize(
    ("line", "password"), [("plain", "plain"), ("'it\\'s'", "it's"), ('"a\\x41\\n"', "aA\n"), ("a b", "a")]
)
def test_a_password_that_others_wrote_is_read(redis_server, line, password):
    assert redis_server._password_in(f"requirepass old\n  RequirePass {line}") == password


def test_a_diff_shows_no_secret(redis_server, tmp_path):
    path = tmp_path / "6379.conf"
    diff = redis_server.config_diff(str(path), "6379")
    assert diff["password"] == "set" and "+port 6379" in diff["diff"]
    path.write_text('port 1\nrequirepass "hush-hush"\nmasterauth whisper\nuser x on >murmur ~* +@all\n')
    path.chmod(0o644)
    diff = redis_server.config_diff(str(path), "6379")
    assert diff["password"] == "changed" and diff["mode"] == {"old": "0644", "new": "0640"}
    assert "-masterauth ******" in diff["diff"]
    assert not re.search("hush|whisper|murmur|sesame", json.dumps(diff))
    path.write_text(redis_server._config_text(INSTANCE))
    path.chmod(0o640)
    assert redis_server.config_diff(str(path), "6379") == {}
    assert redis_server.config_diff(str(path), 6379) == {}
    path.write_text(path.read_text().replace("sesame-open", "x"))
    assert redis_server.config_diff(str(path), "6379") == {"password": "changed"}


@pytest.mark.parametrize("password", [password for password in PASSWORDS if len(password) > 2])
def test_redis_words_show_no_password(redis_server, password):
    quoted = redis_server._quoted(password)
    text = f">>> 'requirepass {quoted}'\nwrong: {password} and {quoted} in it"
    assert password not in redis_server._blot(text, password).replace("and", "").replace("in it", "")


def test_only_instances_of_the_settings_are_known(redis_server):
    for name in ("6380", "../6379", None):
        with pytest.raises(SaltInvocationError, match="is not a Redis instance of this minion.* has: 6379"):
            redis_server.config_diff("/c", name)


def test_addresses_that_the_host_lacks(redis_server, monkeypatch):
    class Socket:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def bind(self, place):
            if not place[0].startswith("127."):
                raise OSError(99, "Cannot assign requested address")

    # This machine may allow any address (sysctl net.ipv4.ip_nonlocal_bind), and Redis would be allowed it then too.
    monkeypatch.setattr(redis_server.socket, "socket", Socket)
    assert redis_server._missing_addresses(["127.0.0.1", "*", "-192.0.2.1", "192.0.2.2"]) == ["192.0.2.2"]


@pytest.mark.parametrize(
    ("bind", "host"),
    [
        (["127.0.0.1", "-::1"], "127.0.0.1"),
        (["*"], "127.0.0.1"),
        (["-127.0.0.1", "10.0.0.5"], "127.0.0.1"),
        (["-192.0.2.1", "10.0.0.5"], "10.0.0.5"),
        (["::"], "::1"),
        (["::1"], "::1"),
    ],
)
def test_how_this_host_reaches_an_instance(redis_server, bind, host):
    assert redis_server._host(bind) == host


# Services -----------------------------------------------------------------------------------------------------------

SHOWN = """ActiveState=active
DropInPaths=
LoadState=loaded
MainPID={pid}
NeedDaemonReload=no
Result=success
UnitFileState=enabled
"""


def test_a_systemd_service_is_asked_for_once(redis_server, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_server, "_UNIT_DIR", str(tmp_path))
    redis_server.answers = [SHOWN.format(pid=os.getpid())]
    facts = redis_server.status("6379", ask=False)
    assert len(redis_server.calls) == 1 and redis_server.calls[0][1] == "show"
    assert (facts["active"], facts["pid"], facts["enabled"], facts["loaded"]) == ("active", os.getpid(), True, True)
    assert abs(facts["started"] - time.time()) < 3600
    assert facts["stale"] == [f"it runs {os.readlink('/proc/self/exe')}, not /opt/redis/7.0.15-abc/bin/redis-server"]
    assert "files" not in facts


def test_a_process_is_stale_when_a_file_is_younger(redis_server, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_server, "_UNIT_DIR", str(tmp_path))
    redis_server.__salt__["redis_build.binary"] = lambda prefix, build: os.readlink("/proc/self/exe")
    unit = tmp_path / "redis_6379.service"
    unit.touch()
    redis_server.answers = [SHOWN.format(pid=os.getpid())] * 3
    assert redis_server.status("6379", ask=False)["stale"] == [f"changed: {unit}"]
    os.utime(unit, (0, 0))
    assert redis_server.status("6379", ask=False)["stale"] == []
    os.utime(unit, (time.time() + 1000,) * 2)  # a clock that was set back
    assert redis_server.status("6379", ask=False)["stale"] == []


IO = {"io-threads": {"running": "1", "wished": "4", "live": False}}
SET_LIVE = {"maxmemory": {"running": "0", "wished": "1", "live": True}}


@pytest.mark.parametrize(
    ("younger", "written", "drift", "info", "stale", "unfollowed"),
    [
        (True, True, {}, {"a": 1}, False, False),  # it does all that the younger file says
        (True, True, SET_LIVE, {"a": 1}, False, False),
        (True, True, IO, {"a": 1}, True, False),
        (False, False, IO, {"a": 1}, True, False),  # in test mode the file is as it was
        (False, True, IO, {"a": 1}, False, True),  # another restart would change nothing
        (True, True, None, {"a": 1}, True, False),  # it cannot be asked, so the file's age says it
        (False, True, None, {"a": 1}, False, False),
        (True, True, {}, None, True, False),
        (False, True, {}, None, False, False),
    ],
)
def test_a_younger_config_is_a_reason_only_if_it_is_not_followed(
    redis_server, monkeypatch, younger, written, drift, info, stale, unfollowed
):
    redis_server.drift = {"directives": drift or {}, "unasked": "" if drift is not None else "no password"}
    text = redis_server._config_text(INSTANCE) if written else "port 1\n"
    monkeypatch.setattr(redis_server, "_file_facts", lambda name: {"text": text})
    facts = {"pid": 1, "info": info, "younger_config": younger, "stale": []}
    reasons, sentence = redis_server._unfollowed(INSTANCE, facts)
    assert (bool(reasons), bool(sentence)) == (stale, unfollowed)
    # What is to be started anew for another reason is not said to be beyond help.
    assert redis_server._unfollowed(INSTANCE, {**facts, "stale": ["another build"]})[1] == ""
    assert redis_server._unfollowed(INSTANCE, {"pid": 0, "info": None, "younger_config": True}) == ([], "")


def test_a_configs_key_follows_its_lines_and_its_build_and_no_password(redis_server):
    key = redis_server._config_key(INSTANCE, "8.0.6-abc")
    assert key == redis_server._config_key({**INSTANCE, "password": "another"}, "8.0.6-abc")
    assert key != redis_server._config_key(INSTANCE, "8.0.6-abd")
    assert key != redis_server._config_key({**INSTANCE, "directives": []}, "8.0.6-abc")


def test_a_connection_is_nothing_for_salts_bus(redis_server):
    with pytest.raises(SaltInvocationError, match="for modules"):
        redis_server.session("6379", __pub_fun="x")


def test_a_drop_in_that_systemd_has_not_seen_counts(redis_server, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_server, "_UNIT_DIR", str(tmp_path))
    (tmp_path / "redis_6379.service.d").mkdir()
    (tmp_path / "redis_6379.service.d" / "own.conf").touch()
    redis_server.answers = [SHOWN.format(pid=0)]
    assert redis_server.status("6379", ask=False)["needs_reload"] is True


def test_systemd_that_does_not_answer_is_an_error(redis_server):
    redis_server.answers = [{"retcode": 1, "stdout": "", "stderr": "no bus"}]
    with pytest.raises(CommandExecutionError, match="no bus"):
        redis_server.status("6379", ask=False)


@pytest.mark.parametrize("content", ["", "x", "0", "99999999", "1", str(os.getpid())])
def test_a_pid_file_counts_only_for_a_redis(redis_server, tmp_path, monkeypatch, content):
    redis_server.redis["service_manager"] = "sysv"
    pid_file = tmp_path / "6379.pid"
    monkeypatch.setattr(redis_server, "_pid_file", lambda wish: str(pid_file))
    monkeypatch.setattr(redis_server, "_INIT_DIR", str(tmp_path))
    monkeypatch.setattr(redis_server, "_RC_LINKS", str(tmp_path))
    pid_file.write_text(content)
    facts = redis_server.status("6379", ask=False)
    assert (facts["active"], facts["pid"], facts["loaded"], facts["enabled"]) == ("inactive", 0, False, False)
    assert redis_server.calls == []


def test_boot_links_of_an_init_script(redis_server, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_server, "_INIT_DIR", str(tmp_path / "init.d"))
    monkeypatch.setattr(redis_server, "_RC_LINKS", str(tmp_path / "rc?.d"))
    (tmp_path / "rc2.d").mkdir()
    for name in ("K01redis_6379", "S01redis_63790", "S1redis_6379"):
        (tmp_path / "rc2.d" / name).touch()
    assert redis_server._script_facts(INSTANCE)["enabled"] is False
    (tmp_path / "rc2.d" / "S01redis_6379").touch()
    assert redis_server._script_facts(INSTANCE)["enabled"] is True
    found = redis_server.service_files("6379", "sysv")
    assert sorted(map(os.path.basename, found)) == ["K01redis_6379", "S01redis_6379"]
    with pytest.raises(SaltInvocationError, match="no service manager"):
        redis_server.service_files("6379", "upstart")


# Data ---------------------------------------------------------------------------------------------------------------


class Server:
    """A running Redis as far as the restart asks it."""

    def __init__(self, persistence=None, **config):
        self.persistence = {"rdb_last_bgsave_status": "ok", "aof_last_write_status": "ok", "loading": 0}
        self.persistence |= {"aof_enabled": 1, "aof_last_bgrewrite_status": "ok", **(persistence or {})}
        self.config = {
            "appendonly": "yes",
            "save": SAVE,
            "dir": "/var/redis/6379",
            "dbfilename": "dump.rdb",
            **config,
        }
        self.said, self.saved, self.replication = [], 0, {"role": "master"}

    def info(self, section):
        keyspace = {"db0": {"keys": 3, "expires": 1}, "db1": {"keys": 4, "expires": 0}}
        return {"persistence": self.persistence, "keyspace": keyspace, "replication": self.replication}[section]

    def execute_command(self, *words):
        self.said.append(words)

    def config_get(self, name):
        return {name: self.config[name]} if name in self.config else {}

    def bgsave(self):
        self.saved += 1

    def config_set(self, name, value):
        self.said.append((name, value))
        self.config[name] = value


SAVE = "60 1"
HELD = ("CLIENT", "PAUSE", "10000", "WRITE")


def make_safe(redis_server, server, **directives):
    redis_server._connect = lambda wish: server
    redis_server._redis_package = lambda: redis
    lines = [[name, value] for name, value in directives.items()]
    return redis_server._make_safe({**INSTANCE, "directives": lines}, {"pid": os.getpid()})


def test_a_server_that_appends_is_safe_to_stop(redis_server):
    server = Server()
    keys, notes, undo = make_safe(redis_server, server, appendonly="yes")
    assert (keys, notes) == ({"keys": 7, "expires": 1}, [])
    assert server.said == [("save", ""), HELD]  # no snapshot at its end: the next start would not read it
    undo()
    assert server.said[2:] == [("CLIENT", "UNPAUSE"), ("save", SAVE)]


def test_a_server_that_cannot_hold_writes_saves_as_before(redis_server, monkeypatch):
    server = Server()

    def held(client):
        raise redis.ConnectionError("gone")

    monkeypatch.setattr(redis_server, "_held", held)
    with pytest.raises(CommandExecutionError, match="was not stopped: gone"):
        make_safe(redis_server, server, appendonly="yes")
    assert server.config["save"] == SAVE


def test_aof_is_switched_on_before_a_start_that_reads_nothing_else(redis_server):
    server = Server(appendonly="no")
    _, notes, undo = make_safe(redis_server, server, appendonly="yes")
    assert server.said == [("appendonly", "yes"), ("save", ""), HELD] and notes
    undo()
    assert server.said[3:] == [("CLIENT", "UNPAUSE"), ("save", SAVE)]
    with pytest.raises(CommandExecutionError, match="first AOF"):
        make_safe(redis_server, Server({"aof_last_bgrewrite_status": "err"}, appendonly="no"), appendonly="yes")


def test_a_snapshot_is_asked_for_where_nothing_else_saves(redis_server):
    server = Server(save="")
    _, notes, undo = make_safe(redis_server, server, appendonly="no")
    assert server.said == [("save", "86400 1"), HELD] and notes
    undo()
    assert server.said[2:] == [("CLIENT", "UNPAUSE"), ("save", "")]
    server = Server()
    make_safe(redis_server, server, appendonly="no")[2]()
    assert server.said == [HELD, ("CLIENT", "UNPAUSE")]


@pytest.mark.parametrize(
    ("persistence", "appendonly"),
    [({"rdb_last_bgsave_status": "err"}, "no"), ({"aof_last_write_status": "err"}, "yes")],
)
def test_a_server_that_cannot_save_is_not_stopped(redis_server, persistence, appendonly):
    with pytest.raises(CommandExecutionError, match="a stop (could|would) lose keys"):
        make_safe(redis_server, Server(persistence), appendonly=appendonly)


def test_a_snapshot_is_proven_before_a_stop_that_relies_on_it(redis_server):
    for persistence, appendonly, saved in [
        ({"rdb_changes_since_last_save": 0}, "no", 0),
        ({"rdb_changes_since_last_save": 1}, "no", 1),
        ({"rdb_changes_since_last_save": 1}, "yes", 0),
    ]:
        server = Server(persistence)
        make_safe(redis_server, server, appendonly=appendonly)
        assert server.saved == saved


def test_a_server_whose_next_snapshot_has_no_room_is_not_stopped(redis_server, monkeypatch, tmp_path):
    (tmp_path / "dump.rdb").write_bytes(bytes(5_000_000))
    wish = {**INSTANCE, "dir": str(tmp_path)}
    monkeypatch.setattr(redis_server, "_free", lambda folder: 6_048_575)
    with pytest.raises(CommandExecutionError, match=r"snapshot takes 6.0 MB, and .* has 6.0 MB free"):
        redis_server._refuse_full_disk(wish, snapshot=True)
    redis_server._refuse_full_disk(wish, snapshot=False)
    monkeypatch.setattr(redis_server, "_free", lambda folder: 6_048_576)
    redis_server._refuse_full_disk(wish, snapshot=True)
    monkeypatch.setattr(redis_server, "_free", lambda folder: 1_048_575)
    with pytest.raises(CommandExecutionError, match=r"AOF needs 1.0 MB"):
        redis_server._refuse_full_disk(wish, snapshot=False)


def test_a_busy_server_is_waited_for_and_then_left_alone(redis_server, monkeypatch):
    monkeypatch.setattr(redis_server, "_BUSY", 0.3)
    with pytest.raises(CommandExecutionError, match="busy for 0.3 s .rdb_bgsave_in_progress."):
        make_safe(redis_server, Server({"rdb_bgsave_in_progress": 1}), appendonly="yes")


@pytest.mark.parametrize(
    "replication",
    [
        {"role": "master", "slave0": {"state": "online"}, "slave1": {"state": "wait_bgsave"}},
        {"role": "slave", "master_sync_in_progress": 1},
    ],
)
def test_a_replica_that_is_brought_into_sync_is_waited_for(redis_server, monkeypatch, replication):
    monkeypatch.setattr(redis_server, "_BUSY", 0.3)
    server = Server()
    server.replication = replication
    with pytest.raises(CommandExecutionError, match="busy for 0.3 s .(slave1|master_sync_in_progress)."):
        make_safe(redis_server, server, appendonly="yes")
    server.replication = {"role": "master", "slave0": {"state": "online"}}
    make_safe(redis_server, server, appendonly="yes")


@pytest.mark.parametrize("name", ["dir", "dbfilename"])
def test_a_server_whose_data_would_lie_elsewhere_is_not_stopped(redis_server, name):
    with pytest.raises(CommandExecutionError, match=f"{name} is '.*' and would be 'other'"):
        make_safe(redis_server, Server(), appendonly="yes", **{name: "other"})


def test_a_server_that_lets_nobody_in_is_stopped_only_if_it_appends(redis_server, tmp_path):
    with pytest.raises(CommandExecutionError, match="another password"):
        make_safe(redis_server, None, appendonly="yes")
    wish = {**INSTANCE, "dir": str(tmp_path), "directives": [["appendonly", "yes"]]}
    with open(tmp_path / "appendonly.aof.1.incr.aof", "w"):
        assert redis_server._make_safe(wish, {"pid": os.getpid()})[0] is None
        with pytest.raises(CommandExecutionError, match="another password"):
            redis_server._make_safe({**wish, "directives": []}, {"pid": os.getpid()})


@pytest.mark.parametrize(
    ("files", "appendonly", "refused"),
    [
        (["dump.rdb"], "yes", True),
        (["dump.rdb"], "no", False),
        (["dump.rdb", "appendonly.aof"], "yes", False),
        (["dump.rdb", "appendonlydir"], "yes", False),
        ([], "yes", False),
    ],
)
def test_a_snapshot_that_nobody_would_read_stops_the_start(redis_server, tmp_path, files, appendonly, refused):
    for name in files:
        (tmp_path / name).write_text("data")
    wish = {**INSTANCE, "dir": str(tmp_path), "directives": [["appendonly", appendonly]]}
    if refused:
        with pytest.raises(CommandExecutionError, match="would start empty"):
            redis_server._refuse_unread_snapshot(wish)
    else:
        redis_server._refuse_unread_snapshot(wish)


@pytest.mark.parametrize(
    ("appendonly", "before", "info", "lost"),
    [
        ("no", 7, {"rdb_last_load_keys_loaded": 6, "rdb_last_load_keys_expired": 1}, False),
        ("no", 7, {"rdb_last_load_keys_loaded": 6, "rdb_last_load_keys_expired": 0}, True),
        ("no", 7, {"db0": {"keys": 1}}, False),  # before 7.0 nobody says how many were read
        ("yes", 7, {"db0": {"keys": 1}, "rdb_last_load_keys_loaded": 0, "rdb_last_load_keys_expired": 0}, False),
        ("yes", 7, {}, True),
        ("yes", 0, {}, False),
        ("yes", 10_000, {"db0": {"keys": 8000}}, True),
        ("yes", 10_000, {"db0": {"keys": 9100}}, False),
    ],
)
def test_keys_that_are_gone_after_a_restart_are_told(redis_server, appendonly, before, info, lost):
    wish = {**INSTANCE, "directives": [["appendonly", appendonly]]}
    said = redis_server._keys_lost({"keys": before, "expires": 0}, {"info": info}, wish)
    assert bool(said) is lost
    done = redis_server._done({"lost": said}, "restarted", new={})
    assert done["result"] is not lost and (f"it had {before} keys before" in done["comment"]) is lost


def test_keys_that_expire_are_not_missed(redis_server):
    wish = {**INSTANCE, "directives": [["appendonly", "yes"]]}
    info = {"info": {"db0": {"keys": 900}}}
    assert redis_server._keys_lost({"keys": 10_000, "expires": 9_100}, info, wish) == ""


# The client ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "suits"),
    [("", False), ("4.6.0", False), ("5.0.0", True), ("7.1.1", True), ("7.4.1", False), ("8.0.0", False)],
)
def test_a_client_suits_by_its_version(redis_server, monkeypatch, version, suits):
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: version or None)
    monkeypatch.setattr(redis_server.importlib.metadata, "version", lambda name: version)
    assert redis_server.client() == {"version": version, "wanted": "redis>=5,<7.2", "suits": suits}


def test_pips_words_are_told(redis_server):
    redis_server.__salt__["pip.install"] = lambda pkgs: {
        "retcode": 1,
        "stdout": "",
        "stderr": "No matching distribution",
    }
    with pytest.raises(CommandExecutionError, match="No matching distribution"):
        redis_server.client_install()


@pytest.mark.parametrize(
    ("window", "clock", "inside"),
    [
        ("03:00-05:00", "02:59", False),
        ("03:00-05:00", "03:00", True),
        ("03:00-05:00", "05:00", False),
        ("23:00-01:00", "23:30", True),
        ("23:00-01:00", "00:59", True),
        ("23:00-01:00", "01:00", False),
    ],
)
def test_a_window_is_by_the_hosts_clock(redis_server, window, clock, inside):
    moment = time.mktime(time.strptime(f"2026-11-25 {clock}", "%Y-%m-%d %H:%M"))
    assert redis_server.in_window(window, moment) is inside


# Taking over what others set up ---------------------------------------------------------------------------------------


@pytest.fixture
def by_hand(redis_server, tmp_path):
    """An instance with a config of somebody else's, whose server does not run."""
    nobody = redis.Redis(unix_socket_path=str(tmp_path / "no.sock"))
    redis_server._connect = lambda wish: nobody
    wish = {**INSTANCE, "dir": str(tmp_path), "directives": [["appendonly", "yes"]]}
    return redis_server, wish, tmp_path


@pytest.mark.parametrize("line", ["dir {}/old", 'DIR "{}/old"', "# dir /nowhere\n  dir {}/old"])
def test_data_elsewhere_are_told_with_the_setting(by_hand, line):
    redis_server, wish, folder = by_hand
    (folder / "old").mkdir()
    redis_server._refuse_other_places(wish, line.format(folder))  # nothing lies there
    (folder / "old/dump.rdb").touch()
    with pytest.raises(
        CommandExecutionError, match=f"data in {folder}/old.*set redis_sidekiq:redis:instances:6379:dir"
    ):
        redis_server._refuse_other_places(wish, line.format(folder))


def test_data_under_another_name_are_told_with_the_directive(by_hand):
    redis_server, wish, folder = by_hand
    (folder / "jobs.rdb").touch()
    with pytest.raises(CommandExecutionError, match="directives:dbfilename to 'jobs.rdb'"):
        redis_server._refuse_other_places(wish, f"dir {folder}\ndbfilename jobs.rdb")


def test_a_server_that_cannot_be_asked_is_left_alone(by_hand):
    redis_server, wish, folder = by_hand
    redis_server._connect = lambda wish: None
    with pytest.raises(CommandExecutionError, match="no password known here.*instances:6379:old_passwords"):
        redis_server._refuse_other_places(wish, f"dir {folder}")


def test_data_are_given_to_redis_and_nothing_is_followed(redis_server, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        redis_server.os, "fchown", lambda handle, *owner: given.append(os.readlink(f"/proc/self/fd/{handle}"))
    )
    account = type("Account", (), {"pw_uid": os.getuid() + 1, "gr_gid": 1})
    monkeypatch.setattr(redis_server.pwd, "getpwnam", lambda name: account)
    monkeypatch.setattr(redis_server.grp, "getgrnam", lambda name: account)
    (tmp_path / "appendonlydir").mkdir()
    for name in ("secret", "one", "appendonlydir/base", "dump.rdb"):
        (tmp_path / name).touch()
    (tmp_path / "appendonlydir/link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "one", tmp_path / "appendonlydir/named-twice")
    redis_server._own_data({**INSTANCE, "dir": str(tmp_path)}, {"user": "redis", "group": "redis"})
    assert sorted(given) == [str(tmp_path / name) for name in ("appendonlydir", "appendonlydir/base", "dump.rdb")]
