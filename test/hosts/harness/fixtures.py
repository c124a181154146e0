"""Pytest fixtures: hosts that go with the test or the session that made them, and what they say when a test fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from test.hosts.harness.host import Host, HostError, prune

# The hosts of this session that are up, for the report of a failure.
_up: dict[str, Host] = {}

# What a failure on a host is explained with: title -> command.
REPORTS = {
    "journal": ["journalctl", "--no-pager", "--lines=60", "--output=short-precise"],
    "the minion's log": ["sh", "-c", "test ! -f /var/log/salt/minion || tail -n 40 /var/log/salt/minion"],
    "failed units": ["systemctl", "--no-pager", "--no-legend", "list-units", "--failed"],
}


@pytest.fixture(scope="session")
def hosts_gone_at_the_end():
    """Take all hosts of this session down when it ends."""
    prune()
    yield
    for host in list(_up.values()):
        _down(host)
    prune()


@pytest.fixture(scope="module")
def module_hosts(hosts_gone_at_the_end):
    """``module_hosts(name, image="bookworm")``: boot a host that goes with the module's last test.

    A host takes six or seven inotify instances, and many kernels give root 128: some eighteen hosts are all there can be.
    """
    yield from _booting()


@pytest.fixture
def make_host(hosts_gone_at_the_end):
    """``make_host(name, image="bookworm")``: boot a host that goes with the test."""
    yield from _booting()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add to a failure's report what its hosts have to say."""
    report = yield
    if report.failed and "hosts" in item.path.parts:
        for host in _named_in(item):
            report.sections += [(f"{host.name}: {title}", _ask(host, argv)) for title, argv in REPORTS.items()]
    return report


def boot(name: str, image: str = "bookworm") -> Host:
    """Boot a host that does not outlive this session."""
    host = Host.up(name, image=image, owner_pid=os.getpid())
    _up[name] = host
    return host


def _booting() -> Iterator[Callable[..., Host]]:
    """Give a function that boots hosts, and take those down after it."""
    made: list[Host] = []

    def _boot(name: str, image: str = "bookworm") -> Host:
        made.append(boot(name, image))
        return made[-1]

    yield _boot
    for host in made:
        _down(host)


def _down(host: Host) -> None:
    host.down()
    _up.pop(host.name, None)


def _named_in(item) -> list[Host]:
    """The hosts that a test holds in its fixtures, directly or in what stands for a site; else the newest ones."""
    held = []
    for value in getattr(item, "funcargs", {}).values():
        held += (
            [each for each in (value, *vars(value).values()) if isinstance(each, Host)]
            if hasattr(value, "__dict__")
            else []
        )
    found = [host for host in held if host.running] or [host for host in _up.values() if host.running][-2:]
    return list({host.name: host for host in found}.values())


def _ask(host: Host, argv: list[str]) -> str:
    try:
        return host.run(argv, check=False, timeout=20).stdout
    except HostError as err:
        return str(err)
