"""What a second host can reach: ssh and http always, Redis only where it is listed."""

import pytest

from test.hosts import app
from test.hosts.lab import apply_locally, put_pillar, redis_version, tarball, wait_for

IMAGES = ["bookworm", "trixie"]
PASSWORD = "s3cret with 'quotes' and #hash"


def reaches(client, host, port: int) -> bool:
    """Whether a TCP connection from ``client`` to ``port`` of ``host`` opens within two seconds."""
    code = f"import socket; socket.create_connection(({host.address!r}, {port}), 2)"
    return client.run(["python3", "-c", code], check=False).returncode == 0


def auth_and_ping(client, host, password: str) -> str:
    """Say AUTH and PING to ``host``'s Redis from ``client``, in Redis' own protocol."""
    code = (
        "import socket, sys\n"
        f"s = socket.create_connection(({host.address!r}, 6379), 2)\n"
        "pw = sys.stdin.buffer.read()\n"
        "s.sendall(b'*2\\r\\n$4\\r\\nAUTH\\r\\n$%d\\r\\n%s\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n' % (len(pw), pw))\n"
        "answers = s.makefile()\n"
        "print(answers.readline() + answers.readline())\n"
    )
    return client.run(["python3", "-c", code], input=password).stdout


@pytest.mark.parametrize("image", IMAGES)
def test_ports_from_a_second_host(masterless, make_host, image):
    host = make_host("inside", image=masterless(image).image)
    outside, listed = make_host("outside"), make_host("listed")
    # Something has to answer where the firewall lets through.
    host.popen(["python3", "-m", "http.server", "80"])
    wait_for(lambda: reaches(host, host, 80), 20, "the web server listens")
    assert reaches(outside, host, 22)
    assert reaches(outside, host, 80)
    assert not reaches(outside, host, 6379)

    instance = {"bind": ["127.0.0.1", host.address], "password": PASSWORD, "allow_from": [f"{listed.address}/32"]}
    redis = {**tarball(redis_version(image)), "instances": {6379: instance}}
    put_pillar(host, {"redis_sidekiq": {"redis": redis}})
    run = apply_locally(host).assert_ok()
    assert PASSWORD not in str(run.states)
    apply_locally(host).assert_unchanged()

    assert reaches(listed, host, 6379)
    assert "PONG" in auth_and_ping(listed, host, PASSWORD)
    assert "PONG" not in auth_and_ping(listed, host, "wrong")
    assert not reaches(outside, host, 6379)
    assert reaches(outside, host, 22)
    assert "NOAUTH" in host.run(["redis-cli", "ping"], check=False).stdout
    assert app.main_pid(host, "redis_6379") != "0"
