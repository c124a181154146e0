"""A run that is cut off, or a tarball that is not what it says: the next run is right, nothing half-made is used."""

import time

import pytest

from test.hosts import app
from test.hosts.lab import TARBALLS, Master, apply_locally, make_masterless, put_pillar, tarball

# A build of its own beside the converged one: other flags, so the compiler runs.
REBUILD = {**tarball("7.0.15"), "build": {"malloc": "libc"}}


def pillar(redis: dict) -> dict:
    return {"redis_sidekiq": {"redis": redis, "roles": ["redis"]}}


def running_binary(host) -> str:
    return host.run(["readlink", f"/proc/{app.main_pid(host, 'redis_6379')}/exe"]).stdout.strip()


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def processes(host, name: str) -> bool:
    return host.run(["pgrep", "-x", name], check=False).returncode == 0


@pytest.fixture
def converged(masterless, make_host):
    return make_host("cut", image=masterless("bookworm").image)


def test_killed_build_is_built_again(converged):
    host = converged
    put_pillar(host, pillar(REBUILD))
    before = running_binary(host)
    run = host.popen(["salt-call", "--local", "state.apply", "redis_sidekiq"])
    wait_for(lambda: processes(host, "cc1"), 60, "the compiler runs")
    time.sleep(2)
    host.run(["pkill", "-9", "-f", "salt-call"])
    run.wait(timeout=30)
    assert running_binary(host) == before

    again = apply_locally(host).assert_ok()
    assert again.changed
    assert running_binary(host) != before
    assert not processes(host, "cc1")
    assert host.run(["find", "/opt/redis", "-maxdepth", "1", "-name", ".*"]).stdout == ""
    apply_locally(host).assert_unchanged()


def test_power_cut_in_the_build(converged):
    host = converged
    put_pillar(host, pillar(REBUILD))
    before = running_binary(host)
    host.popen(["salt-call", "--local", "state.apply", "redis_sidekiq"])
    wait_for(lambda: processes(host, "cc1"), 60, "the compiler runs")
    host.power_cut()
    host.start()
    assert running_binary(host) == before
    apply_locally(host).assert_ok()
    assert running_binary(host) != before
    apply_locally(host).assert_unchanged()


def test_tampered_tarball_is_refused_before_it_is_unpacked(converged):
    host = converged
    before = running_binary(host)
    host.run(["cp", "/packages/redis-8.0.2.tar.gz", "/root/redis-8.0.2.tar.gz"])
    host.run(["sh", "-c", "printf x >> /root/redis-8.0.2.tar.gz"])
    found = host.run(["sha256sum", "/root/redis-8.0.2.tar.gz"]).stdout.split()[0]
    put_pillar(host, pillar({"source": "/root/redis-8.0.2.tar.gz", "source_hash": f"sha256={TARBALLS['8.0.2']}"}))
    failed = apply_locally(host).failed
    message = "\n".join(failed.values())
    assert TARBALLS["8.0.2"] in message and found in message
    assert running_binary(host) == before
    assert host.run(["find", "/opt/redis", "-maxdepth", "1", "-name", "8.0.2*"]).stdout == ""

    put_pillar(host, pillar(tarball("8.0.2")))
    apply_locally(host).assert_ok()
    assert "redis_version:8.0.2" in app.redis(host, "info", "server")
    apply_locally(host).assert_unchanged()


def test_failing_compiler_is_quoted_and_nothing_changes(converged):
    host = converged
    before = running_binary(host)
    host.run(["sh", "-c", "cd /root && tar xzf /packages/redis-8.0.2.tar.gz && mv redis* broken"])
    host.run(["sh", "-c", "cd /root && echo 'this is not C;' >> broken/src/server.c && tar czf redis-8.0.2.tar.gz broken"])
    digest = host.run(["sha256sum", "/root/redis-8.0.2.tar.gz"]).stdout.split()[0]
    put_pillar(host, pillar({"source": "/root/redis-8.0.2.tar.gz", "source_hash": f"sha256={digest}"}))
    message = "\n".join(apply_locally(host).failed.values())
    assert "server.c" in message and "error:" in message
    assert running_binary(host) == before


SLOW_SERVER = """
import http.server, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = open("/packages/redis-8.0.2.tar.gz", "rb").read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for start in range(0, len(data), 65536):
            self.wfile.write(data[start : start + 65536])
            self.wfile.flush()
            time.sleep(PAUSE)
http.server.ThreadingHTTPServer(("", 8080), Slow).serve_forever()
"""


def test_killed_minion_in_the_download(converged, make_host):
    """The minion of a real master is killed while its host downloads the tarball from a slow server."""
    host = converged
    master = Master(make_host("cut-master"), pillar(tarball("7.0.15")))
    server = master.host.popen(["python3", "-c", SLOW_SERVER.replace("PAUSE", "0.5")])
    master.attach(host)
    source = {"source": f"http://{master.host.address}:8080/redis-8.0.2.tar.gz", "source_hash": TARBALLS["8.0.2"]}
    put_pillar(master.host, pillar(source))
    master.salt(host.name, "--async", "state.apply", "redis_sidekiq", check=False)
    wait_for(lambda: connected(host), 60, "the download runs")
    host.run(["pkill", "-9", "-f", "salt-minion"])
    assert "redis_version:7.0.15" in app.redis(host, "info", "server")

    server.kill()
    host.run(["systemctl", "restart", "salt-minion"])
    master.host.popen(["python3", "-c", SLOW_SERVER.replace("PAUSE", "0")])
    master.wait_for(host)
    wait_for(lambda: not master.call(host, "saltutil.running"), 60, "the interrupted job is over")
    master.apply(host).assert_ok()
    assert "redis_version:8.0.2" in app.redis(host, "info", "server")
    master.apply(host).assert_unchanged()


def connected(host) -> bool:
    """Whether ``host`` has a connection to port 8080 of another."""
    return ":8080" in host.run(["ss", "-Htn", "state", "established", "dport", "=", ":8080"]).stdout
