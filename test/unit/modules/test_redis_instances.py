"""Which files make an instance of ours, and what its config says of it."""

from __future__ import annotations

import os

import pytest
from salt.exceptions import CommandExecutionError

OURS = "# Managed by Salt (formula redis_sidekiq): changes made here are undone by the next run.\n"


@pytest.fixture
def host(load, whole_files, tmp_path, monkeypatch):
    """The module on a host whose folders are below ``tmp_path``: ``units``, ``scripts``, ``configs``."""
    module = load("_modules/redis_instances.py")
    module.__salt__ = whole_files
    names = dict(zip(module._PLACES, ("units", "scripts", "configs")))
    for name in names.values():
        (tmp_path / name).mkdir()
    places = {str(tmp_path / names[folder]): pattern for folder, pattern in module._PLACES.items()}
    monkeypatch.setattr(module, "_PLACES", places)
    monkeypatch.setattr(module, "_CONFIGS", str(tmp_path / "configs"))
    return module


def test_found_are_the_instances_with_our_line_and_no_others(host, tmp_path):
    (tmp_path / "units/redis_6379.service").write_text(OURS)
    (tmp_path / "scripts/redis_10000").write_text("#!/bin/sh\n# Managed by Salt (formula redis_sidekiq).\n")
    (tmp_path / "configs/6379.conf").write_text(OURS + "port 6379\n")
    (tmp_path / "configs/6380.conf").write_text("port 6380\n")
    (tmp_path / "configs/6381.conf").write_text('loglevel "Managed by Salt (formula redis_sidekiq)"\n')
    (tmp_path / "configs/6382.conf.bak").write_text(OURS)
    (tmp_path / "units/redis-server.service").write_text(OURS)
    os.symlink("/dev/null", tmp_path / "units/redis_6383.service")
    os.symlink(tmp_path / "configs/6379.conf", tmp_path / "configs/6384.conf")
    os.mkfifo(tmp_path / "configs/6385.conf")
    found = host.found()
    assert list(found) == ["6379", "10000"]
    assert found["6379"] == [str(tmp_path / "units/redis_6379.service"), str(tmp_path / "configs/6379.conf")]


def test_facts_come_from_the_config_and_hold_no_secret(host, tmp_path):
    text = 'port 7000\nbind 10.0.0.5 -::1\ndir /data\nsave 60 1\nsave 5 9\nrequirepass "a b"\nmasterauth x\nuser u >y\n'
    (tmp_path / "configs/6380.conf").write_text(OURS + text)
    facts = host.facts("6380")
    assert (facts["port"], facts["bind"], facts["dir"]) == (7000, ["10.0.0.5", "-::1"], "/data")
    assert [value for name, value in facts["directives"] if name == "save"] == ["60 1", "5 9"]
    assert facts["password"] == "" and "a b" not in str(facts) and "masterauth" not in str(facts)
    assert host.facts("6379") == {}


def test_what_is_not_ours_is_not_removed(host, tmp_path):
    (tmp_path / "configs/6380.conf").write_text("port 6380\n")
    with pytest.raises(CommandExecutionError, match="no instance of Redis that this formula made"):
        host.remove("6380")
    assert (tmp_path / "configs/6380.conf").exists()
