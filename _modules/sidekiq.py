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
import json
import logging
import os
import pwd
import re
import stat
import tempfile
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    __salt__: dict[str, Any] = {}

log = logging.getLogger(__name__)

# The words that a deploy user may say to systemctl. `reload` is not among them: a quieted Sidekiq never works again
# until it is restarted, so a reload that only quiets leaves a dead consumer (sidekiq issue 4523). `status`, `show` and
# `edit` open a pager or an editor as root; looking needs no root.
VERBS = ("restart", "start", "stop")

_UNIT_DIR = "/etc/systemd/system"
_LOCK_DIR = "/run/redis_sidekiq"
_SETTLE = 2.0  # s that a new process must live before it counts as started
_FIRST_BEAT = 15.0  # s for the first heartbeat: READY=1 comes before it (sidekiq lib/sidekiq/systemd.rb)
_TICK = 0.02  # s; /proc counts start times in ticks of 0.01 s
_REDIS_TIMEOUT = 3.0  # s for each answer from Redis
_JOURNAL_LINES = 30

_UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@_-]*")
# A name that begins with a capital could be read as an alias, `%`, `#` and `+` as a group, an id, a netgroup.
_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]*(\.[a-z0-9_-]+)*")
_SUDOERS_FILE = re.compile(r"[A-Za-z0-9_-]+")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INCLUDE = re.compile(r'^\s*[@#](include|includedir)\s+(?:"([^"]+)"|((?:\\.|[^\s"\\])+))\s*$')

_PROPERTIES = (
    "ActiveState",
    "DropInPaths",
    "LoadState",
    "MainPID",
    "NRestarts",
    "NeedDaemonReload",
    "Result",
    "SubState",
    "UnitFileState",
)


# Facts about a service -----------------------------------------------------------------------------------------------


def status(
    service: str, current: str | None = None, config_files: list[str] | None = None, heartbeat: bool = True
) -> dict[str, Any]:
    """
    What one Sidekiq service does now: systemd, ``/proc`` and the heartbeat side by side.

    service
        Name of the service in the settings, without ``.service``.
    current
        Path that exists once a release is deployed; default: from the settings.
    config_files
        Paths that the process should be younger than; default: unit, environment file and sidekiq.yml of the settings.
    heartbeat
        Ask Redis for the process' heartbeat too (bool, default True).

    Returns a dictionary: ``service``, ``unit``, ``loaded``, ``enabled``, ``active``, ``sub``, ``result`` (systemd's
    words), ``pid`` (0: none), ``started`` (epoch s or None), ``restarts`` (systemd's own since the last start),
    ``needs_reload`` (the unit on disk is not the one loaded), ``deployed`` (bool), ``changed_since_start`` (list of
    paths) and, with ``heartbeat``, ``heartbeat`` (see :func:`processes`; None: not seen) and ``heartbeat_error``.

    Raises SaltInvocationError for a service that is not in the settings, CommandExecutionError without systemd.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.status sidekiq
    """
    wish = _service(service)
    facts = _unit_facts(wish["unit"])
    facts["service"] = wish["name"]
    facts["deployed"] = os.path.exists(current or wish["current"])
    files = _config_files(wish) if config_files is None else config_files
    facts["changed_since_start"] = _changed_since(facts["started"], [*files, *facts.pop("drop_ins")])
    if heartbeat:
        facts["heartbeat"], facts["heartbeat_error"] = _heartbeat(wish["name"], facts["pid"])
    return facts


def processes() -> list[dict[str, Any]]:
    """
    All Sidekiq processes that beat in the Redis of this minion's services, of this host and of others.

    Returns a list of dictionaries: ``identity`` (``hostname:pid:nonce``), ``hostname``, ``pid``, ``tag``, ``version``
    (None before Sidekiq 7.1), ``started`` (epoch s), ``concurrency``, ``queues``, ``busy``, ``quiet`` (bool), ``beat``
    (epoch s), ``beat_age`` (s). Keys as written by Sidekiq's lib/sidekiq/launcher.rb.

    Raises CommandExecutionError when Redis cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.processes
    """
    seen = {}
    for service in _settings()["sidekiq"]["services"]:
        for beat in _beats(service["name"]):
            seen[beat["identity"]] = beat
    return [seen[identity] for identity in sorted(seen)]


# Acts on a service ---------------------------------------------------------------------------------------------------


def start(service: str) -> dict[str, Any]:
    """
    Start a Sidekiq service and prove that it works; nothing happens to one that runs.

    service
        Name of the service in the settings, without ``.service``.

    Returns a record: ``service``, ``result`` (bool), ``comment``, ``old`` and ``new`` (see :func:`status`), ``steps``
    (list of ``{step, seconds}``). Raises SaltInvocationError for a service that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.start sidekiq
    """
    wish = _service(service)
    with _procedure(wish) as record:
        with _step(record, "look"):
            old = record["old"] = _ready_to_start(wish)
        if old["active"] == "active":
            return _done(record, f"{wish['unit']} runs already, pid {old['pid']}", new=old)
        if old["active"] not in ("inactive", "failed"):
            # It fails and starts again and again: a try under way may have read older files, and would count as ours.
            with _step(record, "stop"):
                _stop(wish)
        begun = time.time()
        with _step(record, "start"):
            _start(wish, old)
        with _step(record, "prove"):
            new = _prove(wish, old, begun)
        _done(record, f"{wish['unit']} works, pid {new['pid']}{_but(new)}", new=new)
    return record


def stop(service: str) -> dict[str, Any]:
    """
    Stop a Sidekiq service: jobs in work get the service's timeout, what is not done by then goes back into its queue.

    service
        Name of the service in the settings, without ``.service``.

    Returns a record as :func:`start` does. Raises SaltInvocationError for a service that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.stop sidekiq
    """
    wish = _service(service)
    with _procedure(wish) as record:
        with _step(record, "look"):
            old = record["old"] = _unit_facts(wish["unit"])
        if old["active"] == "inactive":
            return _done(record, f"{wish['unit']} does not run", new=old)
        with _step(record, "stop"):
            new = _stop(wish)
        _done(record, f"{wish['unit']} is stopped", new=new)
    return record


def restart(service: str) -> dict[str, Any]:
    """
    Restart a Sidekiq service, and prove that a new process works: what a deploy event runs.

    Calls for the same service wait for each other; a call that finds that the process was started after it was made
    has what it came for and restarts nothing. So a burst of events costs two restarts at most.

    service
        Name of the service in the settings, without ``.service``.

    Returns a record: ``service``, ``result`` (bool), ``comment``, ``old`` and ``new`` (see :func:`status`), ``steps``
    (list of ``{step, seconds}`` in the order they happened). ``result`` is True only when the new process was seen: a
    new MainPID, active, the same one two seconds later, and beating in Redis when Redis can be asked.

    Raises SaltInvocationError for a service that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.restart sidekiq
    """
    wish = _service(service)
    requested = time.time()
    with _procedure(wish) as record:
        with _step(record, "look"):
            old = record["old"] = _ready_to_start(wish)
        if _works_since(old, requested):
            return _done(record, f"{wish['unit']} was restarted by another call, pid {old['pid']}", new=old)
        try:
            with _step(record, "stop"):
                _stop(wish)
        finally:
            # Whatever went wrong while stopping, the service must not stay down.
            begun = time.time()
            with _step(record, "start"):
                _start(wish, old)
        with _step(record, "prove"):
            new = _prove(wish, old, begun)
        _done(record, f"{wish['unit']} was restarted: pid {old['pid']} before, {new['pid']} now{_but(new)}", new=new)
    return record


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
    _write(name, _environment_text(_environment_lines(_service(service, reveal=True)["env"])), 0o600)


# What sudo lets the deploy user do -----------------------------------------------------------------------------------


def sudoers_text(user: str, units: list[str], verbs: list[str]) -> str:
    """
    The sudoers file that lets a user say these verbs about these units to systemctl, without a password.

    Each line is a whole command: absolute path as it is on this host, all arguments, both spellings of the unit.
    sudo compares arguments as text, so `restart sidekiq` does not cover `restart sidekiq.service` (sudoers(5)). NOEXEC,
    because on a terminal systemctl starts systemd-tty-ask-password-agent, as root: with it systemctl prints one line
    about that and does its work all the same, and no pager or editor can ever come out of these commands.

    user
        Login name.
    units
        Units, with or without ``.service``.
    verbs
        Some of restart, start, stop.

    Returns the text. Raises SaltInvocationError for anything that sudo could read as more than a plain name.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudoers_text deploy '["sidekiq"]' '["restart"]'
    """
    lines = [
        "# Managed by Salt (formula redis_sidekiq): changes made here are undone by the next run.",
        f"# What {user} may run as root without a password: these commands to the letter.",
    ]
    lines += [f"{user} ALL=(root) NOPASSWD: NOEXEC: {' '.join(argv)}" for argv in _granted(user, units, verbs)]
    return "\n".join(lines) + "\n"


def sudoers_validate(text: str, name: str) -> None:
    """
    Check a sudoers file before it lands: its name, its own syntax, and the whole policy with it in place.

    Nothing below /etc is touched: the whole policy is checked in a private copy.

    text
        The file's text.
    name
        Path that it is for, such as ``/etc/sudoers.d/sidekiq-deploy``.

    Returns None. Raises SaltInvocationError for a name that sudo would ignore, CommandExecutionError with visudo's own
    words otherwise; when another file breaks the policy, it is named.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudoers_validate "deploy ALL=(root) NOPASSWD: /usr/bin/true" /etc/sudoers.d/sidekiq-deploy
    """
    if not os.path.isabs(name) or not _SUDOERS_FILE.fullmatch(os.path.basename(name)):
        raise SaltInvocationError(
            f"sudo would ignore {name}: in its folder it skips names with a dot or a tilde (sudoers(5)); "
            "use an absolute path that ends in letters, digits, - and _ only"
        )
    visudo = _tool("visudo", "sudo")
    # TMPDIR may belong to anybody; a folder made by mkdtemp is 0700 and root's.
    with tempfile.TemporaryDirectory(prefix="sudoers-") as folder:
        os.mkdir(os.path.join(folder, "candidate"))
        candidate = os.path.join(folder, "candidate", os.path.basename(name))
        _write(candidate, text, 0o440)
        alone = _visudo(visudo, candidate, strict=True)
        if alone:
            raise CommandExecutionError(f"visudo refuses the text for {name}: {alone.replace(candidate, name)}")
        copies = _copy_policy(folder, candidate, name)
        whole = _visudo(visudo, os.path.join(folder, "policy", "0"))
        if whole:
            raise CommandExecutionError(_whole_policy_sentence(whole, copies, name))


def sudoers_write(name: str, user: str, units: list[str], verbs: list[str]) -> None:
    """
    Put the deploy user's sudoers file in place: validated before, proven with sudo after, taken back if not as meant.

    name
        Path of the file, such as ``/etc/sudoers.d/sidekiq-deploy``.
    user, units, verbs
        See :func:`sudoers_text`.

    Returns None. Raises SaltInvocationError or CommandExecutionError; the file is then as it was before.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudoers_write /etc/sudoers.d/sidekiq-deploy deploy '["sidekiq"]' '["restart"]'
    """
    text = sudoers_text(user, units, verbs)
    sudoers_validate(text, name)
    before = file_facts(name)
    _write(name, text, 0o440)
    wrong = _sudo_proof(user, units, verbs)
    if not wrong:
        return
    if before:
        _write(name, before["text"], int(before["mode"], 8))
    else:
        os.unlink(name)
    raise CommandExecutionError(
        f"sudo did not take {name} as meant, so the file is as it was before: " + "; ".join(wrong)
    )


def sudoers_remove(name: str) -> None:
    """
    Take a sudoers file away.

    name
        Path of the file; one that is not there is fine.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudoers_remove /etc/sudoers.d/sidekiq-deploy
    """
    try:
        os.unlink(name)
    except FileNotFoundError:
        pass
    except OSError as err:
        raise CommandExecutionError(f"Cannot remove {name}: {err.strerror}") from err


def sudo_installed() -> bool:
    """
    Whether this host has sudo and its checker, visudo.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudo_installed
    """
    return bool(salt.utils.path.which("sudo") and salt.utils.path.which("visudo"))


def sudo_check(user: str, units: list[str] | None = None, verbs: list[str] | None = None) -> dict[str, Any]:
    """
    What a user may do by sudo, in sudo's own words, beside what the formula means him to do.

    user
        Login name.
    units
        Units that he is meant to act on; default: the Sidekiq units of the settings.
    verbs
        Verbs that he is meant to say; default: those of the settings.

    Returns ``user``, ``rules`` (list of ``{runas, tags, command}``), ``missing`` (commands meant for him that sudo does
    not allow without a password), ``beyond`` (rules that allow something else). One process: ``sudo -l -U USER``.

    Raises CommandExecutionError when sudo is not there or does not know the user.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq.sudo_check deploy
    """
    if units is None or verbs is None:
        deploy = _settings()["deploy"]
        units = deploy["units"] if units is None else units
        verbs = deploy["verbs"] if verbs is None else verbs
    meant = [" ".join(argv) for argv in _granted(user, units, verbs)]
    rules = _sudo_rules(user)
    free = {rule["command"] for rule in rules if rule["runas"] == "root" and "NOPASSWD" in rule["tags"]}
    return {
        "user": user,
        "rules": rules,
        "missing": [command for command in meant if command not in free],
        "beyond": [rule for rule in rules if rule["command"] not in meant or rule["runas"] != "root"],
    }


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


def _config_files(wish: dict[str, Any]) -> list[str]:
    files = [os.path.join(_UNIT_DIR, wish["unit"]), wish["env_file"], wish["config_file"]]
    return [path for path in files if path]


# systemd and /proc


def _unit_facts(unit: str) -> dict[str, Any]:
    """
    One ``systemctl show``. Not ``service.show``: that one splits ExecStart at `` ; `` and dies of an argument that
    contains it (salt/modules/systemd_service.py, show), and it cannot tell a systemctl that failed.
    """
    argv = [_tool("systemctl", "systemd"), "show", "--property=" + ",".join(_PROPERTIES), "--", unit]
    answer = __salt__["cmd.run_all"](argv, python_shell=False, env={"LC_ALL": "C"}, ignore_retcode=True)
    if answer["retcode"] != 0:
        raise CommandExecutionError(f"systemd does not answer about {unit}: {answer['stderr'] or answer['stdout']}")
    facts = _read_properties(unit, answer["stdout"])
    new = [path for path in _drop_ins(unit) if path not in facts["drop_ins"]]
    if new:
        # systemd 252 does not see a new drop-in before a daemon-reload, NeedDaemonReload or not.
        facts["drop_ins"] += new
        facts["needs_reload"] = True
    return facts


def _drop_ins(unit: str) -> list[str]:
    """The administrator's own settings for a unit (systemctl edit), as they are on disk."""
    folder = os.path.join(_UNIT_DIR, f"{unit}.d")
    try:
        return [os.path.join(folder, entry) for entry in sorted(os.listdir(folder)) if entry.endswith(".conf")]
    except OSError:
        return []


def _read_properties(unit: str, text: str) -> dict[str, Any]:
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    pid = int(found.get("MainPID") or 0)
    return {
        "unit": unit,
        "loaded": found.get("LoadState") == "loaded",
        "masked": found.get("LoadState") == "masked",
        "enabled": found.get("UnitFileState") == "enabled",
        "active": found.get("ActiveState", ""),
        "sub": found.get("SubState", ""),
        "result": found.get("Result", ""),
        "pid": pid,
        "started": _started(pid),
        "restarts": int(found.get("NRestarts") or 0),
        "needs_reload": found.get("NeedDaemonReload") == "yes",
        "drop_ins": found.get("DropInPaths", "").split(),
    }


def _started(pid: int) -> float | None:
    """When a process was started (epoch s). Field 22 of proc_pid_stat(5), in ticks since boot, suspended time included."""
    if not pid:
        return None
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as handle:
            ticks = int(handle.read().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return None
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(boot + ticks / os.sysconf("SC_CLK_TCK"), 2)


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


def _works_since(facts: dict[str, Any], moment: float) -> bool:
    return facts["active"] == "active" and (facts["started"] or 0) > moment


def _ready_to_start(wish: dict[str, Any]) -> dict[str, Any]:
    """The unit's facts, once it is sure that stopping it could be followed by a start."""
    facts = _unit_facts(wish["unit"])
    if facts["needs_reload"]:
        __salt__["service.systemctl_reload"]()
        facts = _unit_facts(wish["unit"])
    if not facts["loaded"]:
        reason = "is masked: systemctl unmask it" if facts["masked"] else "is not on this host: apply redis_sidekiq"
        raise CommandExecutionError(f"{wish['unit']} {reason} first")
    if not os.path.exists(wish["current"]):
        raise CommandExecutionError(f"There is no release at {wish['current']}: deploy one first")
    return facts


def _start(wish: dict[str, Any], old: dict[str, Any]) -> None:
    """Start, and say why it did not: systemd waits for READY=1, TimeoutStartSec at most."""
    if old["result"] == "start-limit-hit":
        argv = [_tool("systemctl", "systemd"), "reset-failed", "--", wish["unit"]]
        __salt__["cmd.run_all"](argv, python_shell=False, ignore_retcode=True)
    asked = time.time()
    try:
        __salt__["service.start"](wish["unit"])
    except CommandExecutionError as err:
        raise CommandExecutionError(f"{wish['unit']} did not start{_journal(wish, asked)}") from err


def _stop(wish: dict[str, Any]) -> dict[str, Any]:
    """Stop; systemd waits TimeoutStopSec at most before it kills."""
    try:
        __salt__["service.stop"](wish["unit"])
    except CommandExecutionError as err:
        raise CommandExecutionError(f"{wish['unit']} did not stop: {err}") from err
    facts = _unit_facts(wish["unit"])
    if facts["active"] not in ("inactive", "failed"):
        raise CommandExecutionError(f"{wish['unit']} did not stop, systemd calls it {facts['active']}")
    if facts["result"] == "timeout":
        log.warning("%s was killed after its stop timeout of %s s", wish["unit"], wish["stop_timeout"])
    return facts


def _prove(wish: dict[str, Any], old: dict[str, Any], begun: float) -> dict[str, Any]:
    """The new process: another one than before, alive a little later, and beating. Waits on /proc, not on systemctl."""
    first = _unit_facts(wish["unit"])
    if first["active"] != "active" or not first["pid"] or first["pid"] == old["pid"]:
        raise CommandExecutionError(f"{wish['unit']} is {first['active']} after its start{_journal(wish, begun)}")
    until = time.monotonic() + _SETTLE
    while time.monotonic() < until and _started(first["pid"]) is not None:
        time.sleep(0.1)
    facts = _unit_facts(wish["unit"])
    if (facts["active"], facts["pid"], facts["restarts"]) != ("active", first["pid"], first["restarts"]):
        raise CommandExecutionError(f"{wish['unit']} ended within {_SETTLE:g} s of its start{_journal(wish, begun)}")
    facts["heartbeat"], facts["heartbeat_error"] = _first_beat(wish["name"], facts["pid"])
    if not facts["heartbeat"] and not facts["heartbeat_error"]:
        raise CommandExecutionError(
            f"{wish['unit']} runs as pid {facts['pid']} but does not beat in the Redis of its REDIS_URL: does the app "
            f"connect elsewhere? Then set `redis: ''` for this service{_journal(wish, begun)}"
        )
    return facts


def _but(new: dict[str, Any]) -> str:
    return f"; its heartbeat was not seen: {new['heartbeat_error']}" if new["heartbeat_error"] else ""


def _journal(wish: dict[str, Any], since: float) -> str:
    """The unit's last words, as the end of a sentence. Secrets of its environment are blotted out."""
    argv = [salt.utils.path.which("journalctl") or "journalctl", "--no-pager", "--output=json"]
    argv += ["--output-fields=MESSAGE", f"--lines={_JOURNAL_LINES}", f"--unit={wish['unit']}", f"--since=@{since:.3f}"]
    answer = __salt__["cmd.run_all"](argv, python_shell=False, ignore_retcode=True, timeout=20, output_loglevel="quiet")
    lines = _journal_messages(answer["stdout"])
    if not lines:
        return f"; its journal says nothing: journalctl --unit={wish['unit']}"
    return "; its journal ends with:\n" + _blot("\n".join(lines), _service(wish["name"], reveal=True)["env"])


def _journal_messages(text: str) -> list[str]:
    messages = []
    for line in text.splitlines():
        try:
            message = json.loads(line).get("MESSAGE")
        except (ValueError, AttributeError):
            continue
        # A message that is not UTF-8 comes as a list of bytes (systemd's JOURNAL_EXPORT_FORMATS).
        if isinstance(message, list):
            message = bytes(message).decode("utf-8", "replace")
        if message:
            messages.append(message)
    return messages


def _blot(text: str, env: dict[str, str]) -> str:
    """Values of the environment, and passwords within URLs of it, as asterisks; short values are words, not secrets."""
    secrets = {str(value) for value in env.values()}
    for value in list(secrets):
        with contextlib.suppress(ValueError):
            secrets.add(urlsplit(value).password or "")
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 6:
            text = text.replace(secret, "******")
    return text


# The procedure and its record


@contextlib.contextmanager
def _procedure(wish: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """
    One act on one service at a time, with a record of its steps. What fails inside is told by the record, so that it
    reaches the caller with the steps that were done; an error of the caller's is raised.
    """
    record = {"service": wish["name"], "result": False, "comment": "", "old": {}, "new": {}, "steps": []}
    try:
        # Another call may be in the middle of a whole stop and start.
        budget = wish["stop_timeout"] + wish["start_timeout"] + _SETTLE + _FIRST_BEAT + 30
        with _step(record, "lock"):
            lock = _lock(wish["name"], budget)
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
    record.update(result=True, comment=comment, new=new)
    return record


def _lock(name: str, budget: float) -> Any:
    """A lock that the kernel lets go of when its holder dies, whatever killed it."""
    try:
        os.makedirs(_LOCK_DIR, mode=0o755, exist_ok=True)
        handle = open(os.path.join(_LOCK_DIR, f"{name}.lock"), "w", encoding="ascii")  # noqa: SIM115
    except OSError as err:
        raise CommandExecutionError(f"Cannot lock the service in {_LOCK_DIR}: {err.strerror}") from err
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


# Heartbeats in Redis


def _client(service: str) -> Any:
    """A client for the Redis that the service's REDIS_URL names; the URL never leaves this process."""
    url = _service(service, reveal=True)["env"].get("REDIS_URL", "")
    if not url:
        raise CommandExecutionError(f"The settings give {service} no Redis, so nothing can be said about its heartbeat")
    try:
        import redis  # late: it costs 0.04 s, and most runs need no answer from Redis
    except ImportError:
        raise CommandExecutionError("Salt's Python has no module redis: apply redis_sidekiq, or pip.install it") from None
    return redis.Redis.from_url(
        url, decode_responses=True, socket_timeout=_REDIS_TIMEOUT, socket_connect_timeout=_REDIS_TIMEOUT
    )


def _beats(service: str) -> list[dict[str, Any]]:
    client = _client(service)
    import redis

    try:
        identities = sorted(client.smembers("processes"))
        pipe = client.pipeline(transaction=False)
        for identity in identities:
            pipe.hgetall(identity)
        answers = pipe.execute()
    except redis.RedisError as err:
        raise CommandExecutionError(f"Redis does not answer about {service}: {type(err).__name__}") from err
    finally:
        client.close()
    now = time.time()
    return [_read_beat(identity, fields, now) for identity, fields in zip(identities, answers) if fields]


def _read_beat(identity: str, fields: dict[str, str], now: float) -> dict[str, Any]:
    hostname, pid, _ = identity.rsplit(":", 2)
    info = json.loads(fields.get("info") or "{}")
    beat = float(fields.get("beat") or 0)
    return {
        "identity": identity,
        "hostname": hostname,
        "pid": int(pid),
        "tag": info.get("tag", ""),
        "version": info.get("version"),
        "started": info.get("started_at"),
        "concurrency": info.get("concurrency", fields.get("concurrency")),
        "queues": info.get("queues", []),
        "busy": int(fields.get("busy") or 0),
        "quiet": fields.get("quiet") == "true",
        "beat": beat,
        "beat_age": round(now - beat, 3),
    }


def _heartbeat(service: str, pid: int) -> tuple[dict[str, Any] | None, str]:
    """The heartbeat of this host's process, and why it could not be asked for."""
    if not pid:
        return None, ""
    try:
        beats = _beats(service)
    except CommandExecutionError as err:
        return None, str(err)
    # Sidekiq calls its host $DYNO or by its hostname (lib/sidekiq/component.rb). A pid comes back after a while, and
    # the old heartbeat stays for 60 s, so this one must also have begun after the process did.
    host = _service(service, reveal=True)["env"].get("DYNO") or os.uname().nodename
    begun = (_started(pid) or 0) - 1
    for beat in beats:
        if (beat["hostname"], beat["pid"]) == (host, pid) and (beat["started"] or 0) > begun:
            return beat, ""
    return None, ""


def _first_beat(service: str, pid: int) -> tuple[dict[str, Any] | None, str]:
    until = time.monotonic() + _FIRST_BEAT
    while True:
        beat, error = _heartbeat(service, pid)
        if beat or error or time.monotonic() > until:
            return beat, error
        time.sleep(0.25)


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


# sudo


def _granted(user: str, units: list[str], verbs: list[str]) -> list[list[str]]:
    """The commands to grant, each as argv; from intent only, so that nothing needs an escape."""
    if not _USER_NAME.fullmatch(user) or user == "root":
        raise SaltInvocationError(f"{user!r} cannot be granted a command: give a plain login name in lower case")
    wrong = [verb for verb in verbs if verb not in VERBS]
    if wrong or not verbs:
        raise SaltInvocationError(f"Only these verbs can be granted: {', '.join(VERBS)}; found {wrong or 'none'}")
    names = [unit[: -len(".service")] if unit.endswith(".service") else unit for unit in units]
    for name in names:
        if not _UNIT_NAME.fullmatch(name):
            raise SaltInvocationError(f"{name!r} is no name of a unit that can be granted: letters, digits, @, - and _")
    if not names:
        raise SaltInvocationError("There is no unit to grant: name one, or leave the sudoers file out")
    systemctl = os.path.realpath(_tool("systemctl", "systemd"))
    return [[systemctl, verb, name + end] for name in names for verb in verbs for end in ("", ".service")]


def _visudo(visudo: str, path: str, strict: bool = False) -> str:
    """visudo's complaint about a file and what it includes; empty when it has none."""
    argv = [visudo, "-c", *(["-s"] if strict else []), "-f", path]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, env={"LC_ALL": "C", "LANGUAGE": "C"}, ignore_retcode=True
    )
    if answer["retcode"] == 0:
        return ""
    return (answer["stderr"] or answer["stdout"] or f"visudo ended with {answer['retcode']}").strip()


def _copy_policy(folder: str, candidate: str, name: str, root: str = "/etc/sudoers") -> dict[str, str]:
    """
    The whole policy as sudo would read it, with the candidate in place, as plain files 0, 1, 2... below ``policy``.
    Returns copy -> original. Include directives are resolved as sudoers(5) says: a relative path is beside the file
    that names it, %h is the short hostname, a folder's files come in lexical order.
    """
    policy = os.path.join(folder, "policy")
    os.mkdir(policy, 0o700)
    copies: dict[str, str] = {}

    def copy(original: str, source: str) -> str:
        target = os.path.join(policy, str(len(copies)))
        copies[target] = original
        if len(copies) > 128:
            raise CommandExecutionError(f"The sudo policy includes more than 128 files, a loop perhaps, at {original}")
        try:
            with open(source, encoding="utf-8", errors="surrogateescape", newline="") as handle:
                lines = handle.read().splitlines(keepends=True)
        except FileNotFoundError:
            raise CommandExecutionError(f"The sudo policy has no {original}: install the package sudo first") from None
        with open(target, "x", encoding="utf-8", errors="surrogateescape", newline="") as handle:
            for line in lines:
                handle.write(rewrite(line, original))
        os.chmod(target, 0o440)
        return target

    def rewrite(line: str, original: str) -> str:
        match = _INCLUDE.match(line)
        if not match:
            return line
        kind, path = match[1], match[2] or re.sub(r"\\(.)", r"\1", match[3])
        path = os.path.join(os.path.dirname(original), path.replace("%h", os.uname().nodename.split(".")[0]))
        if kind == "include":
            return f"@include {copy(path, candidate if path == name else path)}\n"
        # Line numbers in visudo's words count from the included file, so that one line may become many.
        return "".join(f"@include {copy(one, candidate if one == name else one)}\n" for one in included(path)) or "\n"

    def included(path: str) -> list[str]:
        files = {os.path.join(path, entry) for entry in (os.listdir(path) if os.path.isdir(path) else [])}
        if os.path.normpath(path) == os.path.dirname(name):
            files = {one for one in files if os.path.basename(one) != os.path.basename(name)} | {name}
        kept = [one for one in files if "." not in os.path.basename(one) and not one.endswith("~")]
        return sorted(one for one in kept if one == name or os.path.isfile(one))

    copy(root, root)
    if name not in copies.values():
        raise CommandExecutionError(
            f"sudo would never read {name}: {root} includes no folder {os.path.dirname(name)}; "
            f"add the line `@includedir {os.path.dirname(name)}` to it"
        )
    return copies


def _whole_policy_sentence(complaint: str, copies: dict[str, str], name: str) -> str:
    """visudo's words with the real paths, led by the file that is to blame."""
    guilty = [copies[path] for path in copies if re.search(re.escape(path) + r"(?![0-9])", complaint)]
    for path in sorted(copies, key=len, reverse=True):
        complaint = re.sub(re.escape(path) + r"(?![0-9])", copies[path], complaint)
    others = [path for path in guilty if path != name]
    if others:
        return (
            f"The sudo policy is broken by {', '.join(others)}, not by {name}, which was therefore left as it is; "
            f"mend that first: {complaint}"
        )
    return f"The sudo policy would break with {name}, which was therefore left as it is: {complaint}"


def _sudo_rules(user: str) -> list[dict[str, Any]]:
    argv = [_tool("sudo", "sudo"), "-n", "-l", "-U", user]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, env={"LC_ALL": "C", "LANGUAGE": "C"}, ignore_retcode=True
    )
    if answer["retcode"] != 0 and "is not allowed to run sudo" not in answer["stdout"]:
        raise CommandExecutionError(f"sudo does not answer about {user}: {answer['stderr'] or answer['stdout']}")
    return _read_sudo_rules(answer["stdout"])


def _read_sudo_rules(text: str) -> list[dict[str, Any]]:
    """
    The rules in what ``sudo -l -U USER`` prints: lines such as ``    (root) NOPASSWD: /a b, /c d``. A tag holds for
    the commands after it until another one takes it back; a comma within a command is escaped.
    """
    rules = []
    for line in re.split(r"^User .* may run the following commands on .*:$", text, flags=re.MULTILINE)[1:]:
        for rule in line.splitlines():
            match = re.fullmatch(r"\s+\(([^)]*)\)\s+(.*)", rule)
            if match:
                rules += _read_sudo_rule(match[1], match[2])
    return rules


def _read_sudo_rule(runas: str, commands: str) -> list[dict[str, Any]]:
    tags: list[str] = []
    rules = []
    for command in re.split(r"(?<!\\),\s+", commands):
        while match := re.match(r"([A-Z_]+):\s+", command):
            tags = [tag for tag in tags if tag not in (match[1], "NO" + match[1]) and "NO" + tag != match[1]]
            tags.append(match[1])
            command = command[match.end() :]
        rules.append({"runas": runas, "tags": list(tags), "command": command})
    return rules


def _sudo_proof(user: str, units: list[str], verbs: list[str]) -> list[str]:
    """What sudo says against the intent; empty when it allows each command that was granted and no neighbour."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return [f"there is no user {user}: make it, or set redis_sidekiq:deploy:create_user"]
    granted = _granted(user, units, verbs)
    check = sudo_check(user, units, verbs)
    wrong = [f"{command} is not allowed without a password" for command in check["missing"]]
    wrong += [f"another rule allows ({rule['runas']}) {rule['command']}" for rule in check["beyond"]]
    wrong += [f"{' '.join(argv)} is refused" for argv in granted if not _sudo_allows(user, argv)]
    wrong += [f"{' '.join(argv)} is allowed too" for argv in _neighbours(granted) if _sudo_allows(user, argv)]
    return wrong


def _neighbours(granted: list[list[str]]) -> list[list[str]]:
    """Commands next to the granted ones that nobody granted."""
    systemctl, verb, unit = granted[0]
    return [
        [systemctl],
        [systemctl, verb],
        [systemctl, verb, "ssh"],
        [systemctl, verb, unit, "ssh"],
        [systemctl, verb, "--no-block", unit],
        [systemctl, verb, unit + "-other"],
        [systemctl, "status", unit],
        [systemctl, "edit", unit],
        ["/bin/sh"],
    ]


def _sudo_allows(user: str, argv: list[str]) -> bool:
    answer = __salt__["cmd.run_all"](
        [_tool("sudo", "sudo"), "-n", "-l", "-U", user, "--", *argv],
        python_shell=False,
        env={"LC_ALL": "C", "LANGUAGE": "C"},
        ignore_retcode=True,
    )
    return answer["retcode"] == 0


# Files


def _tool(name: str, package: str) -> str:
    found = salt.utils.path.which(name)
    if not found:
        raise CommandExecutionError(f"{name} is not on this host: install the package {package} first")
    return found


def _write(name: str, text: str, mode: int) -> None:
    """
    A whole file or none: written beside its place, on the disk before it takes the place. The name in between has a
    dot, so that sudo would skip it; one that a dead run left behind is replaced by the next.
    """
    folder, base = os.path.split(name)
    draft = os.path.join(folder, f".{base}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fchown(handle, 0, 0)
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(draft, name)
        _sync_folder(folder)
    except OSError as err:
        raise CommandExecutionError(f"Cannot write {name}: {err.strerror}") from err


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

