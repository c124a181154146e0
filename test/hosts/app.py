"""The small Ruby app of `test/app` on a real host: releases, jobs, and what it says of itself.

Used by the tests and `bin/demo`; standard library only.
"""

from __future__ import annotations

import itertools

from test.hosts.harness.host import Host
from test.hosts.lab import REPO

HOME = "/srv/app"
_RELEASES = itertools.count(1000)  # apart from the numbers that tests give themselves


def release(host: Host, name: str, ruby: str = "") -> str:
    """Put the app under ``releases/NAME`` and point ``current`` at it in one rename, as Capistrano does; ``ruby`` is a line
    more for its worker file.

    Returns the release's folder. The deploy user owns it; on a host where the formula has not made him yet, everybody
    may write to it, since Bundler writes the app's Gemfile.lock when that starts.
    """
    folder = f"{HOME}/releases/{name}"
    host.run(["mkdir", "-p", f"{HOME}/releases"])
    host.copy_in(REPO / "test/app", folder)
    if ruby:
        host.run(["sh", "-c", f"cat >> {folder}/worker.rb"], input=ruby + "\n")
    if host.run(["id", "deploy"], check=False).returncode == 0:
        host.run(["chown", "-R", "deploy:", HOME])
    else:
        host.run(["chmod", "-R", "a+rwX", folder])
    host.run(["ln", "-sfn", folder, f"{HOME}/current.new"])
    host.run(["mv", "-T", f"{HOME}/current.new", f"{HOME}/current"])
    return folder


def deploy(host: Host, ruby: str = "") -> str:
    """Release the app in a folder that no other release had, with a line added to its worker file; returns the folder."""
    return release(host, str(next(_RELEASES)), ruby)


def sidekiq_pillar(**service: object) -> dict:
    """A pillar for Sidekiq alone: the host's Redis is there already, wherever it came from."""
    service = {
        "require": "./worker.rb",
        "concurrency": 10,
        "redis": "",
        "redis_url": "redis://127.0.0.1:6379/0",
        "start_timeout": 20,
        **service,
    }
    return {
        "redis_sidekiq": {"roles": ["sidekiq"], "sidekiq": {"install": "package", "services": {"sidekiq": service}}}
    }


def outside(host: Host) -> str:
    """Return a folder with the unbroken app beside the releases, for what has to run whatever `current` is."""
    folder = f"{HOME}/outside"
    if not host.exists(folder):
        host.copy_in(REPO / "test/app", folder)
        host.run(["chown", "-R", "deploy:", folder])
    return folder


def is_whole(host: Host) -> bool:
    """Return whether `current` is a release of the unbroken app, so that no test has to deploy one first."""
    return host.run(["cmp", f"{outside(host)}/worker.rb", f"{HOME}/current/worker.rb"], check=False).returncode == 0


def reactor_config(minion: str) -> str:
    """Return the shipped example of the master's configuration, with ``minion`` as the app's only host."""
    return (REPO / "docs/examples/master.d/redis_sidekiq.conf").read_text().replace("web1.example.org", minion)


def enqueue(host: Host, count: int, seconds: float | None = None, job: str = "") -> list[str]:
    """Enqueue ``count`` jobs through Ruby, as the deploy user: quick ones, or such that take ``seconds`` each.

    Returns their jids.
    """
    words = " ".join(str(word) for word in (count, seconds, job) if word not in (None, ""))
    argv = ["sh", "-c", f"cd {outside(host)} && exec bundle exec ruby enqueue.rb {words}"]
    return host.run(argv, user="deploy").stdout.split()


def redis(host: Host, *words: str) -> str:
    """Run one Redis command on the host's own instance and return the answer."""
    return host.run(["redis-cli", *words]).stdout.strip()


def worked(host: Host) -> int:
    """Return how many different jobs have been worked so far: each adds its jid to a set."""
    return int(redis(host, "scard", "worked"))


def main_pid(host: Host, unit: str = "sidekiq") -> str:
    """Return the main process of ``unit``; "0" while there is none."""
    return host.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()


def working_directory(host: Host) -> str:
    """Return the release that the Sidekiq process works in."""
    return host.run(["readlink", f"/proc/{main_pid(host)}/cwd"]).stdout.strip()


def is_restarting(host: Host) -> bool:
    """Return whether a restart's helper works beside the service."""
    return bool(host.run(["systemctl", "list-units", "--plain", "--no-legend", "sidekiq-handover*"]).stdout.strip())


def banner(host: Host) -> dict[str, str]:
    """Return what runs on ``host``, a line each: Redis, Sidekiq, firewall, sudo."""
    info = dict(line.split(":", 1) for line in redis(host, "info", "server").splitlines() if ":" in line)
    rules = [line for line in host.run(["ufw", "show", "added"]).stdout.splitlines() if line.startswith("ufw ")]
    policy = host.run(["ufw", "status", "verbose"]).stdout.splitlines()
    version = host.run(["sh", "-c", f"cd {HOME}/current && exec bundle exec sidekiq --version"], user="deploy").stdout
    return {
        "Redis": f"{info['redis_version']} on port {info['tcp_port']}, {info['executable']}",
        "Sidekiq": f"{version.strip()}, sidekiq.service, working in {working_directory(host)}",
        "firewall": f"{next(line for line in policy if line.startswith('Default'))}; {len(rules)} rules",
        "deploy may": "sudo systemctl restart, start, stop sidekiq; nothing else",
    }
