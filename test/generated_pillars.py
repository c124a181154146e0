"""
Pillars made from the contract by hypothesis: right ones, and ones that are changed in one place. Plain enough for JSON.

Each setting has the values of its kind in VALUES; a kind without any fails the tests, so that none is forgotten.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from test.wrong_pillars import CERTIFICATE

# The same examples in each run of the tests; the soak looks for new ones.
RUN = settings(
    max_examples=1000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SOAK = pytest.param(settings(RUN, max_examples=50_000, derandomize=False), marks=pytest.mark.soak, id="soak")
ROOT = "redis_sidekiq"
KEY = CERTIFICATE.replace("CERTIFICATE", "RSA PRIVATE KEY")
# However it is changed in one place, one of the three words is still in it.
SECRET = "hunter2-hunter2-hunter2"
PGP = "-----BEGIN PGP MESSAGE-----\n\nhQEMA\n-----END PGP MESSAGE-----\n"
DIGEST = "0123456789abcdef" * 4

# Right values of each kind that has neither choices nor bounds.
VALUES: dict[str, list] = {
    "boolean": [True, False],
    "watchdog": [0, 10, 60, 3600],
    "port": [1024, 6379, "6380", 65535],
    "instance": ["", 6379, "6380", 65535],
    "ports or empty": ["", 1, 65535, "any", "http", "6000:6010", [80, 443, "6000:6010"], ["http", 8080], [22]],
    "interface or empty": ["", "eth0", "eth+", "br-lan.7", "wg_x"],
    "app profile or empty": ["", "OpenSSH", "WWW Full", "CUPS"],
    "comment": ["", "the office", "x", 'a, b; "c" – Büro', "日本"],
    "network": [
        "10.0.0.0/8",
        "10.0.0.5/24",
        "192.0.2.1",
        "0.0.0.0/0",
        "fd00::/8",
        "::1",
        "::ffff:192.0.2.1",
        "1:2:3:4:5:6:7::/128",
    ],
    "bind": ["127.0.0.1", "-::1", "*", "-::*", "10.0.0.5", "fe80::1%eth0", "1::7:8"],
    "size": ["", "0", 0, 1073741824, "512mb", "2GB", "7k", "100b"],
    "queue": ["default", "a.b:c_d-e", {"critical": 1}, {"low": 1000}],
    "version": ["8.0.6", "6.2", "7.2.15", "10.0.0", "8.0-rc1"],
    "source": ["", "https://x/redis-8.0.6.tar.gz", "salt://redis_1.tgz", "file:///srv/x", "/srv/redis.tgz", "/a@b"],
    "place": ["salt://redis-builds", "https://x", "/srv/builds"],
    "hash": ["", DIGEST, "sha256=" + DIGEST, "SHA256:" + DIGEST, "sha512=" + 2 * DIGEST, "sha384=" + "a" * 96],
    "path": ["/usr/local/bin", "/", "//x/./y/", "/a..b/...", "/é"],
    "path or empty": ["", "/etc/ssl/x.pem", "/x/"],
    "own folder": ["/opt/redis", "/srv/app", "/usr/local/redis", "/x/.y"],
    "own folder or empty": ["", "/srv/deploy"],
    "user": ["redis", "_x", "a-b.c", "x" * 32],
    "user or empty": ["", "deploy"],
    "password": ["", "long and random", "a'b\"c", "ünï", "(x"],
    "secret": ["x", "the new one", "#<>!"],
    "url": ["", "redis://q/0", "rediss://u:p@q:6390/0", "unix:///run/x.sock"],
    "redis user": ["app", "Default", "a.b-c_d", "9"],
    "host or empty": ["", "10.0.0.5", "redis-1.example.com", "fd00::5", "a"],
    "redis user or empty": ["", "sidekiq"],
    "acl rule": ["~jobs:*", "+@read", "-keys", "allkeys", "(~a +get)", "(+@all -@admin &x)", "onwards", "%R~x"],
    "calendar": ["daily", "annually", "*-*-* 03:30", "Mon..Fri 03:30", "*:0/15", "2026-01-01"],
    "certificate or empty": ["", CERTIFICATE, "a comment\n" + CERTIFICATE + "\n" + CERTIFICATE],
    "private key or empty": ["", KEY, CERTIFICATE + KEY],
    "socket": [True, False, "/srv/r/s", "/" + "s" * 106],
    "save": ["3600 1", "1 1"],
    "window": ["03:00-05:00", "23:59-00:00"],
    "rule name": ["ssh", "http", "my.rule-2", "_"],
    "service name": ["sidekiq", "a@b", "mail-slow_2", "x"],
    "app": ["shop", "Shop_2-x"],
    "sudoers name": ["sidekiq-deploy", "A_1"],
    "environment": ["production", "staging-2"],
    "package": ["ruby", "libpq-dev", "g++"],
    "mine function": ["network.ip_addrs", "my-alias"],
    "word": ["exec", "a b", "/usr/bin/bundle", "é"],
    "word or empty": ["", "./worker.rb"],
    # Maps of the user's own:
    "packs": [{}, {"8.0.6-0123456789-bookworm-amd64": "sha256=" + DIGEST, "valkey-8-0123456789-trixie-arm64": DIGEST}],
    "directives": [
        {},
        {"tcp-keepalive": 60, "x": ["a b", 'c "d e"', 1.5], "lazyfree-lazy-eviction": True},
        {"y": '\'it\' "\\""', "z": ""},
    ],
    "variables": [{}, {"A": "x", "_b2": 1, "C": True, "D": 0.5, "E": "tab\there"}],
    "sidekiq.yml": [{}, {"labels": ["web"], ":x": {"y": [None, {"z": 1.5}]}, "concurrency": 7}],
}
# What is not of its kind, or only of a few.
GARBAGE = [
    None, True, False, 0, -1, 1, 1.5, 65536, 10**30, "", " ", "x", "0", "yes", "no", "null", "a\nb", "x\n", "\x00", "\x7f", "é", "٦",
    "\u200b", "..", "/", "/usr", "//usr/./local/", "/a/../b", "*", "<%= x %>", [], [None], [[]], ["", ""], ["x", "x"], [True, 1],
    {}, {"": None}, {"a": None}, {"a": {}}, {"6379": None}, {"6379": {}}, {"x": "<%"}, [{}], [{"a": 1, "b": 2}], "sdb://x/y", "{{ x }}", "None", PGP,
    "-----BEGIN CERTIFICATE-----", "unix:x", "redis://", "http://x", "https://u:p@x/y", "10.0.0.0/255.0.0.0", "::/129", "1::2::3",
    "90:80", "any", "root", "default", "(~a", ">x", "03:00-03:00", "30 3 * * *", "@daily", "dayly", "6.1", "3 0", 25.0,
    "256.0.0.1", "1.2.3.4/33", "/" + "s" * 107, "r" * 300,
]  # fmt: skip
CHARACTERS = list("aZ0:/.-_~ @%*()<>#'\"\\=,+\n\t\x00é\u200b٦")
UNKNOWN = [
    "zzz",
    "",
    "user ",
    "app-dir",
    "<%",
    "6379",
    "port",
    "PORT",
    "80",
    "default",
    "x\n",
    "requirepass",
    "REDIS_URL",
    "é",
]


def leaves(module) -> list[tuple[list, Any]]:
    """Every setting of a contract: its keys, where a node of names stands for a name, and itself."""

    def walk(node, keys):
        for name, part in node.parts.items():
            here = [*keys, name]
            if isinstance(part, module.Setting):
                yield here, part
            else:
                yield from walk(part, [*here, part] if isinstance(part, module.Entries) else here)

    return list(walk(module.CONTRACT, [ROOT]))


def value(setting) -> st.SearchStrategy:
    """A right value of a setting."""
    if setting.kind.startswith("list of "):
        each = value(setting._replace(kind=setting.kind[len("list of ") :], null=""))
        right = st.lists(each, min_size=setting.least, max_size=3, unique_by=None if setting.repeats else repr)
    elif setting.kind == "choice":
        right = st.sampled_from(setting.choices)
    elif setting.kind == "integer":
        right = st.sampled_from([setting.low, setting.high]) | st.integers(setting.low, setting.high)
    else:
        right = st.sampled_from(VALUES[setting.kind])
    return right | st.none() if setting.null else right


def put(pillar: dict, keys: list, content: Any) -> None:
    """Set a value in nested maps."""
    for key in keys[:-1]:
        if not isinstance(pillar.get(key), dict):
            pillar[key] = {}
        pillar = pillar[key]
    pillar[keys[-1]] = content


def places(node: Any, keys: tuple = ()) -> list[tuple]:
    """The keys of everything in a pillar, but for its top."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [place for key, part in inside for place in [(*keys, key), *places(part, (*keys, key))]]


@st.composite
def right_pillars(draw, module) -> dict:
    """A few settings of the contract, each with a value of its kind, under names that may be given to entries."""
    pillar: dict = {ROOT: {}}
    known = leaves(module)
    for _ in range(draw(st.integers(1, 5))):
        path, setting = draw(st.sampled_from(known))
        keys: list = []
        for part in path:
            if isinstance(part, str):
                keys.append(part)
                continue
            keys.append(str(draw(st.sampled_from(VALUES[part.name]))))
            for name, other in part.parts.items():
                if isinstance(other, module.Setting) and other.default is module.REQUIRED:
                    put(pillar, [*keys, name], draw(value(other)))
        put(pillar, keys, draw(value(setting)))
    return copy.deepcopy(pillar)


@st.composite
def secret_pillars(draw, module) -> dict:
    """A right pillar that has SECRET in every setting that is one."""
    pillar = draw(right_pillars(module))
    for path, setting in leaves(module):
        if setting.secret:
            each = draw(st.booleans())
            keys = [
                key if isinstance(key, str) else {"port": "6379", "redis user": "app"}.get(key.name, "sidekiq")
                for key in path
            ]
            text = {
                "url": f"redis://:{SECRET}@q/0",
                "private key or empty": KEY.replace("MIIB", SECRET.replace("-", "")),
            }
            put(pillar, keys, {"variables": {"KEY": SECRET}, "list of secret": [SECRET + "2", SECRET + "3"]}.get(
                setting.kind, text.get(setting.kind, SECRET)) if each or setting.default is module.REQUIRED else draw(value(setting))
            )  # fmt: skip
    return pillar


@st.composite
def changed_pillars(draw, module, pillars=None) -> dict:
    """A right pillar that is changed in one place; often it is wrong then."""
    # A copy: what is changed here is part of VALUES else.
    pillar = copy.deepcopy(draw(right_pillars(module) if pillars is None else pillars))
    place = draw(st.sampled_from(places(pillar)))
    at = pillar
    for key in place[:-1]:
        at = at[key]
    key, old = place[-1], at[place[-1]]
    how = draw(st.sampled_from(["replace", "add", "near", "near", "near", "drop", "wrap", "rename"]))
    if how == "add" and isinstance(old, dict):
        old[draw(st.sampled_from(UNKNOWN))] = draw(st.sampled_from(GARBAGE))
    elif how == "near" and isinstance(old, str):
        at[key] = draw(near(old))
    elif how == "near" and isinstance(old, int) and not isinstance(old, bool):
        at[key] = old + draw(st.sampled_from([-1, 1, 0.5, 100000]))
    elif how == "near" and isinstance(old, list) and old:
        at[key] = [*old, draw(st.sampled_from([*old, *GARBAGE]))]
    elif how == "rename" and isinstance(at, dict) and len(place) > 1:
        at[draw(near(key))] = at.pop(key)
    elif how == "drop" and len(place) > 1:
        del at[key]
    elif how == "wrap":
        at[key] = draw(st.sampled_from([[old], {"a": old}, str(old)]))
    else:
        at[key] = draw(st.sampled_from(GARBAGE))
    return copy.deepcopy(pillar)


@st.composite
def near(draw, text: str) -> str:
    """A text with one character more, less or other."""
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.sampled_from(["", *CHARACTERS])) + text[at + draw(st.integers(0, 1)) :]
