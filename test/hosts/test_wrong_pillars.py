"""A wrong pillar: one clear message for each mistake, and nothing on the host changes."""

import pytest

from test.hosts.conftest import host_facts
from test.hosts.lab import StateRun, make_masterless, put_pillar, salt_call
from test.wrong_pillars import WRONG_PILLARS

# Each costs a run of Salt: these stand for the kinds, test/unit has them all.
ON_A_HOST = 12


@pytest.fixture(scope="module")
def bare(module_hosts):
    host = module_hosts("wrong", image="bookworm")
    make_masterless(host, {})
    return host, host_facts(host)


def test_there_are_enough_kinds():
    assert len(WRONG_PILLARS) >= ON_A_HOST


@pytest.mark.parametrize("name, pillar, expected", WRONG_PILLARS[:: max(1, len(WRONG_PILLARS) // ON_A_HOST)])
def test_message_names_the_key_and_nothing_changes(bare, name, pillar, expected):
    host, before = bare
    put_pillar(host, pillar)
    run = StateRun.parse(salt_call(host, "state.apply", "redis_sidekiq", check=False))
    assert not run.states, f"{name}: states ran: {list(run.states)}"
    message = "\n".join(run.errors)
    for words in expected:
        assert words in message
    assert len(run.errors) == 1
    assert host_facts(host) == before
