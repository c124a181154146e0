"""
Rulesets by chance on the real ufw, in a private copy of its files (`ufw --rootdir`). Runs on a host, with Salt's Python:
`ufw_lab.py MODULE FIRST LAST` tries a ruleset for each seed and prints what went wrong.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time

# Every character that a shell, Jinja, YAML, ufw or a terminal could take for something else.
HOSTILE = '"$`\\|&;<>(){}[]*?!#~%^=+@:,./-_ é☃' + "{{ 7*7 }}{% x %}$(id)"
NETWORKS = {
    "4": ("10.0.0.0/8", "10.1.2.3/16", "192.0.2.7", "192.0.2.7/32", "10.1.0.0/255.255.0.0", "0.0.0.0/0"),
    "6": ("2001:db8::9/32", "fd00::1", "FD00::2/64", "::/0"),
}
PORTLESS = ("ah", "esp", "gre", "igmp", "ipv6", "vrrp")


def ruleset(seed: int, count: int) -> list[dict]:
    """Rules as the contract allows them, each match once."""
    chance = random.Random(seed)
    found = {}
    for number in range(count):
        proto = chance.choice(["tcp"] * 4 + ["udp"] * 2 + ["any", *PORTLESS])
        ports = [chance.randint(1, 65535), 22, 80, 443, "6000:6010", "6005:6020", "any"]
        port = chance.choice(ports)
        if proto in ("tcp", "udp") and chance.random() < 0.3:
            port = sorted({str(port) for port in chance.sample(ports[:-1], chance.randint(2, 5))})
        if proto == "any" and ":" in str(port):
            port = 53
        family = chance.choice(["any", "any", "any", "ipv4", "ipv6"]) if proto not in ("igmp", "ipv6") else "any"
        families = {"any": "46", "ipv4": "4", "ipv6": "6"}[family] if proto not in ("igmp", "ipv6") else "4"
        side = chance.choice(families)
        rule = {
            "name": f"r{number}",
            "action": chance.choice(["allow", "allow", "limit", "deny", "reject"]),
            "direction": chance.choice(["in", "in", "in", "out"]),
            "interface": chance.choice(["", "", "", "eth0", "wg-1.5", "eth+"]),
            "port": "any" if proto in PORTLESS else port,
            "proto": proto,
            "from": chance.choice(["any", chance.choice(NETWORKS[side])]),
            "to": chance.choice(["any", "any", chance.choice(NETWORKS[side])]),
            "family": family,
            "log": chance.choice(["", "", "", "log", "log-all"]),
            "comment": chance.choice(["", "", "".join(chance.choices(HOSTILE, k=chance.randint(1, 20))).strip()]),
        }
        key = tuple(str(rule[key]) for key in ("direction", "interface", "port", "proto"))
        found.setdefault(key, rule)
    ssh = {"name": "ssh", "port": 22, "family": "any", "interface": "lo-ssh"}
    return [ssh, *found.values()]


def load(path: str):
    spec = importlib.util.spec_from_file_location("ufw_rules", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__opts__ = {"file_client": "local"}
    # Nobody has to get through here: UFW stays off.
    module.__salt__ = {"cmd.run_all": run_all}
    return module


def run_all(argv, env, **_):
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **env}, check=False, timeout=120)
    COUNTED.append(argv)
    return {"retcode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


COUNTED: list = []


def fresh(root: str) -> str:
    """UFW's files as its package brings them, off and without rules, under ``root``."""
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(f"{root}/etc/default")
    shutil.copytree("/etc/ufw", f"{root}/etc/ufw", symlinks=True)
    shutil.copy("/etc/default/ufw", f"{root}/etc/default/ufw")
    for name in ("ufw.conf", "user.rules", "user6.rules"):
        shutil.copy(f"/usr/share/ufw/{name}", f"{root}/etc/ufw/{name}")
    for folder in ("/usr/share/ufw", "/lib/ufw"):
        shutil.copytree(folder, f"{root}{folder}")
    os.makedirs(f"{root}/run")
    return root


def tuples(module, root: str) -> list:
    return module._files(root)["lines"]


def kernel_lines(root: str) -> list[str]:
    """What the rule files give to iptables."""
    found = []
    for name in ("user.rules", "user6.rules"):
        with open(f"{root}/etc/ufw/{name}", encoding="utf-8") as file:
            found += [line for line in file if line.startswith("-")]
    return sorted(found)


def unordered(lines) -> list:
    return sorted((line.match, line.action, line.comment) for line in lines)


def judge(module, seed: int, count: int, work: str) -> list[str]:
    """One ruleset: what it says, does, and leaves; then another in its place."""
    wrong = []
    first, second = ruleset(seed, count), ruleset(seed + 100_000, count)
    options = {"incoming": "deny", "enabled": False}
    one = fresh(f"{work}/one")

    def run(rules, root, what, **more):
        try:
            said = module.differences(rules, root=root, **options, **more)
            done = module.apply(rules, root=root, **options, **more)
            again = module.differences(rules, root=root, **options, **more)
        except Exception as exc:
            # The order that was wished may be one that only moving a rule that lets in could make.
            if "must stand between" not in str(exc):
                wrong.append(f"{seed} {what}: {type(exc).__name__}: {exc}")
            return False
        if said != done or again:
            wrong.append(f"{seed} {what}: said {said}, did {done}, left {again}")
        wish = module._wished(rules, True)
        if not more and unordered(tuples(module, root)) != unordered(wish):
            missing = set(unordered(wish)) ^ set(unordered(tuples(module, root)))
            wrong.append(f"{seed} {what}: facts differ from the wish: {missing}")
        return True

    if run(first, one, "A") and run(second, one, "B after A"):
        two = fresh(f"{work}/two")
        if run(second, two, "B alone"):
            if unordered(tuples(module, one)) != unordered(tuples(module, two)):
                wrong.append(f"{seed}: B after A is not B alone")
            if kernel_lines(one) != kernel_lines(two):
                wrong.append(f"{seed}: B after A says other things to the kernel than B alone")
            for root in (one, two):
                if module._misplaced(tuples(module, root), module._wished(second, True)):
                    wrong.append(f"{seed}: order")
    return wrong


def judge_others(module, seed: int, count: int, work: str) -> list[str]:
    """Rules of others: stay by themselves, go with only_ours."""
    root, wrong = fresh(f"{work}/others"), []
    chance = random.Random(seed)
    for line in module._wished(ruleset(seed + 200_000, count), True):
        words = module._rule_words(line._replace(comment=chance.choice(["", "theirs"])))
        subprocess.run(["ufw", f"--rootdir={root}", f"--datadir={root}", *words], capture_output=True, check=False)
    for words in (
        ["route", "allow", "in", "on", "eth0", "out", "on", "eth1"],
        ["allow", "WWW Full"],
        ["allow", "from", "2001:db8::77/32", "port", "53", "to", "any"],
    ):
        subprocess.run(["ufw", f"--rootdir={root}", f"--datadir={root}", *words], capture_output=True, check=True)
    before = tuples(module, root)
    wish = ruleset(seed, count)
    options = {"enabled": False, "root": root}
    try:
        module.apply(wish, **options)
        kept = [line for line in tuples(module, root) if not line.ours]
        replaced = {line.match for line in module._replaced(before, module._wished(wish, True))}
        if kept != [line for line in before if line.match not in replaced]:
            wrong.append(f"{seed}: rules of others changed")
        said = module.differences(wish, only_ours=True, **options)
        if said != module.apply(wish, only_ours=True, **options):
            wrong.append(f"{seed}: only_ours did not do what it said")
        if unordered(tuples(module, root)) != unordered(module._wished(wish, True)):
            wrong.append(f"{seed}: only_ours left {[line for line in tuples(module, root) if not line.ours]}")
    except Exception as exc:
        if "must stand between" not in str(exc):
            wrong.append(f"{seed} others: {type(exc).__name__}: {exc}")
    return wrong


def judge_levels(module, work: str) -> list[str]:
    """Log levels and the policy for what is routed, read back from the files."""
    root, wrong, rules = fresh(f"{work}/levels"), [], [{"name": "x", "port": 1, "action": "deny", "log": "log"}]
    for level, routed in itertools.zip_longest(("low", "medium", "high", "full", "off"), ("allow", "reject", "deny")):
        wish = {"enabled": False, "root": root, "logging": level, "routed": routed}
        said = module.differences(rules, **wish)
        if said != module.apply(rules, **wish) or module.differences(rules, **wish):
            wrong.append(f"{level} {routed}: {said}")
        found = module._files(root)
        if found["logging"] != {level} or (routed and found["routed"] != routed):
            wrong.append(f"{level} {routed}: found {found['logging']} {found['routed']}")
    return wrong


def main() -> None:
    path, first, last, count = sys.argv[1], *map(int, sys.argv[2:5])
    module = load(path)
    begun, work, wrong = time.monotonic(), "/root/ufw-lab", []
    for seed in range(first, last):
        wrong += judge(module, seed, count, work)
        if seed % 4 == 0:
            wrong += judge_others(module, seed, count, work)
    wrong += judge_levels(module, work)
    print(json.dumps({"wrong": wrong, "commands": len(COUNTED), "seconds": round(time.monotonic() - begun, 1)}))


if __name__ == "__main__":
    main()
