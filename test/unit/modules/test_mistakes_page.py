"""docs/mistakes.md: each message of ours in its table is the real one."""

from __future__ import annotations

import re

import pytest
import yaml
from salt.exceptions import SaltInvocationError

from test.conftest import REPO

CELL = re.compile(r"\| (`+) ?(.+?) ?\1 (?=\|)")
ROWS = [
    (line.split(" | ")[0].strip("| "), *(match[1] for match in CELL.findall(line)[:2]))
    for line in (REPO / "docs/mistakes.md").read_text().splitlines()
    if re.match(r"\| [^|]* \| `(redis|firewall|sidekiq): ", line)
]


def test_there_are_twenty():
    assert len(ROWS) == 20


@pytest.mark.parametrize("mistake, pillar, message", ROWS, ids=[row[0] for row in ROWS])
def test_message_is_the_real_one(redis_sidekiq, mistake, pillar, message):
    redis_sidekiq.__pillar__ = {"redis_sidekiq": yaml.safe_load(pillar)}
    with pytest.raises(SaltInvocationError) as raised:
        redis_sidekiq.settings()
    assert str(raised.value) == message
