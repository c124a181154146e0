"""
What keeps a change of the firewall from shutting somebody out.

``ufw_rules`` decides what is changed; this module judges the rules as they would be then. It asks who has to get
through: people at sshd, the session that this very run may hang on, this minion's way to its master, the minions of
a master; and puts the first packet of each such connection to the rules, in their order. A packet that the rules do not let
through is a *risk*, known by its guard's name:

``ssh``
    Nobody at all could open a connection to a port of sshd.
``ssh_ipv4``, ``ssh_ipv6``
    Nobody could by that IP version, though sshd listens there and this host has an address of it.
``connection``
    Somebody who is logged in by ssh now could not log in again.
``limit``
    A ``limit`` rule lets in, but less often than is needed.
``master``, ``dns``
    This minion could not open a connection to its master, or not look up its name.
``minions``
    This host is a master, and its minions could not come in.

Where the facts come from:

* ``sshd -T``: the configuration in force, with each ListenAddress. ``ssh.socket`` where systemd listens in its place.
* ``/proc/net/tcp``, ``tcp6`` and ``/proc/PID/fd``: what listens, who is connected (proc(5)). A running sshd may still have
  the ports of an older configuration.
* The kernel over rtnetlink(7): the addresses of each interface.

What ufw's ``before.rules`` let through is not asked about: loopback, and connections that stand. Neither opens a new
way in.

And where the judgement is wrong, there is a way back: before the first change the former rules are kept and a timer of
systemd's is started, which puts them back (``redis_sidekiq/firewall/files/ufw_rollback.py``) unless the change is confirmed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import ipaddress
import json
import os
import re
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import salt.utils.files
import salt.utils.path
from salt.exceptions import CommandExecutionError, SaltInvocationError

if TYPE_CHECKING:
    __salt__: dict[str, Any] = {}
    __opts__: dict[str, Any] = {}

__virtualname__ = "ufw_guard"

GUARDS = ("ssh", "ssh_ipv4", "ssh_ipv6", "connection", "limit", "master", "dns", "minions")
ALL = {"4": ipaddress.ip_network("0.0.0.0/0"), "6": ipaddress.ip_network("::/0")}
LETS_IN = ("allow", "limit")
EPHEMERAL = (32768, 60999)  # net.ipv4.ip_local_port_range, the kernel's default
MASTER_PORTS = (4505, 4506)
LIMIT = 6  # new connections in 30 s from one address (ufw/backend_iptables.py, "--hitcount 6")
RESOLV = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
HOSTS = "/etc/hosts"
TABLES = {"4": "/proc/net/tcp", "6": "/proc/net/tcp6"}
TOOL_TIMEOUT = 180  # s: `sshd -T` and systemctl answer at once; a way back waits for a lock
PROOF_TIMEOUT = 10  # s for a master to answer
CONNECT_TIMEOUT = 3  # s for one connection


def __virtual__():
    return __virtualname__


# --------------------------------------------------------------------------------------------------------------------
# Whether a packet gets through: pure functions over the rules' lines (ufw_rules.Line), in the order of the files
# --------------------------------------------------------------------------------------------------------------------


class Packet(NamedTuple):
    """The first packet of a new connection. What is ``None`` is not known."""

    direction: str  # in, out
    family: str  # 4, 6
    interface: str | None
    source: Any  # an address
    target: Any
    port: int
    proto: str = "tcp"


@functools.lru_cache(maxsize=4096)
def _network(text):
    return ipaddress.ip_network(text, strict=False)


def _holds(text, address, lets_in):
    """Whether an address is in a rule's network; an unknown one counts only where every address would do."""
    network = _network(text)
    if address is None:
        return network.prefixlen == 0
    return address in network


def _covers(text, port):
    """Whether a rule's ports (``22``, ``80,443``, ``6000:6010``, ``any``) name this one."""
    return text == "any" or any(
        int(first) <= port <= int(last or first) for first, _, last in (part.partition(":") for part in text.split(","))
    )


def _on_interface(line, packet):
    """``in``, ``in_eth0`` or ``in_eth+``, against the packet's; an unknown interface may be any, so it lets in only."""
    way, _, name = line.direction.partition("_")
    if way != packet.direction:
        return False
    if not name:
        return True
    if packet.interface is None:
        return _lets_in(line) and name != "lo"
    return _is_named(packet.interface, name)


def _is_named(interface, name):
    """Whether a rule's interface, ``eth0`` or ``eth+`` for all that begin so (iptables(8)), is this one."""
    return interface.startswith(name[:-1]) if name.endswith("+") else interface == name


def _from_port(line):
    """The source port of a new connection is any of a range: allowed only if all of it is, denied if some of it is."""
    if line.sport == "any":
        return True
    check = all if _lets_in(line) else any
    return check(_covers(line.sport, port) for port in (EPHEMERAL[0], sum(EPHEMERAL) // 2, EPHEMERAL[1]))


def _verb(line):
    """``allow`` of ``allow_log``."""
    return line.action.rpartition(":")[2].partition("_")[0]


def _lets_in(line):
    return _verb(line) in LETS_IN


def _matches(line, packet):
    return (
        line.family == packet.family
        and not line.action.startswith("route:")
        and line.proto in ("any", packet.proto)
        and _covers(line.port, packet.port)
        and _on_interface(line, packet)
        and _from_port(line)
        and _holds(line.source, packet.source, _lets_in(line))
        and _holds(line.to, packet.target, _lets_in(line))
    )


def _verdict(lines, packet, policy):
    """(whether the packet gets through, the rule that decides or ``None`` for the policy): the first match counts."""
    for line in lines:
        if _matches(line, packet):
            return _lets_in(line), line
    return policy == "allow", None


def _samples(lines, family):
    """
    One address of every set of sources that the rules do not tell apart: networks nest or are disjoint, so where one
    begins, and behind where one ends, are enough.
    """
    whole = ALL[family]
    found = {int(whole.network_address) + 1}
    for line in lines:
        if line.family == family:
            network = _network(line.source)
            found |= {int(network.network_address), int(network.broadcast_address) + 1}
    make = type(whole.network_address)
    return [make(number) for number in sorted(found) if 0 < number <= int(whole.broadcast_address)]


class Door(NamedTuple):
    """Where something listens: on one address or, with ``None``, on all of its family."""

    family: str
    address: Any
    port: int


def _ways(door, addresses):
    """(interface, address) by which packets reach a door; none if this host has no address for it."""
    if addresses is None:
        return [(None, None)]
    return [
        (interface, address)
        for interface, address in addresses
        if str(address.version) == door.family and door.address in (None, address)
    ]


def _openers(lines, policy, door, addresses):
    """
    What lets anybody in at a door: rules, and ``None`` for the policy. Empty: it is shut.

    A rule for one network is enough: which network that should be is the pillar's business. But one that lets a network
    in everywhere, like `allow from 192.0.2.7`, was not written for this door.
    """
    found = []
    for interface, target in _ways(door, addresses):
        for source in _samples(lines, door.family):
            packet = Packet("in", door.family, interface, source, target, door.port)
            passes, line = _verdict(lines, packet, policy)
            if passes and line not in found and (line is None or line.port != "any" or _is_any(line)):
                found.append(line)
    return found


def _is_any(line):
    return _network(line.source).prefixlen == 0


def _text(line):
    """``deny tcp 22 from any``, with what narrows it."""
    source = "any" if _is_any(line) else line.source
    # After the name come the user's own words.
    name = line.comment.partition(":")[2].partition(" ")[0] if line.comment.startswith("redis_sidekiq:") else ""
    way, _, interface = line.direction.partition("_")
    words = [line.action.replace("_", " "), *([way] if way == "out" else []), line.proto, line.port, f"from {source}"]
    words += [f"to {line.to}"] if _network(line.to).prefixlen else []
    words += [f"on {interface}"] if interface else []
    return (f"{name}: " if name else "") + " ".join(words)


def _why_shut(lines, door, addresses):
    """The reason, as the end of a sentence."""
    about = [line for line in lines if line.family == door.family and line.proto in ("any", "tcp")]
    about = [line for line in about if not line.action.startswith("route:") and line.direction.startswith("in")]
    about = [line for line in about if _covers(line.port, door.port)]
    opening = [line for line in about if _lets_in(line) and (line.port != "any" or _is_any(line))]
    names = {interface for interface, _ in addresses or ()}
    bound = [
        line
        for line in opening
        if "_" in line.direction and not any(_is_named(name, line.direction.partition("_")[2]) for name in names)
    ]
    if not opening:
        return "no rule would let anyone in there"
    if addresses and len(bound) == len(opening):
        if all(line.direction == "in_lo" for line in bound):
            return f"the rule `{_text(bound[0])}` is for this host itself alone"
        here = ", ".join(sorted(names))
        return f"the rule `{_text(bound[0])}` is bound to an interface that this host has not got (it has {here})"
    for interface, target in _ways(door, addresses):
        for line in opening:
            for source in _samples(lines, door.family):
                packet = Packet("in", door.family, interface, source, target, door.port)
                passes, decider = _verdict(lines, packet, "deny")
                if _matches(line, packet) and not passes:
                    return f"the rule `{_text(decider)}` stands before `{_text(line)}`"
    return f"the rule `{_text(opening[0])}` lets nobody in at an address of this host's where sshd listens"


# --------------------------------------------------------------------------------------------------------------------
# Facts: who has to get through
# --------------------------------------------------------------------------------------------------------------------


class Socket(NamedTuple):
    """One row of ``/proc/net/tcp``; addresses of IPv4 that stand in ``tcp6`` are IPv4's here."""

    family: str
    local: Any
    port: int
    peer: Any
    peer_port: int
    state: str
    inode: str


LISTEN, ESTABLISHED = "0A", "01"  # proc(5)


def _read(path):
    try:
        with salt.utils.files.fopen(path, "r", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _endpoint(text):
    """``0100007F:1F90`` as (address, port): the address in words of 32 bits in this host's byte order."""
    address, _, port = text.partition(":")
    words = struct.pack(f"={len(address) // 8}I", *(int(address[at : at + 8], 16) for at in range(0, len(address), 8)))
    address = ipaddress.ip_address(words)
    return getattr(address, "ipv4_mapped", None) or address, int(port, 16)


def _sockets():
    """This host's TCP sockets that listen or are connected."""
    found = []
    for table in TABLES.values():
        for row in _read(table).splitlines()[1:]:
            words = row.split()
            if words[3] in (LISTEN, ESTABLISHED):
                local, port = _endpoint(words[1])
                peer, peer_port = _endpoint(words[2])
                found.append(Socket(str(local.version), local, port, peer, peer_port, words[3], words[9]))
    return found


def _owners():
    """Inode of a socket -> the titles of the processes of sshd and of the master's that hold it."""
    found = {}
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        title = _read(path).replace("\0", " ").strip()
        if "sshd" not in title and "salt-master" not in title:
            continue
        for fd in glob.glob(os.path.dirname(path) + "/fd/*"):
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            if target.startswith("socket:["):
                found.setdefault(target[len("socket:[") : -1], []).append(title)
    return found


def _is_sshd(title):
    """``sshd: /usr/sbin/sshd -D``, ``/usr/sbin/sshd -D``."""
    return bool(re.match(r"sshd: |(?:\S*/)?sshd(?: |$)", title))


def _is_session(title):
    """``sshd: deploy@pts/0`` (since OpenSSH 9.8 ``sshd-session:``): logged in. Whoever only knocks is ``[preauth]``."""
    return bool(re.match(r"sshd(?:-session)?: [^\s@]+@\S+$", title))


def _run(argv):
    return __salt__["cmd.run_all"](
        argv, python_shell=False, env={"LC_ALL": "C"}, timeout=TOOL_TIMEOUT, ignore_retcode=True
    )


def _door(text):
    """``0.0.0.0:22``, ``[::]:22`` as a :class:`Door`; ``None`` for loopback, which UFW lets through, and for no address."""
    address, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if address.is_loopback or not port.isdigit():
        return None
    return Door(str(address.version), None if address.is_unspecified else address, int(port))


def _configured():
    """Doors of sshd's configuration in force, and what it said if there were none."""
    sshd = salt.utils.path.which("sshd")
    if not sshd:
        return set(), ""
    # sshd insists on being called by its full path.
    found = _run([sshd, "-T"])
    words = dict.fromkeys(tuple(line.split(None, 1)) for line in found["stdout"].splitlines() if " " in line)
    listen = [value for key, value in words if key == "listenaddress"]
    ports = [int(value) for key, value in words if key == "port"]
    doors = {door for door in map(_door, listen) if door}
    if not listen:
        doors = {Door(family, None, port) for family in "46" for port in ports}
    said = found["stderr"].strip() or found["stdout"].strip() or f"exit {found['retcode']}"
    return doors, "" if listen or ports else said


def _socket_units():
    """Doors of ssh.socket, where systemd listens in sshd's place, now or from the next boot on."""
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return set()
    keys = "--property=ActiveState,UnitFileState,Listen"
    found = _run(["systemctl", "show", keys, "ssh.socket", "sshd.socket"])
    doors = set()
    for unit in found["stdout"].split("\n\n"):
        if "ActiveState=active" not in unit and "UnitFileState=enabled" not in unit:
            continue
        for text in re.findall(r"^Listen=(\S+) \(Stream\)", unit, re.MULTILINE):
            door = _door(text)
            doors |= {door} if door else set()
            if door and door.address is None:
                doors.add(Door("4", None, door.port))  # systemd.socket(5), BindIPv6Only: both by default
    return doors


def _sshd_doors(sockets, owners):
    """Where sshd is reached, now and after its next start; raises if there is an sshd that does not tell."""
    doors = {
        Door(one.family, None if one.local.is_unspecified else one.local, one.port)
        for one in sockets
        if one.state == LISTEN and not one.local.is_loopback and any(map(_is_sshd, owners.get(one.inode, ())))
    }
    configured, said = _configured()
    doors |= configured | _socket_units()
    if said and not doors:
        raise CommandExecutionError(
            f"sshd is installed, but does not tell its ports: `sshd -T` said: {said}. "
            "Put its configuration right, or remove openssh-server; UFW stays as it is until then"
        )
    return sorted(doors, key=str)


NETLINK_ROUTE, RTM_GETADDR = 0, 22
NLM_F_REQUEST_DUMP, NLMSG_DONE, NLMSG_ERROR = 0x301, 3, 2
IFA_ADDRESS, IFA_LOCAL = 1, 2


def _addresses():
    """(interface, address) of this host, without loopback and the link-local ones of IPv6 (rtnetlink(7))."""
    found = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as netlink:
        netlink.settimeout(5)
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHIIBBBBi", 24, RTM_GETADDR, NLM_F_REQUEST_DUMP, 1, 0, 0, 0, 0, 0, 0))
        while True:
            data = netlink.recv(1 << 17)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, 16)[0]
                    raise CommandExecutionError(f"The kernel does not tell its addresses: {os.strerror(code)}")
                found += _address(data[16:length])
                data = data[length + 3 & ~3 :]


def _address(message):
    index = struct.unpack_from("=i", message, 4)[0]
    attributes, data = {}, message[8:]
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        attributes[kind] = data[4:length]
        data = data[max(length, 4) + 3 & ~3 :]
    packed = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS, b"")
    if len(packed) not in (4, 16):
        return []
    address = ipaddress.ip_address(packed)
    if address.is_loopback or (address.version == 6 and address.is_link_local):
        return []
    try:
        return [(socket.if_indextoname(index), address)]
    except OSError:  # it went away meanwhile
        return []


def _people(sockets, owners, doors):
    """Connections by which somebody is logged in, and the one that this very process came by (ssh(1))."""
    came = os.environ.get("SSH_CONNECTION", "").split()
    found = []
    for one in sockets:
        if one.state != ESTABLISHED or one.peer.is_loopback:
            continue
        mine = came[:2] == [str(one.peer), str(one.peer_port)]
        if mine or any(map(_is_session, owners.get(one.inode, ()))):
            found.append(one)
    return found


def _master_doors(sockets, owners):
    """Where a salt-master listens: its processes, or 4505 and 4506 whoever holds them (a container's)."""
    found = set()
    for one in sockets:
        of_master = any("salt-master" in title for title in owners.get(one.inode, ()))
        if one.state == LISTEN and not one.local.is_loopback and (of_master or one.port in MASTER_PORTS):
            everywhere = one.local.is_unspecified
            found.add(Door(one.family, None if everywhere else one.local, one.port))
            if everywhere:
                # Of a socket on :: /proc does not tell whether it takes IPv4 too: libzmq's does (ZMQ_IPV6).
                found.add(Door("4", None, one.port))
    return sorted(found, key=str)


def _masters(sockets):
    """(addresses, ports, names that must be looked up) of the masters that this minion calls; empty if masterless."""
    if __opts__.get("file_client") != "remote":
        return [], [], []
    ports = [int(__opts__.get("publish_port") or 4505), int(__opts__.get("master_port") or 4506)]
    wished = __opts__.get("master") or []
    names = [str(name) for name in (wished if isinstance(wished, (list, tuple)) else [wished])]
    found, lookups = [str(__opts__.get("master_ip") or "")], []
    for name in names:
        host = name.rpartition(":")[0] if re.fullmatch(r"\[.*\]:\d+|[^:]+:\d+", name) else name
        addresses, by_dns = _look_up(host.strip("[]"))
        found += addresses
        lookups += [host] if by_dns else []
    found += [str(one.peer) for one in sockets if one.state == ESTABLISHED and one.peer_port == ports[0]]
    return _parsed(found), ports, lookups


def _parsed(texts):
    found = []
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if address not in found and not address.is_loopback:
            found.append(address)
    return found


def _look_up(host):
    """(addresses of a master, whether DNS has to be asked for them)"""
    try:
        return [str(ipaddress.ip_address(host))], False
    except ValueError:
        pass
    rows = [row.partition("#")[0].split() for row in _read(HOSTS).splitlines()]
    written = [row[0] for row in rows if host in row[1:]]
    if written:
        return written, False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return [], True
    return [address[0] for *_, address in found], True


def _nameservers():
    """Addresses that a look-up goes to; ``None`` where a server on this host asks others that nobody knows."""
    found = []
    for path in RESOLV:
        found += re.findall(r"^nameserver\s+(\S+)", _read(path), re.MULTILINE)
    return _parsed(name.partition("%")[0] for name in found) or [None]


def facts(root=""):
    """
    Who has to get through this host's firewall. Starts ``sshd -T`` and ``systemctl show``.

    root
        A private copy of UFW's files, see :py:func:`ufw_rules.status`: of this host, sshd's ports count alone.

    Returns a dictionary: ``sshd`` and ``master`` (where they listen: family, address or ``None``, port), ``addresses``
    (interface, address), ``people`` and ``minions`` (connections that stand), ``masters`` (addresses), ``master_ports``,
    ``lookups`` (masters' names that DNS is asked for), ``nameservers``.

    Raises CommandExecutionError if there is an sshd and its ports cannot be told.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_guard.facts
    """
    sockets, owners = _sockets(), _owners()
    doors = _sshd_doors(sockets, owners)
    none = {"sshd": doors, "master": [], "people": [], "minions": [], "lookups": [], "nameservers": []}
    if root:
        remote = __opts__.get("file_client") == "remote"
        ports = [int(__opts__.get("publish_port") or 4505), int(__opts__.get("master_port") or 4506)]
        return {**none, "addresses": None, "masters": [None] if remote else [], "master_ports": ports}
    master = _master_doors(sockets, owners)
    ports = {door.port for door in master}
    masters, master_ports, lookups = _masters(sockets)
    return {
        "sshd": doors,
        "master": master,
        "addresses": _addresses(),
        "people": _people(sockets, owners, doors),
        "minions": [
            one for one in sockets if one.state == ESTABLISHED and one.port in ports and not one.peer.is_loopback
        ],
        "masters": masters,
        "master_ports": master_ports,
        "lookups": lookups,
        "nameservers": _nameservers() if lookups else [],
    }


# --------------------------------------------------------------------------------------------------------------------
# The guards: each takes (lines, policies, facts, ipv6) and returns a sentence, empty if all is well
# --------------------------------------------------------------------------------------------------------------------


def _policy(policies, family, ipv6, direction="incoming"):
    """ufw-init shuts IPv6 altogether where it is off for UFW (ufw-init-functions, ufw_start)."""
    return "deny" if family == "6" and not ipv6 else policies[direction]


def _standing(lines, facts, policies, ipv6, doors):
    """Port -> {family: what lets in}, for each family in which the port has a door and this host an address."""
    lines = [line for line in lines if ipv6 or line.family == "4"]
    found = {}
    for door in doors:
        if _ways(door, facts["addresses"]):
            openers = _openers(lines, _policy(policies, door.family, ipv6), door, facts["addresses"])
            families = found.setdefault(door.port, {})
            # Two doors of one family and port are two addresses: one that is shut is not made good by the other.
            families[door.family] = openers if families.get(door.family, openers) else []
    return found


def _why(lines, facts, ipv6, port, family, doors):
    if family == "6" and not ipv6:
        return "IPv6 is off for UFW, which then drops all of it: set IPV6=yes in /etc/default/ufw"
    reasons = [
        _why_shut(lines, door, facts["addresses"])
        for door in doors
        if (door.port, door.family) == (port, family)
        and not _openers(lines, "deny", door, facts["addresses"])
        and _ways(door, facts["addresses"])
    ]
    return reasons[0] if reasons else "no rule would let anyone in there"


def _guard_ssh(lines, policies, facts, ipv6):
    standing = _standing(lines, facts, policies, ipv6, facts["sshd"])
    shut = [port for port, families in sorted(standing.items()) if not any(families.values())]
    if not shut:
        return ""
    family = min(standing[shut[0]])
    why = _why(lines, facts, ipv6, shut[0], family, facts["sshd"])
    return (
        f"This would shut out ssh: sshd is reached at port {', '.join(map(str, shut))}, and {why}. "
        f"Add a rule like {{ssh: {{port: {shut[0]}}}}} to redis_sidekiq:firewall:rules"
    )


def _guard_ssh_family(family, lines, policies, facts, ipv6):
    for port, families in sorted(_standing(lines, facts, policies, ipv6, facts["sshd"]).items()):
        others = [line for key, openers in families.items() if key != family for line in openers]
        if family not in families or families[family] or not others:
            continue
        # Rules that name networks of IPv4 alone mean it: few hosts are administered by IPv6.
        if family == "6" and ipv6 and all(line is not None and not _is_any(line) for line in others):
            if not any(one.family == "6" for one in facts["people"]) and not _denied(lines, port):
                continue
        why = _why(lines, facts, ipv6, port, family, facts["sshd"])
        return (
            f"This would shut out ssh by IPv{family}: sshd listens there at port {port}, this host has an address of "
            f"it, and {why}. Name a network of IPv{family} in the rule for ssh"
        )
    return ""


def _denied(lines, port):
    """Whether a rule keeps everybody out by IPv6, in place of none letting in."""
    return any(
        line.family == "6" and not _lets_in(line) and _is_any(line) and _covers(line.port, port) for line in lines
    )


def _entrance(facts, one):
    """The interface by which a connection's packets come: that of its local address."""
    return next((name for name, address in facts["addresses"] or () if address == one.local), None)


def _turned_away(lines, policies, facts, ipv6, connections):
    """(connection, rule that decides) of those that could not be opened again."""
    lines = [line for line in lines if ipv6 or line.family == "4"]
    found = []
    for one in connections:
        packet = Packet("in", one.family, _entrance(facts, one), one.peer, one.local, one.port)
        passes, line = _verdict(lines, packet, _policy(policies, one.family, ipv6))
        if not passes:
            found.append((one, line))
    return found


def _decider(line):
    return f"the rule `{_text(line)}` keeps it out" if line else "no rule would let it in again"


def _guard_connection(lines, policies, facts, ipv6):
    cut = _turned_away(lines, policies, facts, ipv6, facts["people"])
    if not cut:
        return ""
    one, line = cut[0]
    peers = ", ".join(dict.fromkeys(str(one.peer) for one, _ in cut))
    return (
        f"This would shut out who is logged in by ssh from {peers}: {_decider(line)} at port {one.port}. "
        f"Name {peers} in the rule for ssh, or log out there"
    )


def _guard_limit(lines, policies, facts, ipv6):
    """What is seen now is the measure: as many connections from one address as `limit` lets in at once."""
    per_peer = {}
    for one in facts["people"]:
        per_peer.setdefault((one.peer, one.port, one.local), []).append(one)
    for (peer, port, local), found in per_peer.items():
        packet = Packet("in", str(peer.version), _entrance(facts, found[0]), peer, local, port)
        passes, line = _verdict(lines, packet, "deny")
        if passes and line is not None and _verb(line) == "limit" and len(found) >= LIMIT:
            return (
                f"This would let ssh in too seldom: `{_text(line)}` takes fewer than {LIMIT} new connections in 30 s "
                f"from one address, and {peer} has {len(found)} open. Use allow for its network, before it"
            )
    for door in facts["master"]:
        for line in _openers(lines, "deny", door, facts["addresses"]):
            if line is not None and _verb(line) == "limit":
                return (
                    f"This would let minions in too seldom: `{_text(line)}` takes fewer than {LIMIT} new connections in "
                    f"30 s from one address, and a minion opens one for each of its answers. Use allow for port {door.port}"
                )
    return ""


def _leave(target):
    """The interface and the source address by which packets to an address leave: connect(2) of UDP sends nothing."""
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(target), 9))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
    except OSError:
        return None


def _outgoing(facts, target, port, proto="tcp"):
    source = _leave(target) if target is not None else None
    name = next((name for name, address in facts["addresses"] or () if address == source), None)
    return Packet("out", str(target.version) if target is not None else "4", name, source, target, port, proto)


def _goes_out(lines, policies, facts, ipv6, target, port, proto="tcp"):
    if target is None:
        # To whichever host: a rule for one address may be for this one.
        lines = [line._replace(to=str(ALL[line.family])) if _lets_in(line) else line for line in lines]
        families = "46" if ipv6 else "4"
        return any(
            _verdict(lines, Packet("out", family, None, None, None, port, proto), policies["outgoing"])[0]
            for family in families
        )
    lines = [line for line in lines if ipv6 or line.family == "4"]
    packet = _outgoing(facts, target, port, proto)
    return _verdict(lines, packet, _policy(policies, packet.family, ipv6, "outgoing"))[0]


def _guard_master(lines, policies, facts, ipv6):
    masters, ports = facts["masters"], facts["master_ports"]
    # One master that can be reached is enough: of several, each serves.
    for target in masters:
        if all(_goes_out(lines, policies, facts, ipv6, target, port) for port in ports):
            return ""
    if not masters:
        return ""
    cut = [port for port in ports if not _goes_out(lines, policies, facts, ipv6, masters[0], port)]
    where = f" {masters[0]}" if masters[0] is not None else ""
    return (
        f"This would cut the minion off from its master{where}: no rule lets it out to port "
        f"{', '.join(map(str, cut))}. Add a rule like {{master: {{direction: out, port: {cut}}}}} to "
        "redis_sidekiq:firewall:rules, or leave redis_sidekiq:firewall:outgoing at allow"
    )


def _guard_dns(lines, policies, facts, ipv6):
    if not facts["lookups"]:
        return ""
    for server in facts["nameservers"]:
        if _goes_out(lines, policies, facts, ipv6, server, 53, "udp"):
            return ""
    servers = ", ".join(str(server) for server in facts["nameservers"] if server is not None)
    return (
        f"This would cut the minion off from its master: its name {facts['lookups'][0]} could not be looked up, for no "
        f"rule lets udp out to port 53{f' of {servers}' if servers else ''}. Add a rule like {{dns: {{direction: out, "
        f"port: 53, proto: udp}}}} to redis_sidekiq:firewall:rules, name the master in {HOSTS}, or leave "
        "redis_sidekiq:firewall:outgoing at allow"
    )


def _guard_minions(lines, policies, facts, ipv6):
    standing = _standing(lines, facts, policies, ipv6, facts["master"])
    shut = [port for port, families in sorted(standing.items()) if not any(families.values())]
    if shut:
        family = min(standing[shut[0]])
        why = _why(lines, facts, ipv6, shut[0], family, facts["master"])
        return (
            f"This would shut out the minions of this master: it listens at port {', '.join(map(str, shut))}, and {why}. "
            'Add a rule like {salt: {port: "4505:4506", from: [YOUR NETWORK]}} to redis_sidekiq:firewall:rules'
        )
    cut = _turned_away(lines, policies, facts, ipv6, facts["minions"])
    if not cut:
        return ""
    peers = list(dict.fromkeys(str(one.peer) for one, _ in cut))
    more = f" and {len(peers) - 3} more" if len(peers) > 3 else ""
    return (
        f"This would shut out minions of this master: {', '.join(peers[:3])}{more} is connected, and "
        f"{_decider(cut[0][1])} at port {cut[0][0].port}. Name its network in the rule for {cut[0][0].port}"
    )


_CHECKS = {
    "ssh": _guard_ssh,
    "ssh_ipv4": functools.partial(_guard_ssh_family, "4"),
    "ssh_ipv6": functools.partial(_guard_ssh_family, "6"),
    "connection": _guard_connection,
    "limit": _guard_limit,
    "master": _guard_master,
    "dns": _guard_dns,
    "minions": _guard_minions,
}


def _found(lines, policies, facts, ipv6):
    """Guard -> sentence, for each that objects."""
    sentences = {name: check(lines, policies, facts, ipv6) for name, check in _CHECKS.items()}
    return {name: sentence for name, sentence in sentences.items() if sentence}


def risks_of_ssh(lines, policies, ipv6, known):
    """
    Whether ssh would be shut, as sentences. Arguments as for :func:`refuse`; ``known`` is needed.

    CLI Example, from a module:

    .. code-block:: python

        said = __salt__["ufw_guard.risks_of_ssh"](lines, policies, True, known)
    """
    found = _found(lines, policies, known, ipv6)
    return [found[name] for name in ("ssh", "ssh_ipv4", "ssh_ipv6", "connection") if name in found]


def refuse(lines, policies, ipv6=True, told=(), known=None, root=""):
    """
    Refuse rules that would shut somebody out. Called by :py:func:`ufw_rules.apply` before its first change.

    lines
        The rules as they would be, in order: what ``ufw_rules`` reads from UFW's files.
    policies
        ``incoming`` and ``outgoing``: allow, deny, reject.
    ipv6
        Whether UFW handles IPv6. Default: true.
    told
        Names of guards whose refusal is overridden. Default: none.
    known
        What :func:`facts` returned. Default: it is asked.
    root
        A private copy of UFW's files, as for :func:`facts`.

    Returns guard -> sentence for those that object and are overridden.

    Raises SaltInvocationError for a guard that does not exist; CommandExecutionError with the sentence of each that objects.

    CLI Example, from a module:

    .. code-block:: python

        __salt__["ufw_guard.refuse"](lines, policies, told=["ssh"])
    """
    unknown = sorted(set(told) - set(GUARDS))
    if unknown:
        raise SaltInvocationError(f"Found allow_lockout {', '.join(unknown)}; allowed: {', '.join(GUARDS)}")
    found = _found(lines, policies, facts(root) if known is None else known, ipv6)
    refused = [name for name in found if name not in told]
    if refused:
        ending = f"Nothing was changed. If that is meant: redis_sidekiq:firewall:allow_lockout: [{', '.join(refused)}]"
        raise CommandExecutionError(". ".join([*(found[name] for name in refused), ending]))
    return found


def listeners():
    """
    This host's TCP sockets that listen, as the kernel's tables have them (proc(5)).

    Returns a list of ``{address, port, inode}``; an address of IPv4 is written as one in IPv6's table too.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_guard.listeners
    """
    sockets = [one for one in _sockets() if one.state == LISTEN]
    return [{"address": str(one.local), "port": one.port, "inode": one.inode} for one in sockets]


def guards():
    """
    Names of the guards, as ``allow_lockout`` takes them.

    Returns a list.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_guard.guards
    """
    return list(GUARDS)


def check():
    """
    Judge the rules that are in UFW's files now, as they would be if UFW is on. Touches nothing.

    Returns guard -> sentence, for each that objects; empty: nobody is shut out.

    Raises CommandExecutionError if there is an sshd and its ports cannot be told.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_guard.check
    """
    lines, policies, ipv6 = __salt__["ufw_rules.in_files"]()
    return _found(lines, policies, facts(), ipv6)


# --------------------------------------------------------------------------------------------------------------------
# The way back: a timer of systemd's, started before the first change
# --------------------------------------------------------------------------------------------------------------------

PROGRAM = "/usr/local/lib/redis_sidekiq/ufw_rollback.py"
FOLDER = "/var/lib/redis_sidekiq/firewall-rollback"
PLAN = f"{FOLDER}/plan.json"
KEPT = {"user.rules": "/etc/ufw/user.rules", "user6.rules": "/etc/ufw/user6.rules"}
DEFAULTS, CONF = "/etc/default/ufw", "/etc/ufw/ufw.conf"
NAME = "redis_sidekiq-ufw-rollback"
BOOT_UNIT = f"/etc/systemd/system/{NAME}.service"
BOOT_LINK = f"/etc/systemd/system/multi-user.target.wants/{NAME}.service"
LOCK = "/run/redis_sidekiq-ufw.lock"
CONFIRM = ("run", "master", "none")
PYTHON = "/usr/bin/python3"  # ufw is written in it

# Before ufw.service, which has no default dependencies either.
UNIT = f"""[Unit]
Description=Former rules of the firewall, after a change that nobody confirmed
DefaultDependencies=no
RequiresMountsFor=/etc /var/lib/redis_sidekiq /usr/local/lib
After=local-fs.target systemd-remount-fs.service
Before=ufw.service network-pre.target
ConditionPathExists={PLAN}

[Service]
Type=oneshot
ExecStart={PYTHON} -I -B {PROGRAM} --boot
"""


def pending():
    """
    The change that waits for its confirmation. Starts no process.

    Returns a dictionary, empty if none waits: ``armed`` and ``until`` (times), ``within`` (s), ``confirm`` (by whom:
    ``run``, ``master``), ``token``.

    CLI Example:

    .. code-block:: bash

        salt '*' ufw_guard.pending
    """
    plan = _plan()
    return {key: plan[key] for key in ("armed", "until", "within", "confirm", "token")} if plan else {}


def _plan():
    text = _read(PLAN)
    return json.loads(text) if text else {}


def arm(loaded, complete, made, confirm="run", within=60):
    """
    Keep UFW's rules, and have systemd put them back unless :func:`settle` or :func:`confirm` comes first. Called by
    :py:func:`ufw_rules.apply`, which holds its lock. While an older change waits, what was before that one is kept.

    loaded
        Whether UFW is in force in the kernel.
    complete
        Whether its rule files are complete.
    made
        The policies that the change makes: assignment in /etc/default/ufw -> list of the values that it may have meanwhile.
    confirm
        Who confirms: ``run`` or ``master``.
    within
        Seconds.

    Returns the change's token; empty where systemd does not run this host.

    Raises CommandExecutionError if the timer cannot be started.

    CLI Example, from a module:

    .. code-block:: python

        token = __salt__["ufw_guard.arm"](loaded, complete, made, within=60)
    """
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return ""
    if not os.path.exists(PROGRAM):
        raise CommandExecutionError(
            f"There is no {PROGRAM}, which puts the former rules back: apply redis_sidekiq.firewall, or set "
            "redis_sidekiq:firewall:confirm to none"
        )
    old, now = _plan(), time.time()
    token = f"{now:.3f}".replace(".", "-")
    # The timer first: without a plan, or with another's token in it, it does nothing.
    _start_timer(token, within)
    if not old:
        _keep_files()
        old = {"before": _before(), "loaded": loaded, "rules": complete}
    plan = {
        **{key: old[key] for key in ("before", "loaded", "rules")},
        "made": {"defaults": made, "conf": {}},
        "token": token,
        "confirm": confirm,
        "within": within,
        "armed": _clock(now),
        "until": _clock(now + within),
        "unit": BOOT_UNIT,
        "link": BOOT_LINK,
    }
    __salt__["whole_files.write"](BOOT_UNIT, UNIT, 0o644)
    os.makedirs(os.path.dirname(BOOT_LINK), exist_ok=True)
    if not os.path.lexists(BOOT_LINK):
        os.symlink(BOOT_UNIT, BOOT_LINK)
    __salt__["whole_files.write"](PLAN, json.dumps(plan) + "\n", 0o600)
    _stop_timer(old.get("token", ""))
    return token


def _clock(seconds):
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _keep_files():
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    for name, path in KEPT.items():
        __salt__["whole_files.write"](f"{FOLDER}/{name}", _read(path), 0o600)


def _before():
    """The assignments that a change of ours may touch, as they are written."""

    def written(path, names):
        found = dict(re.findall(r"^(\w+)=(.*)$", _read(path), re.MULTILINE))
        return {name: found[name] for name in names if name in found}

    return {
        "defaults": written(DEFAULTS, ("DEFAULT_INPUT_POLICY", "DEFAULT_OUTPUT_POLICY", "DEFAULT_FORWARD_POLICY")),
        "conf": written(CONF, ("ENABLED", "LOGLEVEL")),
    }


def _start_timer(token, within):
    command = [PYTHON, "-I", "-B", PROGRAM, f"--token={token}"]
    timer = ["--collect", f"--unit={NAME}-{token}", f"--on-active={within}", "--timer-property=AccuracySec=100ms"]
    found = _run(["systemd-run", *timer, "--description=Former rules of the firewall", *command])
    if found["retcode"]:
        raise CommandExecutionError(
            f"systemd does not start the timer that would put the former rules back: {found['stderr'].strip()}. "
            "Nothing was changed"
        )


def _stop_timer(token):
    if token:
        _run(["systemctl", "stop", f"{NAME}-{token}.timer"])


def settle(known, confirm="run"):
    """
    Prove on new connections that the change shuts nobody out, and take the way back away. Called by
    :py:func:`ufw_rules.apply`, which holds its lock, once the facts are as wished.

    known
        What :func:`facts` returned before the change; ``None`` if UFW is off.
    confirm
        Who confirms: with ``master`` this does nothing.

    Raises CommandExecutionError if the proof fails.

    CLI Example, from a module:

    .. code-block:: python

        __salt__["ufw_guard.settle"](known)
    """
    if confirm == "master":
        return
    wrong = _unreachable(known) if known else ""
    if wrong:
        raise CommandExecutionError(wrong)
    _disarm()


def _unreachable(known):
    """What cannot be reached on a new connection; empty if all is well."""
    masters = [address for address in known["masters"] if address is not None]
    until = time.monotonic() + PROOF_TIMEOUT
    wrong = ""
    while masters:
        for address in masters:
            wrong = next(filter(None, (_try(address, port) for port in reversed(known["master_ports"]))), "")
            if not wrong:
                return ""
        if time.monotonic() > until:
            return f"The master cannot be reached any more: {wrong}"
        time.sleep(0.5)
    listening = {(one.family, one.port) for one in _sockets() if one.state == LISTEN}
    for door in known["sshd"]:
        # Through loopback, so it says that sshd lives; that the rules let it be reached was judged before.
        ways = _ways(door, known["addresses"])
        if ways and (door.family, door.port) in listening:
            wrong = _try(ways[0][1], door.port)
            if wrong:
                return f"sshd does not answer any more: {wrong}"
    return ""


def _try(address, port):
    try:
        socket.create_connection((str(address), port), CONNECT_TIMEOUT).close()
    except OSError as exc:
        return f"{address} port {port}: {exc.strerror or exc}"
    return ""


def _disarm():
    """The plan first: without it neither the timer nor the boot does anything."""
    token = _plan().get("token", "")
    for path in (PLAN, *(f"{FOLDER}/{name}" for name in KEPT), BOOT_LINK, BOOT_UNIT):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(FOLDER)
    _stop_timer(token)


def disarm():
    """
    Take the way back away without any proof. Called by :py:func:`ufw_rules.withdraw`, which holds its lock.

    CLI Example, from a module:

    .. code-block:: python

        __salt__["ufw_guard.disarm"]()
    """
    if os.path.exists(PLAN):
        _disarm()


def confirm():
    """
    Confirm the change that waits for it: the former rules do not come back. A call of this from the master is the proof
    that the master still reaches the minion.

    Returns a sentence.

    Raises CommandExecutionError if no change waits: it was confirmed, or the former rules are back.

    CLI Example:

    .. code-block:: bash

        salt MINION ufw_guard.confirm
    """
    with salt.utils.files.fopen(LOCK, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = _plan()
        if not plan:
            raise CommandExecutionError(
                "No change of the firewall waits for a confirmation: it was confirmed, or the former rules are back, "
                f"see `journalctl --unit='{NAME}*'`"
            )
        _disarm()
    return f"The change of {plan['armed']} is confirmed"


def roll_back(token):
    """
    Put the former rules back at once. Called by :py:func:`ufw_rules.apply` after a change that failed, without its lock.

    token
        What :func:`arm` returned.

    Returns a sentence.

    CLI Example, from a module:

    .. code-block:: python

        said = __salt__["ufw_guard.roll_back"](token)
    """
    until = _plan().get("until", "soon")
    found = _run([PYTHON, "-I", "-B", PROGRAM, f"--token={token}"])
    if found["retcode"] or os.path.exists(PLAN):
        return f"The former rules come back at {until}"
    _stop_timer(token)
    return "The former rules are back"
