"""The hosts themselves: bare, apart from the machine, and gone with their owner. And `bin/host`, as docs/hosts.md has it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time

import pytest

from test.hosts.harness import images
from test.hosts.harness.host import Host, all_hosts
from test.hosts.harness.machine import HOSTS, REPO, run

IMAGES = ["bookworm", "trixie", "bookworm-3006"]


@pytest.fixture
def machine():
    """What the harness must leave as it is: the machine's own interfaces, firewall and sysctls."""

    def facts() -> str:
        names = sorted(os.listdir("/sys/class/net"))
        forwarding = [open(f"/proc/sys/net/{path}").read() for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]
        return f"{names} {forwarding} {open('/proc/net/ip_tables_names').read() if os.path.exists('/proc/net/ip_tables_names') else ''}"

    return facts


@pytest.mark.parametrize("image", IMAGES)
def test_a_bare_host_is_up_within_ten_seconds(make_host, image):
    images.prepare([image])
    begun = time.monotonic()
    host = make_host("harness-bare", image=image)
    assert time.monotonic() - begun < 10
    assert host.run(["systemctl", "is-system-running"], check=False).stdout.strip() == "running"
    assert host.run(["ps", "-p", "1", "-o", "comm="]).stdout.strip() == "systemd"
    assert host.run(["systemctl", "is-active", "ssh"]).stdout.strip() == "active"
    for program in ("sudo", "ufw", "ruby", "bundle", "redis-server", "gcc", "cc", "make"):
        assert host.run(["sh", "-c", f"command -v {program}"], check=False).returncode != 0, program
    assert host.run(["salt-call", "--version"]).stdout.startswith(f"salt-call {image.partition('-')[2] or '3008'}.")


def test_two_hosts_see_each_other_and_the_machine_sees_neither(make_host, machine):
    before = machine()
    one, two = make_host("harness-one"), make_host("harness-two", image="trixie")
    assert machine() == before
    assert one.address != two.address
    banner = f"import socket; print(socket.create_connection(({two.address!r}, 22), 3).recv(99))"
    assert "SSH-2.0" in one.run(["python3", "-c", banner]).stdout
    assert subprocess.run([sys.executable, "-c", banner], capture_output=True, check=False).returncode != 0
    ids = {host.run(["cat", "/etc/machine-id"]).stdout for host in (one, two)}
    assert len(ids) == 2


def test_an_address_is_reached_at_once_though_another_host_had_it(make_host):
    outside, before = make_host("harness-one"), make_host("harness-before")
    connect = ["python3", "-c", f"import socket; socket.create_connection(({before.address!r}, 22), 1)"]
    outside.run(connect)
    address = before.address
    before.down()
    assert make_host("harness-after").address == address
    outside.run(connect)


def test_a_host_keeps_disk_and_address_through_reboot_and_power_cut(make_host):
    host = make_host("harness-again")
    address = host.run(["ip", "-brief", "address", "show", "host0"]).stdout
    assert host.address in address
    host.write("/root/note", "still here", mode=0o600)
    for again in (host.reboot, host.power_cut, host.power_off):
        again()
        if not host.running:
            host.start()
        assert host.run(["cat", "/root/note"]).stdout == "still here"
        assert host.address in host.run(["ip", "-brief", "address", "show", "host0"]).stdout
        assert host.run(["uptime", "--pretty"]).stdout


def test_a_snapshot_is_an_image_of_its_own(make_host):
    first = make_host("harness-first")
    first.write("/root/note", "from the first")
    first.power_off()
    image = first.snapshot("harness")
    assert not first.folder.exists()
    second, third = make_host("harness-second", image=image), make_host("harness-third", image=image)
    second.write("/root/note", "from the second")
    assert third.run(["cat", "/root/note"]).stdout == "from the first"


OWNER = """
import os, sys, time
sys.path.insert(0, {repo!r})
from test.hosts.harness.host import Host
Host.up("harness-orphan", owner_pid=os.getpid())
print("up", flush=True)
time.sleep(600)
"""


def test_a_host_goes_with_its_owner_even_if_that_is_killed(hosts_gone_at_the_end):
    owner = subprocess.Popen([sys.executable, "-c", OWNER.format(repo=str(REPO))], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "up\n"
    leader = Host("harness-orphan").leader
    owner.kill()
    owner.wait()
    until = time.monotonic() + 15
    while (HOSTS / "harness-orphan").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{leader}")
    assert "-harness-orphan" not in run(["ip", "netns"]).stdout
    assert "harness-orphan" not in open("/proc/mounts").read()


def test_programs_that_a_command_starts_are_counted(make_host):
    host = make_host("harness-count")
    _, programs = host.processes_spawned(["sh", "-c", 'env true; echo "a b" \'c"d\' > /dev/null; /bin/ls /; exit 0'])
    assert programs == [["env", "true"], ["true"], ["/bin/ls", "/"]]


def commands_of_the_docs() -> list[list[str]]:
    text = (REPO / "docs/hosts.md").read_text()
    lines = re.findall(r"^(bin/host .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_commands_of_the_docs_work():
    """In the order of the page: each is run as it stands there, but for the host's name."""
    commands = commands_of_the_docs()
    assert [words[1] for words in commands] == ["up", "run", "run", "copy", "copy", "list", "down"]
    try:
        for words in commands:
            words = [word.replace("web1", "harness-docs") for word in words]
            done = run([sys.executable, *words], cwd=REPO, check=False)
            assert done.returncode == 0, (words, done.stderr)
            if words[1] == "list":
                assert re.search(r"^harness-docs +bookworm +198\.18\.\S+ +runs$", done.stdout, re.MULTILINE)
    finally:
        Host("harness-docs").down()
    assert "harness-docs" not in [host.name for host in all_hosts()]
    assert (REPO / "pillar.example").exists()


def test_a_wrong_name_is_told():
    done = run([sys.executable, "bin/host", "run", "no-such-host", "--", "true"], cwd=REPO, check=False)
    assert done.returncode != 0
    assert "no-such-host is off" in done.stderr
