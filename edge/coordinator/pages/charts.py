"""Charts as SVG, made here: nothing is fetched for them, and they are text that a test can read.

Colours are classes of the style sheet, so that charts follow the light and dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

from edge.coordinator.pages.amounts import amount

# In units of the drawing; on a phone one of them is about a pixel.
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 360.0, 150.0, 38.0, 8.0, 18.0
# A line shows the least and the largest of each of so many spans of time.
_MAX_SPANS = 120
# No line is drawn where nothing was said for so many of the usual steps, and this long.
_GAP_STEPS, _GAP_MS = 5.0, 30_000.0
# What is drawn: beyond it nothing is measured, and drawing it would say nothing of the rest; what is less is none.
_LARGEST, _LEAST = 1e15, 1e-15
# So many colours; behind them they come again, with dashes.
COLOURS, _AGAIN = 6, 12
# What marks say, beside their line.
_LETTERS = {"drift": "D", "feature-shift": "D", "believed": "B", "rolled-back": "R"}
Point = tuple[int, float]
"""Milliseconds since 1970, and a value."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name and its points, oldest first."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture with what it says in words.

    Attributes:
        title: What is measured.
        unit: Of the values; "" for none.
        svg: The picture.
        lines: For each line its name, colour, newest, least and largest value, and how many values there are.
    """

    title: str
    unit: str
    svg: str
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Line:
    """A line in words, see `Chart`."""

    name: str
    colour: int
    newest: str
    least: str
    most: str
    n: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What a chart spans.

    Attributes:
        since_ms: Left end.
        until_ms: Right end.
        low: Lower end that the values have at least; None for their own.
        high: Upper end; the same.
        marks: Times at which something happened, with its name.
    """

    since_ms: int
    until_ms: int
    low: float | None = 0.0
    high: float | None = None
    marks: Sequence[tuple[int, str]] = field(default=())


def chart(title: str, unit: str, series: Sequence[Series], frame: Frame) -> Chart | None:
    """Lines over time; None where there is nothing to draw."""
    shown = [Series(each.name, _within(each.points, frame)) for each in series]
    shown = [each for each in shown if each.points]
    if not shown:
        return None
    lines = [_line(each, i % _AGAIN) for i, each in enumerate(shown)]
    return Chart(title=title, unit=unit, svg=_svg(title, shown, frame), lines=lines)


def _within(points: Sequence[Point], frame: Frame) -> list[Point]:
    inside = ((ms, value) for ms, value in points if frame.since_ms <= ms <= frame.until_ms)
    return [(ms, value if abs(value) >= _LEAST else 0.0) for ms, value in inside if abs(value) <= _LARGEST]


def _line(series: Series, colour: int) -> Line:
    values = [value for _, value in series.points]
    return Line(series.name, colour, amount(values[-1]), amount(min(values)), amount(max(values)), len(values))


def _svg(title: str, series: Sequence[Series], frame: Frame) -> str:
    values = [value for each in series for _, value in each.points]
    low = min(values) if frame.low is None else min(frame.low, *values)
    high = max(values) if frame.high is None else max(frame.high, *values)
    if low == high and frame.high is not None:  # one value all the time: from where it begins to where it ends
        low = high - 1.0
    elif low == high and frame.low is not None:
        high = low + 1.0
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    span_ms = max(frame.until_ms - frame.since_ms, 1)

    def x(ms: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 4) * (ms - frame.since_ms) / span_ms

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low))

    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{_escaped(title)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH - 4:g}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 4:g}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:g}</text>')
    for i in range(4):
        ms = frame.since_ms + span_ms * i / 3
        anchor = ("start", "middle", "middle", "end")[i]
        label = _time(ms, span_ms)
        parts.append(f'<text class="tick" x="{x(ms):.1f}" y="{_HEIGHT - 4:g}" text-anchor="{anchor}">{label}</text>')
    for ms, name in frame.marks:
        if frame.since_ms <= ms <= frame.until_ms:
            path = f'<path class="mark" d="M{x(ms):.1f} {_TOP:g}V{_HEIGHT - _BOTTOM:g}">'
            parts.append(f"{path}<title>{_escaped(name)}</title></path>")
            if letter := _LETTERS.get(name, ""):
                parts.append(f'<text class="tick" x="{x(ms) + 2:.1f}" y="{_TOP + 7:g}">{letter}</text>')
    for i, each in enumerate(series):
        style = f"s{i % COLOURS}" + (" again" if i % _AGAIN >= COLOURS else "")
        for run in _runs(_thinned(each.points, frame)):
            drawn = " ".join(f"{x(ms):.1f},{y(value):.1f}" for ms, value in run)
            if len(run) == 1:
                at = f'cx="{x(run[0][0]):.1f}" cy="{y(run[0][1]):.1f}"'
                parts.append(f'<circle class="{style} dot" {at} r="2"/>')
            else:
                parts.append(f'<polyline class="{style}" points="{drawn}"/>')
    return "".join([*parts, "</svg>"])


def _thinned(points: Sequence[Point], frame: Frame) -> list[Point]:
    """The least and the largest value of each span, so that no peak is lost."""
    if len(points) <= 2 * _MAX_SPANS:
        return list(points)
    width_ms = max((frame.until_ms - frame.since_ms) / _MAX_SPANS, 1.0)
    spans: dict[int, list[Point]] = {}
    for point in points:
        spans.setdefault(int((point[0] - frame.since_ms) / width_ms), []).append(point)
    found = []
    for _, inside in sorted(spans.items()):
        ends = {min(inside, key=lambda point: point[1]), max(inside, key=lambda point: point[1])}
        found += sorted(ends)
    return found


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Points without a long silence between them."""
    steps = sorted(b[0] - a[0] for a, b in pairwise(points))
    longest = max(_GAP_STEPS * steps[len(steps) // 2], _GAP_MS) if steps else 0.0
    runs: list[list[Point]] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] <= longest:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that span a range.

    >>> nice_ticks(0.0, 0.97)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(7.0, 7.0)
    [6.0, 6.5, 7.0, 7.5, 8.0]
    """
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        low, high = low - 1.0, high + 1.0
    rough = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1.0, 2.0, 5.0, 10.0) if factor * scale >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _time(ms: float, span_ms: float) -> str:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.strftime("%d %b" if span_ms > 2 * 86_400_000 else "%H:%M" if span_ms > 600_000 else "%H:%M:%S")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def shares(parts: Sequence[tuple[str, int]], label: str) -> str:
    """A bar of shares: for each part its class of the style sheet and how many it is of all."""
    total = sum(count for _, count in parts)
    drawn, at = [], 0.0
    for kind, count in parts:
        if count:
            width = 100.0 * count / total
            drawn.append(f'<rect class="is-{kind}" x="{at:.2f}" y="0" width="{width:.2f}" height="10"/>')
            at += width
    return (
        f'<svg class="shares" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{_escaped(label)}">{"".join(drawn)}</svg>'
    )
