"""A real salt-master and a real salt-minion with the formula as file root, one pair for all of these tests."""

from __future__ import annotations

import json

import pytest
from saltfactories.utils import random_string

# No unit of this name is anywhere, so that a restart reaches the minion and ends there.
SERVICE = "rs-test-no-such-unit"
SECRET = "a-secret-that-is-long-enough"


@pytest.fixture(scope="package")
def pillar_root(tmp_path_factory):
    """A pillar that names one service; a test may write other text into ``pillar.sls`` and put this back."""
    root = tmp_path_factory.mktemp("pillar")
    (root / "top.sls").write_text("base: {'*': [pillar]}\n")
    write_pillar(root, {"redis_sidekiq": {"sidekiq": {"services": {"sidekiq": None, SERVICE: {}}}}})
    return root


def write_pillar(root, pillar: dict) -> None:
    """Write the pillar of all minions."""
    (root / "pillar.sls").write_text("#!json\n" + json.dumps(pillar))


@pytest.fixture(scope="package")
def minion_id() -> str:
    return random_string("minion-", uppercase=False)


@pytest.fixture(scope="package")
def secret_file(tmp_path_factory):
    """The file with the secret of the app's webhooks."""
    path = tmp_path_factory.mktemp("secrets") / "shop"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="package")
def master(salt_factories, repo, pillar_root, minion_id, secret_file):
    """The master, with the shipped reactor and this minion as the app's only host."""
    app = {"minions": [minion_id], "services": [SERVICE], "secret_file": str(secret_file)}
    overrides = {
        "interface": "127.0.0.1",
        "file_recv": True,
        "file_roots": {"base": [str(repo)]},
        "pillar_roots": {"base": [str(pillar_root)]},
        "runner_dirs": [str(repo / "_runners")],
        "reactor": [
            {"redis_sidekiq/deploy/*": ["salt://redis_sidekiq/reactor/deploy.sls"]},
            {"salt/netapi/hook/redis_sidekiq/deploy/*": ["salt://redis_sidekiq/reactor/webhook.sls"]},
        ],
        "redis_sidekiq": {"apps": {"shop": app, "other": {**app, "secret_file": ""}}},
    }
    daemon = salt_factories.salt_master_daemon(random_string("master-", uppercase=False), overrides=overrides)
    with daemon.started():
        yield daemon


@pytest.fixture(scope="package")
def minion(master, minion_id):
    daemon = master.salt_minion_daemon(minion_id, overrides={"master": "127.0.0.1"})
    with daemon.started():
        synced = daemon.salt_call_cli(timeout=120).run("saltutil.sync_all")
        assert synced.returncode == 0, synced
        yield daemon


@pytest.fixture(scope="package")
def salt(master, minion):
    """Run a function on the minion through the master: ``salt("sidekiq.status", "sidekiq")``."""
    cli = master.salt_cli(timeout=60)
    return lambda *args, **kwargs: cli.run(*args, minion_tgt=minion.id, **kwargs)
