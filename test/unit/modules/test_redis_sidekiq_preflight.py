"""What a preflight makes of facts: versions, a run's answer, sentences that say what to do."""

from __future__ import annotations

import pytest


@pytest.fixture
def preflight(load):
    module = load("_modules/redis_sidekiq_preflight.py")
    module.__grains__ = {"saltversion": "3008.3", "os": "Debian", "osrelease": "12", "mem_total": 1000}
    settings = {"sidekiq": {"services": [{"units": ["sidekiq.service"]}]}}
    module.__salt__ = {"redis_sidekiq.settings": lambda: settings, "sidekiq_units.available_memory": lambda: 1 << 30}
    return module


def found(preflight):
    return {"problems": [], "warnings": [], "facts": {}}


SERVICE = {"name": "sidekiq", "redis": "6379"}


@pytest.mark.parametrize(
    "sidekiq, redis, ruby, wrong",
    [
        ("6.4.1", "redis 4.0.14", "2.5", []),
        ("6.4.1", "redis 3.2.13", "2.5", ["redis_sidekiq:redis:version"]),
        ("7.3.9", "redis 6.2.0", "2.7.8", []),
        ("7.3.9", "redis 6.0.16", "2.6", ["redis_sidekiq:redis:version", "path"]),
        ("8.0.1", "redis 7.0.15", "3.2", []),
        ("8.0.0", "redis 7.0.15", "3.2", ["redis_sidekiq:redis:version"]),
        ("8.1.7", "redis 6.2.14", "3.1", ["redis_sidekiq:redis:version", "path"]),
        ("8.1.7", "valkey 8.0.1", "3.3", []),
        ("9.0.0", "redis 2.8", "1.9", []),  # nobody knows yet
        ("", "redis 2.8", "1.9", []),
        ("8.1.7", "", "", []),
    ],
)
def test_sidekiq_has_its_redis_and_ruby(preflight, sidekiq, redis, ruby, wrong):
    report = found(preflight)
    preflight._judge_versions(report, "path", SERVICE, {"sidekiq": sidekiq, "redis": redis, "ruby": ruby})
    assert [line.partition(": ")[0] for line in report["problems"]] == wrong
    assert all("or newer" in line and sidekiq in line for line in report["problems"])


def test_the_redis_of_another_host_is_a_matter_of_its_url(preflight):
    report = found(preflight)
    preflight._judge_versions(
        report, "path", {**SERVICE, "redis": ""}, {"sidekiq": "8.1.7", "redis": "redis 6.2", "ruby": ""}
    )
    [line] = report["problems"]
    assert line.startswith("path:redis_url: found Redis 6.2, and Sidekiq 8.1.7 of sidekiq needs 7.0 or newer")


@pytest.mark.parametrize(
    "version, key",
    [("3005.5", "problems"), ("3006.9", "warnings"), ("3006.28", ""), ("3007.1", "warnings"), ("3008.0", "")],
)
def test_salts_version(preflight, version, key):
    report = {**found(preflight), "facts": {"salt": version, "systemd": 252}}
    preflight._judge_host(report)
    assert [name for name in ("problems", "warnings") if report[name]] == ([key] if key else [])
    assert all(line.startswith(f"salt: found {version}") for line in report["problems"] + report["warnings"])


@pytest.mark.parametrize("version, said", [(247, 1), (248, 0), (0, 0)])
def test_systemds_version(preflight, version, said):
    report = {**found(preflight), "facts": {"salt": "3008.3", "systemd": version}}
    preflight._judge_host(report)
    assert len(report["warnings"]) == said


def answer(*states):
    """What state.sls returns: (function, id, name, result, comment, changes) each, the last one first."""
    made = {}
    for number, (function, name, subject, result, comment, changes) in reversed(list(enumerate(states))):
        module, _, word = function.partition(".")
        made[f"{module}_|-{name}_|-{subject}_|-{word}"] = {
            **{"__id__": name, "name": subject, "__run_num__": number},
            **{"result": result, "comment": comment, "changes": changes},
        }
    return made


REASON = {"restarted because": {"old": "", "new": "it is old"}}
RUN = answer(
    ("user.present", "a user", "redis", None, "User redis set to be added", {"redis": {}}),
    (
        "file.managed",
        "a file",
        "/etc/x",
        None,
        "The file /etc/x is set to be changed\nNote: No changes made, actual",
        {"diff": "x"},
    ),
    ("redis_config.live", "live", "6379", None, "Redis instance 6379: maxmemory would be set live", {"maxmemory": {}}),
    ("redis_config.live", "live too", "6380", True, "Redis instance 6380 works by its config", {}),
    ("redis_server.running", "serves", "6379", None, "redis_6379 would be restarted,\n because it is old", REASON),
    ("redis_server.running", "serves too", "6380", True, "redis_6380 serves", {}),
    ("sidekiq.sudoers", "sudo", "/etc/sudoers.d/x", False, "sudo says otherwise", {}),
    ("sidekiq.current", "waits", "sidekiq", False, "One or more requisite failed: sudo", {}),
)


def test_what_a_run_would_do_is_in_the_order_of_the_run(preflight):
    preflight.__salt__["state.sls"] = lambda name, test: RUN
    run = preflight.next_run()
    assert [(state["id"], state["name"], state["comment"]) for state in run["states"]] == [
        ("a user", "redis", "User redis set to be added"),
        ("a file", "/etc/x", "The file /etc/x is set to be changed"),
        ("live", "6379", "Redis instance 6379: maxmemory would be set live"),
        ("serves", "6379", "redis_6379 would be restarted, because it is old"),
    ]
    assert [state["id"] for state in run["failed"]] == ["sudo"]
    assert run["live"] == {"6379": ["maxmemory"]}
    assert run["restarts"] == {
        "redis_6379.service": "restarted, because it is old",
        "redis_6380.service": "",
        "sidekiq.service": "",
    }


def test_a_service_of_several_units_says_which_restart(preflight):
    changes = {"sidekiq@1.service": {"restarted because": "it is old"}, "sidekiq@3.service": {"retired": {}}}
    preflight.__salt__["state.sls"] = lambda name, test: answer(("sidekiq.current", "x", "sidekiq", None, "", changes))
    restarts = preflight.next_run()["restarts"]
    assert restarts["sidekiq@1.service"] == "restarted, because it is old"
    assert restarts["sidekiq@3.service"] == "retired" and restarts["sidekiq.service"] == ""


@pytest.mark.parametrize("said", [['The function "state.apply" is running as PID 7'], "no such thing"])
def test_a_run_that_does_not_begin_is_a_problem(preflight, said):
    preflight.__salt__["state.sls"] = lambda name, test: said
    run = preflight.next_run()
    [line] = run["refused"]
    assert line.startswith("run: ") and not run["states"]


def test_too_little_room(preflight, tmp_path):
    salt = {"redis_server.wished_build": lambda: "8.0.6-x", "redis_build.builds": lambda prefix: []}
    preflight.__salt__ |= salt
    preflight._free = lambda folder: 100_000_000
    instance = {"name": "6379", "dir": str(tmp_path), "maxmemory": 800 << 20}
    redis = {"prefix": "/opt/redis", "build": {"jobs": 8}, "pack": {"source": ""}, "instances": [instance]}
    report = {**found(preflight), "facts": {"memory": {"available": 1 << 30, "total": 1000 << 20}}}
    preflight._look_at_build(report, {"redis": redis})
    preflight._look_at_data(report, {"redis": redis})
    assert [line.partition(": ")[0] for line in report["problems"]] == ["redis_sidekiq:redis:prefix"]
    assert [line.partition(": ")[0] for line in report["warnings"]] == [
        "redis_sidekiq:redis:build:jobs",
        "redis_sidekiq:redis:instances:6379:maxmemory",
        "redis_sidekiq:redis:instances",
    ]
    preflight.__salt__["redis_build.builds"] = lambda prefix: [{"build": "8.0.6-x"}]
    report["problems"].clear()
    preflight._look_at_build(report, {"redis": redis})
    assert report["problems"] == []


def test_a_clock_that_is_off(preflight):
    service = {"name": "sidekiq", "redis": "", "env_names": ["REDIS_URL"]}
    for offset, words in ((3.2, "3 s ahead of"), (-90, "90 s behind"), (1.5, ""), (None, "")):
        preflight.__salt__["sidekiq_redis.server"] = lambda name, offset=offset: {
            **{"flavor": "redis", "version": "8.0.2", "offset": offset}
        }
        report = found(preflight)
        facts = preflight._its_redis(report, "path", service, {})
        assert facts == {"redis": "redis 8.0.2", "clock": offset}
        assert bool(report["warnings"]) is bool(words) and all(words in line for line in report["warnings"])
