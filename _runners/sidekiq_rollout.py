"""
Roll-outs: every Sidekiq process of an app comes to the release that ``current`` points at, host after host.

Runs on the master. What an app is stands in the master's configuration, ``redis_sidekiq:apps`` (docs/deploy-events.md);
an event brings nothing but an app's name. One roll-out per app at a time, in a process of its own; whoever asks while
one runs is served by the next, together with all others who asked. A roll-out first asks every host whether its
services may be restarted and need it (:py:func:`sidekiq.ready`), then calls :py:func:`sidekiq.restart` on one host, the
canary, and then on one batch after the other, until all work in their release or too many have failed. The record of it
is kept below the master's ``cachedir``, and sent as an event at the end: ``redis_sidekiq/deployed/APP``, or
``redis_sidekiq/deploy_failed/APP``.
"""

from __future__ import annotations

import collections
import contextlib
import difflib
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import salt.client
import salt.utils.event
import salt.utils.jid
import salt.utils.minions
import salt.utils.user
from salt.exceptions import CommandExecutionError, SaltClientError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    __opts__: dict[str, Any] = {}
    __context__: dict[str, Any] = {}

log = logging.getLogger(__name__)

_KEPT = 20  # roll-outs of an app that are remembered
_SEEN = 1000  # signed requests of an app that are remembered, so that none counts twice
_POLL = 0.2  # s
_CALM, _STORM = 1.0, 30.0  # s without a request after which what waits is served; s after which it is anyway
_SAVE = 0.5  # s between two writes of a record that grows
_WORDS = 4000  # characters of a host's comment
_EVENT_HOSTS = 300  # hosts in an event, failed ones first: the master's max_event_size is 1 MB
_SLACK = 60.0  # s beyond what a host says that it needs

_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MINION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_STEP = re.compile(r"[a-z ]{1,40}")

# Started by the interpreter that runs Salt: wherever that is installed, its salt-run belongs to it.
_SALT_RUN = "import sys; from salt.scripts import salt_run; sys.argv[0] = 'salt-run'; sys.exit(salt_run())"


# Asking for a roll-out -----------------------------------------------------------------------------------------------


def start(app: str) -> dict[str, Any]:
    """
    Roll an app out now, show the progress, and wait for the end. Ctrl-C ends the showing, not the roll-out.

    app
        Name of the app in ``redis_sidekiq:apps`` of the master's configuration.

    Returns the record, see :func:`show`; with an app that is not in the configuration, or wrong there, only ``result``
    (False) and ``comment``. The exit code is 1 if not every host is on its release.

    CLI Example:

    .. code-block:: bash

        salt-run sidekiq_rollout.start shop
    """

    def ask_and_follow() -> dict[str, Any]:
        asked = _request(app, f"{salt.utils.user.get_specific_user()} by salt-run", "")
        return _follow(_Ledger(__opts__, app), asked["serial"])

    return _answer(ask_and_follow)


def request(app: str, source: str = "command", once: str = "") -> dict[str, Any]:
    """
    Ask for a roll-out and do not wait for it: what the reactor calls.

    It begins at once in the background; while one of the same app runs, it follows when that has ended, together with
    whatever else was asked for meanwhile.

    app
        Name of the app in ``redis_sidekiq:apps`` of the master's configuration.
    source
        Who asks, for the record (default ``command``).
    once
        Something that belongs to this request alone, such as its signature: a second request with it is refused.

    Returns ``result`` (bool) and ``comment``, and when it was taken ``app``, ``serial`` (int, the request's number) and
    ``state``: ``started`` or ``waiting``. An app that is not in the configuration is refused, and a request that was
    there before; the master's log tells of it.

    CLI Example:

    .. code-block:: bash

        salt-run sidekiq_rollout.request shop
    """
    return _answer(lambda: _request(app, source, once))


def work(app: str, lock: int | None = None) -> dict[str, Any]:
    """
    Do what was asked for, until nothing is left: what :func:`request` starts in the background.

    app
        Name of the app in ``redis_sidekiq:apps`` of the master's configuration.
    lock
        File descriptor of the app's lock, if it was handed down (int).

    Returns the last roll-out's record; {} when there was nothing to do, or another one is at it.

    CLI Example:

    .. code-block:: bash

        salt-run sidekiq_rollout.work shop
    """
    ledger, record = _Ledger(__opts__, app), {}
    with ledger.mutex():
        held = ledger.adopt_lock(lock) if lock is not None else ledger.try_lock()
    while held:
        with ledger.mutex():
            asked = ledger.take()
            if not asked:
                # Let go within the mutex: who asks from now on finds the lock free.
                held.close()
                break
        record = _Rollout(__opts__, app, ledger, asked).run()
        _await_calm(ledger)
    return record


# Looking -------------------------------------------------------------------------------------------------------------


def check(app: str) -> dict[str, Any]:
    """
    What a roll-out would do now: every host is asked, none is touched.

    app
        Name of the app in ``redis_sidekiq:apps`` of the master's configuration.

    Returns a record as :func:`show` does, with the hosts' states ``current``, ``due``, ``failed`` and ``unreachable``,
    and ``batches``, a list of lists of hosts.

    CLI Example:

    .. code-block:: bash

        salt-run sidekiq_rollout.check shop
    """

    def look() -> dict[str, Any]:
        rollout = _Rollout(__opts__, app, None, {"serial": 0, "asked": []})
        rollout.prepare()
        rollout.check()
        batches = list(rollout.batches())
        comment = rollout.why_stop() or f"{len(rollout.of('due'))} of {len(rollout.hosts)} hosts would be restarted"
        return {**rollout.record, "result": not rollout.why_stop(), "comment": comment, "batches": batches}

    return _answer(look)


def show(app: str | None = None) -> dict[str, Any]:
    """
    The roll-outs of an app, or of all: the one that runs, the last one, and those before.

    app
        Name of the app; default: all of the master's configuration.

    Returns app -> ``state`` (``idle`` or ``rolling``), ``waiting`` (who asked for the next one), ``running`` and ``last``
    (records or {}), ``before`` (records without their hosts, newest first). A record has ``id`` (when it began, as Salt
    writes job ids), ``asked`` (list of ``{by, count, last}``), ``began`` and ``ended`` (epoch s), ``result`` (bool, None
    while it runs), ``comment``, ``totals``, and ``hosts``, minion -> ``{state, comment, began, seconds, services}``, with what
    :py:func:`sidekiq.restart` returned for each service, shortened.

    CLI Example:

    .. code-block:: bash

        salt-run sidekiq_rollout.show
        salt-run sidekiq_rollout.show shop
    """

    def look() -> dict[str, Any]:
        names = [app] if app else sorted(_apps(__opts__))
        return {name: _Ledger(__opts__, name).facts() for name in names}

    return _answer(look)


def watch(app: str, wait: float = 0) -> dict[str, Any]:
    """
    Show a roll-out as it goes on, until it ends.

    app
        Name of the app in ``redis_sidekiq:apps`` of the master's configuration.
    wait
        How long to wait for one to begin (s, default 0).

    Returns its record, or the last one's if none runs; the exit code is 1 if not every host is on its release.

    CLI Example:

    .. code-block:: bash

        salt-run sidekiq_rollout.watch shop wait=60
    """

    def wait_and_follow() -> dict[str, Any]:
        ledger = _Ledger(__opts__, app)
        until = time.monotonic() + wait
        while ledger.is_free() and time.monotonic() < until:
            time.sleep(_POLL)
        return _follow(ledger) or {"result": True, "comment": f"There was no roll-out of {app} yet"}

    return _answer(wait_and_follow)


# --- below: how it is done -------------------------------------------------------------------------------------------

# Asking


def _answer(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a person, the reactor and an orchestration each understand: a record, and how it ended."""
    try:
        answer = act()
    except (CommandExecutionError, SaltInvocationError, SaltClientError) as err:
        log.error("%s", err)
        answer = {"result": False, "comment": str(err)}
    if not answer.get("result", True):
        # The one is for an orchestration, the other for salt-run's exit code (salt/cli/run.py).
        __context__["retcode"] = answer["retcode"] = 1
    return answer


def _request(app: str, source: str, once: str) -> dict[str, Any]:
    # Of the app's settings the reactor knows what they were when the master started: the roll-out reads them itself.
    ledger = _Ledger(__opts__, app)
    with ledger.mutex():
        serial = ledger.note(source, once)
        lock = ledger.try_lock()
        if lock:
            with lock:
                _spawn(__opts__, app, lock.fileno())
    state, words = ("started", "has begun") if lock else ("waiting", "follows the one that runs")
    comment = f"A roll-out of {app} {words}"
    return {"app": app, "serial": serial, "state": state, "result": True, "comment": comment}


def _await_calm(ledger: _Ledger) -> None:
    """In a storm of events each roll-out that finds nothing to do would be followed by the next at once."""
    until, serial = time.monotonic() + _STORM, ledger.book()["serial"]
    while ledger.book()["asked"] and time.monotonic() < until:
        time.sleep(_CALM)
        before, serial = serial, ledger.book()["serial"]
        if serial == before:
            return


# The master's configuration


class _Key(NamedTuple):
    default: Any
    allowed: str
    suits: Callable[[Any], bool]


def _is_names(value: Any, pattern: re.Pattern[str]) -> bool:
    good = (
        isinstance(value, list) and value and all(isinstance(name, str) and pattern.fullmatch(name) for name in value)
    )
    return bool(good) and len(set(value)) == len(value)


def _is_number(value: Any, least: float, kinds: tuple[type, ...] = (int,)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and value >= least


def _is_batch(value: Any) -> bool:
    share = re.fullmatch(r"(\d{1,3})%", value) if isinstance(value, str) else None
    return _is_number(value, 1) or bool(share and 1 <= int(share[1]) <= 100)


_KEYS = {
    "minions": _Key(
        None,
        "a list of minion ids, or a compound matcher such as 'web* or N@workers'",
        lambda value: _is_names(value, _MINION) or (isinstance(value, str) and bool(value.strip())),
    ),
    "services": _Key(["sidekiq"], "a list of names of Sidekiq services", lambda value: _is_names(value, _SERVICE)),
    "canary": _Key(1, "how many hosts go first, alone (whole number, 0: none)", lambda value: _is_number(value, 0)),
    "batch": _Key(1, "how many hosts go at once: a whole number, or a share such as 25%", _is_batch),
    "pause": _Key(0, "seconds between two batches", lambda value: _is_number(value, 0, (int, float))),
    "strategy": _Key(
        "", "handover or drain; empty: each service's own", lambda value: value in ("", "handover", "drain")
    ),
    "failures": _Key(
        1, "after how many failed hosts to stop (whole number, 1 or more)", lambda value: _is_number(value, 1)
    ),
    "deadline": _Key(
        3600, "seconds after which no further batch begins", lambda value: _is_number(value, 1, (int, float))
    ),
    "secret_file": _Key(
        "", "absolute path of a file", lambda value: value == "" or (isinstance(value, str) and os.path.isabs(value))
    ),
}


def _apps(opts: dict[str, Any]) -> dict[str, Any]:
    settings = opts.get("redis_sidekiq")
    apps = settings.get("apps") if isinstance(settings, dict) else None
    if apps is not None and not isinstance(apps, dict):
        raise SaltInvocationError("redis_sidekiq:apps in the master's configuration must map names of apps to settings")
    return {str(name): entry for name, entry in (apps or {}).items()}


def _known(opts: dict[str, Any], app: Any) -> str:
    """The app's name, if the configuration has it and it can be a folder's name."""
    apps = _apps(opts)
    if not isinstance(app, (str, int)) or str(app) not in apps:
        raise SaltInvocationError(
            f"There is no app {str(app)[:64]!r} in redis_sidekiq:apps of the master's configuration; "
            f"there are: {', '.join(sorted(apps)) or 'none'}"
        )
    if not _APP.fullmatch(str(app)):
        raise SaltInvocationError(
            f"redis_sidekiq:apps has {str(app)[:64]!r}: an app's name is made of letters, digits, - and _, at most 64"
        )
    return str(app)


def _settings(opts: dict[str, Any], app: str) -> dict[str, Any]:
    """An app's settings with their defaults; all that is wrong with them in one message."""
    entry, where = _apps(opts)[_known(opts, app)], f"redis_sidekiq:apps:{app}"
    if not isinstance(entry, dict):
        raise SaltInvocationError(f"{where} in the master's configuration: found {entry!r}, allowed: settings")
    wrong = []
    for key in sorted(entry.keys() - _KEYS.keys(), key=str):
        near = difflib.get_close_matches(str(key), _KEYS, 1)
        wrong.append(f"{where}:{key} is not known{f'; did you mean {near[0]}?' if near else ''}")
    settings = {key: entry.get(key, known.default) for key, known in _KEYS.items()}
    for key, known in _KEYS.items():
        if not known.suits(settings[key]):
            wrong.append(f"{where}:{key}: found {settings[key]!r}, allowed: {known.allowed}")
    if wrong:
        raise SaltInvocationError("In the master's configuration:\n" + "\n".join(wrong))
    return settings


def _spawn(opts: dict[str, Any], app: str, lock: int) -> None:
    """A roll-out takes minutes: in the reactor it would keep one of the few threads that serve all reactions."""
    argv = [sys.executable, "-c", _SALT_RUN, f"--config-dir={os.path.dirname(opts['conf_file'])}", "--out=json"]
    # salt-run reads its arguments as YAML: quoted, a name such as 007 stays one.
    argv += ["sidekiq_rollout.work", json.dumps(app), f"lock={lock}"]
    with open(os.devnull, "r+b") as null:
        process = subprocess.Popen(
            argv, stdin=null, stdout=null, stderr=null, pass_fds=[lock], start_new_session=True, cwd="/"
        )
    threading.Thread(target=process.wait, daemon=True).start()


# What the master keeps of an app


class _Ledger:
    """Files in a folder of the app's own: requests, the roll-out in hand, those that ended; and two locks.

    ``lock`` is held by the process that rolls out, for as long as it lives; ``mutex`` by whoever changes the requests,
    for a moment. A request is noted before the lock is tried, and a roll-out looks for requests before it lets go of
    it, both within the mutex: so no request is left lying.
    """

    def __init__(self, opts: dict[str, Any], app: str) -> None:
        self.folder = os.path.join(opts["cachedir"], "redis_sidekiq", "rollouts", _known(opts, app))
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
        except OSError as err:
            raise CommandExecutionError(f"Cannot keep records of roll-outs in {self.folder}: {err.strerror}") from err

    # Locks

    def _open(self, name: str) -> Any:
        return open(os.path.join(self.folder, name), "a", encoding="ascii")

    @contextlib.contextmanager
    def mutex(self) -> Iterator[None]:
        with self._open("mutex") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def try_lock(self) -> Any:
        """The lock, or None while another one has it. It is let go when every process that has it open closed it."""
        handle = self._open("lock")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return None
        return handle

    def adopt_lock(self, descriptor: int) -> Any:
        handle = os.fdopen(descriptor, "a", encoding="ascii")
        with self._open("lock") as own:
            if not os.path.sameopenfile(descriptor, own.fileno()):
                raise SaltInvocationError(f"File descriptor {descriptor} is not the lock of this app's roll-outs")
        os.set_inheritable(descriptor, False)
        return handle

    def is_free(self) -> bool:
        with self.mutex():
            lock = self.try_lock()
            if lock:
                lock.close()
        return bool(lock)

    # Requests; within the mutex

    def note(self, source: str, once: str = "") -> int:
        """Note a request and return its number."""
        book = self.book()
        if once and once in book["seen"]:
            raise SaltInvocationError("This request was there before, and counts once")
        book["seen"] = [*book["seen"], *([once] if once else [])][-_SEEN:]
        book["serial"] += 1
        earlier = next((entry for entry in book["asked"] if entry["by"] == source), None)
        if earlier:
            earlier.update(count=earlier["count"] + 1, last=time.time())
        else:
            book["asked"] = [*book["asked"], {"by": source, "count": 1, "last": time.time()}][-_KEPT:]
        self.write("requests", book)
        return book["serial"]

    def take(self) -> dict[str, Any]:
        """All that was asked for and not served yet, as ``{serial, asked}``; {} when there is nothing."""
        book = self.book()
        if not book["asked"]:
            return {}
        self.write("requests", {**book, "asked": []})
        return {"serial": book["serial"], "asked": book["asked"]}

    def book(self) -> dict[str, Any]:
        return {"serial": 0, "asked": [], "seen": [], **self.read("requests")}

    # Records

    def open_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """Begin a record; returns the one before if that was never ended."""
        before = self.read("current")
        self.write("current", record)
        return before if before and before["ended"] is None else {}

    def close_record(self, record: dict[str, Any]) -> None:
        before = self.read("last")
        if before:
            brief = {key: value for key, value in before.items() if key != "hosts"}
            self.write("before", {"records": [brief, *self.read("before").get("records", [])][:_KEPT]})
        self.write("last", record)

    def facts(self) -> dict[str, Any]:
        current, free = self.read("current"), self.is_free()
        return {
            "state": "idle" if free else "rolling",
            "waiting": self.book()["asked"],
            "running": {} if free or current.get("ended") else current,
            "last": self.read("last"),
            "before": self.read("before").get("records", []),
        }

    def read(self, name: str) -> dict[str, Any]:
        try:
            with open(os.path.join(self.folder, f"{name}.json"), encoding="utf-8") as handle:
                return json.load(handle)
        except (FileNotFoundError, ValueError):
            return {}

    def write(self, name: str, data: dict[str, Any]) -> None:
        """In one rename, so that who reads, or what comes after a cut, finds the old text or the new."""
        path = os.path.join(self.folder, f"{name}.json")
        draft = f"{path}.new"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as handle:
            json.dump(data, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(draft, path)


# A roll-out


class _Rollout:
    """One roll-out, and its record."""

    def __init__(self, opts: dict[str, Any], app: str, ledger: _Ledger | None, asked: dict[str, Any]) -> None:
        self.opts, self.app, self.ledger = opts, app, ledger
        self.settings: dict[str, Any] = {}
        self.known: dict[str, dict[str, Any]] = {}  # host -> what it said of each service
        self.saved = 0.0
        self.record: dict[str, Any] = {
            "app": app,
            "id": salt.utils.jid.gen_jid(opts),
            **asked,
            "began": time.time(),
            "ended": None,
            "result": None,
            "comment": "",
            "hosts": {},
        }

    @property
    def hosts(self) -> dict[str, dict[str, Any]]:
        return self.record["hosts"]

    def run(self) -> dict[str, Any]:
        """Do it; whatever happens is in the record, and told."""
        try:
            cut_off = self.ledger.open_record(self.record)
            if cut_off:
                _end(self.opts, self.ledger, cut_off, False, "This roll-out was cut off before its end")
            self.prepare()
            self.check()
            self.restart_due()
            result, comment = self.outcome()
        except (CommandExecutionError, SaltInvocationError, SaltClientError) as err:
            result, comment = False, str(err)
        except Exception as err:
            log.exception("The roll-out of %s ended by an error of its own", self.app)
            result, comment = False, f"An error of the roll-out itself, see the master's log: {err!r}"
        _end(self.opts, self.ledger, self.record, result, comment)
        return self.record

    def prepare(self) -> None:
        self.settings = _settings(self.opts, self.app)
        minions = self.settings["minions"]
        if isinstance(minions, str):
            found = salt.utils.minions.CkMinions(self.opts).check_minions(minions, "compound")
            minions = sorted(found["minions"])
        if not minions:
            raise CommandExecutionError(f"redis_sidekiq:apps:{self.app}:minions means no minion of this master")
        self.record["services"] = self.settings["services"]
        self.record["hosts"] = {host: {"state": "unchecked", "comment": "", "services": {}} for host in minions}

    # Checking

    def check(self) -> None:
        """Every host says how it is before the first is touched."""
        self.ask(list(self.hosts))
        self.save()

    def ask(self, hosts: list[str]) -> None:
        left = set(hosts)
        for host, answer in self.call(hosts, "sidekiq.ready", {"services": self.settings["services"]}, _SLACK):
            left.discard(host)
            self.note_readiness(host, answer.get("ret"))
        for host in sorted(left):
            self.tell(host, "unreachable", "it did not answer")

    def note_readiness(self, host: str, answer: Any) -> None:
        if not _is_readiness(answer, self.settings["services"]):
            self.tell(host, "failed", _no_answer("sidekiq.ready", answer))
            return
        self.known[host] = answer
        problems = [f"{service}: {facts['problem']}" for service, facts in answer.items() if facts["problem"]]
        due = [reason for facts in answer.values() for reason in facts.get("due", [])]
        if problems:
            self.tell(host, "failed", ". ".join(problems))
        else:
            self.tell(host, "due" if due else "current", ". ".join(due))

    # Restarting

    def restart_due(self) -> None:
        for batch in self.batches():
            for service in self.settings["services"]:
                self.restart(batch, service)
            for host in batch:
                if self.hosts[host]["state"] == "restarting":
                    self.tell(host, "done", self.hosts[host]["comment"])
            if self.why_stop():
                break
            if self.of("due"):
                time.sleep(self.settings["pause"])
        for host in self.of("due"):
            self.tell(host, "skipped", "it was not touched")

    def restart(self, batch: list[str], service: str) -> None:
        hosts = [host for host in batch if self.hosts[host]["state"] in ("due", "restarting")]
        for host in hosts:
            self.hosts[host].setdefault("began", time.time())
            self.tell(host, "restarting", self.hosts[host]["comment"])
        self.save(force=True)
        arguments = {"service": service, "stale_only": True, "strategy": self.settings["strategy"] or None}
        budget = max((self.known[host][service]["budget"] for host in hosts), default=0) + _SLACK
        left, begun = set(hosts), time.time()
        for host, answer in self.call(hosts, "sidekiq.restart", arguments, budget):
            left.discard(host)
            self.note_restart(host, service, answer.get("ret"), time.time() - begun)
        for host in sorted(left):
            self.tell(
                host,
                "failed",
                f"it did not answer any more while {service} restarted; look there for what became of it",
            )

    def note_restart(self, host: str, service: str, answer: Any, seconds: float) -> None:
        entry = self.hosts[host]
        try:
            brief = _shortened(answer)
        except (AttributeError, KeyError, TypeError, ValueError):
            self.tell(host, "failed", _no_answer("sidekiq.restart", answer))
            return
        entry["services"][service] = {**brief, "seconds": round(seconds, 3)}
        entry["seconds"] = round(entry.get("seconds", 0.0) + seconds, 3)
        self.tell(host, "restarting" if brief["result"] else "failed", brief["comment"])

    def batches(self) -> Iterator[list[str]]:
        """Hosts that restart at once: the canary, then batches, as long as there is no reason to stop."""
        due, wanted = self.of("due"), self.settings["canary"]
        size = _size(self.settings["batch"], len(due))
        while due and not self.why_stop():
            batch = self.together(due[: wanted or size])
            wanted = size
            if batch:
                yield batch
            due = [host for host in due if host not in batch and self.hosts[host]["state"] == "due"]

    def together(self, hosts: list[str]) -> list[str]:
        """Those of these hosts that may restart at once, so that each queue keeps somebody who works on it."""
        if any(self.drains(host) for host in hosts):
            # By now others may fetch from the queues than at the first look.
            self.ask(hosts)
            hosts = [host for host in hosts if self.hosts[host]["state"] == "due"]
        batch: list[str] = []
        for host in hosts:
            if not batch or self.leaves_consumers([*batch, host]):
                batch.append(host)
        return batch

    def drains(self, host: str) -> list[tuple[str, str, dict[str, int]]]:
        """The queues that this host leaves for a while: (service, queue, who fetches)."""
        return [
            (service, queue, counts)
            for service, facts in self.known[host].items()
            if "drain" in (facts["strategy"], self.settings["strategy"]) and facts["due"]
            for queue, counts in facts["queues"].items()
        ]

    def leaves_consumers(self, hosts: list[str]) -> bool:
        leaving: collections.Counter[tuple[str, str]] = collections.Counter()
        for host in hosts:
            leaving.update({(service, queue): counts["here"] for service, queue, counts in self.drains(host)})
        return all(
            counts["here"] + counts["elsewhere"] > leaving[service, queue]
            for host in hosts
            for service, queue, counts in self.drains(host)
        )

    # Stopping, and the end

    def of(self, *states: str) -> list[str]:
        return [host for host, entry in self.hosts.items() if entry["state"] in states]

    def why_stop(self) -> str:
        failed = self.of("failed")
        if len(failed) >= self.settings["failures"]:
            return f"Stopped after {len(failed)} failed host{'s' if len(failed) > 1 else ''}"
        if time.time() - self.record["began"] > self.settings["deadline"]:
            return f"Stopped after its deadline of {self.settings['deadline']} s"
        return ""

    def outcome(self) -> tuple[bool, str]:
        counts = _totals(self.record)
        said = [f"{counts['done']} restarted, {counts['current']} needed none, of {counts['hosts']} hosts"]
        if self.of("failed", "skipped") and self.why_stop():
            said.append(self.why_stop())
        said += [f"{host} failed: {self.hosts[host]['comment']}" for host in self.of("failed")[:5]]
        for state, words in (("unreachable", "Unreachable"), ("skipped", "Not touched")):
            if self.of(state):
                said.append(f"{words}: {_listed(self.of(state))}")
        return len(self.of("done", "current")) == len(self.hosts), ". ".join(said)

    def tell(self, host: str, state: str, comment: str) -> None:
        entry = self.hosts[host]
        if (entry["state"], entry["comment"]) == (state, comment[:_WORDS]):
            return
        entry.update(state=state, comment=comment[:_WORDS])
        if self.ledger:
            _fire(
                self.opts, f"redis_sidekiq/rollout/{self.app}", {"id": self.record["id"], "host": host, "state": state}
            )
            self.save()

    def save(self, force: bool = False) -> None:
        if self.ledger and (force or time.monotonic() > self.saved + _SAVE):
            self.ledger.write("current", self.record)
            self.saved = time.monotonic()

    # Salt

    def call(self, hosts: list[str], fun: str, arguments: dict[str, Any], budget: float) -> Iterator[tuple[str, dict]]:
        """Call a function on hosts and give (host, answer) as they come. Who does not answer is asked in between
        whether it is still at it, by Salt itself, and given up when it is not; all are, when the budget (s) is over.
        """
        if not hosts:
            return
        until = time.monotonic() + budget
        with salt.client.get_local_client(self.opts["conf_file"]) as client:
            answers = client.cmd_iter_no_block(
                hosts,
                fun,
                kwarg=arguments,
                tgt_type="list",
                timeout=self.opts["timeout"],
                gather_job_timeout=self.opts["gather_job_timeout"],
            )
            with contextlib.closing(answers):
                for answer in answers:
                    for host, value in (answer or {}).items():
                        if host in hosts and isinstance(value, dict) and "ret" in value:
                            yield host, value
                    if time.monotonic() > until:
                        log.error("%s of %s: not all hosts answered within %d s", fun, self.app, budget)
                        return
                    if not answer:
                        self.save()
                        time.sleep(0.05)


def _end(opts: dict[str, Any], ledger: _Ledger, record: dict[str, Any], result: bool, comment: str) -> None:
    record.update(ended=time.time(), result=result, comment=comment, totals=_totals(record))
    log.log(logging.INFO if result else logging.ERROR, "Roll-out %s of %s: %s", record["id"], record["app"], comment)
    ledger.close_record(record)
    # Last: who waits for the end takes it from here.
    if ledger.read("current").get("id") == record["id"]:
        ledger.write("current", record)
    _fire(opts, f"redis_sidekiq/{'deployed' if result else 'deploy_failed'}/{record['app']}", _for_event(record))


def _totals(record: dict[str, Any]) -> dict[str, Any]:
    states = collections.Counter(entry["state"] for entry in record["hosts"].values())
    names = ("done", "current", "failed", "unreachable", "skipped")
    seconds = (record["ended"] or time.time()) - record["began"]
    return {"hosts": len(record["hosts"]), **{name: states[name] for name in names}, "seconds": round(seconds, 3)}


def _for_event(record: dict[str, Any]) -> dict[str, Any]:
    """A record that fits into an event: of very many hosts, those that a person has to look at."""
    rank = ("failed", "unreachable", "skipped")
    order = sorted(record["hosts"].items(), key=lambda item: item[1]["state"] not in rank)
    return {**record, "hosts": dict(order[:_EVENT_HOSTS]), "hosts_left_out": max(0, len(order) - _EVENT_HOSTS)}


def _size(batch: int | str, hosts: int) -> int:
    return batch if isinstance(batch, int) else max(1, hosts * int(batch.rstrip("%")) // 100)


def _listed(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# What a minion said: it may be an older formula's, or no formula's at all


def _is_readiness(answer: Any, services: list[str]) -> bool:
    if not isinstance(answer, dict) or answer.keys() != set(services):
        return False
    kinds = {"due": list, "strategy": str, "budget": (int, float), "queues": dict}
    return all(
        isinstance(facts, dict)
        and isinstance(facts.get("problem"), str)
        and (facts["problem"] or all(isinstance(facts.get(key), kind) for key, kind in kinds.items()))
        for facts in answer.values()
    )


def _no_answer(fun: str, answer: Any) -> str:
    hint = "; bring its modules up to date: salt MINION saltutil.sync_all" if isinstance(answer, str) else ""
    return f"it did not answer {fun} as expected{hint}: {str(answer)[-500:]}"


def _shortened(answer: dict[str, Any]) -> dict[str, Any]:
    """What :py:func:`sidekiq.restart` returned, without steps and single jobs."""
    processes = [
        {
            "unit": one["unit"],
            "strategy": one["strategy"],
            "gap": one["gap"],
            "pids": [one["old"].get("pid"), one["new"].get("pid")],
            "release": one["new"].get("release", ""),
        }
        for one in answer["processes"]
    ]
    return {
        "result": answer["result"] is True,
        "comment": str(answer["comment"])[:_WORDS],
        "processes": processes,
        "jobs": dict(collections.Counter(str(job["fate"]) for job in answer["jobs"].values())),
        "warnings": [str(warning)[:500] for warning in answer["warnings"][:10]],
    }


# Telling


def _fire(opts: dict[str, Any], tag: str, data: dict[str, Any]) -> None:
    with salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=False) as bus:
        bus.fire_event(data, tag)


def _follow(ledger: _Ledger, serial: int = 0) -> dict[str, Any]:
    """Print what happens until the roll-out that serves this request has ended; 0: the one in hand, or the last."""
    said: dict[str, Any] = {}
    with salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=True) as bus:
        while True:
            free, record = ledger.is_free(), ledger.read("current")
            served = bool(record) and record["serial"] >= serial
            if served:
                _print_news(record, said)
            # Without a number: one that has ended counts only when none is about to follow.
            if served and record["ended"] is not None and (serial or free):
                return record
            if free and record == ledger.read("current"):
                if not record and not serial:
                    return {}
                raise CommandExecutionError("The roll-out's process ended before its time: see the master's log")
            _print_step(
                bus.get_event(wait=_POLL, tag="redis_sidekiq/restart/", match_type="startswith", full=True), record
            )


def _print_news(record: dict[str, Any], said: dict[str, Any]) -> None:
    """Hosts whose state changed since it was last printed."""
    for host, entry in record["hosts"].items():
        news = (entry["state"], entry["comment"] if entry["state"] != "restarting" else "")
        if said.get(host) != news and entry["state"] != "unchecked":
            said[host] = news
            _print_line(host, " ".join(filter(None, [f"{entry['state']}:" if news[1] else entry["state"], news[1]])))


def _print_step(event: dict[str, Any] | None, record: dict[str, Any]) -> None:
    """A step of a restart. Any minion can send such an event, so that it is shown and nothing more."""
    data = event.get("data") if isinstance(event, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get("data"), dict):
        return
    host, step = data.get("id"), data["data"].get("step")
    entry = record.get("hosts", {}).get(host) if isinstance(host, str) else None
    if entry and entry["state"] == "restarting" and isinstance(step, str) and _STEP.fullmatch(step):
        _print_line(host, f"  {step}")


def _print_line(host: str, words: str) -> None:
    # What a minion said is for a terminal to show, not to obey.
    shown = "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in words)
    print(f"{time.strftime('%H:%M:%S')} {host}: {shown}", file=sys.stderr, flush=True)
