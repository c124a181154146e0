"""`salt-call --local` and a pillar that says nothing but where the tarball is."""

import pytest

from test.hosts import app
from test.hosts.conftest import demo_pillar, host_facts
from test.hosts.lab import apply_locally, put_pillar

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


def but_for_the_boot(facts: dict) -> dict:
    """`ufw enable` puts the rules into the kernel itself; ufw.service has run only after a boot, as on the copy here."""
    ufw = {key: value for key, value in facts["units"]["ufw.service"].items() if key != "ActiveState"}
    return {**facts, "units": {**facts["units"], "ufw.service": ufw}}


@pytest.mark.parametrize("image", IMAGES)
def test_converged_image_boots_unchanged(masterless, make_host, image):
    host = make_host(f"again-{image}", image=masterless(image).image)
    apply_locally(host).assert_unchanged()
    assert host_facts(host)["files"] == masterless(image).facts["files"]
