"""The decisions of _states/sidekiq.py, with the execution module's answers given."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError


def unit(name="sidekiq.service", **more):
    found = {"unit": name, "loaded": True, "enabled": True, "active": "active", "pid": 10, "started": 1.0}
    return found | {"needs_reload": False, "stale": [], **more}


def facts(*units, **more):
    found = {"service": "sidekiq", "current": "/srv/app/current", "release": "/srv/app/releases/1", "deployed": True}
    return found | {"surplus": [], "leftover": [], "processes": list(units) or [unit()], **more}


GOOD = facts(unit(pid=11))
OFF = {"active": "inactive", "pid": 0, "started": None}


@pytest.fixture
def state(load):
    """The state module on a host whose facts are ``state.facts`` (in order, the last stays); acts are in its list."""
    module = load("_states/sidekiq.py")
    module.__opts__ = {"test": False}
    module.acts, module.facts = [], [GOOD]
    entries = [
        {"unit": name, "old": {"pid": 10}, "new": {"pid": 11}} for name in ("sidekiq.service", "sidekiq@2.service")
    ]
    module.record = {"result": True, "comment": "done", "processes": entries, "jobs": {"a": {"fate": "finished"}}}

    def act(name):
        def run(*args, **kwargs):
            module.acts.append((name, *args, *kwargs.items()))
            return module.record

        return run

    module.__salt__ = {
        "sidekiq.status": lambda name, **kwargs: module.facts.pop(0) if len(module.facts) > 1 else module.facts[0],
        **{
            name: act(name)
            for name in ("sidekiq.restart", "sidekiq.retire", "service.enable", "sidekiq_units.reload_systemd")
        },
    }
    return module


NEEDS = {
    "new unit": (
        facts(unit(loaded=False, enabled=False, **OFF)),
        ["sidekiq_units.reload_systemd", "service.enable", "sidekiq.restart"],
        "sidekiq.service would be loaded, enabled at boot, started",
    ),
    "disabled": (facts(unit(enabled=False)), ["service.enable"], "sidekiq.service would be enabled at boot"),
    "stopped": (facts(unit(**OFF)), ["sidekiq.restart"], "sidekiq.service would be started"),
    "failed": (facts(unit(**OFF | {"active": "failed"})), ["sidekiq.restart"], "sidekiq.service would be started"),
    "starting again and again": (
        facts(unit(active="activating")),
        ["sidekiq.restart"],
        "sidekiq.service would be started",
    ),
    "stale": (
        facts(unit(stale=["changed since it started: /etc/sidekiq/sidekiq.env"])),
        ["sidekiq.restart"],
        "sidekiq.service would be restarted, because changed since it started: /etc/sidekiq/sidekiq.env",
    ),
    "an older unit is loaded": (
        facts(unit(needs_reload=True, stale=["it runs with an older unit"])),
        ["sidekiq.restart"],
        "sidekiq.service would be loaded anew, restarted, because it runs with an older unit",
    ),
    "one of two": (
        facts(unit("sidekiq@1.service"), unit("sidekiq@2.service", stale=["old"])),
        ["sidekiq.restart"],
        "sidekiq@2.service would be restarted, because old",
    ),
    "one too many": (
        facts(unit(), surplus=["sidekiq@2.service"]),
        ["sidekiq.retire"],
        "sidekiq@2.service would be drained, stopped and disabled",
    ),
    "cut off before": (
        facts(unit(), leftover=["sidekiq.service"]),
        ["sidekiq.restart"],
        "sidekiq.service would be tidied up after a restart that was cut off",
    ),
    "not deployed": (
        facts(unit(loaded=False, enabled=False, **OFF), deployed=False),
        ["sidekiq_units.reload_systemd", "service.enable"],
        "sidekiq.service would be loaded, enabled at boot",
    ),
}


@pytest.mark.parametrize("need", NEEDS)
def test_current_does_what_is_needed_and_asks_again(state, need):
    found, acts, _ = NEEDS[need]
    state.facts = [found, facts(unit(**({"pid": 11} if found["deployed"] else OFF)), deployed=found["deployed"])]
    ret = state.current("sidekiq")
    assert (ret["result"], [act[0] for act in state.acts]) == (True, acts)
    assert ret["changes"]
    if "sidekiq.restart" in acts:
        assert ("stale_only", True) in state.acts[-1]
        assert ret["changes"]["sidekiq.service pid"] == {"old": 10, "new": 11}
        assert ret["changes"]["jobs in work"] == {"finished": 1}


@pytest.mark.parametrize("need", NEEDS)
def test_current_announces_and_touches_nothing(state, need):
    state.__opts__["test"] = True
    state.facts = [NEEDS[need][0]]
    ret = state.current("sidekiq")
    assert (ret["result"], state.acts) == (None, [])
    assert ret["comment"] == NEEDS[need][2]
    assert ret["changes"]


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (GOOD, "sidekiq.service: at work in /srv/app/releases/1, pid 11"),
        (
            facts(unit(**OFF), deployed=False),
            "sidekiq.service: enabled; there is no release at /srv/app/current yet, the first deploy starts it",
        ),
    ],
)
def test_current_leaves_what_is_right_alone(state, test, found, sentence):
    state.__opts__["test"] = test
    state.facts = [found]
    ret = state.current("sidekiq")
    assert ret == {"name": "sidekiq", "result": True, "changes": {}, "comment": sentence}
    assert state.acts == []


def test_current_does_not_claim_what_another_call_did_meanwhile(state):
    state.facts = [facts(unit(stale=["old"])), GOOD]
    state.record = {"result": True, "comment": "sidekiq.service works already", "processes": [], "jobs": {}}
    ret = state.current("sidekiq")
    assert ret == {"name": "sidekiq", "result": True, "changes": {}, "comment": "sidekiq.service works already"}


@pytest.mark.parametrize("test", [False, True])
def test_a_unit_that_changed_before_the_first_deploy_is_loaded_with_its_files_change(state, test):
    state.__opts__["test"] = test
    state.facts = [facts(unit(needs_reload=True, **OFF), deployed=False)]
    ret = state.current("sidekiq")
    assert (ret["result"], ret["changes"]) == (True, {})
    assert [act[0] for act in state.acts] == ([] if test else ["sidekiq_units.reload_systemd"])


def test_current_passes_its_strategy_on(state):
    state.facts = [facts(unit(stale=["old"])), GOOD]
    state.current("sidekiq", strategy="drain")
    assert ("strategy", "drain") in state.acts[0]


def test_current_fails_with_the_records_words(state):
    state.facts = [facts(unit(**OFF | {"active": "failed"}), surplus=["sidekiq@1.service"])]
    state.record = {"result": False, "comment": "sidekiq.service did not start; its journal ends with:\nboom"}
    ret = state.current("sidekiq")
    assert (ret["result"], ret["comment"]) == (False, state.record["comment"])
    assert [act[0] for act in state.acts] == ["sidekiq.restart"]


def test_current_fails_when_it_is_still_different(state):
    state.facts = [facts(unit(enabled=False))]
    ret = state.current("sidekiq")
    assert (ret["result"], ret["comment"]) == (False, "And still sidekiq.service would be enabled at boot")


@pytest.mark.parametrize("error", [CommandExecutionError, SaltInvocationError])
def test_no_state_raises(state, error):
    def fail(*_args, **_kwargs):
        raise error("a sentence")

    state.__salt__ = dict.fromkeys(
        [
            "sidekiq.status",
            "sidekiq.environment_diff",
            "sidekiq_risks.find",
            "sidekiq_sudo.sudoers_text",
            "sidekiq.file_facts",
            "sidekiq.folder_entries",
            "sidekiq.event_commands",
        ],
        fail,
    )
    for ret in (
        state.current("sidekiq"),
        state.mod_watch("sidekiq"),
        state.environment_file("/e", "sidekiq"),
        state.sudoers("/etc/sudoers.d/x", "deploy", ["sidekiq"], ["restart"]),
        state.sudoers_absent("/etc/sudoers.d/x"),
        state.folder_absent("/etc/sidekiq"),
        state.event_commands_absent("/usr/local/sbin", []),
    ):
        assert (ret["result"], ret["comment"]) == (False, "a sentence")


def test_a_watched_change_restarts_what_is_older_than_this_run_of_states(state):
    state.facts = [facts(unit(started=state._RUN_BEGAN - 5))]
    ret = state.mod_watch("sidekiq", sfun="current", strategy="drain", __reqs__={})
    assert ret["result"] is True and ret["changes"]["sidekiq.service pid"] == {"old": 10, "new": 11}
    assert state.acts == [("sidekiq.restart", "sidekiq", ("since", state._RUN_BEGAN), ("strategy", "drain"))]


def test_a_watched_change_is_announced_although_the_files_are_still_old(state):
    state.__opts__["test"] = True
    ret = state.mod_watch("sidekiq")
    sentence = "sidekiq.service would be restarted, because a state that it watches changed, or would change"
    assert (ret["result"], ret["comment"], state.acts) == (None, sentence, [])
    assert ret["changes"]


def test_a_watched_change_restarts_at_most_once_in_a_run(state):
    state.facts = [facts(unit(started=state._RUN_BEGAN + 5))]
    ret = state.mod_watch("sidekiq")
    assert (ret["result"], ret["changes"], state.acts) == (True, {}, [])


def test_a_watched_change_before_the_first_deploy_is_nothing(state):
    state.__opts__["test"] = True
    state.facts = [facts(unit(**OFF), deployed=False)]
    assert state.mod_watch("sidekiq")["result"] is True


def test_other_states_cannot_watch(state):
    assert state.mod_watch("x", sfun="sudoers")["result"] is False


# environment_file and sudoers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "diffs", "result", "written"),
    [
        (False, [{}], True, 0),
        (True, [{"added": ["A"]}], None, 0),
        (False, [{"added": ["A"]}, {}], True, 1),
        (False, [{"added": ["A"]}, {"mode": {}}], False, 1),
    ],
)
def test_environment_file(state, test, diffs, result, written):
    state.__opts__["test"] = test
    writes = []
    state.__salt__ = {
        "sidekiq.environment_diff": lambda name, service: diffs.pop(0),
        "sidekiq.environment_write": lambda name, service: writes.append(name),
    }
    ret = state.environment_file("/etc/sidekiq/sidekiq.env", "sidekiq")
    assert (ret["result"], len(writes)) == (result, written)


@pytest.fixture
def sudo(state):
    """A sudoers file that is ``sudo.file``; writing makes it right unless ``sudo.refuses``."""
    right = {"text": "deploy ...\n", "mode": "0440", "owner": "root:root"}

    class Sudo:
        installed = True
        file: dict = {}
        check = {"user": "deploy", "missing": [], "beyond": []}
        validated = written = 0
        ours: list = []
        risks: list = []
        refuses = changeable = ""

        def validate_commands(self, commands):
            if commands and self.changeable:
                raise CommandExecutionError(self.changeable)

        def validate(self, text, name, gone):
            self.validated += 1
            if self.refuses:
                raise CommandExecutionError(self.refuses)

        def write(self, name, user, units, verbs, commands, group):
            self.validate("", name, [])
            self.written += 1
            self.file = right
            self.ours = [name]

    sudo = Sudo()
    sudo.right = right
    state.__salt__ = {
        "sidekiq_sudo.sudo_installed": lambda: sudo.installed,
        "sidekiq_sudo.sudoers_text": lambda user, units, verbs, commands, group: right["text"],
        "sidekiq_sudo.commands_validate": sudo.validate_commands,
        "sidekiq.file_facts": lambda name: sudo.file,
        "sidekiq.text_diff": lambda old, new: f"{old}->{new}",
        "sidekiq_sudo.sudoers_validate": sudo.validate,
        "sidekiq_sudo.sudoers_write": sudo.write,
        "sidekiq_sudo.sudo_check": lambda user, units, verbs, commands, thorough=True: sudo.check,
        "sidekiq_sudo.sudoers_files": lambda folder: sudo.ours,
        "sidekiq_risks.find": lambda user, units, commands, rules: sudo.risks,
        "sidekiq_risks.words": lambda risk: f"{risk['what']} {risk['path']}",
        "sidekiq_sudo.rule_words": lambda rule: f"({rule['runas']}) {rule['command']}, by /etc/sudoers:7",
    }
    return sudo


def sudoers(state):
    return state.sudoers("/etc/sudoers.d/x", "deploy", ["sidekiq"], ["restart"])


@pytest.mark.parametrize("change", [{}, {"text": "old"}, {"mode": "0644"}, {"owner": "0:5"}])
def test_sudoers_is_written_when_text_mode_or_owner_differ(state, sudo, change):
    sudo.file = {**sudo.right, **change} if change else {}
    ret = sudoers(state)
    assert (ret["result"], sudo.written, bool(ret["changes"])) == (True, 1, True)


def test_sudoers_that_is_right_is_left_alone(state, sudo):
    sudo.file = sudo.right
    ret = sudoers(state)
    assert (ret["result"], ret["changes"], sudo.written, sudo.validated) == (True, {}, 0, 0)


@pytest.mark.parametrize("test", [True, False])
def test_a_file_of_ours_with_another_name_goes(state, sudo, test):
    state.__opts__["test"] = test
    sudo.file, sudo.ours = sudo.right, ["/etc/sudoers.d/old", "/etc/sudoers.d/x"]
    ret = sudoers(state)
    assert (ret["result"], ret["changes"]) == (None if test else True, {"removed": ["/etc/sudoers.d/old"]})
    assert sudo.written == (not test)
    assert test or sudoers(state)["changes"] == {}


@pytest.mark.parametrize("test", [True, False])
def test_other_ways_are_warnings_and_fail_when_strict(state, sudo, test):
    state.__opts__["test"] = test
    sudo.risks = [{"what": "group", "path": "docker"}]
    wish = ("/etc/sudoers.d/x", "deploy", ["sidekiq"], ["restart"])
    ret = state.sudoers(*wish, strict=True)
    assert (ret["result"], ret["changes"], sudo.written) == (False, {}, 0)
    assert ret["comment"].endswith("group docker")
    ret = state.sudoers(*wish)
    assert (ret["result"], ret["warnings"], sudo.written) == (None if test else True, ["group docker"], not test)
    sudo.risks = []
    assert "warnings" not in state.sudoers(*wish, strict=True)


def test_sudoers_is_announced_on_a_host_without_sudo(state, sudo):
    state.__opts__["test"] = True
    sudo.installed = False
    ret = sudoers(state)
    assert (ret["result"], sudo.validated, bool(ret["changes"])) == (None, 0, True)
    assert "once sudo is installed" in ret["comment"]


def test_sudoers_is_validated_in_test_mode_too(state, sudo):
    state.__opts__["test"] = True
    ret = sudoers(state)
    assert (ret["result"], sudo.validated, sudo.written) == (None, 1, 0)
    sudo.refuses = "visudo refuses the text"
    ret = sudoers(state)
    assert (ret["result"], ret["comment"], sudo.written) == (False, "visudo refuses the text", 0)


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        ({"missing": ["/usr/bin/systemctl restart sidekiq"]}, "restart sidekiq is not allowed without a password"),
        (
            {"beyond": [{"runas": "ALL", "tags": [], "command": "ALL"}]},
            "another rule allows (ALL) ALL, by /etc/sudoers:7",
        ),
    ],
)
def test_sudoers_fails_when_sudo_says_otherwise(state, sudo, check, sentence):
    sudo.file = sudo.right
    sudo.check = {**sudo.check, **check}
    ret = sudoers(state)
    assert ret["result"] is False
    assert sentence in ret["comment"]


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("written", [False, True])
def test_sudoers_fails_when_others_can_change_a_command(state, sudo, test, written):
    state.__opts__["test"] = test
    sudo.file = sudo.right if written else {}
    sudo.changeable = "/usr/local belongs to user deploy"
    ret = state.sudoers("/etc/sudoers.d/x", "deploy", [], [], commands=["/usr/local/x"])
    assert (ret["result"], ret["comment"], sudo.written) == (False, "/usr/local belongs to user deploy", 0)
    assert sudoers(state)["result"] is not False


@pytest.mark.parametrize("test", [False, True])
def test_commands_of_other_apps_are_removed(state, test):
    state.__opts__["test"] = test
    found = ["/s/sidekiq-deployed-a", "/s/sidekiq-deployed-b"]
    state.__salt__ = {
        "sidekiq.event_commands": lambda name: list(found),
        "sidekiq.event_commands_remove": lambda name, paths: [found.remove(path) for path in paths],
    }
    ret = state.event_commands_absent("/s", keep=["/s/sidekiq-deployed-a"])
    assert (ret["result"], ret["changes"]) == (None if test else True, {"removed": ["/s/sidekiq-deployed-b"]})
    assert len(found) == (2 if test else 1)
    found[:] = ["/s/sidekiq-deployed-a"]
    ret = state.event_commands_absent("/s", keep=["/s/sidekiq-deployed-a"])
    assert (ret["result"], ret["changes"]) == (True, {})


def test_a_command_that_does_not_go_is_told(state):
    state.__salt__ = {
        "sidekiq.event_commands": lambda name: ["/s/sidekiq-deployed-b"],
        "sidekiq.event_commands_remove": lambda name, paths: None,
    }
    ret = state.event_commands_absent("/s", keep=[])
    assert (ret["result"], ret["comment"]) == (False, "/s/sidekiq-deployed-b was removed and is there again")


@pytest.mark.parametrize("test", [False, True])
def test_sudoers_absent(state, test):
    state.__opts__["test"] = test
    files = {"/etc/sudoers.d/x": {"text": ""}, "/etc/sudoers.d/old": {"text": ""}}
    state.__salt__ = {
        "sidekiq.file_facts": lambda name: files.get(name, {}),
        "sidekiq_sudo.sudoers_files": lambda folder: list(files),
        "sidekiq_sudo.sudoers_remove": files.pop,
    }
    ret = state.sudoers_absent("/etc/sudoers.d/x")
    assert ret["result"] is (None if test else True)
    assert ret["changes"] == {"removed": ["/etc/sudoers.d/x", "/etc/sudoers.d/old"]}
    assert bool(files) is test
    files.clear()
    assert state.sudoers_absent("/etc/sudoers.d/x")["changes"] == {}
