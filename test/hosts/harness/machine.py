"""What the harness needs of the machine itself: commands, packages, locks, and where it keeps its things.

Standard library only: `bin/host` and `make demo` run before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
USUAL_CACHE = "/var/cache/redis-sidekiq-formula"
CACHE = Path(os.environ.get("HOSTS_CACHE", USUAL_CACHE))
# What the kernel knows hosts by: another cache has hosts of the same names and numbers, on a bridge of its own.
PREFIX = "rs" if str(CACHE) == USUAL_CACHE else "rs" + hashlib.sha256(str(CACHE).encode()).hexdigest()[:4]
IMAGES, PACKAGES = CACHE / "images", CACHE / "packages"
# What goes with the hosts: in memory, where the machine has enough of it.
LIVE = CACHE / "live"
HOSTS, SNAPSHOTS = LIVE / "hosts", LIVE / "snapshots"
MEMORY = 12 << 30  # bytes of memory from which on; a converged host takes half a GiB of it

# Program -> Debian's package that has it.
TOOLS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "apt-ftparchive": "apt-utils",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_begun = time.monotonic()


def say(text: str) -> None:
    """Print a line of progress to standard error, with the seconds since this process began."""
    print(f"[{time.monotonic() - _begun:6.1f} s] {text}", file=sys.stderr, flush=True)


def run(argv: list, check: bool = True, **options) -> subprocess.CompletedProcess:
    """Run a command of the machine and return what it said; RuntimeError with its last words if it fails.

    Args:
        argv: the command, a word each.
        check: whether a failure is an error.
        options: further ones of ``subprocess.run``.
    """
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **options}
    if "input" in options:
        del options["stdin"]
    done = subprocess.run([str(word) for word in argv], check=False, **options)
    if check and done.returncode != 0:
        words = " ".join(map(str, argv))
        raise RuntimeError(f"{words[:500]}\nended with {done.returncode}:\n{last_words(done)}")
    return done


def last_words(done: subprocess.CompletedProcess, characters: int = 6000) -> str:
    """Return the end of what a command printed, errors last."""
    return "\n".join(text[-characters:] for text in (done.stdout, done.stderr) if text)


def need_tools() -> None:
    """Install what the harness uses and the machine lacks; RuntimeError unless it runs as root on a Debian."""
    if os.geteuid() != 0:
        raise RuntimeError("Hosts need root: namespaces, mounts and chroots are made for them")
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise RuntimeError(f"Install {', '.join(missing)} first: this machine has no apt-get")
    say(f"installing {', '.join(missing)} on this machine")
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run([*apt, "update"])
    run([*apt, "install", "-y", "--no-install-recommends", *missing], env=environment)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock by name; the kernel lets go of it when this process dies."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{name}.lock", "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def alive(pid: int, born: int | None = None) -> bool:
    """Whether a process runs; with ``born``, the very one that began then (its pid may be another's by now)."""
    found = birth(pid)
    return found is not None and born in (None, found)


def birth(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine's boot; None for a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def mount_live() -> None:
    """Put the folder for hosts into memory, unless the machine has little: there it stays on the disk."""
    LIVE.mkdir(parents=True, exist_ok=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with locked("live"):
        if memory >= MEMORY and not os.path.ismount(LIVE) and not any(LIVE.iterdir()):
            run(["mount", "-t", "tmpfs", "-o", "size=70%,mode=755", "rs-live", LIVE])


def unmount(path: Path) -> None:
    """Unmount everything at a path, however often something was mounted there."""
    while os.path.ismount(path):
        # Another process may be faster; what cannot be unmounted at all shows when its folder is removed.
        if run(["umount", "--lazy", path], check=False).returncode:
            time.sleep(0.1)
            break


def remove(path: Path) -> None:
    """Remove a folder that no mount is left in."""
    if any(line.split()[1].startswith(f"{path}/") for line in Path("/proc/mounts").read_text().splitlines()):
        raise RuntimeError(f"Something is mounted below {path}: it is not removed")
    while path.exists():
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(path)
