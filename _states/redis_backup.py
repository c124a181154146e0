"""
Backups of Redis' instances are made by a timer, of those that the settings want and of no others.

How they are made, looked at and restored is in the execution module of the same name; backups that are there are never
touched here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)


def scheduled(name: str) -> dict[str, Any]:
    """
    The backups of an instance are made at the time of the settings: by a timer of systemd, or by cron without it.

    systemd is asked whether it knows that time before a file is written, under ``test=True`` too.

    name
        Name of the instance in the settings: its port.

    Example:

    .. code-block:: yaml

        Redis instance 6379 is backed up:
          redis_backup.scheduled:
            - name: '6379'
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    name = str(name)
    try:
        ret["changes"] = _changes(__salt__["redis_backup.schedule_facts"](name))
        if not ret["changes"]:
            return {**ret, "comment": f"Backups of Redis instance {name} are made as the settings say"}
        sentence = __salt__["redis_backup.schedule_check"](name)
        if __opts__["test"]:
            return {**ret, "result": None, "comment": f"Backups of Redis instance {name} would be set up; {sentence}"}
        __salt__["redis_backup.schedule"](name)
        left = _changes(__salt__["redis_backup.schedule_facts"](name))
        if left:
            return {**ret, "result": False, "comment": f"Still not as the settings say: {', '.join(sorted(left))}"}
        return {**ret, "comment": f"Backups of Redis instance {name} are set up; {sentence}"}
    except _ERRORS as err:
        return {**ret, "changes": {}, "result": False, "comment": str(err)}


def only(name: str, keep: list[str]) -> dict[str, Any]:
    """
    Backups are made of these instances and of no other, as far as this formula set that up. Backups themselves stay.

    name
        Anything; a sentence.
    keep
        Names (ports) of the instances whose backups are made.

    Example:

    .. code-block:: yaml

        No other instance of Redis is backed up:
          redis_backup.only:
            - keep: ['6379']
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    keep = [str(instance) for instance in keep]
    try:
        others = _others(keep)
        if not others:
            return {**ret, "comment": "No other instance of Redis is backed up"}
        ret["changes"] = {instance: {"removed": files} for instance, files in others.items()}
        if __opts__["test"]:
            return {**ret, "result": None, "comment": f"Backups of {', '.join(others)} would be made no more"}
        for instance in others:
            __salt__["redis_backup.unschedule"](instance)
        left = _others(keep)
        if left:
            return {**ret, "result": False, "comment": f"Backups of {', '.join(left)} are still made"}
        return {**ret, "comment": f"Backups of {', '.join(others)} are made no more; those that are there stay"}
    except _ERRORS as err:
        return {**ret, "changes": {}, "result": False, "comment": str(err)}


# --- below: comparing ------------------------------------------------------------------------------------------------


def _changes(facts: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = dict(facts["files"])
    if facts["timer"]:
        for key, change in (("enabled", True), ("active", True), ("reload", False)):
            if facts[key] is not change and not (key == "reload" and changes):
                changes[f"{facts['timer']} {key}"] = {"old": facts[key], "new": change}
    return changes


def _others(keep: list[str]) -> dict[str, list[str]]:
    return {name: files for name, files in __salt__["redis_backup.scheduled"]().items() if name not in keep}
