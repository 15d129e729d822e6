"""Plots as files, by matplotlib: loaded on demand, for it is not part of what a device needs."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import ConfigError
from edge.contract.files import check_writable, replace_file

if TYPE_CHECKING:
    from edge.agent.model.rehearsal import Rehearsal
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
    check_writable(path)
    _figure(1, 1)


def _save(figure: Any, path: Path) -> None:
    try:
        with replace_file(path) as file:
            figure.savefig(file, format=path.suffix.lower().removeprefix("."), dpi=130)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc


def draw_rehearsal(found: Rehearsal, path: Path, what: str, title: str) -> None:
    """Predict-then-learn accuracy over the samples, with what happened."""
    figure = _figure(8, 4)
    axes = figure.subplots()
    window = found.window
    at = np.arange(1, len(found.scores) + 1)
    marker = "o" if len(at) < 20 else None
    curve = found.running(window)
    axes.plot(at, curve, color=_ACCENT, linewidth=1.8, marker=marker, markersize=4, label="predict, then learn")
    axes.axhline(found.mean_before, color=_GREY, linewidth=1.4, linestyle="--", label="without learning")
    # A loss that ran away for a while must not flatten everything else.
    top = 1.0 if what == "accuracy" else max(3.0 * float(np.median(curve)), 1.5 * found.mean_before, 1e-12)
    if curve.max() <= 2.0 * top and what != "accuracy":
        top = float(max(curve.max(), found.mean_before))
    elif curve.max() > top:
        axes.annotate(
            f"up to {curve.max():.3g}",
            (1.0, 1.0),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            fontsize=8,
            color=_INK,
        )
    seen: set[str] = set()
    for number, kind, _ in found.events:
        style = {"believed": "-", "drift": ":"}.get(kind, ":")
        axes.axvline(
            number, color=_INK, linewidth=1.0, linestyle=style, alpha=0.6, label=None if kind in seen else kind
        )
        seen.add(kind)
    axes.set_ylim(-0.02 * top, 1.02 * top)
    axes.set_xlim(0.5 if len(at) < 20 else 0, len(at) + (0.5 if len(at) < 20 else 0))
    if len(at) < 20:
        axes.set_xticks(at)
    axes.set_xlabel("samples answered")
    axes.set_ylabel(f"{what}, mean of the last {window}")
    axes.set_title(_wrapped(title, 90), fontsize=11, color=_INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best", fontsize=9)
    _save(figure, path)


def draw_explanation(x: npt.NDArray[Any] | None, found: Explanation, path: Path, title: str) -> None:
    """What mattered, beside the sample where that is a picture or a curve."""
    is_picture = found.importance.ndim == 2
    figure = _figure(8 if x is not None else 4.5, 4 if is_picture else 3)
    axes = np.atleast_1d(figure.subplots(1, 2 if x is not None and is_picture else 1))
    limit = max(float(np.abs(found.importance).max()), 1e-3)  # below a thousandth nothing mattered
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
        axes[0].fill_between(at, found.importance, color=_ACCENT, alpha=0.5, step="mid")
        axes[0].set_xlabel("place")
        axes[0].spines[["top", "right"]].set_visible(False)
        if x is not None:
            twin = axes[0].twinx()
            twin.plot(at, x.reshape(-1, len(at)).mean(axis=0), color=_GREY, linewidth=1.0)
            twin.set_ylabel("sample", color=_GREY)
            twin.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("falls when covered", color=_ACCENT)
    figure.suptitle(_wrapped(title, 90 if x is not None else 50), fontsize=11, color=_INK, parse_math=False)
    _save(figure, path)


def _wrapped(title: str, width: int) -> str:
    """In lines that fit, of names that have no spaces, too; very long ones are cut short."""
    return "\n".join(textwrap.wrap(title, width, max_lines=3, placeholder=" …"))


def _visible(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``(height, width)`` of a sample whose last two axes are space, or ``(height, width, 3)`` of three channels."""
    planes = x.reshape(-1, *x.shape[-2:]).astype(np.float64)
    planes = (planes - planes.min()) / max(float(np.ptp(planes)), 1e-12)
    return np.moveaxis(planes, 0, -1) if len(planes) == 3 else planes.mean(axis=0)
