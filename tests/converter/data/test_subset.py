"""Samples in memory, some of many, random ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from converter.data.samples import Samples
from converter.data.subset import InMemory, random_samples, subset
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
STATE = TensorSpec(name="state", dtype="float32", shape=(2, "batch", 3))
FREE = TensorSpec(name="x", dtype="float32", shape=("batch", "time"))
SCALE = TensorSpec(name="scale", dtype="float32", shape=(2,))


def numbered(count: int) -> InMemory:
    """Samples whose values and labels are their position."""
    x = np.repeat(np.arange(count, dtype=np.float32)[:, None], 4, axis=1)
    return InMemory(Samples({"x": x}, np.arange(count)), "numbers", [X])


@dataclass
class Empty:
    origin: str = "nothing"
    class_names: tuple[str, ...] | None = None

    def batches(self, size: int) -> Iterator[Samples]:
        return iter(())


def test_samples_in_memory_are_cut_along_their_batch_axes() -> None:
    state = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    x = {"state": state, "scale": np.ones(2, np.float32)}
    stream = InMemory(Samples(x, np.arange(5)), "the checkpoint", [STATE, SCALE])
    batches = list(stream.batches(2))
    assert (stream.origin, stream.class_names) == ("the checkpoint", None)
    assert [batch.y.tolist() for batch in batches if batch.y is not None] == [[0, 1], [2, 3], [4]]
    np.testing.assert_array_equal(batches[1].x["state"], state[:, 2:4])
    assert batches[1].x["scale"].shape == (2,)


@pytest.mark.parametrize("spec", [X, FREE])
def test_a_stream_that_fits_is_kept_whole_and_in_order(spec: TensorSpec) -> None:
    samples = subset(numbered(100), [spec], max_samples=100, max_bytes=100 * 16)
    assert samples.y is not None
    assert samples.y.tolist() == list(range(100))
    assert samples.x["x"][:, 0].tolist() == list(range(100))


@pytest.mark.parametrize(
    ("max_samples", "max_bytes", "count"), [(10, 1 << 20, 10), (1000, 10 * 16, 10), (1000, 16 * 11 - 1, 10), (9, 1, 1)]
)
def test_no_more_than_was_asked_for_in_order_and_the_same_again(max_samples: int, max_bytes: int, count: int) -> None:
    one, again, other = (
        subset(numbered(300), [X], max_samples=max_samples, max_bytes=max_bytes, seed=seed) for seed in (0, 0, 1)
    )
    assert one.y is not None
    assert again.y is not None
    assert other.y is not None
    assert len(one.y) == count
    assert one.y.tolist() == sorted(set(one.y.tolist())) == one.x["x"][:, 0].tolist() == again.y.tolist()
    assert one.y.tolist() != other.y.tolist()


def test_each_sample_is_equally_likely() -> None:
    counts = np.zeros(40)
    for seed in range(1000):
        chosen = subset(numbered(40), [X], max_samples=10, max_bytes=1 << 20, seed=seed).y
        assert chosen is not None
        counts[chosen] += 1
    # Each count is binomial, 1000 trials with probability 1/4: standard deviation 13.7.
    assert np.abs(counts - 250).max() < 5 * 13.7


def test_what_is_kept_does_not_hold_the_stream() -> None:
    samples = subset(numbered(100), [X], max_samples=1, max_bytes=1 << 20)
    assert samples.x["x"].base is None or samples.x["x"].base.nbytes <= 16


def test_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing has no samples"):
        subset(Empty(), [X], max_samples=1, max_bytes=1)


def test_random_samples_look_like_the_example() -> None:
    specs = [
        TensorSpec(name="floats", dtype="float16", shape=("batch", "time", 3)),
        TensorSpec(name="pixels", dtype="uint8", shape=("batch", 50)),
        TensorSpec(name="tokens", dtype="int64", shape=("batch", 2)),
        TensorSpec(name="mask", dtype="bool", shape=("batch", 2)),
        STATE,
        SCALE,
    ]
    example = {
        "floats": np.zeros((1, 7, 3), np.float16),
        "pixels": np.zeros((1, 50), np.uint8),
        "tokens": np.array([[4, 5]]),
        "mask": np.array([[True, False]]),
        "state": np.zeros((2, 1, 3), np.float32),
        "scale": np.array([1, 2], np.float32),
    }
    samples, again, other = (random_samples(specs, example, 20, seed) for seed in (0, 0, 1))
    assert samples.y is None
    shapes = {name: array.shape for name, array in samples.x.items()}
    assert shapes == {
        "floats": (20, 7, 3),
        "pixels": (20, 50),
        "tokens": (20, 2),
        "mask": (20, 2),
        "state": (2, 20, 3),
        "scale": (2,),
    }
    assert all(samples.x[spec.name].dtype == spec.dtype for spec in specs)
    assert (samples.x["tokens"] == [4, 5]).all()
    assert samples.x["pixels"].min() < 10
    assert samples.x["pixels"].max() > 245
    assert 0.8 < samples.x["floats"].std() < 1.2
    for name, array in samples.x.items():
        np.testing.assert_array_equal(array, again.x[name])
    assert not np.array_equal(samples.x["floats"], other.x["floats"])


def test_large_random_samples_are_fewer() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 512, 512))
    for side, count in ((8, 256), (512, 16)):
        example = {"x": np.zeros((1, 3, side, side), np.float32)}
        assert len(random_samples([spec], example, 256).x["x"]) == count
