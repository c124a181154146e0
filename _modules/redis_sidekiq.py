"""
What a pillar may say, and the settings that come of it. One file, four parts:

1. the contract: each key with its kind, its default and the reason for that default,
2. the kinds: what a value of each kind looks like, and how it is read,
3. the rules across settings,
4. what follows from the settings: the dictionary that the SLS files and modules work with.

:func:`settings` is the only reader of the pillar. It merges defaults < operating system < pillar (maps by key, lists
replace, ``null`` takes a named entry away), and a wrong pillar stops it with every mistake in one message, one line
each, so that no state runs. A secret is never part of a message, and of the result only when asked for.

``docs/reference/pillar.md`` and the JSON Schema beside it are made from the contract (``make docs``).
"""

from __future__ import annotations

import grp
import hashlib
import ipaddress
import math
import os
import pwd
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import salt.loader
import salt.utils.path
from salt.exceptions import SaltInvocationError

if TYPE_CHECKING:
    __context__: dict[str, Any] = {}
    __grains__: dict[str, Any] = {}
    __opts__: dict[str, Any] = {}
    __pillar__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

# redis_sidekiq/map.jinja looks for this line in the synced file, to see whether module and SLS files belong together.
RELEASE = "0.2.0"

__virtualname__ = "redis_sidekiq"


def __virtual__():
    return __virtualname__


# --------------------------------------------------------------------------------------------------------------------
# 1. The contract
# --------------------------------------------------------------------------------------------------------------------

REQUIRED = object()  # a setting without a default


class Setting(NamedTuple):
    """One key with a value."""

    kind: str  # a name in KINDS or MAPS, or "list of " and a name in KINDS
    default: Any
    why: str  # what it is, and why the default is what it is
    low: int = 0  # of an integer
    high: int = 0
    unit: str = ""
    choices: tuple = ()  # of a choice
    null: str = ""  # what null means; "" = null is an error
    least: int = 0  # entries of a list
    repeats: bool = False  # may a list hold the same entry twice?
    secret: bool = False
    example: Any = None


class Section(NamedTuple):
    """
    A map whose keys are settings. ``instead``: what to do in place of keys that are none (any more): those of former
    releases, and those that people know from redis.conf, Capistrano, other formulas and roles.
    """

    why: str
    parts: dict[str, Any]
    instead: dict[str, str] = {}


class Entries(NamedTuple):
    """A map whose keys are names of the user's own, each with the same settings; null takes a default entry away."""

    why: str
    name: str  # kind of the names
    placeholder: str  # stands for a name in the reference page
    default: dict[str, dict]
    parts: dict[str, Any]
    instead: dict[str, str] = {}


ROLES = ("redis", "firewall", "sidekiq", "deploy")  # in the order in which they are set up
VERBS = ("restart", "start", "stop")
POLICIES = ("allow", "deny", "reject")
MINE_LASTS, RUN_LASTS = 30, 3600  # s
TGT_TYPES = ("glob", "list", "pcre", "compound", "grain", "grain_pcre", "pillar", "pillar_pcre", "nodegroup", "ipcidr")
WELL_KNOWN = {"ssh": 22, "http": 80, "https": 443}  # known without netbase too, whose /etc/services knows the others
PORTLESS = ("ah", "esp", "gre", "igmp", "ipv6", "vrrp")  # ufw/util.py, portless_protocols
RESTARTS = ("never", "when_needed", "window")
EVICTION = (
    "noeviction",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
)

_DIRECTIVES = "set it in directives of the instance"
_IN_THE_JOURNAL = "systemd's journal has the log"
# Without the prefixes redis_ and sidekiq_ of Ansible's roles and of Capistrano, and with _ for -.
INSTEAD = {
    "redis": {
        "port": "the name of an instance is its port: instances: {6379: {}}",
        "requirepass": "set password of an instance",
        "auth": "set password of an instance",
        "acls": "set users of an instance",
        "dir": "set dir of an instance",
        "dbdir": "set dir of an instance",
        "root_dir": "set dir of an instance",
        "data_dir": "set dir of an instance",
        "snapshots": "set save of an instance",
        "socket": "set unixsocket of an instance",
        "socket_path": "set unixsocket of an instance",
        "bind_interface": "set bind of an instance",
        "config": "set instances: PORT has settings of its own, and directives for all others",
        "settings": "set instances: PORT has settings of its own, and directives for all others",
        "extra_config": "set directives of an instance",
        "config_additional": "set directives of an instance",
        "includes": "set directives of an instance",
        "disabled_commands": "give users of an instance rules: what they do not name is not allowed",
        "rename_commands": "give users of an instance rules: what they do not name is not allowed",
        "slaveof": "set replicaof in directives of an instance",
        "replicaof": "set it in directives of an instance",
        "sentinel": "this formula sets up no Sentinel",
        "cluster": "this formula sets up no cluster",
        "system": "set kernel",
        "sysctl": "set kernel",
        "overcommit_memory": "set kernel:overcommit_memory",
        "transparent_huge_pages": "set kernel:transparent_hugepage",
        "variant": "set flavor",
        "install_from": "Redis comes from its source; set version, or source and source_hash",
        "package": "Redis comes from its source; set version, or source and source_hash",
        "package_name": "Redis comes from its source; set version, or source and source_hash",
        "pkg": "Redis comes from its source; set version, or source and source_hash",
        "lookup": "names that differ between systems are known; set what you mean itself",
        "tofs": "this formula has no templates to replace; set directives of an instance",
        "download_url": "set source",
        "tarball": "set source",
        "checksum": "set source_hash",
        "verify_checksum": "every tarball is verified; set source_hash",
        "install_dir": "set prefix",
        "service": "set service_manager",
        "service_name": "the unit's name is redis_PORT.service",
        "nofile_limit": "it follows from maxclients in directives of an instance",
    },
    "instance": {
        "port": "the name of the instance is its port",
        "requirepass": "set password",
        "passwords": "set password, and old_passwords while clients move to it",
        "acls": "set users",
        "snapshots": "set save",
        "socket": "set unixsocket",
        "unixsocketperm": "set unixsocket_perm",
        "socket_perm": "set unixsocket_perm",
        "aof": "set appendonly",
        "eviction": "set maxmemory_policy",
        "loglevel": _DIRECTIVES,
        "logfile": _IN_THE_JOURNAL,
        "pidfile": "systemd knows the process",
        "timeout": _DIRECTIVES,
        "maxclients": _DIRECTIVES,
        "tcp_keepalive": _DIRECTIVES,
        "tcp_backlog": _DIRECTIVES,
        "hz": _DIRECTIVES,
        "io_threads": _DIRECTIVES,
        "replicaof": _DIRECTIVES,
        "slaveof": "set replicaof in directives of the instance",
        "config": "set directives",
        "extra_config": "set directives",
        "tls_port": "set tls:port",
        "tls_cert_file": "set tls:cert or tls:cert_pem",
        "tls_key_file": "set tls:key or tls:key_pem",
        "tls_ca_cert_file": "set tls:ca or tls:ca_pem",
        "firewall": "set allow_from",
    },
    "user": {
        "password": "set passwords, a list",
        "commands": "set rules",
        "acl": "set rules",
        "keys": "set rules, like ~jobs:*",
        "channels": "set rules, like &news",
        "enabled": "a user who is named is on; take the whole entry out",
    },
    "firewall": {
        "services": "set rules",
        "applications": "set a rule with app",
        "interfaces": "set a rule with interface",
        "open": "set rules",
        "default_incoming": "set incoming",
        "default_outgoing": "set outgoing",
        "loglevel": "set logging",
    },
    "rule": {
        "source": "set from",
        "src": "set from",
        "from_addr": "set from",
        "from_ip": "set from",
        "destination": "set to",
        "to_addr": "set to",
        "to_ip": "set to",
        "protocol": "set proto",
        "dport": "set port",
        "to_port": "set port",
        "from_port": "rules are about the port that is asked for alone; set port",
        "policy": "set action",
        "allow": "set action: allow",
        "deny": "set action: deny",
    },
    "deploy": {
        "name": "set user",
        "sudo": "set verbs: that is all that he may do by sudo",
        "commands": "set verbs: that is all that he may do by sudo",
        "services": "he may act on those of redis_sidekiq:sidekiq:services",
        "nopasswd": "he is never asked for a password",
        "password": "he has none; give him keys for ssh by what makes your users",
        "ssh_keys": "give him keys for ssh by what makes your users",
    },
    "sidekiq": {
        "version": "with install: gemfile it is that of the app's Gemfile.lock",
        "app_dir": "set app_dir of a service",
        "workers": "set concurrency (threads) or processes of a service",
        "redis": "set redis or redis_url of a service",
    },
    "service": {
        "deploy_to": "set app_dir, the folder that has current and releases",
        "app_path": "set app_dir, the folder that has current and releases",
        "path": "set app_dir, the folder that has current and releases",
        "working_directory": "set app_dir; the process starts in its link current",
        "env_vars": "set env",
        "environment_variables": "set env",
        "rails_env": "set environment",
        "rack_env": "set environment",
        "threads": "set concurrency",
        "max_threads": "set concurrency",
        "workers": "set concurrency (threads) or processes",
        "count": "set processes",
        "instances": "set processes",
        "queue": "set queues, a list",
        "options": "set arguments, a list",
        "opts": "set arguments, a list",
        "run_as": "set user",
        "bundle": "set command, a list",
        "exec_start": "set command, a list",
        "pidfile": "systemd knows the process",
        "pid": "systemd knows the process",
        "log": _IN_THE_JOURNAL,
        "logfile": _IN_THE_JOURNAL,
        "url": "set redis_url",
        "redis_password": "set redis_user, or a password in redis_url",
        "redis_port": "set redis, the port of an instance here, or redis_url",
    },
}

BUILD = Section(
    "How Redis is compiled. A change builds anew beside the old build, and the running server follows.",
    {
        "user": Setting(
            "user",
            "redis-build",
            "The user who compiles: neither root nor the one who owns the data, since a build runs code of others.",
        ),
        "jobs": Setting("integer", 0, "Compilers at a time; 0 is one for each core.", low=0, high=256),
        "malloc": Setting(
            "choice",
            "jemalloc",
            "The allocator; jemalloc fragments least and is upstream's own.",
            choices=("jemalloc", "libc"),
        ),
        "tls": Setting(
            "boolean",
            None,
            "Compile TLS in. Not by itself: it adds OpenSSL.",
            null="where an instance has `tls:port`",
            example=True,
        ),
        "keep": Setting(
            "integer",
            2,
            "Builds that stay beside the wished one, the newest ones, so that the way back to an earlier release takes no "
            "compiler. One that is in use stays in any case.",
            low=1,
            high=100,
            unit="builds",
        ),
        "packs": Setting(
            "packs",
            {},
            "Finished builds that hosts share, by name, each with its digest: what `redis_build.pack` returned. A host for "
            "which one of them is made takes it and needs no compiler, all others compile.",
            example={"8.0.6-e5fe8aa51c-bookworm-amd64": "sha256=" + "0123456789abcdef" * 4},
        ),
        "packs_from": Setting(
            "place",
            "salt://redis-builds",
            "The folder that has their files, `NAME.tar.gz` each. The master's file server, because every minion reaches it.",
            example="https://mirror.example.com/redis-builds",
        ),
    },
)

KERNEL = Section(
    "What Redis asks of the kernel, set at once and for the next boot; what was there before is put back by "
    "`redis_sidekiq.clean`, and by a run after `manage: false` or `null`. Where a container may not set it, the run "
    "says so and goes on.",
    {
        "manage": Setting(
            "boolean",
            True,
            "Set them? On: a snapshot that cannot fork and connections that are dropped come unexpected.",
        ),
        "overcommit_memory": Setting(
            "integer",
            1,
            "`vm.overcommit_memory`. 1, as Redis asks: a snapshot's fork shares its pages, and must not fail for "
            "memory that it will not use.",
            low=0,
            high=2,
            null="leave it as it is",
        ),
        "somaxconn": Setting(
            "integer",
            0,
            "`net.core.somaxconn`, at least: the largest `tcp-backlog` of the instances counts if that is more, and "
            "what is there is never lowered. 0: no more than the instances need.",
            low=0,
            high=2147483647,
            null="leave it as it is",
        ),
        "transparent_hugepage": Setting(
            "choice",
            "madvise",
            "Huge pages for whom? A write after a fork copies a whole one, which costs memory and time. `madvise`, as "
            "Redis asks: none but those who ask for them; `never`: nobody.",
            choices=("madvise", "never"),
            null="leave it as it is",
        ),
    },
)

_CERTIFICATE = {
    "cert": Setting(
        "path or empty",
        "",
        "A PEM file on the host: the server's certificate, and those between it and its CA. Redis reads a copy, so "
        "only root has to read this file, and one that was renewed is taken over, without a restart, by the next run.",
        example="/etc/letsencrypt/live/redis.example.com/fullchain.pem",
    ),
    "key": Setting(
        "path or empty",
        "",
        "The PEM file with its private key, without a passphrase.",
        example="/etc/letsencrypt/live/redis.example.com/privkey.pem",
    ),
    "ca": Setting(
        "path or empty",
        "",
        "The PEM file with the CAs whose clients, and whose masters and replicas, Redis believes.",
        example="/etc/ssl/redis-ca.pem",
    ),
    "cert_pem": Setting("certificate or empty", "", "In place of `cert`: the text itself."),
    "key_pem": Setting(
        "private key or empty",
        "",
        "In place of `key`: the text itself. It goes into a file that root and Redis alone can read.",
        secret=True,
    ),
    "ca_pem": Setting("certificate or empty", "", "In place of `ca`: the text itself."),
    "auth_clients": Setting(
        "choice",
        "no",
        "Has a client to show a certificate of that CA? Not by default: clients come in by password, by TLS too.",
        choices=("no", "optional", "yes"),
    ),
    "replication": Setting("boolean", False, "Does Redis speak TLS with its master? Off, as upstream has it."),
    "protocols": Setting(
        "list of choice",
        ["TLSv1.2", "TLSv1.3"],
        "Versions of TLS; upstream's own.",
        choices=("TLSv1.2", "TLSv1.3"),
        least=1,
        example=["TLSv1.3"],
    ),
}
_SHARED = "as `redis:tls` says"

TLS = Section("TLS for all instances; each opens a port for it by its own `tls:port`.", _CERTIFICATE)

INSTANCE_TLS = Section(
    "TLS for this instance. What it does not say is as `redis:tls` says; a certificate and its key belong together.",
    {
        "port": Setting(
            "integer",
            None,
            "The port for TLS, beside the plain one.",
            low=1024,
            high=65535,
            null="no TLS",
            example=6390,
        ),
        "plain": Setting(
            "boolean",
            True,
            "Is the plain port open too? On, until all clients have moved. Without it the formula itself comes in by a "
            "unix socket, which is made then.",
        ),
        **{
            name: setting._replace(
                default=None, null=_SHARED, example=setting.default if setting.example is None else setting.example
            )
            for name, setting in _CERTIFICATE.items()
        },
    },
)

USERS = Entries(
    "Users of Redis beside the default one, by name. `redis.conf` has their passwords as digests alone. A user whom the "
    "settings do not name is deleted.",
    "redis user",
    "NAME",
    {},
    {
        "passwords": Setting(
            "list of secret",
            REQUIRED,
            "All are accepted, so that clients can move from one to the next; the first is the one that `REDIS_URL` gets.",
            least=1,
            secret=True,
            example=["the-new-one", "the-old-one"],
        ),
        "preset": Setting(
            "choice",
            None,
            "A set of rules made ready. `sidekiq`: what Sidekiq, its web page and its API need, on every key, and "
            "nothing that administers Redis.",
            choices=("sidekiq",),
            null="only what `rules` says",
            example="sidekiq",
        ),
        "rules": Setting(
            "list of acl rule",
            [],
            "Rules of Redis' ACL, a word or a selector each; they follow those of the preset. Without any a user may do "
            "nothing.",
            repeats=True,
            example=["~cache:*", "+@read", "+@connection"],
        ),
    },
    INSTEAD["user"],
)

BACKUP = Section(
    "Backups of each instance: verified snapshots in a folder of their own, made by a timer that needs neither Salt nor "
    "its master.",
    {
        "enabled": Setting(
            "boolean", False, "Make them? Off: they take space that only you know to be there, and time to look after."
        ),
        "keep": Setting("integer", 7, "How many snapshots stay; a week of daily ones.", low=1, high=1000),
        "at": Setting(
            "calendar",
            "daily",
            "When, as systemd writes it (`OnCalendar`); daily, since AOF and save points guard against a crash. On "
            "a host without systemd one of hourly, daily, weekly, monthly.",
            example="*-*-* 03:30",
        ),
        "delay": Setting(
            "integer",
            3600,
            "Up to so much later, each host always at its own moment, so that not all of them write at once.",
            low=0,
            high=86400,
            unit="s",
        ),
        "dir": Setting(
            "own folder",
            "/var/backups/redis",
            "Holds a folder `PORT` for each instance. It is root's: who breaks into Redis can neither read nor delete "
            "them. Best a file system that the data are not on.",
        ),
    },
)

_AS_ABOVE = "as `redis:backup` says"
BACKUP_OF_INSTANCE = Section(
    "The same settings for this instance alone; what is left out is as `redis:backup` says. None of them: "
    "`backup: {enabled: false}`.",
    {
        name: setting._replace(
            default=None,
            null=_AS_ABOVE,
            why=f"As `backup:{name}` above.",
            example={"enabled": False, "keep": 14, "at": "hourly", "delay": 60, "dir": "/srv/backups/redis"}[name],
        )
        for name, setting in BACKUP.parts.items()
    },
)

ALLOW_FROM_MINE = Section(
    "Who may reach this port besides `allow_from`: the addresses that other minions have sent to Salt's mine. A new worker "
    "is let in by the next run after it has sent its own. The mine is asked only if `target` is set and the minion has the "
    "roles redis and firewall.",
    {
        "target": Setting(
            "word or empty",
            "",
            "Which minions. By their names rather than by grains: a minion may say of itself what it likes. Empty: none.",
            example="worker*",
        ),
        "tgt_type": Setting(
            "choice",
            "glob",
            "How `target` is to be understood, as in `mine.get`.",
            choices=TGT_TYPES,
            example="compound",
        ),
        "function": Setting(
            "mine function",
            "network.ip_addrs",
            "What they have sent: a function, or an alias of the mine, that returns addresses.",
        ),
        "networks": Setting(
            "list of network",
            [],
            "Of these addresses only those in one of these networks count; `[]` is all. Loopback and link-local ones never "
            "count.",
            example=["10.0.0.0/8"],
        ),
        "may_be_empty": Setting(
            "boolean",
            False,
            "May the mine know no address yet? Off: an empty answer stops the run, and what is open stays open. On: an empty "
            "answer is nobody.",
        ),
    },
)

INSTANCES = Entries(
    "One Redis server per port, `/etc/redis/PORT.conf`, its data in `/var/redis/PORT`. A new one stands beside the default one; "
    "`6379: null` takes that away.",
    "port",
    "PORT",
    {"6379": {}},
    {
        "bind": Setting(
            "list of bind",
            ["127.0.0.1", "-::1"],
            "Addresses to listen at; `-` before one: no error if the host does not have it. Loopback alone, because "
            "Redis without a password believes whoever reaches it.",
            least=1,
            example=["127.0.0.1", "10.0.0.5"],
        ),
        "password": Setting(
            "password",
            "",
            "The default user's password; none by default, since only loopback reaches it. Needed beyond loopback.",
            secret=True,
        ),
        "old_passwords": Setting(
            "list of secret",
            [],
            "Passwords of the default user that are accepted beside that one, while clients move to it.",
            secret=True,
            example=["the-one-until-today"],
        ),
        "users": USERS,
        "tls": INSTANCE_TLS,
        "unixsocket": Setting(
            "socket",
            False,
            "A unix socket for clients on this host: `true` is `/run/redis_PORT/redis.sock`, or a path in a folder "
            "that is there. Off: nobody needs it by default. A change takes a restart.",
            example=True,
        ),
        "unixsocket_group": Setting(
            "user or empty",
            "",
            "Whose members may connect by `/run/redis_PORT/redis.sock`, beside root and Redis' user. Nobody by "
            "default; not the group of Redis itself, which may read its passwords.",
            example="deploy",
        ),
        "unixsocket_perm": Setting(
            "choice",
            None,
            "Mode of the socket.",
            choices=("700", "770", "777"),
            null="`770` with `unixsocket_group`, else `700`",
            example="777",
        ),
        "allow_from": Setting(
            "list of network",
            [],
            "Who may reach this port, and that of TLS, through the firewall. Nobody by default; never everybody.",
            example=["10.0.0.0/24"],
        ),
        "allow_from_mine": ALLOW_FROM_MINE,
        "dir": Setting(
            "own folder or empty",
            "",
            "Where the data lie; empty: `/var/redis/PORT`. A run does not move them: for a disk of their own, or for data that "
            "are there already.",
            example="/var/lib/redis/6379",
        ),
        "maxmemory": Setting(
            "size",
            "",
            "The most memory for data; empty: no limit, because only you know what else runs on the host. Set it below "
            "the memory of the host, so that Redis refuses writes before the kernel kills it.",
            example="2gb",
        ),
        "maxmemory_policy": Setting(
            "choice",
            "noeviction",
            "What happens at that limit. Jobs must fail loudly, not vanish, so nothing is evicted; Sidekiq's instance "
            "has to keep it so.",
            choices=EVICTION,
        ),
        "appendonly": Setting(
            "boolean", True, "Append each write to a file: snapshots alone would lose minutes of jobs."
        ),
        "appendfsync": Setting(
            "choice",
            "everysec",
            "How often that file is forced to the disk; every second is upstream's balance of loss and speed.",
            choices=("always", "everysec", "no"),
        ),
        "save": Setting(
            "list of save",
            ["3600 1", "300 100", "60 10000"],
            "When to write a snapshot: `SECONDS CHANGES`. Upstream's own points; `[]` writes none.",
        ),
        "databases": Setting("integer", 16, "Number of databases; upstream's own. Sidekiq uses 0.", low=1, high=10000),
        "restart": Setting(
            "choice",
            None,
            "The same as `restart` above, for this instance alone.",
            choices=RESTARTS,
            null="as `redis:restart` says",
            example="never",
        ),
        "restart_window": Setting(
            "window",
            None,
            "The same as `restart_window` above, for this instance alone.",
            null="as `redis:restart_window` says",
            example="01:00-02:00",
        ),
        "backup": BACKUP_OF_INSTANCE,
        "directives": Setting(
            "directives",
            {},
            "Any other directive of redis.conf: name to value, or to a list of values for a line each.",
            example={
                "tcp-keepalive": 60,
                "client-output-buffer-limit": ["replica 256mb 64mb 60", "pubsub 32mb 8mb 60"],
            },
        ),
    },
    INSTEAD["instance"],
)

REDIS = Section(
    "Redis, compiled from a verified tarball.",
    {
        "flavor": Setting(
            "choice",
            "redis",
            "Which server: Redis, or Valkey, its free fork. Valkey needs `source` and `source_hash`, for its digests are not "
            "shipped. Names on the host stay: `/etc/redis`, `/var/redis`, `redis_PORT.service`.",
            choices=("redis", "valkey"),
        ),
        "version": Setting(
            "version",
            "8.0.6",
            "The release. A patch release of the line that the formula's tests build. With `source` and no `version` "
            "it is read from the file's name.",
            example="7.2.15",
        ),
        "source": Setting(
            "source",
            "",
            "Where the tarball is; empty: upstream's download site. A copy of your own makes builds independent of it.",
            example="salt://files/redis-8.0.6.tar.gz",
        ),
        "source_hash": Setting(
            "hash",
            "",
            "The tarball's digest; empty: the one that upstream publishes, shipped with this formula. Needed with "
            "`source`: what is compiled and run as a server is verified, always.",
            example="sha256=6d0a9913887a4972536f9da226f1575859c34d86354129163260a5f9c6bd4229",
        ),
        "prefix": Setting(
            "own folder", "/opt/redis", "Holds one folder per build; outside /usr, so that no package collides with it."
        ),
        "bin_dir": Setting(
            "path", "/usr/local/bin", "Where the links to the programs lie: the place that a `make install` has."
        ),
        "user": Setting("user", "redis", "Runs the servers and owns the data; made if it does not exist."),
        "group": Setting("user", "redis", "Group of that user; may read the config files."),
        "build": BUILD,
        "kernel": KERNEL,
        "tls": TLS,
        "service_manager": Setting(
            "choice",
            "auto",
            "Starts the servers: a systemd unit or an LSB init script. `auto` takes systemd where it is PID 1.",
            choices=("auto", "systemd", "sysv"),
        ),
        "restart": Setting(
            "choice",
            "when_needed",
            "Is a running server restarted for what cannot be changed while it runs: some directives, its build, its "
            "unit? `when_needed`: once, without losing a key, but its connections end. `never`: the run says what waits "
            "for a restart, and leaves that to you. `window`: by a run within `restart_window` alone.",
            choices=RESTARTS,
        ),
        "restart_window": Setting(
            "window",
            None,
            "From when to when, by the host's clock, a run may restart a server with `restart: window`; over midnight too. "
            "It starts no run: a schedule of Salt's has to.",
            null="none",
            example="03:00-05:00",
        ),
        "drain_sidekiq": Setting(
            "boolean",
            True,
            "Are this host's Sidekiq services that work with an instance drained and stopped while that restarts, and "
            "started again after it? On: a job that fails while Redis is away is lost. Workers on other hosts are yours.",
        ),
        "purge_data": Setting(
            "boolean",
            False,
            "Does `redis_sidekiq.clean` delete the instances' data too? Off: a way back must not cost the jobs.",
        ),
        "backup": BACKUP,
        "instances": INSTANCES,
    },
    INSTEAD["redis"],
)

RULES_OF_FIREWALL = Entries(
    "What comes in or goes out, by name; `http: null` takes a default rule away. A new rule of your own lets in, unless "
    "`action` says otherwise. The first rule that matches decides.",
    "rule name",
    "NAME",
    {"ssh": {"port": 22}, "http": {"port": 80}, "https": {"port": 443}},
    {
        "action": Setting(
            "choice",
            "allow",
            "What to do; `limit` lets in, but not more than 6 connections in 30 s from one address.",
            choices=("allow", "limit", "deny", "reject"),
        ),
        "direction": Setting("choice", "in", "For what comes in, or what goes `out`.", choices=("in", "out")),
        "interface": Setting(
            "interface or empty",
            "",
            "Only on this interface; `eth+` is all whose names begin so. Empty: on all.",
            example="eth0",
        ),
        "port": Setting(
            "ports or empty",
            "",
            "The port, a range in quotes, a list of them, the name of a service in `/etc/services`, or `any`. It must be "
            "given, but for `app` and for protocols without ports.",
            example=[80, 443, "6000:6010"],
        ),
        "app": Setting(
            "app profile or empty",
            "",
            "In place of `port` and `proto`: an application profile of `/etc/ufw/applications.d`. Its ports count at each "
            "run; the rule is made of these.",
            example="OpenSSH",
        ),
        "proto": Setting(
            "choice",
            "tcp",
            "The protocol; tcp, which ssh, http and Redis speak. From `ah` on they have no ports; `igmp` and `ipv6` (6in4) "
            "are of IPv4 alone.",
            choices=("tcp", "udp", "any", *PORTLESS),
        ),
        "from": Setting(
            "list of network",
            [],
            "From where; `[]` is anywhere, which is what ssh and the web need.",
            example=["10.0.0.0/8"],
        ),
        "to": Setting(
            "list of network",
            [],
            "To which addresses: of this host's where it comes in. `[]` is all.",
            example=["10.0.0.5"],
        ),
        "family": Setting("choice", "any", "Only for IPv4 or IPv6.", choices=("any", "ipv4", "ipv6")),
        "log": Setting(
            "choice",
            None,
            "Log what matches: the new connections (`log`) or every packet (`log-all`), with ufw's limit.",
            choices=("log", "log-all"),
            null="no",
            example="log",
        ),
        "comment": Setting(
            "comment",
            "",
            "A remark, shown by `ufw status` after the name of the rule.",
            example="the office",
        ),
    },
    INSTEAD["rule"],
)

# As ufw_guard has them.
GUARDS = ("ssh", "ssh_ipv4", "ssh_ipv6", "connection", "limit", "master", "dns", "minions")

FIREWALL = Section(
    "UFW. Rules that others made stay as they are, unless `only_ours` says otherwise.",
    {
        "enabled": Setting(
            "boolean", True, "Is the firewall on? On: a Redis that someone binds wrongly stays unreachable."
        ),
        "incoming": Setting(
            "choice",
            "deny",
            "What happens to connections that no rule names: nothing comes in unasked.",
            choices=POLICIES,
        ),
        "outgoing": Setting(
            "choice", "allow", "The same for connections that go out: jobs call other services.", choices=POLICIES
        ),
        "routed": Setting(
            "choice",
            None,
            "The same for what passes through this host, like the traffic of containers.",
            choices=POLICIES,
            null="as it is",
            example="deny",
        ),
        "logging": Setting(
            "choice",
            None,
            "What ufw logs: from `low`, what it refuses, to `full`, every packet.",
            choices=("off", "low", "medium", "high", "full"),
            null="as it is",
            example="low",
        ),
        "only_ours": Setting(
            "boolean",
            False,
            "Do the rules that others made go? Off: other formulas and people may have their own. `test=True` names those "
            "that would go; `redis_sidekiq.clean` does not bring them back.",
        ),
        "rules": RULES_OF_FIREWALL,
        "allow_lockout": Setting(
            "list of choice",
            [],
            "Guards whose refusal is overridden, by name: each keeps a change from shutting somebody out. None by default; "
            "a name here is for the one change that is meant to.",
            choices=GUARDS,
            example=["ssh_ipv6"],
        ),
        "confirm": Setting(
            "choice",
            "run",
            "Who confirms a change, so that a timer does not put the former rules back: the `run` itself, by new "
            "connections to its master; the `master`, by `salt MINION ufw_guard.confirm`; `none`: they never come back.",
            choices=("run", "master", "none"),
        ),
        "confirm_within": Setting(
            "integer",
            60,
            "Seconds until they come back; a run that changes the firewall takes five.",
            low=20,
            high=3600,
        ),
    },
    INSTEAD["firewall"],
)

DEPLOY = Section(
    "The user who deploys, and what sudo lets him do: act on the Sidekiq services, send the deploy events of his apps.",
    {
        "user": Setting("user", "deploy", "His login name."),
        "create_user": Setting(
            "boolean", True, "Make him if he does not exist. Off where another formula makes users."
        ),
        "home": Setting("own folder or empty", "", "His home; empty: `/home/USER`.", example="/srv/deploy"),
        "group": Setting(
            "user or empty",
            "",
            "A group whose members may do the same by sudo, people who deploy by hand perhaps; it must exist.",
            example="ops",
        ),
        "strict": Setting(
            "boolean",
            False,
            "Fail, not only warn, when he could become root by another way that can be seen, such as a unit that he may "
            "write ([docs/sudo.md](../sudo.md)).",
        ),
        "verbs": Setting(
            "list of choice",
            list(VERBS),
            "What he may tell systemctl to do with them; `[]` is nothing. There is no `reload`: a Sidekiq that was "
            "quieted never works again. And no `status`: looking needs no root, and its pager is a way to become root.",
            choices=VERBS,
        ),
        "sudoers": Setting(
            "sudoers name",
            "sidekiq-deploy",
            "Name of the file in `/etc/sudoers.d`; sudo skips names with a dot or `~`.",
        ),
        "apps": Setting(
            "list of app",
            [],
            "For the role deploy: the apps whose deploy event `redis_sidekiq/deploy/APP` he may send from this host, each "
            "by a command of its own, `sudo /usr/local/sbin/sidekiq-deployed-APP`. None by default: an event acts on "
            "other hosts.",
            example=["shop"],
        ),
    },
    INSTEAD["deploy"],
)

SERVICES = Entries(
    "One Sidekiq service per name, as systemd unit `NAME.service`; `sidekiq: null` takes the default one away.",
    "service name",
    "NAME",
    {"sidekiq": {}},
    {
        "app_dir": Setting(
            "own folder",
            "/srv/app",
            "The app's folder, with `releases/` and the link `current`, as Capistrano lays it out.",
        ),
        "user": Setting(
            "user or empty", "", "Runs the jobs; empty: the deploy user, who owns the releases.", example="worker"
        ),
        "group": Setting("user or empty", "", "Its group; empty: the user's primary group."),
        "command": Setting(
            "list of word",
            ["/usr/bin/bundle", "exec", "sidekiq"],
            "What starts Sidekiq, a word each, the first an absolute path. Bundler, so that the release's Gemfile.lock "
            "decides which Sidekiq runs. A wrapper must `exec`, else systemd watches the wrapper.",
            least=1,
            repeats=True,
            example=["/home/deploy/.rbenv/shims/bundle", "exec", "sidekiq"],
        ),
        "environment": Setting("environment", "production", "Sidekiq's `-e`: Rails' environment.", example="staging"),
        "require": Setting(
            "word or empty",
            "",
            "Sidekiq's `-r`: a Rails app's folder or a Ruby file; empty: the Rails app in `current`.",
            example="./worker.rb",
        ),
        "arguments": Setting(
            "list of word",
            [],
            "More of Sidekiq's arguments, a word each. What has a setting of its own is refused here.",
            repeats=True,
            example=["--verbose"],
        ),
        "concurrency": Setting(
            "integer",
            None,
            "Threads, Sidekiq's `-c`. Every thread wants a database connection of its own.",
            low=1,
            high=1000,
            null="Sidekiq's own (5 since Sidekiq 7, 10 before) or the app's sidekiq.yml",
            example=10,
        ),
        "queues": Setting(
            "list of queue",
            [],
            "Queues to work, in order, or each with a weight; empty: `default`, or the app's sidekiq.yml.",
            example=["critical", {"default": 2}],
        ),
        "config": Setting(
            "sidekiq.yml",
            {},
            "Further keys of sidekiq.yml, as data; then `/etc/sidekiq/NAME.yml` takes the place of the app's. ERB "
            "(`<%`) is refused: it would run as code. Anyone on the host can read the file.",
            example={"labels": ["web"]},
        ),
        "env": Setting(
            "variables",
            {},
            "Environment variables. They go into a file that only root can read, never into the unit.",
            secret=True,
            example={"RAILS_LOG_TO_STDOUT": True},
        ),
        "redis": Setting(
            "instance",
            "6379",
            "The instance on this host whose URL becomes `REDIS_URL`; empty: none, the app knows its Redis.",
        ),
        "redis_host": Setting(
            "host or empty",
            "",
            "Where the instance is for a minion without the role redis: an address or a name. Port, password and users are those "
            "that `redis:instances` has for both, so they stand in one place of a pillar that both get.",
            example="10.0.0.5",
        ),
        "redis_user": Setting(
            "redis user or empty",
            "",
            "The user of that instance whose name and first password are part of `REDIS_URL`; empty: the default one, "
            "who may do everything.",
            example="sidekiq",
        ),
        "redis_url": Setting(
            "url",
            "",
            "`REDIS_URL` for a Redis elsewhere; goes before `redis`. It can hold a password.",
            secret=True,
        ),
        "timeout": Setting(
            "integer",
            25,
            "Sidekiq's `-t`: how long running jobs get at a stop before they go back into their queue. Sidekiq's own.",
            low=1,
            high=86400,
            unit="s",
        ),
        "stop_timeout": Setting(
            "integer",
            None,
            "When systemd kills a process that was told to stop. At least `timeout` + 10: killed earlier, Sidekiq "
            "loses the jobs that it is about to push back.",
            low=11,
            high=90000,
            unit="s",
            null="`timeout` + 15",
            example=60,
        ),
        "processes": Setting(
            "integer",
            1,
            "How many processes: Ruby works on one core, whatever its threads. More than one are the units "
            "`NAME@1.service`, `NAME@2.service` and so on in place of `NAME.service`.",
            low=1,
            high=64,
            example=2,
        ),
        "strategy": Setting(
            "choice",
            "handover",
            "How a process is replaced. `handover`: a second one starts first, in the new release, so that jobs are "
            "worked all the time and a release that does not boot changes nothing; for a while two work side by side. "
            "`drain`: the old one ends first, for jobs that must run one at a time.",
            choices=("handover", "drain"),
        ),
        "drain_timeout": Setting(
            "integer",
            60,
            "How long a restart waits for the jobs in work before it stops the process, which gives them `timeout` more.",
            low=0,
            high=86400,
            unit="s",
        ),
        "restart_file": Setting(
            "path or empty",
            "",
            "A file that each deployment touches, for apps that are deployed in place, without `releases/`; a process "
            "older than it is restarted.",
            example="/srv/app/current/tmp/restart.txt",
        ),
        "start_timeout": Setting(
            "integer",
            90,
            "How long the app may take to boot before systemd gives up on it; systemd's own default.",
            low=1,
            high=3600,
            unit="s",
        ),
        "watchdog": Setting(
            "watchdog",
            60,
            "A process that gives no sign of life for so long is killed and started again; 0: never. Below 30 native "
            "code that holds Ruby's lock gets healthy processes killed.",
            unit="s",
        ),
    },
    INSTEAD["service"],
)

SIDEKIQ = Section(
    "Sidekiq's services.",
    {
        "install": Setting(
            "choice",
            "gemfile",
            "Where Sidekiq comes from. `gemfile`: from the app's Gemfile, the version that the app was tested with; "
            "the formula installs Ruby and Bundler; `package`: the distribution's, kept patched by it.",
            choices=("gemfile", "package"),
        ),
        "packages": Setting(
            "list of package",
            None,
            "The distribution's packages for it; `[]` for those who bring their own Ruby.",
            null="those that `install` needs",
            example=["ruby", "bundler", "libpq-dev"],
        ),
        "services": SERVICES,
    },
    INSTEAD["sidekiq"],
)

CONTRACT = Section(
    "Everything lies below `redis_sidekiq`.",
    {
        "roles": Setting(
            "list of choice",
            ["redis", "firewall", "sidekiq"],
            "What this minion gets. All that works jobs: a host that does everything is the simplest one. `deploy` is for "
            "a host that deploys, where Capistrano or a CI job runs; it sends deploy events.",
            choices=ROLES,
            least=1,
            example=["redis", "firewall"],
        ),
        "redis": REDIS,
        "firewall": FIREWALL,
        "deploy": DEPLOY,
        "sidekiq": SIDEKIQ,
    },
)

# Older ones lose queued runs, and mix up modules that are loaded at the same time.
SALT = (3006, 28)

# The operating system's layer, by os_family: packages for each purpose.
PACKAGES = {
    "Debian": {
        "redis": ["ca-certificates"],
        # Not where a finished build is taken.
        "compile": ["build-essential", "libsystemd-dev", "pkg-config"],
        "tls": ["libssl-dev"],
        "firewall": ["ufw"],
        "sidekiq": ["sudo"],
        # Gems with native parts are compiled at a deploy.
        "gemfile": ["build-essential", "bundler", "ruby", "ruby-dev"],
        "package": ["bundler", "ruby", "ruby-sidekiq"],
        "deploy": ["sudo"],
    },
}


# --------------------------------------------------------------------------------------------------------------------
# For people and other modules
# --------------------------------------------------------------------------------------------------------------------


def settings(reveal: bool = False, given: dict | None = None, **kwargs: Any) -> dict[str, Any]:
    """
    The settings of this minion: defaults, operating system and pillar merged, checked, and what follows from them.

    reveal
        With secrets (bool, default False): ``password``, ``old_passwords``, the ``hashes`` of users and the ``contents``
        of ``tls`` of each Redis instance, ``env`` of each service. Only for
        modules in the minion's own process: over Salt's bus or on a command line it is refused.
    given
        A pillar, with the key ``redis_sidekiq``, in place of the minion's own: salt-ssh calls modules without one.

    Returns a dictionary of plain data: ``roles``, ``packages``, ``redis``, ``firewall``, ``deploy``, ``sidekiq``; see
    part 4 of this file for what each holds. Raises SaltInvocationError with every mistake of the pillar, a line each.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq.settings
    """
    # Salt adds __pub_* to what people call, not to what modules call.
    unknown = [name for name in kwargs if not name.startswith("__pub_")]
    if unknown:
        raise SaltInvocationError(f"redis_sidekiq.settings takes no {', '.join(sorted(unknown))}; it takes: reveal")
    if reveal and (kwargs or given is not None):
        raise SaltInvocationError("Secrets are not returned to a command line or over Salt's bus: leave out reveal")
    wish, problems = _examine(_said(__pillar__ if given is None else given))
    if problems.lines:
        raise SaltInvocationError("\n".join(problems.lines))
    return _derive(wish, reveal)


def check() -> dict[str, Any]:
    """
    A preflight that changes nothing: is the pillar right, does the host suit it, what is there already, and what would
    the next run do?

    Returns ``ok`` (bool: there is no problem), ``problems`` (what stops a run, or keeps from working what it starts),
    ``warnings``, ``takes_over`` (what others made that the formula has to do with), ``next_run`` (what ``state.apply``
    would change, in its order), all lists of sentences that begin with the key or the thing that they are about, and
    ``facts``, see :func:`redis_sidekiq_preflight.report`. No secret is in it. Where something is wrong with the pillar,
    only what needs no settings is looked at. The exit status of ``salt-call`` is 1 if there is a problem.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq.check
        salt-call redis_sidekiq.check --out=json
    """
    report = _fresh_modules()["redis_sidekiq_preflight.report"]()
    __context__["retcode"] = 0 if report["ok"] else 1
    return report


def drift(all: bool = False, table: bool = False) -> list[dict[str, Any]] | str:
    """
    What runs against what is wished: Redis, its settings and users, the kernel, Sidekiq, the firewall, sudo, files.

    all
        Rows that do not differ too (bool, default False).
    table
        A table of text for a terminal in place of data (bool, default False).

    Returns a list of rows, see :func:`redis_sidekiq_drift.rows`; an empty one if all is as wished. Nothing is changed, and
    no secret is shown.

    Raises SaltInvocationError with every mistake of the pillar, a line each.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq.drift table=True
        salt '*' redis_sidekiq.drift all=True --out=json
    """
    modules = _fresh_modules()
    rows = modules["redis_sidekiq_drift.rows"](all)
    # What ran inside may have had its own opinion.
    __context__["retcode"] = 0
    return modules["redis_sidekiq_drift.table"](rows) if table else rows


def mistakes(pillar: dict | None = None) -> list[str]:
    """
    What is wrong with a pillar, by the contract alone.

    pillar
        A pillar to look at on this minion, with the key ``redis_sidekiq``; default: the minion's own.

    Returns a list of sentences, each beginning with the path of the key; an empty one if all is well.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq.mistakes
        salt '*' redis_sidekiq.mistakes pillar='{"redis_sidekiq": {"redis": {"verison": "8.0.6"}}}'
    """
    if pillar is not None and not isinstance(pillar, dict):
        return [f"{ROOT}: found {_form(pillar)}; allowed: a map with the key {ROOT}"]
    try:
        return _examine(_said(__pillar__ if pillar is None else pillar))[1].lines
    except SaltInvocationError as err:
        return [str(err)]


def contract() -> dict[str, Any]:
    """
    The contract as plain data: what ``docs/reference/pillar.md`` is made from, and a JSON Schema for editors.

    Returns a dictionary: ``settings`` (list in the contract's order: ``path``, ``section`` (bool), of a section also
    ``instead`` (key that is none -> what to do instead), ``kind``,
    ``allowed``, ``default``, ``required``, ``unit``, ``null``, ``secret``, ``example``, ``why``), ``rules`` (sentences)
    and ``schema`` (JSON Schema, draft 2020-12).

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq.contract
    """
    return {
        "settings": list(_described(CONTRACT, ROOT)),
        "rules": [" ".join(rule.__doc__.split()) for rule in RULES],
        "schema": _whole_schema(),
    }


# --------------------------------------------------------------------------------------------------------------------
# 2. The kinds: what a value may look like, and how it is read
# --------------------------------------------------------------------------------------------------------------------

ROOT = "redis_sidekiq"
LIST = "list of "
HIDDEN = "a value that is not shown"


class Wrong(Exception):
    """A value that is not of its kind; the text is a hint or says what is wrong with it."""


class Problems:
    """The mistakes found so far: a path and a sentence each."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], None] = {}

    def add(self, path: str, sentence: str) -> None:
        self._found[path, sentence] = None

    def at(self, *paths: str) -> bool:
        """Is something wrong at, below or above one of these paths? Then a rule about it could only confuse."""
        return any(
            one == other or one.startswith(other + ":") or other.startswith(one + ":")
            for one, _ in self._found
            for other in paths
        )

    @property
    def lines(self) -> list[str]:
        return [f"{path}: {sentence}" for path, sentence in self._found]


class Kind(NamedTuple):
    """What a value may be: in words, as JSON Schema, and a function that returns it as it is used, or raises Wrong."""

    words: Callable[[Setting], str]
    schema: Callable[[Setting], dict]
    read: Callable[[Any, Setting], Any]


# Reading the tree of the contract


def _said(pillar: dict) -> Any:
    """What a pillar says about us. One that did not render says nothing, and must not be taken for the defaults."""
    if pillar.get("_errors"):
        raise SaltInvocationError(
            f"{ROOT}: the pillar of this minion did not render; `salt-call pillar.items` says why"
        )
    if ROOT not in pillar:
        twin = [key for key in pillar if isinstance(key, str) and key.lower().replace("-", "_") == ROOT]
        if twin:
            raise SaltInvocationError(f"{twin[0]}: unknown key; did you mean {ROOT!r}?")
    return pillar.get(ROOT)


def _examine(said: Any) -> tuple[dict[str, Any], Problems]:
    """The pillar read and merged into the defaults, and everything that is wrong with it."""
    problems = Problems()
    if __grains__.get("os_family") not in PACKAGES:
        problems.add(
            ROOT,
            f"found a minion of the family {__grains__.get('os_family', 'unknown')}; "
            f"this formula works on the {' and '.join(PACKAGES)} family, target only those",
        )
    found = [part for part in __grains__.get("saltversioninfo") or () if isinstance(part, int)]
    if found and tuple(found) < SALT:
        problems.add(
            ROOT,
            f"found a minion with Salt {'.'.join(map(str, found))}; this formula works with {'.'.join(map(str, SALT))} "
            "and newer, upgrade Salt first",
        )
    wish = _read(CONTRACT, said, ROOT, problems)
    _read_version_from_source(wish["redis"], said, problems)
    _read_mine(wish, problems)
    for rule in RULES:
        rule(wish, problems)
    return wish, problems


def _read(node: Section | Entries | Setting, value: Any, path: str, problems: Problems) -> Any:
    if isinstance(node, Section):
        return _read_section(node, value, path, problems)
    if isinstance(node, Entries):
        return _read_entries(node, value, path, problems)
    return _read_setting(node, value, path, problems)


def _read_section(node: Section | Entries, value: Any, path: str, problems: Problems) -> dict[str, Any]:
    value, parts = _map(value, path, problems), node.parts
    for key in value:
        if key not in parts:
            problems.add(f"{path}:{_name(key)}", "unknown key; " + _suggestion(key, node))
    return {
        name: _read(
            part, value.get(name, part.default if isinstance(part, Setting) else None), f"{path}:{name}", problems
        )
        for name, part in parts.items()
    }


def _read_entries(entries: Entries, value: Any, path: str, problems: Problems) -> dict[str, dict]:
    kind, wished = KINDS[entries.name], {}
    for key, entry in _map(value, path, problems).items():
        try:
            name = kind.read(key, None)
        except Wrong as wrong:
            hint = f"; {wrong}" if str(wrong) else ""
            problems.add(f"{path}:{_name(key)}", f"no name for an entry here; allowed: {kind.words(None)}{hint}")
            continue
        if name in wished:
            problems.add(f"{path}:{name}", "is there twice, once as a number and once as text; keep one of them")
        elif entry is None and name not in entries.default:
            hint = f"one of {', '.join(entries.default)} can be taken away; " if entries.default else ""
            problems.add(f"{path}:{name}", f"found null; {hint}a new entry that keeps all defaults is {{}}")
        wished[name] = entry
    result = {}
    for name in [*entries.default, *(name for name in wished if name not in entries.default)]:
        entry = wished.get(name, {})
        if entry is not None:
            entry = {**entries.default.get(name, {}), **_map(entry, f"{path}:{name}", problems)}
            result[name] = _read_section(entries, entry, f"{path}:{name}", problems)
    return result


def _read_setting(setting: Setting, value: Any, path: str, problems: Problems) -> Any:
    if value is REQUIRED:
        problems.add(path, f"must be given; allowed: {_words(setting)}")
        return None
    if value is None and setting.null:
        return None
    if setting.kind in MAPS:
        return MAPS[setting.kind].read(_map(value, path, problems), path, problems)
    if setting.kind.startswith(LIST):
        return _read_list(setting, value, path, problems)
    return _read_value(setting, value, path, problems)


def _read_list(setting: Setting, value: Any, path: str, problems: Problems) -> list:
    if not isinstance(value, (list, tuple)):
        found = _found(value, setting.secret)
        hint = f"; write a list: [{found}]" if isinstance(value, (str, int)) and found != HIDDEN else ""
        problems.add(path, f"found {found}; allowed: {_words(setting)}{hint}")
        return []
    if len(value) < setting.least:
        problems.add(path, f"found an empty list; allowed: {_words(setting)}")
    item, result = setting._replace(kind=setting.kind[len(LIST) :]), []
    for entry in value:
        entry = _read_value(item, entry, path, problems)
        if entry in result and entry is not None and not setting.repeats:
            problems.add(path, f"found {_found(entry, setting.secret)} twice; once is enough")
        result.append(entry)
    return result


def _read_value(setting: Setting, value: Any, path: str, problems: Problems) -> Any:
    kind = KINDS[setting.kind]
    try:
        return kind.read(value, setting)
    except Wrong as wrong:
        hint = str(wrong) or ("leave the key out for the default" if value is None else "")
        problems.add(path, f"found {_found(value, setting.secret)}; allowed: {_words(setting)}{hint and '; ' + hint}")
        return None


def _map(value: Any, path: str, problems: Problems) -> dict:
    """A map; null (a key whose lines are all commented out) says nothing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.add(path, f"found {_form(value)}; allowed: a map of keys and values")
        return {}
    return value


# Words for messages


def _words(setting: Setting) -> str:
    if setting.kind in MAPS:
        return MAPS[setting.kind].words
    if setting.kind.startswith(LIST):
        count = " of at least one" if setting.least else ""
        return f"a list{count}, each {KINDS[setting.kind[len(LIST) :]].words(setting)}"
    return KINDS[setting.kind].words(setting)


def _found(value: Any, secret: bool = False) -> str:
    """A value as a message may show it: on one line, not too long, and no secret."""
    if isinstance(value, (dict, list, tuple)) or value is None:
        return _form(value)
    # The last two are passwords in an ACL.
    if secret or re.search(r"://.*@|-----BEGIN|^[<>#!]|^\(.*[ (][<>#!]", str(value)):
        return HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def _form(value: Any) -> str:
    """What sort of data something is. Where a map was expected, the text found instead may well be a secret."""
    if value is None:
        return "nothing (null)"
    forms = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", tuple: "a list"}
    return "a map" if isinstance(value, dict) else forms.get(type(value), f"a {type(value).__name__}")


def _name(key: Any) -> str:
    """A key as part of a path: up to the first character that no key has (`PASSWORD=secret` is `PASSWORD...`)."""
    match = re.match(r"[A-Za-z0-9_.@*-]{0,64}", str(key))
    return match[0] + ("..." if match[0] != str(key) else "")


def _suggestion(key: Any, node: Section | Entries) -> str:
    """What to use instead; or the nearest of the known keys; or where else in the contract this very key is known."""
    import difflib  # only when something is wrong

    known, word = node.parts, str(key).lower().replace("-", "_")
    plain = re.sub("^(?:redis|sidekiq)_", "", word)
    if word in node.instead or plain in node.instead:
        return node.instead.get(word) or node.instead[plain]
    near = difflib.get_close_matches(plain if plain in known else word, list(known), 1)
    if near:
        return f"did you mean {near[0]!r}?"
    described = [entry["path"] for entry in _described(CONTRACT, ROOT)]
    elsewhere = [path for path in described if path.rpartition(":")[2] in (key, plain)]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return "known here: " + ", ".join(sorted(known))


def _described(node: Section | Entries, path: str) -> Iterator[dict[str, Any]]:
    for name, part in node.parts.items():
        place = f"{path}:{name}"
        if isinstance(part, Setting):
            required = part.default is REQUIRED
            default = {} if required else {"default": part.default}
            more = {key: getattr(part, key) for key in ("kind", "unit", "null", "secret", "example", "why")}
            yield {"path": place, "section": False, "required": required, "allowed": _words(part), **default, **more}
        else:
            instead = {"instead": part.instead} if part.instead else {}
            yield {"path": place, "section": True, "why": part.why, **({} if isinstance(part, Entries) else instead)}
            inside = f"{place}:{part.placeholder}" if isinstance(part, Entries) else place
            if isinstance(part, Entries):
                yield {"path": inside, "section": True, "why": "", "default": part.default, **instead}
            yield from _described(part, inside)


# JSON Schema


def _whole_schema() -> dict[str, Any]:
    """What the kinds allow, as an editor sees it: in the file, before Salt renders it. Rules and facts are left out."""
    definitions = {
        "network": {"type": "string", **_pattern(_NETWORK, KINDS["network"].words(None))},
        "bind": {"type": "string", **_pattern(_BIND, KINDS["bind"].words(None))},
        "folder_of_others": {"enum": sorted(_SHARED_FOLDERS)},
        "plain_data": {
            "not": {"type": "string", "pattern": "<%"},
            "items": {"$ref": "#/$defs/plain_data"},
            "propertyNames": {"not": {"pattern": "<%"}},
            "additionalProperties": {"$ref": "#/$defs/plain_data"},
        },
    }
    properties = {ROOT: _schema(CONTRACT, ROOT, definitions)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Pillar of the formula {ROOT}",
        "type": "object",
        "properties": properties,
        "$defs": definitions,
    }


def _schema(node: Section | Entries | Setting, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    if isinstance(node, Setting):
        return _schema_of_setting(node)
    section = {
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {key: _schema(part, key, definitions) for key, part in node.parts.items()},
    }
    if isinstance(node, Section):
        return {"description": node.why, **section}
    needed = [key for key, part in node.parts.items() if isinstance(part, Setting) and part.default is REQUIRED]
    definitions[f"entry_of_{name}"] = {**section, "type": "object", **({"required": needed} if needed else {})}
    entry = {"$ref": f"#/$defs/entry_of_{name}"}
    default = {key: {"anyOf": [entry, {"type": "null"}]} for key in node.default}
    return {
        "description": node.why,
        "type": ["object", "null"],
        "propertyNames": KINDS[node.name].schema(None),
        **({"properties": default} if default else {}),
        "additionalProperties": entry,
        "default": node.default,
    }


def _schema_of_setting(setting: Setting) -> dict[str, Any]:
    if setting.kind in MAPS:
        schema = {"type": ["object", "null"], **MAPS[setting.kind].schema()}
    elif setting.kind.startswith(LIST):
        schema = {"type": "array", "items": _schema_of_value(setting._replace(kind=setting.kind[len(LIST) :]))}
        schema |= {"minItems": setting.least} if setting.least else {}
        schema |= {} if setting.repeats else {"uniqueItems": True}
    else:
        schema = _schema_of_value(setting)
    words = f"{setting.why} Allowed: {_words(setting)}."
    words += f" null: {setting.null}." if setting.null else ""
    schema = {"description": words, **(_or_null(schema) if setting.null else schema)}
    if setting.default is not REQUIRED:
        schema["default"] = setting.default
    if setting.example is not None:
        schema["examples"] = [setting.example]
    return schema | ({"writeOnly": True} if setting.secret else {})


def _schema_of_value(setting: Setting) -> dict[str, Any]:
    """Of a secret text also what the gpg renderer is to decrypt."""
    schema = KINDS[setting.kind].schema(setting)
    if setting.secret or setting.kind.endswith(("certificate or empty", "private key or empty")):
        schema["pattern"] = f"{schema['pattern']}|^\\s*-----BEGIN PGP MESSAGE-----"
    return schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _pattern(pattern: str, words: str) -> dict[str, str]:
    """The whole text; in place of the pattern editors show the words."""
    return {"pattern": f"^(?:{pattern})$", "patternErrorMessage": f"Allowed: {words}."}


# Kinds of one value


def _is_text(value: str) -> bool:
    """Can it be written to a file? A `"\\ud800"` of YAML or JSON cannot."""
    return value.isascii() or not re.search("[\ud800-\udfff]", value)


def _text(words: str, pattern: str, read: Callable[[str], str] | None = None) -> Kind:
    """Text of a pattern; ``read`` looks closer: it returns the text as it is used, or raises Wrong."""
    compiled = re.compile(pattern)

    def _read_text(value, _):
        if not isinstance(value, str):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            raise Wrong("write it in quotes" if number else "")
        if not _is_text(value):
            raise Wrong("it holds half a character")
        if read:
            value = read(value)
        if not compiled.fullmatch(value):
            raise Wrong
        return value

    return Kind(lambda _: words, lambda _: {"type": "string", **_pattern(pattern, words)}, _read_text)


def _or_empty(kind: Kind) -> Kind:
    def _words_or_empty(setting):
        return f"{kind.words(setting)}, or empty"

    def _schema_or_empty(setting):
        schema = kind.schema(setting)
        words = f"Allowed: {_words_or_empty(setting)}."
        return {**schema, "pattern": f"^$|{schema['pattern']}", "patternErrorMessage": words}

    return Kind(
        _words_or_empty,
        _schema_or_empty,
        lambda value, setting: value if value == "" and isinstance(value, str) else kind.read(value, setting),
    )


def _read_boolean(value, _):
    if not isinstance(value, bool):
        raise Wrong(
            "write it without quotes" if str(value).lower() in ("true", "false", "yes", "no", "on", "off") else ""
        )
    return value


def _read_integer(value, setting):
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong("write it without quotes" if isinstance(value, str) and value.strip().isdecimal() else "")
    if not setting.low <= value <= setting.high:
        raise Wrong
    return value


def _read_watchdog(value, setting):
    value = _read_integer(value, setting._replace(low=0, high=3600))
    if 0 < value < 10:
        raise Wrong
    return value


def _read_choice(value, setting):
    if value not in setting.choices or not isinstance(value, str):
        # YAML reads a bare no, off, yes or on as a boolean.
        words = {False: ("no", "off"), True: ("yes", "on")}[value] if isinstance(value, bool) else (str(value),)
        word = next((word for word in words if word in setting.choices), "")
        raise Wrong(f"write it in quotes: '{word}'" if word else "")
    return value


def _read_port(value, _):
    """An instance's port, the name of its entry: a number or the same as text."""
    if not isinstance(value, (int, str)) or not re.fullmatch(_PORT, str(value)):
        raise Wrong
    return str(value)


def _read_instance(value, _):
    return value if value == "" and isinstance(value, str) else _read_port(value, _)


def _read_ports(value, _):
    """Ports as ufw writes them: ``22``, ``6000:6010``, ``80,443``, ``any``."""
    if value == "any":
        return "any"
    if not isinstance(value, (list, tuple)):
        return _read_one_port(value)
    ports = [_read_one_port(port) for port in value]
    if not ports or len(set(ports)) != len(ports):
        raise Wrong("name each port once")
    if sum(1 + (":" in port) for port in ports) > 15:
        raise Wrong("a rule holds 15 ports, and a range counts as two; write another rule")  # ufw/common.py, set_port
    return ",".join(sorted(ports, key=lambda port: [int(end) for end in port.split(":")]))


def _read_one_port(value):
    text = str(value)
    if isinstance(value, str) and text.isdecimal():
        raise Wrong("write it without quotes")
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9-]+", value):
        try:
            return str(WELL_KNOWN.get(value) or socket.getservbyname(value))
        except OSError:
            raise Wrong("no service of this name is in /etc/services; write its number") from None
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?::([1-9][0-9]{0,4}))?", text)
    if isinstance(value, bool) or not match or not all(int(port) <= 65535 for port in match.groups() if port):
        numbers = re.sub(r"\s*,\s*", ", ", text)
        raise Wrong(f"write a list: [{numbers}]" if "," in text and isinstance(value, str) else "")
    if match[2] and int(match[1]) >= int(match[2]):
        raise Wrong("a range goes from the lower port to the higher one")
    return text


# Words of ufw's own grammar, which it would not take for a name (ufw/parser.py).
_UFW_WORDS = ("any", "app", "comment", "from", "in", "log", "log-all", "on", "out", "port", "proto", "to")


def _read_interface(value: str) -> str:
    if value in _UFW_WORDS:
        raise Wrong("ufw cannot tell this name from its own words")
    return value


# None of those that cannot be seen; Python knows some more (str.isprintable).
_REMARK = r"[^'\x00-\x1f\x7f-\xa0\xad\u200b-\u200f\u2028-\u202f\u205f-\u206f\ufeff]"


def _read_comment(value: str) -> str:
    if value != value.strip() or not value.isprintable():
        raise Wrong("without blanks around it and characters that cannot be seen")
    return value


_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_HEXTET = "[0-9A-Fa-f]{1,4}"


def _ipv6() -> str:
    """A pattern of all forms of an IPv6 address (RFC 3986, IPv6address)."""
    last = f"(?:{_HEXTET}:{_HEXTET}|{_IPV4})"
    forms = [f"(?:{_HEXTET}:){{6}}{last}"]
    ends = [*(f"(?:{_HEXTET}:){{{count}}}{last}" for count in (5, 4, 3, 2, 1, 0)), _HEXTET, ""]
    for before, end in enumerate(ends):
        begin = f"(?:(?:{_HEXTET}:){{0,{before - 1}}}{_HEXTET})?" if before else ""
        forms.append(f"{begin}::{end}")
    return f"(?:{'|'.join(forms)})"


_IPV6 = _ipv6()
_NETWORK = rf"{_IPV4}(?:/(?:3[0-2]|[12]?[0-9]))?|{_IPV6}(?:/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9]))?"
_BIND = rf"-?(?:\*|::\*|{_IPV4}|{_IPV6}(?:%[A-Za-z0-9_.-]{{1,15}})?)"  # with a zone, that is an interface
_FIVE_DIGITS = "[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_PORT = f"(?:102[4-9]|10[3-9][0-9]|1[1-9][0-9]{{2}}|[2-9][0-9]{{3}}|{_FIVE_DIGITS})"
_ANY_PORT = f"(?:[1-9][0-9]{{0,3}}|{_FIVE_DIGITS})"


def _read_network(value, _):
    if not isinstance(value, str):
        raise Wrong
    if not re.fullmatch(_NETWORK, value):
        everywhere = value.lower() in ("any", "anywhere", "all", "*")
        hint = "write the length of its prefix" if re.fullmatch(rf"{_IPV4}/{_IPV4}", value) else ""
        raise Wrong("an empty list, [], is anywhere" if everywhere else hint)
    return str(ipaddress.ip_network(value, strict=False))  # host bits go: 10.0.0.5/24 is 10.0.0.0/24, as UFW writes it


def _read_bind(value, _):
    if not isinstance(value, str) or not re.fullmatch(_BIND, value):
        raise Wrong("write 127.0.0.1 or ::1" if value in ("localhost", "-localhost") else "")
    return value


_SIZE = "[0-9]+(?:[bB]|[kKmMgG][bB]?)?"


def _read_size(value, _):
    """Redis' own grammar of sizes (src/util.c, memtoull): k is 1000, kb is 1024."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if not isinstance(value, str) or (value and not re.fullmatch(_SIZE, value)):
        raise Wrong("Redis knows no percentage here" if "%" in str(value) else "")
    return value


def _bytes(size: str) -> int:
    """A size of Redis in bytes; 0 for none."""
    match = re.fullmatch(r"(\d+)([a-z]*)", size.lower())
    units = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
    return int(match[1]) * units[match[2]] if match else 0


def _read_version(value: str) -> str:
    match = re.match(r"([0-9]+)\.([0-9]+)", value)
    if match and (int(match[1]), int(match[2])) < (6, 2):
        raise Wrong("Sidekiq 7 needs Redis 6.2 or newer")
    return value


def _read_source(value: str) -> str:
    if value.startswith("http://"):
        raise Wrong("fetch it by https://")
    if re.match(r"[a-z]+://[^/]*@", value):
        raise Wrong("no user or password in it: it is shown in states and logs")
    return value


_HASH = "|".join(f"(?:[sS][hH][aA]{bits}[=:])?[0-9A-Fa-f]{{{bits // 4}}}" for bits in (256, 384, 512))


def _read_hash(value: str) -> str:
    match = re.fullmatch(r"(?:([A-Za-z0-9]+)[=:])?([0-9A-Fa-f]+)", value)
    if not match:
        raise Wrong("the digest itself, not a file that lists it" if "/" in value else "")
    by_length = {32: "md5", 40: "sha1", 64: "sha256", 96: "sha384", 128: "sha512"}
    name = by_length.get(len(match[2]), "")
    if name in ("md5", "sha1") or (match[1] or "").lower() in ("md5", "sha1"):
        raise Wrong(f"{(match[1] or name).lower()} can be forged: another file can be made to have the same digest")
    if not name or (match[1] or name).lower() != name:
        raise Wrong(f"{len(match[2])} hex digits are no {match[1] or 'sha256'}")
    return f"{name}={match[2].lower()}"


# Folders that other things live in: to own or to remove one of them would break the host.
_SHARED_FOLDERS = {
    *"/ /bin /boot /dev /etc /home /lib /lib64 /media /mnt /opt /proc /root /run /sbin /srv /sys /tmp /usr".split(),
    *"/var /usr/bin /usr/include /usr/lib /usr/libexec /usr/local /usr/sbin /usr/share /usr/src /usr/local/bin".split(),
    *"/usr/local/lib /usr/local/sbin /usr/local/share /etc/redis /etc/sidekiq /etc/systemd /var/cache /var/lib".split(),
    *"/var/log /var/opt /var/redis /var/run /var/spool /var/tmp /var/www".split(),
}


def _read_path(value: str) -> str:
    if ".." in value.split("/"):
        raise Wrong("without ..")
    return os.path.normpath(re.sub("^/+", "/", value)) if value.startswith("/") else value


def _read_own_folder(value: str) -> str:
    value = _read_path(value)
    if value in _SHARED_FOLDERS:
        raise Wrong("others live in it; take a folder below it")
    return value


_CALENDAR_WORDS = (
    *("minutely", "hourly", "daily", "weekly", "monthly"),
    *("quarterly", "semiannually", "yearly", "annually"),
)
_CRON = "(?:[0-9*,/-]+ ){4}[A-Za-z0-9_*,/-]+"
_CALENDAR = (
    f"{'|'.join(_CALENDAR_WORDS)}|(?!{_CRON}$)(?![A-Za-z]+$)(?! )(?=.*(?:[0-9*]|[a-z]{{5}}))"
    "[A-Za-z0-9*:,./~+ -]{0,99}[A-Za-z0-9*:,./~+-]"
)
CRON_TIMES = ("hourly", "daily", "weekly", "monthly")  # what cron can do too


def _read_calendar(value: str) -> str:
    """What systemd.time(7) calls a calendar event, as far as that can be seen; systemd itself is asked before it counts."""
    if re.fullmatch(_CRON, value) or value.startswith("@"):
        raise Wrong("that is cron's form; every day at 3:30 is '*-*-* 03:30'")
    if value.isalpha() and value not in _CALENDAR_WORDS:
        raise Wrong(f"the words are {', '.join(_CALENDAR_WORDS)}")
    return value


_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"


def _read_window(value: str) -> str:
    begin, _, end = value.partition("-")
    if begin == end:
        raise Wrong("it begins when it ends")
    return value


def _read_user(value: str) -> str:
    if value == "root":
        raise Wrong("nothing here runs as root")
    return value


def _read_service(value: str) -> str:
    if value.endswith(".service"):
        raise Wrong("without .service")
    return value


def _is_resolved(value: str) -> str:
    """A secret, and not what somebody wrote in its place for Salt to put it there."""
    if "-----BEGIN PGP MESSAGE" in value:
        raise Wrong(
            "it is still encrypted: the pillar file begins with #!jinja|yaml|gpg, and the key is where it is rendered"
        )
    if value.startswith("sdb://"):
        raise Wrong("Salt resolves no sdb:// in a pillar; write {{ salt['sdb.get']('sdb://...') | tojson }}")
    if value.startswith("{{") and value.endswith("}}"):
        raise Wrong("it is Jinja that was not rendered: the pillar file's first line leaves out jinja")
    if value == "None":
        raise Wrong("Jinja writes None for what it did not find; with | tojson behind it that is null")
    return value


def _read_url(value: str) -> str:
    value = _is_resolved(value)
    if value.startswith(("unix:", "redis:", "rediss:")):
        return value
    raise Wrong


def _read_redis_user(value: str) -> str:
    if value == "default":
        raise Wrong("set password and old_passwords of the instance")
    return value


# Words of an ACL that say who a user is, not what he may do.
_NO_RULE = (
    "[<>#!]|(?:[oO][nN]|[oO][fF][fF]|[rR][eE][sS][eE][tT](?:[pP][aA][sS][sS])?|[nN][oO][pP][aA][sS][sS])(?:[ ()]|$)"
)
_SELECTOR = rf"\((?:(?!{_NO_RULE})[^\s\x00-\x1f\x7f\x22'\\()]+(?: |(?=\))))+\)"
_ACL_RULE = rf"(?!{_NO_RULE})[^\s\x00-\x1f\x7f\x22'\\()][^\s\x00-\x1f\x7f\x22'\\]*|{_SELECTOR}"


def _read_acl_rule(value: str) -> str:
    if any(re.match(_NO_RULE, word) for word in value.lstrip("(").split(" ")):
        raise Wrong("passwords have a setting of their own, and who is named is on")
    if value.startswith("(") and not re.fullmatch(_SELECTOR, value):
        raise Wrong("a selector is (RULE RULE), with one space between two rules")
    return value


_BLOCK = r"-----BEGIN ([A-Z0-9 ]+)-----[ \r]*\n[A-Za-z0-9+/=\s]+-----END \1-----"
_PEM_BLOCK = re.compile(_BLOCK)


def _pem(label: str) -> str:
    """Text with blocks that are whole, one of them with this label, none of them encrypted; or empty."""
    between = r"(?:(?!-----BEGIN )[\s\S])*"
    return rf"(?:(?![\s\S]*ENCRYPTED)(?=[\s\S]*-----BEGIN {label}-----)(?:{between}{_BLOCK})+{between})?"


def _read_pem(value: str) -> str:
    """The blocks that Redis would read, each as base64; comments around them are as many tools write them."""
    if not _is_resolved(value):
        return value
    if "ENCRYPTED" in value:
        raise Wrong("a key without a passphrase: nobody is there to type it")
    if len(_PEM_BLOCK.findall(value)) != value.count("-----BEGIN ") or not _PEM_BLOCK.search(value):
        raise Wrong("the file's whole text, line by line (YAML: `|`)")
    return value.strip() + "\n"


def _read_socket(value, _):
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.startswith("/"):
        raise Wrong
    if len(value) > 107:  # sun_path of unix(7)
        raise Wrong("at most 107 characters")
    value = _read_path(value)
    if not re.fullmatch(_PATH, value):
        raise Wrong
    return value


_QUEUE = "[A-Za-z0-9_.:-]+"


def _read_queue(value, _):
    names = list(value) if isinstance(value, dict) else [value]
    weights = list(value.values()) if isinstance(value, dict) else [1]
    if len(names) != 1 or not isinstance(names[0], str) or not re.fullmatch(_QUEUE, names[0]):
        raise Wrong("a list entry for each queue" if isinstance(value, dict) and len(names) > 1 else "")
    if isinstance(weights[0], bool) or not isinstance(weights[0], int) or not 1 <= weights[0] <= 1000:
        raise Wrong("a weight is a whole number from 1 to 1000")
    return {names[0]: weights[0]} if isinstance(value, dict) else value


_PLACE = r"[^\s\x00-\x1f\x7f\x22'\\]"  # a character of a path or URL
_PATH = rf"(?!.*/\.\.(?:/|$))/{_PLACE}*"
_SOURCE = f"(?:https|salt|file)://(?![^/]*@){_PLACE}+|/{_PLACE}+"
_USER = r"[a-z_][a-z0-9_-]{0,31}(?:\.[a-z0-9_-]{1,31})?"
_NO_SECRET = "(?!sdb://|None$)"
_WORD = r"[^\x00-\x1f\x7f]+"
_user = _text("a name like deploy: lower case, digits, _ and -, not root", f"(?!root$){_USER}", _read_user)
_path = _text("an absolute path without spaces or quotes", _PATH, _read_path)
_redis_user = _text(
    "a user of Redis: letters, digits, _, - and .", r"(?!default$)[A-Za-z0-9_.-]{1,64}", _read_redis_user
)
_own_folder = _text("an absolute path of a folder of its own, without spaces or quotes", _PATH, _read_own_folder)
_own_folder = _own_folder._replace(
    schema=lambda setting, path=_own_folder.schema: {**path(setting), "not": {"$ref": "#/$defs/folder_of_others"}}
)
_word = _text("text of one line, without control characters", _WORD)
_port_words = "a port that needs no root, from 1024 to 65535"
_port_schema = {"type": ["integer", "string"], "minimum": 1024, "maximum": 65535}


_one_port_schema = {
    "minimum": 1,
    "maximum": 65535,
    **_pattern(
        rf"{_ANY_PORT}:{_ANY_PORT}|[A-Za-z][A-Za-z0-9-]+",
        "a number, a range like '6000:6010', a service's name, or any",
    ),
}


KINDS = {
    "boolean": Kind(lambda _: "true or false", lambda _: {"type": "boolean"}, _read_boolean),
    "integer": Kind(
        lambda s: f"a whole number from {s.low} to {s.high}{' ' + s.unit if s.unit else ''}",
        lambda s: {"type": "integer", "minimum": s.low, "maximum": s.high},
        _read_integer,
    ),
    "watchdog": Kind(
        lambda _: "0 (off), or a whole number from 10 to 3600 s",
        lambda _: {"anyOf": [{"const": 0}, {"type": "integer", "minimum": 10, "maximum": 3600}]},
        _read_watchdog,
    ),
    "choice": Kind(lambda s: "one of " + ", ".join(s.choices), lambda s: {"enum": list(s.choices)}, _read_choice),
    "port": Kind(lambda _: _port_words, lambda _: {**_port_schema, **_pattern(_PORT, _port_words)}, _read_port),
    "instance": Kind(
        lambda _: "the port of an instance, or empty",
        lambda _: {**_port_schema, **_pattern(f"(?:{_PORT})?", f"{_port_words}, or empty")},
        _read_instance,
    ),
    "ports or empty": _or_empty(
        Kind(
            lambda _: "a port from 1 to 65535, a range like '6000:6010', a list of them, a service's name, or any",
            lambda _: {
                "type": ["integer", "string", "array"],
                **_one_port_schema,
                "items": {"type": ["integer", "string"], **_one_port_schema},
                "minItems": 1,
                "maxItems": 15,
                "uniqueItems": True,
            },
            _read_ports,
        )
    ),
    "interface or empty": _or_empty(
        _text(
            "the name of an interface like eth0",
            rf"(?!(?:{'|'.join(_UFW_WORDS)}|\.\.?)$)[A-Za-z0-9_.+,=%@-]{{1,15}}",
            _read_interface,
        )
    ),
    "app profile or empty": _or_empty(
        _text("the name of an application profile like OpenSSH", r"[A-Za-z0-9][A-Za-z0-9 _.+-]*")
    ),
    "comment": _text(
        "one line of text without ', which ufw does not take",
        rf"(?:(?!\s){_REMARK}{{0,199}}(?!\s){_REMARK})?",
        _read_comment,
    ),
    "network": Kind(
        lambda _: "an address or a network like 10.0.0.0/24 or fd00::/8",
        lambda _: {"$ref": "#/$defs/network"},
        _read_network,
    ),
    "bind": Kind(
        lambda _: (
            "an IP address of this host, * (all of IPv4) or ::* (all of IPv6), with - before it if it may be missing"
        ),
        lambda _: {"$ref": "#/$defs/bind"},
        _read_bind,
    ),
    "size": Kind(
        lambda _: "a size like 512mb or 2gb (b, k, kb, m, mb, g, gb), or empty",
        lambda _: {
            "type": ["string", "integer"],
            "minimum": 0,
            **_pattern(f"(?:{_SIZE})?", "a size like 512mb or 2gb, or empty"),
        },
        _read_size,
    ),
    "queue": Kind(
        lambda _: "a queue's name, or a map of one name and its weight, like {default: 2}",
        lambda _: {
            "type": ["string", "object"],
            **_pattern(_QUEUE, "letters, digits, _, ., : and -"),
            "minProperties": 1,
            "maxProperties": 1,
            "propertyNames": _pattern(_QUEUE, "letters, digits, _, ., : and -"),
            "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 1000},
        },
        _read_queue,
    ),
    "version": _text(
        "a release like 8.0.6, 6.2 or newer",
        r"(?:6\.(?:[2-9]|[1-9][0-9]+)|(?:[7-9]|[1-9][0-9]+)\.[0-9]+)(?:\.[0-9]+)?(?:-rc[0-9]+)?",
        _read_version,
    ),
    "source": _text(
        "https://, salt:// or file:// and a path, an absolute path, or empty",
        f"(?:{_SOURCE})?",
        _read_source,
    ),
    "place": _text(
        "https://, salt:// or file:// and a path, or an absolute path",
        _SOURCE,
        _read_source,
    ),
    "hash": _or_empty(_text("sha256= and 64 hex digits (sha384 and sha512 too)", _HASH, _read_hash)),
    "path": _path,
    "path or empty": _or_empty(_path),
    "own folder": _own_folder,
    "own folder or empty": _or_empty(_own_folder),
    "user": _user,
    "user or empty": _or_empty(_user),
    "password": _text("text without control characters, or empty", rf"{_NO_SECRET}[^\x00-\x1f\x7f]*", _is_resolved),
    "url": _text(
        "redis://, rediss:// or unix:// and a place, without spaces, or empty",
        r"(?:(?:rediss?|unix)://[^\s\x00-\x1f\x7f]+)?",
        lambda value: value and _read_url(value),
    ),
    "secret": _text("text without control characters, not empty", rf"{_NO_SECRET}[^\x00-\x1f\x7f]+", _is_resolved),
    "redis user": _redis_user,
    "redis user or empty": _or_empty(_redis_user),
    "acl rule": _text("a rule like ~jobs:*, +@read or -keys, or a selector in brackets", _ACL_RULE, _read_acl_rule),
    "calendar": _text("a time as systemd writes it, like daily or Mon..Fri 03:30", _CALENDAR, _read_calendar),
    "certificate or empty": _text(
        "text in PEM form, from -----BEGIN CERTIFICATE-----, or empty",
        _pem("(?:TRUSTED )?CERTIFICATE"),
        _read_pem,
    ),
    "private key or empty": _text(
        "text in PEM form, from -----BEGIN PRIVATE KEY-----, or empty",
        _pem("(?:[A-Z]+ )?PRIVATE KEY"),
        _read_pem,
    ),
    "host or empty": _or_empty(
        _text("an address, or the name of a host", r"[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?")
    ),
    "socket": Kind(
        lambda _: "true, false, or an absolute path without spaces or quotes",
        lambda _: {
            "type": ["boolean", "string"],
            "maxLength": 107,
            **_pattern(_PATH, "true, false, or an absolute path without spaces or quotes"),
        },
        _read_socket,
    ),
    "save": _text("'SECONDS CHANGES', two whole numbers like '300 100'", "[1-9][0-9]* [1-9][0-9]*"),
    "window": _text(
        "from when to when, like 03:00-05:00, in quotes", f"(?!(.{{5}})-\\1$){_TIME}-{_TIME}", _read_window
    ),
    "rule name": _text("a name of letters, digits, _, - and .", r"[A-Za-z0-9_.-]{1,64}"),
    "service name": _text(
        "a unit's name: letters, digits, _, - and @",
        r"[A-Za-z0-9](?:[A-Za-z0-9@_-]{0,62}[A-Za-z0-9_-])?",
        _read_service,
    ),
    "app": _text("an app's name: letters, digits, _ and -, at most 64", r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"),
    "sudoers name": _text("a file name of letters, digits, _ and -; sudo skips others", r"[A-Za-z0-9_-]{1,64}"),
    "environment": _text("a name of letters, digits, _ and -", r"[A-Za-z0-9_-]+"),
    "package": _text("a package's name", r"[a-z0-9][a-z0-9+.-]+"),
    "mine function": _text("a function like network.ip_addrs, or an alias of the mine", r"[A-Za-z0-9_.-]+"),
    "word": _word,
    "word or empty": _or_empty(_word),
}


# Kinds that are maps of the user's own


class MapKind(NamedTuple):
    words: str
    schema: Callable[[], dict]
    read: Callable[[dict, str, Problems], dict]


# Directives that a setting of ours decides, that our units rely on, or that would put a secret where others see it.
_OWN_DIRECTIVES = {
    "port": "the instance's name is its port",
    "bind": "set bind of the instance",
    "protected-mode": "it is always on",
    "requirepass": "set password of the instance",
    "maxmemory": "set maxmemory of the instance",
    "maxmemory-policy": "set maxmemory_policy of the instance",
    "appendonly": "set appendonly of the instance",
    "appendfsync": "set appendfsync of the instance",
    "save": "set save of the instance",
    "databases": "set databases of the instance",
    "dir": "set dir of the instance",
    "daemonize": "it follows from redis:service_manager",
    "supervised": "it follows from redis:service_manager",
    "pidfile": "it follows from redis:service_manager",
    "logfile": "it follows from redis:service_manager; systemd's journal has the log",
    "tls-port": "set tls:port of the instance",
    "tls-cert-file": "set tls:cert or tls:cert_pem",
    "tls-key-file": "set tls:key or tls:key_pem",
    "tls-ca-cert-file": "set tls:ca or tls:ca_pem",
    "tls-auth-clients": "set tls:auth_clients",
    "tls-replication": "set tls:replication",
    "tls-protocols": "set tls:protocols",
    "unixsocket": "set unixsocket of the instance",
    "unixsocketperm": "set unixsocket_perm of the instance",
    "include": "nothing would check that file; write its directives here",
    "user": "set users of the instance; for the default one password and old_passwords",
    "aclfile": "it would make Redis ignore the password; set users of the instance",
    "masterauth": "it is a secret, and directives are shown in states and logs",
    "tls-key-file-pass": "it is a secret, and directives are shown in states and logs",
    "tls-client-key-file-pass": "it is a secret, and directives are shown in states and logs",
    "rename-command": "the formula asks Redis by its own names of commands",
}
# Redis splits a line into words as a shell would (src/sds.c, sdssplitargs); a quote ends where a word ends.
_DIRECTIVE = r"\s*(?:(?:[^\s\x22']+|\x22(?:[^\x22\\]|\\.)*\x22|'(?:[^'\\]|\\.)*')(?:\s+|$))*"
_DIRECTIVE = rf"(?![\s\S]*[\x00-\x1f\x7f]){_DIRECTIVE}"
_DIRECTIVE_NAME, _VARIABLE = "[a-z][a-z0-9-]*", "[A-Za-z_][A-Za-z0-9_]*"


def _read_directives(value: dict, path: str, problems: Problems) -> dict[str, list[str]]:
    """Name -> list of values, each as it stands in redis.conf. No value is shown: who knows what it holds."""
    result = {}
    for name, lines in value.items():
        place = f"{path}:{_name(name)}"
        if not isinstance(name, str) or not re.fullmatch(_DIRECTIVE_NAME, name):
            problems.add(place, "no name of a directive; allowed: lower case, digits and -")
        elif name in _OWN_DIRECTIVES:
            problems.add(place, f"cannot be set here: {_OWN_DIRECTIVES[name]}")
        else:
            lines = list(lines) if isinstance(lines, (list, tuple)) else [lines]
            if not lines or not all(isinstance(line, (str, int, float)) for line in lines):
                problems.add(
                    place, "found neither text nor a number; allowed: a value, or a list of values for a line each"
                )
                continue
            result[name] = ["yes" if line is True else "no" if line is False else str(line) or '""' for line in lines]
            if not all(re.fullmatch(_DIRECTIVE, line) and _is_text(line) for line in result[name]):
                problems.add(
                    place, "found control characters or a quote that does not end; allowed: one line of redis.conf"
                )
    return result


def _read_packs(value: dict, path: str, problems: Problems) -> dict[str, str]:
    """Name -> digest."""
    result = {}
    for name, digest in value.items():
        place = f"{path}:{_name(name)}"
        if not isinstance(name, str) or not re.fullmatch(_PACK, name):
            problems.add(place, "no name of a shared build; allowed: what redis_build.pack returns as its name")
            continue
        try:
            result[name] = _read_hash(digest) if isinstance(digest, str) else ""
        except Wrong as wrong:
            problems.add(
                place, f"found {digest!r}; allowed: sha256= and 64 hex digits{f'; {wrong}' if str(wrong) else ''}"
            )
            continue
        if not result[name]:
            problems.add(place, f"found {_form(digest)}; allowed: sha256= and 64 hex digits")
    return result


def _read_variables(value: dict, path: str, problems: Problems) -> dict[str, str]:
    """Name -> text. Every value counts as a secret."""
    result = {}
    for name, content in value.items():
        place = f"{path}:{_name(name)}"
        if not isinstance(name, str) or not re.fullmatch(_VARIABLE, name):
            problems.add(place, "no name of a variable; allowed: letters, digits and _, no digit first")
        elif name == "REDIS_URL":
            problems.add(place, "cannot be set here: set redis or redis_url of the service")
        elif not isinstance(content, (str, int, float)):
            problems.add(place, f"found {_form(content)}; allowed: text, a number, true or false; '' for empty")
        else:
            result[name] = str(content).lower() if isinstance(content, bool) else str(content)
            try:
                _is_resolved("" if content == "None" else result[name])
            except Wrong as wrong:
                problems.add(place, f"found {HIDDEN}; allowed: text of one line; {wrong}")
                continue
            if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", result[name]) or not _is_text(result[name]):
                problems.add(place, f"found {HIDDEN}, with control characters; allowed: text of one line")
    return result


def _read_sidekiq_yml(value: dict, path: str, problems: Problems) -> dict[str, Any]:
    """Plain data. Sidekiq runs its sidekiq.yml through ERB before it reads it (lib/sidekiq/cli.rb, parse_config)."""
    return {
        key: _read_data(content, f"{path}:{_name(key)}", problems)
        for key, content in value.items()
        if _plain_key(key, f"{path}:{_name(key)}", problems)
    }


def _read_data(value: Any, path: str, problems: Problems) -> Any:
    if isinstance(value, dict):
        return _read_sidekiq_yml(value, path, problems)
    if isinstance(value, (list, tuple)):
        return [_read_data(entry, path, problems) for entry in value]
    if isinstance(value, str) and "<%" in value:
        problems.add(path, "found <%, which Ruby would run as code; allowed: plain data")
    elif isinstance(value, str) and not _is_text(value):
        problems.add(path, "found half a character; allowed: plain data")
    elif not isinstance(value, (str, int, float, type(None))):
        problems.add(path, f"found {_form(value)}; allowed: text, numbers, true, false, null, lists and maps")
    return value


def _plain_key(key: Any, path: str, problems: Problems) -> bool:
    if not isinstance(key, str):
        problems.add(path, f"found {_form(key)} as a key; allowed: text")
    elif "<%" in key or not _is_text(key):
        problems.add(path, "found <%, which Ruby would run as code; allowed: plain data")
    else:
        return True
    return False


_PACK = r"(?:valkey-)?[0-9][0-9a-z.-]*-[0-9a-f]{10}-[a-z0-9]+-[a-z0-9_]+"
_DIRECTIVE_VALUE = {"type": ["string", "number", "boolean"], **_pattern(_DIRECTIVE, "one line of redis.conf")}


def _names(pattern: str, words: str, *kept: str) -> dict:
    return {**_pattern(pattern, words), **({"not": {"enum": sorted(kept)}} if kept else {})}


MAPS = {
    "packs": MapKind(
        "a map of shared builds: name to digest",
        lambda: {
            "propertyNames": _names(_PACK, "what redis_build.pack returns as its name"),
            "additionalProperties": {"type": "string", **_pattern(_HASH, "sha256= and 64 hex digits")},
        },
        _read_packs,
    ),
    "directives": MapKind(
        "a map of directives: name to value or list of values",
        lambda: {
            "propertyNames": _names(_DIRECTIVE_NAME, "directives without a setting of their own", *_OWN_DIRECTIVES),
            "additionalProperties": {
                **_DIRECTIVE_VALUE,
                "type": [*_DIRECTIVE_VALUE["type"], "array"],
                "items": _DIRECTIVE_VALUE,
                "minItems": 1,
            },
        },
        _read_directives,
    ),
    "variables": MapKind(
        "a map of variables: name to text, number, true or false",
        lambda: {
            "propertyNames": _names(
                _VARIABLE, "letters, digits and _; for REDIS_URL set redis or redis_url", "REDIS_URL"
            ),
            "additionalProperties": {
                "type": ["string", "number", "boolean"],
                "pattern": r"^(?!sdb://)[^\x00-\x08\x0a-\x1f\x7f]*$|^\s*-----BEGIN PGP MESSAGE-----",
                "patternErrorMessage": "Allowed: text of one line.",
            },
        },
        _read_variables,
    ),
    "sidekiq.yml": MapKind(
        "a map of plain data, without ERB",
        lambda: {
            "propertyNames": {"not": {"pattern": "<%"}},
            "additionalProperties": {"$ref": "#/$defs/plain_data"},
        },
        _read_sidekiq_yml,
    ),
}


# --------------------------------------------------------------------------------------------------------------------
# 3. The rules across settings. Each looks only at what is right by itself; its docstring goes into the reference page.
# --------------------------------------------------------------------------------------------------------------------

R, F, D, S = (f"{ROOT}:{name}" for name in ("redis", "firewall", "deploy", "sidekiq"))


def _read_version_from_source(redis: dict[str, Any], said: Any, problems: Problems) -> None:
    """``redis-7.0.15.tar.gz`` and Debian's ``redis_7.0.15.orig.tar.gz`` say their release, and their flavor."""
    if problems.at(f"{R}:source", f"{R}:version") or not redis["source"]:
        return
    file_name = os.path.basename(re.split(r"[?#]", redis["source"])[0])
    match = re.match(r"(redis|valkey)[-_](\d+\.\d+(?:\.\d+)?(?:-rc\d+)?)(?=[.+~_-]|$)", file_name)
    told = isinstance(said, dict) and isinstance(said.get("redis"), dict) and "version" in said["redis"]
    if match and match[1] != redis["flavor"] and not problems.at(f"{R}:flavor"):
        problems.add(f"{R}:flavor", f"found {redis['flavor']!r}, but the source is {file_name!r}")
    elif not told and match:
        redis["version"] = match[2]
    elif not told:
        problems.add(f"{R}:version", f"must be given: the name of the source, {file_name!r}, does not tell it")
    elif match and match[2] != redis["version"]:
        problems.add(
            f"{R}:version", f"found {redis['version']!r}, but the source is {file_name!r}; leave one of them out"
        )


def _read_mine(wish, problems: Problems) -> None:
    """What the mine knows of ``allow_from_mine`` goes to ``allow_from``, and is judged as if it stood there."""
    if not {"redis", "firewall"} <= set(wish["roles"]) or problems.at(f"{R}:instances"):
        return
    for name, entry in wish["redis"]["instances"].items():
        if entry["allow_from_mine"]["target"]:
            found = _addresses(entry["allow_from_mine"], f"{R}:instances:{name}:allow_from_mine", problems)
            entry["allow_from"] += [address for address in found if address not in entry["allow_from"]]


def _addresses(mine: dict[str, Any], path: str, problems: Problems) -> list[str]:
    """
    The addresses that the mine knows, as networks, sorted. A mine that does not answer, or with something else, is a
    mistake: else the rules of all workers would go for want of an answer.
    """
    ask = f"`salt-call mine.get '{mine['target']}' {mine['function']} {mine['tgt_type']}`"
    try:
        answer = _ask_mine(mine["target"], mine["function"], mine["tgt_type"])
    except Exception as exc:  # whatever the transport raises
        problems.add(path, f"the mine does not answer ({str(exc) or type(exc).__name__}); see {ask}")
        return []
    if not isinstance(answer, dict):
        problems.add(path, f"the mine does not answer; see {ask}")
        return []
    networks, found = [ipaddress.ip_network(network) for network in mine["networks"]], set()
    for minion, sent in sorted(answer.items()):
        for value in [sent] if isinstance(sent, str) else sent if isinstance(sent, (list, tuple)) else [None]:
            address = _address(value)
            if address is None:
                problems.add(
                    path, f"found {_found(value)} from the minion {_name(minion)}; allowed: addresses. See {ask}"
                )
            elif not (address.is_loopback or address.is_link_local) and (
                not networks or any(address in network for network in networks)
            ):
                found.add(ipaddress.ip_network(address))
    if not found and not mine["may_be_empty"] and not problems.at(path):
        problems.add(
            path,
            f"the mine knows no address of {mine['target']!r}; have them sent by `salt '{mine['target']}' mine.send "
            f"{mine['function']}`, or set may_be_empty. What is open stays open until then",
        )
    return [str(network) for network in sorted(found, key=lambda network: (network.version, network))]


def _address(value: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address of one host; nothing that would open a port to more."""
    try:
        address = ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return None if address is None or address.is_unspecified or address.is_multicast else address


def _ask_mine(*question: str) -> Any:
    """
    Each question once in half a minute: settings are asked for by every SLS file. Where the mine falls silent in the
    middle of a long run, what it said at the beginning counts: no state of Redis fails for want of it.
    """
    kept = __context__.setdefault(f"{ROOT}.mine", {})
    asked, answer = kept.get(question, (-math.inf, None))
    age = time.monotonic() - asked
    if age < MINE_LASTS:
        return answer
    try:
        new = __salt__["mine.get"](*question)
    except Exception:
        if age < RUN_LASTS:
            return answer
        raise
    if not isinstance(new, dict) and age < RUN_LASTS:
        return answer
    kept[question] = (time.monotonic(), new)
    return new


def _source_is_verified(wish, problems):
    """A `source` of your own needs a `source_hash`, and so does a release whose digest is not shipped; `flavor: valkey` needs
    both."""
    redis = wish["redis"]
    if redis["flavor"] == "valkey" and not redis["source"] and not problems.at(f"{R}:source", f"{R}:flavor"):
        problems.add(
            f"{R}:source",
            "must be given with flavor: valkey, and source_hash with it: the digests shipped here are those of Redis",
        )
        return
    if problems.at(f"{R}:source", f"{R}:version", f"{R}:source_hash") or redis["source_hash"]:
        return
    if redis["source"]:
        problems.add(f"{R}:source_hash", "must be given with source: sha256=, and what `sha256sum FILE` says")
    elif redis["version"] not in _releases("known")():
        near = ", ".join(_releases("nearest")(redis["version"]))
        problems.add(
            f"{R}:version",
            f"found {redis['version']!r}, whose digest is not known here; give source_hash, or one of {near}",
        )


def _service_manager_is_there(wish, problems):
    """`service_manager: systemd` needs a host where systemd is PID 1."""
    if wish["redis"]["service_manager"] == "systemd" and not _booted_by_systemd():
        problems.add(
            f"{R}:service_manager", "found 'systemd', but systemd is not PID 1 on this minion; set auto or sysv"
        )


def _accounts_differ(wish, problems):
    """Redis' user, the build's user and the deploy user are three different ones: none may touch what another owns."""
    accounts = {}
    for path, name in (
        (f"{R}:user", wish["redis"]["user"]),
        (f"{R}:build:user", wish["redis"]["build"]["user"]),
        (f"{D}:user", wish["deploy"]["user"]),
    ):
        if name in accounts and not problems.at(path):
            problems.add(path, f"found {name!r}, which is {accounts[name]} too; they must be different users")
        accounts.setdefault(name, path)


def _roles_have_something_to_do(wish, problems):
    """The role redis needs an instance, the role sidekiq a service, the role deploy an app."""
    for role, key in (("redis", "instances"), ("sidekiq", "services"), ("deploy", "apps")):
        path = f"{ROOT}:{role}:{key}"
        if role in wish["roles"] and not wish[role][key] and not problems.at(path):
            problems.add(path, f"found none; name one, or take {role!r} out of {ROOT}:roles")


def _memory_suffices(wish, problems):
    """The `maxmemory` of all instances together lies below the memory of the host."""
    memory = int(__grains__.get("mem_total") or 0) * 1024**2
    sizes = {name: _bytes(entry["maxmemory"] or "") for name, entry in wish["redis"]["instances"].items()}
    limited = [name for name, size in sizes.items() if size]
    if memory and sum(sizes.values()) >= memory:
        path = f"{R}:instances:{limited[0]}:maxmemory" if len(limited) == 1 else f"{R}:instances"
        text = ", ".join(f"{wish['redis']['instances'][name]['maxmemory']} ({name})" for name in limited)
        problems.add(path, f"found {text}; allowed: together below this minion's memory, {memory // 1024**2}mb")


def _restarts_have_their_window(wish, problems):
    """`restart: window` has a `restart_window`."""
    for name, entry in wish["redis"]["instances"].items():
        at = [f"{path}:restart_window" for path in (f"{R}:instances:{name}", R)]
        restart = entry["restart"] or wish["redis"]["restart"]
        given = entry["restart_window"] or wish["redis"]["restart_window"]
        if restart == "window" and not given and not any(map(problems.at, at)):
            problems.add(at[0] if entry["restart"] else at[1], "must be given with restart: window, like 03:00-05:00")


def _beyond_loopback_is_guarded(wish, problems):
    """An instance that listens beyond loopback needs a password; `allow_from` needs one that listens there."""
    for name, entry in wish["redis"]["instances"].items():
        path = f"{R}:instances:{name}"
        if problems.at(f"{path}:bind", f"{path}:password", f"{path}:allow_from"):
            continue
        beyond = [address for address in entry["bind"] if not _is_loopback(address)]
        if beyond and not entry["password"]:
            problems.add(
                f"{path}:password", f"must be given: the instance listens beyond loopback, at {', '.join(beyond)}"
            )
        if entry["allow_from"] and not beyond:
            problems.add(
                f"{path}:allow_from",
                "opens the firewall to an instance that listens on loopback alone; add an address to bind, or drop it",
            )


def _users_are_behind_a_password(wish, problems):
    """`users` and `old_passwords` need a `password`, else everybody were the default user, who may do everything."""
    for name, entry in wish["redis"]["instances"].items():
        path = f"{R}:instances:{name}"
        if problems.at(f"{path}:password") or entry["password"]:
            continue
        for key in ("users", "old_passwords"):
            if entry[key]:
                problems.add(f"{path}:password", f"must be given with {key}: without one everybody may do everything")


def _users_may_do_something(wish, problems):
    """A user of Redis has a `preset`, `rules` or both, and no password that is there twice."""
    for port, entry in wish["redis"]["instances"].items():
        for name, user in entry["users"].items():
            path = f"{R}:instances:{port}:users:{name}"
            if not problems.at(f"{path}:preset", f"{path}:rules") and not user["preset"] and not user["rules"]:
                problems.add(path, "may do nothing; set preset or rules")
        path = f"{R}:instances:{port}:old_passwords"
        if not problems.at(path) and entry["password"] and entry["password"] in entry["old_passwords"]:
            problems.add(path, "holds the password itself; leave that out")


def _backup(wish, port) -> dict[str, Any]:
    """What ``redis:backup`` and the instance say together."""
    own = wish["redis"]["instances"][port]["backup"]
    return {name: own[name] if own[name] is not None else value for name, value in wish["redis"]["backup"].items()}


def _data_lie_apart(wish, problems):
    """
    `instances:PORT:dir` is one instance's alone, no place where files are lost at a boot, and one that its unit can see
    (`ProtectHome`, `PrivateTmp`).
    """
    away = [*"/dev /etc /home /proc /root /run /sys /tmp /var/run /var/tmp".split(), wish["redis"]["prefix"]]
    taken = {}
    for name, entry in wish["redis"]["instances"].items():
        path, folder = f"{R}:instances:{name}:dir", _data_folder(name, entry)
        if problems.at(path):
            continue
        inside = [other for other in away if f"{folder}/".startswith(f"{other}/")]
        if inside:
            problems.add(
                path,
                f"found {folder!r}, which lies in {inside[0]}; take a folder that is not emptied at a boot, "
                "and that other services may see",
            )
        shared = [
            other for other in taken if f"{folder}/".startswith(f"{other}/") or f"{other}/".startswith(f"{folder}/")
        ]
        if shared:
            problems.add(path, f"found {folder!r}, where the instance {taken[shared[0]]} has its data; take another")
        taken[folder] = name


def _backups_lie_apart(wish, problems):
    """`backup:dir` lies neither in Redis' own folders nor where files are lost at a boot."""
    away = ["/dev", "/etc/redis", "/proc", "/run", "/sys", "/tmp", "/var/redis", "/var/run", wish["redis"]["prefix"]]
    away += [entry["dir"] for entry in wish["redis"]["instances"].values()]
    places = {f"{R}:backup:dir": wish["redis"]["backup"]["dir"]}
    for port, entry in wish["redis"]["instances"].items():
        places[f"{R}:instances:{port}:backup:dir"] = entry["backup"]["dir"]
    for path, folder in places.items():
        inside = [other for other in away if folder and other and f"{folder}/".startswith(f"{other}/")]
        if inside and not problems.at(path):
            problems.add(
                path,
                f"found {folder!r}, which lies in {inside[0]}; take a folder that is neither Redis' own "
                "nor emptied at a boot",
            )


def _backups_can_be_timed(wish, problems):
    """On a host that systemd did not boot cron makes the backups, so `backup:at` is hourly, daily, weekly or monthly."""
    if _booted_by_systemd():
        return
    for port, entry in wish["redis"]["instances"].items():
        own = f"{R}:instances:{port}:backup"
        path = f"{R}:backup:at" if entry["backup"]["at"] is None else f"{own}:at"
        backup = _backup(wish, port)
        if backup["enabled"] and not problems.at(path, own) and backup["at"] not in CRON_TIMES:
            problems.add(path, f"found {backup['at']!r}; allowed without systemd: {', '.join(CRON_TIMES)}")


def _redis_is_not_open_to_everybody(wish, problems):
    """No instance's port is open to anywhere: neither by `allow_from` nor by a rule of the firewall."""
    for name, entry in wish["redis"]["instances"].items():
        path = f"{R}:instances:{name}:allow_from"
        if not problems.at(path) and _is_everywhere(entry["allow_from"]):
            problems.add(path, "is open to anywhere; allowed: the networks of your own hosts")
    if "redis" not in wish["roles"]:
        return
    for name, rule in wish["firewall"]["rules"].items():
        path = f"{F}:rules:{name}"
        if problems.at(path) or rule["action"] not in ("allow", "limit") or rule["direction"] == "out":
            continue
        if rule["from"] and not _is_everywhere(rule["from"]):
            continue
        for port in sorted({port for _, entry_ports in _ports(wish) for _, port in entry_ports}):
            if _covers(rule, port):
                problems.add(path, f"opens port {port}, a Redis instance, to anywhere; list networks in its allow_from")


def _rules_suit_ufw(wish, problems):
    """A rule has a `port`, unless it has an `app` or its `proto` has no ports; a range or a list of ports needs `proto` tcp or
    udp. `from`, `to` and `family` are of one family. No name of a rule is one of ours."""
    for name, rule in wish["firewall"]["rules"].items():
        path = f"{F}:rules:{name}"
        if re.fullmatch(r"redis_\d+(_tls)?", name):
            problems.add(path, "this name is kept for allow_from of a Redis instance; take another")
        if problems.at(path):
            continue
        portless, port = rule["proto"] in PORTLESS, rule["port"]
        of_default = str(RULES_OF_FIREWALL.default.get(name, {}).get("port", ""))  # of ssh, where only app was said
        if rule["app"] and (port not in ("", of_default) or rule["proto"] != "tcp"):
            problems.add(path, "app says port and proto; take them out")
        elif portless and port not in ("", "any"):
            problems.add(f"{path}:port", f"found {port!r}, but the protocol {rule['proto']} has no ports")
        elif not (port or portless or rule["app"]):
            problems.add(f"{path}:port", "must be given; allowed: a port from 1 to 65535, a range, a list, or any")
        elif rule["proto"] == "any" and re.search("[:,]", port):
            problems.add(f"{path}:proto", "found 'any'; allowed with a range or a list of ports: tcp or udp")
        elif not list(_pairs(rule)):
            problems.add(path, "from, to, family and proto have no family in common; take one of them out")


def _rules_agree(wish, problems):
    """No two rules of the firewall say different things about the same packets."""
    if problems.at(f"{F}:rules", f"{R}:instances"):
        return
    first = {}
    for rule in _firewall_rules(wish):
        other = first.setdefault(tuple(rule.get(key) for key in _MATCHED), rule)
        if (other["action"], other.get("log")) != (rule["action"], rule.get("log")):
            of_ours = rule["name"] not in wish["firewall"]["rules"]
            path = f"{R}:instances:{rule['name'].split('_')[1]}:allow_from" if of_ours else f"{F}:rules:{rule['name']}"
            says, others = (f"{one['action']} {one.get('log', '')}".strip() for one in (rule, other))
            what = f"app {rule['app']}" if "app" in rule else f"port {rule['port']}/{rule['proto']}"
            problems.add(
                path,
                f"says {says} for {what} from {rule['from']}, "
                f"but the rule {other['name']} says {others}; keep one of them",
            )


def _ssh_stays_reachable(wish, problems):
    """The firewall lets ssh in: tcp port 22, or the port of the rule named `ssh`."""
    firewall = wish["firewall"]
    if "firewall" not in wish["roles"] or not firewall["enabled"] or problems.at(F, f"{R}:instances"):
        return
    if "ssh" in firewall["allow_lockout"]:
        return
    ssh = firewall["rules"].get("ssh")
    first = re.match(r"\d+", ssh["port"]) if ssh else None
    port = int(first[0]) if first else 22
    verdict = firewall["incoming"]
    for rule in _firewall_rules(wish):
        if rule.get("direction") == "out" or not _covers(rule, port, rule["name"] == "ssh"):
            continue
        lets_in = rule["action"] in ("allow", "limit")
        if lets_in or (rule["from"] == "any" and not {"to", "interface", "family"} & set(rule)):
            verdict = rule["action"]  # the first rule that matches decides
            break
    if verdict not in ("allow", "limit"):
        problems.add(
            f"{F}:rules",
            f"shuts out ssh: nothing lets in port {port}/tcp; add a rule such as ssh: {{port: {port}}}",
        )


def _stop_timeout_suffices(wish, problems):
    """`stop_timeout` is at least `timeout` + 10: Sidekiq needs the time to push unfinished jobs back."""
    for name, service in wish["sidekiq"]["services"].items():
        path = f"{S}:services:{name}"
        stop, timeout = service["stop_timeout"], service["timeout"]
        if not problems.at(f"{path}:timeout", f"{path}:stop_timeout") and stop is not None and stop < timeout + 10:
            problems.add(
                f"{path}:stop_timeout", f"found {stop}; allowed: at least {timeout + 10} s, timeout ({timeout}) + 10"
            )


def _one_place_for_each_option(wish, problems):
    """What has a setting of its own is not said again in a service's `config` or `arguments`."""
    for name, service in wish["sidekiq"]["services"].items():
        path = f"{S}:services:{name}"
        config = service["config"]
        inside = config.get(service["environment"])  # sidekiq.yml may have a section for each environment
        keys = {key.lstrip(":") for part in (config, inside if isinstance(inside, dict) else {}) for key in part}
        if "timeout" in keys:
            problems.add(f"{path}:config:timeout", "cannot be set here: set timeout of the service")
        for key in ("concurrency", "queues", "require"):
            if key in keys and service[key]:
                problems.add(f"{path}:config:{key}", f"is set twice, here and in {path}:{key}; keep one of them")
        for option in filter(None, map(_setting_of, filter(None, service["arguments"]))):
            problems.add(f"{path}:arguments", f"found Sidekiq's option for {option}; set {option} of the service")


def _command_is_absolute(wish, problems):
    """A service's `command` begins with an absolute path of plain characters: systemd searches no PATH of yours."""
    for name, service in wish["sidekiq"]["services"].items():
        path = f"{S}:services:{name}:command"
        if not problems.at(path) and not re.fullmatch(r"/[A-Za-z0-9_./+@:,=-]+", service["command"][0]):
            problems.add(
                path, f"begins with {_found(service['command'][0])}; allowed: an absolute path like /usr/bin/bundle"
            )


def _service_has_its_redis(wish, problems):
    """
    `redis` of a service is an instance of this minion, and one that evicts nothing; a minion without the role redis
    says where it is by `redis_host`, or `redis_url` instead.
    """
    if "sidekiq" not in wish["roles"]:
        return
    instances = wish["redis"]["instances"]
    for name, service in wish["sidekiq"]["services"].items():
        path, port = f"{S}:services:{name}:redis", service["redis"]
        if (
            service["redis_url"]
            or not port
            or problems.at(path, f"{S}:services:{name}:redis_url", f"{R}:instances:{port}")
        ):
            continue
        if "redis" not in wish["roles"] and not service["redis_host"]:
            problems.add(
                path, f"found {port!r}, but this minion has no role redis; set redis_host, redis_url, or redis: ''"
            )
        elif port not in instances:
            problems.add(
                path,
                f"found {port!r}, which is no instance here; allowed: {', '.join(sorted(instances, key=int)) or 'none'}, or empty",
            )
        elif not _has_plain_port(instances[port]):
            problems.add(
                path,
                f"found {port!r}, which has no plain port; set redis_url, with the name that its certificate has: "
                f"rediss://NAME:{instances[port]['tls']['port']}/0",
            )
        elif instances[port]["maxmemory_policy"] != "noeviction":
            problems.add(
                f"{R}:instances:{port}:maxmemory_policy",
                f"found {instances[port]['maxmemory_policy']!r}; allowed for the Sidekiq service {name}: noeviction, "
                "jobs must not vanish",
            )
        elif service["redis_host"] and not any(not _is_loopback(address) for address in instances[port]["bind"]):
            problems.add(
                f"{R}:instances:{port}:bind",
                f"has loopback alone, and the Sidekiq service {name} is to reach it at {service['redis_host']}; add that address",
            )


def _service_has_its_redis_user(wish, problems):
    """`redis_user` of a service is one of the `users` of its instance."""
    if "sidekiq" not in wish["roles"]:
        return
    for name, service in wish["sidekiq"]["services"].items():
        path, port, user = f"{S}:services:{name}:redis_user", service["redis"], service["redis_user"]
        known_here = "redis" in wish["roles"] or service["redis_host"] or service["redis_url"]
        if not user or not known_here or problems.at(path, f"{S}:services:{name}:redis", f"{R}:instances:{port}:users"):
            continue
        if service["redis_url"]:
            problems.add(path, "cannot be set with redis_url: write the user into the URL")
        elif user not in wish["redis"]["instances"].get(port, {}).get("users", {}):
            known = ", ".join(sorted(wish["redis"]["instances"].get(port, {}).get("users", {}))) or "none"
            problems.add(path, f"found {user!r}, who is no user of the instance {port!r}; known there: {known}")


def _unit_names_differ(wish, problems):
    """No service has the name of a Redis instance's unit, or of one that stands beside a service while it restarts."""
    for name in wish["sidekiq"]["services"]:
        if name.endswith(("-handover", "-guard")):
            problems.add(f"{S}:services:{name}", "ends like the helpers of a restart; take another name")
        if name in [f"redis_{port}" for port in wish["redis"]["instances"]]:
            problems.add(f"{S}:services:{name}", "is the unit of a Redis instance; take another name")


def _events_can_be_sent(wish, problems):
    """The role deploy needs Salt's `salt-call` on the minion: it is what sends an event."""
    if "deploy" in wish["roles"] and not _salt_call():
        problems.add(f"{ROOT}:roles", "found 'deploy', but there is no salt-call in this minion's PATH")


def _users_exist(wish, problems):
    """A service's user, its group and the deploy user exist, or are made (`create_user`)."""
    deploy, services = wish["deploy"], wish["sidekiq"]["services"] if "sidekiq" in wish["roles"] else {}
    if not {"sidekiq", "deploy"} & set(wish["roles"]) or problems.at(D):
        return
    made = [deploy["user"]] if deploy["create_user"] else []
    if not made and not _exists(pwd.getpwnam, deploy["user"]):
        problems.add(
            f"{D}:user", f"found {deploy['user']!r}, who does not exist; make him first, or set create_user: true"
        )
    if deploy["group"] and deploy["group"] not in made and not _exists(grp.getgrnam, deploy["group"]):
        problems.add(
            f"{D}:group", f"found {deploy['group']!r}, which does not exist; make this group first, or leave it empty"
        )
    for name, service in services.items():
        path = f"{S}:services:{name}"
        user, group = service["user"], service["group"]
        if user and user not in [deploy["user"], *made] and not _exists(pwd.getpwnam, user):
            problems.add(f"{path}:user", f"found {user!r}, who does not exist; make this user first, or leave it empty")
        if group and group not in made and not _exists(grp.getgrnam, group):
            problems.add(
                f"{path}:group", f"found {group!r}, which does not exist; make this group first, or leave it empty"
            )


def _tls_is_compiled_in(wish, problems):
    """Directives that begin with `tls-`, and `tls:port` of an instance, need a build with TLS."""
    if problems.at(f"{R}:build:tls", f"{R}:instances") or _tls_is_wanted(wish["redis"]):
        return
    for port, entry in wish["redis"]["instances"].items():
        for name in [name for name in entry["directives"] if name.startswith("tls-")]:
            needed = f"needs tls:port of an instance, or {R}:build:tls: true"
            problems.add(f"{R}:instances:{port}:directives:{name}", needed)
        if entry["tls"]["port"]:
            problems.add(f"{R}:build:tls", f"found false, but the instance {port} has tls:port; leave it out")


def _tls_is_whole(wish, problems):
    """
    TLS has a port, one certificate, its key, and a CA where certificates of others are asked for; each as a file or as
    text, not both.
    """
    for name, entry in wish["redis"]["instances"].items():
        path, tls = f"{R}:instances:{name}:tls", entry["tls"]
        if problems.at(path, f"{R}:tls"):
            continue
        if not tls["port"]:
            said = [key for key, value in tls.items() if key != "plain" and value is not None]
            if said or not tls["plain"]:
                problems.add(f"{path}:port", f"must be given with {(said or ['plain: false'])[0]}")
            continue
        tls = _tls(entry, wish["redis"])
        for key in ("cert", "key", "ca"):
            if tls[key] and tls[f"{key}_pem"]:
                problems.add(f"{path}:{key}", f"is set twice, as a file and as {key}_pem; keep one of them")
        for key in ("cert", "key"):
            if not tls[key] and not tls[f"{key}_pem"]:
                problems.add(f"{path}:{key}", f"must be given with port, as a file or as {key}_pem")
        needs = "replication" if tls["replication"] else "auth_clients" if tls["auth_clients"] != "no" else ""
        if needs and not tls["ca"] and not tls["ca_pem"]:
            problems.add(f"{path}:ca", f"must be given with {needs}, as a file or as ca_pem")


def _ports_differ(wish, problems):
    """The port for TLS of an instance is no other port of Redis here."""
    taken = {int(name): f"the instance {name}" for name in wish["redis"]["instances"]}
    for name, entry in wish["redis"]["instances"].items():
        path, port = f"{R}:instances:{name}:tls:port", entry["tls"]["port"]
        if port is None or problems.at(path):
            continue
        if port in taken:
            problems.add(path, f"found {port}, which is the port of {taken[port]}; take another")
        taken.setdefault(port, f"TLS of the instance {name}")


def _sockets_suit_their_groups(wish, problems):
    """
    `unixsocket_group` is for the formula's own socket, and a group of others than Redis; two instances share no socket.
    """
    taken = {}
    for name, entry in wish["redis"]["instances"].items():
        path, group, place = f"{R}:instances:{name}", entry["unixsocket_group"], entry["unixsocket"]
        if problems.at(f"{path}:unixsocket_group", f"{path}:unixsocket"):
            continue
        if group and place is False and entry["tls"]["plain"]:
            problems.add(f"{path}:unixsocket", "must be given with unixsocket_group: true")
        elif group and isinstance(place, str):
            problems.add(
                f"{path}:unixsocket_group",
                f"is for unixsocket: true; who enters {os.path.dirname(place)} is its own affair",
            )
        elif group and group == wish["redis"]["group"]:
            problems.add(
                f"{path}:unixsocket_group",
                f"found {group!r}, whose members may read the password of Redis; take another",
            )
        elif group and "redis" in wish["roles"] and not _exists(grp.getgrnam, group):
            made = wish["deploy"]["create_user"] and group == wish["deploy"]["user"]
            hint = "; the deploy user is made after Redis" if made else ""
            problems.add(
                f"{path}:unixsocket_group", f"found {group!r}, which does not exist; make this group first{hint}"
            )
        if isinstance(place, str) and place in taken:
            problems.add(
                f"{path}:unixsocket", f"found {place!r}, the socket of the instance {taken[place]} too; take another"
            )
        taken.setdefault(place if isinstance(place, str) else None, name)


RULES = (
    _source_is_verified,
    _service_manager_is_there,
    _accounts_differ,
    _roles_have_something_to_do,
    _memory_suffices,
    _restarts_have_their_window,
    _beyond_loopback_is_guarded,
    _users_are_behind_a_password,
    _users_may_do_something,
    _data_lie_apart,
    _backups_lie_apart,
    _backups_can_be_timed,
    _redis_is_not_open_to_everybody,
    _tls_is_compiled_in,
    _tls_is_whole,
    _ports_differ,
    _sockets_suit_their_groups,
    _rules_suit_ufw,
    _rules_agree,
    _ssh_stays_reachable,
    _events_can_be_sent,
    _users_exist,
    _unit_names_differ,
    _command_is_absolute,
    _one_place_for_each_option,
    _service_has_its_redis,
    _service_has_its_redis_user,
    _stop_timeout_suffices,
)


# Facts about the minion, and small questions that rules and derivation share


def _booted_by_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")  # sd_booted(3)


def _exists(lookup: Callable[[str], Any], name: str) -> bool:
    try:
        lookup(name)
    except KeyError:
        return False
    return True


def _salt_call() -> str:
    return salt.utils.path.which("salt-call") or ""


def _releases(function: str) -> Callable:
    return _sibling(f"redis_releases.{function}")


def _sibling(name: str) -> Callable:
    """
    A function of a sibling module. On a bare minion both files are synced in the middle of the run that asks here,
    and Salt 3008 looks for newer files no more once a miss made it load all (salt/utils/lazy.py, ``loaded``).
    """
    try:
        return __salt__[name]
    except KeyError:
        return salt.loader.minion_mods(__opts__)[name]


def _fresh_modules() -> Any:
    """
    Modules that see the pillar as a run would: as it is on the master now. A minion that stays in memory keeps the one of
    its start or of the last `saltutil.refresh_pillar`; salt-call has a fresh one. What salt-ssh calls there has none at
    all, but for states (salt/client/ssh/__init__.py: it is known by its root_dir).
    """
    if os.path.basename(str(__opts__.get("root_dir", "")).rstrip("/")) == "running_data":
        raise SaltInvocationError(
            "By salt-ssh this function sees no pillar, and would answer for an empty one: ask by "
            "`state.apply redis_sidekiq test=True`"
        )
    if __opts__.get("__cli") == "salt-call":
        return __salt__
    import salt.pillar  # late: every run renders by this module, and needs none

    where = (__opts__["id"], __opts__["saltenv"])
    source = salt.pillar.get_pillar(__opts__, dict(__grains__), *where, pillarenv=__opts__["pillarenv"])
    opts = {**__opts__, "pillar": source.compile_pillar()}
    return salt.loader.minion_mods(opts, utils=salt.loader.utils(opts))


def _is_loopback(address: str) -> bool:
    address = address.lstrip("-")
    return address not in ("*", "::*") and ipaddress.ip_address(address).is_loopback


def _has_plain_port(entry: dict[str, Any]) -> bool:
    return entry["tls"]["plain"] is not False or not entry["tls"]["port"]


def _ports(wish: dict[str, Any]) -> list[tuple[str, list[tuple[str, int]]]]:
    """The instances in the order of their names, each with the names of its firewall rules and its ports."""
    return [
        (
            name,
            [
                *([(f"redis_{name}", int(name))] if _has_plain_port(entry) else []),
                *([(f"redis_{name}_tls", entry["tls"]["port"])] if entry["tls"]["port"] else []),
            ],
        )
        for name, entry in sorted(wish["redis"]["instances"].items(), key=lambda item: int(item[0]))
    ]


def _tls(entry: dict[str, Any], redis: dict[str, Any]) -> dict[str, Any]:
    """The TLS settings of one instance: its own, else those of all. A certificate goes with its key."""
    own, shared = entry["tls"], redis["tls"]
    together = (("cert", "key", "cert_pem", "key_pem"), ("ca", "ca_pem"))
    tls = {name: shared.get(name) if value is None else value for name, value in own.items()}
    for names in together:
        if any(own[name] for name in names):
            tls.update({name: own[name] or "" for name in names})
    return tls


def _tls_is_wanted(redis: dict[str, Any]) -> bool:
    said = redis["build"]["tls"]
    return any(entry["tls"]["port"] for entry in redis["instances"].values()) if said is None else said


def _is_everywhere(networks: list[str]) -> bool:
    """Do these networks hold all addresses of a family? Two halves do."""
    by_family = {4: [], 6: []}
    for network in map(ipaddress.ip_network, networks):
        by_family[network.version].append(network)
    return any(network.prefixlen == 0 for each in by_family.values() for network in ipaddress.collapse_addresses(each))


# Sidekiq's options (lib/sidekiq/cli.rb) and our settings for them.
_OPTIONS = {
    "-c": "concurrency",
    "-C": "config",
    "-e": "environment",
    "-q": "queues",
    "-r": "require",
    "-t": "timeout",
    "--concurrency": "concurrency",
    "--config": "config",
    "--environment": "environment",
    "--queue": "queues",
    "--require": "require",
    "--timeout": "timeout",
}


def _setting_of(argument: str) -> str:
    """The setting that an argument of Sidekiq says again. Ruby's OptionParser knows -t5, --timeout=5 and --time too."""
    if not argument.startswith("--"):
        return _OPTIONS.get(argument[:2], "")
    word = argument.partition("=")[0]
    return next((setting for option, setting in _OPTIONS.items() if option.startswith(word) and len(word) > 2), "")


def _covers(rule: dict[str, Any], port: int, unknown: bool = False) -> bool:
    """Whether a rule of the firewall speaks of this tcp port; ``unknown`` of a profile that is not on the host yet."""
    if rule.get("app"):
        known = _sibling("ufw_rules.profiles")()
        if rule["app"] not in known:
            return unknown
    for ports, proto in [(one["port"], one["proto"]) for one in (known[rule["app"]] if rule.get("app") else [rule])]:
        if proto not in ("tcp", "any") or not ports:
            continue
        pairs = [part.partition(":") for part in ports.split(",")]
        if ports == "any" or any(int(first) <= port <= int(last or first) for first, _, last in pairs):
            return True
    return False


# --------------------------------------------------------------------------------------------------------------------
# 4. What follows from the settings
# --------------------------------------------------------------------------------------------------------------------


def _derive(wish: dict[str, Any], reveal: bool) -> dict[str, Any]:
    """The settings as SLS files and modules use them. ``reveal`` adds secrets; nothing else here knows them."""
    return {
        "roles": [role for role in ROLES if role in wish["roles"]],
        "packages": _packages(wish),
        "redis": _redis(wish, reveal),
        "firewall": {**wish["firewall"], "rules": _firewall_rules(wish)},
        "deploy": _deploy(wish),
        "sidekiq": _sidekiq(wish, reveal),
    }


def _packages(wish) -> list[str]:
    """Everything that the roles need from the distribution, sorted."""
    known, roles, sidekiq = PACKAGES[__grains__["os_family"]], wish["roles"], wish["sidekiq"]
    needed = [name for role in roles for name in known[role]]
    if "redis" in roles:
        needed += [] if _pack(_redis_source(wish["redis"]))["source"] else known["compile"]
        needed += known["tls"] if _tls_is_wanted(wish["redis"]) else []
    if "sidekiq" in roles:
        needed += known[sidekiq["install"]] if sidekiq["packages"] is None else sidekiq["packages"]
    return sorted(set(needed))


def _redis_source(redis) -> dict[str, Any]:
    """With ``source`` and ``source_hash`` in any case."""
    return {
        **redis,
        "source": redis["source"] or _releases("url")(redis["version"]),
        "source_hash": redis["source_hash"] or "sha256=" + _releases("digest")(redis["version"]),
    }


def _pack(redis) -> dict[str, str]:
    """The finished build that this host can take: ``name``, ``source`` and ``hash``; no source: none was made for it."""
    build = redis["build"]
    if not build["packs"]:
        return {"name": "", "source": "", "hash": ""}
    words = {"malloc": build["malloc"], "tls": _tls_is_wanted(redis), "flavor": redis["flavor"]}
    build_name = _sibling("redis_build.name")(redis["version"], redis["source_hash"], **words)
    name = _sibling("redis_build.pack_name")(build_name)
    found = build["packs"].get(name, "")
    return {"name": name, "source": f"{build['packs_from'].rstrip('/')}/{name}.tar.gz" if found else "", "hash": found}


def _redis(wish, reveal) -> dict[str, Any]:
    """
    ``flavor``, ``version``, ``source``, ``source_hash`` (``sha256=HEX``), ``prefix``, ``bin_dir``, ``user``, ``group``,
    ``build`` (``user``, ``jobs`` at least 1, ``malloc``, ``tls``, ``keep``), ``pack`` (the finished build that this host
    takes, see :func:`_pack`), ``kernel`` (name -> value, see :func:`redis_kernel.facts`), ``service_manager`` (systemd or
    sysv), ``restart``, ``restart_window``, ``drain_sidekiq``, ``purge_data``, ``backup`` and ``instances``, a list in the order of their ports
    (see :func:`_instance`), with the two and a ``backup`` each (``enabled``, ``keep``, ``at``, ``delay``, ``dir``: its own
    folder).
    """
    redis = _redis_source(wish["redis"])
    manager = redis["service_manager"]
    build = {name: value for name, value in redis["build"].items() if not name.startswith("packs")}
    if manager == "auto":
        manager = "systemd" if _booted_by_systemd() else "sysv"
    build["tls"] = _tls_is_wanted(redis)
    return {
        **{key: value for key, value in redis.items() if key != "tls"},
        "build": {**build, "jobs": build["jobs"] or int(__grains__.get("num_cpus") or 1)},
        "pack": _pack(redis),
        "kernel": _kernel(redis),
        "service_manager": manager,
        "instances": [
            {
                **_instance(name, redis["instances"][name], redis, manager, reveal),
                **{key: redis["instances"][name][key] or redis[key] or "" for key in ("restart", "restart_window")},
                "backup": _backup_of(wish, name),
            }
            for name in sorted(redis["instances"], key=int)
        ],
    }


def _kernel(redis) -> dict[str, str]:
    """What is null, or not to be managed, is not there."""
    kernel, backlogs = redis["kernel"], [_number(entry, "tcp-backlog", 511) for entry in redis["instances"].values()]
    somaxconn = None if kernel["somaxconn"] is None else max([kernel["somaxconn"], *backlogs])
    wish = {
        "vm.overcommit_memory": kernel["overcommit_memory"],
        "net.core.somaxconn": somaxconn,
        "transparent_hugepage": kernel["transparent_hugepage"],
    }
    return {name: str(value) for name, value in wish.items() if value is not None} if kernel["manage"] else {}


def _number(entry, directive, default) -> int:
    """A directive's number in an instance's entry; what is none is for Redis to refuse."""
    value = entry["directives"].get(directive, [""])[-1].strip("\"' ")
    return int(value) if value.isdecimal() else default


# systemd's own limit for services (DefaultLimitNOFILE), so no more than a host gives anyway. A limit is part of the
# unit and takes a restart; with this one `maxclients` may grow far while Redis runs.
_OPEN_FILES = 524288


def _backup_of(wish, name) -> dict[str, Any]:
    backup = _backup(wish, name)
    return {**backup, "dir": os.path.join(backup["dir"], name)}


def _instance(name, entry, redis, manager, reveal) -> dict[str, Any]:
    """
    ``name``, ``port`` (0: no plain one), ``unit``, ``config``, ``dir``, ``bind``, ``allow_from``, ``has_password``,
    ``maxmemory`` (bytes, 0: no limit), ``open_files`` (the most that it may have open), ``start_timeout`` and ``stop_timeout`` (s, see
    :func:`_redis_timeouts`), ``socket`` (a path, or empty), ``socket_group`` (of the socket, or empty), ``socket_folder``
    (one that is not the formula's, or empty), ``tls`` (see :func:`_instance_tls`, or {}), ``directives`` and ``users``, a
    list of ``{name, rules}`` (see :func:`_redis_users`).
    """
    socket, tls = _socket(name, entry), _instance_tls(name, entry, redis, reveal)
    instance = {
        "name": name,
        "port": int(name) if _has_plain_port(entry) else 0,
        "unit": f"redis_{name}",
        "config": f"/etc/redis/{name}.conf",
        "dir": _data_folder(name, entry),
        "bind": entry["bind"],
        "allow_from": entry["allow_from"],
        "has_password": bool(entry["password"]),
        "maxmemory": _bytes(entry["maxmemory"] or ""),
        # Redis wants 32 files beside its clients (src/server.h, CONFIG_MIN_RESERVED_FDS).
        "open_files": max(_OPEN_FILES, _number(entry, "maxclients", 10000) + 1024),
        **_redis_timeouts(),
        "socket": socket,
        "socket_group": entry["unixsocket_group"],
        "socket_folder": os.path.dirname(socket) if isinstance(entry["unixsocket"], str) else "",
        "tls": tls,
        "directives": _directives(name, entry, socket, tls, manager),
        "users": _redis_users(entry, reveal),
    }
    secrets = {key: entry[key] for key in ("password", "old_passwords")}
    return {**instance, **secrets} if reveal else instance


def _data_folder(name, entry) -> str:
    return entry["dir"] or f"/var/redis/{name}"


def _socket(name, entry) -> str:
    """Where no plain port is, the formula needs a socket: by TLS it would have to show a certificate."""
    if isinstance(entry["unixsocket"], str):
        return entry["unixsocket"]
    return f"/run/redis_{name}/redis.sock" if entry["unixsocket"] or not _has_plain_port(entry) else ""


def _instance_tls(name, entry, redis, reveal) -> dict[str, Any]:
    """
    ``port``, ``auth_clients``, ``replication``, ``protocols``, ``folder`` (of all versions of its files), ``version``
    (part of a digest of their contents: a path says what is in it, and with it what a running server has read) and
    ``sources`` (file name -> the setting that it is from, and its path), ``host`` (where this host reaches it). With
    ``reveal`` also ``contents``, file name -> text, None for a file that cannot be read.
    """
    if not entry["tls"]["port"]:
        return {}
    tls, sources, contents = _tls(entry, redis), {}, {}
    for key in ("cert", "key", "ca"):
        if tls[key] or tls[f"{key}_pem"]:
            given = f"{key}_pem" if tls[f"{key}_pem"] else key
            where = f"{R}:instances:{name}:tls" if entry["tls"][given] else f"{R}:tls"
            sources[f"{key}.pem"] = f"{where}:{given}" + (f" ({tls[key]})" if given == key else "")
            contents[f"{key}.pem"] = tls[f"{key}_pem"] or _content(tls[key])
    # Of a key that nobody can guess; so little of it tells nothing.
    digest = hashlib.sha256("\0".join(text or "" for text in contents.values()).encode()).hexdigest()[:16]
    return {
        **{key: tls[key] for key in ("port", "auth_clients", "replication", "protocols")},
        "folder": f"/etc/redis/tls/{name}",
        "version": digest,
        "sources": sources,
        "host": _reachable(entry["bind"]),
        **({"contents": contents} if reveal else {}),
    }


def _content(path: str) -> str | None:
    """A small file; one that is not there now may be by the time its state runs."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(1 << 20)
    except OSError:
        return None


def _redis_timeouts() -> dict[str, int]:
    """
    How long a server may load its data, and save them: 30 s for each GiB that the host could hold, half an hour and a
    quarter at least. They are in the unit, and no reason for a restart: so not by `maxmemory`, which changes live, and in
    powers of two of a GiB, for a kernel may count its memory otherwise than the last one.
    """
    gib = 1 << (max(0, int(__grains__.get("mem_total") or 0) - 1) // 1024).bit_length()
    return {"start_timeout": max(1800, 30 * gib), "stop_timeout": max(900, 30 * gib)}


# Sidekiq asks for INFO when it starts, and its web page shows it; without channels, for it neither sends nor listens.
_PRESETS = {"sidekiq": ["resetchannels", "~*", "+@all", "-@admin", "-@dangerous", "+info"]}
_EVERYTHING = ["~*", "&*", "+@all"]


def _redis_users(entry, reveal) -> list[dict[str, Any]]:
    """
    ``name``, ``rules`` (words of an ACL) and, with ``reveal``, ``hashes`` of the passwords (``#HEX``). The default user
    is among them while it has older passwords; else ``requirepass`` makes it.
    """
    users = [
        (name, _PRESETS.get(user["preset"], []) + user["rules"], user["passwords"])
        for name, user in sorted(entry["users"].items())
    ]
    if entry["old_passwords"]:
        users.insert(0, ("default", _EVERYTHING, [entry["password"], *entry["old_passwords"]]))
    return [
        {"name": name, "rules": rules, **({"hashes": [_acl_hash(word) for word in passwords]} if reveal else {})}
        for name, rules, passwords in users
    ]


def _acl_hash(password: str) -> str:
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def _directives(name, entry, socket, tls, manager) -> list[list[str]]:
    """The lines of redis.conf as ``[name, value]``, in the order of upstream's own file, without the password."""
    sysv = manager == "sysv"
    lines = [
        ["bind", " ".join(entry["bind"])],
        ["protected-mode", "yes"],
        ["port", name if _has_plain_port(entry) else "0"],
        *_tls_directives(tls),
        *([["unixsocket", socket], ["unixsocketperm", _socket_perm(entry)]] if socket else []),
        ["daemonize", "yes" if sysv else "no"],
        ["supervised", "no" if sysv else "systemd"],
        ["pidfile", f"/run/redis/{name}.pid" if sysv else '""'],
        ["logfile", f"/var/log/redis/{name}.log" if sysv else '""'],
        ["databases", str(entry["databases"])],
        *(["save", point] for point in entry["save"] or ['""']),
        ["dir", _data_folder(name, entry)],
    ]
    if entry["maxmemory"]:
        lines.append(["maxmemory", entry["maxmemory"]])
    lines += [
        ["maxmemory-policy", entry["maxmemory_policy"]],
        ["appendonly", "yes" if entry["appendonly"] else "no"],
        ["appendfsync", entry["appendfsync"]],
    ]
    return lines + [[directive, value] for directive, values in entry["directives"].items() for value in values]


def _tls_directives(tls) -> list[list[str]]:
    if not tls:
        return []
    names = {"cert.pem": "tls-cert-file", "key.pem": "tls-key-file", "ca.pem": "tls-ca-cert-file"}
    return [
        ["tls-port", str(tls["port"])],
        *([names[file], f"{tls['folder']}/{tls['version']}/{file}"] for file in tls["sources"]),
        ["tls-auth-clients", tls["auth_clients"]],
        *([["tls-replication", "yes"]] if tls["replication"] else []),
        ["tls-protocols", f'"{" ".join(tls["protocols"])}"'],
    ]


def _socket_perm(entry) -> str:
    return entry["unixsocket_perm"] or ("770" if entry["unixsocket_group"] else "700")


# What decides which packets a rule of the firewall matches.
_MATCHED = ("app", "port", "proto", "from", "to", "direction", "interface", "family")


def _firewall_rules(wish) -> list[dict[str, str]]:
    """
    One for each source and target, ssh first: ``name``, ``action``, ``port``, ``proto`` (or ``app``), ``from`` (a network
    or ``any``), and what differs from its default of ``to``, ``direction``, ``interface``, ``family``, ``log``,
    ``comment``.
    """
    rules = [
        {
            "name": name,
            "action": rule["action"],
            **({"app": rule["app"]} if rule["app"] else {"port": rule["port"] or "any", "proto": rule["proto"]}),
            "from": source,
            **({"to": target} if target != "any" else {}),
            **({"direction": "out"} if rule["direction"] == "out" else {}),
            **({"family": rule["family"]} if rule["family"] != "any" and source == target == "any" else {}),
            **{key: rule[key] for key in ("interface", "log", "comment") if rule[key]},
        }
        for name, rule in sorted(wish["firewall"]["rules"].items(), key=lambda item: item[0] != "ssh")
        for source, target in _pairs(rule)
    ]
    if "redis" in wish["roles"]:
        rules += [
            {"name": rule, "action": "allow", "port": str(port), "proto": "tcp", "from": source}
            for name, ports in _ports(wish)
            for rule, port in ports
            for source in wish["redis"]["instances"][name]["allow_from"]
        ]
    return rules


def _pairs(rule) -> Iterator[tuple[str, str]]:
    """Each source of a rule with each target of the same family, of those that the rule is for."""
    families = {"any": {4, 6}, "ipv4": {4}, "ipv6": {6}}[rule["family"]]
    families &= {4} if rule["proto"] in ("igmp", "ipv6") else {4, 6}  # ufw/util.py, ipv4_only_protocols
    for source in rule["from"] or ["any"]:
        for target in rule["to"] or ["any"]:
            found = {ipaddress.ip_network(network).version for network in (source, target) if network != "any"}
            if families and len(found) < 2 and found <= families:
                yield source, target


def _deploy(wish) -> dict[str, Any]:
    """
    ``user``, ``create_user``, ``home``, ``group`` (or empty), ``strict``, ``verbs``, ``sudoers`` (a path), ``units``
    that he may act on, and for the role deploy ``apps``, ``events`` (see :func:`_event`), ``commands`` that send them (paths) and ``salt_call`` (a path).
    """
    deploy, roles, services = wish["deploy"], wish["roles"], wish["sidekiq"]["services"]
    events = [_event(app) for app in deploy["apps"]] if "deploy" in roles else []
    acts = "sidekiq" in roles and deploy["verbs"]
    return {
        **deploy,
        "home": deploy["home"] or f"/home/{deploy['user']}",
        "sudoers": f"/etc/sudoers.d/{deploy['sudoers']}",
        "units": [unit for name, service in services.items() for unit in _units(name, service)] if acts else [],
        "events": events,
        "commands": [event["command"] for event in events],
        "salt_call": _salt_call() if events else "",
    }


def _event(app) -> dict[str, str]:
    """``app``, ``tag`` of its deploy event, ``command`` (a path) that sends it."""
    return {"app": app, "tag": f"redis_sidekiq/deploy/{app}", "command": f"/usr/local/sbin/sidekiq-deployed-{app}"}


def _sidekiq(wish, reveal) -> dict[str, Any]:
    """``install`` and ``services``, a list (see :func:`_service`)."""
    services = [_service(name, service, wish, reveal) for name, service in wish["sidekiq"]["services"].items()]
    return {"install": wish["sidekiq"]["install"], "services": services}


def _service(name, service, wish, reveal) -> dict[str, Any]:
    """
    ``name``, ``units``, ``unit_file``, ``app_dir``, ``current``, ``user``, ``group``, ``argv``, ``config_file`` (or
    empty), ``config``, ``strategy``, ``drain_timeout``, ``restart_file`` (or empty), ``env_file``, ``env_names``, ``redis`` and ``redis_unit`` (or empty), and the timeouts in seconds.
    """
    user = service["user"] or wish["deploy"]["user"]
    local = _local_instance(service, wish)
    known = local or (service["redis"] if service["redis_host"] else "")
    url = service["redis_url"] or (_redis_url(known, local, wish, service) if known else "")
    env = {**service["env"], **({"REDIS_URL": url} if url else {})}
    config_file = f"/etc/sidekiq/{name}.yml" if service["config"] else ""
    result = {
        "name": name,
        "units": [f"{unit}.service" for unit in _units(name, service)],
        "unit_file": f"/etc/systemd/system/{name}{'@' if service['processes'] > 1 else ''}.service",
        "app_dir": service["app_dir"],
        "current": f"{service['app_dir']}/current",
        "user": user,
        "group": service["group"] or _primary_group(user),
        "argv": _argv(service, config_file),
        "config_file": config_file,
        "config": service["config"],
        "env_file": f"/etc/sidekiq/{name}.env",
        "env_names": sorted(env),
        "redis": local,
        "redis_unit": f"redis_{local}.service" if local else "",
        "timeout": service["timeout"],
        "stop_timeout": service["timeout"] + 15 if service["stop_timeout"] is None else service["stop_timeout"],
        "start_timeout": service["start_timeout"],
        "watchdog": service["watchdog"],
        "strategy": service["strategy"],
        "drain_timeout": service["drain_timeout"],
        "restart_file": service["restart_file"],
    }
    return {**result, "env": env} if reveal else result


def _units(name, service) -> list[str]:
    """The names of a service's units, without ``.service``."""
    count = service["processes"]
    return [name] if count == 1 else [f"{name}@{number}" for number in range(1, count + 1)]


def _local_instance(service, wish) -> str:
    """The instance of this minion that a service uses, or empty."""
    # What the settings say of services that this minion does not run was held against nothing.
    here = {"redis", "sidekiq"} <= set(wish["roles"]) and service["redis"] in wish["redis"]["instances"]
    return service["redis"] if here and not service["redis_url"] else ""


def _redis_url(port, local, wish, service) -> str:
    entry, user = wish["redis"]["instances"][port], service["redis_user"]
    host = _reachable(entry["bind"]) if local else service["redis_host"]
    password = entry["users"][user]["passwords"][0] if user else entry["password"]
    login = f"{user}:{quote(password, safe='')}@" if password else ""
    return f"redis://{login}{f'[{host}]' if ':' in host else host}:{port}/0"


def _reachable(bind) -> str:
    """How this host reaches an instance: loopback where it listens there, else the first address that it must have."""
    addresses = [address.lstrip("-") for address in sorted(bind, key=lambda address: address.startswith("-"))]
    reach = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::*": "::1", "::": "::1"}
    addresses = [reach.get(address, address) for address in addresses]
    return next(filter(_is_loopback, addresses), addresses[0])


def _argv(service, config_file) -> list[str]:
    """The words of ExecStart; options go before what the app's own sidekiq.yml says."""
    argv = [*service["command"], "-e", service["environment"], "-t", str(service["timeout"])]
    if service["concurrency"] is not None:
        argv += ["-c", str(service["concurrency"])]
    if service["require"]:
        argv += ["-r", service["require"]]
    for queue in service["queues"]:
        argv += ["-q", queue if isinstance(queue, str) else ",".join(map(str, *queue.items()))]
    argv += service["arguments"]
    return argv + ["-C", config_file] if config_file else argv


def _primary_group(user) -> str:
    """Of a user who is not there yet: the group of the same name, which useradd makes on Debian."""
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user
