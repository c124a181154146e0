#!/usr/bin/env python3
"""
Make docs/reference/pillar.md and pillar.schema.json from the contract in _modules/redis_sidekiq.py.

    tools/pillar_reference.py            write both files
    tools/pillar_reference.py --check    write nothing; exit 1 if one of them is out of date
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import types
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs/reference/pillar.md"
SCHEMA = REPO / "docs/reference/pillar.schema.json"

INTRODUCTION = """\
# Pillar reference

Made from the contract in `_modules/redis_sidekiq.py` by `make docs`; change it there.

- Everything has a default: an empty pillar gives a safe single host. `pillar.example` shows the common changes.
- Maps are merged with the defaults by key, lists replace them. `null` takes a named entry (an instance, a rule, a
  service) away; for other settings it is an error, unless the table says what it means.
- A wrong pillar stops the run before any state, with every mistake in one message, a line each. `salt '*'
  redis_sidekiq.mistakes` returns the same lines, `redis_sidekiq.check` ([check.md](../check.md)) looks at the host too;
  `salt '*' redis_sidekiq.settings` returns what comes of the pillar.
- Secrets are marked. They are never part of a message, a state's arguments or a state's return.
- Your editor can check a pillar file while you type, with [pillar.schema.json](pillar.schema.json):
  `# yaml-language-server: $schema=PATH/docs/reference/pillar.schema.json` as the file's first line.
"""


def contract() -> dict:
    """The contract as data, from the module file itself; Salt need not be installed for that."""
    if importlib.util.find_spec("salt") is None:
        stand_in = types.ModuleType("salt.exceptions")
        stand_in.SaltInvocationError = ValueError
        sys.modules.update({"salt": types.ModuleType("salt"), "salt.exceptions": stand_in})
    spec = importlib.util.spec_from_file_location("contract", REPO / "_modules/redis_sidekiq.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.contract()


def page(data: dict) -> str:
    """The reference page: a heading and a table for each section, the rules across settings at the end."""
    parts = [INTRODUCTION]
    top = "redis_sidekiq"
    rows, headings = {top: []}, {top: ("Everything lies below this key.", None, {})}
    for entry in data["settings"]:
        if entry["section"]:
            headings[entry["path"]] = (entry["why"], entry.get("default"), entry.get("instead", {}))
            rows.setdefault(entry["path"], [])
        else:
            rows[entry["path"].rpartition(":")[0]].append(row(entry))
    for path, (why, default, instead) in headings.items():
        if why:
            parts.append(f"## `{path}`\n\n{why}\n")
        if default is not None:
            parts.append(f"By default: {code(default)}. Each entry, at `{path}`:\n")
        if rows[path]:
            parts.append("\n".join([*TABLE, *rows[path], ""]))
        if instead:
            known = "; ".join(f"`{key}`: {words}" for key, words in instead.items())
            parts.append(f"No keys here, though elsewhere they may be: {known}.\n")
    rules = "\n".join(f"- {rule}" for rule in data["rules"])
    parts.append(f"## Rules across settings\n\n{rules}\n")
    return "\n".join(parts)


TABLE = ["| key | default | allowed | what it is, and why the default is what it is |", "|---|---|---|---|"]


def row(entry: dict) -> str:
    """One setting as a line of a table."""
    default = "must be given" if entry["required"] else code(entry["default"])
    unit = f" {entry['unit']}" if entry["unit"] and entry.get("default") is not None else ""
    notes = [entry["why"]]
    if entry["null"]:
        notes.append(f"`null`: {entry['null']}.")
    if entry["secret"]:
        notes.append("**Secret.**")
    if entry["example"] is not None:
        notes.append(f"Example: {code(entry['example'])}.")
    cells = [f"`{entry['path'].rpartition(':')[2]}`", default + unit, entry["allowed"], " ".join(notes)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code(value: object) -> str:
    """A value as YAML would have it in one line; JSON is YAML."""
    return "empty" if value == "" else f"`{json.dumps(value)}`"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = arguments.parse_args().check
    data = contract()
    stale = []
    for path, text in ((PAGE, page(data)), (SCHEMA, json.dumps(data["schema"], indent=2) + "\n")):
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(path)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for path in stale:
        print(f"{path.relative_to(REPO)} {'is out of date: run make docs' if check else 'is written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
