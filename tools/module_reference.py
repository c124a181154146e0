#!/usr/bin/env python3
"""
Make docs/reference/modules.md and states.md from the docstrings of what this formula adds to Salt.

    tools/module_reference.py            write both files
    tools/module_reference.py --check    write nothing; exit 1 if one of them is out of date

Docstrings are reStructuredText, as Salt's own are (`salt '*' sys.doc sidekiq.restart`), in the few forms that
:func:`markdown` knows. Nothing is imported, so that neither Salt nor a minion is needed.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[1]
REFERENCE = REPO / "docs/reference"
MODULES, STATES, RUNNERS = "_modules", "_states", "_runners"

MODULES_PAGE = """\
# Functions

Made from the docstrings in `_modules` and `_runners` by `make docs`; change them there. Without a master it is
`salt-call --local` in place of `salt '*'`. On a host `salt-call --local sys.doc sidekiq.restart` shows the same text.
"""
STATES_PAGE = """\
# States

Made from the docstrings in `_states` by `make docs`; change them there. The SLS files in `redis_sidekiq/` use them, and
yours may too. Each has the `result`, `changes` and `comment` of any state, and says with `test=True` what it would do.
"""


class Function(NamedTuple):
    """A public function."""

    name: str  # with its module's
    signature: str
    text: str  # of its docstring


class Module(NamedTuple):
    """A file of Python that Salt loads."""

    name: str
    text: str
    functions: list[Function]


def modules(folder: str) -> list[Module]:
    """The modules in a folder of the repository, by name."""
    return [_module(path) for path in sorted((REPO / folder).glob("*.py"))]


def _module(path: Path) -> Module:
    tree = ast.parse(path.read_text())
    # Salt calls `mod_watch` itself.
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "mod_watch"
    ]
    functions = [_function(path.stem, node) for node in public]
    return Module(path.stem, ast.get_docstring(tree) or "", sorted(functions))


def _function(module: str, node: ast.FunctionDef) -> Function:
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return Function(
        f"{module}.{node.name}", f"{node.name}({ast.unparse(node.args)}){result}", ast.get_docstring(node) or ""
    )


# RST to Markdown -----------------------------------------------------------------------------------------------------


def markdown(text: str, link: Callable[[str], str]) -> str:
    """A docstring as Markdown: code blocks, parameters and inline code; ``link`` makes one of a function's name."""
    lines, prose, out = text.splitlines(), [], []
    while lines:
        line = lines.pop(0)
        if block := re.match(r"( *)\.\. code-block:: (\w+)$", line):
            out += [
                _inline("\n".join(prose), link),
                f"```{block[2]}",
                *_dedented(_taken(lines, len(block[1]) + 4)),
                "```",
            ]
            prose = []
        elif line and not line[0].isspace() and lines and lines[0].startswith("    "):
            meaning = " ".join(words.strip() for words in _taken(lines, 4) if words.strip())
            prose.append(f"- {line if line.startswith('`') else f'``{line}``'}: {meaning}")
        else:
            prose.append(line)
    return "\n".join([*out, _inline("\n".join(prose), link)]).strip()


def _taken(lines: list[str], indent: int) -> list[str]:
    """Take the lines off that are blank or indented so far, but for the blank ones at the end."""
    taken = []
    while lines and (not lines[0].strip() or lines[0].startswith(" " * indent)):
        taken.append(lines.pop(0))
    while taken and not taken[-1].strip():
        lines.insert(0, taken.pop())
    return taken[1:] if taken and not taken[0].strip() else taken


def _dedented(lines: list[str]) -> list[str]:
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return [line[indent:] for line in lines]


def _inline(text: str, link: Callable[[str], str]) -> str:
    text = re.sub(r":(?:py:)?(?:func|mod|class|data):`~?(?:[^`<]+<)?([\w.]+)>?`", lambda found: link(found[1]), text)
    return re.sub(r"``([^`]+?)``", lambda found: f"`{' '.join(found[1].split())}`", text)


# Pages ---------------------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Each page by its path."""
    execution, states, runners = modules(MODULES), modules(STATES), modules(RUNNERS)
    targets = {name: f"modules.md#{_slug(name)}" for name in _names(execution + runners)}
    state_targets = {name: f"states.md#{_slug(name)}" for name in _names(states)}
    parts = [("Execution modules", execution), ("Runners, on the master", runners)]
    return {
        REFERENCE / "modules.md": _page(MODULES_PAGE, parts, state_targets | targets),
        REFERENCE / "states.md": _page(STATES_PAGE, [("", states)], targets | state_targets),
    }


def _names(found: list[Module]) -> list[str]:
    return [name for module in found for name in (module.name, *(function.name for function in module.functions))]


def _slug(heading: str) -> str:
    """The anchor that code hosts and the generator give a heading."""
    return heading.replace(".", "").lower()


def _page(introduction: str, parts: list[tuple[str, list[Module]]], targets: dict[str, str]) -> str:
    out = [introduction]
    for title, found in parts:
        out += [f"## {title}\n"] if title else []
        level = "###" if title else "##"
        for module in found:
            out.append(f"{level} {module.name}\n\n{markdown(module.text, _linker(module.name, targets))}\n")
            for function in module.functions:
                text = markdown(function.text, _linker(module.name, targets))
                out.append(f"{level}# {function.name}\n\n```python\n{function.signature}\n```\n\n{text}\n")
    return "\n".join(out)


def _linker(module: str, targets: dict[str, str]) -> Callable[[str], str]:
    def link(name: str) -> str:
        full = name if name in targets else f"{module}.{name}"
        return f"[`{name}`]({targets[full]})" if full in targets else f"`{name}`"

    return link


def main() -> int:
    """Write the pages, or say which are out of date."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = arguments.parse_args().check
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if not check:
            path.write_text(pages()[path])
        print(f"{path.relative_to(REPO)} {'is out of date: run make docs' if check else 'is written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
