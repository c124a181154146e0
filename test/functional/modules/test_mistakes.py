"""docs/mistakes.md: what Redis itself makes of the lines that others write into its config unchecked."""

from __future__ import annotations

import socket
import subprocess
import time

import pytest

WRITTEN = {
    "a misspelt key": "maxmemroy 2gb",
    "a port that is none": "port 70000",
    "a size that is none": "maxmemory 2 gigs",
    "a policy that is none": "maxmemory-policy lru",
    "a boolean of YAML": "appendonly True",
    "no of YAML": "appendfsync False",
    "a line for each character": "save 9",
    "a password of two lines": "requirepass a\nb",
}
TAKEN = "maxmemory 900gb\nmaxmemory-policy allkeys-lru\nuser app on\nappendonly yes\n"


@pytest.fixture
def server(redis_build, tmp_path):
    """Start a server with some lines in its config: the process."""
    started = []

    def _server(lines: str) -> subprocess.Popen:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = tmp_path / "redis.conf"
        config.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n{lines}\n")
        program = redis_build / "current/bin/redis-server"
        log = (tmp_path / "log").open("w")
        started.append(subprocess.Popen([program, config], stdout=log, stderr=log))
        return started[-1]

    yield _server
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("lines", WRITTEN.values(), ids=WRITTEN)
def test_redis_does_not_start(server, lines):
    assert server(lines).wait(timeout=20) != 0


def test_redis_with_tls_and_no_key_does_not_start(server, redis_flags):
    if not redis_flags["tls"]:
        pytest.skip("this build has no TLS: OpenSSL's headers are not installed")
    assert server("tls-port 1\ntls-cert-file /dev/null").wait(timeout=20) != 0


def test_redis_takes_the_others(server, tmp_path):
    process = server(TAKEN)
    deadline = time.monotonic() + 20
    while "Ready to accept connections" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    assert process.poll() is None
