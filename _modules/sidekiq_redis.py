"""
What Sidekiq keeps in Redis: the heartbeats of its processes, its queues, and the jobs that are being worked.

Every function takes the name of a service in the settings and asks the Redis of that service's ``REDIS_URL``. The URL
is read here, in this process, and is part of no argument, no return and no error. Keys as Sidekiq writes them
(lib/sidekiq/launcher.rb, lib/sidekiq/api.rb).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    __salt__: dict[str, Any] = {}

_TIMEOUT = 3.0  # s for each answer
_EXPIRY = 60.0  # s; each beat sets it anew as its keys' expiry (lib/sidekiq/launcher.rb)
_PROBE_KEY = "redis_sidekiq:probe"
_REQUEUED_DEPTH = 1000  # Sidekiq pushes jobs back to the end from which the next one is taken
_SCAN_LIMIT = 100_000  # entries of a sorted set that are looked through for a job


def beats(service: str) -> list[dict[str, Any]]:
    """
    The processes that beat in a service's Redis, of this host and of others.

    service
        Name of the service in the settings, without ``.service``.

    Returns a list of dictionaries: ``identity`` (``hostname:pid:nonce``), ``hostname``, ``pid``, ``tag``, ``version``
    (None before Sidekiq 7.1), ``started`` (epoch s, by that host's clock), ``concurrency``, ``queues``, ``busy``,
    ``quiet`` (bool), ``rss`` (kB), ``beat`` (epoch s, by that host's clock) and ``beat_age`` (s, by the expiry that
    each beat renews: the clocks of hosts differ).

    Raises CommandExecutionError when Redis cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_redis.beats sidekiq
    """
    with _asking(service) as client:
        identities = sorted(client.smembers("processes"))
        pipe = client.pipeline(transaction=False)
        for identity in identities:
            pipe.hgetall(identity)
            pipe.pttl(identity)
        answers = pipe.execute()
    pairs = zip(identities, answers[::2], answers[1::2])
    return [_read_beat(identity, fields, expiry) for identity, fields, expiry in pairs if fields]


def jobs(service: str, identities: list[str] | None = None) -> list[dict[str, Any]]:
    """
    The jobs that processes said they work, at their last beat.

    service
        Name of the service in the settings, without ``.service``.
    identities
        Only of these processes; default: of all.

    Returns a list of dictionaries: ``jid``, ``class``, ``queue``, ``seconds`` (since it began, by the host's own
    clock), ``identity``. Never a job's arguments.

    Raises CommandExecutionError when Redis cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_redis.jobs sidekiq
    """
    with _asking(service) as client:
        if identities is None:
            identities = sorted(client.smembers("processes"))
        pipe = client.pipeline(transaction=False)
        for identity in identities:
            # `:workers` up to Sidekiq 6.4.0.
            pipe.hvals(f"{identity}:work")
            pipe.hvals(f"{identity}:workers")
        answers = pipe.execute()
    owners = [identity for identity in identities for _ in range(2)]
    return [_read_job(identity, text) for identity, texts in zip(owners, answers) for text in texts]


def queues(service: str) -> list[dict[str, Any]]:
    """
    The queues in a service's Redis.

    service
        Name of the service in the settings, without ``.service``.

    Returns a list of ``{name, size, latency}``: jobs that wait, and how long the oldest of them has (s).

    Raises CommandExecutionError when Redis cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_redis.queues sidekiq
    """
    with _asking(service) as client:
        names = sorted(client.smembers("queues"))
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.llen(f"queue:{name}")
            pipe.lindex(f"queue:{name}", -1)
        answers = pipe.execute()
    rows = zip(names, answers[::2], answers[1::2])
    return [{"name": name, "size": size, "latency": _latency(oldest)} for name, size, oldest in rows]


def stats(service: str) -> dict[str, int]:
    """
    Sidekiq's own counts.

    service
        Name of the service in the settings, without ``.service``.

    Returns ``processed``, ``failed`` (both also count jobs that were interrupted and pushed back), ``enqueued``,
    ``scheduled``, ``retry``, ``dead``, ``processes``.

    Raises CommandExecutionError when Redis cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_redis.stats sidekiq
    """
    with _asking(service) as client:
        pipe = client.pipeline(transaction=False)
        for name in ("processed", "failed"):
            pipe.get(f"stat:{name}")
        for name in ("schedule", "retry", "dead"):
            pipe.zcard(name)
        pipe.scard("processes")
        processed, failed, scheduled, retry, dead, count = pipe.execute()
    return {
        "processed": int(processed or 0),
        "failed": int(failed or 0),
        "enqueued": sum(queue["size"] for queue in queues(service)),
        "scheduled": scheduled,
        "retry": retry,
        "dead": dead,
        "processes": count,
    }


def server(service: str) -> dict[str, Any]:
    """
    Whether a service's Redis answers with the service's own login, which release it is, and what its clock says.

    service
        Name of the service in the settings, without ``.service``.

    Returns ``flavor`` (``redis``, ``valkey``), ``version`` and ``offset`` (s that Redis' clock is ahead of this host's;
    None: its user may not ask). Without the package ``redis`` in Salt's Python, as before the first run, a connection
    is made and no more, and all of them are empty.

    Raises CommandExecutionError when Redis cannot be reached, or does not take the login.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_redis.server sidekiq
    """
    if importlib.util.find_spec("redis") is None:
        _reach(service)
        return {"flavor": "", "version": "", "offset": None}
    with _asking(service) as client:
        client.ping()
        info = _permitted(client.info, "server")
        begun = time.time()
        seconds, microseconds = _permitted(client.time) or (None, 0)
        between = (begun + time.time()) / 2
    return {
        "flavor": "valkey" if "valkey_version" in info else "redis" if info else "",
        "version": info.get("valkey_version") or info.get("redis_version", ""),
        "offset": None if seconds is None else round(seconds + microseconds / 1e6 - between, 3) + 0.0,
    }


def refusal(service: str) -> str:
    """
    Why a service's Redis would not take a job back now: it is asked to keep one small key for a second.

    service
        Name of the service in the settings, without ``.service``.

    Returns an empty text when it takes one, else a sentence.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_redis.refusal sidekiq
    """
    try:
        with _asking(service) as client:
            client.set(_PROBE_KEY, "1", ex=1)
    except CommandExecutionError as err:
        # An ACL that keeps Sidekiq's user to Sidekiq's own keys says nothing about those.
        return "" if type(err.__cause__).__name__ == "NoPermissionError" else str(err)
    return ""


def find(service: str, jids: list[str], names: list[str], gone: list[str]) -> dict[str, str]:
    """
    Where jobs are that no process finished.

    service
        Name of the service in the settings, without ``.service``.
    jids
        The jobs' ids.
    names
        The queues that they came from.
    gone
        Identities of processes that have ended: what their last heartbeats say of work holds no more.

    Returns jid -> fate, for those that were found: ``pushed back`` (in its queue, or in work again), ``retry``,
    ``scheduled``, ``dead``.

    Raises CommandExecutionError when Redis cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' sidekiq_redis.find sidekiq '["4e5c1b2d7f0a9c3e8b6d5a41"]' '["default"]' '[]'
    """
    places: dict[str, str] = {}
    with _asking(service) as client:
        for name in names:
            _note(places, jids, client.lrange(f"queue:{name}", -_REQUEUED_DEPTH, -1), "pushed back")
    for job in jobs(service):
        if job["jid"] in jids and job["identity"] not in gone:
            places.setdefault(job["jid"], "pushed back")
    with _asking(service) as client:
        for key, place in (("retry", "retry"), ("dead", "dead"), ("schedule", "scheduled")):
            if len(places) < len(jids):
                _note(places, jids, _members(client, key), place)
    return places


# --- below: how it is asked ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _asking(service: str) -> Iterator[Any]:
    """A client for the service's Redis; every failure becomes a sentence that says what to do, and never the URL."""
    client = _client(service)
    import redis

    try:
        yield client
    except redis.AuthenticationError as err:
        raise CommandExecutionError(
            f"Redis refuses the login of {service}: {err}. Is the password of REDIS_URL the one that Redis has?"
        ) from err
    except redis.OutOfMemoryError as err:
        raise CommandExecutionError(
            f"The Redis of {service} is full, it has reached its maxmemory: raise that, or let the queues be worked off"
        ) from err
    except redis.ReadOnlyError as err:
        raise CommandExecutionError(
            f"The Redis of {service} is a replica and takes no writes: does REDIS_URL name the primary?"
        ) from err
    except redis.BusyLoadingError as err:
        raise CommandExecutionError(f"The Redis of {service} still loads its data: wait until it serves") from err
    except redis.TimeoutError as err:
        raise CommandExecutionError(f"The Redis of {service} did not answer within {_TIMEOUT:g} s") from err
    except redis.ConnectionError as err:
        raise CommandExecutionError(f"The Redis of {service} cannot be reached: is it up? {_reason(err)}") from err
    except redis.RedisError as err:
        raise CommandExecutionError(f"The Redis of {service} answers: {err}") from err
    finally:
        with contextlib.suppress(redis.RedisError, OSError):
            client.close()


def _client(service: str) -> Any:
    env = _environment(service)
    url = env.get("REDIS_URL", "")
    if not url:
        raise CommandExecutionError(
            f"The settings give {service} no Redis, so it cannot be asked: set redis or redis_url of the service"
        )
    try:
        import redis  # late: it costs 0.04 s, and most runs need no answer from Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise CommandExecutionError(
            "Salt's Python has no module redis: apply redis_sidekiq, or pip.install it"
        ) from None
    extra = {"ssl_ca_certs": env["SSL_CERT_FILE"]} if url.startswith("rediss:") and env.get("SSL_CERT_FILE") else {}
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
        # Who calls has a budget of his own; the client's retries would multiply it.
        retry=Retry(NoBackoff(), 0),
        **extra,
    )


def _permitted(ask: Any, *words: str) -> Any:
    """An answer, or nothing where an ACL forbids the question."""
    import redis

    try:
        return ask(*words)
    except redis.exceptions.NoPermissionError:
        return {}


def _reach(service: str) -> None:
    url = urlsplit(_environment(service).get("REDIS_URL", ""))
    try:
        if url.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(_TIMEOUT)
                line.connect(unquote(url.path))
        else:
            socket.create_connection((url.hostname, url.port or 6379), _TIMEOUT).close()
    except OSError as err:
        place = url.path if url.scheme == "unix" else f"{url.hostname}:{url.port or 6379}"
        raise CommandExecutionError(
            f"The Redis of {service} cannot be reached: is it up? {err.strerror or err} at {place}"
        ) from err


def _environment(service: str) -> dict[str, Any]:
    for wish in __salt__["redis_sidekiq.settings"](reveal=True)["sidekiq"]["services"]:
        if wish["name"] == service:
            return wish["env"]
    raise SaltInvocationError(f"{service!r} is not a Sidekiq service of this minion")


def _reason(err: Exception) -> str:
    """redis-py names host and port, never the login, of a TCP connection; of a socket, its path."""
    return str(err).rstrip(".")


def _read_beat(identity: str, fields: dict[str, str], expiry: int) -> dict[str, Any]:
    hostname, pid, _ = identity.rsplit(":", 2)
    info = json.loads(fields.get("info") or "{}")
    beat = float(fields.get("beat") or 0)
    return {
        "identity": identity,
        "hostname": hostname,
        "pid": int(pid),
        "tag": info.get("tag", ""),
        "version": info.get("version"),
        "started": info.get("started_at"),
        # A field of its own since Sidekiq 8.1.2.
        "concurrency": int(info.get("concurrency") or fields.get("concurrency") or 0),
        "queues": info.get("queues", []),
        "busy": int(fields.get("busy") or 0),
        "quiet": fields.get("quiet") == "true",
        "rss": int(fields.get("rss") or 0),
        "beat": beat,
        # Without expiry (-1: a backup was restored) it is a ghost that never goes.
        "beat_age": round(_EXPIRY - expiry / 1000, 3) if expiry >= 0 else round(time.time() - beat, 3),
    }


def _read_job(identity: str, text: str) -> dict[str, Any]:
    work = json.loads(text)
    payload = work.get("payload") or {}
    if isinstance(payload, str):
        payload = json.loads(payload)
    began = float(work.get("run_at") or 0)
    return {
        "jid": payload.get("jid", ""),
        # ActiveJob wraps its own class in one of Sidekiq's.
        "class": payload.get("wrapped") or payload.get("class", ""),
        "queue": work.get("queue", ""),
        # Milliseconds since Sidekiq 8.
        "seconds": round(time.time() - (began / 1000 if began > 1e11 else began), 1),
        "identity": identity,
    }


def _latency(oldest: str | None) -> float:
    if oldest is None:
        return 0.0
    at = float(json.loads(oldest).get("enqueued_at") or 0)
    return round(max(0.0, time.time() - (at / 1000 if at > 1e11 else at)), 3) if at else 0.0


def _members(client: Any, key: str) -> Iterator[str]:
    return (member for member, _ in itertools.islice(client.zscan_iter(key, count=1000), _SCAN_LIMIT))


def _note(places: dict[str, str], jids: list[str], payloads: Any, place: str) -> None:
    """A jid is 24 random hex digits: a payload that contains it is the job's, whatever else it says."""
    for payload in payloads:
        for jid in jids:
            if jid in payload:
                places.setdefault(jid, place)
