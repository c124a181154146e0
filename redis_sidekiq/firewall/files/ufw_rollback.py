#!/usr/bin/python3
# Managed by Salt (formula redis_sidekiq): changes made here are undone by the next run.
"""
Puts back UFW's former rules after a change that nobody confirmed, with Python's standard library alone.

systemd runs it: by a timer that a run of Salt starts before it changes the firewall, and at boot, before ufw.service, if
the host went down in between. Neither Salt nor its master has to live then. What there is to put back lies in ``FOLDER``;
without ``plan.json`` in it the change was confirmed, and nothing happens.

Others may have changed UFW meanwhile. Their rules (those without the formula's tag) stay, as they are now; a policy that is
neither the former one nor the formula's stays too. What it did is on standard output, which is the journal.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time

FOLDER = "/var/lib/redis_sidekiq/firewall-rollback"
LOCK = "/run/redis_sidekiq-ufw.lock"  # the same that Salt's module holds while it changes UFW
UFW_LOCK = "/run/ufw.lock"
PATIENCE = 120.0  # s for a run that is still at it; it confirms, or dies
TOOL_TIMEOUT = 60.0  # s for one command
RULES = {"user.rules": "/etc/ufw/user.rules", "user6.rules": "/etc/ufw/user6.rules"}
CONF, DEFAULTS = "/etc/ufw/ufw.conf", "/etc/default/ufw"
TAG = "redis_sidekiq:".encode().hex()
BLOCK = re.compile(r"^### tuple ### .*\n(?:-A .*\n)*", re.MULTILINE)
END = "### END RULES ###"


def say(text: str) -> None:
    print(text, flush=True)


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write(path: str, text: str) -> None:
    """In one step, and to the disk; its mode stays."""
    draft = f"{path}.redis_sidekiq"
    mode = os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o640
    with open(draft, "w", encoding="utf-8", errors="surrogateescape") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


# Rules ---------------------------------------------------------------------------------------------------------------


def tuple_of(block: str) -> str:
    return block.partition("\n")[0]


def is_ours(block: str) -> bool:
    return f" comment={TAG}" in tuple_of(block)


def match_of(block: str) -> tuple[str, ...]:
    """What ufw holds one rule for: everything but its action and comment."""
    words = tuple_of(block).partition(" comment=")[0].split()[3:]
    return (str(words[0].startswith("route:")), *words[1:])


def merged(kept: str, now: str) -> tuple[str, list[str]]:
    """The kept rules with those of others as they are now, and what others added or changed since."""
    known = {tuple_of(block) for block in BLOCK.findall(kept)}
    others = [block for block in BLOCK.findall(now) if not is_ours(block) and tuple_of(block) not in known]
    changed = {match_of(block): block for block in others}

    def now_or_kept(found: re.Match[str]) -> str:
        return changed.pop(match_of(found[0]), found[0])

    text = BLOCK.sub(now_or_kept, kept)
    added = "".join(f"{block}\n" for block in changed.values())
    if added:
        text = text.replace(END, added + END, 1)
    return text, [tuple_of(block) for block in others]


def assigned(text: str, values: dict[str, str], made: dict[str, list[str]]) -> tuple[str, list[str]]:
    """``NAME=value`` lines as they were, but for those that have neither the old value nor one that we gave."""
    left = []
    for name, old in values.items():
        found = re.search(rf"^{name}=(.*)$", text, re.MULTILINE)
        if found is None or found[1] == old:
            continue
        if name in made and found[1] not in made[name]:
            left.append(found[0])
            continue
        text = text[: found.start(1)] + old + text[found.end(1) :]
    return text, left


# The kernel ----------------------------------------------------------------------------------------------------------


def run(*argv: str) -> str:
    """What went wrong; empty if nothing did."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=TOOL_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        return str(err)
    return (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}") if done.returncode else ""


def open_policies() -> None:
    """ufw flushes its chains before it lifts DROP; whoever is cut off there would stay shut out."""
    for command in ("iptables", "ip6tables"):
        for chain in ("INPUT", "OUTPUT"):
            run(command, "-P", chain, "ACCEPT")


def disable() -> None:
    wrong = run("ufw", "disable")
    say(f"UFW could not be switched off: {wrong}" if wrong else "UFW is off")


# The way back --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(path: str, patience: float, act):
    with open(path, "a", encoding="utf-8") as lock:
        until = time.monotonic() + patience
        while True:
            try:
                act(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > until:
                    say(f"{path} was held for {patience:.0f} s: going on without it")
                    break
                time.sleep(0.1)
        yield


def put_files_back(plan: dict) -> None:
    with held(UFW_LOCK, 30, fcntl.lockf):
        for name, path in RULES.items() if plan["rules"] else ():
            text, others = merged(read(f"{FOLDER}/{name}"), read(path))
            for rule in others:
                say(f"kept in {path}, somebody else's since: {rule}")
            if text != read(path):
                write(path, text)
        for path, part in ((DEFAULTS, "defaults"), (CONF, "conf")):
            now = read(path)
            text, left = assigned(now, plan["before"][part], plan["made"][part])
            for line in left:
                say(f"kept in {path}, somebody else's since: {line}")
            if text != now:
                write(path, text)


def back(plan: dict, boot: bool) -> None:
    """Off first if it was off; on last if it was on. At boot ufw.service comes after and does that."""
    # A container's kernel outlives its boot, and ufw.service leaves alone what is loaded.
    boot = boot and bool(run("iptables", "-n", "-L", "ufw-user-input"))
    if not boot:
        open_policies()
        if not plan["loaded"]:
            disable()
    put_files_back(plan)
    if boot or not plan["loaded"]:
        return
    wrong = run("ufw", "reload") if plan["rules"] else "the former rules were cut off"
    if wrong:
        say(f"the former rules cannot be loaded ({wrong}): UFW is switched off, so that nobody is shut out")
        disable()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("--boot", action="store_true", help="before ufw.service")
    parser.add_argument("--token", default="", help="of the change; another one since has its own timer")
    words = parser.parse_args()
    with held(LOCK, PATIENCE, fcntl.flock):
        text = read(f"{FOLDER}/plan.json")
        plan = json.loads(text) if text else {}
        if not plan or words.token not in ("", plan["token"]):
            say("Nothing to put back: the change was confirmed, or another one has followed")
            return 0
        say(f"The change of {plan['armed']} was not confirmed within {plan['within']} s: the former rules come back")
        back(plan, words.boot)
        # Last: whoever is cut off before finds it again.
        os.unlink(f"{FOLDER}/plan.json")
        for path in (*(f"{FOLDER}/{name}" for name in RULES), plan["link"], plan["unit"]):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(FOLDER)
        say("The former rules are back")
    return 0


if __name__ == "__main__":
    sys.exit(main())
