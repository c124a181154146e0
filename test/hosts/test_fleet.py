"""Two apps on twelve hosts, rolled out at once."""

from __future__ import annotations

import pytest

from test.hosts.bench_rollouts import fire
from test.hosts.fleet import Fleet
from test.hosts.test_rollout import NO_BOOT, states


@pytest.mark.soak
def test_a_fleet_of_twelve_hosts_rolls_two_apps_at_once(module_hosts, masterless):
    names = [f"fl{number}" for number in range(12)]
    apps = {"shop": names[0::2], "blog": names[1::2]}
    large = Fleet(module_hosts, masterless("bookworm").image, names, apps, prefix="fl")
    large.configure_apps(batch="25%")
    large.deploy("2")
    fire(large, ["shop", "blog"], 2)
    for name, hosts in apps.items():
        record = large.wait_idle(name, 400)
        assert record["result"] and record["totals"]["done"] == len(hosts)
        print(name, record["totals"])
    assert set(large.releases().values()) == {"2"}
    assert large.roll()["totals"]["current"] == 12
    large.deploy("3", NO_BOOT, servers=[large.servers[0]])
    record = large.roll("shop")
    assert states(record)["fl0"] == "failed" and record["totals"]["failed"] == 1
    assert set(large.releases().values()) == {"2"}
