"""
The certificate of a Redis instance: judged before it counts, put in place whole, and asked from the running server.

A certificate, its key and its CA come from files on the host or from the pillar. A copy of them lies in a folder of its
own, ``/etc/redis/tls/PORT/VERSION``, where VERSION is part of their digest: no folder ever changes, so certificate and
key in it belong together at any moment, and what ``CONFIG GET tls-cert-file`` says of a running server is what it has
read. A renewed certificate is another path, which ``CONFIG SET`` makes the server read without a restart; connections
stay. That is the affair of :mod:`redis_config`; here is the proof, a TLS handshake with the server.

A key is in no return, no argument and no message.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import contextlib
import grp
import hashlib
import os
import re
import shutil
import socket
import ssl
import stat
import time
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}

_FOLDER = "/etc/redis/tls"
_NAMES = {"cert.pem": "tls-cert-file", "key.pem": "tls-key-file", "ca.pem": "tls-ca-cert-file"}
_TIMEOUT = 10.0  # s for a handshake
_UNREADABLE = "cannot be read: there is no such file, or it is a folder"
_SOON = 14  # days before its end that a certificate is warned of


# Facts ---------------------------------------------------------------------------------------------------------------


def status(instance: str) -> dict[str, Any]:
    """
    The certificate that a running server shows, and the one of the settings.

    instance
        Name of the instance in the settings: its port.

    Returns ``wished`` and ``shown``, each ``sha256`` (fingerprint), ``since`` and ``until`` (epoch s), or {}; ``same``
    (bool); ``reads`` (bool): the server was told to read the files of the settings; ``unasked``: why nothing could be
    compared, or empty; ``expires``: a sentence about a certificate that ends within 14 days, or empty.

    Raises CommandExecutionError when the certificate of the settings cannot be read.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_tls.status 6379
    """
    wish = _wish(instance)
    if not wish["tls"]:
        return {"wished": {}, "shown": {}, "same": True, "reads": True, "unasked": "", "expires": ""}
    found = {"wished": _facts(_certificate(wish)), "shown": {}, "same": False, "reads": False, "unasked": ""}
    found["expires"] = _ends_soon(found["wished"]["until"])
    running = _running(instance)
    if running is None:
        return {**found, "unasked": "no server answers, or it takes no password known here"}
    found["reads"] = all(running.get(name, "") == path for name, path in _files(wish).items())
    try:
        found["shown"] = _facts(_handshake(wish))
    except OSError as err:
        return {**found, "unasked": f"no certificate is shown at port {wish['tls']['port']}: {err}"}
    return {**found, "same": found["shown"] == found["wished"]}


def placed(instance: str) -> dict[str, str]:
    """
    Whether the files of an instance's certificate lie where its config names them, as the settings say.

    instance
        Name of the instance in the settings.

    Returns {} when they do, else ``old`` and ``new``: fingerprint and end of the certificate that the config on this
    host names now and of the one that it will name, empty for none.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_tls.placed 6379
    """
    wish = _wish(instance)
    folder = os.path.join(_FOLDER, wish["name"])
    if not wish["tls"]:
        return {"old": _described(_in_place(wish)), "new": ""} if os.path.isdir(folder) else {}
    group = _settings()["group"]
    right = all(
        _is_right(os.path.join(_version(wish), file), text, group) for file, text in wish["tls"]["contents"].items()
    )
    return {} if right else {"old": _described(_in_place(wish)), "new": _described(wish["tls"]["contents"]["cert.pem"])}


def check(instance: str) -> None:
    """
    Look at the certificate of the settings as far as Redis does not: is it there, is it one, is it valid today? Whether
    the key belongs to it is for Redis to say.

    instance
        Name of the instance in the settings.

    Raises CommandExecutionError with the name of the setting that is wrong.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_tls.check 6379
    """
    wish = _wish(instance)
    tls = wish["tls"]
    for file, text in tls.get("contents", {}).items():
        if text is None:
            raise CommandExecutionError(f"{tls['sources'][file]} {_UNREADABLE}")
        if "ENCRYPTED" in text:
            raise CommandExecutionError(f"{tls['sources'][file]} has a passphrase, which nobody is there to type")
    if tls:
        facts, now = _facts(_certificate(wish)), time.time()
        if not facts["since"] <= now < facts["until"]:
            span = f"from {_day(facts['since'])} to {_day(facts['until'])}"
            raise CommandExecutionError(f"{tls['sources']['cert.pem']} is not valid now: it is {span}")


# Acts ----------------------------------------------------------------------------------------------------------------


def lend(instance: str, folder: str, gid: int, directives: list[list[str]]) -> list[list[str]]:
    """
    Give a server that only judges a config the files of the settings, in its own folder.

    instance
        Name of the instance in the settings.
    folder
        That server's folder.
    gid
        Its group, by number.
    directives
        Lines of its config, as ``[name, value]``.

    Returns the lines, with the paths of the files there.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_tls.lend 6379 /run/scratch 100 '[["tls-cert-file", "x"]]'
    """
    wish = _wish(instance)
    for file, text in wish["tls"]["contents"].items():
        __salt__["whole_files.write"](os.path.join(folder, file), text, 0o640, gid)
    there = {_NAMES[file]: os.path.join(folder, file) for file in wish["tls"]["contents"]}
    return [[name, there.get(name, value)] for name, value in directives]


def place(instance: str) -> None:
    """
    Put the files of the settings where the instance's config names them; root:GROUP 0640, in a folder that takes its
    name when they are all in it.

    instance
        Name of the instance in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_tls.place 6379
    """
    wish = _wish(instance)
    group, target = _settings()["group"], _version(wish)
    gid = _gid(group)
    try:
        for folder in (_FOLDER, os.path.dirname(target)):
            _make_folder(folder, gid)
        if os.path.isdir(target) and not os.path.islink(target):
            for file, text in wish["tls"]["contents"].items():
                if not _is_right(os.path.join(target, file), text, group):
                    __salt__["whole_files.write"](os.path.join(target, file), text, 0o640, gid)
            _make_folder(target, gid)
            return
        draft = f"{target}.new"
        shutil.rmtree(draft, ignore_errors=True)
        _make_folder(draft, gid)
        for file, text in wish["tls"]["contents"].items():
            __salt__["whole_files.write"](os.path.join(draft, file), text, 0o640, gid)
        os.rename(draft, target)
        __salt__["whole_files.sync_folder"](os.path.dirname(target))
    except OSError as err:
        raise CommandExecutionError(f"Cannot put the certificate of {wish['unit']} in place: {err}") from err


def reload(instance: str) -> None:
    """
    Let a running server read its certificate anew: CONFIG SET of the same paths (src/config.c, VOLATILE_CONFIG: they
    are applied though they do not differ). It takes all files or keeps what it had.

    instance
        Name of the instance in the settings.

    Raises CommandExecutionError with Redis' words when it refuses, or cannot be asked.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_tls.reload 6379
    """
    import redis  # late: it costs 0.04 s, and it may have been installed by this very run

    wish = _wish(instance)
    with __salt__["redis_server.session"](instance) as client:
        if client is None:
            raise CommandExecutionError(f"{wish['unit']} takes no password known here")
        words = [word for pair in _files(wish).items() for word in pair]
        try:
            client.execute_command("CONFIG SET", *words)
        except redis.RedisError as err:
            said = f"{wish['unit']} does not read its certificate: {err}; its log says why"
            raise CommandExecutionError(said) from err


def tidy(instance: str) -> list[str]:
    """
    Take away certificates that neither the settings nor the running server name any more, keys and all.

    instance
        Name of the instance in the settings.

    Returns the folders that were removed. Nothing is, while the server cannot be asked, or has another build to go over
    to: the config that it could go back to may name another certificate.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_tls.tidy 6379
    """
    wish, running = _wish(instance), _running(instance)
    found = __salt__["redis_upgrade.facts"](instance)
    if running is None or not wish["tls"] or found["under_way"] or found["build"] not in ("", found["wished"]):
        return []
    keep = {_version(wish), *map(os.path.dirname, running.values())}
    folder = os.path.join(_FOLDER, wish["name"])
    surplus = [os.path.join(folder, entry) for entry in _entries(folder)]
    surplus = [path for path in surplus if path not in keep]
    for path in surplus:
        _remove(path)
    return surplus


def remove(instance: str) -> None:
    """
    Take away all certificates of an instance.

    instance
        Name of the instance in the settings.

    CLI Example:

    .. code-block:: bash

        salt '*' redis_tls.remove 6379
    """
    _remove(os.path.join(_FOLDER, _wish(instance)["name"]))


# --- below: how it is done -------------------------------------------------------------------------------------------

# The settings, the server


def _settings() -> dict[str, Any]:
    return __salt__["redis_sidekiq.settings"](reveal=True)["redis"]


def _wish(instance: str) -> dict[str, Any]:
    found = [wish for wish in _settings()["instances"] if wish["name"] == str(instance)]
    if not found:
        raise SaltInvocationError(f"{instance!r} is not a Redis instance of this minion")
    return found[0]


def _version(wish: dict[str, Any]) -> str:
    return os.path.join(wish["tls"]["folder"], wish["tls"]["version"])


def _files(wish: dict[str, Any]) -> dict[str, str]:
    """Directive -> path."""
    return {_NAMES[file]: os.path.join(_version(wish), file) for file in wish["tls"]["sources"]}


def _running(instance: str) -> dict[str, str] | None:
    """Directive -> path, of what the running server reads; None without an answer."""
    with __salt__["redis_server.session"](instance, hold=False) as client:
        if client is None:
            return None
        import redis

        try:
            return {name: path for name, path in client.config_get("tls-*-file").items() if name in _NAMES.values()}
        except redis.RedisError:
            return None


def _handshake(wish: dict[str, Any]) -> bytes:
    """
    The certificate that a server shows, as DER. Its own is shown to it in turn, as one replica does to another: a
    server that demands one says nothing else with TLS 1.2.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError):
        context.load_cert_chain(*(os.path.join(_version(wish), file) for file in ("cert.pem", "key.pem")))
    place = (wish["tls"]["host"], wish["tls"]["port"])
    with socket.create_connection(place, _TIMEOUT) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True)


# Certificates


def _certificate(wish: dict[str, Any]) -> bytes:
    """The certificate of the settings as DER: the first of its file, as OpenSSL takes it."""
    source, text = wish["tls"]["sources"]["cert.pem"], wish["tls"]["contents"]["cert.pem"]
    if text is None:
        raise CommandExecutionError(f"{source} {_UNREADABLE}")
    try:
        der = _der(text)
        _validity(der)
    except (ValueError, IndexError):
        raise CommandExecutionError(f"{source} is no certificate in PEM form") from None
    return der


def _der(text: str) -> bytes:
    block = re.search(r"-----BEGIN (?:TRUSTED )?CERTIFICATE-----(.+?)-----END", text, re.DOTALL)
    if not block:
        raise ValueError
    try:
        return base64.b64decode("".join(block[1].split()), validate=True)
    except binascii.Error:
        raise ValueError from None


def _facts(der: bytes) -> dict[str, Any]:
    since, until = _validity(der)
    return {"sha256": hashlib.sha256(der).hexdigest(), "since": since, "until": until}


def _validity(der: bytes) -> tuple[int, int]:
    """
    From when to when it is valid (epoch s), from RFC 5280, 4.1: Certificate, its TBSCertificate, and in that after a
    version that may be missing the serial number, the algorithm, the issuer and the validity. The ssl module tells it
    only of a peer whose chain it has verified.
    """
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    tag, _, after = _element(der, at)
    if tag == 0xA0:
        at = after
    for _ in range(3):
        at = _element(der, at)[2]
    _, at, _ = _element(der, at)
    times = []
    for _ in range(2):
        tag, start, at = _element(der, at)
        text = der[start:at].decode("ascii")
        if tag == 0x17:  # UTCTime: two digits of the year, which turn in 1950
            text = ("19" if text[:2] >= "50" else "20") + text
        times.append(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))
    return times[0], times[1]


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, and where its contents begin and end (X.690, 8.1)."""
    tag, length, at = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(der[at : at + size], "big"), at + size
    if at + length > len(der):
        raise ValueError
    return tag, at, at + length


def _described(text: str | None) -> str:
    if text is None:
        return ""
    try:
        facts = _facts(_der(text))
    except (ValueError, IndexError):
        return "no certificate"
    return f"sha256 {facts['sha256']}, until {_day(facts['until'])}"


def _in_place(wish: dict[str, Any]) -> str | None:
    """The certificate that the config on this host names."""
    try:
        with open(wish["config"], encoding="utf-8", errors="replace") as stream:
            path = re.search(r"^tls-cert-file (\S+)$", stream.read(), re.MULTILINE)
        return _read(path[1]) if path else None
    except OSError:
        return None


def _day(epoch: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(epoch))


def _ends_soon(until: float) -> str:
    return f"its certificate ends on {_day(until)}: renew it" if until - time.time() < _SOON * 86400 else ""


# Files


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace", newline="") as stream:
        return stream.read()


def _is_right(path: str, text: str | None, group: str) -> bool:
    try:
        info = os.lstat(path)
        right = stat.S_ISREG(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o640 and info.st_uid == 0
        return right and grp.getgrgid(info.st_gid).gr_name == group and _read(path) == text
    except (OSError, KeyError):
        return False


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise CommandExecutionError(f"There is no group {group}: apply redis_sidekiq.redis, which makes it") from None


def _make_folder(path: str, gid: int) -> None:
    os.makedirs(path, mode=0o750, exist_ok=True)
    os.chown(path, 0, gid)
    os.chmod(path, 0o750)


def _remove(path: str) -> None:
    try:
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as err:
        raise CommandExecutionError(f"Cannot remove {path}: {err}") from err
