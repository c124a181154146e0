"""
Builds of Redis as the pillar wants them: compiled from a verified tarball, one of them current, linked or gone.

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


def present(
    name: str,
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
    pack_name: str = "",
) -> dict[str, Any]:
    """
    A release of Redis is compiled, or taken from a host that compiled it, and was started once to see that it is what
    was asked for. Which build is the current one stays as it is.

    name
        The release, such as ``8.0.6``.
    source
        Where the tarball is: ``https://``, ``http://``, ``salt://``, ``file://`` or an absolute path. One on this host
        is looked at under ``test=True`` too.
    source_hash
        The tarball's digest, ``sha256=HEX``; verified before it is unpacked.
    prefix
        Folder that holds the builds.
    user
        Unprivileged user who compiles.
    jobs
        Compilers at a time.
    malloc
        ``jemalloc`` or ``libc``.
    tls, systemd
        What is compiled in (bool); a ``Type=notify`` unit needs ``systemd``.
    flavor
        ``redis`` (default) or ``valkey``.
    pack, pack_hash
        Where the finished build is that another host made, and its digest; empty (default): compile.
    pack_name
        What such a build would be called, to say so where there is none.

    Example:

    .. code-block:: yaml

        Redis 8.0.6 is built:
          redis_build.present:
            - name: 8.0.6
            - source: salt://files/redis-8.0.6.tar.gz
            - source_hash: sha256=6d0a9913887a4972536f9da226f1575859c34d86354129163260a5f9c6bd4229
    """
    ret = _ret(name)
    name = str(name)
    what = {"prefix": prefix, "malloc": malloc, "tls": tls, "systemd": systemd, "flavor": flavor}
    try:
        facts = __salt__["redis_build.facts"](name, source_hash, **what)
        ret["changes"] = _present_changes(facts)
        if not ret["changes"]:
            return _same(ret, f"{facts['build']} is there")
        if __opts__["test"]:
            file = (pack, pack_hash) if pack else (source, source_hash)
            found = "" if facts["present"] else __salt__["redis_build.source_check"](*file)
            return _would(ret, "; ".join(filter(None, [_present_plan(facts, pack), found])))
        given = {"user": user, "jobs": jobs, "pack": pack, "pack_hash": pack_hash}
        record = __salt__["redis_build.make"](name, source, source_hash, **given, **what)
        left = _present_changes(__salt__["redis_build.facts"](name, source_hash, **what))
        if left:
            return _failed(ret, f"{facts['build']} was built, and is still not in place: {', '.join(sorted(left))}")
        return _changed(ret, _present_sentence(facts, record, pack, pack_name))
    except _ERRORS as err:
        return _failed(ret, str(err))


def current(
    name: str,
    source_hash: str,
    prefix: str = "/opt/redis",
    user: str = "redis-build",
    malloc: str = "jemalloc",
    tls: bool = False,
    systemd: bool = True,
    flavor: str = "redis",
) -> dict[str, Any]:
    """
    A build that is there is the current one: what the links in the search path lead to. It is started once before.

    The way back to an earlier release takes no compiler.

    name, source_hash, prefix, user, malloc, tls, systemd, flavor
        See :func:`present`.

    Example:

    .. code-block:: yaml

        Redis 8.0.6 is the current build:
          redis_build.current:
            - name: 8.0.6
            - source_hash: sha256=6d0a9913887a4972536f9da226f1575859c34d86354129163260a5f9c6bd4229
            - require:
              - redis_build: Redis 8.0.6 is built
    """
    ret = _ret(name)
    what = {"prefix": prefix, "malloc": malloc, "tls": tls, "systemd": systemd, "flavor": flavor}
    try:
        facts = __salt__["redis_build.facts"](str(name), source_hash, **what)
        build = facts["build"]
        # What has the name of a build and is none is made anew by then.
        if facts["current"] == build and (facts["present"] or __opts__["test"]):
            return _same(ret, f"{build} is the current build")
        ret["changes"] = {"current": {"old": facts["current"], "new": build}}
        if __opts__["test"]:
            return _would(ret, f"{build} would be the current build")
        __salt__["redis_build.use"](build, prefix, user)
        after = __salt__["redis_build.facts"](str(name), source_hash, **what)
        if after["current"] != build:
            return _failed(ret, f"{after['current'] or 'none'} is the current build, and not {build}")
        return _changed(ret, f"{build} is the current build now{_after(facts['current'])}")
    except _ERRORS as err:
        return _failed(ret, str(err))


def absent(name: str) -> dict[str, Any]:
    """
    A prefix holds no build of Redis, and is gone unless it holds files of others.

    name
        Path of the prefix.

    Example:

    .. code-block:: yaml

        Redis' builds are gone:
          redis_build.absent:
            - name: /opt/redis
    """
    ret = _ret(name)
    try:
        facts = __salt__["redis_build.prefix_facts"](name)
        if not facts["there"]:
            return _same(ret, f"{name} is not there")
        if facts["others"] and not facts["ours"]:
            return _same(ret, f"{name} stays, it holds {', '.join(facts['others'])}")
        ret["changes"] = {"removed": facts["ours"] or name}
        if __opts__["test"]:
            return _would(ret, f"{', '.join(facts['ours']) or name} would be removed")
        __salt__["redis_build.remove"](name)
        after = __salt__["redis_build.prefix_facts"](name)
        if after["ours"] or (after["there"] and not after["others"]):
            return _failed(ret, f"{name} still holds {', '.join(after['ours']) or 'nothing, but is there'}")
        stays = f"; {name} stays, it holds {', '.join(after['others'])}" if after["there"] else ""
        return _changed(ret, f"Redis' builds were removed{stays}")
    except _ERRORS as err:
        return _failed(ret, str(err))


def kept(
    name: str,
    keep: int,
    version: str,
    source_hash: str,
    malloc: str = "jemalloc",
    tls: bool = False,
    systemd: bool = True,
    flavor: str = "redis",
) -> dict[str, Any]:
    """
    A prefix holds the wished build, the newest others for the way back, and what is in use; older builds are gone.

    name
        Path of the prefix.
    keep
        How many builds stay beside the wished one.
    version, source_hash, malloc, tls, systemd, flavor
        The wished build; see :func:`present`. ``version`` is its release.

    Example:

    .. code-block:: yaml

        Older builds of Redis are gone from /opt/redis:
          redis_build.kept:
            - name: /opt/redis
            - keep: 2
            - version: 8.0.6
            - source_hash: sha256=6d0a9913887a4972536f9da226f1575859c34d86354129163260a5f9c6bd4229
    """
    ret = _ret(name)
    wish = {"prefix": name, "malloc": malloc, "tls": tls, "systemd": systemd, "flavor": flavor}
    try:
        found = __salt__["redis_build.spare"](keep, str(version), source_hash, ahead=__opts__["test"], **wish)
        if not found:
            return _same(ret, f"{name} holds no build that is in the way")
        ret["changes"] = {"removed": found}
        if __opts__["test"]:
            return _would(ret, f"{', '.join(found)} would be removed")
        for build in found:
            __salt__["redis_build.discard"](build, name)
        left = __salt__["redis_build.spare"](keep, str(version), source_hash, **wish)
        if left:
            return _failed(ret, f"{', '.join(left)} are still there")
        return _changed(ret, f"{', '.join(found)} were removed")
    except _ERRORS as err:
        return _failed(ret, str(err))


def linked(name: str, prefix: str = "/opt/redis", flavor: str = "redis") -> dict[str, Any]:
    """
    Redis' programs lie in a folder of the search path, as links to the current build.

    name
        Path of the folder.
    prefix
        Folder that holds the builds.
    flavor
        ``redis`` (default) or ``valkey``, whose programs are there under the names of Redis too.

    Example:

    .. code-block:: yaml

        The programs of Redis are in /usr/local/bin:
          redis_build.linked:
            - name: /usr/local/bin
    """
    ret = _ret(name)
    try:
        ret["changes"] = __salt__["redis_build.links"](name, prefix, flavor)
        if not ret["changes"]:
            return _same(ret, f"{name} has the links to the current build of Redis")
        if __opts__["test"]:
            return _would(ret, f"{', '.join(ret['changes'])} would be linked or unlinked")
        __salt__["redis_build.link"](name, prefix, flavor)
        left = __salt__["redis_build.links"](name, prefix, flavor)
        if left:
            return _failed(ret, f"{', '.join(left)} still differ")
        return _changed(ret, f"{', '.join(ret['changes'])} were linked or unlinked")
    except _ERRORS as err:
        return _failed(ret, str(err))


def unlinked(name: str, prefix: str = "/opt/redis") -> dict[str, Any]:
    """
    A folder has no links to Redis' programs in a prefix; links and files of others stay.

    name
        Path of the folder.
    prefix
        Folder that holds the builds.

    Example:

    .. code-block:: yaml

        The programs of Redis are gone from /usr/local/bin:
          redis_build.unlinked:
            - name: /usr/local/bin
    """
    ret = _ret(name)
    try:
        found = __salt__["redis_build.linked"](name, prefix)
        if not found:
            return _same(ret, f"{name} has no link into {prefix}")
        ret["changes"] = {"removed": found}
        if __opts__["test"]:
            return _would(ret, f"{', '.join(found)} would be removed")
        __salt__["redis_build.unlink"](name, prefix)
        left = __salt__["redis_build.linked"](name, prefix)
        if left:
            return _failed(ret, f"{', '.join(left)} are still there")
        return _changed(ret, f"{', '.join(found)} were removed")
    except _ERRORS as err:
        return _failed(ret, str(err))


# --- below: comparing and saying -------------------------------------------------------------------------------------


def _present_changes(facts: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if not facts["present"]:
        changes["built"] = facts["build"]
    if facts["leftovers"]:
        changes["removed"] = facts["leftovers"]
    return changes


def _present_plan(facts: dict[str, Any], pack: str) -> str:
    plan = []
    if not facts["present"]:
        plan.append(f"{facts['build']} would be {f'taken from {pack}' if pack else 'compiled'}")
    if facts["leftovers"]:
        plan.append(f"{', '.join(facts['leftovers'])}, left behind by a run that was cut off, would be removed")
    return "; ".join(plan)


def _present_sentence(facts: dict[str, Any], record: dict[str, Any], pack: str, pack_name: str) -> str:
    said = []
    if record["compiled"]:
        said.append(f"{record['build']} was compiled in {record['seconds']:.0f} s")
        if pack_name:
            said.append(f"redis_sidekiq:redis:build:packs has no {pack_name}, which could have been taken")
    if record["taken"]:
        said.append(f"{record['build']} was taken from {pack} in {record['seconds']:.0f} s")
    if facts["leftovers"]:
        said.append("what a run that was cut off left behind was removed")
    return "; ".join(said) or f"Another run built {record['build']}"


def _after(old: str) -> str:
    return f", after {old}" if old else ""


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
