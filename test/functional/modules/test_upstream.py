"""Upstream's own tests, on a build that the formula has made."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile

import pytest

from test.functional.conftest import REDIS
from test.hosts.harness import machine

# All but those that need a cluster, modules, TLS, or minutes each.
SUITES = (
    *(f"unit/type/{name}" for name in ("string", "incr", "list", "list-2", "set", "zset", "hash", "stream")),
    *(f"unit/{name}" for name in ("acl", "aofrw", "auth", "dump", "expire", "info", "introspection", "keyspace")),
    *(
        f"unit/{name}"
        for name in ("latency-monitor", "limits", "maxmemory", "multi", "networking", "other", "printver")
    ),
    *(f"unit/{name}" for name in ("protocol", "pubsub", "quit", "scan", "scripting", "shutdown", "slowlog", "sort")),
    *(
        f"integration/{name}"
        for name in ("aof", "aof-multi-part", "block-repl", "logging", "rdb", "redis-cli", "replication-4")
    ),
)


@pytest.fixture
def tclsh():
    """Upstream's tests are written in Tcl."""
    if not shutil.which("tclsh"):
        machine.run(["apt-get", "-qq", "update"])
        machine.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", "tcl"])


@pytest.mark.soak
def test_upstreams_tests_pass_on_our_build(modules, open_folder, redis_tarball, tclsh):
    """With jemalloc, as hosts have it."""
    prefix, source = open_folder / "upstream", open_folder / "source"
    systemd = subprocess.run(["pkg-config", "--exists", "libsystemd"], check=False).returncode == 0
    modules.redis_build.make(REDIS, **redis_tarball, prefix=str(prefix), user="nobody", jobs=2, systemd=systemd)
    with tarfile.open(redis_tarball["source"]) as archive:
        archive.extractall(source, filter="data")
    (top,) = source.iterdir()
    (programs,) = prefix.glob(f"{REDIS}-*/bin")
    for program in programs.iterdir():
        if not program.is_symlink():
            shutil.copy2(program, top / "src")
    words = [word for suite in SUITES for word in ("--single", suite)]
    done = subprocess.run(["./runtest", "--clients", "2", *words], cwd=top, capture_output=True, text=True, check=False)
    assert "All tests passed without errors!" in done.stdout, done.stdout[-6000:]
    print(len(re.findall(r"\[(?:\x1b\[[0-9;]*m)?ok", done.stdout)), "tests of upstream passed")
