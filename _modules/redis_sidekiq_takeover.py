"""
What others made on this host that the formula has to do with: by hand, by package, by another formula.

Its own files are known by the line at their head. Nothing is changed, and of a file of a person's nothing is shown but
its name; what sudo allows is asked from sudo.
"""

from __future__ import annotations

import glob
import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    __salt__: dict[str, Any] = {}

_SERVERS = ("redis-server", "valkey-server")
_OTHERS = "a file of others"  # redis_build's words
_DATA = (".rdb", ".aof", ".manifest")


def found() -> dict[str, list[str]]:
    """
    What the next run meets on this host that is not this formula's.

    Returns ``takes_over`` and ``problems``, lists of sentences: what is there, each beginning with a path or a name;
    what of it makes the run fail, each beginning with the key that it is about.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq_takeover.found
    """
    settings, said, problems = __salt__["redis_sidekiq.settings"](), [], []
    roles = settings["roles"]
    if "redis" in roles:
        held = holders()
        programs = _programs(settings["redis"])
        said += _running(held) + _redis(settings["redis"], programs)
        problems += _conflicts(held) + _unlinkable(programs)
    if "firewall" in roles:
        said += _firewall(settings["firewall"])
    if "sidekiq" in roles:
        said += _sidekiq(settings)
    if {"sidekiq", "deploy"} & set(roles):
        found = _sudo_rules(settings["deploy"])
        said += _sudo(settings["deploy"], found["rules"])
        problems += _beyond(found["beyond"])
    return {"takes_over": list(dict.fromkeys(said)), "problems": problems}


def holders() -> list[dict[str, Any]]:
    """
    The processes of others that listen at ports of the settings' instances of Redis.

    Returns a list of ``{instance, port, pid, unit, dir, redis, in_place, who}``: ``unit`` is that of systemd that it
    belongs to (or empty), ``dir`` the folder that it works in, ``redis`` (bool) whether it is a server of Redis or
    Valkey, ``in_place`` (bool) whether the run goes on with it, because the instance's config is there, ``who`` the
    process in words.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq_takeover.holders
    """
    redis = __salt__["redis_sidekiq.settings"]()["redis"]
    ports = {
        port: instance
        for instance in redis["instances"]
        for port in (instance["port"], instance["tls"].get("port"))
        if port
    }
    listening = [one for one in __salt__["ufw_guard.listeners"]() if one["port"] in ports]
    taken = {one["inode"]: one["port"] for one in listening if _meets(one["address"], ports[one["port"]]["bind"])}
    if not taken:
        return []
    owners = _owners(set(taken))
    held = {(port, pid) for inode, port in taken.items() for pid in owners.get(inode, [0])}
    found, known = [_holder(ports[port], port, pid) for port, pid in sorted(held)], __salt__["redis_instances.found"]()
    ours = _own_pids({holder["instance"] for holder in found} & set(known))
    # A port may be that of an instance which this run drops.
    units = {os.path.basename(path) for paths in known.values() for path in paths}
    return [holder for holder in found if holder["pid"] not in ours and holder["unit"] not in units]


def in_the_way(instance: str) -> str:
    """
    Who has a port of an instance that was not made yet, so that it cannot be.

    instance
        Name of the instance in the settings: its port.

    Returns what :func:`found` has among its ``problems`` about that, or an empty text; a Redis that is taken over in place
    is not in the way.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sidekiq_takeover.in_the_way 6379
    """
    return "; ".join(_conflicts([holder for holder in holders() if holder["instance"] == instance]))


# --- below: how it is found ------------------------------------------------------------------------------------------

# Redis


def _conflicts(held: list[dict[str, Any]]) -> list[str]:
    key = "redis_sidekiq:redis:instances"
    return [f"{key}:{holder['instance']}: {_taken(holder)}" for holder in held if not holder["in_place"]]


def _taken(holder: dict[str, Any]) -> str:
    said = f"port {holder['port']} is taken by {holder['who']}"
    if not holder["redis"]:
        return f"{said}: stop that, or choose another port"
    return (
        f"{said}, which works in {holder['dir']} by a config of another name: move its keys as docs/migrating.md says, or "
        "choose another port"
    )


def _unlinkable(programs: dict[str, str]) -> list[str]:
    """Where a link would have to take the place of something else, the run stops."""
    paths = [path for path, old in programs.items() if old == _OTHERS]
    said = "redis_sidekiq:redis:bin_dir: made by others, in the place of a link: move it away, or set another folder"
    return [f"{said}: {', '.join(paths)}"] if paths else []


def _programs(redis: dict[str, Any]) -> dict[str, str]:
    """What lies where links into the prefix belong, and is none: path -> what ``redis_build`` says of it."""
    links = __salt__["redis_build.links"](redis["bin_dir"], redis["prefix"], redis["flavor"])
    ours = redis["prefix"].rstrip("/") + "/"
    found = {path: link["old"] for path, link in sorted(links.items())}
    return {path: old for path, old in found.items() if old and not old.startswith(ours)}


def _running(held: list[dict[str, Any]]) -> list[str]:
    said = []
    for holder in held:
        if holder["in_place"]:
            files = _data(holder["dir"])
            data = f"with its data in {holder['dir']}" + (f" ({', '.join(files)})" if files else "")
            place = f"redis_{holder['instance']}: a Redis of others has port {holder['port']}"
            said.append(f"{place}: {holder['who']}, {data}")
    return said


def _redis(redis: dict[str, Any], programs: dict[str, str]) -> list[str]:
    said = [f"{', '.join(programs)}: made by others, in the place of links to {redis['prefix']}"] if programs else []
    for instance in redis["instances"]:
        said += _instance(instance)
    return said + [_upstart(path) for path in sorted(glob.glob("/etc/init/redis*.conf"))]


def _upstart(path: str) -> str:
    return f"{path}: a job of Upstart, which starts nothing here any more: take it away"


def _instance(instance: dict[str, Any]) -> list[str]:
    unit, said = instance["unit"], []
    for path in (f"/etc/systemd/system/{unit}.service", f"/etc/init.d/{unit}", instance["config"]):
        if _is_foreign(path):
            said.append(f"{path}: made by others, in the place of a file of {unit}")
    for path in _other_scripts(instance):
        said.append(f"{path}: made by others; an init script that starts a Redis on port {instance['name']}, it seems")
    if not __salt__["whole_files.is_ours"](instance["config"]) and (files := _data(instance["dir"])):
        said.append(f"{instance['dir']}: data that {unit} reads at its start: {', '.join(files)}")
    return said


def _other_scripts(instance: dict[str, Any]) -> list[str]:
    """Init scripts with another name than ours that say the port, or are Debian's own."""
    number = re.compile(rf"\b{re.escape(instance['name'])}\b")
    paths = [path for path in sorted(glob.glob("/etc/init.d/redis*")) if os.path.basename(path) != instance["unit"]]
    return [path for path in paths if number.search(_read(path)) and _is_foreign(path)]


def _data(folder: str) -> list[str]:
    """The files with data in a folder and the one below it, with their sizes."""
    paths = sorted(path for pattern in ("*", "*/*") for path in glob.glob(os.path.join(glob.escape(folder), pattern)))
    files = [path for path in paths if path.endswith(_DATA) and os.path.isfile(path)]
    return [f"{os.path.relpath(path, folder)} of {os.path.getsize(path):,} bytes".replace(",", " ") for path in files]


def _own_pids(instances: set[str]) -> set[int]:
    return {__salt__["redis_server.status"](name, ask=False)["pid"] for name in instances} - {0}


# Sidekiq and sudo


def _sidekiq(settings: dict[str, Any]) -> list[str]:
    said = []
    for service in settings["sidekiq"]["services"]:
        for path in (service["unit_file"], service["env_file"], service["config_file"]):
            # The app's own settings have no comment of ours at their head.
            if path and _is_foreign(path) and not path.endswith(".yml"):
                said.append(f"{path}: made by others, in the place of a file of {service['name']}")
        said += [
            f"{fact['fragment']}: made by others; the unit in /etc/systemd/system goes before it"
            for fact in __salt__["sidekiq_units.facts"](service["units"])
            if fact["fragment"] and not fact["fragment"].startswith(("/etc/systemd/system/", "/run/"))
        ]
    said += [_stray(pid, title, unit) for pid, title, unit in _strays(settings)]
    said += [
        f"{path}: a unit of the user's own manager; what it runs works beside the services here: disable it first"
        for path in sorted(glob.glob(f"{settings['deploy']['home']}/.config/systemd/user/*sidekiq*.service"))
    ]
    jobs = {*glob.glob("/etc/init/*sidekiq*.conf"), *glob.glob("/etc/init/workers.conf")}
    return said + [_upstart(path) for path in sorted(jobs)]


def _strays(settings: dict[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Sidekiq processes outside of the services' units: pid, what it calls itself, the unit that it belongs to."""
    units = {unit for service in settings["sidekiq"]["services"] for unit in service["units"]}
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        title = _read(path).replace("\0", " ").strip()
        if not re.match(r"sidekiq \d+\.", title):
            continue
        pid = int(path.split("/")[2])
        unit = _unit_of(pid)
        # A restart's second process is of a helper's unit, NAME-handover.service.
        if unit not in units and unit.replace("-handover", "") not in units:
            yield pid, title, unit


def _stray(pid: int, title: str, unit: str) -> str:
    whose = f"of {unit}" if unit else "started by hand"
    return f"process {pid} ({title}): a Sidekiq {whose}, which works beside the services here: stop what starts it"


def _sudo_rules(deploy: dict[str, Any]) -> dict[str, Any]:
    """What sudo allows the deploy user before our file is there; from then on its state says what goes beyond it."""
    user, check = deploy["user"], __salt__["sidekiq_sudo.sudo_check"]
    ours = __salt__["whole_files.is_ours"](deploy["sudoers"])
    if ours or not __salt__["user.info"](user) or not __salt__["sidekiq_sudo.sudo_installed"]():
        return {"rules": [], "beyond": []}
    found = check(user, thorough=False)
    # Each file that says so is looked for only if there is something to say.
    return check(user) if found["rules"] else found


def _sudo(deploy: dict[str, Any], rules: list[dict[str, Any]]) -> list[str]:
    path = deploy["sudoers"]
    said = [f"{path}: made by others, in the place of the formula's"] if _is_foreign(path) else []
    return said + [f"{_places(rule)}: a rule of sudo for {deploy['user']}: {_words(rule)}" for rule in rules]


def _beyond(rules: list[dict[str, Any]]) -> list[str]:
    said = "redis_sidekiq:deploy:user: sudo lets him do more than the formula means, which stops the run: take out"
    return [f"{said} {_words(rule)}, by {_places(rule)}" for rule in rules]


def _words(rule: dict[str, Any]) -> str:
    return f"({rule['runas']}) {rule['command']}"


def _places(rule: dict[str, Any]) -> str:
    return ", ".join(rule.get("where") or []) or "sudo"


# The firewall


def _firewall(firewall: dict[str, Any]) -> list[str]:
    status = __salt__["ufw_rules.status"]()
    others = dict.fromkeys(_rule_words(rule) for rule in status["rules"] if not rule["ours"])
    fate = "go, as only_ours says" if firewall["only_ours"] else "stay (redis_sidekiq:firewall:only_ours)"
    return [f"ufw: rules of others {fate}: {', '.join(others)}"] if others else []


def _rule_words(rule: dict[str, Any]) -> str:
    interface = f" on {rule['interface']}" if rule["interface"] else ""
    target = f" to {rule['to']}" if rule["to"] != "any" else ""
    return f"{rule['action']} {rule['direction']} {rule['port']}/{rule['proto']}{interface} from {rule['from']}{target}"


# /proc and files


def _meets(address: str, bind: list[str]) -> bool:
    """Whether who listens at one address keeps Redis from listening at its own, one by one as ``bind`` has them."""
    own = [each.lstrip("-").partition("%")[0] for each in bind]
    address = ipaddress.ip_address(address)
    return address.is_unspecified or any("*" in each or ipaddress.ip_address(each) == address for each in own)


def _owners(inodes: set[str]) -> dict[str, list[int]]:
    """Inode of a socket -> the processes that hold it."""
    found: dict[str, list[int]] = {}
    for path in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(path)
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            found.setdefault(target[8:-1], []).append(int(path.split("/")[2]))
    return found


def _holder(instance: dict[str, Any], port: int, pid: int) -> dict[str, Any]:
    """One process; 0 is one that cannot be seen from here, of another container perhaps."""
    name = _read(f"/proc/{pid}/comm").strip() if pid else ""
    program, unit = _target(f"/proc/{pid}/exe") or name, _unit_of(pid)
    who = f"{program} (pid {pid}{', ' + unit if unit else ''})" if pid else "a process that cannot be seen from here"
    return {
        "instance": instance["name"],
        "port": port,
        "pid": pid,
        "unit": unit,
        "dir": _target(f"/proc/{pid}/cwd"),
        "redis": name in _SERVERS,
        "in_place": name in _SERVERS and os.path.exists(instance["config"]),
        "who": who,
    }


def _unit_of(pid: int) -> str:
    """The service of systemd that a process belongs to, by its control group."""
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        name = os.path.basename(line.rpartition(":")[2])
        if name.endswith(".service"):
            return name
    return ""


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _is_foreign(path: str) -> bool:
    """Whether something is there that the formula did not make."""
    return os.path.lexists(path) and not __salt__["whole_files.is_ours"](path)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
