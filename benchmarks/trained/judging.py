"""Whether a converted model still does what the model is for: one rule for each kind of output, in the field's terms.

A rule takes what the original gave and what the bundle gave, one array for each input, and says what was measured, and
whether that is enough. The limits are those of the one who uses the model, not of the one who converts it: a score that
moves by a fiftieth of its range, a class in fifty that differs, a mask that overlaps by 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FLOAT_DB = 50.0  # a float bundle is the same function: rounding in another order, nothing else


@dataclass(frozen=True, slots=True)
class Found:
    """What one rule measured on one output.

    Attributes:
        kept: Whether the output still does what it is for.
        text: The measurement, for people.
    """

    kept: bool
    text: str


Rule = Callable[[Sequence[Array], Sequence[Array]], Found]


def sqnr_db(reference: Sequence[Array], found: Sequence[Array]) -> float:
    """``10 log10(sum r^2 / sum (r - f)^2)`` over all arrays, at most 200."""
    power = sum(float(np.sum(np.square(one.astype(np.float64)))) for one in reference)
    error = sum(
        float(np.sum(np.square(one.astype(np.float64) - other))) for one, other in zip(reference, found, strict=True)
    )
    if error == 0.0:
        return 200.0
    return float(min(200.0, 10.0 * np.log10(max(power, 1e-300) / error))) if np.isfinite(error) else -200.0


def comparable(reference: Sequence[Array], found: Sequence[Array]) -> str | None:
    """Why two answers cannot be compared at all: another shape, or no finite number where the original has one."""
    for one, other in zip(reference, found, strict=True):
        if one.shape != other.shape:
            return f"shape {other.shape} instead of {one.shape}"
        if np.any(np.isfinite(one) & ~np.isfinite(other)):
            return "values that are not finite"
    return None


def classes(axis: int = -1, least: float = 0.98) -> Rule:
    """The largest along an axis: classes of samples, letters of a line, labels of positions."""

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        pairs = [(r.argmax(axis).ravel(), f.argmax(axis).ravel()) for r, f in zip(reference, found, strict=True)]
        expected, given = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        share = float(np.mean(expected == given))
        return Found(share >= least, f"{share:.1%} of {expected.size} classes, {len(np.unique(expected))} of them seen")

    return judge


def greedy_text(axis: int = -1, blank: int = 0, least: float = 0.95) -> Rule:
    """What a CTC recogniser reads: the largest at each step, repeats and blanks dropped; lines that are the same."""

    def read(array: Array) -> tuple[int, ...]:
        steps = array.argmax(axis).ravel()
        kept = np.flatnonzero((np.diff(steps, prepend=-1) != 0) & (steps != blank))
        return tuple(int(steps[i]) for i in kept)

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        lines = [(read(r), read(f)) for r, f in zip(reference, found, strict=True)]
        share = float(np.mean([r == f for r, f in lines]))
        return Found(share >= least, f"{share:.1%} of {len(lines)} lines, {sum(len(r) for r, _ in lines)} letters")

    return judge


def codes(least: float = 0.95) -> Rule:
    """Outputs that are whole numbers already, e.g. the letters that a recogniser chose inside its graph."""

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        share = float(np.mean([np.array_equal(r, f) for r, f in zip(reference, found, strict=True)]))
        return Found(share >= least, f"{share:.1%} of {len(reference)} rows")

    return judge


def probabilities(
    threshold: float = 0.5, tolerance: float = 0.05, least: float = 0.98, of_logits: bool = False
) -> Rule:
    """Scores in 0..1 on which somebody decides: the decisions agree, and the mean error is small.

    A decision counts where the original is not itself within the tolerance of the threshold.

    Args:
        threshold: Of a decision.
        tolerance: Of a score; half of it for the mean.
        least: Share of decisions that agree.
        of_logits: The output is logits, and whoever uses the model takes their sigmoid.
    """

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        r = np.concatenate([one.ravel() for one in reference]).astype(np.float64)
        f = np.concatenate([one.ravel() for one in found]).astype(np.float64)
        r, f = (sigmoid(r), sigmoid(f)) if of_logits else (r, f)
        clear = np.abs(r - threshold) > tolerance
        share = float(np.mean((r > threshold)[clear] == (f > threshold)[clear])) if clear.any() else 1.0
        error = float(np.mean(np.abs(r - f)))
        text = f"mean error {error:.4f}, {share:.1%} of decisions, {np.mean(r > threshold):.0%} are yes"
        return Found(share >= least and error <= tolerance / 2, text)

    return judge


def spans(threshold: float = 0.5, longest: float = 2.0, least: float = 0.98) -> Rule:
    """Logits ``(1, segments, 3)`` of confidence, centre within the segment and duration, as of sleep spindles.

    Args:
        threshold: Of the confidence; a segment within 0.05 of it is no clear answer.
        longest: Duration that 1 stands for, in segments.
        least: Share of segments that agree; spans of those that both show overlap by 0.85 in the mean.
    """

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        r, f = (sigmoid(np.concatenate([one.reshape(-1, 3) for one in side])) for side in (reference, found))
        clear = np.abs(r[:, 0] - threshold) > 0.05
        same = float(np.mean((r[:, 0] >= threshold)[clear] == (f[:, 0] >= threshold)[clear]))
        both = (r[:, 0] >= threshold) & (f[:, 0] >= threshold)
        (start, end), (other_start, other_end) = (
            (side[both, 1] - side[both, 2] * longest / 2, side[both, 1] + side[both, 2] * longest / 2)
            for side in (r, f)
        )
        common = np.clip(np.minimum(end, other_end) - np.maximum(start, other_start), 0, None)
        union = np.maximum(end, other_end) - np.minimum(start, other_start)
        overlap = float(np.mean(common / union)) if both.any() else 1.0
        text = f"{same:.1%} of {r.shape[0]} segments, {both.sum()} spans overlap by {overlap:.1%}"
        return Found(same >= least and overlap >= 0.85, text)

    return judge


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``."""
    return np.asarray(1.0 / (1.0 + np.exp(-x.astype(np.float64))))


def quantities(least: float = 0.98, axis: int | None = -1) -> Rule:
    """Numbers with units: every column's coefficient of determination against the original; None: all are one."""

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        def columns(arrays: Sequence[Array]) -> Array:
            if axis is None:
                return np.concatenate([one.ravel() for one in arrays])[:, None].astype(np.float64)
            parts = [
                np.moveaxis(np.atleast_1d(one), axis, -1).reshape(-1, np.atleast_1d(one).shape[axis]) for one in arrays
            ]
            return np.concatenate(parts).astype(np.float64)

        r, f = columns(reference), columns(found)
        spread = np.var(r, axis=0)
        left = np.mean(np.square(r - f), axis=0)
        moves = spread > 1e-12 * np.maximum(np.mean(np.square(r), axis=0), 1e-30)
        if not moves.any():
            return Found(bool(np.allclose(r, f, rtol=0.02)), "constant in the original")
        scores = 1.0 - left[moves] / spread[moves]
        return Found(bool(scores.min() >= least), f"R2 {scores.min():.4f} in the worst of {scores.size} columns")

    return judge


def embedding(least: float = 0.98, axis: int = -1) -> Rule:
    """Directions that are compared with each other: the cosine to the original's."""

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        cosines = []
        for one, other in zip(reference, found, strict=True):
            r, f = np.moveaxis(one, axis, -1).astype(np.float64), np.moveaxis(other, axis, -1).astype(np.float64)
            length = np.linalg.norm(r, axis=-1) * np.linalg.norm(f, axis=-1)
            cosines.append((np.sum(r * f, axis=-1) / np.maximum(length, 1e-30)).ravel()[length.ravel() > 1e-12])
        joined = np.concatenate(cosines)
        worst = float(np.quantile(joined, 0.02)) if joined.size else 1.0
        return Found(worst >= least, f"cosine {worst:.4f} in all but the worst 2 % of {joined.size}")

    return judge


def signal(least_db: float = 20.0) -> Rule:
    """Spectra, waveforms, recurrent state: energy of the error against that of the original."""

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        ratio = sqnr_db(reference, found)
        return Found(ratio >= least_db, f"{ratio:.1f} dB")

    return judge


def mask(threshold: float = 0.3, least: float = 0.95) -> Rule:
    """A map of scores that is cut at a threshold: intersection over union of all that is above it."""

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        r = np.concatenate([(one > threshold).ravel() for one in reference])
        f = np.concatenate([(one > threshold).ravel() for one in found])
        union = int(np.sum(r | f))
        share = float(np.sum(r & f) / union) if union else 1.0
        return Found(share >= least, f"overlap {share:.1%} of a mask of {np.mean(r):.1%}")

    return judge


def boxes(scores: slice, width_columns: tuple[int, int], axis: int = -1, threshold: float = 0.25) -> Rule:
    """Rows of box and scores: where the original is sure, the score stays, and the box within a tenth of its size.

    Args:
        scores: The columns of the scores; the four before them are the box.
        width_columns: Of the box's size, to measure the error against; equal to the first two where the box is corners.
        axis: Of the columns.
        threshold: Of the score. Where no row reaches it, the 20 best are compared.
    """

    def judge(reference: Sequence[Array], found: Sequence[Array]) -> Found:
        moved, changed, seen = [], [], 0
        for one, other in zip(reference, found, strict=True):
            r, f = (np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]).astype(np.float64) for a in (one, other))
            best = r[:, scores].max(axis=-1)
            chosen = np.flatnonzero(best >= threshold)
            seen += len(chosen)
            if not len(chosen):
                chosen = np.argsort(best)[-20:]
            size = np.maximum(np.abs(r[chosen][:, list(width_columns)]).mean(axis=-1, keepdims=True), 1e-6)
            moved.append((np.abs(r[chosen, :4] - f[chosen, :4]) / size).max(axis=-1))
            changed.append(np.abs(best[chosen] - f[chosen][:, scores].max(axis=-1)))
        box, score = float(np.mean(np.concatenate(moved))), float(np.mean(np.concatenate(changed)))
        text = f"boxes move by {box:.1%} of their size, scores by {score:.4f}, {seen} found"
        return Found(box <= 0.1 and score <= 0.05, text)

    return judge


def judged(rule: Rule | None, reference: Sequence[Array], found: Sequence[Array]) -> Found:
    """A rule on one output; without one, whether the shapes are right and the numbers finite."""
    fault = comparable(reference, found)
    if fault is not None:
        return Found(False, fault)
    return Found(True, "not judged") if rule is None else rule(reference, found)
