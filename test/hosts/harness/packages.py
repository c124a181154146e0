"""What hosts install from, without a network: `/packages`, read-only on each of them.

    /packages/SUITE/            Debian packages, as an apt repository
    /packages/wheels/           what `pip install redis` needs
    /packages/redis-VERSION.tar.gz

Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from test.hosts.harness import images
from test.hosts.harness.machine import PACKAGES, locked, remove, run, say

# All that the formula may ask the distribution for, and what a test needs beside it.
DEBIAN = """
build-essential bundler ca-certificates capistrano git libssl-dev libsystemd-dev pkg-config ruby ruby-dev ruby-sidekiq
sudo ufw
""".split()

# Upstream's sources as the suites of Debian carry them: suite -> release, sha256.
REDIS = {
    "bookworm": ("7.0.15", "4b1dc4ee6d622a09fff9c6777191209750fb5e5a725ef78ea012d6eef4c22982"),
    "trixie": ("8.0.2", "caf3c0069f06fc84c5153bd2a348b204c578de80490c73857bee01d9b5d7401f"),
}
# Fetched when a test asks for it: suite, release, sha256 of Debian's own tarball (some test data taken out).
VALKEY = ("trixie", "8.1.1", "d9bbd82eecb82f359e649a0007ad3dc1b47cc15afa626348ca86b73c4ae2c7ee")
CLIENT = "redis>=5,<7.2"


def prepare(suite: str) -> str:
    """Fetch all that hosts of this suite install, unless it is there already.

    Returns the recipe: what is fetched for which base. When that changes it is all fetched again.
    """
    recipe = json.dumps([DEBIAN, REDIS, CLIENT, str(images.base(suite))])
    folder = PACKAGES / suite
    stamp = folder / ".recipe"
    with locked(f"packages-{suite}"):
        if stamp.exists() and stamp.read_text() == recipe:
            return recipe
        say(f"packages for {suite}: fetching")
        draft = PACKAGES / f".{suite}"
        remove(draft)
        draft.mkdir(parents=True)
        (PACKAGES / "wheels").mkdir(exist_ok=True)
        with images.builder(suite) as root:
            _debian_packages(root, draft)
            _redis_source(root, suite)
            _wheels(root)
        (draft / ".recipe").write_text(recipe)
        remove(folder)
        draft.rename(folder)
    return recipe


def _debian_packages(root: Path, folder: Path) -> None:
    """Every package that the bare image lacks, with what they recommend: that is how apt installs them."""
    images.inside(root, ["apt-get", "-qq", "install", "-y", "--download-only", *DEBIAN])
    for path in (root / "var/cache/apt/archives").glob("*.deb"):
        shutil.copy(path, folder / path.name)
    index = run(["apt-ftparchive", "packages", "."], cwd=folder).stdout
    (folder / "Packages").write_text(index)
    (folder / "Release").write_text(run(["apt-ftparchive", "release", "."], cwd=folder).stdout)


def valkey() -> dict:
    """The settings ``source`` and ``source_hash`` of Valkey, whose tarball lies in `/packages` then."""
    suite, version, digest = VALKEY
    name = f"valkey-{version}.tar.xz"
    with locked("packages-valkey"):
        if not (PACKAGES / name).exists():
            PACKAGES.mkdir(parents=True, exist_ok=True)
            with images.builder(suite) as root:
                _source(root, "valkey", name, digest)
    return {"source": f"/packages/{name}", "source_hash": f"sha256={digest}"}


def sudo_rs() -> str:
    """Where hosts find Debian 13's package sudo-rs, which is fetched when a test asks for it."""
    name = "sudo-rs.deb"
    with locked("packages-sudo-rs"):
        if not (PACKAGES / name).exists():
            PACKAGES.mkdir(parents=True, exist_ok=True)
            with images.builder("trixie") as root:
                images.inside(root, ["sh", "-c", "cd /srv && exec apt-get -qq download sudo-rs"])
                draft = PACKAGES / f".{name}-{os.getpid()}"
                shutil.copy(next((root / "srv").glob("sudo-rs_*.deb")), draft)
                draft.rename(PACKAGES / name)
    return f"/packages/{name}"


def _redis_source(root: Path, suite: str) -> None:
    version, digest = REDIS[suite]
    _source(root, "redis", f"redis-{version}.tar.gz", digest)


def _source(root: Path, package: str, name: str, digest: str) -> None:
    """Upstream's tarball of a source package, as a file of this name."""
    target = PACKAGES / name
    if target.exists() and _sha256(target) == digest:
        return
    sources = root / images.SOURCES
    binary = sources.read_text()
    sources.write_text(
        binary + "".join(f"deb-src {line[4:]}\n" for line in binary.splitlines() if line.startswith("deb "))
    )
    images.inside(root, ["apt-get", "-qq", "update"])
    images.inside(root, ["sh", "-c", f"cd /srv && exec apt-get -qq source --download-only --tar-only {package}"])
    found = next((root / "srv").glob(f"{package}_*.orig.tar.*"))
    if _sha256(found) != digest:
        raise RuntimeError(f"{found.name} is not the file {name} with sha256 {digest}: see the top of {__file__}")
    draft = PACKAGES / f".{target.name}-{os.getpid()}"
    shutil.copy(found, draft)
    draft.rename(target)


def _wheels(root: Path) -> None:
    """The client for the suite's own Python: older ones need more packages than newer ones."""
    images.inside(root, ["apt-get", "-qq", "install", "-y", "--no-install-recommends", "python3-pip"])
    images.inside(root, ["python3", "-m", "pip", "download", "--quiet", "-d", "/root/wheels", CLIENT])
    for path in (root / "root/wheels").iterdir():
        shutil.copy(path, PACKAGES / "wheels" / path.name)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
