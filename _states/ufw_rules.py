"""
Converge UFW to the rules that the pillar names, without ever shutting out ssh.

``_modules/ufw_rules.py`` says what is; this module compares and has it changed. In what order, and why, stands with
:py:func:`ufw_rules.apply <apply>` there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}
    __opts__: dict[str, Any] = {}

__virtualname__ = "ufw_rules"


def __virtual__():
    return __virtualname__


def managed(
    name,
    rules,
    incoming="deny",
    outgoing="allow",
    enabled=True,
    root="",
    routed=None,
    logging=None,
    only_ours=False,
    allow_lockout=(),
    confirm="run",
    confirm_within=60,
):
    """
    UFW has these rules of ours, these policies, and is on (or off): in its files and in the kernel.

    Rules of ours carry the comment ``redis_sidekiq:NAME``; one that is not listed any more is deleted. Rules without
    that comment stay as they are. One that equals a listed rule counts as present and is not taken over; one that
    matches the same packets with another action is replaced, because ufw holds one action for one match. With
    ``only_ours`` rules of others go, and one that equals a listed rule becomes ours.

    A run that would shut somebody out (ssh, who is logged in, this minion's master, the minions of a master) changes
    nothing and fails, with ``test=True`` too.

    name
        Any text.
    rules
        List of rules in the order in which they are to be tried, each a dictionary: ``name``; ``action`` allow
        (default), deny, reject or limit; ``direction`` in (default) or out; ``interface`` (default: all); ``port`` like
        22, ``6000:6010``, ``[80, 443]`` or ``any``; ``proto`` tcp (default), udp, any, or ah, esp, gre, igmp, ipv6,
        vrrp, which have no ports; ``from`` and ``to`` ``any`` (default), an address or a CIDR; ``family`` any (default),
        ipv4 or ipv6; ``log`` empty (default), log or log-all; ``comment`` one line. In place of ``port`` and ``proto``:
        ``app``, the name of an application profile.
    incoming, outgoing
        Policy for packets that no rule matches: allow, deny or reject. Default: deny in, allow out.
    enabled
        Whether the firewall is on, now and at boot. Default: true.
    root
        A private copy of UFW's files instead of this host's, as for ``ufw --rootdir``.
    routed
        Policy for packets that pass through this host: allow, deny or reject. Default: as it is.
    logging
        Log level: off, low, medium, high or full. Default: as it is.
    only_ours
        Whether rules that others made go too. Default: false.
    allow_lockout
        Names of guards (see ``ufw_guard``) whose refusal is overridden: ssh, ssh_ipv4, ssh_ipv6, connection, limit,
        master, dns, minions. Default: none.
    confirm
        Who confirms a change, so that systemd does not put the former rules back: ``run`` (default) itself by new
        connections, ``master`` by `salt MINION ufw_guard.confirm`, ``none`` if they are never to come back.
    confirm_within
        Seconds until they come back otherwise. Default: 60.

    ``changes`` holds ``rules`` (``added``, ``removed``), ``policies``, ``logging`` and ``enabled`` (``old``, ``new``).

    .. code-block:: yaml

        The firewall lets in what the pillar names and nothing else:
          ufw_rules.managed:
            - rules:
                - {name: ssh, port: 22}
                - {name: redis_6379, port: 6379, from: 10.0.0.0/8}
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "UFW is as wished"}
    wish = {
        "incoming": incoming,
        "outgoing": outgoing,
        "enabled": enabled,
        "root": root,
        "routed": routed,
        "logging": logging,
        "only_ours": only_ours,
        "allow_lockout": allow_lockout,
        "confirm": confirm,
        "confirm_within": confirm_within,
    }
    changes = {}
    try:
        changes = __salt__["ufw_rules.differences"](rules, **wish)
        if not changes:
            return {**ret, "comment": ret["comment"] + _waits(root)}
        if __opts__["test"]:
            comment = f"UFW would change: {_sentence(changes)}"
            if confirm == "master":
                comment += f", and the former rules come back unless it is confirmed within {confirm_within} s"
            return {**ret, "result": None, "changes": changes, "comment": comment}
        ret["changes"] = __salt__["ufw_rules.apply"](rules, **wish)
        left = __salt__["ufw_rules.differences"](rules, **wish)
    except (CommandExecutionError, SaltInvocationError) as exc:
        made = _made(changes, "ufw_rules.differences", rules, **wish) if changes else {}
        return {**ret, "result": False, "changes": made, "comment": str(exc)}
    if left:
        return {**ret, "result": False, "comment": f"UFW was changed, but still differs: {_sentence(left)}"}
    if not ret["changes"]:
        return {**ret, "comment": "UFW is as wished: another run changed it meanwhile"}
    return {**ret, "comment": f"UFW was changed: {_sentence(ret['changes'])}{_waits(root)}"}


def _waits(root):
    """Who has to confirm what was changed, and until when."""
    found = {} if root else __salt__["ufw_guard.pending"]()
    if not found:
        return ""
    return (
        f". It waits for `salt {__opts__.get('id', 'MINION')} ufw_guard.confirm`: the former rules come back at "
        f"{found['until']}"
    )


def absent(name, root=""):
    """
    None of our rules is in UFW any more, and its policies are those of before our first change. If UFW was off then, it
    is off again. If it was on, it is on again, and those of our rules stay without which sshd could not be reached; the
    comment names them.

    name
        Any text.
    root
        A private copy of UFW's files instead of this host's, as for ``ufw --rootdir``.

    .. code-block:: yaml

        The firewall is as it was before this formula:
          ufw_rules.absent: []
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": "None of our rules is in UFW"}
    try:
        found = __salt__["ufw_rules.leftovers"](root=root)
        if not found["changes"]:
            return {**ret, "comment": ret["comment"] + _kept(found)}
        if __opts__["test"]:
            comment = f"UFW would change: {_sentence(found['changes'])}{_kept(found)}"
            return {**ret, "result": None, "changes": found["changes"], "comment": comment}
        done = __salt__["ufw_rules.withdraw"](root=root)
        left = __salt__["ufw_rules.leftovers"](root=root)["changes"]
    except (CommandExecutionError, SaltInvocationError) as exc:
        return {**ret, "result": False, "comment": str(exc)}
    ret["changes"] = done["changes"]
    if left:
        return {**ret, "result": False, "comment": f"UFW was changed, but still differs: {_sentence(left)}"}
    return {**ret, "comment": f"UFW was changed: {_sentence(done['changes'])}{_kept(done)}"}


def _made(planned, function, *args, **kwargs):
    """What of the planned changes is in place after a run that failed half-way."""
    try:
        left = __salt__[function](*args, **kwargs)
    except (CommandExecutionError, SaltInvocationError):
        return {}
    rules = {
        key: [text for text in found if text not in left.get("rules", {}).get(key, [])]
        for key, found in planned.get("rules", {}).items()
    }
    made = {
        "rules": {key: found for key, found in rules.items() if found},
        "policies": {
            key: new for key, new in planned.get("policies", {}).items() if key not in left.get("policies", {})
        },
        **{key: planned.get(key, {}) if key not in left else {} for key in ("logging", "enabled")},
    }
    return {key: found for key, found in made.items() if found}


def _sentence(changes):
    """``changes`` in one line, for the comment."""
    rules = changes.get("rules", {})
    parts = [f"{key} {', '.join(found)}" for key, found in rules.items()]
    parts += [f"{key} {new['old'] or 'unset'} -> {new['new']}" for key, new in changes.get("policies", {}).items()]
    if "logging" in changes:
        parts.append(f"logging {changes['logging']['old']} -> {changes['logging']['new']}")
    if "enabled" in changes:
        old, new = changes["enabled"]["old"], changes["enabled"]["new"]
        parts.append(f"put in force again ({old})" if isinstance(old, str) else f"switched {'on' if new else 'off'}")
    parts += [f"{path} written anew, it was cut off" for path in changes.get("files", [])]
    parts += [f"{name} {one['old']} -> {one['new']}" for name, one in changes.get("sysctls", {}).items()]
    parts += [changes["record"]] if "record" in changes else []
    parts += ["the former change confirmed"] if "rollback" in changes else []
    return "; ".join(parts)


def _kept(found):
    if not found["kept"]:
        return ""
    return f", but for {', '.join(found['kept'])}: without it nobody could reach sshd. `ufw delete` it if that is meant"
