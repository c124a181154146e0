"""
Give the kernel the settings that Redis asks for, and give them back.

How to ask and to act is in the execution module of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)


def managed(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """
    The kernel has these settings, now and after the next boot. One that is no longer named has the value that was there
    before, unless somebody changed it since.

    What cannot be set here, as in a container, is a warning that says where to set it; the state succeeds.

    name
        Anything; a sentence.
    settings
        Name -> value: ``vm.overcommit_memory``, ``net.core.somaxconn`` (at least so much), ``transparent_hugepage``
        (``madvise`` or ``never``); {} puts everything back.

    Example:

    .. code-block:: yaml

        The kernel is set for Redis:
          redis_kernel.managed:
            - settings:
                vm.overcommit_memory: 1
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        found = __salt__["redis_kernel.facts"](settings)
        ret["changes"] = _changes(found)
        if __opts__["test"] and ret["changes"]:
            return _warned({**ret, "result": None, "comment": f"{_names(ret['changes'])} would be set"}, found)
        if not ret["changes"]:
            return _warned({**ret, "comment": _same(settings)}, found)
        __salt__["redis_kernel.apply"](settings)
        after = __salt__["redis_kernel.facts"](settings)
        left = _changes(after)
        if left:
            return {**ret, "result": False, "comment": f"{_names(left)} were set, and still differ"}
        return _warned({**ret, "comment": f"{_names(ret['changes'])} were set"}, after)
    except _ERRORS as err:
        return {**ret, "changes": {}, "result": False, "comment": str(err)}


# --- below: comparing and saying -------------------------------------------------------------------------------------


def _changes(found: dict[str, Any]) -> dict[str, Any]:
    changes = {**found["values"], **found["files"]}
    if found["forget"]:
        changes["record"] = {"old": "what was there before", "new": None}
    return changes


def _names(changes: dict[str, Any]) -> str:
    return ", ".join(changes)


def _same(settings: dict[str, Any]) -> str:
    return "The kernel is set for Redis, as far as it can be here" if settings else "Nothing of the kernel is ours"


def _warned(ret: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    if found["blocked"]:
        ret["comment"] += "; " + "; ".join(found["blocked"])
        ret["warnings"] = found["blocked"]
    return ret
