"""Occlusion finds the region that an answer rests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.contract.errors import LearningError
from edge.learning.explain import occlude

Array = npt.NDArray[Any]


def bright(*region: slice) -> Any:
    """A score of two outputs: the brightness of a region, and one minus that."""

    def score(batch: Array) -> Array:
        index: tuple[Any, ...] = (slice(None), ..., *region)
        found = batch[index].reshape(len(batch), -1).mean(axis=1)
        return np.stack([found, 1 - found], axis=1)

    return score


def test_the_planted_region_of_an_image_is_found() -> None:
    image = np.random.default_rng(0).random((3, 16, 24)).astype(np.float32) * 0.2
    image[:, 4:8, 15:19] = 1.0
    found = occlude(bright(slice(4, 8), slice(15, 19)), image, 0, window=4)
    assert found.importance.shape == (16, 24)
    y, x = np.unravel_index(found.importance.argmax(), found.importance.shape)
    assert 4 <= y < 8
    assert 15 <= x < 19
    assert found.importance[4:8, 15:19].mean() > 5 * np.abs(found.importance[10:, :10]).mean() + 0.1
    assert not found.importance[12:].any()
    assert found.score == pytest.approx(1.0)
    assert found.output == 0


def test_what_speaks_against_an_output_is_negative() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    image[:, 2:4, 2:4] = 1.0
    found = occlude(bright(slice(2, 4), slice(2, 4)), image, 1, window=2)
    assert found.importance.min() < -0.5
    assert found.importance.max() <= 1e-6
    assert found.score == pytest.approx(0.0)


@pytest.mark.parametrize("shape", [(40,), (2, 40)])
def test_the_planted_region_of_a_signal_is_found(shape: tuple[int, ...]) -> None:
    signal = np.zeros(shape, np.float32)
    signal[..., 25:30] = 1.0
    found = occlude(bright(slice(25, 30)), signal, 0)
    assert found.importance.shape == (40,)
    assert 25 <= found.importance.argmax() < 30
    assert not found.importance[:20].any()


def test_every_place_is_covered_also_at_the_far_edges() -> None:
    for size in (1, 2, 7, 13, 33):
        found = occlude(
            lambda batch: batch.sum(axis=1)[:, None], np.ones(size), 0, window=min(4, size), neutral=np.zeros(1)
        )
        assert (found.importance > 0).all()


def test_what_covers_can_be_given() -> None:
    signal = np.ones(8, np.float32)  # by its own mean nothing would be covered
    score = bright(slice(2, 4))
    assert not occlude(score, signal, 0, window=2).importance.any()
    assert occlude(score, signal, 0, window=2, neutral=np.zeros(1)).importance[2:4].min() > 0


def test_the_sample_is_left_alone() -> None:
    signal = np.arange(8, dtype=np.float32)
    before = signal.copy()

    def score(batch: Array) -> Array:
        batch[:] += 1.0  # a score that writes into what it is given, as a careless one may
        return batch[:, :1]

    occlude(score, signal.copy(), 0, window=2)
    occlude(bright(slice(0, 2)), signal, 0, window=2)
    assert (signal == before).all()


def test_refuses_an_output_that_is_not_there_and_a_window_that_does_not_fit() -> None:
    for output, window in ((2, 2), (-1, 2), (0, 9), (0, -1)):
        with pytest.raises(LearningError):
            occlude(bright(slice(0, 2)), np.ones(8, np.float32), output, window)
