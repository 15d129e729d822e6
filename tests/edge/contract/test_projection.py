"""Random projections: the same everywhere, lengths are kept, and heads come back to the long features."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edge.contract.projection import BYTES_PER_SQUARE, Projection, projected_length

RNG = np.random.default_rng(0)


def test_the_signs_never_change() -> None:
    """A device with another numpy must have the same ones: its statistics are added to others."""
    found = Projection(70, 40).features(np.eye(70, dtype=np.float32))
    assert found.shape == (70, 40)
    np.testing.assert_allclose(np.abs(found), 1 / np.sqrt(40), rtol=1e-6)
    assert hashlib.sha256((found > 0).tobytes()).hexdigest().startswith("5045a2ba")


def test_lengths_and_angles_are_nearly_kept() -> None:
    x = RNG.normal(size=(60, 1280))
    z = Projection(1280, 700).features(x)
    before, after = x @ x.T, (z @ z.T).astype(np.float64)
    lengths = np.diag(before)
    np.testing.assert_allclose(np.diag(after), lengths, rtol=0.2)
    cosine = (after - before) / np.sqrt(np.outer(lengths, lengths))
    assert np.abs(cosine).max() < 0.2


def test_a_head_on_projected_features_is_one_on_plain_ones() -> None:
    projection, x, weights = Projection(50, 20), RNG.normal(size=(8, 50)), RNG.normal(size=(3, 20))
    np.testing.assert_allclose(
        x @ projection.lifted(weights).T, projection.features(x) @ weights.T, rtol=1e-4, atol=1e-5
    )


def test_a_batch_is_projected_as_its_samples_are() -> None:
    projection, x = Projection(200, 90), RNG.normal(size=(33, 200)).astype(np.float32)
    alone = np.concatenate([projection.features(row[None]) for row in x])
    assert (projection.features(x) == alone).all()
    assert projection.features(x[:0]).shape == (0, 90)


def test_sums_are_projected_as_features_are() -> None:
    projection, x, y = Projection(30, 12), RNG.normal(size=(40, 30)), RNG.normal(size=(40, 4))
    one = np.ones((40, 1))
    plain, short = np.hstack([x, one]), np.hstack([projection.features(x), one])
    np.testing.assert_allclose(projection.gram(plain.T @ plain), short.T @ short, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(projection.moment(plain.T @ y), short.T @ y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("n_features", "max_state_mb", "expected"), [(512, 64, None), (1280, 64, 1039), (2048, 32, 734)]
)
def test_features_are_shortened_to_what_memory_there_is(
    n_features: int, max_state_mb: float, expected: int | None
) -> None:
    assert projected_length(n_features, max_state_mb) == expected
    if expected is not None:
        assert BYTES_PER_SQUARE * (expected + 1) ** 2 <= max_state_mb * 2**20 < BYTES_PER_SQUARE * (expected + 2) ** 2
