"""What a run that changes nothing costs on a real host, beside the least that Salt itself can do there.

Used by `bin/bench` and its test; standard library only.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from test.hosts.harness.host import Host

FLOOR_ROOT = "/srv/floor"
FLOOR = ["salt-call", "--local", f"--file-root={FLOOR_ROOT}", "--out=json", "state.apply", "floor"]
RENDER_FLOOR = ["salt-call", "--local", f"--file-root={FLOOR_ROOT}", "--out=json", "state.show_sls", "floor"]
RENDER = ["salt-call", "--local", "--out=json", "state.show_sls", "redis_sidekiq"]
NOOP = ["salt-call", "--local", "--out=json", "state.apply", "redis_sidekiq"]


@dataclass
class Cost:
    """The cost of a no-op run.

    Attributes:
        floor: wall seconds of each run of a single ``test.nop``.
        noop: wall seconds of each run of the formula that changes nothing, taken in turn with the floor.
        floor_programs: the programs that Salt starts for the ``test.nop``.
        noop_programs: the programs that the formula's run starts.
    """

    floor: list[float]
    noop: list[float]
    floor_programs: list[list[str]]
    noop_programs: list[list[str]]

    @property
    def ratio(self) -> float:
        """Median no-op over median floor."""
        return statistics.median(self.noop) / statistics.median(self.floor)

    @property
    def own_programs(self) -> list[list[str]]:
        """The programs that the formula adds to Salt's own."""
        rest = [tuple(argv) for argv in self.floor_programs]
        own = []
        for argv in self.noop_programs:
            if tuple(argv) in rest:
                rest.remove(tuple(argv))
            elif argv not in (NOOP, RENDER):
                own.append(argv)
        return own


def seconds(host: Host, argv: list[str]) -> float:
    """Return the wall time of one command on ``host``."""
    start = time.monotonic()
    host.run(argv)
    return time.monotonic() - start


CPU = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""


def cpu_seconds(host: Host, argv: list[str]) -> float:
    """Return the processor time of one command on ``host`` and of all that it starts; others' work is not in it."""
    return float(host.run(["python3", "-c", CPU, *argv]).stdout)


def measure_render(host: Host, runs: int) -> Cost:
    """
    Render a file with a single ``test.nop`` and the whole formula in turn, ``runs`` times each, and count programs once.

    ``floor`` and ``noop`` of the result are seconds of processor time.
    """
    return _in_turn(host, runs, cpu_seconds, RENDER_FLOOR, RENDER)


def measure(host: Host, runs: int) -> Cost:
    """Time floor and no-op in turn on a converged masterless host, ``runs`` times each, and count programs once."""
    return _in_turn(host, runs, seconds, FLOOR, NOOP)


def _in_turn(host: Host, runs: int, cost, floor: list[str], other: list[str]) -> Cost:
    host.run(["mkdir", "-p", FLOOR_ROOT])
    host.write(f"{FLOOR_ROOT}/floor.sls", "nothing:\n  test.nop: []\n")
    # The first run of each compiles templates and fills caches.
    cost(host, floor), cost(host, other)
    pairs = [(cost(host, floor), cost(host, other)) for _ in range(runs)]
    _, floor_programs = host.processes_spawned(floor)
    _, programs = host.processes_spawned(other)
    return Cost([pair[0] for pair in pairs], [pair[1] for pair in pairs], floor_programs, programs)
