"""
The users of a running Redis are those of the settings: without a restart, and without ending a connection of theirs.

Facts and acts come from the execution module of the same name; the config file is the affair of
:func:`redis_server.config`, the default user's password that of :func:`redis_config.live`.
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
    A running instance has the users of the settings, each with its passwords and rules, and no others.

    A user that somebody changed is put right, one that the settings do not name is deleted, whoever made it. A server
    that does not run, or takes no password known here, is left to :func:`redis_server.running`. ``test=True`` says who
    would be changed.

    name
        Name of the instance in the settings: its port.

    Example:

    .. code-block:: yaml

        Redis instance 6379 has its users:
          redis_acl.live:
            - name: '6379'
            - require:
              - redis_server: /etc/redis/6379.conf
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    name = str(name)
    try:
        found = __salt__["redis_acl.drift"](name)
        ret["changes"] = {user: _change(entry) for user, entry in found["users"].items()}
        if found["unasked"]:
            return {**ret, "comment": f"Redis instance {name} is not told its users: {found['unasked']}"}
        if not ret["changes"]:
            return {**ret, "comment": f"Redis instance {name} has the users of the settings"}
        if __opts__["test"]:
            return {**ret, "result": None, "comment": f"Redis instance {name}: {_plan(found['users'])}"}
        record = __salt__["redis_acl.apply"](name)
        done = [*record["set"], *record["deleted"]]
        ret["changes"] = {user: change for user, change in ret["changes"].items() if user in done}
        ret["comment"] = f"Redis instance {name}: {_sentence(record)}"
        left = __salt__["redis_acl.drift"](name)["users"].keys() - record["failed"].keys()
        if left:
            ret["comment"] += f"; {', '.join(sorted(left))} differ again"
        return {**ret, "result": not record["failed"] and not left}
    except _ERRORS as err:
        return {**ret, "result": False, "changes": {}, "comment": str(err)}


# --- below: comparing and saying -------------------------------------------------------------------------------------


def _change(entry: dict[str, Any]) -> dict[str, Any]:
    if "there" in entry:
        words = {True: "a user", False: "no user"}
        return {"old": words[entry["there"]["running"]], "new": words[entry["there"]["wished"]]}
    change: dict[str, Any] = {}
    if "rules" in entry:
        change["rules"] = {"old": entry["rules"]["running"], "new": entry["rules"]["wished"]}
    if "passwords" in entry:
        change["passwords"] = f"{entry['passwords']['missing']} more, {entry['passwords']['surplus']} fewer"
    return change


def _plan(users: dict[str, Any]) -> str:
    gone = [name for name, entry in users.items() if entry.get("there", {}).get("wished") is False]
    kept = [name for name in users if name not in gone]
    said = [f"{', '.join(kept)} would be set"] if kept else []
    return "; ".join([*said, *([f"{', '.join(gone)} would be deleted"] if gone else [])])


def _sentence(record: dict[str, Any]) -> str:
    said = [f"{', '.join(record['set'])} set"] if record["set"] else []
    said += [f"{', '.join(record['deleted'])} deleted"] if record["deleted"] else []
    said += [f"{name} could not be set: {words}" for name, words in sorted(record["failed"].items())]
    return "; ".join(said)
