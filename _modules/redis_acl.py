"""
The users of a running Redis, and those that its config names: compare both, and make them right without a restart.

What a user's rules mean is asked from Redis itself, as with directives (see :mod:`redis_config`): the server that judges
the config says in ``ACL LIST`` what it made of them, and a server that serves is compared with that word by word.
Passwords are compared by their digests, which is all that a config has of them. ``ACL SETUSER`` changes a user whole or
not at all, and connections of the user stay, whatever password they came in with; ``ACL DELUSER`` ends them.

Neither a password nor its digest is in a return, a message or a file of this module's.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}

_EVERYTHING = ["~*", "&*", "+@all"]  # what the default user may


# Facts ---------------------------------------------------------------------------------------------------------------


def drift(instance: str) -> dict[str, Any]:
    """
    The users in which a running server differs from what a start with the config of the settings would make.

    A user that no setting names is one too: it is to be deleted, whoever made it. While another build runs than the
    current one, which may spell rules otherwise, only names and passwords are compared.

    instance
        Name of the instance in the settings: its port.

    Returns ``users``, name -> some of ``there`` (``{running, wished}``, bool), ``rules`` (``{running, wished}``, as
    ``ACL LIST`` says them) and ``passwords`` (``{missing, surplus}``, how many); and ``unasked``: why nothing could be
    compared, or empty.

    Raises CommandExecutionError when Redis refuses the config, or to answer.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_acl.drift 6379
    """
    wish, meaning = _wish(instance), __salt__["redis_config.meaning"](instance)
    if not meaning:
        return {"users": {}, "unasked": "the build that its config is for is not in place yet"}
    with __salt__["redis_server.session"](instance, hold=False) as client:
        return _compare(client, wish, meaning)


# Acts ----------------------------------------------------------------------------------------------------------------


def apply(instance: str) -> dict[str, Any]:
    """
    Bring the users of a running server to its config, and ask again. First users are made and changed, each by one
    command that counts whole or not at all, then those are deleted that the settings do not name.

    instance
        Name of the instance in the settings.

    Returns a record: ``set`` and ``deleted`` (names, proven), ``failed`` (name -> Redis' words). Raises
    CommandExecutionError when the server cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_acl.apply 6379
    """
    wish, meaning = _wish(instance), __salt__["redis_config.meaning"](instance)
    with __salt__["redis_server.session"](instance) as client:
        found = _compare(client, wish, meaning) if meaning else {"unasked": "its build is not in place yet"}
        if found["unasked"]:
            raise CommandExecutionError(f"{wish['unit']} cannot be told its users: {found['unasked']}")
        commands = _commands(wish, found["users"])
        failed = {name: said for name, command in commands.items() if (said := _refusal(client, wish, command))}
        left = _compare(client, wish, meaning)
    if left["unasked"]:
        raise CommandExecutionError(f"{wish['unit']} answered no more after its users were set: {left['unasked']}")
    done = [name for name in commands if name not in left["users"]]
    return {
        "set": [name for name in done if commands[name][0] == "ACL SETUSER"],
        "deleted": [name for name in done if commands[name][0] == "ACL DELUSER"],
        "failed": {name: failed.get(name, "it is still another than wished") for name in commands if name not in done},
    }


# --- below: how it is done -------------------------------------------------------------------------------------------


def _wish(instance: str) -> dict[str, Any]:
    """The settings of one instance, and where the program is that runs it."""
    redis = __salt__["redis_sidekiq.settings"](reveal=True)["redis"]
    found = [wish for wish in redis["instances"] if wish["name"] == str(instance)]
    if not found:
        raise SaltInvocationError(f"{instance!r} is not a Redis instance of this minion")
    return {**found[0], "binary": __salt__["redis_build.binary"](redis["prefix"])}


def _wished(wish: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> words of ``ACL SETUSER`` that make the user from nothing, and those among them by which he comes in."""
    password = wish["password"]
    alone = ["#" + hashlib.sha256(password.encode()).hexdigest() if password else "nopass"]
    users = {"default": {"hashes": alone, "rules": _EVERYTHING}}
    users |= {user["name"]: {"hashes": user["hashes"], "rules": user["rules"]} for user in wish["users"]}
    for user in users.values():
        user["words"] = ["reset", "on", *user["hashes"], *user["rules"]]
    return users


def _running(line: str) -> tuple[str, dict[str, Any]]:
    """
    A user from a line of ``ACL LIST``: words that Redis itself reads again, with one space between two. The one for what
    holds anyway is there only when somebody said so.
    """
    _, name, *words = line.split(" ")
    hashes = {word for word in words if word == "nopass" or word.startswith("#")}
    rules = [word for word in words if word not in hashes and word != "sanitize-payload"]
    return name, {"hashes": hashes, "rules": " ".join(rules)}


def _compare(client: Any, wish: dict[str, Any], meaning: dict[str, Any]) -> dict[str, Any]:
    if client is None:
        return {"users": {}, "unasked": "it takes no password known here"}
    import redis  # late: it costs 0.04 s, and it may have been installed by this very run

    try:
        running = dict(map(_running, client.execute_command("ACL", "LIST")))
        server, password = client.info("server"), client.config_get("requirepass").get("requirepass", "")
    except redis.ConnectionError:
        return {"users": {}, "unasked": "no server answers"}
    except redis.RedisError as err:
        raise CommandExecutionError(f"{wish['unit']} does not say its users: {type(err).__name__}: {err}") from err
    wished = _wished(wish)
    spelled = {} if _runs_another_build(server, wish) else meaning["users"]
    users = {
        name: _difference(running.get(name), wished.get(name), spelled.get(name))
        for name in sorted(running.keys() | wished.keys())
    }
    if password != wish["password"]:
        # A new password is one of the directives, and all there is to say of the default user before it is set.
        users.pop("default", None)
    return {"users": {name: found for name, found in users.items() if found}, "unasked": ""}


def _difference(running: dict[str, Any] | None, wished: dict[str, Any] | None, rules: str | None) -> dict[str, Any]:
    if running is None or wished is None:
        return {"there": {"running": running is not None, "wished": wished is not None}}
    found: dict[str, Any] = {}
    if rules is not None and _ordered(running["rules"]) != _ordered(rules):
        found["rules"] = {"running": running["rules"], "wished": rules}
    missing, surplus = set(wished["hashes"]) - running["hashes"], running["hashes"] - set(wished["hashes"])
    if missing or surplus:
        found["passwords"] = {"missing": len(missing), "surplus": len(surplus)}
    return found


def _ordered(rules: str) -> list[str]:
    """
    Rules with single commands in a row in one order: Redis 7.0 and older say them as they lie in its table, which is
    another in each process (src/acl.c, ACLDescribeSelectorCommandRules). All other words come in the order that counts,
    and so do those about one command and its subcommands.
    """
    ordered: list[str] = []
    row: list[str] = []
    for word in rules.split():
        if re.match("[+-][^@]", word):
            row.append(word.rstrip(")"))
        if not row or row[-1] != word:  # the row ends here
            ordered += sorted(row, key=lambda rule: re.split("[|]", rule[1:])[0])
            ordered.append(")" if row and row[-1] == word.rstrip(")") else word)
            row = []
    return ordered + sorted(row, key=lambda rule: re.split("[|]", rule[1:])[0])


def _runs_another_build(server: dict[str, Any], wish: dict[str, Any]) -> bool:
    try:
        program = os.readlink(f"/proc/{server.get('process_id')}/exe")
    except OSError:
        return True
    return program != os.path.realpath(wish["binary"])


def _commands(wish: dict[str, Any], found: dict[str, Any]) -> dict[str, list[str]]:
    """Name -> the command that makes the user right; deletions last."""
    wished = _wished(wish)
    commands = {name: ["ACL SETUSER", name, *wished[name]["words"]] for name in found if name in wished}
    return commands | {name: ["ACL DELUSER", name] for name in found if name not in wished}


def _refusal(client: Any, wish: dict[str, Any], command: list[str]) -> str:
    """Redis' words if it does not take a command, else nothing."""
    import redis

    try:
        client.execute_command(*command)
    except redis.ResponseError as err:
        return re.sub(r"#[0-9a-f]{64}", "#******", str(err))
    except redis.RedisError as err:
        raise CommandExecutionError(f"{wish['unit']} answered no more: {type(err).__name__}") from err
    return ""
