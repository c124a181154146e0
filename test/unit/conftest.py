"""Fixtures of the unit tests: the settings module on a minion that is made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


def _only(**known):
    """A look-up that knows these names, as ``pwd.getpwnam`` does."""

    def look_up(name):
        return known[name]

    return look_up


@pytest.fixture
def redis_sidekiq(load):
    """
    The settings module on a minion of 4 GiB and 2 cores that systemd booted, with a user ``worker`` in group ``jobs``.

    Set ``redis_sidekiq.__pillar__`` for another pillar than the empty one, ``__grains__`` for another host.
    """
    module, releases = load("_modules/redis_sidekiq.py"), load("_modules/redis_releases.py")
    names = ("digest", "known", "nearest", "url")
    module.__salt__ = {f"redis_releases.{name}": getattr(releases, name) for name in names}
    module.__grains__ = {"os_family": "Debian", "mem_total": 4096, "num_cpus": 2}
    builds = load("_modules/redis_build.py")
    builds.__grains__ = {"oscodename": "bookworm", "osarch": "amd64"}
    module.__salt__ |= {f"redis_build.{name}": getattr(builds, name) for name in ("name", "pack_name")}
    module.__salt__ |= {"ufw_rules.profiles": dict, "mine.get": lambda *_: {"worker1": ["10.0.0.7"]}}
    module.__context__ = {}
    module.__pillar__ = {}
    module._booted_by_systemd = lambda: True
    module._salt_call = lambda: "/usr/bin/salt-call"
    module.pwd = SimpleNamespace(getpwnam=_only(worker=SimpleNamespace(pw_gid=900)))
    jobs = SimpleNamespace(gr_name="jobs")
    module.grp = SimpleNamespace(getgrgid={900: jobs}.__getitem__, getgrnam=_only(jobs=jobs))
    return module
