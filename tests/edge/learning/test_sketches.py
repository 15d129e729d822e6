from __future__ import annotations

import numpy as np

from edge.learning.sketches import LENGTH, Sketcher, cosines

ONE, OTHER = "1" * 64, "2" * 64


def samples(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_sketches_are_as_alike_as_the_features_without_what_is_usual() -> None:
    usual = samples(64, 192, 0) + 50.0
    x = usual[:1] + np.linspace(0.0, 3.0, 12)[:, None] * samples(12, 192, 1)
    centred = x - usual.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    codes = Sketcher(192, ONE).sketches(x, usual)
    assert codes.dtype == np.int8
    assert codes.shape == (12, LENGTH)
    # Of 64 signs: a standard deviation of an eighth at most.
    assert np.abs(cosines(codes, codes) - unit @ unit.T).max() < 0.4
    assert np.allclose(np.diag(cosines(codes, codes)), 1.0, atol=1e-5)


def test_devices_of_one_backbone_map_alike_and_of_two_do_not() -> None:
    usual, x = samples(32, 192, 0), samples(8, 192, 1)
    first = Sketcher(192, ONE).sketches(x, usual)
    assert (Sketcher(192, ONE).sketches(x, usual) == first).all()
    assert np.diag(cosines(Sketcher(192, OTHER).sketches(x, usual), first)).max() < 0.6


def test_the_light_of_a_device_is_not_in_a_sketch() -> None:
    usual, x = samples(32, 192, 0), samples(8, 192, 1)
    here = Sketcher(192, ONE).sketches(x, usual)
    brighter = Sketcher(192, ONE).sketches(3.0 * x + 7.0, 3.0 * usual + 7.0)
    assert np.diag(cosines(here, brighter)).min() > 0.999


def test_a_sample_that_is_the_mean_is_like_nothing() -> None:
    usual = np.ones((9, 16), np.float32)
    codes = Sketcher(16, ONE).sketches(usual[:2], usual)
    assert not codes.any()
    assert not cosines(codes, codes).any()
