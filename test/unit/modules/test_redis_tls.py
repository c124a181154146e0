"""Certificates as PEM and DER, and the folders that they lie in."""

from __future__ import annotations

import grp
import os
import time

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

from test import certificates

CA = certificates.authority()
DAY = 86400
GROUP = grp.getgrgid(0).gr_name


@pytest.fixture
def tls(load, whole_files, tmp_path, monkeypatch):
    """The module, in a folder of the test's own; ``tls.say(cert, key)`` makes settings."""
    module = load("_modules/redis_tls.py")
    monkeypatch.setattr(module, "_FOLDER", str(tmp_path / "tls"))
    wish = {"name": "6379", "unit": "redis_6379", "config": str(tmp_path / "6379.conf"), "tls": {}}
    settings = {"redis": {"group": GROUP, "instances": [wish]}}
    module.upgrade = {"build": "8.0.6-new", "wished": "8.0.6-new", "under_way": ""}
    module.__salt__ = {
        **whole_files,
        "redis_sidekiq.settings": lambda reveal: settings,
        "redis_upgrade.facts": lambda instance: module.upgrade,
    }

    def say(cert: str | None = None, key: str | None = "a key", version: str = "v1") -> None:
        sources = {"cert.pem": "tls:cert (/c)", "key.pem": "tls:key_pem"}
        contents = {"cert.pem": cert, "key.pem": key}
        folder = str(tmp_path / "tls/6379")
        wish["tls"] = {"port": 6390, "folder": folder, "version": version, "sources": sources, "contents": contents}

    module.say, module.folder, module.wish = say, tmp_path / "tls/6379", wish
    return module


@pytest.mark.parametrize("days", [1, 30, 365 * 40])  # the last is a GeneralizedTime
def test_validity_is_read_from_the_certificate(tls, days):
    since, until = tls._validity(tls._der("some words\n" + certificates.signed(CA, days=days).cert + CA.cert))
    assert abs(since - (time.time() - DAY)) < 60 and abs(until - (time.time() + days * DAY)) < 60


def test_whatever_is_no_certificate_is_named_so(tls):
    lines = certificates.signed(CA).cert.splitlines()
    whole = "".join(lines[1:-1])
    for cut in range(len(whole)):
        tls.say(f"{lines[0]}\n{whole[:cut].rstrip('=')}\n{lines[-1]}\n")
        with pytest.raises(CommandExecutionError, match=r"^tls:cert \(/c\) is no certificate in PEM form"):
            tls.check("6379")
            pytest.fail(f"{cut} of {len(whole)}")


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        (None, "k", "tls:cert (/c) cannot be read"),
        (certificates.signed(CA).cert, None, "tls:key_pem cannot be read"),
        ("", "k", "tls:cert (/c) is no certificate"),
        (certificates.signed(CA, days=-1, since=-2).cert, "k", "tls:cert (/c) is not valid now"),
        (certificates.signed(CA, since=1).cert, "k", "tls:cert (/c) is not valid now"),
        (certificates.signed(CA).cert, certificates.encrypted(CA), "tls:key_pem has a passphrase"),
    ],
)
def test_what_redis_would_take_is_refused(tls, cert, key, words):
    tls.say(cert, key)
    with pytest.raises(CommandExecutionError) as caught:
        tls.check("6379")
    assert words in str(caught.value)


def test_files_are_placed_whole_and_put_right(tls):
    one = certificates.signed(CA)
    tls.say(one.cert, one.key)
    assert tls.placed("6379")["old"] == "" and "until 20" in tls.placed("6379")["new"]
    tls.place("6379")
    assert tls.placed("6379") == {} and sorted(os.listdir(tls.folder)) == ["v1"]
    assert (tls.folder / "v1/key.pem").stat().st_mode & 0o7777 == 0o640
    for spoil in (
        lambda path: path.write_text("x"),
        lambda path: path.chmod(0o644),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
    ):
        spoil(tls.folder / "v1/key.pem")
        assert tls.placed("6379") != {}
        tls.place("6379")
        assert tls.placed("6379") == {} and (tls.folder / "v1/key.pem").read_text() == one.key
    assert one.key.splitlines()[1] not in str(tls.placed("6379"))


def test_what_a_run_that_was_cut_off_left_is_no_version(tls):
    (tls.folder / "v1.new").mkdir(parents=True)
    (tls.folder / "v1.new/cert.pem").write_text("half")
    one = certificates.signed(CA)
    tls.say(one.cert, one.key)
    assert tls.placed("6379") != {}
    tls.place("6379")
    assert sorted(os.listdir(tls.folder)) == ["v1"] and (tls.folder / "v1/cert.pem").read_text() == one.cert


def test_certificates_go_with_tls(tls):
    one = certificates.signed(CA)
    tls.say(one.cert, one.key)
    tls.place("6379")
    tls.wish["tls"] = {}
    assert tls.placed("6379")["new"] == ""
    tls.remove("6379")
    assert tls.placed("6379") == {} and not tls.folder.exists()


def test_only_instances_of_the_settings_are_known(tls):
    with pytest.raises(SaltInvocationError, match="'../x' is not a Redis instance"):
        tls.remove("../x")


@pytest.mark.parametrize(
    ("upgrade", "goes"),
    [({}, True), ({"build": "7.0.15-old"}, False), ({"under_way": "7.0.15-old"}, False), ({"build": ""}, True)],
)
def test_a_certificate_that_nobody_names_goes_unless_an_older_build_may_come_back(tls, upgrade, goes):
    tls.say(certificates.signed(CA).cert)
    for version in ("v0", "v1"):
        (tls.folder / version).mkdir(parents=True)
    tls._running = lambda instance: {"tls-cert-file": str(tls.folder / "v1/cert.pem")}
    tls.upgrade |= upgrade
    assert tls.tidy("6379") == ([str(tls.folder / "v0")] if goes else [])
    assert (tls.folder / "v0").exists() is not goes and (tls.folder / "v1").exists()
