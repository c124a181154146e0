"""What the deploy user may do on a real host, what he may not, and that a bad policy never lands."""

from __future__ import annotations

import json
import re

import pytest
from test.hosts.harness.host import Host
from test.hosts.lab import make_masterless, salt_call

FILE = "/etc/sudoers.d/sidekiq-deploy"
SYSTEMCTL = "/usr/bin/systemctl"

on_both = pytest.mark.parametrize("image", ["bookworm", "trixie"])
# What is about our own file rather than about sudo is tried on one image, in full by `make soak`.
on_one = pytest.mark.parametrize("image", ["bookworm", pytest.param("trixie", marks=pytest.mark.soak)])


@pytest.fixture(scope="module")
def sudo_hosts(module_hosts):
    """Return a function of an image that gives a host with sudo, a deploy user, and a stand-in for Sidekiq's unit."""
    made: dict[str, Host] = {}

    def host_of(image: str) -> Host:
        if image not in made:
            host = module_hosts(f"sudo-{image}", image=image)
            make_masterless(host, {"redis_sidekiq": {}})
            host.run(["apt-get", "install", "-y", "sudo"], timeout=300)
            host.run(["useradd", "-m", "-s", "/bin/bash", "deploy"])
            unit = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sleep infinity\n"
            for name in ("sidekiq", "other", "sidekiq-other"):
                host.write(f"/etc/systemd/system/{name}.service", unit)
            host.run(["systemctl", "daemon-reload"])
            salt_call(host, "saltutil.sync_all")
            made[image] = host
        return made[image]

    return host_of


LOOK = "ls -A /etc/sudoers.d; stat -c '%U:%G %a' /etc/sudoers.d/sidekiq-deploy; cat /etc/sudoers.d/sidekiq-deploy"


@pytest.fixture
def host(sudo_hosts, image):
    """The host with our file in sudoers.d as the state leaves it, and nothing that another test put there."""
    host = sudo_hosts(image)
    if not hasattr(host, "good_policy") or host.run(["sh", "-c", LOOK], check=False).stdout != host.good_policy:
        host.run(["sh", "-c", "cd /etc/sudoers.d && ls -A | grep -v '^README$' | xargs -r rm -f"])
        assert apply(host)["result"] is True
        host.good_policy = host.run(["sh", "-c", LOOK]).stdout
    return host


def apply(host: Host, test: bool = False, **wish) -> dict:
    """Run the state by itself and return what it returned."""
    wish = {"name": FILE, "user": "deploy", "units": ["sidekiq"], "verbs": ["restart", "start", "stop"], **wish}
    words = [f"{key}={json.dumps(value)}" for key, value in wish.items()]
    returned = salt_call(host, "state.single", "sidekiq.sudoers", *words, f"test={test}", check=False)
    assert isinstance(returned, dict), returned
    [ret] = returned.values()
    return ret


def as_deploy(host: Host, *argv: str):
    """Run a command as the deploy user, with no terminal and no password."""
    return host.run(list(argv), user="deploy", check=False)


def pid(host: Host, unit: str = "sidekiq") -> str:
    return host.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()


@on_both
@pytest.mark.parametrize("systemctl", ["systemctl", "/usr/bin/systemctl", "/bin/systemctl"])
@pytest.mark.parametrize("unit", ["sidekiq", "sidekiq.service"])
def test_the_deploy_user_restarts_stops_and_starts_sidekiq(host, systemctl, unit):
    seen = {pid(host)}
    for verb, runs in (("restart", True), ("stop", False), ("start", True)):
        done = as_deploy(host, "sudo", "-n", systemctl, verb, unit)
        assert (done.returncode, done.stderr) == (0, "")
        now = pid(host)
        assert (now != "0") is runs
        assert now not in seen or not runs
        seen.add(now)


@on_both
def test_he_may_do_so_on_a_terminal_too(host):
    before = pid(host)
    done = as_deploy(host, "script", "-qec", "sudo -n systemctl restart sidekiq", "/dev/null")
    assert done.returncode == 0
    assert pid(host) != before


BEYOND = [
    "systemctl",
    "systemctl restart",
    "systemctl restart other",
    "systemctl restart ssh",
    "systemctl restart sidekiq other",
    "systemctl restart sidekiq sidekiq",
    "systemctl restart sidekiq-other",
    "systemctl restart sidekiq.service.service",
    "systemctl restart sidekiq.",
    "systemctl restart side*",
    "systemctl restart *",
    "systemctl restart --all",
    "systemctl restart --no-block sidekiq",
    "systemctl --no-block restart sidekiq",
    "systemctl restart -- sidekiq",
    "systemctl restart sidekiq --host=root@localhost",
    "systemctl --root=/tmp restart sidekiq",
    "systemctl RESTART sidekiq",
    "systemctl status sidekiq",
    "systemctl show sidekiq",
    "systemctl cat sidekiq",
    "systemctl edit sidekiq",
    "systemctl edit --full sidekiq",
    "systemctl enable sidekiq",
    "systemctl disable sidekiq",
    "systemctl mask sidekiq",
    "systemctl kill sidekiq",
    "systemctl kill -s KILL sidekiq",
    "systemctl reload sidekiq",
    "systemctl try-restart sidekiq",
    "systemctl link /tmp/sidekiq.service",
    "systemctl set-property sidekiq CPUQuota=1%",
    "systemctl set-environment LD_PRELOAD=/tmp/x.so",
    "systemctl daemon-reload",
    "systemctl isolate rescue.target",
    "systemctl poweroff",
    "journalctl -u sidekiq",
    "sh -c id",
    "bash",
    "env systemctl restart sidekiq",
    "tee /etc/sudoers.d/more",
    "visudo",
    "su -",
]


@on_both
@pytest.mark.parametrize("command", BEYOND)
def test_nothing_beyond_is_allowed(host, command):
    before = pid(host, "other"), pid(host, "sidekiq")
    done = as_deploy(host, "sudo", "-n", *command.split())
    assert done.returncode != 0
    assert "password is required" in done.stderr or "not allowed" in done.stderr, done.stderr
    assert (pid(host, "other"), pid(host, "sidekiq")) == before


TRICKS = {
    "a systemctl of his own first in PATH": "mkdir -p ~/b; cp /usr/bin/id ~/b/systemctl; PATH=~/b:$PATH sudo -n systemctl restart sidekiq",
    "a systemctl of his own by its path": "cp /usr/bin/id ~/systemctl; sudo -n ~/systemctl restart sidekiq",
    "a link to a shell by that name": "ln -sf /bin/sh ~/systemctl; sudo -n ~/systemctl restart sidekiq",
    "a folder in between": "sudo -n /usr/bin/../bin/sh restart sidekiq",
    "his environment kept": "sudo -n -E systemctl restart sidekiq",
    "a variable of his own": "sudo -n LD_PRELOAD=/tmp/x.so systemctl restart sidekiq",
    "a pager": "sudo -n SYSTEMD_PAGER='sh -c id' systemctl restart sidekiq",
    "another bus": "sudo -n DBUS_SYSTEM_BUS_ADDRESS=unix:path=/tmp/x systemctl restart sidekiq",
    "another user": "sudo -n -u nobody systemctl restart sidekiq",
    "another group": "sudo -n -g adm systemctl restart sidekiq",
    "another folder": "sudo -n -D /tmp systemctl restart sidekiq",
    "another root": "sudo -n -R /tmp systemctl restart sidekiq",
    "a shell": "sudo -n -s",
    "a login shell": "sudo -n -i",
    "a login shell with the words": "sudo -n -i systemctl restart sidekiq",
    "an editor": "sudo -n -e /etc/sudoers.d/sidekiq-deploy",
    "words in one": "sudo -n 'systemctl restart sidekiq'",
    "a line end in the last word": "sudo -n systemctl restart \"$(printf 'sidekiq\\nother')\"",
}


@on_both
@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_do_not_help(host, trick):
    before = pid(host, "other")
    done = as_deploy(host, "bash", "-c", TRICKS[trick])
    assert "uid=0" not in done.stdout + done.stderr
    assert pid(host, "other") == before
    if trick == "a systemctl of his own first in PATH":
        # sudo looks in its own secure_path: this is the plain, allowed restart.
        assert done.returncode == 0
    else:
        assert done.returncode != 0


@on_both
def test_his_environment_does_not_reach_systemctl(host):
    talkative = host.run(["sh", "-c", "SYSTEMD_LOG_LEVEL=debug systemctl restart other"])
    assert talkative.stderr
    done = as_deploy(host, "sh", "-c", "SYSTEMD_LOG_LEVEL=debug sudo -n systemctl restart sidekiq")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@on_both
def test_the_file_is_as_sudo_wants_it_and_a_second_run_changes_nothing(host):
    assert host.run(["stat", "-c", "%U:%G %a", FILE]).stdout.strip() == "root:root 440"
    assert host.run(["ls", "-A", "/etc/sudoers.d"]).stdout.split() == ["README", "sidekiq-deploy"]
    ret = apply(host)
    assert (ret["result"], ret["changes"]) == (True, {})


@on_one
@pytest.mark.parametrize("command", [["chmod", "0644"], ["chown", "deploy"], ["sed", "-i", "s/NOEXEC: //"]])
def test_a_changed_file_is_put_right(host, command):
    host.run([*command, FILE])
    assert apply(host, test=True)["result"] is None
    ret = apply(host)
    assert (ret["result"], bool(ret["changes"])) == (True, True)
    assert apply(host)["changes"] == {}


WRONG = {
    "everything": {"units": ["ALL, ALL"]},
    "a glob": {"units": ["side*"]},
    "two units in one": {"units": ["sidekiq ssh"]},
    "a second line": {"units": ["sidekiq\ndeploy ALL=(ALL) NOPASSWD: ALL"]},
    "an option": {"units": ["--all"]},
    "a verb that opens a pager": {"verbs": ["status"]},
    "a verb that opens an editor": {"verbs": ["restart", "edit"]},
    "a group": {"user": "%sudo"},
    "all users": {"user": "ALL"},
    "an alias": {"user": "DEPLOYERS"},
    "two users": {"user": "deploy,ubuntu"},
    "a user that is not there": {"user": "nobody-such"},
    "a name with a dot": {"name": "/etc/sudoers.d/sidekiq.deploy"},
    "a name with a tilde": {"name": "/etc/sudoers.d/sidekiq~"},
    "a folder that is not included": {"name": "/etc/sudoers.x/sidekiq"},
}


@on_one
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_wish_never_lands_and_the_old_file_stays(host, kind):
    before = host.run(["sha256sum", FILE]).stdout, host.run(["ls", "-A", "/etc/sudoers.d"]).stdout
    ret = apply(host, **WRONG[kind])
    assert ret["result"] is False
    assert ret["comment"]
    if kind != "a user that is not there":
        assert apply(host, test=True, **WRONG[kind])["result"] is False
    assert (host.run(["sha256sum", FILE]).stdout, host.run(["ls", "-A", "/etc/sudoers.d"]).stdout) == before
    assert as_deploy(host, "sudo", "-n", "systemctl", "restart", "sidekiq").returncode == 0


@on_one
@pytest.mark.parametrize("test", [True, False])
def test_another_file_that_breaks_the_policy_is_named(host, test):
    before = host.run(["sha256sum", FILE]).stdout
    host.write("/etc/sudoers.d/zz-broken", "deploy ALL=(root NOPASSWD\n", mode=0o440)
    ret = apply(host, test=test, verbs=["restart"])
    assert ret["result"] is False
    assert "The sudo policy is broken by /etc/sudoers.d/zz-broken, not by" in ret["comment"]
    assert "/etc/sudoers.d/zz-broken:1:" in ret["comment"]
    assert host.run(["sha256sum", FILE]).stdout == before


OVERRULED = {
    "a later denial": ("zz-later", f"deploy ALL=(root) !{SYSTEMCTL}\n", "is not allowed without a password|is refused"),
    "a later rule with a password": ("zz-later", "deploy ALL=(ALL) ALL\n", r"another rule allows \(ALL\) ALL"),
    "an earlier rule that allows all": (
        "00-first",
        "deploy ALL=(ALL) NOPASSWD: ALL\n",
        r"another rule allows \(ALL\) ALL",
    ),
    "a rule about another unit": (
        "00-first",
        f"deploy ALL=(root) NOPASSWD: {SYSTEMCTL} restart ssh\n",
        r"another rule allows \(root\) /usr/bin/systemctl restart ssh",
    ),
}


@on_one
@pytest.mark.parametrize("kind", OVERRULED)
def test_a_policy_that_says_otherwise_takes_the_change_back(host, kind):
    name, text, sentence = OVERRULED[kind]
    before = host.run(["cat", FILE]).stdout
    host.write(f"/etc/sudoers.d/{name}", text, mode=0o440)
    ret = apply(host, verbs=["restart"])
    assert ret["result"] is False
    assert "is as it was before" in ret["comment"]
    assert re.search(sentence, ret["comment"]), ret["comment"]
    assert host.run(["cat", FILE]).stdout == before
    # Nothing of ours to change, and still not as meant: said in a run that changes nothing, too.
    ret = apply(host)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert f"/etc/sudoers.d/{name}" in host.run(["sh", "-c", "ls /etc/sudoers.d/*"]).stdout


@on_one
def test_a_file_that_was_not_there_goes_again(host):
    host.run(["rm", FILE])
    host.write("/etc/sudoers.d/00-first", "deploy ALL=(ALL) NOPASSWD: ALL\n", mode=0o440)
    assert apply(host)["result"] is False
    assert host.run(["test", "-e", FILE], check=False).returncode != 0


@on_both
def test_what_sudo_lists_is_understood(host):
    check = salt_call(host, "sidekiq.sudo_check", "deploy", "units=[sidekiq]", "verbs=[restart, start, stop]")
    assert (check["missing"], check["beyond"], len(check["rules"])) == ([], [], 6)
    check = salt_call(host, "sidekiq.sudo_check", "deploy", "units=[sidekiq, other]", "verbs=[restart]")
    assert check["missing"] == [f"{SYSTEMCTL} restart other", f"{SYSTEMCTL} restart other.service"]
    assert {rule["command"].split()[1] for rule in check["beyond"]} == {"start", "stop"}


@on_both
def test_a_run_that_changes_nothing_asks_sudo_once(host):
    trace = "strace -f -qq -e trace=execve -e signal=none -o /tmp/trace"
    if host.run(["which", "strace"], check=False).returncode != 0:
        host.run(["apt-get", "install", "-y", "strace"], timeout=300)
    words = f"state.single sidekiq.sudoers name={FILE} user=deploy units='[sidekiq]' verbs='[restart,start,stop]'"
    host.run(["sh", "-c", f"{trace} salt-call --local {words} >/dev/null"])
    ran = [line for line in host.run(["cat", "/tmp/trace"]).stdout.splitlines() if line.endswith("= 0")]
    assert len([line for line in ran if '/sudo"' in line]) == 1
    assert not [line for line in ran if "visudo" in line]


@on_both
def test_absent_takes_the_right_away(host):
    words = ["state.single", "sidekiq.sudoers_absent", f"name={FILE}"]
    assert next(iter(salt_call(host, *words).values()))["changes"] == {"removed": [FILE]}
    assert as_deploy(host, "sudo", "-n", "systemctl", "restart", "sidekiq").returncode != 0
    assert next(iter(salt_call(host, *words).values()))["changes"] == {}
