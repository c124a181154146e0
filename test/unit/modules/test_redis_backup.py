"""What makes backups: the texts, the times, the names; and the pure parts of the program that does the work."""

from __future__ import annotations

import os

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

BACKUP = {"enabled": True, "keep": 7, "at": "daily", "delay": 3600, "dir": "/var/backups/redis/6379"}
REDIS = {"prefix": "/opt/redis", "user": "redis", "group": "redis"}
NAME = "dump-20260102T030405Z.rdb"


@pytest.fixture
def program(load):
    """The program that the timer runs."""
    return load("redis_sidekiq/redis/files/redis_backup.py")


@pytest.fixture
def wish(tmp_path):
    """The settings of an instance whose backups are in the test's own folder."""
    lines = [["dir", "/var/redis/6379"], ["appendonly", "yes"]]
    return {
        "name": "6379",
        "config": "/etc/redis/6379.conf",
        "dir": "/var/redis/6379",
        "unit": "redis_6379",
        "directives": lines,
        "backup": {**BACKUP, "dir": str(tmp_path)},
    }


@pytest.fixture
def redis_backup(load, whole_files, wish):
    """The module on a minion with that instance."""
    module = load("_modules/redis_backup.py")
    module.__grains__ = {"id": "web1"}
    module._booted_by_systemd = lambda: True
    module.__salt__ = {
        "redis_sidekiq.settings": lambda: {"redis": {**REDIS, "instances": [wish]}},
        "redis_server.config_diff": lambda *_: {},
        "redis_config.meaning": lambda _: {"values": {"appenddirname": "appendonlydir"}},
        **whole_files,
    }
    return module


# The program ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, password",
    [
        ('"plain"', "plain"),
        ('"two words \\"and\\" \\\\"', 'two words "and" \\'),
        ('"\\xc3\\xbc"', "ü"),
        ("'it\\'s'", "it's"),
        ("bare # no comment", "bare"),
        ('""', ""),
    ],
)
def test_a_password_is_read_as_redis_reads_it(program, tmp_path, line, password):
    (tmp_path / "c").write_text(f"port 7000\nrequirepass old\ndir /data\nRequirePass {line}\n")
    assert program.read_config(str(tmp_path / "c"))["requirepass"] == password


def test_what_the_formula_quotes_the_program_reads(program, load):
    quoted = load("_modules/redis_server.py")._quoted
    for password in ('a"b', "back\\slash", " edge ", "ü☃", "$x %d", "\\x41", "it's"):
        assert program.unquoted(quoted(password)) == password


@pytest.mark.parametrize(
    "bind, host",
    [
        ("127.0.0.1 -::1", "127.0.0.1"),
        ("10.0.0.5 ::1", "::1"),
        ("-::1 10.0.0.5", "::1"),
        ("-10.0.0.6 10.0.0.5", "10.0.0.5"),
        ("* -::*", "127.0.0.1"),
        ('""', "127.0.0.1"),
    ],
)
def test_an_instance_is_reached_where_it_listens(program, bind, host):
    assert program.reachable(bind) == host


def test_a_config_that_says_not_where_the_data_lie_is_refused(program, tmp_path):
    (tmp_path / "c").write_text("port 7000\ndir data\n")
    with pytest.raises(program.Failed, match="apply redis_sidekiq.redis"):
        program.read_config(str(tmp_path / "c"))
    with pytest.raises(program.Failed, match="No such file"):
        program.read_config(str(tmp_path / "d"))


def test_the_newest_stay_and_files_of_others_too(program, tmp_path):
    for day in range(1, 6):
        (tmp_path / f"dump-2026010{day}T000000Z.rdb").write_text("")
    (tmp_path / "mine.rdb").write_text("")
    assert program.remove_old(str(tmp_path), 3, "dump-20260105T000000Z.rdb") == [
        "dump-20260101T000000Z.rdb",
        "dump-20260102T000000Z.rdb",
    ]
    assert (tmp_path / "mine.rdb").exists() and len(program.names(str(tmp_path))) == 3


def test_what_was_just_made_stays_though_the_clock_was_set_back(program, tmp_path):
    for year in (2026, 2027, 2028):
        (tmp_path / f"dump-{year}0101T000000Z.rdb").write_text("")
    assert program.remove_old(str(tmp_path), 1, "dump-20260101T000000Z.rdb") == [
        "dump-20270101T000000Z.rdb",
        "dump-20280101T000000Z.rdb",
    ]


def test_only_drafts_of_the_program_are_removed(program, tmp_path):
    for name in (f".{NAME}.new", ".mine.new", NAME):
        (tmp_path / name).write_text("")
    assert program.remove_drafts(str(tmp_path)) == [f".{NAME}.new"]
    assert sorted(os.listdir(tmp_path)) == [".mine.new", NAME]


def test_a_folder_that_others_can_enter_is_refused(program, tmp_path):
    tmp_path.chmod(0o750)
    with pytest.raises(program.Failed, match="root alone"):
        program.look_at_folder(str(tmp_path))
    os.symlink(tmp_path, tmp_path / "link")
    with pytest.raises(program.Failed, match="root alone"):
        program.look_at_folder(str(tmp_path / "link"))
    with pytest.raises(program.Failed, match="backup:enabled"):
        program.look_at_folder(str(tmp_path / "none"))


# Texts and times -----------------------------------------------------------------------------------------------------


def test_the_units_hold_the_command_and_no_secret(redis_backup, wish):
    service, timer = list(redis_backup._wanted(REDIS, wish).values())[:2]
    command = next(line for line in service.splitlines() if line.startswith("ExecStart="))
    assert command.endswith(
        f"{redis_backup.PROGRAM} backup --config=/etc/redis/6379.conf --dir={wish['backup']['dir']} --keep=7 "
        "--check=/opt/redis/current/bin/redis-check-rdb --user=redis --group=redis"
    )
    assert "OnCalendar=daily\n" in timer and "RandomizedDelaySec=3600\n" in timer


def test_without_systemd_cron_runs_the_command(redis_backup, wish):
    redis_backup._booted_by_systemd = lambda: False
    *units, cron = redis_backup._wanted(REDIS, wish).values()
    assert units == [None, None]
    line = cron.splitlines()[-1]
    assert f" * * * root {redis_backup._python()} -I -B {redis_backup.PROGRAM} backup --config=" in line


@pytest.mark.parametrize(
    "at, delay, form",
    [
        ("hourly", 0, "0 * * * *"),
        ("daily", 0, "0 0 * * *"),
        ("weekly", 0, "0 0 * * 1"),
        ("monthly", 59, "0 0 1 * *"),
    ],
)
def test_cron_knows_the_same_periods(redis_backup, wish, at, delay, form):
    wish["backup"].update(at=at, delay=delay)
    assert redis_backup._cron_time(wish) == form


def test_a_delay_spreads_hosts_over_the_hours_but_stays_in_the_period(redis_backup, wish):
    wish["backup"].update(at="daily", delay=86400)
    seen = set()
    for number in range(50):
        redis_backup.__grains__ = {"id": f"web{number}"}
        minute, hour, *rest = redis_backup._cron_time(wish).split()
        assert int(minute) < 60 and int(hour) < 24 and rest == ["*", "*", "*"]
        seen.add(hour)
    assert len(seen) > 10


# Which backup, and where it goes -------------------------------------------------------------------------------------


def test_a_backup_is_named_exactly(redis_backup, wish, tmp_path):
    (tmp_path / NAME).write_text("")
    assert redis_backup._path(wish, NAME) == str(tmp_path / NAME)
    assert redis_backup._path(wish, str(tmp_path / NAME)) == str(tmp_path / NAME)
    for wrong in ("", "latest", f"../{NAME}", f"{NAME}/", f"x/{NAME}"):
        with pytest.raises(SaltInvocationError, match="neither the name of a backup"):
            redis_backup._path(wish, wrong)
    with pytest.raises(CommandExecutionError, match="No such file"):
        redis_backup._path(wish, "dump-20260102T030406Z.rdb")


def test_a_file_that_others_can_write_is_none_to_restore(redis_backup, wish, tmp_path):
    path = tmp_path / "x.rdb"
    path.write_text("")
    path.chmod(0o664)
    os.symlink(path, tmp_path / "link.rdb")
    for wrong in (path, tmp_path / "link.rdb", tmp_path):
        with pytest.raises(CommandExecutionError, match="of root's"):
            redis_backup._path(wish, str(wrong))


@pytest.mark.parametrize(
    "lines, values, form",
    [
        ([["appendonly", "no"]], {}, {"folder": "", "file": "dump.rdb"}),
        ([["dbfilename", '"my.rdb"']], {}, {"folder": "", "file": "my.rdb"}),
        ([["appendonly", "yes"]], {"appenddirname": ""}, {"folder": "appendonlydir", "file": "appendonly.aof"}),
        (
            [["appendonly", "yes"], ["appenddirname", "a"], ["appendfilename", "b"]],
            {"appenddirname": ""},
            {"folder": "a", "file": "b"},
        ),
        ([["appendonly", "yes"]], {"appendfilename": ""}, {"folder": "", "file": "appendonly.aof"}),
    ],
)
def test_a_restore_goes_where_the_next_start_looks(redis_backup, wish, lines, values, form):
    redis_backup.__salt__["redis_config.meaning"] = lambda _: {"values": {"port": "1", **values}}
    assert redis_backup._form({**wish, "directives": lines}) == form


def test_nothing_is_restored_while_the_config_differs(redis_backup, wish):
    redis_backup.__salt__["redis_server.config_diff"] = lambda *_: {"diff": "x"}
    with pytest.raises(CommandExecutionError, match="apply redis_sidekiq.redis first"):
        redis_backup._form(wish)


@pytest.mark.parametrize(
    "keys, info, words",
    [
        (None, {}, ""),
        (3, {"rdb_last_load_keys_loaded": 2, "rdb_last_load_keys_expired": 1}, ""),
        (3, {"rdb_last_load_keys_loaded": 2, "rdb_last_load_keys_expired": 0}, "loaded 2 keys, the backup has 3"),
        (0, {"rdb_last_load_keys_loaded": 0, "rdb_last_load_keys_expired": 0}, ""),
        (3, {"db0": {"keys": 9}}, ""),  # Redis 6.2
        (3, {"role": "master"}, "has no key, the backup has 3"),
    ],
)
def test_a_restored_server_has_loaded_as_many_keys(redis_backup, keys, info, words):
    assert redis_backup._wrong(keys, info) == words


def test_backups_are_listed_by_their_time(redis_backup, tmp_path):
    (tmp_path / NAME).write_text("12345")
    (tmp_path / "dump-20260203T000000Z.rdb").write_text("")
    (tmp_path / ".dump-20260204T000000Z.rdb.new").write_text("")
    found = redis_backup.backups("6379")
    assert [(entry["made"], entry["bytes"]) for entry in found] == [
        ("2026-02-03T00:00:00Z", 0),
        ("2026-01-02T03:04:05Z", 5),
    ]
    with pytest.raises(SaltInvocationError, match="not a Redis instance"):
        redis_backup.backups("6380")


def test_timers_that_others_made_are_not_ours(redis_backup, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_backup, "_PLACES", {str(tmp_path): r"redis_(\d+)_backup\.(?:service|timer)"})
    (tmp_path / "redis_6379_backup.timer").write_text(f"# {redis_backup._MARK}. For settings\n")
    (tmp_path / "redis_6380_backup.timer").write_text("[Timer]\n")
    os.symlink("/dev/null", tmp_path / "redis_6381_backup.timer")
    assert redis_backup.scheduled() == {"6379": [str(tmp_path / "redis_6379_backup.timer")]}
