"""What Redis leaves on a machine and takes from it: instances that are dropped, and what others have."""

import json

import pytest

from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import apply_locally, put_pillar, redis_version, salt_call, tarball
from test.hosts.redis_lab import changed, pid

DROPPED = "Redis runs in no instance that the settings do not name"


def have(host: Host, instances: dict, **redis) -> None:
    """Make a pillar with these instances of Redis."""
    version = redis_version(host.run(["cat", "/etc/image"]).stdout.strip())
    redis = {**tarball(version), **redis, "instances": instances}
    put_pillar(host, {"redis_sidekiq": {"roles": ["redis"], "redis": redis}})


def ask(host: Host, port: int, *words: str) -> str:
    return host.run(["redis-cli", "-p", str(port), *words]).stdout.strip()


def others_server(host: Host, port: int) -> None:
    """A Redis that somebody else made, in the places that the formula would take."""
    host.run(["install", "-d", "-o", "redis", f"/var/redis/{port}"])
    host.write(f"/etc/redis/{port}.conf", f"port {port}\ndir /var/redis/{port}\n", mode=0o644)
    command = f"/opt/redis/current/bin/redis-server /etc/redis/{port}.conf"
    unit = f"[Service]\nUser=redis\nExecStart={command}\n[Install]\nWantedBy=multi-user.target\n"
    host.write(f"/etc/systemd/system/redis_{port}.service", unit)
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "enable", "--now", f"redis_{port}"])


# Instances that the pillar drops -------------------------------------------------------------------------------------


def test_an_instance_that_the_pillar_drops_is_stopped_and_keeps_its_keys(redis_host):
    host = redis_host()
    nowhere = {"password": "six-three-eight-one", "save": [], "appendonly": False}
    have(host, {"6379": {}, "6380": {}, "6381": nowhere})
    apply_locally(host).assert_ok()
    others_server(host, 6399)
    ask(host, 6380, "mset", "a", "1", "b", "2")
    host.run(["env", "REDISCLI_AUTH=six-three-eight-one", "redis-cli", "-p", "6381", "set", "c", "3"])
    before, others = pid(host), app.main_pid(host, "redis_6399")

    have(host, {"6379": {}})
    announced = apply_locally(host, test=True).assert_ok()
    assert announced.pending == [DROPPED] and set(announced.changed[DROPPED]) == {"6380", "6381"}
    assert (ask(host, 6380, "get", "a"), host.exists("/etc/redis/6381.conf")) == ("1", True)

    run = apply_locally(host)
    assert changed(run) == {DROPPED} and run.changed == announced.changed
    assert "/var/redis/6380 stay" in run.states[DROPPED]["comment"] and "six-three" not in json.dumps(run.states)
    for port in (6380, 6381):
        assert not host.exists(f"/etc/redis/{port}.conf") and not host.exists(
            f"/etc/systemd/system/redis_{port}.service"
        )
        assert host.run(["systemctl", "show", "-p", "LoadState", "--value", f"redis_{port}"]).stdout == "not-found\n"
    assert host.run(["find", "/etc/systemd/system", "-xtype", "l"]).stdout == ""
    assert (pid(host), app.main_pid(host, "redis_6399")) == (before, others)
    apply_locally(host).assert_unchanged()

    have(host, {"6379": {}, "6380": {}, "6381": nowhere})
    apply_locally(host).assert_ok()
    assert ask(host, 6380, "mget", "a", "b").split() == ["1", "2"]
    assert host.run(["env", "REDISCLI_AUTH=six-three-eight-one", "redis-cli", "-p", "6381", "get", "c"]).stdout == "3\n"
    assert pid(host) == before


def test_null_drops_an_instance_and_purge_data_its_data(redis_host):
    host = redis_host()
    have(host, {"6380": {}}, service_manager="sysv")
    apply_locally(host).assert_ok()
    before = host.run(["cat", "/run/redis/6379.pid", "/run/redis/6380.pid"]).stdout.split()
    have(host, {"6379": None, "6380": {}}, service_manager="sysv", purge_data=True)
    announced = apply_locally(host, test=True).assert_ok()
    assert host.exists("/var/redis/6379")
    run = apply_locally(host)
    assert changed(run) == {DROPPED} == set(announced.pending)
    gone = ["/etc/init.d/redis_6379", "/etc/redis/6379.conf", "/var/redis/6379", "/var/log/redis/6379.log"]
    assert not any(map(host.exists, gone))
    assert host.run(["sh", "-c", "ls /etc/rc?.d | grep redis_6379"], check=False).stdout == ""
    assert host.run(["pgrep", "-x", "redis-server"]).stdout.split() == before[1:]
    apply_locally(host).assert_unchanged()


def test_a_dropped_instance_that_cannot_save_its_keys_stays(redis_host):
    host = redis_host()
    have(host, {"6379": {}, "6380": {"save": [], "appendonly": False}})
    apply_locally(host).assert_ok()
    ask(host, 6380, "set", "a", "1")
    ask(host, 6380, "config", "set", "requirepass", "nobody-knows")
    have(host, {"6379": {}})
    run = apply_locally(host)
    assert "runs with another password" in run.failed[DROPPED] and set(run.failed) == {DROPPED}
    assert host.exists("/etc/redis/6380.conf") and host.exists("/etc/systemd/system/redis_6380.service")
    host.run(["env", "REDISCLI_AUTH=nobody-knows", "redis-cli", "-p", "6380", "config", "set", "requirepass", ""])
    assert changed(apply_locally(host)) == {DROPPED}
    apply_locally(host).assert_unchanged()


@pytest.mark.parametrize("left", ["unit gone", "only the config"])
def test_what_a_run_that_was_cut_off_left_of_an_instance_goes_too(redis_host, left):
    host = redis_host()
    have(host, {"6379": {}, "6380": {}})
    apply_locally(host).assert_ok()
    host.run(["rm", "/etc/systemd/system/redis_6380.service"])
    if left == "only the config":
        host.run(["systemctl", "disable", "--now", "redis_6380"], check=False)
    host.run(["systemctl", "daemon-reload"])
    have(host, {"6379": {}})
    assert changed(apply_locally(host)) == {DROPPED}
    assert host.run(["pgrep", "-x", "redis-server"]).stdout.split() == [pid(host)]
    assert host.run(["find", "/etc/systemd/system", "-xtype", "l"]).stdout == ""
    assert salt_call(host, "redis_instances.found") == {
        "6379": ["/etc/systemd/system/redis_6379.service", "/etc/redis/6379.conf"]
    }
