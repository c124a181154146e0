"""Renders the reactor's SLS files through Salt's own `py` renderer."""

from __future__ import annotations

import pytest
import salt.loader
import salt.template


@pytest.fixture(scope="package")
def opts(tmp_path_factory):
    """A master's options."""
    import salt.config

    opts = salt.config.master_config(None)
    root = tmp_path_factory.mktemp("master")
    opts.update(cachedir=str(root), root_dir=str(root), grains={}, pillar={}, id="master", file_client="local")
    return opts


@pytest.fixture
def render_sls(repo, opts):
    """``render_sls(name, tag, data, settings)``: as salt.utils.reactor does, with a copy of the master's options."""

    def _render(name, tag, data, settings):
        opts_now = dict(opts, redis_sidekiq=settings)
        return salt.template.compile_template(
            str(repo / f"redis_sidekiq/reactor/{name}.sls"),
            salt.loader.render(opts_now, {}),
            "jinja|yaml",
            opts_now["renderer_blacklist"],
            opts_now["renderer_whitelist"],
            saltenv="base",
            sls=name,
            tag=tag,
            data={} if data is None else data,
        )

    return _render
