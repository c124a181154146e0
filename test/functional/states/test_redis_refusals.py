"""Bad settings against a real server: each is refused by name, and file, server and keys are as they were."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis
from salt.exceptions import SaltInvocationError

from test import certificates
from test.functional.conftest import REDIS
from test.functional.modules.test_redis_config import free_port

CA = certificates.authority()
PAIR = certificates.signed(CA)
OTHER = certificates.signed(CA)


def directive(name: str, value: object) -> dict:
    return {"directives": {name: value}}


def user(*rules: str) -> dict:
    return {"password": "boss-sesame", "users": {"app": {"passwords": ["app-sesame"], "rules": list(rules)}}}


def tls(**more) -> dict:
    return {"tls": {"port": 6390, "cert": "FOLDER/cert", "key": "FOLDER/key", **more}}


# What is wrong, settings of the instance, and words of the message: Redis' own, after the name of what they are about.
BY_REDIS = [
    (
        "a directive nobody knows",
        directive("no-such-directive", 1),
        ["no-such-directive", "Bad directive or wrong number"],
    ),
    ("a misspelt directive", directive("tcp-keepalve", 60), ["tcp-keepalve", "Bad directive or wrong number"]),
    ("a word for a number", directive("maxclients", "many"), ["maxclients", "couldn't be parsed into an integer"]),
    ("too few clients", directive("maxclients", 0), ["maxclients", "argument must be between 1 and"]),
    ("a number below the least", directive("tcp-backlog", -1), ["tcp-backlog", "argument must be between 0 and"]),
    ("a level of the log that is none", directive("loglevel", "loud"), ["loglevel", "must be one of"]),
    ("a fraction", directive("hash-max-listpack-entries", "1.5"), ["hash-max-listpack-entries", "couldn't be parsed"]),
    ("a time with a unit", directive("timeout", "1d"), ["timeout", "couldn't be parsed into an integer"]),
    (
        "a size with an unknown unit",
        directive("proto-max-bulk-len", "1zb"),
        ["proto-max-bulk-len", "must be a memory value"],
    ),
    ("a negative size", directive("repl-backlog-size", "-5"), ["repl-backlog-size", "must be a memory value"]),
    (
        "more than all memory",
        directive("maxmemory-clients", "200%"),
        ["maxmemory-clients", "percentage argument must be"],
    ),
    (
        "a limit without its last word",
        directive("client-output-buffer-limit", "pubsub 64mb 16mb"),
        ["client-output-buffer-limit"],
    ),
    (
        "a class of clients that is none",
        directive("client-output-buffer-limit", "guest 1 1 1"),
        ["Invalid client class"],
    ),
    (
        "a class of events that is none",
        directive("notify-keyspace-events", "Q"),
        ["notify-keyspace-events", "Invalid event class"],
    ),
    (
        "a list that is too short",
        directive("oom-score-adj-values", "0 100"),
        ["oom-score-adj-values", "wrong number of arguments"],
    ),
    ("a master without a port", directive("replicaof", "10.0.0.1"), ["replicaof", "wrong number of arguments"]),
    ("a master with a wrong port", directive("replicaof", "10.0.0.1 99999"), ["replicaof", "Invalid master port"]),
    ("a module that is not there", directive("loadmodule", "/no/such.so"), ["/no/such.so", "Can't load module"]),
    ("too many threads", directive("io-threads", 1000), ["io-threads", "argument must be between 1 and 128"]),
    ("an AOF elsewhere", directive("appendfilename", "a/b"), ["appendfilename", "can't be a path"]),
    ("a snapshot elsewhere", directive("dbfilename", "../dump.rdb"), ["dbfilename", "can't be a path"]),
    ("a word for yes or no", directive("cluster-enabled", "maybe"), ["cluster-enabled", "must be 'yes' or 'no'"]),
    ("an effort beyond the most", directive("active-expire-effort", 11), ["active-expire-effort", "between 1 and 10"]),
    (
        "a percentile beyond all",
        directive("latency-tracking-info-percentiles", "101"),
        ["latency-tracking-info-percentiles"],
    ),
    (
        "what this allocator cannot",
        directive("activedefrag", True),
        ["activedefrag", "Active defragmentation cannot be enabled"],
    ),
    ("two words for one", directive("hz", "10 20"), ["hz", "wrong number of arguments"]),
    ("a category of commands that is none", user("+@everything"), ["'app'", "Unknown command or category name in ACL"]),
    ("a command that is none", user("+gett"), ["'app'", "Unknown command or category name in ACL"]),
    ("a pattern after all keys", user("~*", "~jobs:*"), ["user app on", "Adding a pattern after the * pattern"]),
    ("a permission of keys that is none", user("%X~a"), ["user app on", "Syntax error"]),
    (
        "a subcommand to take away that is none",
        user("+config", "-config|sett"),
        ["'app'", "Unknown command or category"],
    ),
    ("a selector with a wrong rule", user("(+@nothing ~a)"), ["'app'", "Unknown command or category name in ACL"]),
    ("a rule that is no rule", user("everything"), ["user app on", "Syntax error"]),
]
BY_REDIS_WITH_TLS = [
    ("the key of another", tls(key="FOLDER/other-key"), ["tls:key (FOLDER/other-key)", "key values mismatch"]),
    ("another's key as text", tls(key="", key_pem=OTHER.key), ["tls:key_pem", "key values mismatch"]),
    ("a key that is none", tls(key="FOLDER/garbage"), ["tls:key (FOLDER/garbage)", "Failed to load private key"]),
    ("a CA that is none", tls(ca="FOLDER/garbage"), ["Failed to configure CA certificate"]),
    ("ciphers that are none", {**tls(), **directive("tls-ciphers", "NO-SUCH")}, ["Failed to configure ciphers"]),
    (
        "parameters not there",
        {**tls(), **directive("tls-dh-params-file", "/no/dh")},
        ["Failed to load /no/dh", "No such file"],
    ),
    (
        "a chain that breaks off",
        tls(cert="FOLDER/broken-chain"),
        ["tls:cert (FOLDER/broken-chain)", "Failed to load certificate"],
    ),
]
# What Redis would take, and fail by later.
BY_US = [
    (
        "a certificate of yesterday",
        tls(cert="FOLDER/expired"),
        ["tls:cert (FOLDER/expired) is not valid now: it is from"],
    ),
    ("a certificate of tomorrow", tls(cert="FOLDER/early"), ["tls:cert (FOLDER/early) is not valid now: it is from"]),
    (
        "a certificate that is none",
        tls(cert="FOLDER/garbage"),
        ["tls:cert (FOLDER/garbage) is no certificate in PEM form"],
    ),
    ("half a certificate", tls(cert="FOLDER/half"), ["tls:cert (FOLDER/half) is no certificate in PEM form"]),
    ("a certificate that is not there", tls(cert="/no/cert"), ["tls:cert (/no/cert) cannot be read"]),
    ("a key that is not there", tls(key="/no/key"), ["tls:key (/no/key) cannot be read"]),
    ("a folder for a key", tls(key="FOLDER"), ["tls:key (FOLDER) cannot be read"]),
    ("a key with a passphrase", tls(key="FOLDER/encrypted"), ["tls:key (FOLDER/encrypted) has a passphrase"]),
    ("a socket in no folder", {"unixsocket": "/no/folder/s"}, ["/no/folder: No such file or directory", "unixsocket"]),
    (
        "a socket in a folder of others",
        {"unixsocket": "/usr/share/s"},
        ["/usr/share is no folder that nobody may write to"],
    ),
    (
        "an address of another host",
        {"bind": ["192.0.2.1"], "password": "boss-sesame"},
        ["192.0.2.1", "no such address"],
    ),
]
# What the pillar's contract refuses before any state: settings of Redis.
BY_PILLAR = [
    (
        "more memory than there is",
        {"instances": {"6379": {"maxmemory": "900000gb"}}},
        [":maxmemory: found 900000gb", "below"],
    ),
    (
        "a share of the memory",
        {"instances": {"6379": {"maxmemory": "50%"}}},
        [":maxmemory: found '50%'", "no percentage"],
    ),
    ("a size with a space", {"instances": {"6379": {"maxmemory": "2 gb"}}}, [":maxmemory: found '2 gb'", "512mb"]),
    (
        "a port for two",
        {"instances": {"6379": tls(port=6380), "6380": {}}},
        [":tls:port: found 6380", "the instance 6380"],
    ),
    ("an instance twice", {"instances": {"6379": {}, 6379: {}}}, ["6379: is there twice"]),
    ("a port that is none", {"instances": {"redis": {}}}, ["redis: no name", "1024 to 65535"]),
    ("a digest by md5", {"source_hash": "d" * 32}, ["source_hash: found", "md5 can be forged"]),
    ("a digest by sha1", {"source_hash": "sha1=" + "d" * 40}, ["source_hash: found", "sha1 can be forged"]),
    ("no digest", {"source_hash": ""}, ["source_hash: must be given"]),
    (
        "a password twice",
        {"instances": {"6379": {"password": "sesame-1", "old_passwords": ["sesame-1"]}}},
        ["old_passwords: holds"],
    ),
    ("a misspelt setting", {"instances": {"6379": {"max_memory": "1gb"}}}, ["max_memory: unknown key", "'maxmemory'"]),
    ("open to all", {"instances": {"6379": {"bind": ["*"]}}}, [":password: must be given", "beyond loopback"]),
]


class Site:
    """A server that serves by its config, with keys in it, and the state that would write another one."""

    def __init__(self, load, prefix: Path, tarball: dict, flags: dict, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        names = (
            "redis_sidekiq",
            "redis_releases",
            "redis_build",
            "redis_sandbox",
            "redis_server",
            "redis_config",
            "redis_tls",
            "redis_upgrade",
            "redis_instances",
            "whole_files",
        )
        modules = {name: load(f"_modules/{name}.py") for name in names}
        self.modules, self.functions = modules, {}
        for name, module in modules.items():
            module.__salt__, module.__context__, module.__opts__ = self.functions, {}, {}
            self.functions |= {f"{name}.{key}": value for key, value in vars(module).items() if callable(value)}
        self.functions["redis_build.name"] = lambda *_, **__: os.readlink(prefix / "current")
        self.functions["redis_sidekiq.settings"] = self.settings
        modules["redis_sidekiq"].__grains__ = {"os_family": "Debian", "mem_total": 24000, "num_cpus": 2}
        places = {name: "_FOLDER" for name in ("redis_sandbox", "redis_config", "redis_upgrade")}
        for module, place in {"redis_server": "_LOCK_DIR", **places}.items():
            setattr(modules[module], place, str(folder / "run"))
        (folder / "run").mkdir()
        modules["redis_tls"]._FOLDER = modules["redis_server"]._TLS_DIR = str(folder / "etc/tls")
        self.state = load("_states/redis_server.py")
        self.state.__salt__ = self.functions
        self.base = {**tarball, "prefix": str(prefix), "user": "nobody", "group": "nogroup", "service_manager": "sysv"}
        # Redis itself is told by the tests' own words where it is to run.
        self.base["build"] = {key: value for key, value in flags.items() if key != "systemd"}
        self.config = folder / "etc" / "6379.conf"
        self.say({})

    def say(self, instance: dict, **more) -> None:
        """Make a pillar; FOLDER stands for the test's own."""
        text = json.dumps({**self.base, "instances": {"6379": instance}, **more} if "instances" not in more else None)
        redis_ = json.loads(text) if text != "null" else {**self.base, **more}
        redis_ = (
            json.loads(json.dumps(redis_).replace("FOLDER", str(self.folder))) if "instances" not in more else redis_
        )
        pillar = {"redis_sidekiq": {"roles": ["redis"], "redis": redis_}}
        self.modules["redis_sidekiq"].__pillar__ = pillar
        self.modules["redis_server"].__context__.clear()

    def settings(self, reveal: bool = False) -> dict:
        """The formula's own, with other places."""
        found = self.modules["redis_sidekiq"].settings(reveal=reveal)
        text = (
            json.dumps(found).replace("/etc/redis", f"{self.folder}/etc").replace("/var/redis", f"{self.folder}/data")
        )
        return json.loads(text.replace("/var/log/redis", f"{self.folder}/log"))

    def serve(self) -> None:
        for name in ("etc", "data/6379", "log"):
            (self.folder / name).mkdir(parents=True)
        self.write(test=False)
        words = ["--port", str(self.port), "--daemonize", "no", "--pidfile", "", "--logfile", ""]
        argv = [f"{self.base['prefix']}/current/bin/redis-server", self.config, *words]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port, decode_responses=True, retry=None)
        until = time.monotonic() + 20
        while True:
            try:
                self.client.mset({f"key:{number}": number for number in range(100)})
                break
            except redis.RedisError:
                assert time.monotonic() < until
                time.sleep(0.05)
        self.before = self.facts()

    def write(self, test: bool) -> dict:
        self.state.__opts__ = {"test": test}
        return self.state.config(str(self.config), "6379")

    def facts(self) -> dict:
        """All that must stay: files, what the server does, who may come in, its keys."""
        paths = sorted(path for path in (self.folder / "etc").rglob("*") if path.is_file())
        files = [(str(path), path.read_text(), path.stat().st_mtime_ns) for path in paths]
        asked = [self.client.config_get("*"), self.client.execute_command("ACL LIST"), self.client.dbsize()]
        return {"files": files, "asked": asked, "pid": self.client.info("server")["process_id"]}


@pytest.fixture(scope="module")
def served(open_folder):
    """The place of one server for all; it is made by the first test."""
    folder = Path(tempfile.mkdtemp(dir=open_folder))
    folder.chmod(0o755)
    made: dict[str, Site] = {}
    yield folder, made
    for site in made.values():
        site.process.kill()
        site.process.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def site(served, load, redis_build, redis_tarball, redis_flags):
    folder, made = served
    if not made:
        texts = {"cert": PAIR.cert, "key": PAIR.key, "other-key": OTHER.key, "garbage": "no PEM\n"}
        texts |= {
            "expired": certificates.signed(CA, days=-1, since=-9).cert,
            "half": PAIR.cert[:300] + "\n-----END CERTIFICATE-----\n",
        }
        texts |= {"early": certificates.signed(CA, since=2).cert, "encrypted": certificates.encrypted(PAIR)}
        texts["broken-chain"] = PAIR.cert + CA.cert[:300] + "\n-----END CERTIFICATE-----\n"
        for name, text in texts.items():
            (folder / name).write_text(text)
        one = Site(load, redis_build, redis_tarball, redis_flags, folder)
        one.serve()
        made["site"] = one
    return made["site"]


def assert_refused(site: Site, instance: dict, words: list[str]) -> None:
    site.say(instance)
    for test in (True, False):
        ret = site.write(test)
        assert ret["result"] is False, ret
        for each in words:
            assert each.replace("FOLDER", str(site.folder)) in ret["comment"]
        assert "sesame" not in json.dumps(ret) and "PRIVATE" not in json.dumps(ret)
        assert "scratch" not in ret["comment"]
    assert site.facts() == site.before


def test_there_are_enough_of_them():
    assert len(BY_REDIS) + len(BY_REDIS_WITH_TLS) + len(BY_US) + len(BY_PILLAR) >= 60


@pytest.mark.parametrize(("what", "instance", "words"), BY_REDIS)
def test_what_redis_refuses_changes_nothing(site, what, instance, words):
    assert_refused(site, instance, [f"Redis {REDIS} refuses the config", *words])


@pytest.mark.parametrize(("what", "instance", "words"), BY_REDIS_WITH_TLS)
def test_a_certificate_that_redis_refuses_changes_nothing(site, redis_flags, what, instance, words):
    if not redis_flags["tls"]:
        pytest.skip("this machine has no headers of OpenSSL; the tests on hosts build with TLS")
    assert_refused(site, instance, [f"Redis {REDIS} refuses the config", *words])


@pytest.mark.parametrize(("what", "instance", "words"), BY_US)
def test_what_redis_would_fail_by_later_changes_nothing(site, redis_flags, what, instance, words):
    site.base["build"]["tls"] = None if "tls" in instance else redis_flags["tls"]
    assert_refused(site, instance, words)


@pytest.mark.parametrize(("what", "settings", "words"), BY_PILLAR)
def test_what_the_pillar_must_not_say_runs_no_state(site, what, settings, words):
    site.say({}, **{"instances": {"6379": {}}, **settings})
    with pytest.raises(SaltInvocationError) as caught:
        site.settings()
    for each in words:
        assert each in str(caught.value)
    assert site.write(test=False)["result"] is False
    assert "sesame" not in str(caught.value) and site.facts() == site.before


def test_what_is_right_is_not_refused(site, redis_flags):
    """The table's own settings, without their mistakes."""
    site.say(directive("tcp-keepalive", 60) | user("+@read", "~jobs:*") | (tls() if redis_flags["tls"] else {}))
    ret = site.write(test=True)
    assert ret["result"] is None, ret["comment"]
    assert site.facts() == site.before
