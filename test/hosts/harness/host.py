"""One real host: a booted Debian in namespaces of its own, an overlay over an image, an address on a private bridge.

Used by the tests, `bin/host`, `bin/demo` and `bin/bench`; standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from test.hosts.harness import images, network
from test.hosts.harness.machine import (
    HOSTS,
    LIVE,
    PACKAGES,
    PREFIX,
    REPO,
    SNAPSHOTS,
    alive,
    birth,
    last_words,
    locked,
    mount_live,
    remove,
    unmount,
)

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
BOOT_TIMEOUT = 60.0
POWEROFF = signal.SIGRTMIN + 4  # systemd(1): poweroff.target
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}


class HostError(RuntimeError):
    """A command on a host failed, or a host did not do what it was told."""


@dataclass
class Host:
    """A host by its name; everything else is read from what runs.

    Attributes:
        name: hostname, and Salt minion id where it becomes one.
    """

    name: str

    # Life ----------------------------------------------------------------------------------------------------------

    @classmethod
    def up(cls, name: str, image: str = "bookworm", owner_pid: int | None = None) -> Host:
        """Boot a fresh host and wait until it runs; a host of that name that is there already goes first.

        Args:
            name: lower case, digits and -.
            image: an image of the harness (bookworm, trixie, bookworm-3006), or what :meth:`snapshot` returned.
            owner_pid: a process that the host shall not outlive; None: it stays until :meth:`down`.
        """
        if not NAME.fullmatch(name):
            raise HostError(f"{name!r} is no name for a host: lower case, digits and - only")
        if image in images.RECIPES:
            images.prepare([image])
        mount_live()
        prune()
        host = cls(name)
        host.down()
        with locked("hosts"):
            lowers = images.layers(image)
            number = _free_number()
            host.folder.mkdir(parents=True)
            owner = {"pid": owner_pid, "born": birth(owner_pid)} if owner_pid else None
            host._write_record(image=image, number=number, layers=[str(path) for path in lowers], owner=owner)
        images.mount_overlay(lowers, host.folder)
        host._give_identity()
        network.connect(name, number)
        host.start()
        return host

    def start(self) -> None:
        """Boot a host that is off, with its disk and address as they were."""
        if self.running:
            raise HostError(f"{self.name} runs already")
        log = open(self.folder / "console.log", "ab")  # noqa: SIM115 (the keeper's for its life)
        argv = [sys.executable, "-m", "test.hosts.harness.keeper", self.name]
        # A session of its own: a Ctrl-C is for its owner, who takes it down in order.
        subprocess.Popen(argv, cwd=REPO, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        log.close()
        self.wait_booted()

    def wait_booted(self, seconds: float = BOOT_TIMEOUT) -> None:
        """Wait until systemd says that the host runs, or that it runs but for some failed unit."""
        deadline = time.monotonic() + seconds
        while True:
            done = self.run(["systemctl", "is-system-running"], check=False) if self.leader else None
            if done and done.stdout.strip() in ("running", "degraded"):
                return
            if time.monotonic() > deadline:
                state = done.stdout.strip() if done else "no process"
                raise HostError(f"{self.name} did not boot within {seconds:.0f} s: {state}\n{self.console()}")
            time.sleep(0.1)

    def reboot(self) -> None:
        """Reboot from inside, as a person would, and wait until the host is back."""
        before = self.leader
        self.run(["systemctl", "reboot"], check=False)
        self._wait(lambda: self.leader not in (None, before), "did not come back after its reboot")
        self.wait_booted()

    def power_off(self) -> None:
        """Shut down in order; :meth:`start` boots it again."""
        if leader := self.leader:
            os.kill(leader, POWEROFF)
        self._wait(lambda: not self.running, "did not power off")

    def power_cut(self) -> None:
        """End all of the host's processes at once, without a word to any of them; :meth:`start` boots it again."""
        if leader := self.leader:
            os.kill(leader, signal.SIGKILL)
        self._wait(lambda: not self.running, "still runs after its power was cut")

    def down(self) -> None:
        """Take the host down and away: processes, network, disk. Nothing happens for one that is not there."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            keeper = int((self.folder / "keeper").read_text())
            if keeper != os.getpid() and _is_keeper(keeper, self.name):
                os.kill(keeper, signal.SIGTERM)
                self._wait(lambda: not _is_keeper(keeper, self.name), "has a keeper that does not end")
        if leader := self.leader:
            os.kill(leader, signal.SIGKILL)
            self._wait(lambda: not self.running, "still runs after its power was cut")
        _remove_control_groups(self.name)
        network.disconnect(self.name)
        unmount(self.folder / "root")
        remove(self.folder)

    def snapshot(self, name: str, owner_pid: int | None = None) -> str:
        """Make an image of a host that is powered off, whose disk becomes the image; the host is gone then.

        Returns the image's name for :meth:`up`. It lives as long as its owner, a process: this one, if none is given.
        """
        owner_pid = owner_pid or os.getpid()
        if self.running:
            raise HostError(f"{self.name} runs: power it off first")
        record = self.record
        image = f"{name}-{owner_pid}"
        folder = SNAPSHOTS / image
        remove(folder)
        folder.mkdir(parents=True)
        unmount(self.folder / "root")
        shutil.move(self.folder / "upper", folder / "layer")
        layers = [str(folder / "layer"), *record["layers"]]
        owner = {"pid": owner_pid, "born": birth(owner_pid)}
        (folder / "snapshot.json").write_text(json.dumps({"layers": layers, "owner": owner}))
        self.down()
        return image

    # Facts ---------------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the host's disk and records lie on the machine."""
        return HOSTS / self.name

    @property
    def record(self) -> dict:
        """What the harness wrote down about the host: image, number, layers, owner."""
        try:
            return json.loads((self.folder / "host.json").read_text())
        except OSError:
            raise HostError(f"There is no host {self.name!r}; `bin/host list` has them") from None

    @property
    def image(self) -> str:
        """The image that the host was started from."""
        return self.record["image"]

    @property
    def address(self) -> str:
        """The host's IPv4 address on the bridge."""
        return network.address(self.record["number"])

    @property
    def leader(self) -> int | None:
        """The machine's pid of the host's PID 1; None while it is off."""
        try:
            nspawn = int((self.folder / "nspawn").read_text())
            children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        except (OSError, ValueError):
            return None
        return next((int(pid) for pid in children if _is_first(int(pid))), None)

    @property
    def running(self) -> bool:
        """Whether the host's processes, or the keeper who starts them, are there."""
        with contextlib.suppress(OSError, ValueError):
            if _is_keeper(int((self.folder / "keeper").read_text()), self.name):
                return True
        return self.leader is not None

    def console(self, lines: int = 40) -> str:
        """Return the last lines of the host's console."""
        try:
            return "\n".join((self.folder / "console.log").read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Whether a path is there on the host, a dangling link included."""
        return self.run(["test", "-e", path, "-o", "-L", path], check=False).returncode == 0

    # Acts ----------------------------------------------------------------------------------------------------------

    def run(
        self,
        argv: list[str],
        user: str = "root",
        input: str | None = None,  # noqa: A002 (as subprocess.run has it)
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess:
        """Run a command on the host and return what it said.

        Args:
            argv: the command, a word each.
            user: who runs it, with his groups and home.
            input: text for its standard input.
            check: whether a failure is a HostError.
            timeout: seconds until it is killed, which is a HostError.
        """
        stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        try:
            done = subprocess.run(
                self.argv(argv, user), capture_output=True, text=True, errors="replace", timeout=timeout, **stdin
            )
        except subprocess.TimeoutExpired as late:
            said = "".join(part.decode(errors="replace")[-3000:] for part in (late.stdout, late.stderr) if part)
            raise HostError(f"{self.name}: {' '.join(argv)} took more than {timeout:.0f} s\n{said}") from None
        if check and done.returncode != 0:
            raise HostError(f"{self.name}: {' '.join(argv)} ended with {done.returncode}\n{last_words(done)}")
        return done

    def popen(self, argv: list[str], user: str = "root") -> subprocess.Popen:
        """Start a command on the host; its output comes through pipes, and it dies with the returned process."""
        return subprocess.Popen(
            self.argv(["setpriv", "--pdeathsig=KILL", *argv], user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on the host, and the folders that it needs."""
        script = 'mkdir -p "${1%/*}" && umask 077 && cat > "$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "sh", path, f"{mode:o}"], input=text)

    def copy_in(self, source: Path | str, target: str) -> None:
        """Copy a file or a folder's contents of the machine to a path of the host."""
        source = Path(source)
        if source.is_dir():
            self.run(["mkdir", "-p", target])
            pack, unpack = ["tar", "-C", source, "--exclude=__pycache__", "-c", "."], ["tar", "-C", target, "-x", "-o"]
        else:
            self.run(["mkdir", "-p", os.path.dirname(target)])
            pack, unpack = ["cat", source], ["dd", f"of={target}", "status=none"]
        with subprocess.Popen([str(word) for word in pack], stdout=subprocess.PIPE) as packed:
            done = subprocess.run(self.argv(unpack, "root"), stdin=packed.stdout, capture_output=True, text=True)
        if packed.returncode or done.returncode:
            raise HostError(f"{self.name}: {source} was not copied to {target}\n{last_words(done)}")

    def copy_out(self, source: str, target: Path | str) -> None:
        """Copy a file of the host to the machine."""
        with open(target, "wb") as stream:
            done = subprocess.run(self.argv(["cat", source], "root"), stdout=stream, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise HostError(f"{self.name}: {source} was not copied\n{done.stderr}")

    def processes_spawned(self, argv: list[str]) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        """Run a command and return what it said, and the argv of each program that it or its children started."""
        folder = self.run(["mktemp", "-d"]).stdout.strip()
        trace = ["strace", "-ff", "-qq", "-e", "trace=execve", "-e", "signal=none", "-s", "9999", "-o", f"{folder}/t"]
        done = self.run([*trace, *argv], timeout=600)
        lines = self.run(["sh", "-c", f"cat {folder}/t.* && rm -r {folder}"]).stdout.splitlines()
        found = [re.match(r'execve\("(?:[^"\\]|\\.)*", (\[.*\]), 0x[0-9a-f]+ .*\) = 0$', line) for line in lines]
        programs = [json.loads(re.sub(r"\\([^\"\\nrt])", r"\\\\\1", match[1])) for match in found if match]
        programs.remove(argv)
        return done, programs

    # --- below: how it is done -------------------------------------------------------------------------------------

    def argv(self, argv: list[str], user: str = "root") -> list[str]:
        """Return the machine's command that runs one on the host, for a caller with pipes or a terminal of his own."""
        leader = self.leader
        if not leader:
            raise HostError(f"{self.name} is off")
        # All namespaces but the user's, with the host's own root and folder.
        enter = ["nsenter", f"--target={leader}", *"--mount --uts --ipc --net --pid --cgroup --root --wd".split()]
        if user == "root":
            return [*enter, "env", "-i", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), *argv]
        become = ["setpriv", f"--reuid={user}", f"--regid={self._primary_group(user)}", "--init-groups", "--reset-env"]
        return [*enter, *become, *argv]

    def _primary_group(self, user: str) -> str:
        for line in (self.folder / "root/etc/passwd").read_text().splitlines():
            name, _, _, group, *_ = line.split(":")
            if name == user:
                return group
        raise HostError(f"{self.name} has no user {user!r}")

    def _write_record(self, **record) -> None:
        draft = self.folder / ".host.json"
        draft.write_text(json.dumps(record))
        draft.rename(self.folder / "host.json")

    def _give_identity(self) -> None:
        root = self.folder / "root"
        (root / "etc/hostname").write_text(f"{self.name}\n")
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}\n")
        (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        # The machine's registries are out of reach, and a resolver would only cost time to find out.
        (root / "etc/resolv.conf").write_text("")

    def _wait(self, true, what: str, seconds: float = BOOT_TIMEOUT) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise HostError(f"{self.name} {what} within {seconds:.0f} s\n{self.console()}")
            time.sleep(0.05)


def all_hosts() -> list[Host]:
    """Return every host of this machine, running or not."""
    return [Host(path.parent.name) for path in sorted(HOSTS.glob("*/host.json"))]


def prune() -> None:
    """Take away what dead owners left: hosts and snapshots."""
    for host in all_hosts():
        with contextlib.suppress(HostError):  # another process may take it down right now
            owner = host.record["owner"]
            if owner and not alive(owner["pid"], owner["born"]):
                host.down()
    for path in SNAPSHOTS.glob("*/snapshot.json"):
        with contextlib.suppress(FileNotFoundError):
            owner = json.loads(path.read_text())["owner"]
            if not alive(owner["pid"], owner["born"]):
                remove(path.parent)


def down_all() -> None:
    """Take every host of this machine down, and the bridge."""
    for path in sorted(HOSTS.glob("*")):
        Host(path.name).down()
    prune()
    network.remove_switch()
    for folder in (HOSTS, SNAPSHOTS):
        with contextlib.suppress(OSError):  # a snapshot of a test run that is at work stays
            folder.rmdir()
    if LIVE.exists() and not any(LIVE.iterdir()):
        unmount(LIVE)


def keep(name: str) -> None:
    """Run a host's nspawn until it is powered off, or its owner ends: what the keeper's process does."""
    host = Host(name)
    (host.folder / "keeper").write_text(str(os.getpid()))
    owner = host.record["owner"]
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append("end"))
    while not told:
        nspawn = subprocess.Popen(
            _nspawn(host),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            preexec_fn=lambda: _enter_control_group(name),
        )
        (host.folder / "nspawn").write_text(str(nspawn.pid))
        while nspawn.poll() is None:
            orphaned = owner and not alive(owner["pid"], owner["born"])
            if told or orphaned:
                told.append("end")
                if leader := host.leader:
                    os.kill(leader, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                nspawn.wait(0.2)
        if nspawn.returncode != 133:  # 133: it rebooted (systemd-nspawn's own exit status for that)
            break
    if owner and not alive(owner["pid"], owner["born"]):
        host.down()


def _nspawn(host: Host) -> list[str]:
    command = ["systemd-nspawn", "--quiet", f"--directory={host.folder / 'root'}", f"--machine={host.name}", "--boot"]
    command += ["--register=no", "--keep-unit", f"--network-namespace-path={network.namespace_path(host.name)}"]
    command += ["--link-journal=no", "--kill-signal=SIGRTMIN+3", "--capability=all", "--console=pipe"]
    command += ["--timezone=off", "--resolv-conf=off", f"--bind-ro={PACKAGES}:/packages"]
    return command


def _enter_control_group(name: str) -> None:
    """Move this process into a control group of the host's own, so that the systemds of two hosts never share one."""
    for group in _control_groups(name):
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))


def _remove_control_groups(name: str) -> None:
    """systemd leaves the groups of its units behind when it is killed; an empty group can be removed, leaves first."""
    for group in _control_groups(name):
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _control_groups(name: str) -> list[Path]:
    """The host's group in each hierarchy that systemd uses: one on a machine of today, two on a mixed one."""
    roots = (Path("/sys/fs/cgroup") / folder for folder in ("systemd", "unified", "."))
    return [root / f"{PREFIX}-{name}" for root in roots if (root / "cgroup.procs").exists()]


def _free_number() -> int:
    taken = {json.loads(path.read_text())["number"] for path in HOSTS.glob("*/host.json")}
    return next(number for number in range(1, 251) if number not in taken)


def _is_first(pid: int) -> bool:
    """Is this process PID 1 of a namespace of its own, and no longer nspawn that prepares it?"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    if "Name:\tsystemd" not in lines:
        return False
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == "1"


def _is_keeper(pid: int, name: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return alive(pid) and b"test.hosts.harness.keeper" in words and name.encode() in words
