"""Signed calls of salt-api's hook: which count, and that the others do nothing and tell nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import time

import pytest

SECRET = b"a-secret-that-is-long-enough"
BODY = b'{"ref": "refs/heads/main"}'
TAG = "salt/netapi/hook/redis_sidekiq/deploy/shop"


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def call(render_sls, secret_file):
    """``call(headers, body)``: what the reactor makes of this call of the hook, as salt-api puts it on the bus."""

    def _call(headers, body=BODY, tag=TAG, **settings):
        apps = {"shop": {"minions": ["web1"], "secret_file": str(secret_file), **settings}}
        data = {"headers": headers, "body": body.decode() if isinstance(body, bytes) else body, "post": {}}
        return render_sls("webhook", tag, data, {"apps": apps})

    return _call


@pytest.fixture
def signed(load):
    """Headers of the shipped client."""
    hook = load("docs/examples/deploy_hook.py")
    return lambda body=BODY, secret=SECRET, **more: hook.headers(secret, body, **more)


def github(body=BODY, secret=SECRET, name="sha256"):
    return {"X-Hub-Signature-256": f"{name}=" + hmac.new(secret, body, name).hexdigest()}


def asked_for(reaction):
    [(state, calls)] = reaction.items()
    once = calls["runner.sidekiq_rollout.request"][0]["args"].pop()
    assert state == "Roll out shop"
    assert calls == {"runner.sidekiq_rollout.request": [{"args": [{"app": "shop"}, {"source": "webhook"}]}]}
    return once["once"]


def test_a_signed_call_asks_for_its_apps_roll_out(call, signed):
    assert asked_for(call(signed()))


def test_names_of_headers_are_read_in_any_case(call, signed):
    assert asked_for(call({name.upper(): value for name, value in signed().items()}))


def test_githubs_form_counts_too(call):
    assert asked_for(call(github()))


def test_a_secret_in_standard_webhooks_own_form(call, signed, secret_file):
    secret_file.write_bytes(b"whsec_" + base64.b64encode(SECRET))
    assert asked_for(call(signed()))


def test_one_of_several_signatures_is_enough(call, signed):
    headers = signed()
    headers["Webhook-Signature"] = "v1,b2xk " + headers["Webhook-Signature"]
    assert asked_for(call(headers))


def test_two_calls_differ_and_a_repeated_one_does_not(call, signed):
    first, second = signed(), signed()
    assert asked_for(call(first)) == asked_for(call(first)) != asked_for(call(second))
    assert asked_for(call(github())) == asked_for(call(github())) != asked_for(call(github(b"{}"), b"{}"))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"Webhook-Signature": ""},
        {"Webhook-Signature": "v1,"},
        {"Webhook-Signature": "v1a,AAAA"},
        {"Webhook-Signature": "é\udcff"},
        {"Webhook-Signature": None},
        {"Webhook-Id": ""},
        {"Webhook-Id": "another"},
        {"Webhook-Id": "x\ny"},
        {"Webhook-Timestamp": ""},
        {"Webhook-Timestamp": "1e9"},
        {"Webhook-Timestamp": "9" * 400},
        {"Webhook-Timestamp": "-1"},
        {"Webhook-Timestamp": str(int(time.time()) + 1)},
        {"X-Hub-Signature-256": "sha256="},
        {"X-Hub-Signature-256": "sha1=" + hmac.new(SECRET, BODY, "sha1").hexdigest()},
        github(secret=b"another-secret-of-that-length"),
        github(body=b"another body"),
        github(name="sha512"),
    ],
)
def test_a_call_with_something_wrong_about_its_signature_does_nothing(call, signed, wrong):
    assert call({**signed(), **wrong} if wrong else {}) == {}


@pytest.mark.parametrize("body", [b"", b"{}", BODY + b" ", "x" * (1 << 20) + "y", None, 7, ["a"]])
def test_a_call_with_another_body_does_nothing(call, signed, body):
    assert call(signed(), body) == {}


@pytest.mark.parametrize("off", [-301, 301, -86400, 10**9])
def test_an_old_call_and_one_of_the_future_do_nothing(call, signed, off):
    assert call(signed(moment=int(time.time()) + off)) == {}


@pytest.mark.parametrize("off", [-290, 290])
def test_clocks_may_differ_a_little(call, signed, off):
    assert asked_for(call(signed(moment=int(time.time()) + off)))


@pytest.mark.parametrize("data", [None, [], "x", {}, {"headers": [], "body": ""}, {"headers": {}, "body": {}}, {1: 2}])
def test_what_is_no_call_of_the_hook_does_nothing(render_sls, secret_file, data):
    settings = {"apps": {"shop": {"minions": ["web1"], "secret_file": str(secret_file)}}}
    assert render_sls("webhook", TAG, data, settings) == {}


@pytest.mark.parametrize("app", ["", "blog", "shop/x", "../shop", "shop\n", "{{ 'shop' }}", "*", "a" * 70])
def test_a_path_that_names_no_app_does_nothing(call, signed, app):
    assert call(signed(), tag=f"salt/netapi/hook/redis_sidekiq/deploy/{app}") == {}


@pytest.mark.parametrize("path", ["", None, "/nowhere/secret", 7, ["x"]])
def test_an_app_without_a_secret_takes_no_calls(call, signed, path):
    assert call(signed(), secret_file=path) == {}
    assert call(signed(secret=b""), secret_file=path) == {}


@pytest.mark.parametrize("text", [b"", b"\n", b"short", b"whsec_", b"whsec_!!!!", b"whsec_c2hvcnQ="])
def test_a_secret_that_is_none_takes_no_calls(call, signed, secret_file, text):
    secret_file.write_bytes(text)
    assert call(signed(secret=text.strip())) == {}


def test_a_secret_that_others_may_read_takes_no_calls(call, signed, secret_file, caplog):
    os.chmod(secret_file, 0o644)
    with caplog.at_level(logging.WARNING):
        assert call(signed()) == {}
    assert f"chmod 0600 {secret_file}" in caplog.text


def test_what_is_refused_is_logged_without_secret_signature_and_body(call, signed, caplog):
    right = signed()["Webhook-Signature"]
    with caplog.at_level(logging.DEBUG):
        assert call({**signed(), "Webhook-Signature": right + "x"}) == {}
    (record,) = [record for record in caplog.records if "refused" in record.getMessage()]
    assert record.getMessage() == "A webhook for shop was refused: its signature is missing or wrong"
    for word in (SECRET.decode(), right, BODY.decode(), hashlib.sha256(BODY).hexdigest()):
        assert word not in caplog.text
