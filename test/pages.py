"""
README and docs as the tests see them: pages with blocks of code, in order, and what a test has to know of each.

That stands in a comment before a block, which no reader sees:

    <!-- test: host=worker1 user=deploy -->    run on that host, as that user
    <!-- test: pillar -->                      the block becomes the host's pillar
    <!-- test: soak -->                        in `make soak` alone
    <!-- test: fails -->                       the commands are meant to fail
    <!-- test: skip REASON -->                 not run; the reason is shown

A block whose first line is a comment with an absolute path is the content of that file.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

REPO = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- test: (.*?) -->", re.DOTALL)
FILE = re.compile(r"# (/\S+)\n")
PARSER = MarkdownIt("commonmark").enable("table")


class Block(NamedTuple):
    """A block of code on a page."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def where(self) -> str:
        """How a message names it."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str:
        """The path of the file that it is, or empty."""
        found = FILE.match(self.text)
        return found[1] if found else ""


def pages() -> list[Path]:
    """README and all pages that people wrote; the reference is made from code."""
    docs = sorted(path for path in (REPO / "docs").rglob("*.md") if path.parent.name != "reference")
    return [REPO / "README.md", *docs]


def name(path: Path) -> str:
    """A page's path in the repository."""
    return str(path.relative_to(REPO))


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, in order. Raises ValueError for a comment that no block follows."""
    found, marks = [], None
    for token in PARSER.parse(path.read_text()):
        if token.type == "html_block" and (mark := MARK.search(token.content)):
            marks = _marks(mark[1])
        elif token.type in ("fence", "code_block"):
            found.append(Block(name(path), token.map[0] + 1, token.info.strip(), token.content, marks or {}))
            marks = None
        elif marks is not None:
            raise ValueError(f"{name(path)}: no block follows the comment for the tests before line {token.map}")
    return found


def _marks(words: str) -> dict[str, str]:
    if words.startswith("skip"):
        return {"skip": words[4:].strip()}
    return dict(word.partition("=")[::2] for word in words.split())


def links(path: Path) -> list[str]:
    """The targets of all links and pictures of a page."""
    found = []
    for token in PARSER.parse(path.read_text()):
        for part in token.children or []:
            target = part.attrGet("href") or part.attrGet("src")
            if target:
                found.append(target)
    return found


@functools.cache
def anchors(path: Path) -> set[str]:
    """The anchors that code hosts give a page's headings."""
    tokens, found = PARSER.parse(path.read_text()), []
    for heading, text in zip(tokens, tokens[1:]):
        if heading.type == "heading_open":
            words = "".join(part.content for part in text.children if part.type in ("text", "code_inline"))
            found.append(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return {
        anchor + (f"-{found[:at].count(anchor)}" if anchor in found[:at] else "") for at, anchor in enumerate(found)
    }
