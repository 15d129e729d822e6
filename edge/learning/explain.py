"""Which regions mattered for a prediction: occlusion (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2).

A window is moved over the last one or two axes of a sample; what it covers is replaced by a neutral value, and the fall
of the answer is how much that region mattered. No gradient is needed, so it works for whatever the model is made of,
quantized or not, and on features as on inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError

_BATCH = 32

Score = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Explanation:
    """How much each region mattered.

    Attributes:
        importance: ``(height, width)`` or ``(length,)`` float64: by how much the score falls when the place is covered,
            averaged over all windows that cover it. Negative where the score rises.
        output: Which output was explained.
        score: Its score for the sample as it is: the probability of a class, or a quantity.
        novelty: How far the sample is from all known classes, above 1 for none of them; None where nobody asked.
    """

    importance: npt.NDArray[np.float64]
    output: int
    score: float
    novelty: float | None = None


def occlude(
    score: Score, x: npt.NDArray[Any], output: int, window: int | None = None, neutral: npt.NDArray[Any] | None = None
) -> Explanation:
    """Cover a sample piece by piece.

    Args:
        score: Scores ``(batch, n_outputs)`` of samples ``(batch, *shape)``.
        x: One sample ``(*shape)``. Of three axes or more the last two are space, of one or two the last one.
        output: Whose score to explain.
        window: Side of the window; an eighth of the longest side, but two places at least, when None.
        neutral: What covers, broadcast to x; the mean over space when None.

    Raises:
        LearningError: There is no such output, the window does not fit, or a score is not finite.
    """
    n_space = 2 if x.ndim >= 3 else 1
    space = x.shape[-n_space:]
    side = window or max(min(2, max(space)), max(space) // 8)
    if not 0 < side <= max(space):
        raise LearningError(f"a window of {side} does not fit a sample of {'x'.join(map(str, space))}")
    whole = _finite(score(x[None]))[0]
    if not 0 <= output < len(whole):
        raise LearningError(f"there is no output {output}; expected 0 to {len(whole) - 1}")
    axes = tuple(range(-n_space, 0))
    cover = x.mean(axis=axes, keepdims=True, dtype=np.float64) if neutral is None else neutral
    cover = np.broadcast_to(np.asarray(cover), x.shape).astype(x.dtype)
    step = max(1, side // 2)
    starts = [sorted({*range(0, max(1, size - side + 1), step), max(0, size - side)}) for size in space]
    places = [(a,) for a in starts[0]] if n_space == 1 else [(a, b) for a in starts[0] for b in starts[1]]
    fall, covered = np.zeros(space), np.zeros(space)
    for first in range(0, len(places), _BATCH):
        chosen = places[first : first + _BATCH]
        batch = np.repeat(x[None], len(chosen), axis=0)
        regions: list[tuple[Any, ...]] = [tuple(slice(start, start + side) for start in place) for place in chosen]
        for row, region in zip(batch, regions, strict=True):
            np.copyto(row[(Ellipsis, *region)], cover[(Ellipsis, *region)])
        for region, found in zip(regions, _finite(score(batch)), strict=True):
            fall[region] += float(whole[output] - found[output])
            covered[region] += 1
    return Explanation(fall / np.maximum(covered, 1), output, float(whole[output]))


def _finite(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not np.isfinite(scores).all():
        raise LearningError("the answer for this sample is not finite: there is nothing to explain")
    return scores
