"""The formula on a real minion of a real master: its modules are synced, its pillar is read, its errors arrive."""

from __future__ import annotations

import pytest
from test.integration.conftest import SERVICE, write_pillar


def test_the_formulas_modules_and_states_are_there(salt, repo):
    functions = salt("sys.list_functions", "sidekiq").data
    assert {"sidekiq.status", "sidekiq.restart", "sidekiq.sudo_check"} <= set(functions)
    states = salt("sys.list_state_functions", "sidekiq").data
    assert {"sidekiq.current", "sidekiq.environment_file", "sidekiq.sudoers"} <= set(states)


def test_the_settings_come_from_the_pillar(salt):
    settings = salt("redis_sidekiq.settings").data
    assert [service["name"] for service in settings["sidekiq"]["services"]] == [SERVICE]


def test_only_services_of_the_pillar_are_acted_on(salt):
    for name in ("ssh", "sidekiq"):
        ret = salt("sidekiq.restart", name)
        assert ret.returncode != 0
        assert f"'{name}' is not a Sidekiq service of this minion" in str(ret.data)


@pytest.fixture
def wrong_pillar(salt, pillar_root):
    right = (pillar_root / "pillar.sls").read_text()
    write_pillar(pillar_root, {"redis_sidekiq": {"sidekiq": {"services": {SERVICE: {"tiemout": 5}}}}})
    yield
    (pillar_root / "pillar.sls").write_text(right)
    salt("saltutil.refresh_pillar", "async=False")


def test_a_wrong_pillar_stops_the_run_before_any_state(salt, wrong_pillar):
    salt("saltutil.refresh_pillar", "async=False")
    ret = salt("state.apply", "redis_sidekiq", "test=True")
    assert ret.returncode != 0
    text = str(ret.data)
    assert f"redis_sidekiq:sidekiq:services:{SERVICE}:tiemout" in text
    assert "timeout" in text.replace("tiemout", "")


def test_the_sidekiq_states_render_with_the_pillars_names(salt):
    ret = salt("state.show_sls", "redis_sidekiq.sidekiq")
    assert ret.returncode == 0, ret
    assert {
        f"Sidekiq service {SERVICE} works",
        f"Sidekiq service {SERVICE} has its environment",
        f"Sidekiq service {SERVICE} has its unit",
    } <= set(ret.data)
