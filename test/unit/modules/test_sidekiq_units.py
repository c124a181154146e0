"""The pure parts of _modules/sidekiq_units.py: what systemd, /proc and the journal say, as data."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
from salt.exceptions import CommandExecutionError

SHOWN = """LoadState=loaded
ActiveState=active
SubState=running
Result=success
MainPID={pid}
NRestarts=2
NeedDaemonReload=no
DropInPaths={drop_ins}
FragmentPath=/etc/systemd/system/sidekiq.service
ControlGroup=/system.slice/sidekiq.service
UnitFileState=enabled
"""


@pytest.fixture
def units(load, tmp_path, monkeypatch):
    """The module with every command answered by ``units.answers`` (a list, in order) and noted in ``units.calls``."""
    module = load("_modules/sidekiq_units.py")
    module.calls, module.answers = [], []

    def run_all(argv, **kwargs):
        assert kwargs["python_shell"] is False
        module.calls.append(argv)
        answer = module.answers.pop(0) if module.answers else ""
        return answer if isinstance(answer, dict) else {"retcode": 0, "stdout": answer, "stderr": ""}

    module.__salt__ = {"cmd.run_all": run_all}
    monkeypatch.setattr(module, "_tool", lambda name, package: f"/usr/bin/{name}")
    monkeypatch.setattr(module, "_UNIT_DIR", str(tmp_path / "etc"))
    monkeypatch.setattr(module, "_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return module


def test_one_program_tells_of_all_units(units):
    units.answers = ["\n\n".join(SHOWN.format(pid=pid, drop_ins="") for pid in (1, 0)).strip()]
    first, second = units.facts(["sidekiq@1.service", "sidekiq@2.service"])
    assert len(units.calls) == 1
    assert (first["unit"], first["pid"], first["active"], first["restarts"]) == ("sidekiq@1.service", 1, "active", 2)
    assert (second["unit"], second["pid"], second["started"]) == ("sidekiq@2.service", 0, None)


def test_a_systemd_that_does_not_answer_is_told(units):
    units.answers = [{"retcode": 1, "stdout": "", "stderr": "Failed to connect to bus"}]
    with pytest.raises(CommandExecutionError, match="does not answer about sidekiq.service: Failed to connect"):
        units.facts(["sidekiq.service"])


@pytest.mark.parametrize(
    ("unit", "folder"), [("sidekiq", "sidekiq"), ("sidekiq@2", "sidekiq@2"), ("sidekiq@2", "sidekiq@")]
)
def test_a_drop_in_that_systemd_has_not_seen_wants_a_reload(units, tmp_path, unit, folder):
    drop_in = tmp_path / "etc" / f"{folder}.service.d" / "local.conf"
    drop_in.parent.mkdir(parents=True)
    (drop_in.parent / "readme").touch()
    units.answers = [
        SHOWN.format(pid=1, drop_ins=""),
        SHOWN.format(pid=1, drop_ins=""),
        SHOWN.format(pid=1, drop_ins=drop_in),
    ]
    (before,) = units.facts([f"{unit}.service"])
    drop_in.touch()
    (unseen,), (seen,) = units.facts([f"{unit}.service"]), units.facts([f"{unit}.service"])
    assert [facts["needs_reload"] for facts in (before, unseen, seen)] == [False, True, False]
    assert unseen["drop_ins"] == seen["drop_ins"] == [str(drop_in)]


def test_a_process_start_agrees_with_the_clock(units):
    before = time.time()
    with subprocess.Popen(["sleep", "5"]) as process:
        after = time.time()
        assert before - 0.02 <= units.start_time(process.pid) <= after + 0.02
        process.kill()
    for pid in (0, process.pid):
        assert (units.start_time(pid), units.born(pid), units.process(pid)) == (None, None, None)


def test_a_signal_reaches_the_process_that_was_meant_and_no_other(units):
    with subprocess.Popen(["sleep", "5"]) as process:
        ticks = units.born(process.pid)
        assert units.signal(process.pid, ticks + 1, "TERM") is False
        assert process.poll() is None
        assert units.signal(process.pid, ticks, "TERM") is True
        assert process.wait(5) == -15
    assert units.signal(process.pid, ticks, "TERM") is False


@pytest.mark.parametrize(
    ("line", "version", "stopping"),
    [
        ("sidekiq 6.4.1 app [0 of 10 busy]", "6.4.1", False),
        ("sidekiq 7.3.2 app [3 of 10 busy] stopping", "7.3.2", True),
        ("sidekiq 8.0.0.beta1 my app [3 of 10 busy] leader", "8.0.0.beta1", False),
        ("ruby /usr/bin/sidekiq -e production", None, False),
        ("sidekiq", None, False),
    ],
)
def test_a_process_title_is_read(units, tmp_path, line, version, stopping):
    script = "import sys, time; print(flush=True); time.sleep(9)"
    with subprocess.Popen([line, "-c", script], executable="/usr/bin/env", stdout=subprocess.DEVNULL) as process:
        process.kill()
    match = units._TITLE.match(line)
    assert (match and match["version"]) == version
    assert bool(match and "stopping" in match["rest"]) is stopping


@pytest.mark.parametrize(
    ("name", "works"),
    [
        ("processor", True),
        ("default/process", True),
        ("single/processor"[:15], True),
        ("heartbeat", False),
        ("scheduler", False),
        ("bundle", False),
        ("", False),
        ("/", False),
        ("worker/0:1-event", False),
    ],
)
def test_worker_threads_are_known_by_their_names(units, name, works):
    assert units._is_worker(name) is works


@pytest.mark.parametrize(
    ("unit", "helper"),
    [("sidekiq.service", "sidekiq-handover.service"), ("my-jobs@12.service", "my-jobs-handover@12.service")],
)
def test_a_helper_keeps_the_instance(units, unit, helper):
    assert units.helper_name(unit) == helper


def test_a_helper_has_the_units_text_and_drop_ins_and_goes_without_a_trace(units, tmp_path):
    fragment, local, general = (
        tmp_path / "sidekiq.service",
        tmp_path / "a" / "local.conf",
        tmp_path / "service.d" / "x.conf",
    )
    for path in (fragment, local, general):
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    facts = {"unit": "sidekiq.service", "fragment": str(fragment), "drop_ins": [str(local), str(general)]}
    assert units.helper_exists("sidekiq.service") is False
    name = units.helper_write(facts)
    assert units.helper_exists("sidekiq.service") is True
    assert (tmp_path / "run" / name).read_text() == "sidekiq.service"
    folder = tmp_path / "run" / f"{name}.d"
    assert sorted(path.name for path in folder.iterdir()) == ["00-local.conf", "zz-handover.conf"]
    assert "Restart=no" in (folder / "zz-handover.conf").read_text()
    units.helper_remove("sidekiq.service")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_guard_waits_for_the_lock_before_it_restarts(units, tmp_path):
    units.guard_arm("sidekiq@1.service", "/run/x.lock")
    text = (tmp_path / "run" / "sidekiq-guard@1.service").read_text()
    first, second = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert first == "ExecStart=/usr/bin/flock /run/x.lock /usr/bin/systemctl restart sidekiq@1.service"
    assert second == "ExecStart=-/usr/bin/systemctl stop sidekiq-handover@1.service"
    assert units.calls[-1] == ["/usr/bin/systemctl", "start", "--no-block", "--", "sidekiq-guard@1.service"]
    assert units.guard_exists("sidekiq@1.service")
    units.guard_disarm("sidekiq@1.service")
    assert not units.guard_exists("sidekiq@1.service")
    units.calls.clear()
    units.guard_disarm("sidekiq@1.service")
    assert units.calls == []


def test_secrets_are_blotted_out_of_the_journal(units):
    text = "cannot reach redis://:sesame-open@127.0.0.1:6379/0 with sesame-open in prod"
    secrets = ["redis://:sesame-open@127.0.0.1:6379/0", "prod"]
    assert units._blot(text, secrets) == "cannot reach ****** with ****** in prod"


def test_journal_lines_of_any_kind_are_read(units):
    lines = [
        json.dumps({"MESSAGE": "plain", "_PID": "7"}),
        json.dumps({"MESSAGE": list("grün\x1b[31m".encode())}),
        json.dumps({"MESSAGE": None}),
        json.dumps({"OTHER": "x"}),
        "[]",
        "not json",
    ]
    assert units._journal_entries("\n".join(lines)) == [
        {"pid": 7, "message": "plain"},
        {"pid": 0, "message": "grün\x1b[31m"},
    ]


def test_words_in_a_journals_search_are_no_pattern(units):
    assert units.journal_about(["sidekiq.service"], 1.0, []) == []
    units.answers = [json.dumps({"MESSAGE": "a", "_PID": "7"})]
    assert units.journal_about(["sidekiq.service"], 1.0, ["4e5c", "a.*(b"]) == [{"pid": 7, "message": "a"}]
    assert "--grep=4e5c|a...b" in units.calls[0]
