"""
Files of root's that are whole or not there, whatever cuts their writing off: what ``sidekiq`` and ``sidekiq_sudo`` write.
"""

from __future__ import annotations

import contextlib
import os

from salt.exceptions import CommandExecutionError


def write(name: str, text: str, mode: int) -> None:
    """
    Write a file of root's, whole or not at all: beside its place, and on the disk before it takes the place. The name in
    between has a dot, so that sudo would skip it; a draft that a dead run left behind is replaced by the next.

    name
        Path of the file; its folder is there.
    text
        All of it. On a command line others could read it, so what is secret is written by modules alone.
    mode
        Its permissions (int), such as ``0o600``.

    Raises CommandExecutionError when it cannot be written; what was there stays then.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_files.write /etc/sidekiq/note.txt 'no secret' 420
    """
    folder, base = os.path.split(name)
    draft = os.path.join(folder, f".{base}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fchown(handle, 0, 0)
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(draft, name)
        _sync_folder(folder)
    except OSError as err:
        raise CommandExecutionError(f"Cannot write {name}: {err.strerror}") from err


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
