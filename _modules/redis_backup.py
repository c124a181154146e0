"""
Backups of Redis: make one now, look at those that are there, restore one, and let a timer make them.

The work on the files is done by a program of its own, ``redis_sidekiq/redis/files/redis_backup.py``, which needs Python
alone: the timer runs it while the master is down or Salt is being upgraded, and gives it no password, since that is in
redis.conf. Here the very same program is called, so there is one way to make a backup.

Only instances of the settings (pillar ``redis_sidekiq:redis:instances``) are ever acted on; timers of others are found
by the line that this formula writes into their files.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import stat
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any

import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __grains__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

PROGRAM = "/usr/local/lib/redis_sidekiq/redis_backup.py"

_MARK = "Managed by Salt (formula redis_sidekiq)"
_UNIT_DIR = "/etc/systemd/system"
_CRON_DIR = "/etc/cron.d"
_STAMPS = "/var/lib/systemd/timers"
_NAME = re.compile(r"dump-\d{8}T\d{6}Z\.rdb")
_PLACES = {_UNIT_DIR: r"redis_(\d+)_backup\.(?:service|timer)", _CRON_DIR: r"redis_(\d+)_backup"}
_PERIODS = {"hourly": 3600, "daily": 86400, "weekly": 604800, "monthly": 2419200}  # s
# Numbers that Redis has of its last load since 7.0.
_LOADED, _EXPIRED = "rdb_last_load_keys_loaded", "rdb_last_load_keys_expired"

_SERVICE = """\
# {mark}. For settings of your own: systemctl edit {unit}

[Unit]
Description=Backup of Redis on port {port}
After=redis_{port}.service

[Service]
Type=oneshot
ExecStart={command}

Nice=10
IOSchedulingClass=idle
UMask=0077
# The locks that Salt's modules hold too, and that stay when this ends.
RuntimeDirectory=redis_sidekiq
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes

# It writes backups, and takes away a snapshot that nobody else asked for.
ProtectSystem=strict
ReadWritePaths=-{folder} -{data}
ProtectHome=read-only
PrivateTmp=true
PrivateDevices=true
NoNewPrivileges=true
# Files of Redis' user are read and checked; the check runs as that user.
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_SETGID CAP_SETUID
ProtectClock=true
ProtectControlGroups=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
LockPersonality=true
MemoryDenyWriteExecute=true
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""
_TIMER = """\
# {mark}. For settings of your own: systemctl edit {timer}

[Unit]
Description=When Redis on port {port} is backed up

[Timer]
OnCalendar={at}
# Hosts of one pillar do not all write at once, and each one always at its own moment.
RandomizedDelaySec={delay}
FixedRandomDelay=true
# One that was missed while the host was off is made up for.
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
_CRON = """\
# {mark}: changes made here are undone by the next run.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
{when} root {command} >/dev/null
"""


# Backups -------------------------------------------------------------------------------------------------------------


def backups(instance: str) -> list[dict[str, Any]]:
    """
    The backups of an instance, the newest first. No process is started.

    instance
        Name of the instance in the settings: its port.

    Returns a list of ``{name, path, bytes, made}``; ``made`` as in ISO 8601, UTC.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.backups 6379
    """
    folder = _wish(instance)[1]["backup"]["dir"]
    try:
        names = sorted(filter(_NAME.fullmatch, os.listdir(folder)), reverse=True)
        paths = [(name, os.path.join(folder, name)) for name in names]
        return [
            {"name": name, "path": path, "bytes": os.lstat(path).st_size, "made": _made(name)} for name, path in paths
        ]
    except FileNotFoundError:
        return []
    except OSError as err:
        raise CommandExecutionError(f"Cannot look into {folder}: {err.strerror}") from err


def backup(instance: str) -> dict[str, Any]:
    """
    Back an instance up now: the server writes a snapshot, which is copied, read to its end by ``redis-check-rdb`` and
    only then counts; backups beyond ``keep`` go after that. What is cut off leaves a draft, which the next one removes.

    With neither AOF nor save points the server would load that snapshot at its next start, so there it is taken away
    again.

    instance
        Name of the instance in the settings: its port.

    Returns a record: ``path``, ``bytes``, ``keys`` (None if the checker does not say), ``seconds`` and ``removed``
    (names of old backups and drafts). Raises CommandExecutionError with what to do; all older backups are there then.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.backup 6379
    """
    redis, wish = _wish(instance)
    return _run(*_backup_words(redis, wish))


def verify(instance: str, backup: str) -> dict[str, Any]:
    """
    Read a backup to its end with ``redis-check-rdb`` of the current build, checksum included.

    instance
        Name of the instance in the settings: its port.
    backup
        Name or path of one of its backups. Any other file is checked by :func:`restore`, before anything stops.

    Returns ``path``, ``bytes`` and ``keys``. Raises CommandExecutionError with the checker's words.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.verify 6379 dump-20260102T030405Z.rdb
    """
    redis, wish = _wish(instance)
    path = _path(wish, backup)
    if os.path.dirname(path) != wish["backup"]["dir"]:
        raise SaltInvocationError(
            f"{path} is no backup in {wish['backup']['dir']}; restore checks it before it stops anything"
        )
    return _run("verify", *_check_words(redis), path)


def restore(instance: str, backup: str) -> dict[str, Any]:
    """
    Put a backup in the place of an instance's data. The data as they were stay beside, in ``before-restore-TIME`` of
    the data folder.

    A copy is made and checked first. Then the server is stopped with care for its data, one rename puts the copy where
    the next start looks (with ``appendonly`` it becomes the AOF), the server is started, and must have loaded as many
    keys as the checker read. If not, the old data are put back and served. Whenever a start comes, after a loss of
    power too, it finds the old data or the restored ones, whole.

    instance
        Name of the instance in the settings: its port.
    backup
        Name of one of its backups (see :func:`backups`), or the absolute path of a file of root's that nobody else can
        write to.

    Returns a record: what :func:`redis_server.restart` returns, and ``path``, ``bytes``, ``keys`` and ``kept`` (the
    folder with the data as they were, or empty); ``result`` is False if the old data are served. Raises
    CommandExecutionError before anything is touched for an instance that follows a master, or whose redis.conf is not
    as the settings say.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.restore 6379 dump-20260102T030405Z.rdb
    """
    redis, wish = _wish(instance)
    plan = _Restore(redis, wish, _path(wish, backup), _form(wish))
    _refuse_replica(wish)
    record = __salt__["redis_server.exchange"](wish["name"], plan)
    kept = plan.aside if os.path.isdir(plan.aside) else ""
    record.update(path=plan.path, bytes=plan.bytes, keys=plan.keys, kept=kept)
    if not record["result"]:
        plan.discard()
    else:
        record["comment"] = f"{plan.path} was restored{_counted(plan.keys)}; {record['comment']}" + (
            f"; the data as they were: {kept}" if kept else ""
        )
    return record


# The timer -----------------------------------------------------------------------------------------------------------


def schedule_facts(instance: str) -> dict[str, Any]:
    """
    How that which makes an instance's backups differs from the settings. One ``systemctl show``, or none with cron.

    instance
        Name of the instance in the settings: its port.

    Returns ``files`` (path -> unified diff, or ``removed``, of those that differ), ``timer`` (its unit, empty with
    cron) and, with a timer, ``enabled``, ``active`` and ``reload`` (bool: systemd has an older one loaded).

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.schedule_facts 6379
    """
    redis, wish = _wish(instance)
    files = {path: _diff(path, text) for path, text in _wanted(redis, wish).items()}
    facts = {"files": {path: diff for path, diff in files.items() if diff}, "timer": ""}
    return {**facts, **_timer_facts(wish["name"])} if _booted_by_systemd() else facts


def schedule_check(instance: str) -> str:
    """
    Let systemd judge the time of an instance's backups, or look for cron.

    instance
        Name of the instance in the settings: its port.

    Returns a sentence. Raises CommandExecutionError with systemd's own words, or when no cron is on this host.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.schedule_check 6379
    """
    at = _wish(instance)[1]["backup"]["at"]
    if not _booted_by_systemd():
        if not os.path.isdir(_CRON_DIR) or not salt.utils.path.which("cron"):
            raise CommandExecutionError("Without systemd cron makes the backups: install the package cron first")
        return f"cron makes them {at}"
    argv = [_tool("systemd-analyze"), "calendar", "--", at]
    answer = __salt__["cmd.run_all"](argv, python_shell=False, env={"LC_ALL": "C"}, ignore_retcode=True)
    if answer["retcode"] != 0:
        raise CommandExecutionError(
            f"systemd knows no time {at!r}: correct redis_sidekiq:redis:backup:at, or that of the instance "
            f"{instance}. It says: {(answer['stderr'] or answer['stdout']).strip()}"
        )
    return f"they are made {at}"


def schedule(instance: str) -> None:
    """
    Write what makes an instance's backups, and switch it on.

    instance
        Name of the instance in the settings: its port.

    Raises what :func:`schedule_check` raises; nothing is written then.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.schedule 6379
    """
    redis, wish = _wish(instance)
    schedule_check(instance)
    wanted = _wanted(redis, wish)
    if "removed" in schedule_facts(instance)["files"].values():
        unschedule(instance)  # of a time when the host was booted otherwise
    for path, text in wanted.items():
        if text is not None and _read(path) != text:
            __salt__["whole_files.write"](path, text, 0o644)
    if _booted_by_systemd():
        timer = _units(wish["name"])[1]
        _systemctl("daemon-reload")
        _systemctl("enable", timer)
        # A timer that runs goes on with the time that it had.
        _systemctl("restart", timer)


def scheduled() -> dict[str, list[str]]:
    """
    The instances, in the settings or not, whose backups are made by what this formula wrote. No process is started.

    Returns name (port) -> the files that make them; in the order of the ports.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.scheduled
    """
    found: dict[str, list[str]] = {}
    for folder, pattern in _PLACES.items():
        for entry in _entries(folder):
            match, path = re.fullmatch(pattern, entry), os.path.join(folder, entry)
            if match and __salt__["whole_files.is_ours"](path):
                found.setdefault(match[1], []).append(path)
    return {name: sorted(found[name]) for name in sorted(found, key=int)}


def unschedule(instance: str) -> None:
    """
    Take away what makes an instance's backups. One that is being made goes on to its end; backups stay.

    instance
        Name of the instance, in the settings or not.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_backup.unschedule 6380
    """
    files = scheduled().get(str(instance), [])
    service, timer = _units(str(instance))
    booted = _booted_by_systemd()
    if booted and any(path.endswith(f"/{timer}") for path in files):
        _systemctl("disable", "--now", timer)
    try:
        for path in files:
            os.unlink(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(_STAMPS, f"stamp-{timer}"))
    except OSError as err:
        raise CommandExecutionError(f"Cannot take away {service}: {err}") from err
    if booted and files:
        _systemctl("daemon-reload")


# --- below: how it is done -------------------------------------------------------------------------------------------


def _wish(instance: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of Redis, and of one instance."""
    redis = __salt__["redis_sidekiq.settings"]()["redis"]
    found = [wish for wish in redis["instances"] if wish["name"] == str(instance)]
    if not found:
        known = ", ".join(wish["name"] for wish in redis["instances"]) or "none"
        raise SaltInvocationError(f"{instance!r} is not a Redis instance of this minion; its instances: {known}")
    return redis, found[0]


def _units(name: str) -> tuple[str, str]:
    return f"redis_{name}_backup.service", f"redis_{name}_backup.timer"


def _last(wish: dict[str, Any], directive: str, default: str) -> str:
    """A directive's value in the config; of several lines the last counts."""
    values = [value for name, value in wish["directives"] if name == directive]
    return values[-1].strip().strip("\"'") if values else default


def _made(name: str) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.strptime(name, "dump-%Y%m%dT%H%M%SZ.rdb"))


def _counted(keys: int | None) -> str:
    return "" if keys is None else f", {keys} keys"


# The program


def _python() -> str:
    """The distribution's Python, which a timer finds whatever becomes of Salt; else the one that runs Salt."""
    return "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable


def _check_words(redis: dict[str, Any]) -> list[str]:
    program = os.path.join(redis["prefix"], "current", "bin", "redis-check-rdb")
    return [f"--check={program}", f"--user={redis['user']}", f"--group={redis['group']}"]


def _backup_words(redis: dict[str, Any], wish: dict[str, Any]) -> list[str]:
    own = [f"--config={wish['config']}", f"--dir={wish['backup']['dir']}", f"--keep={wish['backup']['keep']}"]
    return ["backup", *own, *_check_words(redis)]


def _command(*words: str) -> list[str]:
    return [_python(), "-I", "-B", PROGRAM, *words]


def _run(*words: str) -> dict[str, Any]:
    """What the program says; its own sentence when it fails."""
    if not os.path.exists(PROGRAM):
        raise CommandExecutionError(f"There is no {PROGRAM}: apply redis_sidekiq.redis first")
    answer = __salt__["cmd.run_all"](_command(*words), python_shell=False, ignore_retcode=True)
    if answer["retcode"] != 0:
        raise CommandExecutionError(answer["stderr"].strip() or f"{PROGRAM} ended with {answer['retcode']}")
    return json.loads(answer["stdout"])


# Restoring


class _Restore:
    """The steps of a restore, as :func:`redis_server.exchange` wants them."""

    def __init__(self, redis: dict[str, Any], wish: dict[str, Any], path: str, form: dict[str, str]):
        self.path, self.bytes, self.keys = path, 0, None
        name = time.strftime("before-restore-%Y%m%dT%H%M%SZ", time.gmtime())
        self.aside = os.path.join(wish["dir"], name)
        self.check = _check_words(redis)
        self.owner = [f"--dir={wish['dir']}", *self.check[1:]]
        self.place = [*self.owner, f"--aside={name}", f"--folder={form['folder']}", form["file"]]

    def prepare(self) -> None:
        found = _run("stage", self.owner[0], *self.check, self.path)
        self.bytes, self.keys = found["bytes"], found["keys"]

    def put(self) -> None:
        _run("put", *self.place)

    def undo(self) -> None:
        _run("undo", *self.place)

    def discard(self) -> None:
        _run("discard", *self.owner)

    def proof(self, info: dict[str, Any]) -> str:
        return _wrong(self.keys, info)


def _wrong(keys: int | None, info: dict[str, Any]) -> str:
    """What is wrong with a server that should have loaded so many keys; clients may have changed them by now."""
    if keys is None:
        return ""
    if _LOADED in info:
        found = info[_LOADED] + info.get(_EXPIRED, 0)
        return f"loaded {found} keys, the backup has {keys}" if found != keys else ""
    held = sum(facts["keys"] for name, facts in info.items() if re.fullmatch(r"db\d+", name))
    return f"has no key, the backup has {keys}" if keys and not held else ""


def _path(wish: dict[str, Any], backup: str) -> str:
    folder = wish["backup"]["dir"]
    if os.path.isabs(str(backup)):
        path = os.path.normpath(str(backup))
    elif _NAME.fullmatch(str(backup)):
        path = os.path.join(folder, str(backup))
    else:
        raise SaltInvocationError(
            f"{backup!r} is neither the name of a backup nor an absolute path; `redis_backup.backups {wish['name']}` "
            "has the names"
        )
    try:
        found = os.lstat(path)
    except OSError as err:
        raise CommandExecutionError(
            f"Cannot read {path}: {err.strerror}; `redis_backup.backups {wish['name']}` has the backups that are there"
        ) from err
    if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise CommandExecutionError(f"{path} must be a regular file of root's that nobody else can write to")
    return path


def _form(wish: dict[str, Any]) -> dict[str, str]:
    """The file by which the next start of an instance finds its data, and the folder that an AOF of parts has."""
    differs = __salt__["redis_server.config_diff"](wish["config"], wish["name"])
    meaning = __salt__["redis_config.meaning"](wish["name"]) if not differs else {}
    if differs or not meaning:
        raise CommandExecutionError(
            f"Nothing was restored: {wish['config']} or the build is not as the settings say; apply "
            "redis_sidekiq.redis first"
        )
    if _last(wish, "appendonly", "no").lower() != "yes":
        return {"folder": "", "file": _last(wish, "dbfilename", "dump.rdb")}
    name = _last(wish, "appendfilename", "appendonly.aof")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise CommandExecutionError(
            f"Nothing was restored: appendfilename is {name!r}, which takes quotes in a manifest"
        )
    parts = "appenddirname" in meaning["values"]  # since Redis 7.0
    return {"folder": _last(wish, "appenddirname", "appendonlydir") if parts else "", "file": name}


def _refuse_replica(wish: dict[str, Any]) -> None:
    facts = __salt__["redis_server.status"](wish["name"])
    if (facts["info"] or {}).get("role") == "slave":
        raise CommandExecutionError(
            f"Nothing was restored: {wish['unit']} follows a master and would take that one's data; restore there"
        )


# Timers


def _booted_by_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")  # sd_booted(3)


def _wanted(redis: dict[str, Any], wish: dict[str, Any]) -> dict[str, str | None]:
    """Path -> text of each file that makes backups; None for one that must not be there."""
    service, timer = (os.path.join(_UNIT_DIR, unit) for unit in _units(wish["name"]))
    cron = os.path.join(_CRON_DIR, f"redis_{wish['name']}_backup")
    command = " ".join(_command(*_backup_words(redis, wish)))
    if not _booted_by_systemd():
        when = _cron_time(wish)
        return {service: None, timer: None, cron: _CRON.format(mark=_MARK, when=when, command=command)}
    said = {"mark": _MARK, "port": wish["name"], "command": command, "data": wish["dir"], **wish["backup"]}
    said |= {"unit": _units(wish["name"])[0], "timer": _units(wish["name"])[1], "folder": wish["backup"]["dir"]}
    return {service: _SERVICE.format(**said), timer: _TIMER.format(**said), cron: None}


def _cron_time(wish: dict[str, Any]) -> str:
    """Like the timer's: at the beginning of the period, and up to ``delay`` later, each host at its own moment."""
    at, delay = wish["backup"]["at"], wish["backup"]["delay"]
    limit = min(delay, min(_PERIODS[at], 86400) - 60) // 60
    late = zlib.crc32(f"{__grains__.get('id', '')} {wish['name']}".encode()) % (limit + 1)
    hour = "*" if at == "hourly" else str(late // 60)
    return " ".join([str(late % 60), hour, "1" if at == "monthly" else "*", "*", "1" if at == "weekly" else "*"])


def _timer_facts(name: str) -> dict[str, Any]:
    timer = _units(name)[1]
    wanted = "ActiveState,LoadState,NeedDaemonReload,UnitFileState"
    found = dict(
        line.split("=", 1)
        for line in _systemctl("show", f"--property={wanted}", "--", timer).splitlines()
        if "=" in line
    )
    return {
        "timer": timer,
        "enabled": found.get("UnitFileState") == "enabled",
        "active": found.get("ActiveState") == "active",
        "reload": found.get("NeedDaemonReload") == "yes",
    }


def _systemctl(*words: str) -> str:
    argv = [_tool("systemctl"), *words]
    answer = __salt__["cmd.run_all"](argv, python_shell=False, env={"LC_ALL": "C"}, ignore_retcode=True)
    if answer["retcode"] != 0:
        raise CommandExecutionError(f"systemctl {' '.join(words)} failed: {answer['stderr'] or answer['stdout']}")
    return answer["stdout"]


def _tool(name: str) -> str:
    found = salt.utils.path.which(name)
    if not found:
        raise CommandExecutionError(f"{name} is not on this host: install the package systemd first")
    return found


# Files


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: str) -> str | None:
    """The text of a regular file; None for anything else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


def _diff(path: str, wanted: str | None) -> str:
    """How a file differs; a file of others where none of ours belongs is no difference."""
    if wanted is None:
        return "removed" if __salt__["whole_files.is_ours"](path) else ""
    found = _read(path)
    if found == wanted:
        return ""
    return "\n".join(
        difflib.unified_diff((found or "").splitlines(), wanted.splitlines(), "is", "will be", lineterm="")
    )
