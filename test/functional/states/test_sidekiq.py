"""The states through Salt's loader, on files below a temporary folder."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("test", [True, False])
def test_environment_file(states, tmp_path, test):
    path = tmp_path / "sidekiq.env"
    ret = states.sidekiq.environment_file(str(path), service="sidekiq", test=test)
    assert ret.changes == {"added": ["REDIS_URL"]}
    assert ret.result is (None if test else True)
    assert path.exists() is not test
    if not test:
        assert states.sidekiq.environment_file(str(path), service="sidekiq").changes == {}


def test_environment_file_of_a_service_that_is_not_in_the_settings(states, tmp_path):
    ret = states.sidekiq.environment_file(str(tmp_path / "x.env"), service="ssh")
    assert ret.result is False
    assert "'ssh' is not a Sidekiq service of this minion" in ret.comment
    assert not (tmp_path / "x.env").exists()


def test_current_fails_with_a_sentence_for_a_service_that_is_not_in_the_settings(states):
    ret = states.sidekiq.current("ssh")
    assert ret.result is False
    assert "'ssh' is not a Sidekiq service of this minion" in ret.comment


@pytest.mark.parametrize("wish", [{"units": ["a b"]}, {"verbs": ["status"]}, {"user": "ALL"}])
def test_sudoers_refuses_what_sudo_could_read_as_more(states, tmp_path, wish):
    wish = {"user": "deploy", "units": ["sidekiq"], "verbs": ["restart"], **wish}
    ret = states.sidekiq.sudoers(str(tmp_path / "sidekiq-deploy"), **wish)
    assert ret.result is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("test", [True, False])
def test_sudoers_refuses_a_command_that_others_could_change(states, tmp_path, test):
    command = tmp_path / "command"
    command.touch()
    command.chmod(0o757)
    arguments = {"user": "deploy", "units": [], "verbs": [], "commands": [str(command)], "test": test}
    ret = states.sidekiq.sudoers(str(tmp_path / "sidekiq-deploy"), **arguments)
    assert ret.result is False
    assert "/tmp can be written by others than root; `chmod go-w /tmp`" in ret.comment
    assert f"{command} can be written" in ret.comment
    assert list(tmp_path.iterdir()) == [command]


@pytest.mark.parametrize("test", [True, False])
def test_commands_of_other_apps_go(states, repo, tmp_path, test):
    text = (repo / "redis_sidekiq/deploy/files/sidekiq-deployed.jinja").read_text()
    for app in ("shop", "blog"):
        (tmp_path / f"sidekiq-deployed-{app}").write_text(text)
    (tmp_path / "sidekiq-deployed-mine").write_text("#!/bin/sh\n")
    keep, gone = str(tmp_path / "sidekiq-deployed-shop"), str(tmp_path / "sidekiq-deployed-blog")
    ret = states.sidekiq.event_commands_absent(str(tmp_path), keep=[keep], test=test)
    assert (ret.result, ret.changes) == (None if test else True, {"removed": [gone]})
    left = {"sidekiq-deployed-shop", "sidekiq-deployed-mine"} | ({"sidekiq-deployed-blog"} if test else set())
    assert {path.name for path in tmp_path.iterdir()} == left
    if not test:
        assert states.sidekiq.event_commands_absent(str(tmp_path), keep=[keep]).changes == {}


@pytest.mark.parametrize("test", [True, False])
def test_sudoers_absent(states, tmp_path, test):
    path = tmp_path / "sidekiq-deploy"
    path.write_text("")
    ret = states.sidekiq.sudoers_absent(str(path), test=test)
    assert (ret.result, ret.changes) == (None if test else True, {"removed": [str(path)]})
    assert path.exists() is test
    path.unlink(missing_ok=True)
    assert states.sidekiq.sudoers_absent(str(path), test=test).changes == {}


def test_folder_absent_keeps_files_of_others(states, tmp_path):
    folder = tmp_path / "sidekiq"
    assert states.sidekiq.folder_absent(str(folder)).changes == {}
    folder.mkdir()
    (folder / "mine").touch()
    ret = states.sidekiq.folder_absent(str(folder))
    assert (ret.result, ret.changes, ret.comment) == (True, {}, f"{folder} stays, it holds mine")
    (folder / "mine").unlink()
    assert states.sidekiq.folder_absent(str(folder)).changes == {"removed": str(folder)}
    assert not folder.exists()
