"""
The instances of Redis that are on this host, as its files tell it, whatever the settings say.

An instance is known by the line that the formula writes into its unit, init script and config. So one that the settings
no longer name is found, and what others made by hand or by package never is. The config is taken away last: what a
run that was cut off left behind is found by it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}

_CONFIGS = "/etc/redis"
_PLACES = {  # what the name of the file that makes an instance looks like, by where it lies
    "/etc/systemd/system": r"redis_(\d+)\.service",
    "/etc/init.d": r"redis_(\d+)",
    _CONFIGS: r"(\d+)\.conf",
}
_RECORDS = "/var/lib/redis_sidekiq"


# Facts ---------------------------------------------------------------------------------------------------------------


def found() -> dict[str, list[str]]:
    """
    The instances that this formula made on this host. No process is started to find them.

    Returns name (port) -> the files that it is known by: unit, init script, config; in the order of the ports.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_instances.found
    """
    instances: dict[str, list[str]] = {}
    for folder, pattern in _PLACES.items():
        for entry in _entries(folder):
            match = re.fullmatch(pattern, entry)
            path = os.path.join(folder, entry)
            if match and __salt__["whole_files.is_ours"](path):
                instances.setdefault(match[1], []).append(path)
    return {name: instances[name] for name in sorted(instances, key=int)}


def facts(instance: str) -> dict[str, Any]:
    """
    What the config on this host says of an instance: what :func:`redis_sidekiq.settings` has for one of the settings,
    but for its password, which is for ``redis_server`` to read.

    instance
        Name of the instance: its port.

    Returns ``name``, ``port``, ``unit``, ``config``, ``dir``, ``bind``, ``socket``, ``tls`` (its ``port``),
    ``password`` (always empty), ``directives`` (a list of ``[name, value]`` without secrets) and ``files`` (see :func:`found`); {} for one that this formula did not
    make. Raises CommandExecutionError when its config cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_instances.facts 6380
    """
    name = str(instance)
    files = found().get(name)
    if not files:
        return {}
    config = os.path.join(_CONFIGS, f"{name}.conf")
    directives = _directives(config) if config in files else []
    said = dict(directives)
    return {
        "name": name,
        "port": int(said.get("port", name)),
        "unit": f"redis_{name}",
        "config": config,
        "dir": said.get("dir", f"/var/redis/{name}"),
        "bind": said.get("bind", "127.0.0.1 -::1").split(),
        "socket": said.get("unixsocket", ""),
        "tls": {"port": int(said["tls-port"])} if "tls-port" in said else {},
        "password": "",
        "directives": directives,
        "files": files,
    }


def data_folders(instance: str) -> list[str]:
    """
    Where the data and the log of an instance lie, as far as they are there.

    instance
        Name of the instance: its port.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_instances.data_folders 6380
    """
    paths = [facts(instance).get("dir", f"/var/redis/{instance}"), f"/var/log/redis/{instance}.log"]
    return [path for path in paths if os.path.lexists(path)]


def others(instance: str) -> list[str]:
    """
    The files in an instance's places that somebody else made: unit, init script, config. Made by hand perhaps, by the
    steps of a tutorial that takes the same names. No process is started to find them.

    instance
        Name of the instance: its port.

    Returns a list of paths.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_instances.others 6379
    """
    name = str(instance)
    paths = [
        f"/etc/systemd/system/redis_{name}.service",
        f"/etc/init.d/redis_{name}",
        os.path.join(_CONFIGS, f"{name}.conf"),
    ]
    is_ours = __salt__["whole_files.is_ours"]
    return [path for path in paths if os.path.isfile(path) and not os.path.islink(path) and not is_ours(path)]


def kept(path: str) -> str:
    """
    Where a file that somebody else made is kept when the formula takes its place: root alone can read it.

    path
        Path of that file.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_instances.kept /etc/redis/6379.conf
    """
    return os.path.join(_RECORDS, "by-hand", str(path).strip("/").replace("/", "_"))


def keep(path: str) -> None:
    """
    Keep a file that somebody else made, once, before the formula takes its place; see :func:`kept`.

    path
        Path of that file.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_instances.keep /etc/redis/6379.conf
    """
    target = kept(path)
    if not os.path.lexists(target):
        __salt__["whole_files.copy"](path, target, 0o600)


# Acts ----------------------------------------------------------------------------------------------------------------


def remove(instance: str, purge_data: bool = False) -> str:
    """
    Stop an instance of this formula with care for its data, and take away its unit or init script and its config.

    instance
        Name of the instance: its port.
    purge_data
        Delete its data and its log too (bool, default False).

    Returns a sentence. Raises CommandExecutionError when it is none of this formula's, or does not stop; its files and
    data are all there then.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_instances.remove 6380
    """
    name = str(instance)
    known = facts(name)
    if not known:
        raise CommandExecutionError(f"{name!r} is no instance of Redis that this formula made on this host")
    said = []
    for manager in ("systemd", "sysv"):
        sentence = __salt__["redis_server.service_remove"](name, manager)
        said += [sentence] if "was stopped" in sentence else []
    try:
        _unlink(os.path.join(_RECORDS, f"redis_{name}.json"))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(os.path.join(_CONFIGS, "tls", name))
        __salt__["redis_upgrade.forget"](name)
        if purge_data:
            for path in data_folders(name):
                shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else _unlink(path)
        if known["config"] in known["files"]:
            _unlink(known["config"])
    except OSError as err:
        raise CommandExecutionError(f"Cannot take away the files of Redis instance {name}: {err}") from err
    return "; ".join(said) or f"redis_{name} did not run"


# --- below: how it is done -------------------------------------------------------------------------------------------


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise CommandExecutionError(f"Cannot look into {folder}: {err.strerror}") from err


def _directives(config: str) -> list[list[str]]:
    """The lines of a config as ``[name, value]``, without those that hold a secret."""
    try:
        with open(config, encoding="utf-8", errors="replace") as stream:
            lines = [line.split(None, 1) for line in stream if line.strip() and not line.lstrip().startswith("#")]
    except OSError as err:
        raise CommandExecutionError(f"Cannot read {config}: {err.strerror}") from err
    secret = re.compile("requirepass|masterauth|user|sentinel|.*-pass")
    found = [[words[0].lower(), words[1].strip()] for words in lines if len(words) == 2]
    return [[name, value] for name, value in found if not secret.fullmatch(name)]


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
