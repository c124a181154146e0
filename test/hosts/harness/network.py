"""One private network for all hosts: a bridge in a namespace of its own, so that the machine's own network,
firewall and sysctls never see it. Each host has a namespace too, and an interface `host0` on the bridge.
"""

from __future__ import annotations

from test.hosts.harness.machine import PREFIX, locked, run

SWITCH = f"{PREFIX}-switch"  # the namespace of the bridge
BRIDGE = "br0"
# 198.18.0.0/15 is set aside for tests of network devices (RFC 2544): nobody's real network has it.
NETWORK = "198.18.94"


def namespace(name: str) -> str:
    """Return the name of a host's network namespace."""
    return f"{PREFIX}-{name}"


def namespace_path(name: str) -> str:
    """Return where a host's network namespace can be entered."""
    return f"/run/netns/{namespace(name)}"


def address(number: int) -> str:
    """Return the IPv4 address of the host with this number (1 to 250)."""
    return f"{NETWORK}.{number}"


def connect(name: str, number: int) -> None:
    """Make a host's namespace and put it on the bridge."""
    _make_switch()
    disconnect(name)
    # The kernel takes a namespace's interfaces away some time after the namespace; the number may be an earlier host's.
    run(["ip", "-n", SWITCH, "link", "del", f"v{number}"], check=False)
    ns = namespace(name)
    run(["ip", "netns", "add", ns])
    run(["ip", "-n", ns, "link", "set", "lo", "up"])
    # Born in the switch's namespace and moved from there: the machine never has the interface.
    # The hardware address follows from the number: neighbours remember for half a minute which one an address had.
    pair = ["type", "veth", "peer", "name", "host0", "address", f"02:00:c6:12:5e:{number:02x}", "netns", ns]
    run(["ip", "-n", SWITCH, "link", "add", f"v{number}", *pair])
    run(["ip", "-n", SWITCH, "link", "set", f"v{number}", "master", BRIDGE, "up"])
    run(["ip", "-n", ns, "address", "add", f"{address(number)}/24", "dev", "host0"])
    run(["ip", "-n", ns, "link", "set", "host0", "up"])


def disconnect(name: str) -> None:
    """Remove a host's namespace; its interface goes with it."""
    run(["ip", "netns", "del", namespace(name)], check=False)


def remove_switch() -> None:
    """Remove the bridge, once no host is left."""
    run(["ip", "netns", "del", SWITCH], check=False)


def _make_switch() -> None:
    with locked("switch"):  # the first hosts are made at the same time
        if run(["ip", "-n", SWITCH, "link", "show", BRIDGE], check=False).returncode == 0:
            return
        run(["ip", "netns", "add", SWITCH], check=False)
        run(["ip", "-n", SWITCH, "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "-n", SWITCH, "link", "set", BRIDGE, "up"])
