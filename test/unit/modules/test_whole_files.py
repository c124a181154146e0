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
