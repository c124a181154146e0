"""The program that puts the former rules back: what it makes of the kept files and of what others changed since."""

from __future__ import annotations

import pytest

HEAD = "*filter\n:ufw-user-input - [0:0]\n### RULES ###\n\n"
TAIL = "### END RULES ###\n\n### LOGGING ###\n### END LOGGING ###\nCOMMIT\n"


@pytest.fixture(scope="module")
def program(load):
    return load("redis_sidekiq/firewall/files/ufw_rollback.py")


def block(action, port, comment=""):
    text = f"### tuple ### {action} tcp {port} 0.0.0.0/0 any 0.0.0.0/0 in"
    text += f" comment={comment.encode().hex()}" if comment else ""
    target = {"allow": "ACCEPT", "deny": "DROP"}[action]
    return f"{text}\n-A ufw-user-input -p tcp --dport {port} -j {target}\n\n"


def rules(*blocks):
    return HEAD + "".join(blocks) + TAIL


SSH, HTTP = block("allow", 22, "redis_sidekiq:ssh"), block("allow", 80, "redis_sidekiq:http")
MINE, DENY = block("allow", 9, "mine"), block("deny", 9, "mine")


@pytest.mark.parametrize(
    ("kept", "now", "expected"),
    [
        (rules(SSH), rules(SSH, HTTP), rules(SSH)),
        (rules(SSH, HTTP), rules(SSH), rules(SSH, HTTP)),
        (rules(), rules(SSH), rules()),
        (rules(HTTP, SSH), rules(SSH, HTTP), rules(HTTP, SSH)),
        (rules(SSH), rules(SSH, HTTP, MINE), rules(SSH, MINE)),
        (rules(MINE, SSH), rules(SSH, HTTP), rules(MINE, SSH)),
        (rules(MINE, SSH), rules(DENY, SSH, HTTP), rules(DENY, SSH)),
        (rules(SSH), "", rules(SSH)),
        (rules(SSH), rules(SSH, HTTP)[:-40], rules(SSH)),
    ],
    ids=["added", "removed", "first", "moved", "others-added", "others-removed", "others-changed", "empty", "cut-off"],
)
def test_rules_as_they_were_with_those_of_others_as_they_are(program, kept, now, expected):
    assert program.merged(kept, now)[0] == expected


def test_what_others_did_is_said(program):
    assert program.merged(rules(SSH), rules(HTTP))[1] == []
    assert program.merged(rules(SSH), rules(HTTP, MINE))[1] == [MINE.partition("\n")[0]]


MADE = {"DEFAULT_INPUT_POLICY": ['"DROP"']}


@pytest.mark.parametrize(
    ("old", "now", "expected", "left"),
    [
        ('"ACCEPT"', '"DROP"', '"ACCEPT"', []),
        ('"ACCEPT"', '"ACCEPT"', '"ACCEPT"', []),
        ('"ACCEPT"', '"REJECT"', '"REJECT"', ['DEFAULT_INPUT_POLICY="REJECT"']),
    ],
)
def test_policy_of_somebody_else_stays(program, old, now, expected, left):
    text = "# a word\nIPV6=yes\nDEFAULT_INPUT_POLICY={}\nOTHER=1\n"
    found = program.assigned(text.format(now), {"DEFAULT_INPUT_POLICY": old}, MADE)
    assert found == (text.format(expected), left)


def test_policy_that_a_start_goes_through_is_ours(program):
    text = "DEFAULT_INPUT_POLICY={}\n"
    made = {"DEFAULT_INPUT_POLICY": ['"REJECT"', '"DROP"']}
    for now in made["DEFAULT_INPUT_POLICY"]:
        found = program.assigned(text.format(now), {"DEFAULT_INPUT_POLICY": '"ACCEPT"'}, made)
        assert found == (text.format('"ACCEPT"'), [])


def test_switch_goes_back_though_a_run_that_died_left_it_off(program):
    assert program.assigned("ENABLED=no\nLOGLEVEL=low\n", {"ENABLED": "yes"}, {}) == ("ENABLED=yes\nLOGLEVEL=low\n", [])


@pytest.fixture
def host(program, tmp_path, monkeypatch):
    """The program on files of its own; what it runs is noted. Returns a function that makes a plan and runs it."""
    for name in ("FOLDER", "LOCK", "UFW_LOCK", "CONF", "DEFAULTS"):
        monkeypatch.setattr(program, name, str(tmp_path / name))
    paths = {name: str(tmp_path / f"etc-{name}") for name in program.RULES}
    monkeypatch.setattr(program, "RULES", paths)
    commands = []
    (tmp_path / "FOLDER").mkdir()

    def play(*words, loaded=True, rules_kept=True, fails=()):
        (tmp_path / "CONF").write_text("ENABLED=yes\n")
        (tmp_path / "DEFAULTS").write_text('DEFAULT_INPUT_POLICY="DROP"\n')
        for name, path in paths.items():
            (tmp_path / "FOLDER" / name).write_text(rules(SSH))
            program.write(path, rules(SSH, HTTP))
        plan = {
            "token": "7",
            "armed": "now",
            "within": 60,
            "loaded": loaded,
            "rules": rules_kept,
            "unit": str(tmp_path / "unit"),
            "link": str(tmp_path / "link"),
            "before": {
                "conf": {"ENABLED": "yes" if loaded else "no"},
                "defaults": {"DEFAULT_INPUT_POLICY": '"ACCEPT"'},
            },
            "made": {"conf": {}, "defaults": MADE},
        }
        (tmp_path / "FOLDER/plan.json").write_text(program.json.dumps(plan))
        commands.clear()
        monkeypatch.setattr(
            program,
            "run",
            lambda *argv: commands.append(" ".join(argv)) or ("broken" if " ".join(argv) in fails else ""),
        )
        monkeypatch.setattr(program.sys, "argv", ["ufw_rollback.py", *words])
        assert program.main() == 0
        return [command for command in commands if "tables" not in command]

    play.commands, play.root, play.paths = commands, tmp_path, paths
    return play


def is_back(host):
    return all(host.root.joinpath(path).read_text() == rules(SSH) for path in host.paths.values())


def test_firewall_that_was_on_is_loaded_again(host):
    assert host("--token=7") == ["ufw reload"]
    assert host.commands[:4] == [
        "iptables -P INPUT ACCEPT",
        "iptables -P OUTPUT ACCEPT",
        "ip6tables -P INPUT ACCEPT",
        "ip6tables -P OUTPUT ACCEPT",
    ]
    assert is_back(host) and not (host.root / "FOLDER").exists()
    assert (host.root / "DEFAULTS").read_text() == 'DEFAULT_INPUT_POLICY="ACCEPT"\n'


def test_firewall_that_was_off_is_off(host):
    assert host("--token=7", loaded=False) == ["ufw disable"]
    assert is_back(host) and (host.root / "CONF").read_text() == "ENABLED=no\n"


LOOK = "iptables -n -L ufw-user-input"


def test_at_boot_files_alone(host):
    assert host("--boot", fails=[LOOK]) == [] and host.commands == [LOOK] and is_back(host)


def test_at_boot_of_a_container_whose_kernel_went_on(host):
    assert host("--boot") == ["ufw reload"] and is_back(host)


def test_rules_that_cannot_be_loaded_shut_nobody_out(host, capsys):
    assert host("--token=7", fails=["ufw reload"]) == ["ufw reload", "ufw disable"]
    assert "nobody is shut out" in capsys.readouterr().out


def test_files_that_were_cut_off_before_are_not_loaded(host):
    assert host("--token=7", rules_kept=False) == ["ufw disable"]
    assert not is_back(host)


def test_timer_of_an_older_change_does_nothing(host):
    assert host("--token=6") == []
    assert not is_back(host) and (host.root / "FOLDER/plan.json").exists()
