"""
Ways in which a user who may restart a service by sudo could become root after all, as far as a host shows them.

A restart runs what the unit says, so sudo's rule is worth no more than the files that root reads and runs. What he may
write is asked of the kernel, in a child that has become him: so ACLs, groups and every folder on the way count.
"""

from __future__ import annotations

import glob
import grp
import json
import os
import pwd
import re
import stat
from typing import TYPE_CHECKING, Any

import salt.utils.path
from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    __salt__: dict[str, Any] = {}

# Where systemd looks for a unit's drop-ins (systemd.unit(5)).
_UNIT_FOLDERS = (
    "/etc/systemd/system.control",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
)
_EXEC = ("Condition", "StartPre", "Start", "StartPost", "Reload", "Stop", "StopPost")
_PROPERTIES = (
    "Id",
    "FragmentPath",
    "DropInPaths",
    "User",
    "DynamicUser",
    "WorkingDirectory",
    "RootDirectory",
    "EnvironmentFiles",
    *(f"Exec{step}Ex" for step in _EXEC),
)
# `show` joins an argv by spaces; its flags come after it, and no other field of that name does.
_COMMAND = re.compile(r"\{ path=(?P<path>.*?) ; argv\[\]=(?P<argv>.*) ; flags=(?P<flags>[^;]*) ;")
_POLKIT = (
    "/etc/polkit-1/rules.d/*.rules",
    "/run/polkit-1/rules.d/*.rules",
    "/usr/local/share/polkit-1/rules.d/*.rules",
    "/usr/share/polkit-1/rules.d/*.rules",
    "/etc/polkit-1/localauthority/*/*.pkla",
    "/var/lib/polkit-1/localauthority/*/*.pkla",
)
_GROUPS = {
    "adm": "its members read the logs, in which secrets may stand",
    "disk": "its members read and write the disks beneath all files",
    "docker": "its members can start a container that holds the host's files, as root",
    "incus-admin": "its members can start a container that holds the host's files, as root",
    "kmem": "its members read the memory of the kernel",
    "libvirt": "its members can start a machine that holds the host's disks",
    "lxd": "its members can start a container that holds the host's files, as root",
    "root": "its members write what is writable by root's group",
    "shadow": "its members read the digests of all passwords",
    "staff": "its members write to /usr/local, where root looks for programs first",
    "sudo": "sudo's stock policy lets its members do everything, and polkit takes them for administrators",
    "wheel": "sudo and polkit take its members for administrators on many hosts",
}
_MAX_LINKS = 40


def find(
    user: str, units: list[str] | None = None, commands: list[str] | None = None, rules: bool = True
) -> list[dict[str, str]]:
    """
    The ways in which a user could gain more than sudo lets him do, as far as this host shows them.

    Looked at are: his groups; sudo's other rules about him; polkit's rules that name him; files and folders that he may
    write, or could make writable, on the way to the units, their drop-ins and environment files, the programs and the
    folder of what a unit runs as root (without ``User=``, or by ``+`` or ``!``), the commands that he may run by sudo,
    and sudo's own policy. Not seen are capabilities, setuid programs, other services and what a program reads besides.

    user
        Login name; one who is not there has no way.
    units
        Units that he may act on; default: the Sidekiq units of the settings.
    commands
        Commands that he may run by sudo; default: those of the settings.
    rules
        Ask sudo for other rules too (bool, default True).

    Returns a list of ``{what, path, why, remedy}``: the kind of thing, the file or group, sentences.

    Raises CommandExecutionError without systemd, or when not called by root.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_risks.find deploy
    """
    person = _person(user)
    if not person:
        return []
    deploy = __salt__["redis_sidekiq.settings"]()["deploy"] if units is None or commands is None else {}
    programs = [deploy["salt_call"]] if deploy.get("salt_call") and commands is None else []
    units = deploy["units"] if units is None else units
    commands = deploy["commands"] if commands is None else commands
    things = [*_policy_files(), *_command_files([*commands, *programs])]
    for facts in _facts(units):
        things += _unit_things(facts)
    found = [*_by_groups(person), *(_by_rules(user, units, commands) if rules else []), *_by_polkit(person)]
    return found + _by_files(person, things)


def words(risk: dict[str, str]) -> str:
    """
    A way as one sentence, for a state's warning.

    risk
        One of those that :func:`find` returns.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_risks.words '{"what": "group", "path": "docker", "why": "...", "remedy": "..."}'
    """
    return f"{risk['what']} {risk['path']}: {risk['why']}; {risk['remedy']}"


# --- below: how it is done -------------------------------------------------------------------------------------------

# Who


def _person(user: str) -> dict[str, Any] | None:
    """``user``, ``uid``, ``gid``, ``gids`` and ``groups`` (names); None: there is no such user, or he is root."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    if entry.pw_uid == 0:
        return None
    gids = os.getgrouplist(user, entry.pw_gid)
    groups = [name for gid in gids if (name := _group_name(gid))]
    return {"user": user, "uid": entry.pw_uid, "gid": entry.pw_gid, "gids": gids, "groups": groups}


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _by_groups(person: dict[str, Any]) -> list[dict[str, str]]:
    user = person["user"]
    return [
        _risk("group", group, f"{user} is in it, and {_GROUPS[group]}", f"`gpasswd -d {user} {group}`")
        for group in person["groups"]
        if group in _GROUPS
    ]


def _by_rules(user: str, units: list[str], commands: list[str]) -> list[dict[str, str]]:
    check = __salt__["sidekiq_sudo.sudo_check"](user, units, None, commands, thorough=False)
    if not check["beyond"]:
        return []
    check = __salt__["sidekiq_sudo.sudo_check"](user, units, None, commands)
    return [
        _risk(
            "sudo rule",
            ", ".join(rule["where"]) or "sudo -l",
            f"it lets {user} do more: ({rule['runas']}) {' '.join([*rule['tags'], rule['command']])}",
            "take the rule, or him, out of it",
        )
        for rule in check["beyond"]
    ]


def _by_polkit(person: dict[str, Any]) -> list[dict[str, str]]:
    names = "|".join(re.escape(name) for name in [person["user"], *person["groups"]])
    word = re.compile(rf"(?<![\w.-])({names})(?![\w.-])")
    return [
        _risk(
            "polkit rule",
            path,
            f"it is about systemd's units and names {match[1]}, so systemctl may obey him without sudo",
            "see that it allows no more than sudo does, or remove it",
        )
        for pattern in _POLKIT
        for path in sorted(glob.glob(pattern))
        if "org.freedesktop.systemd1" in (text := _read(path)) and (match := word.search(text))
    ]


# What root reads and runs


def _facts(units: list[str]) -> list[dict[str, list[str]]]:
    """Property -> values of each unit, as the running systemd has them: one program for all."""
    if not units:
        return []
    systemctl = salt.utils.path.which("systemctl")
    if not systemctl:
        raise CommandExecutionError("systemctl is not on this host: install the package systemd first")
    names = [unit if unit.endswith(".service") else f"{unit}.service" for unit in units]
    answer = __salt__["cmd.run_all"](
        [systemctl, "show", "--property=" + ",".join(_PROPERTIES), "--", *names],
        python_shell=False,
        env={"LC_ALL": "C"},
        ignore_retcode=True,
    )
    if answer["retcode"] != 0:
        raise CommandExecutionError(f"systemd does not answer about {', '.join(names)}: {answer['stderr']}")
    return [_read_facts(block) for block in answer["stdout"].strip("\n").split("\n\n")]


def _read_facts(block: str) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {name: [] for name in _PROPERTIES}
    for line in block.splitlines():
        name, _, value = line.partition("=")
        if name in facts and value:
            facts[name].append(value)
    return facts


def _unit_things(facts: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    """What a unit is made of, as ``{what, path, why}``: whoever may write there has what ``why`` says."""
    unit = " ".join(facts["Id"])
    as_root = facts["User"] in ([], ["root"], ["0"]) and facts["DynamicUser"] != ["yes"]
    told = f"it says what {unit} runs, and as whom"
    for path in [*facts["FragmentPath"], *" ".join(facts["DropInPaths"]).split()]:
        yield {"what": "unit file", "path": path, "why": told}
    for folder in _UNIT_FOLDERS:
        for name in sorted({unit, re.sub(r"@.*(?=\.)", "@", unit)}):
            yield {"what": "drop-in folder", "path": f"{folder}/{name}.d", "why": f"a file in it says what {unit} runs"}
    who = "root" if as_root else facts["User"][0] if facts["User"] else "a user of its own"
    for value in facts["EnvironmentFiles"]:
        path = value.rpartition(" (ignore_errors=")[0].lstrip("-")
        yield {"what": "environment file", "path": path, "why": f"its variables reach what {unit} runs, as {who}"}
    if as_root:
        for path in [*facts["WorkingDirectory"], *facts["RootDirectory"]]:
            yield {"what": "folder", "path": path.lstrip("-!"), "why": f"{unit} runs what is in it as root"}
    for step in _EXEC:
        for value in facts[f"Exec{step}Ex"]:
            match = _COMMAND.search(value)
            if match and (as_root or {"privileged", "no-setuid"} & set(match["flags"].split())):
                for path in dict.fromkeys([match["path"], *match["argv"].split()]):
                    if path.startswith("/"):
                        yield {"what": "program", "path": path, "why": f"{unit} runs it as root (Exec{step}=)"}


def _command_files(commands: Iterable[str]) -> list[dict[str, str]]:
    return [{"what": "command", "path": path, "why": "sudo runs it as root"} for path in commands]


def _policy_files() -> list[dict[str, str]]:
    paths = ["/etc/sudoers", *sorted(glob.glob("/etc/sudoers.d/*"))]
    return [{"what": "sudo policy", "path": path, "why": "it says who may do what as root"} for path in paths]


# What he may write


def _by_files(person: dict[str, Any], things: list[dict[str, str]]) -> list[dict[str, str]]:
    """The things that he could change: each place once for each kind of thing."""
    ways = {thing["path"]: _way_to(thing["path"]) for thing in things}
    writable = _writable(person, {place for way in ways.values() for place in way})
    found: dict[tuple[str, str], dict[str, str]] = {}
    for thing in things:
        place, how, remedy = _weak_place(person, ways[thing["path"]], writable)
        if place:
            at = "" if place == thing["path"] else f"{place} "
            why = f"{person['user']} {how} {at}and {thing['why']}".replace("  ", " ")
            found.setdefault((thing["what"], thing["path"]), _risk(thing["what"], thing["path"], why, remedy))
    return list(found.values())


def _way_to(path: str) -> list[str]:
    """Each folder on the way to a file, links and what they lead to as well, then the file; as far as it is there."""
    way, rest, links = ["/"], [word for word in path.split("/") if word], 0
    here = "/"
    while rest:
        word = rest.pop(0)
        if word in (".", ".."):
            here = os.path.dirname(here) if word == ".." else here
            continue
        place = os.path.join(here, word)
        try:
            mode = os.lstat(place).st_mode
        except OSError:
            break
        way.append(place)
        if stat.S_ISLNK(mode) and links < _MAX_LINKS:
            links += 1
            target = os.readlink(place)
            here = "/" if target.startswith("/") else here
            rest = [part for part in target.split("/") if part] + rest
        else:
            here = place
    return list(dict.fromkeys(way))


def _weak_place(person: dict[str, Any], way: list[str], writable: set[str]) -> tuple[str, str, str]:
    """The first place on a way that he could change: place, how, remedy; empty ones when there is none."""
    for number, place in enumerate(way):
        try:
            info = os.lstat(place)
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(info.st_mode):
            continue
        if info.st_uid == person["uid"]:
            return place, "owns", f"`chown root {place}`"
        if place not in writable:
            continue
        below = way[number + 1] if number + 1 < len(way) else ""
        # In a sticky folder one replaces only what is one's own (inode(7)); adding a file is open to all.
        if info.st_mode & stat.S_ISVTX and os.path.dirname(below) == place and os.lstat(below).st_uid != person["uid"]:
            continue
        return place, "may write", f"take that right away, see `getfacl {place}`"
    return "", "", ""


def _writable(person: dict[str, Any], places: set[str]) -> set[str]:
    """
    Those of these places that he may write, in the kernel's own words. access(2) is about the real user of a process,
    and a user belongs to a whole process: so a child asks.
    """
    ordered = sorted(places)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(person["gids"])
            os.setresgid(*[person["gid"]] * 3)
            os.setresuid(*[person["uid"]] * 3)
            with os.fdopen(writer, "w") as stream:
                json.dump([number for number, place in enumerate(ordered) if os.access(place, os.W_OK)], stream)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise CommandExecutionError(f"Only root can ask what {person['user']} may write; run this as root")
    return {ordered[number] for number in json.loads(said)}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def _risk(what: str, path: str, why: str, remedy: str) -> dict[str, str]:
    return {"what": what, "path": path, "why": why, "remedy": remedy}
