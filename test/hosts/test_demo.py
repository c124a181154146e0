"""`make demo`: what it prints, that it is never silent for long, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from test.hosts.harness.host import Host, all_hosts
from test.hosts.harness.machine import REPO

HOSTS = {"demo-master", "demo-web"}


@pytest.fixture
def demo(hosts_gone_at_the_end):
    """Start the demo; gives the process, whose lines come through its pipe."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(["make", "demo", *arguments], cwd=REPO, start_new_session=True, **pipe))
        return started[-1]

    yield start
    for process in started:
        process.kill()
    for name in HOSTS:
        Host(name).down()


def left() -> set[str]:
    return HOSTS & {host.name for host in all_hosts()}


def test_ctrl_c_leaves_nothing(demo):
    process = demo()
    for line in process.stdout:
        if "salt-master and salt-minion start" in line:
            break
    assert left() == HOSTS
    # A terminal sends it to the whole group: make, the demo, and what that runs on the hosts.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert left() == set()


@pytest.mark.soak
def test_the_whole_demo(demo):
    process = demo("KEEP=1")
    lines, latest, silence = [], time.monotonic(), 0.0
    for line in process.stdout:
        silence, latest = max(silence, time.monotonic() - latest), time.monotonic()
        lines.append(line)
    text = "".join(lines)
    assert process.wait(timeout=60) == 0, text
    assert silence < 60
    assert left() == HOSTS
    for words in (
        r"23 states, \d+ with changes",
        r"500 of 500 jobs worked",
        r"23 states, 0 with changes",
        r"sidekiq.service: process \d+ → \d+, working in /srv/app/releases/2",
        r"Redis +7\.0\.15 on port 6379, /opt/redis/",
        r"jobs worked +1000",
        r"bin/host run demo-web -- systemctl status sidekiq",
    ):
        assert re.search(words, text), text
    assert "active (running)" in Host("demo-web").run(["systemctl", "status", "sidekiq"]).stdout


def test_an_end_by_a_signal_leaves_nothing(demo):
    process = demo()
    for line in process.stdout:
        if "demo-web" in line:
            break
    owner = next(host.record["owner"]["pid"] for host in all_hosts() if host.name == "demo-master")
    os.kill(owner, signal.SIGKILL)
    until = time.monotonic() + 15
    while left():
        assert time.monotonic() < until
        time.sleep(0.2)
