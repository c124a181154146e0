"""Real hosts for the tests: sites that Salt converged, made once in a session and shared by the tests."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from test.hosts import app as app_on
from test.hosts.harness.host import Host
from test.hosts.lab import REPO, Master, StateRun, apply_locally, make_masterless, redis_version, tarball

pytest_plugins = ["test.hosts.harness.fixtures"]

FACTS = (REPO / "test/hosts/facts.py").read_text()


def minimal_pillar(image: str) -> dict:
    """Return a pillar that says nothing but where the tarball is."""
    return {"redis_sidekiq": {"redis": tarball(redis_version(image))}}


def demo_pillar(image: str) -> dict:
    """Return the demo's pillar, with the Redis release of the image's own suite."""
    import yaml

    pillar = yaml.safe_load((REPO / "test/demo/pillar.sls").read_text())
    pillar["redis_sidekiq"]["redis"] = tarball(redis_version(image))
    return pillar


def host_facts(host: Host) -> dict:
    """Return what stands on ``host``: files, units and accounts (see test/hosts/facts.py)."""
    return json.loads(host.run(["python3", "-"], input=FACTS).stdout)


@dataclass
class Site:
    """A master, its minion, and the first runs of the formula there.

    Attributes:
        announced: the run in test mode on the bare host.
        touched: the paths below the managed roots that the test run changed.
        first: the first real run.
        second: the run right after it.
        facts: what stood on the host after the first run.
    """

    master: Master
    host: Host
    announced: StateRun
    touched: dict
    first: StateRun
    pids: tuple
    second: StateRun
    pids_after: tuple
    facts: dict


def main_pids(host: Host) -> tuple:
    """Return the main process of each service."""
    return tuple(
        host.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()
        for unit in ("redis_6379", "sidekiq")
    )


def converge_site(make_host, image: str, pillar: dict, app: bool) -> Site:
    """Bring up a master and a bare host, and run the formula: in test mode, for real, and once more."""
    tag = f"{image}{'app' if app else 'min'}".replace("-", "")
    master_host = make_host(f"m-{tag}", image=image)
    host = make_host(f"h-{tag}", image=image)
    master_host.write("/etc/salt/master.d/redis_sidekiq.conf", app_on.reactor_config(host.name))
    master = Master(master_host, pillar)
    master.attach(host)
    if app:
        app_on.release(host, "1")
    before = host_facts(host)
    announced = master.apply(host, test=True)
    after = host_facts(host)
    touched = {key: value for key, value in after.items() if value != before[key]}
    first = master.apply(host)
    pids, facts = main_pids(host), host_facts(host)
    second = master.apply(host)
    return Site(master, host, announced, touched, first, pids, second, main_pids(host), facts)


@pytest.fixture(scope="session")
def sites(session_hosts):
    """Return a function of (image, kind) that gives a converged site, made at its first use in this session."""
    made: dict[tuple, Site] = {}

    def site(image: str, kind: str = "demo") -> Site:
        if (image, kind) not in made:
            pillar = demo_pillar(image) if kind == "demo" else minimal_pillar(image)
            made[image, kind] = converge_site(session_hosts, image, pillar, app=kind == "demo")
        return made[image, kind]

    return site


@dataclass
class Masterless:
    """A host that was converged by `salt-call --local`, kept as an image to start others from.

    Attributes:
        first: the first run on the bare host.
        second: the run right after it.
        facts: what stood on the host then.
        image: the name of the image; hosts made from it have the formula and pillar in place.
    """

    first: StateRun
    second: StateRun
    facts: dict
    image: str


@pytest.fixture(scope="session")
def masterless(session_hosts):
    """Return a function of (image) that gives a masterless host's runs and image, with the minimal pillar."""
    made: dict[str, Masterless] = {}

    def converged(image: str) -> Masterless:
        if image not in made:
            host = session_hosts(f"l-{image}", image=image)
            make_masterless(host, minimal_pillar(image))
            first, second = apply_locally(host), apply_locally(host)
            facts = host_facts(host)
            host.power_off()
            made[image] = Masterless(first, second, facts, host.snapshot(f"{image}-converged"))
            host.down()
        return made[image]

    return converged
