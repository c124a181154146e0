"""
Rulesets of the firewall that would shut somebody out: test/unit judges each as a pure function, and
test/hosts/test_firewall_guard.py has each refused on a real host.

A rule is a text, ``ACTION PROTO PORT`` and pairs of words: ``from``, ``to`` (networks), ``on`` (interface), ``by`` (4, 6),
``way`` (in, out), ``sport``. A host is what differs from one with the addresses ``HERE`` on ``eth0`` and sshd at port 22 of
all: ``sshd`` (ports), ``listen`` (ListenAddresses), ``addresses``, ``ipv6`` (whether UFW handles it), ``people`` (who is
logged in: address, port, address here), ``master`` (ports of a master that runs here), ``minions`` (addresses of its
minions), ``masters`` (of this minion), ``lookups`` and ``nameservers`` (for the master's name).
"""

from __future__ import annotations

import ipaddress

HERE = {"4": "10.0.0.5", "6": "2001:db8::5"}
OFFICE, HOME, MASTER = "192.0.2.7", "203.0.113.9", "10.0.0.1"


def at(*addresses):
    return [(name, ipaddress.ip_address(address)) for name, address in addresses]


SSH, HTTP, OUT = "allow tcp 22", "allow tcp 80", ["allow tcp 4505:4506 way out", "allow udp 53 way out"]
PEOPLE = {"people": [(OFFICE,)]}
ON_MASTER = {"master": (4505, 4506)}
MINION = {"masters": [MASTER]}
NAMED = {**MINION, "lookups": ["salt"], "nameservers": [ipaddress.ip_address("10.0.0.2")]}
BY6 = {"people": [("2001:db8:1::7",)]}

# What would shut somebody out: (what it is, the rules in order, the host, policies, the guard, words of its sentence)
LOCKOUTS = [
    ("no rule at all", [], {}, {}, "ssh", "port 22, and no rule would let anyone in"),
    ("a web server's rules", [HTTP], {}, {}, "ssh", "Add a rule like {ssh: {port: 22}}"),
    ("sshd was moved", [SSH], {"sshd": (2022,)}, {}, "ssh", "port 2022"),
    ("sshd is being moved", ["allow tcp 2022"], {"sshd": (22, 2022)}, {}, "ssh", "port 22,"),
    ("the wrong protocol", ["allow udp 22"], {}, {}, "ssh", "no rule would let"),
    ("a range that ends before", ["allow tcp 1:21"], {}, {}, "ssh", "no rule would let"),
    ("deny any first", ["deny any any", SSH], {}, {}, "ssh", "`deny any any from any` stands before `allow tcp 22"),
    ("a range denied first", ["deny tcp 1:1024", SSH], {}, {}, "ssh", "`deny tcp 1:1024 from any` stands before"),
    ("reject first", ["reject tcp 22", SSH], {}, {}, "ssh", "`reject tcp 22 from any` stands before"),
    ("denied halves", [f"deny tcp 22 from {half}" for half in ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")] + [SSH],
     {}, {}, "ssh", "stands before"),
    ("the networks that are let in are denied first", ["deny tcp 22 from 10.0.0.0/8", "allow tcp 22 from 10.1.0.0/16"],
     {}, {}, "ssh", "`deny tcp 22 from 10.0.0.0/8` stands before `allow tcp 22 from 10.1.0.0/16`"),
    ("denied though all is allowed", ["deny tcp 22"], {}, {"incoming": "allow"}, "ssh", "port 22"),
    ("a rule for one host, not for ssh", ["allow any any from 192.0.2.7"], {}, {}, "ssh", "no rule would let"),
    ("a rule for loopback", ["allow tcp 22 on lo"], {}, {}, "ssh", "for this host itself alone"),
    ("the interface was renamed", ["allow tcp 22 on eth7"], {}, {}, "ssh",
     "`allow tcp 22 from any on eth7` is bound to an interface that this host has not got (it has eth0)"),
    ("a deny on the interface first", ["deny tcp 22 on eth0", SSH], {}, {}, "ssh", "on eth0` stands before"),
    ("a rule to an address of another host", ["allow tcp 22 to 10.0.0.9"], {}, {}, "ssh",
     "lets nobody in at an address of this host's"),
    ("a rule to the address where sshd is not", ["allow tcp 22 to 10.0.0.5"],
     {"listen": ["10.0.0.6:22"], "addresses": at(("eth0", "10.0.0.5"), ("eth0", "10.0.0.6"))}, {}, "ssh", "sshd listens"),
    ("a rule for a source port", ["allow tcp 22 sport 1023"], {}, {}, "ssh", "lets nobody in"),
    ("a second ListenAddress", ["allow tcp 22 to 10.0.0.5"],
     {"listen": ["10.0.0.5:22", "10.0.0.6:22"], "addresses": at(("eth0", "10.0.0.5"), ("eth0", "10.0.0.6"))}, {},
     "ssh", "an address of this host's where sshd listens"),
    ("only IPv6 allowed", ["allow tcp 22 from 2001:db8::/32"], {}, {}, "ssh_ipv4", "IPv4: sshd listens there at port 22"),
    ("IPv4 denied first", ["deny tcp 1:100 from 0.0.0.0/0", SSH], {}, {}, "ssh_ipv4", "stands before"),
    ("IPv6 denied first", ["deny tcp 20:22 from ::/0", SSH], {}, {}, "ssh_ipv6", "`deny tcp 20:22 from any` stands"),
    ("IPv4 from anywhere, IPv6 from nowhere", ["allow tcp 22 from 0.0.0.0/0"], {}, {}, "ssh_ipv6", "IPv6"),
    ("IPv6 off for UFW", [SSH], {"ipv6": False}, {}, "ssh_ipv6", "set IPV6=yes in /etc/default/ufw"),
    ("a host that has IPv6 alone, UFW without", [SSH], {"ipv6": False, "addresses": at(("eth0", "2001:db8::5"))}, {},
     "ssh", "set IPV6=yes"),
    ("who is here came by IPv6", ["allow tcp 22 from 192.0.2.0/24"], {**BY6}, {}, "ssh_ipv6", "no rule would let"),
    ("who is here is not named", ["allow tcp 22 from 10.0.0.0/8"], PEOPLE, {}, "connection",
     "logged in by ssh from 192.0.2.7: no rule would let it in again at port 22. Name 192.0.2.7 in the rule for ssh"),
    ("who is here is denied", ["deny tcp 22 from 192.0.2.0/24", SSH], PEOPLE, {}, "connection",
     "`deny tcp 22 from 192.0.2.0/24` keeps it out"),
    ("one of two is not named", ["allow tcp 22 from 192.0.2.0/24"], {"people": [(OFFICE,), (HOME,)]}, {}, "connection",
     "from 203.0.113.9:"),
    ("who is here came by another interface", ["allow tcp 22 on eth0"],
     {"people": [(OFFICE, 22, "10.9.0.5")], "addresses": at(("eth0", "10.0.0.5"), ("eth1", "10.9.0.5")),
      "listen": ["10.0.0.5:22"]}, {}, "connection", "192.0.2.7"),
    ("denied though all is allowed, who is here", ["reject tcp 22 from 192.0.2.7"], PEOPLE, {"incoming": "allow"},
     "connection", "`reject tcp 22 from 192.0.2.7` keeps it out"),
    ("limit too low", ["limit tcp 22"], {"people": [(OFFICE,)] * 6}, {}, "limit", "192.0.2.7 has 6 open"),
    ("limit for minions", [SSH, "limit tcp 4505:4506"], ON_MASTER, {}, "limit", "a minion opens one for each"),
    ("outgoing deny", [SSH], MINION, {"outgoing": "deny"}, "master", "master 10.0.0.1: no rule lets it out to port 4505"),
    ("outgoing reject", [SSH], MINION, {"outgoing": "reject"}, "master", "port 4505, 4506"),
    ("one port of the master's", [SSH, "allow tcp 4505 way out"], MINION, {"outgoing": "deny"}, "master", "port 4506."),
    ("another master", [SSH, "allow tcp 4505:4506 to 10.0.0.77 way out"], MINION, {"outgoing": "deny"}, "master", "4505"),
    ("the way out denied first", [SSH, "deny tcp 1:9999 way out", *OUT], MINION, {}, "master", "4505, 4506"),
    ("the way out on another interface", [SSH, "allow tcp 4505:4506 on eth7 way out"], MINION, {"outgoing": "deny"},
     "master", "4505"),
    ("a master by IPv6, UFW without", [SSH], {"masters": ["2001:db8::1"], "ipv6": False, "listen": ["10.0.0.5:22"]}, {},
     "master", "2001:db8::1"),
    ("no DNS", [SSH, OUT[0]], NAMED, {"outgoing": "deny"}, "dns", "name salt could not be looked up"),
    ("DNS by tcp alone", [SSH, OUT[0], "allow tcp 53 way out"], NAMED, {"outgoing": "deny"}, "dns", "port 53 of 10.0.0.2"),
    ("the master's port shut", [SSH], ON_MASTER, {}, "minions", "it listens at port 4505, 4506"),
    ("one of the master's ports shut", [SSH, "allow tcp 4505"], ON_MASTER, {}, "minions", "listens at port 4506,"),
    ("the master's port denied first", [SSH, "deny tcp 4000:5000", "allow tcp 4505:4506"], ON_MASTER, {}, "minions",
     "`deny tcp 4000:5000 from any` stands before"),
    ("a minion that is not named", [SSH, "allow tcp 4505:4506 from 10.0.0.0/8"],
     {**ON_MASTER, "minions": ["10.0.0.8", "198.51.100.4"]}, {}, "minions", "198.51.100.4 is connected"),
    ("a list of ports without ssh's", ["allow tcp 80,443,2000:2010"], {}, {}, "ssh", "no rule would let"),
    ("a list of ports denied first", ["reject tcp 20:25,80", SSH], {}, {}, "ssh", "`reject tcp 20:25,80 from any` stands"),
    ("a protocol without ports", ["allow esp any"], {}, {}, "ssh", "no rule would let"),
    ("the other direction", ["allow tcp 22 way out"], {}, {}, "ssh", "no rule would let"),
    ("what is routed", ["route:allow tcp 22"], {}, {}, "ssh", "no rule would let"),
    ("one family of a limit", ["limit tcp 22 by 6"], {}, {}, "ssh_ipv4", "no rule would let"),
    ("denied and logged first", ["deny_log-all tcp 22", SSH], {}, {}, "ssh", "`deny log-all tcp 22 from any` stands before"),
    ("the only address of IPv4 denied first", ["deny any any to 10.0.0.5", SSH], {}, {}, "ssh_ipv4", "to 10.0.0.5` stands"),
    ("interfaces of a kind that is not here", ["allow tcp 22 on wg+"], {}, {}, "ssh", "on wg+` is bound to an interface"),
    ("all interfaces of a kind denied first", ["deny tcp 22 on et+", "allow tcp 22 on eth+"], {}, {}, "ssh",
     "`deny tcp 22 from any on et+` stands before `allow tcp 22 from any on eth+`"),
    ("a list for the way out denied", [SSH, "deny tcp 80,4505:4506 to 10.0.0.0/24 way out"], MINION, {}, "master",
     "{master: {direction: out, port: [4505, 4506]}}"),
    ("DNS rejected on the interface", [SSH, "reject udp 53 on eth0 way out"], NAMED, {}, "dns",
     "{dns: {direction: out, port: 53, proto: udp}}"),
    ("a list of limited ports for minions", [SSH, "limit tcp 80,4505:4506"], ON_MASTER, {}, "limit", "too seldom"),
]  # fmt: skip
