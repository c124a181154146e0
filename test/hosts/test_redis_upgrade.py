"""Redis on a real host goes over to another release and back: keys, refusals, builds that do not serve, and kills."""

import io
import json
import subprocess
import tarfile
import time

import pytest

from test.hosts import app
from test.hosts.lab import apply_locally, put_pillar, salt_call, tarball, wait_for
from test.hosts.load import load
from test.hosts.redis_lab import CONFIG, SERVES, changed, fill, pid

OLD, NEW = "7.0.15", "8.0.2"
DATA = "/var/redis/6379"
MAY = "Redis instance 6379 may run the build of the settings"


def have(host, version, instance=None, **redis) -> None:
    """Make the pillar: a release, settings of the instance, settings of Redis."""
    redis = {**tarball(version), "version": version, "instances": {"6379": instance or {}}, **redis}
    put_pillar(host, {"redis_sidekiq": {"roles": ["redis"], "redis": redis}})


def current(version) -> str:
    return f"Redis {version} is the current build"


def runs(host) -> str:
    """Return the release that answers."""
    info = dict(line.split(":", 1) for line in app.redis(host, "info", "server").splitlines() if ":" in line)
    return info["redis_version"]


def data(host) -> str:
    """Return digests of the data files."""
    return host.run(["sh", "-c", f"cd {DATA} && find . -type f | sort | xargs -r sha256sum"]).stdout


@pytest.fixture(scope="module")
def old_build(masterless):
    """The build of the older release, as the other image's host has compiled it, in a tarball."""
    from test.hosts.harness import images

    layers = images.layers(masterless("bookworm").image)
    folder = next(path for layer in layers for path in (layer / "opt/redis").glob(f"{OLD}-*"))
    return subprocess.run(["tar", "-C", folder.parent, "-c", folder.name], capture_output=True, check=True).stdout


def give_old_build(host, old_build, tmp_path) -> None:
    """Put the older release's build beside the newer one, and take the data away, which that one made."""
    (tmp_path / "build.tar").write_bytes(old_build)
    host.copy_in(tmp_path / "build.tar", "/root/build.tar")
    host.run(["tar", "-C", "/opt/redis", "-xf", "/root/build.tar", "--no-same-owner"])
    host.run(["systemctl", "stop", "redis_6379"])
    host.run(["sh", "-c", f"rm -r {DATA}/*"])


@pytest.fixture
def host(redis_host, old_build, tmp_path):
    """A host that has both releases' builds and runs the older one."""
    host = redis_host("trixie")
    give_old_build(host, old_build, tmp_path)
    have(host, OLD)
    apply_locally(host).assert_ok()
    assert runs(host) == OLD
    return host


# There and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("appendonly", [True, False])
def test_an_upgrade_keeps_every_key_and_the_way_back_is_refused(host, appendonly):
    have(host, OLD, {"appendonly": appendonly})
    apply_locally(host).assert_ok()
    fill(host)
    have(host, NEW, {"appendonly": appendonly})
    before = pid(host)
    announced = apply_locally(host, test=True).assert_ok()
    assert (pid(host), runs(host)) == (before, OLD)
    run = apply_locally(host)
    assert changed(run) == {current(NEW), SERVES} == set(announced.pending)
    assert (runs(host), app.redis(host, "dbsize")) == (NEW, "300")
    assert NEW in host.run(["redis-cli", "--version"]).stdout
    assert "upgrade" not in host.run(["ls", "-a", DATA, "/var/lib/redis_sidekiq"]).stdout
    apply_locally(host).assert_unchanged()

    after, is_now, text = pid(host), data(host), host.run(["cat", "/etc/redis/6379.conf"]).stdout
    app.redis(host, "bgrewriteaof") if appendonly else app.redis(host, "save")
    have(host, OLD, {"appendonly": appendonly, "maxmemory": "90mb"})
    for test in (True, False):
        run = apply_locally(host, test=test)
        assert "is too old for the data of Redis instance 6379: it reads snapshots up to format 10" in run.failed[MAY]
        assert "of format 12, of 8.0.2-" in run.failed[MAY] and not run.changed
    assert (pid(host), runs(host), host.run(["cat", "/etc/redis/6379.conf"]).stdout) == (after, NEW, text)
    assert is_now and NEW in host.run(["redis-cli", "--version"]).stdout


def test_an_aof_in_commands_alone_is_the_way_back(host):
    fill(host)
    both = {"directives": {"aof-use-rdb-preamble": "no"}}
    have(host, NEW, both)
    apply_locally(host).assert_ok()
    app.redis(host, "bgrewriteaof")
    wait_for(lambda: "aof_rewrite_in_progress:0" in app.redis(host, "info", "persistence"), 10, "the AOF")
    have(host, OLD, both)
    assert SERVES in changed(apply_locally(host))
    assert (runs(host), app.redis(host, "dbsize")) == (OLD, "300")
    apply_locally(host).assert_unchanged()


# Builds that do not serve ---------------------------------------------------------------------------------------------

# A server that passes for the real one until it is started with the instance's config.
WRAPPER = """
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char *words[64] = {0};
    for (int i = 0; i < argc && i < 60; i++) words[i] = argv[i];
    if (argc > 1 && !strncmp(argv[1], "/etc/redis/", 11)) { HARM; }
    execv("REAL/redis-server", words);
    return 1;
}
"""
HARMS = {
    "cannot read the data": 'puts("Fatal error loading the DB, check server logs. Exiting."); return 1',
    "starts empty and saves that": 'words[argc] = "--appendonly"; words[argc + 1] = "no"',
}


def broken_build(host, tmp_path, harm) -> dict:
    """Put a tarball on the host whose build is the newer release but for the harm; returns pillar keys."""
    real = host.run(["sh", "-c", f"echo /opt/redis/{NEW}-*/bin"]).stdout.strip()
    programs = ("cli", "benchmark", "sentinel", "check-aof", "check-rdb")
    rules = [f"redis-{name}:\n\tcp {real}/$@ $@\n" for name in programs]
    rules.append(f"redis-server:\n\tcc -o $@ wrapper.c && echo >> $@ {len(harm)}\n")
    files = {"x/src/Makefile": "".join(rules), "x/src/wrapper.c": WRAPPER.replace("HARM", harm).replace("REAL", real)}
    with tarfile.open(tmp_path / "broken.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    host.copy_in(tmp_path / "broken.tar.gz", "/srv/broken.tar.gz")
    digest = host.run(["sha256sum", "/srv/broken.tar.gz"]).stdout.split()[0]
    return {"source": "/srv/broken.tar.gz", "source_hash": f"sha256={digest}"}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("appendonly", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_build_that_does_not_serve_the_data_goes_back_by_itself(host, tmp_path, harm, appendonly):
    have(host, OLD, {"appendonly": appendonly})
    apply_locally(host).assert_ok()
    fill(host)
    if not appendonly:
        app.redis(host, "save")
    text, before = host.run(["cat", "/etc/redis/6379.conf"]).stdout, data(host)
    broken = broken_build(host, tmp_path, HARMS[harm])
    wrong = {"appendonly": appendonly, "maxmemory": "90mb", "directives": {"io-threads": 2}}
    have(host, NEW, wrong, **broken)
    run = apply_locally(host)
    assert "went back to the build before" in run.failed[SERVES], run.failed
    assert set(run.failed) == {SERVES, "Older builds of Redis are gone from /opt/redis"}  # one of them is the way back
    assert (runs(host), app.redis(host, "dbsize")) == (OLD, "300")
    assert host.run(["cat", "/etc/redis/6379.conf"]).stdout == text
    # The old server itself wrote its snapshot anew when it ended.
    kept = [line for line in data(host).splitlines() if "after-upgrade" not in line and "dump.rdb" not in line]
    assert kept == [line for line in before.splitlines() if "dump.rdb" not in line]
    after = pid(host)
    for _ in range(2):
        run = apply_locally(host)
        assert "does not go over to" in run.failed[MAY] and pid(host) == after and not run.changed
    have(host, NEW, wrong)
    assert changed(apply_locally(host)) == {current(NEW), CONFIG, "Redis instance 6379 works by its config", SERVES}
    assert (runs(host), app.redis(host, "dbsize")) == (NEW, "300")
    apply_locally(host).assert_unchanged()


def test_an_instance_that_may_not_be_restarted_stays_with_its_build(host):
    fill(host, 3)
    before = pid(host)
    have(host, NEW, restart="never")
    run = apply_locally(host).assert_ok()
    assert "a restart is left to you (restart: never) for: it runs" in run.states[SERVES]["comment"]
    assert (pid(host), runs(host)) == (before, OLD)
    record = salt_call(host, "redis_server.restart", "6379")
    assert record["result"] and (runs(host), app.redis(host, "dbsize")) == (NEW, "3")
    apply_locally(host).assert_unchanged()


# Cut off --------------------------------------------------------------------------------------------------------------


def upgrade_killed(host, moment: float, how: str) -> None:
    """An upgrade that is cut off, and what is left of it made good by the next run."""
    command = "setsid salt-call --local state.apply redis_sidekiq & sleep {}; kill -9 -- -$!"
    if how == "minion":
        host.run(["sh", "-c", command.format(moment)], check=False)
    elif how == "redis":
        host.run(
            ["sh", "-c", f"salt-call --local state.apply redis_sidekiq & sleep {moment}; pkill -9 redis-server; wait"]
        )
    else:
        process = host.popen(["salt-call", "--local", "state.apply", "redis_sidekiq"])
        time.sleep(moment)
        host.power_cut()
        process.wait()
        host.start()


def assert_upgraded(host, keys: str) -> None:
    apply_locally(host).assert_ok()
    assert (runs(host), app.redis(host, "dbsize")) == (NEW, keys)
    apply_locally(host).assert_unchanged()
    assert "upgrade" not in host.run(["ls", "-a", DATA, "/var/lib/redis_sidekiq"]).stdout


@pytest.mark.parametrize(("how", "moment"), [("minion", 1.6), ("redis", 1.8), ("power", 1.9)])
def test_an_upgrade_that_is_cut_off_is_made_good(host, how, moment):
    fill(host)
    have(host, NEW)
    upgrade_killed(host, moment, how)
    assert_upgraded(host, "300")


@pytest.mark.soak
@pytest.mark.parametrize("how", ["minion", "redis", "power"])
def test_an_upgrade_that_is_cut_off_at_any_moment_is_made_good(host, how):
    fill(host)
    back = {"directives": {"aof-use-rdb-preamble": "no"}}
    for tenths in range(8, 32, 2):
        have(host, NEW, back)
        upgrade_killed(host, tenths / 10, how)
        assert_upgraded(host, "300")
        app.redis(host, "bgrewriteaof")
        wait_for(lambda: "aof_rewrite_in_progress:0" in app.redis(host, "info", "persistence"), 10, "the AOF")
        have(host, OLD, back)
        apply_locally(host).assert_ok()
        assert runs(host) == OLD, json.dumps(salt_call(host, "redis_upgrade.facts", "6379"))


# Under load, with a gigabyte -------------------------------------------------------------------------------------------

# Keys that neither a snapshot nor the network makes smaller.
FILL = """
for key = ARGV[1], ARGV[2] do
    local words = {}
    for word = 1, 50 do words[word] = redis.sha1hex(key .. ':' .. word) end
    redis.call('set', 'big:' .. key, table.concat(words))
end
"""
# The longest time in which nobody could write.
VISITOR = """
import os, socket, time
last, longest = time.monotonic(), 0
while not os.path.exists("/tmp/visitor.stop"):
    try:
        with socket.create_connection(("127.0.0.1", 6379), 5) as connection:
            connection.sendall(b"SET visitor 1\\r\\n")
            if connection.recv(5) == b"+OK\\r\\n":
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
    except OSError:
        pass
    time.sleep(0.005)
print(round(longest, 3))
"""


BIG = pytest.mark.soak


@pytest.mark.parametrize(
    ("keys", "appendonly"),
    [(20_000, True), pytest.param(520_000, True, marks=BIG), pytest.param(520_000, False, marks=BIG)],
)
def test_jobs_flow_on_while_redis_goes_over(sidekiq_hosts, old_build, tmp_path, keys, appendonly):
    host = sidekiq_hosts("trixie")
    give_old_build(host, old_build, tmp_path)
    app.deploy(host)
    sidekiq = app.sidekiq_pillar(redis="6379", redis_url="")["redis_sidekiq"]

    def wish(version):
        redis = {**tarball(version), "version": version, "instances": {"6379": {"appendonly": appendonly}}}
        put_pillar(host, {"redis_sidekiq": {**sidekiq, "roles": ["redis", "sidekiq"], "redis": redis}})

    wish(OLD)
    apply_locally(host).assert_ok()
    assert runs(host) == OLD
    for first in range(0, keys, 2000):
        # A script that takes seconds makes Sidekiq's scheduler fail (BUSY), and that makes it end when it is told to be quiet.
        app.redis(host, "eval", FILL, "0", str(first), str(first + 1999))
    with load(host) as verdict:
        host.run(["rm", "-f", "/tmp/visitor.stop"])
        visitor = host.popen(["python3", "-c", VISITOR])
        wish(NEW)
        run = apply_locally(host).assert_ok()
        host.run(["touch", "/tmp/visitor.stop"])
        longest = float(visitor.communicate(timeout=30)[0])
        assert runs(host) == NEW
    assert (verdict.missing, verdict.begun_again) == ([], 0), run.states[SERVES]["comment"]
    assert "sidekiq.service was drained before and works again" in run.states[SERVES]["comment"]
    assert int(app.redis(host, "exists", *(f"big:{number}" for number in range(0, keys, 1000)))) == keys // 1000
    log = host.run(["journalctl", "-u", "redis_6379", "-o", "cat", "--no-pager", "-n", "60"]).stdout
    loaded = [float(line.split()[-2]) for line in log.splitlines() if "DB loaded from" in line]
    size = app.redis(host, "info", "memory").split("used_memory_human:")[1].split()[0]
    print(
        f"{size}: {longest} s without Redis, {loaded[-1]} s of it to load; {run.states[SERVES]['duration'] / 1000:.1f} s in all"
    )
    print(f"{verdict.enqueued} jobs, {len(verdict.missing)} missing, {verdict.begun_again} begun again")
    apply_locally(host).assert_unchanged()
    app.redis(host, "bgrewriteaof") if appendonly else app.redis(host, "save")
    wait_for(lambda: "aof_rewrite_in_progress:0" in app.redis(host, "info", "persistence"), 60, "the AOF")
    wish(OLD)
    assert "is too old for the data" in apply_locally(host).failed[MAY] and runs(host) == NEW
