"""The reactor's SLS through Salt's own `py` renderer: what an event sets off, and what hostile ones do not."""

from __future__ import annotations

import salt.loader
import salt.template
import pytest

APPS = {
    "shop": {"minions": ["web1.example.org", "web2.example.org"], "services": ["sidekiq", "mails"]},
    "blog": {"minions": ["blog1"], "services": ["sidekiq"]},
}


def reaction(app: str) -> dict:
    return {
        f"Deploy of {app} restarts {service}": {
            "local.sidekiq.restart": [
                {"tgt": APPS[app]["minions"]},
                {"tgt_type": "list"},
                {"args": [{"service": service}, {"stale_only": True}]},
            ]
        }
        for service in APPS[app]["services"]
    }


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    import salt.config

    opts = salt.config.master_config(None)
    root = tmp_path_factory.mktemp("master")
    opts.update(cachedir=str(root), root_dir=str(root), grains={}, pillar={}, id="master", file_client="local")
    return opts


@pytest.fixture
def render(repo, opts):
    """Render as salt.utils.reactor does: a copy of the master's options, the tag and the data."""

    def _render(tag, data=None, apps=APPS):
        opts_now = dict(opts, redis_sidekiq={"apps": apps})
        renderers = salt.loader.render(opts_now, {})
        return salt.template.compile_template(
            str(repo / "redis_sidekiq/reactor/deploy.sls"),
            renderers,
            "jinja|yaml",
            opts_now["renderer_blacklist"],
            opts_now["renderer_whitelist"],
            saltenv="base",
            sls="deploy",
            tag=tag,
            data={} if data is None else data,
        )

    return _render


@pytest.mark.parametrize("app", sorted(APPS))
def test_an_apps_event_restarts_its_services_on_its_minions(render, app):
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


@pytest.mark.parametrize(
    "apps",
    [
        None,
        [],
        {"shop": None},
        {"shop": ["web1"]},
        {"shop": {}},
        {"shop": {"minions": "*", "services": ["sidekiq"]}},
        {"shop": {"minions": [], "services": ["sidekiq"]}},
        {"shop": {"minions": ["*"], "services": ["sidekiq"]}},
        {"shop": {"minions": ["web1", 2], "services": ["sidekiq"]}},
        {"shop": {"minions": ["web1,web2"], "services": ["sidekiq"]}},
        {"shop": {"minions": ["web1"]}},
        {"shop": {"minions": ["web1"], "services": "sidekiq"}},
        {"shop": {"minions": ["web1"], "services": ["sidekiq; id"]}},
        {"shop": {"minions": ["web1"], "services": [["sidekiq"]]}},
    ],
)
def test_a_mistaken_map_does_nothing(render, apps):
    assert render("redis_sidekiq/deploy/shop", apps=apps) == {}


def test_the_example_configuration_is_a_working_one(repo, render):
    import salt.utils.yaml

    example = salt.utils.yaml.safe_load((repo / "docs/examples/master.d/redis_sidekiq.conf").read_text())
    assert example["reactor"] == [{"redis_sidekiq/deploy/*": ["salt://redis_sidekiq/reactor/deploy.sls"]}]
    [(state, call)] = render("redis_sidekiq/deploy/app", apps=example["redis_sidekiq"]["apps"]).items()
    assert call["local.sidekiq.restart"][0] == {"tgt": ["web1.example.org"]}
