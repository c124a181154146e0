"""Whatever a pillar holds: sentences that name a key, or settings; never a traceback, never a secret."""

from __future__ import annotations

import json
import re
from datetime import date

import pytest
from hypothesis import given, settings
from salt.exceptions import SaltInvocationError

from test.generated_pillars import GARBAGE, ROOT, RUN, SOAK, changed_pillars, leaves, put, right_pillars, secret_pillars

LINE = re.compile(r"redis_sidekiq(:[A-Za-z0-9_.@*-]*)*: .+")


def judge(module, pillar) -> bool:
    """Sentences or settings; returns whether it is right."""
    module.__pillar__ = pillar
    lines = module.mistakes()
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert "hunter2" not in "\n".join(lines)
    if lines:
        with pytest.raises(SaltInvocationError) as raised:
            module.settings()
        assert str(raised.value).splitlines() == lines
        return False
    assert "hunter2" not in json.dumps(module.settings())
    for instance in module.settings(reveal=True)["redis"]["instances"]:
        json.dumps(instance).encode()
    return True


def run(module, how, pillars):
    seen = {True: 0, False: 0}

    @how
    @given(pillars)
    def each(pillar):
        seen[judge(module, pillar)] += 1

    each()
    assert min(seen.values()) > sum(seen.values()) / 50, seen


@pytest.mark.parametrize("how", [RUN, SOAK])
def test_sentences_or_settings(redis_sidekiq, how):
    run(redis_sidekiq, how, changed_pillars(redis_sidekiq))


@pytest.mark.parametrize("how", [settings(RUN, max_examples=500), SOAK])
def test_no_secret_is_shown(redis_sidekiq, how):
    run(redis_sidekiq, how, changed_pillars(redis_sidekiq, secret_pillars(redis_sidekiq)))


def test_right_pillars_are_never_taken_apart(redis_sidekiq):
    """Rules across settings may refuse them; the others give settings that are whole."""
    run(redis_sidekiq, settings(RUN, max_examples=300), right_pillars(redis_sidekiq))


# YAML has more than JSON: dates, keys that are no text, and halves of characters.
YAML_ONLY = [date(2026, 1, 2), {1: 2}, {None: 1}, {True: 1}, {date(2026, 1, 2): 1}, float("nan"), float("inf"), b"x", {1, 2},
             "\ud800", ["\ud800"], {"x": "\ud800"}, {"\ud800": 1}]  # fmt: skip


@pytest.mark.parametrize("garbage", YAML_ONLY, ids=repr)
def test_what_yaml_alone_has(redis_sidekiq, garbage):
    names = {"port": "6379", "redis user": "app", "rule name": "ssh", "service name": "sidekiq"}
    for keys, _ in leaves(redis_sidekiq):
        place = [key if isinstance(key, str) else names[key.name] for key in keys]
        pillar = {}
        put(pillar, place, garbage)
        judge(redis_sidekiq, pillar)
        put(pillar, place[:-1], garbage)
        judge(redis_sidekiq, pillar)


@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_everything_is_garbage(redis_sidekiq, garbage):
    judge(redis_sidekiq, {ROOT: garbage})
