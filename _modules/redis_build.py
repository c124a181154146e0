"""
Builds of Redis or Valkey: made from a verified tarball, side by side in a prefix, one of them the current one.

Each build has a record of what it was made from; the link ``current`` points at one, and links in the search path lead
through it. Unpacking, compiling and the trial run happen in ``redis_sandbox``.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
from typing import TYPE_CHECKING, Any

import salt.utils.files
import salt.utils.path
import salt.utils.url
from salt.exceptions import CommandExecutionError, MinionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    __grains__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

FLAVORS = {"redis": "Redis", "valkey": "Valkey"}
_TOOLS = ("server", "cli", "benchmark", "sentinel", "check-aof", "check-rdb")
PROGRAMS = {flavor: tuple(f"{flavor}-{tool}" for tool in _TOOLS) for flavor in FLAVORS}
_NAMES = {name for names in PROGRAMS.values() for name in names}

_DIGESTS = ("sha256", "sha384", "sha512")
_RECIPE = 1  # part of a build's name: raise it when the same settings shall give another build
_RECORD = "build.json"
_CURRENT = "current"
_LOCK_DIR = "/run/redis_sidekiq"
_ROOM = 400_000_000  # bytes that a build takes while it is made, at most (Redis 8 with debugging symbols)
_TIMEOUT = 7200  # s for the compiler; one slow core takes minutes for Redis 8
_LAST_LINES = 30


# Facts ---------------------------------------------------------------------------------------------------------------


def builds(prefix: str = "/opt/redis") -> list[dict[str, Any]]:
    """
    The builds in a prefix, by their own records. A folder whose record or programs are not as installed is no build.

    prefix
        Folder that holds them.

    Returns a list of records, sorted by name: ``build`` (the folder's name), ``flavor``, ``version``, ``digest`` (of
    the tarball), ``malloc``, ``tls``, ``systemd``, ``source``, ``built`` (UTC), ``seconds``, ``rdb_version`` (int: of
    the snapshots that it writes; None: not asked when it was made) and ``programs`` (name -> size and sha256).

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.builds
    """
    return [record for name in _entries(prefix) if (record := _read_record(prefix, name))]


def facts(
    version: str,
    source_hash: str,
    prefix: str = "/opt/redis",
    malloc: str = "jemalloc",
    tls: bool = False,
    systemd: bool = True,
    flavor: str = "redis",
) -> dict[str, Any]:
    """
    Whether a build is there, and which one is current.

    version
        The release, such as ``8.0.6``.
    source_hash
        The tarball's digest, ``sha256=HEX``.
    prefix
        Folder that holds the builds.
    malloc
        ``jemalloc`` or ``libc``.
    tls, systemd
        What is compiled in (bool).
    flavor
        ``redis`` or ``valkey``.

    Returns ``build`` (name of this one: version, and a hash over all that makes it what it is), ``present`` (bool),
    ``current`` (name of the build that the link points at, or empty), ``leftovers`` (names of what a run that was cut
    off left behind).

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.facts 8.0.6 source_hash=sha256=6d0a99138...
    """
    build = name(version, source_hash, malloc, tls, systemd, flavor)
    return {
        "build": build,
        "present": _read_record(prefix, build) is not None,
        "current": current(prefix),
        "leftovers": [entry for entry in _entries(prefix) if entry.startswith(".")],
    }


def name(
    version: str,
    source_hash: str,
    malloc: str = "jemalloc",
    tls: bool = False,
    systemd: bool = True,
    flavor: str = "redis",
) -> str:
    """
    A build's name: the version, and a hash over all that makes it what it is. How many compilers work on it does not.

    version, source_hash, malloc, tls, systemd, flavor
        See :func:`facts`.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.name 8.0.6 source_hash=sha256=6d0a99138...
    """
    what = {"recipe": _RECIPE, "digest": source_hash.lower(), "malloc": malloc}
    what |= {"tls": bool(tls), "systemd": bool(systemd)}
    _known(flavor)
    known_by = f"{version}-{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]}"
    return known_by if flavor == "redis" else f"{flavor}-{known_by}"


def pack_name(build: str) -> str:
    """
    The name that a build has when hosts like this one share it: ``BUILD-CODENAME-ARCHITECTURE`` of the distribution.

    build
        The build's name.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.pack_name 8.0.6-0123456789
    """
    platform = _platform()
    return f"{build}-{platform['os']}-{platform['arch']}"


def current(prefix: str = "/opt/redis") -> str:
    """
    The name of the current build; empty when there is none.

    prefix
        Folder that holds the builds.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.current
    """
    try:
        return os.readlink(os.path.join(prefix, _CURRENT))
    except OSError:
        return ""


def binary(prefix: str = "/opt/redis", build: str = _CURRENT) -> str:
    """
    The path of a build's server, of whatever flavor it is; where it would be when it is not there.

    prefix
        Folder that holds the builds.
    build
        Name of a build, or of a link to one; the current one by default.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.binary
    """
    servers = [os.path.join(prefix, build, "bin", f"{flavor}-server") for flavor in FLAVORS]
    return next((path for path in servers if os.path.exists(path) and not os.path.islink(path)), servers[0])


def source_check(source: str, source_hash: str) -> str:
    """
    Look at a tarball as far as that costs nothing: a file on this host is read, anything else would be a download.

    source
        URL or absolute path of the tarball.
    source_hash
        ``sha256=HEX``, ``sha384=HEX`` or ``sha512=HEX``.

    Returns a sentence for what was found. Raises CommandExecutionError when the file is missing or another one.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.source_check /srv/redis-8.0.6.tar.gz source_hash=sha256=6d0a99138...
    """
    path = _local_path(source)
    if not path:
        return f"{_shown(source)} is fetched and verified then"
    with _open_tarball(path, source) as stream:
        _verify(stream, source, source_hash)
    return f"{path} has the digest wanted"


def prefix_facts(prefix: str = "/opt/redis") -> dict[str, Any]:
    """
    What is in a prefix, ours and not ours.

    prefix
        Folder that holds the builds.

    Returns ``there`` (bool), ``ours`` and ``others`` (sorted names).

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.prefix_facts
    """
    ours = {record["build"] for record in builds(prefix)}
    ours |= {_CURRENT} if current(prefix) else set()
    ours |= set(_instance_links(prefix))
    ours |= {name for name in _entries(prefix) if name.startswith(".")}
    others = [name for name in _entries(prefix) if name not in ours]
    return {"there": os.path.isdir(prefix), "ours": sorted(ours), "others": others}


def spare(
    keep: int,
    version: str,
    source_hash: str,
    prefix: str = "/opt/redis",
    malloc: str = "jemalloc",
    tls: bool = False,
    systemd: bool = True,
    flavor: str = "redis",
    ahead: bool = False,
) -> list[str]:
    """
    The builds that are in the way: older than the newest so many, and used by nobody.

    keep
        How many builds stay beside the wished one, the newest ones.
    version, source_hash, prefix, malloc, tls, systemd, flavor
        The wished build; see :func:`facts`.
    ahead
        If another build than the wished one is the current one: as things will be once the wished one is in use
        (bool, default False).

    Returns a list of names, oldest first. A build is in use when it is the wished one, a link in the prefix leads to
    it, or a process executes a program of it.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.spare 2 8.0.6 source_hash=sha256=6d0a99138...
    """
    wished = name(version, source_hash, malloc, tls, systemd, flavor)
    others = [record["build"] for record in sorted(builds(prefix), key=_age) if record["build"] != wished]
    old = others[: max(len(others) - int(keep), 0)]
    if not old or (ahead and current(prefix) != wished):
        return old
    used = _used(prefix)
    return [build for build in old if build not in used]


# Acts ----------------------------------------------------------------------------------------------------------------


def make(
    version: str,
    source: str,
    source_hash: str,
    prefix: str = "/opt/redis",
    user: str = "redis-build",
    jobs: int = 1,
    malloc: str = "jemalloc",
    tls: bool = False,
    systemd: bool = True,
    flavor: str = "redis",
    pack: str = "",
    pack_hash: str = "",
) -> dict[str, Any]:
    """
    Compile a build unless it is there, start it once on a private socket, and put it beside the others. Which one is
    the current one stays as it is.

    The tarball is verified before it is unpacked. Unpacking, compiling and the trial run happen as an unprivileged
    user, without network, in namespaces that die with this process; what is installed is copied by root, regular files
    of six names only. One build at a time: a second call waits, and finds the work done.

    version, source_hash, prefix, malloc, tls, systemd, flavor
        See :func:`facts`.
    source
        Where the tarball is: ``https://``, ``http://``, ``salt://``, ``file://`` or an absolute path.
    user
        Unprivileged user who compiles; exists already.
    jobs
        Compilers at a time.
    pack, pack_hash
        Where the finished build is that another host made (see :func:`pack`), and its digest: it is taken in place of
        compiling. Empty (default): compile.

    Returns a record: ``build``, ``compiled`` and ``taken`` (bool), ``seconds`` (of this call). Raises
    CommandExecutionError with the compiler's last lines; nothing of the new build is left then.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.make 8.0.6 salt://files/redis-8.0.6.tar.gz source_hash=sha256=6d0a99138...
    """
    begun = time.monotonic()
    build = name(version, source_hash, malloc, tls, systemd, flavor)
    account = _account(user)
    flags = {"flavor": flavor, "version": version, "malloc": malloc, "tls": tls, "systemd": systemd}
    with _lock():
        _make_prefix(prefix)
        _remove_leftovers(prefix)
        present = _read_record(prefix, build) is not None
        if not present and pack:
            _place(
                build, flags, prefix, account, lambda work, staged: _take(build, flags, pack, pack_hash, work, staged)
            )
        elif not present:
            compiled = {"source": source, "source_hash": source_hash, "jobs": jobs}
            _place(
                build, flags, prefix, account, lambda work, staged: _compiled(flags, work, staged, account, **compiled)
            )
    return {
        "build": build,
        "compiled": not present and not pack,
        "taken": not present and bool(pack),
        "seconds": round(time.monotonic() - begun, 1),
    }


def pack(build: str = "", folder: str = "/var/cache/redis_sidekiq", prefix: str = "/opt/redis") -> dict[str, Any]:
    """
    Put a finished build into one file, for other hosts of the same distribution and architecture to take.

    build
        Its name; the current one when empty (default).
    folder
        Where the file goes; made if it is not there.
    prefix
        Folder that holds the builds.

    Returns ``name`` and ``hash``, an entry for the pillar ``redis_sidekiq:redis:build:packs``; ``path`` and ``size``
    (bytes). The same build gives the same file. Raises CommandExecutionError when a program is not as it was installed.

    CLI Example:

    .. code-block:: bash

        salt 'builder' redis_build.pack
    """
    build = build or current(prefix)
    record = _read_record(prefix, build)
    if record is None:
        raise CommandExecutionError(f"There is no build {build or 'that is current'} in {prefix}")
    record = {**_platform(), **record}
    path = os.path.join(folder, f"{pack_name(build)}.tar.gz")
    with _failing(f"Cannot write {path}"):
        os.makedirs(folder, mode=0o755, exist_ok=True)
        _write_pack(record, os.path.join(prefix, build, "bin"), path)
        with open(path, "rb") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
        size = os.path.getsize(path)
    return {"name": pack_name(build), "hash": f"sha256={digest}", "path": path, "size": size}


def use(build: str, prefix: str = "/opt/redis", user: str = "redis-build") -> dict[str, str]:
    """
    Make a build the current one, once it was seen to start: what it was linked with may be gone since it was compiled.

    build
        Name of a build that is there.
    prefix
        Folder that holds the builds.
    user
        Unprivileged user who tries it; exists already.

    Returns ``old`` and ``current``: names of the builds that the link pointed at before and points at now. Raises
    CommandExecutionError when there is no such build or it does not start; the link is as it was then.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.use 8.0.6-0123456789
    """
    account = _account(user)
    with _lock():
        old, record = current(prefix), _read_record(prefix, build)
        if record is None:
            raise CommandExecutionError(f"There is no build {build} in {prefix}")
        if old != build:
            _try_build(os.path.join(prefix, build), record, account)
            with _failing(f"Cannot make {build} the current build in {prefix}"):
                _symlink(build, os.path.join(prefix, _CURRENT))
    return {"old": old, "current": current(prefix)}


def remove(prefix: str = "/opt/redis") -> None:
    """
    Take away all builds of a prefix, the links to them, and the prefix if it is empty then. Files of others stay.

    prefix
        Folder that holds them; one that is not there is fine.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.remove
    """
    with _lock():
        _remove_leftovers(prefix)
        with _failing(f"Cannot empty {prefix}"):
            if current(prefix):
                os.unlink(os.path.join(prefix, _CURRENT))
            for entry in _instance_links(prefix):
                os.unlink(os.path.join(prefix, entry))
            for record in builds(prefix):
                shutil.rmtree(os.path.join(prefix, record["build"]))
            if _entries(prefix) == []:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(prefix)


def discard(build: str, prefix: str = "/opt/redis") -> None:
    """
    Take away one build that nobody uses.

    build
        Its name; one that is not there is fine.
    prefix
        Folder that holds it.

    Raises CommandExecutionError when a link in the prefix leads to it or a process executes it.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.discard 7.2.4-0123456789
    """
    with _lock():
        if _read_record(prefix, build) is None:
            return
        if build in _used(prefix):
            raise CommandExecutionError(f"{build} in {prefix} is in use, so it stays")
        path, hidden = os.path.join(prefix, build), os.path.join(prefix, f".gone-{build}")
        with _failing(f"Cannot remove {build} from {prefix}"):
            shutil.rmtree(hidden, ignore_errors=True)
            try:
                os.rename(path, hidden)  # half of that is a leftover, and no build
            except OSError as err:
                if err.errno != errno.EXDEV:  # a folder that an overlay has from its lower layer
                    raise
                hidden = path
            shutil.rmtree(hidden)


# Links to the programs -----------------------------------------------------------------------------------------------


def links(
    bin_dir: str = "/usr/local/bin", prefix: str = "/opt/redis", flavor: str = "redis"
) -> dict[str, dict[str, str]]:
    """
    The links to Redis' programs that are not as they should be.

    bin_dir
        Folder for the links.
    prefix
        Folder that holds the builds.
    flavor
        ``redis``, or ``valkey``, which is linked under the names of Redis too, as ``make install`` of Valkey does.

    Returns path -> ``{old, new}``: link targets, empty for a path that is not or should not be there, ``installed by
    hand`` for a program, or a link to one beside it, as upstream's ``make install`` leaves them, ``a file of others`` for
    anything else that is no link into the prefix.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.links
    """
    wanted = _links(bin_dir, prefix, flavor)
    found = {path: (_link_found(path, prefix), target) for path, target in wanted.items()}
    found |= {path: (_link_found(path, prefix), "") for path in linked(bin_dir, prefix) if path not in wanted}
    return {path: {"old": old, "new": new} for path, (old, new) in found.items() if old != new}


def link(bin_dir: str = "/usr/local/bin", prefix: str = "/opt/redis", flavor: str = "redis") -> None:
    """
    Link Redis' programs, each in one rename, and take away links that another flavor had. A program that was installed
    by hand gives way to its link, and is kept (see ``redis_instances.kept``).

    bin_dir, prefix, flavor
        See :func:`links`.

    Raises CommandExecutionError before the first one if a program of others lies where a link belongs.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.link
    """
    wrong = links(bin_dir, prefix, flavor)
    others = [path for path, change in wrong.items() if change["old"] == _OTHERS]
    if others:
        raise CommandExecutionError(
            f"{', '.join(others)}: not made by this formula, so left as found; move it away, or set "
            "redis_sidekiq:redis:bin_dir to another folder"
        )
    with _failing(f"Cannot link into {bin_dir}"):
        os.makedirs(bin_dir, mode=0o755, exist_ok=True)
        for path, change in wrong.items():
            if change["old"] == _BY_HAND and not os.path.islink(path):
                __salt__["redis_instances.keep"](path)
            if change["new"]:
                _symlink(change["new"], path)
            else:
                os.unlink(path)


def unlink(bin_dir: str = "/usr/local/bin", prefix: str = "/opt/redis") -> None:
    """
    Take away the links that lead into the prefix; others stay.

    bin_dir, prefix
        See :func:`links`.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.unlink
    """
    with _failing(f"Cannot remove links from {bin_dir}"):
        for path in linked(bin_dir, prefix):
            os.unlink(path)


def linked(bin_dir: str = "/usr/local/bin", prefix: str = "/opt/redis") -> list[str]:
    """
    The links that lead into the prefix.

    bin_dir, prefix
        See :func:`links`.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_build.linked
    """
    paths = [os.path.join(bin_dir, program) for flavor in FLAVORS for program in PROGRAMS[flavor]]
    return [path for path in paths if _link_found(path, prefix) not in ("", _OTHERS, _BY_HAND)]


# --- below: how it is done -------------------------------------------------------------------------------------------


def _known(flavor: str) -> None:
    if flavor not in FLAVORS:
        raise SaltInvocationError(f"{flavor!r} is no flavor known here: {' or '.join(FLAVORS)}")


def _entries(prefix: str) -> list[str]:
    try:
        return sorted(os.listdir(prefix))
    except FileNotFoundError:
        return []
    except OSError as err:
        raise CommandExecutionError(f"Cannot look into {prefix}: {err.strerror}") from err


def _instance_links(prefix: str) -> list[str]:
    """Names of the links by which instances start (see ``redis_upgrade``)."""
    return [
        entry for entry in _entries(prefix) if entry.startswith("instance-") and os.path.islink(f"{prefix}/{entry}")
    ]


def _read_record(prefix: str, name: str) -> dict[str, Any] | None:
    """The record of a build whose programs are as they were installed: by size, owner and mode, not by digest."""
    folder = os.path.join(prefix, name)
    try:
        if name.startswith(".") or "/" in name or os.path.islink(folder):
            return None
        with open(os.path.join(folder, _RECORD), encoding="utf-8") as stream:
            record = json.load(stream)
        record = {"rdb_version": None, "flavor": "redis", **record}  # what older records do not say
        if record["build"] != name or set(record["programs"]) != set(PROGRAMS[record["flavor"]]):
            return None
        for program, facts in record["programs"].items():
            info = os.lstat(os.path.join(folder, "bin", program))
            if not stat.S_ISREG(info.st_mode) or info.st_size != facts["size"]:
                return None
            if info.st_uid != 0 or info.st_mode & 0o022 or not info.st_mode & 0o001:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def _age(record: dict[str, Any]) -> tuple[str, str]:
    return str(record.get("built", "")), record["build"]


def _used(prefix: str) -> set[str]:
    """The builds that links in the prefix lead to or that processes execute."""
    used = set()
    for entry in _entries(prefix):
        with contextlib.suppress(OSError):
            used.add(os.path.basename(os.readlink(os.path.join(prefix, entry)).rstrip("/")))
    inside = os.path.realpath(prefix) + "/"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended meanwhile
            program = os.readlink(f"/proc/{pid}/exe")
            if program.startswith(inside):
                used.add(program[len(inside) :].split("/")[0])
    return used


def _make_prefix(prefix: str) -> None:
    with _failing(f"Cannot make {prefix}"):
        if not os.path.isdir(prefix):
            os.makedirs(prefix)
            os.chmod(prefix, 0o755)  # whatever the umask says
        info = os.lstat(prefix)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != 0 or info.st_mode & 0o022:
            raise CommandExecutionError(f"{prefix} must be a folder that root owns and nobody else can write to")


def _remove_leftovers(prefix: str) -> None:
    """What a run that was cut off left behind; the lock says that no other is at work. rmtree follows no link."""
    for name in _entries(prefix):
        if name.startswith("."):
            path = os.path.join(prefix, name)
            with _failing(f"Cannot remove {path}"):
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)


def _place(
    build: str,
    flags: dict[str, Any],
    prefix: str,
    account: dict[str, Any],
    fill: Callable[[str, str], dict[str, Any]],
) -> None:
    """Let ``fill`` lay a build out, try that, and put it among the others; nothing of a failure is left."""
    private = tempfile.mkdtemp(prefix=".build-", dir=prefix)
    try:
        # root's, with a folder in it for the unprivileged user and one for what is installed.
        os.chmod(private, 0o711)
        work, staged = os.path.join(private, "work"), os.path.join(private, "install")
        os.mkdir(work, 0o700)
        record = fill(work, staged)
        said = _try_build(staged, flags, account)
        programs = record.pop("programs")
        record = {"build": build, **flags, **record, "rdb_version": said["rdb_version"], "programs": programs}
        _write_record(staged, record)
        target = os.path.join(prefix, build)
        if os.path.lexists(target):  # what has the name of a build and is none
            os.rename(target, os.path.join(private, "replaced"))
        os.rename(staged, target)
        __salt__["whole_files.sync_folder"](prefix)
    except OSError as err:
        words = f"Cannot install the build in {prefix}: {err}"
        raise CommandExecutionError(_room_for_build(words, prefix)) from err
    except CommandExecutionError as err:
        raise CommandExecutionError(_room_for_build(str(err), prefix)) from err
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _room_for_build(words: str, prefix: str) -> str:
    """What went wrong; of a full disk (ENOSPC in a program's own words, LC_ALL=C) also where and how much."""
    if os.strerror(errno.ENOSPC) not in words and "No space left on device" not in words:
        return words
    found = os.statvfs(prefix)
    size, free = (f"{blocks * found.f_frsize / 1_000_000:.1f} MB" for blocks in (found.f_blocks, found.f_bavail))
    return (
        f"{prefix} is full: a build needs about {_ROOM // 1_000_000} MB there while it is made, and all of it has {size}, "
        f"{free} free when this failed. {words}"
    )


def _write_record(folder: str, record: dict[str, Any]) -> None:
    """In a folder that nobody looks into yet."""
    with open(os.path.join(folder, _RECORD), "x", encoding="utf-8") as stream:
        stream.write(json.dumps(record, indent=2) + "\n")
        stream.flush()
        os.fchmod(stream.fileno(), 0o644)  # whatever the umask says
        os.fsync(stream.fileno())
    __salt__["whole_files.sync_folder"](folder)


def _compiled(
    flags: dict[str, Any],
    work: str,
    staged: str,
    account: dict[str, Any],
    source: str,
    source_hash: str,
    jobs: int,
) -> dict[str, Any]:
    begun = time.monotonic()
    os.chown(work, account["uid"], account["gid"])
    _unpack(_fetch(source, source_hash, work, account["gid"]), work, account)
    _compile(work, flags, account, jobs)
    programs = _install(os.path.join(work, "src"), staged, flags["flavor"])
    return {
        "digest": source_hash.lower(),
        "source": _shown(source),
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.monotonic() - begun, 1),
        **_platform(),
        "programs": programs,
    }


def _platform() -> dict[str, str]:
    """What a program that was compiled here needs of another host: its distribution, architecture and C library."""
    return {
        "os": __grains__["oscodename"],
        "arch": __grains__["osarch"],
        "libc": os.confstr("CS_GNU_LIBC_VERSION") or "",
    }


# Builds that hosts share


def _write_pack(record: dict[str, Any], folder: str, path: str) -> None:
    """The record, and each program once, whatever names it has; nothing that differs from one packing to another."""
    contents = {_RECORD: (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()}
    for program, facts in record["programs"].items():
        with open(os.path.join(folder, program), "rb") as stream:
            content = stream.read()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise CommandExecutionError(
                f"{os.path.join(folder, program)} is not as it was installed, so it is not shared"
            )
        contents.setdefault(facts["sha256"], content)
    draft = f"{path}.new"
    with open(draft, "wb") as target:
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name, content in contents.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
        target.flush()
        os.fchmod(target.fileno(), 0o644)
        os.fsync(target.fileno())
    os.replace(draft, path)


def _take(build: str, flags: dict[str, Any], source: str, source_hash: str, work: str, staged: str) -> dict[str, Any]:
    """A build that another host made: of the verified file the record, and the programs that it names."""
    try:
        with tarfile.open(_fetch(source, source_hash, work, 0)) as archive:
            members = {member.name: member for member in archive if member.isreg()}
            record = json.load(archive.extractfile(members[_RECORD]))
            wanted = {"build": build, **flags, **{key: _platform()[key] for key in ("os", "arch")}}
            wrong = [
                f"its {key} is {record.get(key)!r}, not {wanted[key]!r}"
                for key in wanted
                if record.get(key) != wanted[key]
            ]
            if wrong:
                raise CommandExecutionError(f"{_shown(source)} is a build for others: {'; '.join(wrong)}")

            def copy(program: str, target: str) -> dict[str, Any]:
                return _copy_stream(archive.extractfile(members[record["programs"][program]["sha256"]]), target)

            programs = _lay_out(staged, flags["flavor"], copy)
    except (tarfile.TarError, EOFError, KeyError, TypeError, ValueError) as err:
        raise CommandExecutionError(f"{_shown(source)} holds no build that redis_build.pack made: {err!r}") from None
    if programs != record["programs"]:
        raise CommandExecutionError(f"{_shown(source)} holds other programs than its record says")
    kept = ("digest", "source", "built", "seconds", "os", "arch", "libc")
    return {**{key: record.get(key) for key in kept}, "pack": _shown(source), "programs": programs}


# The sources, compiled


def _local_path(source: str) -> str:
    """The path of a tarball on this host; empty for one elsewhere."""
    if source.startswith("file://"):
        return source[len("file://") :]
    return source if source.startswith("/") else ""


def _shown(source: str) -> str:
    """A URL without a login in it."""
    return salt.utils.url.redact_http_basic_auth(source)


def _open_tarball(path: str, source: str) -> Any:
    try:
        return open(path, "rb")
    except OSError as err:
        raise CommandExecutionError(f"The tarball {_shown(source)} cannot be read: {err.strerror}") from err


def _verify(stream: Any, source: str, source_hash: str, copy: Any = None) -> None:
    """Read a tarball to its end, copy what was read, and compare the digest."""
    algorithm, _, wanted = source_hash.rpartition("=")
    algorithm = algorithm.lower() or "sha256"
    if algorithm not in _DIGESTS:  # another file can be made that has the same md5 or sha1
        raise SaltInvocationError(f"{algorithm!r} is no digest trusted here; give sha256=HEX, sha384= or sha512=")
    digest = hashlib.new(algorithm)
    while block := stream.read(1 << 20):
        digest.update(block)
        if copy:
            copy.write(block)
    if digest.hexdigest() != wanted.lower():
        raise CommandExecutionError(
            f"The tarball {_shown(source)} is not the one wanted, so it was not unpacked: its {digest.name} is "
            f"{digest.hexdigest()}, wanted is {wanted.lower()}"
        )


def _fetch(source: str, source_hash: str, work: str, gid: int) -> str:
    """
    The verified tarball in the build's folder. What is verified is what was copied: the file at the source may change
    at any moment. Salt downloads to a file of another name first, so that a cut-off download is none.
    """
    path = _local_path(source) or _download(source, source_hash)
    target = os.path.join(work, "tarball")
    try:
        with _open_tarball(path, source) as stream, open(target, "xb") as copy:
            _verify(stream, source, source_hash, copy)
            os.fchmod(copy.fileno(), 0o440)
            os.fchown(copy.fileno(), 0, gid)
    except CommandExecutionError:
        if not _local_path(source):
            # The next run downloads anew, rather than find this copy.
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise
    return target


def _download(source: str, source_hash: str) -> str:
    try:
        path = __salt__["cp.cache_file"](source, source_hash=source_hash)
    except (MinionError, OSError) as err:
        raise CommandExecutionError(f"The tarball {_shown(source)} cannot be fetched: {err}") from err
    if not path:
        raise CommandExecutionError(f"The tarball {_shown(source)} cannot be fetched: there is no such file")
    return path


def _unpack(tarball: str, work: str, account: dict[str, Any]) -> None:
    argv = [_tool("tar", "tar"), "--extract", f"--file={tarball}", f"--directory={work}", "--strip-components=1"]
    answer = __salt__["redis_sandbox.run"]([*argv, "--no-same-owner", "--no-same-permissions"], account, work, 600)
    if answer["retcode"] != 0:
        raise CommandExecutionError(f"The tarball cannot be unpacked:\n{_last_lines(answer['stderr'], 10)}")
    os.unlink(tarball)
    if not os.path.isfile(os.path.join(work, "src", "Makefile")):
        raise CommandExecutionError("The tarball holds no Redis: there is no src/Makefile in its top folder")


def _compile(work: str, flags: dict[str, Any], account: dict[str, Any], jobs: int) -> None:
    switch = {True: "yes", False: "no"}
    argv = [
        _tool("make", "build-essential"),
        "-C",
        os.path.join(work, "src"),
        f"-j{int(jobs)}",
        f"MALLOC={flags['malloc']}",
        f"USE_SYSTEMD={switch[flags['systemd']]}",
        f"BUILD_TLS={switch[flags['tls']]}",
        *PROGRAMS[flags["flavor"]],
    ]
    answer = __salt__["redis_sandbox.run"](argv, account, work, _TIMEOUT)
    if answer["retcode"] != 0:
        raise CommandExecutionError(
            f"{FLAVORS[flags['flavor']]} {flags['version']} does not compile. The compiler's last lines:\n"
            + _compiler_words(answer["stdout"], answer["stderr"])
        )


def _compiler_words(stdout: str, stderr: str) -> str:
    """What went wrong and how it ended: with several compilers at work, the first error is not among the last lines."""
    lines = [line for line in (stderr or stdout).splitlines() if line.strip()]
    errors = [at for at, line in enumerate(lines) if re.search(r"\berror\b", line, re.IGNORECASE)]
    end = max(len(lines) - _LAST_LINES // 2, 0)
    if not errors or errors[0] - 1 >= end:
        return "\n".join(lines[end:])
    first, after = max(errors[0] - 1, 0), errors[0] + 10
    return "\n".join([*lines[first:after], *(["..."] if after < end else []), *lines[max(end, after) :]])


def _install(source: str, staged: str, flavor: str) -> dict[str, dict[str, Any]]:
    """
    Copy the programs as root. No process of the unprivileged user is left by now, and what he made is trusted for its
    contents alone: regular files, found without following a link.
    """
    if os.path.realpath(source) != os.path.abspath(source):
        raise CommandExecutionError(f"The build made a link of {source}, so nothing of it is installed")
    return _lay_out(staged, flavor, lambda program, target: _copy_program(os.path.join(source, program), target))


def _lay_out(staged: str, flavor: str, copy: Callable[[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A build's folder as it will be, but for the record; returns size and digest of each program."""
    for folder in (staged, os.path.join(staged, "bin")):
        os.mkdir(folder)
        os.chmod(folder, 0o755)  # whatever the umask says
    programs: dict[str, dict[str, Any]] = {}
    twins: dict[str, str] = {}
    for program in PROGRAMS[flavor]:
        target = os.path.join(staged, "bin", program)
        facts = copy(program, target)
        twin = twins.setdefault(facts["sha256"], target)
        if twin != target:  # redis-sentinel and redis-check-* are redis-server under other names
            os.unlink(target)
            os.link(twin, target)
        programs[program] = facts
    for other in FLAVORS.keys() - {flavor}:
        # An instance that goes back from another flavor is started by the name of that one.
        os.symlink(f"{flavor}-server", os.path.join(staged, "bin", f"{other}-server"))
    __salt__["whole_files.sync_folder"](os.path.join(staged, "bin"))
    __salt__["whole_files.sync_folder"](staged)
    return programs


def _copy_program(source: str, target: str) -> dict[str, Any]:
    name = os.path.basename(source)
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        what = "is a link" if err.errno == errno.ELOOP else f"cannot be read ({err.strerror})"
        raise CommandExecutionError(f"What the build left as {name} {what}, so nothing of it is installed") from err
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CommandExecutionError(f"What the build left as {name} is no regular file, so nothing of it is installed")
    with open(handle, "rb") as stream:
        return _copy_stream(stream, target)


def _copy_stream(stream: Any, target: str) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with open(target, "xb") as copy:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
            copy.write(block)
        copy.flush()
        os.fchmod(copy.fileno(), 0o755)
        os.fsync(copy.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _try_build(folder: str, flags: dict[str, Any], account: dict[str, Any]) -> dict[str, Any]:
    """Start a build once and compare what it says of itself with what was asked for; returns what it said."""
    flavor = flags["flavor"]
    server, title = os.path.join(folder, "bin", f"{flavor}-server"), FLAVORS[flavor]
    with __salt__["redis_sandbox.folder"]("redis-build", account) as scratch:
        try:
            info = __salt__["redis_sandbox.boot"](server, account, scratch, _build_info, notify=flags["systemd"])
            info["rdb_version"] = _rdb_version(os.path.join(scratch, "dump.rdb"))
        except CommandExecutionError as err:
            raise CommandExecutionError(f"The {title} that was built does not start: {err}") from None
    found = {
        # Valkey says for its redis_version which Redis it is compatible with.
        "flavor": "valkey" if "valkey_version" in info else "redis",
        "version": str(info.get(f"{flavor}_version", "")),  # the client makes a number of 7.2
        "malloc": info.get("mem_allocator", "").split("-")[0],
        "tls": _needs_library(server, "libssl.so"),  # since 7.2 a server without TLS knows tls-port too
        "systemd": flags["systemd"],  # it told so, or did not start
    }
    wrong = [f"its {key} is {found[key]!r}, wanted is {flags[key]!r}" for key in found if found[key] != flags[key]]
    if wrong:
        raise CommandExecutionError(f"The {title} that was built is another one than wanted: {'; '.join(wrong)}")
    return info


def _build_info(client: Any) -> dict[str, Any]:
    client.save()
    return client.info("server") | client.info("memory")


def _rdb_version(path: str) -> int:
    """
    The version of a snapshot: nine bytes like ``REDIS0011``, from Valkey 9 on ``VALKEY080`` (src/rdb.c, rdbSaveRio).
    The folder is not root's, so no link is followed and no pipe waited for.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        found = re.fullmatch(rb"(?:REDIS(\d{4})|VALKEY(\d{3}))", stream.read(9))
    if not found:
        raise CommandExecutionError("it writes snapshots that do not begin like those of Redis")
    return int(found[1] or found[2])


def _needs_library(program: str, name: str) -> bool:
    """Does a program name this shared library among those that it needs (its string table is in the file as it is)?"""
    with open(program, "rb") as stream:
        return name.encode() in stream.read()


def _symlink(target: str, path: str) -> None:
    """A link in one rename, so that no moment is without one."""
    folder, base = os.path.split(path)
    draft = os.path.join(folder, f".{base}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    os.symlink(target, draft)
    os.replace(draft, path)
    __salt__["whole_files.sync_folder"](folder)


_OTHERS = "a file of others"
_BY_HAND = "installed by hand"


def _links(bin_dir: str, prefix: str, flavor: str) -> dict[str, str]:
    """Under its own name, and under that of Redis."""
    _known(flavor)
    targets = {tool: os.path.join(prefix, _CURRENT, "bin", f"{flavor}-{tool}") for tool in _TOOLS}
    return {os.path.join(bin_dir, f"{name}-{tool}"): targets[tool] for name in {flavor, "redis"} for tool in _TOOLS}


def _link_found(path: str, prefix: str) -> str:
    try:
        target = os.readlink(path)
    except FileNotFoundError:
        return ""
    except OSError:
        return _BY_HAND if _is_program(path) else _OTHERS
    if target.startswith(prefix.rstrip("/") + "/"):
        return target
    beside = os.path.join(os.path.dirname(path), target)
    return (
        _BY_HAND
        if "/" not in target and target in _NAMES and (_is_program(beside) or os.path.islink(beside))
        else _OTHERS
    )


def _is_program(path: str) -> bool:
    """An ELF file; a script that somebody wrote around Redis is something else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as stream:
            return stream.read(4) == b"\x7fELF"
    except OSError:
        return False


# Accounts, commands and files


def _account(user: str) -> dict[str, Any]:
    account = __salt__["redis_sandbox.account"](user)
    if account["uid"] == 0:
        raise SaltInvocationError("Redis is not compiled as root: name an unprivileged user")
    return account


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One call at a time; the kernel lets go of the lock when its holder dies, whatever killed it."""
    with _failing(f"Cannot lock the builds in {_LOCK_DIR}"):
        os.makedirs(_LOCK_DIR, mode=0o755, exist_ok=True)
    with salt.utils.files.flopen(os.path.join(_LOCK_DIR, "redis-build.lock"), "w"):
        yield


def _tool(name: str, package: str) -> str:
    found = salt.utils.path.which(name)
    if not found:
        raise CommandExecutionError(f"{name} is not on this host: install the package {package} first")
    return found


def _last_lines(text: str, count: int) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


@contextlib.contextmanager
def _failing(sentence: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise CommandExecutionError(f"{sentence}: {err}") from err
