"""The JSON Schema says of a pillar what the checker says: both accept it, or both refuse it."""

from __future__ import annotations

import ipaddress
import json
import os
import re

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from test.conftest import REPO
from test.generated_pillars import GARBAGE, PGP, ROOT, RUN, SOAK, VALUES, changed_pillars, leaves, put, right_pillars
from test.unit.modules.test_redis_sidekiq import COMMENTED, EXAMPLE, alternatives
from test.wrong_pillars import CERTIFICATE, WRONG_PILLARS

SOME = settings(RUN, max_examples=300)


def ecma(pattern: str) -> re.Pattern:
    """A pattern as editors understand it: `$` is the very end of the text; Python would let a line's end follow."""
    return re.compile(re.sub(r"(\\.|\[(?:\\.|[^\]])*\])|\$", lambda match: match[1] or r"\Z", pattern))


def _pattern(validator, pattern, instance, schema):
    if isinstance(instance, str) and not ecma(pattern).search(instance):
        yield jsonschema.ValidationError("does not match")


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})


@pytest.fixture(scope="module")
def module(load):
    module = load("_modules/redis_sidekiq.py")
    module.__grains__ = {"os_family": "Debian"}
    return module


@pytest.fixture(scope="module")
def schema():
    return json.loads((REPO / "docs/reference/pillar.schema.json").read_text())


@pytest.fixture(scope="module")
def valid(schema):
    return Validator(schema).is_valid


def mistakes(module, pillar) -> list[str]:
    """What the kinds say of a pillar; rules across settings and facts of a host can be in no schema."""
    problems = module.Problems()
    module._read(module.CONTRACT, pillar[ROOT], ROOT, problems)
    return problems.lines


# What only the checker sees, or only the editor: why, and of which value of which kind. ------------------------------


def whole(value):
    return isinstance(value, float) and value.is_integer()


def same_networks(value):
    found = [ipaddress.ip_network(each, strict=False) for each in value]
    return len(found) != len(set(found))


def a_folder_of_others(value):
    return os.path.normpath(value) != value


def in_services(value):
    return any(
        re.fullmatch("[A-Za-z][A-Za-z0-9-]+", str(each)) for each in (value if isinstance(value, list) else [value])
    )


def ports(value):
    """Backwards, or more than 15 with its ranges, or the same port in two spellings."""
    return ":" in str(value)


EXCEPTIONS = [
    ("JSON Schema takes 25.0 for a whole number", "", whole),
    ("two spellings of one network", "list of network", same_networks),
    ("another spelling of /usr", "own folder", a_folder_of_others),
    ("the services that this host's /etc/services knows", "ports or empty", in_services),
    ("a range's ends, and how many ports ranges count as", "ports or empty", ports),
    ("characters that cannot be seen, of which Python knows more", "comment", lambda value: not value.isprintable()),
    ("a secret that Jinja has yet to put there", "", lambda value: value.startswith("{{")),
    (
        "a secret that the gpg renderer has yet to decrypt",
        "",
        lambda value: str(value).lstrip().startswith("-----BEGIN PGP"),
    ),
]


def excused(module, pillar, line: str) -> bool:
    """Is this mistake one that the schema cannot know?"""
    path = line.partition(": ")[0]
    for keys, setting in leaves(module):
        pattern = ":".join(re.escape(key) if isinstance(key, str) else "[^:]+" for key in keys)
        if re.fullmatch(f"{pattern}(:.*)?", path):
            content = pillar
            for key in path.split(":"):
                content = content.get(key) if isinstance(content, dict) else content
            return any(
                kind in setting.kind and _holds(judge, each)
                for _, kind, judge in EXCEPTIONS
                for each in (content, *inside(content))
            )
    return False


def inside(content):
    """All values within a value."""
    for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else []:
        yield each
        yield from inside(each)


def _holds(judge, value) -> bool:
    try:
        return bool(judge(value))
    except (AttributeError, TypeError, ValueError):
        return False


def agree(module, valid, pillar) -> None:
    lines, accepted = mistakes(module, pillar), valid(pillar)
    if lines and accepted:
        lines = [line for line in lines if not excused(module, pillar, line)]
    assert accepted == (not lines), (pillar, lines)


# ---------------------------------------------------------------------------------------------------------------------


def test_schema_is_one(schema):
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_kind_has_values(module):
    bounded = {"integer", "choice"}
    assert set(VALUES) | bounded == {*module.KINDS, *module.MAPS}


def test_right_pillars_are_right(module, valid):
    @SOME
    @given(right_pillars(module))
    def both_accept(pillar):
        assert mistakes(module, pillar) == []
        assert valid(pillar)

    both_accept()


@pytest.mark.parametrize("how", [RUN, SOAK])
def test_schema_and_checker_agree(module, valid, how):
    @how
    @given(changed_pillars(module))
    def both_say_the_same(pillar):
        agree(module, valid, pillar)

    both_say_the_same()


def test_every_value_is_tried_with_every_kind(module, valid):
    """All values of all kinds, and what is none, at one setting of each kind."""
    tried = {}
    for keys, setting in leaves(module):
        tried.setdefault(setting.kind, keys)
    values = [*(value for kind in VALUES.values() for value in kind), *GARBAGE]
    for kind, keys in tried.items():
        names = {"port": "6379", "redis user": "app", "rule name": "x", "service name": "sidekiq"}
        place = [key if isinstance(key, str) else names[key.name] for key in keys]
        for value in [[value] for value in values] if kind.startswith("list of ") else values:
            pillar = {}
            if "users" in place:
                put(pillar, [*place[:-1], "passwords"], ["x"])
            put(pillar, place, value)
            agree(module, valid, json.loads(json.dumps(pillar)))


def test_edges(module, valid):
    """The ends of each range, a list's least length, and an entry that is there twice."""
    for keys, setting in leaves(module):
        names = {"port": "6379", "redis user": "app", "rule name": "x", "service name": "sidekiq"}
        place = [key if isinstance(key, str) else names[key.name] for key in keys]
        values = [setting.low - 1, setting.low, setting.high, setting.high + 1] if setting.kind == "integer" else []
        if setting.kind.startswith("list of "):
            one = setting.example[0] if setting.example else setting.default[0] if setting.default else "x"
            values = [[], [one], [one, one]]
        for value in values:
            pillar = {}
            put(pillar, place, value)
            if "users" in place and place[-1] != "passwords":
                put(pillar, [*place[:-1], "passwords"], ["x"])
            agree(module, valid, pillar)


def test_wrong_pillars_are_refused_where_a_kind_is_wrong(module, valid):
    refused = 0
    for name, pillar, _ in WRONG_PILLARS:
        if ROOT in pillar:
            agree(module, valid, pillar)
            refused += not valid(pillar)
    assert refused > 150, f"{refused} of {len(WRONG_PILLARS)}"


def test_an_editor_takes_what_is_encrypted(module, valid):
    for keys, setting in leaves(module):
        if setting.secret and setting.kind != "variables":
            pillar, kinds = {}, setting.kind
            place = [key if isinstance(key, str) else {"port": "6379"}.get(key.name, "app") for key in keys]
            put(pillar, [*place[:-1], "passwords"], ["x"]) if "users" in place else None
            put(pillar, place, [PGP] if kinds.startswith("list") else PGP)
            assert valid(pillar), keys
            assert mistakes(module, pillar)


def test_example_is_valid(valid):
    assert valid(json.loads(json.dumps(yaml.safe_load(EXAMPLE))))


@pytest.mark.parametrize("block", alternatives())
def test_example_is_valid_with_a_change(valid, block):
    lines = EXAMPLE.splitlines()
    for number in block:
        lines[number] = COMMENTED.sub(r"\1", lines[number])
    assert valid(json.loads(json.dumps(yaml.safe_load("\n".join(lines)))))


def test_defaults_and_examples_are_valid(module, schema):
    def walk(node):
        if isinstance(node, dict):
            for value in [*([node["default"]] if "default" in node else []), *node.get("examples", [])]:
                assert Validator({**node, "$defs": schema["$defs"]}).is_valid(value), node
            for part in node.values():
                walk(part)

    walk(schema["properties"])
    walk(schema["$defs"])


def test_patterns_are_of_the_language_of_editors(schema):
    """ECMA-262 with the flag u, as Ajv compiles them: it knows no escape of a plain character, no \\Z and no (?i)."""
    patterns = set(re.findall(r'"pattern": ("(?:\\.|[^"\\])*")', json.dumps(schema)))
    assert len(patterns) > 40
    for pattern in map(json.loads, patterns):
        assert not re.search(r"\\[^sSdDwWbBxu0-9\\.()\[\]{}*+?^$|/nrt]", pattern), pattern
        assert "(?P" not in pattern and "(?<" not in pattern and "(?i" not in pattern


def test_a_certificate_with_a_passphrase_or_half_of_one(module, valid):
    for text in (CERTIFICATE[:-5], CERTIFICATE + "-----BEGIN X-----", "ENCRYPTED " + CERTIFICATE):
        pillar = {}
        put(pillar, [ROOT, "redis", "tls", "cert_pem"], text)
        assert not valid(pillar) and mistakes(module, pillar)


@given(st.ip_addresses() | st.ip_addresses(v=4, network="0.0.0.0/0"), st.integers(0, 140))
@RUN
def test_every_network_is_one(address, length):
    import importlib.util

    spec = importlib.util.spec_from_file_location("contract", REPO / "_modules/redis_sidekiq.py")
    module = test_every_network_is_one.__dict__.setdefault("module", importlib.util.module_from_spec(spec))
    if not hasattr(module, "KINDS"):
        spec.loader.exec_module(module)
    for text in (str(address), address.exploded, f"{address}/{length}"):
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            assert not re.fullmatch(module._NETWORK, text)
        else:
            assert re.fullmatch(module._NETWORK, text), text
