"""What the settings of a salt-ssh run put on the target's command line: everything but secrets."""

from __future__ import annotations

import json

import pytest
import salt.utils.templates

PLANTED = "planted-secret-0123456789"
KEY = f"-----BEGIN PRIVATE KEY-----\n{PLANTED}\n-----END PRIVATE KEY-----\n"
URLS = [
    f"redis://:{PLANTED}@10.0.0.9:6379",
    f"redis://:a/{PLANTED}@10.0.0.9:6379/0",
    f"redis://10.0.0.9?password={PLANTED}",
]


@pytest.fixture
def given(repo, tmp_path):
    """``given(pillar)``: what ``redis_sidekiq.settings`` is called with on the target."""

    def _given(pillar: dict) -> dict:
        seen = []
        context = {
            "opts": {"cachedir": str(tmp_path), "optimization_order": [0]},
            "pillar": pillar,
            "salt": {"redis_sidekiq.settings": lambda given: seen.append(given) or {}},
            "saltenv": None,
            "sls": "",
        }
        salt.utils.templates.render_jinja_tmpl((repo / "redis_sidekiq/ssh.jinja").read_text(), context)
        return seen[0]

    return _given


def nested(path: str, value: object) -> dict:
    for key in reversed(path.split(":")):
        value = {"6379" if key == "PORT" else "app" if key == "NAME" else key: value}
    return value


def test_no_secret_of_the_contract_is_on_a_command_line(given, redis_sidekiq):
    secrets = [one for one in redis_sidekiq.contract()["settings"] if one.get("secret")]
    assert len(secrets) >= 7
    for one in secrets:
        for value in (PLANTED, KEY, *URLS, [PLANTED], {"NAME": PLANTED}):
            assert PLANTED not in json.dumps(given(nested(one["path"], value))), one["path"]


@pytest.mark.parametrize("key", ["PASSWORD", "passwd", "secret", "redis-url", "Env", "envs", "auth", "keypem"])
def test_nor_one_whose_key_is_misspelt(given, key):
    assert PLANTED not in json.dumps(given({"redis_sidekiq": {"redis": {key: PLANTED}}}))


def test_a_number_is_hidden_like_a_text(given):
    assert given(nested("redis_sidekiq:redis:instances:PORT:password", 1234567)) == nested(
        "redis_sidekiq:redis:instances:PORT:password", 0
    )


def test_a_map_in_the_place_of_the_environments_name_is_hidden(given):
    assert PLANTED not in json.dumps(given({"redis_sidekiq": {"environment": {"DATABASE_URL": PLANTED}}}))


def test_everything_else_is_as_the_pillar_has_it(given, redis_sidekiq):
    for one in redis_sidekiq.contract()["settings"]:
        if not one["section"] and not one["secret"]:
            pillar = nested(one["path"], "as it is")
            assert given(pillar) == pillar, one["path"]


def test_a_secret_keeps_its_form(given):
    """So that what is wrong with a pillar is still seen there."""
    said = given(
        {"redis_sidekiq": {"redis": {"tls": {"key_pem": KEY}}, "redis_url": f"redis://:{PLANTED}@10.0.0.9:6379/1"}}
    )
    assert said["redis_sidekiq"]["redis"]["tls"]["key_pem"].startswith("-----BEGIN PRIVATE KEY-----\n")
    assert said["redis_sidekiq"]["redis_url"] == "redis://10.0.0.9:6379/1"
    old = given({"redis_sidekiq": {"old_passwords": ["one", "two", ""]}})["redis_sidekiq"]["old_passwords"]
    assert len(set(old)) == 3 and old[2] == ""
