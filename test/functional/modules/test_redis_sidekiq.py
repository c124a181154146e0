"""The pillar through Salt's own renderers: a wrong one ends the run before its first state."""

from __future__ import annotations

from test.wrong_pillars import WRONG_PILLARS, instance

# Each costs a render: these stand for the sections, test/unit has them all.
SOME = WRONG_PILLARS[:: len(WRONG_PILLARS) // 8]


def errors(answer) -> str:
    """What a run that did not begin says; one that began answers with its states."""
    answer = getattr(answer, "raw", answer)
    assert isinstance(answer, list), answer
    return "\n".join(answer)


def test_wrong_pillars_are_render_errors_and_no_state(modules):
    for name, pillar, expected in SOME:
        message = errors(modules.state.sls("redis_sidekiq", pillar=pillar, test=True))
        for words in expected:
            assert words in message, name
        assert "Traceback" not in message


def test_wrong_pillar_shows_no_states_either(modules):
    message = errors(modules.state.show_sls("redis_sidekiq", pillar=instance(password="hunter2\n", pasword="hunter2")))
    assert "instances:6379:pasword: unknown key; did you mean 'password'?" in message
    assert "instances:6379:password: found a value that is not shown" in message
    assert "hunter2" not in message


def test_right_pillar_shows_states_without_secrets(modules):
    pillar = instance(password="hunter2", users={"app": {"passwords": ["hunter2-2"], "preset": "sidekiq"}})
    states = modules.state.show_sls("redis_sidekiq", pillar=pillar)
    assert isinstance(states, dict) and len(states) > 10
    assert "hunter2" not in repr(states)
