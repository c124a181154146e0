"""
What Redis asks of the kernel: memory that a snapshot's fork may promise, the queue of new connections, huge pages.

What runs is compared (``/proc/sys``, ``/sys``), set, and read again; files in ``/etc/sysctl.d`` and ``/etc/tmpfiles.d``
say the same to the next boot. What was there before is recorded before the first change, so that it can be put back. No
process is started. A container may often not set what belongs to the machine's one kernel: that is told, no error.
"""

from __future__ import annotations

import json
import os
from typing import Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

_PAGES = "transparent_hugepage"
_PATHS = {
    "vm.overcommit_memory": "/proc/sys/vm/overcommit_memory",
    "net.core.somaxconn": "/proc/sys/net/core/somaxconn",
    _PAGES: "/sys/kernel/mm/transparent_hugepage/enabled",
}
_FLOORS = ("net.core.somaxconn",)  # at least so much; the others are exactly so
_SYSCTLS = "/etc/sysctl.d/90-redis_sidekiq.conf"
_TMPFILES = "/etc/tmpfiles.d/redis_sidekiq.conf"
_RECORD = "/var/lib/redis_sidekiq/kernel.json"
_HEAD = "# Managed by Salt (formula redis_sidekiq)\n"


# Facts ---------------------------------------------------------------------------------------------------------------


def facts(settings: dict[str, Any]) -> dict[str, Any]:
    """
    How the kernel differs from settings, and what of these can be set here.

    settings
        Name -> value: ``vm.overcommit_memory``, ``net.core.somaxconn`` (at least so much), ``transparent_hugepage``
        (the word in brackets in ``/sys/kernel/mm/transparent_hugepage/enabled``). What is not named is no longer ours.

    Returns ``values``, name -> ``{old, new}`` of what would be set or, no longer ours, put back; ``files``, path ->
    ``{old, new}`` of texts (None: no such file); ``blocked``, a sentence for each that cannot be set here; ``forget``
    (bool: a record is left of what is no longer ours) and ``kept``, name -> value of what the next boot sets. Nothing
    is to do if the first two and the last but one are empty.

    Raises SaltInvocationError for a name or value that is not known here, CommandExecutionError for a record that
    cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_kernel.facts '{"vm.overcommit_memory": 1}'
    """
    wish, record = _checked(settings), _read_record()
    running = {name: _running(name) for name in _PATHS}
    targets = {name: _target(name, running[name], wish[name], record) for name in wish}
    put_back = {name: _put_back(running[name], record[name]) for name in record if name not in wish}
    differing = {name: new for name, new in {**targets, **put_back}.items() if new != running[name]}
    values = {name: {"old": running[name], "new": new} for name, new in differing.items() if _is_writable(_PATHS[name])}
    blocked = [_blocked(name, running[name], new) for name, new in differing.items() if name not in values]
    kept = {name: value for name, value in targets.items() if _is_kept(name, value, record, values)}
    return {
        "values": values,
        "files": _differing_files(kept),
        "blocked": blocked,
        "forget": any(name not in wish for name in record),
        "kept": kept,
    }


# Acts ----------------------------------------------------------------------------------------------------------------


def apply(settings: dict[str, Any]) -> None:
    """
    Set what differs, now and for the next boot; put back what is no longer ours, unless somebody changed it since.

    What was there is recorded first, in ``/var/lib/redis_sidekiq/kernel.json``, which only root reads. Whatever cuts
    this off, the next call does the rest.

    settings
        See :func:`facts`; {} puts everything back.

    Raises what :func:`facts` raises, and CommandExecutionError when a file cannot be written or the kernel does not
    take a value.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_kernel.apply '{"vm.overcommit_memory": 1}'
    """
    found, record = facts(settings), _read_record()
    running = {name: _running(name) for name in found["kept"]}
    known = {name: _remembered(record.get(name), running[name], new) for name, new in found["kept"].items()}
    if {**record, **known} != record:
        _write_record({**record, **known})
    for path, change in found["files"].items():
        _write_or_remove(path, change["new"], 0o644)
    for name, change in found["values"].items():
        _set(name, change["new"])
    if found["forget"]:
        _write_record({name: entry for name, entry in {**record, **known}.items() if name in settings})


# --- below: how it is done -------------------------------------------------------------------------------------------


def _checked(settings: dict[str, Any]) -> dict[str, str]:
    wish = {name: str(value) for name, value in settings.items()}
    unknown = [name for name in wish if name not in _PATHS]
    if unknown:
        raise SaltInvocationError(f"{', '.join(unknown)}: not known here, only {', '.join(_PATHS)}")
    wrong = [name for name, value in wish.items() if name != _PAGES and not value.isdecimal()]
    if wrong:
        raise SaltInvocationError(f"{', '.join(wrong)}: a whole number is what the kernel takes")
    return wish


def _running(name: str) -> str | None:
    """What the kernel does now; None where it has no such setting."""
    try:
        with open(_PATHS[name], encoding="ascii") as stream:
            text = stream.read().strip()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] if "[" in text else text


def _target(name: str, running: str | None, wish: str, record: dict[str, Any]) -> str | None:
    """What the kernel is to do. A kernel without huge pages has nothing that Redis minds."""
    if running is None:
        return None if name == _PAGES else wish
    if name not in _FLOORS:
        return wish
    # Nor below what the next boot would have without us.
    before = record[name]["before"] if name in record else "0"
    return running if int(running) >= int(wish) else str(max(int(wish), int(before)))


def _put_back(running: str | None, entry: dict[str, Any]) -> str | None:
    """What was there before, if what is there is ours; what somebody changed since stays."""
    return entry["before"] if running in entry["ours"] else running


def _is_kept(name: str, value: str | None, record: dict[str, Any], values: dict[str, Any]) -> bool:
    """
    Does the next boot have to be told? Of a least value only what we raised: a line for what is there anyway would one
    day lower what a newer kernel or somebody else has.
    """
    if value is None or not _is_writable(_PATHS[name]):
        return False
    return name not in _FLOORS or name in values or value in record.get(name, {}).get("ours", [])


def _is_writable(path: str) -> bool:
    """Asked by opening: access(2) does not ask AppArmor, which guards these files in many containers."""
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True


def _blocked(name: str, running: str | None, wish: str | None) -> str:
    found = "not to be seen" if running is None else running
    return (
        f"{name} is {found} and should be {wish}, but {_PATHS[name]} cannot be written here, as in most containers: "
        "set it on the machine whose kernel this is"
    )


def _set(name: str, value: str) -> None:
    try:
        with open(_PATHS[name], "w", encoding="ascii") as stream:
            stream.write(value)
    except OSError as err:
        raise CommandExecutionError(f"The kernel does not take {value!r} for {name}: {err.strerror}") from err


# What the next boot does


def _differing_files(kept: dict[str, str]) -> dict[str, dict[str, str | None]]:
    wished = {_SYSCTLS: _sysctl_text(kept), _TMPFILES: _tmpfiles_text(kept)}
    found = {path: (_read(path), text) for path, text in wished.items()}
    return {path: {"old": old, "new": new} for path, (old, new) in found.items() if old != new}


def _sysctl_text(kept: dict[str, str]) -> str | None:
    lines = [f"{name} = {kept[name]}\n" for name in sorted(kept) if name != _PAGES]
    return _HEAD + "".join(lines) if lines else None


def _tmpfiles_text(kept: dict[str, str]) -> str | None:
    """``w`` writes to a file that is there (tmpfiles.d(5)); ``-`` before it: no failed boot where it cannot."""
    return f"{_HEAD}w- {_PATHS[_PAGES]} - - - - {kept[_PAGES]}\n" if _PAGES in kept else None


# What was there before


def _remembered(entry: dict[str, Any] | None, running: str, new: str) -> dict[str, Any]:
    """
    What was there before we came, which no later run overwrites, and each value that we set: were only the last known,
    a run that was cut off between record and kernel would take our own older value for somebody's.
    """
    entry = entry or {"before": running, "ours": []}
    return {**entry, "ours": [*entry["ours"], *([] if new in entry["ours"] else [new])]}


def _read_record() -> dict[str, Any]:
    text = _read(_RECORD)
    try:
        record = json.loads(text) if text is not None else {}
        return {name: {"before": entry["before"], "ours": list(entry["ours"])} for name, entry in record.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise CommandExecutionError(
            f"{_RECORD} is damaged, so what the kernel's settings were is not known: set them by hand and remove it"
        ) from err


def _write_record(record: dict[str, Any]) -> None:
    _write_or_remove(_RECORD, json.dumps(record, indent=2) + "\n" if record else None, 0o600)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise CommandExecutionError(f"Cannot read {path}: {err.strerror}") from err


def _write_or_remove(path: str, text: str | None, mode: int) -> None:
    if text is None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as err:
            raise CommandExecutionError(f"Cannot remove {path}: {err.strerror}") from err
        return
    __salt__["whole_files.write"](path, text, mode, makedirs=True)
