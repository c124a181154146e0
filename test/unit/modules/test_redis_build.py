"""The pure parts of _modules/redis_build.py: names, what a record says, what is verified, copied and linked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

HASH = "sha256=" + "0" * 64


@pytest.fixture
def redis_build(load, whole_files):
    """The module, with the accounts of this host."""
    module = load("_modules/redis_build.py")
    module.__salt__ = {"redis_sandbox.account": load("_modules/redis_sandbox.py").account, **whole_files}
    return module


def test_a_builds_name_follows_what_it_is_made_of_and_nothing_else(redis_build):
    wish = {"version": "8.0.6", "source_hash": HASH, "malloc": "jemalloc", "tls": False, "systemd": True}
    name = redis_build.name(**wish)
    assert re.fullmatch(r"8\.0\.6-[0-9a-f]{10}", name)
    assert redis_build.name(**{**wish, "source_hash": HASH.upper()}) == name
    others = [
        {"version": "8.0.5"},
        {"source_hash": HASH[:-1] + "1"},
        {"malloc": "libc"},
        {"tls": True},
        {"systemd": False},
        {"flavor": "valkey"},
    ]
    assert len({name, *(redis_build.name(**{**wish, **other}) for other in others)}) == 7
    assert redis_build.name(**{**wish, "flavor": "valkey"}) == f"valkey-{name}"
    with pytest.raises(SaltInvocationError, match="redis or valkey"):
        redis_build.name(**{**wish, "flavor": "keydb"})


@pytest.fixture
def prefix(redis_build, tmp_path):
    """A prefix with one build, its record and six programs."""
    folder = tmp_path / "7.0.15-abc"
    (folder / "bin").mkdir(parents=True)
    for program in redis_build.PROGRAMS["redis"]:
        (folder / "bin" / program).write_text("program")
        (folder / "bin" / program).chmod(0o755)
    programs = {program: {"size": 7, "sha256": ""} for program in redis_build.PROGRAMS["redis"]}
    (folder / "build.json").write_text(json.dumps({"build": "7.0.15-abc", "programs": programs}))
    return tmp_path


def spoil(folder, how):
    program = folder / "bin" / "redis-server"
    if how == "no record":
        (folder / "build.json").unlink()
    elif how == "half a record":
        (folder / "build.json").write_text((folder / "build.json").read_text()[:40])
    elif how == "record of another":
        (folder / "build.json").write_text((folder / "build.json").read_text().replace("abc", "abd"))
    elif how == "no program":
        program.unlink()
    elif how == "half a program":
        program.write_text("pro")
    elif how == "a link":
        program.unlink()
        program.symlink_to("redis-cli")
    elif how == "writable":
        program.chmod(0o777)
    elif how == "of nobody":
        os.chown(program, 65534, 65534)


@pytest.mark.parametrize(
    "how",
    [
        "no record",
        "half a record",
        "record of another",
        "no program",
        "half a program",
        "a link",
        "writable",
        "of nobody",
    ],
)
def test_what_is_not_as_it_was_installed_is_no_build(redis_build, prefix, how):
    assert [record["build"] for record in redis_build.builds(str(prefix))] == ["7.0.15-abc"]
    spoil(prefix / "7.0.15-abc", how)
    assert redis_build.builds(str(prefix)) == []


def test_a_hidden_folder_is_a_leftover_and_no_build(redis_build, prefix):
    (prefix / "7.0.15-abc").rename(prefix / ".build-x")
    (prefix / "current").symlink_to("7.0.15-abc")
    facts = redis_build.facts("7.0.15", HASH, str(prefix))
    assert (facts["present"], facts["current"], facts["leftovers"]) == (False, "7.0.15-abc", [".build-x"])
    assert redis_build.builds(str(prefix)) == []


def test_builds_are_removed_and_files_of_others_stay(redis_build, prefix, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_build, "_LOCK_DIR", str(tmp_path / "lock"))
    (prefix / "current").symlink_to("7.0.15-abc")
    (prefix / ".build-x").mkdir()
    (prefix / "mine").mkdir()
    redis_build.remove(str(prefix))
    assert sorted(os.listdir(prefix)) == ["lock", "mine"]
    redis_build.remove(str(prefix / "not there"))


@pytest.mark.parametrize("name", ["sha384", "sha512"])
def test_longer_digests_do_as_well(redis_build, name):
    redis_build._verify(io.BytesIO(b"tar"), "/t", f"{name}={hashlib.new(name, b'tar').hexdigest()}")


@pytest.fixture
def shelf(redis_build, prefix):
    """``shelf(*names)``: builds beside the first one, each younger than the one before."""

    def make(*names):
        (prefix / "7.0.15-abc" / "build.json").unlink()
        for number, name in enumerate(("7.0.15-abc", *names)):
            folder = prefix / name
            if not folder.exists():
                shutil.copytree(prefix / "7.0.15-abc", folder)
            programs = {program: {"size": 7, "sha256": ""} for program in redis_build.PROGRAMS["redis"]}
            record = {"build": name, "built": f"2026-01-0{number + 1}T00:00:00Z", "programs": programs}
            (folder / "build.json").write_text(json.dumps(record))
        return str(prefix)

    return make


def test_the_newest_builds_stay_beside_the_wished_one(redis_build, shelf):
    wished = redis_build.name("8.0.6", HASH)
    where = shelf("9.9.9-b", wished, "1.1.1-c")

    def spare(keep):
        return redis_build.spare(keep, "8.0.6", HASH, where)

    assert [record["rdb_version"] for record in redis_build.builds(where)] == [None] * 4
    assert (spare(3), spare(2), spare(1)) == ([], ["7.0.15-abc"], ["7.0.15-abc", "9.9.9-b"])


@pytest.mark.parametrize("link", ["current", "instance-6379"])
def test_a_build_that_a_link_leads_to_stays(redis_build, shelf, link, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_build, "_LOCK_DIR", str(tmp_path / "lock"))
    where = shelf("9.9.9-b", "1.1.1-c")
    os.symlink("7.0.15-abc", os.path.join(where, link))
    assert redis_build.spare(1, "8.0.6", HASH, where) == ["9.9.9-b"]
    assert redis_build.spare(1, "8.0.6", HASH, where, ahead=True) == ["7.0.15-abc", "9.9.9-b"]
    with pytest.raises(CommandExecutionError, match="is in use"):
        redis_build.discard("7.0.15-abc", where)
    redis_build.discard("9.9.9-b", where)
    redis_build.discard("9.9.9-b", where)
    assert [record["build"] for record in redis_build.builds(where)] == ["1.1.1-c", "7.0.15-abc"]


def test_a_build_that_a_process_executes_stays(redis_build, shelf):
    where = shelf("9.9.9-b")
    program = os.path.join(where, "7.0.15-abc", "bin", "redis-server")
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "60"])
    try:
        assert "7.0.15-abc" in redis_build._used(where)
    finally:
        process.kill()
        process.wait()
    assert "7.0.15-abc" not in redis_build._used(where)


@pytest.mark.parametrize(
    ("head", "version"), [(b"REDIS0011\xfa", 11), (b"REDIS0009", 9), (b"VALKEY080\xfa", 80), (b"REDIS00", None)]
)
def test_a_snapshot_says_its_version(redis_build, tmp_path, head, version):
    path = tmp_path / "dump.rdb"
    path.write_bytes(head)
    if version:
        assert redis_build._rdb_version(str(path)) == version
        return
    for spoil in (lambda: None, lambda: path.unlink() or os.mkfifo(path)):
        spoil()
        with pytest.raises(CommandExecutionError, match="do not begin like"):
            redis_build._rdb_version(str(path))
    path.unlink()
    path.symlink_to("/etc/shadow")
    with pytest.raises(OSError):
        redis_build._rdb_version(str(path))


@pytest.mark.parametrize("form", ["{}", "sha256={}", "SHA256={}"])
def test_a_tarball_is_known_by_its_digest(redis_build, form):
    digest = hashlib.sha256(b"tar").hexdigest()
    copy = io.BytesIO()
    redis_build._verify(io.BytesIO(b"tar"), "/t", form.format(digest.upper()), copy)
    assert copy.getvalue() == b"tar"
    with pytest.raises(CommandExecutionError) as caught:
        redis_build._verify(io.BytesIO(b"tar!"), "https://me:sesame@example.org/t", form.format(digest))
    assert digest in str(caught.value) and hashlib.sha256(b"tar!").hexdigest() in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("digest", ["crc=00", "md5=d41d8cd98f00b204e9800998ecf8427e", "sha1=da39a3ee"])
def test_a_digest_that_proves_nothing_is_refused(redis_build, digest):
    with pytest.raises(SaltInvocationError, match="no digest trusted here"):
        redis_build._verify(io.BytesIO(b""), "/t", digest)


def test_a_tarball_on_this_host_is_looked_at_and_no_other(redis_build, tmp_path):
    path = tmp_path / "t.tar.gz"
    path.write_bytes(b"tar")
    good = "sha256=" + hashlib.sha256(b"tar").hexdigest()
    assert "digest wanted" in redis_build.source_check(str(path), good)
    assert "digest wanted" in redis_build.source_check(f"file://{path}", good)
    with pytest.raises(CommandExecutionError, match="is not the one wanted"):
        redis_build.source_check(str(path), HASH)
    with pytest.raises(CommandExecutionError, match="No such file"):
        redis_build.source_check(str(path) + "x", HASH)
    assert "fetched and verified then" in redis_build.source_check("https://example.org/t.tar.gz", HASH)


def test_the_compilers_words_have_the_error_and_the_end(redis_build):
    noise = [f"    CC file{number}.o" for number in range(100)]
    error = ["server.c: In function 'main':", "server.c:7:1: error: unknown type name 'this'", "    7 | this is not C;"]
    text = redis_build._compiler_words(
        "", "\n".join([*noise, *error, *noise, "make: *** [Makefile:1: server.o] Error 1"])
    )
    assert text.startswith("server.c: In function 'main':\nserver.c:7:1: error: unknown type")
    assert text.endswith("Error 1")
    assert len(text.splitlines()) < 40
    assert redis_build._compiler_words("", "a\nb") == "a\nb"
    assert redis_build._compiler_words("out", "") == "out"
    few = "x.c:1: error: no\nmake: *** Error 1"
    assert redis_build._compiler_words("", few) == few


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "no file"])
def test_only_regular_files_are_installed(redis_build, tmp_path, kind):
    source = tmp_path / "redis-server"
    if kind == "link":
        source.symlink_to("/etc/shadow")
    elif kind == "folder":
        source.mkdir()
    elif kind == "pipe":
        os.mkfifo(source)
    with pytest.raises(CommandExecutionError, match="so nothing of it is installed"):
        redis_build._copy_program(str(source), str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_a_linked_source_folder_is_refused(redis_build, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "src").symlink_to("elsewhere")
    with pytest.raises(CommandExecutionError, match="made a link"):
        redis_build._install(str(tmp_path / "src"), str(tmp_path / "staged"), "redis")


def test_root_does_not_compile(redis_build, tmp_path):
    with pytest.raises(SaltInvocationError, match="not compiled as root"):
        redis_build.make("7.0.15", "/t", HASH, prefix=str(tmp_path), user="root")


# Links --------------------------------------------------------------------------------------------------------------


def test_links_of_others_are_not_touched(redis_build, tmp_path):
    for name in redis_build.PROGRAMS["redis"][:2]:
        (tmp_path / name).symlink_to(f"/opt/redis/current/bin/{name}")
    (tmp_path / "redis-sentinel").symlink_to("/opt/redis-of-mine/redis-sentinel")
    wrong = redis_build.links(str(tmp_path))
    assert len(wrong) == 4
    assert wrong[str(tmp_path / "redis-sentinel")]["old"] == "a file of others"
    assert len(redis_build.linked(str(tmp_path))) == 2
    with pytest.raises(CommandExecutionError, match="redis-sentinel: not made by this formula"):
        redis_build.link(str(tmp_path))
    (tmp_path / "redis-sentinel").unlink()
    redis_build.link(str(tmp_path))
    assert redis_build.links(str(tmp_path)) == {}
    (tmp_path / "redis-cli").unlink()
    (tmp_path / "redis-cli").write_text("mine")
    redis_build.unlink(str(tmp_path))
    assert os.listdir(tmp_path) == ["redis-cli"]


def test_programs_installed_by_hand_give_way_and_are_kept(redis_build, tmp_path):
    kept = []
    redis_build.__salt__["redis_instances.keep"] = kept.append
    (tmp_path / "redis-server").write_bytes(b"\x7fELF")
    (tmp_path / "redis-sentinel").symlink_to("redis-server")  # as make install leaves it
    wrong = redis_build.links(str(tmp_path))
    assert [wrong[str(tmp_path / name)]["old"] for name in ("redis-server", "redis-sentinel")] == [
        "installed by hand"
    ] * 2
    assert redis_build.linked(str(tmp_path)) == []
    redis_build.link(str(tmp_path))
    assert redis_build.links(str(tmp_path)) == {} and kept == [str(tmp_path / "redis-server")]


def test_valkey_is_linked_under_both_names(redis_build, tmp_path):
    redis_build.link(str(tmp_path), flavor="valkey")
    assert redis_build.links(str(tmp_path), flavor="valkey") == {}
    for name in ("redis-cli", "valkey-cli"):
        assert os.readlink(tmp_path / name) == "/opt/redis/current/bin/valkey-cli"
    assert len(redis_build.linked(str(tmp_path))) == 12
    wrong = redis_build.links(str(tmp_path))
    assert wrong[str(tmp_path / "valkey-cli")] == {"old": "/opt/redis/current/bin/valkey-cli", "new": ""}
    redis_build.link(str(tmp_path))
    assert redis_build.links(str(tmp_path)) == {} and len(os.listdir(tmp_path)) == 6


def test_a_server_is_found_whatever_its_flavor(redis_build, tmp_path):
    assert redis_build.binary(str(tmp_path)) == f"{tmp_path}/current/bin/redis-server"
    (tmp_path / "current/bin").mkdir(parents=True)
    (tmp_path / "current/bin/valkey-server").touch()
    assert redis_build.binary(str(tmp_path)) == f"{tmp_path}/current/bin/valkey-server"


def test_a_full_disk_is_told_of_a_failed_build(redis_build, tmp_path):
    assert redis_build._room_for_build("error: expected ';'", str(tmp_path)) == "error: expected ';'"
    words = redis_build._room_for_build("tar: x: Cannot write: No space left on device", str(tmp_path))
    assert words.startswith(f"{tmp_path} is full: a build needs about 400 MB there") and words.endswith("on device")


def test_a_build_that_somebody_changed_is_not_shared(redis_build, prefix, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_build, "_LOCK_DIR", str(tmp_path / "lock"))
    redis_build.__grains__ = {"oscodename": "bookworm", "osarch": "amd64"}
    record = json.loads((prefix / "7.0.15-abc" / "build.json").read_text())
    digest = hashlib.sha256(b"program").hexdigest()
    record["programs"] = {program: {"size": 7, "sha256": digest} for program in record["programs"]}
    (prefix / "7.0.15-abc" / "build.json").write_text(json.dumps(record))
    packed = redis_build.pack("7.0.15-abc", str(tmp_path / "packs"), str(prefix))
    assert packed["path"] == f"{tmp_path}/packs/7.0.15-abc-bookworm-amd64.tar.gz"
    (prefix / "7.0.15-abc" / "bin" / "redis-cli").write_text("malware")
    with pytest.raises(CommandExecutionError, match="redis-cli is not as it was installed"):
        redis_build.pack("7.0.15-abc", str(tmp_path / "packs"), str(prefix))
    with pytest.raises(CommandExecutionError, match="no build that is current"):
        redis_build.pack(folder=str(tmp_path / "packs"), prefix=str(prefix))
    assert os.listdir(tmp_path / "packs") == ["7.0.15-abc-bookworm-amd64.tar.gz"]
