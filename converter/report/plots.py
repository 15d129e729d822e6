"""The plots of a report, as SVG for a page: drawn without a display and the same every time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from converter.report.values import Row
from converter.verify.quality import SHARES

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
_BLUE, _ORANGE, _GREY, _GREEN = "#0072B2", "#D55E00", "#9A9A9A", "#009E73"
_MAX_LAYERS = 40
_STYLE: Any = {"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "edgeloop", "axes.spines.top": False}
_STYLE |= {"axes.spines.right": False, "figure.facecolor": "white"}


def size_plot(report: Row) -> str:
    """Sizes of the candidates."""
    rows = [c for c in report["candidates"] if c["size_bytes"]]
    values = [c["size_bytes"] / 1024 for c in rows]
    return _bars([c["name"] for c in rows], values, [_color(c) for c in rows], "size in KiB", "{:.0f}")


def latency_plot(report: Row) -> str:
    """Latencies of the candidates that were timed."""
    rows = [c for c in report["candidates"] if c["latency_ms"] is not None]
    values = [c["latency_ms"] for c in rows]
    label = "latency in ms, one sample, one thread"
    return _bars([c["name"] for c in rows], values, [_color(c) for c in rows], label, "{:.3g}")


def sensitivity_plot(report: Row) -> str:
    """SQNR by the one layer that is int8, the worst first; none when it was not measured."""
    rows = [row for row in report["sensitivity"] if row["sqnr_db"] is not None][:_MAX_LAYERS]
    if not rows:
        return ""
    colors = [_ORANGE if row["left_in_float"] else _BLUE for row in rows]
    label = "SQNR in dB with only this layer in int8 (low hurts; orange: left in float)"
    return _bars([row["layer"] for row in rows], [row["sqnr_db"] for row in rows], colors, label, "{:.1f}")


def robustness_plot(report: Row) -> str:
    """Quality under corruption, before and after; none when it was not measured."""
    rows = report["robustness"]
    if not rows:
        return ""
    measure = report["robustness_measure"]
    scale = 100 if measure in SHARES else 1
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.42 * len(rows) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(rows))
        for shift, (name, color) in enumerate((("original", _GREY), ("bundle", _BLUE))):
            values = [scale * row["scores"][name] for row in rows]
            axes.barh([p + 0.36 * shift for p in places], values, 0.34, color=color, label=name)
        axes.set_yticks([p + 0.18 for p in places], [_corruption(row) for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, scale)
        axes.set_xlabel(f"{measure} in %" if measure in SHARES else measure)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        return _svg(figure)


def _corruption(row: Row) -> str:
    name = _short(row["corruption"])
    return name if row["corruption"] == "none" else f"{name} {row['severity']:g}"


def _color(candidate: Row) -> str:
    return {"chosen": _GREEN, "reference": _GREY}.get(candidate["status"], _BLUE)


def _bars(names: Sequence[str], values: Sequence[float], colors: Sequence[str], label: str, form: str) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.28 * len(names) + 0.7), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh(range(len(names)), values, color=list(colors))
        axes.bar_label(bars, [form.format(value) for value in values], padding=3)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(label)
        return _svg(figure)


def _short(name: str) -> str:
    """The end of a long name, in characters that the font has: a dollar sign would begin a formula."""
    name = "".join(char if char.isascii() and char.isprintable() else "?" for char in name)
    return (name if len(name) <= 44 else f"…{name[-43:]}").replace("$", r"\$")


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
        file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = file.getvalue()
    return text[text.index("<svg") :]
