"""docs/secrets.md: each way of a secret into the pillar ends in the same settings, and no message shows one."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

import pytest
import salt.config
import salt.pillar
from salt.exceptions import SaltInvocationError

from test.conftest import REPO
from test.unit.conftest import redis_sidekiq  # noqa: F401

PASSWORD = "put-a-long-random-one-here"
PAGE = (REPO / "docs/secrets.md").read_text()
PATH = "redis_sidekiq:redis:instances:6379:password"


def blocks(heading: str) -> list[str]:
    """The blocks below a heading of the page."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"^```\w+\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@pytest.fixture
def gpg_home():
    """Short, because gpg's agent has its socket there."""
    home = tempfile.mkdtemp(prefix="rs-gpg-", dir="/tmp")
    yield home
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def compile_pillar(tmp_path, gpg_home):
    def _compile(text: str, **more) -> dict:
        root = tmp_path / "pillar"
        root.mkdir(exist_ok=True)
        (root / "top.sls").write_text("base: {'*': [secrets]}\n")
        (root / "secrets.sls").write_text(text)
        opts = {
            **salt.config.minion_config(None),
            "file_client": "local",
            "id": "minion",
            "pillar_roots": {"base": [str(root)]},
            "cachedir": str(tmp_path),
            "extension_modules": str(tmp_path),
            "gpg_keydir": gpg_home,
            **more,
        }
        return salt.pillar.Pillar(opts, {"id": "minion"}, "minion", "base").compile_pillar()

    return _compile


@pytest.fixture
def ends_well(redis_sidekiq):  # noqa: F811
    def _ends_well(pillar: dict) -> None:
        redis_sidekiq.__pillar__ = pillar
        assert redis_sidekiq.settings(reveal=True)["redis"]["instances"][0]["password"] == PASSWORD
        assert PASSWORD not in repr(redis_sidekiq.settings())
        redis_sidekiq.__pillar__["redis_sidekiq"]["redis"]["verison"] = PASSWORD
        with pytest.raises(SaltInvocationError) as raised:
            redis_sidekiq.settings()
        assert PASSWORD not in str(raised.value)

    return _ends_well


@pytest.fixture
def refused(redis_sidekiq):  # noqa: F811
    def _refused(pillar: dict, words: str) -> None:
        redis_sidekiq.__pillar__ = pillar
        with pytest.raises(SaltInvocationError) as raised:
            redis_sidekiq.settings()
        (line,) = str(raised.value).splitlines()
        assert line.startswith(f"{PATH}: found ") and words in line, line
        assert PASSWORD not in line

    return _refused


def test_plain(compile_pillar, ends_well):
    (pillar,) = blocks("Plain")
    ends_well(compile_pillar(pillar))


def encrypted(gpg_home: str, tmp_path: Path) -> str:
    """The page's pillar file, with what the page's own commands encrypt."""
    setup, encrypt, pillar, _ = blocks("GPG")
    for place, mine in (("/etc/salt/gpgkeys", gpg_home), ("/tmp/salt-master.asc", str(tmp_path / "key.asc"))):
        setup, encrypt = setup.replace(place, mine), encrypt.replace(place, mine)
    subprocess.run(["sh", "-ec", setup], check=True, capture_output=True)
    message = subprocess.run(["sh", "-ec", encrypt], check=True, capture_output=True, text=True).stdout
    assert "-----BEGIN PGP MESSAGE-----" in message
    before = pillar.index(" " * 10 + "-----BEGIN")
    return pillar[:before] + textwrap.indent(message.strip(), " " * 10) + "\n"


@pytest.mark.skipif(not shutil.which("gpg"), reason="gpg is not installed")
def test_gpg(compile_pillar, ends_well, refused, gpg_home, tmp_path):
    text = encrypted(gpg_home, tmp_path)
    assert PASSWORD not in text
    ends_well(compile_pillar(text))
    # Without the renderer, and without the key.
    refused(compile_pillar(text.replace("|gpg", "")), "it is still encrypted")
    empty = tempfile.mkdtemp(prefix="rs-gpg-", dir="/tmp")
    try:
        refused(compile_pillar(text, gpg_keydir=empty, gpg_decrypt_must_succeed=False), "it is still encrypted")
        assert "_errors" in compile_pillar(text, gpg_keydir=empty, gpg_decrypt_must_succeed=True)
    finally:
        shutil.rmtree(empty)


def test_sdb(compile_pillar, ends_well, refused, tmp_path):
    config, store, pillar = blocks("sdb")
    (tmp_path / "secrets.yaml").write_text(store)
    profile = {"secrets": {"driver": "yaml", "files": [str(tmp_path / "secrets.yaml")]}}
    assert "driver: yaml" in config
    ends_well(compile_pillar(pillar, **profile))
    refused(compile_pillar(pillar.replace("redis_password", "misspelt"), **profile), "nothing (null)")
    bare = re.sub(r"\{\{.*\}\}", "sdb://secrets/redis_password", pillar)
    refused(compile_pillar(bare, **profile), "Salt resolves no sdb:// in a pillar")
    without = pillar.replace("{{", "'{{").replace("}}", "}}'").replace("salt['sdb.get']('", 'salt["sdb.get"]("')
    without = without.replace("password')", 'password")')
    refused(compile_pillar("#!yaml\n" + without, **profile), "Jinja that was not rendered")
    refused(compile_pillar(pillar.replace(" | tojson", "").replace("redis_p", "no_p"), **profile), "writes None")
