"""
What a running Redis does, and what its config says: compare both, and set live what can be set live.

What a config says is asked from Redis itself: the server that judges it before it is written (see
:func:`redis_server.config_check`) is of the very binary, so what it answers to ``CONFIG GET *`` is what a fresh start
would make of the file: sizes in bytes, defaults filled in, letters in Redis' own order. That answer is kept beside the
digest of what it belongs to, so that a run that changes nothing starts no server.

A password is compared and set, and is in no return, no message and no file of this module's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}

_FOLDER = "/var/lib/redis_sidekiq"
_REWRITE = 600.0  # s to wait for a snapshot or the first AOF

# The server that judges a config has other places than the one that serves (redis_server, _scratch_boot) and may have
# other limits; these are read from the config itself. What Redis takes when it does not say so:
_FROM_TEXT = {
    "appendonly": "no",
    "bind": "* -::*",
    "daemonize": "no",
    "dir": "",
    "logfile": "",
    "maxclients": "10000",
    "pidfile": "",
    "port": "6379",
    "supervised": "no",
    "tls-ca-cert-file": "",
    "tls-cert-file": "",
    "tls-key-file": "",
    "unixsocket": "",
    "unixsocketperm": "0",
}
# Secrets that the settings cannot hold; a file that others wrote may.
_SECRETS = ("masterauth", "sentinel", "tls-client-key-file-pass", "tls-key-file-pass", "user")
# Which server it follows is decided while it runs, by REPLICAOF and by Sentinel: a run that put it back would undo a
# failover.
_NOT_COMPARED = ("replicaof", *_SECRETS)
_RESERVED = 32  # files that Redis wants beside its clients' (src/server.h, CONFIG_MIN_RESERVED_FDS)
_CAP_SYS_RESOURCE = 24  # capabilities(7), linux/capability.h
# With enable-protected-configs Redis would change these while it runs, and then not find its data at the next start.
_BY_RESTART = ("dbfilename", "dir")
# Redis' words for a directive that stays as it was at the start; what the current build says of it may not be true of
# the one that still runs.
_REFUSED = r"can't set (immutable|protected) config|Unsupported CONFIG parameter"


# Facts ---------------------------------------------------------------------------------------------------------------


def drift(instance: str) -> dict[str, Any]:
    """
    The directives in which a running server differs from what a start with the config of the settings would make.

    A directive that nobody names is compared too: what the settings no longer say, or what somebody set by hand, goes
    back to the release's default. While another build runs than that of the settings, whose defaults may be others, only
    directives that the config names are compared.

    instance
        Name of the instance in the settings: its port.

    Returns ``directives``, name -> ``{running, wished, live}``: both values as Redis writes them, a password as
    ``******``; ``live`` (bool): CONFIG SET can change it. A directive that CONFIG GET does not know (``loadmodule``,
    ``replicaof``) is there with its lines when these changed after the process was started. ``unasked`` is why nothing
    could be compared, or empty: no server answers, it takes no password known here, or the build is not in place yet.

    Raises CommandExecutionError when Redis refuses the config, or to answer.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_config.drift 6379
    """
    wish, record = _wish(instance), _record(instance)
    if not record:
        return {"directives": {}, "unasked": "the build that its config is for is not in place yet"}
    with __salt__["redis_server.session"](instance, hold=False) as client:
        return _compare(client, wish, record)


def meaning(instance: str) -> dict[str, Any]:
    """
    What the config of the settings means: what is kept, or asked anew if that is about another config or build.

    instance
        Name of the instance in the settings.

    Returns what :func:`redis_server.config_meaning` returns; {} while the build is not in place.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_config.meaning 6379
    """
    return _record(instance)


# Acts ----------------------------------------------------------------------------------------------------------------


def remember(instance: str) -> None:
    """
    Keep what the config of the settings means, for later comparisons. Nothing happens when that is known already.

    It is kept in ``/var/lib/redis_sidekiq/redis_PORT.json``, which only root reads. Without that file the next
    comparison asks a server anew, which takes about a tenth of a second; lost is only since when ``loadmodule`` and
    other directives that CONFIG GET does not know are as they are.

    instance
        Name of the instance in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_config.remember 6379
    """
    record = _record(instance)
    if record and record != _read(instance):
        __salt__["whole_files.write"](_path(str(instance)), json.dumps(record), 0o600, makedirs=True)


def apply(instance: str) -> dict[str, Any]:
    """
    Bring a running server to its config as far as CONFIG SET can, without a restart, and ask again whether it follows.

    All directives go in one command, which Redis 7.0 and newer make whole or not at all (src/config.c,
    configSetCommand); where one is refused, and with older releases, one by one. Connections stay. ``appendonly`` comes
    last: ``yes`` is waited for until the first AOF is whole; ``no`` only follows a snapshot, which is what the next
    start reads then.

    instance
        Name of the instance in the settings.

    Returns a record: ``set`` (names that were set and proven), ``restart`` (names that a restart alone can change),
    ``failed`` (name -> Redis' words). Raises CommandExecutionError when the server cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_config.apply 6379
    """
    wish, record = _wish(instance), _record(instance)
    with __salt__["redis_server.session"](instance) as client:
        found = _compare(client, wish, record) if record else {"unasked": "its build is not in place yet"}
        if found["unasked"]:
            raise CommandExecutionError(f"{wish['unit']} cannot be told its settings: {found['unasked']}")
        wished = _wished(wish, record)
        names = [name for name, entry in found["directives"].items() if entry["live"]]
        failed = _set(client, wish, {name: wished[name] for name in names})
        left = _compare(client, wish, record)
    if left["unasked"]:
        raise CommandExecutionError(f"{wish['unit']} answered no more after its settings were set: {left['unasked']}")
    return _said(names, left["directives"], failed)


# --- below: how it is done -------------------------------------------------------------------------------------------


def _wish(instance: str) -> dict[str, Any]:
    """The settings of one instance, and where the program is that runs it."""
    redis = __salt__["redis_sidekiq.settings"](reveal=True)["redis"]
    found = [wish for wish in redis["instances"] if wish["name"] == str(instance)]
    if not found:
        raise SaltInvocationError(f"{instance!r} is not a Redis instance of this minion")
    build = __salt__["redis_server.wished_build"]()
    return {**found[0], "binary": __salt__["redis_build.binary"](redis["prefix"], build)}


# What a config means


def _record(instance: str) -> dict[str, Any]:
    """
    What the config means, and since when the lines are as they are that CONFIG GET does not know: from the file if that
    is about this config and build. {} while the build is not in place.
    """
    known = _read(instance)
    meaning = __salt__["redis_server.config_meaning"](instance, known=known)
    if not meaning or meaning is known:
        return meaning
    wish = _wish(instance)
    before = known.get("unseen")
    if before is None:
        # How old these lines are nobody knows; 0, so that no restart comes of it.
        found = _unseen(_lines(wish["config"]), meaning["values"])
        before = {name: {"lines": lines, "before": [], "since": 0} for name, lines in found.items()}
    return {**meaning, "unseen": _aged(before, _unseen(wish["directives"], meaning["values"]), time.time())}


def _lines(path: str) -> list[list[str]]:
    """The directives of a config that is in place, as ``[name, value]``."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            words = [line.split(None, 1) for line in stream if line.strip() and not line.lstrip().startswith("#")]
    except OSError:
        return []
    return [[found[0].lower(), found[1].strip()] for found in words if len(found) == 2]


def _unseen(directives: list[list[str]], values: dict[str, str]) -> dict[str, list[str]]:
    """The lines of directives that cannot be compared; of secrets none."""
    known = {_canonical(name, ()) for name in values}
    lines: dict[str, list[str]] = {}
    for name, value in directives:
        name = _canonical(name, ())
        if name not in (*known, "requirepass", *_SECRETS) or name == "replicaof":
            lines.setdefault(name, []).append(value)
    return lines


def _aged(known: dict[str, Any], lines: dict[str, list[str]], now: float) -> dict[str, Any]:
    """Name -> lines, those before them, and since when they are so (epoch s)."""
    aged = {}
    for name in sorted(lines.keys() | known.keys()):
        old, new = known.get(name, {}).get("lines", []), lines.get(name, [])
        aged[name] = known[name] if name in known and old == new else {"lines": new, "before": old, "since": now}
    return aged


def _wished(wish: dict[str, Any], record: dict[str, Any]) -> dict[str, str]:
    """Directive -> value, as a server says it that was started with the config."""
    values = _named(record["values"])
    for name, default in _FROM_TEXT.items():
        if name in values:
            values[name] = _spelled(name, _last(wish["directives"], name, default))
    values["requirepass"] = wish["password"]
    return values


def _last(directives: list[list[str]], name: str, default: str) -> str:
    """A directive's value in the config; of several lines the last counts."""
    values = [value for found, value in directives if found == name]
    return values[-1].strip().strip("\"'") if values else default


def _named(values: dict[str, str]) -> dict[str, str]:
    """What can be compared, each under one name."""
    named = {name: _spelled(name, value) for name, value in values.items() if _canonical(name, values) == name}
    return {name: value for name, value in named.items() if name not in _NOT_COMPARED}


def _canonical(name: str, values: Any) -> str:
    """
    The newer of a directive's two names (src/config.c), if that is among the values or none are given: CONFIG GET *
    has both, and CONFIG SET refuses both in one call.
    """
    newer = name.replace("slave", "replica").replace("ziplist", "listpack").replace("_", "-")
    newer = {"lua-time-limit": "busy-reply-threshold"}.get(newer, newer)
    return newer if not values or newer in values else name


def _spelled(name: str, value: str) -> str:
    """The few values that do not come from CONFIG GET on both sides."""
    if name == "dir":
        return os.path.realpath(value)
    if name in ("maxclients", "unixsocketperm"):
        base = 8 if name == "unixsocketperm" else 10
        with contextlib.suppress(ValueError):
            return format(int(value, base), "o" if base == 8 else "d")
    return value


# What a server does


def _compare(client: Any, wish: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    if client is None:
        return {"directives": {}, "unasked": "it takes no password known here"}
    import redis  # late: it costs 0.04 s, and it may have been installed by this very run

    try:
        running, server = _named(client.config_get("*")), client.info("server")
    except redis.ConnectionError:
        return {"directives": {}, "unasked": "no server answers"}
    except redis.RedisError as err:
        raise CommandExecutionError(f"{wish['unit']} does not say its settings: {type(err).__name__}: {err}") from err
    wished = _wished(wish, record)
    names = _comparable(wished.keys() & running.keys(), running, server, wish)
    found = {name: (running[name], wished[name]) for name in sorted(names) if running[name] != wished[name]}
    late = {*_beyond_limits(found, server), *_not_yet(running, wished, server, wish)}
    entries = _entries(found, {*record["fixed"], *_BY_RESTART, *late})
    return {"directives": entries | _late(record.get("unseen", {}), server), "unasked": ""}


def _not_yet(running: dict[str, str], wished: dict[str, str], server: dict[str, Any], wish: dict[str, Any]) -> set[str]:
    """
    What CONFIG SET could change, but not before a restart that is due: the plain port goes when the socket is there by
    which the formula comes in then, and a build without TLS may know its directives and take none of them.
    """
    late = {"port"} if wished["port"] == "0" and running.get("unixsocket") != wished["unixsocket"] else set()
    if _runs_another_build(server, wish):
        late |= {name for name in wished if name.startswith("tls-")}
    return late


def _comparable(names: set[str], running: dict[str, str], server: dict[str, Any], wish: dict[str, Any]) -> set[str]:
    named = {_canonical(name, running) for name, _ in wish["directives"]} | {"requirepass"}
    if _runs_another_build(server, wish):
        return names & named
    # Redis lowers what it takes by default to what its limit of open files allows (src/server.c, adjustOpenFilesLimit).
    limited = _open_files(server) < int(_FROM_TEXT["maxclients"]) + _RESERVED
    return names - {"maxclients"} if limited and "maxclients" not in named else names


def _beyond_limits(found: dict[str, tuple[str, str]], server: dict[str, Any]) -> list[str]:
    """More clients than the process may open files: the limit is its unit's, and comes with the next start."""
    wished = found.get("maxclients", ("", ""))[1]
    needed = int(wished) + _RESERVED if wished.isdecimal() else 0
    return ["maxclients"] if _open_files(server) < needed <= _most_files() else []


def _open_files(server: dict[str, Any]) -> float:
    """The most files that a server may open."""
    return _limit(server.get("process_id"))


def _most_files() -> float:
    """What the host's first process can give another: as much as the kernel has, or as itself (setrlimit(2))."""
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open("/proc/1/status") as status,
        open("/proc/sys/fs/nr_open") as kernel,
    ):
        capabilities = int([line.split()[1] for line in status if line.startswith("CapEff:")][0], 16)
        return float(kernel.read()) if capabilities >> _CAP_SYS_RESOURCE & 1 else _limit(1)
    return 0


def _limit(pid: Any) -> float:
    """A process's limit of open files."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/limits") as stream:
        found = [line.split() for line in stream if line.startswith("Max open files")]
        return float(found[0][4].replace("unlimited", "inf"))
    return float("inf")


def _entries(found: dict[str, tuple[str, str]], fixed: set[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {"running": _shown(name, running), "wished": _shown(name, wished), "live": name not in fixed}
        for name, (running, wished) in found.items()
    }


def _shown(name: str, value: str) -> str:
    return "******" if name == "requirepass" and value else value


def _late(unseen: dict[str, Any], server: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Directives that CONFIG GET does not know, whose lines are younger than the process (to the second)."""
    started = int(server.get("server_time_usec", 0)) // 1_000_000 - int(server.get("uptime_in_seconds", 0))
    return {
        name: {"running": "\n".join(entry.get("before", [])), "wished": "\n".join(entry["lines"]), "live": False}
        for name, entry in unseen.items()
        if int(entry["since"]) > started
    }


def _runs_another_build(server: dict[str, Any], wish: dict[str, Any]) -> bool:
    try:
        program = os.readlink(f"/proc/{server.get('process_id')}/exe")
    except OSError:
        return True
    return program != os.path.realpath(wish["binary"])


# Setting


def _set(client: Any, wish: dict[str, Any], values: dict[str, str]) -> dict[str, str]:
    """Set what is to be set; returns name -> Redis' words for what it refused."""
    appendonly = values.pop("appendonly", None)
    failed = _set_at_once(client, wish, values)
    if appendonly is not None:
        try:
            _set_appendonly(client, wish, appendonly)
        except CommandExecutionError as err:
            failed["appendonly"] = str(err)
    return failed


def _set_at_once(client: Any, wish: dict[str, Any], values: dict[str, str]) -> dict[str, str]:
    if not values or not _config_set(client, wish, values):
        return {}
    found = {name: _config_set(client, wish, {name: value}) for name, value in values.items()}
    return {name: said for name, said in found.items() if said}


def _config_set(client: Any, wish: dict[str, Any], values: dict[str, str]) -> str:
    """
    CONFIG SET; returns Redis' words if it refuses. A new ``requirepass`` becomes the only password of the default user
    (src/acl.c, ACLUpdateDefaultUserPassword), so older ones that still hold are given back in the same transaction:
    nobody is served in between.
    """
    commands = [["CONFIG SET", *(word for pair in values.items() for word in pair)]]
    hashes = [word for user in wish.get("users", []) if user["name"] == "default" for word in user["hashes"]]
    if "requirepass" in values and hashes:
        commands.append(["ACL SETUSER", "default", *hashes])
    return _refusal(client, wish, *commands)


def _set_appendonly(client: Any, wish: dict[str, Any], value: str) -> None:
    """
    Change where the data go such that a crash after it finds them: with AOF on a start reads the AOF and nothing else,
    with AOF off the snapshot (src/server.c, loadDataFromDisk).
    """
    if value != "yes":
        _wait_until_idle(client, wish)
        _demand(client, wish, "BGSAVE")
        if _wait_until_idle(client, wish).get("rdb_last_bgsave_status") != "ok":
            raise CommandExecutionError("it could not write a snapshot, so its AOF stays on: look into its log")
    _demand(client, wish, "CONFIG SET", "appendonly", value)
    if value == "yes":
        info = _wait_until_idle(client, wish)
        if info.get("aof_enabled") != 1 or info.get("aof_last_bgrewrite_status") != "ok":
            raise CommandExecutionError("it could not write its first AOF: look into its log")


def _demand(client: Any, wish: dict[str, Any], *command: str) -> None:
    said = _refusal(client, wish, command)
    if said:
        raise CommandExecutionError(said)


def _refusal(client: Any, wish: dict[str, Any], *commands: Any) -> str:
    """Redis' words if it does not take a command, else nothing. Several go in one transaction."""
    import redis

    pipe = client.pipeline(transaction=len(commands) > 1)
    for command in commands:
        pipe.execute_command(*command)
    try:
        said = pipe.execute(raise_on_error=False)
    except redis.ResponseError as err:
        said = [err]
    except redis.RedisError as err:
        raise CommandExecutionError(f"{wish['unit']} answered no more: {type(err).__name__}") from err
    refused = [str(answer) for answer in said if isinstance(answer, Exception)]
    words = re.sub(r"Command # \d+ .*? of pipeline caused error: ", "", refused[0]) if refused else ""
    return words.replace(wish["password"], "******") if wish["password"] else words


def _said(names: list[str], left: dict[str, Any], failed: dict[str, str]) -> dict[str, Any]:
    """The record: what was set is what no longer differs, whatever Redis said."""
    fixed = {name for name, entry in left.items() if not entry["live"]}
    fixed |= {name for name, said in failed.items() if re.search(_REFUSED, said)}
    wrong = {name: failed.get(name) or f"it says {left[name]['running']}" for name in names if name in left}
    return {
        "set": [name for name in names if name not in left],
        "restart": sorted(fixed),
        "failed": {name: said for name, said in wrong.items() if name not in fixed},
    }


def _wait_until_idle(client: Any, wish: dict[str, Any]) -> dict[str, Any]:
    until = time.monotonic() + _REWRITE
    while True:
        info = client.info("persistence")
        busy = ("rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled", "loading")
        if not any(info.get(name) for name in busy):
            return info
        if time.monotonic() > until:
            raise CommandExecutionError(f"{wish['unit']} was busy with its data for {_REWRITE:g} s; run again later")
        time.sleep(0.1)


# The record


def _path(name: str) -> str:
    return os.path.join(_FOLDER, f"redis_{name}.json")


def _read(instance: str) -> dict[str, Any]:
    """What was kept; {} for none, or for one that no longer can be read."""
    try:
        with open(_path(str(instance)), encoding="utf-8") as stream:
            record = json.load(stream)
        return record if {"key", "values", "fixed", "users", "unseen"} <= record.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}
