"""The execution module through Salt's loader: settings from a real pillar, files below a temporary folder."""

from __future__ import annotations

import pytest
from salt.exceptions import SaltInvocationError


def test_all_public_functions_are_loaded_and_documented(modules):
    documentation = modules.sys.doc("sidekiq")
    names = {name.partition(".")[2] for name in documentation}
    assert {"status", "processes", "start", "stop", "restart", "sudoers_text", "sudoers_validate", "sudo_check"} <= names
    for name, text in documentation.items():
        assert "CLI Example:" in text, name
        assert f"salt '*' {name}" in text, name


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
