"""
Redis: write its config, ask what runs and restart that without losing a key. What it runs is made by ``redis_build``.

Facts come from one ``systemctl show`` (no process at all with an init script), ``/proc`` and the server itself. Only
instances of the settings (pillar ``redis_sidekiq:redis:instances``) are ever acted on, whoever asks.

A password goes from the settings into the config file and over the socket; it is no argument, and in no message.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import glob
import grp
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import pwd
import re
import signal
import socket
import stat
import time
from typing import TYPE_CHECKING, Any

import salt.utils.path
from salt.exceptions import CommandExecutionError, CommandNotFoundError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    __context__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

log = logging.getLogger(__name__)

MANAGERS = ("systemd", "sysv")
# Newer ones load opentelemetry, which Salt 3008 brings along, and cost every run 0.1 s.
CLIENT = "redis>=5,<7.2"

_MEANING = 2  # part of a meaning's key: raise it when the same config shall be asked for anew
_UNIT_DIR = "/etc/systemd/system"
_INIT_DIR = "/etc/init.d"
_RC_LINKS = "/etc/rc?.d"
_TLS_DIR = "/etc/redis/tls"
_LOCK_DIR = "/run/redis_sidekiq"
_SERVERS = ("redis-server", "valkey-server")
_QUIET = 30.0  # s for a server to listen after its start; 0.05 s is usual, more on a host that is busy
_REDIS_TIMEOUT = 10.0  # s for each answer from Redis: it is late on a host whose cores all compile
_BUSY = 600.0  # s to wait for a load, a snapshot or a rewrite under way before a restart
_LOADING = 1800.0  # s for a server to load its data, where the settings do not say how long it may take
_STOP = 900.0  # s for a server to save and end, likewise
_HOLD = 10_000  # ms that writes wait for the end of the server; it begins within 0.1 s
_TICK = 0.02  # s; /proc counts start times in ticks of 0.01 s
_LAST_LINES = 30

# Directives whose value nobody shall read in a diff; the formula writes only the first, a file found may hold others.
_SECRET_LINES = ("requirepass", "masterauth", "user", "tls-key-file-pass", "tls-client-key-file-pass", "sentinel")
# Redis' words for a directive that stays as it was at the start.
_REFUSED = r"can't set (immutable|protected) config|Unsupported CONFIG parameter"
# Where a server looks for its data, and what Redis takes when redis.conf does not say.
_PLACES = {"dbfilename": "dump.rdb", "appendfilename": "appendonly.aof", "appenddirname": "appendonlydir"}
_NO_PASSWORD = (
    "The server of {config} takes no password known here, so it was left as it is: set that in the pillar "
    "redis_sidekiq:redis:instances:{name}:old_passwords, then run again"
)

_PROPERTIES = ("ActiveState", "DropInPaths", "LoadState", "MainPID", "NeedDaemonReload", "Result", "UnitFileState")


# Config --------------------------------------------------------------------------------------------------------------


def config_diff(name: str, instance: str) -> dict[str, Any]:
    """
    How an instance's redis.conf differs from the settings; passwords are never shown.

    name
        Path of the file.
    instance
        Name of the instance in the settings: its port.

    Returns {} when it is right, else some of ``diff`` (unified, secrets blotted out), ``password`` (set, changed or
    removed), ``users`` (only their passwords changed), ``certificate`` (see :func:`redis_tls.placed`), ``mode`` and
    ``owner`` (``{old, new}``), ``taken over`` (files that somebody else made for this port, and where they are kept).

    Raises CommandExecutionError when that somebody's data lie elsewhere than the settings say.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.config_diff /etc/redis/6379.conf 6379
    """
    redis = _settings(reveal=True)
    wish = _instance(instance, redis)
    text, found = _config_text(wish), _file_facts(name)
    is_now = found.get("text", "")
    diff: dict[str, Any] = {}
    others = __salt__["redis_instances.others"](instance) if is_now != text else []
    if name in others:
        _refuse_other_places(wish, is_now)
        diff["taken over"] = {path: __salt__["redis_instances.kept"](path) for path in others}
        is_now = _without_remarks(is_now)
    if _blot_lines(is_now) != _blot_lines(text):
        lines = difflib.unified_diff(_blot_lines(is_now), _blot_lines(text), "is", "will be", lineterm="")
        diff["diff"] = "\n".join(lines)
    old, new = _password_in(is_now), _password_in(text)
    if old != new:
        diff["password"] = "changed" if old and new else "set" if new else "removed"
    elif is_now != text and not diff:
        diff["users"] = "passwords changed"
    if _has_certificate(wish) and (change := __salt__["redis_tls.placed"](instance)):
        diff["certificate"] = change
    for key, want in (("mode", "0640"), ("owner", f"root:{redis['group']}")):
        if found and found[key] != want:
            diff[key] = {"old": found[key], "new": want}
    return diff


def takeover_check(instance: str) -> None:
    """
    Whether an instance whose config somebody else made may be taken over; nothing is changed.

    instance
        Name of the instance in the settings.

    Raises CommandExecutionError with what to do: the data lie elsewhere than the settings say, the server that runs takes
    no password known here, or it must not be restarted now. Where no such config is there, nothing is asked.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.takeover_check 6379
    """
    wish = _instance(instance, _settings(reveal=True))
    if wish["config"] in __salt__["redis_instances.others"](instance):
        _refuse_other_places(wish, _file_facts(wish["config"])["text"])


def config_check(instance: str) -> str:
    """
    Let the build of the settings judge an instance's config: a server starts with it, as the user who will run it,
    without network and data, and answers with its password.

    instance
        Name of the instance in the settings.

    Returns a sentence. Raises CommandExecutionError with Redis' own words when it refuses.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.config_check 6379
    """
    redis = _settings(reveal=True)
    wish = _instance(instance, redis)
    build = _wished_build(redis)
    if not _can_judge(redis, build):
        return f"{redis['flavor'].capitalize()} {redis['version']} has its say once it is built and {redis['user']} is there"
    missing = _missing_addresses(wish["bind"])
    if missing:
        raise CommandExecutionError(
            f"Redis could not listen at {', '.join(missing)}: no such address on this host; correct bind of the "
            f"instance {instance}, or write - before it if the host may do without"
        )
    account = __salt__["redis_sandbox.account"](redis["user"], redis["group"])
    _refuse_folder(wish, account)
    if wish.get("tls"):
        __salt__["redis_tls.check"](instance)
    with _lock(wish["unit"], _STOP), __salt__["redis_sandbox.folder"](wish["unit"], account) as folder:
        candidate = os.path.join(folder, "redis.conf")
        # Redis enters `dir` while it reads the file, and must not come near the data.
        elsewhere = [[name, folder if name == "dir" else value] for name, value in wish["directives"]]
        if wish.get("tls"):
            elsewhere = __salt__["redis_tls.lend"](instance, folder, account["gid"], elsewhere)
        __salt__["whole_files.write"](candidate, _config_text({**wish, "directives": elsewhere}), 0o640, account["gid"])
        words = {"config": candidate, "password": wish["password"]}
        try:
            binary = __salt__["redis_build.binary"](redis["prefix"], build)
            meaning = __salt__["redis_sandbox.boot"](binary, account, folder, _config_values, **words)
        except CommandExecutionError as err:
            said = _blot(str(err), wish["password"]).replace(candidate, wish["config"])
            for file, source in wish.get("tls", {}).get("sources", {}).items():
                said = said.replace(os.path.join(folder, file), source)
            raise CommandExecutionError(
                f"{redis['flavor'].capitalize()} {redis['version']} refuses the config: {said}"
            ) from None
    key = _config_key(wish, build)
    __context__.setdefault("redis_server.meanings", {})[key] = {"key": key, **meaning}
    return f"{redis['flavor'].capitalize()} {redis['version']} starts with it"


def config_meaning(instance: str, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    What an instance's config means to the build of the settings: what the server says that :func:`config_check` starts.

    instance
        Name of the instance in the settings.
    known
        What an earlier call returned; it is returned again while it is about the same config and build.

    Returns ``key`` (a digest of config and build), ``values`` (CONFIG GET *, without secrets; where that server has to
    be started otherwise, the values of that start), ``fixed`` (names that CONFIG SET refuses) and ``users`` (name ->
    rules as ACL LIST has them, without digests of passwords); {} while the build or the user of the settings is not there.
    Raises what :func:`config_check` raises.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.config_meaning 6379
    """
    redis = _settings()
    build = _wished_build(redis)
    key = _config_key(_instance(instance, redis), build)
    if not _can_judge(redis, build):
        return {}
    if known and known.get("key") == key:
        return known
    if key not in __context__.get("redis_server.meanings", {}):
        config_check(instance)
    return __context__["redis_server.meanings"][key]


def wished_build() -> str:
    """
    The name of the build that the settings wish; see ``redis_build.name``.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.wished_build
    """
    return _wished_build(_settings())


def config_write(name: str, instance: str) -> str:
    """
    Write an instance's redis.conf, root:GROUP 0640, once the build of the settings has accepted it. Of one that somebody
    else made, the server is told first to write its data where a start with the new file looks for them, and no longer
    starts at boot by itself; what was there is kept (see ``redis_instances.kept``).

    name
        Path of the file.
    instance
        Name of the instance in the settings.

    Returns the sentence of :func:`config_check`. Raises what that raises; the file is then as it was.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.config_write /etc/redis/6379.conf 6379
    """
    redis = _settings(reveal=True)
    wish = _instance(instance, redis)
    sentence = config_check(instance)
    before = _password_in(_file_facts(name).get("text", ""))
    if before:
        # The server that still runs with the old file has to be asked before it is stopped.
        __context__.setdefault("redis_server.passwords", {})[instance] = before
    if name in __salt__["redis_instances.others"](instance):
        _take_over(wish)
    # First, so that no config is in place whose lines nobody knows the age of.
    __salt__["redis_config.remember"](instance)
    __salt__["redis_upgrade.keep_config"](instance)
    if wish.get("tls"):
        __salt__["redis_tls.place"](instance)
    __salt__["whole_files.write"](name, _config_text(wish), 0o640, _group_id(redis["group"]))
    if _has_certificate(wish) and not wish.get("tls"):
        __salt__["redis_tls.remove"](instance)
    return sentence


# Facts about an instance ---------------------------------------------------------------------------------------------


def status(instance: str, ask: bool = True) -> dict[str, Any]:
    """
    What one Redis instance does now: systemd or the init script's pid file, ``/proc`` and the server side by side.

    instance
        Name of the instance in the settings: its port.
    ask
        Ask the server for INFO too (bool, default True).

    Returns a dictionary: ``instance``, ``unit``, ``manager`` (systemd or sysv), ``loaded``, ``enabled``, ``active``
    (systemd's word; of an init script active or inactive), ``pid`` (0: none), ``started`` (epoch s or None),
    ``program`` (what the process executes), ``build`` (that of the settings), ``under_way`` (the build that it came
    from, while a change of build is not finished), ``drains`` (bool: are this host's workers at rest while it restarts),
    ``stale`` (list of reasons why it should be started anew), ``younger_config`` (bool: redis.conf changed after the
    process was started; alone no reason),
    ``needs_reload`` (the unit on disk is not the one loaded) and, with ``ask``, ``info`` (INFO as a dictionary, None
    without an answer), ``info_error`` and ``unfollowed`` (what it was started with and yet does otherwise, or empty).
    With ``ask``, ``stale`` also has the directives that CONFIG SET cannot bring to the running server.

    Raises SaltInvocationError for an instance that is not in the settings, CommandExecutionError without systemd.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.status 6379
    """
    redis = _settings(reveal=True)
    wish = _instance(instance, redis)
    facts = _service_facts(wish, redis)
    facts["drains"] = redis["drain_sidekiq"]
    facts["under_way"] = __salt__["redis_upgrade.facts"](instance)["under_way"]
    if ask:
        facts["info"], facts["info_error"] = _info(wish) if facts["pid"] else (None, "")
        reasons, facts["unfollowed"] = _unfollowed(wish, facts)
        facts["stale"] += reasons
    return facts


def in_window(window: str, now: float | None = None) -> bool:
    """
    Whether the host's clock is in a span of time in which runs may restart a server.

    window
        From when to when, ``03:00-05:00``; one that ends before it begins goes over midnight.
    now
        Time to ask for (epoch s); default: now.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.in_window 03:00-05:00
    """
    begin, _, end = window.partition("-")
    clock = time.strftime("%H:%M", time.localtime(now))
    return begin <= clock < end if begin < end else clock >= begin or clock < end


def restart_waits(restart: str, window: str = "") -> str:
    """
    Why a restart has to wait.

    restart
        ``never``, ``when_needed`` or ``window``.
    window
        With ``window``: see :func:`in_window`.

    Returns the end of a sentence; an empty text where nothing has to wait.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.restart_waits window 03:00-05:00
    """
    if restart == "never":
        return "a restart is left to you (restart: never)"
    if restart == "window" and not in_window(window):
        return f"a restart waits for a run between {window.replace('-', ' and ')} (restart: window)"
    return ""


# Acts on an instance -------------------------------------------------------------------------------------------------


def start(instance: str) -> dict[str, Any]:
    """
    Start a Redis instance and prove that it serves; nothing happens to one that runs.

    instance
        Name of the instance in the settings.

    Returns a record: ``instance``, ``result`` (bool), ``comment``, ``old`` and ``new`` (see :func:`status`), ``steps``
    (list of ``{step, seconds}``). Raises SaltInvocationError for an instance that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.start 6379
    """
    redis = _settings(reveal=True)
    wish = _instance(instance, redis)
    with _procedure(wish) as record:
        with _step(record, "look"):
            old = record["old"] = _ready_to_start(wish, redis)
        if old["active"] == "active":
            return _done(record, f"{wish['unit']} runs already, pid {old['pid']}", new=old)
        old_files = old["stale"] or old["younger_config"]
        if old["active"] not in ("inactive", "failed") and (old_files or not old["pid"]):
            # It fails and starts again and again: a try under way may have read older files, and would count as ours.
            with _step(record, "stop"):
                _stop(wish, redis)
        # One that is loading its data is waited for.
        _rise(record, wish, redis, {**old, "pid": 0})
        _done(record, f"{wish['unit']} serves, pid {record['new']['pid']}", new=record["new"])
    return record


def stop(instance: str) -> dict[str, Any]:
    """
    Stop a Redis instance by SIGTERM, once its data are where the next start will look for them.

    instance
        Name of the instance in the settings.

    Returns a record as :func:`start` does. Raises SaltInvocationError for an instance that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.stop 6379
    """
    redis = _settings(reveal=True)
    wish = _instance(instance, redis)
    with _procedure(wish) as record:
        with _step(record, "look"):
            old = record["old"] = _service_facts(wish, redis)
        if old["active"] == "inactive":
            return _done(record, f"{wish['unit']} does not run", new=old)
        notes = _land(record, wish, redis, old)
        _done(record, "; ".join([f"{wish['unit']} is stopped", *notes]), new=_service_facts(wish, redis))
    return record


def restart(instance: str) -> dict[str, Any]:
    """
    Restart a Redis instance without losing a key, and prove that a new process serves them.

    Waits while the server loads, snapshots or rewrites, or brings a replica into sync. Before it is stopped by SIGTERM its
    data are brought to where the next start will look: AOF is switched on live if redis.conf now wants it, a snapshot is
    written at exit if redis.conf has no AOF; then its keys are counted while writes wait. Calls for the same instance wait
    for each other; one that finds that the process was started after it was made restarts nothing.

    With another build in the settings than before, the instance goes over to it; where the new one does not serve the
    data, it goes back by itself to the one before, with data and config as they were (see ``redis_upgrade``).

    This host's Sidekiq services that work with the instance are drained and stopped before, and started again after it
    (see :func:`sidekiq.at_rest`), unless ``redis:drain_sidekiq`` says otherwise.

    instance
        Name of the instance in the settings.

    Returns a record as :func:`start` does; ``result`` is True only when a new process was seen that answers, has loaded
    its data, runs the build of the settings and has the keys that the old one had.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.restart 6379
    """
    redis = _settings(reveal=True)
    wish = _instance(instance, redis)
    requested = time.time()
    with _procedure(wish) as record:
        with _step(record, "look"):
            old = record["old"] = _ready_to_start(wish, redis)
        fresh = (old["started"] or 0) > requested and not old["stale"] and not old["younger_config"]
        if old["active"] == "active" and fresh:
            return _done(record, f"{wish['unit']} was restarted by another call, pid {old['pid']}", new=old)
        notes = []
        with _workers_at_rest(record, wish, redis, old) as rested:
            try:
                if old["active"] not in ("inactive", "failed"):
                    notes = _land(record, wish, redis, old)
            finally:
                # Whatever went wrong while stopping, the server must not stay down.
                if _service_facts(wish, redis)["active"] in ("inactive", "failed"):
                    _rise(record, wish, redis, old)
        if not record["new"]:
            raise CommandExecutionError(f"{wish['unit']} was started by someone else while it was restarted; run again")
        sentence = f"{wish['unit']} was restarted: pid {old['pid']} before, {record['new']['pid']} now"
        _done(record, "; ".join([sentence, *notes, *rested]), new=record["new"])
    return record


def exchange(instance: str, plan: Any, **kwargs: Any) -> dict[str, Any]:
    """
    Stop an instance, let another module put other data in the place of its own, start it and prove them. If that fails,
    the old data are put back and served. One that does not come up with the data it has is stopped as it is.

    instance
        Name of the instance in the settings.
    plan
        An object with the functions ``prepare()`` (before the stop), ``put()``, ``undo()`` (also after half a ``put``)
        and ``proof(info)``, which returns what is wrong with the server that has started, or nothing.

    Returns a record as :func:`restart` does. Raises SaltInvocationError over Salt's bus and on a command line.

    CLI Example:

    .. code-block:: python

        record = __salt__["redis_server.exchange"]("6379", plan)
    """
    if kwargs or not hasattr(plan, "put"):
        raise SaltInvocationError("Data are exchanged by other modules; see redis_backup.restore")
    redis = _settings(reveal=True)
    wish = _instance(instance, redis)
    with _procedure(wish) as record:
        with _step(record, "look"):
            old = record["old"] = _ready_to_start(wish, redis)
        with _step(record, "prepare"):
            plan.prepare()
        with _workers_at_rest(record, wish, redis, old) as rested:
            notes = _exchange(record, wish, redis, old, plan)
        sentence = f"{wish['unit']} serves, pid {record['new']['pid']}"
        _done(record, "; ".join([sentence, *notes, *rested]), new=record["new"])
    return record


def session(instance: str, hold: bool = True, **kwargs: Any) -> contextlib.AbstractContextManager[Any]:
    """
    A connection to a running instance, for the formula's other modules: how to get in is known here alone.

    instance
        Name of the instance in the settings.
    hold
        Keep restarts, stops and other holders away meanwhile (bool, default True): a stop changes settings for a moment.

    Returns a context manager that gives a ``redis.Redis``, or None when the server takes no password known here. Raises
    SaltInvocationError over Salt's bus and on a command line, CommandExecutionError when another holder does not let go.

    CLI Example:

    .. code-block:: python

        with __salt__["redis_server.session"]("6379") as client:
            client.ping()
    """
    if kwargs:
        raise SaltInvocationError("A connection is nothing to return; it is for modules")
    return _session(_instance(instance, _settings(reveal=True)), hold)


def enable(instance: str) -> None:
    """
    Let the host start an instance at boot.

    instance
        Name of the instance in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.enable 6379
    """
    redis = _settings()
    wish = _instance(instance, redis)
    if redis["service_manager"] == "systemd":
        __salt__["service.enable"](f"{wish['unit']}.service")
    else:
        _run([_tool("update-rc.d", "init-system-helpers"), wish["unit"], "defaults"], "cannot be enabled", wish["unit"])


def reload_manager() -> None:
    """
    Let systemd read its units again, on a host that it booted. An init script is a unit to it as well.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.reload_manager
    """
    if _booted_by_systemd():
        _run([_tool("systemctl", "systemd"), "daemon-reload"], "does not read its units", "systemd")


def service_files(instance: str, manager: str) -> list[str]:
    """
    The files by which systemd or the init system knows an instance.

    instance
        Name of the instance: in the settings, or made by this formula before they dropped it.
    manager
        ``systemd`` or ``sysv``.

    Returns a list of paths that exist.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.service_files 6379 sysv
    """
    if manager not in MANAGERS:
        raise SaltInvocationError(f"{manager!r} is no service manager known here: {' or '.join(MANAGERS)}")
    unit = _instance_here(instance, _settings())["unit"]
    if manager == "systemd":
        paths = [os.path.join(_UNIT_DIR, f"{unit}.service"), *_boot_links(unit, "systemd")]
    else:
        paths = [os.path.join(_INIT_DIR, unit), *_boot_links(unit, "sysv")]
    return [path for path in paths if os.path.lexists(path)]


def service_remove(instance: str, manager: str, start: bool = False) -> str:
    """
    Stop an instance as one service manager knows it, with all care for its data, and take away the files of that.

    instance
        Name of the instance: in the settings, or made by this formula before they dropped it.
    manager
        ``systemd`` or ``sysv``.
    start
        Start it at once under the manager of the settings (bool, default False): so this host's workers, which rest
        meanwhile, do not find Redis away.

    Returns a sentence. Raises CommandExecutionError when it does not stop; the files stay then.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.service_remove 6379 sysv
    """
    own = _settings(reveal=True)
    redis = {**own, "service_manager": manager}
    wish = _instance_here(instance, redis)
    files = service_files(instance, manager)
    said = f"{wish['unit']} did not run"
    with _procedure(wish) as record:
        runs = False
        if manager == "sysv" or _booted_by_systemd():
            old = record["old"] = _service_facts(wish, redis)
            runs = old["active"] not in ("inactive", "failed")
        if not runs:
            _forget_service(wish, manager, files)
        elif start:
            said = _move_service(record, wish, own, redis, files)
        else:
            notes = _land(record, wish, redis, old)
            said = "; ".join([f"{wish['unit']} was stopped", *notes])
            _forget_service(wish, manager, files)
        record["result"] = True
    if not record["result"]:
        raise CommandExecutionError(record["comment"])
    return said


# The client by which Salt asks Redis ---------------------------------------------------------------------------------


def client() -> dict[str, Any]:
    """
    The Python package ``redis`` in the Python that runs Salt.

    Returns ``version`` (empty: not installed), ``wanted`` (a requirement) and ``suits`` (bool). No process is started.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.client
    """
    from packaging.requirements import Requirement

    try:
        version = importlib.metadata.version("redis") if importlib.util.find_spec("redis") else ""
    except importlib.metadata.PackageNotFoundError:
        version = _redis_package().__version__  # salt-ssh brings the package along without its metadata
    return {"version": version, "wanted": CLIENT, "suits": bool(version) and version in Requirement(CLIENT).specifier}


def client_install() -> None:
    """
    Install the Python package ``redis`` into the Python that runs Salt, by pip, so that this very process can use it.

    Raises CommandExecutionError with pip's last lines.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_server.client_install
    """
    # Without bin_env Salt takes its own Python's pip, or salt-pip where Salt is a onedir (salt/modules/pip.py).
    try:
        answer = __salt__["pip.install"](pkgs=[CLIENT])
    except (CommandExecutionError, CommandNotFoundError) as err:
        raise CommandExecutionError(
            f"Salt's Python has no package redis, and no pip that could install it ({err}). By salt-ssh the master brings it "
            f"along: install {CLIENT} there, and say thin_extra_mods: redis in its configuration"
        ) from None
    importlib.invalidate_caches()
    if answer.get("retcode") != 0:
        words = _last_lines(f"{answer.get('stdout', '')}\n{answer.get('stderr', '')}", 10)
        raise CommandExecutionError(
            f"pip could not install {CLIENT} for Salt's Python; give it an index or a folder of wheels "
            f"(/etc/pip.conf), or install that package by hand. It said:\n{words}"
        )


# --- below: how it is done -------------------------------------------------------------------------------------------

# Settings


def _settings(reveal: bool = False) -> dict[str, Any]:
    return __salt__["redis_sidekiq.settings"](reveal=reveal)["redis"]


def _instance(name: str, redis: dict[str, Any]) -> dict[str, Any]:
    """The settings of one instance. A name from anywhere else (an event, a command line) is refused here."""
    instances = {instance["name"]: instance for instance in redis["instances"]}
    if str(name) not in instances:
        known = ", ".join(instances) or "none"
        raise SaltInvocationError(
            f"{name!r} is not a Redis instance of this minion; the pillar redis_sidekiq:redis:instances has: {known}"
        )
    return instances[str(name)]


def _instance_here(name: str, redis: dict[str, Any]) -> dict[str, Any]:
    """The settings of one instance, or what this host's files say of one that the settings no longer have."""
    if str(name) in [instance["name"] for instance in redis["instances"]]:
        return _instance(name, redis)
    return __salt__["redis_instances.facts"](name) or _instance(name, redis)


def _wished(wish: dict[str, Any], directive: str, default: str) -> str:
    """A directive's value in the file that the next start reads; of several lines the last counts."""
    values = [value for name, value in wish["directives"] if name == directive]
    return values[-1].strip("\"'") if values else default


def _can_judge(redis: dict[str, Any], build: str) -> bool:
    """Are there the build and the user that judge a config?"""
    try:
        return bool(pwd.getpwnam(redis["user"]) and grp.getgrnam(redis["group"])) and _is_built(redis, build)
    except KeyError:
        return False


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise CommandExecutionError(f"There is no group {group}: apply redis_sidekiq.redis, which makes it") from None


# Config


def _wished_build(redis: dict[str, Any]) -> str:
    flags = redis["build"]
    words = {"malloc": flags["malloc"], "tls": flags["tls"], "flavor": redis["flavor"]}
    return __salt__["redis_build.name"](redis["version"], redis["source_hash"], **words)


def _is_built(redis: dict[str, Any], build: str) -> bool:
    return any(record["build"] == build for record in __salt__["redis_build.builds"](redis["prefix"]))


def _config_values(client: Any) -> dict[str, Any]:
    """
    What the file means to Redis itself, and which directives it would not change while it runs: each is set to the value
    that it has (src/config.c, configSetCommand: "can't set immutable config"; before 7.0 "Unsupported CONFIG parameter").
    """
    values = {name: value for name, value in client.config_get("*").items() if name not in _SECRET_LINES}
    pipe = client.pipeline(transaction=False)
    for name, value in values.items():
        pipe.execute_command("CONFIG SET", name, value)
    said = dict(zip(values, map(str, pipe.execute(raise_on_error=False))))
    users = dict(map(_acl, client.execute_command("ACL", "LIST")))
    return {"values": values, "fixed": [name for name in values if re.search(_REFUSED, said[name])], "users": users}


def _acl(line: str) -> tuple[str, str]:
    """
    A user's name and rules from a line of ``ACL LIST``, without what it says of passwords; and without the word for what
    holds anyway, which it has only when somebody said so.
    """
    _, name, *words = line.split(" ")
    return name, " ".join(word for word in words if word not in ("nopass", "sanitize-payload") and word[0] != "#")


def _config_key(wish: dict[str, Any], build: str) -> str:
    """What decides what a config means. No password has a part in it: its digest would lie in a file."""
    users = [[user["name"], user["rules"]] for user in wish.get("users", [])]
    what = [_MEANING, build, wish["directives"], users]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _config_text(wish: dict[str, Any]) -> str:
    # Auditors (Lynis) take a file for Redis' own only when they find its name in it.
    lines = [
        f"# Managed by Salt (formula redis_sidekiq): changes made here are undone by the next run. Redis {wish['name']}"
    ]
    lines += [f"{name} {value}" for name, value in wish["directives"]]
    if wish["password"]:
        lines.append(f"requirepass {_quoted(wish['password'])}")
    for user in wish.get("users", []):  # the default one among them takes the place of what requirepass made of it
        lines.append(" ".join(["user", user["name"], "on", *user["hashes"], *user["rules"]]))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A word as Redis reads it within double quotes (src/sds.c, sdssplitargs); bytes beyond ASCII as ``\\xHH``."""
    plain = {ord('"'): '\\"', ord("\\"): "\\\\"}
    return (
        '"'
        + "".join(plain.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}") for byte in text.encode())
        + '"'
    )


def _unquoted(text: str) -> str:
    """The first word of a value as Redis would read it, whoever wrote it."""
    match = re.match(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|(\S+)", text.strip())
    if not match:
        return ""
    if match[3] is not None:
        return match[3]
    if match[2] is not None:
        return match[2].replace("\\'", "'")
    known = {"n": b"\n", "r": b"\r", "t": b"\t", "b": b"\b", "a": b"\a"}
    data = re.sub(
        rb"\\(?:x([0-9a-fA-F]{2})|(.))",
        lambda found: bytes([int(found[1], 16)]) if found[1] else known.get(found[2].decode("latin-1"), found[2]),
        match[1].encode(),
    )
    return data.decode("utf-8", "replace")


def _password_in(text: str) -> str:
    found = re.findall(r"^[ \t]*requirepass[ \t]+(.+)$", text, re.MULTILINE | re.IGNORECASE)
    return _unquoted(found[-1]) if found else ""


def _blot_lines(text: str) -> list[str]:
    """A config's lines to show: those that hold a password without it, and without requirepass at all."""
    shown = []
    for line in text.splitlines():
        word = line.split(maxsplit=1)[0].lower() if line.strip() else ""
        if word != "requirepass":
            shown.append(_blot_line(word, line) if word in _SECRET_LINES else line)
    return shown


def _blot_line(word: str, line: str) -> str:
    """A user's rules may be seen, unless quotes hide where a password begins."""
    if word != "user" or re.search("[\"'\\\\]", line):
        return f"{word} ******"
    return " ".join(f"{part[0]}******" if part[0] in "#>!<" else part for part in line.split())


def _blot(text: str, *passwords: str) -> str:
    """A program's words without a password: as it is, as quoted, and in a line that Redis shows of its file."""
    text = re.sub(r"(requirepass|masterauth)\s.*", r"\1 ******", text, flags=re.IGNORECASE)
    text = re.sub(r"#[0-9a-f]{64}", "#******", text)
    for password in passwords:
        for form in {password, _quoted(password), _quoted(password)[1:-1]}:
            if password:
                text = text.replace(form, "******")
    return text


def _has_certificate(wish: dict[str, Any]) -> bool:
    return bool(wish.get("tls")) or os.path.isdir(os.path.join(_TLS_DIR, wish["name"]))


def _refuse_folder(wish: dict[str, Any], account: dict[str, Any]) -> None:
    """The server that judges a config has its socket elsewhere, so the folder of this one is looked at here."""
    folder = wish.get("socket_folder")
    if not folder:
        return
    try:
        info = os.stat(folder)
    except OSError as err:
        raise CommandExecutionError(
            f"Redis could not make its socket: {folder}: {err.strerror}; make that folder first, or set unixsocket of "
            f"the instance {wish['name']} to true"
        ) from None
    mine = 0o300 if info.st_uid == account["uid"] else 0o030 if info.st_gid == account["gid"] else 0o003
    if not stat.S_ISDIR(info.st_mode) or info.st_mode & mine != mine:
        raise CommandExecutionError(
            f"Redis could not make its socket: {folder} is no folder that {account['user']} may write to; change that, "
            f"or set unixsocket of the instance {wish['name']} to true"
        )


def _missing_addresses(bind: list[str]) -> list[str]:
    """Addresses that an instance must have and that this host does not."""
    missing = []
    for address in bind:
        if address.startswith("-") or "*" in address:
            continue
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
        except OSError as err:
            if err.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                missing.append(address)
    return missing


# Services and /proc


def _booted_by_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")  # sd_booted(3)


def _boot_links(unit: str, manager: str) -> list[str]:
    """The links by which an instance starts at boot, and with an init script those by which it stops."""
    if manager == "systemd":
        link = os.path.join(_UNIT_DIR, "multi-user.target.wants", f"{unit}.service")
        return [link] if os.path.lexists(link) else []
    return sorted(glob.glob(os.path.join(_RC_LINKS, f"[SK][0-9][0-9]{unit}")))


def _service_facts(wish: dict[str, Any], redis: dict[str, Any]) -> dict[str, Any]:
    systemd = redis["service_manager"] == "systemd"
    facts = _unit_facts(wish["unit"]) if systemd else _script_facts(wish)
    facts.update(instance=wish["name"], manager=redis["service_manager"], build=_wished_build(redis))
    facts["started"], facts["program"] = _started(facts["pid"]), _program(facts["pid"])
    facts["stale"] = []
    program = os.path.realpath(__salt__["redis_build.binary"](redis["prefix"], facts["build"]))
    if facts["pid"]:
        if facts["program"] != program:
            facts["stale"].append(f"it runs {facts['program']}, not {program}")
        changed = _changed_since(facts["started"], facts["files"])
        if changed:
            facts["stale"].append(f"changed: {', '.join(changed)}")
    facts["younger_config"] = bool(_changed_since(facts["started"], [wish["config"]]))
    facts.pop("files")
    return facts


def _unfollowed(wish: dict[str, Any], facts: dict[str, Any]) -> tuple[list[str], str]:
    """
    Why the config takes a restart, and what another restart would not help: a directive that CONFIG SET cannot change
    is as it was at the start, and if neither file nor build has changed since then, the next start would make the same
    of it.
    """
    if not facts["pid"]:
        return [], ""
    found = __salt__["redis_config.drift"](wish["name"]) if facts["info"] else {"unasked": "it does not answer"}
    if found["unasked"]:  # then the file's age is all there is to go by
        return [f"changed: {wish['config']}"] if facts["younger_config"] else [], ""
    fixed = {name: entry for name, entry in found["directives"].items() if not entry["live"]}
    said = [f"{name} is {entry['running']!r}, not {entry['wished']!r}" for name, entry in sorted(fixed.items())]
    changed = facts["younger_config"] or _file_facts(wish["config"]).get("text") != _config_text(wish)
    return (said, "") if changed or facts["stale"] else ([], "; ".join(said))


def _unit_facts(unit: str) -> dict[str, Any]:
    """One ``systemctl show``."""
    argv = [_tool("systemctl", "systemd"), "show", "--property=" + ",".join(_PROPERTIES), "--", f"{unit}.service"]
    answer = __salt__["cmd.run_all"](argv, python_shell=False, env={"LC_ALL": "C"}, ignore_retcode=True)
    if answer["retcode"] != 0:
        raise CommandExecutionError(f"systemd does not answer about {unit}: {answer['stderr'] or answer['stdout']}")
    found = dict(line.split("=", 1) for line in answer["stdout"].splitlines() if "=" in line)
    known = found.get("DropInPaths", "").split()
    new = [path for path in _drop_ins(unit) if path not in known]
    return {
        "unit": unit,
        "loaded": found.get("LoadState") == "loaded",
        "enabled": found.get("UnitFileState") == "enabled",
        "active": found.get("ActiveState", ""),
        "result": found.get("Result", ""),
        "pid": int(found.get("MainPID") or 0),
        # systemd 252 does not see a new drop-in before a daemon-reload, NeedDaemonReload or not.
        "needs_reload": found.get("NeedDaemonReload") == "yes" or bool(new),
        "files": [os.path.join(_UNIT_DIR, f"{unit}.service"), *known, *new],
    }


def _drop_ins(unit: str) -> list[str]:
    """The administrator's own settings for a unit (systemctl edit), as they are on disk."""
    return sorted(glob.glob(os.path.join(_UNIT_DIR, f"{unit}.service.d", "*.conf")))


def _forget_service(wish: dict[str, Any], manager: str, files: list[str]) -> None:
    with _failing(f"Cannot remove the files of {wish['unit']}"):
        for path in files:
            if path in __salt__["redis_instances.others"](wish["name"]):
                __salt__["redis_instances.keep"](path)
            os.unlink(path)
    if manager == "sysv":
        # Where insserv orders the boot, it has to know.
        _run([_tool("update-rc.d", "init-system-helpers"), wish["unit"], "remove"], "cannot be forgotten", wish["unit"])
    reload_manager()


def _move_service(
    record: dict[str, Any], wish: dict[str, Any], own: dict[str, Any], redis: dict[str, Any], files: list[str]
) -> str:
    """From one service manager to that of the settings, in one go; what fails leaves a server that the next run starts."""
    old = record["old"]
    with _workers_at_rest(record, wish, own, old) as rested:
        notes = _land(record, wish, redis, old)
        _forget_service(wish, redis["service_manager"], files)
        enable(wish["name"])
        _rise(record, wish, own, old)
    sentence = (
        f"{wish['unit']} went over to {own['service_manager']}: pid {old['pid']} before, {record['new']['pid']} now"
    )
    said = "; ".join([sentence, *notes, *rested])
    lost = record.pop("lost", "")
    if lost:
        raise CommandExecutionError(f"{said}; but {lost}")
    return said


def _script_facts(wish: dict[str, Any]) -> dict[str, Any]:
    """The init script's pid file, and whether that process is one of Redis; no process is started to ask."""
    script = os.path.join(_INIT_DIR, wish["unit"])
    pid = 0
    with contextlib.suppress(OSError, ValueError):
        with open(_pid_file(wish), encoding="ascii") as stream:
            pid = int(stream.read())
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            pid = pid if stream.read().strip() in _SERVERS else 0
    if pid and _started(pid) is None:
        pid = 0
    others = 0 if pid else _others_pid(wish)
    pid = pid or others
    return {
        "by_hand": bool(others),
        "unit": wish["unit"],
        "loaded": os.access(script, os.X_OK),
        "enabled": any(os.path.basename(link).startswith("S") for link in _boot_links(wish["unit"], "sysv")),
        "active": "active" if pid else "inactive",
        "result": "",
        "pid": pid,
        "needs_reload": False,
        "files": [script],
    }


def _others_pid(wish: dict[str, Any]) -> int:
    """
    The process that answers for an instance without a pid file of ours, because somebody else's script started it: one of
    this host's that was started with the instance's config, and is not the unit's. 0: nobody.
    """
    try:
        redis = _redis_package()
    except CommandExecutionError:
        return 0  # before the first run has installed it; the files tell enough then
    client = _connect(wish)
    if client is None:
        raise CommandExecutionError(
            f"A server that runs at the port of the Redis instance {wish['name']} takes no password known here: set that "
            f"in the pillar redis_sidekiq:redis:instances:{wish['name']}:old_passwords, then run again"
        )
    try:
        info = client.info("server")
    except redis.RedisError:
        return 0
    finally:
        client.close()
    pid, is_ours = int(info.get("process_id") or 0), info.get("config_file") == wish["config"]
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            is_ours = is_ours and stream.read().strip() in _SERVERS
    if not is_ours or (_booted_by_systemd() and _unit_facts(wish["unit"])["pid"] == pid):
        return 0
    return pid


def _pid_file(wish: dict[str, Any]) -> str:
    return f"/run/redis/{wish['name']}.pid"


def _started(pid: int) -> float | None:
    """When a process was started (epoch s). Field 22 of proc_pid_stat(5): ticks since boot, suspended time included."""
    if not pid:
        return None
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as handle:
            fields = handle.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    if fields[0] in "ZX":
        return None
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(boot + int(fields[19]) / os.sysconf("SC_CLK_TCK"), 2)


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe") if pid else ""
    except OSError:
        return ""


def _changed_since(started: float | None, files: list[str]) -> list[str]:
    """
    The files that changed after the process was started. A time in the future says nothing (the clock was set back, or
    the file came from elsewhere): taking it for a change would restart the server in every run.
    """
    changed = []
    for path in files if started is not None else []:
        with contextlib.suppress(OSError):
            if started + _TICK < os.stat(path).st_mtime <= time.time():
                changed.append(path)
    return changed


def _ready_to_start(wish: dict[str, Any], redis: dict[str, Any]) -> dict[str, Any]:
    """The instance's facts, once it is sure that stopping it could be followed by a start."""
    facts = _service_facts(wish, redis)
    if facts["needs_reload"]:
        reload_manager()
        facts = _service_facts(wish, redis)
    if not facts["loaded"]:
        raise CommandExecutionError(f"{wish['unit']} is not on this host or masked: apply redis_sidekiq.redis first")
    for path in (wish["config"], __salt__["redis_build.binary"](redis["prefix"], facts["build"])):
        if not os.path.exists(path):
            raise CommandExecutionError(f"There is no {path}: apply redis_sidekiq.redis first")
    return facts


@contextlib.contextmanager
def _workers_at_rest(
    record: dict[str, Any], wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any]
) -> Iterator[list[str]]:
    """Jobs that are in work while Redis is away could be lost. A server that is down already has no use for that."""
    if old["active"] != "active" or not redis["drain_sidekiq"]:
        yield []
        return
    with contextlib.ExitStack() as stack:
        with _step(record, "workers"):
            said = stack.enter_context(__salt__["sidekiq.at_rest"](wish["name"]))
        yield said


def _rise(record: dict[str, Any], wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any]) -> None:
    """Start with the build of the settings; where that one does not serve, with the one before."""
    found = __salt__["redis_upgrade.facts"](wish["name"])
    with _step(record, "build"):
        try:
            way_back = __salt__["redis_upgrade.begin"](wish["name"])
        except CommandExecutionError:
            _launch(record, wish, redis, old)
            raise
    try:
        _launch(record, wish, redis, old)
        lost = _keys_lost(record.pop("keys", None), record["new"], wish)
        if lost and way_back:
            raise CommandExecutionError(lost)
    except CommandExecutionError as err:
        # Of one that a run before this began nobody knows whether it has served since.
        if not way_back or (found["under_way"] and not __salt__["redis_upgrade.may_go_back"](wish["name"])):
            raise
        _fall_back(record, wish, redis, old, str(err))
        raise CommandExecutionError(
            f"{wish['unit']} went back to the build before, since {found['wished']} did not serve. {err}"
        ) from err
    if way_back:
        __salt__["redis_upgrade.finish"](wish["name"])
    record["lost"] = lost


def _fall_back(
    record: dict[str, Any], wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any], why: str
) -> None:
    with _step(record, "back"):
        _stop(wish, redis)
        __salt__["redis_upgrade.back"](wish["name"], why)
    _launch(record, wish, redis, {**old, "pid": 0})


def _launch(record: dict[str, Any], wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any]) -> None:
    """Start, and prove that a new process serves."""
    with _step(record, "snapshot"):
        _refuse_unread_snapshot(wish)
        _own_data(wish, redis)
    begun = time.time()
    with _step(record, "start"):
        _start(wish, redis, old, begun)
    with _step(record, "prove"):
        record["new"] = _prove(wish, redis, old, begun)


def _land(record: dict[str, Any], wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Bring the data to safety, then stop; returns what there is to say about it."""
    with _step(record, "safety"):
        keys, notes, undo = _make_safe(wish, old) if old["pid"] else (None, [], None)
    record["keys"] = keys
    with _step(record, "stop"):
        try:
            _stop(wish, redis)
        except CommandExecutionError:
            if undo:
                undo()
            raise
    return notes


def _exchange(
    record: dict[str, Any], wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any], plan: Any
) -> list[str]:
    """Stop, put, start and prove; back to the old data if that fails. Returns what there is to say about the stop."""
    notes, failed = [], ""
    try:
        if old["active"] == "active":
            notes = _land(record, wish, redis, old)
        elif old["active"] not in ("inactive", "failed"):
            # It fails and starts again and again: what it cannot load it has not changed.
            with _step(record, "stop"):
                _stop(wish, redis)
        record.pop("keys", None)
        _put_and_prove(record, wish, redis, old, plan)
    except CommandExecutionError as err:
        failed = str(err)
    # Whatever went wrong, the server must not stay down.
    if _service_facts(wish, redis)["active"] in ("inactive", "failed"):
        try:
            _launch(record, wish, redis, old)
        except CommandExecutionError as err:
            raise CommandExecutionError(f"{failed}\nThen, with the data as they were: {err}") from err
    if failed:
        raise CommandExecutionError(failed)
    return notes


def _put_and_prove(
    record: dict[str, Any], wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any], plan: Any
) -> None:
    try:
        with _step(record, "put"):
            plan.put()
        _launch(record, wish, redis, old)
        wrong = plan.proof(record["new"]["info"])
        if wrong:
            raise CommandExecutionError(f"{wish['unit']} {wrong}")
    except CommandExecutionError as err:
        with _step(record, "undo"):
            if _service_facts(wish, redis)["active"] not in ("inactive", "failed"):
                _stop(wish, redis)
            plan.undo()
        raise CommandExecutionError(f"{err}\nThe data as they were before are back in their place") from err


def _start(wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any], asked: float) -> None:
    """Start, and say why it did not: systemd waits for READY=1, the init script for the process to stay."""
    try:
        if redis["service_manager"] == "systemd":
            if old["result"] == "start-limit-hit":
                argv = [_tool("systemctl", "systemd"), "reset-failed", "--", f"{wish['unit']}.service"]
                _run(argv, "cannot be started again", wish["unit"])
            __salt__["service.start"](f"{wish['unit']}.service")
        else:
            _run([os.path.join(_INIT_DIR, wish["unit"]), "start"], "did not start", wish["unit"])
    except CommandExecutionError as err:
        raise CommandExecutionError(f"{wish['unit']} did not start{_last_words(wish, redis, asked)}") from err


def _stop(wish: dict[str, Any], redis: dict[str, Any]) -> None:
    """Stop by SIGTERM; the service manager waits, and does not kill before it has waited long."""
    try:
        if redis["service_manager"] == "systemd":
            __salt__["service.stop"](f"{wish['unit']}.service")
        else:
            _stop_by_script(wish)
    except CommandExecutionError as err:
        raise CommandExecutionError(f"{wish['unit']} did not stop: {err}") from err
    facts = _service_facts(wish, redis)
    if facts["active"] not in ("inactive", "failed"):
        raise CommandExecutionError(f"{wish['unit']} did not stop, it is {facts['active']}")
    if facts["result"] == "timeout":
        log.warning("%s was killed after its stop timeout", wish["unit"])


def _stop_by_script(wish: dict[str, Any]) -> None:
    facts = _script_facts(wish)
    if facts["by_hand"]:
        _stop_others(wish, facts["pid"])
    else:
        _run([os.path.join(_INIT_DIR, wish["unit"]), "stop"], "did not stop", wish["unit"])


def _stop_others(wish: dict[str, Any], pid: int) -> None:
    """
    By SIGTERM: upstream's own script asks by redis-cli, without a password, and waits for ever. systemd takes a script that
    it started for a unit that is active; that ends too, so that the name is free.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + wish.get("stop_timeout", _STOP)
    while _started(pid) is not None:
        if time.monotonic() > until:
            raise CommandExecutionError(f"process {pid} did not end")
        time.sleep(0.05)
    if _booted_by_systemd():
        __salt__["service.stop"](f"{wish['unit']}.service")


def _prove(wish: dict[str, Any], redis: dict[str, Any], old: dict[str, Any], begun: float) -> dict[str, Any]:
    """The new process: another one than before, of the current build, that answers and has loaded its data."""
    facts = _service_facts(wish, redis)
    if facts["active"] != "active" or not facts["pid"] or facts["pid"] == old["pid"]:
        words = _last_words(wish, redis, begun)
        raise CommandExecutionError(f"{wish['unit']} is {facts['active']} after its start{words}")
    until, quiet_until = time.monotonic() + wish.get("start_timeout", _LOADING), time.monotonic() + _QUIET
    while True:
        facts["info"], facts["info_error"] = _info(wish)
        info = facts["info"]
        if info and info.get("loading") == 0:
            break
        gone = _started(facts["pid"]) is None
        if gone or time.monotonic() > (until if info else quiet_until):
            what = "ended" if gone else "is still loading" if info else f"does not answer: {facts['info_error']}"
            raise CommandExecutionError(f"{wish['unit']}, pid {facts['pid']}, {what}{_last_words(wish, redis, begun)}")
        time.sleep(0.1)
    if info.get("process_id") != facts["pid"]:
        raise CommandExecutionError(
            f"Port {wish['port']} is answered by process {info.get('process_id')}, not by {wish['unit']} "
            f"(pid {facts['pid']}): stop the other server"
        )
    program = os.path.realpath(__salt__["redis_build.binary"](redis["prefix"], f"instance-{wish['name']}"))
    wrong = [f"it runs {facts['program']}, not {program}"] if facts["program"] != program else []
    wrong += [reason for reason in facts["stale"] if not reason.startswith("it runs ")]
    wrong += [f"changed: {wish['config']}"] if facts["younger_config"] else []
    if wrong:
        raise CommandExecutionError(f"{wish['unit']} was started anew, and still {'; '.join(wrong)}")
    return facts


def _last_words(wish: dict[str, Any], redis: dict[str, Any], since: float) -> str:
    """What the server said last, as the end of a sentence."""
    if redis["service_manager"] == "systemd":
        place, lines = f"journalctl --unit={wish['unit']}", _journal(wish["unit"], since)
    else:
        place = _wished(wish, "logfile", "")
        lines = _tail(place)
    if not lines:
        return f"; its log says nothing: {place}"
    return f"; its log ends with:\n{_blot(chr(10).join(lines), wish['password'])}"


def _journal(unit: str, since: float) -> list[str]:
    argv = [salt.utils.path.which("journalctl") or "journalctl", "--no-pager", "--output=cat"]
    argv += [f"--lines={_LAST_LINES}", f"--unit={unit}.service", f"--since=@{since:.3f}"]
    answer = __salt__["cmd.run_all"](argv, python_shell=False, ignore_retcode=True, timeout=20, output_loglevel="quiet")
    return [line for line in answer["stdout"].splitlines() if line.strip()]


def _tail(path: str) -> list[str]:
    try:
        with open(path, "rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - 65536, 0))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return _last_lines(text, _LAST_LINES).splitlines()


# Data


def _make_safe(wish: dict[str, Any], old: dict[str, Any]) -> tuple[dict[str, int] | None, list[str], Any]:
    """
    Bring a running server's data to where the next start looks for them (src/server.c, loadDataFromDisk: with AOF on
    it reads the AOF and nothing else). Returns the number of keys, what there is to say, and how to take back what was
    changed should the server not stop.
    """
    redis = _redis_package()
    client = _connect(wish)
    if client is None:
        return _make_safe_unasked(wish, old)
    notes, points = [], None

    def undo() -> None:
        with contextlib.suppress(redis.RedisError):
            client.execute_command("CLIENT", "UNPAUSE")
            if points is not None:
                client.config_set("save", points)

    try:
        info = _wait_until_idle(client, wish)
        aof_next = _wished(wish, "appendonly", "no").lower() == "yes"
        aof_now = client.config_get("appendonly").get("appendonly") == "yes"
        saves_at = client.config_get("save").get("save")
        _same_places(client, wish)
        _refuse_full_disk(wish, snapshot=not (aof_now and aof_next))
        if not aof_next:
            _save_now(client, wish, info)
        if aof_now and aof_next and info.get("aof_last_write_status") != "ok":
            raise CommandExecutionError(
                f"{wish['unit']} could not write to its AOF, so a stop would lose keys: look into its log and at the "
                f"space in {wish['dir']}"
            )
        if aof_next and not aof_now:
            _append_from_now_on(client, wish)
            notes.append("its keys were written to an AOF before")
        if aof_next and saves_at:
            # Nobody would read the snapshot that it writes at its end, and a gigabyte of it is ten seconds without Redis.
            client.config_set("save", "")
            points = saves_at
        elif not aof_next and not saves_at:
            # With a point to save at, the server writes a snapshot when it is told to end, however old the last is.
            client.config_set("save", "86400 1")
            points = ""
            notes.append("its keys were written to a snapshot at its end, since it saves nowhere else")

        return _held(client), notes, undo
    except redis.RedisError as err:
        undo()
        raise CommandExecutionError(
            f"{wish['unit']} cannot be asked to save its data, so it was not stopped: {err}"
        ) from err


def _append_from_now_on(client: Any, wish: dict[str, Any]) -> None:
    client.config_set("appendonly", "yes")
    info = _wait_until_idle(client, wish)
    if info.get("aof_enabled") != 1 or info.get("aof_last_bgrewrite_status") != "ok":
        raise CommandExecutionError(f"{wish['unit']} could not write its first AOF: look into its log")


def _take_over(wish: dict[str, Any]) -> None:
    """
    What somebody else set up, before the config of the formula takes its place: whatever cuts the run off from here on,
    the data are where a start by that config looks, and the other script does not start it, as root, at the next boot.
    """
    redis = _redis_package()
    client = _connect(wish)
    if client is None:
        raise CommandExecutionError(_NO_PASSWORD.format(**wish))
    try:
        if (
            _wished(wish, "appendonly", "no").lower() == "yes"
            and client.config_get("appendonly").get("appendonly") != "yes"
        ):
            _refuse_full_disk(wish, snapshot=True)
            _wait_until_idle(client, wish)
            _append_from_now_on(client, wish)
    except redis.ConnectionError:
        _refuse_unread_snapshot(wish)
    except redis.RedisError as err:
        raise CommandExecutionError(f"{wish['unit']} cannot be taken over: {err}") from err
    finally:
        client.close()
    for path in __salt__["redis_instances.others"](wish["name"]):
        __salt__["redis_instances.keep"](path)
    with _failing(f"Cannot take the init script of {wish['unit']} out of the boot"):
        if os.path.join(_INIT_DIR, wish["unit"]) in __salt__["redis_instances.others"](wish["name"]):
            for link in _boot_links(wish["unit"], "sysv"):
                os.unlink(link)


def _refuse_other_places(wish: dict[str, Any], text: str) -> None:
    """
    A config of somebody else's, and its server if it runs: may that be restarted, and are the data where a start by ours
    looks for them?
    """
    places = {**_PLACES, "dir": "/"}  # a script of the init system starts in /
    for line in _without_remarks(text).splitlines():
        word, _, value = line.strip().partition(" ")
        if word.lower() in places:
            places[word.lower()] = _unquoted(value)
    said = _places_of_the_running(wish)
    runs, places = bool(said), {**places, **said}
    places["dir"] = os.path.realpath(os.path.join("/", places["dir"]))
    wished = {name: _wished(wish, name, default) for name, default in _PLACES.items()}
    # Of a server that runs nobody knows what it has not written yet.
    data = [name for name in _PLACES if runs or os.path.exists(os.path.join(places["dir"], places[name]))]
    own = f"redis_sidekiq:redis:instances:{wish['name']}"
    if runs and restart_waits(wish["restart"], wish["restart_window"]):
        raise CommandExecutionError(
            f"The Redis that was set up by hand with {wish['config']} is taken over by a restart, and redis_sidekiq:redis:restart "
            f"is {wish['restart']}: set it to when_needed for that run, or run within the window"
        )
    if data and places["dir"] != os.path.realpath(wish["dir"]):
        raise CommandExecutionError(
            f"The Redis that was set up by hand with {wish['config']} has its data in {places['dir']}, and the settings say "
            f"{wish['dir']}: set {own}:dir to the former, or stop that server and move its files there"
        )
    moved = [name for name in data if places[name] != wished[name]]
    if moved:
        raise CommandExecutionError(
            f"The Redis that was set up by hand with {wish['config']} has its data under other names: set "
            + ", ".join(f"{own}:directives:{name} to {places[name]!r}" for name in moved)
        )


def _places_of_the_running(wish: dict[str, Any]) -> dict[str, str]:
    """Where a server that runs has its data; {} if none does, or as long as this host cannot ask one."""
    try:
        redis = _redis_package()
    except CommandExecutionError:
        return {}
    with _session(wish, hold=False) as client:
        if client is None:
            raise CommandExecutionError(_NO_PASSWORD.format(**wish))
        try:
            return {word: value for name in ("dir", *_PLACES) for word, value in client.config_get(name).items()}
        except redis.RedisError:
            return {}


def _without_remarks(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def _own_data(wish: dict[str, Any], redis: dict[str, Any]) -> None:
    """
    The user of the settings owns the data, which a server of somebody else's may have written as root. Files with more
    names than one are left: in a folder of another user's they could be names of anything.
    """
    with contextlib.suppress(KeyError, FileNotFoundError, NotADirectoryError):
        owner = pwd.getpwnam(redis["user"]).pw_uid, grp.getgrnam(redis["group"]).gr_gid
        with _failing(f"Cannot give the data in {wish['dir']} to {redis['user']}"), _folder(wish["dir"]) as folder:
            for name, default in _PLACES.items():
                _own(_wished(wish, name, default), folder, owner)


def _own(name: str, folder: int, owner: tuple[int, int]) -> None:
    """A file, or a folder with the files in it; nothing is followed."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return
        raise
    try:
        info = os.fstat(handle)
        if stat.S_ISDIR(info.st_mode):
            for entry in os.listdir(handle):
                _own(entry, handle, owner)
        elif not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            return
        if info.st_uid != owner[0]:
            os.fchown(handle, *owner)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def _refuse_full_disk(wish: dict[str, Any], snapshot: bool) -> None:
    """
    A server that cannot write its snapshot when it is told to end goes on (src/server.c, finishShutdown), until it is
    killed. Asking it to try would make it refuse writes (stop-writes-on-bgsave-error), so the disk is asked first.
    """
    with contextlib.suppress(OSError):
        needed = 1 << 20
        if snapshot:
            with contextlib.suppress(FileNotFoundError):
                needed += os.path.getsize(os.path.join(wish["dir"], _wished(wish, "dbfilename", _PLACES["dbfilename"])))
        free = _free(wish["dir"])
        if free < needed:
            what = "its last snapshot takes" if snapshot else "its AOF needs"
            raise CommandExecutionError(
                f"{wish['unit']} was not stopped: {what} {_megabytes(needed)}, and {wish['dir']} has "
                f"{_megabytes(free)} free; make room, then run again"
            )


def _save_now(client: Any, wish: dict[str, Any], info: dict[str, Any]) -> None:
    """A proof that its keys can be written, while it still serves them: the next start has nothing but the snapshot."""
    if info.get("rdb_changes_since_last_save") == 0 and info.get("rdb_last_bgsave_status") == "ok":
        return
    client.bgsave()
    if _wait_until_idle(client, wish).get("rdb_last_bgsave_status") != "ok":
        raise CommandExecutionError(
            f"{wish['unit']} cannot write a snapshot, so a stop could lose keys and it was not stopped: look into "
            f"its log and at the space in {wish['dir']}, then run again"
        )


def _free(folder: str) -> int:
    """Bytes that somebody who is not root can still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"


def _make_safe_unasked(wish: dict[str, Any], old: dict[str, Any]) -> tuple[None, list[str], None]:
    """A server that takes no password known here. One that writes an AOF which the next start reads is safe to stop."""
    folder = f"/proc/{old['pid']}/fd"
    open_files = []
    with contextlib.suppress(OSError):
        for handle in os.listdir(folder):
            with contextlib.suppress(OSError):
                open_files.append(os.readlink(os.path.join(folder, handle)))
    writes_aof = any(path.startswith(wish["dir"] + "/") and ".aof" in path for path in open_files)
    if writes_aof and _wished(wish, "appendonly", "no").lower() == "yes":
        return None, ["it took no password known here, but wrote an AOF"], None
    raise CommandExecutionError(
        f"{wish['unit']} runs with another password than that of the settings and of {wish['config']}, so it cannot be "
        "asked to save its data and was not stopped. Tell it the new one (CONFIG SET requirepass), then run again"
    )


def _wait_until_idle(client: Any, wish: dict[str, Any]) -> dict[str, Any]:
    until = time.monotonic() + _BUSY
    busy_with = ("loading", "rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled")
    while True:
        info = client.info("persistence")
        busy = [name for name in busy_with if info.get(name)] + _syncing(client.info("replication"))
        if not busy:
            return info
        if time.monotonic() > until:
            raise CommandExecutionError(
                f"{wish['unit']} was busy for {_BUSY:g} s ({', '.join(busy)}), so it was not stopped; run again later"
            )
        time.sleep(0.2)


def _syncing(info: dict[str, Any]) -> list[str]:
    """Replicas that are given their first data, or that this server is given them."""
    replicas = [name for name in info if re.fullmatch(r"slave\d+", name) and info[name].get("state") != "online"]
    return replicas + (["master_sync_in_progress"] if info.get("master_sync_in_progress") else [])


def _same_places(client: Any, wish: dict[str, Any]) -> None:
    """A server that is told another file name for its data starts without them."""
    moved = []
    for name, default in {"dir": wish["dir"], **_PLACES}.items():
        found, wished = client.config_get(name).get(name), _wished(wish, name, default)
        if found is not None and os.path.realpath(found) != os.path.realpath(wished):
            moved.append(f"{name} is {found!r} and would be {wished!r}")
    if moved:
        raise CommandExecutionError(
            f"{wish['unit']} would not find its data after a restart: {'; '.join(moved)}. Stop it, move the files and "
            "start it by hand, or leave the name as it is"
        )


def _refuse_unread_snapshot(wish: dict[str, Any]) -> None:
    """With AOF on and no AOF there, Redis starts empty, and its next snapshot replaces the one that has the keys."""
    if _wished(wish, "appendonly", "no").lower() != "yes":
        return
    places = {name: os.path.join(wish["dir"], _wished(wish, name, default)) for name, default in _PLACES.items()}
    with contextlib.suppress(OSError):
        snapshot = os.path.getsize(places["dbfilename"])
        if snapshot and not os.path.exists(places["appendfilename"]) and not os.path.exists(places["appenddirname"]):
            raise CommandExecutionError(
                f"{places['dbfilename']} has data and there is no AOF: with appendonly on, Redis would start empty and "
                f"overwrite it. Run once with appendonly: false for the instance {wish['name']}, then with true"
            )


def _held(client: Any) -> dict[str, int]:
    """
    How many keys there are, and how many of them will expire, while writes wait: the server is about to be stopped. Should
    this process die before, they go on after a moment. Since 6.2 reads go on meanwhile (src/networking.c, pauseClients).
    """
    client.execute_command("CLIENT", "PAUSE", str(_HOLD), "WRITE")
    found = client.info("keyspace").values()
    return {name: sum(facts[name] for facts in found) for name in ("keys", "expires")}


def _info(wish: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """INFO, and why there is none."""
    redis = _redis_package()
    client = _connect(wish)
    if client is None:
        return None, "it takes no password known here"
    try:
        return client.info(), ""
    except redis.RedisError as err:
        return None, f"{type(err).__name__}: {_blot(str(err), wish['password'])}"
    finally:
        client.close()


@contextlib.contextmanager
def _session(wish: dict[str, Any], hold: bool) -> Iterator[Any]:
    with _lock(wish["unit"], _patience(wish)) if hold else contextlib.nullcontext():
        client = _connect(wish)
        try:
            yield client
        finally:
            if client:
                client.close()


def _connect(wish: dict[str, Any]) -> Any:
    """
    A client that got in, or one that nobody answers yet. With the password of the settings; for a server that runs with
    older ones, with that of the file, or the one that the file had before this run; without one. None: the server
    takes none of them.
    """
    nobody = None
    for door in _doors(wish):
        client, answers = _enter(door, wish)
        if answers:
            return client
        nobody = nobody or client
    return nobody


def _enter(door: dict[str, Any], wish: dict[str, Any]) -> tuple[Any, bool]:
    """A client, None if each password is refused; and whether somebody answers there."""
    redis = _redis_package()
    for password in _passwords(wish):
        client = _client(**door, password=password)
        try:
            client.ping()
        except redis.AuthenticationError:
            client.close()
            continue
        except redis.ConnectionError as err:
            return client, isinstance(err, redis.BusyLoadingError)
        except redis.RedisError as err:
            if str(err).startswith("NOAUTH"):
                client.close()
                continue
        return client, True
    return None, True


def _doors(wish: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """
    Where a server may be asked: as the settings say, and as it may still run by older ones. By TLS without looking at
    its certificate: it is at an address of this host, and the CA of the settings may be that of its clients alone.
    """
    host, tls = _host(wish["bind"]), wish.get("tls") or {}
    if wish["port"]:
        yield {"host": host, "port": wish["port"]}
    for path in dict.fromkeys([wish.get("socket"), f"/run/{wish['unit']}/redis.sock"]):
        if path and os.path.exists(path):
            yield {"unix_socket_path": path}
    if not wish["port"]:
        yield {"host": host, "port": int(wish["name"])}
    text = _file_facts(wish["config"]).get("text", "")
    for port in {tls.get("port"), *map(int, re.findall(r"^tls-port (\d+)$", text, re.MULTILINE))} - {None, 0}:
        yield {"host": host, "port": port, "ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False}


def _passwords(wish: dict[str, Any]) -> Iterator[str]:
    yield wish["password"]
    yield from wish.get("old_passwords", [])
    yield _password_in(_file_facts(wish["config"]).get("text", ""))
    # A run that took the instance over and was cut off has left its server with the password of then.
    yield _password_in(_file_facts(__salt__["redis_instances.kept"](wish["config"])).get("text", ""))
    yield __context__.get("redis_server.passwords", {}).get(wish["name"], "")
    yield ""


def _host(bind: list[str]) -> str:
    """How this host reaches an instance: loopback where it listens there, else the first address that it must have."""
    reach = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::*": "::1", "::": "::1"}
    addresses = [address.lstrip("-") for address in sorted(bind, key=lambda address: address.startswith("-"))]
    addresses = [reach.get(address, address) for address in addresses]
    loopback = [address for address in addresses if address.startswith("127.") or address == "::1"]
    return [*loopback, *addresses][0]


def _redis_package() -> Any:
    try:
        import redis  # late: it costs 0.04 s, and it may have been installed by this very run
    except ImportError as err:
        if getattr(err, "name", "") not in ("", None, "redis"):
            raise CommandExecutionError(f"The package redis of Salt's Python does not load: {err}") from None
        raise CommandExecutionError("Salt's Python has no package redis: apply redis_sidekiq.packages first") from None
    return redis


def _client(password: str, **place: Any) -> Any:
    redis = _redis_package()
    return redis.Redis(
        **place,
        password=password or None,
        decode_responses=True,
        encoding_errors="replace",
        socket_timeout=_REDIS_TIMEOUT,
        **({} if "unix_socket_path" in place else {"socket_connect_timeout": _REDIS_TIMEOUT}),
        # The client's own way is to try again for seconds; here the caller knows what to wait for.
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    )


# The procedure and its record


@contextlib.contextmanager
def _procedure(wish: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """
    One act on one instance at a time, with a record of its steps. What fails inside is told by the record, so that it
    reaches the caller with the steps that were done; an error of the caller's is raised.
    """
    record = {"instance": wish["name"], "result": False, "comment": "", "old": {}, "new": {}, "steps": []}
    try:
        with _step(record, "lock"):
            # Another call may be in the middle of a whole stop and start.
            lock = _lock(wish["unit"], _patience(wish))
        with lock:
            yield record
    except CommandExecutionError as err:
        record["result"] = False
        record["comment"] = str(err)


@contextlib.contextmanager
def _step(record: dict[str, Any], name: str) -> Iterator[None]:
    begun = time.monotonic()
    try:
        yield
    finally:
        record["steps"].append({"step": name, "seconds": round(time.monotonic() - begun, 3)})


def _done(record: dict[str, Any], comment: str, new: dict[str, Any]) -> dict[str, Any]:
    lost = record.pop("lost", "")
    record.update(result=not lost, comment=f"{comment}; but {lost}" if lost else comment, new=new)
    return record


def _keys_lost(before: dict[str, int] | None, new: dict[str, Any], wish: dict[str, Any]) -> str:
    """
    What is missing after a restart, or nothing. A snapshot has exactly the keys that there were when writes were held
    (since 7.0 the server says how many it read: src/rdb.c, rdb_last_load_keys_loaded). After an AOF was read, clients
    have already been at work when the keys are counted.
    """
    info = new.get("info")
    if not before or info is None:
        return ""
    keys, now = before["keys"], _counted(info)
    if _wished(wish, "appendonly", "no").lower() != "yes" and "rdb_last_load_keys_loaded" in info:
        now = info["rdb_last_load_keys_loaded"] + info["rdb_last_load_keys_expired"]
        missing = now < keys
    else:
        lasting = before["keys"] - before["expires"]
        missing = (keys and not now) or now < lasting - max(100, lasting // 10)
    return f"it had {keys} keys before and found {now}: look into its log and its data folder" if missing else ""


def _counted(info: dict[str, Any]) -> int:
    return sum(facts["keys"] for name, facts in info.items() if re.fullmatch(r"db\d+", name))


def _patience(wish: dict[str, Any]) -> float:
    """How long another call may be at work on an instance (s)."""
    return _BUSY + wish.get("stop_timeout", _STOP) + wish.get("start_timeout", _LOADING)


def _lock(name: str, budget: float) -> Any:
    """A lock that the kernel lets go of when its holder dies, whatever killed it."""
    try:
        os.makedirs(_LOCK_DIR, mode=0o755, exist_ok=True)
        handle = open(os.path.join(_LOCK_DIR, f"{name}.lock"), "w", encoding="ascii")  # noqa: SIM115
    except OSError as err:
        raise CommandExecutionError(f"Cannot lock {name} in {_LOCK_DIR}: {err.strerror}") from err
    until = time.monotonic() + budget
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > until:
                handle.close()
                raise CommandExecutionError(
                    f"Another call has been at work on {name} for more than {budget:.0f} s: look for it with "
                    "`salt-call saltutil.running`"
                ) from None
            time.sleep(0.1)


# Commands and files


def _tool(name: str, package: str) -> str:
    found = salt.utils.path.which(name)
    if not found:
        raise CommandExecutionError(f"{name} is not on this host: install the package {package} first")
    return found


def _run(argv: list[str], failed: str, subject: str) -> str:
    """A command's output; its own words when it fails."""
    answer = __salt__["cmd.run_all"](argv, python_shell=False, env={"LC_ALL": "C"}, ignore_retcode=True)
    if answer["retcode"] != 0:
        words = (answer["stderr"] or answer["stdout"] or f"exit status {answer['retcode']}").strip()
        raise CommandExecutionError(f"{subject} {failed}: {words}")
    return answer["stdout"]


def _last_lines(text: str, count: int) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


@contextlib.contextmanager
def _failing(sentence: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise CommandExecutionError(f"{sentence}: {err}") from err


def _file_facts(name: str) -> dict[str, str]:
    """A file's text, mode and owner; {} when there is none."""
    try:
        with open(name, encoding="utf-8", errors="replace", newline="") as handle:
            text, info = handle.read(), os.fstat(handle.fileno())
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise CommandExecutionError(f"Cannot read {name}: {err.strerror}") from err
    try:
        owner = f"{pwd.getpwuid(info.st_uid).pw_name}:{grp.getgrgid(info.st_gid).gr_name}"
    except KeyError:
        owner = f"{info.st_uid}:{info.st_gid}"
    return {"text": text, "mode": f"{stat.S_IMODE(info.st_mode):04o}", "owner": owner}
