"""A run that is cut off, or a tarball that is not what it says: the next run is right, nothing half-made is used."""

import time

import pytest

from test.hosts import app
from test.hosts.lab import TARBALLS, Master, apply_locally, put_pillar, tarball, wait_for

VERSION = "7.0.15"
TARBALL = f"redis-{VERSION}.tar.gz"
# A build of its own beside the converged one: other flags, so the compiler runs.
REBUILD = {**tarball(VERSION), "build": {"malloc": "libc"}}


def pillar(redis: dict) -> dict:
    return {"redis_sidekiq": {"redis": redis, "roles": ["redis"]}}


def running_binary(host) -> str:
    return host.run(["readlink", f"/proc/{app.main_pid(host, 'redis_6379')}/exe"]).stdout.strip()


def compiles(host) -> bool:
    return host.run(["pgrep", "-x", "cc1"], check=False).returncode == 0


@pytest.fixture
def converged(masterless, make_host):
    return make_host("cut", image=masterless("bookworm").image)


def test_failing_compiler_is_quoted_and_nothing_changes(converged):
    host = converged
    before = running_binary(host)
    break_it = f"tar xzf /packages/{TARBALL} && mv redis* broken && echo 'not C;' >> broken/src/server.c"
    host.run(["sh", "-c", f"cd /root && {break_it} && tar czf {TARBALL} broken"])
    digest = host.run(["sha256sum", f"/root/{TARBALL}"]).stdout.split()[0]
    put_pillar(host, pillar({**REBUILD, "source": f"/root/{TARBALL}", "source_hash": f"sha256={digest}"}))
    message = "\n".join(apply_locally(host).failed.values())
    assert "server.c" in message and "error:" in message
    assert running_binary(host) == before


SERVER = """
import http.server, ssl, sys, time
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = open(sys.argv[1], "rb").read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for start in range(0, len(data), 65536):
            self.wfile.write(data[start : start + 65536])
            self.wfile.flush()
            time.sleep(float(sys.argv[2]))
server = http.server.ThreadingHTTPServer(("", 8443), Slow)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/root/cert.pem", "/root/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def serve(host, pause: float):
    """Serve the tarball by https on port 8443 of ``host``, with a pause in s after each 64 KiB."""
    return host.popen(["python3", "-c", SERVER, f"/packages/{TARBALL}", str(pause)])


def trust(host, server) -> None:
    """Make a certificate for ``server``, and let Salt on ``host`` trust it."""
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=download"]
    argv += ["-addext", f"subjectAltName=IP:{server.address}", "-keyout", "/root/key.pem", "-out", "/root/cert.pem"]
    server.run(argv)
    host.write("/etc/ssl/download.pem", server.run(["cat", "/root/cert.pem"]).stdout)
    host.write("/etc/salt/minion.d/ca.conf", "ca_bundle: /etc/ssl/download.pem\n")


def test_the_run_after_all_that_can_go_wrong_is_right(converged, make_host):
    """A tampered tarball; the minion killed in the download; the run killed in the build; the power cut in the build.

    One after the other on one host: what each leaves behind, the next and the last run have to cope with.
    """
    host = converged
    before = running_binary(host)
    builds = host.run(["ls", "-A", "/opt/redis"]).stdout
    master_host = make_host("cut-master")
    master = Master(master_host, pillar(tarball(VERSION)))
    trust(host, master_host)
    server = serve(master_host, 0.5)
    master.attach(host)

    host.run(["sh", "-c", f"cp /packages/{TARBALL} /root && printf x >> /root/{TARBALL}"])
    found = host.run(["sha256sum", f"/root/{TARBALL}"]).stdout.split()[0]
    put_pillar(master_host, pillar({**REBUILD, "source": f"/root/{TARBALL}"}))
    for test in (True, False):
        message = "\n".join(master.apply(host, test=test).failed.values())
        assert TARBALLS[VERSION] in message and found in message
        assert running_binary(host) == before
        assert host.run(["ls", "-A", "/opt/redis"]).stdout == builds

    put_pillar(master_host, pillar({**REBUILD, "source": f"https://{master_host.address}:8443/{TARBALL}"}))
    master.start(host, "state.apply", "redis_sidekiq")
    wait_for(lambda: connected(host), 60, "the download runs")
    host.run(["pkill", "-9", "-f", "salt-minion"])
    assert running_binary(host) == before

    server.kill()
    serve(master_host, 0)
    for cut in (lambda: host.run(["pkill", "-9", "-f", "salt-minion"]), host.power_cut):
        host.run(["systemctl", "restart", "salt-minion"])
        master.wait_for(host)
        master.start(host, "state.apply", "redis_sidekiq")
        wait_for(lambda: compiles(host), 120, "the compiler runs")
        time.sleep(2)
        cut()
        if host.running:
            wait_for(lambda: not compiles(host), 5, "the compilers die with the run")
    host.start()
    assert running_binary(host) == before

    master.wait_for(host)
    master.apply(host).assert_ok()
    assert running_binary(host) != before
    assert host.run(["find", "/opt/redis", "-maxdepth", "1", "-name", ".*"]).stdout == ""
    master.apply(host).assert_unchanged()


def connected(host) -> bool:
    """Whether ``host`` has a connection to port 8443 of another."""
    return ":8443" in host.run(["ss", "-Htn", "state", "established", "dport", "=", ":8443"]).stdout
