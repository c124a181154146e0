#!py
"""
A signed call of salt-api's hook asks for a roll-out of its app: salt/netapi/hook/redis_sidekiq/deploy/APP

Anybody who reaches salt-api can cause such an event, and so can any minion. What counts is the signature: HMAC-SHA256
with the app's secret, which is in the file `secret_file` of the app in redis_sidekiq:apps of the master's configuration
(docs/deploy-events.md). Two forms are taken:

- Standard Webhooks: headers webhook-id, webhook-timestamp (at most five minutes off) and webhook-signature, over
  `ID.TIMESTAMP.BODY`;
- GitHub's: header X-Hub-Signature-256, over the body.

The body says nothing else that counts. Nothing that was refused reaches the log but the app's name and the reason.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import stat
import time

log = logging.getLogger(__name__)

TAG = re.compile(r"salt/netapi/hook/redis_sidekiq/deploy/([A-Za-z0-9][A-Za-z0-9_-]{0,63})")
WINDOW = 300  # s; the tolerance that Standard Webhooks recommends
LARGEST = 1 << 20  # bytes of body; salt-api 3008 means to have this limit and does not set it
SHORTEST = 16  # bytes of secret


class Refused(Exception):
    """Why a call does not count; never with anything of the secret or the signature."""


def run():
    match = TAG.fullmatch(tag)  # noqa: F821 (Salt puts tag, data and __opts__ here)
    if not match:
        log.warning("A webhook was refused, its path names no app: %r", tag[:200])  # noqa: F821
        return {}
    try:
        once = _verified(_secret(__opts__, match[1]), data)  # noqa: F821
    except Refused as err:
        log.warning("A webhook for %s was refused: %s", match[1], err)
        return {}
    arguments = [{"app": match[1]}, {"source": "webhook"}, {"once": once}]
    return {f"Roll out {match[1]}": {"runner.sidekiq_rollout.request": [{"args": arguments}]}}


def _secret(opts, app):
    settings = opts.get("redis_sidekiq")
    apps = settings.get("apps") if isinstance(settings, dict) else None
    entry = apps.get(app) if isinstance(apps, dict) else None
    if not isinstance(entry, dict):
        raise Refused("redis_sidekiq:apps of the master's configuration has no such app")
    path = entry.get("secret_file")
    if not isinstance(path, str) or not path:
        raise Refused("the app has no secret_file")
    try:
        with open(path, "rb") as handle:
            if stat.S_IMODE(os.fstat(handle.fileno()).st_mode) & 0o077:
                raise Refused(f"others may read its secret_file: chmod 0600 {path}")
            secret = handle.read().strip()
    except OSError as err:
        raise Refused(f"its secret_file cannot be read: {err.strerror}") from None
    if secret.startswith(b"whsec_"):
        try:
            secret = base64.b64decode(secret[6:], validate=True)
        except binascii.Error:
            raise Refused("its secret_file begins with whsec_ and goes on with something else than base64") from None
    if len(secret) < SHORTEST:
        raise Refused(f"its secret is shorter than {SHORTEST} bytes")
    return secret


def _verified(secret, event):
    """What belongs to this call alone, if its signature is right."""
    headers, body = _parts(event)
    if "x-hub-signature-256" in headers:
        expected = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
        _compare(expected, [headers["x-hub-signature-256"]])
        return hashlib.sha256(body).hexdigest()
    call, moment = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not re.fullmatch(r"[\x21-\x7e]{1,200}", call) or not re.fullmatch(r"\d{1,12}", moment):
        raise Refused("it is not signed")
    signed = b".".join([call.encode(), moment.encode(), body])
    expected = "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    _compare(expected, headers.get("webhook-signature", "").split())
    if abs(time.time() - int(moment)) > WINDOW:
        raise Refused(f"its time is more than {WINDOW} s off")
    return hashlib.sha256(signed).hexdigest()


def _compare(expected, candidates):
    # Each is compared, so that the time taken says nothing.
    if not sum(hmac.compare_digest(expected.encode(), one.encode("utf-8", "surrogatepass")) for one in candidates[:5]):
        raise Refused("its signature is missing or wrong")


def _parts(event):
    headers, body = (event.get("headers"), event.get("body")) if isinstance(event, dict) else (None, None)
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    if not isinstance(headers, dict) or not isinstance(body, bytes):
        raise Refused("it is no call of the hook")
    if len(body) > LARGEST:
        raise Refused(f"its body is longer than {LARGEST} bytes")
    return {str(name).lower(): value for name, value in headers.items() if isinstance(value, str)}, body
