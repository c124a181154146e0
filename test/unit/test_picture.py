"""The picture of `make bench-restarts`."""

from __future__ import annotations

from xml.etree import ElementTree

from test.hosts.bench_restarts import WAYS, Way, picture
from test.hosts.load import Verdict


def test_the_picture_has_a_row_of_bars_for_each_way():
    ends = [1000 + 0.05 + tenth / 10 for tenth in range(-40, 400)]
    way = Way(totals=[30.0], boots=[1.0], gaps=[0.1], verdict=Verdict(ends=ends), first=1000.0)
    svg = ElementTree.fromstring(picture(dict.fromkeys(WAYS, way)))
    paths = [path.get("d") for path in svg.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke") == "#3b7"]
    assert len(paths) == len(WAYS)
    assert all(420 <= path.count("M") <= 441 for path in paths)
    words = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert all(any(word.startswith(title) for word in words) for title in WAYS.values())


def test_the_longest_gap_counts_the_edges():
    verdict = Verdict(ends=[1.0, 2.0, 2.5, 9.0])
    assert verdict.gap(1.5, 3.0) == 0.5
    assert verdict.gap(2.6, 8.6) == 6.0
