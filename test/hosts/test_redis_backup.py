"""Backups of Redis and the way back: the timer, what stays of them, a restore drill, and what cuts one off."""

import json
import re

import pytest

from test.hosts import app
from test.hosts.harness.host import Host, HostError
from test.hosts.lab import apply_locally, put_pillar, redis_version, salt_call, tarball, wait_for
from test.hosts.redis_lab import SERVES, changed, configure

FOLDER = "/var/backups/redis/6379"
TIMER, SERVICE = "redis_6379_backup.timer", "redis_6379_backup.service"
BACKED_UP = "Redis instance 6379 is backed up"
HAS_FOLDER = "Redis instance 6379 has a folder for its backups"
NO_OTHER = "No other instance of Redis is backed up"
SECRET = "seven-words-nobody-says"
NOW = {"enabled": True, "delay": 0}
SNAPSHOTS = {"appendonly": False}
NOTHING = {"appendonly": False, "save": []}


def names(host: Host, port: str = "6379") -> list[str]:
    return host.run(["ls", "-A", f"/var/backups/redis/{port}"]).stdout.split()


def ask(host: Host, *words: str) -> str:
    return host.run(["env", f"REDISCLI_AUTH={SECRET}", "redis-cli", *words]).stdout.strip()


def shown(host: Host, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", f"--property={name}", "--value", unit]).stdout.strip()


def ready(host: Host, instance: dict | None = None, **backup) -> None:
    """Converge a host with this instance and backups switched on."""
    configure(host, instance, backup={**NOW, **backup})
    apply_locally(host).assert_ok()


def instances(host: Host, *ports: str, **redis) -> None:
    redis = {**redis, **tarball(redis_version("bookworm")), "backup": NOW, "instances": {port: {} for port in ports}}
    put_pillar(host, {"redis_sidekiq": {"roles": ["redis"], "redis": redis}})


# The timer -----------------------------------------------------------------------------------------------------------


def test_a_timer_makes_backups_and_keeps_the_newest(redis_host):
    host = redis_host()
    # systemd starts no service more than five times in ten seconds.
    every_third_second = {**NOW, "keep": 2, "at": "*:*:0/3"}
    configure(host, {"password": SECRET}, backup=every_third_second)
    announced = apply_locally(host, test=True).assert_ok()
    assert {BACKED_UP, HAS_FOLDER} <= set(announced.pending) and not host.exists(FOLDER)
    run = apply_locally(host)
    assert changed(run) == set(announced.pending)
    assert run.changed[BACKED_UP].keys() == announced.changed[BACKED_UP].keys()
    apply_locally(host).assert_unchanged()
    assert host.run(["systemd-analyze", "verify", f"/etc/systemd/system/{TIMER}"]).stderr == ""
    wait_for(lambda: names(host), 20, "the timer fires")
    first = names(host)[0]
    wait_for(lambda: first not in names(host), 20, "the third takes the first one's place")

    configure(host, {"password": SECRET}, backup={"enabled": True, "keep": 2})
    assert changed(apply_locally(host)) == {BACKED_UP}
    wait_for(lambda: shown(host, SERVICE, "ActiveState") == "inactive", 10, "the last one is done")
    assert shown(host, TIMER, "ActiveState") == "active" and shown(host, TIMER, "NextElapseUSecRealtime")
    found = salt_call(host, "redis_backup.backups", "6379")
    assert len(found) == 2 and [entry["name"] for entry in found] == sorted(names(host), reverse=True)
    assert host.run(["stat", "-c", "%a %U", FOLDER, found[0]["path"]]).stdout.split() == ["700", "root", "640", "root"]
    assert host.run(["stat", "-c", "%a", "/run/redis_sidekiq"]).stdout == "755\n"
    assert salt_call(host, "redis_backup.verify", "6379", found[0]["name"])["keys"] == 0

    # Nobody sees the password.
    assert SECRET not in host.run(["journalctl", "--no-pager", "-o", "cat"]).stdout
    assert host.run(["grep", "-rl", SECRET, "/etc/systemd", "/usr/local", "/var/backups"], check=False).stdout == ""

    # Switched off, it leaves the backups.
    configure(host, {"password": SECRET, "backup": {"enabled": False}}, backup={"enabled": True})
    announced = apply_locally(host, test=True).assert_ok()
    assert announced.pending == [NO_OTHER] and host.exists(f"/etc/systemd/system/{TIMER}")
    assert changed(apply_locally(host)) == {NO_OTHER}
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


def test_cron_makes_them_where_systemd_did_not_boot_the_host(redis_host):
    host = redis_host()
    configure(host, backup={"enabled": True}, service_manager="sysv")
    host.run(["mv", "/run/systemd/system", "/run/systemd/away"])
    run = apply_locally(host, "redis_sidekiq.redis.backup", test=True)
    assert "install the package cron first" in run.failed[BACKED_UP]
    host.write("/usr/sbin/cron", "#!/bin/sh\n", mode=0o755)
    assert changed(apply_locally(host, "redis_sidekiq.redis.backup")) >= {BACKED_UP, HAS_FOLDER}
    apply_locally(host, "redis_sidekiq.redis.backup").assert_unchanged()
    host.run(["sh", "-c", re.search("root (.*)", host.run(["cat", "/etc/cron.d/redis_6379_backup"]).stdout)[1]])
    assert len(names(host)) == 1 and not host.exists(f"/etc/systemd/system/{TIMER}")
    host.run(["mv", "/run/systemd/away", "/run/systemd/system"])
    assert changed(apply_locally(host, "redis_sidekiq.redis.backup")) == {BACKED_UP}
    assert not host.exists("/etc/cron.d/redis_6379_backup") and shown(host, TIMER, "ActiveState") == "active"


def test_timers_go_with_their_instance_and_with_clean(redis_host):
    host = redis_host()
    instances(host, "6379", "6380")
    apply_locally(host).assert_ok()
    host.run(["systemctl", "start", SERVICE, "redis_6380_backup.service"])
    instances(host, "6379")
    assert NO_OTHER in changed(apply_locally(host))
    apply_locally(host).assert_unchanged()
    assert not host.exists("/etc/systemd/system/redis_6380_backup.timer") and host.exists(
        f"/etc/systemd/system/{TIMER}"
    )
    apply_locally(host, "redis_sidekiq.clean").assert_ok()
    assert not host.exists(f"/etc/systemd/system/{TIMER}") and not host.exists("/usr/local/lib/redis_sidekiq")
    assert len(names(host)) == len(names(host, "6380")) == 1
    apply_locally(host, "redis_sidekiq.clean").assert_unchanged()
    instances(host, "6379", purge_data=True)
    apply_locally(host, "redis_sidekiq.clean").assert_ok()
    assert host.run(["ls", "/var/backups/redis"]).stdout == "6380\n"


# A restore drill -----------------------------------------------------------------------------------------------------

PORTS = {"6379": {}, "6380": {"appendonly": False}, "6381": {"appendonly": False, "save": []}}


class Drill:
    """One instance of a host that has one of each kind, with backups switched on and 300 keys."""

    def __init__(self, host: Host, port: str):
        self.host, self.port, self.data = host, port, f"/var/redis/{port}"
        self.folder = f"/var/backups/redis/{port}"
        self.ask("flushall")
        host.run(["sh", "-c", f"rm -rf {self.data}/before-restore-* {self.folder}/*"])
        keys = "".join(f"set key:{number} {'x' * 1000}\n" for number in range(300))
        host.run(["redis-cli", "-p", port], input=keys)
        assert self.keys() == 300

    def ask(self, *words: str) -> str:
        return self.host.run(["redis-cli", "-p", self.port, *words]).stdout.strip()

    def keys(self) -> int:
        return int(self.ask("dbsize"))

    def pid(self) -> str:
        return app.main_pid(self.host, f"redis_{self.port}")

    def backup(self) -> dict:
        return salt_call(self.host, "redis_backup.backup", self.port)

    def restore(self, name: str) -> dict:
        return salt_call(self.host, "redis_backup.restore", self.port, name, check=False)

    def leftovers(self) -> str:
        return self.host.run(["find", self.data, "-name", "*restore*"]).stdout


@pytest.fixture(scope="module")
def drills(module_hosts, masterless):
    """Return a function of (port, image) that gives a drill; the host is one for all of them."""
    made: dict[str, Host] = {}

    def drill(port: str = "6379", image: str = "bookworm") -> Drill:
        if image not in made:
            made[image] = host = module_hosts(f"drill-{image}", image=masterless(image).image)
            redis = {**tarball(redis_version(image)), "backup": NOW, "instances": PORTS}
            put_pillar(host, {"redis_sidekiq": {"roles": ["redis"], "redis": redis}})
            apply_locally(host).assert_ok()
        return Drill(made[image], port)

    return drill


@pytest.mark.parametrize(
    "port, image", [("6379", "bookworm"), ("6380", "bookworm"), ("6381", "bookworm"), ("6379", "trixie")]
)
def test_a_backup_brings_back_what_was_lost(drills, port, image):
    drill = drills(port, image)
    host = drill.host
    drill.ask("set", "short", "lived", "px", "50")
    record = drill.backup()
    assert record["keys"] in (300, 301) and record["removed"] == []
    # A start loads no snapshot that only a backup asked for.
    assert host.exists(f"{drill.data}/dump.rdb") == (port != "6381")

    drill.ask("flushall")
    drill.ask("set", "after", "the accident")
    before = drill.pid()
    name = record["path"].rpartition("/")[2]
    if port == "6380":  # one that came from elsewhere, and that nobody but root can read
        name = "/root/another.rdb"
        host.run(["install", "-m", "600", record["path"], name])
    found = drill.restore(name)
    assert found["result"] and found["kept"].startswith(f"{drill.data}/before-restore-"), found
    assert drill.pid() != before and drill.ask("get", "key:299") == "x" * 1000
    assert drill.ask("exists", "after", "short") == "0" and drill.keys() == 300
    assert host.run(["stat", "-c", "%U %a", found["kept"]]).stdout.split() == ["redis", "700"]
    assert host.run(["find", drill.data, "-not", "-user", "redis"]).stdout == ""

    # It goes on from there, and the data as they were are whole too.
    drill.ask("set", "later", "1")
    assert salt_call(host, "redis_server.restart", port)["result"]
    assert drill.keys() == 301
    apply_locally(host).assert_unchanged()
    if port == "6379":
        folder = f"{drill.data}/appendonlydir"
        host.run(["systemctl", "stop", "redis_6379"])
        host.run(["rm", "-r", folder])
        host.run(["cp", "-a", found["kept"], folder])
        host.run(["systemctl", "start", "redis_6379"])
        assert drill.ask("get", "after") == "the accident"


def test_a_backup_that_is_broken_is_refused_and_nothing_stops(drills):
    drill = drills()
    host, path = drill.host, drill.backup()["path"]
    host.run(["sh", "-c", f"printf X | dd of={path} bs=1 seek=5000 conv=notrunc status=none"])
    before = drill.pid()
    found = drill.restore(path)
    assert found["result"] is False and "redis-check-rdb does not accept" in found["comment"]
    with pytest.raises(HostError, match="does not accept"):
        salt_call(host, "redis_backup.verify", "6379", path)
    manifest = f"{drill.data}/appendonlydir/appendonly.aof.manifest"
    for wrong in ("../../../etc/shadow", manifest, "dump-20200101T000000Z.rdb"):
        with pytest.raises(HostError, match="neither the name|of root's|No such file"):
            salt_call(host, "redis_backup.restore", "6379", wrong)
    assert drill.pid() == before and drill.keys() == 300 and drill.leftovers() == ""


def test_a_server_that_cannot_load_its_data_gets_those_of_the_backup(drills):
    drill = drills()
    path = drill.backup()["path"]
    broken = f"for f in {drill.data}/appendonlydir/*; do echo broken > $f; done"
    drill.host.run(["sh", "-c", f"systemctl kill -s KILL redis_6379; {broken}"])
    wait_for(lambda: shown(drill.host, "redis_6379", "SubState") == "auto-restart", 20, "it fails")
    found = drill.restore(path)
    assert found["result"] and drill.keys() == 300, found
    apply_locally(drill.host).assert_unchanged()


def test_restored_data_that_do_not_come_up_give_way_to_the_old_ones(drills):
    """The server that starts has other keys than it should: here, because the checker lies."""
    drill = drills()
    host, path = drill.host, drill.backup()["path"]
    drill.ask("set", "since", "1")
    check = "/opt/redis/current/bin/redis-check-rdb"
    host.run(["mv", check, "/root/check"])
    host.write(check, '#!/bin/sh\necho "[info] 9999 keys read"\nexit 0\n', mode=0o755)
    # Of another size, the build would be none any more.
    host.run(["truncate", "-s", host.run(["stat", "-c", "%s", "/root/check"]).stdout.strip(), check])
    found = drill.restore(path)
    host.run(["mv", "/root/check", check])
    assert found["result"] is False and "loaded 300 keys, the backup has 9999" in found["comment"], found["comment"]
    assert "back in their place" in found["comment"] and found["kept"] == ""
    assert (drill.keys(), drill.ask("get", "since")) == (301, "1") and drill.leftovers() == ""
    drill.ask("set", "more", "1")
    assert salt_call(host, "redis_server.restart", "6379")["result"] and drill.keys() == 302
    apply_locally(host).assert_unchanged()


# What cuts a restore off ---------------------------------------------------------------------------------------------

# Puts a backup in the place of the data again and again, killed at its first call of each kind to the file system, its
# second and so on, until none is left. What Redis has when it is started after that is written down.
CUTS = """
import json, subprocess, sys
port, path, *place = sys.argv[1:]
unit, data = "redis_" + port, "/var/redis/" + port
who = ["--dir=" + data, "--user=redis", "--group=redis"]
def run(*words):
    return subprocess.run(words, capture_output=True, text=True)
def redis(*words):
    return run("redis-cli", "-p", port, *words).stdout.strip()
def program(act, *words):
    return ["/usr/bin/python3", "-I", "-B", "/usr/local/lib/redis_sidekiq/redis_backup.py", act, *who, *words]
found, whole = [], 0
for call in ["mkdir", "link,linkat", "rename,renameat,renameat2", "unlink,unlinkat", "fsync"]:
    for number in range(1, 30):
        whole += 1
        run("systemctl", "stop", unit).check_returncode()
        run(*program("stage", "--check=/opt/redis/current/bin/redis-check-rdb", path)).check_returncode()
        cut = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
        cut += ["-e", f"inject={call}:signal=KILL:when={number}"]
        done = run(*cut, *program("put", f"--aside=before-restore-20260101T0000{whole:02}Z", *place))
        run("systemctl", "start", unit).check_returncode()
        found.append([redis("dbsize"), redis("exists", "since"), redis("get", "key:299")[:3]])
        redis("set", "since", "1")
        if done.returncode == 0:
            break
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "port, place",
    [
        ("6379", ["--folder=appendonlydir", "appendonly.aof"]),
        pytest.param("6380", ["--folder=", "dump.rdb"], marks=pytest.mark.soak),
    ],
)
def test_wherever_a_restore_is_cut_off_a_start_finds_whole_data(drills, port, place):
    drill = drills(port)
    path = drill.backup()["path"]
    drill.ask("set", "since", "1")
    told = drill.host.run(["python3", "-c", CUTS, port, path, *place], timeout=300).stdout
    found = [tuple(each) for each in json.loads(told)]
    assert set(found) == {("301", "1", "xxx"), ("300", "0", "xxx")} and len(found) > 9, found
    assert drill.restore(path)["result"] and drill.keys() == 300
    assert drill.host.run(["find", drill.data, "-name", ".*restore*"]).stdout == ""


@pytest.mark.parametrize("cut", ["power", pytest.param("salt-call killed", marks=pytest.mark.soak)])
def test_after_a_cut_in_a_restore_the_host_serves_whole_data(drills, cut):
    drill = drills()
    host, path = drill.host, drill.backup()["path"]
    drill.ask("set", "since", "1")
    host.run(["sleep", "1.5"])  # appendfsync everysec
    running = host.popen(["salt-call", "--local", "redis_backup.restore", "6379", path])
    wait_for(drill.leftovers, 60, "the restore is under way")
    if cut == "power":
        host.power_cut()
        host.start()
    else:
        host.run(["pkill", "-9", "-f", "redis_backup"])
        apply_locally(host).assert_ok()
    running.wait(30)
    wait_for(lambda: host.run(["redis-cli", "ping"], check=False).stdout == "PONG\n", 30, "Redis serves")
    assert (drill.keys(), drill.ask("exists", "since")) in [(301, "1"), (300, "0")]
    assert drill.restore(path)["result"] and drill.keys() == 300
    assert host.run(["find", drill.data, "-name", ".*restore*"]).stdout == ""
    apply_locally(host).assert_unchanged()


# What cuts a backup off ----------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_backups_and_no_draft(drills):
    drill = drills("6380")
    host, service = drill.host, "redis_6380_backup.service"
    host.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=0700", "tmpfs", drill.folder])
    drill.backup()
    old = names(host, "6380")
    host.run(["dd", "if=/dev/zero", f"of={drill.folder}/others", "bs=1M", "count=30", "status=none"])
    assert host.run(["systemctl", "start", service], check=False).returncode != 0
    assert "MiB are needed: make room" in host.run(["journalctl", "-u", service, "-o", "cat", "--no-pager"]).stdout
    assert names(host, "6380") == [*old, "others"] and drill.ask("set", "x", "1") == "OK"
    host.run(["rm", f"{drill.folder}/others"])
    host.run(["systemctl", "start", service])
    assert len(names(host, "6380")) == 2
    host.run(["umount", drill.folder])


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
