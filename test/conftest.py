"""Fixtures of all layers: where the formula is, and pytest-salt-factories set up to stay on loopback."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def _only_importers_of_today() -> None:
    """
    Salt puts an importer in front that has find_module but no find_spec (salt/__init__.py, NaclImporter): Python
    passes over it, pytest's importlib mode dies of it. Nothing here uses PyNaCl.
    """
    try:
        import salt  # noqa: F401  now, so that it does not come back later
    except ImportError:
        return
    sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]


def _keep_to_loopback() -> None:
    """
    pytest-salt-factories' log server and event listener listen on 0.0.0.0 and take no setting for it. Done while this
    file is imported, because the log server is made before any hook of a conftest runs.
    """
    try:
        from saltfactories.plugins.event_listener import EventListener
        from saltfactories.plugins.log_server import LogServer
    except ImportError:  # the layers without Salt's daemons do without it
        return
    make_log_server, made_event_listener = LogServer.__init__, EventListener.__attrs_post_init__

    def log_server(self, **kwargs):
        make_log_server(self, **{"log_host": "127.0.0.1", **kwargs})

    def event_listener(self):
        self.host = "127.0.0.1"
        self.address = f"tcp://{self.host}:{self.port}"
        made_event_listener(self)

    LogServer.__init__, EventListener.__attrs_post_init__ = log_server, event_listener


_only_importers_of_today()
_keep_to_loopback()


@pytest.fixture(scope="session")
def repo() -> Path:
    """The formula's root, which is a Salt file root."""
    return REPO


@pytest.fixture(scope="session")
def load():
    """
    Load one of the formula's Python files as a module of its own: ``load("_modules/sidekiq.py")``.

    Each call makes a new module, so that a test's dunders and monkeypatches stay its own.
    """

    def _load(path: str):
        spec = importlib.util.spec_from_file_location("formula_" + Path(path).stem, REPO / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return _load


@pytest.fixture
def whole_files(load):
    """The functions for the formula's own files, by the names by which modules call them."""
    module = load("_modules/whole_files.py")
    return {f"whole_files.{name}": getattr(module, name) for name in ("copy", "is_ours", "sync_folder", "write")}


@pytest.fixture(scope="session")
def salt_factories_config():
    """Sockets need short paths (108 bytes), and everything that Salt writes goes with the folder at the end."""
    root = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
    yield {"code_dir": str(REPO), "root_dir": str(root), "inject_sitecustomize": False, "start_timeout": 120}
    shutil.rmtree(root, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """Write down for tools/lanes how many tests ended how."""
    if "TEST_COUNTS" in os.environ:
        counts = {key: len(found) for key, found in terminalreporter.stats.items() if key}
        Path(os.environ["TEST_COUNTS"]).write_text(json.dumps(counts))


def pytest_unconfigure():
    """Salt's handlers outlive its loaders and would print "--- Logging error ---" after the summary."""
    try:
        import salt._logging.impl as salt_logging
    except ImportError:
        return
    for name in ("shutdown_temp_handler", "shutdown_null_handler", "shutdown_console_handler"):
        getattr(salt_logging, name, lambda: None)()
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)
