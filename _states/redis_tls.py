"""
A running Redis shows the certificate of the settings, which a TLS handshake with it proves.

How to ask and to act is in the execution module of the same name. Files are the affair of :func:`redis_server.config`,
and which of them a server reads is that of :func:`redis_config.live`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}

_ERRORS = (CommandExecutionError, SaltInvocationError)


def live(name: str) -> dict[str, Any]:
    """
    A running instance shows the certificate of the settings at its port for TLS; older ones are gone from the host.

    A server that was told the right files, and yet shows another certificate, reads them anew; no connection ends by
    it. One that reads the right files and lets nobody in by TLS fails the state. One that still reads other files is
    left to :func:`redis_config.live` and :func:`redis_server.running`; the comment says so. A certificate that ends within 14 days is warned of.

    name
        Name of the instance in the settings: its port.

    Example:

    .. code-block:: yaml

        Redis instance 6379 shows its certificate:
          redis_tls.live:
            - name: '6379'
            - require:
              - redis_server: Redis instance 6379 serves
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    name = str(name)
    try:
        found = __salt__["redis_tls.status"](name)
        ret.update({"warnings": [f"Redis instance {name}: {found['expires']}"]} if found["expires"] else {})
        if found["same"] or not found["reads"] or found["unasked"]:
            proven = found["same"] or not found["reads"] or __opts__["test"]
            if not __opts__["test"]:
                __salt__["redis_tls.tidy"](name)
            return {**ret, "result": proven, "comment": f"Redis instance {name} {_sentence(found)}"}
        ret["changes"] = {"certificate": {"old": _shown(found["shown"]), "new": _shown(found["wished"])}}
        if __opts__["test"]:
            return {**ret, "result": None, "comment": f"Redis instance {name} would read its certificate anew"}
        __salt__["redis_tls.reload"](name)
        after = __salt__["redis_tls.status"](name)
        if not after["same"]:
            comment = f"Redis instance {name} read its certificate anew, and yet {_sentence(after)}"
            return {**ret, "result": False, "comment": comment}
        __salt__["redis_tls.tidy"](name)
        return {**ret, "comment": f"Redis instance {name} read its certificate anew"}
    except _ERRORS as err:
        return {**ret, "result": False, "changes": {}, "comment": str(err)}


# --- below: comparing and saying -------------------------------------------------------------------------------------


def _shown(facts: dict[str, Any]) -> str:
    return f"sha256 {facts['sha256']}" if facts else ""


def _sentence(found: dict[str, Any]) -> str:
    if found["same"]:
        return "shows its certificate" if found["wished"] else "has no TLS"
    if found["unasked"]:
        return f"does not show its certificate: {found['unasked']}"
    if not found["reads"]:
        return "reads other certificate files until its settings are at work"
    return f"shows another certificate, {_shown(found['shown'])}"
