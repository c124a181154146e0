"""
Programs that nobody vouches for yet, run as an unprivileged user without network, for as long as their caller lives.

A tarball is unpacked and compiled here, and a server is started here to be asked what it is and what it makes of a
config. It lies beside ``redis_build`` and ``redis_server``, which both need it, and knows nothing of either.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    __salt__: dict[str, Any] = {}

_FOLDER = "/run/redis_sidekiq"
_BOOT = 30.0  # s for a server without data to answer; 0.05 s is usual, more on a host that is busy
_REDIS_TIMEOUT = 10.0  # s for each answer from Redis: it is late on a host whose cores all compile
_LAST_LINES = 30


def account(user: str, group: str = "") -> dict[str, Any]:
    """
    A user by numbers.

    user
        Name of a user of this host.
    group
        Name of a group; the user's own when empty (default).

    Returns ``user``, ``uid``, ``gid``. Raises CommandExecutionError when there is none.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_sandbox.account redis-build
    """
    try:
        found = pwd.getpwnam(user)
        gid = grp.getgrnam(group).gr_gid if group else found.pw_gid
    except KeyError:
        missing = f"group {group}" if group and _exists(user) else f"user {user}"
        raise CommandExecutionError(f"There is no {missing}: apply redis_sidekiq.redis, which makes it") from None
    return {"user": user, "uid": found.pw_uid, "gid": gid}


def run(argv: list[str], account: dict[str, Any], folder: str, timeout: float) -> dict[str, Any]:
    """
    Run a command to its end.

    argv
        Its words.
    account
        Who runs it; see :func:`account`.
    folder
        Where it works, and its home.
    timeout
        How long it may take, s.

    Returns what ``cmd.run_all`` returns. Raises CommandExecutionError on a host that makes no namespaces.

    CLI Example:

    .. code-block:: python

        __salt__["redis_sandbox.run"](["/usr/bin/id"], __salt__["redis_sandbox.account"]("nobody"), "/tmp", 10)
    """
    answer = __salt__["cmd.run_all"](
        _argv(account, argv),
        python_shell=False,
        cwd=folder,
        env=_environment(folder),
        clean_env=True,
        ignore_retcode=True,
        timeout=timeout,
    )
    if "unshare failed" in answer.get("stderr", ""):
        raise CommandExecutionError(
            f"This host does not let root make namespaces, in which Redis is built and tried ({answer['stderr']}): "
            "a container needs the capability SYS_ADMIN for it"
        )
    return answer


@contextlib.contextmanager
def folder(name: str, account: dict[str, Any]) -> Iterator[str]:
    """
    A private folder of an unprivileged user, with a path short enough for sockets; the caller holds its lock.

    name
        What tells it from others.
    account
        Whose it is; see :func:`account`.

    Returns a context manager that gives its path, and removes it at the end.

    CLI Example:

    .. code-block:: python

        with __salt__["redis_sandbox.folder"]("x", __salt__["redis_sandbox.account"]("nobody")) as path:
            os.listdir(path)
    """
    path = os.path.join(_FOLDER, f"scratch-{name}")
    try:
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(_FOLDER, mode=0o755, exist_ok=True)
        os.mkdir(path, 0o700)
        os.chown(path, account["uid"], account["gid"])
        yield path
    except OSError as err:
        raise CommandExecutionError(f"Cannot work in {path}: {err}") from err
    finally:
        shutil.rmtree(path, ignore_errors=True)


def boot(
    binary: str,
    account: dict[str, Any],
    folder: str,
    ask: Callable[[Any], dict[str, Any]],
    config: str = "",
    password: str = "",
    notify: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """
    Start a server on a socket in a private folder, without network and data, and ask it. For the formula's modules.

    binary
        Path of redis-server.
    account
        Who runs it; see :func:`account`.
    folder
        Where it works; see :func:`folder`.
    ask
        Function that is given a ``redis.Redis``.
    config
        Path of a redis.conf; none when empty (default).
    password
        That of the config.
    notify
        It must tell systemd, played by a socket of ours, that it is ready (bool, default False).

    Returns what ``ask`` returns. Raises CommandExecutionError with Redis' last lines, SaltInvocationError over Salt's
    bus and on a command line. The one process here that cmd.run_all cannot run: it has to be talked to while
    it runs.

    CLI Example:

    .. code-block:: python

        with __salt__["redis_sandbox.folder"]("x", account) as folder:
            __salt__["redis_sandbox.boot"]("/opt/redis/current/bin/redis-server", account, folder, redis.Redis.info)
    """
    if kwargs:
        raise SaltInvocationError("A server that is started to be asked is for modules")
    words = ["--port", "0", "--bind", "*", "--unixsocket", "s", "--unixsocketperm", "700", "--dir", folder]
    words += ["--appendonly", "no", "--daemonize", "no", "--logfile", "", "--pidfile", ""]
    words += ["--supervised", "systemd" if notify else "no"]
    argv = _argv(account, [binary, *([config] if config else []), *words])
    ready = os.path.join(folder, "n")
    env = {**_environment(folder), **({"NOTIFY_SOCKET": ready} if notify else {})}
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as systemd,
        tempfile.TemporaryFile() as output,
    ):
        systemd.bind(ready)
        os.chown(ready, account["uid"], account["gid"])
        systemd.settimeout(_REDIS_TIMEOUT)
        process = subprocess.Popen(
            argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            answer = _answer(process, os.path.join(folder, "s"), password, ask)
            if notify and not _told_ready(systemd):
                raise CommandExecutionError("compiled with USE_SYSTEMD=yes, it does not tell systemd when it is ready:")
            return answer
        except CommandExecutionError as err:
            output.seek(0)
            lines = [line for line in output.read().decode("utf-8", "replace").splitlines() if line.strip()]
            raise CommandExecutionError("\n".join([str(err), *lines[-_LAST_LINES:]])) from None
        finally:
            process.kill()
            process.wait()


# --- below: how it is done -------------------------------------------------------------------------------------------


def _exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


def _argv(account: dict[str, Any], argv: list[str]) -> list[str]:
    """
    The words that run a command as an unprivileged user, with no network and no privilege to gain. When this process
    dies, killed or not, the kernel kills the first of them, that one's child, and with it everything in the PID
    namespace: no compiler is left that would write into the next run's files. The wish to die with one's parent is lost
    with a change of user (PR_SET_PDEATHSIG(2const)), ``--kill-child`` of unshare included, so it is made once more.
    """
    setpriv, unshare = _tool("setpriv"), _tool("unshare")
    return [
        *(setpriv, "--pdeathsig", "KILL", "--"),
        *(unshare, "--pid", "--net", "--ipc", "--fork", "--kill-child", "--"),
        *(setpriv, f"--reuid={account['uid']}", f"--regid={account['gid']}", "--clear-groups"),
        *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig", "KILL", "--"),
        *argv,
    ]


def _tool(name: str) -> str:
    found = salt.utils.path.which(name)
    if not found:
        raise CommandExecutionError(f"{name} is not on this host: install the package util-linux first")
    return found


def _environment(folder: str) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LC_ALL": "C", "LANGUAGE": "C"}


def _redis_package() -> Any:
    try:
        import redis  # late: it costs 0.04 s, and it may have been installed by this very run
    except ImportError:
        raise CommandExecutionError("Salt's Python has no package redis: apply redis_sidekiq.packages first") from None
    return redis


def _client(path: str, password: str) -> Any:
    redis = _redis_package()
    return redis.Redis(
        unix_socket_path=path,
        password=password or None,
        decode_responses=True,
        encoding_errors="replace",
        socket_timeout=_REDIS_TIMEOUT,
        # The client's own way is to try again for seconds; here the caller knows what to wait for.
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    )


def _answer(
    process: subprocess.Popen, path: str, password: str, ask: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
    redis = _redis_package()
    until = time.monotonic() + _BOOT
    while not os.path.exists(path):
        if process.poll() is not None:
            raise CommandExecutionError(f"it ended with exit status {process.returncode}:")
        if time.monotonic() > until:
            raise CommandExecutionError(f"it did not listen within {_BOOT:g} s:")
        time.sleep(0.01)
    client = _client(path, password)
    try:
        _await_listening(client, process, until)
        return ask(client)
    except redis.RedisError as err:
        # Some errors, like a module that is missing, come when it listens already.
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise CommandExecutionError(f"it ended with exit status {process.wait(1)}:") from None
        raise CommandExecutionError(f"it does not answer: {type(err).__name__}:") from err
    finally:
        client.close()


def _await_listening(client: Any, process: subprocess.Popen, until: float) -> None:
    """The socket's path is there from bind(2) on, but until listen(2) it refuses who comes."""
    redis = _redis_package()
    while True:
        try:
            client.ping()
            return
        except redis.AuthenticationError:
            raise
        except redis.ConnectionError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _told_ready(systemd: socket.socket) -> bool:
    try:
        while b"READY=1" not in systemd.recv(4096).splitlines():
            pass
    except TimeoutError:
        return False
    return True
