"""
Redis as the pillar wants it: configured, running the current build with that config.

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


def client_installed(name: str) -> dict[str, Any]:
    """
    The Python that runs Salt has the package ``redis``, in a version that Salt's Redis modules work with.

    name
        Anything; a sentence.

    Example:

    .. code-block:: yaml

        Salt has a client for Redis:
          redis_server.client_installed: []
    """
    ret = _ret(name)
    try:
        facts = __salt__["redis_server.client"]()
        if facts["suits"]:
            return _same(ret, f"Salt's Python has the package redis {facts['version']}")
        ret["changes"] = {"redis": {"old": facts["version"], "new": facts["wanted"]}}
        if __opts__["test"]:
            return _would(ret, f"{facts['wanted']} would be installed for Salt's Python by pip")
        __salt__["redis_server.client_install"]()
        after = __salt__["redis_server.client"]()
        if not after["suits"]:
            return _failed(
                ret, f"pip did its work, and Salt's Python has redis {after['version'] or 'not'} all the same"
            )
        ret["changes"]["redis"]["new"] = after["version"]
        return _changed(ret, f"The package redis {after['version']} was installed for Salt's Python")
    except _ERRORS as err:
        return _failed(ret, str(err))


def config(name: str, instance: str) -> dict[str, Any]:
    """
    An instance's redis.conf is as the settings say, and the current build starts with it.

    The text comes from the settings, password included; changes never show one. A file that Redis refuses never lands.
    Under ``test=True`` it is judged too, once the build that it is for is current.

    name
        Path of the file.
    instance
        Name of the instance in the settings: its port.

    Example:

    .. code-block:: yaml

        Redis instance 6379 has its config:
          redis_server.config:
            - name: /etc/redis/6379.conf
            - instance: '6379'
    """
    ret = _ret(name)
    instance = str(instance)
    try:
        ret["changes"] = __salt__["redis_server.config_diff"](name, instance)
        if not ret["changes"]:
            return _same(ret, f"{name} is as the settings say")
        if __opts__["test"]:
            return _would(ret, f"{name} would be written; {__salt__['redis_server.config_check'](instance)}")
        sentence = __salt__["redis_server.config_write"](name, instance)
        left = __salt__["redis_server.config_diff"](name, instance)
        if left:
            return _failed(ret, f"{name} was written and still differs in {', '.join(sorted(left))}")
        return _changed(ret, f"{name} was written; {sentence}")
    except _ERRORS as err:
        return _failed(ret, str(err))


def running(name: str, restart: str = "when_needed", window: str = "") -> dict[str, Any]:
    """
    An instance is enabled at boot and serves: the current build, started after its unit last changed, and with each
    directive as the settings say that a running server cannot change.

    If not, one restart: when no load, snapshot or rewrite is under way, and without losing a key. What a running server
    can change is the affair of :func:`redis_config.live`.

    name
        Name of the instance in the settings: its port.
    restart
        ``when_needed`` (default), ``window``, or ``never``: outside the window, or then, the state succeeds and warns of
        what waits for a restart. One that does not run is started all the same.
    window
        From when to when, ``03:00-05:00``, by the host's clock; with ``restart: window``.

    Example:

    .. code-block:: yaml

        Redis instance 6379 serves:
          redis_server.running:
            - name: '6379'
            - watch:
              - file: /etc/systemd/system/redis_6379.service
    """
    ret = _ret(name)
    name = str(name)
    try:
        facts = __salt__["redis_server.status"](name)
        waits = __salt__["redis_server.restart_waits"](restart, window)
        ret["changes"] = _running_changes(facts, waits)
        if "restarted because" in ret["changes"] and facts["drains"] and (beside := __salt__["sidekiq.beside"](name)):
            ret["changes"]["drained"] = beside
        if __opts__["test"] and ret["changes"]:
            return _would(ret, f"{facts['unit']} would be {_running_reason(ret['changes'])}")
        trouble = _running_trouble(facts)
        if trouble and not ret["changes"]:
            return _failed(ret, trouble)
        if not ret["changes"]:
            return _warned(_same(ret, f"{facts['unit']} serves, pid {facts['pid']}"), facts, waits)
        record = _make_run(name, facts, waits)
        if not record.get("result", True):
            return _failed(ret, record["comment"])
        after = __salt__["redis_server.status"](name)
        left = _running_changes(after, waits)
        if left:
            return _failed(ret, f"{after['unit']} is still to be {_running_reason(left)}")
        if _running_trouble(after):
            return _failed(ret, _running_trouble(after))
        if facts["pid"] != after["pid"]:
            ret["changes"]["pid"] = {"old": facts["pid"], "new": after["pid"]}
        sentence = record.get("comment") or f"{after['unit']} serves, pid {after['pid']}"
        return _warned(_changed(ret, sentence), after, waits)
    except _ERRORS as err:
        return _failed(ret, str(err))


def mod_watch(
    name: str, sfun: str = "running", restart: str = "when_needed", window: str = "", **kwargs: Any
) -> dict[str, Any]:
    """
    What a watched change does: :func:`running` again, which restarts a server that is older than its unit or build.

    In a real run that has happened by now. Under ``test=True`` the files are as they were, so only the watch knows that
    a restart would follow; the run says so.

    Example:

    .. code-block:: yaml

        Redis instance 6379 serves:
          redis_server.running:
            - name: '6379'
            - watch:
              - file: /etc/systemd/system/redis_6379.service
    """
    if sfun != "running":
        return _failed(_ret(name), f"redis_server.{sfun} cannot watch")
    ret = running(name, restart, window)
    if not __opts__["test"] or ret["result"] is not True or __salt__["redis_server.restart_waits"](restart, window):
        return ret
    ret["changes"] = {"restarted because": {"old": "", "new": "something that it watches would change"}}
    return _would(ret, f"Redis instance {name} would be restarted, because something that it watches would change")


def service_absent(name: str, manager: str, start: bool = False) -> dict[str, Any]:
    """
    A service manager does not know an instance: it is stopped with care for its data, and its unit or script is gone.

    name
        Name of the instance in the settings: its port.
    manager
        ``systemd`` or ``sysv``.
    start
        Where it ran, it runs on under the manager of the settings, whose unit or script is there (bool, default False).

    Example:

    .. code-block:: yaml

        Redis instance 6379 has no init script:
          redis_server.service_absent:
            - name: '6379'
            - manager: sysv
    """
    ret = _ret(name)
    name = str(name)
    try:
        found = __salt__["redis_server.service_files"](name, manager)
        if not found:
            return _same(ret, f"{manager} knows nothing of Redis instance {name}")
        ret["changes"] = {"removed": found}
        if __opts__["test"]:
            then = ", and started anew if it runs" if start else ""
            return _would(ret, f"Redis instance {name} would be stopped, {', '.join(found)} removed{then}")
        sentence = __salt__["redis_server.service_remove"](name, manager, start)
        left = __salt__["redis_server.service_files"](name, manager)
        if left:
            return _failed(ret, f"{', '.join(left)} are still there")
        return _changed(ret, f"{sentence}; {', '.join(found)} were removed")
    except _ERRORS as err:
        return _failed(ret, str(err))


# --- below: comparing and saying -------------------------------------------------------------------------------------


def _running_changes(facts: dict[str, Any], waits: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if not facts["loaded"]:
        changes["loaded"] = {"old": False, "new": True}
    elif facts["needs_reload"]:
        changes["unit"] = {"old": "an older one is loaded", "new": "as on disk"}
    if not facts["enabled"]:
        changes["enabled"] = {"old": False, "new": True}
    if facts["active"] != "active":
        changes["running"] = {"old": facts["active"], "new": "active"}
    elif facts["under_way"] and not facts["stale"]:
        changes["build"] = {"old": facts["under_way"], "new": facts["build"]}
    elif not waits and (facts["stale"] or facts["needs_reload"]):
        changes["restarted because"] = {"old": "", "new": "; ".join(facts["stale"]) or "it runs with an older unit"}
    return changes


def _running_reason(changes: dict[str, Any]) -> str:
    reasons = []
    if "loaded" in changes or "unit" in changes:
        reasons.append("loaded anew")
    if "enabled" in changes:
        reasons.append("enabled at boot")
    if "running" in changes:
        reasons.append("started")
    if "build" in changes:
        reasons.append(f"left with {changes['build']['new']}, with no way back to {changes['build']['old']}")
    if "restarted because" in changes:
        reasons.append(f"restarted, because {changes['restarted because']['new']}")
    if "drained" in changes:
        reasons.append(f"with {', '.join(changes['drained'])} drained and stopped meanwhile")
    return ", ".join(reasons)


def _running_trouble(facts: dict[str, Any]) -> str:
    """What is wrong although the process is the right one."""
    if facts["active"] != "active":
        return ""
    if facts["info"] is None:
        return f"{facts['unit']}, pid {facts['pid']}, does not answer: {facts['info_error']}"
    if facts["info"].get("process_id") != facts["pid"]:
        return (
            f"{facts['unit']} is pid {facts['pid']}, but its port is answered by process "
            f"{facts['info'].get('process_id')}: stop that other server"
        )
    if facts["unfollowed"]:
        return (
            f"{facts['unit']}, pid {facts['pid']}, was started with its config, and yet {facts['unfollowed']}: look "
            "into its log, or restart it by hand if this host's clock was set back"
        )
    return ""


def _warned(ret: dict[str, Any], facts: dict[str, Any], waits: str) -> dict[str, Any]:
    """With what waits for a restart that may not be now."""
    if waits and facts["stale"]:
        waits = f"{waits} for: {'; '.join(facts['stale'])}"
        ret["comment"] += f"; {waits}"
        ret["warnings"] = [f"{facts['unit']}: {waits}"]
    return ret


def _make_run(name: str, facts: dict[str, Any], waits: str) -> dict[str, Any]:
    """Load, enable, then start or restart; returns the record of the last, {} when there is nothing to start."""
    if facts["needs_reload"] or not facts["loaded"]:
        __salt__["redis_server.reload_manager"]()
    if not facts["enabled"]:
        __salt__["redis_server.enable"](name)
    if facts["active"] != "active":
        return __salt__["redis_server.start"](name)
    if facts["under_way"] and not facts["stale"]:
        # A run that was cut off saw to it that the new build serves, and did not come to say so.
        __salt__["redis_upgrade.finish"](name)
    if not waits and (facts["stale"] or facts["needs_reload"]):
        return __salt__["redis_server.restart"](name)
    return {}


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
