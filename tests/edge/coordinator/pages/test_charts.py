"""Charts are text: what is drawn, and what is not."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from edge.coordinator.pages.charts import Frame, Series, chart, shares

HOUR = Frame(0, 3_600_000)


def lines(svg: str) -> list[list[str]]:
    return [found.split() for found in re.findall(r'<polyline [^>]*points="([^"]*)"', svg)]


def test_a_peak_between_thousands_of_values_is_drawn() -> None:
    points = [(ms, 1.0) for ms in range(0, 3_600_000, 1000)]
    points[1234] = (1_234_000, 9.0)
    made = chart("Latency", "ms", [Series("p99", points)], HOUR)
    assert made is not None
    (line,) = lines(made.svg)
    assert len(line) <= 240
    assert len({each.split(",")[1] for each in line}) == 2
    assert (made.lines[0].most, made.lines[0].n) == ("9", 3600)


def test_no_line_is_drawn_over_a_silence() -> None:
    points = [(i * 10_000, 1.0) for i in range(20)] + [(2_000_000 + i * 10_000, 1.0) for i in range(20)]
    made = chart("x", "", [Series("a", points)], HOUR)
    assert made is not None
    assert [len(line) for line in lines(made.svg)] == [20, 20]


def test_names_of_devices_are_escaped_and_what_is_no_number_is_not_drawn() -> None:
    evil = "<script>\"'&"
    marks = [(5, evil)]
    points = [(1, float("nan")), (2, float("inf")), (3, 0.5), (4, 0.6)]
    made = chart(evil, evil, [Series(evil, points)], Frame(0, 10, marks=marks))
    assert made is not None
    assert made.lines[0].n == 2
    assert ElementTree.fromstring(made.svg).get("aria-label") == evil  # well formed, and nothing in it is run
    assert chart("x", "", [Series("a", points[:2])], HOUR) is None


def test_numbers_that_nothing_is_measured_in_leave_the_others_to_be_seen() -> None:
    """Devices may say any float64: a page about one is not to fail by it."""
    extremes = (1e308, -1e308, 1e300, 5e-324, -1e-320, 1e-200)
    points = [(i, value) for i, value in enumerate((0.5, *extremes, 0.7, 1e15, -1e15))]
    for some in (
        points,
        points[:8],
        [(0, 5e-324), (1, 1e-323)],
        [(0, 1e15), (1, -1e15)],
        [(0, 1e308), (1, -1e308), (2, 1.0)],
    ):
        for low in (None, 0.0):
            made = chart("x", "", [Series("a", some)], Frame(0, 10, low=low))
            assert made is not None
            assert "nan" not in made.svg
            assert "inf" not in made.svg
    (line,) = lines(chart("x", "", [Series("a", points[:8])], Frame(0, 10)).svg)  # type: ignore[union-attr]
    assert len({each.split(",")[1] for each in line}) == 3  # 0.5, nothing, 0.7


def test_shares_fill_the_bar() -> None:
    svg = shares([("online", 3), ("offline", 1), ("unknown", 0)], "of 4")
    assert re.findall(r'class="is-(\w+)" x="([\d.]+)" y="0" width="([\d.]+)"', svg) == [
        ("online", "0.00", "75.00"), ("offline", "75.00", "25.00"),
    ]  # fmt: skip
