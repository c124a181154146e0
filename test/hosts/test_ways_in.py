"""Ways for the formula to reach a host other than a minion of a master: salt-ssh, git, a tarball; and other lines of Salt."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest

from test.hosts import app
from test.hosts.conftest import host_facts, minimal_pillar
from test.hosts.harness.host import Host
from test.hosts.lab import (
    FILE_ROOT,
    FORMULA,
    PILLAR_ROOT,
    REPO,
    StateRun,
    apply_locally,
    make_masterless,
    put_formula,
    put_pillar,
    salt_call,
    salt_version,
    tarball,
    wait_for,
)

PASSWORD = "known-to-nobody-else-0123"


# salt-ssh ------------------------------------------------------------------------------------------------------------


class SaltSsh:
    """A host from which another one is reached by ssh, with a key of root's; nothing runs there."""

    def __init__(self, host: Host, target: Host) -> None:
        self.host, self.target = host, target
        put_formula(host)
        # Salt's own Python on the host brings along what Debian 12's, which runs Salt there, lacks.
        config = {"thin_extra_mods": "redis,async_timeout", "ssh_log_file": "/var/log/salt/ssh"}
        config |= {"file_roots": {"base": [FILE_ROOT]}, "pillar_roots": {"base": [PILLAR_ROOT]}}
        host.write("/etc/salt/master", json.dumps(config))
        host.write(
            "/etc/salt/roster", json.dumps({"web": {"host": target.address, "user": "root", "priv": "/root/.ssh/key"}})
        )
        host.run(["/opt/salt/bin/pip", "install", "-q", "redis>=5,<7.2"])
        host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/key"])
        target.write("/root/.ssh/authorized_keys", host.run(["cat", "/root/.ssh/key.pub"]).stdout, mode=0o600)

    def apply(self, sls: str = "redis_sidekiq", test: bool = False) -> StateRun:
        words = ["state.apply", sls] + (["test=True"] if test else [])
        done = self.host.run(["/opt/salt/bin/salt-ssh", "-i", "--out=json", "web", *words], check=False, timeout=600)
        returned = json.loads(done.stdout)["web"] if done.stdout.strip() else done.stderr
        return StateRun.parse(returned.get("return", returned) if isinstance(returned, dict) else returned)


def test_salt_ssh(make_host, masterless):
    target = make_host("ssh", image=masterless("bookworm").image)
    # Nothing of a minion is used there.
    target.run(["rm", "-rf", "/etc/salt", FILE_ROOT, PILLAR_ROOT, "/var/cache/salt"])
    far = SaltSsh(make_host("ssh-master"), target)
    pillar = {
        "redis": {**tarball("7.0.15"), "instances": {"6379": {"password": PASSWORD}}},
        "roles": ["redis", "firewall"],
    }

    put_pillar(far.host, {"redis_sidekiq": {"redis": {"verison": "8.0.6"}}})
    assert "redis_sidekiq:redis:verison: unknown key; did you mean 'version'?" in "\n".join(far.apply().errors)

    put_pillar(far.host, {"redis_sidekiq": pillar})
    words = target.popen(
        ["sh", "-c", f"while sleep 0.1; do grep -sla [{PASSWORD[0]}]{PASSWORD[1:]} /proc/[0-9]*/cmdline; done"]
    )
    announced = far.apply(test=True).assert_ok()
    applied = far.apply().assert_ok()
    words.kill()
    assert words.communicate()[0].strip() == ""
    assert applied.changed and set(applied.changed) <= set(announced.pending)
    far.apply().assert_unchanged()
    assert target.run(["env", f"REDISCLI_AUTH={PASSWORD}", "redis-cli", "ping"]).stdout == "PONG\n"

    # The connection in force is the one from the host that runs salt-ssh.
    pillar["firewall"] = {"rules": {"ssh": {"from": ["10.9.9.0/24"]}}}
    put_pillar(far.host, {"redis_sidekiq": pillar})
    (refusal,) = far.apply("redis_sidekiq.firewall").failed.values()
    assert f"would shut out who is logged in by ssh from {far.host.address}" in refusal
    assert host_facts(target)["units"]["ufw.service"]["UnitFileState"] == "enabled"


# git and a tarball ---------------------------------------------------------------------------------------------------


def converged(make_host, masterless, name: str) -> Host:
    """A host that the formula made; nothing of the formula is there but what it made."""
    host = make_host(name, image=masterless("bookworm").image)
    host.run(["rm", "-rf", FILE_ROOT, "/var/cache/salt"])
    return host


def assert_whole(host: Host) -> None:
    """The main job from where the files are now: a change is made, and then there is nothing to change."""
    pillar = minimal_pillar("bookworm")
    pillar["redis_sidekiq"]["redis"]["instances"] = {"6379": {"maxmemory": "64mb"}}
    put_pillar(host, pillar)
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    assert app.redis(host, "config", "get", "maxmemory").split() == ["maxmemory", str(64 << 20)]


def test_gitfs(make_host, masterless, tmp_path):
    """What is committed, by `gitfs_remotes` of a clone of this very repository, for a minion and for a master's runners."""
    host = converged(make_host, masterless, "git")
    bare = tmp_path / "formula.git"
    subprocess.run(["git", "init", "-q", "--bare", bare], check=True)
    subprocess.run(["git", "-C", REPO, "push", "-q", bare, "HEAD:refs/heads/main"], check=True)
    host.copy_in(bare, "/srv/formula.git")
    host.run(["sh", "-c", "chown -R root: /srv/formula.git && apt-get -qq install -y --no-install-recommends git"])
    config = {
        "fileserver_backend": ["gitfs"],
        "gitfs_provider": "gitpython",
        "gitfs_remotes": ["file:///srv/formula.git"],
        "gitfs_base": "main",
        "pillar_roots": {"base": [PILLAR_ROOT]},
    }
    host.write("/etc/salt/minion.d/lab.conf", json.dumps({**config, "id": host.name, "file_client": "local"}))
    host.write("/etc/salt/master.d/lab.conf", json.dumps(config))
    assert_whole(host)
    assert "redis_sidekiq.check" in salt_call(host, "sys.list_functions", "redis_sidekiq")
    host.run(["systemctl", "start", "salt-master"])
    # A master that starts fetches by itself; while it does, `fileserver.update` skips the remote without a word.
    wait_for(lambda: synced_rollout(host), seconds=60, what="the runner from git")
    assert "sidekiq_rollout.start" in host.run(["salt-run", "-d", "sidekiq_rollout"]).stdout


def synced_rollout(host: Host) -> bool:
    """Bring what git has to the master as docs/support.md says, and return whether the runner of the roll-outs came."""
    host.run(["salt-run", "fileserver.update"])
    return "runners.sidekiq_rollout" in json.loads(host.run(["salt-run", "--out=json", "saltutil.sync_runners"]).stdout)


def test_what_users_download(make_host, masterless, release):
    host = converged(make_host, masterless, "tar")
    version = next(iter(release.versions().values()))
    archive = release.tarball(version)
    assert hashlib.sha256(archive).digest() == hashlib.sha256(release.tarball(version)).digest()
    subprocess.run(host.argv(["tar", "xz", "-C", "/srv"]), input=archive, check=True)
    root = f"/srv/{release.NAME}-{version}"
    assert set(FORMULA) <= set(host.run(["ls", root]).stdout.split())
    host.run(["ln", "-s", root, FILE_ROOT])
    assert_whole(host)


@pytest.fixture
def release():
    from test.unit.test_release import load_release

    return load_release()


# Lines of Salt -------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize(
    ("image", "line"),
    [("bookworm-3006", "3006."), ("bookworm-3007", "3007."), ("bookworm", "3008."), ("trixie", "3008.")],
)
def test_each_line_of_salt_makes_a_bare_host_whole(make_host, image, line):
    """The table of docs/support.md. In the normal run test_converge.py has 3006 and 3008 by a master."""
    host = make_host("line", image=image)
    assert salt_version(host).startswith(line)
    make_masterless(host, {"redis_sidekiq": {"redis": {"verison": "8"}}})
    assert "unknown key; did you mean 'version'?" in "\n".join(apply_locally(host).errors)
    make_masterless(host, minimal_pillar(image))
    announced = apply_locally(host, test=True).assert_ok()
    applied = apply_locally(host).assert_ok()
    assert set(applied.changed) <= set(announced.pending)
    apply_locally(host).assert_unchanged()
