"""
sudo: let the deploy user restart Sidekiq, send his apps' deploy events and nothing else, and prove that it is so.

Lines of sudoers are built from intent (who, which verbs, which units, which commands), never from text. They are
checked alone and with the whole policy in a private copy before they land, and sudo is asked after.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
import tempfile
from typing import TYPE_CHECKING, Any

import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Collection

    __salt__: dict[str, Any] = {}

# The words that a deploy user may say to systemctl. `reload` is not among them: a quieted Sidekiq never works again
# until it is restarted, so a reload that only quiets leaves a dead consumer (sidekiq issue 4523). `status`, `show` and
# `edit` open a pager or an editor as root; looking needs no root.
VERBS = ("restart", "start", "stop")

_UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@_-]*")
# A name that begins with a capital could be read as an alias, `%`, `#` and `+` as a group, an id, a netgroup.
_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]*(\.[a-z0-9_-]+)*")
# No word of sudo's, and nothing that a pattern, a list or an escape begins with.
_COMMAND = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)+")
# A program that no host has: a rule about it marks a line in a copy of the policy.
_MARK = "/redis_sidekiq/at"
_SUDOERS_FILE = re.compile(r"[A-Za-z0-9_-]+")
_INCLUDE = re.compile(r'^\s*[@#](include|includedir)\s+(?:"([^"]+)"|((?:\\.|[^\s"\\])+))\s*$')


def sudoers_text(
    user: str, units: list[str], verbs: list[str], commands: list[str] | None = None, group: str = ""
) -> str:
    """
    The sudoers file that lets a user say these verbs about these units to systemctl, and run these commands, without a
    password.

    Each line is a whole command: absolute path as it is on this host, all arguments, both spellings of the unit.
    sudo compares arguments as text, so `restart sidekiq` does not cover `restart sidekiq.service` (sudoers(5)). NOEXEC,
    because on a terminal systemctl starts systemd-tty-ask-password-agent, as root: with it systemctl prints one line
    about that and does its work all the same, and no pager or editor can ever come out of these commands. What is in
    ``commands`` is allowed without arguments only, may start programs of its own, and takes no variable of the caller.

    user
        Login name.
    units
        Units, with or without ``.service``; may be empty if there are commands.
    verbs
        Some of restart, start, stop.
    commands
        Absolute paths of commands; default: none.
    group
        A group whose members may do the same; default: none.

    Returns the text. Raises SaltInvocationError for anything that sudo could read as more than a plain name.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.sudoers_text deploy '["sidekiq"]' '["restart"]'
    """
    granted = _granted(user, units, verbs, commands, group)
    who = f"{user} and the members of {group}" if group else user
    lines = [
        "# Managed by Salt (formula redis_sidekiq): changes made here are undone by the next run.",
        f"# What {who} may run as root without a password: these commands to the letter.",
    ]
    lines += [
        f"{name} ALL=(root) NOPASSWD: {_tags(argv)} {_spelt(argv)}"
        for name in [user, *([f"%{group}"] if group else [])]
        for argv in granted
    ]
    return "\n".join(lines) + "\n"


def sudoers_files(name: str) -> list[str]:
    """
    The sudoers files of this formula in a folder: by how they begin, so that one is found when its name has changed.

    name
        Path of the folder.

    Returns their paths, sorted; files of others and links are never among them.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.sudoers_files /etc/sudoers.d
    """
    entries = __salt__["sidekiq.folder_entries"](name) or []
    paths = [os.path.join(name, entry) for entry in entries if _SUDOERS_FILE.fullmatch(entry)]
    return [path for path in paths if __salt__["whole_files.is_ours"](path)]


def sudoers_validate(text: str, name: str, gone: Collection[str] = ()) -> None:
    """
    Check a sudoers file before it lands: its name, its own syntax, and the whole policy with it in place.

    Nothing below /etc is touched: the whole policy is checked in a private copy.

    text
        The file's text.
    name
        Path that it is for, such as ``/etc/sudoers.d/sidekiq-deploy``.
    gone
        Paths of files that are removed when it lands; default: none.

    Returns None. Raises SaltInvocationError for a name that sudo would ignore, CommandExecutionError with visudo's own
    words otherwise; when another file breaks the policy, it is named.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.sudoers_validate "deploy ALL=(root) NOPASSWD: /usr/bin/true" /etc/sudoers.d/sidekiq-deploy
    """
    if not os.path.isabs(name) or not _SUDOERS_FILE.fullmatch(os.path.basename(name)):
        raise SaltInvocationError(
            f"sudo would ignore {name}: in its folder it skips names with a dot or a tilde (sudoers(5)); "
            "use an absolute path that ends in letters, digits, - and _ only"
        )
    visudo = _tool("visudo", "sudo")
    _refuse_sudo_rs()
    # TMPDIR may belong to anybody; a folder made by mkdtemp is 0700 and root's.
    with tempfile.TemporaryDirectory(prefix="sudoers-") as folder:
        os.mkdir(os.path.join(folder, "candidate"))
        candidate = os.path.join(folder, "candidate", os.path.basename(name))
        __salt__["whole_files.write"](candidate, text, 0o440)
        alone = _visudo(visudo, candidate, strict=True)
        if alone:
            raise CommandExecutionError(f"visudo refuses the text for {name}: {alone.replace(candidate, name)}")
        copies = _copy_policy(folder, candidate, name, gone)
        whole = _visudo(visudo, os.path.join(folder, "policy", "0"))
        if whole:
            raise CommandExecutionError(_whole_policy_sentence(whole, copies, name))


def sudoers_write(
    name: str, user: str, units: list[str], verbs: list[str], commands: list[str] | None = None, group: str = ""
) -> None:
    """
    Put the deploy user's sudoers file in place: validated before, proven with sudo after, taken back if not as meant.

    Files of this formula with other names in the same folder go with it: what they allow was meant once.

    name
        Path of the file, such as ``/etc/sudoers.d/sidekiq-deploy``.
    user, units, verbs, commands, group
        See :func:`sudoers_text`.

    Returns None. Raises SaltInvocationError or CommandExecutionError; the files are then as they were before.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.sudoers_write /etc/sudoers.d/sidekiq-deploy deploy '["sidekiq"]' '["restart"]'
    """
    text = sudoers_text(user, units, verbs, commands, group)
    commands_validate(commands or [])
    others = [path for path in sudoers_files(os.path.dirname(name)) if path != name]
    sudoers_validate(text, name, others)
    before = {path: __salt__["sidekiq.file_facts"](path) for path in [name, *others]}
    __salt__["whole_files.write"](name, text, 0o440)
    for path in others:
        sudoers_remove(path)
    try:
        wrong = _sudo_proof(user, units, verbs, commands or [], group)
    except CommandExecutionError as err:
        wrong = [str(err)]
    if not wrong:
        return
    for path, facts in before.items():
        if facts:
            __salt__["whole_files.write"](path, facts["text"], int(facts["mode"], 8))
        else:
            sudoers_remove(path)
    raise CommandExecutionError(
        f"sudo did not take {name} as meant, so the file is as it was before: " + "; ".join(wrong)
    )


def commands_validate(commands: list[str]) -> None:
    """
    Check that nobody but root can change what these commands do: the files and the folders on their way are root's, no
    links, and not writable by a group or by others. What is not there yet is passed over.

    commands
        Absolute paths.

    Returns None. Raises SaltInvocationError for a path that sudo could read as more than one plain file,
    CommandExecutionError that names each file or folder and says what is wrong with it.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.commands_validate '["/usr/local/sbin/sidekiq-deployed-shop"]'
    """
    places = [place for path in commands for place in _way_to(path)]
    wrong = [f"{place} {reason}" for place in dict.fromkeys(places) if (reason := _not_roots_alone(place))]
    if wrong:
        raise CommandExecutionError(f"No command is allowed that others than root could change: {'; '.join(wrong)}")


def sudoers_remove(name: str) -> None:
    """
    Take a sudoers file away.

    name
        Path of the file; one that is not there is fine.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.sudoers_remove /etc/sudoers.d/sidekiq-deploy
    """
    try:
        os.unlink(name)
    except FileNotFoundError:
        pass
    except OSError as err:
        raise CommandExecutionError(f"Cannot remove {name}: {err.strerror}") from err


def sudo_installed() -> bool:
    """
    Whether this host has sudo and its checker, visudo.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.sudo_installed
    """
    return bool(salt.utils.path.which("sudo") and salt.utils.path.which("visudo"))


def sudo_check(
    user: str,
    units: list[str] | None = None,
    verbs: list[str] | None = None,
    commands: list[str] | None = None,
    thorough: bool = True,
) -> dict[str, Any]:
    """
    What a user may do by sudo, in sudo's own words, beside what the formula means him to do.

    user
        Login name.
    units
        Units that he is meant to act on; default: the Sidekiq units of the settings.
    verbs
        Verbs that he is meant to say; default: those of the settings.
    commands
        Commands that he is meant to run without arguments; default: those of the settings.
    thorough
        Also ask which file says so, and for each command and its neighbours (bool, default True). False: one process.

    Returns ``user``, ``rules`` (list of ``{runas, tags, command}``), ``missing`` (commands meant for him that sudo does
    not allow without a password) and ``beyond`` (rules that allow something else). With ``thorough`` each rule also has
    ``where``, a list of ``FILE:LINE`` (empty: no file says so, a directory service perhaps, or there is no cvtsudoers),
    and the whole ``may`` and ``may_not``, what sudo answered for each command that is meant and for its neighbours:
    other units and verbs, options, patterns, a shell.

    Raises CommandExecutionError when sudo is not there or does not know the user.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.sudo_check deploy
    """
    if units is None or verbs is None or commands is None:
        deploy = __salt__["redis_sidekiq.settings"]()["deploy"]
        units = deploy["units"] if units is None else units
        verbs = deploy["verbs"] if verbs is None else verbs
        commands = deploy["commands"] if commands is None else commands
    _plain_name(user, "a plain login name in lower case")
    granted = _granted(user, units, verbs, commands) if units or commands else []
    meant = [_spelt(argv) for argv in granted]
    rules = _sudo_rules(user)
    free = {rule["command"] for rule in rules if rule["runas"] == "root" and "NOPASSWD" in rule["tags"]}
    result = {
        "user": user,
        "rules": _with_places(user, rules) if thorough else rules,
        "missing": [command for command in meant if command not in free],
    }
    known = {*meant, *map(_by_real_path, meant)}
    result["beyond"] = [
        rule
        for rule in result["rules"]
        if not {rule["command"], _by_real_path(rule["command"])} & known or rule["runas"] != "root"
    ]
    if thorough:
        asked = {" ".join(argv): _sudo_allows(user, argv) for argv in [*granted, *_neighbours(granted)]}
        result["may"] = [command for command, allowed in asked.items() if allowed]
        result["may_not"] = [command for command, allowed in asked.items() if not allowed]
    return result


def rule_words(rule: dict[str, Any]) -> str:
    """
    A rule of :func:`sudo_check` in words.

    rule
        ``runas``, ``command`` and, if known, ``where``.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_sudo.rule_words '{"runas": "ALL", "command": "ALL", "where": ["/etc/sudoers:47"]}'
    """
    places = f", by {', '.join(rule['where'])}" if rule.get("where") else ""
    return f"({rule['runas']}) {rule['command']}{places}"


# --- below: how it is done -------------------------------------------------------------------------------------------

# sudoers


def _granted(
    user: str, units: list[str], verbs: list[str], commands: list[str] | None, group: str = ""
) -> list[list[str]]:
    """What to grant, each as argv, commands of one word last; from intent only, so that nothing needs an escape."""
    _plain_name(user, "a plain login name in lower case")
    if group:
        _plain_name(group, "the plain name of a group, without %")
    for path in commands or []:
        _way_to(path)
    if not units and not commands:
        raise SaltInvocationError("There is no unit to grant: name one, or leave the sudoers file out")
    return [*(_granted_units(units, verbs) if units else []), *([path] for path in commands or [])]


def _plain_name(name: str, wanted: str) -> None:
    if not isinstance(name, str) or not _USER_NAME.fullmatch(name) or name == "root":
        raise SaltInvocationError(f"{name!r} cannot be granted a command: give {wanted}")


def _granted_units(units: list[str], verbs: list[str]) -> list[list[str]]:
    wrong = [verb for verb in verbs if verb not in VERBS]
    if wrong or not verbs:
        raise SaltInvocationError(f"Only these verbs can be granted: {', '.join(VERBS)}; found {wrong or 'none'}")
    names = [unit.removesuffix(".service") for unit in units]
    for name in names:
        if not _UNIT_NAME.fullmatch(name):
            raise SaltInvocationError(f"{name!r} is no name of a unit that can be granted: letters, digits, @, - and _")
    systemctl = os.path.realpath(_tool("systemctl", "systemd"))
    return [[systemctl, verb, name + end] for name in names for verb in verbs for end in ("", ".service")]


def _spelt(argv: list[str]) -> str:
    """A command as sudoers has it and `sudo -l` shows it, where a path alone would mean: with any arguments."""
    return " ".join(argv) if len(argv) > 1 else f'{argv[0]} ""'


def _tags(argv: list[str]) -> str:
    return "NOEXEC:" if len(argv) > 1 else "EXEC: NOSETENV:"


def _way_to(path: str) -> list[str]:
    """A command's file and each folder on its way, the root folder first."""
    if not isinstance(path, str) or not _COMMAND.fullmatch(path):
        raise SaltInvocationError(
            f"{path!r} is no command that can be granted: an absolute path of letters, digits, _, -, + and ., without .."
        )
    words = path.split("/")
    return ["/".join(words[:end]) or "/" for end in range(1, len(words) + 1)]


def _not_roots_alone(place: str) -> str:
    """Why somebody but root could put something else at this place; empty when nobody could, or nothing is there."""
    try:
        info = os.lstat(place)
    except FileNotFoundError:
        return ""
    except OSError as err:
        raise CommandExecutionError(f"Cannot look at {place}: {err.strerror}") from err
    if stat.S_ISLNK(info.st_mode):
        return "is a link; name what it leads to"
    if info.st_uid != 0:
        return f"belongs to user {_user_name(info.st_uid)}; make it root's"
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others than root; `chmod go-w {place}`"
    return ""


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _refuse_sudo_rs() -> None:
    """It knows no NOEXEC, and its ``sudo -l -U`` needs a rule for root (sudo-rs 0.2.5): nothing could be proven."""
    sudo = _tool("sudo", "sudo")
    answer = __salt__["cmd.run_all"](
        [sudo, "--version"], python_shell=False, env={"LC_ALL": "C", "LANGUAGE": "C"}, ignore_retcode=True
    )
    said = (answer["stdout"] or answer["stderr"]).strip()
    if said.startswith("sudo-rs"):
        raise CommandExecutionError(
            f"{sudo} is {said}, which knows no NOEXEC and does not tell root what another user may "
            "do, so our rules do not hold there: let it be the sudo of the package sudo"
        )


def _visudo(visudo: str, path: str, strict: bool = False) -> str:
    """visudo's complaint about a file and what it includes; empty when it has none."""
    argv = [visudo, "-c", *(["-s"] if strict else []), "-f", path]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, env={"LC_ALL": "C", "LANGUAGE": "C"}, ignore_retcode=True
    )
    if answer["retcode"] == 0:
        return ""
    return (answer["stderr"] or answer["stdout"] or f"visudo ended with {answer['retcode']}").strip()


def _copy_policy(
    folder: str,
    candidate: str = "",
    name: str = "",
    gone: Collection[str] = (),
    mark: str = "",
    root: str = "/etc/sudoers",
) -> dict[str, str]:
    """
    The whole policy as sudo would read it, with a candidate in the place of ``name`` and without the files that are
    ``gone``, as plain files 0, 1, 2... below ``policy``. Returns copy -> original. Include directives are resolved as
    sudoers(5) says: a relative path is beside the file that names it, %h is the short hostname, a folder's files come in
    lexical order. With ``mark``, a user, a rule about him follows each line and says which line that was.
    """
    policy = os.path.join(folder, "policy")
    os.mkdir(policy, 0o700)
    copies: dict[str, str] = {}

    def copy(original: str, source: str) -> str:
        number = len(copies)
        target = os.path.join(policy, str(number))
        copies[target] = original
        if len(copies) > 128:
            raise CommandExecutionError(f"The sudo policy includes more than 128 files, a loop perhaps, at {original}")
        try:
            with open(source, encoding="utf-8", errors="surrogateescape", newline="") as handle:
                lines = handle.read().splitlines(keepends=True)
        except FileNotFoundError:
            raise CommandExecutionError(f"The sudo policy has no {original}: install the package sudo first") from None
        with open(target, "x", encoding="utf-8", errors="surrogateescape", newline="") as handle:
            for at, line in enumerate(lines, 1):
                handle.write(rewrite(line, original))
                if mark and not line.rstrip("\r\n").endswith("\\"):
                    handle.write(f"{'' if line.endswith(chr(10)) else chr(10)}{mark} ALL={_MARK}/{number}/{at}\n")
        os.chmod(target, 0o440)
        return target

    def rewrite(line: str, original: str) -> str:
        match = _INCLUDE.match(line)
        if not match:
            return line
        kind, path = match[1], match[2] or re.sub(r"\\(.)", r"\1", match[3])
        path = os.path.join(os.path.dirname(original), path.replace("%h", os.uname().nodename.split(".")[0]))
        if kind == "include":
            return f"@include {copy(path, candidate if path == name else path)}\n"
        # Line numbers in visudo's words count from the included file, so that one line may become many.
        return "".join(f"@include {copy(one, candidate if one == name else one)}\n" for one in included(path)) or "\n"

    def included(path: str) -> list[str]:
        files = {os.path.join(path, entry) for entry in (os.listdir(path) if os.path.isdir(path) else [])}
        if name and os.path.normpath(path) == os.path.dirname(name):
            files = {one for one in files if os.path.basename(one) != os.path.basename(name)} | {name}
        kept = [one for one in files if "." not in os.path.basename(one) and not one.endswith("~") and one not in gone]
        return sorted(one for one in kept if one == name or os.path.isfile(one))

    copy(root, root)
    if name and name not in copies.values():
        raise CommandExecutionError(
            f"sudo would never read {name}: {root} includes no folder {os.path.dirname(name)}; "
            f"add the line `@includedir {os.path.dirname(name)}` to it"
        )
    return copies


def _whole_policy_sentence(complaint: str, copies: dict[str, str], name: str) -> str:
    """visudo's words with the real paths, led by the file that is to blame."""
    guilty = [copies[path] for path in copies if re.search(re.escape(path) + r"(?![0-9])", complaint)]
    for path in sorted(copies, key=len, reverse=True):
        complaint = re.sub(re.escape(path) + r"(?![0-9])", copies[path], complaint)
    others = [path for path in guilty if path != name]
    if others:
        return (
            f"The sudo policy is broken by {', '.join(others)}, not by {name}, which was therefore left as it is; "
            f"mend that first: {complaint}"
        )
    return f"The sudo policy would break with {name}, which was therefore left as it is: {complaint}"


def _sudo_rules(user: str) -> list[dict[str, Any]]:
    argv = [_tool("sudo", "sudo"), "-n", "-l", "-U", user]
    answer = __salt__["cmd.run_all"](
        argv, python_shell=False, env={"LC_ALL": "C", "LANGUAGE": "C"}, ignore_retcode=True
    )
    if answer["retcode"] != 0 and "is not allowed to run sudo" not in answer["stdout"]:
        _refuse_sudo_rs()
        raise CommandExecutionError(f"sudo does not answer about {user}: {answer['stderr'] or answer['stdout']}")
    return _read_sudo_rules(answer["stdout"])


def _read_sudo_rules(text: str) -> list[dict[str, Any]]:
    """
    The rules in what ``sudo -l -U USER`` prints: lines such as ``    (root) NOPASSWD: /a b, /c d``. A tag holds for
    the commands after it until another one takes it back; a comma within a command is escaped.
    """
    rules = []
    for line in re.split(r"^User .* may run the following commands on .*:$", text, flags=re.MULTILINE)[1:]:
        for rule in line.splitlines():
            match = re.fullmatch(r"\s+\(([^)]*)\)\s+(.*)", rule)
            if match:
                rules += _read_sudo_rule(match[1], match[2])
    return rules


def _read_sudo_rule(runas: str, commands: str) -> list[dict[str, Any]]:
    tags: list[str] = []
    rules = []
    for command in re.split(r"(?<!\\),\s+", commands):
        while match := re.match(r"([A-Z_]+):\s+", command):
            tags = [tag for tag in tags if tag not in (match[1], "NO" + match[1]) and "NO" + tag != match[1]]
            tags.append(match[1])
            command = command[match.end() :]
        rules.append({"runas": runas, "tags": list(tags), "command": command})
    return rules


def _with_places(user: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each rule with the lines that say so."""
    places = _places(user) if rules else {}
    return [{**rule, "where": places.get((rule["runas"], _plain(rule["command"])), [])} for rule in rules]


def _places(user: str) -> dict[tuple[str, str], list[str]]:
    """
    ``(runas, command)`` -> ``FILE:LINE`` of each rule about a user, his groups and aliases counted; empty where
    cvtsudoers is not there. It tells no lines (cvtsudoers(1)), but keeps the order of rules: so it reads a copy of the
    policy in which each line is followed by a rule that says where it stood.
    """
    converter = salt.utils.path.which("cvtsudoers")
    if not converter:
        return {}
    with tempfile.TemporaryDirectory(prefix="sudoers-") as folder:
        copies = list(_copy_policy(folder, mark=user).items())
        answer = __salt__["cmd.run_all"](
            [converter, "-e", "-M", "-f", "json", "-m", f"user={user}", copies[0][0]],
            python_shell=False,
            env={"LC_ALL": "C", "LANGUAGE": "C"},
            ignore_retcode=True,
        )
    if answer["retcode"] != 0:
        return {}
    return _read_places(json.loads(answer["stdout"]), [original for _, original in copies])


def _read_places(policy: dict[str, Any], files: list[str]) -> dict[tuple[str, str], list[str]]:
    places: dict[tuple[str, str], list[str]] = {}
    waiting: list[tuple[str, str]] = []
    for spec in policy.get("User_Specs", []):
        found = [rule for part in spec["Cmnd_Specs"] for rule in _read_commands(part)]
        if found and found[0][1].startswith(f"{_MARK}/"):
            number, line = found[0][1].split("/")[-2:]
            for rule in waiting:
                places.setdefault(rule, []).append(f"{files[int(number)]}:{line}")
            waiting = []
        else:
            waiting += found
    return places


def _read_commands(part: dict[str, Any]) -> list[tuple[str, str]]:
    """``(runas, command)`` of a Cmnd_Spec of cvtsudoers, each as ``sudo -l`` would show it."""
    users, groups = (
        ", ".join(next(iter(one.values())) for one in part.get(key, []) if isinstance(one, dict))
        for key in ("runasusers", "runasgroups")
    )
    runas = f"{users or 'root'} : {groups}" if groups else users or "root"
    return [
        (runas, _plain(("!" if one.get("negated") else "") + one["command"]))
        for one in part.get("Commands", [])
        if "command" in one
    ]


def _by_real_path(command: str) -> str:
    """By hand a rule may name /bin/systemctl, which is /usr/bin/systemctl."""
    program, space, words = command.partition(" ")
    return f"{os.path.realpath(program)}{space}{words}" if program.startswith("/") else command


def _plain(command: str) -> str:
    """A command without sudoers' escapes, of which each tool shows others."""
    return command.replace("\\", "")


def _sudo_proof(user: str, units: list[str], verbs: list[str], commands: list[str], group: str) -> list[str]:
    """What sudo says against the intent; empty when it allows each command that was granted and no neighbour."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return [f"there is no user {user}: make it, or set redis_sidekiq:deploy:create_user"]
    granted = _granted(user, units, verbs, commands)
    check = sudo_check(user, units, verbs, commands, thorough=False)
    wrong = [f"{command} is not allowed without a password" for command in check["missing"]]
    if check["beyond"]:
        wrong += [f"another rule allows {rule_words(rule)}" for rule in _with_places(user, check["beyond"])]
    wrong += [f"{' '.join(argv)} is refused" for argv in granted if not _sudo_allows(user, argv)]
    wrong += [f"{' '.join(argv)} is allowed too" for argv in _neighbours(granted) if _sudo_allows(user, argv)]
    return wrong + (_group_proof(group, units, verbs, commands) if group else [])


def _group_proof(group: str, units: list[str], verbs: list[str], commands: list[str]) -> list[str]:
    """What sudo says about one of a group's members; what else he may do is nothing of this formula's."""
    try:
        members = [name for name in grp.getgrnam(group).gr_mem if _USER_NAME.fullmatch(name)]
    except KeyError:
        return [f"there is no group {group}: make it first, or leave redis_sidekiq:deploy:group empty"]
    missing = sudo_check(members[0], units, verbs, commands, thorough=False)["missing"] if members else []
    return [f"{command} is not allowed to {members[0]} without a password" for command in missing]


def _neighbours(granted: list[list[str]]) -> list[list[str]]:
    """Commands next to the granted ones that nobody granted."""
    found = [["/bin/sh"]]
    for argv in granted:
        if len(argv) == 1:
            found += [[*argv, "x"], [*argv, ""], [argv[0] + "-other"]]
    if granted and len(granted[0]) > 1:
        systemctl, verb, unit = granted[0]
        found += [
            [systemctl],
            [systemctl, verb],
            [systemctl, verb, "ssh"],
            [systemctl, verb, unit, "ssh"],
            [systemctl, verb, "--no-block", unit],
            [systemctl, verb, unit + "-other"],
            [systemctl, verb, "*"],
            [systemctl, "mask", unit],
            [systemctl, "status", unit],
            [systemctl, "edit", unit],
        ]
    return found


def _sudo_allows(user: str, argv: list[str]) -> bool:
    answer = __salt__["cmd.run_all"](
        [_tool("sudo", "sudo"), "-n", "-l", "-U", user, "--", *argv],
        python_shell=False,
        env={"LC_ALL": "C", "LANGUAGE": "C"},
        ignore_retcode=True,
    )
    return answer["retcode"] == 0


# Files


def _tool(name: str, package: str) -> str:
    found = salt.utils.path.which(name)
    if not found:
        raise CommandExecutionError(f"{name} is not on this host: install the package {package} first")
    return found
