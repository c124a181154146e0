"""The kernel's settings on a host that may set those of its network and, as most containers, no others."""

import json

from test.hosts.harness.host import Host
from test.hosts.lab import apply_locally
from test.hosts.redis_lab import changed, configure, pid

KERNEL = "The kernel is set for Redis"
QUEUE = "/proc/sys/net/core/somaxconn"
SYSCTLS, RECORD = "/etc/sysctl.d/90-redis_sidekiq.conf", "/var/lib/redis_sidekiq/kernel.json"


def queue(host: Host) -> str:
    return host.run(["cat", QUEUE]).stdout.strip()


def longest_queue(host: Host) -> str:
    """What the kernel gave the socket that Redis listens at."""
    return host.run(["ss", "-Hltn", "src", "127.0.0.1:6379"]).stdout.split()[2]


def test_what_a_container_may_not_set_is_a_warning_and_nothing_fails(redis_host):
    host = redis_host()
    configure(host, kernel={"overcommit_memory": 2, "transparent_hugepage": "never"})
    for run in (apply_locally(host, test=True), apply_locally(host)):
        assert run.assert_unchanged().pending == []
        first, second = run.states[KERNEL]["warnings"]
        assert "vm.overcommit_memory is " in first and "should be 2" in first and "on the machine whose kernel" in first
        assert "transparent_hugepage is " in second and "should be never" in second
    assert not any(map(host.exists, (SYSCTLS, "/etc/tmpfiles.d/redis_sidekiq.conf", RECORD)))


def test_a_longer_queue_is_set_lasts_and_goes_with_clean(redis_host):
    host = redis_host()
    before = queue(host)
    wish = {"directives": {"tcp-backlog": 20000}}
    configure(host, wish, kernel={"overcommit_memory": None})
    announced = apply_locally(host, test=True).assert_ok()
    assert KERNEL in announced.pending and queue(host) == before and not host.exists(RECORD)
    run = apply_locally(host)
    assert KERNEL in changed(run) and run.changed[KERNEL] == announced.changed[KERNEL]
    assert (queue(host), longest_queue(host)) == ("20000", "20000")
    record = json.loads(host.run(["cat", RECORD]).stdout)
    assert record == {"net.core.somaxconn": {"before": before, "ours": ["20000"]}}
    assert host.run(["stat", "-c", "%a %U", RECORD]).stdout == "600 root\n"
    apply_locally(host).assert_unchanged()

    # The namespace of the network outlives a boot of this host; a machine's begins anew.
    host.power_off()
    host.start()
    host.run(["sysctl", "-qw", f"net.core.somaxconn={before}"])
    host.run(["systemctl", "restart", "systemd-sysctl"])
    assert queue(host) == "20000"
    apply_locally(host).assert_unchanged()

    host.run(["sysctl", "-qw", "net.core.somaxconn=300"])
    assert changed(apply_locally(host)) == {KERNEL} and queue(host) == "20000"
    served = pid(host)
    configure(host, wish, kernel={"manage": False})
    assert changed(apply_locally(host)) == {KERNEL}
    assert (queue(host), pid(host)) == (before, served) and not host.exists(RECORD)

    configure(host, wish)
    assert changed(apply_locally(host)) == {KERNEL}
    sls = "redis_sidekiq.redis.clean"
    announced = apply_locally(host, sls, test=True).assert_ok()
    assert changed(apply_locally(host, sls)) == set(announced.pending)
    assert queue(host) == before and not host.exists(SYSCTLS) and not host.exists(RECORD)
    apply_locally(host, sls).assert_unchanged()


def test_what_somebody_else_set_since_stays(redis_host):
    host = redis_host()
    configure(host, kernel={"somaxconn": 20000})
    apply_locally(host).assert_ok()
    host.run(["sysctl", "-qw", "net.core.somaxconn=30000"])
    # Who sets more sees to the next boot too.
    assert changed(apply_locally(host)) == {KERNEL} and not host.exists(SYSCTLS)
    apply_locally(host).assert_unchanged()
    apply_locally(host, "redis_sidekiq.redis.clean").assert_ok()
    assert queue(host) == "30000" and not host.exists(RECORD)


def test_more_clients_need_no_restart_unless_the_unit_kept_them_out(redis_host):
    host = redis_host()
    before = pid(host)
    configure(host, {"directives": {"maxclients": 15000}})
    apply_locally(host).assert_ok()
    assert (pid(host), clients(host)) == (before, "15000")
    apply_locally(host).assert_unchanged()

    own = "/etc/systemd/system/redis_6379.service.d/own.conf"
    host.write(own, "[Service]\nLimitNOFILE=12000\n")
    configure(host, {"directives": {"maxclients": 11000}})
    apply_locally(host).assert_ok()
    limited = pid(host)
    host.run(["rm", own])
    configure(host, {"directives": {"maxclients": 16000}})
    announced = apply_locally(host, test=True).assert_ok()
    assert changed(apply_locally(host)) == set(announced.pending)
    assert pid(host) != limited and clients(host) == "16000"
    apply_locally(host).assert_unchanged()


def clients(host: Host) -> str:
    return host.run(["redis-cli", "config", "get", "maxclients"]).stdout.split()[1]
