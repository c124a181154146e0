"""Sidekiq's unit on a real host: what reaches the process, what a restart proves, how broken releases are told."""

from __future__ import annotations

import json
import time

import pytest

from test.hosts import app
from test.hosts.conftest import make_whole
from test.hosts.harness.host import Host
from test.hosts.lab import apply_locally, put_pillar, salt_call

SLS = "redis_sidekiq.sidekiq"
SECRET = 'sesame-open-$x "q" \\'

on_both = pytest.mark.parametrize("image", ["bookworm", "trixie"])
# What waits for long is tried with one Sidekiq, with both by `make soak`.
on_one = pytest.mark.parametrize("image", ["bookworm", pytest.param("trixie", marks=pytest.mark.soak)])


def own_pillar(**service) -> dict:
    """The pillar for Sidekiq alone, with a secret in its environment, and restarts that are soon over."""
    return app.sidekiq_pillar(**{"env": {"SESAME": SECRET}, "strategy": "drain", **service})


@pytest.fixture
def host(sidekiq_hosts, image):
    """The host with the plain pillar and an unbroken release, working."""
    host = sidekiq_hosts(image)
    make_whole(host, own_pillar())
    return host


def restart(host: Host, strategy: str = "drain") -> dict:
    return salt_call(host, "sidekiq.restart", "sidekiq", f"strategy={strategy}", check=False)


def append(host: Host, ruby: str) -> None:
    """Add a line to the release's worker file."""
    host.run(["sh", "-c", f"cat >> {app.HOME}/current/worker.rb"], input=ruby + "\n")


def show(host: Host, name: str) -> str:
    return host.run(["systemctl", "show", f"--property={name}", "--value", "sidekiq"]).stdout.strip()


WORDS = [
    "", "two words", 'a"b', "it's", "back\\slash", "50%", "%i", "$HOME", "${HOME}", "$$", ";", "a ; b", "a\nb", "a\tb", "#x",
    "grün ☃", "|", "&&", "@x", "!x", "\\", "\\x41", "'", "''", '""', "~", "*", "{a,b}", "=", "end ",
]  # fmt: skip
VALUES = {
    "EMPTY": "", "SPACES": "  two  words  ", "QUOTES": "a\"b'c", "DOLLAR": "$HOME ${HOME} $(id) `id`", "HASH": "# no; x",
    "BACKSLASH": "C:\\n\\", "ONE": "\\", "EQUALS": "a=b", "UNICODE": "grün ☃", "PERCENT": "%i %% %n", "QUOTE": "'",
    "LONG": "x" * 20000,
}  # fmt: skip
DUMP = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('/tmp/dump', 'w'))"


@on_both
def test_every_word_and_value_reaches_the_process_unharmed(host):
    put_pillar(host, own_pillar(env=VALUES))
    apply_locally(host, SLS).assert_ok()
    host.write("/srv/dump.py", DUMP)
    line = salt_call(host, "sidekiq.exec_start", json.dumps(["/usr/bin/python3", "/srv/dump.py", *WORDS]))
    unit = f"[Service]\nType=oneshot\nEnvironmentFile=/etc/sidekiq/sidekiq.env\nExecStart={line}\n"
    host.write("/etc/systemd/system/words.service", unit)
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "start", "words"])
    argv, env = json.loads(host.run(["cat", "/tmp/dump"]).stdout)
    assert argv == WORDS
    assert {name: env.get(name) for name in VALUES} == VALUES


@on_both
def test_systemd_has_nothing_to_say_about_the_unit(host):
    verify = host.run(["systemd-analyze", "verify", "/etc/systemd/system/sidekiq.service"], check=False)
    assert (verify.returncode, [line for line in verify.stderr.splitlines() if "sidekiq" in line]) == (0, [])


@on_both
def test_a_second_run_changes_nothing_and_asks_systemd_twice(host):
    """Once for the services, once for what they run as root."""
    before = app.main_pid(host)
    run = apply_locally(host, SLS).assert_unchanged()
    assert not [state["warnings"] for name, state in run.states.items() if "sudo" in name and state.get("warnings")]
    assert app.main_pid(host) == before
    trace = "strace -f -qq -e trace=execve -e signal=none -o /tmp/trace salt-call --local state.apply"
    host.run(
        ["sh", "-c", f"which strace >/dev/null || apt-get install -y strace; {trace} {SLS} > /dev/null"], timeout=300
    )
    ran = [line for line in host.run(["cat", "/tmp/trace"]).stdout.splitlines() if line.endswith("= 0")]
    assert len([line for line in ran if '/systemctl"' in line and '"show"' in line]) == 2
    assert len([line for line in ran if '/sudo"' in line]) == 1


@on_one
def test_secrets_are_nowhere_to_be_seen(host):
    run = apply_locally(host, SLS)
    record = restart(host)
    public = json.dumps([run.states, record]) + show(host, "Environment")
    public += host.run(
        ["sh", "-c", "cat /etc/systemd/system/sidekiq.service; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]
    ).stdout
    assert "sesame" not in public
    assert host.run(["cat", "/etc/sidekiq/sidekiq.env"], user="deploy", check=False).returncode != 0
    environ = host.run(["cat", f"/proc/{app.main_pid(host)}/environ"]).stdout
    assert f"SESAME={SECRET}\0" in environ


@on_both
def test_a_changed_variable_restarts_once_and_is_announced(host):
    before = app.main_pid(host)
    put_pillar(host, own_pillar(env={"SESAME": "another"}))
    announced = apply_locally(host, SLS, test=True).assert_ok()
    assert "Sidekiq service sidekiq works" in announced.pending
    assert app.main_pid(host) == before
    run = apply_locally(host, SLS).assert_ok()
    assert run.changed["Sidekiq service sidekiq has its environment"] == {"changed": ["SESAME"]}
    assert app.main_pid(host) != before
    after = app.main_pid(host)
    apply_locally(host, SLS).assert_unchanged()
    assert app.main_pid(host) == after


@on_one
def test_a_restart_tells_what_it_saw(host):
    app.enqueue(host, 200)
    before = app.main_pid(host)
    record = restart(host)
    assert record["result"] is True, record["comment"]
    (entry,) = record["processes"]
    assert (str(entry["old"]["pid"]), str(entry["new"]["pid"])) == (before, app.main_pid(host))
    assert entry["new"]["heartbeat"]["pid"] == entry["new"]["pid"]
    steps = [step["step"] for step in record["steps"] if step["step"] != "account"]
    assert steps == ["lock", "look", "check", "guard", "quiet", "drain", "stop", "start", "prove"]


BROKEN = {
    "a syntax error": ("def x(", "did not start"),
    "a missing gem": ('require "no_such_gem"', "no_such_gem"),
    "an exit right after the start": (
        'Thread.new { sleep 1.5; warn "bye"; exit!(3) } if $0.include?("sidekiq")',
        "soon after its start",
    ),
    "a boot that hangs": ("sleep 1000", "did not start"),
    "another Redis": (
        'Sidekiq.configure_server { |c| c.redis = {url: "redis://127.0.0.1:6379/5"} }',
        "does not beat in the Redis of its REDIS_URL",
    ),
    "a secret in its last words": ('abort "cannot use #{ENV["SESAME"]}"', "cannot use ******"),
}


@on_one
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if "secret" in kind else pytest.mark.soak) for kind in BROKEN]
)
def test_a_broken_release_is_told_and_works_again_when_it_is_mended(host, kind):
    ruby, sentence = BROKEN[kind]
    append(host, ruby)
    begun = time.monotonic()
    record = restart(host)
    assert time.monotonic() - begun < 60
    assert record["result"] is False
    assert sentence in record["comment"]
    assert "its journal ends with" in record["comment"]
    assert "sesame" not in json.dumps(record)
    app.deploy(host)
    run = apply_locally(host, SLS).assert_ok()
    if kind == "another Redis":
        assert restart(host)["result"] is True
    assert show(host, "ActiveState") == "active", run.states


@on_both
def test_a_release_that_is_gone_leaves_the_process_alone(host):
    before = app.main_pid(host)
    host.run(["rm", f"{app.HOME}/current"])
    record = restart(host)
    assert (record["result"], app.main_pid(host)) == (False, before)
    assert "There is no release at" in record["comment"]


@on_both
def test_a_stop_from_the_web_ui_is_not_its_last(host):
    before = app.main_pid(host)
    host.run(["kill", "-TERM", before])
    until = time.monotonic() + 20
    while app.main_pid(host) in ("0", before) or show(host, "ActiveState") != "active":
        assert time.monotonic() < until
        time.sleep(0.2)


@on_one
def test_another_drop_in_counts_as_a_change(host):
    before = app.main_pid(host)
    host.write("/etc/systemd/system/sidekiq.service.d/local.conf", "[Service]\nNice=1\n")
    try:
        apply_locally(host, SLS).assert_ok()
        assert app.main_pid(host) != before
        assert show(host, "Nice") == "1"
        apply_locally(host, SLS).assert_unchanged()
    finally:
        host.run(["rm", "-r", "/etc/systemd/system/sidekiq.service.d"])


@on_both
def test_clean_leaves_what_is_the_users(host):
    apply_locally(host, f"{SLS}.clean").assert_ok()
    gone = ["/etc/systemd/system/sidekiq.service", "/etc/sidekiq", "/etc/sudoers.d/sidekiq-deploy"]
    assert host.run(["ls", "-d", *gone], check=False).stdout == ""
    host.run(["ls", f"{app.HOME}/current/worker.rb", "/home/deploy"])
    assert (show(host, "LoadState"), show(host, "ActiveState")) == ("not-found", "inactive")
    apply_locally(host, f"{SLS}.clean").assert_unchanged()
