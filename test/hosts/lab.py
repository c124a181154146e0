"""Salt on real hosts: a master with the formula, its minions, and state runs as data.

Used by the tests, `bin/demo` and `bin/bench`; standard library only.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from test.hosts.harness.host import Host

REPO = Path(__file__).resolve().parents[2]
FORMULA = ("_modules", "_runners", "_states", "redis_sidekiq")
FILE_ROOT = "/srv/formula"
PILLAR_ROOT = "/srv/pillar"
COMPILE = 1500.0  # s for a run that compiles Redis while the machine does much else
TARBALLS = {
    "7.0.15": "4b1dc4ee6d622a09fff9c6777191209750fb5e5a725ef78ea012d6eef4c22982",
    "8.0.2": "caf3c0069f06fc84c5153bd2a348b204c578de80490c73857bee01d9b5d7401f",
}


def tarball(version: str) -> dict:
    """Return the `redis` pillar keys that say where a host finds the tarball of ``version``."""
    return {"source": f"/packages/redis-{version}.tar.gz", "source_hash": f"sha256={TARBALLS[version]}"}


def put_pack(host: Host, pack: dict[str, str]) -> dict:
    """Put Redis' finished build on a host, and return the part of ``redis`` in the pillar that names it."""
    host.copy_in(pack["file"], f"/srv/packs/{pack['name']}.tar.gz")
    return {"build": {"packs": {pack["name"]: pack["hash"]}, "packs_from": "/srv/packs"}}


def redis_version(image: str) -> str:
    """Return the Redis release that Debian's own suite of ``image`` carries the source of."""
    return "8.0.2" if image.startswith("trixie") else "7.0.15"


@dataclass
class StateRun:
    """What one ``state.apply`` returned.

    Attributes:
        states: state ID → what that state returned (``result``, ``changes``, ``comment``, ``duration`` in ms).
        errors: the sentences of a run that stopped before its first state.
        seconds: wall time of the command.
    """

    states: dict = field(default_factory=dict)
    errors: list = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def parse(cls, returned: object, seconds: float = 0.0) -> StateRun:
        """Make a run of what Salt printed: a dictionary of states, or a list of error sentences."""
        if not isinstance(returned, dict):
            return cls(errors=returned if isinstance(returned, list) else [str(returned)], seconds=seconds)
        return cls(states={value.get("__id__", key): value for key, value in returned.items()}, seconds=seconds)

    @property
    def failed(self) -> dict:
        """State ID → comment of each state that failed."""
        return {name: state["comment"] for name, state in self.states.items() if state["result"] is False}

    @property
    def changed(self) -> dict:
        """State ID → changes of each state that changed something, or would in test mode."""
        return {name: state["changes"] for name, state in self.states.items() if state["changes"]}

    @property
    def pending(self) -> list:
        """The IDs of the states that test mode says would change something."""
        return [name for name, state in self.states.items() if state["result"] is None]

    def assert_ok(self) -> StateRun:
        """Fail with each failed state's comment unless every state succeeded."""
        assert self.states and not self.errors, "\n".join(map(str, self.errors)) or "the run returned no states"
        assert not self.failed, "\n\n".join(f"{name}:\n{comment}" for name, comment in self.failed.items())
        return self

    def assert_unchanged(self) -> StateRun:
        """Fail with what changed unless the run succeeded and changed nothing."""
        self.assert_ok()
        assert not self.changed, json.dumps(self.changed, indent=1)
        return self


def put_formula(host: Host) -> None:
    """Copy the formula's file root to ``host``, in place of the one that is there."""
    host.run(["rm", "-rf", FILE_ROOT])
    host.run(["mkdir", "-p", FILE_ROOT, PILLAR_ROOT])
    for name in FORMULA:
        host.copy_in(REPO / name, f"{FILE_ROOT}/{name}")


def put_pillar(host: Host, pillar: dict | str) -> None:
    """Make ``pillar`` the pillar of every minion of ``host``: data with a ``redis_sidekiq`` key, or an SLS file's text."""
    host.write(f"{PILLAR_ROOT}/top.sls", json.dumps({"base": {"*": ["site"]}}))
    # Data are taken as they are; the default renderer would read them as a Jinja template first.
    text = pillar if isinstance(pillar, str) else "#!json\n" + json.dumps(pillar)
    host.write(f"{PILLAR_ROOT}/site.sls", text, mode=0o600)


def make_masterless(host: Host, pillar: dict | str) -> None:
    """Prepare ``host`` for `salt-call --local`: formula, pillar and the minion's configuration."""
    put_formula(host)
    put_pillar(host, pillar)
    config = {
        "id": host.name,
        "file_client": "local",
        "file_roots": {"base": [FILE_ROOT]},
        "pillar_roots": {"base": [PILLAR_ROOT]},
    }
    host.write("/etc/salt/minion.d/lab.conf", json.dumps(config))


def salt_call(host: Host, *words: str, check: bool = True, timeout: float = 600) -> object:
    """Run `salt-call --local` on ``host`` and return what the function returned."""
    done = host.run(["salt-call", "--local", "--out=json", *words], check=check, timeout=timeout)
    return json.loads(done.stdout)["local"]


def apply_locally(host: Host, sls: str = "redis_sidekiq", test: bool = False, timeout: float = COMPILE) -> StateRun:
    """Run `salt-call --local state.apply` on ``host``."""
    start = time.monotonic()
    words = ["state.apply", sls] + (["test=True"] if test else [])
    return StateRun.parse(salt_call(host, *words, check=False, timeout=timeout), time.monotonic() - start)


# salt-call that dies by kill -9, with all that it started, before a step: a program that it starts, a file that it puts
# in place or removes, a folder that it makes. Only steps that match count.
CUT = """
import os, re, signal, sys
last, steps, seen = int(sys.argv.pop(1)), re.compile(sys.argv.pop(1)), 0
names = {"os.rename": "move", "os.remove": "remove", "os.mkdir": "make", "os.symlink": "link"}
def step(event, found):
    global seen
    if event == "subprocess.Popen":
        what = " ".join(["start", os.path.basename(found[1][0]), *map(str, found[1][1:])]) + " "
    elif event in names:
        what = f"{names[event]} {found[event in ('os.rename', 'os.symlink')]}"
    else:
        return
    if steps.match(what):
        seen += 1
        print("step", what.strip(), file=sys.stderr, flush=True)
        if seen == last:
            os.killpg(0, signal.SIGKILL)
sys.addaudithook(step)
from salt.scripts import salt_call
salt_call()
"""


def cut_off(host: Host, last: int, steps: str, *words: str) -> list[str]:
    """Run `salt-call --local` and kill it before its step number ``last``; 0: not at all. Returns the steps it came to.

    Args:
        steps: which steps count, as a regular expression for words like ``start ufw ...``, ``move /etc/...``.
    """
    argv = ["setsid", "--wait", "/opt/salt/bin/python3", "-c", CUT, str(last), steps, "--local", "--out=json", *words]
    done = host.run(argv, check=False)
    assert (done.returncode == 0) is (last == 0), done.stderr
    return [line[len("step ") :] for line in done.stderr.splitlines() if line.startswith("step ")]


class Master:
    """A host that runs salt-master and serves the formula.

    Args:
        host: a running host, nothing prepared.
        pillar: the pillar of every minion.
        config: more of the master's configuration.
    """

    def __init__(self, host: Host, pillar: dict | str, config: dict | None = None) -> None:
        self.host = host
        self.minions: list[Host] = []
        put_formula(host)
        put_pillar(host, pillar)
        config = {
            "interface": host.address,
            # The keys of a private lab need no second look; a production master's do.
            "auto_accept": True,
            "file_roots": {"base": [FILE_ROOT]},
            "pillar_roots": {"base": [PILLAR_ROOT]},
            **(config or {}),
        }
        host.write("/etc/salt/master.d/lab.conf", json.dumps(config))
        host.run(["systemctl", "enable", "--now", "salt-master"])
        host.run(["salt-run", "saltutil.sync_runners"])

    def attach(self, *hosts: Host) -> None:
        """Make each host a minion of this master and wait until it answers."""
        for host in hosts:
            config = {"master": self.host.address, "id": host.name}
            host.write("/etc/salt/minion.d/lab.conf", json.dumps(config))
            host.run(["systemctl", "enable", "salt-minion"])
            host.run(["systemctl", "restart", "salt-minion"])
            self.minions.append(host)
        for host in hosts:
            self.wait_for(host)

    def wait_for(self, host: Host, seconds: float = 90) -> None:
        """Wait until the minion on ``host`` answers this master."""
        deadline = time.monotonic() + seconds
        while not self.call(host, "test.ping", check=False, timeout=5):
            assert time.monotonic() < deadline, f"{host.name} did not answer its master within {seconds} s"
            time.sleep(0.5)

    def salt(self, target: str, *words: str, check: bool = True, timeout: float = 600) -> dict:
        """Run the `salt` command: ``target``, function and arguments; returns minion → what it returned."""
        # With --static it waits for the last minion as long as it is told, and asks in between for none.
        argv = ["salt", "--out=json", "--static", f"--timeout={int(timeout)}", target, *words]
        done = self.host.run(argv, check=check, timeout=timeout + 60)
        return json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}

    def start(self, host: Host, *words: str) -> None:
        """Begin a function on the minion of ``host``, and wait for nothing."""
        self.host.run(["salt", "--async", host.name, *words])

    def call(self, host: Host, *words: str, check: bool = True, timeout: float = 600) -> object:
        """Run one function on the minion of ``host`` and return what it returned."""
        return self.salt(host.name, *words, check=check, timeout=timeout).get(host.name)

    def apply(self, host: Host, sls: str = "redis_sidekiq", test: bool = False, timeout: float = COMPILE) -> StateRun:
        """Run `salt HOST state.apply`."""
        start = time.monotonic()
        words = ["state.apply", sls] + (["test=True"] if test else [])
        return StateRun.parse(self.call(host, *words, check=False, timeout=timeout), time.monotonic() - start)

    def runner(self, *words: str, check: bool = True, timeout: float = 600) -> object:
        """Run `salt-run` and return what the runner returned."""
        done = self.host.run(["salt-run", "--out=json", *words], check=check, timeout=timeout)
        return json.loads(done.stdout)

    def fire(self, tag: str, data: dict | None = None) -> None:
        """Send an event on the master's bus, as `salt-run event.send` does."""
        self.host.run(["salt-run", "event.send", tag, json.dumps(data or {})])


def wait_for(true, seconds: float, what: str) -> None:
    """Poll until ``true()`` holds; fails with ``what`` if that takes too long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def salt_version(host: Host) -> str:
    """Return the version of Salt on ``host``."""
    return host.run(["salt-call", "--version"]).stdout.split()[1]
