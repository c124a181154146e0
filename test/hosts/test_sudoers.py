"""What the deploy user may do on a real host, what he may not, and that a bad policy never lands."""

from __future__ import annotations

import json
import re

import pytest

from test.hosts.harness import packages
from test.hosts.harness.host import Host
from test.hosts.lab import FILE_ROOT, StateRun, apply_locally, cut_off, make_masterless, put_pillar, salt_call
from test.wrong_pillars import SUDO

FILE = "/etc/sudoers.d/sidekiq-deploy"
SYSTEMCTL = "/usr/bin/systemctl"

on_both = pytest.mark.parametrize("image", ["bookworm", "trixie"])
# What is about our own files rather than about sudo is tried on one image, on both by `make soak`.
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
            host.run(["ln", "-s", "sidekiq.service", "/etc/systemd/system/sidekiq-alias.service"])
            host.write("/etc/systemd/system/sidekiq@.service", unit)
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
    "systemctl restart sidekiq-alias",
    "systemctl restart sidekiq@1",
    "systemctl restart sidekiq@.service",
    "systemctl restart sidekiq.service.d",
    "systemctl restart sidekiq.socket",
    "systemctl restart /etc/systemd/system/sidekiq.service",
    "systemctl restart ./sidekiq",
    "systemctl restart Sidekiq",
    "systemctl restart sidekiq\\x2eservice",
    "systemctl restart sidekiq?service",
    "systemctl restart {sidekiq,other}",
    "systemctl restart --now sidekiq",
    "systemctl restart sidekiq --now",
    "systemctl restart -t service sidekiq",
    "systemctl -H root@localhost restart sidekiq",
    "systemctl -M .host restart sidekiq",
    "systemctl --user restart sidekiq",
    "systemctl --image=/tmp/x restart sidekiq",
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
    "systemctl revert sidekiq",
    "systemctl add-wants sidekiq other",
    "systemctl bind sidekiq /bin /srv",
    "systemctl import-environment LD_PRELOAD",
    "systemd-run --pipe id",
    "run0 id",
    "machinectl shell",
    "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager Reexecute",
    "journalctl -u sidekiq",
    "sh -c id",
    "bash",
    "env systemctl restart sidekiq",
    "tee /etc/sudoers.d/more",
    "visudo",
    "su -",
]


ATTEMPTS = r"""
set -f
while IFS= read -r command; do
    said=$(sudo -n $command 2>&1 </dev/null)
    printf '%s\t%s\t%s\n' "$?" "$command" "$said"
done
"""


@on_both
def test_nothing_beyond_is_allowed(host):
    """By sudo itself, not by the program that it would have run."""
    before = pid(host, "other"), pid(host, "sidekiq")
    script = f"{ATTEMPTS.strip()} <<'END'\n" + "\n".join(BEYOND) + "\nEND\n"
    done = host.run(["bash", "-s"], user="deploy", input=script)
    answers = [line.split("\t") for line in done.stdout.splitlines()]
    assert [command for _, command, _ in answers] == BEYOND
    no = re.compile("a password is required|not allowed|command not found")
    assert [answer for answer in answers if answer[0] == "0" or not no.search(answer[2])] == []
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
    "a variable of his own, kept by name": "SYSTEMD_PAGER=id sudo -n --preserve-env=SYSTEMD_PAGER systemctl restart sidekiq",
    "an editor of his for systemctl": "SYSTEMD_EDITOR='sh -c id' sudo -n systemctl edit sidekiq",
    "a terminal and an editor": "EDITOR=id script -qec 'sudo -n systemctl edit --full sidekiq' /dev/null",
    "a terminal and a pager": "PAGER='sh -c id' script -qec 'sudo -n systemctl status sidekiq' /dev/null",
    "a user by the number -1": "sudo -n -u#-1 systemctl restart sidekiq",
    "a user by the number 2^32-1": "sudo -n -u#4294967295 systemctl restart sidekiq",
    "root's group": "sudo -n -g root systemctl restart sidekiq",
    "root and another group": "sudo -n -u root -g shadow systemctl restart sidekiq",
    "another host": "sudo -n -h elsewhere systemctl restart sidekiq",
    "open descriptors": "sudo -n -C 9 systemctl restart sidekiq",
    "sudoedit": "sudoedit -n /etc/systemd/system/sidekiq.service",
    "sudo by the name sudoedit": "exec -a sudoedit sudo -n systemctl restart sidekiq",
    "a link to the unit": "ln -sf /etc/systemd/system/other.service ~/sidekiq; cd; sudo -n systemctl restart ./sidekiq",
    "a unit of his own": "cp /etc/systemd/system/other.service ~; sudo -n systemctl link ~/other.service",
    "a folder named as the unit": "mkdir -p ~/sidekiq.service; cd; sudo -n systemctl restart ~/sidekiq.service",
    "systemctl without sudo": "systemctl --no-ask-password restart other",
    "the bus without sudo": "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 "
    "org.freedesktop.systemd1.Manager RestartUnit ss other.service replace",
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


RACE = """
mkdir -p ~/b; printf '#!/bin/sh\\nid -u >> /tmp/raced\\n' > ~/b/systemctl; chmod +x ~/b/systemctl
(while :; do ln -sfn ~/b ~/flip; ln -sfn /usr/bin ~/flip; done) &
for n in $(seq 80); do sudo -n ~/flip/systemctl stop sidekiq; done
kill $!
"""


@on_both
def test_a_race_does_not_help(host):
    """sudo runs the program that the policy names, not what stands at his path by then (fdexec in sudoers(5))."""
    as_deploy(host, "bash", "-c", RACE)
    assert "0" not in host.run(["sh", "-c", "cat /tmp/raced 2>/dev/null"], check=False).stdout.split()
    assert pid(host) == "0"
    host.run(["systemctl", "start", "sidekiq"])


@on_one
def test_a_group_may_do_the_same(host):
    host.run(["sh", "-c", "groupadd -f ops; id ops1 >/dev/null 2>&1 || useradd -G ops ops1"])
    assert apply(host, test=True, group="ops")["result"] is None
    assert apply(host, group="ops")["result"] is True
    assert apply(host, group="ops")["changes"] == {}
    allowed = [
        host.run(["sudo", "-n", *command.split()], user="ops1", check=False).returncode == 0
        for command in ("systemctl restart sidekiq", "systemctl restart other", "systemctl edit sidekiq", "sh")
    ]
    assert allowed == [True, False, False, False]
    assert apply(host)["result"] is True
    assert host.run(["sudo", "-n", "systemctl", "restart", "sidekiq"], user="ops1", check=False).returncode != 0
    assert apply(host, group="nobody-such")["result"] is False


@on_one
def test_a_renamed_file_user_or_unit_leaves_no_rule_behind(host):
    host.run(["sh", "-c", "id deployer >/dev/null 2>&1 || useradd -m deployer"])
    host.write("/etc/sudoers.d/mine", "# not the formula's\n", mode=0o440)
    new = {"name": "/etc/sudoers.d/sidekiq-new", "user": "deployer", "units": ["other"]}
    ret = apply(host, test=True, **new)
    assert (ret["result"], ret["changes"]["removed"], host.exists(FILE)) == (None, [FILE], True)
    ret = apply(host, **new)
    assert (ret["result"], ret["changes"]["removed"]) == (True, [FILE])
    assert host.run(["ls", "-A", "/etc/sudoers.d"]).stdout.split() == ["README", "mine", "sidekiq-new"]
    assert "is not allowed to run sudo" in host.run(["sudo", "-l", "-U", "deploy"], check=False).stdout
    for unit, code in (("other", 0), ("sidekiq", 1)):
        assert host.run(["sudo", "-n", "systemctl", "restart", unit], user="deployer", check=False).returncode == code
    assert apply(host, **new)["changes"] == {}


@on_one
def test_the_old_file_stays_when_the_new_one_is_not_as_meant(host):
    before = host.run(["cat", FILE]).stdout
    host.write("/etc/sudoers.d/00-first", "deploy ALL=(ALL) NOPASSWD: ALL\n", mode=0o440)
    assert apply(host, name="/etc/sudoers.d/sidekiq-new")["result"] is False
    assert host.run(["cat", FILE]).stdout == before
    assert not host.exists("/etc/sudoers.d/sidekiq-new")


WEAK = """
groupadd -f docker && usermod -aG docker deploy
mkdir -p /etc/systemd/system/sidekiq.service.d /srv/env /srv/app /etc/polkit-1/rules.d && chown deploy /srv/env /srv/app
printf '[Service]\nEnvironmentFile=-/srv/env/x\nWorkingDirectory=/srv/app\nExecStartPre=-+/srv/bin/pre 1\n' \
    > /etc/systemd/system/sidekiq.service.d/a.conf
mkdir -p /srv/bin && touch /srv/bin/pre && chmod 777 /srv/bin
chown deploy /etc/systemd/system/sidekiq.service.d
echo '// org.freedesktop.systemd1.manage-units "deploy"' > /etc/polkit-1/rules.d/50-deploy.rules
echo 'deploy ALL=(ALL) NOPASSWD: /bin/ls' > /etc/sudoers.d/00-first
install -o deploy /dev/null /usr/local/sbin/sidekiq-deployed-shop
systemctl daemon-reload
"""
MEND = """
gpasswd -d deploy docker
rm -rf /etc/systemd/system/sidekiq.service.d /srv/env /srv/app /srv/bin /etc/polkit-1/rules.d/50-deploy.rules
rm -f /etc/sudoers.d/00-first /usr/local/sbin/sidekiq-deployed-shop
systemctl daemon-reload
"""


@on_one
def test_other_ways_to_gain_more_are_told(host):
    ask = ["sidekiq.sudo_risks", "deploy", "units=[sidekiq]", "commands=[/usr/local/sbin/sidekiq-deployed-shop]"]
    assert salt_call(host, *ask) == []
    host.run(["sh", "-ec", WEAK])
    try:
        risks = salt_call(host, *ask)
        host.run(["rm", "/etc/sudoers.d/00-first"])
        warned = apply(host)
        refused = apply(host, strict=True, verbs=["restart"])
    finally:
        host.run(["sh", "-c", MEND])
    folder = "/etc/systemd/system/sidekiq.service.d"
    assert {(risk["what"], risk["path"]) for risk in risks} == {
        ("group", "docker"),
        ("sudo rule", "/etc/sudoers.d/00-first:1"),
        ("polkit rule", "/etc/polkit-1/rules.d/50-deploy.rules"),
        ("command", "/usr/local/sbin/sidekiq-deployed-shop"),
        ("unit file", f"{folder}/a.conf"),
        ("drop-in folder", folder),
        ("environment file", "/srv/env/x"),
        ("folder", "/srv/app"),
        ("program", "/srv/bin/pre"),
    }
    assert all(risk["why"] and risk["remedy"] for risk in risks)
    assert (warned["result"], warned["changes"], len(warned["warnings"])) == (True, {}, 7)
    assert (refused["result"], refused["changes"]) == (False, {})
    assert "could gain more than sudo lets him do, so nothing was changed" in refused["comment"]
    assert not apply(host, strict=True).get("warnings")


@on_both
def test_a_check_says_what_he_may_and_what_not_and_which_line_says_so(host):
    host.write(
        "/etc/sudoers.d/zz-alias",
        f"User_Alias D = nobody, \\\n  deploy\nCmnd_Alias C = {SYSTEMCTL} restart ssh\n\nD ALL=(root) C\n",
        mode=0o440,
    )
    check = salt_call(host, "sidekiq.sudo_check", "deploy", "units=[sidekiq]", "verbs=[restart]", "commands=[]")
    where = {rule["command"]: rule["where"] for rule in check["rules"]}
    assert where[f"{SYSTEMCTL} restart sidekiq"] == [f"{FILE}:3"]
    assert where[f"{SYSTEMCTL} restart ssh"] == ["/etc/sudoers.d/zz-alias:5"]
    assert set(check["may"]) == {f"{SYSTEMCTL} restart {unit}" for unit in ("sidekiq", "sidekiq.service", "ssh")}
    assert {f"{SYSTEMCTL} edit sidekiq", f"{SYSTEMCTL} restart *", "/bin/sh"} <= set(check["may_not"])


@on_both
def test_his_environment_does_not_reach_systemctl(host):
    talkative = host.run(["sh", "-c", "SYSTEMD_LOG_LEVEL=debug systemctl restart other"])
    assert talkative.stderr
    done = as_deploy(host, "sh", "-c", "SYSTEMD_LOG_LEVEL=debug sudo -n systemctl restart sidekiq")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@on_one
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
    "a group with a percent sign": {"group": "%sudo"},
    "a group and more": {"group": "ops,ALL"},
    "a user by number": {"user": "#0"},
    "a name that only looks like his": {"user": "depl\u043ey"},
    "a line that goes on": {"user": "deploy\\"},
    "a command with any argument": {"commands": ["/bin/ls *"]},
    "a command that is a list": {"commands": ["/bin/ls, ALL"]},
    "a user that is not there": {"user": "nobody-such"},
    "a name with a dot": {"name": "/etc/sudoers.d/sidekiq.deploy"},
    "a name with a tilde": {"name": "/etc/sudoers.d/sidekiq~"},
    "a folder that is not included": {"name": "/etc/sudoers.x/sidekiq"},
}


@on_one
@pytest.mark.parametrize("test", [True, False])
def test_a_wrong_wish_never_lands_and_the_old_file_stays(host, test):
    """Each of them, in one run."""
    before = host.run(["sh", "-c", LOOK]).stdout
    good = {"name": FILE, "user": "deploy", "units": ["sidekiq"], "verbs": ["restart", "start", "stop"]}
    wishes = {kind: [{key: value} for key, value in {**good, **wrong}.items()] for kind, wrong in WRONG.items()}
    states = {kind: {"sidekiq.sudoers": wish} for kind, wish in wishes.items()}
    host.write(f"{FILE_ROOT}/wrong.sls", "#!json\n" + json.dumps(states))
    run = apply_locally(host, "wrong", test=test)
    # A run may make the user before it comes to the state.
    expected = set(WRONG) - ({"a user that is not there"} if test else set())
    assert expected <= {kind for kind, said in run.failed.items() if said} and len(run.states) == len(WRONG), run
    assert host.run(["sh", "-c", LOOK]).stdout == before
    assert as_deploy(host, "sudo", "-n", "systemctl", "restart", "sidekiq").returncode == 0


@on_one
def test_a_wrong_pillar_leaves_the_old_policy_in_force(host):
    """Some of those that test/unit has all of: refused before any state, with the key."""
    before = host.run(["sh", "-c", LOOK]).stdout
    for kind, wrong, words in SUDO[:: len(SUDO) // 6]:
        put_pillar(host, wrong)
        run = StateRun.parse(salt_call(host, "state.apply", "redis_sidekiq", check=False))
        assert not run.states and words[0] in "\n".join(run.errors), kind
        assert host.run(["sh", "-c", LOOK]).stdout == before, kind
    put_pillar(host, {"redis_sidekiq": {}})
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
    "a later rule with a password": (
        "zz-later",
        "deploy ALL=(ALL) ALL\n",
        r"another rule allows \(ALL\) ALL, by \S+zz-later:1",
    ),
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


def cut_off_run(host: Host, last: int, **wish) -> list[str]:
    words = [f"{key}={json.dumps(value)}" for key, value in {"units": ["sidekiq"], **wish}.items()]
    steps = cut_off(host, last, r"start (visudo|sudo) |.*/sudoers", "state.single", "sidekiq.sudoers", *words)
    return [re.sub(r"/tmp/sudoers-\w+", "COPY", step) for step in steps]


CHANGES = {
    "verbs": {"name": FILE, "user": "deploy", "verbs": ["restart"]},
    "file and user": {"name": "/etc/sudoers.d/sidekiq-new", "user": "deployer", "verbs": ["restart"]},
}


@on_one
@pytest.mark.parametrize(
    ("change", "short"), [("verbs", True), *(pytest.param(change, False, marks=pytest.mark.soak) for change in CHANGES)]
)
def test_a_change_that_is_cut_off_leaves_the_old_policy_or_the_new_one(host, change, short):
    """Before each step; in short before the rename, and before sudo is asked what it says then."""
    host.run(["sh", "-c", "id deployer >/dev/null 2>&1 || useradd -m deployer"])
    wish = CHANGES[change]

    def policy() -> list[str]:
        return [host.run(["sudo", "-l", "-U", user], check=False).stdout for user in ("deploy", "deployer")]

    old = policy()
    steps = cut_off_run(host, 0, **wish)
    new = policy()
    assert old != new and len(steps) > 20, steps
    base = wish["name"].rpartition("/")[2]
    landed = steps.index(f"move {wish['name']}") + 1
    asked = next(at for at, step in enumerate(steps, 1) if at > landed and step.startswith("start sudo "))
    for last in (landed, asked) if short else range(1, len(steps) + 1):
        assert apply(host)["result"] is True
        assert policy() == old
        assert cut_off_run(host, last, **wish) == steps[:last]
        # A renamed file is there before the old one goes: never is nobody allowed, for a moment both are.
        assert all(found in both for found, both in zip(policy(), zip(old, new))), steps[last - 1]
        assert host.run(["visudo", "-c"], check=False).returncode == 0, steps[last - 1]
        assert apply(host, **wish)["result"] is True and policy() == new, steps[last - 1]
        assert apply(host, **wish)["changes"] == {}, steps[last - 1]
        left = host.run(["ls", "-A", "/etc/sudoers.d"]).stdout.split()
        assert left == ["README", base], steps[last - 1]


@on_both
def test_what_sudo_lists_is_understood(host):
    check = salt_call(host, "sidekiq.sudo_check", "deploy", "units=[sidekiq]", "verbs=[restart, start, stop]")
    assert (check["missing"], check["beyond"], len(check["rules"])) == ([], [], 6)
    check = salt_call(host, "sidekiq.sudo_check", "deploy", "units=[sidekiq, other]", "verbs=[restart]")
    assert check["missing"] == [f"{SYSTEMCTL} restart other", f"{SYSTEMCTL} restart other.service"]
    assert {rule["command"].split()[1] for rule in check["beyond"]} == {"start", "stop"}


@on_one
def test_a_run_that_changes_nothing_asks_sudo_once_and_systemd_once(host):
    if host.run(["which", "strace"], check=False).returncode != 0:
        host.run(["apt-get", "install", "-y", "strace"], timeout=300)
    wish = [f"name={FILE}", "user=deploy", "units=[sidekiq]", "verbs=[restart, start, stop]"]
    _, programs = host.processes_spawned(["salt-call", "--local", "state.single", "sidekiq.sudoers", *wish])
    ours = sorted(argv[0].rpartition("/")[2] for argv in programs if argv[1:] != ["--version"])  # Salt's grains
    assert [name for name in ours if "sudo" in name or name == "systemctl"] == ["sudo", "systemctl"]


@pytest.mark.soak
@pytest.mark.parametrize("image", ["trixie"])
def test_sudo_rs_is_refused_before_any_change(host):
    """It does not take our rules, and would not say what they allow."""
    links = [f"/usr/local/bin/{name}" for name in ("sudo", "visudo")]
    host.run(["dpkg", "-i", packages.sudo_rs()])
    assert (apply(host)["result"], apply(host)["changes"]) == (True, {}), "the package alone changes no sudo"
    before = host.run(["sh", "-c", LOOK]).stdout
    for link in links:
        host.run(["ln", "-s", f"/usr/lib/cargo/bin/{link.rpartition('/')[2]}", link])
    try:
        answers = [apply(host, test=test, **more) for test in (True, False) for more in ({}, {"verbs": ["restart"]})]
    finally:
        host.run(["rm", "-f", *links])
    assert all(answer["result"] is False for answer in answers), answers
    assert all("/usr/local/bin/sudo is sudo-rs 0." in answer["comment"] for answer in answers), answers
    assert host.run(["sh", "-c", LOOK]).stdout == before
    assert apply(host)["changes"] == {}


@on_one
def test_absent_takes_the_right_away(host):
    words = ["state.single", "sidekiq.sudoers_absent", f"name={FILE}"]
    assert next(iter(salt_call(host, *words).values()))["changes"] == {"removed": [FILE]}
    assert as_deploy(host, "sudo", "-n", "systemctl", "restart", "sidekiq").returncode != 0
    assert next(iter(salt_call(host, *words).values()))["changes"] == {}
