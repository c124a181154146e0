"""The images that hosts start from: a bare Debian with systemd, sshd, python3 and Salt, and no more.

An image is a list of folders for an overlay mount, topmost first: Salt's layer over the suite's base. Each part is made
once, named by a digest of its recipe, and made again when the recipe changes. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from test.hosts.harness.machine import (
    CACHE,
    HOSTS,
    IMAGES,
    KEYRING,
    LIVE,
    PACKAGES,
    REPO,
    SNAPSHOTS,
    locked,
    mount_live,
    need_tools,
    remove,
    run,
    say,
    unmount,
)

CONSTRAINTS = REPO / "test/constraints"

# What a bare host has. strace is for counting processes; nothing else here is of use to the formula.
BARE = (
    """systemd systemd-sysv dbus libpam-systemd openssh-server python3 iproute2 procps ca-certificates strace""".split()
)
# What Salt is built with; none of it gets into an image.
BUILDER = ["g++", "python3-dev", "python3-venv"]
# What a host has no part in: the machine's kernel, and mending by night what lives for minutes.
MASKED = "apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer systemd-modules-load.service".split()
UNWANTED = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "info", "locale")]

CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
SOURCES = "etc/apt/sources.list"
SALT_DIR = "/opt/salt"
SALT_UNIT = """\
[Unit]
Description=Salt {what}
After=network.target

[Service]
Type=notify
NotifyAccess=all
LimitNOFILE=100000
{more}ExecStart=/usr/bin/salt-{what}

[Install]
WantedBy=multi-user.target
"""
# Files of Salt's layer: path -> text.
FILES = {
    # As Salt's own packages have them: a job survives the restart of its minion, and nothing that of the master.
    "etc/systemd/system/salt-minion.service": SALT_UNIT.format(what="minion", more="KillMode=process\n"),
    "etc/systemd/system/salt-master.service": SALT_UNIT.format(what="master", more=""),
    "etc/systemd/system/salt-api.service": SALT_UNIT.format(what="api", more=""),
    "etc/pip.conf": "[global]\nno-index = true\nfind-links = /packages/wheels\n",
    # Hosts live for minutes: that the kernel has what dpkg wrote is enough.
    "etc/dpkg/dpkg.cfg.d/hosts": "force-unsafe-io\n" + "\n".join(UNWANTED) + "\n",
}
PROGRAMS = ("salt", "salt-api", "salt-call", "salt-key", "salt-master", "salt-minion", "salt-run")


class Recipe(NamedTuple):
    """An image: a Debian suite and a line of Salt."""

    suite: str
    salt: str


RECIPES = {
    "bookworm": Recipe("bookworm", "3008"),
    "trixie": Recipe("trixie", "3008"),
    "bookworm-3006": Recipe("bookworm", "3006"),
    "bookworm-3007": Recipe("bookworm", "3007"),
}
# Not a line that Salt's makers support any more: made when somebody asks for it.
ON_DEMAND = {"bookworm-3007"}


def layers(image: str) -> list[Path]:
    """Return the folders of an image or a snapshot, topmost first; an image is made if it is not there yet."""
    if image in RECIPES:
        recipe = RECIPES[image]
        return [salt_layer(image), base(recipe.suite)]
    try:
        return [Path(path) for path in json.loads((SNAPSHOTS / image / "snapshot.json").read_text())["layers"]]
    except OSError:
        raise RuntimeError(f"There is no image {image!r}: take one of {', '.join(RECIPES)}") from None


def prepare(images: list[str] | None = None) -> None:
    """Make images (default: all but those ON_DEMAND) and the packages that their hosts install, two at a time."""
    need_tools()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(salt_layer, images or [name for name in RECIPES if name not in ON_DEMAND]))


def base(suite: str) -> Path:
    """Return the folder of a bare Debian of this suite."""
    recipe = json.dumps([suite, BARE, MASKED, UNWANTED])
    with _made(f"base-{suite}", recipe) as (folder, draft):
        if draft:
            say(f"image {suite}: bootstrapping a bare Debian")
            options = [f"--dpkgopt={option}" for option in UNWANTED]
            options += ["--variant=minbase", f"--include={','.join(BARE)}", f"--keyring={KEYRING}"]
            run(["mmdebstrap", *options, suite, draft, *_mirror()], env={**os.environ, "TMPDIR": "/var/tmp"})
            for unit in MASKED:
                (draft / "etc/systemd/system" / unit).symlink_to("/dev/null")
    return folder


def salt_layer(image: str) -> Path:
    """Return the folder with Salt in a virtual environment of its own, and the host's configuration for packages."""
    from test.hosts.harness import packages  # they need a base, and this layer needs their index

    recipe = RECIPES[image]
    constraints = (CONSTRAINTS / f"salt-{recipe.salt}.txt").read_text()
    text = json.dumps([recipe, constraints, BUILDER, FILES, PROGRAMS, packages.prepare(recipe.suite)])
    with _made(f"salt-{image}", text) as (folder, draft):
        if draft:
            say(f"image {image}: installing Salt {recipe.salt}")
            files = {**FILES, SOURCES: f"deb [trusted=yes] file:/packages/{recipe.suite} ./\n"}
            with builder(recipe.suite) as root:
                _install_salt(root, constraints)
                (root / SOURCES).write_text(files[SOURCES])
                inside(root, ["apt-get", "-qq", "update"])
                for made in (SALT_DIR, "/var/lib/apt/lists"):
                    shutil.copytree(root / made[1:], draft / made[1:], symlinks=True)
            for path, content in files.items():
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                (draft / path).write_text(content)
            for path in ("etc/salt", "usr/bin"):
                (draft / path).mkdir(parents=True)
            for program in PROGRAMS:
                (draft / "usr/bin" / program).symlink_to(f"{SALT_DIR}/bin/{program}")
    return folder


@contextlib.contextmanager
def builder(suite: str) -> Iterator[Path]:
    """Give a throw-away copy of a suite's base that reaches the package registries."""
    mount_live()
    work = LIVE / f"builder-{suite}-{os.getpid()}-{os.urandom(3).hex()}"
    root = work / "root"
    try:
        mount_overlay([base(suite)], work)
        # The machine's certificates: registries may stand behind a proxy with its own.
        shutil.copy(f"/{CERTIFICATES}", root / CERTIFICATES)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        inside(root, ["apt-get", "-qq", "update"])
        yield root
    finally:
        unmount(root)
        remove(work)


def inside(root: Path, argv: list, **options) -> str:
    """Run a command in a folder as root, with the machine's network, and return what it printed."""
    for folder in (CACHE / "pip", PACKAGES):
        folder.mkdir(parents=True, exist_ok=True)
    passed = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "http_proxy", "https_proxy", "no_proxy")
    environment = {name: os.environ[name] for name in passed if name in os.environ}
    environment |= {
        "DEBIAN_FRONTEND": "noninteractive",
        "PIP_CACHE_DIR": "/root/pip",
        "PIP_CERT": f"/{CERTIFICATES}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DEFAULT_TIMEOUT": "120",
    }
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2", "--console=pipe"]
    command += [f"--directory={root}", f"--machine={root.parent.name}", f"--bind={CACHE / 'pip'}:/root/pip"]
    command += [f"--bind-ro={PACKAGES}:/packages"]
    command += ["--timezone=off", "--resolv-conf=off"]
    command += [f"--setenv={name}={value}" for name, value in environment.items()]
    return run([*command, "--", *argv], **options).stdout


def mount_overlay(lowers: list[Path], work: Path) -> Path:
    """Mount folders, topmost first, with a fresh writable one over them, at ``work/root``; returns that."""
    root = work / "root"
    for path in (root, work / "upper", work / "work"):
        path.mkdir(parents=True, exist_ok=True)
    lower = ":".join(map(str, lowers))
    options = f"lowerdir={lower},upperdir={work / 'upper'},workdir={work / 'work'}"
    run(["mount", "-t", "overlay", f"rs-{work.name}", "-o", options, root])
    return root


@contextlib.contextmanager
def _made(name: str, recipe: str) -> Iterator[tuple[Path, Path | None]]:
    """Give a cached folder, and a draft to fill if it is not there; it takes its place when the block ends well."""
    folder = IMAGES / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with locked(f"image-{name}"):
        if folder.exists():
            yield folder, None
            return
        _remove_older(name)
        draft = IMAGES / f".{folder.name}"
        draft.mkdir(parents=True)
        yield folder, draft
        draft.rename(folder)


def _remove_older(name: str) -> None:
    """What a dead run left half-made, and what an older recipe made, unless a host or a snapshot stands on it."""
    records = (*HOSTS.glob("*/host.json"), *SNAPSHOTS.glob("*/snapshot.json"))
    used = {layer for path in records for layer in json.loads(path.read_text())["layers"]}
    for path in IMAGES.glob(f"*{name}-*"):
        if re.fullmatch(rf"\.?{re.escape(name)}-[0-9a-f]{{12}}", path.name) and str(path) not in used:
            remove(path)


def _install_salt(root: Path, constraints: str) -> None:
    inside(root, ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *BUILDER])
    (root / "root/constraints.txt").write_text(constraints)
    inside(root, ["python3", "-m", "venv", SALT_DIR])
    # Without the client: the formula installs that.
    inside(root, [f"{SALT_DIR}/bin/pip", "install", "--quiet", "-c", "/root/constraints.txt", "salt"])


def _mirror() -> list[str]:
    """The machine's own Debian mirror; none: mmdebstrap knows one."""
    fields = "$(ORIGIN) $(REPO_URI)"
    lines = run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], check=False).stdout
    found = [line.split()[-1] for line in lines.splitlines() if line.startswith("Debian ")]
    return [uri for uri in found if not uri.rstrip("/").endswith("-security")][:1]
