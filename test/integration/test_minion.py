"""The formula on a real minion of a real master: its modules are synced, its pillar is read, its errors arrive."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

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


def test_a_finished_build_comes_to_the_master(salt, master, minion, tmp_path):
    prefix, build = tmp_path / "prefix", "8.0.6-e5fe8aa51c"
    (prefix / build / "bin").mkdir(parents=True)
    facts = {"size": 7, "sha256": hashlib.sha256(b"program").hexdigest()}
    programs = {f"redis-{tool}": facts for tool in ("server", "cli", "benchmark", "sentinel", "check-aof", "check-rdb")}
    for program in programs:
        path = prefix / build / "bin" / program
        path.write_text("program")
        path.chmod(0o755)
    (prefix / build / "build.json").write_text(json.dumps({"build": build, "programs": programs}))
    (prefix / "current").symlink_to(build)

    packed = salt("redis_build.pack", f"folder={tmp_path}/packs", f"prefix={prefix}").data
    assert packed["name"].startswith(f"{build}-") and packed["size"] > 0
    assert salt("cp.push", packed["path"]).data is True
    pushed = Path(master.config["cachedir"], "minions", minion.id, "files", packed["path"].lstrip("/"))
    assert "sha256=" + hashlib.sha256(pushed.read_bytes()).hexdigest() == packed["hash"]


def test_a_check_is_about_the_pillar_that_the_master_has_now(salt, wrong_pillar):
    """The minion still has the one of before in its memory; a run would have this one."""
    assert salt("redis_sidekiq.mistakes").data == []
    ret = salt("redis_sidekiq.check")
    assert ret.returncode != 0 and ret.data["ok"] is False
    assert [line.partition(": ")[0] for line in ret.data["problems"]] == [
        f"redis_sidekiq:sidekiq:services:{SERVICE}:tiemout"
    ]
    ret = salt("redis_sidekiq.drift")
    assert ret.returncode != 0 and "tiemout" in str(ret.data)
