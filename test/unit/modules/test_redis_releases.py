"""Upstream's digests: their form and order, and what is said about a release that is not among them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from salt.exceptions import SaltInvocationError


@pytest.fixture
def releases(load):
    return load("_modules/redis_releases.py")


def test_each_release_is_final_and_not_older_than_6_2(releases):
    versions = releases.known()
    assert len(versions) > 90
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)
    assert min(releases._numbers(version) for version in versions) == [6, 2, 0]


def test_releases_are_sorted(releases):
    assert releases.known() == sorted(releases.known(), key=releases._numbers)


def test_no_release_stands_in_the_file_twice(releases):
    written = re.findall(r'^    "([\d.]+)": "', Path(releases.__file__).read_text(), re.MULTILINE)
    assert written == releases.known()


def test_each_digest_is_a_sha256_of_its_own(releases):
    digests = [releases.digest(version) for version in releases.known()]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    "version, digest",
    [
        ("6.2.0", "67d624c25d962bd68aff8812a135df85bad07556b8825f3bcd5b522a9932dbca"),
        ("8.0.6", "6d0a9913887a4972536f9da226f1575859c34d86354129163260a5f9c6bd4229"),
        ("8.8.1", "1d1e423c9c808de3cb01dd3300d2b8d305b7691382e31a847ec17b66d3157477"),
    ],
)
def test_digest(releases, version, digest):
    assert releases.digest(version) == digest


def test_unknown_release_is_refused_with_the_nearest_ones(releases):
    with pytest.raises(SaltInvocationError, match=r"No digest of Redis 8\.0\.99 .* 8\.0\.4, 8\.0\.5, 8\.0\.6"):
        releases.digest("8.0.99")


@pytest.mark.parametrize(
    "version, nearest",
    [
        ("7.0.16", ["7.0.13", "7.0.14", "7.0.15"]),
        ("8.2", ["8.2.0", "8.2.1", "8.2.2"]),
        ("nonsense", ["6.2.0", "6.2.1", "6.2.2"]),
    ],
)
def test_nearest(releases, version, nearest):
    assert releases.nearest(version) == nearest


def test_url(releases):
    assert releases.url("8.0.6") == "https://download.redis.io/releases/redis-8.0.6.tar.gz"
