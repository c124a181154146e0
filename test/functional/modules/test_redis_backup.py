"""The program that backs Redis up, with a real server: what it copies, and what never becomes a backup."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time

import pytest
import redis

SECRET = 'two words "and" \\ ü'


class Server:
    """A server of nobody's with a redis.conf, and the program called for it."""

    def __init__(self, program, build, folder):
        self.program, self.build, self.folder, self.process = program, build, folder, None
        self.data, self.backups, self.config = folder / "data", folder / "backups", folder / "redis.conf"
        for path, mode in ((self.data, 0o700), (self.backups, 0o700)):
            path.mkdir()
            path.chmod(mode)
        os.chown(self.data, 65534, 65534)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(self, *lines: str, password: str = "") -> redis.Redis:
        base = ["bind 127.0.0.1", f"port {self.port}", f"dir {self.data}", "logfile log", *lines]
        quoted = password.replace("\\", "\\\\").replace('"', '\\"')
        self.config.write_text("\n".join([*base, *([f'requirepass "{quoted}"'] if password else [])]) + "\n")
        self.config.chmod(0o644)
        argv = [str(self.build / "current/bin/redis-server"), str(self.config)]
        self.process = subprocess.Popen(argv, user=65534, group=65534, extra_groups=[], cwd=self.data)
        self.client = redis.Redis(port=self.port, password=password or None, decode_responses=True)
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(redis.ConnectionError):
                self.client.ping()
                return self.client
            assert time.monotonic() < until and self.process.poll() is None
            time.sleep(0.02)

    def back_up(self, capsys, keep: int = 3) -> tuple[int, str]:
        """Run the program; returns its exit status and what it said."""
        check = f"--check={self.build}/current/bin/redis-check-rdb"
        words = ["backup", f"--config={self.config}", f"--dir={self.backups}", f"--keep={keep}", check]
        capsys.readouterr()
        code = self.program.main([*words, "--user=nobody", "--group=nogroup"])
        said = capsys.readouterr()
        return code, said.out or said.err

    def names(self) -> list[str]:
        return sorted(os.listdir(self.backups))

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(load, redis_build, open_folder, request, monkeypatch):
    """A server whose program is loaded with locks in the test's own folder."""
    program = load("redis_sidekiq/redis/files/redis_backup.py")
    folder = open_folder / f"backup-{abs(hash(request.node.nodeid)):x}"
    folder.mkdir()
    folder.chmod(0o755)
    monkeypatch.setattr(program, "LOCKS", str(folder / "locks"))
    made, umask = Server(program, redis_build, folder), os.umask(0o022)
    yield made
    made.stop()
    os.umask(umask)  # the program sets its own


def test_a_backup_is_what_the_server_has_now(server, capsys):
    client = server.start('save ""', "appendonly yes", password=SECRET)
    client.mset({f"key:{number}": "x" * 100 for number in range(1000)})
    code, said = server.back_up(capsys)
    record = json.loads(said)
    assert code == 0 and record["keys"] == 1000 and SECRET not in said
    assert (server.data / "dump.rdb").exists()  # not read at a start that reads the AOF
    info = os.stat(record["path"])
    assert (info.st_size, info.st_mode & 0o777, info.st_uid) == (record["bytes"], 0o640, 0)
    client.set("one", "more")
    assert json.loads(server.back_up(capsys)[1])["keys"] == 1001


def test_a_snapshot_that_nobody_else_asked_for_goes_again(server, capsys):
    client = server.start('save ""', "appendonly no")
    client.set("a", "1")
    assert json.loads(server.back_up(capsys)[1])["keys"] == 1
    assert not (server.data / "dump.rdb").exists() and len(server.names()) == 1


def test_the_next_one_takes_it_away_after_a_cut(server, capsys, monkeypatch):
    client = server.start('save ""', "appendonly no")
    client.set("a", "1")

    def cut(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(server.program, "open_regular", cut)
        server.back_up(capsys)
    assert (server.data / "dump.rdb").exists()
    assert server.back_up(capsys)[0] == 0
    assert not (server.data / "dump.rdb").exists() and len(server.names()) == 1


def test_one_that_was_there_before_stays(server, capsys):
    client = server.start('save ""', "appendonly no")
    client.save()
    assert server.back_up(capsys)[0] == 0 and (server.data / "dump.rdb").exists()


def broken(path):
    with open(path, "r+b") as stream:
        stream.seek(2000)
        stream.write(b"XXXX")


def emptied(path):
    os.truncate(path, 0)


def a_link(path):
    os.rename(path, path + ".away")
    os.symlink("/etc/passwd", path)


def a_pipe(path):
    os.unlink(path)
    os.mkfifo(path)


def not_a_snapshot(path):
    with open(path, "w") as stream:
        stream.write("root:x:0:0\n")


@pytest.mark.parametrize("what", [broken, emptied, a_link, a_pipe, not_a_snapshot])
def test_what_is_no_whole_snapshot_becomes_no_backup(server, capsys, monkeypatch, what):
    client = server.start()
    client.mset({f"key:{number}": "x" * 100 for number in range(1000)})
    assert server.back_up(capsys, keep=1)[0] == 0
    before, save = server.names(), server.program.save

    def saved(*words):
        save(*words)
        what(str(server.data / "dump.rdb"))

    monkeypatch.setattr(server.program, "save", saved)
    code, said = server.back_up(capsys, keep=1)
    assert code == 1 and ("does not accept" in said or "no regular file" in said or "Cannot read" in said), said
    assert server.names() == before and "root:x" not in said


def test_a_disk_that_is_full_in_the_middle_leaves_the_old_ones(server, capsys):
    client = server.start()
    client.mset({f"key:{number}": os.urandom(500).hex() for number in range(1000)})
    assert server.back_up(capsys, keep=1)[0] == 0
    before, limit = server.names(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        code, said = server.back_up(capsys, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 1 and "File too large" in said and server.names() == before
    assert server.back_up(capsys, keep=1)[0] == 0 and len(server.names()) == 1


def test_a_snapshot_that_fails_leaves_the_old_ones(server, capsys):
    client = server.start()
    client.set("a", "1")
    assert server.back_up(capsys, keep=1)[0] == 0
    before = server.names()
    os.chown(server.data, 0, 0)
    code, said = server.back_up(capsys, keep=1)
    assert code == 1 and "could not write its snapshot" in said and server.names() == before


def test_one_under_way_is_waited_for_and_ours_is_newer(server, capsys):
    client = server.start("rdb-key-save-delay 200")
    client.mset({f"key:{number}": "1" for number in range(2000)})
    client.bgsave()
    client.set("later", "1")
    assert json.loads(server.back_up(capsys)[1])["keys"] == 2001


def test_no_server_and_another_password_are_said_so(server, capsys):
    server.start(password=SECRET)
    server.config.write_text(server.config.read_text().replace("two", "three"))
    code, said = server.back_up(capsys)
    assert code == 1 and "does not let in" in said and "words" not in said
    server.stop()
    code, said = server.back_up(capsys)
    assert code == 1 and "No Redis answers" in said and server.names() == []


def test_data_that_lie_elsewhere_than_the_config_says_are_not_looked_for(server, capsys):
    client = server.start()
    other = server.folder / "other"
    other.mkdir()
    os.chown(other, 65534, 65534)
    server.config.write_text(server.config.read_text().replace(f"dir {server.data}", f"dir {other}"))
    client.set("a", "1")
    code, said = server.back_up(capsys)
    assert code == 1 and "elsewhere" in said and server.names() == []
