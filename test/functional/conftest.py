"""The formula's modules and states through Salt's own loader: a minion's configuration, no daemon, no host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saltfactories.utils import random_string
from saltfactories.utils.functional import Loaders


@pytest.fixture(scope="package")
def pillar() -> dict:
    """What these modules see as ``__pillar__``; a test package may say otherwise."""
    return {}


@pytest.fixture(scope="package")
def minion_opts(salt_factories, repo: Path, pillar: dict, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A masterless minion's configuration whose file root is the formula."""
    pillar_root = tmp_path_factory.mktemp("pillar")
    (pillar_root / "top.sls").write_text("base: {'*': [pillar]}\n")
    (pillar_root / "pillar.sls").write_text("#!json\n" + json.dumps(pillar))
    overrides = {
        "file_client": "local",
        "file_roots": {"base": [str(repo)]},
        "pillar_roots": {"base": [str(pillar_root)]},
    }
    return salt_factories.salt_minion_daemon(random_string("functional-"), overrides=overrides).config.copy()


@pytest.fixture(scope="package")
def loaders(minion_opts: dict) -> Loaders:
    """Salt's loaders, with the formula's modules and states synced."""
    return Loaders(minion_opts, loaded_base_name="formula.loaded")


@pytest.fixture(autouse=True)
def _fresh(loaders: Loaders):
    """No test sees what another one left in a loader's context."""
    yield
    loaders.reset_state()


@pytest.fixture
def modules(loaders: Loaders):
    """Execution modules: ``modules.sidekiq.status("sidekiq")``."""
    return loaders.modules


@pytest.fixture
def states(loaders: Loaders):
    """State modules: ``states.sidekiq.running("sidekiq", ...)``; ``test=True`` as last argument."""
    return loaders.states
