"""Plots as files, by matplotlib: loaded on demand, for it is not part of what a device needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import ConfigError
from edge.contract.files import replace_file

if TYPE_CHECKING:
    from edge.agent.rehearsal import Rehearsal
    from edge.learning.explain import Explanation

_INK, _GREY, _ACCENT = "#1f2933", "#9aa5b1", "#2166ac"


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError("--plot needs matplotlib: pip install 'edgeloop[plot]'") from exc
    return Figure(figsize=(width, height), layout="constrained")


def check_plot(path: Path) -> None:
    """Raise ConfigError, before any work, unless a plot can be made of this name."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path}: expected a name that ends with .png, .svg or .pdf")
    _figure(1, 1)


def _save(figure: Any, path: Path) -> None:
    try:
        with replace_file(path) as file:
            figure.savefig(file, format=path.suffix.lower().removeprefix("."), dpi=130)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc


def draw_rehearsal(found: Rehearsal, path: Path, what: str, title: str) -> None:
    """Predict-then-learn accuracy over the samples, with what the gate decided."""
    figure = _figure(8, 4)
    axes = figure.subplots()
    window = max(5, min(100, len(found.scores) // 10))
    at = np.arange(1, len(found.scores) + 1)
    axes.plot(at, found.running(window), color=_ACCENT, linewidth=1.8, label="predict, then learn")
    axes.axhline(found.mean_before, color=_GREY, linewidth=1.4, linestyle="--", label="without learning")
    top = 1.0 if what == "accuracy" else axes.get_ylim()[1]
    seen: set[str] = set()
    for number, kind, _ in found.events:
        style = {"promoted": "-", "drift": ":", "rolled-back": "-."}.get(kind, ":")
        axes.axvline(
            number, color=_INK, linewidth=1.0, linestyle=style, alpha=0.6, label=None if kind in seen else kind
        )
        seen.add(kind)
    axes.set_ylim(0, 1.02 * top)
    axes.set_xlim(0, len(at))
    axes.set_xlabel("labelled samples")
    axes.set_ylabel(f"{what}, mean of the last {window}")
    axes.set_title(title, fontsize=11, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best", fontsize=9)
    _save(figure, path)


def draw_explanation(x: npt.NDArray[Any] | None, found: Explanation, path: Path, title: str) -> None:
    """What mattered, beside the sample where that is a picture or a curve."""
    is_picture = found.importance.ndim == 2
    figure = _figure(8 if x is not None else 4.5, 4 if is_picture else 3)
    axes = np.atleast_1d(figure.subplots(1, 2 if x is not None and is_picture else 1))
    limit = max(float(np.abs(found.importance).max()), 1e-12)
    if is_picture:
        if x is not None:
            axes[0].imshow(_visible(x), cmap="gray")
            axes[0].set_title("sample", fontsize=10)
        image = axes[-1].imshow(found.importance, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes[-1].set_title("falls when covered", fontsize=10)
        figure.colorbar(image, ax=axes[-1], shrink=0.8)
        for each in axes:
            each.set_axis_off()
    else:
        at = np.arange(len(found.importance))
        axes[0].fill_between(at, found.importance, color=_ACCENT, alpha=0.5, step="mid", label="falls when covered")
        axes[0].set_xlabel("place")
        axes[0].spines[["top", "right"]].set_visible(False)
        if x is not None:
            twin = axes[0].twinx()
            twin.plot(at, x.reshape(-1, len(at)).mean(axis=0), color=_GREY, linewidth=1.0)
            twin.set_ylabel("sample", color=_GREY)
        axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, color=_INK)
    _save(figure, path)


def _visible(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``(height, width)`` of a sample whose last two axes are space, or ``(height, width, 3)`` of three channels."""
    planes = x.reshape(-1, *x.shape[-2:]).astype(np.float64)
    planes = (planes - planes.min()) / max(float(np.ptp(planes)), 1e-12)
    return np.moveaxis(planes, 0, -1) if len(planes) == 3 else planes.mean(axis=0)
