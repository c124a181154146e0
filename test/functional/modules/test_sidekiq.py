"""The execution module through Salt's loader: settings from a real pillar, files below a temporary folder."""

from __future__ import annotations

import subprocess
import time

import pytest
from salt.exceptions import SaltInvocationError

SUDO = {"sudoers_text", "sudoers_validate", "sudoers_write", "sudoers_remove", "sudo_check"}


@pytest.mark.parametrize(
    ("module", "functions"),
    [
        ("sidekiq", {"status", "processes", "start", "stop", "restart", "sudo_risks"} | SUDO),
        ("sidekiq_sudo", SUDO),
        ("sidekiq_risks", {"find", "words"}),
    ],
)
def test_all_public_functions_are_loaded_and_documented(modules, module, functions):
    documentation = modules.sys.doc(module)
    assert functions <= {name.partition(".")[2] for name in documentation}
    for name, text in documentation.items():
        assert "CLI Example:" in text, name
        assert f"salt '*' {name}" in text, name


def test_what_is_about_sudo_is_known_by_both_names(modules):
    wish = ("deploy", ["sidekiq"], ["restart"])
    assert modules.sidekiq.sudoers_text(*wish) == modules.sidekiq_sudo.sudoers_text(*wish)
    with pytest.raises(SaltInvocationError, match="sudo would ignore"):
        modules.sidekiq.sudoers_validate("", "/etc/sudoers.d/a.b")


def test_services_come_from_the_settings(modules):
    for function in ("status", "start", "stop", "restart"):
        with pytest.raises(SaltInvocationError, match="the pillar redis_sidekiq:sidekiq:services has: sidekiq"):
            modules[f"sidekiq.{function}"]("ssh")


def test_an_environment_file_is_written_for_root_alone(modules, tmp_path):
    path = tmp_path / "sidekiq.env"
    assert modules.sidekiq.environment_diff(str(path), "sidekiq") == {"added": ["REDIS_URL"]}
    modules.sidekiq.environment_write(str(path), "sidekiq")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().splitlines()[1] == 'REDIS_URL="redis://127.0.0.1:6379/0"'
    assert modules.sidekiq.environment_diff(str(path), "sidekiq") == {}


def test_the_shipped_unit_is_rendered_for_the_settings(modules, repo, tmp_path):
    settings = modules.redis_sidekiq.settings()
    [service] = settings["sidekiq"]["services"]
    unit = tmp_path / "sidekiq.service"
    template = repo / "redis_sidekiq/sidekiq/files/sidekiq.service.jinja"
    service = {**service, "argv": ["/usr/bin/bundle", "exec", "sidekiq", "50% of $x"], "current": "/srv/50%/current"}
    ret = modules.state.single(
        "file.managed",
        name=str(unit),
        source=str(template),
        template="jinja",
        context={"service": service},
    )
    assert ret.result is True, ret.comment
    lines = unit.read_text().splitlines()
    for line in (
        'ExecStart=/usr/bin/bundle exec sidekiq "50%% of $$x"',
        "WorkingDirectory=/srv/50%%/current",
        "ConditionPathExists=/srv/50%%/current",
        "After=network.target redis_6379.service",
        "Wants=redis_6379.service",
        "Type=notify",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "KillMode=mixed",
        "WatchdogSec=60",
        "TimeoutStopSec=40",
        "EnvironmentFile=/etc/sidekiq/sidekiq.env",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith(("Requires=", "BindsTo=", "PartOf="))]
    assert not [line for line in lines if "redis://" in line]


def test_a_watchdog_of_zero_leaves_the_line_out(modules, repo, tmp_path):
    [service] = modules.redis_sidekiq.settings()["sidekiq"]["services"]
    unit = tmp_path / "sidekiq.service"
    template = str(repo / "redis_sidekiq/sidekiq/files/sidekiq.service.jinja")
    context = {"service": {**service, "watchdog": 0}}
    modules.state.single("file.managed", name=str(unit), source=template, template="jinja", context=context)
    assert "WatchdogSec" not in unit.read_text()


@pytest.fixture
def deployed(modules, repo, tmp_path):
    """
    Return a function that runs the command for app shop's deploy event, with a shell script in the place of salt-call.

    What that wrote to its standard output is the answer; ``tmp_path / "seen"`` is what it was given.
    """

    def run(body: str, words: tuple = (), seconds: str = "30", **options) -> subprocess.CompletedProcess:
        salt_call, command = tmp_path / "it's salt-call", tmp_path / "sidekiq-deployed-shop"
        seen = f"{{ pwd; printf '%s\\n' \"$@\"; env; cat; }} > {tmp_path}/seen"
        salt_call.write_text(f"#!/bin/sh\n{seen}\n{body}\n")
        salt_call.chmod(0o755)
        context = {
            "event": {"app": "shop", "tag": "redis_sidekiq/deploy/shop", "command": str(command)},
            "salt_call": str(salt_call),
        }
        template = str(repo / "redis_sidekiq/deploy/files/sidekiq-deployed.jinja")
        arguments = {"source": template, "template": "jinja", "context": context, "mode": "0755"}
        ret = modules.state.single("file.managed", name=str(command), **arguments)
        assert ret.result is True, ret.comment
        command.write_text(command.read_text().replace("--kill-after=5 30 ", f"--kill-after=1 {seconds} "))
        return subprocess.run([command, *words], capture_output=True, text=True, check=False, **options)

    return run


SENT = """echo '{ "local": true }'"""
NOT_SENT = "The deploy event redis_sidekiq/deploy/shop was not sent: "


def test_a_deploy_event_is_sent_without_a_word_of_the_caller(deployed, tmp_path):
    environment = {"PATH": "/tmp", "SALT_CONFIG_DIR": "/tmp", "PYTHONPATH": "/tmp", "IFS": "e", "ENV": "/tmp/x"}
    done = deployed(SENT, env=environment, cwd="/tmp", input="of his")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    folder, *seen = (tmp_path / "seen").read_text().splitlines()
    assert folder == "/"
    assert seen[:5] == ["--log-level=quiet", "--out=json", "event.fire_master", "{}", "redis_sidekiq/deploy/shop"]
    assert sorted(line.partition("=")[0] for line in seen[5:]) == ["LANG", "PATH", "PWD"]
    assert "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" in seen


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("echo '{ \"local\": false }'", "salt-call ended with 0; /var/log/salt/minion may say why"),
        ("echo secret; echo secret >&2; exit 3", "salt-call ended with 3; /var/log/salt/minion may say why"),
        (f"{SENT}; exit 1", "salt-call ended with 1; /var/log/salt/minion may say why"),
        ("true", "salt-call ended with 0; /var/log/salt/minion may say why"),
    ],
)
def test_an_event_that_was_not_sent_is_told(deployed, body, sentence):
    done = deployed(body)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{NOT_SENT}{sentence}\n")


@pytest.mark.parametrize("body", ["sleep 60", "trap '' TERM; sleep 60 & wait; sleep 60"])
def test_a_master_that_does_not_answer_is_not_waited_for(deployed, body):
    begun = time.monotonic()
    done = deployed(body, seconds="0.5")
    assert (done.returncode, done.stderr) == (1, f"{NOT_SENT}Salt's master has not answered within 30 s\n")
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("words", [("x",), ("",), ("--help",), ("a", "b")])
def test_a_deploy_event_takes_no_argument(deployed, tmp_path, words):
    done = deployed(SENT, words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{NOT_SENT}{tmp_path}/sidekiq-deployed-shop takes no argument\n"
    assert not (tmp_path / "seen").exists()
