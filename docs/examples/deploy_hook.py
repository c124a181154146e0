#!/usr/bin/env python3
"""
Tell a Salt master by its signed webhook that an app was deployed, from a machine that is no minion:

    deploy_hook.py https://salt.example.org:8000/hook/redis_sidekiq/deploy/shop SECRET_FILE [CA_FILE]

The secret is read from a file, so that it is on no command line. The form is that of Standard Webhooks, for which there
are libraries in many languages. Needs Python and nothing else.
"""

import base64
import hashlib
import hmac
import ssl
import sys
import time
import urllib.request
import uuid


def headers(secret: bytes, body: bytes, call: str = "", moment: int = 0) -> dict:
    """Return the headers of a call: its id, its time (epoch s) and the signature over both and the body."""
    call, moment = call or str(uuid.uuid4()), moment or int(time.time())
    signed = b".".join([call.encode(), str(moment).encode(), body])
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "Webhook-Id": call,
        "Webhook-Timestamp": str(moment),
        "Webhook-Signature": "v1," + base64.b64encode(digest).decode(),
    }


def main() -> None:
    """Read the command line and call the hook."""
    url, secret_file, *ca_file = sys.argv[1:]
    with open(secret_file, "rb") as handle:
        secret = handle.read().strip()
    body = b"{}"
    context = ssl.create_default_context(cafile=ca_file[0] if ca_file else None)
    request = urllib.request.Request(url, body, headers(secret, body), method="POST")
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        answer.read()


if __name__ == "__main__":
    main()
