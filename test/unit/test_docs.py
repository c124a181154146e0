"""README and docs build, their links lead somewhere, their pillars are right, and what is made from code is current."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from test import pages

REPO = pages.REPO
LANGUAGES = {"bash", "yaml", "jinja", "text", "ini", "python", "ruby"}
MAY_BE_SKIPPED = 16
EVERY_PAGE = [*pages.pages(), *sorted((REPO / "docs/reference").glob("*.md"))]
BLOCKS = [block for page in pages.pages() for block in pages.blocks(page)]


def by_name(path):
    return pages.name(path)


@pytest.mark.parametrize("builder", ["html", "man"])
def test_the_docs_build_without_a_warning(builder, tmp_path):
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-t", builder, "-b", builder]
    done = subprocess.run([*argv, REPO / "docs", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    if builder == "man":
        assert {"redis-sidekiq-formula.7", "redis_sidekiq-pillar.5"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("page", EVERY_PAGE, ids=by_name)
def test_links_lead_somewhere(page):
    for link in pages.links(page):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), link
            continue
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in pages.anchors(path), link


def test_every_page_is_in_the_index():
    found = {link.partition("#")[0] for link in pages.links(REPO / "docs/index.md")}
    there = {str(path.relative_to(REPO / "docs")) for path in EVERY_PAGE[1:]}
    assert there - found == {"index.md", "manual.md"}


# Blocks --------------------------------------------------------------------------------------------------------------


def test_every_block_has_a_language_that_the_tests_know():
    assert [block.where for block in BLOCKS if block.language not in LANGUAGES] == []


def test_few_blocks_are_skipped_and_each_has_a_reason():
    skipped = {block.where: block.marks["skip"] for block in BLOCKS if "skip" in block.marks}
    assert all(len(reason.split()) > 2 for reason in skipped.values()), skipped
    assert len(skipped) <= MAY_BE_SKIPPED, skipped


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: block.where
)
def test_yaml_is_a_right_pillar(block, redis_sidekiq):
    # A digest is cut short where it would be nobody's.
    text = re.sub(r"(sha256=[0-9a-f]*)\.\.\.", lambda found: found[1].ljust(71, "0"), block.text)
    data = yaml.safe_load(text)
    assert isinstance(data, dict)
    if "redis_sidekiq" in data and "apps" not in data["redis_sidekiq"]:
        redis_sidekiq.__pillar__ = data
        # Groups that the pages name, on the host that they speak of.
        redis_sidekiq.grp.getgrnam = {name: SimpleNamespace(gr_name=name) for name in ("deploy", "ops")}.__getitem__
        assert redis_sidekiq.mistakes() == []


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "python"], ids=lambda block: block.where
)
def test_python_is_python(block):
    ast.parse(block.text)


# The reference -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """The tool that makes the pages of functions and states."""
    spec = importlib.util.spec_from_file_location("module_reference", REPO / "tools/module_reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["module_reference"] = module
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_functions_and_states_are_current(reference):
    stale = [pages.name(path) for path, text in reference.pages().items() if path.read_text() != text]
    assert stale == [], "run make docs"


def signatures(reference, folder):
    """Function -> its signature, of a folder of modules."""
    found = {}
    for module in reference.modules(folder):
        tree = ast.parse((REPO / folder / f"{module.name}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                found[f"{module.name}.{node.name}"] = inspect.signature(
                    eval(f"lambda {ast.unparse(bare(node.args))}: 0")
                )
    return found


def bare(arguments):
    """Arguments without annotations and defaults, which need the module's names."""
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument:
            argument.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [default and ast.Constant(None) for default in arguments.kw_defaults]
    return arguments


def calls(block):
    """The calls of this formula's functions in a block of commands, as (function, words after it)."""
    for line in block.splitlines():
        words = shlex.split(re.sub(r"\$\(.*?\)", "word", line), comments=True)
        program, words = words[0] if words else "", [word for word in words[1:] if not word.startswith("-")]
        if program == "salt":
            words = words[1:]
        if program in ("salt", "salt-call", "salt-run") and words and words[0].count(".") == 1:
            yield words[0], words[1:]


def bind(signature, words):
    """Bind the words of a command line as Salt would."""
    pairs = dict(word.split("=", 1) for word in words if re.match(r"[a-z_]+=", word))
    signature.bind(*(word for word in words if not re.match(r"[a-z_]+=", word)), **pairs)


@pytest.mark.parametrize("folder", ["_modules", "_runners"])
def test_examples_of_functions_could_be_called(reference, folder):
    known = signatures(reference, folder)
    seen = set()
    for module in reference.modules(folder):
        for function in module.functions:
            for block in re.findall(r"code-block:: bash\n\n((?: +.*\n?|\n)+)", function.text):
                for name, words in calls(block):
                    bind(known[name], words)
                    seen.add(name)
    assert len(seen) > 0.9 * sum(len(module.functions) for module in reference.modules(folder))


def test_commands_of_the_docs_name_functions_that_exist(reference):
    known = {**signatures(reference, "_modules"), **signatures(reference, "_runners")}
    ours = {name.partition(".")[0] for name in known}
    for block in BLOCKS:
        if block.language == "bash":
            for name, words in calls(block.text):
                if name.partition(".")[0] in ours:
                    assert name in known, block.where
                    bind(known[name], words)
