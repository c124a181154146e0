"""Real hosts for the tests: sites that Salt converged, made once in a session and shared by the tests."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from test.hosts import app
from test.hosts.harness import images
from test.hosts.harness.fixtures import boot
from test.hosts.harness.host import Host, prune
from test.hosts.harness.machine import SNAPSHOTS, locked
from test.hosts.lab import (
    FILE_ROOT, REPO, Master, StateRun, apply_locally, make_masterless, put_pack, put_pillar, redis_version, salt_call, tarball
)  # fmt: skip
from test.hosts.redis_lab import configure

pytest_plugins = ["test.hosts.harness.fixtures"]

# The process that stands for this run of the tests: pytest's, or the one of all its lanes.
RUN = int(os.environ.get("TEST_RUN", os.getpid()))
# What a converged host has of the roles that a pillar with Redis alone does not name.
ROLLBACK = "/usr/local/lib/redis_sidekiq/ufw_rollback.py"
OTHER_ROLES = ("/etc/sudoers.d/sidekiq-deploy", ROLLBACK)
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
        bare: whether the host was bare before; else the minimal pillar had been applied there without a master.
        announced: the run in test mode.
        touched: the paths below the managed roots that the test run changed.
        first: the first real run.
        second: the run right after it.
        facts: what stood on the host after the first run.
    """

    master: Master
    host: Host
    bare: bool
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


def converge_site(name: str) -> Site:
    """Bring up a master and a host with the demo's pillar, and run the formula: in test mode, for real, once more.

    Args:
        name: an image, for a bare host, which takes the build of the run without a master; ``trixie`` starts where that
            ended. With ``-bare`` behind it, for `make soak`, Redis is compiled.
    """
    image, bare = name.removesuffix("-bare"), name != "trixie"
    master_host = boot(f"m-{name}", image)
    host = boot(f"h-{name}", image if bare else background.get("masterless", image).image)
    master_host.write("/etc/salt/master.d/redis_sidekiq.conf", app.reactor_config(host.name))
    pillar = demo_pillar(image)
    if bare and image == name:
        pillar["redis_sidekiq"]["redis"] |= put_pack(host, background.get("masterless", image.partition("-")[0]).pack)
    master = Master(master_host, pillar)
    master.attach(host)
    app.release(host, "1")
    before = host_facts(host)
    announced = master.apply(host, test=True)
    after = host_facts(host)
    touched = {key: value for key, value in after.items() if value != before[key]}
    first = master.apply(host)
    pids, facts = main_pids(host), host_facts(host)
    second = master.apply(host)
    return Site(master, host, bare, announced, touched, first, pids, second, main_pids(host), facts)


@dataclass
class Masterless:
    """A host that was converged by `salt-call --local`, kept as an image to start others from.

    Attributes:
        first: the first run on the bare host.
        second: the run right after it.
        facts: what stood on the host then.
        image: the name of the image; hosts made from it have the formula and pillar in place.
        pack: Redis' finished build, for hosts that shall not compile it: name, hash, and where the file lies here.
    """

    first: StateRun
    second: StateRun
    facts: dict
    image: str
    pack: dict[str, str]


def converge_masterless(image: str) -> Masterless:
    """Give what :func:`make_converged` made of this image: of the lanes of one run (tools/lanes) the first that needs it
    makes it, and the others wait.
    """
    prune()
    with locked(f"converged-{image}"):
        record = SNAPSHOTS / f"{image}-converged-{RUN}" / "made.json"
        if not record.exists():
            record.write_text(json.dumps(asdict(make_converged(image))))
        made = json.loads(record.read_text())
        return Masterless(**{**made, "first": StateRun(**made["first"]), "second": StateRun(**made["second"])})


def make_converged(image: str) -> Masterless:
    """Run the formula on a bare host without a master, with the minimal pillar, and make an image of the host."""
    host = boot(f"l-{image}", image)
    make_masterless(host, minimal_pillar(image))
    first, second = apply_locally(host), apply_locally(host)
    facts = host_facts(host)
    with tempfile.TemporaryDirectory() as folder:
        pack = salt_call(host, "redis_build.pack")
        host.copy_out(pack["path"], Path(folder, "pack.tar.gz"))
        host.run(["rm", pack["path"]])
        host.power_off()
        snapshot = host.snapshot(f"{image}-converged", RUN)
        file = shutil.copy(Path(folder, "pack.tar.gz"), SNAPSHOTS / snapshot)
    return Masterless(first, second, facts, snapshot, {"name": pack["name"], "hash": pack["hash"], "file": str(file)})


class Background:
    """Makes what takes minutes in a thread of its own, in the order of the tests that need it: a second core has
    nothing else to do while the fast layers run. A failure reaches the tests that ask for the result.
    """

    MAKERS = {"sites": converge_site, "masterless": converge_masterless}

    def __init__(self) -> None:
        self.made: dict[tuple[str, str], Future] = {}

    def plan(self, items: list) -> None:
        """Begin to make what these tests will ask for."""
        for item in items:
            image = getattr(item, "callspec", None) and item.callspec.params.get("image") or "bookworm"
            for kind in self.MAKERS.keys() & set(item.fixturenames):
                self.made.setdefault((kind, image), Future())
        for _, image in [key for key in self.made if key[0] == "sites"]:
            self.made.setdefault(("masterless", image.partition("-")[0]), Future())
        # Sites may start where those ended.
        self.made = dict(sorted(self.made.items(), key=lambda entry: entry[0][0] == "sites"))
        if any("hosts" in item.path.parts for item in items):
            threading.Thread(target=self._make_all, daemon=True).start()

    def get(self, kind: str, image: str):
        """Return what was made, wait for it, or make it now if no test was known to want it."""
        if (kind, image) not in self.made:
            self.made[kind, image] = Future()
            self._make(kind, image)
        return self.made[kind, image].result()

    def _make_all(self) -> None:
        try:
            images.prepare()
        except Exception as err:  # noqa: BLE001 (told by every test that waits)
            for future in self.made.values():
                future.set_exception(err)
            return
        for kind, image in list(self.made):
            self._make(kind, image)

    def _make(self, kind: str, image: str) -> None:
        try:
            self.made[kind, image].set_result(self.MAKERS[kind](image))
        except BaseException as err:  # noqa: BLE001 (told by the test that asks)
            self.made[kind, image].set_exception(err)


background = Background()


def pytest_collection_modifyitems(items: list) -> None:
    """First what needs no converged host, while those are made; last what wants the machine for itself."""

    def turn(item) -> int:
        if "hosts" not in item.path.parts:
            return 0
        return 3 if item.path.name == "test_bench.py" else 2 if Background.MAKERS.keys() & set(item.fixturenames) else 1

    items.sort(key=turn)


def pytest_collection_finish(session) -> None:
    """Begin with what takes minutes, once it is known which tests run."""
    if not session.config.option.collectonly:
        background.plan(session.items)


@pytest.fixture(scope="session")
def sites(hosts_gone_at_the_end):
    """Return a function of (image) that gives a converged site, made once in a session."""
    return lambda image: background.get("sites", image)


@pytest.fixture(scope="session")
def masterless(hosts_gone_at_the_end):
    """Return a function of (image) that gives a masterless host's runs and image, with the minimal pillar."""
    return lambda image: background.get("masterless", image)


def _name(request, image: str) -> str:
    """A host's name that no other test file's hosts have, whichever lane runs that (tools/lanes)."""
    return f"{request.path.stem.rpartition('_')[2]}-{image}"


def make_whole(host: Host, pillar: dict) -> None:
    """Converge a host of :func:`sidekiq_hosts` whatever the last test left: this pillar, an unbroken release, working."""
    put_pillar(host, pillar)
    if not app.is_whole(host):
        app.deploy(host)
    apply_locally(host, "redis_sidekiq.sidekiq").assert_ok()


@pytest.fixture(scope="module")
def sidekiq_hosts(request, module_hosts, masterless):
    """Return a function of an image that gives a host with Redis, Sidekiq's unit and a release of the test app."""
    made: dict[str, Host] = {}

    def host_of(image: str) -> Host:
        if image not in made:
            host = module_hosts(f"sk-{_name(request, image)}", image=masterless(image).image)
            make_masterless(host, app.sidekiq_pillar())
            apply_locally(host, "redis_sidekiq.packages").assert_ok()
            apply_locally(host, "redis_sidekiq.sidekiq").assert_ok()
            made[image] = host
        return made[image]

    return host_of


@pytest.fixture(scope="session")
def tls_image(hosts_gone_at_the_end, masterless):
    """Return a function of an image that gives the image of a host whose Redis has TLS compiled in, and speaks none yet."""
    return lambda image: make_tls_image(image, masterless(image).image)


def make_tls_image(image: str, converged: str) -> str:
    """Let the formula compile Redis with TLS on a converged host; of the lanes of one run the first makes it."""
    with locked(f"tls-{image}"):
        record = SNAPSHOTS / f"{image}-tls-{RUN}" / "made"
        if not record.exists():
            host = boot(f"t-{image}", converged)
            host.write("/etc/image", image)
            host.run(["rm", "-f", *OTHER_ROLES])
            make_masterless(host, {})
            configure(host, build={"malloc": "libc", "tls": True})
            apply_locally(host).assert_ok()
            host.power_off()
            made = host.snapshot(f"{image}-tls", RUN)
            record.write_text(made)
        return record.read_text()


@pytest.fixture(scope="session")
def firewall_image(hosts_gone_at_the_end):
    """Return a function of an image that gives one with ufw (off), sshd and the formula's modules in place."""
    return functools.cache(make_firewall_image)


def make_firewall_image(image: str) -> str:
    """Install ufw and sshd on a bare host, have Salt take the formula's modules, and make an image of the host."""
    host = boot(f"fw-{image}", image)
    host.run(["apt-get", "install", "-y", "ufw", "openssh-server"], timeout=300)
    make_masterless(host, {"redis_sidekiq": {}})
    host.run(["install", "-D", f"{FILE_ROOT}/redis_sidekiq/firewall/files/ufw_rollback.py", ROLLBACK])
    salt_call(host, "saltutil.sync_all")
    host.power_off()
    return host.snapshot(f"{image}-firewall", RUN)


@pytest.fixture
def redis_host(request, masterless, make_host):
    """Return a function of (image) that gives a fresh copy of a converged host with Redis alone in its pillar."""

    def host(image="bookworm"):
        made = make_host(_name(request, image), image=masterless(image).image)
        made.write("/etc/image", image)
        made.run(["rm", "-f", *OTHER_ROLES])
        configure(made)
        return made

    return host
