"""What `redis_sidekiq.clean` leaves on a host, beside one that has the packages and nothing else of it."""

import json

from test.hosts.conftest import minimal_pillar
from test.hosts.harness.host import Host
from test.hosts.lab import REPO, apply_locally, make_masterless, put_pillar

INVENTORY = (REPO / "test/hosts/inventory.py").read_text()
# The deploy user and his app's folder may have become somebody's by now; accounts leave their files' last versions.
STAYS = {
    "files": ("/home/deploy", "/srv/app", "/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-", "/etc/sub"),
    "users": ("deploy",),
    "groups": ("deploy",),
}


def inventory(host: Host) -> dict:
    return json.loads(host.run(["python3", "-"], input=INVENTORY).stdout)


def differing(before: dict, after: dict) -> dict:
    """What is not as it was: part → name → (before, after)."""
    found = {}
    for part, was in before.items():
        names = [name for name in sorted(was.keys() | after[part].keys()) if was.get(name) != after[part].get(name)]
        names = [name for name in names if not name.startswith(STAYS.get(part, ("/nothing",)))]
        found |= {part: {name: (was.get(name), after[part].get(name)) for name in names}} if names else {}
    return found


def test_clean_leaves_a_host_as_it_was(make_host, masterless):
    before = make_host("clean-before", image="bookworm")
    make_masterless(before, minimal_pillar("bookworm"))
    apply_locally(before, "redis_sidekiq.packages").assert_ok()

    host = make_host("clean-after", image=masterless("bookworm").image)
    pillar = minimal_pillar("bookworm")
    settings = {"purge_data": True, "kernel": {"somaxconn": 20000}}
    pillar["redis_sidekiq"]["redis"] |= settings | {"instances": {"6379": {}, "6380": {"save": []}}}
    put_pillar(host, pillar)
    apply_locally(host).assert_ok()
    found = differing(inventory(before), inventory(host))
    # So that what is compared is not nothing.
    assert {"/etc/redis/6380.conf", "/var/redis/6379", "/etc/sudoers.d/sidekiq-deploy"} <= set(found["files"])
    assert {"net.core.somaxconn", "net.ipv4.conf.all.accept_redirects"} <= set(found["sysctls"])
    assert {"redis", "redis-build"} <= set(found["users"]) and "redis_6380.service" in found["units"]

    apply_locally(host, "redis_sidekiq.clean").assert_ok()
    apply_locally(host, "redis_sidekiq.clean").assert_unchanged()
    assert differing(inventory(before), inventory(host)) == {}
    assert host.run(["pgrep", "-x", "redis-server"], check=False).stdout == ""
