"""The reactor's SLS through Salt's own `py` renderer: what an event sets off, and what hostile ones do not."""

from __future__ import annotations

import pytest

APPS = {"shop": {"minions": ["web1.example.org"]}, "blog": {"minions": ["blog1"], "services": ["sidekiq"]}}


def reaction(app: str) -> dict:
    return {f"Roll out {app}": {"runner.sidekiq_rollout.request": [{"args": [{"app": app}, {"source": "event"}]}]}}


@pytest.fixture
def render(render_sls):
    def _render(tag, data=None, settings={"apps": APPS}):  # noqa: B006 (not changed)
        return render_sls("deploy", tag, data, settings)

    return _render


@pytest.mark.parametrize("app", sorted(APPS))
def test_an_apps_event_asks_for_its_roll_out(render, app):
    assert render(f"redis_sidekiq/deploy/{app}") == reaction(app)


@pytest.mark.parametrize(
    "data",
    [
        {"tgt": "*", "fun": "cmd.run", "arg": ["id > /tmp/owned"]},
        {"id": "web9", "data": {"app": "blog", "minions": ["*"], "services": ["ssh"]}},
        {"data": {"rev": "1\n  local.cmd.run:\n    - tgt: '*'\n    - arg: [id]"}},
        {"data": {"rev": "{{ salt['cmd.run']('id') }}", "x": "{% raw %}"}},
        {"data": {"rev": "!!python/object/apply:os.system ['id']"}},
        {"data": {"__pub_user": "root", "__pub_fun": "cmd.run"}},
        {"post": {"service": "ssh"}, "headers": {"X": "1"}, "body": "{{ 7*7 }}"},
        {"data": [1, 2, 3]},
        {"data": None, "id": None},
        {1: 2, None: None},
        {"data": "x" * 1_000_000},
        {"data": {"service": ["a"] * 1000}},
    ],
)
def test_nothing_in_the_data_changes_the_call(render, data):
    assert render("redis_sidekiq/deploy/shop", data) == reaction("shop")


@pytest.mark.parametrize(
    "tag",
    [
        "redis_sidekiq/deploy/",
        "redis_sidekiq/deploy/unknown",
        "redis_sidekiq/deploy/*",
        "redis_sidekiq/deploy/shop/",
        "redis_sidekiq/deploy/shop/extra",
        "redis_sidekiq/deploy/shop\n",
        "redis_sidekiq/deploy/shop\nlocal.cmd.run: {tgt: '*'}",
        "redis_sidekiq/deploy/../shop",
        "redis_sidekiq/deploy/Shop",
        "redis_sidekiq/deploy/shop ",
        "redis_sidekiq/deploy/{{ 'shop' }}",
        "redis_sidekiq/deploy/__class__",
        "redis_sidekiq/deploy/-shop",
        "redis_sidekiq/deploy/" + "a" * 65,
        "redis_sidekiq/deploy/" + "a" * 1_000_000,
        "redis_sidekiq/deploy/şhop",
        "x/redis_sidekiq/deploy/shop",
        "redis_sidekiq/deployed/shop",
        "salt/netapi/hook/redis_sidekiq/deploy/shop",
    ],
)
def test_a_tag_that_names_no_app_does_nothing(render, tag):
    assert render(tag) == {}


@pytest.mark.parametrize("settings", [None, [], "shop", {}, {"apps": None}, {"apps": ["shop"]}, {"apps": {"Shop": {}}}])
def test_a_map_without_the_app_does_nothing(render, settings):
    assert render("redis_sidekiq/deploy/shop", settings=settings) == {}


def test_the_example_configuration_is_a_working_one(repo, render, load):
    import salt.utils.yaml

    example = salt.utils.yaml.safe_load((repo / "docs/examples/master.d/redis_sidekiq.conf").read_text())
    for entry in example["reactor"]:
        for (sls,) in entry.values():
            assert (repo / sls.removeprefix("salt://")).exists()
    assert list(render("redis_sidekiq/deploy/app", settings=example["redis_sidekiq"])) == ["Roll out app"]
    rollout = load("_runners/sidekiq_rollout.py")
    assert rollout._settings(example, "app")["minions"] == ["web1.example.org"]
