"""`redis_sidekiq.check` and `redis_sidekiq.drift`: what they say of a host, and that they change nothing."""

from __future__ import annotations

import json

import pytest

from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import apply_locally, make_masterless, put_pillar, salt_call, tarball, wait_for
from test.hosts.test_clean import differing, inventory

WHERE = "redis_sidekiq:sidekiq:services:sidekiq:"


def pillar(image: str = "7.0.15", **redis) -> dict:
    """Everything on one host, whose kernel belongs to the machine."""
    instances = {"6379": {}, "6380": {"save": []}}
    settings = {**tarball(image), "kernel": {"overcommit_memory": None}, "instances": instances, **redis}
    service = {"require": "./worker.rb", "start_timeout": 20}
    sidekiq = {"install": "package", "services": {"sidekiq": service}}
    return {"redis_sidekiq": {"redis": settings, "sidekiq": sidekiq}}


def check(host: Host) -> dict:
    """Return the preflight; the command's exit status says the same."""
    done = host.run(["salt-call", "--local", "--out=json", "redis_sidekiq.check"], check=False)
    report = json.loads(done.stdout)["local"]
    assert (done.returncode == 0) is report["ok"] is (not report["problems"]), report
    return report


def drift(host: Host, *words: str) -> list:
    return salt_call(host, "redis_sidekiq.drift", *words)


def named(lines: list) -> set:
    """What the sentences are about."""
    return {line.partition(": ")[0] for line in lines}


def about(lines: list, *words: str) -> str:
    """The one sentence that has all these words."""
    [line] = [line for line in lines if all(word in line for word in words)]
    return line


@pytest.fixture
def watched():
    """Return a function that gives what a host has; at the end of a block nothing of it may have changed."""

    class Watched:
        def __init__(self, host):
            self.host = host

        def __enter__(self):
            self.before = inventory(self.host)

        def __exit__(self, kind, *rest):
            assert kind or differing(self.before, inventory(self.host)) == {}

    return Watched


def test_a_bare_host(make_host, watched):
    host = make_host("check-bare", image="bookworm")
    make_masterless(host, pillar())
    salt_call(host, "saltutil.sync_all")
    with watched(host):
        report, rows = check(host), drift(host)
    assert report["ok"] and report["takes_over"] == []
    assert "would be compiled" in about(report["next_run"], "Redis 7.0.15 is built: ")
    assert {"Redis instance 6379 serves", "Sidekiq service sidekiq works"} <= named(report["next_run"])
    facts = report["facts"]
    assert facts["restarts"] == {f"{unit}.service": "started" for unit in ("redis_6379", "redis_6380")} | {
        "sidekiq.service": ""
    }
    assert facts["disk"]["/opt/redis"] > 1e8 and facts["memory"]["available"] > 1e8 and facts["systemd"] >= 252
    assert facts["accounts"] == {"deploy": False}
    assert WHERE + "app_dir" in named(report["warnings"])
    assert {"redis_6379", "sidekiq", "ufw"} <= {row["subject"] for row in rows}

    # A worker of another host's Redis.
    put_pillar(host, app.sidekiq_pillar(redis_url="redis://:hunter2@203.0.113.9:6379/0"))
    report = check(host)
    assert "203.0.113.9:6379" in about(report["problems"], WHERE + "redis_url: ")
    assert "hunter2" not in json.dumps(report)


def test_a_converged_host_and_what_hands_do_to_it(make_host, masterless, watched):
    host = make_host("check-hands", image=masterless("bookworm").image)
    make_masterless(host, pillar())
    app.deploy(host)
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    with watched(host):
        report, rows = check(host), drift(host, "all=True")
    assert report["ok"] and report["next_run"] == report["takes_over"] == [], report
    assert set(report["facts"]["restarts"].values()) == {""}
    service = report["facts"]["services"]["sidekiq"]
    assert service["sidekiq"] and service["ruby"] == "3.1" and service["redis"] == "redis 7.0.15"
    assert abs(service["clock"]) < 1
    assert {"redis_6379", "redis_6380", "sidekiq", "kernel", "ufw", "sudo"} == {row["subject"] for row in rows}
    assert [row for row in rows if row["differs"]] == []

    host.run(["redis-cli", "config", "set", "maxclients", "900"])
    host.run(["ufw", "--force", "delete", "allow", "80/tcp"])
    host.run(["systemctl", "stop", "redis_6380"])
    app.deploy(host)
    host.run(["chmod", "0644", "/etc/redis/6379.conf"])
    host.write("/etc/sudoers.d/by_hand", "deploy ALL=(root) NOPASSWD: /usr/bin/id\n", mode=0o440)
    with watched(host):
        rows, report = drift(host), check(host)
    assert sorted((row["subject"], row["what"].partition(" ")[0]) for row in rows) == [
        ("/etc/redis/6379.conf", "redis_server.config"),
        ("redis_6379", "maxclients"),
        ("redis_6380", "running"),
        ("sidekiq", "process"),
        ("sudo", "deploy:"),
        ("ufw", "http:"),
    ], rows
    assert not report["ok"] and "/etc/sudoers.d/by_hand:1" in about(report["problems"], "/usr/bin/id")
    assert len(report["problems"]) == 1 and report["facts"]["live"] == {"6379": ["maxclients"]}
    assert report["facts"]["restarts"]["redis_6379.service"] == ""
    assert report["facts"]["restarts"]["redis_6380.service"] == "started"
    assert "releases" in report["facts"]["restarts"]["sidekiq.service"]

    host.run(["rm", "/etc/sudoers.d/by_hand"])
    assert set(apply_locally(host).assert_ok().changed) == named(report["next_run"])
    apply_locally(host).assert_unchanged()
    assert drift(host) == []


CONFIG = """daemonize yes
pidfile /var/run/redis_6379.pid
port 6379
dir /var/redis/6379
"""
SCRIPT = """#!/bin/sh
case "$1" in
start) /usr/local/bin/redis-server /etc/redis/6379.conf ;;
stop) /usr/local/bin/redis-cli shutdown ;;
esac
"""
UNIT = "[Service]\nUser=deploy\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"


def test_a_host_that_was_made_by_hand(make_host, masterless, watched):
    host = make_host("check-hand-made", image=masterless("bookworm").image)
    make_masterless(host, pillar())
    host.run(["sh", "-c", "mkdir /root/bin && cp -L /usr/local/bin/redis-* /root/bin/"])
    apply_locally(host, "redis_sidekiq.clean").assert_ok()
    host.run(["sh", "-c", "rm -rf /var/redis/6379 && mkdir -p /etc/redis /var/redis/6379 /etc/init"])
    host.run(["sh", "-c", "cp /root/bin/redis-* /usr/local/bin/"])
    host.write("/etc/redis/6379.conf", CONFIG)
    host.write("/etc/init.d/redis_6379", SCRIPT, mode=0o755)
    host.write("/etc/systemd/system/sidekiq.service", UNIT)
    host.write("/etc/init/sidekiq.conf", "start on runlevel [2345]\n")
    host.write("/etc/sudoers.d/deploy", "deploy ALL=NOPASSWD: /bin/systemctl restart sidekiq\n", mode=0o440)
    host.run(["/etc/init.d/redis_6379", "start"])
    host.run(["sh", "-c", "until redis-cli ping; do sleep 0.1; done; redis-cli set a b; redis-cli save"])
    host.run(["ufw", "allow", "8080/tcp"])
    host.popen(["python3", "-c", "import socket, time; s = socket.create_server(('', 6380)); time.sleep(600)"])
    wait_for(lambda: ":6380" in host.run(["ss", "-tln"]).stdout, 20, "a program that listens at 6380")
    with watched(host):
        report = check(host)
    assert "python3" in about(report["problems"], "redis_sidekiq:redis:instances:6380: port 6380 is taken by ")
    takes_over = report["takes_over"]
    assert about(takes_over, "/usr/local/bin/redis-server", "/usr/local/bin/redis-cli")
    assert "dump.rdb" in about(takes_over, "a Redis of others has port 6379", "/var/redis/6379")
    for path in ("/etc/init.d/redis_6379", "/etc/redis/6379.conf", "/etc/systemd/system/sidekiq.service"):
        assert about(takes_over, f"{path}: made by others")
    assert about(takes_over, "/etc/init/sidekiq.conf", "Upstart")
    assert about(takes_over, "/etc/sudoers.d/deploy:1", "restart sidekiq")
    assert about(takes_over, "ufw", "8080/tcp")
