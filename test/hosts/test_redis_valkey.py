"""Valkey in the place of Redis, on real hosts: compiled, converged, set live, restarted without losing a key."""

from __future__ import annotations

import json

import pytest

from test.hosts import app
from test.hosts.harness import packages
from test.hosts.lab import apply_locally
from test.hosts.redis_lab import LIVE, SERVES, changed, configure, fill, pid

VERSION = packages.VALKEY[1]
USERS = {"shop": {"passwords": ["sesame-open"], "preset": "sidekiq"}}


@pytest.mark.soak
@pytest.mark.parametrize("image", ["bookworm", "trixie"])
def test_valkey_takes_the_place_of_redis_and_gives_it_back(redis_host, image):
    host = redis_host(image)
    redis = host.run(["readlink", "/opt/redis/current"]).stdout.strip()
    wish = {"flavor": "valkey", **packages.valkey(), "build": {"malloc": "libc"}}
    # Redis 8 writes snapshots that Valkey does not read, so the keys of Redis 7 alone are carried over.
    if image == "bookworm":
        fill(host)
    else:
        host.run(["systemctl", "stop", "redis_6379"])
        host.run(["sh", "-c", "rm -r /var/redis/6379/*"])

    configure(host, **wish)
    announced = apply_locally(host, test=True).assert_ok()
    run = apply_locally(host, timeout=3000)
    assert changed(run) <= set(announced.pending)
    apply_locally(host).assert_unchanged()
    build = host.run(["readlink", "/opt/redis/current"]).stdout.strip()
    record = json.loads(host.run(["cat", f"/opt/redis/{build}/build.json"]).stdout)
    assert (record["flavor"], record["version"], record["rdb_version"]) == ("valkey", VERSION, 11)
    assert build.startswith(f"valkey-{VERSION}-")
    assert host.run(["readlink", f"/proc/{pid(host)}/exe"]).stdout.strip() == f"/opt/redis/{build}/bin/valkey-server"
    assert f"valkey_version:{VERSION}" in host.run(["valkey-cli", "info", "server"]).stdout
    assert host.run(["readlink", "-f", "/usr/local/bin/redis-cli"]).stdout.strip().endswith("/valkey-cli")
    if image == "bookworm":
        assert app.redis(host, "dbsize") == "300"
    else:
        fill(host)

    before = pid(host)
    configure(host, {"maxmemory": "100mb", "users": USERS, "password": "of-the-default-user"}, **wish)
    assert LIVE in changed(apply_locally(host))
    apply_locally(host).assert_unchanged()
    assert pid(host) == before
    login = ["redis-cli", "--user", "shop", "--pass", "sesame-open", "--no-auth-warning"]
    assert host.run([*login, "config", "get", "maxmemory"]).stdout.startswith("NOPERM")
    assert host.run([*login, "dbsize"]).stdout.strip() == "300"

    configure(host, {"directives": {"io-threads": 2}, "maxmemory": "200mb"}, **wish)
    assert SERVES in changed(apply_locally(host))
    apply_locally(host).assert_unchanged()
    assert (pid(host) != before, app.redis(host, "dbsize")) == (True, "300")
    assert app.redis(host, "config", "get", "maxmemory").split()[1] == str(200 << 20)

    # The init script knows the server of either name.
    configure(host, service_manager="sysv", **wish)
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    assert app.redis(host, "dbsize") == "300"
    if image == "trixie":  # back to Redis, which reads what Valkey wrote
        configure(host, service_manager="sysv")
        announced = apply_locally(host, test=True).assert_ok()
        assert changed(apply_locally(host)) == set(announced.pending)
        apply_locally(host).assert_unchanged()
        assert app.redis(host, "dbsize") == "300"
        assert host.run(["readlink", "/opt/redis/current"]).stdout.strip() == redis
        assert not host.exists("/usr/local/bin/valkey-cli")
        assert "8.0.2" in host.run(["redis-cli", "info", "server"]).stdout
