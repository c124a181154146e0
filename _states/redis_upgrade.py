"""
Whether an instance of Redis may go over to the build of the settings; how it does is in ``redis_server.running``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}


def allowed(name: str) -> dict[str, Any]:
    """
    Nothing stands against the build of the settings: no server of others has the instance's port, it reads the data that
    the instance has, and was not gone back from with this config. It changes nothing; what needs the build requires it, so
    that config and server stay as they are.

    name
        Name of the instance in the settings: its port.

    Example:

    .. code-block:: yaml

        Redis instance 6379 may run the build of the settings:
          redis_upgrade.allowed:
            - name: '6379'
    """
    name = str(name)
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        hindrance = __salt__["redis_upgrade.hindrance"](name)
        if hindrance:
            return {**ret, "result": False, "comment": hindrance}
        found = __salt__["redis_upgrade.facts"](name)
    except (CommandExecutionError, SaltInvocationError) as err:
        return {**ret, "result": False, "comment": str(err)}
    if found["build"] in ("", found["wished"]):
        return {**ret, "comment": f"{found['wished']} is the build of Redis instance {name}"}
    return {**ret, "comment": f"Redis instance {name} may go from {found['build']} over to {found['wished']}"}
