"""The settings: every mistake is named once, secrets never, and what comes of a pillar that is right."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time

import pytest
import yaml
from salt.exceptions import SaltInvocationError

from test.conftest import REPO
from test.wrong_pillars import CERTIFICATE, OPEN, WRONG_PILLARS, deploy, instance, redis, rules, service

SENTINEL = "hunter2-4f1d"
EXAMPLE = (REPO / "pillar.example").read_text()


@pytest.fixture
def settle(redis_sidekiq):
    """The settings that come of a pillar: ``settle(pillar)``."""

    def _settle(pillar=None, **arguments):
        redis_sidekiq.__pillar__ = pillar or {}
        return redis_sidekiq.settings(**arguments)

    return _settle


@pytest.fixture
def check(redis_sidekiq):
    return redis_sidekiq.mistakes


def first_instance(settings):
    return settings["redis"]["instances"][0]


def first_service(settings):
    return settings["sidekiq"]["services"][0]


def directives(settings):
    return [" ".join(line) for line in first_instance(settings)["directives"]]


# Wrong pillars -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, pillar, expected", WRONG_PILLARS, ids=[case[0] for case in WRONG_PILLARS])
def test_a_mistake_is_named_once_and_nothing_else_is(check, name, pillar, expected):
    lines = check(pillar)
    assert len(lines) == 1, lines
    assert lines[0].startswith(expected[0])
    for words in expected:
        assert words in lines[0]
    assert "\n" not in lines[0]


GARBAGE = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    "a\nb",
    "1",
    [],
    [None],
    [[]],
    ["", ""],
    {},
    {"a": None},
    {1: 2},
    {None: []},
]


def test_no_value_breaks_the_check(redis_sidekiq, check):
    """Whatever stands at whatever key: sentences, no traceback; and no two settings at once, so no rule can hide one."""
    for entry in redis_sidekiq.contract()["settings"]:
        path = entry["path"].replace("PORT", "6379").replace("NAME", "sidekiq")
        for garbage in GARBAGE:
            pillar = garbage
            for key in reversed(path.split(":")):
                pillar = {key: pillar}
            lines = check(pillar)
            assert all(re.fullmatch(r"redis_sidekiq(:[A-Za-z0-9_.@*-]*)*: .+", line) for line in lines), lines
            if not lines:
                redis_sidekiq.__pillar__ = pillar
                assert redis_sidekiq.settings(reveal=True)


def test_the_cases_differ():
    names = [name for name, _, _ in WRONG_PILLARS]
    assert len(names) == len(set(names)) >= 40
    assert [case[1] for case in WRONG_PILLARS] == json.loads(json.dumps([case[1] for case in WRONG_PILLARS]))


def test_what_to_use_instead_is_no_key_and_names_one(redis_sidekiq):
    """Of each key that is none: it is not shadowed by a setting, and the setting that its sentence begins with is there."""
    sections = {entry["path"]: entry for entry in redis_sidekiq.contract()["settings"]}
    for path, entry in sections.items():
        for key, sentence in entry.get("instead", {}).items():
            assert f"{path}:{key}" not in sections
            meant = re.match(r"(?:set|give) (?:a rule with )?([a-z_:]+)", sentence)
            name = meant[1].rstrip(":") if meant else "it"
            if name not in ("it", "what", "him", "replicaof"):
                assert any(known.endswith(f":{name}") for known in sections), (path, key, sentence)


def test_a_key_of_a_former_release(redis_sidekiq, check):
    """A release that renames one says so in the contract."""
    redis_sidekiq.INSTEAD["deploy"]["account"] = "was renamed to user in 0.3.0"
    assert check(deploy(account="x")) == ["redis_sidekiq:deploy:account: unknown key; was renamed to user in 0.3.0"]


def test_settings_raise_what_check_returns(settle, check):
    pillar = redis(verison="8.0.6", build={"jobs": "2"})
    with pytest.raises(SaltInvocationError) as raised:
        settle(pillar)
    assert str(raised.value).splitlines() == check(pillar)
    assert len(check(pillar)) == 2


def test_all_mistakes_come_at_once(check):
    lines = check(
        {
            "redis_sidekiq": {
                "rols": ["redis"],
                "redis": {"version": 8, "instances": {"6379": {"bind": ["10.0.0.5"], "save": "often"}, "x": {}}},
                "firewall": {"incoming": "drop", "rules": {"queue": {"port": 6379}}},
                "deploy": {"sudoers": "a.b", "verbs": ["reload", "status"]},
                "sidekiq": {"services": {"sidekiq": {"timeout": 30, "stop_timeout": 31, "env": {"A-B": 1}}}},
            }
        }
    )
    assert [line.partition(": ")[0] for line in lines] == [
        "redis_sidekiq:rols",
        "redis_sidekiq:redis:version",
        "redis_sidekiq:redis:instances:x",
        "redis_sidekiq:redis:instances:6379:save",
        "redis_sidekiq:firewall:incoming",
        "redis_sidekiq:deploy:verbs",
        "redis_sidekiq:deploy:verbs",
        "redis_sidekiq:deploy:sudoers",
        "redis_sidekiq:sidekiq:services:sidekiq:env:A-B",
        "redis_sidekiq:redis:instances:6379:password",
        "redis_sidekiq:firewall:rules:queue",
        "redis_sidekiq:sidekiq:services:sidekiq:stop_timeout",
    ]


def test_a_port_as_number_and_as_text(check):
    assert check(redis(instances={6379: {}, "6379": {}})) == [
        "redis_sidekiq:redis:instances:6379: is there twice, once as a number and once as text; keep one of them"
    ]


def test_systemd_is_asked_for_where_another_init_runs(redis_sidekiq, check):
    redis_sidekiq._booted_by_systemd = lambda: False
    (line,) = check(redis(service_manager="systemd"))
    assert line.startswith("redis_sidekiq:redis:service_manager: found 'systemd', but systemd is not PID 1")


def test_another_family_of_systems(redis_sidekiq, check):
    redis_sidekiq.__grains__["os_family"] = "RedHat"
    (line,) = check({})
    assert line.startswith("redis_sidekiq: found a minion of the family RedHat")
    assert "Debian" in line


@pytest.mark.parametrize(
    ("version", "wrong"), [([3006, 27], 1), ([3005, 5, "rc1"], 1), ([3006, 28], 0), ([3008, 3], 0)]
)
def test_an_older_salt(redis_sidekiq, check, version, wrong):
    redis_sidekiq.__grains__["saltversioninfo"] = version
    lines = check({})
    assert len(lines) == wrong
    assert all(line.endswith("this formula works with 3006.28 and newer, upgrade Salt first") for line in lines)


def test_data_may_lie_elsewhere(settle):
    instances = {"6379": {"dir": "/srv/redis"}}
    (instance,) = settle({"redis_sidekiq": {"redis": {"instances": instances}}})["redis"]["instances"]
    assert instance["dir"] == "/srv/redis" and ["dir", "/srv/redis"] in instance["directives"]


def test_a_pillar_that_did_not_render_is_not_taken_for_the_defaults(settle, check):
    with pytest.raises(SaltInvocationError, match="did not render"):
        settle({"_errors": ["..."]})
    assert "did not render" in check({"_errors": ["..."]})[0]


def test_a_pillar_that_is_no_map(check):
    assert check("redis_sidekiq") == ["redis_sidekiq: found text; allowed: a map with the key redis_sidekiq"]


def test_memory_that_is_not_known_is_not_judged(redis_sidekiq, check):
    del redis_sidekiq.__grains__["mem_total"]
    assert check(instance(maxmemory="900gb")) == []


# Right pillars that come close to a mistake --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pillar",
    [
        {},
        {"redis_sidekiq": None},
        {"redis_sidekiq": {"redis": None, "sidekiq": {"services": None}}},
        redis(instances={6380: {}}),
        instance(maxmemory="4095mb"),
        instance(maxmemory=1073741824),
        instance(maxmemory="0"),
        instance(**OPEN, allow_from=["10.0.0.0/24", "fd00::/8"]),
        instance(
            directives={"tcp-keepalive": 60, "lazyfree-lazy-eviction": True, "proc-title-template": '"{title} x"'}
        ),
        redis(build={"tls": True}, instances={"6379": {"directives": {"tls-ciphers": "DEFAULT"}}}),
        instance(tls={"port": 6390, "cert": "/c", "key": "/k"}, directives={"tls-session-caching": False}),
        redis(
            tls={"cert": "/c", "key": "/k", "ca": "/a", "auth_clients": "optional"},
            instances={"6379": {"tls": {"port": 6390}}},
        ),
        redis(tls={"cert": "/c", "key": "/k"}, instances={"6379": {}, "6380": {"tls": {"port": 6390, "plain": False}}}),
        instance(unixsocket=True, unixsocket_group="jobs"),
        instance(unixsocket="/srv/sockets/redis", unixsocket_perm="777"),
        redis(version="8.0.99", source_hash="a" * 64),
        rules(ssh={"port": 2222}),
        rules(ssh={"from": ["10.0.0.0/8"], "action": "limit"}),
        rules(ssh=None, admin={"port": "20:30", "from": ["10.0.0.0/8"]}),
        rules(guard={"port": 22, "action": "deny", "from": ["203.0.113.0/24"]}),
        rules(queue={"port": 6379, "from": ["10.0.0.0/8"]}, chat={"port": 6379, "proto": "udp"}),
        {"redis_sidekiq": {"firewall": {"incoming": "allow", "rules": {"ssh": None}}}},
        {"redis_sidekiq": {"firewall": {"enabled": False, "rules": {"ssh": None}}}},
        {"redis_sidekiq": {"roles": ["firewall"], "firewall": {"rules": {"queue": {"port": 6379}}}}},
        {"redis_sidekiq": {"roles": ["redis"], "sidekiq": {"services": {"sidekiq": None}}}},
        {"redis_sidekiq": {"roles": ["deploy"], "deploy": {"apps": ["shop", "Shop_2-x", "a" * 64]}}},
        {"redis_sidekiq": {"roles": ["sidekiq"], "sidekiq": {"services": {"sidekiq": {"redis": ""}}}}},
        {"redis_sidekiq": {"roles": ["sidekiq"], "sidekiq": {"services": {"sidekiq": {"redis_url": "rediss://q/0"}}}}},
        deploy(user="worker", create_user=False),
        service(user="worker", group="jobs"),
        service(stop_timeout=35),
        service(redis=6379),
        service(arguments=["--verbose", "-g", "tag"]),
        service(config={"concurrency": 5, "queues": ["mail"], "staging": {"timeout": 9}}),
        service(watchdog=0),
        redis(instances={"6379": {"maxmemory_policy": "allkeys-lru"}, "6380": {}})
        | {
            "redis_sidekiq": {
                "sidekiq": {"services": {"sidekiq": {"redis": "6380"}}},
                "redis": {"instances": {"6380": {}}},
            }
        },
    ],
)
def test_a_right_pillar_is_not_complained_about(check, settle, pillar):
    assert check(pillar) == []
    settle(pillar)


# Secrets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pillar",
    [
        {"redis_sidekiq": SENTINEL},
        redis(instances=SENTINEL),
        redis(instances={"6379": SENTINEL}),
        redis(instances={f"password={SENTINEL}": {}}),
        redis(source=f"https://me:{SENTINEL}@mirror/redis-8.0.6.tar.gz", source_hash="a" * 64),
        instance(password=SENTINEL + "\n"),
        instance(password=[SENTINEL]),
        instance(password={SENTINEL: 1}),
        instance(pasword=SENTINEL),
        instance(password=SENTINEL, allow_from=["10.0.0.0/8"]),
        instance(password="x", old_passwords=[SENTINEL, SENTINEL]),
        instance(password="x", old_passwords=[SENTINEL + "\n"]),
        instance(password="x", old_passwords=SENTINEL),
        instance(password=SENTINEL, old_passwords=[SENTINEL]),
        instance(old_passwords=[SENTINEL]),
        instance(password="x", users={"app": {"passwords": [SENTINEL, SENTINEL], "preset": "sidekiq"}}),
        instance(password="x", users={"app": {"passwords": {SENTINEL: 1}, "preset": "sidekiq"}}),
        instance(password="x", users={"app": {"passwords": SENTINEL, "preset": "sidekiq"}}),
        instance(password="x", users={"app": {"passwords": [SENTINEL], "rules": [f">{SENTINEL}"]}}),
        instance(password="x", users={"app": {"passwords": [SENTINEL], "rules": [f"(~a >{SENTINEL})"]}}),
        instance(password="x", users={"app": SENTINEL}),
        instance(directives={"requirepass": SENTINEL}),
        instance(directives={"masterauth": SENTINEL}),
        instance(directives={"maxclients": SENTINEL + '"'}),
        instance(directives={"maxclients": {"a": SENTINEL}}),
        instance(directives={f"requirepass {SENTINEL}": 1}),
        service(env=[f"KEY={SENTINEL}"]),
        service(env=SENTINEL),
        service(env={"KEY": SENTINEL + "\0"}),
        service(env={"KEY": {"a": SENTINEL}}),
        service(env={f"KEY={SENTINEL}": "x"}),
        service(env={"REDIS_URL": f"redis://:{SENTINEL}@q/0"}),
        service(redis_url=SENTINEL),
        service(redis_url=f"http://:{SENTINEL}@q/0"),
        service(redis=f"redis://:{SENTINEL}/@q/0"),
        service(queues=f"redis://:{SENTINEL}@q/0"),
        service(config={"secret": f"{SENTINEL} <%"}),
        service(config=SENTINEL),
        service(concurency={"env": SENTINEL}),
    ],
)
def test_no_message_holds_a_secret(check, settle, pillar):
    lines = check(pillar)
    assert lines and SENTINEL not in "\n".join(lines)
    with pytest.raises(SaltInvocationError) as raised:
        settle(pillar)
    assert SENTINEL not in str(raised.value)


SECRETS = {
    "redis_sidekiq": {
        "redis": {
            "instances": {
                6379: {
                    "password": SENTINEL,
                    "old_passwords": [f"{SENTINEL}-2"],
                    "users": {"app": {"passwords": [f"{SENTINEL}-3"], "preset": "sidekiq"}},
                }
            }
        },
        "sidekiq": {
            "services": {"sidekiq": {"env": {"KEY": SENTINEL}}, "far": {"redis_url": f"redis://:{SENTINEL}@q/0"}}
        },
    }
}


def digest(password):
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def test_settings_hold_secrets_only_when_asked(settle):
    hidden = json.dumps(settle(SECRETS))
    assert SENTINEL not in hidden and digest(SENTINEL) not in hidden
    revealed = settle(SECRETS, reveal=True)
    assert first_instance(revealed)["password"] == SENTINEL
    assert first_instance(revealed)["old_passwords"] == [f"{SENTINEL}-2"]
    hashes = [user.pop("hashes") for user in first_instance(revealed)["users"]]
    assert hashes == [[digest(SENTINEL), digest(f"{SENTINEL}-2")], [digest(f"{SENTINEL}-3")]]
    assert first_instance(revealed)["users"] == first_instance(settle(SECRETS))["users"]
    assert [service["env"] for service in revealed["sidekiq"]["services"]] == [
        {"KEY": SENTINEL, "REDIS_URL": f"redis://:{SENTINEL}@127.0.0.1:6379/0"},
        {"REDIS_URL": f"redis://:{SENTINEL}@q/0"},
    ]


def test_settings_say_which_secrets_there_are(settle):
    settings = settle(SECRETS)
    assert first_instance(settings)["has_password"] is True
    assert first_service(settings)["env_names"] == ["KEY", "REDIS_URL"]


def test_secrets_are_not_revealed_over_the_bus(settle):
    """Salt adds such arguments to a call by people (salt, salt-call), not to one by a module."""
    assert settle(SECRETS, __pub_fun="redis_sidekiq.settings")
    with pytest.raises(SaltInvocationError, match="leave out reveal"):
        settle(SECRETS, reveal=True, __pub_fun="redis_sidekiq.settings")


def test_settings_take_no_other_argument(settle):
    with pytest.raises(SaltInvocationError, match="takes no saltenv"):
        settle(saltenv="base")


# Defaults ------------------------------------------------------------------------------------------------------------


def test_a_finished_build_is_taken_where_it_was_made_for(settle):
    build = "8.0.6-e5fe8aa51c-bookworm-amd64"
    packs = {build: "A" * 64, build.replace("bookworm", "trixie"): "b" * 64}
    settings = settle({"redis_sidekiq": {"roles": ["redis"], "redis": {"build": {"packs": packs}}}})
    source = f"salt://redis-builds/{build}.tar.gz"
    assert settings["redis"]["pack"] == {"name": build, "source": source, "hash": "sha256=" + "a" * 64}
    assert settings["packages"] == ["ca-certificates"]
    del packs[build]
    settings = settle(
        {"redis_sidekiq": {"roles": ["redis"], "redis": {"build": {"packs": packs, "packs_from": "/srv/x/"}}}}
    )
    assert settings["redis"]["pack"] == {"name": build, "source": "", "hash": ""}
    assert "build-essential" in settings["packages"]


def test_defaults(settle):
    """The whole result, so that a change of a default or of the shape shows here."""
    assert settle() == {
        "roles": ["redis", "firewall", "sidekiq"],
        "packages": [
            "build-essential",
            "bundler",
            "ca-certificates",
            "libsystemd-dev",
            "pkg-config",
            "ruby",
            "ruby-dev",
            "sudo",
            "ufw",
        ],
        "redis": {
            "flavor": "redis",
            "version": "8.0.6",
            "source": "https://download.redis.io/releases/redis-8.0.6.tar.gz",
            "source_hash": "sha256=6d0a9913887a4972536f9da226f1575859c34d86354129163260a5f9c6bd4229",
            "prefix": "/opt/redis",
            "bin_dir": "/usr/local/bin",
            "user": "redis",
            "group": "redis",
            "kernel": {"vm.overcommit_memory": "1", "net.core.somaxconn": "511", "transparent_hugepage": "madvise"},
            "build": {"user": "redis-build", "jobs": 2, "malloc": "jemalloc", "tls": False, "keep": 2},
            "pack": {"name": "", "source": "", "hash": ""},
            "service_manager": "systemd",
            "restart": "when_needed",
            "restart_window": None,
            "drain_sidekiq": True,
            "purge_data": False,
            "backup": {"enabled": False, "keep": 7, "at": "daily", "delay": 3600, "dir": "/var/backups/redis"},
            "instances": [
                {
                    "name": "6379",
                    "port": 6379,
                    "unit": "redis_6379",
                    "config": "/etc/redis/6379.conf",
                    "dir": "/var/redis/6379",
                    "bind": ["127.0.0.1", "-::1"],
                    "allow_from": [],
                    "has_password": False,
                    "maxmemory": 0,
                    "open_files": 524288,
                    "socket": "",
                    "socket_group": "",
                    "socket_folder": "",
                    "tls": {},
                    "directives": [
                        ["bind", "127.0.0.1 -::1"],
                        ["protected-mode", "yes"],
                        ["port", "6379"],
                        ["daemonize", "no"],
                        ["supervised", "systemd"],
                        ["pidfile", '""'],
                        ["logfile", '""'],
                        ["databases", "16"],
                        ["save", "3600 1"],
                        ["save", "300 100"],
                        ["save", "60 10000"],
                        ["dir", "/var/redis/6379"],
                        ["maxmemory-policy", "noeviction"],
                        ["appendonly", "yes"],
                        ["appendfsync", "everysec"],
                    ],
                    "start_timeout": 1800,
                    "stop_timeout": 900,
                    "users": [],
                    "restart": "when_needed",
                    "restart_window": "",
                    "backup": {
                        "enabled": False,
                        "keep": 7,
                        "at": "daily",
                        "delay": 3600,
                        "dir": "/var/backups/redis/6379",
                    },
                }
            ],
        },
        "firewall": {
            "enabled": True,
            "incoming": "deny",
            "outgoing": "allow",
            "routed": None,
            "logging": None,
            "only_ours": False,
            "allow_lockout": [],
            "confirm": "run",
            "confirm_within": 60,
            "rules": [
                {"name": "ssh", "action": "allow", "port": "22", "proto": "tcp", "from": "any"},
                {"name": "http", "action": "allow", "port": "80", "proto": "tcp", "from": "any"},
                {"name": "https", "action": "allow", "port": "443", "proto": "tcp", "from": "any"},
            ],
        },
        "deploy": {
            "user": "deploy",
            "create_user": True,
            "home": "/home/deploy",
            "group": "",
            "strict": False,
            "verbs": ["restart", "start", "stop"],
            "sudoers": "/etc/sudoers.d/sidekiq-deploy",
            "apps": [],
            "units": ["sidekiq"],
            "events": [],
            "commands": [],
            "salt_call": "",
        },
        "sidekiq": {
            "install": "gemfile",
            "services": [
                {
                    "name": "sidekiq",
                    "units": ["sidekiq.service"],
                    "unit_file": "/etc/systemd/system/sidekiq.service",
                    "app_dir": "/srv/app",
                    "current": "/srv/app/current",
                    "user": "deploy",
                    "group": "deploy",
                    "argv": ["/usr/bin/bundle", "exec", "sidekiq", "-e", "production", "-t", "25"],
                    "config_file": "",
                    "config": {},
                    "env_file": "/etc/sidekiq/sidekiq.env",
                    "env_names": ["REDIS_URL"],
                    "redis": "6379",
                    "redis_unit": "redis_6379.service",
                    "timeout": 25,
                    "stop_timeout": 40,
                    "start_timeout": 90,
                    "watchdog": 60,
                    "strategy": "handover",
                    "drain_timeout": 60,
                    "restart_file": "",
                }
            ],
        },
    }


def test_without_systemd_backups_come_at_a_time_that_cron_knows(redis_sidekiq, check):
    redis_sidekiq._booted_by_systemd = lambda: False
    own = {"6379": {"backup": {"at": "hourly"}}, "6380": {}, "6381": {"backup": {"enabled": False}}}
    redis = {"backup": {"enabled": True, "at": "*-*-* 03:30"}, "instances": own}
    path = "redis_sidekiq:redis:backup:at"
    assert check({"redis_sidekiq": {"roles": ["redis"], "redis": redis}}) == [
        f"{path}: found '*-*-* 03:30'; allowed without systemd: hourly, daily, weekly, monthly"
    ]
    redis["instances"] = {"6379": {"backup": {"at": "yearly"}}}
    assert check({"redis_sidekiq": {"redis": redis}})[0].startswith(
        "redis_sidekiq:redis:instances:6379:backup:at: found 'yearly'"
    )


def test_an_instance_says_its_own_of_backups_and_takes_the_rest(settle):
    backup = {"enabled": True, "keep": 3, "dir": "/srv/backups"}
    own = {
        "6379": {"backup": {"keep": 9, "at": "hourly"}},
        "6380": {"backup": {"enabled": False}},
        "6381": {"backup": None},
    }
    pillar = {"redis_sidekiq": {"redis": {"backup": backup, "instances": own}}}
    found = [one["backup"] for one in settle(pillar)["redis"]["instances"]]
    assert found == [
        {"enabled": True, "keep": 9, "at": "hourly", "delay": 3600, "dir": "/srv/backups/6379"},
        {"enabled": False, "keep": 3, "at": "daily", "delay": 3600, "dir": "/srv/backups/6380"},
        {"enabled": True, "keep": 3, "at": "daily", "delay": 3600, "dir": "/srv/backups/6381"},
    ]


def test_two_calls_share_nothing(settle):
    first = settle()
    first_instance(first)["bind"].append("10.0.0.5")
    first["deploy"]["verbs"].clear()
    first_service(first)["config"]["x"] = 1
    first_service(first)["argv"].clear()
    assert settle() == settle({"redis_sidekiq": {}})
    assert first_instance(settle())["bind"] == ["127.0.0.1", "-::1"]
    assert first_service(settle())["config"] == {}
    assert settle()["deploy"]["verbs"] == ["restart", "start", "stop"]


def test_settings_are_plain_data(settle):
    settings = settle(SECRETS, reveal=True)
    assert json.loads(json.dumps(settings)) == settings


def test_settings_are_fast(settle):
    """Several modules ask for them in a run."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        settle()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005


# Merging -------------------------------------------------------------------------------------------------------------


def test_restarts_are_left_to_a_person_for_all_instances_or_one(settle):
    two = {"6379": {}, "6380": {"restart": "when_needed"}}
    found = settle(redis(restart="never", instances=two))["redis"]["instances"]
    assert [one["restart"] for one in found] == ["never", "when_needed"]
    assert first_instance(settle(instance(restart="never")))["restart"] == "never"


def test_the_kernel_follows_settings_and_instances(settle):
    def kernel(settings, *backlogs):
        instances = {str(6379 + at): {"directives": {"tcp-backlog": value}} for at, value in enumerate(backlogs)}
        return settle(redis(kernel=settings, instances=instances))["redis"]["kernel"]

    assert kernel({})["net.core.somaxconn"] == "511" == kernel({}, 100, "no number", "-3")["net.core.somaxconn"]
    assert kernel({}, '"600"', [10, 2048])["net.core.somaxconn"] == "2048"
    assert kernel({"somaxconn": 5000}, 600)["net.core.somaxconn"] == "5000"
    rest = {"overcommit_memory": None, "transparent_hugepage": "never"}
    assert kernel({**rest, "somaxconn": None}) == {"transparent_hugepage": "never"}
    assert kernel({"manage": False}) == {}


def test_open_files_suffice_for_the_clients(settle):
    files = [first_instance(settle(instance(directives={"maxclients": n})))["open_files"] for n in (1, 500000, 600000)]
    assert files == [524288, 524288, 601024]


def test_maps_merge_and_lists_replace(settle):
    settings = settle(rules(ssh={"from": ["10.0.0.5/8"]}, metrics={"port": 9100}))
    assert [(rule["name"], rule["port"], rule["from"]) for rule in settings["firewall"]["rules"]] == [
        ("ssh", "22", "10.0.0.0/8"),
        ("http", "80", "any"),
        ("https", "443", "any"),
        ("metrics", "9100", "any"),
    ]
    assert directives(settle(instance(save=["60 1"]))).count("save 60 1") == 1
    assert "save 3600 1" not in directives(settle(instance(save=["60 1"])))


def test_null_takes_a_default_entry_away(settle):
    pillar = redis(instances={6379: None, 6381: {}, "6380": {}})
    pillar["redis_sidekiq"]["sidekiq"] = {"services": {"sidekiq": {"redis": 6381}}}
    settings = settle(pillar)
    assert [entry["name"] for entry in settings["redis"]["instances"]] == ["6380", "6381"]
    assert [rule["name"] for rule in settle(rules(http=None))["firewall"]["rules"]] == ["ssh", "https"]
    assert (
        settle({"redis_sidekiq": {"roles": ["redis"], "sidekiq": {"services": {"sidekiq": None}}}})["sidekiq"][
            "services"
        ]
        == []
    )


def test_null_takes_a_default_entry_away_for_sidekiq_too(check):
    (line,) = check(redis(instances={6379: None, 6380: {}}))
    assert line.startswith("redis_sidekiq:sidekiq:services:sidekiq:redis: found '6379', which is no instance here")


# Derivation ----------------------------------------------------------------------------------------------------------


def test_packages_follow_roles_and_install(settle):
    roles = {"roles": ["firewall"]}
    assert settle({"redis_sidekiq": roles})["packages"] == ["ufw"]
    for sidekiq, packages in (
        ({"install": "package"}, ["bundler", "ruby", "ruby-sidekiq", "sudo"]),
        ({"packages": []}, ["sudo"]),
        ({"packages": ["ruby3.1"], "install": "package"}, ["ruby3.1", "sudo"]),
    ):
        sidekiq["services"] = {"sidekiq": {"redis": ""}}
        assert settle({"redis_sidekiq": {"roles": ["sidekiq"], "sidekiq": sidekiq}})["packages"] == packages
    assert "libssl-dev" in settle(redis(build={"tls": True}))["packages"]


def test_roles_come_in_the_order_of_their_work(settle):
    assert settle({"redis_sidekiq": {"roles": ["sidekiq", "redis"]}})["roles"] == ["redis", "sidekiq"]


@pytest.mark.parametrize(
    "source, version",
    [
        ("/packages/redis-7.0.15.tar.gz", "7.0.15"),
        ("salt://redis_7.0.15.orig.tar.gz", "7.0.15"),
        ("https://mirror/redis-8.2.1.tgz?token=1", "8.2.1"),
        ("https://mirror/redis-8.10-rc1.tar.gz", "8.10-rc1"),
    ],
)
def test_version_comes_from_the_source(settle, source, version):
    settings = settle(redis(source=source, source_hash="SHA256=" + "AB" * 32))["redis"]
    assert (settings["version"], settings["source"]) == (version, source)
    assert settings["source_hash"] == "sha256=" + "ab" * 32


@pytest.mark.parametrize("name, digits", [("sha256", 64), ("sha384", 96), ("sha512", 128)])
def test_digest_without_a_name_is_known_by_its_length(settle, name, digits):
    assert settle(redis(source_hash="a" * digits))["redis"]["source_hash"] == f"{name}={'a' * digits}"


def test_service_manager(redis_sidekiq, settle):
    assert settle(redis(service_manager="sysv"))["redis"]["service_manager"] == "sysv"
    redis_sidekiq._booted_by_systemd = lambda: False
    settings = settle()
    assert settings["redis"]["service_manager"] == "sysv"
    assert {"daemonize yes", "supervised no", "logfile /var/log/redis/6379.log"} <= set(directives(settings))


def test_directives(settle):
    lines = directives(
        settle(
            instance(
                maxmemory="1gb",
                save=[],
                appendonly=False,
                directives={"maxclients": 100, "activedefrag": True, "syslog-ident": "", "rename": ["a b", "c d"]},
            )
        )
    )
    assert {
        'save ""',
        "maxmemory 1gb",
        "appendonly no",
        "maxclients 100",
        "activedefrag yes",
        'syslog-ident ""',
    } <= set(lines)
    assert lines[-2:] == ["rename a b", "rename c d"]


def test_tls_brings_its_build_its_directives_and_its_port(settle, tmp_path):
    (tmp_path / "cert").write_text("the certificate")
    pillar = redis(
        tls={"cert": str(tmp_path / "cert"), "key": "/no/key", "ca_pem": CERTIFICATE},
        instances={"6379": {**OPEN, "allow_from": ["10.0.0.9"], "tls": {"port": 6390, "auth_clients": "optional"}}},
    )
    settings = settle(pillar)
    assert settings["redis"]["build"]["tls"] is True and "libssl-dev" in settings["packages"]
    tls = first_instance(settings)["tls"]
    assert tls["sources"] == {
        "cert.pem": f"redis_sidekiq:redis:tls:cert ({tmp_path}/cert)",
        "key.pem": "redis_sidekiq:redis:tls:key (/no/key)",
        "ca.pem": "redis_sidekiq:redis:tls:ca_pem",
    }
    place = f"/etc/redis/tls/6379/{tls['version']}"
    assert {
        "port 6379",
        "tls-port 6390",
        f"tls-cert-file {place}/cert.pem",
        f"tls-key-file {place}/key.pem",
        f"tls-ca-cert-file {place}/ca.pem",
        "tls-auth-clients optional",
        'tls-protocols "TLSv1.2 TLSv1.3"',
    } <= set(directives(settings))
    assert [(rule["name"], rule["port"]) for rule in settings["firewall"]["rules"][3:]] == [
        ("redis_6379", "6379"),
        ("redis_6379_tls", "6390"),
    ]
    assert "contents" not in tls
    contents = first_instance(settle(pillar, reveal=True))["tls"]["contents"]
    assert contents == {"cert.pem": "the certificate", "key.pem": None, "ca.pem": CERTIFICATE}

    # What is renewed is another version; a certificate of an instance's own never goes with the key of all.
    (tmp_path / "cert").write_text("another certificate")
    assert first_instance(settle(pillar))["tls"]["version"] != tls["version"]
    pillar["redis_sidekiq"]["redis"]["instances"]["6379"]["tls"]["cert"] = "/own"
    with pytest.raises(SaltInvocationError, match="instances:6379:tls:key: must be given with port"):
        settle(pillar)


def test_without_a_plain_port_there_is_a_socket(settle):
    tls = {"port": 6390, "cert": "/c", "key": "/k", "plain": False}
    pillar = instance(**OPEN, allow_from=["10.0.0.9"], tls=tls)
    pillar["redis_sidekiq"]["sidekiq"] = {"services": {"sidekiq": {"redis_url": "rediss://q:6390/0"}}}
    settings = settle(pillar)
    found = first_instance(settings)
    assert (found["port"], found["socket"]) == (0, "/run/redis_6379/redis.sock")
    assert {"port 0", "unixsocket /run/redis_6379/redis.sock", "unixsocketperm 700"} <= set(directives(settings))
    assert [rule["name"] for rule in settings["firewall"]["rules"][3:]] == ["redis_6379_tls"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, ("", "", None)),
        ({"unixsocket": True}, ("/run/redis_6379/redis.sock", "", "700")),
        ({"unixsocket": True, "unixsocket_group": "jobs"}, ("/run/redis_6379/redis.sock", "", "770")),
        ({"unixsocket": "/srv//r/s", "unixsocket_perm": "777"}, ("/srv/r/s", "/srv/r", "777")),
    ],
)
def test_a_socket_is_the_formulas_or_anothers(settle, said, found):
    settings = settle(instance(**said))
    lines = dict(line.split(" ", 1) for line in directives(settings))
    wish = first_instance(settings)
    assert (wish["socket"], wish["socket_folder"], lines.get("unixsocketperm")) == found


def test_allow_from_becomes_rules_of_the_firewall(settle):
    pillar = instance(**OPEN, allow_from=["10.0.0.9", "fd00::1/8"])
    assert settle(pillar)["firewall"]["rules"][3:] == [
        {"name": "redis_6379", "action": "allow", "port": "6379", "proto": "tcp", "from": "10.0.0.9/32"},
        {"name": "redis_6379", "action": "allow", "port": "6379", "proto": "tcp", "from": "fd00::/8"},
    ]


def test_allow_from_contradicts_a_rule(check):
    pillar = instance(**OPEN, allow_from=["10.0.0.9"])
    pillar["redis_sidekiq"]["firewall"] = {"rules": {"no": {"port": 6379, "action": "deny", "from": ["10.0.0.9"]}}}
    (line,) = check(pillar)
    assert line.startswith("redis_sidekiq:redis:instances:6379:allow_from: says allow")


@pytest.mark.parametrize(
    ("said", "made"),
    [
        ({"port": [443, 80]}, [{"port": "80,443"}]),
        ({"port": "https"}, [{"port": "443"}]),
        ({"port": "any", "from": ["10.0.0.1"]}, [{"port": "any", "from": "10.0.0.1/32"}]),
        ({"proto": "esp", "from": ["10.0.0.0/8"]}, [{"port": "any", "proto": "esp", "from": "10.0.0.0/8"}]),
        ({"port": 9, "direction": "out", "interface": "eth0"}, [{"direction": "out", "interface": "eth0"}]),
        ({"port": 9, "log": "log", "comment": "the office"}, [{"log": "log", "comment": "the office"}]),
        ({"port": 9, "family": "ipv4"}, [{"family": "ipv4"}]),
        (
            {"port": 9, "from": ["10.0.0.1", "fd00::1"], "to": ["10.0.0.2", "fd00::2"]},
            [{"from": "10.0.0.1/32", "to": "10.0.0.2/32"}, {"from": "fd00::1/128", "to": "fd00::2/128"}],
        ),
        ({"port": 9, "from": ["10.0.0.1", "fd00::1"], "family": "ipv6"}, [{"from": "fd00::1/128"}]),
    ],
)
def test_rule_of_the_firewall(settle, said, made):
    plain = {"name": "x", "action": "allow", "port": "9", "proto": "tcp", "from": "any"}
    assert settle(rules(x=said))["firewall"]["rules"][3:] == [{**plain, **one} for one in made]


def test_application_profile_that_opens_redis(settle, check, redis_sidekiq):
    redis_sidekiq.__salt__ |= {"ufw_rules.profiles": lambda: {"R": [{"port": "6370:6380", "proto": "tcp"}]}}
    assert check(rules(x={"app": "R"})) == [
        "redis_sidekiq:firewall:rules:x: opens port 6379, a Redis instance, to anywhere; list networks in its allow_from"
    ]
    [rule] = settle(rules(x={"app": "later"}))["firewall"]["rules"][3:]
    assert rule == {"name": "x", "action": "allow", "app": "later", "from": "any"}


def test_pillars_of_the_how_to_are_right(check, mine):
    mine({"worker1": ["10.0.0.7"]})
    text = (REPO / "docs/firewall.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    pillars = [block for block in blocks if "redis_sidekiq" in block]
    table = [
        yaml.safe_load(entry)
        for entry in re.findall(r"`(\{.*?\})`", text.partition("| wish |")[2].partition("\n\n")[0])
    ]
    assert len(pillars) == 2 and len(table) >= 8
    for pillar in [*pillars, *(rules(http=None, x=entry) for entry in table)]:
        assert check(pillar) == [], pillar


# The mine ------------------------------------------------------------------------------------------------------------

MINE = "redis_sidekiq:redis:instances:6379:allow_from_mine"


@pytest.fixture
def mine(redis_sidekiq):
    """What Salt's mine answers: ``mine(answer)``; returns the questions that it is asked."""

    def _mine(answer):
        asked = []

        def get(*question):
            asked.append(question)
            if isinstance(answer, Exception):
                raise answer
            return answer

        redis_sidekiq.__context__ = {}
        redis_sidekiq.__salt__ = {**redis_sidekiq.__salt__, "mine.get": get}
        return asked

    return _mine


def of_mine(**settings):
    return instance(**OPEN, allow_from=["10.0.0.9"], allow_from_mine={"target": "worker*", **settings})


def opened(settings):
    return [rule["from"] for rule in settings["firewall"]["rules"] if rule["name"] == "redis_6379"]


def test_addresses_of_the_mine_are_let_in(settle, mine):
    sent = {"worker2": ["10.0.0.12", "172.17.0.1", "127.0.0.1"], "worker1": "10.0.0.9", "w3": ["fd00::3", "fe80::1"]}
    asked = mine(sent)
    assert opened(settle(of_mine())) == ["10.0.0.9/32", "10.0.0.12/32", "172.17.0.1/32", "fd00::3/128"]
    settle(of_mine())
    assert asked == [("worker*", "network.ip_addrs", "glob")], "once in a run"
    assert opened(settle(of_mine(networks=["10.0.0.0/8"]))) == ["10.0.0.9/32", "10.0.0.12/32"]


def test_mine_is_asked_only_for_rules(settle, check, mine):
    asked = mine({})
    pillar = of_mine()
    pillar["redis_sidekiq"]["roles"] = ["redis"]
    assert check(pillar) == [] and check(instance(**OPEN)) == [] and asked == []


@pytest.mark.parametrize("answer", [{}, {"worker1": []}, {"worker1": ["127.0.0.1", "fe80::1"]}])
def test_mine_that_knows_nobody(settle, check, mine, answer):
    mine(answer)
    [line] = check(of_mine())
    assert line.startswith(f"{MINE}: the mine knows no address of 'worker*'") and "stays open" in line
    assert opened(settle(of_mine(may_be_empty=True))) == ["10.0.0.9/32"]


@pytest.mark.parametrize("answer", [False, None, "", TimeoutError("Message timed out"), KeyError("mine.get")])
def test_mine_that_does_not_answer_stops_the_run(check, mine, answer):
    mine(answer)
    for pillar in (of_mine(), of_mine(may_be_empty=True)):
        [line] = check(pillar)
        assert line.startswith(f"{MINE}: the mine does not answer")


@pytest.mark.parametrize("answer", [False, TimeoutError("Message timed out")])
def test_mine_that_falls_silent_in_a_run(settle, check, mine, redis_sidekiq, monkeypatch, answer):
    mine({"worker1": ["10.0.0.7"]})
    settle(of_mine())
    context = redis_sidekiq.__context__
    mine(answer)
    now = time.monotonic()
    for later, opened_to in ((60, ["10.0.0.9/32", "10.0.0.7/32"]), (4000, None)):
        redis_sidekiq.__context__ = context
        monkeypatch.setattr(redis_sidekiq.time, "monotonic", lambda later=later: now + later)
        if opened_to:
            assert opened(settle(of_mine())) == opened_to
        else:
            assert "does not answer" in check(of_mine())[0]


@pytest.mark.parametrize(
    "sent", ["0.0.0.0/0", "0.0.0.0", "::", "10.0.0.0/8", "any", "", "x; id", 7, None, {"a": 1}, [["10.0.0.1"]]]
)
def test_mine_never_opens_to_more_than_one_host(check, mine, sent):
    mine({"worker1": ["10.0.0.8"], "evil": sent if isinstance(sent, list) else [sent]})
    [line] = check(of_mine())
    assert line.startswith(f"{MINE}: found ") and "from the minion evil; allowed: addresses" in line


def test_ssh_comes_first(settle):
    pillar = rules(ssh=None, http=None, https=None)
    pillar["redis_sidekiq"]["firewall"]["incoming"] = "allow"
    assert settle(pillar)["firewall"]["rules"] == []
    assert [rule["name"] for rule in settle(rules(a={"port": "1:5"}))["firewall"]["rules"]][0] == "ssh"
    assert settle(rules(a={"port": "1:5"}))["firewall"]["rules"][-1]["port"] == "1:5"


@pytest.mark.parametrize(
    "settings, url",
    [
        ({}, "redis://127.0.0.1:6379/0"),
        ({"password": "a/b@c:%"}, "redis://:a%2Fb%40c%3A%25@127.0.0.1:6379/0"),
        ({"bind": ["10.0.0.5", "-10.0.0.6"], "password": "x"}, "redis://:x@10.0.0.5:6379/0"),
        ({"bind": ["-10.0.0.6", "10.0.0.5"], "password": "x"}, "redis://:x@10.0.0.5:6379/0"),
        ({"bind": ["10.0.0.5", "127.0.0.2"], "password": "x"}, "redis://:x@127.0.0.2:6379/0"),
        ({"bind": ["*"], "password": "x"}, "redis://:x@127.0.0.1:6379/0"),
        ({"bind": ["::1"]}, "redis://[::1]:6379/0"),
    ],
)
def test_redis_url(settle, settings, url):
    assert first_service(settle(instance(**settings), reveal=True))["env"]["REDIS_URL"] == url


def test_a_service_comes_as_a_user_of_its_redis(settle):
    pillar = instance(password="x", users={"app": {"passwords": ["n/1", "o"], "preset": "sidekiq"}})
    pillar["redis_sidekiq"]["sidekiq"] = {"services": {"sidekiq": {"redis_user": "app"}}}
    settings = settle(pillar, reveal=True)
    assert first_service(settings)["env"]["REDIS_URL"] == "redis://app:n%2F1@127.0.0.1:6379/0"


def test_users_of_redis_have_the_rules_of_their_preset_and_their_own(settle):
    users = {
        "b": {"passwords": ["x"], "preset": "sidekiq", "rules": ["-keys", "&news:*"]},
        "a": {"passwords": ["x"], "rules": ["~a:*", "+get", "(~b:* +set|x)", "allchannels"]},
    }
    rules = {
        user["name"]: user["rules"] for user in first_instance(settle(instance(password="x", users=users)))["users"]
    }
    assert rules["a"] == ["~a:*", "+get", "(~b:* +set|x)", "allchannels"]
    assert rules["b"] == ["resetchannels", "~*", "+@all", "-@admin", "-@dangerous", "+info", "-keys", "&news:*"]


def test_a_redis_elsewhere(settle):
    settings = first_service(settle(service(redis_url="redis://q:6379/1"), reveal=True))
    assert settings["env"] == {"REDIS_URL": "redis://q:6379/1"}
    assert (settings["redis"], settings["redis_unit"]) == ("", "")


@pytest.mark.parametrize(
    ("roles", "user", "url"),
    [
        (["sidekiq"], "", "redis://:x@10.0.0.5:6379/0"),
        (["sidekiq"], "app", "redis://app:n%2F1@10.0.0.5:6379/0"),
        # Its own instance goes before one elsewhere: one pillar does for hosts of both roles.
        (["redis", "sidekiq"], "app", "redis://app:n%2F1@127.0.0.1:6379/0"),
    ],
)
def test_a_redis_elsewhere_that_the_pillar_of_both_describes(settle, roles, user, url):
    pillar = instance(
        password="x", bind=["127.0.0.1", "10.0.0.5"], users={"app": {"passwords": ["n/1"], "preset": "sidekiq"}}
    )
    services = {"sidekiq": {"redis_host": "10.0.0.5", "redis_user": user}}
    pillar["redis_sidekiq"] |= {"roles": roles, "sidekiq": {"services": services}}
    settings = first_service(settle(pillar, reveal=True))
    assert settings["env"] == {"REDIS_URL": url}
    assert settings["redis"] == ("6379" if "redis" in roles else "")


def test_a_user_of_a_redis_elsewhere_is_one_of_the_pillar(check):
    pillar = instance(password="x", bind=["10.0.0.5"])
    services = {"sidekiq": {"redis_host": "10.0.0.5", "redis_user": "app"}}
    pillar["redis_sidekiq"] |= {"roles": ["sidekiq"], "sidekiq": {"services": services}}
    (line,) = check(pillar)
    assert line.startswith("redis_sidekiq:sidekiq:services:sidekiq:redis_user: found 'app', who is no user of")


def test_salt_ssh_gives_the_pillar_and_gets_no_secret(redis_sidekiq):
    redis_sidekiq.__pillar__ = {"redis_sidekiq": {"redis": {"verison": "8"}}}
    settings = redis_sidekiq.settings(given=instance(password="sesame", bind=["10.0.0.5"]))
    assert settings["redis"]["instances"][0]["has_password"] and "sesame" not in str(settings)
    with pytest.raises(SaltInvocationError, match="leave out reveal"):
        redis_sidekiq.settings(reveal=True, given={})


def test_no_redis(settle):
    settings = first_service(settle(service(redis=""), reveal=True))
    assert (settings["env"], settings["env_names"], settings["redis_unit"]) == ({}, [], "")


def test_env_becomes_text(settle):
    env = {"A": True, "B": 1, "C": 1.5, "D": "", "E": "x y"}
    settings = first_service(settle(service(env=env, redis=""), reveal=True))
    assert settings["env"] == {"A": "true", "B": "1", "C": "1.5", "D": "", "E": "x y"}


def test_argv(settle):
    settings = first_service(
        settle(
            service(
                environment="staging",
                timeout=60,
                concurrency=7,
                require="./worker.rb",
                queues=["critical", {"default": 2}],
                arguments=["--verbose"],
                config={"labels": ["web"]},
            )
        )
    )
    assert settings["argv"][3:] == [
        *("-e", "staging", "-t", "60", "-c", "7", "-r", "./worker.rb", "-q", "critical", "-q", "default,2"),
        *("--verbose", "-C", "/etc/sidekiq/sidekiq.yml"),
    ]
    assert settings["config_file"] == "/etc/sidekiq/sidekiq.yml"
    assert settings["config"] == {"labels": ["web"]}
    assert settings["stop_timeout"] == 75


@pytest.mark.parametrize(
    "pillar, user, group",
    [
        ({}, "deploy", "deploy"),
        (deploy(user="shop"), "shop", "shop"),
        (service(user="worker"), "worker", "jobs"),
        (service(user="deploy", group="jobs"), "deploy", "jobs"),
    ],
)
def test_user_and_group(settle, pillar, user, group):
    settings = first_service(settle(pillar))
    assert (settings["user"], settings["group"]) == (user, group)


def test_home_follows_the_user(settle):
    assert settle(deploy(user="shop"))["deploy"]["home"] == "/home/shop"


def test_no_verbs_no_units(settle):
    assert settle(deploy(verbs=[]))["deploy"]["units"] == []


def test_what_the_deploy_user_may_do_follows_the_roles(settle):
    pillar = {"apps": ["shop"], "verbs": ["restart"]}
    command = "/usr/local/sbin/sidekiq-deployed-shop"
    for roles, units, commands in (
        (["redis"], [], []),
        (["redis", "sidekiq"], ["sidekiq"], []),
        (["deploy"], [], [command]),
        (["deploy", "redis", "sidekiq"], ["sidekiq"], [command]),
    ):
        found = settle({"redis_sidekiq": {"roles": roles, "deploy": pillar}})["deploy"]
        assert (found["units"], found["commands"], found["apps"]) == (units, commands, ["shop"])
        assert found["salt_call"] == ("/usr/bin/salt-call" if commands else "")
    assert found["events"] == [{"app": "shop", "tag": "redis_sidekiq/deploy/shop", "command": command}]


def test_a_host_that_deploys_needs_sudo_and_nothing_else(settle):
    settings = settle({"redis_sidekiq": {"roles": ["deploy"], "deploy": {"apps": ["shop"]}}})
    assert (settings["roles"], settings["packages"]) == (["deploy"], ["sudo"])


def test_a_host_that_deploys_needs_its_user(check):
    wish = {"apps": ["shop"], "create_user": False, "user": "nobody-here"}
    (line,) = check({"redis_sidekiq": {"roles": ["deploy"], "deploy": wish}})
    assert line.startswith("redis_sidekiq:deploy:user: found 'nobody-here', who does not exist")


def test_a_service_of_another_role_needs_no_user(check):
    pillar = {"roles": ["deploy"], "deploy": {"apps": ["shop"]}}
    assert check({"redis_sidekiq": {**pillar, **service(user="nobody-here")["redis_sidekiq"]}}) == []


def test_events_need_salt_call(redis_sidekiq, check):
    redis_sidekiq._salt_call = lambda: ""
    pillar = {"redis_sidekiq": {"roles": ["deploy"], "deploy": {"apps": ["shop"]}}}
    assert check(pillar) == ["redis_sidekiq:roles: found 'deploy', but there is no salt-call in this minion's PATH"]


# pillar.example ------------------------------------------------------------------------------------------------------

# `#key` and `#  key` are settings, `# Words` are words.
COMMENTED = re.compile(r"^( *)#(?! \S)", re.MULTILINE)


def alternatives():
    """Where each commented block of pillar.example begins and ends."""
    lines, blocks = EXAMPLE.splitlines(), []
    for number, line in enumerate(lines):
        if COMMENTED.match(line) and line.strip() != "#":
            if blocks and blocks[-1][-1] == number - 1:
                blocks[-1].append(number)
            else:
                blocks.append([number])
    return [pytest.param(block, id=lines[block[0]].strip(" #")) for block in blocks]


def test_example_is_right(check, settle):
    pillar = yaml.safe_load(EXAMPLE)
    assert check(pillar) == []
    assert first_service(settle(pillar))["argv"][-6:] == ["-c", "10", "-q", "critical", "-q", "default"]


@pytest.mark.parametrize("block", alternatives())
def test_example_is_right_with_a_change(check, block):
    lines = EXAMPLE.splitlines()
    for number in block:
        lines[number] = COMMENTED.sub(r"\1", lines[number])
    pillar = yaml.safe_load("\n".join(lines))
    assert pillar != yaml.safe_load(EXAMPLE)
    assert check(pillar) == []


def test_example_is_right_with_all_changes(check):
    assert len(alternatives()) > 8
    assert check(yaml.safe_load(COMMENTED.sub(r"\1", EXAMPLE))) == []


# The contract and what is made from it -------------------------------------------------------------------------------


def test_every_default_and_example_is_right(redis_sidekiq, check):
    """Each setting's own default and example pass the check that the pillar's value has to pass."""
    for entry in redis_sidekiq.contract()["settings"]:
        if entry["section"]:
            continue
        assert entry["why"].endswith("."), entry["path"]
        for value in [entry.get("default"), entry["example"]]:
            path = entry["path"].replace("PORT", "6379").replace("rules:NAME", "rules:ssh").replace("NAME", "sidekiq")
            for key in reversed(path.split(":")):
                value = {key: value}
            # What a value needs beside it (a user who exists, another setting) is another test's business.
            wrong = [line for line in check(value) if line.startswith(f"{path}: found") and "; allowed: " in line]
            assert not wrong or value_at(value, path) is None, wrong


def value_at(pillar, path):
    for key in path.split(":"):
        pillar = pillar[key]
    return pillar


def test_reference_is_up_to_date():
    done = subprocess.run(
        [sys.executable, REPO / "tools/pillar_reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_schema_has_every_setting(redis_sidekiq):
    contract = redis_sidekiq.contract()
    assert contract["schema"]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for entry in contract["settings"]:
        node = contract["schema"]
        for name in entry["path"].split(":"):
            node = node["additionalProperties"] if name in ("PORT", "NAME") else node["properties"][name]
            node = contract["schema"]["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        if entry["section"]:
            continue
        assert node["description"].startswith(entry["why"]) and entry["allowed"] in node["description"]
        assert entry["required"] or node["default"] == entry["default"]
        assert node.get("examples") == (None if entry["example"] is None else [entry["example"]])
        assert node.get("writeOnly", False) == entry["secret"]


def test_contract_is_plain_data(redis_sidekiq):
    assert json.loads(json.dumps(redis_sidekiq.contract()))["rules"][0].startswith("A `source` of your own")


def test_release_is_where_map_jinja_looks_for_it():
    assert 'RELEASE = "0.2.0"' in (REPO / "_modules/redis_sidekiq.py").read_text().splitlines()


@pytest.mark.parametrize(
    ("memory", "timeouts"),
    [
        (4096, (1800, 900)),
        (32_000, (1800, 960)),
        (64_000, (1920, 1920)),
        (65_536, (1920, 1920)),
        (65_537, (3840, 3840)),
    ],
)
def test_a_servers_timeouts_grow_with_the_hosts_memory(redis_sidekiq, settle, memory, timeouts):
    redis_sidekiq.__grains__["mem_total"] = memory
    instance = settle()["redis"]["instances"][0]
    assert (instance["start_timeout"], instance["stop_timeout"]) == timeouts


def test_by_salt_ssh_there_is_no_answer_for_an_empty_pillar(redis_sidekiq):
    redis_sidekiq.__opts__ = {"root_dir": "/var/tmp/.root_62a99a_salt/running_data", "__cli": "salt-call"}
    for function in (redis_sidekiq.check, redis_sidekiq.drift):
        with pytest.raises(SaltInvocationError, match="state.apply redis_sidekiq test=True"):
            function()


def test_services_of_other_minions_need_no_user_of_redis_here(settle):
    pillar = service(redis_user="jobs")["redis_sidekiq"]
    assert settle({"redis_sidekiq": {**pillar, "roles": ["redis"]}}, reveal=True)["roles"] == ["redis"]
