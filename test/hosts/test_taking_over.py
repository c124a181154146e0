"""A host that was set up by hand, by the steps of the usual tutorial: the formula takes it over and loses nothing."""

from __future__ import annotations

import pytest

from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import apply_locally, make_masterless, put_pillar, salt_call, tarball, wait_for
from test.hosts.load import load

VERSION = "7.0.15"
SIDEKIQ = """\
[Unit]
Description=sidekiq
After=network.target

[Service]
Type=simple
WorkingDirectory=/srv/app/current
ExecStart=/usr/bin/bundle exec sidekiq -e production -r ./worker.rb -c 10
User=deploy
Group=deploy
RestartSec=1
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
# What the tutorial at redis.io says under "Installing Redis more properly", with the files of the release itself.
REDIS = """
set -eu
tar xzf /packages/redis-{version}.tar.gz -C /root
cd /root/redis-{version}
for name in server cli benchmark; do install /opt/redis/*/bin/redis-$name /usr/local/bin; done
for name in sentinel check-rdb check-aof; do ln -s redis-server /usr/local/bin/redis-$name; done
mkdir -p /etc/redis {folder}
cp utils/redis_init_script /etc/init.d/redis_6379
sed -e 's,^daemonize .*,daemonize yes,' -e 's,^dir .*,dir {folder},' -e 's,^logfile .*,logfile /var/log/redis_6379.log,' \\
  -e 's,^pidfile .*,pidfile /var/run/redis_6379.pid,' redis.conf > /etc/redis/6379.conf
printf '%s' '{more}' >> /etc/redis/6379.conf
update-rc.d redis_6379 defaults
systemctl daemon-reload
systemctl start redis_6379
until redis-cli ping 2>&1 | grep -q "PONG\\|NOAUTH"; do sleep 0.1; done
"""
# Another kind of tutorial: a unit, a user, a config beside it.
REDIS_UNIT = """\
[Unit]
Description=Redis In-Memory Data Store
After=network.target

[Service]
User=keeper
Group=keeper
ExecStart=/usr/local/bin/redis-server {config}
ExecStop=/usr/local/bin/redis-cli shutdown
Restart=always

[Install]
WantedBy=multi-user.target
"""
UNIT_STEPS = """
set -eu
tar xzf /packages/redis-{version}.tar.gz -C /root
for name in server cli; do install /opt/redis/*/bin/redis-$name /usr/local/bin; done
adduser --quiet --system --group --no-create-home keeper
install -d -o keeper -g keeper -m 0770 {folder}
mkdir -p /etc/redis
sed -e 's,^dir .*,dir {folder},' /root/redis-{version}/redis.conf > {config}
systemctl daemon-reload
systemctl enable -q --now {unit}
until redis-cli ping 2>&1 | grep -q PONG; do sleep 0.1; done
"""
# As in many a tutorial of Capistrano's.
SUDO = "deploy ALL=NOPASSWD: /bin/systemctl restart sidekiq\n"


def pillar(**instance: object) -> dict:
    """Everything on one host; the app's worker file is not where Rails has it."""
    service = {"require": "./worker.rb", "concurrency": 10, "start_timeout": 20}
    redis = {**tarball(VERSION), "instances": {"6379": instance}}
    return {
        "redis_sidekiq": {
            "redis": redis,
            "sidekiq": {"install": "package", "services": {"sidekiq": service}},
        }
    }


def bare(host: Host) -> None:
    """Nothing of the formula is left but a build, so that no compiler runs."""
    settings = {"redis": {**tarball(VERSION), "purge_data": True}}
    make_masterless(host, {"redis_sidekiq": settings})
    host.run(["cp", "-a", "/opt/redis", "/root/builds"])
    apply_locally(host, "redis_sidekiq.clean").assert_ok()
    host.run(
        ["sh", "-c", "mv /root/builds /opt/redis && find /opt/redis -type l -delete && rm -rf /var/lib/redis_sidekiq"]
    )


def redis_by_hand(host: Host, folder: str, more: str = "") -> None:
    host.run(["sh", "-c", REDIS.format(version=VERSION, folder=folder, more=more)])


def redis_by_unit(host: Host, unit: str, config: str, folder: str) -> None:
    host.write(f"/etc/systemd/system/{unit}.service", REDIS_UNIT.format(config=config))
    host.run(["sh", "-c", UNIT_STEPS.format(version=VERSION, unit=unit, config=config, folder=folder)])


@pytest.fixture
def handmade(masterless, make_host):
    host = make_host("taken", image=masterless("bookworm").image)
    bare(host)
    return host


def test_a_host_made_by_hand_is_taken_over_under_load(handmade):
    host = handmade
    redis_by_hand(host, "/var/redis/6379")
    host.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", "ruby-sidekiq", "bundler"])
    app.release(host, "1")
    host.write("/etc/systemd/system/sidekiq.service", SIDEKIQ)
    host.run(["sh", "-c", "systemctl daemon-reload && systemctl enable --now sidekiq"])
    host.write("/etc/sudoers.d/hand", SUDO, mode=0o440)
    for words in (
        ["allow", "22/tcp"],
        ["allow", "from", "10.9.9.9", "to", "any", "port", "6379"],
        ["--force", "enable"],
    ):
        host.run(["ufw", *words])
    app.redis(host, "set", "kept", "from the time before")
    put_pillar(host, pillar())

    config = host.run(["md5sum", "/etc/redis/6379.conf", "/etc/systemd/system/sidekiq.service"]).stdout
    announced = apply_locally(host, test=True).assert_ok()
    assert host.run(["md5sum", "/etc/redis/6379.conf", "/etc/systemd/system/sidekiq.service"]).stdout == config
    assert "/etc/init.d/redis_6379" in str(announced.changed["Redis instance 6379 has its config"]["taken over"])
    with load(host, even=True) as verdict:
        long = set(app.enqueue(host, 3, 5.0))
        run = apply_locally(host)
        run.assert_ok()
    assert long <= set(app.redis(host, "smembers", "worked").split())
    moved = run.states["Redis instance 6379 has no init script"]["comment"]
    assert "went over to systemd" in moved and "sidekiq.service was drained before and works again" in moved
    assert set(run.changed) <= set(announced.pending)
    assert (verdict.missing, verdict.begun_again) == ([], 0)
    apply_locally(host).assert_unchanged()

    assert app.redis(host, "get", "kept") == "from the time before"
    assert not host.exists("/etc/init.d/redis_6379") and host.exists(
        "/var/lib/redis_sidekiq/by-hand/etc_init.d_redis_6379"
    )
    assert "10.9.9.9" in host.run(["ufw", "show", "added"]).stdout
    host.reboot()
    assert app.redis(host, "get", "kept") == "from the time before"
    pid = app.main_pid(host, "redis_6379")
    assert host.run(["stat", "-c", "%U", f"/proc/{pid}"]).stdout.strip() == "redis"
    assert host.run(["pgrep", "-c", "redis-server"]).stdout.strip() == "1"
    apply_locally(host).assert_unchanged()


def test_data_that_lie_elsewhere_are_never_left_for_an_empty_redis(handmade):
    host, elsewhere = handmade, "/var/lib/redis/6379"
    redis_by_hand(host, elsewhere, "requirepass made-by-hand-0123")
    ask = ["env", "REDISCLI_AUTH=made-by-hand-0123", "redis-cli"]
    host.run([*ask, "set", "kept", "from the time before"])
    settings = {"roles": ["redis"], "redis": {**tarball(VERSION), "instances": {"6379": {}}}}
    instance = settings["redis"]["instances"]["6379"]

    put_pillar(host, {"redis_sidekiq": settings})
    before = host.run([*ask, "info", "server"]).stdout
    for test in (True, False):
        said = "\n".join(apply_locally(host, test=test).failed.values())
        assert (
            f"has its data in {elsewhere}, and the settings say /var/redis/6379: set redis_sidekiq:redis:instances:6379:dir"
            in said
        )
        assert "made-by-hand" not in said
    assert run_id(host.run([*ask, "info", "server"]).stdout) == run_id(before) and not host.exists("/var/redis/6379")

    instance.update(dir=elsewhere)
    put_pillar(host, {"redis_sidekiq": {**settings, "redis": {**settings["redis"], "restart": "never"}}})
    assert "is taken over by a restart, and redis_sidekiq:redis:restart is never" in str(apply_locally(host).failed)
    assert run_id(host.run([*ask, "info", "server"]).stdout) == run_id(before)

    # The run is cut off once the config of the formula is there, and the power with it.
    instance.update(password="a-new-one-0123456")
    put_pillar(host, {"redis_sidekiq": settings})
    cut = host.popen(["salt-call", "--local", "state.apply", "redis_sidekiq"])
    wait_for(lambda: "Managed by Salt" in host.run(["head", "-1", "/etc/redis/6379.conf"]).stdout, 60, "the new config")
    host.power_cut()
    cut.wait(30)
    host.start()
    assert host.run(["pgrep", "redis-server"], check=False).stdout == ""

    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    ask[1] = "REDISCLI_AUTH=a-new-one-0123456"
    assert host.run([*ask, "get", "kept"]).stdout == "from the time before\n"
    assert host.run([*ask, "config", "get", "dir"]).stdout.split() == ["dir", elsewhere]
    owners = host.run(["find", elsewhere, "-printf", "%u\n"]).stdout.split()
    assert set(owners) == {"redis"} and host.run(["pgrep", "-c", "redis-server"]).stdout == "1\n"


@pytest.mark.soak
@pytest.mark.parametrize("made", ["a unit", "an init script"])
@pytest.mark.parametrize("manager", ["systemd", "sysv"])
def test_whatever_starts_it_is_taken_over_by_either_manager(handmade, made, manager):
    host, folder = handmade, "/var/redis/6379"
    if made == "a unit":
        redis_by_unit(host, "redis_6379", "/etc/redis/6379.conf", folder)
    else:
        redis_by_hand(host, folder)
    path = {"a unit": "/etc/systemd/system/redis_6379.service", "an init script": "/etc/init.d/redis_6379"}[made]
    text = host.run(["cat", path]).stdout
    app.redis(host, "set", "kept", "from the time before")
    redis = {**tarball(VERSION), "service_manager": manager, "instances": {"6379": {}}}
    put_pillar(host, {"redis_sidekiq": {"roles": ["redis"], "redis": redis}})

    announced = apply_locally(host, test=True).assert_ok()
    assert path in announced.changed["Redis instance 6379 has its config"]["taken over"]
    run = apply_locally(host).assert_ok()
    assert set(run.changed) <= set(announced.pending)
    apply_locally(host).assert_unchanged()
    for _ in range(2):
        assert app.redis(host, "get", "kept") == "from the time before"
        [pid] = host.run(["pgrep", "redis-server"]).stdout.split()
        assert host.run(["stat", "-c", "%U", f"/proc/{pid}"]).stdout == "redis\n"
        assert set(host.run(["find", folder, "-printf", "%u\n"]).stdout.split()) == {"redis"}
        host.reboot()
    assert host.run(["cat", f"/var/lib/redis_sidekiq/by-hand/{path[1:].replace('/', '_')}"]).stdout == text


def test_a_redis_under_other_names_stops_the_run_before_it_begins(handmade):
    host = handmade
    redis_by_unit(host, "redis", "/etc/redis/redis.conf", "/var/lib/redis")
    folder = ["stat", "-c", "%a %U:%G", "/etc/redis"]
    before, mode = app.redis(host, "info", "server"), host.run(folder).stdout
    settings = {"roles": ["redis"], "redis": {**tarball(VERSION), "instances": {"6379": {}}}}
    put_pillar(host, {"redis_sidekiq": settings})
    taken = "port 6379 is taken by /usr/local/bin/redis-server (pid {}, redis.service), which works in /var/lib/redis"
    taken = taken.format(app.main_pid(host, "redis"))

    [problem] = salt_call(host, "redis_sidekiq.check", check=False)["problems"]
    assert taken in problem
    for test in (True, False):
        run = apply_locally(host, test=test)
        assert taken in run.failed["Redis instance 6379 may run the build of the settings"]
        assert not [name for name in run.changed if "instance" in name or "programs" in name]
    assert run_id(app.redis(host, "info", "server")) == run_id(before)
    # Its user can read its config at the next start as before.
    assert host.run(folder).stdout == mode
    assert not host.exists("/etc/redis/6379.conf") and not host.exists("/var/redis/6379")

    host.run(["redis-cli", "config", "set", "bind", host.address, "protected-mode", "no"])
    settings["redis"]["instances"] = {"6379": {"bind": ["127.0.0.1"]}}
    put_pillar(host, {"redis_sidekiq": settings})
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    ask = ["redis-cli", "-h", host.address, "info", "server"]
    assert run_id(host.run(ask).stdout) == run_id(before)
    lines = f"bind {host.address}\nprotected-mode no\n"
    # Its own stop would ask the server at 127.0.0.1 to end, which is the formula's now.
    steps = "sed -i /ExecStop/d /etc/systemd/system/redis.service && systemctl daemon-reload && systemctl restart redis"
    host.run(["sh", "-c", f"printf '{lines}' >> /etc/redis/redis.conf && {steps}"])
    wait_for(lambda: "run_id" in host.run(ask, check=False).stdout, 20, "the other Redis, started anew")
    assert host.run(["stat", "-c", "%a", "/etc/redis/6379.conf"]).stdout == "640\n"
    apply_locally(host).assert_unchanged()


def run_id(info: str) -> str:
    return next(line for line in info.splitlines() if line.startswith("run_id"))
