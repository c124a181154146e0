"""
On a host run the instances of Redis that the settings name, and of those that this formula made once, no others.

How to find and to stop them is in the execution module of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)


def only(name: str, keep: list[str], purge_data: bool = False) -> dict[str, Any]:
    """
    Each instance that this formula made is one of these; any other is stopped with care for its data, and its unit or
    init script and its config are gone. Its data stay, unless told otherwise. An instance that others made is left alone.

    One that cannot be stopped fails the state and keeps all its files; the others go all the same.

    name
        Anything; a sentence.
    keep
        Names (ports) of the instances that stay.
    purge_data
        Delete data and logs of those that go (bool, default False).

    Example:

    .. code-block:: yaml

        Redis runs in no instance that the settings do not name:
          redis_instances.only:
            - keep: ['6379']
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    keep = [str(instance) for instance in keep]
    try:
        dropped = _dropped(keep)
        if not dropped:
            return {**ret, "comment": "There is no instance of Redis that the settings do not name"}
        ret["changes"] = {instance: _change(instance, files, purge_data) for instance, files in dropped.items()}
        if __opts__["test"]:
            return {**ret, "result": None, "comment": _plan(ret["changes"])}
        said, failed = _remove(dropped, purge_data)
        left = _dropped(keep)
        ret["changes"] = {instance: change for instance, change in ret["changes"].items() if instance not in left}
        failed = [*failed, *(f"Redis instance {one} is still there" for one in left if not failed)]
        return {**ret, "result": not failed, "comment": "\n".join([*said, *failed])}
    except _ERRORS as err:
        return {**ret, "changes": {}, "result": False, "comment": str(err)}


# --- below: comparing and saying -------------------------------------------------------------------------------------


def _dropped(keep: list[str]) -> dict[str, list[str]]:
    return {name: files for name, files in __salt__["redis_instances.found"]().items() if name not in keep}


def _change(instance: str, files: list[str], purge_data: bool) -> dict[str, Any]:
    data = __salt__["redis_instances.data_folders"](instance)
    return {"removed": [*files, *(data if purge_data else [])], "kept": [] if purge_data else data}


def _plan(changes: dict[str, Any]) -> str:
    plan = []
    for instance, change in changes.items():
        stays = f"; {', '.join(change['kept'])} would stay" if change["kept"] else ""
        plan.append(
            f"Redis instance {instance}, which the settings do not name, would be stopped, and "
            f"{', '.join(change['removed'])} removed{stays}"
        )
    return "\n".join(plan)


def _remove(dropped: dict[str, list[str]], purge_data: bool) -> tuple[list[str], list[str]]:
    said, failed = [], []
    for instance in dropped:
        try:
            sentence = __salt__["redis_instances.remove"](instance, purge_data)
            data = __salt__["redis_instances.data_folders"](instance)
            said.append(f"{sentence}; {', '.join(data)} stay" if data else sentence)
        except _ERRORS as err:
            failed.append(str(err))
    return said, failed
