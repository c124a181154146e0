"""The module through Salt's loader: facts of a private copy, and of the machine that runs the tests (read only)."""

from __future__ import annotations

import pytest


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "etc/ufw").mkdir(parents=True)
    (tmp_path / "etc/ufw/user.rules").write_text("### tuple ### allow tcp 22 0.0.0.0/0 any 10.0.0.0/8 in\nCOMMIT\n")
    (tmp_path / "etc/ufw/ufw.conf").write_text('ENABLED="yes"\n')
    return str(tmp_path)


def test_status_of_a_copy(modules, copy):
    found = modules.ufw_rules.status(root=copy)
    assert found["enabled"] is True
    assert found["rules"] == [
        {
            "family": "4",
            "action": "allow",
            "direction": "in",
            "interface": "",
            "proto": "tcp",
            "port": "22",
            "from": "10.0.0.0/8",
            "to": "any",
            "comment": "",
            "ours": False,
        }
    ]


def test_differences_of_a_copy(modules, copy, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    changes = modules.ufw_rules.differences([{"name": "ssh", "port": 22}], root=copy)
    assert changes["rules"] == {"added": ["ssh: allow tcp 22 from any"]}
    assert "enabled" not in changes


def test_kernel_of_this_machine_answers(modules):
    found = modules.ufw_rules.status()
    assert isinstance(found["loaded"], bool) and isinstance(found["gaps"], list)
