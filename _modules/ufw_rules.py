"""
UFW as it is, and the acts that change it without ever shutting out ssh.

``_states/ufw_rules.py`` compares and converges; this module asks and acts.

Where the facts come from (ufw 0.36.2):

* ``/etc/ufw/user.rules`` and ``user6.rules``: the rules, one ``### tuple ###`` line each. They are the truth while UFW
  is off too, when ``ufw status`` shows nothing (``ufw/backend_iptables.py``, ``_read_rules``).
* ``/etc/default/ufw``: the policies and ``IPV6``. ``/etc/ufw/ufw.conf``: ``ENABLED``.
* The kernel, over netlink: UFW's chains, how many rules each holds, the built-in policies. ufw writes a file first and
  the kernel after that, so a run that was cut off in between leaves a rule in the file only; and a firewall that failed
  to start at boot is still ``ENABLED=yes``. No process is needed to ask.

Whose rule is whose: ours carry the comment ``redis_sidekiq:NAME``, and after a space the user's own words. A rule of
someone else stays as it is. If it is the very rule that is wished, it counts as present and keeps its owner and comment
(so clean will not take it away); a rule made of an application profile is the rule of its ports. Only a rule that matches
the same packets with *another* action is replaced: ufw holds one action for one match. With ``only_ours`` rules of others
go, and those that are wished become ours.
"""

from __future__ import annotations

import collections
import configparser
import contextlib
import errno
import fcntl
import glob
import ipaddress
import json
import logging
import os
import re
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import salt.utils.atomicfile
import salt.utils.files
import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}
    __opts__: dict[str, Any] = {}

log = logging.getLogger(__name__)

__virtualname__ = "ufw_rules"

TAG = "redis_sidekiq:"
ANY = {"4": "0.0.0.0/0", "6": "::/0"}
RULES = {"4": "/etc/ufw/user.rules", "6": "/etc/ufw/user6.rules"}
DEFAULTS = "/etc/default/ufw"
CONF = "/etc/ufw/ufw.conf"
AFTER = ("/etc/ufw/after.rules", "/etc/ufw/after6.rules")
PROFILES = "/etc/ufw/applications.d"
PROC_SYS = "/proc/sys"
RECORD = "/var/lib/redis_sidekiq/firewall.json"
LOCK = "/run/redis_sidekiq-ufw.lock"
UFW_LOCK = "/run/ufw.lock"
BOOT_LINK = "/etc/systemd/system/multi-user.target.wants/ufw.service"

# ufw's words for iptables' (ufw/backend.py, _get_default_policy).
POLICIES = {"ACCEPT": "allow", "DROP": "deny", "REJECT": "reject"}
DIRECTIONS = {"incoming": "INPUT", "outgoing": "OUTPUT", "routed": "FORWARD"}
ALWAYS = ("incoming", "outgoing")  # the others stay as they are unless somebody wishes them
LETS_IN = ("allow", "limit")
ACTIONS = (*LETS_IN, "deny", "reject")
LOGS = ("log", "log-all")
LEVELS = ("off", "low", "medium", "high", "full")
# ufw/util.py: portless_protocols, ipv4_only_protocols
PORTLESS = ("ah", "esp", "gre", "igmp", "ipv6", "vrrp")
IPV4_ONLY = ("igmp", "ipv6")
PROTOCOLS = ("tcp", "udp", "any", *PORTLESS)
FAMILIES = {"any": "46", "ipv4": "4", "ipv6": "6"}
# Words of ufw's own grammar, which it would not take for a name (ufw/parser.py).
GRAMMAR = ("any", "app", "comment", "from", "in", "log", "log-all", "on", "out", "port", "proto", "to")
INTERFACE = r"[A-Za-z0-9_.+,=%@-]{1,15}"  # ufw/common.py, set_interface
PORTS_OF_A_RULE = 15  # a range counts as two: iptables' multiport (ufw/common.py, set_port)

LOCK_TIMEOUT = 120  # s: a whole run of ours takes a few seconds
UFW_TIMEOUT = 120  # s: one ufw command; `enable` takes 0.5 s, more on a host that boots


def __virtual__():
    # Not `which("ufw")`: the package may be installed by the very run that uses this module.
    return __virtualname__


# --------------------------------------------------------------------------------------------------------------------
# Rules: the pillar's form, ufw's tuples, and when two of them are the same
# --------------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One ``### tuple ###`` line of ``user.rules`` (family 4) or ``user6.rules`` (family 6)."""

    family: str
    action: str  # allow, deny, reject, limit; also allow_log, route:allow, ...
    proto: str
    port: str
    to: str
    sport: str
    source: str
    apps: str
    direction: str  # in, out, in_eth0, ...
    comment: str
    spelt: str = ""  # `to` and `source` where the file has them otherwise: ufw keeps the host bits of IPv6

    @property
    def match(self):
        """What ufw holds one rule for: everything but action and comment (``UFWRule.match``)."""
        return (*self.packets, self.apps)

    @property
    def packets(self):
        """What it matches, whether it was made of an application profile or not."""
        return (
            self.family,
            self.route,
            self.proto,
            self.port,
            self.to,
            self.sport,
            self.source,
            self.direction,
        )

    @property
    def route(self):
        return self.action.startswith("route:")

    @property
    def log(self):
        """``log`` of ``allow_log``."""
        return self.action.partition("_")[2]

    @property
    def way(self):
        """``in`` or ``out``; for a route both may be there."""
        return self.direction.partition("_")[0]

    @property
    def interface(self):
        return self.direction.partition("_")[2]

    @property
    def anywhere(self):
        return self.source == self.to == ANY[self.family]

    @property
    def ours(self):
        return self.comment.startswith(TAG)

    @property
    def verb(self):
        """``allow`` of ``allow_log`` and of ``route:allow``."""
        return self.action.rpartition(":")[2].partition("_")[0]

    @property
    def lets_in(self):
        return self.verb in LETS_IN


def _network(text, family):
    """An address or CIDR as ufw writes it: no host bits, no ``/32``; ``any`` as the family's all-zero network."""
    if text == "any":
        return ANY[family]
    network = ipaddress.ip_network(text, strict=False)
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return str(network)


def _parse_line(text, family):
    """A ``### tuple ###`` line as :class:`Line`; ``None`` for other lines and for a malformed one, which ufw skips."""
    if not text.startswith("### tuple ###"):
        return None
    text, _, comment = text[len("### tuple ###") :].partition(" comment=")
    words = text.split()
    if len(words) not in (6, 7, 8, 9):
        return None
    # Six and eight words: the form of old releases, without a direction (_read_rules).
    direction = words.pop() if len(words) in (7, 9) else "in"
    action, proto, port, to, sport, source, *apps = words
    try:
        comment = bytes.fromhex(comment.strip()).decode("utf-8", "backslashreplace")
        written, (to, source) = f"{to} {source}", (_network(to, family), _network(source, family))
    except ValueError:
        return None
    spelt = written if written not in (f"{to} {source}", "any any") else ""
    port, sport, apps = _sorted(port), _sorted(sport), " ".join(apps)
    return Line(family, action, proto, port, to, sport, source, apps, direction, comment, spelt)


def _sorted(ports):
    """A list of ports in the order in which ufw writes it (``ufw/util.py``, ``human_sort``)."""

    def _numbers(port):
        return [int(end) if end.isdigit() else 0 for end in port.split(":")]

    return ",".join(sorted(ports.split(","), key=_numbers))


def _families(rule, ipv6):
    """``46`` for a rule from anywhere to anywhere; for a CIDR its own family."""
    found = FAMILIES[rule["family"]]
    for key in ("from", "to"):
        if rule[key] == "any":
            continue
        try:
            own = str(ipaddress.ip_network(rule[key], strict=False).version)
        except ValueError as exc:
            raise SaltInvocationError(
                f"Rule {rule['name']}: found {key} {rule[key]!r}; allowed: any, an address or a CIDR like 10.0.0.0/8"
            ) from exc
        if own not in found:
            raise SaltInvocationError(
                f"Rule {rule['name']}: {key} {rule[key]} is IPv{own}, and the rest of the rule is not: "
                "take one of them out"
            )
        found = own
    if rule["proto"] in IPV4_ONLY:
        if found == "6":
            raise SaltInvocationError(f"Rule {rule['name']}: proto {rule['proto']} is a protocol of IPv4 alone")
        found = "4"
    if found == "6" and not ipv6:
        what = next((f"{key} {rule[key]}" for key in ("from", "to") if rule[key] != "any"), "family ipv6")
        raise SaltInvocationError(
            f"Rule {rule['name']}: {what} is IPv6, but IPv6 is off for UFW here: "
            f"set IPV6=yes in {DEFAULTS}, or take the rule out"
        )
    return found if ipv6 else "4"


_DEFAULT_RULE = {
    "action": "allow",
    "direction": "in",
    "interface": "",
    "port": "",
    "proto": "tcp",
    "from": "any",
    "to": "any",
    "family": "any",
    "log": "",
    "comment": "",
}


def _check_rule(rule):
    """The pillar's rule with its defaults, all values strings; a wrong one is refused before ufw sees it."""
    rule = {**_DEFAULT_RULE, **rule}
    unknown = sorted(set(rule) - {"name", *_DEFAULT_RULE})
    ports = rule["port"] if isinstance(rule["port"], list) else [rule["port"]]
    rule = {key: str(value) for key, value in {**rule, "port": ",".join(map(str, ports))}.items()}
    if rule["proto"] in PORTLESS and not rule["port"]:
        rule["port"] = "any"
    name, interface = rule.get("name", ""), rule["interface"]
    problem = ""
    if unknown:
        problem = f"unknown keys {', '.join(unknown)}; allowed: name, {', '.join(_DEFAULT_RULE)}"
    elif not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        problem = f"found name {name!r}; allowed: letters, digits, and _ . -"
    elif rule["action"] not in ACTIONS:
        problem = f"found action {rule['action']!r}; allowed: {', '.join(ACTIONS)}"
    elif rule["direction"] not in ("in", "out"):
        problem = f"found direction {rule['direction']!r}; allowed: in, out"
    elif interface and (not re.fullmatch(INTERFACE, interface) or interface in (*GRAMMAR, ".", "..")):
        problem = f"found interface {interface!r}; allowed: a name like eth0, of at most 15 letters, digits and _ . -"
    elif rule["proto"] not in PROTOCOLS:
        problem = f"found proto {rule['proto']!r}; allowed: {', '.join(PROTOCOLS)}"
    elif rule["family"] not in FAMILIES:
        problem = f"found family {rule['family']!r}; allowed: {', '.join(FAMILIES)}"
    elif rule["log"] not in ("", *LOGS):
        problem = f"found log {rule['log']!r}; allowed: {', '.join(LOGS)}, or empty"
    elif not rule["comment"].isprintable() or "'" in rule["comment"]:
        problem = f"found comment {rule['comment']!r}; allowed: one line of text without ', which ufw does not take"
    else:
        problem = _wrong_ports(rule["port"], rule["proto"])
    if problem:
        raise SaltInvocationError(f"Rule {name or '?'}: {problem}")
    return {**rule, "port": _sorted(rule["port"])}


def _wrong_ports(text, proto):
    """What is wrong with a rule's ports; empty if nothing is."""
    if proto in PORTLESS:
        return "" if text == "any" else f"found port {text!r}; the protocol {proto} has no ports"
    if text == "any":
        return ""
    for port in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", port)
        if not match or not all(1 <= int(end) <= 65535 for end in match.groups() if end):
            return f"found port {text!r}; allowed: 1 to 65535, a range like 6000:6010, a list of them, or any"
        if match[2] and int(match[1]) >= int(match[2]):
            return f"found port {text!r}; a range goes from the lower port to the higher one"
    if proto == "any" and re.search("[:,]", text):
        return "a range or a list of ports needs proto tcp or udp"
    if len(re.split("[:,]", text)) > PORTS_OF_A_RULE:
        return f"found port {text!r}; at most {PORTS_OF_A_RULE} ports, and a range counts as two: write another rule"
    return ""


def profiles(root=""):
    """
    The application profiles of this host (``/etc/ufw/applications.d``).

    root
        A private copy of UFW's files, see :func:`status`.

    Returns a dictionary: name -> list of dictionaries with ``port`` (like ``22`` or ``80,443``) and ``proto``.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_rules.profiles
    """
    found = {}
    for path in sorted(glob.glob(f"{root}{PROFILES}/*")):
        if path.rpartition("/")[2].startswith(".") or re.search(r"\.(dpkg-|rpm|ucf-)", path):  # ufw/applications.py
            continue
        parser = configparser.RawConfigParser(strict=False)
        with contextlib.suppress(configparser.Error, OSError):
            parser.read_string(_read(path))
        for name in parser.sections():
            ports = parser.get(name, "ports", fallback="")
            pairs = [part.strip().partition("/") for part in ports.split("|") if part.strip()]
            found[name] = [{"port": port, "proto": proto or "any"} for port, _, proto in pairs]
    return found


def _expanded(rules, root):
    """The rules with one for each port of an application profile that a rule names."""
    if not any("app" in rule for rule in rules):
        return rules
    known, result = profiles(root), []
    for rule in rules:
        app = rule.get("app")
        if app is None:
            result.append(rule)
            continue
        if "port" in rule or "proto" in rule:
            raise SaltInvocationError(f"Rule {rule.get('name', '?')}: app says port and proto: take them out")
        if not known.get(app):
            raise SaltInvocationError(
                f"Rule {rule.get('name', '?')}: found app {app!r}, but no file in {PROFILES} says its ports; "
                f"known here: {', '.join(sorted(known)) or 'none'}"
            )
        rest = {key: value for key, value in rule.items() if key != "app"}
        result += [{**rest, **ports} for ports in known[app]]
    return result


def _wished(rules, ipv6):
    """The pillar's rules as the tuples that ufw will make of them, in the pillar's order."""
    wish = {}
    for rule in map(_check_rule, rules):
        for family in _families(rule, ipv6):
            line = Line(
                family,
                rule["action"] + (rule["log"] and f"_{rule['log']}"),
                rule["proto"],
                rule["port"],
                _network(rule["to"], family),
                "any",
                _network(rule["from"], family),
                "",
                rule["direction"] + (rule["interface"] and f"_{rule['interface']}"),
                f"{TAG}{rule['name']} {rule['comment']}".rstrip(),
            )
            known = wish.setdefault(line.match, line)
            if known.action != line.action:
                raise SaltInvocationError(
                    f"Rules {_name(known)} and {rule['name']} match the same packets, one with {known.action}, "
                    f"one with {line.action}: take one of them out"
                )
    return list(wish.values())


def _name(line):
    return line.comment[len(TAG) :].partition(" ")[0] if line.ours else ""


def _describe(lines, ipv6=True):
    """``ssh: allow tcp 22 from any``: one line for the v4 and the v6 form of a rule from anywhere."""
    families = collections.defaultdict(str)
    for line in lines:
        families[_sentence(line)] += line.family
    anywhere = {_sentence(line) for line in lines if line.anywhere}
    return [
        text + (f" (IPv{found} only)" if ipv6 and text in anywhere and len(found) == 1 else "")
        for text, found in families.items()
    ]


def _sentence(line):
    """One rule in words."""
    source, to = (("any" if net == ANY[line.family] else net) for net in (line.source, line.to))
    words = [line.action.replace("_", " ").replace("route:", "route ")]
    words += [] if line.direction == "in" else [line.direction.replace("_", " on ").replace("!", " ")]
    words += [line.proto, line.port, "from", source]
    words += [] if line.sport == "any" else ["port", line.sport]
    words += [] if to == "any" else ["to", to]
    words += [f"({name.replace('%20', ' ')})" for name in line.apps.split() if name != "-"]
    own = line.comment.partition(" ")[2] if line.ours else ""
    return (f"{_name(line)}: " if line.ours else "") + " ".join(words) + (own and f" # {own}")


# --------------------------------------------------------------------------------------------------------------------
# Comparing tuples: pure functions over two lists of Line, the files' and the wish
# --------------------------------------------------------------------------------------------------------------------


def _missing(lines, wish, only_ours=False):
    """Wished lines that ufw has to write: not there, or there with another action, or ours under another name."""
    present = {line.match: line for line in lines}
    # Only where ufw holds no rule of these very words: that one decides whether it has to write.
    of_apps = {} if only_ours else {line.packets: line for line in lines if line.apps and not line.ours}
    return [line for line in wish if not _serves(present.get(line.match) or of_apps.get(line.packets), line, only_ours)]


def _serves(found, line, only_ours=False):
    if found is None or found.action != line.action:
        return False
    return found.comment == line.comment or not (found.ours or only_ours)


def _replaced(lines, wish, only_ours=False):
    """Lines in the files that a missing one will replace in place, because ufw takes both for the same rule."""
    coming = {line.match for line in _missing(lines, wish, only_ours)}
    return [line for line in lines if line.match in coming]


def _stale(lines, wish, only_ours=False):
    """Ours that nobody wishes any more; with ``only_ours`` those of others too."""
    wished, plain = {line.match for line in wish}, {line.match for line in lines if not line.spelt}
    return [
        line
        for line in lines
        if (line.ours or only_ours)
        and (line.match not in wished or (line.spelt and (line.match in plain or not line.ours)))
    ]


def _ports(text):
    """Port numbers of a tuple's port as (first, last) pairs; ``any`` is all."""
    if text == "any":
        return [(1, 65535)]
    pairs = [part.partition(":") for part in text.split(",")]
    return [(int(first), int(last or first)) for first, _, last in pairs]


def _overlap(one, other):
    """Whether a packet can match both lines, so that their order decides."""
    if (one.family, one.route, one.way) != (other.family, other.route, other.way):
        return False
    if not ("any" in (one.proto, other.proto) or one.proto == other.proto):
        return False
    names = {one.interface, other.interface} - {""}
    if len(names) == 2 and not any(name.endswith("+") for name in names):
        return False
    for mine, theirs in ((one.source, other.source), (one.to, other.to)):
        if not ipaddress.ip_network(mine).overlaps(ipaddress.ip_network(theirs)):
            return False
    return any(
        first <= other_last and other_first <= last
        for first, last in _ports(one.port)
        for other_first, other_last in _ports(other.port)
    )


def _rivals(line, wish):
    """Wished lines that let in what ``line`` keeps out, as (before it in the pillar, after it in the pillar)."""
    place = [other.match for other in wish].index(line.match)
    rivals = [(i, other) for i, other in enumerate(wish) if other.lets_in and _overlap(line, other)]
    return [other for i, other in rivals if i < place], [other for i, other in rivals if i > place]


def _place(lines, line, wish):
    """Where in its family's list a line that keeps packets out belongs: 1-based, before its rivals; 0 = at the end."""
    after = {other.match for other in _rivals(line, wish)[1]}
    family = [other.match for other in lines if other.family == line.family]
    return next((place for place, match in enumerate(family, 1) if match in after), 0)


def _misplaced(lines, wish):
    """
    Ours that keep packets out and stand on the wrong side of a line that lets them in: the first match wins in UFW.

    Only these move. A line that lets packets in never does: it would have to be deleted first.
    """
    places = {line.match: place for place, line in enumerate(lines)}
    found = []
    for line in wish:
        if line.lets_in or line.match not in places or not lines[places[line.match]].ours:
            continue
        before, after = _rivals(line, wish)
        place = places[line.match]
        late = any(places.get(other.match, place) < place for other in after)
        early = any(places.get(other.match, -1) > place for other in before)
        if late or early:
            found.append(line)
    return found


def _settled(lines, wish, only_ours=False):
    """The files' lines as they will be before what keeps packets out is added and moved."""
    new = {line.match: line for line in _missing(lines, wish, only_ours)}
    gone = _stale(lines, wish, only_ours)
    result = [new.pop(line.match, line) for line in lines if line not in gone]
    return result + [line for line in new.values() if line.lets_in]


def _outcome(lines, wish, only_ours=False):
    """The files' lines as they will be when every wished change is made."""
    result = _settled(lines, wish, only_ours)
    moved = _misplaced(result, wish)
    there = {line.match for line in result}
    late = [line for line in _missing(lines, wish, only_ours) if line.match not in there]
    result = [line for line in result if line not in moved]
    for line in late + moved:
        place = _place(result, line, wish)
        family = [other for other in result if other.family == line.family]
        result.insert(result.index(family[place - 1]) if place else len(result), line)
    return result


def _answers(line, port):
    """Whether a line speaks about new TCP connections to ``port``."""
    return (
        not line.action.startswith("route:")
        and line.direction.partition("_")[0] == "in"
        and line.proto in ("tcp", "any")
        and line.sport == "any"
        and any(first <= port <= last for first, last in _ports(line.port))
    )


# --------------------------------------------------------------------------------------------------------------------
# Facts: files, kernel, sshd
# --------------------------------------------------------------------------------------------------------------------


def _read(path):
    try:
        with salt.utils.files.fopen(path, "r", encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _assignments(text):
    """``NAME="value"`` lines of a file that ufw-init sources as shell."""
    found = re.findall(r"""^(\w+)=["']?([^"'\s#]*)""", text, re.MULTILINE)
    return dict(found)


def _level(text):
    """The log level that a rule file was written for (``backend_iptables.py``, ``_get_logging_rules``)."""
    text = text.rpartition("### LOGGING ###")[2]  # rules that log stand before it
    audit = [line for line in text.splitlines() if "[UFW AUDIT] " in line]
    if not audit:
        return "low" if "[UFW BLOCK] " in text else "off"
    if "--ctstate NEW" in audit[0]:
        return "medium"
    return "high" if "--limit " in audit[0] else "full"


@contextlib.contextmanager
def _ufw_idle(root):
    """Wait until no ufw is writing: it writes its files in place, so they are cut off for a moment (close_files)."""
    try:
        lock = salt.utils.files.fopen(root + UFW_LOCK, encoding="utf-8")
    except OSError:
        yield
        return
    with lock:
        fcntl.lockf(lock, fcntl.LOCK_SH)
        yield


def _files(root=""):
    """What UFW's files say."""
    with _ufw_idle(root):
        defaults = _assignments(_read(root + DEFAULTS))
        conf = _assignments(_read(root + CONF))
        texts = {family: _read(root + path) for family, path in RULES.items()}
    ipv6 = defaults.get("IPV6", "yes").lower() == "yes" and os.path.exists("/proc/sys/net/ipv6")
    families = "46" if ipv6 else "4"
    return {
        "installed": bool(defaults),
        "enabled": conf.get("ENABLED", "no").lower() == "yes",
        "loglevel": conf.get("LOGLEVEL", "low"),
        # The files are what the next start reads; a cut between the two leaves them apart.
        "logging": {conf.get("LOGLEVEL", "low"), *(_level(texts[family]) for family in families)},
        "ipv6": ipv6,
        **{key: POLICIES.get(defaults.get(f"DEFAULT_{chain}_POLICY", ""), "") for key, chain in DIRECTIONS.items()},
        "lines": [
            line for family in families for text in texts[family].splitlines() if (line := _parse_line(text, family))
        ],
        # ufw's last line; without it iptables-restore refuses the file, and the next boot would shut everything.
        "cut_off": [RULES[family] for family in families if defaults and not texts[family].rstrip().endswith("COMMIT")],
        "chains": {
            family: collections.Counter(re.findall(r"^-A (ufw6?-user-(?:in|out)put) ", texts[family], re.MULTILINE))
            for family in families
        },
    }


# linux/netfilter/nfnetlink.h, nf_tables.h
NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETCHAIN, NFT_MSG_GETRULE = 4, 7
NLM_F_REQUEST_DUMP = 0x301
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
# A kernel without nf_tables: nothing is in force, and ufw will say what is missing when it is switched on.
NO_NFTABLES = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
TABLE, RULE_CHAIN, CHAIN_NAME, CHAIN_POLICY = 1, 2, 3, 5
NFPROTO = {2: "4", 10: "6"}


def _netlink_dump(kind):
    """Every chain or rule of nf_tables as (family, attributes); iptables' tables are there too (iptables-nft(8))."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.settimeout(5)
        netlink.bind((0, 0))
        header = struct.pack("=IHHII", 20, NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_REQUEST_DUMP, 1, 0)
        netlink.send(header + struct.pack("=BBH", 0, 0, 0))
        found = []
        while True:
            data = netlink.recv(1 << 17)
            while data:
                length, message, flags = struct.unpack_from("=IHH", data)
                if message == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, 16)[0]
                    raise OSError(code, os.strerror(code))
                if flags & NLM_F_DUMP_INTR:
                    raise InterruptedError(errno.EINTR, "the rules changed while they were read")
                if message == NLMSG_DONE:
                    return found
                found.append((data[16], _netlink_attributes(data[20:length])))
                data = data[length + 3 & ~3 :]


def _netlink_attributes(data):
    attributes = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        attributes[kind & 0x3FFF] = data[4:length]
        data = data[max(length, 4) + 3 & ~3 :]
    return attributes


def _kernel_nft():
    """{family: {"policy": {chain: ACCEPT or DROP}, "chains": {chain: number of rules}}} of the filter tables."""
    kernel = {family: {"policy": {}, "chains": collections.Counter()} for family in "46"}
    for proto, chain in _netlink_dump(NFT_MSG_GETCHAIN):
        if proto in NFPROTO and chain.get(TABLE) == b"filter\0":
            name = chain[CHAIN_NAME].rstrip(b"\0").decode()
            kernel[NFPROTO[proto]]["chains"][name] = 0
            if CHAIN_POLICY in chain:
                policy = struct.unpack("!I", chain[CHAIN_POLICY])[0]
                kernel[NFPROTO[proto]]["policy"][name] = "ACCEPT" if policy == 1 else "DROP"
    for proto, rule in _netlink_dump(NFT_MSG_GETRULE):
        if proto in NFPROTO and rule.get(TABLE) == b"filter\0":
            kernel[NFPROTO[proto]]["chains"][rule[RULE_CHAIN].rstrip(b"\0").decode()] += 1
    return kernel


def _kernel_legacy():
    """The same of hosts where ``iptables`` is the legacy one, which nf_tables knows nothing of: two processes."""
    kernel = {}
    for family, command in {"4": "iptables", "6": "ip6tables"}.items():
        found = _run([command, "-S"])
        kernel[family] = {
            "policy": dict(re.findall(r"^-P (\S+) (\S+)", found["stdout"], re.MULTILINE)),
            "chains": collections.Counter(re.findall(r"^-A (\S+)", found["stdout"], re.MULTILINE)),
        }
        for name in re.findall(r"^-N (\S+)", found["stdout"], re.MULTILINE):
            kernel[family]["chains"].setdefault(name, 0)
    return kernel


def _kernel():
    iptables = salt.utils.path.which("iptables")
    if iptables and "legacy" in os.path.realpath(iptables):
        return _kernel_legacy()
    for attempt in range(5):
        try:
            return _kernel_nft()
        except InterruptedError:
            time.sleep(0.05 * attempt)
        except OSError as exc:
            if exc.errno in NO_NFTABLES:
                return {family: {"policy": {}, "chains": collections.Counter()} for family in "46"}
            raise CommandExecutionError(f"The kernel does not tell its packet filter's rules: {exc}") from exc
    raise CommandExecutionError("The kernel's packet filter keeps changing while it is read: try again")


def _kernel_gaps(files, kernel, directions=ALWAYS):
    """Where the kernel is not what the files say, as sentences; none when the firewall is in force."""
    gaps = []
    for family, wished in files["chains"].items():
        prefix, chains = ("ufw", "ufw6")[family == "6"], kernel[family]["chains"]
        if f"{prefix}-user-input" not in chains:
            gaps.append(f"IPv{family}: UFW's rules are not in the kernel")
            continue
        for chain in (f"{prefix}-user-input", f"{prefix}-user-output"):
            if chains.get(chain, 0) != wished[chain]:
                gaps.append(
                    f"IPv{family}: {chain} holds {chains.get(chain, 0)} rules in the kernel, "
                    f"{wished[chain]} in {RULES[family]}"
                )
        for key in directions:
            chain = DIRECTIONS[key]
            policy = "ACCEPT" if files[key] == "allow" else "DROP"
            rejects = chains.get(f"{prefix}-reject-{chain.lower()}", 0) > 0
            if kernel[family]["policy"].get(chain) != policy:
                gaps.append(f"IPv{family}: the policy of {chain} is not {policy} in the kernel")
            elif rejects != (files[key] == "reject"):
                gaps.append(f"IPv{family}: what no rule names is {'' if rejects else 'not '}rejected in {chain}")
    return gaps


def _loaded(kernel):
    return "ufw-user-input" in kernel["4"]["chains"] or "ufw6-user-input" in kernel["6"]["chains"]


def _on(facts):
    """On in the files, or still in the kernel."""
    return facts["enabled"] or facts["loaded"]


def _starts_at_boot(root):
    return bool(root) or not os.path.isdir("/run/systemd/system") or os.path.lexists(BOOT_LINK)


def _facts(root="", directions=ALWAYS):
    """Files and kernel in one dictionary. A private copy (``root``) has no kernel of its own: its files count alone."""
    files = _files(root)
    if root:
        return {**files, "loaded": files["enabled"], "gaps": [], "boot": True}
    kernel = _kernel()
    return {
        **files,
        "loaded": _loaded(kernel),
        "gaps": _kernel_gaps(files, kernel, directions),
        "boot": _starts_at_boot(root),
    }


def in_files():
    """
    For :py:func:`ufw_guard.check`: (the rules as lines, the policies, whether UFW handles IPv6), from UFW's files.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_rules.in_files
    """
    files = _files()
    return files["lines"], {key: files[key] for key in DIRECTIONS}, files["ipv6"]


def status(root=""):
    """
    UFW as it is: files and kernel. Starts no process (two where iptables is the legacy one).

    root
        A folder that holds a private copy of ``/etc/ufw`` and ``/etc/default/ufw``, as for ``ufw --rootdir``; default:
        this host.

    Returns a dictionary: ``installed``, ``enabled`` (``ENABLED=yes``), ``loaded`` (UFW's chains are in the kernel),
    ``gaps`` (sentences: where the kernel differs from the files), ``boot`` (its service starts at boot), ``incoming``,
    ``outgoing`` and ``routed`` (``allow``, ``deny``, ``reject``; empty if unknown), ``logging`` (off, low, medium, high,
    full; empty if ufw.conf and the rule files differ), ``ipv6``, and ``rules``: one dictionary per
    tuple with ``family``, ``action``, ``direction`` (``in``, ``out``), ``interface``, ``proto``, ``port``, ``from``,
    ``to``, ``comment``, ``ours``.

    Raises CommandExecutionError if the kernel does not answer.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_rules.status
    """
    facts = _facts(root)
    keys = ("installed", "enabled", "loaded", "gaps", "boot", *DIRECTIONS, "ipv6")
    return {
        **{key: facts[key] for key in keys},
        "logging": _one(facts["logging"]),
        "rules": [
            {
                "family": line.family,
                "action": line.action,
                "direction": line.way,
                "interface": line.interface,
                "proto": line.proto,
                "port": line.port,
                "from": "any" if line.source == ANY[line.family] else line.source,
                "to": "any" if line.to == ANY[line.family] else line.to,
                "comment": line.comment,
                "ours": line.ours,
            }
            for line in facts["lines"]
        ],
    }


def _one(found):
    return next(iter(found)) if len(found) == 1 else ""


# --------------------------------------------------------------------------------------------------------------------
# Differences: what a run would change, and what it refuses to
# --------------------------------------------------------------------------------------------------------------------


def differences(
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
    What :func:`apply` would change. Touches nothing. Starts no process if there is nothing to change, else two (see
    :py:func:`ufw_guard.facts`).

    rules
        List of rules in the pillar's order, each a dictionary: ``name``; ``action`` allow (default), deny, reject or
        limit; ``direction`` in (default) or out; ``interface`` (default: all); ``port`` like 22, ``6000:6010``,
        ``[80, 443]`` or ``any``; ``proto`` tcp (default), udp, any, or ah, esp, gre, igmp, ipv6, vrrp, which have no
        ports; ``from`` and ``to`` ``any`` (default), an address or a CIDR; ``family`` any (default), ipv4 or ipv6;
        ``log`` empty (default), log (new connections) or log-all; ``comment`` one line. In place of ``port`` and
        ``proto``: ``app``, the name of an application profile.
    incoming, outgoing
        Policy for packets that no rule matches: allow, deny or reject. Default: deny in, allow out.
    enabled
        Whether the firewall is on, now and at boot. Default: true.
    root
        A private copy of UFW's files, see :func:`status`.
    routed
        Policy for packets that pass through this host: allow, deny or reject. Default: as it is.
    logging
        Log level: off, low, medium, high or full. Default: as it is.
    only_ours
        Whether rules that others made go too. Default: false.
    allow_lockout
        Names of guards (see ``ufw_guard``) whose refusal is overridden. Default: none.
    confirm
        Who confirms the change, so that the former rules do not come back: ``run`` (default) itself by new connections,
        ``master`` by a call of :py:func:`ufw_guard.confirm`, ``none`` if they are never to come back.
    confirm_within
        Seconds until they come back otherwise. Default: 60.

    Returns a dictionary, empty if all is as wished: ``rules`` (``added``, ``removed``: sentences), ``policies``
    (``incoming``, ``outgoing``, ``routed``: ``old``, ``new``), ``logging`` and ``enabled`` (``old``, ``new``), ``files``
    (paths of rule files that were cut off and will be written anew).

    Raises SaltInvocationError if the rules are wrong, and CommandExecutionError if they would shut somebody
    out: ssh, a master, minions.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_rules.differences '[{"name": "ssh", "port": 22}]'
    """
    wanted = _wanted(
        rules, incoming, outgoing, enabled, routed, logging, only_ours, allow_lockout, confirm, confirm_within
    )
    return _compare(wanted, root)[0]


class Wanted(NamedTuple):
    """Everything that is wished of UFW."""

    rules: list
    policies: dict
    enabled: bool
    logging: str | None
    only_ours: bool
    told: tuple = ()  # names of guards that are overridden
    confirm: str = "none"
    within: int = 0  # s


def _wanted(rules, incoming, outgoing, enabled, routed, logging, only_ours, told, confirm, within):
    policies = {"incoming": incoming, "outgoing": outgoing, "routed": routed}
    policies = {key: value for key, value in policies.items() if key in ALWAYS or value is not None}
    for key, value in policies.items():
        if value not in POLICIES.values():
            raise SaltInvocationError(f"Found {key} {value!r}; allowed: allow, deny, reject")
    if logging is not None and logging not in LEVELS:
        raise SaltInvocationError(f"Found logging {logging!r}; allowed: {', '.join(LEVELS)}")
    return Wanted(rules, policies, enabled, logging, only_ours, tuple(told), confirm, within)


def _compare(wanted, root):
    """(changes, facts, wish, who has to get through); the last is asked only if something changes and UFW is to be on."""
    facts = _facts(root, tuple(wanted.policies))
    wish = _wished(_expanded(wanted.rules, root), facts["ipv6"])
    changes = _changes(facts, wish, wanted)
    waits = {} if root else __salt__["ufw_guard.pending"]()
    if waits and changes and wanted.confirm == waits["confirm"] == "master":
        raise CommandExecutionError(
            f"A change of the firewall waits for its confirmation until {waits['until']}: run `ufw_guard.confirm`, or "
            "let the former rules come back first. Nothing was changed"
        )
    if waits and wanted.confirm != "master":
        changes["rollback"] = {"old": f"the former rules come back at {waits['until']}", "new": "confirmed"}
    known = None
    if changes and wanted.enabled:
        known = __salt__["ufw_guard.facts"](root)
        lines = _outcome(facts["lines"], wish, wanted.only_ours)
        __salt__["ufw_guard.refuse"](lines, wanted.policies, facts["ipv6"], wanted.told, known)
    return changes, facts, wish, known


def _changes(facts, wish, wanted):
    """Facts against wish, in the form of a state's ``changes``."""
    lines, only_ours = facts["lines"], wanted.only_ours
    missing = _missing(lines, wish, only_ours)
    moved = _misplaced(_settled(lines, wish, only_ours), wish)
    added = _describe(missing, facts["ipv6"]) + [f"{text} (moved)" for text in _describe(moved, False)]
    gone = _replaced(lines, wish, only_ours)
    gone += [line for line in _stale(lines, wish, only_ours) if line not in gone]
    removed = _describe(gone, facts["ipv6"])
    changes = {
        "rules": {key: found for key, found in {"added": added, "removed": removed}.items() if found},
        "policies": {
            key: {"old": facts[key], "new": wished} for key, wished in wanted.policies.items() if facts[key] != wished
        },
        "logging": _logging(facts, wanted.logging),
        "enabled": _switch(facts, wanted.enabled),
        "files": facts["cut_off"],
    }
    return {key: found for key, found in changes.items() if found}


def _logging(facts, wished):
    if wished is None or facts["logging"] == {wished}:
        return {}
    return {"old": ", ".join(sorted(facts["logging"])), "new": wished}


def _switch(facts, enabled):
    if enabled and not facts["enabled"]:
        return {"old": False, "new": True}
    if enabled and facts["gaps"]:
        return {"old": "; ".join(facts["gaps"]), "new": True}
    if enabled and not facts["boot"]:
        return {"old": "not started at boot", "new": True}
    if not enabled and _on(facts):
        return {"old": True, "new": False}
    return {}


# --------------------------------------------------------------------------------------------------------------------
# Acts. After each of them the host can be cut off from power without shutting out ssh.
# --------------------------------------------------------------------------------------------------------------------


def _run(argv, **more):
    return __salt__["cmd.run_all"](
        argv,
        **more,
        python_shell=False,
        env={"LC_ALL": "C", "LANGUAGE": "C"},
        timeout=UFW_TIMEOUT,
        ignore_retcode=True,
    )


def _need_ufw():
    if not salt.utils.path.which("ufw"):
        raise CommandExecutionError("UFW is not installed: install the package ufw")


def _words(found):
    return "; ".join(filter(None, (found["stderr"].strip(), found["stdout"].strip()))) or f"exit {found['retcode']}"


def _ufw(root, *arguments):
    """One ufw command; what it said. Its exit code 0 proves nothing ("Skipping", "Could not delete"): ask the facts."""
    relocated = [f"--rootdir={root}", f"--datadir={root}"] if root else []
    found = _run(["ufw", *relocated, *arguments])
    if found["retcode"]:
        raise CommandExecutionError(f"`ufw {' '.join(arguments)}` failed: {_words(found)}")
    return _words(found)


@contextlib.contextmanager
def _alone(root):
    """One run of ours at a time: ufw reads its rules *before* it takes its own lock, so two at once lose a rule."""
    path = root + LOCK
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with salt.utils.files.fopen(path, "a", encoding="utf-8") as lock:
        for _ in range(LOCK_TIMEOUT * 10):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise CommandExecutionError(f"Another run has been changing UFW for {LOCK_TIMEOUT} s: try again later")
        yield


def apply(
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
    Bring UFW to the wish: what lets packets in first (ssh before all), then policies if they differ, then what keeps
    packets out, then ours that left the pillar, and the switch last. ``ufw reset`` is never used.

    While UFW runs, ufw can change a policy only by a restart, which drops every packet for half a second and opens every
    port for as long. Here the kernel gets it in one transaction, and the file what ufw would write.

    With the policy ``reject``, ufw refuses every connection for some tenths of a second while it starts. So it is
    started with ``deny``, and rejects once its rules are there.

    Parameters as for :func:`differences`.

    Returns what it changed, in the form of :func:`differences`.

    Raises SaltInvocationError if the rules are wrong; CommandExecutionError if they would shut somebody out, with nothing
    changed, or with ufw's own words if it failed or did not do what it was asked.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_rules.apply '[{"name": "ssh", "port": 22}, {"name": "http", "port": 80}]'
    """
    wanted = _wanted(
        rules, incoming, outgoing, enabled, routed, logging, only_ours, allow_lockout, confirm, confirm_within
    )
    with _alone(root):
        changes, facts, wish, known = _compare(wanted, root)
        if not changes:
            return {}
        _need_ufw()
        _write_record(root, facts, wanted)
        token = "" if root else _arm(facts, changes, wanted)
        try:
            if set(changes) != {"rollback"}:
                _make(root, facts, wish, wanted, known)
            if not root:
                _settle(wish, wanted, known)
            return changes
        except CommandExecutionError as exc:
            if not token:
                raise
            failed = exc
    # Without the lock, which the way back takes itself.
    raise CommandExecutionError(f"{failed}. {__salt__['ufw_guard.roll_back'](token)}") from failed


def _arm(facts, changes, wanted):
    """The token of the way back; empty where there is none to make."""
    if wanted.confirm == "none" or set(changes) == {"rollback"}:
        return ""
    values = {wished: word for word, wished in POLICIES.items()}
    # With those that nobody wishes, as they are: whoever changes one meanwhile keeps it.
    policies = {key: facts[key] for key in DIRECTIONS if facts[key]} | wanted.policies
    # A start goes through deny on its way to reject (see _make).
    steps = {key: [policy, "deny"] if policy == "reject" else [policy] for key, policy in policies.items()}
    made = {f"DEFAULT_{DIRECTIONS[key]}_POLICY": [f'"{values[one]}"' for one in found] for key, found in steps.items()}
    return __salt__["ufw_guard.arm"](facts["loaded"], not facts["cut_off"], made, wanted.confirm, wanted.within)


def _settle(wish, wanted, known):
    """The change counts: its facts are as wished, and who has to get through does."""
    left = _changes(_facts("", tuple(wanted.policies)), wish, wanted)
    if left:
        raise CommandExecutionError(f"UFW was changed, but still differs in {', '.join(left)}")
    __salt__["ufw_guard.settle"](known, wanted.confirm)


def _make(root, facts, wish, wanted, known):
    """The changes, in the order of :func:`apply`."""
    only_ours = wanted.only_ours
    if _on(facts) and (facts["gaps"] or not wanted.enabled):
        # With gaps too: ufw refuses to change a rule while its chains are not all there. Off, it only writes files,
        # and what a run that was cut off left in the kernel shuts nobody out.
        _switch_off(root)
    _complete_files(root, facts)
    _let_in(root, wish, {door.port for door in known["sshd"]} if known else set(), only_ours)
    if wanted.enabled:
        # The real lines now, not the plan: ufw may have skipped one.
        lines = _outcome(_files(root)["lines"], wish, only_ours)
        __salt__["ufw_guard.refuse"](lines, wanted.policies, facts["ipv6"], wanted.told, known)
    starts = wanted.enabled and not root and not (facts["enabled"] and not facts["gaps"])
    gentle = {key: "deny" if starts and policy == "reject" else policy for key, policy in wanted.policies.items()}
    stale = _set_policies(root, gentle)
    _set_logging(root, wanted.logging, stale)
    _keep_out(root, wish, only_ours)
    _delete(root, _stale(_files(root)["lines"], wish, only_ours))
    if wanted.enabled:
        _enable(root, tuple(gentle))
        _set_policies(root, wanted.policies)


def _write_record(root, facts, wanted):
    """How UFW was before our first change, so that clean can put it back: each thing once, before its first change."""
    record = _read_record(root)
    new = {key: facts[key] for key in ("enabled", *wanted.policies)}
    if wanted.logging is not None:
        new["logging"] = facts["loglevel"]
    if not root and not record and not facts["enabled"]:
        new["sysctls"] = {name: _kernel_setting(name) for name in _sysctls()}
    if set(new) <= set(record):
        return
    path = root + RECORD
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with salt.utils.atomicfile.atomic_open(path, "w") as file:
        file.write(json.dumps({**new, **record}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_record(root):
    text = _read(root + RECORD)
    try:
        return json.loads(text) if text else {}
    except ValueError as exc:
        raise CommandExecutionError(
            f"{RECORD} is damaged ({exc}): write what UFW was before into it, "
            'like {"enabled": true, "incoming": "deny", "outgoing": "allow"}'
        ) from exc


def _sysctls():
    """Setting of the kernel -> value, as ufw-init gives it when UFW is switched on; nothing takes it back then."""
    path = _assignments(_read(DEFAULTS)).get("IPT_SYSCTL", "")
    found = re.findall(r"^\s*([\w./-]+)\s*=\s*(\S+)\s*$", _read(path) if path else "", re.MULTILINE)
    return {name if "/" in name else name.replace(".", "/"): value for name, value in found}


def _kernel_setting(name):
    """Its value now; empty where the kernel has none."""
    try:
        return _read(f"{PROC_SYS}/{name}").strip()
    except OSError:
        return ""


def _old_sysctls(record):
    """What is still as ufw-init made it and was otherwise before, in the form of a state's ``changes``."""
    before, made = record.get("sysctls", {}), _sysctls()
    now = {name: _kernel_setting(name) for name in before}
    return {
        name: {"old": now[name], "new": old}
        for name, old in before.items()
        if old and now[name] == made.get(name) and now[name] != old
    }


def _put_back_sysctls(changes):
    for name, change in changes.items():
        new = change["new"]
        try:
            with salt.utils.files.fopen(f"{PROC_SYS}/{name}", "w") as file:
                file.write(new)
        except OSError as exc:
            raise CommandExecutionError(f"The kernel does not take {new!r} for {name}: {exc.strerror}") from exc


def _complete_files(root, facts):
    """Have ufw write a rule file anew that a power cut left incomplete; setting the log level does, to what it was."""
    if not facts["cut_off"]:
        return
    said = _ufw(root, "logging", facts["loglevel"])
    still = _files(root)["cut_off"]
    if still:
        raise CommandExecutionError(f"{', '.join(still)} is incomplete, and ufw did not write it anew. It said: {said}")


def _commands(lines):
    """Rule words for each line; one command for the v4 and the v6 line of a rule from anywhere to anywhere."""
    commands = {}
    there = collections.Counter(map(_commands_key, lines))
    for line in lines:
        both = line.anywhere and not line.spelt and there[_commands_key(line)] == 2
        commands.setdefault(_rule_words(line, both), []).append(line)
    return commands


def _commands_key(line):
    """The same for the v4 and the v6 line of a rule from anywhere to anywhere."""
    return line._replace(family="", source="", to="") if line.anywhere else line


def _rule_words(line, both=False):
    """One line in ufw's own grammar (ufw/parser.py); ``both`` families if it is from anywhere to anywhere."""
    to, source = line.spelt.split() if line.spelt else (line.to, line.source)
    # The family of a rule from anywhere to anywhere is said by its source: 0.0.0.0/0 is v4, any is both.
    source = "any" if both else source
    to = "any" if to == ANY[line.family] else to
    apps = [name.replace("%20", " ") for name in (line.apps.split() or ["-", "-"])]
    words = [line.verb]
    for way in line.direction.split("!"):
        way, _, interface = way.partition("_")
        words += [way, "on", interface] if interface else [way] if way == "out" else []
    words += [line.log] if line.log else []
    words += [] if line.apps else ["proto", line.proto]
    for key, network, app, port in (("from", source, apps[1], line.sport), ("to", to, apps[0], line.port)):
        words += [key, network]
        words += ["app", app] if app != "-" else ["port", port] if port != "any" else []
    return (*words, *(["comment", line.comment] if line.comment else []))


def _prove(root, lines, present, said):
    """ufw's word is not proof: the files are."""
    found = {(line.match, line.action, line.comment) for line in _files(root)["lines"]}
    wrong = [line for line in lines if ((line.match, line.action, line.comment) in found) != present]
    if wrong:
        what = "was not added" if present else "was not deleted"
        raise CommandExecutionError(f"The rule {', '.join(_describe(wrong, False))} {what}. ufw said: {said}")


def _let_in(root, wish, ports, only_ours=False):
    """Add the rules that let packets in; those for sshd first."""
    missing = [line for line in _missing(_files(root)["lines"], wish, only_ours) if line.lets_in]
    missing.sort(key=lambda line: not any(_answers(line, port) for port in ports))
    for words, lines in _commands(missing).items():
        _prove(root, lines, True, _ufw(root, *words))


def _keep_out(root, wish, only_ours=False):
    """Add or move the rules that keep packets out, each before what it must win against."""
    for line in wish:
        if line.lets_in:
            continue
        lines = _files(root)["lines"]
        moves = line.match in {other.match for other in _misplaced(lines, wish)}
        if moves:
            _delete(root, [other for other in lines if other.match == line.match])
            lines = _files(root)["lines"]
        if moves or line in _missing(lines, wish, only_ours):
            replaced = any(other.match == line.match and not other.spelt for other in lines)
            place = 0 if replaced else _number(lines, _place(lines, line, wish), line.family)
            insert = ["insert", str(place)] if place else []
            _prove(root, [line], True, _ufw(root, *insert, *_rule_words(line)))
    wrong = _misplaced(_files(root)["lines"], wish)
    if wrong:
        raise CommandExecutionError(
            f"{', '.join(_describe(wrong, False))}: this must stand between rules that stand in the opposite order. "
            "Delete those with `ufw delete` and apply again"
        )


def _number(lines, place, family):
    """
    A place in the family's list as ufw takes it: it counts the v6 rules on from the last v4 one (``frontend.py``,
    ``set_rule``), and all rules of one application profile as one when it judges whether a number is too high.
    """
    counted = {}
    for other in ("4", "6"):
        ours = [line for line in lines if line.family == other]
        plain = sum(not line.apps for line in ours)
        counted[other] = plain + len({(line.apps, line.to, line.source, line.direction) for line in ours if line.apps})
    if not place:
        return 0
    place = min(place, counted[family])
    return place + (counted["4"] if family == "6" else 0)


def _delete(root, lines):
    # With its comment: ufw then deletes ours only (backend_iptables.py, set_rule).
    for words, deleted in _commands(lines).items():
        route = ["route"] if deleted[0].route else []
        _prove(root, deleted, False, _ufw(root, *route, "delete", *words))


def _switch_off(root):
    if not root:
        _open_policies()
    _ufw(root, "disable")


def _open_policies():
    """
    Let the built-in chains accept before UFW is stopped or restarted.

    ufw-init flushes its chains *before* it lifts DROP (ufw-init-functions, ufw_stop), and whoever is cut off there
    stays shut out. It sets the policies as its last step, so this costs nothing that its restart does not cost anyway.
    """
    for command in ("iptables", "ip6tables"):
        for chain in ("INPUT", "OUTPUT"):
            found = _run([command, "-P", chain, "ACCEPT"])
            # A kernel without IPv6 has no ip6tables to open.
            if found["retcode"] and command == "iptables":
                raise CommandExecutionError(f"`iptables -P {chain} ACCEPT` failed: {_words(found)}")


def _set_policies(root, policies):
    """
    Only those that differ. `ufw default` restarts a running UFW, which shuts or opens every port for a second; a running
    one gets its policy in one transaction of the kernel's, and the file as ufw would write it.

    Returns whether what is logged no longer fits: ufw logs what its policy denies as BLOCK, what it allows as ALLOW.
    """
    stale = False
    for key, wished in policies.items():
        facts = _files(root)
        if facts[key] == wished:
            continue
        if facts["enabled"] and not root and not _has_catch_all():
            _write_policy(key, wished)
            _load_policy(key, wished, facts["ipv6"])
            said = "(it was not asked)"
            stale = stale or "allow" in (facts[key], wished)
        else:
            if facts["enabled"] and not root:
                _open_policies()
            said = _ufw(root, "default", wished, key)
        if _files(root)[key] != wished:
            raise CommandExecutionError(f"The policy for {key} is still {facts[key]}. ufw said: {said}")
        if facts["enabled"]:
            _prove_in_force(root, said, (*ALWAYS, key))
    return stale


def _has_catch_all():
    """`ufw default` also changes words in the last rules of old releases (backend_iptables.py, set_default_policy)."""
    return any(re.search("UFW (BLOCK|ALLOW)", _read(path)) for path in AFTER)


def _write_policy(key, wished):
    """As ufw does, in one step."""
    word = next(word for word, policy in POLICIES.items() if policy == wished)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock = stack.enter_context(salt.utils.files.fopen(UFW_LOCK, "a", encoding="utf-8"))
            fcntl.lockf(lock, fcntl.LOCK_EX)
        text = re.sub(
            rf"^DEFAULT_{DIRECTIONS[key]}_POLICY=.*$",
            f'DEFAULT_{DIRECTIONS[key]}_POLICY="{word}"',
            _read(DEFAULTS),
            count=1,
            flags=re.MULTILINE,
        )
        with salt.utils.atomicfile.atomic_open(DEFAULTS, "w") as file:
            os.fchmod(file.fileno(), os.stat(DEFAULTS).st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _load_policy(key, wished, ipv6):
    """What ufw-init makes of a policy (ufw-init-functions, ufw_start), without the rest of a start."""
    for command, prefix in {"iptables": "ufw", **({"ip6tables": "ufw6"} if ipv6 else {})}.items():
        found = _run([f"{command}-restore", "--noflush"], stdin=_policy_rules(prefix, DIRECTIONS[key], wished))
        if found["retcode"]:
            raise CommandExecutionError(f"`{command}-restore` did not take the policy {wished}: {_words(found)}")


def _policy_rules(prefix, chain, wished):
    word, low = next(word for word, policy in POLICIES.items() if policy == wished), chain.lower()
    lines = ["*filter", f":{chain} {'ACCEPT' if wished == 'allow' else 'DROP'} [0:0]"]
    lines += [f"-F {prefix}-{name}-{low}" for name in ("reject", "track", "skip-to-policy")]
    if wished == "reject":
        lines.append(f"-A {prefix}-reject-{low} -j REJECT")
    if wished == "allow":
        new = "-m conntrack --ctstate NEW -j ACCEPT"
        lines += [f"-A {prefix}-track-{low} -p {proto} {new}" for proto in ("tcp", "udp")]
    lines += [f"-A {prefix}-skip-to-policy-{low} -j {word}", "COMMIT", ""]
    return "\n".join(lines)


def _set_logging(root, level, stale=False):
    """The log level if it differs; with ``stale`` the one that is, so that ufw loads anew what it logs (update_logging)."""
    facts = _files(root)
    if level is None or facts["logging"] == {level}:
        if not stale or facts["loglevel"] == "off":
            return
        level = facts["loglevel"]
    said = _ufw(root, "logging", level)
    found = _files(root)["logging"]
    if found != {level}:
        raise CommandExecutionError(f"The log level is still {', '.join(sorted(found))}. ufw said: {said}")


def _sync_files(root):
    """To the disk: a power cut must not leave ENABLED=yes with rules that were never written."""
    for path in (*RULES.values(), DEFAULTS, CONF):
        with contextlib.suppress(FileNotFoundError), salt.utils.files.fopen(root + path, "rb") as file:
            os.fsync(file.fileno())


def _enable(root, directions=ALWAYS):
    """Switch UFW on if it is off, now and at boot."""
    _sync_files(root)
    facts = _facts(root, directions)
    if not facts["boot"]:
        __salt__["service.enable"]("ufw")
        if not _starts_at_boot(root):
            raise CommandExecutionError("ufw.service could not be enabled: is it masked? See `systemctl status ufw`")
    if not facts["enabled"] or facts["gaps"]:
        if not root:
            _track_connections()
        try:
            said = _ufw(root, "--force", "enable")
        except CommandExecutionError as exc:
            _give_up(root, str(exc))
        _prove_in_force(root, said, directions)
        _sync_files(root)


# linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h
NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW = 1, 0
NLM_F_REQUEST_NEW = 0x605  # REQUEST, ACK, EXCL, CREATE
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO, CTA_TIMEOUT = 1, 2, 3, 4, 7
SEEN_REPLY_ASSURED_CONFIRMED, TCP_ESTABLISHED, BE_LIBERAL = 0b1110, 3, b"\x08\x08"
FIVE_DAYS = 432000  # s, the kernel's own patience with a silent connection (nf_conntrack_tcp_timeout_established)


def _track_connections():
    """
    Tell the kernel's connection tracking of the TCP connections that stand already. It only begins to look when the
    first rule asks for it, and would take the next packet that comes in on an old connection for a new connection's:
    a minion, which only listens to its master, would be deaf until its own keepalive, five minutes later.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(5)
            netlink.bind((0, 0))
            for local, remote in _established():
                netlink.send(_conntrack_message(local, remote))
                code = -struct.unpack_from("=i", netlink.recv(1 << 16), 16)[0]
                if code not in (0, errno.EEXIST):
                    raise OSError(code, os.strerror(code))
    except OSError as exc:
        log.warning("Connections that stand may hang until this host sends something on them: %s", exc)


def _established():
    """The TCP connections of this host as pairs of (address, port), but for loopback, which UFW lets through."""
    pairs = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in _read(table).splitlines()[1:]:
            words = row.split()
            if words[3] == "01":  # proc(5): ESTABLISHED
                pairs.add((_endpoint(words[1]), _endpoint(words[2])))
    return sorted((pair for pair in pairs if not pair[1][0].is_loopback), key=str)


def _endpoint(text):
    """``0100007F:1F90`` as (address, port): the address in words of 32 bits in this host's byte order."""
    address, _, port = text.partition(":")
    words = struct.pack(f"={len(address) // 8}I", *(int(address[at : at + 8], 16) for at in range(0, len(address), 8)))
    address = ipaddress.ip_address(words)
    return getattr(address, "ipv4_mapped", None) or address, int(port, 16)


def _conntrack_message(local, remote):
    tcp = _attribute(1, bytes([TCP_ESTABLISHED])) + _attribute(4, BE_LIBERAL) + _attribute(5, BE_LIBERAL)
    body = b"".join(
        (
            struct.pack("=BBH", socket.AF_INET if local[0].version == 4 else socket.AF_INET6, 0, 0),
            _attribute(CTA_TUPLE_ORIG, _tuple(local, remote), nested=True),
            _attribute(CTA_TUPLE_REPLY, _tuple(remote, local), nested=True),
            _attribute(CTA_STATUS, struct.pack("!I", SEEN_REPLY_ASSURED_CONFIRMED)),
            _attribute(CTA_TIMEOUT, struct.pack("!I", FIVE_DAYS)),
            _attribute(CTA_PROTOINFO, _attribute(1, tcp, nested=True), nested=True),
        )
    )
    kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
    return struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST_NEW, 1, 0) + body


def _tuple(source, target):
    first = 1 if source[0].version == 4 else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the target's follows
    addresses = _attribute(first, source[0].packed) + _attribute(first + 1, target[0].packed)
    ports = _attribute(1, bytes([socket.IPPROTO_TCP]))
    ports += b"".join(_attribute(at, struct.pack("!H", end[1])) for at, end in ((2, source), (3, target)))
    return _attribute(1, addresses, nested=True) + _attribute(2, ports, nested=True)


def _attribute(kind, data, nested=False):
    length = 4 + len(data)
    return struct.pack("=HH", length, kind | (0x8000 if nested else 0)) + data + bytes(-length % 4)


def _prove_in_force(root, said, directions=ALWAYS):
    """Look into the kernel: ufw says "active" too when iptables failed and ENABLED was yes before (set_enabled)."""
    facts = _facts(root, directions)
    if not facts["enabled"] or facts["gaps"]:
        gaps = "; ".join(facts["gaps"]) or "ENABLED is not yes"
        _give_up(root, f"UFW did not start ({gaps}). It said: {said}")


def _give_up(root, sentence):
    """A start that failed half-way may have left DROP without rules: open rather than shut out."""
    try:
        _switch_off(root)
    except CommandExecutionError as exc:
        raise CommandExecutionError(f"{sentence}. Switching it off again failed too: {exc}") from exc
    raise CommandExecutionError(f"{sentence}. It was switched off again, so that nobody is shut out")


# --------------------------------------------------------------------------------------------------------------------
# The way back
# --------------------------------------------------------------------------------------------------------------------


def leftovers(root=""):
    """
    What :func:`withdraw` would change. Touches nothing.

    root
        A private copy of UFW's files, see :func:`status`.

    Returns a dictionary: ``changes`` (in the form of :func:`differences`) and ``kept`` (our rules that stay, because
    without them sshd could not be reached any more: sentences).

    Raises CommandExecutionError if sshd's ports cannot be told.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_rules.leftovers
    """
    changes, kept, _ = _way_back(root)
    return {"changes": changes, "kept": _describe(kept, False)}


def _way_back(root):
    """(changes, lines of ours that stay, what was before)"""
    facts, record = _facts(root), _read_record(root)
    ours = [line for line in facts["lines"] if line.ours]
    # Without a record nobody knows what was before; what is now is then the lesser surprise.
    before = {key: record.get(key) or facts[key] for key in DIRECTIONS if key in ALWAYS or key in record}
    before["enabled"] = record.get("enabled", _on(facts))
    before["logging"] = record.get("logging")
    policies = {key: before[key] for key in DIRECTIONS if key in before}
    known = __salt__["ufw_guard.facts"](root) if ours and before["enabled"] else None
    kept = _needed_for_ssh(facts, policies, known) if known else []
    gone = [line for line in ours if line not in kept]
    changes = {"rules": {"removed": _describe(gone, facts["ipv6"])}} if gone else {}
    if record or gone:
        lines = [line for line in facts["lines"] if line not in gone]
        wanted = Wanted([], policies, before["enabled"], before["logging"], False)
        changes = {**_changes({**facts, "lines": lines}, kept, wanted), **changes}
    if record:
        sysctls = {} if root or before["enabled"] else _old_sysctls(record)
        changes = {**changes, **({"sysctls": sysctls} if sysctls else {}), "record": f"{RECORD} removed"}
    waits = {} if root else __salt__["ufw_guard.pending"]()
    if waits:
        changes["rollback"] = {"old": f"the former rules come back at {waits['until']}", "new": "confirmed"}
    if changes.get("enabled", {}).get("new"):
        lines = [line for line in facts["lines"] if line not in gone]
        __salt__["ufw_guard.refuse"](lines, policies, facts["ipv6"], known=known, root=root)
    return changes, kept, before


def _needed_for_ssh(facts, policies, known):
    """Our rules without which a port of sshd would be shut, to all or to somebody who is logged in."""
    others = [line for line in facts["lines"] if not line.ours]
    needed = []
    for port in sorted({door.port for door in known["sshd"]}):
        of_port = {key: [one for one in known[key] if one.port == port] for key in ("sshd", "people")}
        if __salt__["ufw_guard.risks_of_ssh"](others, policies, facts["ipv6"], {**known, **of_port}):
            needed.append(port)
    ours = [line for line in facts["lines"] if line.ours and line.lets_in]
    return [line for line in ours if any(_answers(line, port) for port in needed)]


def withdraw(root=""):
    """
    Take our rules out and put back what was before our first change. If UFW was off then, it is switched off first, and
    what it set in the kernel when it came on is put back, unless somebody changed that since. If it was on, it is on
    again at the end, and the rules without which sshd could not be reached stay.

    root
        A private copy of UFW's files, see :func:`status`.

    Returns what it changed and what it kept, in the form of :func:`leftovers`.

    Raises CommandExecutionError with ufw's own words if it failed.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_rules.withdraw
    """
    with _alone(root):
        changes, kept, before = _way_back(root)
        if changes:
            _need_ufw()
            facts = _facts(root)
            if _on(facts) and (facts["gaps"] or not before["enabled"]):
                _switch_off(root)
            _put_back_sysctls(changes.get("sysctls", {}))
            _complete_files(root, facts)
            stale = _set_policies(root, {key: before[key] for key in DIRECTIONS if key in before})
            _set_logging(root, before["logging"], stale)
            _delete(root, [line for line in _files(root)["lines"] if line.ours and line not in kept])
            if before["enabled"]:
                _enable(root)
        if not root:
            __salt__["ufw_guard.disarm"]()
        # Last: until here a run that was cut off finds out again what was before.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(root + RECORD)
        return {"changes": changes, "kept": _describe(kept, False)}
