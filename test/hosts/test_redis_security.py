"""Who gets into Redis on a real host: users and their rules, passwords that change, and where no secret may be."""

import contextlib
import json

import pytest

from test.hosts import app
from test.hosts.lab import apply_locally, put_pillar, redis_version, salt_call, tarball, wait_for
from test.hosts.redis_lab import CONFIG, IMAGES, LIVE, changed, configure, pid

USERS = "Redis instance 6379 has its users"
REFUSED = "NOAUTH Authentication required."  # redis-cli says why to stderr, and asks all the same
CONF = "/etc/redis/6379.conf"

# Comes in anew all the time as each user of /tmp/logins ("user password" a line), and holds one connection of each user
# that it saw first; until the file /tmp/visitors.stop is there.
VISITORS = """
import collections, json, os, socket, threading
def ask(stream, *words):
    stream.write(b"".join([b"*%d\\r\\n" % len(words), *(b"$%d\\r\\n%s\\r\\n" % (len(w), w) for w in words)]))
    stream.flush()
    return stream.readline().strip().decode()
def enter(user, password):
    place = socket.create_connection(("127.0.0.1", 6379), 30)
    stream = place.makefile("rwb")
    place.close()
    return stream, ask(stream, b"AUTH", user.encode(), password.encode())
def logins():
    with open("/tmp/logins") as stream:
        return [line.split() for line in stream]
held = {user: enter(user, password)[0] for user, password in logins()}
counts, refused, ended = collections.Counter(), [], []
def visit(number):
    while not os.path.exists("/tmp/visitors.stop"):
        user, password = logins()[number]
        try:
            stream, said = enter(user, password)
            answers = [said, ask(stream, b"PING")]
            stream.close()
            if answers != ["+OK", "+PONG"]:
                refused.append([user, answers])
            if ask(held[user], b"PING") != "+PONG":
                ended.append(user)
        except OSError as err:
            refused.append([user, repr(err)])
        counts[user] += 1
threads = [threading.Thread(target=visit, args=(number,)) for number in range(len(held))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"counts": counts, "refused": refused[:9], "ended": ended[:9]}))
"""


def move(host, **logins) -> None:
    """What the visitors know from now on: user=password."""
    host.write("/tmp/logins.new", "".join(f"{user} {password}\n" for user, password in logins.items()))
    host.run(["mv", "/tmp/logins.new", "/tmp/logins"])


@contextlib.contextmanager
def visitors(host):
    """Let clients come and go; what they saw is filled in at the end."""
    host.run(["rm", "-f", "/tmp/visitors.stop"])
    working = host.popen(["python3", "-c", VISITORS])
    seen = {}
    try:
        yield seen
    finally:
        host.run(["touch", "/tmp/visitors.stop"])
        seen.update(json.loads(working.communicate(timeout=60)[0]))


def ask(host, login: str, *words: str) -> str:
    """Redis' answer to a user, "name:password"."""
    user, _, password = login.partition(":")
    argv = ["env", f"REDISCLI_AUTH={password}", "redis-cli", "--user", user, *words]
    return host.run(argv, check=False).stdout.strip()


def worker(*passwords: str) -> dict:
    return {"passwords": list(passwords), "preset": "sidekiq"}


# Users ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_users_are_made_changed_and_deleted_while_redis_runs(redis_host, image):
    host = redis_host(image)
    before = pid(host)
    cache = {"passwords": ["cache-pw"], "rules": ["~cache:*", "+@read", "+@connection", "(~log:* +append)"]}
    configure(host, {"password": "boss-pw", "users": {"worker": worker("worker-pw"), "cache": cache}})
    announced = apply_locally(host, test=True).assert_ok()
    assert set(announced.pending) == {CONFIG, LIVE, USERS}
    assert announced.changed[USERS] == {name: {"old": "no user", "new": "a user"} for name in ("cache", "worker")}
    assert app.redis(host, "acl", "users") == "default"
    run = apply_locally(host)
    assert changed(run) == {CONFIG, LIVE, USERS} and run.changed[USERS] == announced.changed[USERS]
    apply_locally(host).assert_unchanged()
    text = host.run(["cat", CONF]).stdout
    assert "user worker on #" in text and "worker-pw" not in text and "cache-pw" not in text
    assert ask(host, "worker:worker-pw", "set", "a", "1") == "OK"
    assert "NOPERM" in ask(host, "worker:worker-pw", "config", "get", "dir")
    assert "NOPERM" in ask(host, "cache:cache-pw", "set", "cache:a", "1")
    assert ask(host, "cache:cache-pw", "append", "log:a", "1") == "1"

    # What somebody changed by hand is put right, and a user of nobody's goes.
    for words in (
        "setuser worker +flushall",
        "setuser cache >more",
        "setuser intruder on nopass ~* +@all",
        "setuser default >back-door",
    ):
        ask(host, "default:boss-pw", "acl", *words.split())
    found = salt_call(host, "redis_acl.drift", "6379")
    assert list(found["users"]) == ["cache", "default", "intruder", "worker"] and found["unasked"] == ""
    announced = apply_locally(host, test=True).assert_ok()
    assert announced.pending == [USERS]
    assert announced.changed[USERS]["cache"] == announced.changed[USERS]["default"] == {"passwords": "0 more, 1 fewer"}
    assert set(announced.changed[USERS]["worker"]) == {"rules"}
    assert announced.changed[USERS]["intruder"] == {"old": "a user", "new": "no user"}
    run = apply_locally(host)
    assert changed(run) == {USERS} and run.changed == announced.changed
    apply_locally(host).assert_unchanged()
    assert ask(host, "cache:more", "ping") == ask(host, "default:back-door", "ping") == REFUSED
    assert ask(host, "default:boss-pw", "acl", "users").split() == ["cache", "default", "worker"]

    ask(host, "default:boss-pw", "acl", "setuser", "worker", "off")
    assert salt_call(host, "redis_acl.apply", "6379") == {"set": ["worker"], "deleted": [], "failed": {}}

    # A start finds the same in the file; who is taken out of the pillar is gone, and without a password all are back.
    host.run(["systemctl", "restart", "redis_6379"])
    apply_locally(host).assert_unchanged()
    before = pid(host)
    configure(host, {"password": "boss-pw", "users": {"cache": cache}})
    assert changed(apply_locally(host)) == {CONFIG, USERS}
    assert ask(host, "worker:worker-pw", "ping") == REFUSED and ask(host, "cache:cache-pw", "ping") == "PONG"
    configure(host)
    assert changed(apply_locally(host)) == {CONFIG, LIVE, USERS}
    apply_locally(host).assert_unchanged()
    assert (pid(host), app.redis(host, "acl", "users"), app.redis(host, "get", "a")) == (before, "default", "1")


def test_an_acl_that_redis_refuses_never_lands(redis_host):
    host = redis_host()
    before, text = pid(host), host.run(["cat", CONF]).stdout
    configure(host, {"password": "boss-pw", "users": {"app": {"passwords": ["app-pw"], "rules": ["+@everything"]}}})
    for test in (True, False):
        run = apply_locally(host, test=test)
        assert "'+@everything' for the user named 'app': Unknown command or category" in run.failed[CONFIG]
        assert "-pw" not in json.dumps(run.states)
    assert (pid(host), host.run(["cat", CONF]).stdout, app.redis(host, "acl", "users")) == (before, text, "default")


@pytest.mark.parametrize("image", IMAGES)
def test_sidekiq_works_as_a_user_who_administers_nothing(sidekiq_hosts, image):
    host = sidekiq_hosts(image)
    app.deploy(host)
    pillar = app.sidekiq_pillar(redis="6379", redis_url="", redis_user="jobs")["redis_sidekiq"]
    pillar["roles"] = ["redis", "sidekiq"]
    users = {"jobs": worker("to/day", "yester:day")}
    pillar["redis"] = {**tarball(redis_version(image)), "instances": {"6379": {"password": "boss-pw", "users": users}}}
    put_pillar(host, {"redis_sidekiq": pillar})
    run = apply_locally(host).assert_ok()
    assert "to/day" not in json.dumps(run.states) and "to%2Fday" not in json.dumps(run.states)
    apply_locally(host).assert_unchanged()
    assert "user=jobs" in ask(host, "default:boss-pw", "client", "list")

    def ruby(*words):
        url = "REDIS_URL=redis://jobs:yester%3Aday@127.0.0.1:6379/0"
        argv = ["env", url, "sh", "-c", f"cd {app.outside(host)} && exec bundle exec ruby {' '.join(words)}"]
        return host.run(argv, user="deploy").stdout.split("\n")[:-1]

    def count(*words):
        return int(ask(host, "default:boss-pw", *words) or 0)

    jids = ruby("enqueue.rb", "20") + ruby("enqueue.rb", "2", "0.2")
    ruby("-r", "./worker.rb", "-e", "'FailJob.perform_async; QuickJob.perform_in(2)'")
    wait_for(lambda: count("scard", "worked") >= len(jids) + 1, 30, "the jobs")
    # Tried again by Sidekiq's own script, and dead then.
    wait_for(lambda: count("zcard", "dead") == 1, 60, "the second try of the job that fails")
    assert ruby("api.rb") == ["done"]
    for words in (
        "flushall",
        "config get dir",
        "keys *",
        "acl list",
        "shutdown",
        "replicaof no one",
        "client kill id 1",
    ):
        assert "NOPERM" in ask(host, "jobs:to/day", *words.split()), words
    log = host.run(["journalctl", "-u", "sidekiq", "--no-pager", "-q"]).stdout
    assert "NOPERM" not in log and "WRONGPASS" not in log and "to/day" not in log


# Passwords that change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_no_visitor_with_a_valid_password_is_refused_while_passwords_rotate(redis_host, image):
    host = redis_host(image)
    configure(host, {"password": "boss-1", "users": {"worker": worker("worker-1")}})
    apply_locally(host).assert_ok()
    before = pid(host)
    move(host, default="boss-1", worker="worker-1")
    with visitors(host) as seen:
        configure(
            host,
            {"password": "boss-2", "old_passwords": ["boss-1"], "users": {"worker": worker("worker-2", "worker-1")}},
        )
        assert set(apply_locally(host, test=True).assert_ok().pending) == {CONFIG, LIVE, USERS}
        assert changed(apply_locally(host)) == {CONFIG, LIVE, USERS}
        apply_locally(host).assert_unchanged()
        for login in ("default:boss-1", "default:boss-2", "worker:worker-1", "worker:worker-2"):
            assert ask(host, login, "ping") == "PONG", login
        move(host, default="boss-2", worker="worker-2")
        configure(host, {"password": "boss-2", "users": {"worker": worker("worker-2")}})
        assert changed(apply_locally(host)) == {CONFIG, USERS}
        apply_locally(host).assert_unchanged()
    assert (seen["refused"], seen["ended"], pid(host)) == ([], [], before)
    assert min(seen["counts"].values()) > 1000, seen["counts"]
    for login in ("default:boss-1", "worker:worker-1"):
        assert ask(host, login, "ping") == REFUSED, login


@pytest.mark.soak
def test_a_rotation_that_is_killed_at_any_moment_refuses_nobody_and_is_made_good(redis_host):
    host = redis_host()
    configure(host, {"password": "boss-0", "users": {"worker": worker("worker-0")}})
    apply_locally(host).assert_ok()
    killed = 0
    for step, tenths in enumerate(range(8, 28, 2), start=1):
        old = {"default": f"boss-{step - 1}", "worker": f"worker-{step - 1}"}
        new = {"default": f"boss-{step}", "worker": f"worker-{step}"}
        both = {"password": new["default"], "old_passwords": [old["default"]]}
        both["users"] = {"worker": worker(new["worker"], old["worker"])}
        alone = {"password": new["default"], "users": {"worker": worker(new["worker"])}}
        for pillar, valid in ((both, old), (alone, new)):
            configure(host, pillar)
            move(host, **valid)
            with visitors(host) as seen:
                cut = f"setsid salt-call --local state.apply redis_sidekiq & sleep {tenths / 10}; kill -9 -- -$!"
                host.run(["sh", "-c", cut], check=False)
            assert (seen["refused"], seen["ended"]) == ([], []), tenths
            if step % 2:  # a crash of Redis right then reads the file
                host.run(["systemctl", "kill", "--signal=KILL", "redis_6379"])
                host.run(["sh", "-c", "until redis-cli ping | grep -q NOAUTH; do sleep 0.1; done"], timeout=30)
                killed += 1
                for user, password in valid.items():
                    assert ask(host, f"{user}:{password}", "ping") == "PONG", (tenths, user)
            with visitors(host) as seen:
                apply_locally(host).assert_ok()
            assert (seen["refused"], seen["ended"]) == ([], []), tenths
            apply_locally(host).assert_unchanged()
    assert killed
