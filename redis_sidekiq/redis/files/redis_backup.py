#!/usr/bin/python3
# Managed by Salt (formula redis_sidekiq): changes made here are undone by the next run.
"""
Backups of one instance of Redis, and the files of a restore, with Python's standard library alone.

A timer runs it, so it needs neither Salt nor its master, and no password is given to it: that is in redis.conf, which
root reads. What is said on standard output is one line of JSON, what went wrong is a sentence on standard error.

The folder of the backups is root's. Files of Redis' user are only touched as that user, since he could put a link where
a file is expected; and a snapshot is only looked into (``redis-check-rdb``) as that user, since its content is his.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import grp
import json
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
import time

LOCKS = "/run/redis_sidekiq"  # the same that Salt's modules hold
NAME = re.compile(r"dump-\d{8}T\d{6}Z\.rdb")
DRAFT = re.compile(r"\.dump-\d{8}T\d{6}Z\.rdb\.new")
UNREAD = ".snapshot-nobody-asked-for"
STAGED = ".restore.rdb"
ASIDE_DRAFT = re.compile(r"\.before-restore-\d{8}T\d{6}Z\.new")
BUSY = 3600.0  # s to wait for a load, a snapshot or a rewrite under way
ANSWER = 60.0  # s for each answer
RESERVE = 16 * 1024**2  # bytes that stay free
UNDERWAY = ("loading", "rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled")


class Failed(Exception):
    """A sentence that says what to do."""


# Redis ---------------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """Redis' own words."""


class Connection:
    """A connection to a server (https://redis.io/docs/latest/develop/reference/protocol-spec/), RESP 2."""

    def __init__(self, config: dict[str, str]):
        host, port, password = reachable(config["bind"]), config["port"], config["requirepass"]
        path = config["unixsocket"] if port == "0" else ""
        try:
            if path:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.settimeout(ANSWER)
                self.socket.connect(path)
            else:
                self.socket = socket.create_connection((host, int(port)), timeout=ANSWER)
        except OSError as err:
            raise Failed(f"No Redis answers at {path or f'{host} port {port}'}: {err.strerror or err}") from err
        self.stream = self.socket.makefile("rb")
        try:
            if password:
                self.ask("AUTH", password)
            self.ask("PING")
        except Refused as err:
            if not str(err).startswith(("NOAUTH", "WRONGPASS", "NOPERM", "ERR invalid password", "ERR AUTH")):
                return  # it is loading
            raise Failed(
                f"Redis at {path or f'port {port}'} does not let in who knows the password of its redis.conf: apply "
                "redis_sidekiq.redis"
            ) from None

    def ask(self, *words: str):
        data = b"*%d\r\n" % len(words)
        for word in words:
            raw = word.encode()
            data += b"$%d\r\n%s\r\n" % (len(raw), raw)
        try:
            self.socket.sendall(data)
            return self._answer()
        except OSError as err:
            raise Failed(f"Redis answered no more: {err}") from err

    def _answer(self):
        line = self.stream.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise Refused(rest.decode("utf-8", "replace"))
        if kind == b"$":
            return self.stream.read(int(rest) + 2)[:-2].decode("utf-8", "replace") if int(rest) >= 0 else None
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        if kind in (b"+", b":"):
            return rest.decode()
        raise Failed("Redis answered no more: it hung up")

    def info(self, section: str) -> dict[str, str]:
        return dict(line.split(":", 1) for line in self.ask("INFO", section).split("\r\n") if ":" in line)

    def setting(self, name: str) -> str:
        found = self.ask("CONFIG", "GET", name)
        return found[1] if found else ""

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


def read_config(path: str) -> dict[str, str]:
    """The directives of a redis.conf that matter here; of several lines the last counts."""
    wanted = {"port": "6379", "bind": "127.0.0.1", "dir": "", "dbfilename": "dump.rdb", "requirepass": ""}
    wanted["unixsocket"] = ""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            for line in stream:
                words = line.split(None, 1)
                if len(words) == 2 and words[0].lower() in wanted:
                    wanted[words[0].lower()] = unquoted(words[1].strip()) if words[0].lower() != "bind" else words[1]
    except OSError as err:
        raise Failed(f"Cannot read {path}: {err.strerror}; apply redis_sidekiq.redis") from err
    if not wanted["dir"].startswith("/"):
        raise Failed(f"{path} does not say where the data lie (dir): apply redis_sidekiq.redis")
    return wanted


def unquoted(text: str) -> str:
    """The first word as Redis reads it (src/sds.c, sdssplitargs)."""
    match = re.match(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|(\S+)", text)
    if not match:
        return ""
    if match[1] is None:
        return match[3] if match[2] is None else match[2].replace("\\'", "'")
    known = {"n": b"\n", "r": b"\r", "t": b"\t", "b": b"\b", "a": b"\a"}
    data = re.sub(
        rb"\\(?:x([0-9a-fA-F]{2})|(.))",
        lambda found: bytes([int(found[1], 16)]) if found[1] else known.get(found[2].decode("latin-1"), found[2]),
        match[1].encode("utf-8", "surrogateescape"),
    )
    return data.decode("utf-8", "surrogateescape")


def reachable(bind: str) -> str:
    """How this host reaches an instance: loopback where it listens there, else the first address that it must have."""
    reach = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::*": "::1", "::": "::1"}
    words = sorted(bind.replace('"', " ").split() or ["*"], key=lambda word: word.startswith("-"))
    addresses = [reach.get(word.lstrip("-"), word.lstrip("-")) for word in words]
    return next((word for word in addresses if word.startswith("127.") or word == "::1"), addresses[0])


# Making a backup -----------------------------------------------------------------------------------------------------


def backup(args: argparse.Namespace) -> dict:
    """Snapshot, copy, check, and only then take away what is older than the newest ones."""
    begun = time.monotonic()
    config, group = read_config(args.config), grp.getgrnam(args.group).gr_gid
    # Where the plain port is closed (0), the file's name has that of the instance.
    unit = f"redis_{config['port'] if config['port'] != '0' else os.path.splitext(os.path.basename(args.config))[0]}"
    with lock(f"{unit}_backup"):
        look_at_folder(args.dir)
        removed = remove_drafts(args.dir)
        source = snapshot(unit, config, args.dir)
        with open(source, "rb") as stream:
            name = free_name(args.dir)
            draft = os.path.join(args.dir, f".{name}.new")
            try:
                size, keys = copy_checked(stream, draft, args, group)
                os.rename(draft, os.path.join(args.dir, name))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise
        sync(args.dir)
        removed += remove_old(args.dir, args.keep, name)
    seconds = round(time.monotonic() - begun, 2)
    return {"path": os.path.join(args.dir, name), "bytes": size, "keys": keys, "seconds": seconds, "removed": removed}


def look_at_folder(folder: str) -> None:
    try:
        found = os.lstat(folder)
    except OSError as err:
        raise Failed(
            f"There is no folder {folder} for the backups ({err.strerror}): set redis_sidekiq:redis:backup:enabled and "
            "apply redis_sidekiq.redis, or make it by hand, with mode 0700"
        ) from err
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise Failed(f"{folder} is not a folder that root alone can enter (mode 0700)")


def remove_drafts(folder: str) -> list[str]:
    """What a run that was cut off left; the lock says that no other is at work."""
    found = sorted(filter(DRAFT.fullmatch, os.listdir(folder)))
    for name in found:
        os.unlink(os.path.join(folder, name))
    return found


def snapshot(unit: str, config: dict[str, str], folder: str) -> int:
    """
    Let the server write a snapshot; returns its open file, which stays what it is whatever becomes of its name.

    A server that neither appends nor saves starts empty, and a snapshot that we asked for would be what it starts with
    from now on. So there it goes again, and a note outlives the run that is cut off between the two.
    """
    note, path = os.path.join(folder, UNREAD), os.path.join(config["dir"], config["dbfilename"])
    with lock(unit):
        client = Connection(config)
        try:
            await_idle(client, unit)
            same_place(client, config)
            unwanted = client.setting("appendonly") == "no" and not client.setting("save")
            unwanted = unwanted and (os.path.exists(note) or not os.path.lexists(path))
            mark(note, unwanted)
            need_space(client, path, folder)
            save(client, unit, config["dir"])
            handle = open_regular(path)
        except Refused as err:
            raise Failed(f"{unit} does not write a snapshot: {err}") from None
        finally:
            client.close()
        if unwanted:
            os.unlink(path)
            sync(config["dir"])
            mark(note, False)
        return handle


def await_idle(client: Connection, unit: str) -> dict[str, str]:
    until = time.monotonic() + BUSY
    while True:
        info = client.info("persistence")
        busy = [name for name in UNDERWAY if info.get(name, "0") != "0"]
        if not busy:
            return info
        if time.monotonic() > until:
            raise Failed(f"{unit} was busy for {BUSY:g} s ({', '.join(busy)}); the next backup tries again")
        time.sleep(0.1)


def same_place(client: Connection, config: dict[str, str]) -> None:
    for name in ("dir", "dbfilename"):
        found = client.setting(name)
        if os.path.realpath(found) != os.path.realpath(config[name]):
            raise Failed(f"It writes its snapshots elsewhere than its redis.conf says: {name} is {found!r}")


def mark(note: str, on: bool) -> None:
    if on:
        os.close(os.open(note, os.O_WRONLY | os.O_CREAT, 0o600))
    elif os.path.exists(note):
        os.unlink(note)
    else:
        return
    sync(os.path.dirname(note))


def need_space(client: Connection, path: str, folder: str) -> None:
    """
    Before the snapshot: one that fails makes Redis refuse writes (``stop-writes-on-bgsave-error``). It becomes about as
    large as the last one; without one, it is smaller than the data in memory.
    """
    try:
        size = os.stat(path).st_size
    except OSError:
        size = int(client.info("memory").get("used_memory_dataset", "0"))
    data = os.path.dirname(path)
    same = os.stat(data).st_dev == os.stat(folder).st_dev
    for place, wanted in ((data, size * 2 if same else size), (folder, size)):
        require_space(place, wanted)


def require_space(folder: str, wanted: int) -> None:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < wanted + RESERVE:
        raise Failed(
            f"{folder} has {free // 1024**2} MiB free, and {(wanted + RESERVE) // 1024**2} MiB are needed: make room, "
            "or keep fewer backups. Those that are there stay"
        )


def save(client: Connection, unit: str, folder: str) -> None:
    asked, until = int(client.ask("TIME")[0]), time.monotonic() + BUSY
    while True:
        try:
            client.ask("BGSAVE")
            break
        except Refused:
            # Another one began since it was idle.
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
            asked = int(client.ask("TIME")[0])
            await_idle(client, unit)
    info = await_idle(client, unit)
    if info["rdb_last_bgsave_status"] != "ok" or int(info["rdb_last_save_time"]) < asked:
        raise Failed(f"{unit} could not write its snapshot: look into its log and at the space in {folder}")


def copy_checked(stream, draft: str, args: argparse.Namespace, group: int) -> tuple[int, int | None]:
    size = os.fstat(stream.fileno()).st_size
    require_space(args.dir, size)
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(handle, "r+b") as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        os.fchown(handle, -1, group)  # for the check alone: nobody but root can enter the folder
        os.fchmod(handle, 0o640)
        os.fsync(handle)
        if os.fstat(handle).st_size != size:
            raise Failed("The snapshot changed while it was copied")
        return size, check(args.check, handle, args.user, args.group)


def remove_old(folder: str, keep: int, new: str) -> list[str]:
    """All but the newest ones; what was just made is one of them, even if the clock was set back."""
    others = [name for name in names(folder) if name != new]
    old = others[: max(len(others) - (keep - 1), 0)]
    for name in old:
        os.unlink(os.path.join(folder, name))
    return old


def names(folder: str) -> list[str]:
    return sorted(filter(NAME.fullmatch, os.listdir(folder)))


def free_name(folder: str) -> str:
    while True:
        name = time.strftime("dump-%Y%m%dT%H%M%SZ.rdb", time.gmtime())
        if not os.path.lexists(os.path.join(folder, name)):
            return name
        time.sleep(0.1)


# Looking into a snapshot ---------------------------------------------------------------------------------------------


def verify(args: argparse.Namespace) -> dict:
    """Whether Redis' own checker reads a backup to its end."""
    with open(open_regular(args.file), "rb") as stream:
        keys = check(args.check, stream.fileno(), args.user, args.group)
        return {"path": args.file, "bytes": os.fstat(stream.fileno()).st_size, "keys": keys}


def check(program: str, handle: int, user: str, group: str) -> int | None:
    """
    Redis' own checker reads a snapshot to its end, its checksum included. Returns how many keys it holds; only in its
    text does the checker say so, None if that reads otherwise one day.
    """
    who = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        who = {"user": account.pw_uid, "group": grp.getgrnam(group).gr_gid, "extra_groups": []}
    done = subprocess.run(
        [program, f"/proc/self/fd/{handle}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[handle],
        env={"LC_ALL": "C"},
        cwd="/",
        check=False,
        **who,
    )
    words = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        lines = [line.strip() for line in words.partition("RDB ERROR DETECTED ---")[2].splitlines() if line.strip()]
        told = (lines or words.split("\n")[-2:])[0]
        raise Failed(f"redis-check-rdb does not accept the snapshot, so it is not used: {told}")
    found = re.search(r"(\d+) keys read", words)
    return int(found[1]) if found else None


# The files of a restore, as Redis' user ------------------------------------------------------------------------------


def stage(args: argparse.Namespace) -> dict:
    """Copy a backup into the data folder, under a name that Redis does not read, and check the copy."""
    with open(open_regular(args.file), "rb") as stream:
        become(args.user, args.group)
        staged = os.path.join(args.dir, STAGED)
        discard(args)
        size = os.fstat(stream.fileno()).st_size
        require_space(args.dir, size)
        try:
            handle = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(handle, "r+b") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
                copy.flush()
                os.fsync(handle)
                keys = check(args.check, handle, args.user, args.group)
        except BaseException:
            discard(args)
            raise
    sync(args.dir)
    return {"bytes": size, "keys": keys}


def discard(args: argparse.Namespace) -> dict:
    """Take away what a restore that ended early left."""
    become(args.user, args.group)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(args.dir, STAGED))
    for name in filter(ASIDE_DRAFT.fullmatch, os.listdir(args.dir)):
        shutil.rmtree(os.path.join(args.dir, name))
    return {}


def put(args: argparse.Namespace) -> dict:
    """
    Put the staged snapshot in the place of the data of a server that is stopped. The data as they were are linked into
    a folder beside first; then one rename decides, so that a start finds the old data or the new ones.
    """
    become(args.user, args.group)
    aside = os.path.join(args.dir, args.aside)
    home = os.path.join(args.dir, args.folder) if args.folder else args.dir
    draft = os.path.join(args.dir, f".{args.aside}.new")
    if args.folder:
        os.makedirs(home, mode=0o700, exist_ok=True)
    old = os.listdir(home) if args.folder else [args.file] if os.path.lexists(os.path.join(home, args.file)) else []
    os.mkdir(draft, 0o700)
    for name in old:
        os.link(os.path.join(home, name), os.path.join(draft, name), follow_symlinks=False)
    sync(draft)
    os.rename(draft, aside)
    sync(args.dir)
    if args.folder:
        put_parts(args, home, old)
    else:
        os.replace(os.path.join(args.dir, STAGED), os.path.join(home, args.file))
        sync(home)
    return {}


def put_parts(args: argparse.Namespace, home: str, old: list[str]) -> None:
    """
    An AOF of several parts, as Redis 7.0 and newer have it (src/aof.c): a snapshot is a base as it is, and what the
    manifest names is what counts. Both parts get numbers that no file has: Redis empties a new part that is there.
    """
    found = [re.fullmatch(re.escape(args.file) + r"\.(\d+)\.(?:base|incr)\.(?:rdb|aof)", name) for name in old]
    number = 1 + max((int(match[1]) for match in found if match), default=0)
    base, tail = f"{args.file}.{number}.base.rdb", f"{args.file}.{number}.incr.aof"
    os.replace(os.path.join(args.dir, STAGED), os.path.join(home, base))
    write(os.path.join(home, tail), "")
    text = f"file {base} seq {number} type b\nfile {tail} seq {number} type i\n"
    draft = os.path.join(home, f"temp-{args.file}.manifest")  # the name that Redis itself gives a draft of it
    write(draft, text)
    sync(home)
    os.replace(draft, os.path.join(home, f"{args.file}.manifest"))
    sync(home)
    for name in old:
        if name != f"{args.file}.manifest":
            os.unlink(os.path.join(home, name))


def undo(args: argparse.Namespace) -> dict:
    """Put the data back as they were, of a server that is stopped. What is not whole beside was not begun."""
    become(args.user, args.group)
    aside = os.path.join(args.dir, args.aside)
    home = os.path.join(args.dir, args.folder) if args.folder else args.dir
    discard(args)
    if not os.path.isdir(aside):
        return {"undone": False}
    decides = f"{args.file}.manifest" if args.folder else args.file
    old = os.listdir(aside)
    for name in old:
        if name != decides and not os.path.lexists(os.path.join(home, name)):
            os.link(os.path.join(aside, name), os.path.join(home, name), follow_symlinks=False)
    sync(home)
    if decides in old:
        draft = os.path.join(home, f"temp-{decides}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        os.link(os.path.join(aside, decides), draft, follow_symlinks=False)
        os.replace(draft, os.path.join(home, decides))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)  # rename(2) leaves it where both are the same file
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(home, decides))
    sync(home)
    for name in os.listdir(home) if args.folder else []:
        if name not in old:
            os.unlink(os.path.join(home, name))
    shutil.rmtree(aside)
    return {"undone": True}


# Files ---------------------------------------------------------------------------------------------------------------


def become(user: str, group: str) -> None:
    if os.geteuid() != 0:
        return
    account = pwd.getpwnam(user)
    os.umask(0o077)
    os.setgroups([])
    os.setgid(grp.getgrnam(group).gr_gid)
    os.setuid(account.pw_uid)


def open_regular(path: str) -> int:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as err:
        raise Failed(f"Cannot read {path}: {err.strerror}") from err
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Failed(f"{path} is no regular file")
    return handle


def write(path: str, text: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(handle)


def sync(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(name: str):
    """A lock that the kernel lets go of when its holder dies."""
    if not os.path.isdir(LOCKS):
        os.makedirs(LOCKS, exist_ok=True)
        os.chmod(LOCKS, 0o755)  # others of the formula work below it as unprivileged users
    with open(os.path.join(LOCKS, f"{name}.lock"), "w", encoding="ascii") as handle:
        until = time.monotonic() + BUSY
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Failed(f"Another process was at work on {name} for {BUSY:g} s") from None
                time.sleep(0.1)
        yield


# Command line --------------------------------------------------------------------------------------------------------

OPTIONS = {
    "backup": (backup, ["--config", "--dir", "--keep", "--check", "--user", "--group"]),
    "verify": (verify, ["--check", "--user", "--group", "file"]),
    "stage": (stage, ["--dir", "--check", "--user", "--group", "file"]),
    "discard": (discard, ["--dir", "--user", "--group"]),
    "put": (put, ["--dir", "--aside", "--folder", "--user", "--group", "file"]),
    "undo": (undo, ["--dir", "--aside", "--folder", "--user", "--group", "file"]),
}


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Backups of one instance of Redis, and the files of a restore.")
    acts = parser.add_subparsers(required=True, metavar="ACT")
    for name, (function, options) in OPTIONS.items():
        act = acts.add_parser(name, help=" ".join(function.__doc__.split()))
        act.set_defaults(function=function)
        for option in options:
            if option == "--keep":
                act.add_argument(option, type=int, required=True)
            elif option.startswith("--"):
                act.add_argument(option, required=option != "--folder", default="")
            else:
                act.add_argument(option)
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    os.umask(0o077)
    args = arguments(words)
    try:
        print(json.dumps(args.function(args)), flush=True)
    except Failed as err:
        print(err, file=sys.stderr)
        return 1
    except (OSError, KeyError) as err:
        print(f"{' '.join(args.function.__doc__.split())} That failed: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
