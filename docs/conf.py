"""Sphinx: these pages as HTML and as man pages (`make docs`). Each page reads on a code host as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes

REPO = Path(__file__).resolve().parents[1]

project = "redis-sidekiq-formula"
author = "the authors of redis-sidekiq-formula"
copyright = f"{author}, Apache License 2.0"  # noqa: A001 (Sphinx' name for it)
version = release = re.search(r"^version: (\S+)$", (REPO / "FORMULA").read_text(), re.MULTILINE)[1]

extensions = ["myst_parser"]
exclude_patterns = ["examples"]
nitpicky = True
highlight_language = "text"
# Headings get the anchors that code hosts give them.
myst_heading_anchors = 4
html_theme = "alabaster"
html_theme_options = {"description": "Redis and Sidekiq in production, with Salt", "page_width": "1100px"}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}

man_pages = [
    ("manual", "redis-sidekiq-formula", "Redis and Sidekiq in production, with Salt", author, 7),
    ("reference/pillar", "redis_sidekiq-pillar", "what the pillar of redis-sidekiq-formula may say", author, 5),
]
# The manual is the index of the man pages; HTML has index.md.
if tags.has("man"):  # noqa: F821 (Sphinx gives it)
    root_doc = "manual"
    exclude_patterns += ["index.md"]
    # Pages that the manual leaves out are in no table of contents there.
    suppress_warnings = ["toc.not_included"]
else:
    exclude_patterns += ["manual.md"]


def _add_contents(app, docname: str, source: list[str]) -> None:
    """Make a table of contents of the links that an index has: a directive would be noise on a code host."""
    if docname == app.config.root_doc:
        pages = re.findall(r"\]\(([\w/-]+)\.md\)", source[0])
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", *dict.fromkeys(pages), "```", ""])


def _suit_man(app, doctree: nodes.document, docname: str) -> None:
    """In a man page a link to another page is its words, and a table too wide for a terminal is a list."""
    if app.builder.name != "man":
        return
    for link in list(doctree.findall(nodes.reference)):
        if "://" not in link.get("refuri", ""):
            link.replace_self(link.children)
    for table in list(doctree.findall(nodes.table)):
        head, *rows = list(table.findall(nodes.row))
        if len(head) > 3:
            names = [cell.astext() for cell in head]
            table.replace_self(nodes.definition_list("", *(_item(names, row) for row in rows)))


def _item(names: list[str], row: nodes.row) -> nodes.definition_list_item:
    """A row as an entry of a list: its first cell, and below it the others, each after the name of its column."""
    first, *others = [nodes.TextElement("", "", *(part for block in cell for part in block)) for cell in row]
    lines = [
        nodes.paragraph("", f"{name}: ", *cell.children) for name, cell in zip(names[1:-1], others) if cell.children
    ]
    lines.append(nodes.paragraph("", "", *others[-1].children))
    return nodes.definition_list_item("", nodes.term("", "", *first.children), nodes.definition("", *lines))


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_contents)
    app.connect("doctree-resolved", _suit_man)
