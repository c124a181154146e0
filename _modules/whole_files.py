"""
The formula's own files on a host: whole or as they were, whatever cuts their writing off, and known by their head.
"""

from __future__ import annotations

import contextlib
import os

from salt.exceptions import CommandExecutionError

_MARK = "Managed by Salt (formula redis_sidekiq)"


def write(name: str, text: str, mode: int, gid: int = 0, makedirs: bool = False) -> None:
    """
    Write a file of root's, whole or not at all: beside its place, and on the disk before it takes the place. The name in
    between has a dot, so that sudo would skip it; a draft that a dead run left behind is replaced by the next.

    name
        Path of the file.
    text
        All of it. On a command line others could read it, so what is secret is written by modules alone.
    mode
        Its permissions (int), such as ``0o600``.
    gid
        Number of its group (int, default 0, root's); nobody but root reads the file before it has it.
    makedirs
        Make its folder (bool, default False: it is there), mode 0755.

    Raises CommandExecutionError when it cannot be written; what was there stays then.

    CLI Example:

    .. code-block:: bash

        salt '*' whole_files.write /etc/sidekiq/note.txt 'no secret' 420
    """
    _place(name, text.encode(), mode, 0, gid, 0o755 if makedirs else 0)


def copy(source: str, target: str, mode: int | None = None) -> None:
    """
    Copy a file, as whole as :func:`write` writes one.

    source
        Path of the file.
    target
        Path of the copy; its folder is made if it is not there, for root alone.
    mode
        Permissions of the copy (int), which then is root's; default: owner, group and permissions of the file.

    Raises CommandExecutionError when it cannot be read or written; what was there stays then.

    CLI Example:

    .. code-block:: bash

        salt '*' whole_files.copy /etc/redis/6379.conf /root/6379.conf
    """
    try:
        with open(source, "rb") as stream:
            info, content = os.fstat(stream.fileno()), stream.read()
    except OSError as err:
        raise CommandExecutionError(f"Cannot read {source}: {err.strerror}") from err
    owner = (info.st_mode & 0o777, info.st_uid, info.st_gid) if mode is None else (mode, 0, 0)
    _place(target, content, *owner, 0o700)


def sync_folder(folder: str) -> None:
    """
    Bring the names in a folder to the disk: a rename is not there after a power cut before that (fsync(2)).

    folder
        Its path.

    CLI Example:

    .. code-block:: bash

        salt '*' whole_files.sync_folder /etc/redis
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_ours(path: str) -> bool:
    """
    Whether this formula made a file: whether a comment in its first two lines says so.

    path
        Its path. A link (a unit that is masked, one of a package) and what is no regular file are not ours.

    CLI Example:

    .. code-block:: bash

        salt '*' whole_files.is_ours /etc/redis/6379.conf
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, encoding="utf-8", errors="replace") as stream:
            head = [stream.readline(500) for _ in range(2)]
    except OSError:
        return False
    return any(line.startswith("#") and _MARK in line for line in head)


def _place(name: str, content: bytes, mode: int, uid: int, gid: int, folder_mode: int) -> None:
    folder, base = os.path.split(name)
    draft = os.path.join(folder, f".{base}.new")
    try:
        if folder_mode:
            os.makedirs(folder, mode=folder_mode, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchown(handle, uid, gid)
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(draft, name)
        sync_folder(folder)
    except OSError as err:
        with contextlib.suppress(OSError):
            os.unlink(draft)  # on a full disk it would hold what little there is
        raise CommandExecutionError(f"Cannot write {name}: {err.strerror}") from err
