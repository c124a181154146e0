"""The pure parts of _modules/sidekiq.py: quoting, reading what tools printed, the record of a procedure."""

from __future__ import annotations

import json
import os
import time

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

SERVICE = {
    "name": "sidekiq",
    "units": ["sidekiq.service"],
    "unit_file": "/etc/systemd/system/sidekiq.service",
    "app_dir": "/srv/app",
    "current": "/",
    "restart_file": "",
    "strategy": "handover",
    "drain_timeout": 60,
    "env_names": ["RAILS_ENV", "REDIS_URL"],
    "env_file": "/etc/sidekiq/sidekiq.env",
    "config_file": "",
    "env": {"REDIS_URL": "redis://:sesame-open@127.0.0.1:6379/0", "RAILS_ENV": "prod"},
    "stop_timeout": 40,
    "start_timeout": 90,
}


@pytest.fixture
def sidekiq(load, whole_files, tmp_path, monkeypatch):
    """The module with a settings function, and every command answered by ``sidekiq.answers`` (a list, in order)."""
    module = load("_modules/sidekiq.py")
    module.calls, module.answers = [], []

    def run_all(argv, **kwargs):
        assert kwargs["python_shell"] is False
        module.calls.append(argv)
        answer = module.answers.pop(0) if module.answers else ""
        return answer if isinstance(answer, dict) else {"retcode": 0, "stdout": answer, "stderr": ""}

    def settings(reveal=False):
        return {"sidekiq": {"services": [SERVICE]}}

    module.__salt__ = {"cmd.run_all": run_all, "redis_sidekiq.settings": settings, **whole_files}
    monkeypatch.setattr(module, "_LOCK", str(tmp_path / "lock" / "sidekiq.lock"))
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


@pytest.mark.parametrize(
    "argv", [[], ["bundle"], ["/usr/bin/my ruby"], ["/usr/$x"], ["-/usr/bin/true"], ["/a%b"], ["/"]]
)
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
    path.write_text(
        '# Managed by Salt (formula redis_sidekiq)\nGONE="hush-hush"\nRAILS_ENV="prod"\nREDIS_URL=old-secret\n'
    )
    path.chmod(0o644)
    diff = sidekiq.environment_diff(str(path), "sidekiq")
    assert diff == {"changed": ["REDIS_URL"], "removed": ["GONE"], "mode": {"old": "0644", "new": "0600"}}
    sidekiq.environment_write(str(path), "sidekiq")
    assert sidekiq.environment_diff(str(path), "sidekiq") == {}
    assert path.stat().st_mode & 0o7777 == 0o600
    path.write_text(path.read_text() + "# by hand\n")
    assert sidekiq.environment_diff(str(path), "sidekiq") == {"text": {"old": "other text", "new": "as wished"}}


# systemd, /proc, the journal ----------------------------------------------------------------------------------------


def test_files_younger_than_the_process_are_changed(sidekiq, tmp_path):
    now = time.time()
    times = {"older": now - 60, "same_tick": now - 30 + 0.01, "younger": now - 10, "future": now + 3600}
    for name, moment in times.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (moment, moment))
    files = [str(tmp_path / name) for name in [*times, "missing"]]
    assert sidekiq._changed_since(now - 30, files) == [str(tmp_path / "younger")]
    assert sidekiq._changed_since(None, files) == []


def test_only_services_of_the_settings_are_acted_on(sidekiq):
    for name in ("ssh", "sidekiq.service", "sidekiq ", "", "*", None, ["sidekiq"], "../sidekiq", "sidekiq;id"):
        for act in (sidekiq.start, sidekiq.stop, sidekiq.restart, sidekiq.status):
            with pytest.raises(SaltInvocationError, match="is not a Sidekiq service of this minion"):
                act(name)
    assert sidekiq.calls == []


# which process is stale ---------------------------------------------------------------------------------------------


def looked(**process):
    process = {
        "pid": 10,
        "started": time.time(),
        "release": "/srv/app/releases/1",
        "version": None,
        "stopping": False,
        **process,
    }
    return {"unit": "sidekiq.service", "pid": 10, "needs_reload": False, "drop_ins": [], "process": process}


@pytest.fixture
def app(tmp_path):
    """An app in Capistrano's layout whose second release is current; a function that tells why a process is stale."""
    for number in (1, 2):
        (tmp_path / f"releases/{number}").mkdir(parents=True)
    (tmp_path / "current").symlink_to(tmp_path / "releases/2")
    wish = {**SERVICE, "app_dir": str(tmp_path), "current": str(tmp_path / "current"), "env_file": "", "unit_file": ""}
    return tmp_path, wish


def test_who_works_in_the_current_release_is_not_stale(sidekiq, app):
    folder, wish = app
    assert sidekiq._stale(wish, looked(release=f"{folder}/releases/2")) == []
    assert sidekiq._stale(wish, looked(release=f"{folder}/releases/2/worker")) == []
    # A working directory of the administrator's own says nothing.
    assert sidekiq._stale(wish, looked(release="/")) == []


@pytest.mark.parametrize("other", ["1", "20", "gone"])
def test_who_works_in_another_release_is_stale(sidekiq, app, other):
    folder, wish = app
    (reason,) = sidekiq._stale(wish, looked(release=f"{folder}/releases/{other}"))
    assert reason == f"it works in {folder}/releases/{other}, and {folder}/current is {folder}/releases/2"


def test_a_restart_file_makes_stale_what_is_deployed_in_place(sidekiq, app):
    folder, wish = app
    marker = folder / "restart.txt"
    wish = {**wish, "restart_file": str(marker)}
    process = {"release": f"{folder}/releases/2", "started": time.time() - 60}
    assert sidekiq._stale(wish, looked(**process)) == []
    marker.touch()
    assert sidekiq._stale(wish, looked(**process)) == [f"changed since it started: {marker}"]


@pytest.mark.parametrize(
    ("locked", "runs", "stale"),
    [("7.3.2", "7.3.2", False), ("7.3.2", "7.3.1", True), ("7.3.2", None, False), (None, "7.3.2", False)],
)
def test_another_sidekiq_than_the_lock_file_names_is_stale(sidekiq, app, locked, runs, stale):
    folder, wish = app
    if locked:
        text = f"GEM\n  specs:\n    rack (3.0)\n    sidekiq ({locked})\n      rack (>= 2)\n\nDEPENDENCIES\n  sidekiq (= 9)\n"
        (folder / "releases/2/Gemfile.lock").write_text(text)
    reasons = sidekiq._stale(wish, looked(release=f"{folder}/releases/2", version=runs))
    assert reasons == (["it is Sidekiq 7.3.1, and the release's Gemfile.lock says 7.3.2"] if stale else [])


def test_a_quiet_process_and_an_older_unit_are_stale(sidekiq, app):
    folder, wish = app
    one = {**looked(release=f"{folder}/releases/2", stopping=True), "needs_reload": True}
    assert sidekiq._stale(wish, one) == ["it was told to be quiet, and works no more", "it runs with an older unit"]


# whose heartbeat is it ----------------------------------------------------------------------------------------------


def beat(identity, started=1000.0, age=1.0):
    hostname, pid, _ = identity.split(":")
    facts = {"identity": identity, "hostname": hostname, "pid": int(pid), "started": started, "beat_age": age}
    return {**facts, "queues": ["default"], "quiet": False}


@pytest.mark.parametrize(
    ("beats", "known", "mine"),
    [
        ([beat("web1:10:a")], [], "web1:10:a"),
        ([beat("web10:10:a"), beat("web1:100:a"), beat("web:1:a")], [], None),
        ([beat("web1:10:a", age=45)], [], None),
        ([beat("web1:10:a"), beat("web1:10:b")], ["web1:10:a"], "web1:10:b"),
        ([beat("web1:10:a", 970.0), beat("web1:10:b", 1002.0), beat("web1:10:c", 1030.0)], [], "web1:10:b"),
    ],
    ids=["its own", "names and pids alike", "a dead one's", "one from before", "hosts of one name"],
)
def test_a_heartbeat_is_found_among_others(sidekiq, monkeypatch, beats, known, mine):
    monkeypatch.setattr(sidekiq.os, "uname", lambda: type("uname", (), {"nodename": "web1"}))
    found = sidekiq._beat_of(sidekiq._hostname(SERVICE), {"pid": 10, "started": 1000.5}, beats, known)
    assert (found and found["identity"]) == mine
    assert sidekiq._beat_of("web1", None, beats) is None


# the procedure ------------------------------------------------------------------------------------------------------


class Host:
    """A host in miniature: one service, its helper and guard, as the sibling modules would tell of them."""

    def __init__(self, now):
        self.acts, self.now, self.pid = [], now, 10
        self.running = {"sidekiq.service": 10}
        self.started, self.refuses, self.fails, self.jobs, self.places, self.said = (
            {10: now - 60},
            "",
            set(),
            [],
            {},
            [],
        )
        self.memory, self.helper, self.guard = 1 << 40, False, False
        self.drains, self.loaded, self.masked = True, True, False
        self.silent: set = set()

    def facts(self, units):
        return [
            {
                "unit": unit, "loaded": self.loaded, "masked": self.masked, "enabled": True, "sub": "", "result": "success",
                "active": "active" if self.running.get(unit) else "inactive", "pid": self.running.get(unit, 0), "restarts": 0,
                "started": self.started.get(self.running.get(unit)), "needs_reload": False, "drop_ins": [], "fragment": "",
                "group": "",
            }
            for unit in units
        ]  # fmt: skip

    def process(self, pid, group=""):
        if pid not in self.running.values():
            return None
        return {"pid": pid, "started": self.started[pid], "born": pid, "release": "/", "version": None, "threads": 5,
                "stopping": False, "rss": 1, "wrapper": 0}  # fmt: skip

    def start(self, unit, wait=True):
        self.acts.append(f"start {unit}")
        if unit in self.fails:
            raise CommandExecutionError("Job failed")
        self.pid += 1
        self.running[unit], self.started[self.pid] = self.pid, time.time()

    def stop(self, unit):
        self.acts.append(f"stop {unit}")
        if f"stop {unit}" in self.fails:
            raise CommandExecutionError("Failed to stop")
        self.running.pop(unit, None)

    def restart(self, unit):
        self.acts.append(f"restart {unit}")
        self.running.pop(unit, None)
        self.start(unit)

    def signal(self, pid, ticks, name):
        self.acts.append(f"{name} {pid}")
        return True

    def beats(self, service):
        if self.refuses:
            raise CommandExecutionError(self.refuses)
        return [
            {**beat(f"web1:{pid}:x", self.started[pid]), "beat": time.monotonic(), "quiet": f"TSTP {pid}" in self.acts,
             "concurrency": 5, "busy": 0}
            for pid in self.running.values()
            if pid not in self.silent
        ]  # fmt: skip

    def journal_about(self, units, since, words):
        return [{"pid": pid, "message": line} for pid, line in self.said if any(word in line for word in words)]

    def threads(self, pid):
        return 0 if self.drains and f"TSTP {pid}" in self.acts else 5

    def write_helper(self, facts):
        self.helper = True
        return "sidekiq-handover.service"

    def salt(self):
        return {
            "sidekiq_units.facts": self.facts,
            "sidekiq_units.process": self.process,
            "sidekiq_units.born": lambda pid: pid if pid in self.running.values() else None,
            "sidekiq_units.start_time": lambda pid: self.started.get(pid, time.time()),
            "sidekiq_units.worker_threads": self.threads,
            "sidekiq_units.start": self.start,
            "sidekiq_units.stop": self.stop,
            "sidekiq_units.restart": self.restart,
            "sidekiq_units.signal": self.signal,
            "sidekiq_units.reset_failed": lambda unit: None,
            "sidekiq_units.reload_systemd": lambda: None,
            "sidekiq_units.journal": lambda unit, since, secrets: "; its journal ends with:\nboom",
            "sidekiq_units.journal_about": self.journal_about,
            "sidekiq_units.available_memory": lambda: self.memory,
            "sidekiq_units.helper_name": lambda unit: "sidekiq-handover.service",
            "sidekiq_units.helper_exists": lambda unit: self.helper,
            "sidekiq_units.helper_write": self.write_helper,
            "sidekiq_units.helper_remove": lambda unit: setattr(self, "helper", False),
            "sidekiq_units.guard_arm": lambda unit, lock: setattr(self, "guard", True),
            "sidekiq_units.guard_disarm": lambda unit: setattr(self, "guard", False),
            "sidekiq_units.guard_exists": lambda unit: self.guard,
            "sidekiq_redis.beats": self.beats,
            "sidekiq_redis.refusal": lambda service: self.refuses,
            "sidekiq_redis.jobs": lambda service, identities: [
                job for job in self.jobs if job["identity"] in identities
            ],
            "sidekiq_redis.find": lambda service, jids, names, gone: {
                j: self.places[j] for j in jids if j in self.places
            },
        }


@pytest.fixture
def host(sidekiq, monkeypatch):
    host = Host(time.time())
    sidekiq.__salt__.update(host.salt())
    sidekiq.__opts__ = {}
    for name in ("_SETTLE", "_SETTLE_HELPER", "_POLL"):
        monkeypatch.setattr(sidekiq, name, 0.001)
    for name in ("_FIRST_BEAT", "_NEXT_BEAT", "_QUIET_BUDGET", "_REDIS_BUDGET"):
        monkeypatch.setattr(sidekiq, name, 0.6)
    monkeypatch.setattr(sidekiq.os, "uname", lambda: type("uname", (), {"nodename": "web1"}))
    return host


HANDOVER = [
    "start sidekiq-handover.service", "TSTP 10", "stop sidekiq.service", "start sidekiq.service", "TSTP 11",
    "stop sidekiq-handover.service",
]  # fmt: skip


def test_a_handover_starts_a_helper_before_it_quiets_the_old_process(sidekiq, host):
    record = sidekiq.restart("sidekiq")
    assert record["result"] is True, record
    assert host.acts == HANDOVER
    (entry,) = record["processes"]
    assert (entry["old"]["pid"], entry["new"]["pid"], entry["gap"]) == (10, 12, 0.0)
    assert record["comment"] == "sidekiq.service was handed over: pid 10 before, 12 now"
    assert (host.helper, host.guard) == (False, False)


def test_a_drain_needs_no_helper_and_tells_its_gap(sidekiq, host):
    record = sidekiq.restart("sidekiq", strategy="drain")
    assert (record["result"], host.acts) == (True, ["TSTP 10", "stop sidekiq.service", "start sidekiq.service"])
    steps = [step["step"] for step in record["steps"]]
    assert steps == ["lock", "look", "check", "guard", "quiet", "drain", "stop", "start", "prove"]
    assert record["processes"][0]["gap"] >= 0


def test_an_unknown_strategy_is_refused(sidekiq, host):
    with pytest.raises(SaltInvocationError, match="there are: handover, drain"):
        sidekiq.restart("sidekiq", strategy="rolling")
    assert host.acts == []


def test_little_memory_means_drain_and_a_word_about_it(sidekiq, host):
    host.memory = 1 << 20
    record = sidekiq.restart("sidekiq")
    assert (record["result"], record["processes"][0]["strategy"]) == (True, "drain")
    assert "needs 64 MiB of memory, 1 MiB are available" in record["comment"]


def test_a_helper_that_does_not_start_leaves_the_old_process_alone(sidekiq, host):
    host.fails = {"start", "sidekiq-handover.service"}
    record = sidekiq.restart("sidekiq")
    assert record["result"] is False
    assert record["comment"] == (
        "sidekiq.service still works as before, pid 10. sidekiq-handover.service did not start; its journal ends with:\nboom"
    )
    assert (host.running, host.helper) == ({"sidekiq.service": 10}, False)


def test_a_helper_that_does_not_beat_leaves_the_old_process_alone(sidekiq, host):
    host.silent = {11}
    record = sidekiq.restart("sidekiq")
    assert record["result"] is False and "does not beat in the Redis of its REDIS_URL" in record["comment"]
    assert "sesame" not in json.dumps(record)
    assert (host.running, host.helper) == ({"sidekiq.service": 10}, False)


def test_a_redis_that_takes_no_jobs_back_leaves_the_old_process_alone(sidekiq, host):
    host.refuses = "The Redis of sidekiq answers: OOM command not allowed"
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (False, [])
    assert (
        "was left as it is, its jobs could not be pushed back. The Redis of sidekiq answers: OOM" in record["comment"]
    )


def test_what_fails_after_the_old_process_is_quiet_ends_in_a_running_process(sidekiq, host):
    host.fails = {"stop sidekiq.service"}
    record = sidekiq.restart("sidekiq", strategy="drain")
    assert record["result"] is False
    assert host.acts == ["TSTP 10", "stop sidekiq.service", "restart sidekiq.service", "start sidekiq.service"]
    assert host.running == {"sidekiq.service": 11} and host.guard is False
    assert "was started again in systemd's own way, pid 11" in record["comment"]


def test_a_process_that_is_killed_meanwhile_has_a_successor_that_is_left_alone(sidekiq, host):
    def killed(pid, ticks, name):
        if pid == 10:
            host.running["sidekiq.service"], host.started[99] = 99, time.time()
        return host.signal(pid, ticks, name)

    sidekiq.__salt__["sidekiq_units.signal"] = killed
    sidekiq.__salt__["sidekiq_units.start"] = lambda unit: unit == "sidekiq.service" or host.start(unit)
    record = sidekiq.restart("sidekiq")
    assert record["result"] is True, record
    assert host.acts == ["start sidekiq-handover.service", "TSTP 10", "TSTP 11", "stop sidekiq-handover.service"]
    assert host.running == {"sidekiq.service": 99} and record["processes"][0]["new"]["pid"] == 99


def test_a_helper_of_a_cut_off_restart_is_what_the_next_one_goes_on_with(sidekiq, host):
    host.helper, host.guard = True, True
    host.running["sidekiq-handover.service"], host.started[9] = 9, host.now - 5
    record = sidekiq.restart("sidekiq")
    assert record["result"] is True
    assert host.acts == [
        "TSTP 10",
        "stop sidekiq.service",
        "start sidekiq.service",
        "TSTP 9",
        "stop sidekiq-handover.service",
    ]
    assert (host.helper, host.guard) == (False, False)


def test_a_helper_that_was_told_to_be_quiet_covers_nobody(sidekiq, host):
    host.helper = True
    host.running["sidekiq-handover.service"], host.started[9] = 9, host.now - 5
    host.acts.append("TSTP 9")
    record = sidekiq.restart("sidekiq")
    assert record["result"] is True
    assert host.acts == ["TSTP 9", "TSTP 9", "stop sidekiq-handover.service", *HANDOVER]


def test_a_helper_that_is_left_beside_a_good_process_is_retired(sidekiq, host):
    host.helper = True
    host.running["sidekiq-handover.service"], host.started[9] = 9, host.now - 5
    record = sidekiq.restart("sidekiq", stale_only=True)
    assert (record["result"], host.acts) == (True, ["TSTP 9", "stop sidekiq-handover.service"])
    assert host.running == {"sidekiq.service": 10}


def job(jid, identity="web1:10:x"):
    return {"jid": jid, "class": "Mail", "queue": "queue:default", "seconds": 1.0, "identity": identity}


@pytest.mark.parametrize(
    ("said", "places", "drains", "fate", "result"),
    [
        ([(10, "class=Mail jid=aa INFO: done")], {}, True, "finished", True),
        ([(10, '{"pid":10,"lvl":"INFO","msg":"done","ctx":{"class":"Mail","jid":"aa"}}')], {}, False, "finished", True),
        ([], {}, True, "finished", True),
        ([], {"aa": "pushed back"}, False, "pushed back", True),
        ([(10, "class=Mail jid=aa INFO: fail"), (11, "class=Mail jid=aa INFO: start")], {}, False, "pushed back", True),
        ([(10, "class=Mail jid=aa INFO: fail")], {"aa": "retry"}, True, "retry", True),
        ([(10, "class=Mail jid=aa INFO: fail")], {}, True, "failed", True),
        ([(10, "class=Mail jid=aa INFO: start")], {}, False, "not found", False),
        ([], {}, False, "not found", False),
        ([(10, "Failed to requeue 1 jobs: Connection refused")], {}, False, "not found", False),
    ],
)
def test_each_job_in_work_has_a_fate(sidekiq, host, monkeypatch, said, places, drains, fate, result):
    monkeypatch.setitem(SERVICE, "drain_timeout", 0)
    monkeypatch.setattr(sidekiq, "_ACCOUNT_TRIES", 1)
    host.jobs, host.said, host.places, host.drains = [job("aa")], said, places, drains
    record = sidekiq.restart("sidekiq", strategy="drain")
    assert record["jobs"] == {"aa": {"class": "Mail", "queue": "queue:default", "fate": fate}}, record
    assert record["result"] is result
    if not result:
        assert "1 of 1 jobs in work were not found again: aa" in record["comment"]
    assert ("Failed to requeue" in record["comment"]) is ("Failed" in str(said))


def test_a_process_that_was_started_since_is_left_alone(sidekiq, host):
    host.started[10] = time.time() + 1
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (True, [])
    assert "works already, started since this call was made" in record["comment"]
    assert sidekiq.restart("sidekiq", since=time.time() + 5)["processes"]


def test_only_what_is_stale_is_replaced_when_asked_so(sidekiq, host, monkeypatch):
    assert sidekiq.restart("sidekiq", stale_only=True)["processes"] == []
    monkeypatch.setattr(sidekiq, "_stale", lambda wish, one: ["old"])
    assert len(sidekiq.restart("sidekiq", stale_only=True)["processes"]) == 1


@pytest.mark.parametrize("act", ["start", "restart"])
def test_what_does_not_run_is_started(sidekiq, host, act):
    host.running.clear()
    record = getattr(sidekiq, act)("sidekiq")
    assert (record["result"], host.acts) == (True, ["start sidekiq.service"])
    assert record["comment"] == "sidekiq.service works, pid 11"


def test_a_start_whose_heartbeat_cannot_be_seen_is_told_and_no_failure(sidekiq, host):
    host.running.clear()
    host.refuses = "The Redis of sidekiq cannot be reached"
    record = sidekiq.start("sidekiq")
    assert record["result"] is True and "its heartbeat was not seen. The Redis of sidekiq cannot" in record["comment"]


def test_quiet_and_drain_say_that_there_is_no_way_back(sidekiq, host):
    for act in (sidekiq.quiet, sidekiq.drain):
        record = act("sidekiq")
        assert record["result"] is True and "until it is restarted" in record["comment"]
    host.acts.clear()
    host.drains, host.beats = False, lambda service: []
    assert sidekiq.drain("sidekiq", 0)["result"] is False


@pytest.mark.parametrize(
    ("loaded", "masked", "sentence"),
    [(False, False, "is not on this host: apply redis_sidekiq"), (False, True, "is masked: systemctl unmask it")],
)
def test_nothing_is_stopped_that_could_not_be_started(sidekiq, host, loaded, masked, sentence):
    host.loaded, host.masked = loaded, masked
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (False, [])
    assert sentence in record["comment"]


def test_nothing_is_stopped_when_the_release_is_gone(sidekiq, host, monkeypatch):
    monkeypatch.setitem(SERVICE, "current", "/no/such/release")
    record = sidekiq.restart("sidekiq")
    assert (record["result"], host.acts) == (False, [])
    assert "There is no release at /no/such/release" in record["comment"]


# What a roll-out asks first -------------------------------------------------------------------------------------------


def ready(sidekiq):
    return sidekiq.ready(["sidekiq"])["sidekiq"]


def test_a_service_that_is_as_it_should_be_is_ready_and_not_due(sidekiq, host):
    facts = ready(sidekiq)
    assert (facts["problem"], facts["due"], facts["strategy"], facts["release"]) == ("", [], "handover", "/")
    assert facts["queues"] == {"default": {"here": 1, "elsewhere": 0}} and facts["budget"] > 0
    assert host.acts == []


def test_what_a_restart_would_replace_is_due(sidekiq, host, monkeypatch):
    monkeypatch.setattr(sidekiq, "_stale", lambda wish, one: ["it works in /srv/app/releases/1"])
    assert ready(sidekiq)["due"] == ["sidekiq.service: it works in /srv/app/releases/1"]
    host.running.clear()
    assert ready(sidekiq)["due"] == ["sidekiq.service does not work, systemd calls it inactive"]


def test_what_a_restart_that_was_cut_off_left_is_due(sidekiq, host):
    host.helper = True
    assert ready(sidekiq)["due"] == ["sidekiq.service: a restart that was cut off left its helper"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"refuses": "Redis is loading"}, "Redis is loading"),
        ({"loaded": False}, "sidekiq.service is not on this host: apply redis_sidekiq first"),
        ({"loaded": False, "masked": True}, "sidekiq.service is masked: systemctl unmask it first"),
    ],
)
def test_what_must_not_be_restarted_says_why(sidekiq, host, change, sentence):
    vars(host).update(change)
    assert ready(sidekiq) == {"problem": sentence}


def test_one_service_does_not_hide_the_others(sidekiq, host):
    facts = sidekiq.ready(["ssh", "sidekiq"])
    assert "'ssh' is not a Sidekiq service of this minion" in facts["ssh"]["problem"]
    assert facts["sidekiq"]["problem"] == ""


def test_little_memory_means_that_it_would_drain(sidekiq, host):
    host.memory = 1 << 20
    assert ready(sidekiq)["strategy"] == "drain"


def test_others_count_when_they_are_alive_and_not_quiet(sidekiq, host, monkeypatch):
    mine = host.beats("sidekiq")
    others = [
        {**beat("web2:1:x"), "queues": ["default", "mails"]},
        {**beat("web3:1:x"), "quiet": True},
        beat("web4:1:x", age=50.0),
    ]
    host.beats = lambda service: mine + others
    sidekiq.__salt__["sidekiq_redis.beats"] = host.beats
    assert ready(sidekiq)["queues"] == {"default": {"here": 1, "elsewhere": 1}}


def test_a_lock_is_waited_for_no_longer_than_its_budget(sidekiq):
    held = sidekiq._lock(1)
    begun = time.monotonic()
    with pytest.raises(CommandExecutionError, match="Another call has been at work on Sidekiq"):
        sidekiq._lock(0.3)
    assert 0.3 <= time.monotonic() - begun < 2
    held.close()
    sidekiq._lock(0.3).close()


# The commands that send deploy events -------------------------------------------------------------------------------


def test_only_our_own_commands_are_found_and_removed(sidekiq, tmp_path, repo):
    ours = (repo / "redis_sidekiq/deploy/files/sidekiq-deployed.jinja").read_text()
    texts = {
        "sidekiq-deployed-shop": ours,
        "sidekiq-deployed-other": ours,
        "sidekiq-deployed-mine": "#!/bin/sh\n# by hand\n",
        "sidekiq-deployed-": ours,
        "sidekiq-deployed-shop.bak": ours,
        "my-sidekiq-deployed-shop": ours,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "sidekiq-deployed-link").symlink_to(tmp_path / "sidekiq-deployed-shop")
    (tmp_path / "sidekiq-deployed-folder").mkdir()
    os.mkfifo(tmp_path / "sidekiq-deployed-pipe")
    found = sidekiq.event_commands(str(tmp_path))
    assert found == [str(tmp_path / "sidekiq-deployed-other"), str(tmp_path / "sidekiq-deployed-shop")]
    before = set(os.listdir(tmp_path))
    sidekiq.event_commands_remove(
        str(tmp_path), [found[1], *(str(tmp_path / name) for name in before if "other" not in name)]
    )
    assert before - set(os.listdir(tmp_path)) == {"sidekiq-deployed-shop"}


def test_a_folder_that_is_not_there_holds_no_command(sidekiq, tmp_path):
    assert sidekiq.event_commands(str(tmp_path / "none")) == []
