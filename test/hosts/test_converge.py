"""From a bare host to working Sidekiq, through a real master: announced, done, and done twice without a change."""

import json
import time

import pytest

from test.hosts import app
from test.hosts.conftest import main_pids
from test.hosts.lab import wait_for

COMPILED = [pytest.param(f"{image}-bare", marks=pytest.mark.soak) for image in ("bookworm", "trixie", "bookworm-3006")]
IMAGES = ["bookworm", "trixie", "bookworm-3006", *COMPILED]

pytestmark = pytest.mark.parametrize("image", IMAGES)


def test_mode_announces_what_then_happens(sites, image):
    site = sites(image)
    site.announced.assert_ok()
    # A state may change nothing although it was announced with others (the service that a unit file starts),
    # but nothing may change that was not announced.
    assert set(site.first.changed) <= set(site.announced.pending)
    assert len(site.announced.pending) >= (10 if site.bare else 3)


def test_mode_touches_nothing(sites, image):
    assert sites(image).touched == {}


def test_one_run_from_bare_to_working(sites, image):
    site = sites(image)
    site.first.assert_ok()
    assert "0" not in site.pids
    assert app.redis(site.host, "ping") == "PONG"


def test_second_run_changes_and_restarts_nothing(sites, image):
    site = sites(image)
    site.second.assert_unchanged()
    assert site.pids_after == site.pids


def test_check_and_drift_say_so(sites, image):
    site = sites(image)
    report = site.master.call(site.host, "redis_sidekiq.check")
    assert report["ok"] and report["next_run"] == report["takes_over"] == [], report
    assert set(report["facts"]["restarts"].values()) == {""}
    # A container may not set all that Redis asks of the kernel.
    assert {row["subject"] for row in site.master.call(site.host, "redis_sidekiq.drift")} <= {"kernel"}


def test_redis_is_the_built_one_with_safe_defaults(sites, image):
    host = sites(image).host
    pid = app.main_pid(host, "redis_6379")
    assert host.run(["readlink", f"/proc/{pid}/exe"]).stdout.startswith("/opt/redis/")
    assert host.run(["stat", "-c", "%U", f"/proc/{pid}"]).stdout.strip() == "redis"
    settings = {}
    for name in ("bind", "protected-mode", "maxmemory-policy", "appendonly", "dir"):
        settings.update([app.redis(host, "config", "get", name).splitlines()])
    assert settings == {
        "bind": "127.0.0.1 -::1",
        "protected-mode": "yes",
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "dir": "/var/redis/6379",
    }
    assert "process_supervised:systemd" in app.redis(host, "info", "server")


def test_redis_programs_are_links_to_one_build(sites, image):
    files = sites(image).facts["files"]
    programs = {path for path in files if path.startswith("/usr/local/bin/redis-")}
    assert {path.rpartition("/")[2] for path in programs} == {
        "redis-server",
        "redis-cli",
        "redis-benchmark",
        "redis-sentinel",
        "redis-check-aof",
        "redis-check-rdb",
    }
    assert all(files[path]["target"].startswith("/opt/redis/current/bin/") for path in programs)


def test_files_with_secrets_are_not_world_readable(sites, image):
    files = sites(image).facts["files"]
    for path in ("/etc/redis/6379.conf", "/etc/sidekiq/sidekiq.env", "/etc/sudoers.d/sidekiq-deploy"):
        assert files[path]["mode"].endswith("---"), (path, files[path])
        assert files[path]["owner"].startswith("root:")


def test_sidekiq_unit_is_notify_with_watchdog(sites, image):
    host = sites(image).host
    names = ["Type", "User", "WatchdogUSec", "TimeoutStopUSec", "KillMode", "Restart", "UnitFileState"]
    shown = host.run(["systemctl", "show", "--property=" + ",".join(names), "sidekiq"]).stdout
    facts = dict(line.split("=", 1) for line in shown.splitlines())
    assert facts == {
        "Type": "notify",
        "User": "deploy",
        "WatchdogUSec": "1min",
        "TimeoutStopUSec": "40s",
        "KillMode": "mixed",
        "Restart": "always",
        "UnitFileState": "enabled",
    }


def test_jobs_are_worked_before_and_after_a_deploy_event(sites, image):
    site = sites(image)
    host = site.host
    done = app.worked(host)
    app.enqueue(host, 500)
    wait_for(lambda: app.worked(host) == done + 500, 60, "500 jobs worked")

    old = app.main_pid(host)
    app.release(host, "2")
    watch = site.master.host.popen(["salt-run", "state.event", "redis_sidekiq/restart/*", "count=3"])
    time.sleep(3)
    site.master.fire("redis_sidekiq/deploy/app")
    wait_for(lambda: app.main_pid(host) not in ("0", old), 60, "the deploy event's restart")
    # A process that systemd has just made is not yet in its folder.
    wait_for(lambda: app.working_directory(host) == "/srv/app/releases/2", 20, "the new release at work")

    wait_for(lambda: not app.is_restarting(host), 90, "the end of the restart")
    # Who watches the master's bus sees the steps as they happen.
    assert '"step": "look"' in watch.communicate(timeout=60)[0]

    app.enqueue(host, 500)
    wait_for(lambda: app.worked(host) == done + 1000, 60, "500 more jobs worked")
    assert app.redis(host, "llen", "queue:default") == "0"


def test_deploy_user_may_restart_sidekiq_and_nothing_else(sites, image):
    host = sites(image).host
    old = app.main_pid(host)
    host.run(["sudo", "-n", "systemctl", "restart", "sidekiq"], user="deploy")
    assert app.main_pid(host) not in ("0", old)
    refused = [
        ["systemctl", "restart", "ssh"],
        ["systemctl", "status", "sidekiq"],
        ["systemctl", "edit", "sidekiq"],
        ["systemctl", "restart", "redis_6379"],
        ["systemctl", "restart", "sidekiq", "ssh"],
        ["systemctl", "--force", "restart", "sidekiq"],
        ["systemctl", "restart", "sidekiq", "--no-block"],
        ["systemctl", "reload", "sidekiq"],
        ["sh"],
    ]
    for argv in refused:
        assert host.run(["sudo", "-n", *argv], user="deploy", check=False).returncode != 0, argv


def test_after_a_reboot_everything_runs_and_the_firewall_is_on(sites, image):
    site = sites(image)
    host = site.host
    host.reboot()
    assert app.redis(host, "ping") == "PONG"
    wait_for(lambda: app.main_pid(host) != "0", 30, "Sidekiq after a reboot")
    assert "Status: active" in host.run(["ufw", "status"]).stdout
    pids = main_pids(host)
    done = app.worked(host)
    app.enqueue(host, 20)
    wait_for(lambda: app.worked(host) == done + 20, 30, "jobs worked after a reboot")
    site.master.wait_for(host)
    site.master.apply(host).assert_unchanged()
    assert main_pids(host) == pids


def test_clean_takes_away_what_was_made_and_keeps_the_data(sites, image):
    site = sites(image)
    host = site.host
    jobs = app.worked(host) + 20
    app.enqueue(host, 20)
    wait_for(lambda: app.worked(host) == jobs, 30, "20 jobs worked")
    # Put back before the last run, which is about the data: compiling is tried often enough.
    host.run(["cp", "-a", "/opt/redis", "/root/builds"])
    announced = site.master.apply(host, "redis_sidekiq.clean", test=True).assert_ok()
    assert app.redis(host, "ping") == "PONG"
    cleaned = site.master.apply(host, "redis_sidekiq.clean").assert_ok()
    assert set(cleaned.changed) <= set(announced.pending)
    site.master.apply(host, "redis_sidekiq.clean").assert_unchanged()

    left = host.run(
        ["find", "/opt/redis", "/etc/redis", "/etc/sidekiq", "/etc/sudoers.d", "/usr/local/bin", "/etc/systemd/system"],
        check=False,
    ).stdout
    assert "redis" not in left and "sidekiq" not in left
    assert "Status: inactive" in host.run(["ufw", "status"]).stdout
    assert host.exists("/var/redis/6379/appendonlydir")

    host.run(["mv", "/root/builds", "/opt/redis"])
    again = site.master.apply(host).assert_ok()
    assert json.dumps(again.changed)
    assert app.worked(host) == jobs
