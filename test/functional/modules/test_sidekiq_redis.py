"""What Sidekiq keeps in Redis, asked from a real one in each way that a URL can name it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from salt.exceptions import CommandExecutionError

from test.hosts.lab import wait_for


class Server:
    """A redis-server of the test's own, on a port and a socket."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder, self.port = program, folder, free_port()
        self.socket = folder / "redis.sock"

    def start(self, *words: str, wait: bool = True) -> None:
        argv = [self.program, "--port", str(self.port), "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            [*argv, "--save", "", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self.listens, 20, "a Redis that listens")

    def listens(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def client(self, **more):
        return redis.Redis(port=self.port, decode_responses=True, **more)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def server(redis_build, open_folder):
    folder = open_folder / "sidekiq-redis"
    folder.mkdir()
    server = Server(redis_build / "current/bin/redis-server", folder)
    yield server
    server.process.kill()
    server.process.wait()
    shutil.rmtree(folder)


@pytest.fixture
def ask(load):
    """The module; ``ask(url)`` gives the service's environment another REDIS_URL."""
    module, env = load("_modules/sidekiq_redis.py"), {}
    module.__salt__ = {
        "redis_sidekiq.settings": lambda reveal: {"sidekiq": {"services": [{"name": "app", "env": env}]}}
    }

    def _ask(url: str, **more):
        env.clear()
        env.update({"REDIS_URL": url, **more})
        return module

    return _ask


def fill(client) -> None:
    """One process, one job in work, one that waits, one to be tried again."""
    info = {"hostname": "web1", "started_at": 1.0, "pid": 7, "tag": "app", "concurrency": 5, "queues": ["default"]}
    client.sadd("processes", "web1:7:abc", "web1:8:gone")
    client.hset(
        "web1:7:abc", mapping={"info": json.dumps(info), "busy": 1, "quiet": "false", "beat": time.time(), "rss": 5}
    )
    client.expire("web1:7:abc", 60)
    payload = {"jid": "aaaaaaaaaaaaaaaaaaaaaaaa", "class": "Mail", "args": ["sesame"], "enqueued_at": time.time() - 3}
    work = {"queue": "queue:default", "payload": json.dumps(payload), "run_at": time.time()}
    client.hset("web1:7:abc:work", "tid", json.dumps(work))
    client.sadd("queues", "default")
    client.lpush("queue:default", json.dumps({**payload, "jid": "bbbbbbbbbbbbbbbbbbbbbbbb"}))
    client.zadd("retry", {json.dumps({**payload, "jid": "cccccccccccccccccccccccc"}): time.time() + 60})


def assert_told(module) -> None:
    (beat,) = module.beats("app")
    assert (beat["identity"], beat["busy"], beat["quiet"], beat["concurrency"]) == ("web1:7:abc", 1, False, 5)
    assert 0 <= beat["beat_age"] < 5
    (job,) = module.jobs("app")
    assert (job["jid"], job["class"], job["queue"]) == ("a" * 24, "Mail", "queue:default") and "sesame" not in str(job)
    (queue,) = module.queues("app")
    assert (queue["name"], queue["size"]) == ("default", 1) and 3 <= queue["latency"] < 10
    stats = module.stats("app")
    assert (stats["enqueued"], stats["retry"], stats["processes"]) == (1, 1, 2)
    assert module.refusal("app") == ""


def test_it_is_asked_by_port_database_password_user_and_socket(server, ask):
    server.start("--requirepass", "sesame-open", "--databases", "16")
    fill(server.client(password="sesame-open", db=3))
    client = server.client(password="sesame-open")
    client.acl_setuser(
        "worker",
        enabled=True,
        passwords=["+open-sesame"],
        keys=["*"],
        categories=["+@all", "-@admin", "-@dangerous"],
        commands=["+info"],
    )
    assert_told(ask(f"redis://:sesame-open@127.0.0.1:{server.port}/3"))
    assert_told(ask(f"redis://worker:open-sesame@127.0.0.1:{server.port}/3"))
    assert_told(ask(f"unix://worker:open-sesame@{server.socket}?db=3"))
    for wrong in (f"redis://:wrong-word@127.0.0.1:{server.port}/3", f"redis://127.0.0.1:{server.port}/3"):
        with pytest.raises(CommandExecutionError, match="refuses the login|answers: Authentication required") as err:
            ask(wrong).beats("app")
        assert "wrong-word" not in str(err.value)


def test_it_is_asked_by_tls(server, ask, open_folder):
    server.start()
    fill(server.client())
    key, certificate = server.folder / "key.pem", server.folder / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate, *subject],
        check=True, capture_output=True,
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=serve_tls, args=(listener, server.port, key, certificate), daemon=True).start()
    assert_told(ask(f"rediss://127.0.0.1:{port}/0", SSL_CERT_FILE=str(certificate)))
    with pytest.raises(CommandExecutionError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(f"rediss://127.0.0.1:{port}/0").beats("app")


def serve_tls(listener: socket.socket, target: int, key: Path, certificate: Path) -> None:
    """Take TLS off connections and pass them on, as a Redis with `tls-port` would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    while True:
        raw, _ = listener.accept()
        try:
            inside = context.wrap_socket(raw, server_side=True)
        except OSError:
            continue
        outside = socket.create_connection(("127.0.0.1", target))
        for source, sink in ((inside, outside), (outside, inside)):
            threading.Thread(target=pump, args=(source, sink), daemon=True).start()


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    finally:
        sink.close()


def test_jobs_are_found_where_they_are(server, ask):
    server.start()
    fill(server.client())
    module = ask(f"redis://127.0.0.1:{server.port}/0")
    jids = [letter * 24 for letter in "abcd"]
    assert module.find("app", jids, ["default"], []) == {
        "a" * 24: "pushed back",
        "b" * 24: "pushed back",
        "c" * 24: "retry",
    }
    # What a process that has ended said of its work is no place.
    assert "a" * 24 not in module.find("app", jids, ["default"], ["web1:7:abc"])


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda client: client.config_set("maxmemory", 1), "is full, it has reached its maxmemory"),
        (lambda client: client.replicaof("127.0.0.1", 9), "is a replica and takes no writes"),
        (lambda client: client.config_set("requirepass", "x"), "Authentication required|refuses the login"),
        (lambda client: client.shutdown(nosave=True), "cannot be reached: is it up?"),
    ],
    ids=["full", "read-only", "password", "down"],
)
def test_a_redis_that_takes_no_job_back_says_why(server, ask, break_it, sentence):
    server.start()
    module = ask(f"redis://127.0.0.1:{server.port}/0")
    assert module.refusal("app") == ""
    break_it(server.client())
    assert re.search(sentence, module.refusal("app"))


def test_a_user_who_may_not_write_the_probe_says_nothing_of_sidekiqs_keys(server, ask):
    server.start()
    server.client().acl_setuser("worker", enabled=True, passwords=["+x"], keys=["queue:*"], categories=["+@all"])
    assert ask(f"redis://worker:x@127.0.0.1:{server.port}/0").refusal("app") == ""


def test_a_redis_that_hangs_is_told_within_its_budget(server, ask):
    server.start()
    module = ask(f"redis://127.0.0.1:{server.port}/0")
    os.kill(server.process.pid, signal.SIGSTOP)
    begun = time.monotonic()
    assert module.refusal("app") == "The Redis of app did not answer within 3 s"
    assert time.monotonic() - begun < 5
    os.kill(server.process.pid, signal.SIGCONT)


def test_a_redis_that_loads_its_data_is_told(server, ask):
    server.start()
    client = server.client()
    for number in range(2000):
        client.set(f"k{number}", "x")
    client.save()
    client.shutdown(nosave=True)
    server.process.wait(10)
    server.start("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
    assert (
        ask(f"redis://127.0.0.1:{server.port}/0").refusal("app")
        == "The Redis of app still loads its data: wait until it serves"
    )


def test_a_server_says_its_release_and_its_clock(server, ask):
    server.start()
    module = ask(f"redis://127.0.0.1:{server.port}/0")
    answer = module.server("app")
    assert (answer["flavor"], answer["version"]) == ("redis", "7.0.15") and abs(answer["offset"]) < 1
    server.client().acl_setuser("little", enabled=True, passwords=["+sesame"], commands=["+ping"])
    module = ask(f"redis://little:sesame@127.0.0.1:{server.port}/0")
    assert module.server("app") == {"flavor": "", "version": "", "offset": None}
    with pytest.raises(CommandExecutionError, match="refuses the login of app") as raised:
        ask(f"redis://little:open@127.0.0.1:{server.port}/0").server("app")
    assert ":open@" not in str(raised.value)


def test_without_the_package_a_connection_is_tried(server, ask, monkeypatch):
    server.start()
    empty = {"flavor": "", "version": "", "offset": None}
    for url in (f"redis://:sesame@127.0.0.1:{server.port}/0", f"unix://{server.socket}"):
        module = ask(url)
        monkeypatch.setattr(module, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
        assert module.server("app") == empty
    for url, place in (("redis://:sesame@127.0.0.1:1/0", "127.0.0.1:1"), ("unix:///no/such.sock", "/no/such.sock")):
        with pytest.raises(CommandExecutionError, match=f"cannot be reached: is it up.*{place}") as raised:
            ask(url).server("app")
        assert "sesame" not in str(raised.value)
