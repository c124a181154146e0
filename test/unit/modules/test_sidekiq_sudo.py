"""The pure parts of _modules/sidekiq_sudo.py: lines of sudoers, the copy of a policy, what sudo printed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

DATA = Path(__file__).resolve().parents[1] / "data"

DEPLOY = {"units": ["sidekiq"], "verbs": ["restart"], "commands": []}


def recorded(name: str) -> str:
    return (DATA / name).read_text()


@pytest.fixture
def sidekiq_sudo(load, whole_files, monkeypatch):
    """The module with settings, and every command answered by ``sidekiq_sudo.answers`` (a list, in order)."""
    module = load("_modules/sidekiq_sudo.py")
    module.calls, module.answers = [], []

    def run_all(argv, **kwargs):
        assert kwargs["python_shell"] is False
        module.calls.append(argv)
        answer = module.answers.pop(0) if module.answers else ""
        return answer if isinstance(answer, dict) else {"retcode": 0, "stdout": answer, "stderr": ""}

    module.__salt__ = {"cmd.run_all": run_all, "redis_sidekiq.settings": lambda: {"deploy": DEPLOY}, **whole_files}
    monkeypatch.setattr(module, "_tool", lambda name, package: f"/usr/bin/{name}")
    return module


def test_the_text_has_each_command_whole_and_in_both_spellings(sidekiq_sudo):
    text = sidekiq_sudo.sudoers_text("deploy", ["sidekiq", "mails.service"], ["restart", "stop"])
    grants = [line for line in text.splitlines() if not line.startswith("#")]
    systemctl = os.path.realpath("/usr/bin/systemctl")
    assert grants == [
        f"deploy ALL=(root) NOPASSWD: NOEXEC: {systemctl} {verb} {name}{end}"
        for name in ("sidekiq", "mails")
        for verb in ("restart", "stop")
        for end in ("", ".service")
    ]


@pytest.mark.parametrize(
    "user",
    [
        "",
        "ALL",
        "Deploy",
        "%sudo",
        "#0",
        "+net",
        "root",
        "a b",
        "a,b",
        "a\nb",
        "a=b",
        "!a",
        "a:b",
        "*",
        "-a",
        ".a",
        "a.",
    ],
)
def test_a_user_that_sudo_could_read_as_more_is_refused(sidekiq_sudo, user):
    with pytest.raises(SaltInvocationError, match="cannot be granted a command"):
        sidekiq_sudo.sudoers_text(user, ["sidekiq"], ["restart"])


@pytest.mark.parametrize(
    "unit",
    [
        "", "ALL", "*", "side*", "sidekiq ssh", "sidekiq, ALL", "sidekiq\nALL ALL=ALL", "--now", "-", "sidekiq?", "a=b",
        "a:b", "a\\", "[a-z]", "^.*$", "sidekiq.timer", "ssh.service.service", '"a"', "a#b", "ä", "a/b", "a;b", "../a",
    ],
)  # fmt: skip
def test_a_unit_that_sudo_could_read_as_more_is_refused(sidekiq_sudo, unit):
    if unit == "ALL":
        # As an argument it is a word like any other; only alone, as a command, would it mean everything.
        assert "systemctl restart ALL.service" in sidekiq_sudo.sudoers_text("deploy", [unit], ["restart"])
        return
    with pytest.raises(SaltInvocationError, match="no name of a unit|no unit to grant"):
        sidekiq_sudo.sudoers_text("deploy", [unit], ["restart"])


def test_a_command_is_allowed_without_arguments_and_may_start_programs(sidekiq_sudo):
    text = sidekiq_sudo.sudoers_text("deploy", [], [], ["/usr/local/sbin/sidekiq-deployed-shop", "/opt/a.b/c_d+e"])
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        'deploy ALL=(root) NOPASSWD: EXEC: NOSETENV: /usr/local/sbin/sidekiq-deployed-shop ""',
        'deploy ALL=(root) NOPASSWD: EXEC: NOSETENV: /opt/a.b/c_d+e ""',
    ]


def test_units_and_commands_go_into_one_file(sidekiq_sudo):
    text = sidekiq_sudo.sudoers_text("deploy", ["sidekiq"], ["stop"], ["/a/b"])
    tags = [line.split()[2:5] for line in text.splitlines()[2:]]
    systemctl = os.path.realpath("/usr/bin/systemctl")
    assert tags == [["NOPASSWD:", "NOEXEC:", systemctl]] * 2 + [["NOPASSWD:", "EXEC:", "NOSETENV:"]]


@pytest.mark.parametrize(
    "path",
    [
        "", "ALL", "a/b", "/", "/a/", "/a//b", "/a/../b", "/a/./b", "/a/*", "/a/b c", "/a/b,/c", "/a/b\n", "/a/b=", "/a:b",
        "/a/-b", "/a/!b", "/a/[b]", "/a/b\\", '/a/"b"', "/a/b#", "^/a/b$", "/ä", "~/a", "/a/b?", "/a/(b)", None,
    ],
)  # fmt: skip
def test_a_command_that_sudo_could_read_as_more_is_refused(sidekiq_sudo, path):
    with pytest.raises(SaltInvocationError, match="no command that can be granted"):
        sidekiq_sudo.sudoers_text("deploy", ["sidekiq"], ["restart"], [path])
    with pytest.raises(SaltInvocationError, match="no command that can be granted"):
        sidekiq_sudo.commands_validate([path])


def test_there_is_something_to_grant(sidekiq_sudo):
    with pytest.raises(SaltInvocationError, match="There is no unit to grant"):
        sidekiq_sudo.sudoers_text("deploy", [], ["restart"], [])


ROOTS = {"mode": 0o040755, "uid": 0}
OTHERS = {
    "another user's": ({"mode": 0o040755, "uid": 4321}, "/usr/local belongs to user 4321"),
    "a group's": (
        {"mode": 0o042775, "uid": 0},
        "/usr/local can be written by others than root; `chmod go-w /usr/local`",
    ),
    "everybody's": ({"mode": 0o041777, "uid": 0}, "/usr/local can be written by others"),
    "a link": ({"mode": 0o120777, "uid": 0}, "/usr/local is a link"),
}


@pytest.fixture
def tree(sidekiq_sudo, monkeypatch):
    """What ``lstat`` says about each path: a map, root's alone at first."""
    paths = {path: ROOTS for path in ("/", "/usr", "/usr/local", "/usr/local/sbin", "/usr/local/sbin/x")}

    def lstat(path):
        if path not in paths:
            raise FileNotFoundError(2, "No such file", path)
        return SimpleNamespace(st_mode=paths[path]["mode"], st_uid=paths[path]["uid"])

    monkeypatch.setattr(sidekiq_sudo.os, "lstat", lstat)
    return paths


def test_a_command_that_only_root_can_change_is_right(sidekiq_sudo, tree):
    sidekiq_sudo.commands_validate(["/usr/local/sbin/x", "/usr/local/sbin/not-yet", "/nor/this"])


@pytest.mark.parametrize("kind", OTHERS)
def test_a_command_that_others_can_change_is_refused(sidekiq_sudo, tree, kind):
    tree["/usr/local"], sentence = OTHERS[kind]
    with pytest.raises(CommandExecutionError, match=re.escape(sentence)) as raised:
        sidekiq_sudo.commands_validate(["/usr/local/sbin/x", "/usr/local/sbin/y"])
    assert str(raised.value).count(sentence) == 1
    with pytest.raises(CommandExecutionError):
        sidekiq_sudo.sudoers_write("/nowhere/x", "deploy", [], [], ["/usr/local/sbin/x"])
    assert sidekiq_sudo.calls == []


@pytest.mark.parametrize("place", ["/", "/usr/local/sbin/x"])
def test_the_whole_way_to_a_command_counts(sidekiq_sudo, tree, place):
    tree[place] = {"mode": 0o100757, "uid": 0}
    with pytest.raises(CommandExecutionError, match=f"{place} can be written by others than root"):
        sidekiq_sudo.commands_validate(["/usr/local/sbin/x"])


def test_a_group_gets_the_same_lines(sidekiq_sudo):
    lines = sidekiq_sudo.sudoers_text("deploy", ["sidekiq"], ["stop"], ["/a/b"], group="ops").splitlines()
    assert "deploy and the members of ops" in lines[1]
    assert [line.replace("deploy", "%ops", 1) for line in lines[2:5]] == lines[5:]


@pytest.mark.parametrize(
    "group", ["%ops", "ALL", "Ops", "#0", "root", "a b", "a,b", "ops\nALL ALL=ALL", "+net", "!a", True, 5]
)
def test_a_group_that_sudo_could_read_as_more_is_refused(sidekiq_sudo, group):
    with pytest.raises(SaltInvocationError, match="cannot be granted a command: give the plain name of a group"):
        sidekiq_sudo.sudoers_text("deploy", ["sidekiq"], ["restart"], group=group)


def test_our_own_files_are_known_by_how_they_begin(sidekiq_sudo, tmp_path):
    ours = sidekiq_sudo.sudoers_text("deploy", ["sidekiq"], ["restart"])
    for name, text in {"old": ours, "new": ours, "other": "# mine\n", "ignored.bak": ours, ".new.new": ours}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "link").symlink_to(tmp_path / "old")
    sidekiq_sudo.__salt__["sidekiq.folder_entries"] = lambda name: sorted(os.listdir(name))
    assert sidekiq_sudo.sudoers_files(str(tmp_path)) == [str(tmp_path / name) for name in ("new", "old")]


def test_the_neighbours_of_a_command_are_asked_for(sidekiq_sudo):
    assert sidekiq_sudo._neighbours([["/a/b"], ["/a/c"]]) == [
        ["/bin/sh"],
        ["/a/b", "x"],
        ["/a/b", ""],
        ["/a/b-other"],
        ["/a/c", "x"],
        ["/a/c", ""],
        ["/a/c-other"],
    ]
    both = sidekiq_sudo._neighbours([["/s", "restart", "u"], ["/a/b"]])
    assert ["/a/b", "x"] in both and ["/s", "restart", "ssh"] in both and ["restart"] not in both


@pytest.mark.parametrize("verbs", [[], ["status"], ["edit"], ["restart", "ALL"], ["reload"], ["restart ssh"], ["*"]])
def test_only_verbs_that_end_where_they_begin_are_granted(sidekiq_sudo, verbs):
    with pytest.raises(SaltInvocationError, match="Only these verbs can be granted"):
        sidekiq_sudo.sudoers_text("deploy", ["sidekiq"], verbs)


@pytest.mark.parametrize(
    "name", ["sidekiq", "/etc/sudoers.d/a.b", "/etc/sudoers.d/a~", "/etc/sudoers.d/", "/x/.a", "/x/a b"]
)
def test_a_name_that_sudo_ignores_is_refused_before_anything_runs(sidekiq_sudo, name):
    with pytest.raises(SaltInvocationError, match="sudo would ignore"):
        sidekiq_sudo.sudoers_validate("", name)
    assert sidekiq_sudo.calls == []


@pytest.fixture
def etc(tmp_path):
    """A policy as Debian lays it out, with every way to include a file."""
    (tmp_path / "etc/sudoers.d").mkdir(parents=True)
    (tmp_path / "copy").mkdir()
    host = os.uname().nodename.split(".")[0]
    (tmp_path / "etc/sudoers").write_text(
        "Defaults env_reset\n# include nothing\n#includedir sudoers.d\n@include extra-%h\n"
        f'@include "{tmp_path}/with space"\n'
    )
    (tmp_path / f"etc/extra-{host}").write_text("# extra\n")
    (tmp_path / "with space").write_text("# space")
    for name in ("00-first", "zz-last", "ignored.bak", "ignored~", ".deploy.new", "deploy"):
        (tmp_path / "etc/sudoers.d" / name).write_text(f"# {name}\n")
    (tmp_path / "candidate").write_text("# candidate\n")
    return tmp_path


def copied(sidekiq_sudo, etc, name):
    name = str(etc / name)
    copies = sidekiq_sudo._copy_policy(str(etc / "copy"), str(etc / "candidate"), name, root=str(etc / "etc/sudoers"))
    return {os.path.relpath(original, etc): Path(copy).read_text() for copy, original in copies.items()}


def test_the_copy_holds_what_sudo_reads_with_the_candidate_in_place(sidekiq_sudo, etc):
    copies = copied(sidekiq_sudo, etc, "etc/sudoers.d/deploy")
    host = os.uname().nodename.split(".")[0]
    names = ["etc/sudoers", "etc/sudoers.d/00-first", "etc/sudoers.d/deploy", "etc/sudoers.d/zz-last"]
    assert list(copies) == [*names, f"etc/extra-{host}", "with space"]
    assert copies["etc/sudoers.d/deploy"] == "# candidate\n"
    assert str(etc / "etc") not in copies["etc/sudoers"]
    assert re.findall(r"@include \S+/policy/(\d)", copies["etc/sudoers"]) == ["1", "2", "3", "4", "5"]


def test_a_file_that_goes_is_not_in_the_copy(sidekiq_sudo, etc):
    gone = [str(etc / "etc/sudoers.d/00-first")]
    copies = sidekiq_sudo._copy_policy(
        str(etc / "copy"),
        str(etc / "candidate"),
        str(etc / "etc/sudoers.d/deploy"),
        gone,
        root=str(etc / "etc/sudoers"),
    )
    assert not set(gone) & set(copies.values())


def test_the_lines_that_allow_a_command_are_told(sidekiq_sudo, etc):
    (etc / "etc/sudoers.d/00-first").write_text(
        "deploy ALL=(root) \\\n  /a\nDefaults env_reset\n%ops ALL=(x:y) /b, !/c"
    )
    copies = sidekiq_sudo._copy_policy(str(etc / "copy"), mark="deploy", root=str(etc / "etc/sudoers"))
    marked = Path(next(copy for copy, original in copies.items() if original.endswith("00-first"))).read_text()
    number = list(copies.values()).index(str(etc / "etc/sudoers.d/00-first"))
    marks = [f"deploy ALL=/redis_sidekiq/at/{number}/{line}" for line in (2, 3, 4)]
    assert [line for line in marked.splitlines() if "/redis_sidekiq/" in line] == marks
    assert marked.splitlines()[1:3] == ["  /a", marks[0]]

    def spec(*commands, **runas):
        return {"Cmnd_Specs": [{"Commands": [{"command": command} for command in commands], **runas}]}

    policy = {
        "User_Specs": [
            spec("/redis_sidekiq/at/0/1"),
            spec("/a", '/b ""', runasusers=[{"username": "root"}]),
            spec("/redis_sidekiq/at/0/3"),
            spec("/a", runasusers=[{"username": "x"}], runasgroups=[{"usergroup": "y"}]),
            spec("/a"),
            spec("/redis_sidekiq/at/1/1"),
        ]
    }
    places = sidekiq_sudo._read_places(policy, ["/etc/sudoers", "/etc/sudoers.d/x"])
    assert places == {
        ("root", "/a"): ["/etc/sudoers:3", "/etc/sudoers.d/x:1"],
        ("root", '/b ""'): ["/etc/sudoers:3"],
        ("x : y", "/a"): ["/etc/sudoers.d/x:1"],
    }


def test_a_candidate_that_is_new_takes_its_place_in_order(sidekiq_sudo, etc):
    copies = copied(sidekiq_sudo, etc, "etc/sudoers.d/middle")
    assert list(copies)[1:5] == [f"etc/sudoers.d/{name}" for name in ("00-first", "deploy", "middle", "zz-last")]


def test_a_folder_that_nothing_includes_is_told(sidekiq_sudo, etc):
    with pytest.raises(CommandExecutionError, match="sudo would never read"):
        copied(sidekiq_sudo, etc, "elsewhere/deploy")


def test_a_loop_of_includes_ends(sidekiq_sudo, etc):
    (etc / "etc/sudoers").write_text("@include sudoers\n@includedir sudoers.d\n")
    with pytest.raises(CommandExecutionError, match="more than 128 files"):
        copied(sidekiq_sudo, etc, "etc/sudoers.d/deploy")


def test_the_file_to_blame_is_named(sidekiq_sudo):
    copies = {f"/tmp/x/policy/{n}": f"/etc/sudoers.d/f{n}" for n in range(12)}
    sentence = sidekiq_sudo._whole_policy_sentence("/tmp/x/policy/11:1:5: syntax error", copies, "/etc/sudoers.d/f1")
    assert sentence.startswith("The sudo policy is broken by /etc/sudoers.d/f11, not by /etc/sudoers.d/f1")
    assert sentence.endswith("/etc/sudoers.d/f11:1:5: syntax error")
    sentence = sidekiq_sudo._whole_policy_sentence("/tmp/x/policy/1:1:5: syntax error", copies, "/etc/sudoers.d/f1")
    assert sentence.startswith("The sudo policy would break with /etc/sudoers.d/f1")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("was_there", [True, False])
def test_a_sudo_that_does_not_answer_takes_the_change_back(sidekiq_sudo, tmp_path, monkeypatch, was_there):
    name, old = tmp_path / "deploy", tmp_path / "old"
    old.write_text("# Managed by Salt (formula redis_sidekiq)\n")
    if was_there:
        name.write_text("before\n")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    sidekiq_sudo.__salt__ |= {
        "sidekiq.folder_entries": lambda folder: sorted(os.listdir(folder)),
        "sidekiq.file_facts": lambda path: (
            {"text": Path(path).read_text(), "mode": "0440"} if os.path.exists(path) else {}
        ),
    }
    monkeypatch.setattr(sidekiq_sudo, "sudoers_validate", lambda text, name, gone: None)
    sidekiq_sudo.answers = [{"retcode": 1, "stdout": "", "stderr": "sudo: a parse error"}]
    with pytest.raises(CommandExecutionError, match="as it was before: sudo does not answer about nobody"):
        sidekiq_sudo.sudoers_write(str(name), "nobody", ["sidekiq"], ["restart"])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def rule(command, runas="root", tags=("NOPASSWD",)):
    return {"runas": runas, "tags": list(tags), "command": command}


@pytest.mark.parametrize("version", ["1.9.13p3", "1.9.16p2"])
def test_what_sudo_lists_is_read(sidekiq_sudo, version):
    rules = sidekiq_sudo._read_sudo_rules(recorded(f"sudo-l-{version}.txt"))
    assert rules == [
        rule("/usr/bin/apt-get update", tags=[]),
        rule("/bin/ls"),
        rule(r"/bin/echo a\, b"),
        rule("/bin/date", tags=["NOPASSWD", "NOEXEC"]),
        rule("/bin/who", tags=["NOEXEC", "PASSWD"]),
        rule("ALL", runas="www-data : adm", tags=[]),
        rule("/usr/bin/systemctl restart sidekiq"),
        rule("/usr/bin/systemctl restart sidekiq.service"),
    ]
    assert sidekiq_sudo._read_sudo_rules(recorded(f"sudo-l-{version}-none.txt")) == []


def test_a_check_tells_what_is_missing_and_what_is_beyond(sidekiq_sudo):
    systemctl = os.path.realpath("/usr/bin/systemctl")
    sidekiq_sudo.answers = [
        "User deploy may run the following commands on h:\n"
        f"    (root) NOPASSWD: {systemctl} restart sidekiq\n"
        f"    (root) {systemctl} restart sidekiq.service\n"
        f"    (www-data) NOPASSWD: {systemctl} restart sidekiq\n"
    ]
    check = sidekiq_sudo.sudo_check("deploy", thorough=False)
    assert check["missing"] == [f"{systemctl} restart sidekiq.service"]
    assert check["beyond"] == [rule(f"{systemctl} restart sidekiq", runas="www-data")]
    assert len(sidekiq_sudo.calls) == 1


def test_a_check_knows_commands_by_the_spelling_of_sudo(sidekiq_sudo):
    sidekiq_sudo.answers = [
        "User deploy may run the following commands on h:\n"
        '    (root) NOSETENV: EXEC: NOPASSWD: /a/b ""\n'
        "    (root) NOPASSWD: /a/c\n"
    ]
    check = sidekiq_sudo.sudo_check("deploy", [], [], ["/a/b", "/a/c"], thorough=False)
    assert check["missing"] == ['/a/c ""']
    assert [found["command"] for found in check["beyond"]] == ["/a/c"]
