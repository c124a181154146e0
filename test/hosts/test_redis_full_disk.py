"""A disk that is full while something is written: a clear failure, what was there works, and the next run is right."""

import contextlib

import pytest

from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import apply_locally, wait_for
from test.hosts.redis_lab import CONFIG, LIVE, SERVES, changed, configure, fill, pid

BUILD = "Redis 7.0.15 is built"


@contextlib.contextmanager
def small(host: Host, folder: str, size: str):
    """A file system of ``size`` with what is in ``folder``, in its place; then that folder as it was."""
    host.run(["cp", "-a", folder, "/root/kept"])
    host.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", folder])
    host.run(["sh", "-c", f"cp -a /root/kept/. {folder} && rm -r /root/kept"])
    try:
        yield
    finally:
        host.run(["umount", "--lazy", folder])


def use_up(host: Host, folder: str) -> None:
    host.run(["sh", "-c", f"cat /dev/zero > {folder}/ballast"], check=False)


def make_room(host: Host, folder: str) -> None:
    host.run(["rm", f"{folder}/ballast"])


# Less than the tarball, than the files in it, than what becomes of these.
@pytest.mark.parametrize(
    "size", [pytest.param("1m", marks=pytest.mark.soak), "6m", pytest.param("30m", marks=pytest.mark.soak)]
)
def test_while_redis_is_built(redis_host, size):
    host = redis_host()
    before = pid(host)
    host.run(["mkdir", "/opt/small"])
    with small(host, "/opt/small", size):
        configure(host, prefix="/opt/small")
        run = apply_locally(host)
        words = run.failed[BUILD]
        assert words.startswith("/opt/small is full: a build needs about 400 MB there") and "No space left" in words
        assert f"all of it has {int(size[:-1]) * 1.048576:.1f} MB" in words
        assert host.run(["find", "/opt/small", "-mindepth", "1"]).stdout == ""
    assert pid(host) == before and app.redis(host, "ping") == "PONG"
    configure(host)
    apply_locally(host).assert_unchanged()


def test_while_the_config_is_written(redis_host):
    host = redis_host()
    before, config = pid(host), host.run(["cat", "/etc/redis/6379.conf"]).stdout
    with small(host, "/etc/redis", "64k"):
        use_up(host, "/etc/redis")
        configure(host, {"maxmemory": "80mb", "directives": {"io-threads": 2}})
        run = apply_locally(host)
        assert "Cannot write /etc/redis/6379.conf" in run.failed[CONFIG] and "No space left" in run.failed[CONFIG]
        assert host.run(["cat", "/etc/redis/6379.conf"]).stdout == config
        assert set(host.run(["ls", "-A", "/etc/redis"]).stdout.split()) == {"6379.conf", "ballast"}
        assert (pid(host), app.redis(host, "config", "get", "maxmemory").split()[1]) == (before, "0")
        make_room(host, "/etc/redis")
        assert changed(apply_locally(host)) == {CONFIG, LIVE, SERVES}
        assert app.redis(host, "config", "get", "maxmemory").split()[1] == str(80 << 20)
        apply_locally(host).assert_unchanged()


@pytest.mark.parametrize("appendonly", [False, True])
def test_while_a_snapshot_is_due(redis_host, appendonly):
    host = redis_host()
    configure(host, {"appendonly": appendonly})
    apply_locally(host).assert_ok()
    host.run(["systemctl", "stop", "redis_6379"])
    with small(host, "/var/redis/6379", "16m"):
        host.run(["sh", "-c", "chown redis: /var/redis/6379; chmod 700 /var/redis/6379; systemctl start redis_6379"])
        fill(host)
        served = pid(host)
        use_up(host, "/var/redis/6379")
        configure(host, {"appendonly": appendonly, "databases": 32})
        run = apply_locally(host)
        assert "was not stopped" in run.failed[SERVES] and "/var/redis/6379 has 0.0 MB free" in run.failed[SERVES]
        assert (pid(host), app.redis(host, "dbsize")) == (served, "300")
        # The next run as well, and no earlier one made Redis refuse writes.
        assert "was not stopped" in apply_locally(host).failed[SERVES]
        if not appendonly:
            assert app.redis(host, "set", "more", "1") == "OK"
        make_room(host, "/var/redis/6379")
        wait_for(lambda: app.redis(host, "set", "more", "1") == "OK", 20, "writes are taken again")
        assert changed(apply_locally(host)) == {SERVES}
        assert pid(host) != served and app.redis(host, "dbsize") == "301"
        apply_locally(host).assert_unchanged()
        host.run(["systemctl", "stop", "redis_6379"])


def test_a_server_that_cannot_write_a_snapshot_is_not_stopped(redis_host):
    """There seems to be room enough, by the last snapshot, and there is none."""
    host = redis_host()
    configure(host, {"appendonly": False})
    apply_locally(host).assert_ok()
    host.run(["systemctl", "stop", "redis_6379"])
    with small(host, "/var/redis/6379", "3m"):
        host.run(["sh", "-c", "chown redis: /var/redis/6379; chmod 700 /var/redis/6379; systemctl start redis_6379"])
        served = pid(host)
        host.run(["redis-cli", "config", "set", "rdbcompression", "no"])
        host.run(["redis-cli"], input="".join(f"set key:{number} {'x' * 100000}\n" for number in range(50)))
        configure(host, {"appendonly": False, "databases": 32, "directives": {"rdbcompression": "no"}})
        words = apply_locally(host).failed[SERVES]
        assert "cannot write a snapshot, so a stop could lose keys and it was not stopped" in words
        assert (pid(host), app.redis(host, "dbsize")) == (served, "50")
        host.run(["mount", "-o", "remount,size=30m", "/var/redis/6379"])
        apply_locally(host).assert_ok()
        assert pid(host) != served and app.redis(host, "dbsize") == "50"
        apply_locally(host).assert_unchanged()
        host.run(["systemctl", "stop", "redis_6379"])
