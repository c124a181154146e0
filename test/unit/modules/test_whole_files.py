"""Files that are whole or as they were."""

from __future__ import annotations

import os

import pytest
from salt.exceptions import CommandExecutionError


@pytest.fixture
def whole_files(load):
    return load("_modules/whole_files.py")


def test_a_file_is_replaced_whole_or_not_at_all(whole_files, tmp_path, monkeypatch):
    path = tmp_path / "sidekiq.env"
    path.write_text("old")
    (tmp_path / ".sidekiq.env.new").write_text("left by a run that was killed")

    def no_power(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(whole_files.os, "replace", no_power)
    with pytest.raises(CommandExecutionError, match="Input/output error"):
        whole_files.write(str(path), "new", 0o600)
    assert path.read_text() == "old"
    monkeypatch.undo()
    whole_files.write(str(path), "new", 0o600)
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["sidekiq.env"]


@pytest.mark.parametrize(
    "text, ours",
    [
        ("# Managed by Salt (formula redis_sidekiq): x\n", True),
        ("#!/bin/sh\n# Managed by Salt (formula redis_sidekiq).\n", True),
        ("[Unit]\n\n# Managed by Salt (formula redis_sidekiq)\n", False),
        ("Description=Managed by Salt (formula redis_sidekiq)\n", False),
        ("", False),
    ],
)
def test_a_file_is_ours_by_its_head(whole_files, tmp_path, text, ours):
    (tmp_path / "file").write_text(text)
    assert whole_files.is_ours(str(tmp_path / "file")) is ours


def test_what_is_no_regular_file_is_not_ours(whole_files, tmp_path):
    (tmp_path / "file").write_text("# Managed by Salt (formula redis_sidekiq)\n")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert [whole_files.is_ours(str(tmp_path / name)) for name in ("file", "link", "pipe", "none")] == [True] + [
        False
    ] * 3
