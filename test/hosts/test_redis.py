"""Redis on a real host: what a build is, what a change of config, unit or build does, and the init script."""

import json

import pytest

from test.hosts import app
from test.hosts.lab import apply_locally, redis_version, salt_call, tarball, wait_for
from test.hosts.redis_lab import CONFIG, IMAGES, LIVE, SERVES, changed, configure, fill, pid

UNIT = "/etc/systemd/system/redis_6379.service"
SCRIPT = "/etc/init.d/redis_6379"
AWKWARD = """ a"b'c\\d #e %f $g\\n ü☃ \\x41 """


# What a build is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_the_build_is_roots_and_says_what_it_was_made_from(redis_host, image):
    host = redis_host(image)
    version = redis_version(image)
    folder = host.run(["readlink", "-f", "/opt/redis/current"]).stdout.strip()
    record = json.loads(host.run(["cat", f"{folder}/build.json"]).stdout)
    assert record["version"] == version and record["digest"] == tarball(version)["source_hash"]
    assert host.run(["find", "/opt/redis", "!", "-user", "root", "-o", "-perm", "/022", "!", "-type", "l"]).stdout == ""
    linked = host.run(["ldd", f"{folder}/bin/redis-server"]).stdout
    assert "libsystemd" in linked and "libssl" not in linked
    assert "mem_allocator:jemalloc" in app.redis(host, "info", "memory")
    assert version in host.run(["redis-cli", "--version"]).stdout
    for account in ("redis", "redis-build"):
        assert host.run(["getent", "passwd", account]).stdout.strip().endswith("/usr/sbin/nologin")
    assert host.run(["pgrep", "-u", "redis-build"], check=False).stdout == ""


# What it is not without, and docs/redis-security.md says why.
UNSEALED = {
    *("RootDirectoryOrRootImage", "PrivateNetwork", "IPAddressDeny", "DeviceAllow", "ProcSubset"),
    *("RestrictAddressFamilies_AF_UNIX", "RestrictAddressFamilies_AF_INET_INET6"),
}
# What asks more of the kernel than a plain server does.
SANDBOXED = {
    "io-threads": 3,
    "syslog-enabled": True,
    "oom-score-adj": "relative",
    "jemalloc-bg-thread": True,
    "activedefrag": True,
    "active-defrag-ignore-bytes": 1,
    "active-defrag-threshold-lower": 0,
}


@pytest.mark.parametrize("image", IMAGES)
def test_the_unit_is_sealed_and_redis_works_in_it(redis_host, image):
    host = redis_host(image)
    configure(host, {"directives": SANDBOXED, "unixsocket": True, "unixsocket_group": "adm"})
    apply_locally(host).assert_ok()
    said = host.run(["systemd-analyze", "security", "--no-pager", "--json=short", "redis_6379"], check=False).stdout
    assert {entry["json_field"] for entry in json.loads(said) if not entry["set"]} == UNSEALED
    app.redis(host, "config", "set", "notify-keyspace-events", "KEA")
    fill(host)
    assert host.run(["redis-cli", "-s", "/run/redis_6379/redis.sock", "dbsize"]).stdout == "300\n"
    for words in (["bgsave"], ["bgrewriteaof"], ["memory", "purge"], ["memory", "doctor"]):
        app.redis(host, *words)
        wait_for(lambda: "in_progress:1" not in app.redis(host, "info", "persistence"), 20, "its child ended")
    status = app.redis(host, "info", "persistence")
    assert "rdb_last_bgsave_status:ok" in status and "aof_last_bgrewrite_status:ok" in status
    assert pid(host) and app.redis(host, "config", "get", "io-threads").split()[1] == "3"
    log = host.run(["journalctl", "--unit=redis_6379", "--no-pager", "--output=cat"]).stdout
    assert "not permitted" not in log and "denied" not in log


@pytest.mark.parametrize("image", IMAGES)
def test_a_run_without_changes_starts_one_process(redis_host, image):
    host = redis_host(image)
    apply_locally(host).assert_unchanged()
    argv = ["salt-call", "--local", "--out=json", "state.apply"]
    sls = ["redis_sidekiq.redis.build", "redis_sidekiq.redis.service"]
    _, programs = host.processes_spawned([*argv, f"mods={','.join(sls)}"])
    ours = [words for words in programs if "redis" in " ".join(words) and not words[0].endswith("salt-call")]
    ours = [words for words in ours if "salt-call" not in " ".join(words[:3])]
    assert len(ours) == 1 and ours[0][1] == "show", ours


# What a change does -------------------------------------------------------------------------------------------------


def test_a_change_of_the_config_restarts_once_and_keeps_every_key(redis_host):
    host = redis_host()
    fill(host)
    before = pid(host)
    configure(host, {"maxmemory": "100mb", "directives": {"io-threads": 2}})
    announced = apply_locally(host, test=True).assert_ok()
    assert pid(host) == before
    assert changed(apply_locally(host)) == {CONFIG, LIVE, SERVES} == set(announced.pending)
    assert pid(host) != before
    assert app.redis(host, "config", "get", "maxmemory").split() == ["maxmemory", "104857600"]
    assert app.redis(host, "dbsize") == "300"
    assert host.run(["systemctl", "show", "-p", "NRestarts", "--value", "redis_6379"]).stdout.strip() == "0"
    apply_locally(host).assert_unchanged()


def test_an_administrators_drop_in_restarts_once(redis_host):
    host = redis_host()
    before = pid(host)
    host.run(["mkdir", "-p", f"{UNIT}.d"])
    host.write(f"{UNIT}.d/own.conf", "[Service]\nLimitNOFILE=12345\n")
    assert changed(apply_locally(host)) == {SERVES}
    assert pid(host) != before
    assert "12345" in host.run(["cat", f"/proc/{pid(host)}/limits"]).stdout
    apply_locally(host).assert_unchanged()


def test_no_change_of_where_the_data_go_loses_a_key(redis_host):
    host = redis_host()
    fill(host)
    nowhere = {"appendonly": False, "save": []}
    for step, instance in enumerate(({"appendonly": False}, {}, nowhere, {**nowhere, "maxmemory": "90mb"}, {})):
        configure(host, {**instance, "databases": 17 + step})  # that takes a restart
        before = pid(host)
        assert changed(apply_locally(host)) == {CONFIG, LIVE, SERVES}, step
        assert (pid(host) != before, app.redis(host, "dbsize")) == (True, str(300 + step)), step
        app.redis(host, "set", f"later:{step}", "1")  # what no snapshot has
    apply_locally(host).assert_unchanged()


def test_a_server_that_would_start_empty_is_not_started(redis_host):
    host = redis_host()
    configure(host, {"appendonly": False})
    apply_locally(host).assert_ok()
    fill(host, 3)
    host.run(["systemctl", "stop", "redis_6379"])
    host.run(["rm", "-r", "/var/redis/6379/appendonlydir"])
    configure(host, {"appendonly": True})
    failed = apply_locally(host).failed
    assert "would start empty" in failed[SERVES]
    configure(host, {"appendonly": False})
    apply_locally(host).assert_ok()
    configure(host, {"appendonly": True})
    apply_locally(host).assert_ok()
    assert app.redis(host, "dbsize") == "3"


def test_any_password_reaches_redis_and_nobody_else(redis_host):
    host = redis_host()
    fill(host, 3)

    def ask(password):
        words = ["env", f"REDISCLI_AUTH={password}", "redis-cli", "dbsize"] if password else ["redis-cli", "dbsize"]
        return host.run(words, check=False).stdout.strip()

    said = ""
    for password in (AWKWARD, "plain-and-long-enough", ""):
        configure(host, {"password": password})
        announced, run = apply_locally(host, test=True), apply_locally(host)
        said += json.dumps([announced.states, run.states], ensure_ascii=False)
        assert changed(run) == {CONFIG, LIVE} == set(announced.assert_ok().pending)
        assert ask(password) == "3"
        if password:
            assert "NOAUTH" in ask("")
        apply_locally(host).assert_unchanged()
    assert "plain-and-long-enough" not in said and "☃" not in said
    log = host.run(["sh", "-c", "cat /var/log/salt/minion; journalctl --no-pager -u redis_6379"], check=False).stdout
    assert "plain-and-long-enough" not in log
    assert host.run(["stat", "-c", "%U:%G %a", "/etc/redis/6379.conf"]).stdout.strip() == "root:redis 640"


def test_a_run_cut_off_between_password_and_restart_is_made_good(redis_host):
    host = redis_host()
    fill(host, 3)
    configure(host, {"password": "first-password"})
    apply_locally(host).assert_ok()
    configure(host, {"password": "second-password"})
    apply_locally(host, "redis_sidekiq.redis.config").assert_ok()  # without the service
    assert changed(apply_locally(host)) == {SERVES}
    assert host.run(["env", "REDISCLI_AUTH=second-password", "redis-cli", "dbsize"]).stdout.strip() == "3"


def test_a_config_that_redis_refuses_never_lands(redis_host):
    host = redis_host()
    before, text = pid(host), host.run(["cat", "/etc/redis/6379.conf"]).stdout
    wrong = {
        "unknown": ({"directives": {"no-such-directive": 1}}, ">>> 'no-such-directive 1'"),
        "value": ({"directives": {"tcp-keepalive": "often"}, "password": "sesame-open"}, "couldn't be parsed into"),
        "module": ({"directives": {"loadmodule": "/no/such.so"}}, "Can't load module"),
        "address": ({"bind": ["127.0.0.1", "10.99.99.99"], "password": "sesame-open"}, "no such address on this host"),
    }
    for name, (instance, words) in wrong.items():
        configure(host, instance)
        for test in (True, False):
            run = apply_locally(host, test=test)
            assert words in run.failed.get(CONFIG, ""), (name, run.failed)
            assert "sesame" not in json.dumps(run.states), name
        assert (pid(host), host.run(["cat", "/etc/redis/6379.conf"]).stdout) == (before, text), name
    assert host.run(["find", "/run/redis_sidekiq", "-name", "scratch*"]).stdout == ""
    assert host.run(["sh", "-c", "ls -A /etc/redis"]).stdout.split() == ["6379.conf"]


def test_a_server_that_does_not_come_up_is_quoted(redis_host):
    host = redis_host()
    host.run(["systemctl", "stop", "redis_6379"])
    taken = host.popen(
        ["python3", "-c", "import socket, time; s = socket.create_server(('127.0.0.1', 6379)); time.sleep(600)"]
    )
    try:
        host.run(["sh", "-c", "until ss -Htln | grep -q :6379; do sleep 0.1; done"])
        comment = apply_locally(host).failed[SERVES]
        assert "did not start; its log ends with:" in comment and "Address already in use" in comment
    finally:
        host.run(["pkill", "-f", "create_server"])
        taken.wait(timeout=10)
    apply_locally(host).assert_ok()
    assert app.redis(host, "ping") == "PONG"


def test_a_server_that_was_stopped_or_disabled_is_back(redis_host):
    host = redis_host()
    before = pid(host)
    host.run(["systemctl", "disable", "redis_6379"])
    assert changed(apply_locally(host)) == {SERVES}
    assert pid(host) == before
    host.run(["systemctl", "stop", "redis_6379"])
    assert changed(apply_locally(host)) == {SERVES}
    assert host.run(["systemctl", "is-enabled", "redis_6379"]).stdout.strip() == "enabled"
    apply_locally(host).assert_unchanged()


def quick_tarball(host, remark: str = "") -> dict:
    """A tarball that "compiles" by copying the current build's programs: another digest, so another build."""
    host.run(["mkdir", "-p", "/root/quick/redis/src"])
    names = "redis-server redis-cli redis-benchmark redis-sentinel redis-check-aof redis-check-rdb"
    folder = host.run(["readlink", "-f", "/opt/redis/current"]).stdout.strip()
    host.write("/root/quick/redis/src/Makefile", f"# {remark}\n{names}:\n\tcp {folder}/bin/$@ $@\n")
    host.run(["tar", "czf", "/root/redis-7.0.15.tar.gz", "-C", "/root/quick", "redis"])
    digest = host.run(["sha256sum", "/root/redis-7.0.15.tar.gz"]).stdout.split()[0]
    return {"source": "/root/redis-7.0.15.tar.gz", "source_hash": f"sha256={digest}"}


def test_another_build_is_compiled_once_and_the_server_follows(redis_host):
    host = redis_host()
    fill(host)
    before, old = pid(host), host.run(["readlink", "/opt/redis/current"]).stdout.strip()
    built, current = "Redis 7.0.15 is built", "Redis 7.0.15 is the current build"
    configure(host, **quick_tarball(host))
    announced = apply_locally(host, test=True).assert_ok()
    assert changed(apply_locally(host)) == {built, current, SERVES} == set(announced.pending)
    assert (pid(host) != before, app.redis(host, "dbsize")) == (True, "300")
    new = host.run(["readlink", "/opt/redis/current"]).stdout.strip()
    assert host.run(["readlink", f"/proc/{pid(host)}/exe"]).stdout.strip() == f"/opt/redis/{new}/bin/redis-server"
    apply_locally(host).assert_unchanged()
    # The way back takes no compiler, for the old build stays.
    configure(host)
    run = apply_locally(host)
    assert changed(run) == {current, SERVES}
    assert host.run(["readlink", f"/proc/{pid(host)}/exe"]).stdout.strip() == f"/opt/redis/{old}/bin/redis-server"
    # The link alone is wrong: the server is the right one already.
    before = pid(host)
    host.run(["ln", "-sfn", new, "/opt/redis/current"])
    assert changed(apply_locally(host)) == {current}
    assert (pid(host), app.redis(host, "dbsize")) == (before, "300")


def test_changed_flags_build_anew_and_older_builds_go(redis_host):
    host = redis_host()
    fill(host)
    old = host.run(["readlink", "/opt/redis/current"]).stdout.strip()
    gone = "Older builds of Redis are gone from /opt/redis"
    wish = quick_tarball(host)
    configure(host, **wish, build={"keep": 1})
    assert gone not in changed(apply_locally(host))
    middle = host.run(["readlink", "/opt/redis/current"]).stdout.strip()
    # Copied from a build with another allocator, it is not what was asked for, and nothing changes.
    configure(host, **wish, build={"keep": 1, "malloc": "libc"})
    failed = apply_locally(host).failed
    assert "malloc is 'jemalloc', wanted is 'libc'" in "".join(failed.values())
    assert sorted(host.run(["ls", "/opt/redis"]).stdout.split()) == sorted([old, middle, "current", "instance-6379"])
    configure(host, **quick_tarball(host, "second"), build={"keep": 1})
    announced = apply_locally(host, test=True).assert_ok()
    assert old in announced.states[gone]["comment"]
    run = apply_locally(host)
    assert changed(run) == set(announced.pending)
    assert run.states[gone]["changes"] == {"removed": [old]} == announced.states[gone]["changes"]
    assert app.redis(host, "dbsize") == "300"
    apply_locally(host).assert_unchanged()


def test_a_shared_build_takes_no_compiler(redis_host):
    host = redis_host()
    fill(host)
    packed = salt_call(host, "redis_build.pack", "folder=/srv/formula/redis-builds")
    configure(host, build={"packs": {packed["name"]: packed["hash"]}})
    apply_locally(host).assert_unchanged()
    # The next host like this one: no build, and nothing that compiles.
    host.run(["systemctl", "stop", "redis_6379"])
    host.run(["sh", "-c", "rm -r /opt/redis/* && dpkg --force-depends --purge make gcc 2>&1"])
    announced = apply_locally(host, test=True).assert_ok()
    assert "would be taken from salt://redis-builds/" in announced.states["Redis 7.0.15 is built"]["comment"]
    run = apply_locally(host)
    assert changed(run) <= set(announced.pending)
    assert "was taken from salt://redis-builds/" in run.states["Redis 7.0.15 is built"]["comment"]
    assert not host.exists("/usr/bin/make")
    assert app.redis(host, "dbsize") == "300"
    apply_locally(host).assert_unchanged()


def test_files_of_others_stay(redis_host):
    host = redis_host()
    host.run(["rm", "/usr/local/bin/redis-cli"])
    host.write("/usr/local/bin/redis-cli", "#!/bin/sh\n", mode=0o755)
    host.run(["mkdir", "/opt/redis/7.0.15-mine"])
    failed = apply_locally(host).failed
    assert list(failed.values()) and "/usr/local/bin/redis-cli: not made by this formula" in "".join(failed.values())
    cleaned = apply_locally(host, "redis_sidekiq.redis.clean").assert_ok()
    assert "/opt/redis stays, it holds 7.0.15-mine" in json.dumps(cleaned.states)
    assert host.exists("/usr/local/bin/redis-cli") and host.exists("/opt/redis/7.0.15-mine")


# Another service manager --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_the_init_script_does_what_lsb_says(redis_host, image):
    host = redis_host(image)
    fill(host)
    configure(host, service_manager="sysv")
    announced = apply_locally(host, test=True).assert_ok()
    run = apply_locally(host)
    assert changed(run) <= set(announced.pending)
    apply_locally(host).assert_unchanged()
    assert not host.exists(UNIT)
    assert app.redis(host, "dbsize") == "300"

    def script(verb):
        return host.run([SCRIPT, verb], check=False).returncode

    def running():
        return host.run(["cat", "/run/redis/6379.pid"], check=False).stdout.strip()

    first = running()
    assert host.run(["stat", "-c", "%U", f"/proc/{first}"]).stdout.strip() == "redis"
    assert host.run(["readlink", f"/proc/{first}/exe"]).stdout.startswith("/opt/redis/")
    assert (script("status"), script("start")) == (0, 0)
    assert running() == first
    assert (script("restart"), running() != first) == (0, True)
    assert (script("stop"), script("status"), script("stop")) == (0, 3, 0)
    assert host.run(["pgrep", "-x", "redis-server"], check=False).stdout == ""
    assert (script("start"), script("force-reload"), script("status")) == (0, 0, 0)
    assert script("nonsense") != 0
    assert app.redis(host, "dbsize") == "300"
    assert host.run(["sh", "-c", "ls /etc/rc2.d /etc/rc6.d"]).stdout.count("redis_6379") == 2
    apply_locally(host).assert_unchanged()

    host.reboot()
    assert app.redis(host, "dbsize") == "300"
    apply_locally(host).assert_unchanged()


def test_the_service_manager_is_changed_there_and_back(redis_host):
    host = redis_host()
    fill(host)
    configure(host, service_manager="sysv")
    apply_locally(host).assert_ok()
    configure(host, service_manager="systemd")
    apply_locally(host).assert_ok()
    assert not host.exists(SCRIPT)
    assert host.run(["sh", "-c", "ls /etc/rc?.d | grep redis_6379"], check=False).stdout == ""
    assert "process_supervised:systemd" in app.redis(host, "info", "server")
    assert app.redis(host, "dbsize") == "300"
    apply_locally(host).assert_unchanged()


def test_the_init_script_restarts_for_a_new_config_and_says_why_it_failed(redis_host):
    host = redis_host()
    configure(host, service_manager="sysv")
    apply_locally(host).assert_ok()
    configure(host, {"maxmemory": "80mb", "databases": 32}, service_manager="sysv")
    assert changed(apply_locally(host)) == {CONFIG, LIVE, SERVES}
    assert app.redis(host, "config", "get", "maxmemory").split()[1] == str(80 * 1024**2)
    host.run([SCRIPT, "stop"])
    taken = host.popen(
        ["python3", "-c", "import socket, time; s = socket.create_server(('127.0.0.1', 6379)); time.sleep(600)"]
    )
    try:
        host.run(["sh", "-c", "until ss -Htln | grep -q :6379; do sleep 0.1; done"])
        assert "Address already in use" in apply_locally(host).failed[SERVES]
    finally:
        host.run(["pkill", "-f", "create_server"])
        taken.wait(timeout=10)
    apply_locally(host).assert_ok()


@pytest.mark.parametrize("manager", ["systemd", "sysv"])
def test_clean_keeps_the_data_and_nothing_else(redis_host, manager):
    host = redis_host()
    configure(host, {"appendonly": False, "save": []}, service_manager=manager)
    apply_locally(host).assert_ok()
    fill(host)
    host.run(["cp", "-a", "/opt/redis", "/root/builds"])
    sls = "redis_sidekiq.redis.clean"
    announced = apply_locally(host, sls, test=True).assert_ok()
    assert app.redis(host, "ping") == "PONG"
    assert changed(apply_locally(host, sls)) == set(announced.pending)
    apply_locally(host, sls).assert_unchanged()
    places = ["/opt/redis", "/etc/redis", "/usr/local/bin", "/etc/systemd/system", "/etc/init.d", "/etc/rc2.d"]
    assert "redis" not in host.run(["find", *places], check=False).stdout
    assert host.run(["pgrep", "-x", "redis-server"], check=False).stdout == ""
    assert host.run(["getent", "passwd", "redis-build"], check=False).returncode != 0
    host.run(["cp", "-a", "/root/builds", "/opt/redis"])  # spares the compiler
    apply_locally(host).assert_ok()
    assert app.redis(host, "dbsize") == "300"

    configure(host, purge_data=True, service_manager=manager)
    apply_locally(host, sls).assert_ok()
    apply_locally(host, sls).assert_unchanged()
    assert not host.exists("/var/redis")
    assert host.run(["getent", "passwd", "redis"], check=False).returncode != 0
