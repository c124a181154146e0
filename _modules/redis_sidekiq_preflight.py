"""
What a run would meet on this host, and what it would do: :func:`redis_sidekiq.check` says it to people.

Nothing is changed. The host is asked by ``/proc``, files, Salt's grains and the other modules' facts; what a run would
change is what the states themselves say under ``test=True``.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    __grains__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)
_ROOT = "redis_sidekiq"
_SALT = {3006: (3006, 28), 3007: (3007, 15)}  # by line, the first release without the races of states that were mended
_SYSTEMD = 248  # NoExecPaths= (systemd.exec(5)); an older one skips what it does not know
# Sidekiq's floors by its major version: lib/sidekiq/cli.rb, sidekiq.gemspec.
_FLOORS = {
    6: {"redis": (4, 0), "ruby": (2, 5)},
    7: {"redis": (6, 2), "ruby": (2, 7)},
    8: {"redis": (7, 0), "ruby": (3, 2)},
}
_VALKEY = (7, 2)  # what every release of Valkey takes the place of
_BUILD_DISK = 400_000_000  # bytes, as redis_build has it
_BUILD_MEMORY = 160 << 20  # bytes for one compiler; the largest process of a build of Redis 8.0.2 took 112 MiB
_CLOCKS = 2.0  # s that two clocks may differ
_NOT_ASKED = "One or more requisite failed"  # Salt's words for a state that was not tried (salt/state.py)


def report() -> dict[str, Any]:
    """
    The whole preflight.

    Returns ``ok`` (bool: there is no problem); ``problems``, ``warnings``, ``takes_over`` and ``next_run``, lists of
    sentences; ``facts``: ``salt``, ``os``, ``systemd`` (version, 0: none), ``memory`` (``total`` and ``available``,
    bytes), ``disk`` (folder -> bytes free), ``accounts`` (name -> bool: is there), ``services`` (name -> ``release``,
    ``sidekiq``, ``ruby``, ``redis``, each empty if unknown, and ``clock``, s that Redis is ahead or None), ``live``
    (instance -> settings that would change while it runs) and ``restarts`` (unit -> why it would be started or
    restarted; empty: it is left alone). With a wrong pillar there are the first four alone.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq_preflight.report
    """
    mistakes, takes_over, next_lines = __salt__["redis_sidekiq.mistakes"](), [], []
    found: dict[str, Any] = {"problems": mistakes.copy(), "warnings": [], "facts": _host()}
    _judge_host(found)
    if not mistakes:
        settings = __salt__["redis_sidekiq.settings"]()
        for subject, look in _looks(settings):
            try:
                look(found, settings)
            except _ERRORS as err:
                found["warnings"].append(f"{subject}: could not be looked at: {_line(err)}")
        takes_over = _look_around(found)
        run = next_run()
        next_lines = [f"{state['id']}: {state['comment']}" for state in run["states"]]
        # What stops a state by a sentence that is among them already is said by its key alone.
        said = [
            f"{state['id']}: {state['comment']}" for state in run["failed"] if state["comment"] not in found["problems"]
        ]
        found["problems"] += [*run["refused"], *said]
        found["warnings"] += run["warnings"]
        found["facts"] |= {"live": run["live"], "restarts": run["restarts"]}
    return {
        "ok": not found["problems"],
        "problems": found["problems"],
        "warnings": found["warnings"],
        "takes_over": takes_over,
        "next_run": next_lines,
        "facts": found["facts"],
    }


def next_run() -> dict[str, Any]:
    """
    What ``state.apply redis_sidekiq`` would do now: the states are asked with ``test=True``.

    Returns ``states``, those that would change something, in their order, and ``failed``, those that fail, each ``{id,
    function, name, comment}``; ``refused`` (sentences: why the run would not begin), ``warnings`` (sentences), ``live``
    (instance -> names of settings that would change while it runs) and ``restarts`` (unit -> why it would be started or
    restarted; empty: it is left alone).

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq_preflight.next_run
    """
    answer = __salt__["state.sls"](_ROOT, test=True)
    if not isinstance(answer, dict):
        lines = answer if isinstance(answer, list) else [answer]
        refused = [_line(f"run: {line}") for line in lines]
        return {"states": [], "failed": [], "refused": refused, "warnings": [], "live": {}, "restarts": {}}
    states = [_state(key, said) for key, said in sorted(answer.items(), key=lambda item: item[1].get("__run_num__", 0))]
    failed = [state for state in states if state["result"] is False]
    # Those that wait for one that failed have nothing of their own to say.
    told = [state for state in failed if not state["comment"].startswith(_NOT_ASKED)] or failed
    would = [state for state in states if state["result"] is None]
    return {
        "states": list(map(_short, would)),
        "failed": list(map(_short, told)),
        "refused": [],
        "warnings": [f"{state['id']}: {_line(words)}" for state in states for words in state["warnings"]],
        "live": {
            state["name"]: sorted(state["changes"])
            for state in would
            if state["function"] == "redis_config.live" and state["changes"]
        },
        "restarts": _restarts(states),
    }


# --- below: how it is done -------------------------------------------------------------------------------------------

# What is there


def _look_around(found: dict[str, Any]) -> list[str]:
    try:
        others = __salt__["redis_sidekiq_takeover.found"]()
    except _ERRORS as err:
        found["warnings"].append(f"host: what others made there could not be looked at: {_line(err)}")
        return []
    found["problems"] += others["problems"]
    return others["takes_over"]


# What a run would do


def _state(key: str, said: dict[str, Any]) -> dict[str, Any]:
    module, _, _, function = key.split("_|-")
    words = said.get("warnings") or []
    return {
        "id": said.get("__id__", key),
        "function": f"{module}.{function}",
        "name": said.get("name", ""),
        "result": said.get("result"),
        "changes": said.get("changes") or {},
        # What Salt's own states add is about all of them.
        "comment": _line(str(said.get("comment", "")).split("\nNote: No changes made")[0]),
        "warnings": words if isinstance(words, list) else [words],
    }


def _short(state: dict[str, Any]) -> dict[str, str]:
    return {key: state[key] for key in ("id", "function", "name", "comment")}


def _restarts(states: list[dict[str, Any]]) -> dict[str, str]:
    units: dict[str, str] = {}
    for state in states:
        changes = state["changes"] if state["result"] is None else {}
        if state["function"] in ("redis_server.running", "redis_server.mod_watch"):
            units.setdefault(f"redis_{state['name']}.service", _reason(changes))
        elif state["function"] in ("sidekiq.current", "sidekiq.mod_watch"):
            units |= {unit: _reason(change) for unit, change in changes.items()}
    if any(state["function"] == "sidekiq.current" for state in states):
        services = __salt__["redis_sidekiq.settings"]()["sidekiq"]["services"]
        units |= {unit: units.get(unit, "") for service in services for unit in service["units"]}
    return units


def _reason(changes: dict[str, Any]) -> str:
    """Why a unit is started or restarted, from a state's changes; empty if it is not."""
    if not isinstance(changes, dict):
        return ""
    because = changes.get("restarted because", "")
    because = because["new"] if isinstance(because, dict) else because
    if because:
        return f"restarted, because {because}"
    return "started" if "running" in changes else "retired" if "retired" in changes else ""


def _line(words: Any) -> str:
    return " ".join(str(words).split())


# The host


def _host() -> dict[str, Any]:
    """What is known without settings. Grains, and one file of /proc; no process."""
    systemd = str((__grains__.get("systemd") or {}).get("version", ""))
    return {
        "salt": __grains__.get("saltversion", ""),
        "os": " ".join(filter(None, (__grains__.get("os", ""), __grains__.get("osrelease", "")))),
        "systemd": int(systemd) if systemd.isdecimal() and os.path.isdir("/run/systemd/system") else 0,
        "memory": {
            "total": int(__grains__.get("mem_total") or 0) << 20,
            "available": __salt__["sidekiq_units.available_memory"](),
        },
    }


def _judge_host(found: dict[str, Any]) -> None:
    facts = found["facts"]
    version = _numbers(facts["salt"])
    if version < (3006,):
        found["problems"].append(f"salt: found {facts['salt']}; this formula needs 3006.28 or newer: update Salt")
    elif version < _SALT.get(version[0], (0,)):
        floor = ".".join(map(str, _SALT[version[0]]))
        found["warnings"].append(
            f"salt: found {facts['salt']}, which can begin two state runs at once: update to {floor} or newer"
        )
    if 0 < facts["systemd"] < _SYSTEMD:
        found["warnings"].append(
            f"systemd: found {facts['systemd']}, which does not know all lines of the units, so that the sandbox of "
            f"Redis is weaker than meant: it is whole from {_SYSTEMD} on"
        )


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else (0,)


def _looks(settings: dict[str, Any]) -> Iterator[tuple[str, Callable]]:
    if "redis" in settings["roles"]:
        yield "redis", _look_at_build
        yield "redis", _look_at_data
    if {"sidekiq", "deploy"} & set(settings["roles"]):
        yield "deploy", _look_at_accounts
    if "sidekiq" in settings["roles"]:
        yield "sidekiq", _look_at_services


# Redis


def _look_at_build(found: dict[str, Any], settings: dict[str, Any]) -> None:
    redis, build = settings["redis"], __salt__["redis_server.wished_build"]()
    free = _free(redis["prefix"])
    found["facts"].setdefault("disk", {})[redis["prefix"]] = free
    if build in [record["build"] for record in __salt__["redis_build.builds"](redis["prefix"])]:
        return
    if free < _BUILD_DISK:
        found["problems"].append(
            f"{_ROOT}:redis:prefix: a build takes about {_mb(_BUILD_DISK)} in {redis['prefix']} while it is made, and "
            f"{_mb(free)} are free there: make room, or set another folder"
        )
    available, jobs = found["facts"]["memory"]["available"], redis["build"]["jobs"]
    if not redis["pack"]["source"] and available < jobs * _BUILD_MEMORY:
        found["warnings"].append(
            f"{_ROOT}:redis:build:jobs: {jobs} compilers at a time take up to {_mb(jobs * _BUILD_MEMORY)} of memory, "
            f"and {_mb(available)} are available: set fewer, or take a finished build (build:packs)"
        )


def _look_at_data(found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Full, an instance writes anew what it has on disk already: a snapshot, or an AOF (src/rdb.c, src/aof.c)."""
    for wish in settings["redis"]["instances"]:
        free = found["facts"].setdefault("disk", {})[wish["dir"]] = _free(wish["dir"])
        needed = 2 * wish["maxmemory"] - _size(wish["dir"])
        if free < needed:
            found["warnings"].append(
                f"{_ROOT}:redis:instances:{wish['name']}:maxmemory: at that size the data and their next copy take "
                f"up to {_mb(needed)} more of {wish['dir']}, and {_mb(free)} are free there: make room, or lower it"
            )
    limits = sum(wish["maxmemory"] for wish in settings["redis"]["instances"])
    total = found["facts"]["memory"]["total"]
    if total and limits > total * 3 // 4:
        found["warnings"].append(
            f"{_ROOT}:redis:instances: their maxmemory is {_mb(limits)} of this host's {_mb(total)}, and while "
            "a snapshot is written, what changes is there twice: leave a quarter of the memory to that and to all else"
        )


# Workers


def _look_at_accounts(found: dict[str, Any], settings: dict[str, Any]) -> None:
    names = {settings["deploy"]["user"], *(service["user"] for service in settings["sidekiq"]["services"])}
    found["facts"]["accounts"] = {name: bool(__salt__["user.info"](name)) for name in sorted(names)}


def _look_at_services(found: dict[str, Any], settings: dict[str, Any]) -> None:
    if not found["facts"]["systemd"]:
        found["problems"].append(
            f"{_ROOT}:roles: found 'sidekiq', and this host was not booted by systemd, which has to run it: take it out"
        )
        return
    found["facts"]["services"] = {}
    for service in settings["sidekiq"]["services"]:
        path = f"{_ROOT}:sidekiq:services:{service['name']}"
        status = __salt__["sidekiq.status"](service["name"], heartbeat=False)
        facts = found["facts"]["services"][service["name"]] = {
            "release": status["release"] if status["deployed"] else "",
            "sidekiq": status["version"],
            "ruby": _ruby(service),
            "redis": "",
            "clock": None,
        }
        _judge_release(found, path, service, status)
        facts |= _its_redis(found, path, service, settings)
        _judge_versions(found, path, service, facts)


def _judge_release(found: dict[str, Any], path: str, service: dict[str, Any], status: dict[str, Any]) -> None:
    if not status["deployed"]:
        what = "points at nothing" if os.path.islink(service["current"]) else "is not there yet"
        found["warnings"].append(
            f"{path}:app_dir: {service['current']} {what}: the unit is enabled only, the first deploy starts it"
        )
    elif not status["version"]:
        found["warnings"].append(
            f"{path}:app_dir: no Gemfile.lock in {status['release']} names Sidekiq, so nothing says which Redis and "
            "Ruby it needs: commit that file"
        )


def _its_redis(found: dict[str, Any], path: str, service: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """``redis`` and ``clock`` of the facts; for an instance of this host the release that it will have."""
    if "REDIS_URL" not in service["env_names"]:
        return {}
    here = service["redis"]
    wished = f"{settings['redis']['flavor']} {settings['redis']['version']}" if here else ""
    if here and not __salt__["redis_server.status"](here, ask=False)["pid"]:
        return {"redis": wished}
    try:
        answer = __salt__["sidekiq_redis.server"](service["name"])
    except CommandExecutionError as err:
        # With one of this host's it may be what the next run mends.
        found["warnings" if here else "problems"].append(f"{path}:{'redis' if here else 'redis_url'}: {_line(err)}")
        return {"redis": wished}
    offset = answer["offset"]
    if offset is not None and abs(offset) > _CLOCKS:
        found["warnings"].append(
            f"clock: that of {service['name']}'s Redis is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} "
            "this host's, and what is to be worked later is off by so much: let both hosts follow a time server"
        )
    return {"redis": wished or f"{answer['flavor']} {answer['version']}".strip(), "clock": offset}


def _judge_versions(found: dict[str, Any], path: str, service: dict[str, Any], facts: dict[str, Any]) -> None:
    version = _numbers(facts["sidekiq"])
    floors = _FLOORS.get(version[0], {})
    if version == (8, 0, 0):
        floors = {**floors, "redis": (7, 2)}
    for what, key in (("redis", f"{_ROOT}:redis:version" if service["redis"] else f"{path}:redis_url"), ("ruby", path)):
        if not floors or not facts[what]:
            continue
        flavor, _, number = facts[what].rpartition(" ")
        if (_VALKEY if flavor == "valkey" else _numbers(number)) < floors[what]:
            needed = ".".join(map(str, floors[what]))
            found["problems"].append(
                f"{key}: found {what.capitalize()} {number}, and Sidekiq {facts['sidekiq']} of {service['name']} needs "
                f"{needed} or newer"
            )


def _ruby(service: dict[str, Any]) -> str:
    """The distribution's Ruby by the name that /usr/bin/ruby leads to, or the one that a version manager is told."""
    if service["argv"][0].startswith("/usr/bin/"):
        match = re.fullmatch(r"ruby(\d+\.\d+)", os.path.basename(os.path.realpath("/usr/bin/ruby")))
        return match[1] if match else ""
    try:
        with open(os.path.join(service["current"], ".ruby-version"), encoding="utf-8", errors="replace") as stream:
            match = re.match(r"(?:ruby-)?(\d+(?:\.\d+)+)", stream.read(100))
            return match[1] if match else ""
    except OSError:
        return ""


# Small questions


def _free(folder: str) -> int:
    """Bytes that somebody who is not root can write there, or where it will be made."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _size(folder: str) -> int:
    """Bytes of the files in a folder and below."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return sum(os.lstat(path).st_size for path in paths if os.path.lexists(path))


def _mb(size: int) -> str:
    return f"{size / 1_000_000:,.0f} MB".replace(",", " ")
