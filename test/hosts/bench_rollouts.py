"""What a roll-out costs beside the restarts themselves, and a storm of events; standard library only."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from test.hosts.fleet import Fleet
from test.hosts.harness.host import Host
from test.hosts.lab import wait_for

# Fires events as fast as the master's bus takes them, and prints when it began (epoch s by the master's clock).
FIRE = """\
import json, sys, time, salt.config, salt.utils.event
opts = salt.config.master_config("/etc/salt/master")
names, count = json.loads(sys.argv[1])
with salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=False) as bus:
    print(time.time())
    for number in range(count):
        bus.fire_event({}, "redis_sidekiq/deploy/" + names[number % len(names)])
"""


@dataclass
class Cost:
    """What one roll-out took.

    Attributes:
        hosts: how many there are.
        restarted: how many were restarted.
        first: s from the event to the first restart's begin; 0.0 if there was none.
        total: s from the event to the outcome.
        restarts: s that the restarts took, added up.
    """

    hosts: int
    restarted: int
    first: float
    total: float
    restarts: float

    @property
    def overhead(self) -> float:
        """What is not a restart, per host (s); of use when hosts go one by one."""
        return (self.total - self.restarts) / self.hosts


@dataclass
class Storm:
    """What a storm of events took.

    Attributes:
        processes: most roll-out processes at once.
        outcomes: app -> records of its roll-outs.
        seconds: from the first event to the end of all roll-outs.
    """

    processes: int
    outcomes: dict[str, list[dict]]
    seconds: float

    def restarts(self, name: str) -> int:
        """Return how many restarts an app had."""
        return sum(record["totals"]["done"] for record in self.outcomes[name])


def fire(fleet: Fleet, names: list[str], count: int = 1) -> float:
    """Send events for these apps in turn; returns when the first was sent, by the master's clock (epoch s)."""
    argv = ["/opt/salt/bin/python", "-c", FIRE, json.dumps([names, count])]
    return float(fleet.master.host.run(argv).stdout.split()[-1])


def roll(fleet: Fleet, name: str) -> Cost:
    """Send one event and wait for its outcome."""
    with fleet.events("redis_sidekiq/deploy*") as seen:
        sent = fire(fleet, [name])
        wait_for(lambda: outcomes(seen, name), 900, f"the outcome of {name}")
    (record,) = outcomes(seen, name)
    assert record["result"], json.dumps(record, indent=1)
    begins = [entry["began"] for entry in record["hosts"].values() if "began" in entry]
    return Cost(
        hosts=len(record["hosts"]),
        restarted=record["totals"]["done"],
        first=min(begins) - sent if begins else 0.0,
        total=record["ended"] - sent,
        restarts=sum(entry.get("seconds", 0.0) for entry in record["hosts"].values()),
    )


def storm(fleet: Fleet, names: list[str], count: int) -> Storm:
    """Send so many events for these apps in turn, as fast as possible, and wait for the end of what they set off."""
    master = fleet.master.host
    before = {name: fleet.show(name)["last"].get("serial", 0) for name in names}
    most = 0
    with fleet.events("redis_sidekiq/deploy*") as seen:
        begun = time.monotonic()
        fire(fleet, names, count)

        def is_over() -> bool:
            nonlocal most
            working = rollout_processes(master)
            most = max(most, working)
            served = {name: serial(seen, name) for name in names}
            return all(served[name] >= before[name] + count // len(names) for name in names) and not working

        wait_for(is_over, 300, "the end of the storm's roll-outs")
        seconds = time.monotonic() - begun
    return Storm(most, {name: outcomes(seen, name) for name in names}, seconds)


def rollout_processes(master: Host) -> int:
    """Return how many roll-outs are at work; each leads a session, a child that it forks to run a program does not."""
    listed = master.run(["ps", "-eo", "pid=,sid=,args="]).stdout.splitlines()
    rows = (line.split(None, 2) for line in listed if "sidekiq_rollout.work" in line)
    return sum(pid == session for pid, session, _ in rows)


def outcomes(seen: list, name: str) -> list[dict]:
    """Return the records among these events of an app's roll-outs."""
    tags = (f"redis_sidekiq/deployed/{name}", f"redis_sidekiq/deploy_failed/{name}")
    return [data for tag, data in seen if tag in tags]


def serial(seen: list, name: str) -> int:
    """Return the last request of an app that was served."""
    return max((record["serial"] for record in outcomes(seen, name)), default=0)
