"""Planted secrets: after each kind of run they are looked for wherever somebody else could see them."""

import base64
import contextlib
import hashlib
import json
from urllib.parse import quote

import pytest

from test import certificates
from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import Master, put_formula, put_pillar, redis_version, tarball

PAIR = certificates.signed(certificates.authority())
NEXT = certificates.signed(certificates.authority())
PASSWORDS = {
    "password": "boss/Sesame one",
    "next password": "boss/Sesame two",
    "old password": "boss/Sesame nil",
    "user": "jobs/Sesame one",
    "next of the user": "jobs/Sesame two",
    "refused": "never/Sesame",
    "env": "env/Sesame",
}
KEYS = {"key": PAIR.key.splitlines()[1], "next key": NEXT.key.splitlines()[1]}

# Looks for the lines of /root/secrets in the command lines of all processes, and in the environments of those who are
# not meant to have them, all the time until /run/watch.stop is there; prints what it saw and how often it looked.
WATCH = """
import json, os, time
secrets = [line.encode() for line in open("/root/secrets").read().splitlines()]
own, seen, rounds = os.getpid(), set(), 0
def read(path):
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return b""
while not os.path.exists("/run/watch.stop"):
    rounds += 1
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != own:
            for name in ("cmdline", "environ"):
                text = read(f"/proc/{pid}/{name}")
                if any(secret in text for secret in secrets):
                    seen.add((name, read(f"/proc/{pid}/cmdline").replace(b"\\0", b" ").decode("utf-8", "replace")[:200]))
    time.sleep(0.005)
print(json.dumps({"seen": sorted(seen), "rounds": rounds}))
"""
# All files that a user like nobody may read; what the kernel shows of itself apart.
READABLE = """
cd /
nobody() { runuser -u nobody -- find "$@" -print0 2>/dev/null >> /root/readable; }
rm -f /root/readable
nobody / -xdev \\( -path /proc -o -path /sys -o -path /packages \\) -prune -o -type f -readable -newer /root/begun
for place in /run /tmp /dev/shm; do nobody $place -type f -readable; done
xargs -0 -r grep -lFf /root/secrets -- < /root/readable
"""


def forms(words: dict) -> set[str]:
    """A secret as it is, and as programs write it."""
    found = set()
    for word in words.values():
        found |= {word, quote(word, safe=""), base64.b64encode(word.encode()).decode()}
        found.add(hashlib.sha256(word.encode()).hexdigest())
    return found


def pillar(image: str, password: str, user: list, pair: certificates.Certificate, old=(), **instance) -> dict:
    """A pillar with a secret of each kind."""
    users = {"jobs": {"passwords": user, "preset": "sidekiq"}}
    instance |= {"password": password, "old_passwords": list(old), "users": users}
    instance["tls"] = {"port": 6390, "cert_pem": pair.cert, "key_pem": pair.key}
    # Its unit is never started here: who works jobs has his password by right.
    made = app.sidekiq_pillar(redis="6379", redis_url="", redis_user="jobs", env={"API": PASSWORDS["env"]})[
        "redis_sidekiq"
    ]
    redis = {**tarball(redis_version(image)), "build": {"malloc": "libc", "tls": True}, "instances": {"6379": instance}}
    return {"redis_sidekiq": {**made, "roles": ["redis", "sidekiq"], "redis": redis}}


def runs(image: str):
    """What is done to a host one after the other: a name, the pillar, and whether it succeeds."""
    first = (PASSWORDS["password"], [PASSWORDS["user"]], PAIR)
    rotated = (PASSWORDS["next password"], [PASSWORDS["next of the user"], PASSWORDS["user"]], NEXT)
    old = [PASSWORDS["old password"], PASSWORDS["password"]]
    wrong = (PASSWORDS["refused"], [PASSWORDS["refused"]], NEXT)
    return [
        ("first", pillar(image, *first), True),
        ("a rotation", pillar(image, *rotated, old=old, maxmemory="64mb"), True),
        ("a restart", pillar(image, *rotated, databases=4), True),
        ("a refusal by Redis", pillar(image, *wrong, directives={"no-such": 1}), False),
        (
            "a refused key",
            pillar(image, PASSWORDS["refused"], [PASSWORDS["user"]], certificates.Certificate(PAIR.cert, NEXT.key, ())),
            False,
        ),
        ("a refusal by the contract", pillar(image, *wrong, maxmemory="2 gb"), False),
    ]


def plant(host: Host) -> None:
    host.write(
        "/root/secrets", "".join(f"{word}\n" for word in sorted(forms(PASSWORDS) | set(KEYS.values()))), mode=0o600
    )
    host.run(["touch", "/root/begun"])


@contextlib.contextmanager
def watched(host: Host):
    """Look at all processes of a host meanwhile."""
    host.run(["rm", "-f", "/run/watch.stop"])
    watch = host.popen(["python3", "-c", WATCH])
    try:
        yield
    finally:
        host.run(["touch", "/run/watch.stop"])
        found = json.loads(watch.communicate(timeout=60)[0])
    assert found["seen"] == [] and found["rounds"] > 100, found


def found_in(text: str) -> set[str]:
    """Which of the secrets are in a text, by their names."""
    known = {form: name for name, word in PASSWORDS.items() for form in forms({name: word})}
    return {name for form, name in (known | {word: name for name, word in KEYS.items()}).items() if form in text}


def assert_nothing_on(host: Host, logs: tuple = ("/var/log/salt/minion",)) -> None:
    """Neither a log, nor the journal, nor a file that others may read has a secret."""
    text = host.run(["journalctl", "--no-pager", "-q", "--output=verbose"]).stdout
    for log in logs:
        text += host.run(["sh", "-c", f"cat {log}* 2>/dev/null || :"]).stdout
    assert found_in(text) == set()
    assert host.run(["sh", "-c", READABLE], check=False, timeout=120).stdout == ""


def call(host: Host, *words: str, level: str = "debug") -> str:
    """All that `salt-call` says, at a level of its log."""
    done = host.run(["salt-call", "--local", f"--log-level={level}", "--out=json", *words], check=False)
    return done.stdout + done.stderr


@pytest.fixture
def host(make_host, tls_image):
    made = make_host("secrets", image=tls_image("bookworm"))
    put_formula(made)
    plant(made)
    return made


def test_what_is_planted_is_found_where_it_may_be(host):
    """The search itself: each place is one in which it would see a secret."""
    host.write("/tmp/leak", f"x {PASSWORDS['user']} y\n")
    host.run(["logger", PASSWORDS["env"]])
    with pytest.raises(AssertionError, match="env"):
        assert_nothing_on(host)
    assert host.run(["sh", "-c", READABLE], check=False).stdout == "/tmp/leak\n"
    with pytest.raises(AssertionError, match="cmdline"), watched(host):
        host.run(["sh", "-c", f"sleep 2; : {PASSWORDS['password']}"])
    with pytest.raises(AssertionError, match="environ"), watched(host):
        host.run(["env", f"X={PASSWORDS['password']}", "sleep", "2"])


def test_no_run_without_a_master_shows_a_secret(host):
    levels = {"first": "trace", "a refusal by Redis": "trace"}
    with watched(host):
        for name, said, succeeds in runs("bookworm"):
            put_pillar(host, said)
            for words in (["test=True"], []) if succeeds else ([],):
                text = call(host, "state.apply", "redis_sidekiq", *words, level=levels.get(name, "debug"))
                assert ('"result": false' not in text) == succeeds or "maxmemory: found" in text, (name, text[-3000:])
                assert found_in(text) == set(), name
        put_pillar(host, runs("bookworm")[2][1])
        for words in (
            ["redis_sidekiq.settings"],
            ["redis_sidekiq.settings", "reveal=True"],
            ["redis_server.status", "6379"],
            ["redis_server.config_diff", "/etc/redis/6379.conf", "6379"],
            ["redis_config.drift", "6379"],
            ["redis_acl.drift", "6379"],
            ["redis_tls.status", "6379"],
            ["redis_server.restart", "6379"],
        ):
            assert found_in(call(host, *words)) == set(), words
        assert found_in(call(host, "state.apply", "redis_sidekiq.clean")) == set()
    assert_nothing_on(host)
    assert not host.exists("/etc/redis")


@pytest.mark.soak
def test_no_run_by_a_master_shows_a_secret(host, make_host):
    """Neither to the master's command line, nor in its job cache, its events and its log, all at debug level."""
    master_host = make_host("secrets-master", image="bookworm")
    plant(master_host)
    for each in (master_host, host):
        each.write("/etc/salt/master.d/log.conf", json.dumps({"log_level_logfile": "debug"}))
        each.write("/etc/salt/minion.d/log.conf", json.dumps({"log_level_logfile": "debug"}))
    host.run(["sh", "-c", "rm -f /etc/salt/minion.d/lab.conf"])
    master = Master(master_host, runs("bookworm")[0][1])
    master.attach(host)
    events = master_host.popen(["salt-run", "state.event", "pretty=True"])
    with watched(host), watched(master_host):
        for name, said, succeeds in runs("bookworm"):
            put_pillar(master_host, said)
            for words in (["test=True"], []) if succeeds else ([],):
                done = master_host.run(
                    ["salt", "--out=json", "-l", "debug", host.name, "state.apply", "redis_sidekiq", *words],
                    check=False,
                    timeout=300,
                )
                assert found_in(done.stdout + done.stderr) == set(), name
        for words in (["redis_sidekiq.settings"], ["redis_tls.status", "6379"], ["state.apply", "redis_sidekiq.clean"]):
            assert found_in(json.dumps(master.call(host, *words, check=False))) == set(), words
    assert_nothing_on(host)
    assert_nothing_on(master_host, ("/var/log/salt/master", "/var/log/salt/minion"))
    events.terminate()
    assert found_in(events.communicate(timeout=60)[0]) == set()
    cache = master_host.run(["sh", "-c", "grep -rlaFf /root/secrets /var/cache/salt/master/jobs; :"]).stdout
    assert (
        cache == ""
        and master_host.run(["sh", "-c", "find /var/cache/salt/master/jobs -type f | wc -l"]).stdout != "0\n"
    )
