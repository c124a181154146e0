"""
Wrong pillars, each with one mistake: (what is wrong, the pillar, words of its message: first those it begins with).

Wrong on every minion of the Debian family, whatever else is on it, and plain enough for JSON: the unit tests check all
of them, the tests on real hosts apply some.
"""

from __future__ import annotations


def redis(**settings) -> dict:
    return {"redis_sidekiq": {"redis": settings}}


def instance(**settings) -> dict:
    return redis(instances={"6379": settings})


def rules(**entries) -> dict:
    return {"redis_sidekiq": {"firewall": {"rules": entries}}}


def deploy(**settings) -> dict:
    return {"redis_sidekiq": {"deploy": settings}}


def service(**settings) -> dict:
    return {"redis_sidekiq": {"sidekiq": {"services": {"sidekiq": settings}}}}


REDIS = "redis_sidekiq:redis"
INSTANCE = "redis_sidekiq:redis:instances:6379"
RULES = "redis_sidekiq:firewall:rules"
DEPLOY = "redis_sidekiq:deploy"
SERVICE = "redis_sidekiq:sidekiq:services:sidekiq"

USER = f"{INSTANCE}:users:app"


def user(secrets=("x",), preset="sidekiq", **settings) -> dict:
    return instance(password="y", users={"app": {"passwords": list(secrets), "preset": preset, **settings}})


BACKUP = f"{REDIS}:backup"


def backup(**settings) -> dict:
    return redis(backup=settings)


# Bound beyond loopback, and otherwise right.
OPEN = {"bind": ["127.0.0.1", "10.0.0.5"], "password": "long-and-random"}

MISSPELT = [
    ("a misspelt key", redis(verison="8.0.6"), [f"{REDIS}:verison: unknown key", "did you mean 'version'?"]),
    ("a misspelt section", {"redis_sidekiq": {"firewal": {}}}, ["redis_sidekiq:firewal: unknown key", "'firewall'"]),
    ("a misspelt top key", {"redis-sidekiq": {"roles": ["redis"]}}, ["redis-sidekiq: unknown key", "'redis_sidekiq'"]),
    ("a key with a hyphen", service(**{"app-dir": "/srv/shop"}), [f"{SERVICE}:app-dir: unknown key", "'app_dir'"]),
    (
        "a key one level too high",
        redis(maxmemory="1gb"),
        [f"{REDIS}:maxmemory: unknown", f"{REDIS}:instances:PORT:maxmemory"],
    ),
    ("a key that resembles nothing", redis(zzz=1), [f"{REDIS}:zzz: unknown key", "known here: backup, bin_dir"]),
    ("nothing to take away", rules(htpp=None), [f"{RULES}:htpp: found null", "ssh, http, https"]),
]

# What others call it: redis.conf, other formulas and roles, Capistrano.
ELSEWHERE = [
    ("the port as a setting", redis(port=6380), [f"{REDIS}:port: unknown key", "instances: {6379: {}}"]),
    ("requirepass of no instance", redis(requirepass="x"), [f"{REDIS}:requirepass: unknown key", "set password of an"]),
    ("requirepass", instance(requirepass="x"), [f"{INSTANCE}:requirepass: unknown key; set password"]),
    ("maxmemory-policy", instance(**{"maxmemory-policy": "noeviction"}), [f"{INSTANCE}:maxmemory-policy", "'maxmemory_policy'"]),
    ("a directive as a setting", instance(tcp_keepalive=60), [f"{INSTANCE}:tcp_keepalive: unknown", "set it in directives"]),
    ("a port in an instance", instance(port=6380), [f"{INSTANCE}:port: unknown key; the name of the instance is its port"]),
    ("snapshots", redis(snapshots=["900 1"]), [f"{REDIS}:snapshots: unknown key; set save of an instance"]),
    ("root_dir", redis(root_dir="/srv/redis"), [f"{REDIS}:root_dir: unknown key; set dir of an instance"]),
    ("a lookup", redis(lookup={"pkg_name": "redis-server"}), [f"{REDIS}:lookup: unknown key", "set what you mean itself"]),
    ("a variant", redis(variant="valkey"), [f"{REDIS}:variant: unknown key; set flavor"]),
    ("a system", redis(system={"overcommit_memory": True}), [f"{REDIS}:system: unknown key; set kernel"]),
    ("a package", redis(install_from="package"), [f"{REDIS}:install_from: unknown key; Redis comes from its source"]),
    ("a name of Ansible's", redis(redis_version="8.0.6"), [f"{REDIS}:redis_version: unknown key", "'version'"]),
    ("an address of Ansible's", redis(redis_bind_interface="::1"), [f"{REDIS}:redis_bind_interface: unknown", "set bind of an"]),
    ("a size of Ansible's", redis(redis_maxmemory="1gb"), [f"{REDIS}:redis_maxmemory: unknown", "instances:PORT:maxmemory"]),
    ("a Sentinel", redis(sentinel={}), [f"{REDIS}:sentinel: unknown key; this formula sets up no Sentinel"]),
    ("a user's one password", user(password="x"), [f"{USER}:password: unknown key; set passwords, a list"]),
    ("a source of a rule", rules(web={"port": 81, "source": "10.0.0.1"}), [f"{RULES}:web:source: unknown key; set from"]),
    ("services of the firewall", {"redis_sidekiq": {"firewall": {"services": {}}}}, ["redis_sidekiq:firewall:services: unknown key; set rules"]),
    ("commands by sudo", deploy(commands=["ALL"]), [f"{DEPLOY}:commands: unknown key; set verbs"]),
    ("Capistrano's environment", service(rails_env="staging"), [f"{SERVICE}:rails_env: unknown key; set environment"]),
    ("Capistrano's folder", service(deploy_to="/srv/app"), [f"{SERVICE}:deploy_to: unknown key; set app_dir"]),
    ("Capistrano's concurrency", service(sidekiq_concurrency=5), [f"{SERVICE}:sidekiq_concurrency: unknown key", "'concurrency'"]),
    ("a pid file", service(pidfile="/run/x.pid"), [f"{SERVICE}:pidfile: unknown key; systemd knows the process"]),
    ("threads", service(threads=5), [f"{SERVICE}:threads: unknown key; set concurrency"]),
    ("a version of Sidekiq", {"redis_sidekiq": {"sidekiq": {"version": "7"}}}, ["redis_sidekiq:sidekiq:version: unknown", "Gemfile.lock"]),
]  # fmt: skip

FORMS = [
    ("everything is text", {"redis_sidekiq": "on"}, ["redis_sidekiq: found text", "a map"]),
    ("a section is a list", {"redis_sidekiq": {"redis": ["8.0.6"]}}, [f"{REDIS}: found a list", "a map"]),
    ("an entry is text", redis(instances={"6380": "cache"}), [f"{REDIS}:instances:6380: found text", "a map"]),
    ("an integer in quotes", service(timeout="25"), [f"{SERVICE}:timeout: found '25'", "write it without quotes"]),
    ("a boolean for an integer", service(concurrency=True), [f"{SERVICE}:concurrency: found true", "a whole number"]),
    ("a fraction for an integer", service(timeout=2.5), [f"{SERVICE}:timeout: found 2.5", "1 to 86400 s"]),
    ("a boolean in quotes", deploy(create_user="yes"), [f"{DEPLOY}:create_user: found 'yes'", "without quotes"]),
    ("an integer for a boolean", instance(appendonly=1), [f"{INSTANCE}:appendonly: found 1", "true or false"]),
    ("null for a setting", redis(user=None), [f"{REDIS}:user: found nothing (null)", "leave the key out"]),
    (
        "text for a list",
        service(queues="critical"),
        [f"{SERVICE}:queues: found 'critical'", "write a list: ['critical']"],
    ),
    ("a version as a number", redis(version=8.0), [f"{REDIS}:version: found 8.0", "write it in quotes"]),
    (
        "no as a boolean",
        instance(appendfsync=False),
        [f"{INSTANCE}:appendfsync: found false", "write it in quotes: 'no'"],
    ),
]

ROLES = [
    ("an unknown role", {"redis_sidekiq": {"roles": ["cache"]}}, ["redis_sidekiq:roles: found 'cache'", "firewall"]),
    (
        "a role that sends no event",
        {"redis_sidekiq": {"roles": ["deploy"]}},
        ["redis_sidekiq:deploy:apps: found none", "take 'deploy' out of redis_sidekiq:roles"],
    ),
    ("no role", {"redis_sidekiq": {"roles": []}}, ["redis_sidekiq:roles: found an empty list"]),
    ("a role twice", {"redis_sidekiq": {"roles": ["redis", "redis"]}}, ["redis_sidekiq:roles: found 'redis' twice"]),
    (
        "the role sidekiq without a service",
        {"redis_sidekiq": {"sidekiq": {"services": {"sidekiq": None}}}},
        ["redis_sidekiq:sidekiq:services: found none", "take 'sidekiq' out of redis_sidekiq:roles"],
    ),
    (
        "the role redis without an instance",
        {"redis_sidekiq": {"roles": ["redis"], "redis": {"instances": {"6379": None}}}},
        [f"{REDIS}:instances: found none", "take 'redis' out of redis_sidekiq:roles"],
    ),
]

BUILDS = [
    ("a release that is too old", redis(version="5.0.14"), [f"{REDIS}:version: found '5.0.14'", "6.2 or newer"]),
    ("a release nobody knows", redis(version="8.0.99"), [f"{REDIS}:version: found '8.0.99'", "source_hash", "8.0.6"]),
    ("a source without a digest", redis(source="/srv/redis-7.0.15.tar.gz"), [f"{REDIS}:source_hash: must be given"]),
    (
        "a source that does not tell its release",
        redis(source="salt://redis.tar.gz", source_hash="a" * 64),
        [f"{REDIS}:version: must be given", "'redis.tar.gz'"],
    ),
    (
        "a release that the source contradicts",
        redis(version="8.0.6", source="salt://redis-7.0.15.tar.gz", source_hash="a" * 64),
        [f"{REDIS}:version: found '8.0.6'", "'redis-7.0.15.tar.gz'"],
    ),
    (
        "Valkey from nowhere",
        redis(flavor="valkey"),
        [f"{REDIS}:source: must be given with flavor: valkey", "source_hash"],
    ),
    (
        "Valkey without a digest",
        redis(flavor="valkey", source="/srv/valkey-8.1.1.tar.gz"),
        [f"{REDIS}:source_hash: must be given"],
    ),
    (
        "Valkey for Redis",
        redis(source="/srv/valkey-8.1.1.tar.gz", source_hash="a" * 64),
        [f"{REDIS}:flavor: found 'redis'", "'valkey-8.1.1.tar.gz'"],
    ),
    ("another fork", redis(flavor="keydb"), [f"{REDIS}:flavor: found", "redis, valkey"]),
    ("a source by http", redis(source="http://mirror/redis-8.0.6.tar.gz"), [f"{REDIS}:source: found", "https://"]),
    ("an md5 digest", redis(source_hash="d" * 32), [f"{REDIS}:source_hash: found", "md5 can be forged"]),
    ("a sha1 digest", redis(source_hash="sha1=" + "d" * 40), [f"{REDIS}:source_hash: found", "sha1 can be forged"]),
    ("a digest cut short", redis(source_hash="sha256=" + "d" * 63), [f"{REDIS}:source_hash: found", "63 hex digits"]),
    ("a file of digests", redis(source_hash="https://x/SHA256"), [f"{REDIS}:source_hash: found", "the digest itself"]),
    (
        "a prefix that others live in",
        redis(prefix="/usr/local"),
        [f"{REDIS}:prefix: found '/usr/local'", "a folder below"],
    ),
    ("a prefix in disguise", redis(prefix="//usr/./local/"), [f"{REDIS}:prefix: found", "a folder below"]),
    ("a relative prefix", redis(prefix="opt/redis"), [f"{REDIS}:prefix: found 'opt/redis'", "an absolute path"]),
    ("a path with a line end", redis(bin_dir="/usr/local/bin\n"), [f"{REDIS}:bin_dir: found '/usr/local/bin\\n'"]),
    ("a path that climbs", redis(bin_dir="/usr/local/../bin"), [f"{REDIS}:bin_dir: found", "without .."]),
    ("root as a user", redis(user="root"), [f"{REDIS}:user: found 'root'", "nothing here runs as root"]),
    ("a user name with a line end", redis(user="redis\nroot"), [f"{REDIS}:user: found 'redis\\nroot'"]),
    (
        "one user for two things",
        redis(build={"user": "redis"}),
        [f"{REDIS}:build:user: found 'redis'", f"{REDIS}:user too"],
    ),
    (
        "an allocator nobody knows",
        redis(build={"malloc": "tcmalloc"}),
        [f"{REDIS}:build:malloc: found", "jemalloc, libc"],
    ),
    (
        "a shared build of any name",
        redis(build={"packs": {"redis.tar.gz": "a" * 64}}),
        [f"{REDIS}:build:packs:redis.tar.gz: no name of a shared build"],
    ),
    (
        "a shared build with an md5 digest",
        redis(build={"packs": {"8.0.6-0123456789-bookworm-amd64": "d" * 32}}),
        [f"{REDIS}:build:packs:8.0.6-0123456789-bookworm-amd64: found", "md5 can be forged"],
    ),
    (
        "a shared build without a digest",
        redis(build={"packs": {"8.0.6-0123456789-bookworm-amd64": ""}}),
        [f"{REDIS}:build:packs:8.0.6-0123456789-bookworm-amd64: found", "64 hex digits"],
    ),
    (
        "shared builds by http",
        redis(build={"packs_from": "http://mirror"}),
        [f"{REDIS}:build:packs_from: found", "https://"],
    ),
    ("no way back", redis(build={"keep": 0}), [f"{REDIS}:build:keep: found 0", "1 to 100"]),
    ("fewer than no compilers", redis(build={"jobs": -1}), [f"{REDIS}:build:jobs: found -1", "0 to 256"]),
    (
        "a service manager nobody knows",
        redis(service_manager="runit"),
        [f"{REDIS}:service_manager: found 'runit'", "sysv"],
    ),
]

INSTANCES = [
    ("a port out of range", redis(instances={"70000": {}}), [f"{REDIS}:instances:70000: no name", "1024 to 65535"]),
    ("a port that needs root", redis(instances={"80": {}}), [f"{REDIS}:instances:80: no name", "1024 to 65535"]),
    ("a name for a port", redis(instances={"cache": {}}), [f"{REDIS}:instances:cache: no name", "a port"]),
    ("a size that is none", instance(maxmemory="2 gigs"), [f"{INSTANCE}:maxmemory: found '2 gigs'", "512mb or 2gb"]),
    ("a size in per cent", instance(maxmemory="50%"), [f"{INSTANCE}:maxmemory: found '50%'", "no percentage"]),
    (
        "more than the memory",
        instance(maxmemory="900gb"),
        [f"{INSTANCE}:maxmemory: found 900gb", "this minion's memory"],
    ),
    (
        "more than the memory together",
        redis(instances={"6379": {"maxmemory": "900gb"}, "6380": {"maxmemory": "1gb"}}),
        [f"{REDIS}:instances: found 900gb (6379), 1gb (6380)", "together"],
    ),
    ("an eviction nobody knows", instance(maxmemory_policy="lru"), [f"{INSTANCE}:maxmemory_policy: found 'lru'"]),
    (
        "eviction under Sidekiq",
        instance(maxmemory_policy="allkeys-lru"),
        [f"{INSTANCE}:maxmemory_policy: ", "noeviction"],
    ),
    ("an address that is none", instance(bind=["localhost"]), [f"{INSTANCE}:bind: found 'localhost'", "127.0.0.1"]),
    ("no address", instance(bind=[]), [f"{INSTANCE}:bind: found an empty list"]),
    ("beyond loopback, no password", instance(bind=["10.0.0.5"]), [f"{INSTANCE}:password: must be given", "10.0.0.5"]),
    ("everywhere, no password", instance(bind=["*", "-::*"]), [f"{INSTANCE}:password: must be given", "*, -::*"]),
    (
        "a password with a line end",
        instance(password="a\nb"),
        [f"{INSTANCE}:password: found a value that is not shown"],
    ),
    (
        "a network that is none",
        instance(**OPEN, allow_from=["10.0.0.0/99"]),
        [f"{INSTANCE}:allow_from: found '10.0.0.0/99'"],
    ),
    ("let in, but on loopback", instance(allow_from=["10.0.0.0/24"]), [f"{INSTANCE}:allow_from: opens", "loopback"]),
    ("open to anywhere", instance(**OPEN, allow_from=["0.0.0.0/0"]), [f"{INSTANCE}:allow_from: is open to anywhere"]),
    (
        "open to anywhere by IPv6",
        instance(**OPEN, allow_from=["::/0"]),
        [f"{INSTANCE}:allow_from: is open to anywhere"],
    ),
    (
        "open to both halves of anywhere",
        instance(**OPEN, allow_from=["0.0.0.0/1", "128.0.0.0/1"]),
        [f"{INSTANCE}:allow_from: is open to anywhere"],
    ),
    ("a snapshot point that is none", instance(save=["often"]), [f"{INSTANCE}:save: found 'often'", "'300 100'"]),
    ("no database", instance(databases=0), [f"{INSTANCE}:databases: found 0", "1 to 10000"]),
    (
        "a directive with a setting of its own",
        instance(directives={"requirepass": "long-and-random"}),
        [f"{INSTANCE}:directives:requirepass: cannot be set here", "set password"],
    ),
    (
        "a directive that the unit relies on",
        instance(directives={"daemonize": True}),
        [f"{INSTANCE}:directives:daemonize"],
    ),
    (
        "a directive with a line end",
        instance(directives={"maxclients": "10\ndir /"}),
        [f"{INSTANCE}:directives:maxclients"],
    ),
    (
        "a directive in capitals",
        instance(directives={"MaxClients": 10}),
        [f"{INSTANCE}:directives:MaxClients: no name"],
    ),
    (
        "an open quote",
        instance(directives={"proc-title-template": '"x'}),
        [f"{INSTANCE}:directives:proc-title", "a quote"],
    ),
    (
        "TLS that is not compiled in",
        instance(directives={"tls-ciphers": "DEFAULT"}),
        [f"{INSTANCE}:directives:tls-ciphers: ", "tls: true"],
    ),
]

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PAIR = {"port": 6390, "cert": "/etc/ssl/redis.pem", "key": "/etc/ssl/redis.key"}
SECURITY = [
    (
        "TLS by directives",
        instance(directives={"tls-port": 6390}),
        [f"{INSTANCE}:directives:tls-port: ", "set tls:port"],
    ),
    (
        "a socket by directives",
        instance(directives={"unixsocket": "/s"}),
        [f"{INSTANCE}:directives:unixsocket: cannot"],
    ),
    ("TLS without a certificate", instance(tls={"port": 6390, "key": "/k"}), [f"{INSTANCE}:tls:cert: must be given"]),
    ("TLS without a key", instance(tls={"port": 6390, "cert": "/c"}), [f"{INSTANCE}:tls:key: must be given"]),
    (
        "TLS without a port",
        instance(tls={"cert": "/c", "key": "/k"}),
        [f"{INSTANCE}:tls:port: must be given with cert"],
    ),
    ("no port at all", instance(tls={"plain": False}), [f"{INSTANCE}:tls:port: must be given with plain: false"]),
    (
        "TLS that is not to be compiled in",
        redis(build={"tls": False}, instances={"6379": {"tls": PAIR}}),
        [f"{REDIS}:build:tls: found false", "6379 has tls:port"],
    ),
    (
        "a certificate as file and as text",
        instance(tls={**PAIR, "cert_pem": CERTIFICATE}),
        [f"{INSTANCE}:tls:cert: is set twice", "cert_pem"],
    ),
    (
        "clients' certificates, no CA",
        instance(tls={**PAIR, "auth_clients": "yes"}),
        [f"{INSTANCE}:tls:ca: must be given"],
    ),
    (
        "replicas' certificates, no CA",
        instance(tls={**PAIR, "replication": True}),
        [f"{INSTANCE}:tls:ca: must be given"],
    ),
    (
        "yes as a boolean",
        instance(tls={**PAIR, "auth_clients": True}),
        [f"{INSTANCE}:tls:auth_clients: found true", "in quotes: 'yes'"],
    ),
    (
        "a port for TLS that is taken",
        instance(tls={**PAIR, "port": 6379}),
        [f"{INSTANCE}:tls:port: found 6379", "the port of"],
    ),
    (
        "a port for TLS twice",
        redis(instances={"6379": {"tls": PAIR}, "6380": {"tls": PAIR}}),
        [f"{REDIS}:instances:6380:tls:port: found 6390", "TLS of the instance 6379"],
    ),
    ("a port that root alone opens", instance(tls={**PAIR, "port": 443}), [f"{INSTANCE}:tls:port: found 443", "1024"]),
    (
        "an old version of TLS",
        instance(tls={**PAIR, "protocols": ["TLSv1"]}),
        [f"{INSTANCE}:tls:protocols: found 'TLSv1'"],
    ),
    (
        "a relative path of a key",
        instance(tls={**PAIR, "key": "redis.key"}),
        [f"{INSTANCE}:tls:key: found 'redis.key'"],
    ),
    (
        "a certificate for a path",
        instance(tls={**PAIR, "cert": CERTIFICATE}),
        [f"{INSTANCE}:tls:cert: found a value that"],
    ),
    (
        "a path for a certificate",
        instance(tls={"port": 6390, "cert_pem": "/etc/ssl/redis.pem", "key": "/k"}),
        [f"{INSTANCE}:tls:cert_pem: found '/etc/ssl/redis.pem'", "PEM form"],
    ),
    (
        "a certificate on one line",
        instance(tls={"port": 6390, "cert_pem": CERTIFICATE.replace("\n", " x "), "key": "/k"}),
        [f"{INSTANCE}:tls:cert_pem: found a value that is not shown", "line by line"],
    ),
    (
        "a key with a passphrase",
        instance(
            tls={"port": 6390, "cert": "/c", "key_pem": CERTIFICATE.replace("CERTIFICATE", "ENCRYPTED PRIVATE KEY")}
        ),
        [f"{INSTANCE}:tls:key_pem: found a value that is not shown"],
    ),
    (
        "a certificate for a key",
        instance(tls={"port": 6390, "cert": "/c", "key_pem": CERTIFICATE}),
        [f"{INSTANCE}:tls:key_pem: found a value that is not shown", "PRIVATE KEY"],
    ),
    ("a misspelt key of TLS", instance(tls={**PAIR, "certs": "/c"}), [f"{INSTANCE}:tls:certs: unknown key", "'cert'"]),
    (
        "a port for all instances",
        redis(tls={"port": 6390}),
        [f"{REDIS}:tls:port: unknown key", "instances:PORT:tls:port"],
    ),
    (
        "a service of an instance without a plain port",
        instance(tls={**PAIR, "plain": False}),
        [f"{SERVICE}:redis: found '6379', which has no plain port", "rediss://NAME:6390/0"],
    ),
    (
        "TLS open to anywhere",
        {"redis_sidekiq": {**instance(tls=PAIR)["redis_sidekiq"], "firewall": {"rules": {"x": {"port": 6390}}}}},
        [f"{RULES}:x: opens port 6390"],
    ),
    ("a rule with our name", rules(redis_6379_tls={"port": 6390}), [f"{RULES}:redis_6379_tls: this name is kept"]),
    ("a socket that is no path", instance(unixsocket="redis.sock"), [f"{INSTANCE}:unixsocket: found 'redis.sock'"]),
    (
        "a socket with a long path",
        instance(unixsocket="/" + "s" * 107),
        [f"{INSTANCE}:unixsocket: found", "107 characters"],
    ),
    ("a group without a socket", instance(unixsocket_group="adm"), [f"{INSTANCE}:unixsocket: must be given"]),
    (
        "a group of another's folder",
        instance(unixsocket="/srv/r/s", unixsocket_group="adm"),
        [f"{INSTANCE}:unixsocket_group: is for unixsocket: true", "/srv/r"],
    ),
    (
        "the group that reads passwords",
        instance(unixsocket=True, unixsocket_group="redis"),
        [f"{INSTANCE}:unixsocket_group: found 'redis'", "take another"],
    ),
    (
        "a group of nobody's",
        instance(unixsocket=True, unixsocket_group="no-such"),
        [f"{INSTANCE}:unixsocket_group: found 'no-such'", "does not exist"],
    ),
    (
        "a mode that lets nobody in",
        instance(unixsocket=True, unixsocket_perm="000"),
        [f"{INSTANCE}:unixsocket_perm: found '000'"],
    ),
    (
        "a mode as a number",
        instance(unixsocket=True, unixsocket_perm=770),
        [f"{INSTANCE}:unixsocket_perm: found 770", "'770'"],
    ),
    (
        "a socket twice",
        redis(instances={"6379": {"unixsocket": "/srv/r/s"}, "6380": {"unixsocket": "/srv/r/s"}}),
        [f"{REDIS}:instances:6380:unixsocket: found '/srv/r/s'", "instance 6379"],
    ),
]

PGP = "-----BEGIN PGP MESSAGE-----\n\nhQEMA\n-----END PGP MESSAGE-----\n"
UNRESOLVED = [
    ("an encrypted password", instance(password=PGP), [f"{INSTANCE}:password: found a value that", "still encrypted", "|gpg"]),
    ("an encrypted variable", service(env={"KEY": PGP}), [f"{SERVICE}:env:KEY: found a value that", "still encrypted"]),
    ("an encrypted key", redis(tls={"key_pem": PGP}), [f"{REDIS}:tls:key_pem: found a value that", "still encrypted"]),
    ("a reference for a password", instance(password="sdb://vault/redis"), [f"{INSTANCE}:password: found", "salt['sdb.get']"]),
    ("a reference for a user's password", user(secrets=["sdb://x/y"]), [f"{USER}:passwords: found", "salt['sdb.get']"]),
    ("a reference for a URL", service(redis_url="sdb://x/y"), [f"{SERVICE}:redis_url: found", "salt['sdb.get']"]),
    ("a reference for a variable", service(env={"KEY": "sdb://x/y"}), [f"{SERVICE}:env:KEY: found", "salt['sdb.get']"]),
    ("Jinja for a password", instance(password="{{ salt['x']() }}"), [f"{INSTANCE}:password: found", "not rendered"]),
    ("a password that was not found", instance(password="None"), [f"{INSTANCE}:password: found", "| tojson"]),
    ("null for a password", instance(password=None), [f"{INSTANCE}:password: found nothing (null)", "leave the key out"]),
]  # fmt: skip

BACKUPS = [
    (
        "a misspelt time of a backup",
        backup(at="dayly"),
        [f"{BACKUP}:at: found 'dayly'", "the words are minutely, hourly"],
    ),
    ("a backup's time as cron has it", backup(at="30 3 * * *"), [f"{BACKUP}:at: found", "cron's form", "*-*-* 03:30"]),
    ("a backup's time as cron's word", backup(at="@daily"), [f"{BACKUP}:at: found '@daily'", "a time as systemd"]),
    ("a backup's time that is a number", backup(at=3), [f"{BACKUP}:at: found 3", "write it in quotes"]),
    ("no backup kept", backup(keep=0), [f"{BACKUP}:keep: found 0", "from 1 to 1000"]),
    ("backups switched on in quotes", backup(enabled="yes"), [f"{BACKUP}:enabled: found 'yes'", "without quotes"]),
    ("a relative folder for backups", backup(dir="backups"), [f"{BACKUP}:dir: found 'backups'", "an absolute path"]),
    (
        "a host that is a URL",
        service(redis_host="redis://10.0.0.5"),
        [f"{SERVICE}:redis_host: found 'redis://10.0.0.5'"],
    ),
    (
        "a Redis elsewhere that listens on loopback alone",
        service(redis_host="10.0.0.5"),
        [f"{INSTANCE}:bind: has loopback alone", "reach it at 10.0.0.5"],
    ),
    (
        "data in a folder of others",
        instance(dir="/var/lib"),
        [f"{INSTANCE}:dir: found '/var/lib'", "others live in it"],
    ),
    (
        "data that are lost at a boot",
        instance(dir="/tmp/redis"),
        [f"{INSTANCE}:dir: found '/tmp/redis'", "lies in /tmp"],
    ),
    ("data where the unit sees none", instance(dir="/home/redis"), [f"{INSTANCE}:dir: found", "lies in /home"]),
    (
        "data of two instances in one folder",
        redis(instances={"6379": {"dir": "/srv/r"}, "6380": {"dir": "/srv/r/6380"}}),
        [f"{REDIS}:instances:6380:dir: found '/srv/r/6380'", "the instance 6379 has its data"],
    ),
    (
        "a data folder as a directive",
        instance(directives={"dir": "/srv/r"}),
        [f"{INSTANCE}:directives:dir: cannot be set here", "set dir"],
    ),
    (
        "backups among data that lie elsewhere",
        redis(backup={"dir": "/srv/r/b"}, instances={"6379": {"dir": "/srv/r"}}),
        [f"{BACKUP}:dir: found", "lies in /srv/r"],
    ),
    ("backups in a folder of others", backup(dir="/var/lib"), [f"{BACKUP}:dir: found '/var/lib'", "others live in it"]),
    ("backups among the data", backup(dir="/var/redis/6379/backups"), [f"{BACKUP}:dir: found", "lies in /var/redis"]),
    ("backups among the builds", backup(dir="/opt/redis/backups"), [f"{BACKUP}:dir: found", "lies in /opt/redis"]),
    ("backups that a boot deletes", backup(dir="/run/backups"), [f"{BACKUP}:dir: found", "lies in /run"]),
    (
        "an instance's backups among the data",
        instance(backup={"dir": "/var/redis/backups"}),
        [f"{INSTANCE}:backup:dir: found", "lies in /var/redis"],
    ),
    ("a list for a backup", instance(backup=["daily"]), [f"{INSTANCE}:backup: found a list", "a map"]),
    ("false for a backup", instance(backup=False), [f"{INSTANCE}:backup: found true or false", "a map"]),
    ("null for a backup's time", backup(at=None), [f"{BACKUP}:at: found nothing (null)", "leave the key out"]),
]

USERS = [
    (
        "users without a password",
        instance(users={"app": {"passwords": ["x"], "preset": "sidekiq"}}),
        [f"{INSTANCE}:password: must be given with users"],
    ),
    (
        "old passwords without a new one",
        instance(old_passwords=["x"]),
        [f"{INSTANCE}:password: must be given with old_passwords"],
    ),
    (
        "the password among the old ones",
        instance(password="x", old_passwords=["x"]),
        [f"{INSTANCE}:old_passwords: holds the password itself"],
    ),
    (
        "the default user by name",
        instance(password="x", users={"default": {"passwords": ["x"], "preset": "sidekiq"}}),
        [f"{INSTANCE}:users:default: no name", "old_passwords"],
    ),
    (
        "a user's name with a space",
        instance(password="x", users={"my app": {"passwords": ["x"], "preset": "sidekiq"}}),
        [f"{INSTANCE}:users:my...: no name", "a user of Redis"],
    ),
    (
        "a user without a password",
        instance(password="x", users={"app": {"preset": "sidekiq"}}),
        [f"{USER}:passwords: must"],
    ),
    ("a user whose password is empty", user(secrets=[""]), [f"{USER}:passwords: found a value that is not shown"]),
    ("a user with no password", user(secrets=[]), [f"{USER}:passwords: found an empty list"]),
    ("a user's password twice", user(secrets=["x", "x"]), [f"{USER}:passwords: found a value that is not shown twice"]),
    ("a user who may do nothing", user(preset=None), [f"{USER}: may do nothing", "preset or rules"]),
    ("a preset nobody knows", user(preset="admin"), [f"{USER}:preset: found 'admin'", "sidekiq"]),
    ("a password as a rule", user(rules=[">x"]), [f"{USER}:rules: found a value that is not shown", "of their own"]),
    ("nopass as a rule", user(rules=["nopass"]), [f"{USER}:rules: found 'nopass'", "of their own"]),
    ("two rules in one word", user(rules=["+get +set"]), [f"{USER}:rules: found '+get +set'", "a rule like"]),
    ("a rule with a quote", user(rules=['~a"']), [f"{USER}:rules: found", "a rule like"]),
    ("a selector that does not end", user(rules=["(~a +get"]), [f"{USER}:rules: found '(~a +get'"]),
    ("rules as one line", user(rules="+get"), [f"{USER}:rules: found '+get'", "write a list"]),
    ("a misspelt key of a user", user(rule=["+get"]), [f"{USER}:rule: unknown key", "'rules'"]),
    ("an ACL as a directive", instance(directives={"user": "x on"}), [f"{INSTANCE}:directives:user:", "set users"]),
    ("an ACL file", instance(directives={"aclfile": "/x"}), [f"{INSTANCE}:directives:aclfile:", "set users"]),
    (
        "a service whose user of Redis is not there",
        service(redis_user="app"),
        [f"{SERVICE}:redis_user: found 'app'", "known there: none"],
    ),
    (
        "a user beside a URL",
        service(redis_user="app", redis_url="redis://q/0"),
        [f"{SERVICE}:redis_user: cannot be set with redis_url"],
    ),
]

FIREWALL = [
    ("a rule without a port", rules(web={}), [f"{RULES}:web:port: must be given", "1 to 65535"]),
    ("a port in quotes", rules(web={"port": "80"}), [f"{RULES}:web:port: found '80'", "without quotes"]),
    ("a range backwards", rules(web={"port": "90:80"}), [f"{RULES}:web:port: found '90:80'", "lower port"]),
    ("ports as text", rules(web={"port": "80,443"}), [f"{RULES}:web:port: found '80,443'", "write a list: [80, 443]"]),
    ("a port twice", rules(web={"port": [80, 80]}), [f"{RULES}:web:port: found a list", "each port once"]),
    ("too many ports", rules(web={"port": list(range(1, 17))}), [f"{RULES}:web:port: found a list", "holds 15 ports"]),
    ("a service nobody knows", rules(web={"port": "no-such"}), [f"{RULES}:web:port: found 'no-such'", "/etc/services"]),
    (
        "a list for every protocol",
        rules(web={"port": [80, 81], "proto": "any"}),
        [f"{RULES}:web:proto: ", "tcp or udp"],
    ),
    ("a port for esp", rules(vpn={"port": 500, "proto": "esp"}), [f"{RULES}:vpn:port: found '500'", "has no ports"]),
    ("a profile with a port", rules(web={"app": "WWW", "port": 80}), [f"{RULES}:web: app says port", "take them out"]),
    (
        "both families in one rule",
        rules(web={"port": 81, "from": ["10.0.0.1"], "to": ["fd00::1"]}),
        [f"{RULES}:web: from, to, family and proto", "no family in common"],
    ),
    ("IPv6 for igmp", rules(tv={"proto": "igmp", "family": "ipv6"}), [f"{RULES}:tv: from, to, family and proto"]),
    ("a direction nobody knows", rules(web={"port": 81, "direction": "both"}), [f"{RULES}:web:direction: ", "in, out"]),
    ("an interface with an alias", rules(web={"port": 81, "interface": "eth0:1"}), [f"{RULES}:web:interface: found"]),
    (
        "an interface that is ufw's word",
        rules(web={"port": 81, "interface": "on"}),
        [f"{RULES}:web:interface: ", "ufw"],
    ),
    (
        "a comment with a quote",
        rules(web={"port": 81, "comment": "it's"}),
        [f"{RULES}:web:comment: found", "without '"],
    ),
    ("a comment of two lines", rules(web={"port": 81, "comment": "a\nb"}), [f"{RULES}:web:comment: found", "one line"]),
    ("a log nobody knows", rules(web={"port": 81, "log": True}), [f"{RULES}:web:log: found true", "log, log-all"]),
    (
        "rules that log and do not",
        rules(web={"port": 80, "log": "log"}),
        [f"{RULES}:web: says allow log", "rule http says allow"],
    ),
    ("Redis in a list", rules(many={"port": [81, 6379]}), [f"{RULES}:many: opens port 6379", "anywhere"]),
    ("Redis by every port", rules(many={"port": "any"}), [f"{RULES}:many: opens port 6379", "anywhere"]),
    (
        "a log level nobody knows",
        {"redis_sidekiq": {"firewall": {"logging": "on"}}},
        ["redis_sidekiq:firewall:logging: found 'on'", "off, low, medium"],
    ),
    (
        "a log level that YAML reads as false",
        {"redis_sidekiq": {"firewall": {"logging": False}}},
        ["redis_sidekiq:firewall:logging: found false", "write it in quotes: 'off'"],
    ),
    (
        "a policy for what is routed",
        {"redis_sidekiq": {"firewall": {"routed": "drop"}}},
        ["redis_sidekiq:firewall:routed: found 'drop'", "allow, deny, reject"],
    ),
    (
        "a mine's target type nobody knows",
        instance(**OPEN, allow_from_mine={"target": "w*", "tgt_type": "regex"}),
        [f"{INSTANCE}:allow_from_mine:tgt_type: found 'regex'", "glob"],
    ),
    (
        "a mine's target as a list",
        instance(**OPEN, allow_from_mine={"target": ["w1"]}),
        [f"{INSTANCE}:allow_from_mine:target: found a list"],
    ),
    ("a port beyond the last", rules(web={"port": 65536}), [f"{RULES}:web:port: found 65536"]),
    (
        "a range for every protocol",
        rules(web={"port": "80:90", "proto": "any"}),
        [f"{RULES}:web:proto: ", "tcp or udp"],
    ),
    (
        "an action nobody knows",
        rules(web={"port": 80, "action": "drop"}),
        [f"{RULES}:web:action: found 'drop'", "reject"],
    ),
    (
        "a host name as source",
        rules(web={"port": 81, "from": ["lb.example"]}),
        [f"{RULES}:web:from: found 'lb.example'"],
    ),
    (
        "anywhere in words",
        rules(web={"port": 81, "from": ["any"]}),
        [f"{RULES}:web:from: found 'any'", "[], is anywhere"],
    ),
    ("a rule's name with a space", rules(**{"my web": {"port": 81}}), [f"{RULES}:my...: no name", "letters"]),
    ("a name that is ours", rules(redis_6379={"port": 81}), [f"{RULES}:redis_6379: this name is kept"]),
    (
        "rules that contradict",
        rules(web={"port": 80, "action": "deny"}),
        [f"{RULES}:web: says deny", "rule http says allow"],
    ),
    ("Redis open to anywhere", rules(queue={"port": 6379}), [f"{RULES}:queue: opens port 6379", "anywhere"]),
    ("Redis in an open range", rules(many={"port": "6000:7000"}), [f"{RULES}:many: opens port 6379", "anywhere"]),
    ("ssh taken away", rules(ssh=None), [f"{RULES}: shuts out ssh", "port 22/tcp", "ssh: {port: 22}"]),
    ("ssh denied", rules(ssh={"action": "deny"}), [f"{RULES}: shuts out ssh"]),
    (
        "ssh denied before it is allowed",
        rules(ssh=None, guard={"port": "20:30", "action": "reject"}, admin={"port": 22}),
        [f"{RULES}: shuts out ssh"],
    ),
    (
        "a policy nobody knows",
        {"redis_sidekiq": {"firewall": {"incoming": "drop"}}},
        ["redis_sidekiq:firewall:incoming: found 'drop'", "allow, deny, reject"],
    ),
    (
        "a guard that does not exist is overridden",
        {"redis_sidekiq": {"firewall": {"allow_lockout": ["all"]}}},
        ["redis_sidekiq:firewall:allow_lockout: found 'all'", "ssh_ipv6"],
    ),
]

DEPLOYS = [
    (
        "a sudoers file that sudo skips",
        deploy(sudoers="my.deploy"),
        [f"{DEPLOY}:sudoers: found 'my.deploy'", "sudo skips"],
    ),
    ("a sudoers file elsewhere", deploy(sudoers="../passwd"), [f"{DEPLOY}:sudoers: found '../passwd'"]),
    (
        "a verb that quiets for ever",
        deploy(verbs=["reload"]),
        [f"{DEPLOY}:verbs: found 'reload'", "restart, start, stop"],
    ),
    ("a verb with a pager", deploy(verbs=["restart", "status"]), [f"{DEPLOY}:verbs: found 'status'"]),
    (
        "a deploy user whom nobody makes",
        deploy(user="nobody-here", create_user=False),
        [f"{DEPLOY}:user: ", "does not exist"],
    ),
    ("Redis' user deploys", deploy(user="redis"), [f"{DEPLOY}:user: found 'redis'", "must be different users"]),
    ("an app's name with a path", deploy(apps=["../x"]), [f"{DEPLOY}:apps: found '../x'", "an app's name"]),
    ("an app's name that is an option", deploy(apps=["-x"]), [f"{DEPLOY}:apps: found '-x'", "an app's name"]),
    ("an app's name that is too long", deploy(apps=["a" * 65]), [f"{DEPLOY}:apps: found 'aaa", "at most 64"]),
    ("an app's name that ends a line", deploy(apps=["shop\n"]), [f"{DEPLOY}:apps: found 'shop", "an app's name"]),
    ("an app twice", deploy(apps=["shop", "shop"]), [f"{DEPLOY}:apps: found 'shop' twice"]),
    ("an app that is no list", deploy(apps="shop"), [f"{DEPLOY}:apps: found 'shop'", "write a list: ['shop']"]),
    ("a home that others live in", deploy(home="/home"), [f"{DEPLOY}:home: found '/home'", "a folder below"]),
]

# What a sudoers file would make more of than a name; sudo reads these, visudo takes most of them.
SUDO_NAMES = [
    "ALL", "DEPLOYERS", "Deploy", "%sudo", "%#27", "%:domain users", "#0", "#1000", "+netgroup", "!deploy", "deploy,ALL",
    "deploy, %sudo", "deploy ALL", "deploy\nALL ALL=(ALL) NOPASSWD: ALL", "deploy\r", "deploy\\", "deploy*", "depl?y", "dep[l]oy",
    "deploy:ops", "deploy=ALL", "deploy(root)", '"deploy"', "deploy#", "-deploy", ".deploy", "deploy~", "User_Alias X = deploy",
    "depl\u043ey", "\uff44eploy", "deploy\u200b", "d" * 65, "root", True, 1000, ["deploy"], {"deploy": "ALL"},
]  # fmt: skip
SUDO_VERBS = [
    "ALL", "*", "restart *", "restart, ALL", "restart sidekiq, /bin/sh", "!stop", "--now", "-H", "edit", "show", "kill", "link",
    "mask", "isolate", "daemon-reload", "restart\nALL ALL=ALL", "restart\\", "^restart$", "RESTART", "", True,
]  # fmt: skip
SUDO_FILES = [
    "deploy~", ".deploy", "a/b", "/etc/sudoers", "..", "de ploy", "deploy\n", "depl\u043ey", "deploy*", "$(id)", "", True,
]  # fmt: skip
SUDO_UNITS = [
    "side*",
    "sidekiq, ALL",
    "sidekiq other",
    "sidekiq\\",
    "--all",
    "sidekiq\nALL",
    "!sidekiq",
    "sidekiq.service",
    "ALL=ALL",
]
SUDO_APPS = ["*", "shop ALL", "shop,ALL", 'shop ""', "shop\nALL ALL=ALL", "shop\\", "sh\u043ep", "!shop", True]
SUDO = [
    *((f"a sudo user {name!r}", deploy(user=name), [f"{DEPLOY}:user: found "]) for name in SUDO_NAMES),
    *((f"a sudo group {name!r}", deploy(group=name), [f"{DEPLOY}:group: found "]) for name in SUDO_NAMES),
    *((f"a sudo verb {verb!r}", deploy(verbs=["restart", verb]), [f"{DEPLOY}:verbs: found "]) for verb in SUDO_VERBS),
    *((f"a sudoers file {name!r}", deploy(sudoers=name), [f"{DEPLOY}:sudoers: found "]) for name in SUDO_FILES),
    *((f"a sudo app {app!r}", deploy(apps=[app]), [f"{DEPLOY}:apps: found "]) for app in SUDO_APPS),
    *(
        (
            f"a unit for sudo {name!r}",
            {"redis_sidekiq": {"sidekiq": {"services": {name: {}}}}},
            ["redis_sidekiq:sidekiq:services"],
        )
        for name in SUDO_UNITS
    ),
    (
        "a sudo group that is not there",
        deploy(group="nobody-such"),
        [f"{DEPLOY}:group: found 'nobody-such'", "does not exist"],
    ),
    ("strictness in words", deploy(strict="yes"), [f"{DEPLOY}:strict: found 'yes'", "without quotes"]),
]

SERVICES = [
    (
        "a service's name with a suffix",
        {"redis_sidekiq": {"sidekiq": {"services": {"mail.service": {}}}}},
        ["redis_sidekiq:sidekiq:services:mail.service: no name", "without .service"],
    ),
    (
        "a service's name with a path",
        {"redis_sidekiq": {"sidekiq": {"services": {"../ssh": {}}}}},
        ["redis_sidekiq:sidekiq:services:..", "no name"],
    ),
    (
        "a service named as a Redis unit",
        {"redis_sidekiq": {"sidekiq": {"services": {"redis_6379": {}}}}},
        ["redis_sidekiq:sidekiq:services:redis_6379: is the unit of a Redis instance"],
    ),
    (
        "a user who does not exist",
        service(user="nobody-here"),
        [f"{SERVICE}:user: found 'nobody-here'", "does not exist"],
    ),
    (
        "a group that does not exist",
        service(group="no-group"),
        [f"{SERVICE}:group: found 'no-group'", "does not exist"],
    ),
    (
        "a relative command",
        service(command=["bundle", "exec", "sidekiq"]),
        [f"{SERVICE}:command: begins with 'bundle'"],
    ),
    ("a command as one line", service(command="/usr/bin/bundle exec sidekiq"), [f"{SERVICE}:command: found", "a list"]),
    ("an app that owns /srv", service(app_dir="/srv"), [f"{SERVICE}:app_dir: found '/srv'", "a folder below"]),
    (
        "a stop that kills jobs",
        service(timeout=30, stop_timeout=35),
        [f"{SERVICE}:stop_timeout: found 35", "at least 40 s"],
    ),
    ("a watchdog that bites", service(watchdog=5), [f"{SERVICE}:watchdog: found 5", "10 to 3600 s"]),
    ("a queue with a comma", service(queues=["a,b"]), [f"{SERVICE}:queues: found 'a,b'"]),
    ("an option as an argument", service(arguments=["-t", "5"]), [f"{SERVICE}:arguments: found", "set timeout"]),
    ("an option glued together", service(arguments=["-c20"]), [f"{SERVICE}:arguments: found", "set concurrency"]),
    (
        "a long option as an argument",
        service(arguments=["--conc=2"]),
        [f"{SERVICE}:arguments: found", "set concurrency"],
    ),
    ("ERB in sidekiq.yml", service(config={"labels": ["<%= 1 %>"]}), [f"{SERVICE}:config:labels: found <%", "code"]),
    ("ERB in a key of sidekiq.yml", service(config={"x": {"<% y": 1}}), [f"{SERVICE}:config:x:", "<%", "code"]),
    ("a timeout in sidekiq.yml", service(config={"timeout": 8}), [f"{SERVICE}:config:timeout: cannot", "set timeout"]),
    (
        "a timeout in a section of sidekiq.yml",
        service(config={"production": {":timeout": 8}}),
        [f"{SERVICE}:config:timeout: cannot", "set timeout"],
    ),
    (
        "concurrency in two places",
        service(concurrency=5, config={"concurrency": 6}),
        [f"{SERVICE}:config:concurrency: is set twice", f"{SERVICE}:concurrency"],
    ),
    (
        "queues in two places",
        service(queues=["default"], config={"queues": ["mail"]}),
        [f"{SERVICE}:config:queues: is set twice"],
    ),
    ("a variable's name with a hyphen", service(env={"MY-KEY": "x"}), [f"{SERVICE}:env:MY-KEY: no name of a variable"]),
    (
        "a variable with a line end",
        service(env={"KEY": "a\nB=1"}),
        [f"{SERVICE}:env:KEY: found a value that is not shown"],
    ),
    ("a variable that is a list", service(env={"KEY": ["a"]}), [f"{SERVICE}:env:KEY: found a list"]),
    (
        "REDIS_URL as a variable",
        service(env={"REDIS_URL": "redis://x/0"}),
        [f"{SERVICE}:env:REDIS_URL: cannot", "redis_url"],
    ),
    ("an instance that is not here", service(redis="6400"), [f"{SERVICE}:redis: found '6400'", "6379"]),
    (
        "a URL of something else",
        service(redis_url="http://cache/0"),
        [f"{SERVICE}:redis_url: found a value that is not shown"],
    ),
    (
        "no role redis, and no redis_url",
        {"redis_sidekiq": {"roles": ["sidekiq"]}},
        [f"{SERVICE}:redis: found '6379'", "no role redis", "set redis_host, redis_url"],
    ),
    (
        "an install nobody knows",
        {"redis_sidekiq": {"sidekiq": {"install": "gem"}}},
        ["redis_sidekiq:sidekiq:install: found 'gem'", "gemfile, package"],
    ),
    (
        "a package that is an option",
        {"redis_sidekiq": {"sidekiq": {"packages": ["--allow-downgrades"]}}},
        ["redis_sidekiq:sidekiq:packages: found '--allow-downgrades'", "a package's name"],
    ),
]

WINDOWS = [
    (
        "a window without an end",
        redis(restart="window", restart_window="03:00"),
        [f"{REDIS}:restart_window: found '03:00'", "from when to when, like 03:00-05:00"],
    ),
    (
        "a window of no length",
        redis(restart="window", restart_window="03:00-03:00"),
        [f"{REDIS}:restart_window: found '03:00-03:00'", "it begins when it ends"],
    ),
    (
        "restarts in no window",
        redis(restart="window"),
        [f"{REDIS}:restart_window: must be given with restart: window"],
    ),
]

KERNEL = [
    (
        "overcommit as a word",
        redis(kernel={"overcommit_memory": "always"}),
        [f"{REDIS}:kernel:overcommit_memory: found 'always'", "a whole number from 0 to 2"],
    ),
    ("a queue without places", redis(kernel={"somaxconn": -1}), [f"{REDIS}:kernel:somaxconn: found -1"]),
    (
        "huge pages for everybody",
        redis(kernel={"transparent_hugepage": "always"}),
        [f"{REDIS}:kernel:transparent_hugepage: found 'always'", "madvise, never"],
    ),
    (
        "a sysctl by the kernel's own name",
        redis(kernel={"vm.overcommit_memory": 1}),
        [f"{REDIS}:kernel:vm.overcommit_memory: unknown key", "'overcommit_memory'"],
    ),
]

WRONG_PILLARS = [
    *MISSPELT,
    *ELSEWHERE,
    *FORMS,
    *ROLES,
    *BUILDS,
    *WINDOWS,
    *KERNEL,
    *INSTANCES,
    *UNRESOLVED,
    *BACKUPS,
    *SECURITY,
    *USERS,
    *FIREWALL,
    *DEPLOYS,
    *SUDO,
    *SERVICES,
]
