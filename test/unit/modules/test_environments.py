"""The pillar tree of docs/environments.md, compiled as Salt's master does it."""

from __future__ import annotations

import shutil

import pytest
import salt.config
import salt.pillar

from test.conftest import REPO

TREE = REPO / "docs/examples/pillar"


@pytest.fixture
def tree(tmp_path):
    return shutil.copytree(TREE, tmp_path / "pillar")


@pytest.fixture
def compile_pillar(tree, tmp_path):
    """The pillar of a minion: ``compile_pillar("staging-1", num_cpus=16)``."""

    def _compile(minion, merge_lists=False, **grains):
        grains = {"id": minion, "os_family": "Debian", "num_cpus": 2, **grains}
        opts = {
            **salt.config.minion_config(None),
            "file_client": "local",
            "id": minion,
            "grains": grains,
            "pillar_roots": {"base": [str(tree)]},
            "pillar_merge_lists": merge_lists,
            "cachedir": str(tmp_path),
            "extension_modules": str(tmp_path),
        }
        pillar = salt.pillar.Pillar(opts, grains, minion, "base").compile_pillar()
        assert "_errors" not in pillar, pillar
        return pillar

    return _compile


@pytest.fixture
def settle(compile_pillar, redis_sidekiq):
    def _settle(*arguments, **grains):
        redis_sidekiq.__pillar__ = compile_pillar(*arguments, **grains)
        return redis_sidekiq.settings()

    return _settle


def flat(value, path=()):
    """Path -> value of everything in settings; lists of what has a name by that name."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        items = [(each["name"], each) for each in value]
    else:
        return {path: value}
    return {place: found for key, part in items for place, found in flat(part, (*path, key)).items()}


def differences(one, other):
    one, other = flat(one), flat(other)
    return {":".join(path) for path in one.keys() | other.keys() if one.get(path) != other.get(path)}


def service(settings):
    return settings["sidekiq"]["services"][0]


def test_environments_differ_in_what_is_written_and_nothing_else(settle):
    other, staging, production = settle("web1"), settle("staging-1"), settle("production-1")
    assert differences(other, staging) == {
        "firewall:rules:http:from",
        "firewall:rules:https:from",
        "sidekiq:services:sidekiq:argv",
    }
    assert differences(other, production) == {
        "redis:restart",
        "redis:restart_window",
        "redis:backup:enabled",
        "redis:instances:6379:restart",
        "redis:instances:6379:restart_window",
        "redis:instances:6379:backup:enabled",
        "redis:instances:6379:directives",
        "redis:instances:6379:maxmemory",
        "firewall:rules:metrics:from",
        *(f"firewall:rules:http:{key}" for key in ("action", "from", "name", "port", "proto")),
        "sidekiq:services:sidekiq:argv",
        "sidekiq:services:sidekiq:timeout",
        "sidekiq:services:sidekiq:stop_timeout",
    }
    lines = [settings["redis"]["instances"][0]["directives"] for settings in (other, production)]
    assert [line for line in lines[1] if line not in lines[0]] == [["maxmemory", "2gb"]]


def test_minion_id_decides_and_a_grain_adds(settle):
    assert service(settle("staging-1", num_cpus=16))["units"] == [
        f"sidekiq@{number}.service" for number in (1, 2, 3, 4)
    ]
    assert service(settle("staging-1"))["units"] == ["sidekiq.service"]
    assert "staging" in service(settle("staging-1", num_cpus=16))["argv"]
    # A minion that only says that it is production is not.
    assert settle("web1", environment="production") == settle("web1")


def test_lists_replace_unless_salt_joins_them(settle, compile_pillar, tree):
    queues = ["-q", "critical", "-q", "default", "-q", "mail"]
    assert service(settle("production-1"))["argv"][-6:] == queues
    production = tree / "redis_sidekiq/production.sls"
    production.write_text(production.read_text().replace("[critical, default, mail]", "[mail, critical]"))

    def said(merge_lists):
        return compile_pillar("production-1", merge_lists)["redis_sidekiq"]["sidekiq"]["services"]["sidekiq"]["queues"]

    assert said(False) == ["mail", "critical"]
    assert said(True) == ["critical", "default", "mail"]


def test_a_mistake_in_one_environment_stops_its_minions_alone(settle, tree):
    staging = tree / "redis_sidekiq/staging.sls"
    staging.write_text(staging.read_text().replace("concurrency", "concurency"))
    with pytest.raises(Exception, match="sidekiq:services:sidekiq:concurency: unknown key; did you mean 'concurrency'"):
        settle("staging-1")
    assert settle("production-1")
