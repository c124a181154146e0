"""Ways to restart Sidekiq under the same load, beside each other: what each costs and loses. And a picture of it.

Used by `bin/bench --restarts`; standard library only.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field

from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import salt_call, wait_for
from test.hosts.load import Verdict, load, now, wait_until_in_flight

# Sidekiq's own timeout is 25 s; eight of its ten threads are in jobs that take longer.
LONG_JOBS, LONG = 8, 30
WAYS = {
    "handover": "sidekiq.restart, handover",
    "drain": "sidekiq.restart, drain",
    "systemctl": "systemctl restart",
    "short": "systemctl restart, stop timeout below Sidekiq's own",
}
SHORT = "/run/systemd/system/sidekiq.service.d/short.conf"
BEFORE, AFTER, SLOT = 5.0, 50.0, 0.1  # s: the picture's span around the restart, and its bars


@dataclass
class Way:
    """What one way of restarting did.

    Attributes:
        totals: wall seconds of each restart.
        boots: seconds that the new process took to boot, where the restart says so.
        gaps: the longest time without a job's end during each restart (s).
        verdict: what became of all jobs.
        first: when the first restart began (epoch s).
    """

    totals: list[float] = field(default_factory=list)
    boots: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    first: float = 0.0

    @property
    def overhead(self) -> list[float]:
        """Of each restart: the time above the boot and the longest job (s)."""
        return [total - boot - LONG for total, boot in zip(self.totals, self.boots)]


def measure(host: Host, way: str, count: int) -> Way:
    """Restart ``count`` times under load in one way."""
    result, spans = Way(), []
    if way == "short":
        host.write(SHORT, "[Service]\nTimeoutStopSec=2\n")
        host.run(["systemctl", "daemon-reload"])
    try:
        with load(host, even=True, settle=60) as result.verdict:
            for _ in range(count):
                jids = begin_long_jobs(host)
                start, begun = time.monotonic(), now(host)
                result.boots.append(_restart(host, way))
                result.totals.append(time.monotonic() - start)
                spans.append((begun, now(host)))
                # Those that were pushed back end before the next turn; those that were lost never do.
                with contextlib.suppress(AssertionError):
                    wait_for(lambda: _all_in(host, "smismember", "worked", jids), LONG + 5, "the long jobs worked")  # noqa: B023
    finally:
        host.run(["rm", "-f", SHORT])
        host.run(["systemctl", "daemon-reload"])
    result.first = spans[0][0]
    result.gaps = [result.verdict.gap(*span) for span in spans]
    return result


def begin_long_jobs(host: Host) -> set[str]:
    """Enqueue the long jobs, and wait until each is in work and Sidekiq has said so; returns their jids."""
    jids = set(app.enqueue(host, LONG_JOBS, LONG))
    app.redis(host, "sadd", "enqueued", *jids)
    wait_for(lambda: _all_in(host, "hmget", "started", jids), 30, "the long jobs begun")
    wait_until_in_flight(host, jids)
    return jids


def _all_in(host: Host, command: str, key: str, jids: set[str]) -> bool:
    """Does Redis answer with a number above 0 for each?"""
    return [word not in ("0", "") for word in app.redis(host, command, key, *jids).splitlines()] == [True] * len(jids)


def _restart(host: Host, way: str) -> float:
    """Restart; returns how long the new process took to boot."""
    if way in ("handover", "drain"):
        record = salt_call(host, "sidekiq.restart", "sidekiq", f"strategy={way}")
        assert record["result"], json.dumps(record, indent=1)
        return next(step["seconds"] for step in record["steps"] if step["step"] == "start")
    host.run(["systemctl", "restart", "sidekiq"], timeout=120)
    facts = host.run(
        ["systemctl", "show", "--property=ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic", "sidekiq"]
    )
    moments = dict(line.split("=") for line in facts.stdout.split())
    return (int(moments["ActiveEnterTimestampMonotonic"]) - int(moments["ExecMainStartTimestampMonotonic"])) / 1e6


def picture(ways: dict[str, Way]) -> str:
    """Return an SVG: jobs that ended per 100 ms around the first restart of each way, beneath each other."""
    width, height, left, top = 720, 90, 16, 26
    slots = int((BEFORE + AFTER) / SLOT)
    step = (width - 2 * left) / slots
    parts = []
    for row, (name, way) in enumerate(ways.items()):
        counts = [0] * slots
        for moment in way.verdict.ends:
            slot = int((moment - way.first + BEFORE) / SLOT)
            if 0 <= moment - way.first + BEFORE and slot < slots:
                counts[slot] += 1
        base, most = row * (height + top + 20) + top + height, max(max(counts), 1)
        parts.append(f'<text x="{left}" y="{base - height - 8}">{WAYS[name]}: longest gap {way.gaps[0]:.2f} s</text>')
        bars = "".join(
            f"M{left + slot * step:.1f} {base}v{-count / most * height:.1f}"
            for slot, count in enumerate(counts)
            if count
        )
        parts.append(f'<path d="{bars}" stroke="#3b7" stroke-width="{step:.2f}"/>')
        parts.append(f'<path d="M{left} {base}H{width - left}" stroke="#888"/>')
        begun = left + BEFORE / SLOT * step
        parts.append(f'<path d="M{begun:.1f} {base}v{-height}" stroke="#c33" stroke-dasharray="3 3"/>')
        for second in range(0, int(AFTER) + 1, 10):
            x = begun + second / SLOT * step
            parts.append(f'<text x="{x:.1f}" y="{base + 12}" font-size="9" text-anchor="middle">{second} s</text>')
    total = len(ways) * (height + top + 20) + 6
    style = 'font-family="sans-serif" font-size="12" fill="#777"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" role="img" '
        f'aria-label="Jobs that end per 100 ms around a restart">\n<g {style}>\n{body}\n</g>\n</svg>\n'
    )
