"""Every command in README and docs is run, page by page, in the order and on the hosts that a reader would run it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from test import certificates, pages
from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import (
    COMPILE,
    REPO,
    Master,
    apply_locally,
    make_masterless,
    put_pack,
    put_pillar,
    tarball,
    wait_for,
)

IMAGE = "bookworm"
FACTS = "/etc/lab.json"
EXT_PILLAR = {"ext_pillar": [{"cmd_json": f"cat {FACTS}"}]}
# What a reader has that a page cannot give: a way to the internet, and an app that needs no version of its own.
PILLAR = {
    "redis": tarball("7.0.15"),
    "sidekiq": {"install": "package", "services": {"sidekiq": {"require": "./worker.rb", "start_timeout": 20}}},
}
# Where a page's commands run, if not on a host that was converged without a master.
HOSTS = {
    "docs/tutorial.md": "bare",
    "docs/deploy-events.md": "master",
    "docs/hosts.md": "here",
}
WITH_APP = ("docs/restarts.md", "docs/troubleshooting.md")
OWN_ADDRESS = "10.0.0.5"  # of the host with Redis, on all pages
CERTIFICATE = "/etc/letsencrypt/live/redis.example.com"
# A Redis as a package of the distribution sets it up; its programs are those of the finished build.
PACKAGED = """
import json, os, tarfile
with tarfile.open("/srv/package.tar.gz") as archive:
    record = json.load(archive.extractfile("build.json"))
    for name in ("redis-server", "redis-cli"):
        with open(f"/usr/bin/{name}", "wb") as stream:
            stream.write(archive.extractfile(record["programs"][name]["sha256"]).read())
        os.chmod(f"/usr/bin/{name}", 0o755)
"""
PACKAGED_UNIT = """\
[Service]
User=redis
ExecStart=/usr/bin/redis-server --dir /var/lib/redis
[Install]
WantedBy=multi-user.target
"""
TROUBLE = re.compile(
    r"Traceback|did not return|No minions matched|' is not available\.|^\[(ERROR|CRITICAL)|Rendering SLS", re.M
)
PAGES = [page for page in pages.pages() if pages.blocks(page)]


class Site:
    """The hosts of one page, each made when the page asks for it."""

    def __init__(self, page: str, boot, masterless, fleet, repository: Path, compiles: bool = False) -> None:
        self.page, self.boot, self.masterless, self.fleet = page, boot, masterless, fleet
        self.repository, self.compiles = repository, compiles
        self.made: dict[str, Host] = {}

    def host(self, name: str) -> Host:
        """Return the host of that name: a role in the site, or a minion of the fleet."""
        if name not in self.made:
            makers = {"bare": self.make_bare, "one": self.make_one, "packaged": self.make_packaged}
            self.made[name] = makers[name]() if name in makers else self.fleet()[name]
        return self.made[name]

    def make_bare(self) -> Host:
        """A host with Salt and nothing else. This repository lies there, and, but in soak, Redis' finished build."""
        host = self.boot("docs-bare", IMAGE)
        put_facts(host, "minion", {} if self.compiles else self.put_pack(host))
        self.put_repository(host)
        if self.page == "README.md":
            app.release(host, "1")  # as the page asks its reader to do
        return host

    def put_pack(self, host: Host) -> dict:
        """Put Redis' finished build there."""
        return put_pack(host, self.masterless(IMAGE).pack)

    def put_repository(self, host: Host) -> None:
        """Put something on a host that git clones."""
        host.copy_in(self.repository, "/srv/origin")
        host.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", "git"])
        host.run(["git", "config", "--system", "safe.directory", "*"])

    def make_packaged(self) -> Host:
        """A host whose Redis came from a package."""
        host = self.boot("docs-packaged", IMAGE)
        make_masterless(host, {})
        put_facts(host, "minion", self.put_pack(host))
        host.copy_in(self.masterless(IMAGE).pack["file"], "/srv/package.tar.gz")
        host.run(["python3", "-c", PACKAGED])
        host.run(["useradd", "--system", "--home-dir", "/var/lib/redis", "--create-home", "redis"])
        host.write("/etc/systemd/system/redis-server.service", PACKAGED_UNIT)
        host.run(["systemctl", "enable", "--now", "redis-server"])
        return host

    def make_one(self) -> Host:
        """A host that the formula made without a master, with an app at work if the page needs one."""
        host = self.boot("docs-one", self.masterless(IMAGE).image)
        make_masterless(host, {})
        host.run(["ip", "address", "add", f"{OWN_ADDRESS}/24", "dev", "host0"])
        pair = certificates.signed(certificates.authority())
        host.write(f"{CERTIFICATE}/fullchain.pem", pair.cert)
        host.write(f"{CERTIFICATE}/privkey.pem", pair.key, mode=0o600)
        put_facts(host, "minion")
        if self.page == "README.md":
            self.put_repository(host)
        if self.page in WITH_APP:
            app.release(host, "1")
            apply_locally(host).assert_ok()
        return host

    def put_pillar(self, name: str, text: str) -> None:
        """Make a block the pillar of a host."""
        host = self.host(name)
        put_pillar(self.host("master") if name in ("redis1", "worker1") else host, text)


def put_facts(host: Host, kind: str, more: dict | None = None) -> None:
    """Give a host, or the minions of a master, a pillar beside the one of the page."""
    redis = {**PILLAR["redis"], **(more or {})}
    host.write(FACTS, json.dumps({"redis_sidekiq": {**PILLAR, "redis": redis}}))
    host.write(f"/etc/salt/{kind}.d/docs_lab.conf", json.dumps(EXT_PILLAR))


def make_repository(folder: Path) -> None:
    """Make a repository of this checkout's files, with what is not committed yet."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\0")
    for path in filter(lambda path: path.is_file() and not path.is_symlink(), (REPO / name for name in names if name)):
        (folder / path.relative_to(REPO)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.relative_to(REPO))
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


class Reader:
    """Does what a page says, block after block."""

    def __init__(self, site: Site, soak: bool) -> None:
        self.site, self.soak = site, soak
        self.output = ""

    def read(self, block: pages.Block) -> None:
        """Do what a block asks for, and fail with its place and what it said."""
        if "skip" in block.marks or ("soak" in block.marks and not self.soak):
            self.output = ""
        elif "pillar" in block.marks:
            self.site.put_pillar(block.marks["pillar"] or self.default, block.text)
        elif block.file:
            self.put_file(block)
        elif block.language == "bash":
            self.run(block)
        elif block.language == "text":
            self.compare(block)

    @property
    def default(self) -> str:
        """The name of the host that the page speaks of."""
        if self.site.compiles and self.site.page == "README.md":
            return "bare"
        return HOSTS.get(self.site.page, "one")

    def put_file(self, block: pages.Block) -> None:
        """Write the file that a block is."""
        host = self.site.host(block.marks.get("host", self.default))
        host.run(["mkdir", "-p", block.file.rpartition("/")[0]])
        host.write(block.file, block.text)

    def run(self, block: pages.Block) -> None:
        """Run a block of commands as a script that ends with the first that fails."""
        name = block.marks.get("host") or (
            "master" if re.search(r"^salt(-run|-key)? ", block.text, re.M) else self.default
        )
        script = ["bash", "-euxo", "pipefail", "-c", block.text.replace("REPOSITORY", "/srv/origin")]
        if name == "here":
            done = subprocess.run(script, cwd=REPO, capture_output=True, text=True, timeout=600)
        else:
            done = self.site.host(name).run(script, user=block.marks.get("user", "root"), check=False, timeout=COMPILE)
        self.output = done.stdout + done.stderr
        said = f"{block.where}: exit code {done.returncode}\n{self.output[-6000:]}"
        if "fails" in block.marks:
            assert done.returncode != 0, said
        else:
            assert done.returncode == 0 and not TROUBLE.search(self.output), said

    def compare(self, block: pages.Block) -> None:
        """Each line of the block is in the output before it, whatever its numbers are."""
        for line in filter(str.strip, block.text.splitlines()):
            words = [
                r"\S+" if re.search(r"\d", word) else re.escape(word).replace(r"\.\.\.", ".*") for word in line.split()
            ]
            assert re.search(r"\s+".join(words), self.output), (
                f"{block.where}: {line!r} is not in\n{self.output[-6000:]}"
            )


@pytest.fixture(scope="module")
def fleet(module_hosts, masterless):
    """Return a function that gives the hosts of a fleet: ``master``, and its minions ``redis1`` and ``worker1``."""
    made: dict[str, Host] = {}

    def hosts() -> dict[str, Host]:
        if not made:
            made.update(make_fleet(module_hosts, masterless(IMAGE).image))
        return made

    return hosts


def make_fleet(boot, image: str) -> dict[str, Host]:
    """Boot and converge a fleet whose app works on ``worker1``."""
    names = {"master": IMAGE, "redis1": image, "worker1": image}
    with ThreadPoolExecutor(3) as pool:
        hosts = dict(zip(names, pool.map(lambda name: boot(f"docs-{name}", names[name]), names)))
    put_facts(hosts["master"], "master")
    hosts["master"].write("/etc/salt/master.d/redis_sidekiq.conf", app.reactor_config("worker1"))
    master = Master(hosts["master"], {})
    app.release(hosts["worker1"], "1")
    for name in ("redis1", "worker1"):
        hosts[name].write("/etc/salt/minion.d/lab.conf", json.dumps({"master": master.host.address, "id": name}))
        hosts[name].run(["systemctl", "enable", "salt-minion"])
        hosts[name].run(["systemctl", "restart", "salt-minion"])
    wait_for(lambda: len(master.salt("*", "test.ping", check=False, timeout=5)) == 2, 90, "the minions of the fleet")
    returned = master.salt("*", "state.apply", "redis_sidekiq")
    assert all(state["result"] for states in returned.values() for state in states.values()), returned
    return hosts


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """This repository as something that git clones."""
    folder = tmp_path_factory.mktemp("origin")
    make_repository(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_what_a_page_says_can_be_done(page, make_host, masterless, fleet, repository):
    reader = Reader(Site(pages.name(page), make_host, masterless, fleet, repository), soak=False)
    for block in pages.blocks(page):
        reader.read(block)


@pytest.mark.soak
@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_all_that_a_page_says_can_be_done(page, make_host, masterless, fleet, repository):
    """Redis is compiled here, and what takes long is done too."""
    reader = Reader(Site(pages.name(page), make_host, masterless, fleet, repository, compiles=True), soak=True)
    for block in pages.blocks(page):
        reader.read(block)
