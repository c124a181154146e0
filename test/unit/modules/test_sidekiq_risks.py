"""The pure parts of _modules/sidekiq_risks.py, and what the kernel says about files below a temporary folder."""

from __future__ import annotations

import os
import pwd
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

NOBODY = pwd.getpwnam("nobody")
PERSON = {"user": "nobody", "uid": NOBODY.pw_uid, "gid": NOBODY.pw_gid, "gids": [NOBODY.pw_gid], "groups": ["nogroup"]}


@pytest.fixture
def sidekiq_risks(load):
    return load("_modules/sidekiq_risks.py")


@pytest.fixture
def folder():
    """A folder of root's that everybody may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="rs-risks-", dir="/opt") as name:
        os.chmod(name, 0o755)
        (Path(name) / "a/b").mkdir(parents=True)
        (Path(name) / "a/b/file").write_text("")
        yield Path(name)


def weak(sidekiq_risks, path: Path) -> str:
    """What could be changed on the way to a path, and how; empty: nothing."""
    way = sidekiq_risks._way_to(str(path))
    place, how, _ = sidekiq_risks._weak_place(PERSON, way, sidekiq_risks._writable(PERSON, set(way)))
    return f"{how} {os.path.relpath(place, path.parents[2])}" if place else ""


def own(path: Path) -> None:
    os.chown(path, NOBODY.pw_uid, -1)


def sticky(path: Path) -> None:
    path.chmod(0o1777)


def acl(path: Path) -> None:
    """Let nobody write, as `setfacl -m u:nobody:rwx` would (acl(5))."""
    rest = 0xFFFFFFFF
    entries = [(0x01, 7, rest), (0x02, 7, NOBODY.pw_uid), (0x04, 5, rest), (0x10, 7, rest), (0x20, 5, rest)]
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


CHANGES = {
    "nothing": (lambda top: None, ""),
    "his file": (lambda top: own(top / "a/b/file"), "owns a/b/file"),
    "a file for all": (lambda top: (top / "a/b/file").chmod(0o666), "may write a/b/file"),
    "his folder": (lambda top: own(top / "a/b"), "owns a/b"),
    "his folder above": (lambda top: own(top / "a"), "owns a"),
    "a folder for all": (lambda top: (top / "a").chmod(0o777), "may write a"),
    "a folder for all, where he only replaces what is his": (lambda top: sticky(top / "a/b"), ""),
    "the same, and it is his": (lambda top: [sticky(top / "a/b"), own(top / "a/b/file")], "may write a/b"),
    "a file for all behind a closed folder": (
        lambda top: [(top / "a/b/file").chmod(0o666), (top / "a/b").chmod(0o700)],
        "",
    ),
    "his group's file": (
        lambda top: [os.chown(top / "a/b/file", 0, NOBODY.pw_gid), (top / "a/b/file").chmod(0o664)],
        "may write a/b/file",
    ),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("kind", CHANGES)
def test_what_somebody_could_change_on_the_way_to_a_file(sidekiq_risks, folder, kind):
    change, found = CHANGES[kind]
    change(folder)
    assert weak(sidekiq_risks, folder / "a/b/file") == found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_acl_counts(sidekiq_risks, folder):
    try:
        acl(folder / "a/b")
    except OSError as err:
        pytest.skip(f"no ACLs here: {err.strerror}")
    assert weak(sidekiq_risks, folder / "a/b/file") == "may write a/b"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_is_not_there_yet_could_be_made(sidekiq_risks, folder):
    assert weak(sidekiq_risks, folder / "a/b/none.d") == ""
    sticky(folder / "a/b")
    assert weak(sidekiq_risks, folder / "a/b/none.d") == "may write a/b"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_links_are_followed_and_are_places_themselves(sidekiq_risks, folder):
    (folder / "a/elsewhere").mkdir()
    (folder / "a/elsewhere/file").write_text("")
    (folder / "a/b/link").symlink_to("../elsewhere/file")
    assert weak(sidekiq_risks, folder / "a/b/link") == ""
    own(folder / "a/elsewhere")
    assert weak(sidekiq_risks, folder / "a/b/link") == "owns a/elsewhere"
    (folder / "a/b/loop").symlink_to("loop")
    assert weak(sidekiq_risks, folder / "a/b/loop") == ""


SHOWN = """\
Id=sidekiq@1.service
User=worker
DynamicUser=no
WorkingDirectory=/srv/app/current
EnvironmentFiles=/etc/sidekiq/sidekiq.env (ignore_errors=no)
ExecStartPreEx={ path=/opt/pre ; argv[]=/opt/pre /opt/list ; flags=privileged ; start_time=[n/a] ; pid=0 }
ExecStartEx={ path=/usr/bin/bundle ; argv[]=/usr/bin/bundle exec ; flags= ; start_time=[n/a] ; pid=0 }
ExecStopEx={ path=/opt/stop ; argv[]=/opt/stop a ; flags=x b ; flags=no-setuid ; start_time=[n/a] ; pid=0 }
FragmentPath=/etc/systemd/system/sidekiq@.service
DropInPaths=/etc/systemd/system/sidekiq@.service.d/a.conf /run/systemd/system/sidekiq@1.service.d/b.conf"""


def things(sidekiq_risks, shown: str) -> set[tuple[str, str]]:
    facts = sidekiq_risks._read_facts(shown)
    return {(thing["what"], thing["path"]) for thing in sidekiq_risks._unit_things(facts)}


def test_what_a_unit_runs_as_root_counts(sidekiq_risks):
    found = things(sidekiq_risks, SHOWN)
    assert {path for what, path in found if what == "program"} == {"/opt/pre", "/opt/list", "/opt/stop"}
    assert {path for what, path in found if what == "unit file"} == {
        "/etc/systemd/system/sidekiq@.service",
        "/etc/systemd/system/sidekiq@.service.d/a.conf",
        "/run/systemd/system/sidekiq@1.service.d/b.conf",
    }
    assert ("drop-in folder", "/etc/systemd/system/sidekiq@.service.d") in found
    assert ("drop-in folder", "/etc/systemd/system/sidekiq@1.service.d") in found
    assert ("environment file", "/etc/sidekiq/sidekiq.env") in found
    assert "folder" not in {what for what, _ in found}


@pytest.mark.parametrize("user", ["User=\n", "User=root\n", "User=0\n"])
def test_a_service_of_roots_own_counts_whole(sidekiq_risks, user):
    found = things(sidekiq_risks, SHOWN.replace("User=worker\n", user))
    assert {("program", "/usr/bin/bundle"), ("folder", "/srv/app/current")} <= found
    found = things(sidekiq_risks, SHOWN.replace("User=worker\n", user).replace("DynamicUser=no", "DynamicUser=yes"))
    assert "folder" not in {what for what, _ in found}


def test_groups_that_are_as_good_as_root_are_told(sidekiq_risks):
    found = sidekiq_risks._by_groups({**PERSON, "groups": ["nogroup", "docker", "users", "sudo"]})
    assert [risk["path"] for risk in found] == ["docker", "sudo"]
    assert found[0]["remedy"] == "`gpasswd -d nobody docker`"


def test_polkit_rules_that_name_him_or_his_groups_are_told(sidekiq_risks, tmp_path, monkeypatch):
    texts = {
        "his": 'action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "nobody"',
        "groups": 'org.freedesktop.systemd1 subject.isInGroup("nogroup")',
        "another": 'org.freedesktop.systemd1 subject.user == "nobody-else"',
        "mounts": 'org.freedesktop.udisks2 subject.user == "nobody"',
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.rules").write_text(text)
    monkeypatch.setattr(sidekiq_risks, "_POLKIT", (f"{tmp_path}/*.rules",))
    assert [Path(risk["path"]).stem for risk in sidekiq_risks._by_polkit(PERSON)] == ["groups", "his"]


def test_another_rule_of_sudo_is_told_with_its_file(sidekiq_risks):
    rule = {"runas": "ALL", "tags": ["NOPASSWD"], "command": "ALL", "where": ["/etc/sudoers:47"]}
    sidekiq_risks.__salt__ = {"sidekiq_sudo.sudo_check": lambda *args, **kwargs: {"beyond": [rule]}}
    [risk] = sidekiq_risks._by_rules("deploy", ["sidekiq"], [])
    assert (risk["what"], risk["path"]) == ("sudo rule", "/etc/sudoers:47")
    assert "(ALL) NOPASSWD ALL" in risk["why"]


@pytest.mark.parametrize("name", ["nobody-such", "root"])
def test_who_is_not_there_or_is_root_has_no_way(sidekiq_risks, monkeypatch, name):
    found = {"root": SimpleNamespace(pw_uid=0, pw_gid=0)}
    monkeypatch.setattr(sidekiq_risks.pwd, "getpwnam", found.__getitem__)
    assert sidekiq_risks.find(name, [], []) == []


def test_a_way_is_one_sentence(sidekiq_risks):
    risk = {"what": "group", "path": "docker", "why": "he is in it", "remedy": "`gpasswd -d he docker`"}
    assert sidekiq_risks.words(risk) == "group docker: he is in it; `gpasswd -d he docker`"
