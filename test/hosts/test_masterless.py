"""`salt-call --local` and a pillar that says nothing but where the tarball is."""

import pytest

from test.hosts import app
from test.hosts.conftest import demo_pillar, host_facts
from test.hosts.lab import REPO, apply_locally, put_pillar, redis_version, tarball

IMAGES = ["bookworm", "trixie"]


@pytest.mark.parametrize("image", IMAGES)
def test_minimal_pillar_converges_in_one_run(masterless, image):
    converged = masterless(image)
    converged.first.assert_ok()
    converged.second.assert_unchanged()


@pytest.mark.parametrize("image", IMAGES)
def test_sidekiq_waits_for_the_first_deploy(masterless, image):
    units = masterless(image).facts["units"]
    assert units["redis_6379.service"]["ActiveState"] == "active"
    assert units["sidekiq.service"]["UnitFileState"] == "enabled"
    assert units["sidekiq.service"]["ActiveState"] == "inactive"


def test_masterless_host_is_the_same_as_one_with_a_master(masterless, sites, make_host):
    host = make_host("same", image=masterless("bookworm").image)
    put_pillar(host, demo_pillar("bookworm"))
    app.release(host, "1")
    apply_locally(host).assert_ok()
    apply_locally(host).assert_unchanged()
    assert but_for_the_boot(host_facts(host)) == but_for_the_boot(sites("bookworm").facts)


@pytest.mark.parametrize("image", IMAGES)
def test_pillar_example_converges_as_it_stands(masterless, make_host, image):
    """But for the tarball, which comes from upstream there."""
    host = make_host(f"example-{image}", image=masterless(image).image)
    text, version = (REPO / "pillar.example").read_text(), "    version: 8.0.6\n"
    assert version in text
    source = "".join(f"    {key}: {value}\n" for key, value in tarball(redis_version(image)).items())
    put_pillar(host, text.replace(version, source))
    before = host_facts(host)
    announced = apply_locally(host, test=True).assert_ok()
    assert announced.pending and host_facts(host) == before
    applied = apply_locally(host).assert_ok()
    assert set(announced.changed) == set(applied.changed)
    apply_locally(host).assert_unchanged()
    assert app.redis(host, "config", "get", "maxmemory").split() == ["maxmemory", str(256 << 20)]


def but_for_the_boot(facts: dict) -> dict:
    """`ufw enable` puts the rules into the kernel itself; ufw.service has run only after a boot, as on the copy here."""
    ufw = {key: value for key, value in facts["units"]["ufw.service"].items() if key != "ActiveState"}
    return {**facts, "units": {**facts["units"], "ufw.service": ufw}}


@pytest.mark.parametrize("image", IMAGES)
def test_converged_image_boots_unchanged(masterless, make_host, image):
    host = make_host(f"again-{image}", image=masterless(image).image)
    apply_locally(host).assert_unchanged()
    assert host_facts(host)["files"] == masterless(image).facts["files"]
