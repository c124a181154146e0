"""TLS and sockets of Redis on a real host: certificates that are renewed while it serves, and who gets in."""

import json

import pytest

from test import certificates
from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import apply_locally, put_pillar, redis_version, salt_call, tarball
from test.hosts.redis_lab import CONFIG, IMAGES, LIVE, SERVES, changed, configure, pid

UNIT = "Redis instance 6379 has its unit"
SHOWS = "Redis instance 6379 shows its certificate"
CA = certificates.authority()
SOCKET = "/run/redis_6379/redis.sock"


def say(host: Host, instance: dict, **redis) -> None:
    """Make a pillar with Redis alone, compiled quickly, with TLS."""
    version = redis_version(host.run(["cat", "/etc/image"]).stdout.strip())
    redis = {**tarball(version), "build": {"malloc": "libc", "tls": True}, **redis, "instances": {"6379": instance}}
    put_pillar(host, {"redis_sidekiq": {"roles": ["redis"], "redis": redis}})


@pytest.fixture
def tls_host(make_host, tls_image):
    """Return a function of an image that gives a fresh host whose Redis has TLS compiled in, and speaks none yet."""

    def host(image: str = "bookworm") -> Host:
        made = make_host(f"tls-{image}", image=tls_image(image))
        made.write("/etc/ca.pem", CA.cert)
        return made

    return host


def cli(host: Host, *words: str, user: str = "root") -> str:
    done = host.run(["redis-cli", *words], user=user, check=False)
    return (done.stdout + done.stderr).strip()


def by_tls(host: Host, *words: str) -> str:
    return cli(host, "-p", "6390", "--tls", "--cacert", "/etc/ca.pem", *words)


def pems(pair: certificates.Certificate, **more) -> dict:
    return {"port": 6390, "cert_pem": pair.cert, "key_pem": pair.key, **more}


def key_files(host: Host) -> list[str]:
    return host.run(["find", "/etc/redis/tls", "-name", "key.pem"]).stdout.split()


def test_tls_comes_is_renewed_and_goes_while_redis_serves(tls_host):
    host = tls_host()
    before = pid(host)
    first, second, third = (certificates.signed(CA) for _ in range(3))
    say(host, {"tls": pems(first)})
    announced = apply_locally(host, test=True).assert_ok()
    assert set(announced.pending) == {CONFIG, LIVE}
    assert not host.exists("/etc/redis/tls")
    run = apply_locally(host)
    assert changed(run) == {CONFIG, LIVE}
    assert by_tls(host, "set", "a", "1") == "OK" and cli(host, "get", "a") == "1"
    assert host.run(["stat", "-c", "%a %U:%G", *key_files(host)]).stdout == "640 root:redis\n"
    assert host.run(["cat", *key_files(host)]).stdout == first.key
    apply_locally(host).assert_unchanged()
    status = salt_call(host, "redis_tls.status", "6379")
    assert status["same"] and status["shown"] == status["wished"] and not status["expires"]
    for text in (
        json.dumps(run.states),
        json.dumps(announced.states),
        host.run(["cat", "/var/log/salt/minion"]).stdout,
    ):
        assert "PRIVATE KEY" not in text and first.key.splitlines()[1] not in text

    # Renewed in the pillar, under a connection that stays; nothing of the old key is left.
    working = host.popen(
        ["sh", "-c", "(echo ping; sleep 30; echo ping) | redis-cli -p 6390 --tls --cacert /etc/ca.pem"]
    )
    host.run(["sh", "-c", "until redis-cli client list | grep -q ':6390'; do sleep 0.1; done"], timeout=20)
    say(host, {"tls": pems(second)})
    announced = apply_locally(host, test=True).assert_ok()
    run = apply_locally(host)
    assert changed(run) == {CONFIG, LIVE} == set(announced.pending) and run.changed == announced.changed
    assert ":6390" in cli(host, "client", "list")
    working.kill()
    assert salt_call(host, "redis_tls.status", "6379")["same"] and len(key_files(host)) == 1
    assert host.run(["cat", *key_files(host)]).stdout == second.key
    apply_locally(host).assert_unchanged()

    # As certbot leaves it: a file that root alone reads, renewed by others.
    host.run(["install", "-d", "-m", "0700", "/etc/letsencrypt"])
    paths = {"cert": "/etc/letsencrypt/fullchain.pem", "key": "/etc/letsencrypt/privkey.pem"}
    for pair in (second, third):
        host.write(paths["cert"], pair.cert + CA.cert, mode=0o600)
        host.write(paths["key"], pair.key, mode=0o600)
        say(host, {"tls": {"port": 6390, **paths}})
        assert changed(apply_locally(host)) == {CONFIG, LIVE}
        apply_locally(host).assert_unchanged()
        assert (
            salt_call(host, "redis_tls.status", "6379")["shown"]
            == salt_call(host, "redis_tls.status", "6379")["wished"]
        )
    assert by_tls(host, "get", "a") == "1"

    # Half a renewal, and files that somebody changed.
    text = host.run(["cat", "/etc/redis/6379.conf"]).stdout
    host.write(paths["key"], first.key, mode=0o600)
    for test in (True, False):
        said = apply_locally(host, test=test).failed[CONFIG]
        assert f"redis_sidekiq:redis:instances:6379:tls:key ({paths['key']})" in said and "key values mismatch" in said
    assert (by_tls(host, "get", "a"), host.run(["cat", "/etc/redis/6379.conf"]).stdout) == ("1", text)
    host.write(paths["key"], third.key, mode=0o600)
    host.run(["chmod", "0644", *key_files(host)])
    assert changed(apply_locally(host)) == {CONFIG}
    apply_locally(host).assert_unchanged()

    # It goes as it came.
    say(host, {})
    announced = apply_locally(host, test=True).assert_ok()
    assert set(announced.pending) == {CONFIG, LIVE} and by_tls(host, "get", "a") == "1"
    assert changed(apply_locally(host)) == {CONFIG, LIVE}
    assert "refused" in by_tls(host, "ping") and not host.exists("/etc/redis/tls/6379")
    apply_locally(host).assert_unchanged()
    assert pid(host) == before


def test_without_a_plain_port_the_formula_comes_in_by_its_socket(tls_host):
    host = tls_host()
    client = certificates.signed(CA, "a client")
    host.write("/etc/client.pem", client.cert + client.key)
    closed = {
        "tls": pems(certificates.signed(CA), plain=False, auth_clients="yes", ca_pem=CA.cert),
        "password": "sesame",
    }
    say(host, closed)
    announced = apply_locally(host, test=True).assert_ok()
    run = apply_locally(host)
    assert changed(run) == {CONFIG, LIVE, SERVES} == set(announced.pending)
    apply_locally(host).assert_unchanged()
    assert "refused" in cli(host, "ping")
    assert by_tls(host, "ping") != "NOAUTH Authentication required."
    assert (
        by_tls(host, "--cert", "/etc/client.pem", "--key", "/etc/client.pem", "ping")
        == "NOAUTH Authentication required."
    )
    assert host.run(["stat", "-c", "%a %U:%G", SOCKET]).stdout == "700 redis:redis\n"
    before = pid(host)
    say(host, {**closed, "password": "open-sesame", "maxmemory": "64mb"})
    assert changed(apply_locally(host)) == {CONFIG, LIVE}
    assert pid(host) == before
    say(host, {**closed, "password": "open-sesame", "databases": 4})
    assert changed(apply_locally(host)) == {CONFIG, LIVE, SERVES}
    apply_locally(host).assert_unchanged()

    # It is backed up, and dropped with care for its keys: it can be asked.
    cli(host, "-s", SOCKET, "-a", "open-sesame", "--no-auth-warning", "set", "a", "1")
    say(host, {**closed, "password": "open-sesame", "databases": 4}, backup={"enabled": True})
    apply_locally(host).assert_ok()
    assert salt_call(host, "redis_backup.backup", "6379")["keys"] == 1
    version = tarball(redis_version("bookworm"))
    redis = {**version, "build": {"malloc": "libc", "tls": True}, "instances": {"6379": None, "6380": {}}}
    put_pillar(host, {"redis_sidekiq": {"roles": ["redis"], "redis": redis}})
    run = apply_locally(host).assert_ok()
    assert "redis_6379 was stopped" in run.states["Redis runs in no instance that the settings do not name"]["comment"]
    assert not host.exists("/etc/redis/tls/6379")
    say(host, {})
    apply_locally(host).assert_ok()
    assert cli(host, "get", "a") == "1"


def test_a_socket_lets_in_a_group_and_nobody_else(tls_host):
    host = tls_host()
    host.run(["sh", "-c", "groupadd jobs; useradd -m -G jobs member; useradd -m stranger"])
    say(host, {"unixsocket": True, "unixsocket_group": "jobs"})
    announced = apply_locally(host, test=True).assert_ok()
    assert set(announced.pending) == {CONFIG, UNIT, SERVES}
    assert changed(apply_locally(host)) == {CONFIG, UNIT, SERVES}
    apply_locally(host).assert_unchanged()
    assert cli(host, "-s", SOCKET, "ping", user="member") == "PONG"
    assert "Permission denied" in cli(host, "-s", SOCKET, "ping", user="stranger")
    assert "Permission denied" in host.run(["cat", "/etc/redis/6379.conf"], user="member", check=False).stderr
    host.run(["systemctl", "restart", "redis_6379"])
    assert cli(host, "-s", SOCKET, "ping", user="member") == "PONG"
    apply_locally(host).assert_unchanged()

    # A folder of others: it has to be there, and Redis' to write to.
    text, before = host.run(["cat", "/etc/redis/6379.conf"]).stdout, pid(host)
    say(host, {"unixsocket": "/srv/sockets/redis"})
    for words in ("No such file or directory", "no folder that redis may write to"):
        assert words in apply_locally(host).failed[CONFIG]
        assert (host.run(["cat", "/etc/redis/6379.conf"]).stdout, pid(host)) == (text, before)
        host.run(["install", "-d", "-m", "0755", "/srv/sockets"])
    host.run(["install", "-d", "-o", "redis", "-g", "jobs", "-m", "2750", "/srv/sockets"])
    apply_locally(host).assert_ok()
    assert cli(host, "-s", "/srv/sockets/redis", "ping") == "PONG" and not host.exists(SOCKET)
    apply_locally(host).assert_unchanged()

    # An init script does the same.
    say(host, {"unixsocket": True, "unixsocket_group": "jobs"}, service_manager="sysv")
    apply_locally(host).assert_ok()
    assert cli(host, "-s", SOCKET, "ping", user="member") == "PONG"
    assert "Permission denied" in cli(host, "-s", SOCKET, "ping", user="stranger")
    apply_locally(host).assert_unchanged()


def test_sidekiq_works_by_tls_alone(tls_host):
    host = tls_host()
    pillar = app.sidekiq_pillar(redis_url="rediss://:sesame@localhost:6390/0", env={"SSL_CERT_FILE": "/etc/ca.pem"})
    instance = {"tls": pems(certificates.signed(CA), plain=False), "password": "sesame"}
    redis = {**tarball(redis_version("bookworm")), "build": {"malloc": "libc"}, "instances": {"6379": instance}}
    pillar["redis_sidekiq"].update(roles=["redis", "sidekiq"], redis=redis)
    put_pillar(host, pillar)
    apply_locally(host).assert_ok()
    app.deploy(host)
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    (beat,) = salt_call(host, "sidekiq_redis.beats", "sidekiq")
    assert beat["quiet"] is False and salt_call(host, "sidekiq_redis.refusal", "sidekiq") == ""
    assert ":6390" in cli(host, "-s", SOCKET, "-a", "sesame", "--no-auth-warning", "client", "list")
    found = salt_call(host, "sidekiq.status", "sidekiq")
    assert "sesame" not in json.dumps(found)


@pytest.mark.soak
def test_a_renewal_that_is_killed_at_any_moment_leaves_a_pair(tls_host):
    host = tls_host()
    say(host, {"tls": pems(certificates.signed(CA))})
    apply_locally(host).assert_ok()
    for tenths in range(8, 36, 2):
        say(host, {"tls": pems(certificates.signed(CA))})
        cut = f"setsid salt-call --local state.apply redis_sidekiq & sleep {tenths / 10}; kill -9 -- -$!"
        host.run(["sh", "-c", cut], check=False)
        assert by_tls(host, "ping") == "PONG", tenths
        host.run(["systemctl", "restart", "redis_6379"])
        assert by_tls(host, "ping") == "PONG", tenths
        apply_locally(host).assert_ok()
        apply_locally(host).assert_unchanged()
        assert salt_call(host, "redis_tls.status", "6379")["same"] and len(key_files(host)) == 1


@pytest.mark.soak
@pytest.mark.parametrize("image", IMAGES)
def test_a_build_without_tls_makes_way_for_one_with(redis_host, image):
    host = redis_host(image)
    host.write("/etc/ca.pem", CA.cert)
    cli(host, "set", "a", "1")
    configure(host, {"tls": pems(certificates.signed(CA))}, build={"malloc": "libc"})
    announced = apply_locally(host, test=True).assert_ok()
    run = apply_locally(host).assert_ok()
    assert {CONFIG, SERVES} <= set(announced.pending) and set(announced.pending) == set(run.changed)
    assert by_tls(host, "get", "a") == "1" and salt_call(host, "redis_tls.status", "6379")["same"]
    apply_locally(host).assert_unchanged()
