"""Everything that a run could leave on a host: printed as JSON by the host's own python3, standard library only.

Sent to a host through the standard input of `python3 -`, so that nothing is left there.
"""

import grp
import json
import os
import pathlib
import pwd
import stat
import subprocess

# What lives in memory, is a cache or a log, belongs to the distribution's package manager, or to the lab and Salt.
PASSED_OVER = {
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/cache", "/var/log", "/var/lib/dpkg", "/var/lib/apt"),
    *("/packages", "/srv/formula", "/srv/pillar", "/etc/salt", "/opt/salt", "/var/lib/systemd"),
}
# Of the kernel, what counts, or differs from boot to boot and from host to host.
UNEQUAL = ("fs.", "kernel.", "net.netfilter.nf_conntrack_count", "user.")


def entry(path):
    """Return type and mode, owner, and a link's target of one path."""
    info = os.lstat(path)
    target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
    return [stat.filemode(info.st_mode), info.st_uid, info.st_gid, target]


def files():
    """Return path → entry of the whole disk."""
    found = {}
    for folder, inside, names in os.walk("/"):
        inside[:] = [name for name in inside if os.path.join(folder, name) not in PASSED_OVER and name != "__pycache__"]
        found |= {path: entry(path) for path in (os.path.join(folder, name) for name in (*inside, *names))}
    return found


def sysctls():
    """Return name → value of each of the kernel's settings that can be read."""
    found = {"transparent_hugepage": pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()}
    for path in pathlib.Path("/proc/sys").rglob("*"):
        name = ".".join(path.parts[3:])
        if path.is_file() and not name.startswith(UNEQUAL):
            try:
                found[name] = path.read_text()
            except OSError:
                continue
    return found


def units():
    """Return unit → whether it starts at boot."""
    argv = ["systemctl", "list-unit-files", "--no-legend", "--no-pager", "--plain"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return {line.split()[0]: line.split()[1] for line in shown.splitlines()}


print(
    json.dumps(
        {
            "files": files(),
            "sysctls": sysctls(),
            "units": units(),
            "users": {one.pw_name: list(one)[2:] for one in pwd.getpwall()},
            "groups": {one.gr_name: [one.gr_gid, one.gr_mem] for one in grp.getgrall()},
        }
    )
)
