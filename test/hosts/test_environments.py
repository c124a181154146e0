"""Three environments on three hosts from one pillar tree, the one that docs/examples ships; and roles on hosts of their own."""

from __future__ import annotations

import difflib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from test.hosts import app
from test.hosts.conftest import OTHER_ROLES, host_facts
from test.hosts.harness.host import Host
from test.hosts.lab import PILLAR_ROOT, REPO, Master, put_pillar, tarball, wait_for

NAMES = ("dev", "staging-1", "production-1")
TREE = REPO / "docs/examples/pillar"
# The example but for the release, whose tarball is not on the hosts, and for what the test's app needs.
SITE = {
    "redis_sidekiq": {
        "redis": {"version": "7.0.15", **tarball("7.0.15")},
        "sidekiq": {"install": "package", "services": {"sidekiq": {"require": "./worker.rb", "start_timeout": 20}}},
    }
}
# What the files of staging and production say, and nothing else, by the file where it is seen.
WRITTEN = {
    "staging-1": {"/etc/systemd/system/sidekiq.service", "/etc/ufw/user.rules", "/etc/ufw/user6.rules"},
    "production-1": {
        *("/etc/systemd/system/sidekiq.service", "/etc/ufw/user.rules", "/etc/ufw/user6.rules", "/etc/redis/6379.conf"),
        *("/etc/systemd/system/redis_6379_backup.service", "/etc/systemd/system/redis_6379_backup.timer"),
        "/etc/systemd/system/timers.target.wants/redis_6379_backup.timer",
    },
}
LINES = {
    "staging-1": ["-e production -t 25 -c 5", "-e staging -t 25 -c 2"],
    "production-1": ["-t 25 -c 5 -r ./worker.rb -q critical -q default", "TimeoutStopSec=40"]
    + ["-t 60 -c 5 -r ./worker.rb -q critical -q default -q mail", "TimeoutStopSec=75"],
}


@pytest.fixture(scope="module")
def master(module_hosts, masterless):
    """A master with the tree, and a minion for each environment, as bare as hosts with a build in place can be."""
    master = Master(module_hosts("environments"), {})
    master.host.run(["rm", "-rf", PILLAR_ROOT])
    master.host.copy_in(TREE, PILLAR_ROOT)
    top = (TREE / "top.sls").read_text()
    master.host.write(f"{PILLAR_ROOT}/top.sls", f"{top}\n  '* and *':\n    - match: compound\n    - zz\n")
    master.host.write(f"{PILLAR_ROOT}/zz.sls", "#!json\n" + json.dumps(SITE))
    hosts = [module_hosts(name, image=masterless("bookworm").image) for name in NAMES]
    for host in hosts:
        host.run(["rm", "-rf", "/etc/salt/minion.d", *OTHER_ROLES])
        app.release(host, "1")
    master.attach(*hosts)
    return master


def text(host: Host, path: str) -> list[str]:
    return host.run(["cat", path]).stdout.splitlines() if host.exists(path) else []


def test_three_environments_differ_as_written_and_in_nothing_else(master):
    def converge(host: Host) -> dict:
        announced = master.apply(host, test=True).assert_ok()
        applied = master.apply(host).assert_ok()
        assert set(applied.changed) <= set(announced.pending)
        master.apply(host).assert_unchanged()
        return host_facts(host)

    with ThreadPoolExecutor(3) as pool:
        facts = dict(zip((host.name for host in master.minions), pool.map(converge, master.minions)))
    dev, *others = master.minions
    for host, name in zip(others, NAMES[1:]):
        ours, theirs = facts[dev.name]["files"], facts[host.name]["files"]
        assert {path for path in {*ours, *theirs} if ours.get(path) != theirs.get(path)} == WRITTEN[name]
        assert facts[dev.name]["users"] == facts[host.name]["users"]
        unit = "/etc/systemd/system/sidekiq.service"
        changed = [
            line for line in difflib.ndiff(text(dev, unit), text(host, unit)) if line[0] in "+-" and line[2] != "#"
        ]
        assert all(any(word in line for line in changed) for word in LINES[name]) and len(changed) == len(
            LINES[name]
        ), changed
    assert [line[1:] for line in difflib.unified_diff(text(dev, "/etc/redis/6379.conf"), text(others[1], "/etc/redis/6379.conf"), n=0) if line[0] in "+-"][2:] == [
        "maxmemory 256mb", "maxmemory 2gb",
    ]  # fmt: skip
    rules = {
        name: set(host.run(["ufw", "show", "added"]).stdout.splitlines()) for host, name in zip(master.minions, NAMES)
    }
    assert len(rules["dev"] ^ rules["staging-1"]) == 4, rules
    assert len(rules["dev"] - rules["production-1"]) == 2 and len(rules["production-1"] - rules["dev"]) == 1, rules


def test_a_worker_takes_address_and_password_from_the_pillar_of_both(master):
    """Redis on one host, Sidekiq on another: what the worker needs of it stands once."""
    redis, worker, _ = master.minions
    shared = {
        "redis": {
            **tarball("7.0.15"),
            "instances": {
                "6379": {
                    "bind": ["127.0.0.1", redis.address],
                    "password": "shared-by-both-0123",
                    "allow_from": [worker.address],
                    "users": {"jobs": {"passwords": ["of-the-workers-0123"], "preset": "sidekiq"}},
                }
            },
        },
        "sidekiq": {
            "install": "package",
            "services": {
                "sidekiq": {
                    "redis_host": redis.address,
                    "redis_user": "jobs",
                    "require": "./worker.rb",
                    "start_timeout": 20,
                }
            },
        },
    }
    roles = {redis.name: ["redis", "firewall"], worker.name: ["firewall", "sidekiq"]}
    put_pillar(
        master.host,
        f"#!py\nROLES = {roles!r}\nSHARED = {shared!r}\n\ndef run():\n"
        "    return {'redis_sidekiq': {**SHARED, 'roles': ROLES.get(__grains__['id'], ['firewall'])}}\n",
    )
    redis.run(["systemctl", "disable", "--now", "sidekiq"])
    worker.run(["systemctl", "disable", "--now", "redis_6379"])
    for host in (redis, worker):
        master.apply(host).assert_ok()
        master.apply(host).assert_unchanged()
    url = f"REDIS_URL=redis://jobs:of-the-workers-0123@{redis.address}:6379/0"
    worker.run(["sh", "-c", f"cd {app.HOME}/current && env {url} bundle exec ruby enqueue.rb 20"], user="deploy")
    ask = ["env", "REDISCLI_AUTH=shared-by-both-0123", "redis-cli", "scard", "worked"]
    wait_for(lambda: redis.run(ask).stdout.strip() == "20", 30, "20 jobs worked by the other host")
