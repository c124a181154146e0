"""
Sidekiq as the pillar wants it: running the current release, with its environment, and in the deploy user's reach.

Each state asks, compares, says what would change, acts, and asks again; how to ask and to act is in the execution
module of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)


def running(name: str, current: str, config_files: list[str] | None = None) -> dict[str, Any]:
    """
    A Sidekiq service is enabled at boot and works, started after its unit, environment and configuration last changed.

    As long as nothing is deployed it is enabled only: the first deploy, or the next run after it, starts it.

    name
        Name of the service in the settings, without ``.service``.
    current
        Path that exists once a release is deployed, such as ``/srv/app/current``.
    config_files
        Paths that the process must be younger than; default: unit, environment file and sidekiq.yml of the settings.

    Example:

    .. code-block:: yaml

        Sidekiq service sidekiq works:
          sidekiq.running:
            - name: sidekiq
            - current: /srv/app/current
            - config_files: [/etc/systemd/system/sidekiq.service, /etc/sidekiq/sidekiq.env]
            - watch:
              - file: /etc/systemd/system/sidekiq.service
    """
    ret = _ret(name)
    try:
        facts = __salt__["sidekiq.status"](name, current=current, config_files=config_files, heartbeat=False)
        ret["changes"] = _running_changes(facts)
        if not ret["changes"]:
            return _same(ret, _running_sentence(facts, current))
        if __opts__["test"]:
            return _would(ret, f"{facts['unit']} would be {_running_reason(ret['changes'])}")
        record = _make_run(name, facts)
        after = __salt__["sidekiq.status"](name, current=current, config_files=config_files, heartbeat=False)
        if not record.get("result", True):
            return _failed(ret, record["comment"])
        if _running_changes(after):
            return _failed(ret, f"{after['unit']} is still to be {_running_reason(_running_changes(after))}")
        if facts["pid"] != after["pid"]:
            ret["changes"]["pid"] = {"old": facts["pid"], "new": after["pid"]}
        return _changed(ret, record.get("comment") or _running_sentence(after, current))
    except _ERRORS as err:
        return _failed(ret, str(err))


def mod_watch(name: str, sfun: str = "running", **kwargs: Any) -> dict[str, Any]:
    """
    What a watched file's change does: :func:`running` again, which restarts a process that is older than its files.

    In a real run that has happened by now. Under ``test=True`` the files are as they were, so only the watch knows
    that a restart would follow; the run says so.

    Example:

    .. code-block:: yaml

        Sidekiq service sidekiq works:
          sidekiq.running:
            - name: sidekiq
            - current: /srv/app/current
            - watch:
              - file: /etc/systemd/system/sidekiq.service
    """
    if sfun != "running":
        return _failed(_ret(name), f"sidekiq.{sfun} cannot watch")
    wanted = {key: kwargs[key] for key in ("current", "config_files") if key in kwargs}
    ret = running(name, **wanted)
    if not __opts__["test"] or ret["result"] is not True:
        return ret
    try:
        facts = __salt__["sidekiq.status"](name, current=wanted["current"], heartbeat=False)
    except _ERRORS as err:
        return _failed(ret, str(err))
    if not facts["deployed"]:
        return ret
    ret["changes"] = {"restarted because": {"old": "", "new": "a file that it watches would change"}}
    return _would(ret, f"{facts['unit']} would be restarted, because a file that it watches would change")


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


def sudoers(name: str, user: str, units: list[str], verbs: list[str]) -> dict[str, Any]:
    """
    A user may say some verbs about some units to systemctl as root without a password, and sudo agrees.

    The text is validated before it lands, in ``test=True`` too: alone, and with the whole policy in a private copy.
    After it landed, sudo is asked for each command and for its neighbours; if it answers otherwise than meant, the file
    is as it was before and the state fails.

    name
        Path of the file, in a folder that /etc/sudoers includes; letters, digits, - and _ only.
    user
        Login name.
    units
        Units, with or without ``.service``.
    verbs
        Some of restart, start, stop.

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
        text = __salt__["sidekiq.sudoers_text"](user, units, verbs)
        ret["changes"] = _sudoers_changes(name, text)
        if ret["changes"] and __opts__["test"]:
            if not __salt__["sidekiq.sudo_installed"]():
                return _would(ret, f"{name} would be written; visudo has its say once sudo is installed")
            __salt__["sidekiq.sudoers_validate"](text, name)
            return _would(ret, f"{name} would be written; visudo accepts it, alone and with the whole policy")
        if ret["changes"]:
            __salt__["sidekiq.sudoers_write"](name, user, units, verbs)
            left = _sudoers_changes(name, text)
            if left:
                return _failed(ret, f"{name} was written and still differs in {', '.join(sorted(left))}")
            return _changed(ret, f"{name} was written; sudo allows {user} these commands and none of their neighbours")
        check = __salt__["sidekiq.sudo_check"](user, units, verbs)
        if check["missing"] or check["beyond"]:
            return _failed(ret, _sudo_sentence(name, check))
        return _same(ret, f"sudo allows {user} what {name} says and nothing else")
    except _ERRORS as err:
        return _failed(ret, str(err))


def sudoers_absent(name: str) -> dict[str, Any]:
    """
    A sudoers file is not there.

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
        found = __salt__["sidekiq.file_facts"](name)
        if not found:
            return _same(ret, f"{name} is not there")
        ret["changes"] = {"removed": name}
        if __opts__["test"]:
            return _would(ret, f"{name} would be removed")
        __salt__["sidekiq.sudoers_remove"](name)
        if __salt__["sidekiq.file_facts"](name):
            return _failed(ret, f"{name} was removed and is there again")
        return _changed(ret, f"{name} was removed")
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


def _running_changes(facts: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if not facts["loaded"]:
        changes["loaded"] = {"old": False, "new": True}
    elif facts["needs_reload"]:
        changes["unit"] = {"old": "an older one is loaded", "new": "as on disk"}
    if not facts["enabled"]:
        changes["enabled"] = {"old": False, "new": True}
    if facts["deployed"]:
        if facts["active"] != "active":
            changes["running"] = {"old": facts["active"], "new": "active"}
        elif facts["changed_since_start"]:
            changes["restarted because"] = {"old": "", "new": f"changed: {', '.join(facts['changed_since_start'])}"}
        elif facts["needs_reload"]:
            changes["restarted because"] = {"old": "", "new": "it runs with an older unit"}
    return changes


def _running_reason(changes: dict[str, Any]) -> str:
    reasons = []
    if "loaded" in changes or "unit" in changes:
        reasons.append("loaded anew")
    if "enabled" in changes:
        reasons.append("enabled at boot")
    if "running" in changes:
        reasons.append("started")
    if "restarted because" in changes:
        reasons.append(f"restarted, because {changes['restarted because']['new']}")
    return ", ".join(reasons)


def _running_sentence(facts: dict[str, Any], current: str) -> str:
    if not facts["deployed"]:
        return f"{facts['unit']} is enabled; there is no release at {current} yet, the first deploy starts it"
    return f"{facts['unit']} works, pid {facts['pid']}"


def _make_run(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Load, enable, then start or restart; returns the record of the last, {} when there is nothing to start."""
    if facts["needs_reload"] or not facts["loaded"]:
        __salt__["service.systemctl_reload"]()
    if not facts["enabled"]:
        __salt__["service.enable"](facts["unit"])
    if not facts["deployed"]:
        return {}
    if facts["active"] != "active":
        return __salt__["sidekiq.start"](name)
    if facts["changed_since_start"] or facts["needs_reload"]:
        return __salt__["sidekiq.restart"](name)
    return {}


def _sudoers_changes(name: str, text: str) -> dict[str, Any]:
    found = __salt__["sidekiq.file_facts"](name)
    changes: dict[str, Any] = {}
    if found.get("text") != text:
        changes["diff"] = __salt__["sidekiq.text_diff"](found.get("text", ""), text)
    for key, want in (("mode", "0440"), ("owner", "root:root")):
        if found and found[key] != want:
            changes[key] = {"old": found[key], "new": want}
    return changes


def _sudo_sentence(name: str, check: dict[str, Any]) -> str:
    parts = [f"{command} is not allowed without a password" for command in check["missing"]]
    parts += [f"another rule allows ({rule['runas']}) {rule['command']}" for rule in check["beyond"]]
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
