"""
Which build each instance of Redis runs, and how it goes over to another one and back.

Each instance starts through a link of its own, ``PREFIX/instance-PORT``, which points at a build. Going over means: the
server is stopped, its data files are kept by hard links, a note says from where to where, the link is turned. When the
new server serves, note and links go; when it does not, they are the way back, in this run or in the next one.

Stopping and starting is the affair of ``redis_server``, which asks here what to do in between.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    __salt__: dict[str, Any] = {}

_FOLDER = "/var/lib/redis_sidekiq"
_KEPT = ".before-upgrade"
# The head of a snapshot: src/rdb.c, rdbSaveRio. Valkey 9 has a magic word of its own, and higher numbers.
_HEAD = re.compile(rb"(?:REDIS|VALKEY)(\d+)")
_NAMES = {"dbfilename": "dump.rdb", "appendfilename": "appendonly.aof", "appenddirname": "appendonlydir"}


# Facts ---------------------------------------------------------------------------------------------------------------


def facts(instance: str) -> dict[str, Any]:
    """
    Which build an instance starts with, and which one it shall.

    instance
        Name of the instance in the settings: its port.

    Returns ``build`` (that of its link, or empty), ``wished``, ``link`` (path), ``under_way`` (name of the build that it
    came from, while a change of build is not finished; else empty), ``refused`` (why this build was gone back from, with
    this config; else empty).

    Raises SaltInvocationError for an instance that is not in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.facts 6379
    """
    wish = _wish(instance)
    note, refusal = _read(wish, "upgrade"), _read(wish, "refused")
    refused = refusal.get("why", "") if refusal.get("key") == _key(wish) else ""
    return {
        "build": _target(wish["link"]),
        "wished": wish["build"],
        "link": wish["link"],
        "under_way": note.get("from", ""),
        "refused": refused,
    }


def data(instance: str) -> dict[str, Any]:
    """
    The data that an instance's next start reads, by the heads of its files.

    instance
        Name of the instance in the settings.

    Returns ``files`` (path -> bytes) and ``rdb_version`` (int: the newest format of a snapshot among them; 0: none has
    one, such as an AOF that is written in commands alone).

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.data 6379
    """
    wish = _wish(instance)
    paths = [os.path.join(wish["dir"], name) for name in _data_files(wish, read_only=True)]
    return {
        "files": {path: os.path.getsize(path) for path in paths},
        "rdb_version": max([0, *map(_rdb_version, paths)]),
    }


def hindrance(instance: str) -> str:
    """
    Why an instance cannot go over to the build of the settings: another server has its port, it was gone back from, or it
    is too old for the data.

    instance
        Name of the instance in the settings.

    Returns a sentence that says what to do, or an empty one. Raises what :func:`redis_server.takeover_check` does, of an
    instance that was not made yet.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.hindrance 6379
    """
    wish, found = _wish(instance), facts(instance)
    if not found["build"]:
        if said := __salt__["redis_sidekiq_takeover.in_the_way"](instance):
            return said
        __salt__["redis_server.takeover_check"](instance)
    if found["refused"]:
        return (
            f"Redis instance {instance} does not go over to {wish['build']} again: {found['refused']}. Change the "
            f"release, the build or the config, or try once more by `salt-call redis_server.restart {instance}`"
        )
    reads = _writes(wish, wish["build"])
    if not reads or found["build"] == wish["build"]:
        return ""
    newest = data(instance)["rdb_version"]
    if not _appends(wish) and __salt__["redis_server.status"](instance, ask=False)["pid"]:
        # The snapshot that is written at its end, or its first AOF, is of the build that runs.
        newest = max(newest, _writes(wish, found["build"]))
    if newest <= reads:
        return ""
    return (
        f"{wish['build']} is too old for the data of Redis instance {instance}: it reads snapshots up to format {reads}, "
        f"and these are of format {newest}, of {found['build'] or 'a newer Redis'}. Keep the newer release, restore a "
        "backup that the older one made, or let the newer one write what both read: appendonly: true with the directive "
        "aof-use-rdb-preamble: 'no', then `redis-cli BGREWRITEAOF`, then run again"
    )


# Acts: while the instance is down ------------------------------------------------------------------------------------


def begin(instance: str) -> bool:
    """
    Turn an instance's link to the build of the settings; the caller holds its lock, and it does not run.

    Its data files are kept by hard links in a folder beside them, so that a server that replaces them, as Redis does,
    takes nothing away.

    instance
        Name of the instance in the settings.

    Returns whether there is a way back (bool): an instance that had no build has none. Raises CommandExecutionError,
    with the link as it was, when the files cannot be kept.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.begin 6379
    """
    wish = _wish(instance)
    old = _target(wish["link"])
    if old == wish["build"]:
        return bool(_read(wish, "upgrade"))
    if old and os.path.exists(os.path.join(wish["prefix"], old)):
        with _failing(f"Cannot keep the data of Redis instance {instance} as they are"):
            files = _keep(wish)
        _write(wish, "upgrade", {"from": old, "to": wish["build"], "at": time.time(), "files": files})
    _turn(wish, wish["build"])
    return bool(_read(wish, "upgrade"))


def finish(instance: str) -> None:
    """
    Forget the way back: the new build serves.

    instance
        Name of the instance in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.finish 6379
    """
    wish = _wish(instance)
    with _failing(f"Cannot tidy up after the upgrade of Redis instance {instance}"):
        _unlink(_path(wish, "refused"))
        _tidy(wish)


def back(instance: str, why: str) -> str:
    """
    Go back to the build that an instance came from: data and config as they were before, then the link. The caller holds
    its lock, and it does not run. Called again after it was cut off, it ends the same.

    What the new server wrote is not deleted: it lies in a folder beside the data then.

    instance
        Name of the instance in the settings.
    why
        What was wrong with the new build; told when the same build and config are wished again.

    Returns a sentence. Raises CommandExecutionError when there is no way back.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.back 6379 'it does not read its data'
    """
    wish = _wish(instance)
    note = _read(wish, "upgrade")
    if not note:
        raise CommandExecutionError(f"Redis instance {instance} has no way back: no change of its build is under way")
    with _failing(f"Cannot bring back the data of Redis instance {instance}"):
        aside = _put_back(wish, note["files"])
        if os.path.exists(_config_copy(wish)):
            _copy_config(_config_copy(wish), wish["config"])
    _turn(wish, note["from"])
    _write(wish, "refused", {"key": _key(wish), "why": f"it was gone back from at {_now()}, because {why}"})
    _tidy(wish)
    said = f"{note['from']} is its build again, with the data as they were"
    return f"{said}; what {note['to']} wrote lies in {aside}" if aside else said


def may_go_back(instance: str) -> bool:
    """
    Whether the way back loses nothing: the data are those that were kept, so the new build has not served since.

    instance
        Name of the instance in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.may_go_back 6379
    """
    wish = _wish(instance)
    note = _read(wish, "upgrade")
    return bool(note) and _as_kept(wish, note["files"])


def keep_config(instance: str) -> None:
    """
    Keep an instance's config for the way back, before it is written anew for another build; the first one counts.

    instance
        Name of the instance in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.keep_config 6379
    """
    wish = _wish(instance)
    old = _target(wish["link"])
    if old and old != wish["build"] and not os.path.exists(_config_copy(wish)) and os.path.exists(wish["config"]):
        with _failing(f"Cannot keep {wish['config']}"):
            os.makedirs(_FOLDER, mode=0o755, exist_ok=True)
            _copy_config(wish["config"], _config_copy(wish))


def forget(instance: str) -> None:
    """
    Take away what is known here of an instance that goes: its link, and what a change of build left.

    instance
        Name of the instance, in the settings or not.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_upgrade.forget 6380
    """
    prefix = _settings()["prefix"]
    with _failing(f"Cannot forget the build of Redis instance {instance}"):
        for path in (
            os.path.join(prefix, f"instance-{instance}"),
            *(
                os.path.join(_FOLDER, f"redis_{instance}_{end}")
                for end in ("upgrade.json", "refused.json", "before.conf")
            ),
        ):
            _unlink(path)


# --- below: how it is done -------------------------------------------------------------------------------------------


def _settings() -> dict[str, Any]:
    return __salt__["redis_sidekiq.settings"]()["redis"]


def _wish(instance: str) -> dict[str, Any]:
    """The settings of one instance, with its link and the build that they wish."""
    redis = _settings()
    found = [wish for wish in redis["instances"] if wish["name"] == str(instance)]
    if not found:
        raise SaltInvocationError(f"{instance!r} is not a Redis instance of this minion")
    return {
        **found[0],
        "prefix": redis["prefix"],
        "link": os.path.join(redis["prefix"], f"instance-{instance}"),
        "build": __salt__["redis_server.wished_build"](),
    }


def _value(wish: dict[str, Any], directive: str, default: str) -> str:
    values = [value for name, value in wish["directives"] if name == directive]
    return values[-1].strip("\"'") if values else default


def _appends(wish: dict[str, Any]) -> bool:
    """Does the next start read an AOF that is there (src/server.c, loadDataFromDisk)?"""
    return _value(wish, "appendonly", "no").lower() == "yes" and any(_aof_files(wish))


def _key(wish: dict[str, Any]) -> str:
    """What was refused: a build with a config. No password has a part in it."""
    return hashlib.sha256(json.dumps([wish["build"], wish["directives"]]).encode()).hexdigest()


def _writes(wish: dict[str, Any], build: str) -> int:
    """The format of the snapshots that a build writes, which is the newest that it reads; 0: nobody noted it."""
    records = {record["build"]: record for record in __salt__["redis_build.builds"](wish["prefix"])}
    return int(records.get(build, {}).get("rdb_version") or 0)


# Data


def _aof_files(wish: dict[str, Any]) -> list[str]:
    """Paths within the data folder; before 7.0 the AOF was one file beside the snapshot."""
    folder, single = (_value(wish, name, _NAMES[name]) for name in ("appenddirname", "appendfilename"))
    with contextlib.suppress(OSError):
        found = sorted(os.listdir(os.path.join(wish["dir"], folder)))
        if found:
            return [os.path.join(folder, name) for name in found if not name.startswith("temp-")]
    return [single] if os.path.exists(os.path.join(wish["dir"], single)) else []


def _data_files(wish: dict[str, Any], read_only: bool = False) -> list[str]:
    """Paths within the data folder: all data, or what the next start reads."""
    aof, snapshot = _aof_files(wish), _value(wish, "dbfilename", _NAMES["dbfilename"])
    if read_only and _appends(wish):
        return aof
    found = [snapshot] if os.path.exists(os.path.join(wish["dir"], snapshot)) else []
    return found if read_only else [*found, *aof]


def _rdb_version(path: str) -> int:
    try:
        with open(path, "rb") as stream:
            head = _HEAD.match(stream.read(10))
    except OSError as err:
        raise CommandExecutionError(f"Cannot read {path}: {err.strerror}") from err
    # Four digits follow REDIS, three follow VALKEY.
    return int(head[1][:4]) if head else 0


def _keep(wish: dict[str, Any]) -> dict[str, int]:
    """Links to all data files; returns path within the data folder -> bytes."""
    kept = os.path.join(wish["dir"], _KEPT)
    shutil.rmtree(kept, ignore_errors=True)
    os.mkdir(kept, 0o700)
    files = {}
    for name in _data_files(wish):
        source, target = os.path.join(wish["dir"], name), os.path.join(kept, name)
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        os.link(source, target, follow_symlinks=False)
        files[name] = os.lstat(source).st_size
        __salt__["whole_files.sync_folder"](os.path.dirname(target))
    __salt__["whole_files.sync_folder"](kept)
    return files


def _differs(wish: dict[str, Any], name: str, files: dict[str, int]) -> bool:
    """Is a data file another one than that which was kept, or was something appended to it?"""
    try:
        is_now = os.lstat(os.path.join(wish["dir"], name))
        kept = os.lstat(os.path.join(wish["dir"], _KEPT, name))
    except FileNotFoundError:
        return True
    return is_now.st_ino != kept.st_ino or is_now.st_size != files.get(name)


def _as_kept(wish: dict[str, Any], files: dict[str, int]) -> bool:
    return not any(_differs(wish, name, files) for name in {*files, *_data_files(wish)})


def _put_back(wish: dict[str, Any], files: dict[str, int]) -> str:
    """Bring the data files back; returns the folder with what was there instead, or nothing."""
    if _as_kept(wish, files):
        return ""
    aside = os.path.join(wish["dir"], f"after-upgrade-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    for name in sorted({*files, *_data_files(wish)}):
        path, kept = os.path.join(wish["dir"], name), os.path.join(wish["dir"], _KEPT, name)
        if not _differs(wish, name, files):
            continue
        if os.path.exists(path):
            os.makedirs(os.path.dirname(os.path.join(aside, name)), mode=0o700, exist_ok=True)
            if os.path.exists(kept) and os.path.samefile(path, kept):
                _cut(path, files[name], os.path.join(aside, name))
                continue
            os.rename(path, os.path.join(aside, name))
        if name in files:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.link(kept, path)
        __salt__["whole_files.sync_folder"](os.path.dirname(path))
    return aside if os.path.isdir(aside) else ""


def _cut(path: str, size: int, copy: str) -> None:
    """Take away what was appended to a file, with a copy of it as it was."""
    if os.path.getsize(path) < size:
        raise CommandExecutionError(
            f"{path} was {size} bytes long before the upgrade and is shorter now: it is not touched"
        )
    shutil.copyfile(path, copy)
    handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


# Link, note and config


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _turn(wish: dict[str, Any], build: str) -> None:
    """The link in one rename, so that no moment is without one."""
    draft = os.path.join(wish["prefix"], f".instance-{wish['name']}.new")
    with _failing(f"Cannot let {wish['link']} point at {build}"):
        _unlink(draft)
        os.symlink(build, draft)
        os.replace(draft, wish["link"])
        __salt__["whole_files.sync_folder"](wish["prefix"])


def _path(wish: dict[str, Any], kind: str) -> str:
    return os.path.join(_FOLDER, f"redis_{wish['name']}_{kind}.json")


def _config_copy(wish: dict[str, Any]) -> str:
    return os.path.join(_FOLDER, f"redis_{wish['name']}_before.conf")


def _copy_config(source: str, target: str) -> None:
    """As it is, owner and mode included, in one rename."""
    __salt__["whole_files.copy"](source, target)


def _tidy(wish: dict[str, Any]) -> None:
    """The note goes last: while it is there, the next run knows that something is left to do."""
    shutil.rmtree(os.path.join(wish["dir"], _KEPT), ignore_errors=True)
    _unlink(_config_copy(wish))
    _unlink(_path(wish, "upgrade"))


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _read(wish: dict[str, Any], kind: str) -> dict[str, Any]:
    """A note; {} for none, or one that no longer can be read."""
    try:
        with open(_path(wish, kind), encoding="utf-8") as stream:
            note = json.load(stream)
        return note if isinstance(note, dict) else {}
    except (OSError, ValueError):
        return {}


def _write(wish: dict[str, Any], kind: str, note: dict[str, Any]) -> None:
    __salt__["whole_files.write"](_path(wish, kind), json.dumps(note), 0o600, makedirs=True)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def _failing(sentence: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise CommandExecutionError(f"{sentence}: {err}") from err
