"""What is calibrated on and what is measured on have no sample in common."""

from __future__ import annotations

import numpy as np
import pytest

from converter.data.holdout import different, digests, halves
from converter.data.samples import Samples
from edge.contract.tensorspec import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
STATE = TensorSpec(name="h", dtype="float32", shape=(2, "batch", 4))
RATE = TensorSpec(name="sr", dtype="int64", shape=())


def samples(n: int, y: np.ndarray | None = None, repeat: int = 1) -> Samples:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((n, 3)).astype(np.float32), repeat, axis=0)
    return Samples({"x": x, "h": np.zeros((2, len(x), 4), np.float32), "sr": np.array(16000)}, y)


def test_halves_share_nothing_are_the_same_every_time_and_hold_every_class() -> None:
    y = np.repeat([0, 1, 2], [150, 40, 10])
    for labels in (None, y):
        both = halves(samples(200, labels), (X, STATE, RATE), most_calibration=512)
        again = halves(samples(200, labels), (X, STATE, RATE), most_calibration=512)
        one, other = (set(digests(part.x, (X, STATE, RATE))) for part in (both.calibration, both.measured))
        assert (len(one), len(other), one & other) == (100, 100, set())
        np.testing.assert_array_equal(both.measured.x["x"], again.measured.x["x"])
        assert both.measured.x["h"].shape == (2, 100, 4)
        assert both.measured.x["sr"] == 16000
    for part in (both.calibration, both.measured):
        assert part.y is not None
        assert np.bincount(part.y).tolist() == [75, 20, 5]


@pytest.mark.parametrize(("n", "calibrated"), [(32, 16), (33, 16), (1000, 500), (1100, 512), (2512, 512)])
def test_at_most_so_many_are_calibrated_on(n: int, calibrated: int) -> None:
    both = halves(samples(n), (X, STATE, RATE), most_calibration=512)
    assert (len(both.calibration.x["x"]), len(both.measured.x["x"])) == (calibrated, n - calibrated)


def test_an_order_in_the_data_does_not_decide_who_is_on_which_side() -> None:
    """Every second sample is of one kind: both kinds are on both sides."""
    plain = samples(100)
    kind = np.arange(100) % 2
    plain.x["x"][:, 0] = kind
    both = halves(plain, (X, STATE, RATE), most_calibration=512)
    for part in (both.calibration, both.measured):
        assert 0.3 < part.x["x"][:, 0].mean() < 0.7


def test_repeated_samples_count_once_and_those_of_another_set_not_at_all() -> None:
    many = samples(50, np.repeat(np.arange(50), 4), repeat=4)
    once = different(many, (X, STATE, RATE))
    assert once.y is not None
    assert once.y.tolist() == list(range(50))
    few = Samples({name: array[..., :20, :] if array.ndim > 1 else array for name, array in once.x.items()}, None)
    assert len(different(many, (X, STATE, RATE), without=few).x["x"]) == 30
    assert different(once, (X, STATE, RATE)) is once
