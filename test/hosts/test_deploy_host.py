"""A host that deploys: its deploy user sends the events of his own apps to a real master, and can do nothing else."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field

import pytest

from test.hosts.harness.host import Host
from test.hosts.lab import Master, StateRun, put_pillar, wait_for

SHOP, BLOG = (f"/usr/local/sbin/sidekiq-deployed-{app}" for app in ("shop", "blog"))
SUDOERS = "/etc/sudoers.d/sidekiq-deploy"
TAG = "redis_sidekiq/deploy/"
LISTENS = f"{TAG}*-*"  # no app's name: fired until the watcher has seen it


def pillar(*apps: str, **more) -> dict:
    """Return the pillar of a host that deploys."""
    return {"redis_sidekiq": {"roles": ["deploy"], "deploy": {"apps": list(apps)}, **more}}


@dataclass
class Site:
    """A master, its deploy host, the first runs there, and the deploy events that the master's bus has had."""

    master: Master
    host: Host
    touched: bool = True
    announced: StateRun | None = None
    first: StateRun | None = None
    second: StateRun | None = None
    events: list = field(default_factory=list)

    def listen(self) -> None:
        """Read deploy events off the master's bus from now on."""
        watcher = self.master.host.popen(["salt-run", "state.event", f"{TAG}*", "pretty=False"])

        def read() -> None:
            for line in watcher.stdout:
                tag, _, body = line.partition("\t")
                if body:
                    self.events.append((tag, json.loads(body)))

        threading.Thread(target=read, daemon=True).start()
        deadline = time.monotonic() + 30
        while not self.events:
            assert time.monotonic() < deadline, "the watcher of the bus has seen nothing"
            self.master.fire(LISTENS)
        self.heard()

    def heard(self) -> list:
        """Return the events since the last call, once the bus has brought what was sent before."""
        self.master.fire(LISTENS, {"last": True})
        wait_for(lambda: any(event.get("last") for _, event in self.events), 20, "the bus brought no event")
        found = [(tag, event) for tag, event in self.events if tag != LISTENS]
        self.events.clear()
        return found

    def apply(self, wish: dict, sls: str = "redis_sidekiq", test: bool = False) -> StateRun:
        """Run the formula on the deploy host with this pillar."""
        put_pillar(self.master.host, wish)
        return self.master.apply(self.host, sls, test=test)

    def as_deploy(self, *argv: str):
        """Run a command as the deploy user, with no terminal and no password."""
        return self.host.run(list(argv), user="deploy", check=False)


def everything(host: Host) -> str:
    """Return each path below what the formula could touch, with mode, owner and times."""
    where = "/etc /home /root /usr /var/lib/dpkg"
    find = f"find {where} -name __pycache__ -prune -o -printf '%p %m %u %g %s %C@\\n' | sort"
    return host.run(["sh", "-c", find]).stdout


@pytest.fixture(scope="module")
def site(module_hosts):
    """A host that has sudo and knows nothing of the formula, converged with two apps: in test mode, for real, once more.

    With sudo, because where no package is installed nothing else makes Salt see modules that the run itself has synced.
    """
    host = module_hosts("dh-bookworm")
    host.run(["apt-get", "install", "-y", "sudo"], timeout=300)
    site = Site(Master(module_hosts("dm-bookworm"), pillar("shop", "blog")), host)
    site.master.attach(host)
    before = everything(host)
    site.announced = site.master.apply(host, test=True)
    site.touched = everything(host) != before
    site.first = site.master.apply(host)
    site.second = site.master.apply(host)
    site.listen()
    return site


def test_test_mode_announces_and_touches_nothing(site):
    site.announced.assert_ok()
    assert not site.touched
    assert len(site.announced.pending) == 4
    assert set(site.announced.pending) == set(site.first.changed)


def test_a_second_run_changes_nothing(site):
    site.first.assert_ok()
    site.second.assert_unchanged()


def test_the_commands_are_roots_alone(site):
    look = ["stat", "-c", "%U:%G %a %F", SHOP, BLOG, SUDOERS]
    found = site.host.run(look).stdout.splitlines()
    assert found == [f"root:root {mode} regular file" for mode in (755, 755, 440)]
    for path in (SHOP, "/usr/local/sbin/x"):
        assert site.as_deploy("sh", "-c", f"echo id >> {path}").returncode != 0
    assert site.as_deploy("ln", "-sf", "/bin/sh", SHOP).returncode != 0


def test_his_apps_event_reaches_the_master_and_nothing_with_it(site):
    done = site.as_deploy("sudo", "-n", SHOP)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [(tag, event)] = site.heard()
    assert (tag, event["id"], event["data"]) == (f"{TAG}shop", site.host.name, {})


BEYOND = {
    "an argument": f"sudo -n {SHOP} x",
    "an empty argument": f"sudo -n {SHOP} ''",
    "a tag": f"sudo -n {SHOP} redis_sidekiq/deploy/other",
    "another app": "sudo -n /usr/local/sbin/sidekiq-deployed-other",
    "a copy": f"cp {SHOP} ~/sidekiq-deployed-shop && sudo -n ~/sidekiq-deployed-shop",
    "a way around": f"sudo -n /usr/local/sbin/../sbin/{SHOP.rpartition('/')[2]}/../sidekiq-deployed-other",
    "salt-call": "sudo -n salt-call event.send redis_sidekiq/deploy/shop",
    "salt-call without sudo": "salt-call event.send redis_sidekiq/deploy/other",
    "the command without sudo": SHOP,
    "a shell": f"sudo -n sh {SHOP}",
    "a trace": f"sudo -n sh -x {SHOP}",
    "a variable": f"sudo -n SALT_CONFIG_DIR=/tmp {SHOP}",
    "all variables": f"sudo -n -E {SHOP}",
    "another user": f"sudo -n -u nobody {SHOP}",
    "another folder": f"sudo -n -D /tmp {SHOP}",
    "systemctl": "sudo -n systemctl restart ssh",
    "the minion's key": "cat /etc/salt/pki/minion/minion.pem",
    "the folder of keys": "ls /etc/salt/pki/minion",
}


def test_he_can_send_nothing_else_and_read_no_key(site):
    """With ``Defaults setenv``, which would let him keep variables, the command's line still says that he may not."""
    site.host.write("/etc/sudoers.d/00-lax", "Defaults:deploy setenv\n", mode=0o440)
    try:
        ended = {kind: site.as_deploy("sh", "-c", command).returncode for kind, command in BEYOND.items()}
    finally:
        site.host.run(["rm", "/etc/sudoers.d/00-lax"])
    assert [kind for kind, code in ended.items() if code == 0] == []
    assert site.heard() == []


TRICKS = """
mkdir -p ~/bin ~/py/salt ~/conf/.salt && cd ~/conf
for name in salt-call timeout env cd echo fail; do printf '#!/bin/sh\\nid > /tmp/owned\\n' > ~/bin/$name; done
chmod +x ~/bin/*
echo 'open("/tmp/owned", "w")' | tee ~/py/sitecustomize.py ~/py/salt/__init__.py ~/py/json.py > salt.py
echo 'id > /tmp/owned' > ~/rc
echo '{salt-call: {id: another}}' | tee Saltfile > .salt/Saltfile
echo 'master: 192.0.2.1' | tee minion > master
export PATH=~/bin:$PATH LD_PRELOAD=~/py/x.so LD_LIBRARY_PATH=~/py PYTHONPATH=~/py PYTHONHOME=~/py PYTHONINSPECT=1
export PYTHONSTARTUP=~/py/json.py IFS=/ ENV=~/rc BASH_ENV=~/rc PS4='$(id > /tmp/owned)' HOME=~/conf
export SALT_CONFIG_DIR=~/conf SALT_MINION_CONFIG=~/conf/minion SALT_SALTFILE=~/conf/Saltfile SALT_NO_PARSE=all
export LANG=xx TZ=:/etc/shadow CDPATH=~/conf
umask 0
"""


@pytest.mark.parametrize("policy", ["", "Defaults:deploy !env_reset, !secure_path\n"], ids=["reset", "kept"])
def test_his_environment_changes_nothing(site, policy):
    """Not even where the policy keeps the environment: the command begins with an empty one of its own."""
    site.host.write("/etc/sudoers.d/00-lax", policy, mode=0o440)
    try:
        script = f"{TRICKS}\n/usr/bin/sudo -n {SHOP} a\n/usr/bin/sudo -n {SHOP}\n"
        done = site.host.run(["bash", "-s"], user="deploy", input=script, check=False)
    finally:
        site.host.run(["rm", "/etc/sudoers.d/00-lax"])
    assert done.returncode == 0, done.stderr
    [(tag, event)] = site.heard()
    assert (tag, event["id"], event["data"]) == (f"{TAG}shop", site.host.name, {})
    assert not site.host.exists("/tmp/owned")


def test_a_master_that_is_away_is_told_in_time(site):
    """With 4 s in place of 30; the next run of states puts the command right."""
    site.host.run(["sed", "-i", "s/--kill-after=5 30 /--kill-after=5 4 /", SHOP])
    site.master.host.run(["systemctl", "stop", "salt-master"])
    begun = time.monotonic()
    done = site.as_deploy("sudo", "-n", SHOP)
    took = time.monotonic() - begun
    site.master.host.run(["systemctl", "start", "salt-master"])
    site.master.wait_for(site.host)
    sentence = f"The deploy event {TAG}shop was not sent: Salt's master has not answered within 30 s\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)
    assert 4 <= took < 15
    again = site.apply(pillar("shop", "blog")).assert_ok()
    assert list(again.changed) == ["The deploy event of shop has its command"]


def test_a_command_that_others_could_change_is_not_allowed(site):
    site.host.run(["chmod", "g+w", "/usr/local/sbin"])
    try:
        run = site.apply(pillar("shop", "blog"))
    finally:
        site.host.run(["chmod", "g-w", "/usr/local/sbin"])
    comment = run.failed["The deploy user deploy may do by sudo what the settings say, and nothing else"]
    assert comment.endswith("/usr/local/sbin can be written by others than root; `chmod go-w /usr/local/sbin`")


def test_with_the_role_sidekiq_too_one_policy_has_both(site):
    service = {"redis": "", "redis_url": "redis://192.0.2.1/0"}
    both = pillar("shop", "blog", sidekiq={"packages": [], "services": {"sidekiq": service}})
    both["redis_sidekiq"]["roles"].append("sidekiq")
    run = site.apply(both).assert_ok()
    assert "sudo allows deploy these commands and none of their neighbours" in str(run.states)
    site.apply(both).assert_unchanged()
    # salt-call, because the minion itself still has the pillar that it began with.
    check = json.loads(site.host.run(["salt-call", "--out=json", "sidekiq.sudo_check", "deploy"]).stdout)["local"]
    assert (check["missing"], check["beyond"], len(check["rules"])) == ([], [], 8)
    kinds = {("NOEXEC" in rule["tags"], "systemctl" in rule["command"]) for rule in check["rules"]}
    assert kinds == {(True, True), (False, False)}
    done = site.as_deploy("sudo", "-n", "systemctl", "stop", "sidekiq")
    assert (done.returncode, done.stderr) == (0, "")
    assert site.as_deploy("sudo", "-n", BLOG).returncode == 0
    site.apply(both, "redis_sidekiq.sidekiq.clean").assert_ok()


def test_an_app_that_left_the_pillar_loses_right_and_command(site):
    site.apply(pillar("shop", "blog")).assert_ok()
    site.host.run(["sh", "-c", "echo '#!/bin/sh' > /usr/local/sbin/sidekiq-deployed-mine"])
    announced = site.apply(pillar("shop"), test=True).assert_ok()
    assert len(announced.pending) == 2
    assert site.host.exists(BLOG)
    run = site.apply(pillar("shop")).assert_ok()
    assert set(run.changed) == set(announced.pending)
    assert site.host.run(["ls", "/usr/local/sbin"]).stdout.split() == ["sidekiq-deployed-mine", "sidekiq-deployed-shop"]
    assert BLOG not in site.host.run(["cat", SUDOERS]).stdout
    assert site.as_deploy("sudo", "-n", BLOG).returncode != 0
    site.apply(pillar("shop")).assert_unchanged()


def test_clean_takes_all_away_but_the_user(site):
    announced = site.apply(pillar("shop"), "redis_sidekiq.clean", test=True).assert_ok()
    assert site.host.exists(SHOP) and site.host.exists(SUDOERS)
    run = site.apply(pillar("shop"), "redis_sidekiq.clean").assert_ok()
    assert set(run.changed) == set(announced.pending)
    assert site.host.run(["ls", "/usr/local/sbin"]).stdout.split() == ["sidekiq-deployed-mine"]
    assert not site.host.exists(SUDOERS)
    assert site.as_deploy("sudo", "-n", SHOP).returncode != 0
    site.apply(pillar("shop"), "redis_sidekiq.clean").assert_unchanged()
