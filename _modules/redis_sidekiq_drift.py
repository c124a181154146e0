"""
What runs against what is wished, row by row: :func:`redis_sidekiq.drift` shows it to people.

Nothing is compared here a second time: each row comes from the facts of the module that owns the thing, and what has no
such facts (files, accounts, packages) from the states themselves under ``test=True``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)
_COLUMNS = ("subject", "what", "wished", "runs", "since", "why")
_WIDEST = 60  # characters of a cell of the table, but for the last column's
# Their rows come from facts.
_TOLD = (
    "redis_acl.live",
    "redis_config.live",
    "redis_instances.only",
    "redis_kernel.managed",
    "redis_server.mod_watch",
    "redis_server.running",
    "redis_tls.live",
    "sidekiq.current",
    "sidekiq.mod_watch",
    "ufw_rules.managed",
)


def rows(all: bool = False) -> list[dict[str, Any]]:
    """
    One row for each thing that is compared.

    all
        Rows that do not differ too (bool, default False).

    Returns a list of ``{subject, what, wished, runs, since, why, differs}``: a unit or another thing, what of it is
    compared, two texts, since when it runs so (UTC, empty if unknown), why, and whether they differ (bool). What is a
    secret is said to differ, and not shown.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq_drift.rows
    """
    settings, found = __salt__["redis_sidekiq.settings"](), []
    for subject, look in _looks(settings):
        try:
            found += look(settings)
        except _ERRORS as err:
            found.append(_row(subject, "facts", "to be had", "could not be asked", True, why=str(err)))
    found += _files(any(row["subject"] == "sudo" and row["differs"] for row in found))
    return [row for row in found if all or row["differs"]]


def table(rows: list[dict[str, Any]]) -> str:
    """
    Rows as text in columns.

    rows
        See :func:`rows`.

    CLI Example:

    .. code-block:: python

        __salt__["redis_sidekiq_drift.table"](__salt__["redis_sidekiq_drift.rows"]())
    """
    if not rows:
        return "all is as wished"
    lines = [_COLUMNS, *([_cell(row[column], column) for column in _COLUMNS] for row in rows)]
    used = [at for at, column in enumerate(_COLUMNS) if any(row[column] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in used]
    return "\n".join("  ".join(line[at].ljust(width) for at, width in zip(used, widths)).rstrip() for line in lines)


# --- below: how the rows come about ----------------------------------------------------------------------------------


def _row(
    subject: str, what: str, wished: Any, runs: Any, differs: Any, why: str = "", since: float | None = None
) -> dict[str, Any]:
    return {
        "subject": subject,
        "what": what,
        "wished": _text(wished),
        "runs": _text(runs),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since)) if since else "",
        "why": " ".join(why.split()),
        "differs": bool(differs),
    }


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "" if value is None else str(value)


def _cell(text: str, column: str) -> str:
    return text if len(text) <= _WIDEST or column == "why" else f"{text[: _WIDEST - 3]}..."


def _looks(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    roles = settings["roles"]
    if "redis" in roles:
        for instance in settings["redis"]["instances"]:
            yield instance["unit"], lambda settings, wish=instance: _redis(wish, settings["redis"])
        yield "redis", _dropped
        yield "kernel", _kernel
    if "firewall" in roles:
        yield "ufw", _firewall
    if "sidekiq" in roles:
        for service in settings["sidekiq"]["services"]:
            yield service["name"], lambda settings, wish=service: _sidekiq(wish)
    if {"sidekiq", "deploy"} & set(roles):
        yield "sudo", _sudo


# Redis


def _redis(wish: dict[str, Any], redis: dict[str, Any]) -> Iterator[dict[str, Any]]:
    unit, facts = wish["unit"], __salt__["redis_server.status"](wish["name"])
    yield _row(unit, "running", "active", facts["active"], facts["active"] != "active", since=facts["started"])
    yield _row(unit, "at boot", "enabled", "enabled" if facts["enabled"] else "not enabled", not facts["enabled"])
    if facts["manager"] == "systemd" and facts["loaded"]:
        yield from _unit_rows(__salt__["sidekiq_units.facts"]([f"{unit}.service"])[0])
    if not facts["pid"]:
        return
    info, program = facts["info"] or {}, __salt__["redis_build.binary"](redis["prefix"], facts["build"])
    runs = " ".join(filter(None, (info.get("valkey_version") or info.get("redis_version", ""), facts["program"])))
    found = __salt__["redis_config.drift"](wish["name"])
    # Each directive has a row of its own.
    told = tuple(f"{name} is " for name in found["directives"])
    why = "; ".join(reason for reason in facts["stale"] if not reason.startswith(told))
    yield _row(unit, "process", f"{redis['version']} {os.path.realpath(program)}", runs, why, why, facts["started"])
    other = info.get("process_id", facts["pid"]) != facts["pid"]
    answer = facts["info_error"] or (f"process {info.get('process_id')} answers" if other else "answers")
    yield _row(unit, "answer", "answers", answer, answer != "answers")
    if facts["under_way"]:
        yield _row(unit, "build", facts["build"], facts["under_way"], True, "its change was cut off")
    yield from _settings_rows(unit, found)
    yield from _user_rows(unit, __salt__["redis_acl.drift"](wish["name"]))
    if wish["tls"]:
        yield from _certificate_rows(unit, __salt__["redis_tls.status"](wish["name"]))


def _unit_rows(fact: dict[str, Any]) -> Iterator[dict[str, Any]]:
    unit, reload, drop_ins = fact["unit"].removesuffix(".service"), fact["needs_reload"], ", ".join(fact["drop_ins"])
    yield _row(unit, "unit", "as on disk", "an older one is loaded" if reload else "as on disk", reload)
    why = "settings that others made; the formula leaves them" if drop_ins else ""
    yield _row(unit, "drop-ins", "none", drop_ins or "none", drop_ins, why)


def _settings_rows(unit: str, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if found["unasked"]:
        yield _row(unit, "settings", "as its config says", "not compared", True, found["unasked"])
    for name, entry in found["directives"].items():
        why = "" if entry["live"] else "takes a restart"
        yield _row(unit, name, entry["wished"], entry["running"], True, why)
    if not found["unasked"] and not found["directives"]:
        yield _row(unit, "settings", "as its config says", "as its config says", False)


def _user_rows(unit: str, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if found["unasked"]:
        yield _row(unit, "users", "as its config says", "not compared", True, found["unasked"])
    for name, entry in found["users"].items():
        what = f"user {name}"
        if "there" in entry:
            words = {True: "there", False: "not there"}
            yield _row(unit, what, words[entry["there"]["wished"]], words[entry["there"]["running"]], True)
        if "rules" in entry:
            yield _row(unit, f"{what}: rules", entry["rules"]["wished"], entry["rules"]["running"], True)
        if "passwords" in entry:
            counts = entry["passwords"]
            said = f"{counts['missing']} missing, {counts['surplus']} too many"
            yield _row(unit, f"{what}: passwords", "as the settings say", said, True)
    if not found["unasked"] and not found["users"]:
        yield _row(unit, "users", "as its config says", "as its config says", False)


def _certificate_rows(unit: str, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    wished, shown = _certificate(found["wished"]), _certificate(found["shown"]) or "none"
    yield _row(unit, "certificate", wished, shown, not (found["same"] and found["reads"]), found["unasked"])
    until = found["wished"].get("until")
    yield _row(unit, "certificate's end", "not soon", _day(until), found["expires"], found["expires"])


def _certificate(facts: dict[str, Any]) -> str:
    return f"{facts['sha256'][:16]} until {_day(facts['until'])}" if facts else ""


def _day(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment)) if moment else ""


def _dropped(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    known = [instance["name"] for instance in settings["redis"]["instances"]]
    for name, files in __salt__["redis_instances.found"]().items():
        if name not in known:
            yield _row(f"redis_{name}", "instance", "none", ", ".join(files), True, "the settings no longer name it")


def _kernel(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = __salt__["redis_kernel.facts"](settings["redis"]["kernel"])
    for name, change in found["values"].items():
        yield _row("kernel", name, change["new"], change["old"], True)
    for path in found["files"]:
        yield _row("kernel", path, "as the settings say", "otherwise", True, "it is for the next boot")
    for sentence in found["blocked"]:
        yield _row("kernel", sentence.split()[0], "as the settings say", "otherwise", True, sentence)
    if not found["values"] and not found["blocked"]:
        yield _row("kernel", "settings", "as the settings say", "as the settings say", False)


# The firewall


def _firewall(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    wish = settings["firewall"]
    words = ("incoming", "outgoing", "routed", "logging", "only_ours", "enabled", "confirm", "confirm_within")
    # Whom the rules would shut out is what a run asks; here each guard is told to let it be.
    changes = __salt__["ufw_rules.differences"](
        wish["rules"], **{key: wish[key] for key in words}, allow_lockout=__salt__["ufw_guard.guards"]()
    )
    for text in changes.get("rules", {}).get("added", []):
        yield _row("ufw", text, "there", "missing", True)
    for text in changes.get("rules", {}).get("removed", []):
        yield _row("ufw", text, "not there", "there", True)
    others = {key: changes[key] for key in ("logging", "enabled", "rollback") if key in changes}
    for key, change in {**changes.get("policies", {}), **others}.items():
        yield _row("ufw", key, change["new"], "unset" if change["old"] == "" else change["old"], True)
    for path in changes.get("files", []):
        yield _row("ufw", path, "whole", "cut off", True)
    for name, change in changes.get("sysctls", {}).items():
        yield _row("ufw", name, change["new"], change["old"], True)
    if "record" in changes:
        yield _row("ufw", "record", "there", "missing", True, changes["record"])
    if not changes:
        yield _row("ufw", "rules, policies, switch", "as the settings say", "as the settings say", False)


# Sidekiq and sudo


def _sidekiq(wish: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = __salt__["sidekiq.status"](wish["name"])
    for one in found["processes"]:
        yield from _process(one, found)
    for unit in found["surplus"]:
        yield _row(unit.removesuffix(".service"), "unit", "none", "there", True, "the settings no longer name it")
    for unit in found["leftover"]:
        yield _row(unit.removesuffix(".service"), "helper", "none", "there", True, "a restart was cut off")
    if found["heartbeat_error"] and "REDIS_URL" in wish["env_names"]:
        yield _row(wish["name"], "heartbeat", "in Redis", "not asked", True, found["heartbeat_error"])
    for sentence in found.get("disagree", []):
        yield _row(wish["name"], "heartbeat", "beats", "does not beat, or is quiet", True, sentence)


def _process(one: dict[str, Any], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    name, process = one["unit"].removesuffix(".service"), one["process"]
    at_boot = "masked" if one["masked"] else "enabled" if one["enabled"] else "not enabled"
    yield _row(name, "at boot", "enabled", at_boot, not one["enabled"])
    wished = "active" if found["deployed"] else "not before the first deploy"
    differs = found["deployed"] and one["active"] != "active"
    yield _row(name, "running", wished, one["active"], differs, since=one["started"])
    if one["loaded"] and found["deployed"]:
        yield from _unit_rows(one)
    if process and one["active"] == "active":
        wished, runs = _worked(found["release"], found["version"]), _worked(process["release"], process["version"])
        yield _row(name, "process", wished, runs, one["stale"], "; ".join(one["stale"]), process["started"])


def _worked(release: str, version: str | None) -> str:
    return f"{release}, Sidekiq {version}" if version else release


def _sudo(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    user = settings["deploy"]["user"]
    check = __salt__["sidekiq_sudo.sudo_check"](user, thorough=False)
    if check["missing"] or check["beyond"]:
        # Now also which file says so.
        check = __salt__["sidekiq_sudo.sudo_check"](user)
    for command in check["missing"]:
        yield _row("sudo", f"{user}: {command}", "allowed", "not allowed", True)
    for rule in check["beyond"]:
        what, where = f"{user}: ({rule['runas']}) {rule['command']}", ", ".join(rule.get("where") or [])
        yield _row("sudo", what, "not allowed", "allowed", True, where and f"by {where}")
    if not check["missing"] and not check["beyond"]:
        yield _row("sudo", user, "as the settings say", "as the settings say", False)


# Everything else


def _files(sudo_told: bool) -> Iterator[dict[str, Any]]:
    run = __salt__["redis_sidekiq_preflight.next_run"]()
    for runs, states in (("otherwise", run["states"]), ("fails", run["failed"])):
        for state in states:
            told = state["function"] in _TOLD or (
                sudo_told and runs == "fails" and state["function"] == "sidekiq.sudoers"
            )
            if not told:
                subject, what = state["name"] or state["id"], state["function"]
                yield _row(subject, what, "as the settings say", runs, True, state["comment"])
    for sentence in run["refused"]:
        yield _row("run", "states", "asked", "not asked", True, sentence)
