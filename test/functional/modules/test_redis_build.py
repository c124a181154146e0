"""Redis built and started for real, in folders of the tests' own: what a build may do, and what a failed one leaves."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from test.functional.conftest import REDIS


@pytest.fixture
def build(modules, prefix, redis_flags):
    """Build what is given in the test's own prefix, as nobody."""

    def call(version=REDIS, **wish):
        return modules.redis_build.make(version, prefix=str(prefix), user="nobody", **{**redis_flags, **wish})

    return call


def processes(word: str) -> list[int]:
    """The processes with this word on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as stream:
            if word in stream.read().split("\0"):
                found.append(int(pid))
    return found


def wait_for(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def nothing_is_left(prefix) -> bool:
    return not prefix.exists() or os.listdir(prefix) == []


# A build ------------------------------------------------------------------------------------------------------------


def test_a_build_is_roots_runs_and_has_a_record(modules, redis_build, redis_tarball, redis_flags):
    record = modules.redis_build.builds(str(redis_build))[0]
    assert {
        "version": REDIS,
        "digest": redis_tarball["source_hash"],
        "rdb_version": 10,
        **redis_flags,
    }.items() <= record.items()
    folder = redis_build / record["build"]
    for program, facts in record["programs"].items():
        path = folder / "bin" / program
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"]
        assert (path.stat().st_uid, path.stat().st_mode & 0o7777) == (0, 0o755)
    assert sorted(os.listdir(folder / "bin")) == sorted([*record["programs"], "valkey-server"])
    assert os.readlink(folder / "bin/valkey-server") == "redis-server"  # for an instance that comes back from Valkey
    assert sorted(os.listdir(redis_build)) == sorted([record["build"], "current"])
    said = subprocess.check_output([redis_build / "current/bin/redis-server", "--version"], text=True)
    assert f"v={REDIS}" in said and "malloc=libc" in said


def test_a_build_that_is_there_is_not_compiled_again(modules, redis_build, redis_tarball, redis_flags):
    wish = {**redis_tarball, **redis_flags, "source": "/no/such/file"}
    record = modules.redis_build.make(REDIS, **wish, prefix=str(redis_build), user="nobody")
    assert (record["compiled"], record["seconds"] < 5) == (False, True)


def test_a_build_is_beside_the_others_until_it_is_used(modules, build, make_tarball, prefix):
    use = {"prefix": str(prefix), "user": "nobody"}
    first, second = make_tarball(), make_tarball(redis_cli="cp ../src/Makefile $@")
    one = build(**first)["build"]
    assert modules.redis_build.use(one, **use) == {"old": "", "current": one}
    two = build(**second)["build"]
    assert os.readlink(prefix / "current") == one
    assert modules.redis_build.use(two, **use) == {"old": one, "current": two}
    assert build(**first)["compiled"] is False
    assert modules.redis_build.use(one, **use) == {"old": two, "current": one}
    assert os.readlink(prefix / "current") == one


def test_a_build_that_does_not_start_any_more_is_not_used(modules, build, make_tarball, prefix):
    use = {"prefix": str(prefix), "user": "nobody"}
    good, bad = build(**make_tarball())["build"], build(**make_tarball(redis_cli="cp ../src/Makefile $@"))["build"]
    modules.redis_build.use(good, **use)
    program = prefix / bad / "bin" / "redis-server"
    with open(program, "r+b") as stream:
        stream.write(b"no ELF")
    with pytest.raises(CommandExecutionError, match="does not start"):
        modules.redis_build.use(bad, **use)
    with pytest.raises(CommandExecutionError, match="There is no build"):
        modules.redis_build.use("7.0.15-mine", **use)
    assert os.readlink(prefix / "current") == good


def test_a_folder_without_a_record_is_built_anew(build, make_tarball, prefix):
    wish = make_tarball()
    name = build(**wish)["build"]
    (prefix / name / "build.json").unlink()
    assert build(**wish)["compiled"] is True
    assert os.listdir(prefix) == [name]


def test_valkey_is_built_by_its_own_names_and_version(modules, build, make_tarball, prefix):
    tarball = make_tarball("valkey")
    version = "0"  # what the renamed line of INFO says
    with pytest.raises(CommandExecutionError, match=f"its version is '{version}', wanted is '8.1.1'"):
        build("8.1.1", **tarball, flavor="valkey")
    with pytest.raises(CommandExecutionError, match="Redis 7.0.15 does not compile"):
        build(**tarball)
    name = build(version, **tarball, flavor="valkey")["build"]
    record = modules.redis_build.builds(str(prefix))[0]
    assert (record["build"], record["flavor"], record["rdb_version"]) == (name, "valkey", 10)
    assert name.startswith("valkey-0-") and "valkey-sentinel" in record["programs"]
    assert modules.redis_build.use(name, prefix=str(prefix), user="nobody")["current"] == name
    assert modules.redis_build.binary(str(prefix)).endswith("/current/bin/valkey-server")


# Builds that hosts share ---------------------------------------------------------------------------------------------


@pytest.fixture
def shared(modules, build, make_tarball, prefix):
    """A build that was packed and is gone: its tarball's settings, and what ``pack`` returned."""
    wish = make_tarball()
    name = build(**wish)["build"]
    packed = modules.redis_build.pack(name, folder=str(prefix.parent), prefix=str(prefix))
    again = modules.redis_build.pack(name, folder=str(prefix.parent / "again"), prefix=str(prefix))
    assert packed["hash"] == again["hash"]
    assert packed["name"].startswith(f"{name}-") and packed["path"].endswith(f"/{packed['name']}.tar.gz")
    programs = modules.redis_build.builds(str(prefix))[0]["programs"]
    modules.redis_build.discard(name, str(prefix))
    return {"wish": wish, "packed": packed, "programs": programs, "build": name}


def test_a_shared_build_is_taken_and_nothing_is_compiled(modules, build, shared, prefix):
    packed = shared["packed"]
    wish = {**shared["wish"], "source": "/no/such/file", "pack": packed["path"], "pack_hash": packed["hash"]}
    record = build(**wish)
    assert (record["build"], record["compiled"], record["taken"]) == (shared["build"], False, True)
    found = modules.redis_build.builds(str(prefix))[0]
    assert found["programs"] == shared["programs"] and found["pack"] == packed["path"]
    folder = prefix / shared["build"] / "bin"
    for program, facts in found["programs"].items():
        assert hashlib.sha256((folder / program).read_bytes()).hexdigest() == facts["sha256"]
    assert (folder / "redis-server").stat().st_ino == (folder / "redis-sentinel").stat().st_ino
    assert build(**wish)["taken"] is False


@pytest.mark.parametrize("how", ["tampered", "other flags", "other distribution", "no pack", "cut short"])
def test_a_shared_build_that_is_not_the_one_wanted_is_not_taken(modules, build, shared, prefix, how):
    path, wish = Path(shared["packed"]["path"]), dict(shared["wish"])
    content, version = path.read_bytes(), REDIS
    words = {"tampered": "is not the one wanted", "other flags": "its version is", "other distribution": "its os is"}
    if how == "tampered":
        path.write_bytes(content + b"x")
    elif how == "other flags":
        version = "7.0.14"
    elif how == "other distribution":
        with tarfile.open(path) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}
        record = json.loads(files["build.json"]) | {"os": "sarge"}
        files["build.json"] = json.dumps(record).encode()
        with tarfile.open(path, "w:gz") as archive:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text))
    elif how == "no pack":
        path.write_bytes(Path(wish["source"]).read_bytes())
    elif how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    digest = hashlib.sha256(content if how == "tampered" else path.read_bytes()).hexdigest()
    with pytest.raises(CommandExecutionError, match=words.get(how, "holds no build")):
        build(version, **wish, pack=str(path), pack_hash=f"sha256={digest}")
    assert nothing_is_left(prefix)


# What a build may not do --------------------------------------------------------------------------------------------


def test_a_tarball_that_was_tampered_with_is_not_unpacked(build, make_tarball, prefix):
    wish = make_tarball()
    with open(wish["source"], "ab") as stream:
        stream.write(b"x")
    found = hashlib.sha256(Path(wish["source"]).read_bytes()).hexdigest()
    with pytest.raises(CommandExecutionError) as caught:
        build(**wish)
    assert found in str(caught.value) and wish["source_hash"][len("sha256=") :] in str(caught.value)
    assert nothing_is_left(prefix)


def test_a_compiler_that_fails_is_quoted_and_nothing_is_left(modules, build, make_tarball, prefix):
    good = build(**make_tarball())["build"]
    modules.redis_build.use(good, prefix=str(prefix), user="nobody")
    bad = make_tarball(redis_server="echo 'this is not C;' > server.c && $(CC) -c server.c -o $@")
    with pytest.raises(CommandExecutionError, match=r"(?s)does not compile.*server\.c:1.*error:"):
        build(**bad)
    assert sorted(os.listdir(prefix)) == sorted([good, "current"])
    assert os.readlink(prefix / "current") == good


def test_a_build_runs_as_nobody_without_network_or_environment(build, make_tarball, monkeypatch):
    monkeypatch.setenv("SECRET", "sesame")
    rule = (
        "(env | grep sesame; id -u; tail -n +3 /proc/net/dev; grep -E 'CapBnd|NoNewPrivs' /proc/self/status) >&2; false"
    )
    with pytest.raises(CommandExecutionError) as caught:
        build(**make_tarball(redis_server=rule))
    said = str(caught.value)
    interfaces = [line for line in said.splitlines() if line.count(" 0") > 10]
    assert "\n65534\n" in said and "sesame" not in said
    assert len(interfaces) == 1 and interfaces[0].strip().startswith("lo:")
    assert "CapBnd:\t0000000000000000" in said and "NoNewPrivs:\t1" in said
    with pytest.raises(CommandExecutionError, match="Permission denied"):
        build(**make_tarball(redis_server="cat /etc/shadow"))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("ln -s /etc/shadow $@", "redis-cli is a link"),
        ("mkdir $@", "redis-cli is no regular file"),
        ("mkfifo $@", "redis-cli is no regular file"),
        ("rm -f $@", "redis-cli cannot be read"),
        ("cd .. && mv src other && ln -s other src", "made a link"),
    ],
)
def test_what_a_build_plants_is_not_installed(build, make_tarball, prefix, rule, words):
    with pytest.raises(CommandExecutionError, match=words):
        build(**make_tarball(redis_cli=rule))
    assert nothing_is_left(prefix)


def test_a_process_that_a_build_leaves_behind_dies_with_it(build, make_tarball, redis_build):
    rule = f"setsid nohup sleep 7654.1 >/dev/null 2>&1 & cp {redis_build}/current/bin/$@ $@"
    build(**make_tarball(redis_cli=rule))
    wait_for(lambda: not processes("7654.1"), 5)


def test_a_tarball_without_redis_is_refused(build, make_tarball, prefix, open_folder):
    wish = make_tarball()
    other = open_folder / "other.tar.gz"
    subprocess.run(["tar", "czf", other, "-C", "/etc", "hostname"], check=True)
    wish = {"source": str(other), "source_hash": "sha256=" + hashlib.sha256(other.read_bytes()).hexdigest()}
    with pytest.raises(CommandExecutionError, match="holds no Redis"):
        build(**wish)
    assert nothing_is_left(prefix)


@pytest.mark.parametrize(
    ("version", "flags", "words"),
    [
        ("7.0.14", {}, "version is '7.0.15', wanted is '7.0.14'"),
        (REDIS, {"malloc": "jemalloc"}, "malloc is 'libc', wanted is 'jemalloc'"),
    ],
)
def test_a_build_that_is_another_than_wanted_is_not_installed(build, make_tarball, prefix, version, flags, words):
    with pytest.raises(CommandExecutionError, match=words):
        build(version, **make_tarball(), **flags)
    assert nothing_is_left(prefix)


def test_a_build_with_or_without_tls_is_not_taken_for_the_other(build, make_tarball, prefix, redis_flags):
    has = redis_flags["tls"]
    with pytest.raises(CommandExecutionError, match=f"tls is {has}, wanted is {not has}"):
        build(REDIS, **make_tarball(), tls=not has)
    assert nothing_is_left(prefix)


def test_a_build_that_does_not_tell_systemd_is_not_installed(build, make_tarball, prefix, redis_build):
    deaf = f"printf '#!/bin/sh\\nunset NOTIFY_SOCKET\\nexec {redis_build}/current/bin/redis-server \"$$@\"\\n' > $@"
    with pytest.raises(CommandExecutionError, match="does not tell systemd when it is ready"):
        build(**make_tarball(redis_server=deaf), systemd=True)
    assert nothing_is_left(prefix)


def test_a_build_that_does_not_start_is_not_installed(build, make_tarball, prefix):
    with pytest.raises(CommandExecutionError, match=r"(?s)does not start: it ended with exit status 3.*no libfoo"):
        build(**make_tarball(redis_server="printf '#!/bin/sh\\necho no libfoo\\nexit 3\\n' > $@"))
    assert nothing_is_left(prefix)


# Runs that are cut off, and runs beside each other ------------------------------------------------------------------


def in_a_process(call) -> int:
    """Run a function in a child process; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException):
        call()
        os._exit(0)
    os._exit(1)


def test_a_killed_build_takes_its_compilers_with_it_and_is_built_again(build, make_tarball, prefix):
    wish = make_tarball(redis_server="sleep 7654.2")
    child = in_a_process(lambda: build(**wish))
    wait_for(lambda: processes("7654.2"))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for(lambda: not processes("7654.2"), 5)
    assert [name for name in os.listdir(prefix) if name.startswith(".build-")]
    assert [build(**make_tarball())["build"]] == os.listdir(prefix)


def test_two_runs_at_once_compile_once(build, make_tarball, prefix, redis_build):
    tally = prefix.parent / "tally"
    tally.mkdir(parents=True)
    tally.chmod(0o777)
    wish = make_tarball(redis_server=f"sleep 1; mktemp {tally}/XXXXXX; cp {redis_build}/current/bin/$@ $@")
    children = [in_a_process(lambda: build(**wish)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(os.listdir(tally)) == 1
    assert build(**wish)["compiled"] is False


# Where a tarball comes from -----------------------------------------------------------------------------------------


@pytest.fixture
def web(make_tarball):
    """A web server on loopback with a tarball; its address, and what the tarball's digest is."""
    wish = make_tarball()
    folder = os.path.dirname(wish["source"])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"source": f"http://127.0.0.1:{server.server_port}/redis.tar.gz", "source_hash": wish["source_hash"]}
    server.shutdown()
    server.server_close()


def test_a_tarball_is_downloaded(build, web, prefix):
    assert build(**web)["compiled"] is True


def test_a_download_of_something_else_is_refused_and_forgotten(build, web, prefix, modules):
    with pytest.raises(CommandExecutionError, match="is not the one wanted"):
        build(source=web["source"], source_hash="sha256=" + "0" * 64)
    assert not modules.cp.is_cached(web["source"])
    assert build(**web)["compiled"] is True


def test_a_download_that_fails_is_a_sentence_without_the_login(build, web, prefix):
    source = web["source"].replace("redis.tar.gz", "missing.tar.gz").replace("http://", "http://me:sesame@")
    with pytest.raises(CommandExecutionError, match="cannot be fetched") as caught:
        build(source=source, source_hash=web["source_hash"])
    assert "sesame" not in str(caught.value)
    assert nothing_is_left(prefix)


def test_records_are_plain_data(modules, redis_build):
    assert json.loads(json.dumps(modules.redis_build.builds(str(redis_build))))
