"""
A Sidekiq unit and its process: what systemd and ``/proc`` say of them, and what they are told.

:mod:`sidekiq` decides; here is how to ask and to act. Two more units can stand beside a service's own for the time of a
restart, both below ``/run``, so that a reboot forgets them: the *helper*, a second process that works while the first
is replaced, and the *guard*, which waits for the restart's lock and so acts the moment the restart's process dies.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import shutil
import signal as signals
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import salt.utils.path
from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}

log = logging.getLogger(__name__)

_UNIT_DIR = "/etc/systemd/system"
_RUNTIME_DIR = "/run/systemd/system"
_JOURNAL_LINES = 30
_JOURNAL_TIMEOUT = 20  # s

_PROPERTIES = (
    "ActiveState",
    "ControlGroup",
    "DropInPaths",
    "FragmentPath",
    "LoadState",
    "MainPID",
    "NRestarts",
    "NeedDaemonReload",
    "Result",
    "SubState",
    "UnitFileState",
)

_TITLE = re.compile(r"sidekiq (?P<version>\d[\w.]*) .*\[(?P<busy>\d+) of (?P<threads>\d+) busy\](?P<rest>.*)")


# Facts ---------------------------------------------------------------------------------------------------------------


def facts(units: list[str]) -> list[dict[str, Any]]:
    """
    What systemd says of some units: one program for all of them.

    units
        Whole names, such as ``sidekiq.service``.

    Returns a dictionary for each, in their order: ``unit``, ``loaded``, ``masked``, ``enabled``, ``active``, ``sub``,
    ``result`` (systemd's words), ``pid`` (of the main process, 0: none), ``started`` (epoch s or None), ``restarts``
    (systemd's own since the last start), ``needs_reload`` (the unit on disk is not the one loaded), ``fragment`` and
    ``drop_ins`` (paths), ``group`` (control group).

    Raises CommandExecutionError without systemd.

    Not ``service.show``: that one splits ExecStart at `` ; `` and dies of an argument that contains it
    (salt/modules/systemd_service.py, show), and it cannot tell a systemctl that failed.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.facts '["sidekiq.service"]'
    """
    answer = _systemctl("show", "--property=" + ",".join(_PROPERTIES), "--", *units)
    if answer["retcode"] != 0:
        names = ", ".join(units)
        raise CommandExecutionError(f"systemd does not answer about {names}: {answer['stderr'] or answer['stdout']}")
    blocks = answer["stdout"].strip("\n").split("\n\n")
    return [_with_new_drop_ins(_read_properties(unit, block)) for unit, block in zip(units, blocks)]


def process(pid: int, group: str = "") -> dict[str, Any] | None:
    """
    The Sidekiq process of a unit.

    pid
        The unit's main process.
    group
        The unit's control group: where Sidekiq is looked for when the main process is a wrapper that did not ``exec``.

    Returns None when there is none, else ``pid``, ``started`` (epoch s), ``born`` (the same in ticks since boot, which
    no clock that is set changes), ``release`` (the folder that it works in), ``version`` (Sidekiq's, None before its
    first beat), ``threads`` (threads that fetch and work jobs), ``stopping`` (its title says that it was told to fetch
    no more), ``rss`` (bytes) and ``wrapper`` (the main process' pid, or 0).

    Sidekiq calls its worker threads ``processor`` or ``CAPSULE/processor`` (lib/sidekiq/processor.rb); one ends when
    it was told to be quiet and its job is done, so their number tells at once what the next beat tells in 10 s.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.process 4711
    """
    found = pid if not pid or _title(pid) or worker_threads(pid) else _sidekiq_below(pid, group) or pid
    ticks = born(found)
    if ticks is None:
        return None
    title = _title(found)
    return {
        "pid": found,
        "started": _at(ticks),
        "born": ticks,
        "release": _working_directory(found),
        "version": title["version"] if title else None,
        "threads": worker_threads(found),
        "stopping": bool(title and "stopping" in title["rest"]),
        "rss": _resident(found),
        "wrapper": pid if found != pid else 0,
    }


def born(pid: int) -> int | None:
    """
    When a process was started, in ticks since boot, suspended time included: what it is known by, since pids are given
    out again. Fields 3 and 22 of proc_pid_stat(5).

    pid
        The process; 0 is none.

    Returns None for one that is not there, or is dead and not yet waited for.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.born 1
    """
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="ascii", errors="replace") as handle:
            fields = handle.read().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" or not pid else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def start_time(pid: int) -> float | None:
    """
    When a process was started (epoch s), None for one that is not there or is dead and not yet waited for.

    pid
        The process; 0 is none.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.start_time 1
    """
    ticks = born(pid)
    return None if ticks is None else _at(ticks)


def worker_threads(pid: int) -> int:
    """
    How many of a process' threads fetch and work jobs, by the names that Sidekiq gives them.

    pid
        The process.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.worker_threads 4711
    """
    return sum(_is_worker(name) for name in _thread_names(pid))


def journal(unit: str, since: float, secrets: list[str] | None = None) -> str:
    """
    A unit's last words, as the end of a sentence.

    unit
        Whole name.
    since
        Epoch s.
    secrets
        Texts to blot out, and passwords within them when they are URLs.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.journal sidekiq.service 1700000000
    """
    entries = _journal([f"--lines={_JOURNAL_LINES}", f"--unit={unit}", f"--since=@{since:.3f}"])
    lines = [entry["message"] for entry in entries]
    if not lines:
        return f"; its journal says nothing: journalctl --unit={unit}"
    return "; its journal ends with:\n" + _blot("\n".join(lines), secrets or [])


def journal_about(units: list[str], since: float, words: list[str]) -> list[dict[str, Any]]:
    """
    What units said that contains one of some words.

    units
        Whole names.
    since
        Epoch s.
    words
        Plain texts of letters, digits and spaces.

    Returns a list of ``{pid, message}``, oldest first.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.journal_about '["sidekiq.service"]' 1700000000 '["Failed to requeue"]'
    """
    if not words:
        return []
    pattern = "|".join(re.sub(r"[^A-Za-z0-9 ]", ".", word) for word in words)
    options = [f"--grep={pattern}", "--case-sensitive=true", f"--since=@{since:.3f}"]
    return _journal([*options, *(f"--unit={unit}" for unit in units)])


def available_memory() -> int:
    """
    Memory that processes could still get without swapping, in bytes (``MemAvailable``, proc_meminfo(5)).

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.available_memory
    """
    with open("/proc/meminfo", encoding="ascii") as handle:
        return next((int(line.split()[1]) * 1024 for line in handle if line.startswith("MemAvailable:")), 0)


# Acts ----------------------------------------------------------------------------------------------------------------


def reload_systemd() -> None:
    """
    Make systemd read its units anew.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.reload_systemd
    """
    _tell("daemon-reload")


def start(unit: str, wait: bool = True) -> None:
    """
    Start a unit.

    unit
        Whole name.
    wait
        Until it is ready (bool, default True): TimeoutStartSec at most.

    Raises CommandExecutionError when systemd could not.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.start sidekiq.service
    """
    _tell("start", *([] if wait else ["--no-block"]), "--", unit)


def stop(unit: str) -> None:
    """
    Stop a unit and wait until it is: TimeoutStopSec at most, then systemd kills.

    unit
        Whole name.

    Raises CommandExecutionError when systemd could not.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.stop sidekiq.service
    """
    _tell("stop", "--", unit)


def restart(unit: str) -> None:
    """
    Restart a unit in systemd's own way: stop, then start; jobs that are not done in time are pushed back.

    unit
        Whole name.

    Raises CommandExecutionError when systemd could not.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.restart sidekiq.service
    """
    _tell("restart", "--", unit)


def reset_failed(unit: str) -> None:
    """
    Make systemd forget that a unit failed.

    unit
        Whole name; one that never failed, or is not loaded, is fine.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.reset_failed sidekiq.service
    """
    _systemctl("reset-failed", "--", unit)


def signal(pid: int, ticks: int, name: str) -> bool:
    """
    Send a signal to one process, and to no other that has its number by now.

    pid
        The process.
    ticks
        When it was started, in ticks since boot (see :func:`born`).
    name
        ``TSTP`` or ``TERM``.

    Returns whether the process was there.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.signal 4711 123456 TSTP
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if born(pid) != ticks:
            return False
        signals.pidfd_send_signal(handle, getattr(signals, f"SIG{name}"))
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


# The helper and the guard --------------------------------------------------------------------------------------------


def helper_name(unit: str) -> str:
    """
    The name of the unit that works while this one is replaced.

    unit
        Whole name: ``sidekiq.service`` gives ``sidekiq-handover.service``, ``sidekiq@2.service`` gives
        ``sidekiq-handover@2.service``.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.helper_name sidekiq.service
    """
    return _beside(unit, "handover")


def helper_exists(unit: str) -> bool:
    """
    Whether a helper of this unit is there, from this restart or from one that was cut off.

    unit
        Whole name of the service's own unit.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.helper_exists sidekiq.service
    """
    return os.path.exists(os.path.join(_RUNTIME_DIR, helper_name(unit)))


def helper_write(unit: dict[str, Any]) -> str:
    """
    Make a helper: the same unit with the same drop-ins under another name, which nothing starts again when it ends.

    unit
        The service's own unit, see :func:`facts`.

    Returns its name.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.helper_write '{"unit": "sidekiq.service", "fragment": "/etc/systemd/system/sidekiq.service"}'
    """
    name = helper_name(unit["unit"])
    folder = os.path.join(_RUNTIME_DIR, f"{name}.d")
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(unit["fragment"], os.path.join(_RUNTIME_DIR, name))
    for number, path in enumerate(unit.get("drop_ins", [])):
        # What stands in service.d holds for every service, so for the helper too.
        if os.path.basename(os.path.dirname(path)) != "service.d":
            shutil.copyfile(path, os.path.join(folder, f"{number:02d}-{os.path.basename(path)}"))
    _put(
        os.path.join(folder, "zz-handover.conf"),
        f"[Unit]\nDescription=Works while {unit['unit']} is replaced\n"
        # A runtime directory of the same name is the service's too, and stays when the helper goes.
        "[Service]\nRestart=no\nRuntimeDirectoryPreserve=yes\n",
    )
    reload_systemd()
    return name


def helper_remove(unit: str) -> None:
    """
    Take a stopped helper's files away; none is fine.

    unit
        Whole name of the service's own unit.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.helper_remove sidekiq.service
    """
    _remove(helper_name(unit))


def guard_arm(unit: str, lock: str) -> None:
    """
    Make sure that a unit works again if this process dies: a oneshot unit waits for the lock that this process holds.
    The kernel lets go of it whatever the death was; then the guard restarts the unit and stops its helper.

    The helper goes only once the restart succeeded, so that a release that does not boot leaves it at work.

    unit
        Whole name of the service's own unit.
    lock
        Path of the file that this process has locked with flock(2).

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.guard_arm sidekiq.service /run/redis_sidekiq/sidekiq.lock
    """
    name, systemctl = _beside(unit, "guard"), _tool("systemctl", "systemd")
    _put(
        os.path.join(_RUNTIME_DIR, name),
        f"[Unit]\nDescription=Restarts {unit} should its restart be cut off\n[Service]\nType=oneshot\n"
        # No SuccessExitStatus= for the TERM that takes the guard away: systemd would go on with the next command.
        f"ExecStart={_tool('flock', 'util-linux')} {lock} {systemctl} restart {unit}\n"
        f"ExecStart=-{systemctl} stop {helper_name(unit)}\n",
    )
    reload_systemd()
    start(name, wait=False)


def guard_disarm(unit: str) -> None:
    """
    Take a unit's guard away; none is fine.

    unit
        Whole name of the service's own unit.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.guard_disarm sidekiq.service
    """
    name = _beside(unit, "guard")
    if os.path.exists(os.path.join(_RUNTIME_DIR, name)):
        stop(name)
        _remove(name)


def guard_exists(unit: str) -> bool:
    """
    Whether a guard of this unit is there, from this restart or from one that was cut off.

    unit
        Whole name of the service's own unit.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_units.guard_exists sidekiq.service
    """
    return os.path.exists(os.path.join(_RUNTIME_DIR, _beside(unit, "guard")))


# --- below: how it is done -------------------------------------------------------------------------------------------


def _systemctl(*words: str) -> dict[str, Any]:
    argv = [_tool("systemctl", "systemd"), *words]
    return __salt__["cmd.run_all"](argv, python_shell=False, env={"LC_ALL": "C"}, ignore_retcode=True)


def _tell(*words: str) -> None:
    answer = _systemctl(*words)
    if answer["retcode"] != 0:
        raise CommandExecutionError(f"systemctl {' '.join(words)}: {answer['stderr'] or answer['stdout']}")


def _tool(name: str, package: str) -> str:
    found = salt.utils.path.which(name)
    if not found:
        raise CommandExecutionError(f"{name} is not on this host: install the package {package} first")
    return found


def _beside(unit: str, role: str) -> str:
    """`NAME@I.service` -> `NAME-ROLE@I.service`; the instance's number stays what %i says."""
    prefix, at, rest = unit.removesuffix(".service").partition("@")
    return f"{prefix}-{role}{at}{rest}.service"


def _put(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)


def _remove(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(os.path.join(_RUNTIME_DIR, f"{name}.d"))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(_RUNTIME_DIR, name))
    reload_systemd()
    reset_failed(name)


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
        "started": start_time(pid),
        "restarts": int(found.get("NRestarts") or 0),
        "needs_reload": found.get("NeedDaemonReload") == "yes",
        "fragment": found.get("FragmentPath", ""),
        "drop_ins": found.get("DropInPaths", "").split(),
        "group": found.get("ControlGroup", ""),
    }


def _with_new_drop_ins(facts: dict[str, Any]) -> dict[str, Any]:
    """systemd 252 does not see a new drop-in before a daemon-reload, NeedDaemonReload or not."""
    template = re.sub(r"@[^.]*\.", "@.", facts["unit"])
    folders = {os.path.join(_UNIT_DIR, f"{name}.d") for name in (facts["unit"], template)}
    on_disk = sorted(path for folder in folders for path in glob.glob(os.path.join(glob.escape(folder), "*.conf")))
    new = [path for path in on_disk if path not in facts["drop_ins"]]
    return {**facts, "drop_ins": facts["drop_ins"] + new, "needs_reload": facts["needs_reload"] or bool(new)}


# /proc


def _at(ticks: int) -> float:
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK"), 2)


def _title(pid: int) -> dict[str, str] | None:
    """What a Sidekiq process calls itself from its first beat on: `sidekiq 7.3.2 app [1 of 10 busy] stopping`."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as handle:
            match = _TITLE.match(handle.read().rstrip("\0"))
    except OSError:
        return None
    return match.groupdict() if match else None


def _thread_names(pid: int) -> list[str]:
    names = []
    for path in glob.iglob(f"/proc/{int(pid)}/task/*/comm"):
        # The main thread of a process that a job forked has the name of the thread that forked it.
        if path.split("/")[4] != str(pid):
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as handle:
                names.append(handle.read().rstrip("\n"))
    return names


def _is_worker(name: str) -> bool:
    """The kernel keeps 15 characters of a thread's name, so that `default/processor` is `default/process`."""
    capsule, slash, thread = name.rpartition("/")
    return thread == "processor" or bool(slash and capsule and thread) and "processor".startswith(thread)


def _sidekiq_below(pid: int, group: str) -> int:
    """Sidekiq in a unit whose main process is something else: the oldest that calls itself so, not a job's own child."""
    found = [each for each in _members(group) if each != pid and _title(each)]
    return min(found, key=lambda each: (start_time(each) or 0, each), default=0)


def _members(group: str) -> list[int]:
    """The processes of a control group, on a machine with one hierarchy or two."""
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"):
        with contextlib.suppress(OSError, ValueError), open(f"{root}{group}/cgroup.procs", encoding="ascii") as handle:
            return [int(line) for line in handle] if group else []
    return []


def _working_directory(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    except OSError:
        return ""


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as handle:
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


# journald


def _journal(options: list[str]) -> list[dict[str, Any]]:
    argv = [
        _tool("journalctl", "systemd"),
        "--no-pager",
        "--quiet",
        "--output=json",
        "--output-fields=MESSAGE,_PID",
        *options,
    ]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, ignore_retcode=True, timeout=_JOURNAL_TIMEOUT, output_loglevel="quiet"
    )
    return _journal_entries(answer["stdout"])


def _journal_entries(text: str) -> list[dict[str, Any]]:
    entries = []
    for line in text.splitlines():
        try:
            fields = json.loads(line)
            message, pid = fields.get("MESSAGE"), int(fields.get("_PID") or 0)
        except (ValueError, TypeError, AttributeError):
            continue
        # A message that is not UTF-8 comes as a list of bytes (systemd's JOURNAL_EXPORT_FORMATS).
        if isinstance(message, list):
            message = bytes(message).decode("utf-8", "replace")
        if message:
            entries.append({"pid": pid, "message": message})
    return entries


def _blot(text: str, secrets: list[str]) -> str:
    """Secrets, and passwords within URLs among them, as asterisks; short ones are words, not secrets."""
    known = {str(secret) for secret in secrets}
    for secret in list(known):
        with contextlib.suppress(ValueError):
            known.add(urlsplit(secret).password or "")
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= 6:
            text = text.replace(secret, "******")
    return text
