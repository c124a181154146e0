"""
Sidekiq as the pillar wants it: running the current release, with its environment, and in the deploy user's reach.

Each state asks, compares, says what would change, acts, and asks again; how to ask and to act is in the execution
module of the same name.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)
# Salt loads this file anew for each run of states, before the first of its states is called.
_RUN_BEGAN = time.time()
_BY_WATCH = "a state that it watches changed, or would change"


def current(name: str, strategy: str | None = None) -> dict[str, Any]:
    """
    Every process of a Sidekiq service is enabled at boot and works in the release that `current` points at now, with the
    unit, environment and configuration as they are now; what is stale is replaced, and loses no job.

    As long as nothing is deployed the units are enabled only: the first deploy, or the next run after it, starts them.

    name
        Name of the service in the settings, without ``.service``.
    strategy
        ``handover`` or ``drain``; default: the service's own in the settings.

    Example:

    .. code-block:: yaml

        Sidekiq service sidekiq works:
          sidekiq.current:
            - name: sidekiq
            - watch:
              - file: /etc/systemd/system/sidekiq.service
    """
    ret = _ret(name)
    try:
        facts = __salt__["sidekiq.status"](name, heartbeat=False)
        ret["changes"] = _current_changes(facts)
        if not __opts__["test"]:
            _load_units(facts)
        if not ret["changes"]:
            return _same(ret, _current_sentence(facts))
        if __opts__["test"]:
            return _would(ret, _current_plan(ret["changes"]))
        record = _make_current(name, facts, strategy)
        ret["changes"] = {**_own_changes(ret["changes"], record), **_record_changes(record)}
        if not record.get("result", True):
            return _failed(ret, record["comment"])
        after = __salt__["sidekiq.status"](name, heartbeat=False)
        left = _current_changes(after)
        if left:
            return _failed(ret, f"{record.get('comment', '')} And still {_current_plan(left)}".strip())
        if not ret["changes"]:
            return _same(ret, record["comment"])
        return _changed(ret, record.get("comment") or _current_sentence(after))
    except _ERRORS as err:
        return _failed(ret, str(err))


def mod_watch(name: str, sfun: str = "current", **kwargs: Any) -> dict[str, Any]:
    """
    What a watched state's change does: the service's processes are replaced, unless this run has done so already.

    Example:

    .. code-block:: yaml

        Sidekiq service sidekiq works:
          sidekiq.current:
            - name: sidekiq
            - watch:
              - file: /etc/systemd/system/sidekiq.service
    """
    ret = _ret(name)
    if sfun != "current":
        return _failed(ret, f"sidekiq.{sfun} cannot watch")
    try:
        facts = __salt__["sidekiq.status"](name, heartbeat=False)
        if not facts["deployed"]:
            return current(name, **_own(kwargs))
        older = [one["unit"] for one in facts["processes"] if (one["started"] or 0) < _RUN_BEGAN]
        if not older:
            return _same(ret, _current_sentence(facts))
        ret["changes"] = {unit: {"restarted because": _BY_WATCH} for unit in older}
        if __opts__["test"]:
            return _would(ret, _current_plan(ret["changes"]))
        record = __salt__["sidekiq.restart"](name, since=_RUN_BEGAN, **_own(kwargs))
        ret["changes"].update(_record_changes(record))
        return (_changed if record["result"] else _failed)(ret, record["comment"])
    except _ERRORS as err:
        return _failed(ret, str(err))


def environment_file(name: str, service: str) -> dict[str, Any]:
    """
    A service's environment file holds the variables of the settings, for root's eyes only.

    Changes name the variables, never their values.

    name
        Path of the file.
    service
        Name of the service in the settings.

    Example:

    .. code-block:: yaml

        Sidekiq service sidekiq has its environment:
          sidekiq.environment_file:
            - name: /etc/sidekiq/sidekiq.env
            - service: sidekiq
    """
    ret = _ret(name)
    try:
        ret["changes"] = __salt__["sidekiq.environment_diff"](name, service)
        if not ret["changes"]:
            return _same(ret, f"{name} holds the variables of the settings")
        if __opts__["test"]:
            return _would(ret, f"{name} would be written")
        __salt__["sidekiq.environment_write"](name, service)
        left = __salt__["sidekiq.environment_diff"](name, service)
        if left:
            return _failed(ret, f"{name} was written and still differs in {', '.join(sorted(left))}")
        return _changed(ret, f"{name} was written")
    except _ERRORS as err:
        return _failed(ret, str(err))


def sudoers(
    name: str,
    user: str,
    units: list[str],
    verbs: list[str],
    commands: list[str] | None = None,
    group: str = "",
    strict: bool = False,
) -> dict[str, Any]:
    """
    A user may say some verbs about some units to systemctl, and run some commands, as root without a password, and sudo
    agrees.

    The text is validated before it lands, in ``test=True`` too: alone, and with the whole policy in a private copy.
    After it landed, sudo is asked for each command and for its neighbours; if it answers otherwise than meant, the file
    is as it was before and the state fails.

    Files of this formula with other names in the same folder go: so neither a user nor a unit that was renamed keeps a
    rule. Other ways in which he could gain more (:func:`sidekiq_risks.find`) are warnings.

    name
        Path of the file, in a folder that /etc/sudoers includes; letters, digits, - and _ only.
    user
        Login name.
    units
        Units, with or without ``.service``; may be empty if there are commands.
    verbs
        Some of restart, start, stop.
    commands
        Absolute paths of commands that he may run without arguments, files that only root can change; default: none.
    group
        A group whose members may do the same; default: none.
    strict
        Fail, and change nothing, when he could gain more by a way that this host shows (bool, default False: warn).

    Example:

    .. code-block:: yaml

        User deploy may restart Sidekiq:
          sidekiq.sudoers:
            - name: /etc/sudoers.d/sidekiq-deploy
            - user: deploy
            - units: [sidekiq]
            - verbs: [restart, start, stop]
    """
    ret = _ret(name)
    try:
        commands = commands or []
        risks = [
            __salt__["sidekiq_risks.words"](risk)
            for risk in __salt__["sidekiq_risks.find"](user, units, commands, rules=False)
        ]
        if risks and strict:
            return _failed(
                ret, f"{user} could gain more than sudo lets him do, so nothing was changed. {'. '.join(risks)}"
            )
        if risks:
            ret["warnings"] = risks
        return _make_sudoers(ret, user, units, verbs, commands, group)
    except _ERRORS as err:
        return _failed(ret, str(err))


def sudoers_absent(name: str) -> dict[str, Any]:
    """
    A sudoers file is not there, nor another one of this formula in its folder.

    name
        Path of the file.

    Example:

    .. code-block:: yaml

        Nobody may restart Sidekiq by sudo:
          sidekiq.sudoers_absent:
            - name: /etc/sudoers.d/sidekiq-deploy
    """
    ret = _ret(name)
    try:
        found = _sudoers_found(name)
        if not found:
            return _same(ret, f"{name} is not there")
        ret["changes"] = {"removed": found}
        if __opts__["test"]:
            return _would(ret, f"{', '.join(found)} would be removed")
        for path in found:
            __salt__["sidekiq_sudo.sudoers_remove"](path)
        left = _sudoers_found(name)
        if left:
            return _failed(ret, f"{', '.join(left)} was removed and is there again")
        return _changed(ret, f"{', '.join(found)} removed")
    except _ERRORS as err:
        return _failed(ret, str(err))


def event_commands_absent(name: str, keep: list[str]) -> dict[str, Any]:
    """
    No command for a deploy event is in a folder but those named; files of others are never touched.

    name
        Path of the folder.
    keep
        Paths of the commands that stay.

    Example:

    .. code-block:: yaml

        No other app has a command for its deploy event:
          sidekiq.event_commands_absent:
            - name: /usr/local/sbin
            - keep: [/usr/local/sbin/sidekiq-deployed-shop]
    """
    ret = _ret(name)
    try:
        surplus = _surplus_commands(name, keep)
        if not surplus:
            return _same(ret, f"{name} holds no command for a deploy event but {', '.join(keep) or 'those of others'}")
        ret["changes"] = {"removed": surplus}
        if __opts__["test"]:
            return _would(ret, f"{', '.join(surplus)} would be removed")
        __salt__["sidekiq.event_commands_remove"](name, surplus)
        left = _surplus_commands(name, keep)
        if left:
            return _failed(ret, f"{', '.join(left)} was removed and is there again")
        return _changed(ret, f"{', '.join(surplus)} removed")
    except _ERRORS as err:
        return _failed(ret, str(err))


def folder_absent(name: str) -> dict[str, Any]:
    """
    A folder is not there, unless it holds something: files that others put there are theirs.

    name
        Path of the folder.

    Example:

    .. code-block:: yaml

        The folder for Sidekiq's settings is gone, unless it holds files of others:
          sidekiq.folder_absent:
            - name: /etc/sidekiq
    """
    ret = _ret(name)
    try:
        entries = __salt__["sidekiq.folder_entries"](name)
        if entries is None:
            return _same(ret, f"{name} is not there")
        if entries and not __opts__["test"]:
            return _same(ret, f"{name} stays, it holds {', '.join(entries)}")
        ret["changes"] = {"removed": name}
        if __opts__["test"]:
            return _would(ret, f"{name} would be removed, if it is empty by then")
        __salt__["sidekiq.folder_remove"](name)
        if __salt__["sidekiq.folder_entries"](name) is not None:
            return _failed(ret, f"{name} is still there")
        return _changed(ret, f"{name} was removed")
    except _ERRORS as err:
        return _failed(ret, str(err))


# --- below: comparing and saying -------------------------------------------------------------------------------------


def _current_changes(facts: dict[str, Any]) -> dict[str, Any]:
    """Unit -> what is to change about it."""
    changes = {one["unit"]: _unit_changes(one, facts["deployed"]) for one in facts["processes"]}
    for unit in facts["leftover"]:
        changes[unit]["tidied up"] = {"old": "a restart was cut off", "new": ""}
    for unit in facts["surplus"]:
        changes[unit] = {"retired": {"old": "a process too many", "new": ""}}
    return {unit: change for unit, change in changes.items() if change}


def _unit_changes(one: dict[str, Any], deployed: bool) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if not one["loaded"]:
        changes["loaded"] = {"old": False, "new": True}
    elif one["needs_reload"] and deployed:
        changes["unit"] = {"old": "an older one is loaded", "new": "as on disk"}
    if not one["enabled"]:
        changes["enabled"] = {"old": False, "new": True}
    if deployed and one["active"] != "active":
        changes["running"] = {"old": one["active"], "new": "active"}
    elif deployed and one["stale"]:
        changes["restarted because"] = "; ".join(one["stale"])
    return changes


def _current_plan(changes: dict[str, Any]) -> str:
    return ". ".join(f"{unit} would be {_unit_plan(change)}" for unit, change in changes.items())


def _unit_plan(change: dict[str, Any]) -> str:
    words = {
        "loaded": "loaded",
        "unit": "loaded anew",
        "enabled": "enabled at boot",
        "running": "started",
        "tidied up": "tidied up after a restart that was cut off",
        "retired": "drained, stopped and disabled",
    }
    plans = [words[key] for key in change if key in words]
    if "restarted because" in change:
        plans.append(f"restarted, because {change['restarted because']}")
    return ", ".join(plans)


def _current_sentence(facts: dict[str, Any]) -> str:
    units = ", ".join(one["unit"] for one in facts["processes"])
    if not facts["deployed"]:
        return f"{units}: enabled; there is no release at {facts['current']} yet, the first deploy starts it"
    pids = ", ".join(str(one["pid"]) for one in facts["processes"])
    return f"{units}: at work in {facts['release']}, pid {pids}"


def _load_units(facts: dict[str, Any]) -> None:
    """
    Part of a unit file's change: it stops and starts nothing. Where something is deployed, the restart itself makes
    systemd read what is new, after it has seen which process is of an older unit.
    """
    if any(not one["loaded"] or (one["needs_reload"] and not facts["deployed"]) for one in facts["processes"]):
        __salt__["sidekiq_units.reload_systemd"]()


def _make_current(name: str, facts: dict[str, Any], strategy: str | None) -> dict[str, Any]:
    """Enable, replace what is stale, retire what is too many; returns the record of the last that failed, or acted."""
    looked = facts["processes"]
    for one in looked:
        if not one["enabled"]:
            __salt__["service.enable"](one["unit"])
    record: dict[str, Any] = {}
    if facts["deployed"] and (facts["leftover"] or any(one["active"] != "active" or one["stale"] for one in looked)):
        record = __salt__["sidekiq.restart"](name, strategy=strategy, stale_only=True)
    if facts["surplus"] and record.get("result", True):
        record = __salt__["sidekiq.retire"](name)
    return record


def _own_changes(changes: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Without what another call has done while this one waited for it."""
    acted = {entry["unit"] for entry in record.get("processes", [])}
    others = ("restarted because", "running", "tidied up")
    own = {
        unit: {key: value for key, value in change.items() if unit in acted or key not in others}
        for unit, change in changes.items()
    }
    return {unit: change for unit, change in own.items() if change}


def _record_changes(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of processes and jobs, as far as a state's changes need it."""
    pids = {
        f"{entry['unit']} pid": {"old": entry["old"]["pid"], "new": entry["new"].get("pid", 0)}
        for entry in record.get("processes", [])
    }
    fates: dict[str, int] = {}
    for job in record.get("jobs", {}).values():
        fates[job["fate"]] = fates.get(job["fate"], 0) + 1
    return {**pids, **({"jobs in work": fates} if fates else {})}


def _own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Salt adds arguments of its own to a watch's call."""
    return {key: kwargs[key] for key in ("strategy",) if key in kwargs}


def _surplus_commands(name: str, keep: list[str]) -> list[str]:
    return [path for path in __salt__["sidekiq.event_commands"](name) if path not in keep]


def _make_sudoers(
    ret: dict[str, Any], user: str, units: list[str], verbs: list[str], commands: list[str], group: str
) -> dict[str, Any]:
    name = ret["name"]
    text = __salt__["sidekiq_sudo.sudoers_text"](user, units, verbs, commands, group)
    __salt__["sidekiq_sudo.commands_validate"](commands)
    ret["changes"] = _sudoers_changes(name, text)
    if ret["changes"] and __opts__["test"]:
        if not __salt__["sidekiq_sudo.sudo_installed"]():
            return _would(ret, f"{name} would be written; visudo has its say once sudo is installed")
        __salt__["sidekiq_sudo.sudoers_validate"](text, name, ret["changes"].get("removed", []))
        return _would(ret, f"{name} would be written; visudo accepts it, alone and with the whole policy")
    if ret["changes"]:
        __salt__["sidekiq_sudo.sudoers_write"](name, user, units, verbs, commands, group)
        left = _sudoers_changes(name, text)
        if left:
            return _failed(ret, f"{name} was written and still differs in {', '.join(sorted(left))}")
        return _changed(ret, f"{name} was written; sudo allows {user} these commands and none of their neighbours")
    check = __salt__["sidekiq_sudo.sudo_check"](user, units, verbs, commands, thorough=False)
    if check["missing"] or check["beyond"]:
        check = __salt__["sidekiq_sudo.sudo_check"](user, units, verbs, commands)
        return _failed(ret, _sudo_sentence(name, check))
    return _same(ret, f"sudo allows {user} what {name} says and nothing else")


def _sudoers_changes(name: str, text: str) -> dict[str, Any]:
    found = __salt__["sidekiq.file_facts"](name)
    changes: dict[str, Any] = {}
    if found.get("text") != text:
        changes["diff"] = __salt__["sidekiq.text_diff"](found.get("text", ""), text)
    for key, want in (("mode", "0440"), ("owner", "root:root")):
        if found and found[key] != want:
            changes[key] = {"old": found[key], "new": want}
    others = [path for path in _sudoers_found(name) if path != name]
    return {**changes, **({"removed": others} if others else {})}


def _sudoers_found(name: str) -> list[str]:
    """A sudoers file, if it is there, and the other ones of this formula in its folder."""
    here = [name] if __salt__["sidekiq.file_facts"](name) else []
    return [*here, *(path for path in __salt__["sidekiq_sudo.sudoers_files"](os.path.dirname(name)) if path != name)]


def _sudo_sentence(name: str, check: dict[str, Any]) -> str:
    parts = [f"{command} is not allowed without a password" for command in check["missing"]]
    parts += [f"another rule allows {__salt__['sidekiq_sudo.rule_words'](rule)}" for rule in check["beyond"]]
    return (
        f"{name} is as it should be, but sudo says otherwise about {check['user']}: {'; '.join(parts)}. "
        "Look for another rule about this user in /etc/sudoers and /etc/sudoers.d"
    )


def _ret(name: str) -> dict[str, Any]:
    return {"name": name, "result": True, "changes": {}, "comment": ""}


def _same(ret: dict[str, Any], comment: str) -> dict[str, Any]:
    ret.update(result=True, changes={}, comment=comment)
    return ret


def _would(ret: dict[str, Any], comment: str) -> dict[str, Any]:
    ret.update(result=None, comment=comment)
    return ret


def _changed(ret: dict[str, Any], comment: str) -> dict[str, Any]:
    ret.update(result=True, comment=comment)
    return ret


def _failed(ret: dict[str, Any], comment: str) -> dict[str, Any]:
    ret.update(result=False, comment=comment)
    return ret
