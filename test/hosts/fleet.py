"""A fleet: a master, a Redis host, and app servers whose Sidekiq works what is in that Redis.

Used by the tests of roll-outs and their benchmark; standard library only.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from test.hosts import app
from test.hosts.harness.host import Host
from test.hosts.lab import REPO, Master, apply_locally, make_masterless, put_pillar, tarball, wait_for

PASSWORD = "correct-horse-battery-staple"
SECRET = "a-secret-that-is-long-enough"
SECRET_FILE = "/etc/salt/app.secret"
CONFIG = "/etc/salt/master.d/redis_sidekiq.conf"
REACTOR = [
    {"redis_sidekiq/deploy/*": ["salt://redis_sidekiq/reactor/deploy.sls"]},
    {"salt/netapi/hook/redis_sidekiq/deploy/*": ["salt://redis_sidekiq/reactor/webhook.sls"]},
]


class Fleet:
    """Hosts of one app, as their pillar and the master's configuration make them.

    Args:
        boot: ``boot(name, image)`` gives a running host.
        image: the image of a host that the formula made with the minimal pillar.
        names: names of the app servers.
        apps: names of apps beside ``app``, each with the names of its hosts.
        deployer: whether there is a host too that Capistrano runs on.
        prefix: what the names of the other hosts begin with.
        bare: the image of the master.
    """

    def __init__(
        self,
        boot: Callable[[str, str], Host],
        image: str,
        names: list[str],
        apps: dict[str, list[str]] | None = None,
        deployer: bool = False,
        prefix: str = "f",
        bare: str = "bookworm",
    ) -> None:
        wanted = [(f"{prefix}-master", bare), (f"{prefix}-redis", image), *((name, image) for name in names)]
        wanted += [(f"{prefix}-deploy", bare)] if deployer else []
        with ThreadPoolExecutor(4) as pool:
            host, self.redis, *others = pool.map(lambda words: boot(*words), wanted)
        self.servers, self.deployer = others[: len(names)], others[-1] if deployer else None
        apps = {"app": names, **(apps or {})}
        self.apps = {name: {"minions": minions, "secret_file": SECRET_FILE} for name, minions in apps.items()}
        host.write(CONFIG, self.config())
        host.write(SECRET_FILE, SECRET, mode=0o600)
        self.master = Master(host, {})
        self.make_redis()
        self.put_pillars()
        self.master.attach(*others)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self.make_server, self.servers))
        if self.deployer:
            self.make_deployer(self.deployer)

    # Making

    @property
    def url(self) -> str:
        """The Redis of all servers."""
        return f"redis://:{PASSWORD}@{self.redis.address}:6379/0"

    def config(self, **settings: object) -> str:
        """The master's configuration: the reactor, and each app with more of its settings."""
        apps = {name: {**entry, **settings} for name, entry in self.apps.items()}
        return json.dumps({"reactor": REACTOR, "redis_sidekiq": {"apps": apps}})

    def configure_apps(self, **settings: object) -> None:
        """Give each app more settings. Roll-outs read the configuration anew; what the reactor knows stays."""
        self.master.host.write(CONFIG, self.config(**settings))

    def make_redis(self) -> None:
        """A Redis that the app servers reach, and nobody else."""
        instance = {
            "bind": ["127.0.0.1", self.redis.address],
            "password": PASSWORD,
            "allow_from": [server.address for server in self.servers],
        }
        pillar = {"roles": ["redis", "firewall"], "redis": {**tarball("7.0.15"), "instances": {"6379": instance}}}
        make_masterless(self.redis, {"redis_sidekiq": pillar})
        self.redis.run(["systemctl", "disable", "--now", "sidekiq"])
        apply_locally(self.redis).assert_ok()

    def put_pillars(self) -> None:
        """One pillar for each app server: Sidekiq alone, and where its Redis is."""
        settings = app.sidekiq_pillar(concurrency=5, redis_url=self.url)["redis_sidekiq"]
        pillars = {server.name: settings for server in self.servers}
        if self.deployer:
            pillars[self.deployer.name] = {"roles": ["deploy"], "deploy": {"apps": ["app"]}}
        text = f"#!py\nPILLARS = {pillars!r}\n\ndef run():\n    return {{'redis_sidekiq': PILLARS.get(__grains__['id'], {{}})}}\n"
        put_pillar(self.master.host, text)

    def make_server(self, server: Host) -> None:
        """An app server in its first release, with no Redis of its own."""
        app.release(server, "1")
        self.master.apply(server).assert_ok()
        server.run(["systemctl", "disable", "--now", "redis_6379"])

    def make_deployer(self, host: Host) -> None:
        """A host with the app's git repository, Capistrano, and a deploy user who may log in to the app servers."""
        self.master.apply(host).assert_ok()
        for each in (host, *self.servers):
            each.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", "git"])
        host.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", "capistrano", "openssh-client"])
        host.run(["install", "-d", "-o", "deploy", "/srv/git", "/srv/cap", "/srv/work"])
        host.copy_in(REPO / "test/capistrano", "/srv/cap")
        host.copy_in(REPO / "docs/examples/capistrano/redis_sidekiq.rake", "/srv/cap/redis_sidekiq.rake")
        host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/home/deploy/.ssh/id_ed25519"], user="deploy")
        key = host.run(["cat", "/home/deploy/.ssh/id_ed25519.pub"]).stdout
        for server in self.servers:
            server.write("/home/deploy/.ssh/authorized_keys", key)
            server.run(["chown", "-R", "deploy:", "/home/deploy/.ssh"])
        host.run(["git", "init", "-q", "--bare", "-b", "main", "/srv/git/app.git"], user="deploy")
        host.run(["git", "clone", "-q", "/srv/git/app.git", "/srv/work"], user="deploy")
        daemon = ["git", "daemon", "--export-all", "--base-path=/srv/git", "--reuseaddr"]
        host.run(["systemd-run", "--uid=deploy", "--unit=git-daemon", *daemon])

    # Acting

    def commit(self, subject: str, ruby: str = "") -> None:
        """Commit the app as it is in the tree, with a line added to its worker file, and push it."""
        host, git = self.deployer, ["git", "-C", "/srv/work", "-c", "user.name=d", "-c", "user.email=d@localhost"]
        host.copy_in(REPO / "test/app", "/srv/work")
        host.write("/srv/work/CHANGES", subject)
        if ruby:
            host.run(["sh", "-c", "cat >> /srv/work/worker.rb"], input=ruby + "\n")
        host.run(["chown", "-R", "deploy:", "/srv/work"])
        host.run([*git, "add", "-A"], user="deploy")
        host.run([*git, "commit", "-q", "-m", subject], user="deploy")
        host.run([*git, "push", "-q", "origin", "HEAD:main"], user="deploy")

    def cap(self, *words: str) -> str:
        """Run Capistrano as the deploy user and return what it printed."""
        addresses = " ".join(server.address for server in self.servers)
        environment = [f"APP_SERVERS={addresses}", f"APP_REPOSITORY=git://{self.deployer.address}/app.git"]
        argv = ["env", "LANG=C.UTF-8", *environment, "sh", "-c", 'cd /srv/cap && exec cap "$@"', "cap", *words]
        return self.deployer.run(argv, user="deploy", timeout=300).stdout

    def deploy(self, name: str, ruby: str = "", servers: list[Host] | None = None) -> None:
        """Put a release on servers, as a deployment without a restart does."""
        for server in servers or self.servers:
            app.release(server, name, ruby)

    def redis_cli(self, *words: str) -> str:
        """Run one Redis command on the Redis host and return the answer."""
        argv = ["env", f"REDISCLI_AUTH={PASSWORD}", "redis-cli", *words]
        return self.redis.run(argv).stdout.strip()

    def releases(self) -> dict[str, str]:
        """Host -> name of the release that its Sidekiq process works in; empty while there is none."""

        def release(server: Host) -> str:
            return server.run(["readlink", f"/proc/{app.main_pid(server)}/cwd"], check=False).stdout.strip()

        return {server.name: release(server).rpartition("/")[2] for server in self.servers}

    def pids(self) -> dict[str, str]:
        """Host -> main process of its Sidekiq."""
        return {server.name: app.main_pid(server) for server in self.servers}

    # Roll-outs

    def show(self, name: str = "app") -> dict:
        """What the master knows of the app's roll-outs."""
        return self.master.runner("sidekiq_rollout.show", name)[name]

    def roll(self, name: str = "app") -> dict:
        """Roll out by hand and return the record."""
        return self.master.runner("sidekiq_rollout.start", name, check=False)

    def wait_idle(self, name: str = "app", seconds: float = 300) -> dict:
        """Wait until nothing rolls and nothing waits; returns the last record."""
        found: dict = {}

        def is_idle() -> bool:
            found.update(self.show(name))
            idle = found["state"] == "idle" and not found["waiting"]
            if not idle:
                time.sleep(2)  # each look is a program that takes a second of the master's time
            return idle

        wait_for(is_idle, seconds, f"the end of {name}'s roll-outs")
        return found["last"]

    @contextlib.contextmanager
    def events(self, pattern: str) -> Iterator[list]:
        """The events of the master's bus that match, as (tag, data), while the block runs."""
        seen: list = []
        watch = self.master.host.popen(["salt-run", "state.event", pattern])

        def read() -> None:
            for line in watch.stdout:
                tag, _, body = line.partition("\t")
                if body.strip():
                    seen.append((tag, json.loads(body)))

        threading.Thread(target=read, daemon=True).start()
        time.sleep(3)  # until it listens
        try:
            yield seen
        finally:
            time.sleep(1)
            watch.kill()
