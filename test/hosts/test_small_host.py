"""A host with little memory: the formula compiles Redis there, and restarts it."""

import os
from pathlib import Path

import pytest

from test.hosts import app
from test.hosts.conftest import minimal_pillar
from test.hosts.lab import apply_locally, make_masterless, put_pillar
from test.hosts.redis_lab import fill

GROUPS = Path("/sys/fs/cgroup/memory")
MEMORY = 2 << 30  # bytes


@pytest.fixture
def small_host(make_host):
    """A bare host whose processes together have 2 GiB, pytest included, which starts what `host.run` runs there."""
    own = next(line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
    made = []

    def make(image):
        host = make_host(f"small-{image}", image=image)
        group = GROUPS / f"rs-small-{image}"
        group.mkdir()
        made.append((host, group))
        for limit in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            if (group / limit).exists():
                (group / limit).write_text(str(MEMORY))
        _move(host.leader, group)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        return host, group

    yield make
    (GROUPS / own.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
    for host, group in made:
        host.down()
        group.rmdir()


def _move(pid, group) -> None:
    """Put a process and all that it started into a control group; what they start later is born there."""
    (group / "cgroup.procs").write_text(str(pid))
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        _move(child, group)


@pytest.mark.soak
@pytest.mark.skipif(not (GROUPS / "memory.limit_in_bytes").exists(), reason="memory is limited by cgroup v1 here")
@pytest.mark.parametrize("image", ["bookworm", "trixie"])
def test_two_gigabytes_suffice(small_host, image):
    host, group = small_host(image)
    make_masterless(host, minimal_pillar(image))
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    fill(host)
    pillar = minimal_pillar(image)
    pillar["redis_sidekiq"]["redis"]["instances"] = {"6379": {"databases": 32}}
    put_pillar(host, pillar)
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    assert app.redis(host, "dbsize") == "300"
    most = int((group / "memory.max_usage_in_bytes").read_text())
    print(
        f"at most {most >> 20} MiB of {MEMORY >> 20}, {int((group / 'memory.failcnt').read_text())} times at the limit"
    )
    assert most > 300 << 20, "the compiler ran elsewhere"
    assert "oom_kill 0" in (group / "memory.oom_control").read_text()
