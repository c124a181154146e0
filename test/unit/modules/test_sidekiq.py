"""The pure parts of _modules/sidekiq.py: quoting, reading what tools printed, the record of a procedure."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

DATA = Path(__file__).resolve().parents[1] / "data"

SERVICE = {
    "name": "sidekiq",
    "unit": "sidekiq.service",
    "current": "/",
    "env_file": "/etc/sidekiq/sidekiq.env",
    "config_file": "",
    "env": {"REDIS_URL": "redis://:sesame-open@127.0.0.1:6379/0", "RAILS_ENV": "prod"},
    "stop_timeout": 40,
    "start_timeout": 90,
}


def recorded(name: str) -> str:
    return (DATA / name).read_text()


@pytest.fixture
def sidekiq(load, tmp_path, monkeypatch):
    """The module with a settings function, and every command answered by ``sidekiq.answers`` (a list, in order)."""
    module = load("_modules/sidekiq.py")
    module.calls, module.answers = [], []

    def run_all(argv, **kwargs):
        assert kwargs["python_shell"] is False
        module.calls.append(argv)
        answer = module.answers.pop(0) if module.answers else ""
        return answer if isinstance(answer, dict) else {"retcode": 0, "stdout": answer, "stderr": ""}

    def settings(reveal=False):
        return {"sidekiq": {"services": [SERVICE]}, "deploy": {"units": ["sidekiq"], "verbs": ["restart"]}}

    module.__salt__ = {"cmd.run_all": run_all, "redis_sidekiq.settings": settings}
    monkeypatch.setattr(module, "_tool", lambda name, package: f"/usr/bin/{name}")
    monkeypatch.setattr(module, "_LOCK_DIR", str(tmp_path / "lock"))
    monkeypatch.setattr(module, "_SETTLE", 0.0)
    return module


# exec_start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("exec", "exec"),
        ("--queue=mails,2", "--queue=mails,2"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b', r'"a\"b"'),
        ("it's", '"it\'s"'),
        ("back\\slash", r'"back\\slash"'),
        ("50%", '"50%%"'),
        ("%i", '"%%i"'),
        ("$HOME", '"$$HOME"'),
        ("${HOME}", '"$${HOME}"'),
        (";", '";"'),
        ("a\nb", r'"a\nb"'),
        ("a\tb", r'"a\tb"'),
        ("#x", '"#x"'),
        ("grün", '"grün"'),
        ("|", '"|"'),
    ],
)
def test_a_word_is_quoted_for_systemd(sidekiq, word, line):
    assert sidekiq.exec_start(["/usr/bin/bundle", word]) == f"/usr/bin/bundle {line}"


@pytest.mark.parametrize("argv", [[], ["bundle"], ["/usr/bin/my ruby"], ["/usr/$x"], ["-/usr/bin/true"], ["/a%b"], ["/"]])
def test_a_command_that_systemd_cannot_run_is_refused(sidekiq, argv):
    with pytest.raises(SaltInvocationError, match="absolute path"):
        sidekiq.exec_start(argv)


@pytest.mark.parametrize("char", ["\0", "\x1b", "\r", "\x7f"])
def test_control_characters_are_refused_in_words_and_values(sidekiq, char):
    with pytest.raises(SaltInvocationError, match="control character"):
        sidekiq.exec_start(["/usr/bin/bundle", f"a{char}"])
    with pytest.raises(SaltInvocationError, match="SECRET contains a control character") as caught:
        sidekiq._environment_lines({"SECRET": f"sesame{char}"})
    assert "sesame" not in str(caught.value)


# environment file ---------------------------------------------------------------------------------------------------

VALUES = {
    "PLAIN": "word",
    "EMPTY": "",
    "SPACES": "  two  words  ",
    "QUOTES": """a"b'c""",
    "DOLLAR": "$HOME ${HOME} $(id) `id`",
    "HASH": "# no comment; nor this",
    "BACKSLASH": "C:\\n\\",
    "LINES": 'one\ntwo\nFAKE="three"\n',
    "EQUALS": "a=b",
    "UNICODE": "grün ☃",
    "NUMBER": 5,
}


def test_what_was_written_is_read_back_name_by_name(sidekiq):
    lines = sidekiq._environment_lines(VALUES)
    assert sidekiq._environment_read(sidekiq._environment_text(lines)) == lines


@pytest.mark.parametrize("name", ["", "1A", "A B", "A-B", "A=B", "A\nB", "Ä"])
def test_a_variables_name_is_plain(sidekiq, name):
    with pytest.raises(SaltInvocationError, match="no name for an environment variable"):
        sidekiq._environment_lines({name: "x"})


def test_the_difference_names_variables_and_no_value(sidekiq, tmp_path):
    path = tmp_path / "sidekiq.env"
    assert sidekiq.environment_diff(str(path), "sidekiq") == {"added": ["RAILS_ENV", "REDIS_URL"]}
    path.write_text('# Managed by Salt (formula redis_sidekiq)\nGONE="hush-hush"\nRAILS_ENV="prod"\nREDIS_URL=old-secret\n')
    path.chmod(0o644)
    diff = sidekiq.environment_diff(str(path), "sidekiq")
    assert diff == {"changed": ["REDIS_URL"], "removed": ["GONE"], "mode": {"old": "0644", "new": "0600"}}
    sidekiq.environment_write(str(path), "sidekiq")
    assert sidekiq.environment_diff(str(path), "sidekiq") == {}
    assert path.stat().st_mode & 0o7777 == 0o600
    path.write_text(path.read_text() + "# by hand\n")
    assert sidekiq.environment_diff(str(path), "sidekiq") == {"text": {"old": "other text", "new": "as wished"}}


def test_a_file_is_replaced_whole_or_not_at_all(sidekiq, tmp_path, monkeypatch):
    path = tmp_path / "sidekiq.env"
    path.write_text("old")
    (tmp_path / ".sidekiq.env.new").write_text("left by a run that was killed")

    def no_power(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sidekiq.os, "replace", no_power)
    with pytest.raises(CommandExecutionError, match="Input/output error"):
        sidekiq._write(str(path), "new", 0o600)
    assert path.read_text() == "old"
    monkeypatch.undo()
    sidekiq._write(str(path), "new", 0o600)
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["sidekiq.env"]


# systemd, /proc, the journal ----------------------------------------------------------------------------------------


def test_a_process_start_agrees_with_the_clock(sidekiq):
    import subprocess

    before = time.time()
    with subprocess.Popen(["sleep", "5"]) as process:
        after = time.time()
        assert before - 0.02 <= sidekiq._started(process.pid) <= after + 0.02
        process.kill()
    assert sidekiq._started(0) is None
    assert sidekiq._started(process.pid) is None


def test_files_younger_than_the_process_are_changed(sidekiq, tmp_path):
    now = time.time()
    times = {"older": now - 60, "same_tick": now - 30 + 0.01, "younger": now - 10, "future": now + 3600}
    for name, moment in times.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (moment, moment))
    files = [str(tmp_path / name) for name in [*times, "missing"]]
    assert sidekiq._changed_since(now - 30, files) == [str(tmp_path / "younger")]
    assert sidekiq._changed_since(None, files) == []


def test_a_drop_in_that_systemd_has_not_seen_wants_a_reload(sidekiq, tmp_path, monkeypatch):
    monkeypatch.setattr(sidekiq, "_UNIT_DIR", str(tmp_path))
    monkeypatch.setitem(SERVICE, "current", "/")
    folder = tmp_path / "sidekiq.service.d"
    folder.mkdir()
    (folder / "readme").touch()
    shown = "LoadState=loaded\nActiveState=active\nMainPID=1\nNRestarts=0\nNeedDaemonReload=no\nDropInPaths={}\nUnitFileState=enabled\n"
    sidekiq.answers = [shown.format("")] * 2 + [shown.format(folder / "local.conf")]
    assert sidekiq.status("sidekiq", heartbeat=False)["needs_reload"] is False
    (folder / "local.conf").touch()
    facts = sidekiq.status("sidekiq", heartbeat=False)
    assert (facts["needs_reload"], facts["changed_since_start"]) == (True, [str(folder / "local.conf")])
    assert sidekiq.status("sidekiq", heartbeat=False)["needs_reload"] is False
    assert len(sidekiq.calls) == 3


def test_only_services_of_the_settings_are_acted_on(sidekiq):
    for name in ("ssh", "sidekiq.service", "sidekiq ", "", "*", None, ["sidekiq"], "../sidekiq", "sidekiq;id"):
        for act in (sidekiq.start, sidekiq.stop, sidekiq.restart, sidekiq.status):
            with pytest.raises(SaltInvocationError, match="is not a Sidekiq service of this minion"):
                act(name)
    assert sidekiq.calls == []


def test_secrets_of_the_environment_are_blotted_out_of_the_journal(sidekiq):
    text = "cannot reach redis://:sesame-open@127.0.0.1:6379/0 with sesame-open in prod"
    assert sidekiq._blot(text, SERVICE["env"]) == "cannot reach ****** with ****** in prod"


def test_journal_lines_of_any_kind_are_read(sidekiq):
    lines = [
        json.dumps({"MESSAGE": "plain"}),
        json.dumps({"MESSAGE": list("grün\x1b[31m".encode())}),
        json.dumps({"MESSAGE": None}),
        json.dumps({"OTHER": "x"}),
        "[]",
        "not json",
    ]
    assert sidekiq._journal_messages("\n".join(lines)) == ["plain", "grün\x1b[31m"]


# the procedure ------------------------------------------------------------------------------------------------------


def facts(pid=10, active="active", started=None, **more):
    found = {"unit": "sidekiq.service", "loaded": True, "masked": False, "enabled": True, "active": active, "pid": pid}
    found |= {"sub": "", "result": "success", "started": started or time.time() - 60, "restarts": 0}
    return found | {"needs_reload": False, "drop_ins": [], **more}


@pytest.fixture
def host(sidekiq, monkeypatch):
    """A unit whose facts are ``host.facts`` and whose acts change them; ``host.acts`` lists what was done."""

    class Host:
        facts = facts()
        acts: list = []
        start_fails = stop_fails = False

        def start(self, unit):
            self.acts.append("start")
            if self.start_fails:
                raise CommandExecutionError("Job for sidekiq.service failed")
            self.facts = facts(pid=self.facts["pid"] + 1 or 11, started=time.time())

        def stop(self, unit):
            self.acts.append("stop")
            if self.stop_fails:
                raise CommandExecutionError("Failed to stop")
            self.facts = dict(self.facts, active="inactive", pid=0)

    host = Host()
    host.acts = []
    sidekiq.__salt__["service.start"], sidekiq.__salt__["service.stop"] = host.start, host.stop
    monkeypatch.setattr(sidekiq, "_unit_facts", lambda unit: dict(host.facts))
    monkeypatch.setattr(sidekiq, "_first_beat", lambda service, pid: ({"pid": pid}, ""))
    return host


def test_a_restart_tells_its_steps(sidekiq, host):
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (True, ["stop", "start"])
    assert [step["step"] for step in record["steps"]] == ["lock", "look", "stop", "start", "prove"]
    assert (record["old"]["pid"], record["new"]["pid"]) == (10, 1)
    assert record["comment"] == "sidekiq.service was restarted: pid 10 before, 1 now"


@pytest.mark.parametrize(
    ("active", "acts"),
    [("inactive", ["start"]), ("failed", ["start"]), ("activating", ["stop", "start"]), ("active", [])],
)
def test_a_start_does_not_take_an_older_try_for_its_own(sidekiq, host, active, acts):
    host.facts = facts(pid=10 if active == "active" else 0, active=active)
    record = sidekiq.start("sidekiq")
    assert (record["result"], host.acts) == (True, acts)


def test_a_service_whose_stop_fails_is_started_all_the_same(sidekiq, host):
    host.stop_fails = True
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (False, ["stop", "start"])
    assert "did not stop" in record["comment"]


def test_a_start_that_fails_ends_with_the_journals_last_words(sidekiq, host):
    host.start_fails = True
    sidekiq.answers = [json.dumps({"MESSAGE": "no such file: worker.rb, sesame-open"})]
    record = sidekiq.restart("sidekiq")
    assert record["result"] is False
    assert record["comment"] == (
        "sidekiq.service did not start; its journal ends with:\nno such file: worker.rb, ******"
    )


def test_the_same_process_is_no_restart(sidekiq, host, monkeypatch):
    host.start = None
    sidekiq.__salt__["service.start"] = lambda unit: setattr(host, "facts", facts(pid=10))
    record = sidekiq.restart("sidekiq")
    assert record["result"] is False
    assert "is active after its start" in record["comment"]


def test_a_process_that_does_not_beat_has_not_started(sidekiq, host, monkeypatch):
    monkeypatch.setattr(sidekiq, "_first_beat", lambda service, pid: (None, ""))
    record = sidekiq.restart("sidekiq")
    assert record["result"] is False
    assert "does not beat in the Redis of its REDIS_URL" in record["comment"]
    assert "sesame" not in json.dumps(record)


def test_a_redis_that_cannot_be_asked_is_told_and_no_failure(sidekiq, host, monkeypatch):
    monkeypatch.setattr(sidekiq, "_first_beat", lambda service, pid: (None, "Redis does not answer"))
    record = sidekiq.restart("sidekiq")
    assert (record["result"], record["new"]["heartbeat_error"]) == (True, "Redis does not answer")


def test_a_restart_that_another_call_has_made_is_not_made_again(sidekiq, host):
    host.facts = facts(pid=10, started=time.time() + 1)
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (True, [])
    assert "by another call" in record["comment"]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (facts(loaded=False), "is not on this host: apply redis_sidekiq"),
        (facts(loaded=False, masked=True), "is masked"),
    ],
)
def test_nothing_is_stopped_that_could_not_be_started(sidekiq, host, found, sentence):
    host.facts = found
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (False, [])
    assert sentence in record["comment"]


def test_nothing_is_stopped_when_the_release_is_gone(sidekiq, host, monkeypatch):
    monkeypatch.setitem(SERVICE, "current", "/no/such/release")
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (False, [])
    assert "There is no release at /no/such/release" in record["comment"]


def test_a_lock_is_waited_for_no_longer_than_its_budget(sidekiq):
    held = sidekiq._lock("sidekiq", 1)
    begun = time.monotonic()
    with pytest.raises(CommandExecutionError, match="Another call has been at work on sidekiq"):
        sidekiq._lock("sidekiq", 0.3)
    assert 0.3 <= time.monotonic() - begun < 2
    held.close()
    sidekiq._lock("sidekiq", 0.3).close()


# heartbeats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["6.4.1", "7.3.2"])
def test_a_heartbeat_of_each_line_is_read(sidekiq, version):
    raw = json.loads(recorded(f"heartbeat-{version}.json"))
    beat = sidekiq._read_beat(raw["identity"], raw["fields"], now=float(raw["fields"]["beat"]) + 2)
    hostname, pid, _ = raw["identity"].split(":")
    assert (beat["hostname"], beat["pid"], beat["quiet"], beat["beat_age"]) == (hostname, int(pid), False, 2.0)
    assert (beat["queues"], beat["concurrency"]) == (["default"], 10)
    assert beat["version"] in (None, version)


# sudo ---------------------------------------------------------------------------------------------------------------


def test_the_text_has_each_command_whole_and_in_both_spellings(sidekiq):
    text = sidekiq.sudoers_text("deploy", ["sidekiq", "mails.service"], ["restart", "stop"])
    grants = [line for line in text.splitlines() if not line.startswith("#")]
    systemctl = os.path.realpath("/usr/bin/systemctl")
    assert grants == [
        f"deploy ALL=(root) NOPASSWD: NOEXEC: {systemctl} {verb} {name}{end}"
        for name in ("sidekiq", "mails")
        for verb in ("restart", "stop")
        for end in ("", ".service")
    ]


@pytest.mark.parametrize(
    "user",
    ["", "ALL", "Deploy", "%sudo", "#0", "+net", "root", "a b", "a,b", "a\nb", "a=b", "!a", "a:b", "*", "-a", ".a", "a."],
)
def test_a_user_that_sudo_could_read_as_more_is_refused(sidekiq, user):
    with pytest.raises(SaltInvocationError, match="cannot be granted a command"):
        sidekiq.sudoers_text(user, ["sidekiq"], ["restart"])


@pytest.mark.parametrize(
    "unit",
    [
        "", "ALL", "*", "side*", "sidekiq ssh", "sidekiq, ALL", "sidekiq\nALL ALL=ALL", "--now", "-", "sidekiq?", "a=b",
        "a:b", "a\\", "[a-z]", "^.*$", "sidekiq.timer", "ssh.service.service", '"a"', "a#b", "ä", "a/b", "a;b", "../a",
    ],
)  # fmt: skip
def test_a_unit_that_sudo_could_read_as_more_is_refused(sidekiq, unit):
    if unit == "ALL":
        # As an argument it is a word like any other; only alone, as a command, would it mean everything.
        assert "systemctl restart ALL.service" in sidekiq.sudoers_text("deploy", [unit], ["restart"])
        return
    with pytest.raises(SaltInvocationError, match="no name of a unit|no unit to grant"):
        sidekiq.sudoers_text("deploy", [unit], ["restart"])


@pytest.mark.parametrize("verbs", [[], ["status"], ["edit"], ["restart", "ALL"], ["reload"], ["restart ssh"], ["*"]])
def test_only_verbs_that_end_where_they_begin_are_granted(sidekiq, verbs):
    with pytest.raises(SaltInvocationError, match="Only these verbs can be granted"):
        sidekiq.sudoers_text("deploy", ["sidekiq"], verbs)


@pytest.mark.parametrize("name", ["sidekiq", "/etc/sudoers.d/a.b", "/etc/sudoers.d/a~", "/etc/sudoers.d/", "/x/.a", "/x/a b"])
def test_a_name_that_sudo_ignores_is_refused_before_anything_runs(sidekiq, name):
    with pytest.raises(SaltInvocationError, match="sudo would ignore"):
        sidekiq.sudoers_validate("", name)
    assert sidekiq.calls == []


@pytest.fixture
def etc(tmp_path):
    """A policy as Debian lays it out, with every way to include a file."""
    (tmp_path / "etc/sudoers.d").mkdir(parents=True)
    (tmp_path / "copy").mkdir()
    host = os.uname().nodename.split(".")[0]
    (tmp_path / "etc/sudoers").write_text(
        "Defaults env_reset\n# include nothing\n#includedir sudoers.d\n@include extra-%h\n"
        f'@include "{tmp_path}/with space"\n'
    )
    (tmp_path / f"etc/extra-{host}").write_text("# extra\n")
    (tmp_path / "with space").write_text("# space")
    for name in ("00-first", "zz-last", "ignored.bak", "ignored~", ".deploy.new", "deploy"):
        (tmp_path / "etc/sudoers.d" / name).write_text(f"# {name}\n")
    (tmp_path / "candidate").write_text("# candidate\n")
    return tmp_path


def copied(sidekiq, etc, name):
    name = str(etc / name)
    copies = sidekiq._copy_policy(str(etc / "copy"), str(etc / "candidate"), name, root=str(etc / "etc/sudoers"))
    return {os.path.relpath(original, etc): Path(copy).read_text() for copy, original in copies.items()}


def test_the_copy_holds_what_sudo_reads_with_the_candidate_in_place(sidekiq, etc):
    copies = copied(sidekiq, etc, "etc/sudoers.d/deploy")
    host = os.uname().nodename.split(".")[0]
    names = ["etc/sudoers", "etc/sudoers.d/00-first", "etc/sudoers.d/deploy", "etc/sudoers.d/zz-last"]
    assert list(copies) == [*names, f"etc/extra-{host}", "with space"]
    assert copies["etc/sudoers.d/deploy"] == "# candidate\n"
    assert str(etc / "etc") not in copies["etc/sudoers"]
    assert re.findall(r"@include \S+/policy/(\d)", copies["etc/sudoers"]) == ["1", "2", "3", "4", "5"]


def test_a_candidate_that_is_new_takes_its_place_in_order(sidekiq, etc):
    copies = copied(sidekiq, etc, "etc/sudoers.d/middle")
    assert list(copies)[1:5] == [f"etc/sudoers.d/{name}" for name in ("00-first", "deploy", "middle", "zz-last")]


def test_a_folder_that_nothing_includes_is_told(sidekiq, etc):
    with pytest.raises(CommandExecutionError, match="sudo would never read"):
        copied(sidekiq, etc, "elsewhere/deploy")


def test_a_loop_of_includes_ends(sidekiq, etc):
    (etc / "etc/sudoers").write_text("@include sudoers\n@includedir sudoers.d\n")
    with pytest.raises(CommandExecutionError, match="more than 128 files"):
        copied(sidekiq, etc, "etc/sudoers.d/deploy")


def test_the_file_to_blame_is_named(sidekiq):
    copies = {f"/tmp/x/policy/{n}": f"/etc/sudoers.d/f{n}" for n in range(12)}
    sentence = sidekiq._whole_policy_sentence("/tmp/x/policy/11:1:5: syntax error", copies, "/etc/sudoers.d/f1")
    assert sentence.startswith("The sudo policy is broken by /etc/sudoers.d/f11, not by /etc/sudoers.d/f1")
    assert sentence.endswith("/etc/sudoers.d/f11:1:5: syntax error")
    sentence = sidekiq._whole_policy_sentence("/tmp/x/policy/1:1:5: syntax error", copies, "/etc/sudoers.d/f1")
    assert sentence.startswith("The sudo policy would break with /etc/sudoers.d/f1")


def rule(command, runas="root", tags=("NOPASSWD",)):
    return {"runas": runas, "tags": list(tags), "command": command}


@pytest.mark.parametrize("version", ["1.9.13p3", "1.9.16p2"])
def test_what_sudo_lists_is_read(sidekiq, version):
    rules = sidekiq._read_sudo_rules(recorded(f"sudo-l-{version}.txt"))
    assert rules == [
        rule("/usr/bin/apt-get update", tags=[]),
        rule("/bin/ls"),
        rule(r"/bin/echo a\, b"),
        rule("/bin/date", tags=["NOPASSWD", "NOEXEC"]),
        rule("/bin/who", tags=["NOEXEC", "PASSWD"]),
        rule("ALL", runas="www-data : adm", tags=[]),
        rule("/usr/bin/systemctl restart sidekiq"),
        rule("/usr/bin/systemctl restart sidekiq.service"),
    ]
    assert sidekiq._read_sudo_rules(recorded(f"sudo-l-{version}-none.txt")) == []


def test_a_check_tells_what_is_missing_and_what_is_beyond(sidekiq):
    systemctl = os.path.realpath("/usr/bin/systemctl")
    sidekiq.answers = [
        "User deploy may run the following commands on h:\n"
        f"    (root) NOPASSWD: {systemctl} restart sidekiq\n"
        f"    (root) {systemctl} restart sidekiq.service\n"
        f"    (www-data) NOPASSWD: {systemctl} restart sidekiq\n"
    ]
    check = sidekiq.sudo_check("deploy")
    assert check["missing"] == [f"{systemctl} restart sidekiq.service"]
    assert check["beyond"] == [rule(f"{systemctl} restart sidekiq", runas="www-data")]
    assert len(sidekiq.calls) == 1
