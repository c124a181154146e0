"""
A running Redis does what its config says: what differs is set live, without a restart, and what cannot be is named.

How to ask and to act is in the execution module of the same name; the config file is the affair of
:func:`redis_server.config`, a restart that of :func:`redis_server.running`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)


def live(name: str) -> dict[str, Any]:
    """
    A running instance has each directive as the settings say that can be changed while it runs, whoever changed it last.

    No connection ends by it. A server that does not run, or takes no password known here, is left to
    :func:`redis_server.running`, and so is what takes a restart; the comment names it. ``test=True`` says which
    directives would be set and which take a restart.

    name
        Name of the instance in the settings: its port.

    Example:

    .. code-block:: yaml

        Redis instance 6379 works by its config:
          redis_config.live:
            - name: '6379'
            - require:
              - redis_server: /etc/redis/6379.conf
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    name = str(name)
    try:
        found = __salt__["redis_config.drift"](name)
        ret["changes"] = _changes(found)
        if __opts__["test"]:
            return {**ret, "result": None if ret["changes"] else True, "comment": _plan(name, found)}
        __salt__["redis_config.remember"](name)
        if not ret["changes"]:
            return {**ret, "comment": _plan(name, found)}
        record = __salt__["redis_config.apply"](name)
        ret["changes"] = {key: change for key, change in ret["changes"].items() if key in record["set"]}
        ret["comment"] = _sentence(name, record)
        left = _changes(__salt__["redis_config.drift"](name)).keys() - record["failed"].keys() - set(record["restart"])
        if left:
            ret["comment"] += f"; {', '.join(sorted(left))} differ again"
        return {**ret, "result": not record["failed"] and not left}
    except _ERRORS as err:
        return {**ret, "result": False, "comment": str(err)}


# --- below: comparing and saying -------------------------------------------------------------------------------------


def _changes(found: dict[str, Any]) -> dict[str, Any]:
    return {
        directive: {"old": entry["running"], "new": entry["wished"]}
        for directive, entry in found["directives"].items()
        if entry["live"]
    }


def _plan(name: str, found: dict[str, Any]) -> str:
    if found["unasked"]:
        return f"Redis instance {name} is not told its settings: {found['unasked']}"
    would = sorted(_changes(found))
    rest = sorted(found["directives"].keys() - set(would))
    said = [f"{', '.join(would)} would be set live"] if would else []
    said += [f"{', '.join(rest)} can only be changed by a restart"] if rest else []
    return f"Redis instance {name}: {'; '.join(said)}" if said else f"Redis instance {name} works by its config"


def _sentence(name: str, record: dict[str, Any]) -> str:
    said = [f"{', '.join(sorted(record['set']))} set live"] if record["set"] else []
    said += [f"{directive} could not be set: {words}" for directive, words in sorted(record["failed"].items())]
    said += [f"{', '.join(record['restart'])} can only be changed by a restart"] if record["restart"] else []
    return f"Redis instance {name}: {'; '.join(said)}"
