"""
Sidekiq: ask what runs, act on it, and let the deploy user restart it and nothing else.

Facts come from systemd (one ``systemctl show``), ``/proc`` and Sidekiq's own heartbeat in Redis. Only services named
in the settings (pillar ``redis_sidekiq:sidekiq:services``) are ever acted on, whoever asks.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import glob
import logging
import os
import re
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

log = logging.getLogger(__name__)

STRATEGIES = ("handover", "drain")

_UNIT_DIR = "/etc/systemd/system"
_LOCK = "/run/redis_sidekiq/sidekiq.lock"
_TICK = 0.02  # s; /proc counts start times in ticks of 0.01 s
_POLL = 0.05  # s between looks at /proc
_FRESH = 30.0  # s; the oldest beat of a process that is alive, which beats every 10 s
_QUIET_BUDGET = 25.0  # s for a beat that says quiet: two beats, and some for a busy host
_SETTLE = 2.0  # s that a new process must live before it counts as started
_SETTLE_HELPER = 5.0  # s; a release that dies after its boot should do so before the old process is told to go
_FIRST_BEAT = 15.0  # s for the first heartbeat: READY=1 comes before it (lib/sidekiq/systemd.rb)
_NEXT_BEAT = 20.0  # s for the one after it
_REDIS_BUDGET = 30.0  # s for a Redis that is being restarted
_SPARE_MEMORY = 64 << 20  # bytes left to the rest of the host beside a second process
_ACCOUNT_TRIES = 3
_CALL_AGE = 300.0  # s
_NOT_FOUND, _FAILED = "not found", "failed"
_LOSS = "Failed to requeue"  # lib/sidekiq/fetch.rb: the jobs it was about to push back are gone

_EVENT_COMMAND = re.compile(r"sidekiq-deployed-[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


# Facts about a service -----------------------------------------------------------------------------------------------


def status(service: str, heartbeat: bool = True) -> dict[str, Any]:
    """
    What one Sidekiq service does now: systemd, ``/proc`` and the heartbeats side by side, and where they disagree.

    service
        Name of the service in the settings, without ``.service``.
    heartbeat
        Ask Redis too (bool, default True).

    Returns ``service``, ``current``, ``release`` (where it points), ``version`` (Sidekiq's in that release's
    Gemfile.lock, or empty), ``deployed`` (bool), ``surplus`` (units of this
    service that the settings no longer have), ``leftover`` (units of a restart that was cut off), and ``processes``, a
    list with for each unit what :mod:`sidekiq_units` says of it (``facts``, and below ``process`` what it says of the
    process) and ``stale``: why it has to be restarted, a list of sentences. With ``heartbeat`` each also has
    ``heartbeat`` (see :func:`processes`; None: not seen), and the whole ``heartbeat_error`` and ``disagree``
    (sentences).

    Raises SaltInvocationError for a service that is not in the settings, CommandExecutionError without systemd.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.status sidekiq
    """
    wish = _service(service)
    looked = _look(wish)
    result = {
        "service": wish["name"],
        "current": wish["current"],
        "release": os.path.realpath(wish["current"]),
        "version": _locked_version(wish["current"]),
        "deployed": os.path.exists(wish["current"]),
        "surplus": _surplus(wish),
        "leftover": _leftovers(wish),
        "processes": looked,
    }
    if heartbeat:
        beats, result["heartbeat_error"] = _beats_or_why_not(wish)
        hostname = _hostname(wish)
        for one in looked:
            one["heartbeat"] = _beat_of(hostname, one["process"], beats)
        result["disagree"] = [] if result["heartbeat_error"] else _disagreements(wish, looked)
    return result


def stale(service: str | None = None) -> list[dict[str, Any]]:
    """
    The Sidekiq processes of this minion that do not work what they should by now, and why.

    service
        Name of the service in the settings; default: all.

    Returns a list of ``{service, unit, pid, reasons}``: it works in another release than `current`, is older than its
    unit, environment, configuration or restart file, is of another version than the release's Gemfile.lock names, or
    was told to be quiet and so never works again.

    Raises SaltInvocationError for a service that is not in the settings, CommandExecutionError without systemd.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.stale
    """
    wishes = [_service(service)] if service else _settings()["sidekiq"]["services"]
    return [
        {"service": wish["name"], "unit": one["unit"], "pid": one["pid"], "reasons": one["stale"]}
        for wish in wishes
        for one in _look(wish)
        if one["stale"]
    ]


def ready(services: list[str]) -> dict[str, dict[str, Any]]:
    """
    What a roll-out has to know before it restarts services of this minion: whether they may be restarted, and need it.

    services
        Names of services in the settings.

    Returns service -> ``problem`` (why it must not be restarted now, a sentence; empty: it may) and, as far as there is
    none: ``release`` (where `current` points), ``due`` (why it has to be restarted, a list of sentences; empty: it need
    not), ``strategy`` (``handover`` or ``drain``: what a restart would do now), ``budget`` (s that a restart may take
    at most, with waiting for others on this host) and ``queues``, queue -> ``{here, elsewhere}``: how many processes
    fetch from it on this minion, and how many on others. Nothing is raised for a service, so that one does not hide
    the others.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.ready '["sidekiq"]'
    """
    answers = {}
    for service in services:
        try:
            answers[service] = _readiness(_service(service))
        except (CommandExecutionError, SaltInvocationError) as err:
            answers[service] = {"problem": str(err)}
    return answers


def processes() -> list[dict[str, Any]]:
    """
    All Sidekiq processes that beat in the Redis of this minion's services, of this host and of others.

    Returns what :func:`sidekiq_redis.beats` does; those of this minion also have ``unit``, ``release`` and ``born``
    (epoch s, by ``/proc``).

    Raises CommandExecutionError when Redis cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.processes
    """
    seen = {}
    for wish in _settings()["sidekiq"]["services"]:
        beats = __salt__["sidekiq_redis.beats"](wish["name"])
        seen.update({beat["identity"]: {**beat, **seen.get(beat["identity"], {})} for beat in beats})
        hostname = _hostname(wish)
        for one in _look(wish):
            beat = _beat_of(hostname, one["process"], beats)
            if beat:
                local = {"unit": one["unit"], "release": one["process"]["release"], "born": one["process"]["started"]}
                seen[beat["identity"]].update(local)
    return [seen[identity] for identity in sorted(seen)]


def queues(service: str) -> list[dict[str, Any]]:
    """
    The queues in the Redis of a service: name, size and latency (s), see :func:`sidekiq_redis.queues`.

    service
        Name of the service in the settings, without ``.service``.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.queues sidekiq
    """
    return __salt__["sidekiq_redis.queues"](_service(service)["name"])


def stats(service: str) -> dict[str, int]:
    """
    Sidekiq's own counts in the Redis of a service, see :func:`sidekiq_redis.stats`.

    service
        Name of the service in the settings, without ``.service``.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.stats sidekiq
    """
    return __salt__["sidekiq_redis.stats"](_service(service)["name"])


def jobs_in_flight(service: str) -> list[dict[str, Any]]:
    """
    The jobs in work in the Redis of a service, as of each process' last beat, see :func:`sidekiq_redis.jobs`.

    service
        Name of the service in the settings, without ``.service``.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.jobs_in_flight sidekiq
    """
    return __salt__["sidekiq_redis.jobs"](_service(service)["name"])


# Acts on a service ---------------------------------------------------------------------------------------------------


def start(service: str) -> dict[str, Any]:
    """
    Start a Sidekiq service and prove that it works; nothing happens to a process that runs.

    service
        Name of the service in the settings, without ``.service``.

    Returns a record, see :func:`restart`. Raises SaltInvocationError for a service that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.start sidekiq
    """
    wish = _service(service)
    with _procedure(wish, "start") as record:
        looked = _ready(record, wish)
        for one in looked:
            if one["active"] != "active":
                _Replacement(record, wish, one).start_only()
        _conclude(record, f"{_units(looked)} runs already")
    return record


def stop(service: str) -> dict[str, Any]:
    """
    Stop a Sidekiq service: jobs in work get the service's timeout, what is not done by then goes back into its queue.

    service
        Name of the service in the settings, without ``.service``.

    Returns a record, see :func:`restart`. Raises SaltInvocationError for a service that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.stop sidekiq
    """
    wish = _service(service)
    with _procedure(wish, "stop") as record:
        with _step(record, "look"):
            _tidy(wish)
            looked = _look(wish)
        for one in looked:
            if one["active"] != "inactive":
                _Replacement(record, wish, one).stop_only(drain=0)
        _conclude(record, f"{_units(looked)} does not run")
    return record


def quiet(service: str) -> dict[str, Any]:
    """
    Tell a service's processes to fetch no more jobs, and wait until they say so.

    There is no way back: a process that was quieted works again only after a restart.

    service
        Name of the service in the settings, without ``.service``.

    Returns a record, see :func:`restart`. Raises SaltInvocationError for a service that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.quiet sidekiq
    """
    return _wind_down(service, "quiet", drain=0)


def drain(service: str, timeout: int | None = None) -> dict[str, Any]:
    """
    Tell a service's processes to fetch no more jobs, and wait until those in work are done.

    There is no way back: a process that was quieted works again only after a restart.

    service
        Name of the service in the settings, without ``.service``.
    timeout
        How long to wait (s); default: ``drain_timeout`` of the settings.

    Returns a record, see :func:`restart`; ``result`` is False when jobs are still in work after the timeout. Raises
    SaltInvocationError for a service that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.drain sidekiq 600
    """
    return _wind_down(service, "drain", _service(service)["drain_timeout"] if timeout is None else int(timeout))


def retire(service: str) -> dict[str, Any]:
    """
    Drain, stop and disable the units that a service no longer has: it had more processes once, or another form.

    service
        Name of the service in the settings, without ``.service``.

    Returns a record, see :func:`restart`. Raises SaltInvocationError for a service that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.retire sidekiq
    """
    wish = _service(service)
    with _procedure(wish, "retire") as record:
        for one in _look({**wish, "units": _surplus(wish)}):
            if one["active"] != "inactive":
                _Replacement(record, wish, one).stop_only(wish["drain_timeout"])
            __salt__["service.disable"](one["unit"])
        for path in _unused_unit_files(wish):
            os.unlink(path)
        __salt__["sidekiq_units.reload_systemd"]()
        _conclude(record, f"{wish['name']} has no unit too many")
    return record


def restart(
    service: str, strategy: str | None = None, stale_only: bool = False, since: float | None = None
) -> dict[str, Any]:
    """
    Replace the processes of a Sidekiq service by new ones and lose no job; prove it, and say what became of each job.

    One process after the other: Redis is asked whether it would take jobs back; then ``drain`` tells the old process to
    fetch no more, waits for the jobs in work (``drain_timeout``), stops it and starts a new one. ``handover`` first
    starts a helper, a second process in the new release; only when that works is the old one drained and replaced, and
    the helper drained after it, so that somebody works all the time and a release that does not boot changes nothing.
    Whatever kills this call, a guard (:func:`sidekiq_units.guard_arm`) makes the service work again.

    Calls wait for each other; a process that was started after a call began has what that call came for.

    service
        Name of the service in the settings, without ``.service``.
    strategy
        ``handover`` or ``drain``; default: the service's own in the settings.
    stale_only
        Leave processes alone that :func:`stale` has nothing to say about (bool, default False).
    since
        Leave processes alone that were started after this moment (epoch s); default: when this call began, or with
        ``stale_only`` none.

    Returns a record: ``service``, ``act``, ``result`` (bool), ``comment``; ``steps``, a list of ``{unit, step,
    seconds}`` in the order they happened; ``processes``, a list of ``{unit, strategy, old, new, gap}`` with pid,
    release, version, start and heartbeat of both processes, and the seconds in which neither worked; ``jobs``, jid ->
    ``{class, queue, fate}`` for each job that was seen in work in a process that went, with the fates ``finished``,
    ``failed``, ``retry``, ``dead``, ``scheduled``, ``pushed back`` and ``not found``; ``warnings``, a list of sentences.
    ``result`` is True only when the new processes were seen to work and no job's fate is ``not found``.

    Raises SaltInvocationError for a service that is not in the settings, or an unknown strategy.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.restart sidekiq
        salt '*' sidekiq.restart sidekiq strategy=drain
    """
    wish = _service(service)
    strategy = strategy or wish["strategy"]
    if strategy not in STRATEGIES:
        raise SaltInvocationError(f"There is no strategy {strategy!r}; there are: {', '.join(STRATEGIES)}")
    if since is None:
        since = float("inf") if stale_only else _call_began()
    with _procedure(wish, "restart") as record:
        looked = _ready(record, wish)
        # Who works goes last, so that each queue keeps its consumers as long as possible.
        for one in sorted(looked, key=lambda one: one["active"] == "active"):
            if one["active"] != "active" or not one["process"]:
                _Replacement(record, wish, one).start_only()
            elif one["started"] <= since and (one["stale"] or not stale_only):
                _Replacement(record, wish, one).replace(strategy)
            elif __salt__["sidekiq_units.helper_exists"](one["unit"]):
                _Replacement(record, wish, one).retire_leftover()
        _conclude(record, f"{_units(looked)} works already, started since this call was made or as it should be")
    return record


def at_rest(instance: str, **kwargs: Any) -> contextlib.AbstractContextManager[list[str]]:
    """
    For ``redis_server``, while it restarts: this host's services that work with an instance of Redis are drained and
    stopped, and started again at the end, whatever came of it. A job that fails while Redis is away is lost, since
    Sidekiq can neither keep it nor put it among the retries (lib/sidekiq/processor.rb: it is left unacknowledged, which
    only Sidekiq Pro makes good).

    A process that is stale, and would come back with another release or config, stays at work: whether that one boots is
    for a restart with care to find out. Whatever kills this call, each unit's guard starts it.

    instance
        Name of the instance of Redis in the settings.

    Returns a context manager that gives a list of sentences, complete at its end. Raises SaltInvocationError over Salt's
    bus and on a command line, CommandExecutionError, with everything at work again, when a process cannot be stopped
    without losing a job.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.at_rest 6379   # refused; a module says: with __salt__["sidekiq.at_rest"]("6379") as said
    """
    if kwargs:
        raise SaltInvocationError("Services rest while another module is at work; see redis_server.restart")
    return _at_rest(instance)


def beside(instance: str) -> list[str]:
    """
    The units of this host that work with an instance of Redis and would rest while it restarts.

    instance
        Name of the instance of Redis in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.beside 6379
    """
    return [
        one["unit"] for wish in _working_with(instance) for one in _look(wish) if one["process"] and not one["stale"]
    ]


# Text for systemd ----------------------------------------------------------------------------------------------------


def exec_start(argv: list[str]) -> str:
    """
    The words of a command as systemd's ``ExecStart=`` wants them, so that each arrives unharmed.

    argv
        The command's words; the first is an absolute path.

    Returns one line. ``%`` and ``$`` are doubled, everything unusual stands in double quotes with C escapes
    (systemd.service(5), "Command lines"). Raises SaltInvocationError for a command that systemd could not run.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.exec_start '["/usr/bin/bundle", "exec", "sidekiq"]'
    """
    words = [str(word) for word in argv]
    # systemd expands variables in the arguments but not in the path, so that the path cannot be escaped like them.
    if not words or not re.fullmatch(r"/[A-Za-z0-9_./+@:,=-]+", words[0]):
        raise SaltInvocationError(
            f"The command must begin with an absolute path of plain characters, found {words[0] if words else ''!r}: "
            "name the program by its whole path, such as /usr/bin/bundle"
        )
    return " ".join([words[0], *(_exec_word(word) for word in words[1:])])


def environment_diff(name: str, service: str) -> dict[str, Any]:
    """
    How a service's environment file differs from the settings: names of variables only, never a value.

    name
        Path of the file.
    service
        Name of the service in the settings.

    Returns {} when it is right, else some of ``added``, ``changed``, ``removed`` (lists of names), ``text`` (the
    variables are right, the rest is not), ``mode`` and ``owner`` (``{old, new}``).

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.environment_diff /etc/sidekiq/sidekiq.env sidekiq
    """
    wish = _environment_lines(_service(service, reveal=True)["env"])
    text = _environment_text(wish)
    found = file_facts(name)
    is_now = _environment_read(found.get("text", ""))
    diff: dict[str, Any] = {
        "added": sorted(wish.keys() - is_now.keys()),
        "changed": sorted(key for key in wish.keys() & is_now.keys() if wish[key] != is_now[key]),
        "removed": sorted(is_now.keys() - wish.keys()),
    }
    diff = {key: names for key, names in diff.items() if names}
    if found.get("text") != text and not diff:
        diff["text"] = {"old": "absent" if not found else "other text", "new": "as wished"}
    for key, want in (("mode", "0600"), ("owner", "root:root")):
        if found and found[key] != want:
            diff[key] = {"old": found[key], "new": want}
    return diff


def environment_write(name: str, service: str) -> None:
    """
    Write a service's environment file, root:root 0600.

    systemd reads it as root before it becomes the service's user (systemd.exec(5), ``EnvironmentFile=``), so that
    nobody else ever needs to.

    name
        Path of the file.
    service
        Name of the service in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.environment_write /etc/sidekiq/sidekiq.env sidekiq
    """
    text = _environment_text(_environment_lines(_service(service, reveal=True)["env"]))
    __salt__["whole_files.write"](name, text, 0o600)


# What sudo lets the deploy user do -----------------------------------------------------------------------------------


def sudoers_text(
    user: str, units: list[str], verbs: list[str], commands: list[str] | None = None, group: str = ""
) -> str:
    """
    The sudoers file for a user, see :func:`sidekiq_sudo.sudoers_text`.

    user, units, verbs, commands, group
        Whom, which units, what he may tell systemctl about them, what he may run, and who else may.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudoers_text deploy '["sidekiq"]' '["restart"]'
    """
    return __salt__["sidekiq_sudo.sudoers_text"](user, units, verbs, commands, group)


def sudoers_validate(text: str, name: str) -> None:
    """
    Check a sudoers file before it lands, see :func:`sidekiq_sudo.sudoers_validate`.

    text
        The file's text.
    name
        Path that it is for.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudoers_validate "deploy ALL=(root) NOPASSWD: /usr/bin/true" /etc/sudoers.d/sidekiq-deploy
    """
    __salt__["sidekiq_sudo.sudoers_validate"](text, name)


def sudoers_write(
    name: str, user: str, units: list[str], verbs: list[str], commands: list[str] | None = None, group: str = ""
) -> None:
    """
    Put a user's sudoers file in place and prove it, see :func:`sidekiq_sudo.sudoers_write`.

    name
        Path of the file.
    user, units, verbs, commands, group
        See :func:`sudoers_text`.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudoers_write /etc/sudoers.d/sidekiq-deploy deploy '["sidekiq"]' '["restart"]'
    """
    __salt__["sidekiq_sudo.sudoers_write"](name, user, units, verbs, commands, group)


def sudoers_remove(name: str) -> None:
    """
    Take a sudoers file away, see :func:`sidekiq_sudo.sudoers_remove`.

    name
        Path of the file; one that is not there is fine.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudoers_remove /etc/sudoers.d/sidekiq-deploy
    """
    __salt__["sidekiq_sudo.sudoers_remove"](name)


def sudo_check(
    user: str, units: list[str] | None = None, verbs: list[str] | None = None, commands: list[str] | None = None
) -> dict[str, Any]:
    """
    What a user may do by sudo and what not, and which file says so, see :func:`sidekiq_sudo.sudo_check`.

    user, units, verbs, commands
        Whom, and what he is meant to do; default: what the settings say.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudo_check deploy
    """
    return __salt__["sidekiq_sudo.sudo_check"](user, units, verbs, commands)


def sudo_risks(user: str, units: list[str] | None = None, commands: list[str] | None = None) -> list[dict[str, str]]:
    """
    The ways in which a user could gain more than sudo lets him do, see :func:`sidekiq_risks.find`.

    user, units, commands
        Whom, and what he is meant to act on and to run; default: what the settings say.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudo_risks deploy
    """
    return __salt__["sidekiq_risks.find"](user, units, commands)


# The commands that send deploy events --------------------------------------------------------------------------------


def event_commands(name: str) -> list[str]:
    """
    The commands for deploy events in a folder that are this formula's: by their name and by how they begin.

    name
        Path of the folder.

    Returns their paths, sorted; files of others, links and folders are never among them.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.event_commands /usr/local/sbin
    """
    paths = [os.path.join(name, entry) for entry in folder_entries(name) or [] if _EVENT_COMMAND.fullmatch(entry)]
    return [path for path in paths if __salt__["whole_files.is_ours"](path)]


def event_commands_remove(name: str, paths: list[str]) -> None:
    """
    Take commands for deploy events away.

    name
        Path of their folder.
    paths
        Their paths; one that is not among :func:`event_commands` is left as it is.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.event_commands_remove /usr/local/sbin '["/usr/local/sbin/sidekiq-deployed-shop"]'
    """
    for path in event_commands(name):
        if path in paths:
            try:
                os.unlink(path)
            except OSError as err:
                raise CommandExecutionError(f"Cannot remove {path}: {err.strerror}") from err


# Files ---------------------------------------------------------------------------------------------------------------


def file_facts(name: str) -> dict[str, str]:
    """
    A file's text, mode and owner.

    name
        Path of the file.

    Returns {} when there is no such file, else ``text``, ``mode`` (``0440``) and ``owner`` (``root:root``, numbers for
    ids without a name).

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.file_facts /etc/sudoers.d/sidekiq-deploy
    """
    try:
        with open(name, encoding="utf-8", errors="replace", newline="") as handle:
            text, info = handle.read(), os.fstat(handle.fileno())
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise CommandExecutionError(f"Cannot read {name}: {err.strerror}") from err
    owner = "root:root" if (info.st_uid, info.st_gid) == (0, 0) else f"{info.st_uid}:{info.st_gid}"
    return {"text": text, "mode": f"{stat.S_IMODE(info.st_mode):04o}", "owner": owner}


def folder_remove(name: str) -> None:
    """
    Remove an empty folder.

    name
        Path of the folder; one that is not there, or that holds something, is left as it is.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.folder_remove /etc/sidekiq
    """
    try:
        os.rmdir(name)
    except FileNotFoundError:
        pass
    except OSError as err:
        if err.errno != errno.ENOTEMPTY:
            raise CommandExecutionError(f"Cannot remove {name}: {err.strerror}") from err


def folder_entries(name: str) -> list[str] | None:
    """
    The names in a folder, sorted; None when there is no such folder.

    name
        Path of the folder.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.folder_entries /etc/sidekiq
    """
    try:
        return sorted(os.listdir(name))
    except FileNotFoundError:
        return None
    except OSError as err:
        raise CommandExecutionError(f"Cannot look into {name}: {err.strerror}") from err


def text_diff(old: str, new: str) -> str:
    """
    Two texts as a unified diff, for a state's changes.

    old, new
        The texts.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.text_diff 'a' 'b'
    """
    return "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), "is", "will be", lineterm=""))


# --- below: how it is done -------------------------------------------------------------------------------------------

# Settings


def _settings(reveal: bool = False) -> dict[str, Any]:
    return __salt__["redis_sidekiq.settings"](reveal=reveal)


def _service(name: str, reveal: bool = False) -> dict[str, Any]:
    """The settings of one service. A name from anywhere else (an event, a command line) is refused here."""
    services = {service["name"]: service for service in _settings(reveal)["sidekiq"]["services"]}
    if not isinstance(name, str) or name not in services:
        known = ", ".join(sorted(services)) or "none"
        raise SaltInvocationError(
            f"{name!r} is not a Sidekiq service of this minion; the pillar redis_sidekiq:sidekiq:services has: {known}"
        )
    return services[name]


# Looking


def _look(wish: dict[str, Any]) -> list[dict[str, Any]]:
    """What systemd and /proc say of each unit of a service, and why its process is stale."""
    looked = __salt__["sidekiq_units.facts"](wish["units"]) if wish["units"] else []
    for one in looked:
        one["process"] = __salt__["sidekiq_units.process"](one["pid"], one["group"]) if one["pid"] else None
        one["stale"] = _stale(wish, one) if one["active"] == "active" and one["process"] else []
    return looked


def _stale(wish: dict[str, Any], one: dict[str, Any]) -> list[str]:
    process, release = one["process"], os.path.realpath(wish["current"])
    reasons = []
    if process["stopping"]:
        reasons.append("it was told to be quiet, and works no more")
    # Whose working directory is somewhere else altogether says nothing about its release.
    if not _is_below(process["release"], release) and _is_below(process["release"], os.path.realpath(wish["app_dir"])):
        reasons.append(f"it works in {process['release']}, and {wish['current']} is {release}")
    if one["needs_reload"]:
        reasons.append("it runs with an older unit")
    changed = _changed_since(process["started"], [*_config_files(wish), *one["drop_ins"]])
    if changed:
        reasons.append(f"changed since it started: {', '.join(changed)}")
    locked = _locked_version(release)
    if process["version"] and locked and locked != process["version"]:
        reasons.append(f"it is Sidekiq {process['version']}, and the release's Gemfile.lock says {locked}")
    return reasons


def _readiness(wish: dict[str, Any]) -> dict[str, Any]:
    looked = _look(wish)
    _require_startable(wish, looked)
    beats = []
    if "REDIS_URL" in wish["env_names"]:
        refusal = __salt__["sidekiq_redis.refusal"](wish["name"])
        if refusal:
            raise CommandExecutionError(refusal)
        beats = __salt__["sidekiq_redis.beats"](wish["name"])
    short = any(_memory_short(one["process"]) for one in looked if one["process"])
    return {
        "problem": "",
        "release": os.path.realpath(wish["current"]),
        "due": _due(looked),
        "strategy": "drain" if short else wish["strategy"],
        # One restart at a time on a host: it may have to wait for those of the other services.
        "budget": sum(map(_budget, _settings()["sidekiq"]["services"])),
        "queues": _consumers(_hostname(wish), looked, beats),
    }


def _due(looked: list[dict[str, Any]]) -> list[str]:
    """What a restart with ``stale_only`` would do something about."""
    due = []
    for one in looked:
        if one["active"] != "active" or not one["process"]:
            due.append(f"{one['unit']} does not work, systemd calls it {one['active']}")
        elif one["stale"]:
            due.append(f"{one['unit']}: {'; '.join(one['stale'])}")
        elif __salt__["sidekiq_units.helper_exists"](one["unit"]):
            due.append(f"{one['unit']}: a restart that was cut off left its helper")
    return due


def _consumers(hostname: str, looked: list[dict[str, Any]], beats: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Who fetches from the queues of these processes: how many of themselves, and how many others."""
    own = {beat["identity"] for one in looked if (beat := _beat_of(hostname, one["process"], beats))}
    working = [beat for beat in beats if beat["beat_age"] < _FRESH and not beat["quiet"]]
    names = {queue for beat in working if beat["identity"] in own for queue in beat["queues"]}
    queues = {name: {"here": 0, "elsewhere": 0} for name in sorted(names)}
    for beat in working:
        for name in names.intersection(beat["queues"]):
            queues[name]["here" if beat["identity"] in own else "elsewhere"] += 1
    return queues


def _memory_short(process: dict[str, Any]) -> str:
    """Why there is no room for a second process beside this one; empty: there is."""
    needed = int(process["rss"] * 1.25) + _SPARE_MEMORY
    available = __salt__["sidekiq_units.available_memory"]()
    if available >= needed:
        return ""
    return f"a second process needs {needed >> 20} MiB of memory, {available >> 20} MiB are available"


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _locked_version(release: str) -> str:
    """Sidekiq's version in a release's Gemfile.lock: four spaces, name, version (Bundler's lock file format)."""
    try:
        with open(os.path.join(release, "Gemfile.lock"), encoding="utf-8", errors="replace") as handle:
            match = re.search(r"^    sidekiq \((\d[\w.]*)\)$", handle.read(), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""


def _config_files(wish: dict[str, Any]) -> list[str]:
    files = [wish["unit_file"], wish["env_file"], wish["config_file"], wish["restart_file"]]
    return [path for path in files if path]


def _changed_since(started: float | None, files: list[str]) -> list[str]:
    """
    The files that changed after the process was started. A time in the future says nothing (the clock was set back, or
    the file came from elsewhere): taking it for a change would restart the service in every run.
    """
    if started is None:
        return []
    changed = []
    for path in files:
        with contextlib.suppress(OSError):
            if started + _TICK < os.stat(path).st_mtime <= time.time():
                changed.append(path)
    return changed


def _surplus(wish: dict[str, Any]) -> list[str]:
    """Units of a service that are set up and no longer wished: it has more processes now, or fewer."""
    links = glob.glob(os.path.join(_UNIT_DIR, "*.wants", f"{glob.escape(wish['name'])}@*.service"))
    found = {os.path.basename(path) for path in links}
    found |= {os.path.basename(path) for path in _unused_unit_files(wish) if "@" not in path}
    return sorted(found - set(wish["units"]))


def _unused_unit_files(wish: dict[str, Any]) -> list[str]:
    both = [os.path.join(_UNIT_DIR, f"{wish['name']}{at}.service") for at in ("", "@")]
    return [path for path in both if path != wish["unit_file"] and os.path.exists(path)]


def _leftovers(wish: dict[str, Any]) -> list[str]:
    """Units whose restart was cut off: its helper or guard is still there."""
    return [
        unit
        for unit in wish["units"]
        if __salt__["sidekiq_units.helper_exists"](unit) or __salt__["sidekiq_units.guard_exists"](unit)
    ]


def _units(looked: list[dict[str, Any]]) -> str:
    return ", ".join(one["unit"] for one in looked)


# Heartbeats


def _beats_or_why_not(wish: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    try:
        return __salt__["sidekiq_redis.beats"](wish["name"]), ""
    except CommandExecutionError as err:
        return [], str(err)


def _hostname(wish: dict[str, Any]) -> str:
    """Sidekiq calls its host $DYNO or by its hostname (lib/sidekiq/component.rb)."""
    return _service(wish["name"], reveal=True)["env"].get("DYNO") or os.uname().nodename


def _beat_of(
    hostname: str, process: dict[str, Any] | None, beats: list[dict[str, Any]], known: Collection[str] = ()
) -> dict[str, Any] | None:
    """
    The heartbeat of one process of this host. Its identity says hostname and pid, and neither is unique: hosts can have
    the same name, and a dead process' heartbeat stays for a minute, while its pid is given out again. So it also has to
    be fresh, none of those that were there before the process was, and the nearest to its start.
    """
    if not process:
        return None
    mine = [
        beat
        for beat in beats
        if (beat["hostname"], beat["pid"]) == (hostname, process["pid"])
        and beat["identity"] not in known
        and beat["beat_age"] < _FRESH
    ]
    return min(mine, key=lambda beat: abs((beat["started"] or 0) - process["started"]), default=None)


def _disagreements(wish: dict[str, Any], looked: list[dict[str, Any]]) -> list[str]:
    found = []
    for one in looked:
        if one["active"] == "active" and not one["heartbeat"]:
            found.append(f"systemd calls {one['unit']} active, but pid {one['pid']} does not beat in Redis")
        if one["process"] and one["process"]["wrapper"]:
            found.append(_wrapped(one))
        if one["heartbeat"] and one["heartbeat"]["quiet"]:
            found.append(f"{one['unit']} is active for systemd, and quiet: it works no more until it is restarted")
    return found


def _wrapped(one: dict[str, Any]) -> str:
    return (
        f"the main process of {one['unit']}, pid {one['pid']}, is not Sidekiq but its parent: a plain systemctl stop "
        f"would kill Sidekiq, pid {one['process']['pid']}, with its jobs; begin the command's last part with exec"
    )


# Replacing a process


class _Replacement:
    """One unit's process gives way to a new one; what is seen on the way goes into the record."""

    def __init__(self, record: dict[str, Any], wish: dict[str, Any], one: dict[str, Any]) -> None:
        self.record, self.wish, self.unit, self.old = record, wish, one["unit"], one
        self.helper = __salt__["sidekiq_units.helper_name"](self.unit)
        self.release = os.path.realpath(wish["current"])
        self.hostname = _hostname(wish)
        self.has_redis = "REDIS_URL" in wish["env_names"]
        self.made = self.began = time.time()
        self.jobs: dict[str, dict[str, Any]] = {}  # those in work in what went
        self.gone: set[str] = set()  # heartbeats of what went
        self.gone_pids: set[int] = set()
        self.drained: set[str] = set()  # those of them that had no job left
        self.known: set[str] = set()  # heartbeats from before
        self.entry = {"unit": self.unit, "strategy": "", "old": _short(one), "new": {}, "gap": None}
        record["processes"].append(self.entry)

    # The ways

    def start_only(self) -> None:
        """What is not active; a try that systemd makes may have read older files, and would count as ours."""
        self.entry["strategy"] = "start"
        self.remember_beats()
        if self.old["active"] not in ("inactive", "failed"):
            with self.step("stop"):
                self.stop(self.unit, self.old["process"])
        with self.step("start"):
            self.start()
        with self.step("prove"):
            self.entry["new"] = self.prove(self.unit, _SETTLE, beats=1, strict=False)
        self.retire_leftover()

    def stop_only(self, drain: float) -> None:
        """What the settings do not want, or what was asked to stop."""
        self.entry["strategy"] = "stop"
        if drain and self.old["process"]:
            with self.step("quiet"):
                self.quiet(self.old["process"])
            with self.step("drain"):
                self.drain(self.old["process"], drain)
        with self.step("stop"):
            self.stop(self.unit, self.old["process"])
        self.account()
        if __salt__["sidekiq_units.helper_exists"](self.unit):
            self.drop_helper()

    def retire_leftover(self) -> None:
        """The service's own process works; a helper that a cut-off restart left has nothing to do any more."""
        if __salt__["sidekiq_units.helper_exists"](self.unit):
            self.entry["strategy"] = self.entry["strategy"] or "retire"
            self.retire_helper()
            self.account()

    def replace(self, strategy: str) -> None:
        """What works, and is to be new."""
        with self.step("check"):
            self.check()
        covered = self.is_covered()
        self.entry["strategy"] = strategy if covered else self.possible(strategy)
        if self.entry["strategy"] == "handover" and not covered:
            self.raise_helper()
            covered = True
        with self.step("guard"):
            __salt__["sidekiq_units.guard_arm"](self.unit, _LOCK)
        try:
            self.exchange(covered)
        except BaseException:
            self.rescue()
            raise
        finally:
            __salt__["sidekiq_units.guard_disarm"](self.unit)
        self.account()

    def exchange(self, covered: bool) -> None:
        """The old process winds down and a new one takes over; after the first step there is no way back."""
        quiet_at = time.time()
        with self.step("quiet"):
            self.quiet(self.old["process"])
        with self.step("drain"):
            self.drain(self.old["process"], self.wish["drain_timeout"])
        # One that was killed meanwhile has a successor already, systemd's: nothing to stop there.
        (facts,) = __salt__["sidekiq_units.facts"]([self.unit])
        if facts["pid"] == self.old["pid"]:
            with self.step("stop"):
                self.stop(self.unit, self.old["process"])
        with self.step("start"):
            self.start()
        self.entry["gap"] = 0.0 if covered else round(time.time() - quiet_at, 3)
        with self.step("prove"):
            self.entry["new"] = self.prove(self.unit, _SETTLE, beats=2)
        if covered:
            self.retire_helper()

    # Before the first step that cannot be taken back

    def check(self) -> None:
        """A process that cannot push its jobs back must not be stopped."""
        if not self.has_redis:
            self.warn(f"The settings give {self.wish['name']} no Redis: its heartbeat and its jobs were not seen")
            return
        refusal = __salt__["sidekiq_redis.refusal"](self.wish["name"])
        if refusal:
            raise CommandExecutionError(f"{self.unit} was left as it is, its jobs could not be pushed back. {refusal}")
        self.remember_beats()
        if self.old["process"]["wrapper"]:
            self.warn(_wrapped(self.old))

    def remember_beats(self) -> None:
        self.known = {beat["identity"] for beat in _beats_or_why_not(self.wish)[0]}

    def is_covered(self) -> bool:
        """A restart that was cut off left its helper at work: what it was made for goes on with it, if it fetches jobs."""
        if not __salt__["sidekiq_units.helper_exists"](self.unit):
            return False
        process = self.helper_process()
        beat = self.beat_of(process)
        if process and not process["stopping"] and not (beat and beat["quiet"]):
            return True
        self.retire_helper()
        return False

    def helper_process(self) -> dict[str, Any] | None:
        (helper,) = __salt__["sidekiq_units.facts"]([self.helper])
        return (
            __salt__["sidekiq_units.process"](helper["pid"], helper["group"]) if helper["active"] == "active" else None
        )

    def possible(self, strategy: str) -> str:
        """Two processes need the memory of two."""
        short = _memory_short(self.old["process"]) if strategy == "handover" else ""
        if short:
            self.warn(f"{self.unit} was drained instead of handed over: {short}")
        return "drain" if short else strategy

    def raise_helper(self) -> None:
        """The new release proves itself beside the old process; if it cannot, nothing has happened."""
        self.began = time.time()
        try:
            with self.step("start the helper"):
                __salt__["sidekiq_units.helper_write"](self.old)
                self.tell_start(self.helper)
            with self.step("prove the helper"):
                self.prove(self.helper, _SETTLE_HELPER, beats=1)
        except BaseException as err:
            self.drop_helper()
            if isinstance(err, CommandExecutionError):
                raise CommandExecutionError(f"{self.unit} still works as before, pid {self.old['pid']}. {err}") from err
            raise

    def drop_helper(self) -> None:
        with contextlib.suppress(CommandExecutionError):
            __salt__["sidekiq_units.stop"](self.helper)
        __salt__["sidekiq_units.helper_remove"](self.unit)

    # Winding down

    def quiet(self, process: dict[str, Any]) -> None:
        """
        No more jobs are fetched. A process whose worker threads are known by number says so at once, by their end;
        else its next beat does.
        """
        beat = self.beat_of(process)
        process["countable"] = process["threads"] > 0 and (not beat or beat["concurrency"] == process["threads"])
        process["identity"] = beat["identity"] if beat else ""
        self.gone.add(process["identity"])
        self.gone_pids.add(process["pid"])
        self.note_jobs(process)
        if not __salt__["sidekiq_units.signal"](process["pid"], process["born"], "TSTP"):
            return
        process["quiet_at"] = time.time()
        for _ in self.polls(process, _QUIET_BUDGET):
            if self.is_drained(process):
                return
            beat = self.beat_of(process)
            if beat and beat["quiet"]:
                self.note_jobs(process)
                return
        if self.is_there(process):
            self.warn(f"pid {process['pid']} of {self.unit} did not say within {_QUIET_BUDGET:g} s that it is quiet")

    def drain(self, process: dict[str, Any], budget: float) -> bool:
        """Jobs in work come to their end, within a budget. Returns whether all did."""
        for _ in self.polls(process, budget):
            if self.is_drained(process):
                break
            self.note_jobs(process)
            if not process["countable"] and self.beats_idle(process):
                break
        else:
            if not self.is_drained(process):
                return False
        self.drained.add(process["identity"])
        return True

    def beats_idle(self, process: dict[str, Any]) -> bool:
        """A late fetch is over two seconds after the signal: the fetch's own timeout (lib/sidekiq/fetch.rb)."""
        beat = self.beat_of(process)
        return bool(beat and beat["quiet"] and not beat["busy"] and beat["beat"] > process.get("quiet_at", 0) + 2)

    def is_drained(self, process: dict[str, Any]) -> bool:
        """A processor thread ends once it was told to be quiet and its job is done."""
        if not process.get("countable") or not self.is_there(process):
            return False
        return not __salt__["sidekiq_units.worker_threads"](process["pid"])

    def is_there(self, process: dict[str, Any]) -> bool:
        return __salt__["sidekiq_units.born"](process["pid"]) == process["born"]

    def await_end(self, process: dict[str, Any], budget: float) -> None:
        until = time.monotonic() + budget
        while self.is_there(process) and time.monotonic() < until:
            time.sleep(_POLL)

    def polls(self, process: dict[str, Any], budget: float) -> Iterator[None]:
        """Once a second, or sooner when the worker threads have ended; ends with the process or the budget."""
        until = time.monotonic() + budget
        while self.is_there(process) and time.monotonic() < until:
            yield
            pause = min(until, time.monotonic() + 1)
            while time.monotonic() < pause and self.is_there(process) and not self.is_drained(process):
                time.sleep(_POLL)

    def stop(self, unit: str, process: dict[str, Any] | None) -> None:
        """Sidekiq's own end: what is still in work after its timeout goes back into its queue."""
        if process and self.is_there(process):
            self.await_redis(process)
            self.note_jobs(process)
            if process["wrapper"]:
                # systemd would tell the wrapper alone, and kill the rest as soon as that is gone.
                __salt__["sidekiq_units.signal"](process["pid"], process["born"], "TERM")
                self.await_end(process, self.wish["stop_timeout"])
        stopped_at = time.time()
        __salt__["sidekiq_units.stop"](unit)
        (facts,) = __salt__["sidekiq_units.facts"]([unit])
        if facts["active"] not in ("inactive", "failed"):
            raise CommandExecutionError(f"{unit} did not stop, systemd calls it {facts['active']}")
        if facts["result"] == "timeout":
            self.warn(f"{unit} was killed after its stop timeout of {self.wish['stop_timeout']} s")
        if __salt__["sidekiq_units.journal_about"]([unit], stopped_at - 1, [_LOSS]):
            self.record["lossy"].append(f"{unit} said '{_LOSS}' when it stopped: those jobs are lost")

    def await_redis(self, process: dict[str, Any]) -> None:
        """Jobs in work are pushed back into Redis; while it takes none they are given time to end by themselves."""
        until = time.monotonic() + self.wish["stop_timeout"]
        while self.has_redis and self.is_there(process) and not self.is_drained(process):
            refusal = __salt__["sidekiq_redis.refusal"](self.wish["name"])
            if not refusal:
                return
            if time.monotonic() > until:
                self.warn(
                    f"{self.unit} was stopped with jobs in work although they could not be pushed back. {refusal}"
                )
                return
            time.sleep(1)

    # Starting

    def start(self) -> None:
        """Start; a Sidekiq cannot boot without its Redis, so one that is just being restarted is waited for."""
        self.began, self.release = time.time(), os.path.realpath(self.wish["current"])
        if self.old["result"] == "start-limit-hit":
            __salt__["sidekiq_units.reset_failed"](self.unit)
        try:
            self.tell_start(self.unit)
        except CommandExecutionError:
            if not self.has_redis or not self.redis_comes_back():
                raise
            self.tell_start(self.unit)

    def tell_start(self, unit: str) -> None:
        try:
            __salt__["sidekiq_units.start"](unit)
        except CommandExecutionError as err:
            raise CommandExecutionError(f"{unit} did not start{self.journal(unit)}") from err

    def redis_comes_back(self) -> bool:
        """Was Redis away, and is it back?"""
        until, away = time.monotonic() + _REDIS_BUDGET, False
        while __salt__["sidekiq_redis.refusal"](self.wish["name"]):
            away = True
            if time.monotonic() > until:
                return False
            time.sleep(1)
        return away

    def prove(self, unit: str, settle: float, beats: int, strict: bool = True) -> dict[str, Any]:
        """The new process: another one than before, in the release, alive a little later, and beating."""
        (first,) = __salt__["sidekiq_units.facts"]([unit])
        process = __salt__["sidekiq_units.process"](first["pid"], first["group"])
        if first["active"] != "active" or not process or first["pid"] == self.old["pid"]:
            raise CommandExecutionError(f"{unit} is {first['active']} after its start{self.journal(unit)}")
        self.await_end(process, settle)
        beat, error = self.new_beat(first, beats, patient=strict) if self.has_redis else (None, "")
        (facts,) = __salt__["sidekiq_units.facts"]([unit])
        if (facts["active"], facts["pid"], facts["restarts"]) != ("active", first["pid"], first["restarts"]):
            raise CommandExecutionError(f"{unit} ended soon after its start{self.journal(unit)}")
        facts["process"] = __salt__["sidekiq_units.process"](facts["pid"], facts["group"])
        self.prove_release(facts)
        if self.has_redis and not beat:
            self.prove_failed(facts, error, strict)
        return {**_short(facts), "heartbeat": beat}

    def prove_release(self, facts: dict[str, Any]) -> None:
        """It works where `current` pointed when it was started, or points by now."""
        found, app = facts["process"]["release"], os.path.realpath(self.wish["app_dir"])
        wanted = {self.release, os.path.realpath(self.wish["current"])}
        if _is_below(found, app) and not any(_is_below(found, release) for release in wanted):
            raise CommandExecutionError(f"{facts['unit']} works in {found} instead of {self.release}")

    def prove_failed(self, facts: dict[str, Any], error: str, strict: bool) -> None:
        if not error:
            raise CommandExecutionError(
                f"{facts['unit']} runs as pid {facts['pid']} but does not beat in the Redis of its REDIS_URL: does the "
                f"app connect elsewhere? Then set `redis: ''` for this service{self.journal(facts['unit'])}"
            )
        if strict:
            raise CommandExecutionError(
                f"{facts['unit']} runs as pid {facts['pid']}, and is not proven to work. {error}"
            )
        self.warn(f"{facts['unit']} works, but its heartbeat was not seen. {error}")

    def new_beat(self, facts: dict[str, Any], count: int, patient: bool) -> tuple[dict[str, Any] | None, str]:
        """A process' heartbeat once it was seen ``count`` times, or None; and why it could not be asked for."""
        until, seen, error = time.monotonic() + _FIRST_BEAT, set(), ""
        while time.monotonic() < until and __salt__["sidekiq_units.born"](facts["pid"]):
            beats, error = _beats_or_why_not(self.wish)
            if error and not patient:
                break
            process = __salt__["sidekiq_units.process"](facts["pid"], facts["group"])
            beat = _beat_of(self.hostname, process, beats, self.known)
            if beat and beat["beat"] not in seen and not beat["quiet"]:
                seen.add(beat["beat"])
                until = time.monotonic() + _NEXT_BEAT
                if len(seen) >= count:
                    return beat, ""
            time.sleep(0.25)
        return None, error

    def retire_helper(self) -> None:
        """The service's own process works again; the helper gives way as the old process did."""
        process = self.helper_process()
        if process:
            with self.step("quiet the helper"):
                self.quiet(process)
            with self.step("drain the helper"):
                self.drain(process, self.wish["drain_timeout"])
        with self.step("stop the helper"):
            self.stop(self.helper, process)
            __salt__["sidekiq_units.helper_remove"](self.unit)

    def rescue(self) -> None:
        """Something failed after the old process was told to be quiet: a process has to work in the end."""
        with self.step("rescue"):
            (facts,) = __salt__["sidekiq_units.facts"]([self.unit])
            if facts["active"] == "activating":
                self.warn(f"systemd goes on trying to start {self.unit}")
                return
            if facts["active"] != "active" or facts["pid"] == self.old["pid"]:
                try:
                    __salt__["sidekiq_units.restart"](self.unit)
                except CommandExecutionError as err:
                    self.warn(f"{self.unit} could not be started: {err}. systemd goes on trying")
                    return
                (facts,) = __salt__["sidekiq_units.facts"]([self.unit])
                self.warn(f"{self.unit} was started again in systemd's own way, pid {facts['pid']}")
            # Only now that the service's own process runs.
            if __salt__["sidekiq_units.helper_exists"](self.unit):
                self.drop_helper()

    # What became of the jobs

    def note_jobs(self, process: dict[str, Any]) -> None:
        """The jobs in work as of the last beat."""
        if not process.get("identity"):
            return
        with contextlib.suppress(CommandExecutionError):
            for job in __salt__["sidekiq_redis.jobs"](self.wish["name"], [process["identity"]]):
                self.jobs[job["jid"]] = {**job, "fate": _NOT_FOUND}

    def account(self) -> None:
        """Each job that was in work is finished, failed, or somewhere in Redis."""
        if not self.jobs:
            return
        with self.step("account"):
            self.redis_comes_back()
            for attempt in range(_ACCOUNT_TRIES):
                # A job that was pushed back may be between queue and log just now, and looks like one that failed.
                time.sleep(attempt)
                self.judge()
                if not self.with_fate(_NOT_FOUND) and not self.with_fate(_FAILED):
                    break
        for jid, job in self.jobs.items():
            self.record["jobs"][jid] = {key: job[key] for key in ("class", "queue", "fate")}
        lost = self.with_fate(_NOT_FOUND)
        if lost:
            self.record["lossy"].append(
                f"{len(lost)} of {len(self.jobs)} jobs in work were not found again: {', '.join(lost)}"
            )

    def with_fate(self, fate: str) -> list[str]:
        return sorted(jid for jid, job in self.jobs.items() if job["fate"] == fate)

    def judge(self) -> None:
        """Sidekiq's own log says what ended, Redis where the others are; and a drained process has finished all."""
        # Jobs are known as of a beat, and may have ended between that and this call.
        since = self.made - _FRESH
        said = __salt__["sidekiq_units.journal_about"]([self.unit, self.helper], since, sorted(self.jobs))
        words = {jid: _last_word(said, jid, self.gone_pids) for jid in self.jobs}
        names = sorted({job["queue"].removeprefix("queue:") for job in self.jobs.values()})
        unsaid = [jid for jid, word in words.items() if word not in ("done", "start")]
        places = __salt__["sidekiq_redis.find"](self.wish["name"], unsaid, names, sorted(self.gone)) if unsaid else {}
        for jid, job in self.jobs.items():
            if words[jid] == "done":
                job["fate"] = "finished"
            elif words[jid] == "start":
                job["fate"] = "pushed back"
            elif jid in places:
                job["fate"] = places[jid]
            elif words[jid] == "fail":
                job["fate"] = _FAILED
            elif job["identity"] in self.drained:
                job["fate"] = "finished"

    # Small things

    def beat_of(self, process: dict[str, Any]) -> dict[str, Any] | None:
        return _beat_of(self.hostname, process, _beats_or_why_not(self.wish)[0])

    def journal(self, unit: str) -> str:
        secrets = [str(value) for value in _service(self.wish["name"], reveal=True)["env"].values()]
        return __salt__["sidekiq_units.journal"](unit, self.began, secrets)

    def warn(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self.record["warnings"].append(sentence)

    def step(self, name: str) -> contextlib.AbstractContextManager[None]:
        return _step(self.record, name, self.unit)


def _last_word(said: list[dict[str, Any]], jid: str, gone: Collection[int]) -> str:
    """
    What Sidekiq logged of a job last: `start`, then `done` or `fail` (lib/sidekiq/job_logger.rb; a job that is pushed
    back fails too). That a process began it which is gone by now is no news.
    """
    last = ""
    for entry in said:
        word = re.findall(r"\b(start|done|fail)\b", entry["message"]) if jid in entry["message"] else []
        if word and not (word[-1] == "start" and entry["pid"] in gone):
            last = word[-1]
    return last


def _short(one: dict[str, Any]) -> dict[str, Any]:
    """What a record says of a process."""
    process = one.get("process") or {}
    return {
        "pid": process.get("pid", one["pid"]),
        "active": one["active"],
        "started": process.get("started"),
        "release": process.get("release", ""),
        "version": process.get("version"),
    }


def _ready(record: dict[str, Any], wish: dict[str, Any]) -> list[dict[str, Any]]:
    """The units as they are, once it is sure that stopping them could be followed by a start."""
    with _step(record, "look"):
        _tidy(wish)
        looked = _look(wish)
        if any(one["needs_reload"] for one in looked):
            older = {one["unit"] for one in looked if one["needs_reload"]}
            __salt__["sidekiq_units.reload_systemd"]()
            looked = _look(wish)
            for one in looked:
                # What runs is still the process of the older unit.
                if one["unit"] in older and one["process"]:
                    one["stale"].append("it runs with an older unit")
        _require_startable(wish, looked)
    return looked


def _require_startable(wish: dict[str, Any], looked: list[dict[str, Any]]) -> None:
    for one in looked:
        if not one["loaded"]:
            reason = "is masked: systemctl unmask it" if one["masked"] else "is not on this host: apply redis_sidekiq"
            raise CommandExecutionError(f"{one['unit']} {reason} first")
    if not os.path.exists(wish["current"]):
        raise CommandExecutionError(f"There is no release at {wish['current']}: deploy one first")


def _tidy(wish: dict[str, Any]) -> None:
    """Who holds the lock is in charge: the guard of a restart that was cut off is not needed any more."""
    for unit in wish["units"]:
        __salt__["sidekiq_units.guard_disarm"](unit)


def _wind_down(service: str, act: str, drain: float) -> dict[str, Any]:
    wish = _service(service)
    with _procedure(wish, act) as record:
        with _step(record, "look"):
            looked = [one for one in _look(wish) if one["process"]]
        for one in looked:
            replacement = _Replacement(record, wish, one)
            replacement.entry["strategy"] = "drain only" if act == "drain" else act
            with replacement.step("quiet"):
                replacement.quiet(one["process"])
            if act == "drain":
                with replacement.step("drain"):
                    drained = replacement.drain(one["process"], drain)
                if not drained:
                    raise CommandExecutionError(f"{one['unit']} still has jobs in work after {drain:g} s")
        _conclude(record, f"{wish['name']} does not run")
    return record


# Resting while Redis is away


def _working_with(instance: str) -> list[dict[str, Any]]:
    settings = _settings()
    services = settings["sidekiq"]["services"] if "sidekiq" in settings["roles"] else []
    return [wish for wish in services if wish["redis"] == str(instance)]


@contextlib.contextmanager
def _at_rest(instance: str) -> Iterator[list[str]]:
    wishes, said = _working_with(instance), []
    if not wishes:
        yield said
        return
    stopped: list[_Replacement] = []
    with _lock(sum(map(_budget, _settings()["sidekiq"]["services"]))):
        try:
            for wish in wishes:
                _tidy(wish)
                record = _record(wish, "rest")
                for one in _look(wish):
                    if one["process"] and one["stale"]:
                        said.append(f"{one['unit']} stayed at work, because it is stale: {'; '.join(one['stale'])}")
                    elif one["process"]:
                        stopped.append(_rest(record, wish, one))
                said += record["lossy"] + record["warnings"]
            yield said
        finally:
            said += [_back_to_work(replacement) for replacement in stopped]


def _rest(record: dict[str, Any], wish: dict[str, Any], one: dict[str, Any]) -> _Replacement:
    replacement = _Replacement(record, wish, one)
    replacement.check()
    __salt__["sidekiq_units.guard_arm"](one["unit"], _LOCK)
    try:
        replacement.stop_only(wish["drain_timeout"])
    except BaseException:
        _back_to_work(replacement)
        raise
    return replacement


def _back_to_work(replacement: _Replacement) -> str:
    """A process that does not come up is systemd's to start again, and told."""
    try:
        replacement.rescue()
    finally:
        __salt__["sidekiq_units.guard_disarm"](replacement.unit)
    (facts,) = __salt__["sidekiq_units.facts"]([replacement.unit])
    if facts["active"] != "active":
        return f"{replacement.unit} was drained and stopped, and does not work again: it is {facts['active']}"
    return f"{replacement.unit} was drained before and works again, pid {facts['pid']}"


# The procedure and its record


def _record(wish: dict[str, Any], act: str) -> dict[str, Any]:
    lists = {name: [] for name in ("steps", "processes", "warnings", "lossy")}
    return {"service": wish["name"], "act": act, "result": False, "comment": "", **lists, "jobs": {}}


@contextlib.contextmanager
def _procedure(wish: dict[str, Any], act: str) -> Iterator[dict[str, Any]]:
    """
    One act on this host's services at a time, with a record of its steps. What fails inside is told by the record, so
    that it reaches the caller with the steps that were done; an error of the caller's is raised.
    """
    record = _record(wish, act)
    try:
        with _step(record, "lock"):
            lock = _lock(sum(map(_budget, _settings()["sidekiq"]["services"])))
        with lock:
            yield record
    except CommandExecutionError as err:
        record["result"] = False
        record["comment"] = " ".join([str(err), *record["lossy"], *record["warnings"]])
    del record["lossy"]


def _budget(wish: dict[str, Any]) -> float:
    """How long a restart of a service may take (s)."""
    once = _QUIET_BUDGET + wish["drain_timeout"] + 2 * wish["stop_timeout"]
    start = 2 * wish["start_timeout"] + _SETTLE_HELPER + _FIRST_BEAT + _NEXT_BEAT + _REDIS_BUDGET
    return len(wish["units"]) * (2 * once + 2 * start + 30)


@contextlib.contextmanager
def _step(record: dict[str, Any], name: str, unit: str = "") -> Iterator[None]:
    _tell_step(record, {"step": name, "unit": unit})
    begun = time.monotonic()
    try:
        yield
    finally:
        record["steps"].append({"unit": unit, "step": name, "seconds": round(time.monotonic() - begun, 3)})


def _tell_step(record: dict[str, Any], step: dict[str, str]) -> None:
    """Whoever watches sees the steps as they happen: a person at salt-call, or the master's event bus."""
    if __opts__.get("__cli") == "salt-call":
        print(
            f"{time.strftime('%H:%M:%S')} {step['unit'] or record['service']}: {step['step']}",
            file=sys.stderr,
            flush=True,
        )
    elif __opts__.get("__cli") == "salt-minion":
        # By way of the minion, which neither waits for the master nor fails with it (salt/modules/event.py).
        __salt__["event.fire_master"](step, f"redis_sidekiq/{record['act']}/{record['service']}")


def _conclude(record: dict[str, Any], nothing: str) -> None:
    said = [_sentence(entry) for entry in record["processes"]] or [nothing]
    record["comment"] = ". ".join([*said, *record["lossy"], *record["warnings"]])
    record["result"] = not record["lossy"]


def _sentence(entry: dict[str, Any]) -> str:
    pids = f"pid {entry['old']['pid']} before, {entry['new'].get('pid')} now"
    return {
        "start": f"{entry['unit']} works, pid {entry['new'].get('pid')}",
        "stop": f"{entry['unit']} is stopped",
        "quiet": f"{entry['unit']} is quiet, and works no more until it is restarted",
        "drain only": f"{entry['unit']} has no job in work, and works no more until it is restarted",
        "retire": f"the helper of {entry['unit']} is gone",
        "drain": f"{entry['unit']} was drained and replaced: {pids}",
        "handover": f"{entry['unit']} was handed over: {pids}",
    }[entry["strategy"]]


def _call_began() -> float:
    """
    When this call was made: its process was started for it, a while before it came to this line. A minion that works
    with threads instead has an old process, which says nothing.
    """
    now = time.time()
    began = __salt__["sidekiq_units.start_time"](os.getpid()) or now
    return began if now - began < _CALL_AGE else now


def _lock(budget: float) -> Any:
    """A lock that the kernel lets go of when its holder dies, whatever killed it."""
    try:
        os.makedirs(os.path.dirname(_LOCK), mode=0o755, exist_ok=True)
        handle = open(_LOCK, "w", encoding="ascii")  # noqa: SIM115
    except OSError as err:
        raise CommandExecutionError(f"Cannot lock the services in {_LOCK}: {err.strerror}") from err
    until = time.monotonic() + budget
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > until:
                handle.close()
                raise CommandExecutionError(
                    f"Another call has been at work on Sidekiq for more than {budget:.0f} s: look for it with "
                    "`salt-call saltutil.running`"
                ) from None
            time.sleep(0.1)


# Quoting for systemd


def _exec_word(word: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./+@:,=-]+", word):
        return word
    if not _printable(word, but="\t\n"):
        raise SaltInvocationError(f"A command's word may not contain control characters: {word!r}")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'


def _environment_lines(env: dict[str, Any]) -> dict[str, str]:
    return {name: f"{name}={_environment_value(name, str(env[name]))}" for name in sorted(env)}


def _environment_value(name: str, value: str) -> str:
    """
    In double quotes a backslash escapes `"`, `$`, a backtick and itself, and everything else stands for itself, line
    ends too (systemd.exec(5), ``EnvironmentFile=``; nothing is expanded there).
    """
    if not _ENV_NAME.fullmatch(name):
        raise SaltInvocationError(f"{name!r} is no name for an environment variable: letters, digits and _ only")
    if not _printable(value, but="\t\n"):
        raise SaltInvocationError(f"The value of {name} contains a control character, which systemd would refuse")
    return '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'


def _environment_text(lines: dict[str, str]) -> str:
    return "".join(line + "\n" for line in ["# Managed by Salt (formula redis_sidekiq)", *lines.values()])


def _environment_read(text: str) -> dict[str, str]:
    """The variables of a file as written here: name -> its line. A value may span lines."""
    found = re.finditer(r'^([A-Za-z_]\w*)=(?:"(?:[^"\\]|\\.)*"|.*)$', text, re.MULTILINE)
    return {match[1]: match[0] for match in found}


def _printable(text: str, but: str) -> bool:
    return not any((ord(char) < 32 or ord(char) == 127) and char not in but for char in text)
