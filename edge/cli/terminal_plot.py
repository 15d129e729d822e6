"""Plots of text, for a terminal on a device: nothing needs to be installed for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_SHADES = " ░▒▓█"
_HEIGHT = 8


def _label(value: float) -> str:
    """Seven characters."""
    return f"{value:7.2f}" if abs(value) < 1e4 else f"{value:7.1g}"


def line_plot(values: npt.NDArray[Any], title: str, width: int) -> str:
    """A curve as bars of text: the mean of each stretch of values.

    Args:
        values: ``(n,)`` finite, one at least.
        title: Above it.
        width: Characters, the axis included.
    """
    columns = min(max(10, width - 8), 100, len(values))
    means = np.array([part.mean() for part in np.array_split(values, columns)])
    low, high = min(0.0, float(means.min())), max(float(means.max()), 1e-12)
    if high <= 1.0 and low >= 0.0 and high > 0.3:
        high = 1.0
    eighths = np.rint((means - low) / (high - low) * _HEIGHT * 8).astype(int)
    lines = [title]
    for row in range(_HEIGHT - 1, -1, -1):
        label = (
            f"{_label(low + (high - low) * (row + 1) / _HEIGHT)}" if row in (_HEIGHT - 1, _HEIGHT // 2 - 1) else " " * 7
        )
        lines.append(f"{label}│" + "".join(_EIGHTHS[min(8, max(0, e - 8 * row))] for e in eighths).rstrip())
    lines.append(f"{_label(low)}└" + "─" * columns)
    lines.append(" " * 8 + "1" + (f"{len(values)}".rjust(columns - 1) if columns > 1 else ""))
    return "\n".join(lines)


def heat_map(values: npt.NDArray[Any], width: int) -> str:
    """A matrix ``(rows, columns)`` in shades of text, two characters a cell; what is not above zero is blank."""
    rows, columns = values.shape
    most = max(1, min(columns, width // 2))
    by_column = np.array_split(np.arange(columns), most)
    by_row = np.array_split(np.arange(rows), max(1, min(rows, most)))
    cells = np.array([[values[np.ix_(r, c)].mean() for c in by_column] for r in by_row])
    top = max(float(cells.max()), 1e-12)
    levels = np.clip(np.ceil(cells / top * (len(_SHADES) - 1)), 0, len(_SHADES) - 1).astype(int)
    return "\n".join("".join(_SHADES[level] * 2 for level in line) for line in levels)
