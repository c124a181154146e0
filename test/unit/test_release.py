"""What users download: one version everywhere, and an archive that only the commit decides."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from importlib.machinery import SourceFileLoader

import pytest

from test.conftest import REPO


def load_release():
    loader = SourceFileLoader("release", str(REPO / "tools/release"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("release", loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def release():
    return load_release()


def test_one_version_everywhere(release):
    assert len(set(release.versions().values())) == 1, release.versions()


def test_the_same_commit_gives_the_same_bytes(release):
    archive = release.tarball("1.2.3")
    assert archive == release.tarball("1.2.3")
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        members = found.getmembers()
    tops = {member.name.split("/")[1] for member in members}
    assert tops == set(release.PARTS)
    assert {(member.uid, member.gid, member.mode) for member in members} <= {(0, 0, 0o644), (0, 0, 0o755)}
    assert len({member.mtime for member in members}) == 1


def test_versions_that_differ_are_no_release(release, monkeypatch):
    monkeypatch.setattr(release, "versions", lambda: {"FORMULA": "1.0.0", "pyproject.toml": "1.0.1"})
    with pytest.raises(release.Refusal, match="the version is 1.0.0, and pyproject.toml says 1.0.1"):
        release.check(unreleased=True)
