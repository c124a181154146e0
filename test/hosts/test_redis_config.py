"""A changed config on a real host: set live under load, restarted only for what cannot be, and put right by any run."""

import contextlib
import json

import pytest

from test.hosts import app
from test.hosts.lab import apply_locally, salt_call
from test.hosts.redis_lab import CONFIG, IMAGES, LIVE, SERVES, changed, configure, fill, pid

# Directive -> what the pillar says, and what Redis then answers.
SETTINGS = {
    "maxclients": ("2000", "2000"),
    "tcp-keepalive": ("60", "60"),
    "timeout": ("600", "600"),
    "hz": ("20", "20"),
    "loglevel": ("verbose", "verbose"),
    "maxmemory-samples": ("10", "10"),
    "maxmemory-clients": ("5%", "5%"),
    "maxmemory-eviction-tenacity": ("20", "20"),
    "active-expire-effort": ("3", "3"),
    "lfu-log-factor": ("20", "20"),
    "lfu-decay-time": ("2", "2"),
    "latency-monitor-threshold": ("100", "100"),
    "slowlog-log-slower-than": ("5000", "5000"),
    "slowlog-max-len": ("256", "256"),
    "notify-keyspace-events": ("Ex", "xE"),
    "client-output-buffer-limit": (["pubsub 64mb 16mb 90"], "67108864 16777216 90"),
    "client-query-buffer-limit": ("512mb", str(512 << 20)),
    "proto-max-bulk-len": ("256mb", str(256 << 20)),
    "hash-max-listpack-entries": ("64", "64"),
    "set-max-intset-entries": ("256", "256"),
    "zset-max-listpack-value": ("32", "32"),
    "list-compress-depth": ("1", "1"),
    "stream-node-max-entries": ("50", "50"),
    "lazyfree-lazy-eviction": ("yes", "yes"),
    "lazyfree-lazy-expire": ("yes", "yes"),
    "repl-backlog-size": ("4mb", str(4 << 20)),
    "replica-priority": ("50", "50"),
    "auto-aof-rewrite-percentage": ("200", "200"),
    "auto-aof-rewrite-min-size": ("32mb", str(32 << 20)),
    "rdb-save-incremental-fsync": ("no", "no"),
}

# Connections that each write and read without a pause until the file /tmp/clients.stop is there, and never come back.
CLIENTS = """
import json, os, socket, sys, threading
ended, counts = [], []
def work(number):
    count = 0
    try:
        with socket.create_connection(("127.0.0.1", 6379), 30) as place:
            stream = place.makefile("rwb")
            while not os.path.exists("/tmp/clients.stop"):
                stream.write(b"SET client:%d %d\\r\\nGET client:%d\\r\\n" % (number, count, number))
                stream.flush()
                answer = [stream.readline() for _ in range(3)]
                if answer != [b"+OK\\r\\n", b"$%d\\r\\n" % len(str(count)), b"%d\\r\\n" % count]:
                    ended.append(repr(answer))
                    return
                count += 1
    except OSError as err:
        ended.append(repr(err))
    finally:
        counts.append(count)
threads = [threading.Thread(target=work, args=(number,)) for number in range(int(sys.argv[1]))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"ended": ended, "counts": counts}))
"""


@contextlib.contextmanager
def clients(host, count: int = 20):
    """Keep connections at work; what they saw is filled in at the end."""
    host.run(["rm", "-f", "/tmp/clients.stop"])
    working = host.popen(["python3", "-c", CLIENTS, str(count)])
    host.run(["sh", "-c", f"until redis-cli client list | grep -c 'cmd=[gs]et' | grep -qx {count}; do sleep 0.1; done"])
    seen = {}
    try:
        yield seen
    finally:
        host.run(["touch", "/tmp/clients.stop"])
        seen.update(json.loads(working.communicate(timeout=60)[0]))


def answer(host, directive: str) -> str:
    """What the running server says of a directive."""
    return "".join(app.redis(host, "config", "get", directive).split("\n")[1:])


def restarts(host) -> str:
    return host.run(["systemctl", "show", "-p", "NRestarts", "--value", "redis_6379"]).stdout.strip()


@pytest.mark.parametrize("image", IMAGES)
def test_thirty_settings_change_under_load_and_no_connection_ends(redis_host, image):
    assert len(SETTINGS) == 30
    host = redis_host(image)
    before = pid(host)
    configure(host, {"directives": {name: value for name, (value, _) in SETTINGS.items()}, "maxmemory": "1gb"})
    with clients(host) as seen:
        announced = apply_locally(host, test=True).assert_ok()
        assert set(announced.pending) == {CONFIG, LIVE}
        assert announced.changed[LIVE].keys() == SETTINGS.keys() | {"maxmemory"}
        assert answer(host, "maxmemory") == "0"
        run = apply_locally(host)
        assert changed(run) == {CONFIG, LIVE}
        assert run.changed[LIVE] == announced.changed[LIVE]
        apply_locally(host).assert_unchanged()
    assert seen["ended"] == [] and len(seen["counts"]) == 20 and min(seen["counts"]) > 100
    assert pid(host) == before
    for name, (_, wished) in SETTINGS.items():
        assert set(wished.split()) <= set(answer(host, name).split()) or set(wished) == set(answer(host, name)), name
    assert answer(host, "maxmemory") == str(1 << 30)

    # What is no longer said goes back to the release's own default.
    configure(host)
    with clients(host) as seen:
        assert changed(apply_locally(host)) == {CONFIG, LIVE}
        apply_locally(host).assert_unchanged()
    assert (seen["ended"], pid(host), answer(host, "hz"), answer(host, "maxclients")) == ([], before, "10", "10000")


@pytest.mark.parametrize("image", IMAGES)
def test_what_takes_a_restart_takes_one_and_loses_no_key(redis_host, image):
    host = redis_host(image)
    fill(host)
    before = pid(host)
    five = {"tcp-backlog": 128, "io-threads": 2, "always-show-logo": "yes", "syslog-ident": "other"}
    configure(host, {"maxmemory": "90mb", "databases": 32, "directives": five})
    announced = apply_locally(host, test=True).assert_ok()
    assert set(announced.pending) == {CONFIG, LIVE, SERVES}
    assert set(announced.changed[LIVE]) == {"maxmemory"}
    by_restart = "always-show-logo, databases, io-threads, syslog-ident, tcp-backlog can only be changed by a restart"
    assert by_restart in announced.states[LIVE]["comment"]
    assert "databases is '16', not '32'; io-threads is '1', not '2'" in announced.states[SERVES]["comment"]
    assert (pid(host), answer(host, "maxmemory")) == (before, "0")
    assert changed(apply_locally(host)) == {CONFIG, LIVE, SERVES}
    assert pid(host) != before
    assert [answer(host, name) for name in ("databases", *five)] == ["32", "128", "2", "yes", "other"]
    assert (app.redis(host, "dbsize"), restarts(host)) == ("300", "0")
    apply_locally(host, test=True).assert_unchanged()
    apply_locally(host).assert_unchanged()


def test_a_restart_that_is_left_to_a_person_is_told_in_each_run(redis_host):
    host = redis_host()
    fill(host, 3)
    before = pid(host)
    configure(host, {"maxmemory": "90mb", "databases": 32, "restart": "never"})
    assert set(apply_locally(host, test=True).assert_ok().pending) == {CONFIG, LIVE}
    assert changed(apply_locally(host)) == {CONFIG, LIVE}
    for test in (True, False):
        run = apply_locally(host, test=test)
        run.assert_unchanged()
        assert "a restart is left to you (restart: never) for: databases is '16'" in run.states[SERVES]["comment"]
    assert (pid(host), answer(host, "maxmemory")) == (before, str(90 << 20))
    # A build and a unit that change are left to a person too; one that does not run is started.
    host.run(["mkdir", "-p", "/etc/systemd/system/redis_6379.service.d"])
    host.write("/etc/systemd/system/redis_6379.service.d/own.conf", "[Service]\nLimitNOFILE=12345\n")
    assert changed(apply_locally(host)) == {SERVES}  # the unit is loaded anew
    run = apply_locally(host)
    run.assert_unchanged()
    assert "own.conf" in run.states[SERVES]["comment"] and pid(host) == before
    host.run(["systemctl", "restart", "redis_6379"])
    run = apply_locally(host)
    run.assert_unchanged()
    assert "left to you" not in run.states[SERVES]["comment"] and answer(host, "databases") == "32"
    host.run(["systemctl", "stop", "redis_6379"])
    assert changed(apply_locally(host)) == {SERVES}
    assert app.redis(host, "dbsize") == "3"


def test_what_somebody_set_by_hand_is_put_right(redis_host):
    host = redis_host()
    apply_locally(host).assert_unchanged()
    before, text = pid(host), host.run(["stat", "-c", "%y", "/etc/redis/6379.conf"]).stdout
    for words in ("maxmemory-policy allkeys-lru", "save 1000 1", "appendonly no", "protected-mode no"):
        app.redis(host, "config", "set", *words.split(" ", 1))
    announced = apply_locally(host, test=True).assert_ok()
    assert announced.pending == [LIVE]
    assert set(announced.changed[LIVE]) == {"maxmemory-policy", "save", "appendonly", "protected-mode"}
    assert answer(host, "appendonly") == "no"
    run = apply_locally(host)
    assert changed(run) == {LIVE} and run.changed == announced.changed
    assert answer(host, "maxmemory-policy") == "noeviction" and answer(host, "save") == "3600 1 300 100 60 10000"
    assert "aof_enabled:1" in app.redis(host, "info", "persistence")
    apply_locally(host).assert_unchanged()
    assert (pid(host), host.run(["stat", "-c", "%y", "/etc/redis/6379.conf"]).stdout) == (before, text)


def test_a_run_cut_off_between_file_and_server_is_made_good(redis_host):
    host = redis_host()
    fill(host, 3)
    before = pid(host)
    configure(host, {"maxmemory": "90mb", "appendonly": False})
    apply_locally(host, "redis_sidekiq.redis.config").assert_ok()  # without the service
    assert answer(host, "maxmemory") == "0"
    announced = apply_locally(host, test=True).assert_ok()
    assert changed(apply_locally(host)) == {LIVE} == set(announced.pending)
    assert (pid(host), answer(host, "maxmemory"), app.redis(host, "dbsize")) == (before, str(90 << 20), "3")
    apply_locally(host).assert_unchanged()

    configure(host, {"databases": 32})
    apply_locally(host, "redis_sidekiq.redis.config").assert_ok()
    assert changed(apply_locally(host)) == {LIVE, SERVES}
    assert (pid(host) != before, answer(host, "databases"), app.redis(host, "dbsize")) == (True, "32", "3")
    apply_locally(host).assert_unchanged()


@pytest.mark.soak
def test_a_run_that_is_killed_at_any_moment_is_made_good(redis_host):
    host = redis_host()
    fill(host)
    for step, tenths in enumerate(range(4, 24)):
        configure(host, {"maxmemory": f"{90 + step}mb", "databases": 17 + step, "appendonly": step % 2 == 0})
        cut = f"setsid salt-call --local state.apply redis_sidekiq & sleep {tenths / 10}; kill -9 -- -$!"
        host.run(["sh", "-c", cut], check=False)
        apply_locally(host).assert_ok()
        assert (answer(host, "maxmemory"), answer(host, "databases")) == (str((90 + step) << 20), str(17 + step)), (
            tenths
        )
        assert app.redis(host, "dbsize") == "300", tenths
        apply_locally(host).assert_unchanged()


# Writes without a pause; who is hung up on comes again and asks for the last value that he was told is written.
WRITER = """
import json, os, socket, time
told, lost, cuts = 0, [], 0
while not os.path.exists("/tmp/clients.stop"):
    try:
        with socket.create_connection(("127.0.0.1", 6379), 5) as place:
            stream = place.makefile("rwb")
            def ask(line):
                stream.write(line + b"\\r\\n"), stream.flush()
                first = stream.readline()
                return stream.readline().strip() if first[:1] == b"$" and first[:2] != b"$-" else first.strip()
            found = ask(b"GET writer")
            if found[:1] not in b"0123456789" and told:
                continue  # it loads
            if told and int(found) < told:
                lost.append(told - int(found))
            cuts += bool(told)
            while not os.path.exists("/tmp/clients.stop"):
                if ask(b"SET writer %d" % (told + 1)) != b"+OK":
                    break
                told += 1
    except (OSError, ValueError):
        pass
    time.sleep(0.01)
print(json.dumps({"told": told, "lost": lost, "cuts": cuts}))
"""


@pytest.mark.soak
def test_no_write_is_lost_whenever_redis_is_killed_while_its_config_changes(redis_host):
    host = redis_host()
    fill(host)
    host.run(["rm", "-f", "/tmp/clients.stop"])
    writer = host.popen(["python3", "-c", WRITER])
    for step, tenths in enumerate(range(4, 24)):
        configure(host, {"maxmemory": f"{90 + step}mb", "databases": 17 + step})
        cut = f"salt-call --local state.apply redis_sidekiq & sleep {tenths / 10}; pkill -9 redis-server; wait"
        host.run(["sh", "-c", cut], check=False)
        apply_locally(host).assert_ok()
        assert (answer(host, "maxmemory"), answer(host, "databases")) == (str((90 + step) << 20), str(17 + step)), (
            tenths
        )
        apply_locally(host).assert_unchanged()
    host.run(["touch", "/tmp/clients.stop"])
    seen = json.loads(writer.communicate(timeout=60)[0])
    print(seen)
    assert seen["lost"] == [] and seen["cuts"] >= 20 and seen["told"] > 10_000


@pytest.mark.soak
def test_what_a_change_costs_beside_a_restart(redis_host):
    host = redis_host()
    words = "for key = ARGV[1], ARGV[2] do redis.call('set', 'big:' .. key, string.rep(redis.sha1hex(key), 50)) end"
    for first in range(0, 200_000, 20_000):
        app.redis(host, "eval", words, "0", str(first), str(first + 19_999))
    with clients(host) as seen:
        configure(host, {"maxmemory": "2gb"})
        run = apply_locally(host)
        assert changed(run) == {CONFIG, LIVE}
    assert seen["ended"] == []
    size = app.redis(host, "info", "memory").split("used_memory_human:")[1].split()[0]
    print(
        f"{size}: set live in {run.states[LIVE]['duration'] / 1000:.2f} s, the run {run.seconds:.1f} s, 0 of 20 clients dropped"
    )
    with clients(host) as seen:
        record = salt_call(host, "redis_server.restart", "6379")
    seconds = {step["step"]: step["seconds"] for step in record["steps"]}
    print(f"a restart with care: {seconds}, {len(seen['ended'])} of 20 clients dropped")
    assert record["result"] and len(seen["ended"]) == 20


def test_what_a_config_means_is_asked_anew_when_it_is_forgotten(redis_host):
    host = redis_host()
    kept = "/var/lib/redis_sidekiq/redis_6379.json"
    apply_locally(host).assert_unchanged()
    assert host.run(["stat", "-c", "%U %a", kept]).stdout.strip() == "root 600"
    before = pid(host)
    for spoil in (["rm", kept], ["truncate", "-s", "100", kept]):
        host.run(spoil)
        apply_locally(host, test=True).assert_unchanged()
        apply_locally(host).assert_unchanged()
        json.loads(host.run(["cat", kept]).stdout)
    assert pid(host) == before
    argv = ["salt-call", "--local", "--out=json", "state.apply", "redis_sidekiq.redis"]
    _, programs = host.processes_spawned(argv)
    assert not [words for words in programs if "redis-server" in " ".join(words)], programs
