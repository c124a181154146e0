"""What stands on a host after a run: printed as JSON by the host's own python3, standard library only.

Sent to a host through the standard input of `python3 -`, so that nothing is left there.
"""

import grp
import hashlib
import json
import os
import pathlib
import pwd
import stat
import subprocess

ROOTS = (
    "/etc/redis",
    "/etc/sidekiq",
    "/etc/sudoers.d",
    "/etc/systemd/system",
    "/etc/init.d",
    "/etc/ufw",
    "/etc/default/ufw",
    "/usr/local/bin",
    "/opt/redis",
    "/var/redis",
)
# Data are data, and how Salt itself is started is the lab's affair.
PASSED_OVER = ("/var/redis/6379/", "/salt-minion.service")
# Their contents differ from host to host: builds carry the builder's name and time.
UNEQUAL = ("/opt/redis/", "/var/redis/")
UNITS = ("redis_6379.service", "sidekiq.service", "ufw.service")
USERS = ("redis", "redis-build", "deploy")


def entry(path):
    """Return type, mode, owner and contents (link target, digest) of one path."""
    info = path.lstat()
    facts = {
        "mode": stat.filemode(info.st_mode),
        "owner": f"{pwd.getpwuid(info.st_uid).pw_name}:{grp.getgrgid(info.st_gid).gr_name}",
    }
    if path.is_symlink():
        facts["target"] = os.readlink(path)
    elif path.is_file() and not str(path).startswith(UNEQUAL):
        facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return facts


def tree(root):
    """Return path → entry of everything at and below ``root``."""
    start = pathlib.Path(root)
    if not start.exists():
        return {}
    inside = start.rglob("*") if start.is_dir() else ()
    paths = [path for path in [start, *inside] if not any(part in str(path) for part in PASSED_OVER)]
    return {str(path): entry(path) for path in paths}


def unit(name):
    """Return what systemd says of one unit."""
    wanted = "--property=ActiveState,UnitFileState,NeedDaemonReload,NRestarts,User,Type"
    shown = subprocess.run(["systemctl", "show", wanted, name], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def user(name):
    """Return one account's home, shell and groups, or nothing."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = sorted(grp.getgrgid(gid).gr_name for gid in os.getgrouplist(name, found.pw_gid))
    return {"home": found.pw_dir, "shell": found.pw_shell, "groups": groups}


print(
    json.dumps(
        {
            "files": {path: facts for root in ROOTS for path, facts in tree(root).items()},
            "units": {name: unit(name) for name in UNITS},
            "users": {name: user(name) for name in USERS},
        }
    )
)
