"""Backups of Redis and the way back: the timer, what stays of them, a restore drill, and what cuts one off."""

import json
import re

import pytest

from test.hosts import app
from test.hosts.harness.host import Host, HostError
from test.hosts.lab import apply_locally, salt_call, wait_for
from test.hosts.redis_lab import IMAGES, SERVES, changed, configure, fill, pid

PROGRAM = "/usr/local/lib/redis_sidekiq/redis_backup.py"
FOLDER = "/var/backups/redis/6379"
DATA = "/var/redis/6379"
TIMER, SERVICE = "redis_6379_backup.timer", "redis_6379_backup.service"
BACKED_UP = "Redis instance 6379 is backed up"
HAS_FOLDER = "Redis instance 6379 has a folder for its backups"
NO_OTHER = "No other instance of Redis is backed up"
SECRET = "seven-words-nobody-says"
NOW = {"enabled": True, "delay": 0}
SNAPSHOTS = {"appendonly": False}
NOTHING = {"appendonly": False, "save": []}


def names(host: Host) -> list[str]:
    return host.run(["ls", "-A", FOLDER]).stdout.split()


def ask(host: Host, *words: str) -> str:
    return host.run(["env", f"REDISCLI_AUTH={SECRET}", "redis-cli", *words]).stdout.strip()


def shown(host: Host, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", f"--property={name}", "--value", unit]).stdout.strip()


def ready(host: Host, instance: dict | None = None, **backup) -> None:
    """Converge a host with this instance and backups switched on."""
    configure(host, instance, backup={**NOW, **backup})
    apply_locally(host).assert_ok()


def backup(host: Host) -> dict:
    return salt_call(host, "redis_backup.backup", "6379")


def restore(host: Host, name: str) -> dict:
    return salt_call(host, "redis_backup.restore", "6379", name)


# The timer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_a_timer_makes_backups_and_keeps_the_newest(redis_host, image):
    host = redis_host(image)
    configure(host, {"password": SECRET})
    apply_locally(host).assert_ok()
    configure(host, {"password": SECRET}, backup={"enabled": True, "keep": 2})
    announced = apply_locally(host, test=True).assert_ok()
    assert set(announced.pending) == {BACKED_UP, HAS_FOLDER} and not host.exists(FOLDER)
    run = apply_locally(host)
    assert changed(run) == {BACKED_UP, HAS_FOLDER} and run.changed[BACKED_UP].keys() == announced.changed[BACKED_UP].keys()
    apply_locally(host).assert_unchanged()
    assert shown(host, TIMER, "ActiveState") == "active" and shown(host, TIMER, "NextElapseUSecRealtime")
    assert host.run(["systemd-analyze", "verify", f"/etc/systemd/system/{TIMER}"]).stderr == ""

    # The time comes.
    configure(host, {"password": SECRET}, backup={**NOW, "keep": 2, "at": "*:*:0/1"})
    assert changed(apply_locally(host)) == {BACKED_UP}
    wait_for(lambda: names(host), 20, "the timer fires")
    first = names(host)[0]
    wait_for(lambda: first not in names(host), 20, "the third takes the first one's place")
    configure(host, {"password": SECRET}, backup={"enabled": True, "keep": 2})
    apply_locally(host).assert_ok()
    wait_for(lambda: shown(host, SERVICE, "ActiveState") == "inactive", 10, "the last one is done")
    found = salt_call(host, "redis_backup.backups", "6379")
    assert len(found) == 2 and [entry["name"] for entry in found] == sorted(names(host), reverse=True)
    assert host.run(["stat", "-c", "%a %U", FOLDER, found[0]["path"]]).stdout.split() == ["700", "root", "640", "root"]
    assert salt_call(host, "redis_backup.verify", "6379", found[0]["name"])["keys"] == 0

    # Nobody sees the password.
    assert SECRET not in host.run(["journalctl", "--no-pager", "-o", "cat"]).stdout
    assert host.run(["grep", "-rl", SECRET, "/etc/systemd", "/usr/local", "/var/backups"], check=False).stdout == ""

    # The way back leaves the backups.
    configure(host, {"password": SECRET, "backup": {"enabled": False}}, backup={"enabled": True})
    announced = apply_locally(host, test=True).assert_ok()
    assert announced.pending == [NO_OTHER] and host.exists(f"/etc/systemd/system/{TIMER}")
    assert changed(apply_locally(host)) == {NO_OTHER}
    apply_locally(host).assert_unchanged()
    assert shown(host, TIMER, "LoadState") == "not-found" and len(names(host)) == 2
    assert host.run(["find", "/etc/systemd/system", "-xtype", "l"]).stdout == ""


def test_a_time_that_systemd_does_not_know_is_written_nowhere(redis_host):
    host = redis_host()
    configure(host, backup={"enabled": True, "at": "Mon..Fri 25:30"})
    for test in (True, False):
        run = apply_locally(host, test=test)
        assert set(run.failed) == {BACKED_UP} and "redis:backup:at" in run.failed[BACKED_UP]
        assert "Failed to parse calendar" in run.failed[BACKED_UP]
    assert not host.exists(f"/etc/systemd/system/{TIMER}") and run.states[SERVES]["result"] is True


def test_timers_go_with_their_instance_and_with_clean_and_cron_takes_over(redis_host):
    host = redis_host()
    configure(host, backup={"enabled": True}, service_manager="sysv")
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    line = host.run(["grep", "root", "/etc/cron.d/redis_6379_backup"]).stdout
    assert not host.exists(f"/etc/systemd/system/{TIMER}")
    host.run(["sh", "-c", re.search("root (.*)", line)[1]])
    assert len(names(host)) == 1
    configure(host, backup={"enabled": True})
    assert BACKED_UP in changed(apply_locally(host))
    assert not host.exists("/etc/cron.d/redis_6379_backup") and host.exists(f"/etc/systemd/system/{TIMER}")
    apply_locally(host).assert_unchanged()
    apply_locally(host, "redis_sidekiq.clean").assert_ok()
    assert not host.exists(f"/etc/systemd/system/{TIMER}") and not host.exists("/usr/local/lib/redis_sidekiq")
    assert len(names(host)) == 1
    apply_locally(host, "redis_sidekiq.clean").assert_unchanged()


# A restore drill -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("instance", [{}, SNAPSHOTS, NOTHING], ids=["AOF", "snapshots", "neither"])
def test_a_backup_brings_back_what_was_lost(redis_host, image, instance):
    host = redis_host(image)
    ready(host, instance)
    fill(host)
    app.redis(host, "set", "short", "lived", "px", "50")
    record = backup(host)
    assert record["keys"] in (300, 301) and record["removed"] == [] and names(host) == [record["path"].split("/")[-1]]
    # A start loads no snapshot that only a backup asked for.
    assert host.exists(f"{DATA}/dump.rdb") == (instance is not NOTHING)

    app.redis(host, "flushall")
    app.redis(host, "set", "after", "the accident")
    before = pid(host)
    found = restore(host, names(host)[0])
    assert found["result"] and found["kept"].startswith(f"{DATA}/before-restore-"), found
    assert pid(host) != before and app.redis(host, "get", "key:299") == "x" * 1000
    assert app.redis(host, "exists", "after", "short") == "0" and app.redis(host, "dbsize") == "300"
    assert host.run(["stat", "-c", "%U %a", found["kept"]]).stdout.split() == ["redis", "700"]
    assert host.run(["find", DATA, "-not", "-user", "redis"]).stdout == ""
    apply_locally(host).assert_unchanged()

    # It goes on from there, and the data as they were are whole too.
    app.redis(host, "set", "later", "1")
    assert salt_call(host, "redis_server.restart", "6379")["result"]
    assert app.redis(host, "dbsize") == "301"
    app.redis(host, "bgrewriteaof")
    if "appendonly" not in instance:
        host.run(["sh", "-c", f"systemctl stop redis_6379 && rm -r {DATA}/appendonlydir && "
                  f"cp -a {found['kept']} {DATA}/appendonlydir && systemctl start redis_6379"])
        assert app.redis(host, "get", "after") == "the accident"


def test_a_backup_that_is_broken_is_refused_and_nothing_stops(redis_host):
    host = redis_host()
    ready(host)
    fill(host)
    name = backup(host)["path"].split("/")[-1]
    host.run(["sh", "-c", f"printf X | dd of={FOLDER}/{name} bs=1 seek=5000 conv=notrunc status=none"])
    before = pid(host)
    found = restore(host, name)
    assert found["result"] is False and "redis-check-rdb does not accept" in found["comment"]
    with pytest.raises(HostError, match="does not accept"):
        salt_call(host, "redis_backup.verify", "6379", name)
    for wrong in ("../../../etc/shadow", f"{DATA}/dump.rdb", "dump-20200101T000000Z.rdb"):
        with pytest.raises(HostError, match="neither the name|of root's|No such file"):
            restore(host, wrong)
    assert pid(host) == before and app.redis(host, "dbsize") == "300"
    assert host.run(["find", DATA, "-name", "*restore*"]).stdout == ""


def test_a_server_that_cannot_load_its_data_gets_those_of_the_backup(redis_host):
    host = redis_host()
    ready(host)
    fill(host)
    name = backup(host)["path"].split("/")[-1]
    script = f"systemctl kill -s KILL redis_6379; for f in {DATA}/appendonlydir/*; do echo broken > $f; done"
    host.run(["sh", "-c", script])
    wait_for(lambda: shown(host, "redis_6379", "SubState") == "auto-restart", 20, "it fails")
    assert restore(host, name)["result"]
    assert app.redis(host, "dbsize") == "300"
    apply_locally(host).assert_unchanged()


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_backups_and_no_draft(redis_host):
    host = redis_host()
    ready(host)
    host.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=0700", "tmpfs", FOLDER])
    fill(host)
    backup(host)
    old = names(host)
    host.run(["dd", "if=/dev/zero", f"of={FOLDER}/others", "bs=1M", "count=30", "status=none"])
    assert host.run(["systemctl", "start", SERVICE], check=False).returncode != 0
    assert "MiB are needed: make room" in host.run(["journalctl", "-u", SERVICE, "-o", "cat", "--no-pager"]).stdout
    assert names(host) == [*old, "others"]
    host.run(["rm", f"{FOLDER}/others"])
    host.run(["systemctl", "start", SERVICE])
    assert len(names(host)) == 2


@pytest.mark.parametrize("instance", [{}, SNAPSHOTS], ids=["AOF", "snapshots"])
def test_wherever_a_restore_is_cut_off_a_start_finds_whole_data(redis_host, instance):
    """The step that changes files is killed at its first, second and so on call to the file system, until none is left."""
    host = redis_host()
    ready(host, instance)
    fill(host)
    path = backup(host)["path"]
    app.redis(host, "set", "since", "1")
    place = ["--folder=appendonlydir", "appendonly.aof"] if "appendonly" not in instance else ["--folder=", "dump.rdb"]
    who = [f"--dir={DATA}", "--user=redis", "--group=redis"]
    calls = "mkdir,linkat,link,rename,renameat,renameat2,unlink,fsync,openat"
    script = f"""
import subprocess, sys, time
def redis(*words): return subprocess.run(["redis-cli", *words], capture_output=True, text=True).stdout.strip()
def run(*words): return subprocess.run(words, capture_output=True, text=True)
program = ["/usr/bin/python3", "-I", "-B", {PROGRAM!r}]
found = []
for number in range(1, 99):
    run("systemctl", "stop", "redis_6379")
    run(*program, "stage", *{who!r}, "--check=/opt/redis/current/bin/redis-check-rdb", {path!r}).check_returncode()
    cut = ["strace", "-qq", "-o", "/dev/null", "-e", "inject={calls}:signal=KILL:when=%d"]
    cut[-1] %= number + 60
    done = run(*cut, *program, "put", *{who!r}, f"--aside=before-restore-20260101T0000{{number:02}}Z", *{place!r})
    run("systemctl", "start", "redis_6379").check_returncode()
    found.append((redis("dbsize"), redis("exists", "since"), redis("get", "key:299")[:3]))
    if done.returncode == 0: break
    redis("set", "since", "1")
print(found, number)
"""
    told = host.run(["python3", "-c", script], timeout=300).stdout
    states = {state for state in eval(told.rpartition(" ")[0])}  # noqa: S307 (our own script's)
    assert states == {("301", "1", "xxx"), ("300", "0", "xxx")}, told
    assert int(told.split()[-1]) > 8, told
    assert restore(host, path)["result"] and app.redis(host, "dbsize") == "300"
    assert host.run(["find", DATA, "-name", ".*restore*"]).stdout == ""


def test_after_a_power_cut_in_a_restore_the_host_serves_whole_data(redis_host):
    host = redis_host()
    ready(host)
    fill(host)
    name = backup(host)["path"].split("/")[-1]
    app.redis(host, "set", "since", "1")
    host.run(["sleep", "1.5"])  # appendfsync everysec
    running = host.popen(["salt-call", "--local", "redis_backup.restore", "6379", name])
    wait_for(lambda: host.run(["sh", "-c", f"ls -d {DATA}/.restore.rdb {DATA}/before-restore-*"], check=False).stdout, 60,
             "the restore is under way")
    host.power_cut()
    running.wait(30)
    host.start()
    wait_for(lambda: app.redis(host, "ping") == "PONG", 30, "Redis serves")
    assert (app.redis(host, "dbsize"), app.redis(host, "exists", "since")) in [("301", "1"), ("300", "0")]
    assert restore(host, name)["result"] and app.redis(host, "dbsize") == "300"
    apply_locally(host).assert_unchanged()


def test_restored_data_that_do_not_come_up_give_way_to_the_old_ones(redis_host):
    """The checker passes the backup, but the server that starts has other keys: here, because its program lies."""
    host = redis_host()
    ready(host)
    fill(host)
    name = backup(host)["path"].split("/")[-1]
    app.redis(host, "set", "since", "1")
    lie = '#!/bin/sh\necho "[info] 9999 keys read"\n'
    build = host.run(["readlink", "-f", "/opt/redis/current"]).stdout.strip()
    host.run(["mv", f"{build}/bin/redis-check-rdb", "/root/check"])
    host.write(f"{build}/bin/redis-check-rdb", lie, mode=0o755)
    found = restore(host, name)
    host.run(["mv", "/root/check", f"{build}/bin/redis-check-rdb"])
    assert found["result"] is False and "loaded 300 keys, the backup has 9999" in found["comment"]
    assert "back in their place" in found["comment"] and found["kept"] == ""
    assert (app.redis(host, "dbsize"), app.redis(host, "get", "since")) == ("301", "1")
    assert host.run(["find", DATA, "-name", "*restore*"]).stdout == ""
    app.redis(host, "set", "more", "1")
    assert salt_call(host, "redis_server.restart", "6379")["result"] and app.redis(host, "dbsize") == "302"
    apply_locally(host).assert_unchanged()


def test_a_backup_needs_no_salt_and_shows_no_password(redis_host):
    """Every process that was started is looked at, and what each kind of run left."""
    host = redis_host()
    ready(host, {"password": SECRET})
    command = re.search("ExecStart=(.*)", host.run(["cat", f"/etc/systemd/system/{SERVICE}"]).stdout)[1].split()
    host.run(["mv", "/etc/salt", "/etc/salt.away"])
    done, programs = host.processes_spawned(command)
    host.run(["mv", "/etc/salt.away", "/etc/salt"])
    record = json.loads(done.stdout)
    assert record["keys"] == 0 and not any(SECRET in word for argv in programs for word in argv)
    assert [argv[0].rpartition("/")[2] for argv in programs] == ["redis-check-rdb"]
    assert ask(host, "ping") == "PONG" and SECRET not in done.stdout + done.stderr
