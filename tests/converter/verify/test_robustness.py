"""Robustness: rows for each shape of input, and what every corruption does to the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from converter.data.samples import Samples
from converter.program.tensors import Array, Arrays, Run
from converter.verify.robustness import robustness
from edge.contract.tensorspec import TensorSpec

SHAPES: list[tuple[str, tuple[int | str, ...]]] = [
    ("float32", (20,)),
    ("float16", (3,)),
    ("int16", (200,)),
    ("float32", ("samples",)),
    ("float32", (3, 40)),
    ("float64", ("time", 6)),
    ("float32", (3, 16, 12)),
    ("uint8", (16, 12, 3)),
    ("uint8", (3, 16, 12)),
    ("float32", (2, 3, 4, 5)),
]


def spec_of(dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=("batch", *shape))


def data(spec: TensorSpec, n: int = 150) -> Array:
    rng = np.random.default_rng(1)
    shape = [n, *(25 if isinstance(axis, str) else axis for axis in spec.shape[1:])]
    if spec.dtype.startswith("float"):
        return (rng.standard_normal(shape) + 1.0).astype(spec.dtype)
    limits = np.iinfo(spec.dtype)
    return rng.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True)


def identity(batch: Mapping[str, Array]) -> Arrays:
    return {"y": batch["x"]}


def corrupted(spec: TensorSpec, clean: Array) -> dict[tuple[str, float], Array]:
    """The samples as programs get them."""
    seen: list[Array] = []

    def keep(found: Arrays, _: Array | None) -> float:
        seen.append(found["y"])
        return 0.0

    rows = robustness({"m": identity}, Samples({"x": clean}, None), [spec], keep)
    return {(row["corruption"], row["severity"]): array for row, array in zip(rows, seen, strict=True)}


@pytest.mark.parametrize(("dtype", "shape"), SHAPES)
def test_type_shape_and_range_stay(dtype: str, shape: tuple[int | str, ...]) -> None:
    spec = spec_of(dtype, *shape)
    clean = data(spec)
    before = clean.copy()
    found = corrupted(spec, clean)
    assert next(iter(found)) == ("none", 0.0)
    assert len(found) <= 12
    for (name, _), array in found.items():
        assert (array.shape, array.dtype) == (clean.shape, clean.dtype)
        assert np.isfinite(array.astype(float)).all()
        assert np.array_equal(array, clean) == (name == "none"), name
        if dtype == "float32" and len(shape) == 3:
            assert array.min() >= clean.min()
            assert array.max() <= clean.max()
    assert np.array_equal(clean, before)


@pytest.mark.parametrize(("dtype", "shape"), SHAPES)
def test_the_same_every_time(dtype: str, shape: tuple[int | str, ...]) -> None:
    spec = spec_of(dtype, *shape)
    one, two = corrupted(spec, data(spec)), corrupted(spec, data(spec))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[row], two[row]) for row in one)


def names(spec: TensorSpec) -> set[str]:
    return {name for name, _ in corrupted(spec, data(spec))}


def test_corruptions_by_shape() -> None:
    common = {"none", "gaussian noise", "impulse noise"}
    assert names(spec_of("float32", 20)) == common | {"missing values", "dropped sensor", "gain", "offset"}
    sequence = common | {"missing values", "gain", "time gap", "gain drift", "offset"}
    assert names(spec_of("float32", 3, 40)) == sequence | {"dropped channel"}
    assert names(spec_of("int16", 200)) == sequence
    assert names(spec_of("int16", 6)) == names(spec_of("float32", 20))
    assert names(spec_of("uint8", 16, 12, 3)) == common | {"blur", "brightness", "contrast", "occlusion"}
    assert names(spec_of("float32", 2, 3, 4, 5)) == common


def test_noise_is_relative_to_each_feature() -> None:
    spec = spec_of("float32", 2)
    clean = data(spec, 4000) * np.array([1.0, 1000.0], np.float32)
    noise = corrupted(spec, clean)["gaussian noise", 0.5] - clean
    np.testing.assert_allclose(noise.std(axis=0) / clean.std(axis=0), 0.5, rtol=0.05)


def test_impulses_and_missing_values_hit_their_share() -> None:
    spec = spec_of("float32", 50)
    clean = data(spec, 1000)
    found = corrupted(spec, clean)
    assert (found["missing values", 0.1] == 0).mean() == pytest.approx(0.1, abs=0.01)
    hit = found["impulse noise", 0.02] != clean
    assert hit.mean() == pytest.approx(0.02, abs=0.003)
    extremes = (found["impulse noise", 0.02] == clean.min(axis=0)) | (found["impulse noise", 0.02] == clean.max(axis=0))
    assert extremes[hit].all()


def test_dropped_sensor_is_one_piece_of_each_sample() -> None:
    spec = spec_of("float32", 16)
    found = corrupted(spec, data(spec))["dropped sensor", 0.125] == 0
    assert (found.sum(axis=1) == 2).all()
    first = found.argmax(axis=1)
    assert found[np.arange(len(found)), first + 1].all()
    assert len(set(first)) > 5


@pytest.mark.parametrize(("shape", "channel"), [((3, 40), 1), ((40, 3), 2), (("time", 30), 2), ((30, "time"), 1)])
def test_channel_and_time_of_a_sequence(shape: tuple[int | str, ...], channel: int) -> None:
    spec = spec_of("float32", *shape)
    clean = data(spec)
    found = corrupted(spec, clean)
    channels, time = clean.shape[channel], clean.shape[3 - channel]
    dropped = (found["dropped channel", round(1 / channels, 3)] == 0).all(axis=3 - channel)
    assert (dropped.sum(axis=1) == 1).all()
    gap = (found["time gap", 0.1] == 0).all(axis=channel)
    assert (gap.sum(axis=1) == round(0.1 * time)).all()
    drift = np.moveaxis(found["gain drift", 0.3] / clean, channel, 1)
    np.testing.assert_allclose(drift[:, :, 0], 1.0, rtol=1e-5)
    np.testing.assert_allclose(drift[:, :, -1], 1.3, rtol=1e-5)


def test_gain_and_offset() -> None:
    spec = spec_of("float32", 5)
    clean = data(spec)
    found = corrupted(spec, clean)
    np.testing.assert_allclose(found["gain", 1.1], clean * 1.1, rtol=1e-5)
    np.testing.assert_allclose(found["offset", -0.25], clean - 0.25 * clean.std(axis=0), atol=1e-5)


def test_blur_is_a_gaussian() -> None:
    spec = spec_of("float32", 3, 16, 12)
    clean = data(spec, 4)
    weights = np.exp(-0.5 * np.arange(-3, 4) ** 2.0)
    kernel = torch.from_numpy(np.outer(weights, weights) / weights.sum() ** 2).float().expand(3, 1, 7, 7)
    padded = functional.pad(torch.from_numpy(clean), (3, 3, 3, 3), mode="replicate")
    wanted = functional.conv2d(padded, kernel, groups=3).numpy()
    np.testing.assert_allclose(corrupted(spec, clean)["blur", 1.0], wanted, atol=1e-5)


def test_brightness_contrast_and_occlusion() -> None:
    spec = spec_of("uint8", 16, 12, 3)
    clean = data(spec, 6)
    found = corrupted(spec, clean)
    np.testing.assert_array_equal(found["brightness", 0.2], np.rint(clean + 0.2 * 255).clip(0, 255).astype(np.uint8))
    mean = clean.mean(axis=(1, 2, 3), keepdims=True)
    assert np.abs(found["contrast", 0.5] - (mean + 0.5 * (clean - mean))).max() <= 0.51
    changed = (found["occlusion", 0.5] != clean).any(axis=3)
    for image, hidden in zip(found["occlusion", 0.5], changed, strict=True):
        rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
        assert (len(rows), len(columns)) == (8, 6)
        patch = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (patch == round(clean.mean())).all()


def classifier() -> tuple[Run, Samples]:
    """The class is the sign of the sum: right on clean samples, hurt by noise."""
    x = data(spec_of("float32", 20), 400) - 1.0
    y = (x.sum(axis=1) > 0).astype(np.int64)

    def run(batch: Mapping[str, Array]) -> Arrays:
        assert len(batch["x"]) <= 64
        total = batch["x"].sum(axis=1)
        return {"logits": np.stack([-total, total], axis=1), "steps": np.arange(3)}

    return run, Samples({"x": x}, y)


def accuracy(found: Arrays, y: Array | None) -> float:
    assert y is not None
    assert found["logits"].shape == (len(y), 2)
    assert found["steps"].shape == (3,)
    return float((found["logits"].argmax(axis=1) == y).mean())


def test_scores_fall_and_stay_apart_by_program() -> None:
    run, samples = classifier()

    def wrong(batch: Mapping[str, Array]) -> Arrays:
        found = run(batch)
        return {**found, "logits": found["logits"][:, ::-1]}

    rows = robustness({"good": run, "wrong": wrong}, samples, [spec_of("float32", 20)], accuracy)
    assert rows[0] == {"corruption": "none", "severity": 0.0, "scores": {"good": 1.0, "wrong": 0.0}}
    scores: dict[Any, float] = {(row["corruption"], row["severity"]): row["scores"]["good"] for row in rows}
    assert scores["gaussian noise", 0.5] < scores["gaussian noise", 0.1] < 1.0
    assert scores["missing values", 0.3] < scores["missing values", 0.1] < 1.0
    assert scores["gain", 1.1] == 1.0
    assert all(row["scores"]["good"] + row["scores"]["wrong"] == pytest.approx(1.0) for row in rows)


@pytest.mark.parametrize("count", [1, 2, 3, 65])
def test_any_number_of_samples(count: int) -> None:
    spec = spec_of("int8", 2, 9, 9)
    found = corrupted(spec, data(spec, count))
    assert all(array.shape == (count, 2, 9, 9) for array in found.values())
    assert (found["brightness", 0.2] >= found["none", 0.0]).all()


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
def test_tokens_are_not_corrupted(dtype: str) -> None:
    samples = Samples({"x": np.ones((4, 7), dtype)}, None)
    assert robustness({"m": identity}, samples, [spec_of(dtype, "time")], lambda *_: 0.0) == []


def test_only_the_first_measurement_is_corrupted() -> None:
    specs = [
        TensorSpec(name="ids", dtype="int64", shape=("batch", 3)),
        TensorSpec(name="state", dtype="float32", shape=(2, "batch", 4)),
        spec_of("float32", 5),
        TensorSpec(name="more", dtype="float32", shape=("batch", 5)),
    ]
    x = {
        "ids": np.arange(12).reshape(4, 3),
        "state": np.ones((2, 4, 4), np.float32),
        "x": data(specs[2], 4),
        "more": data(specs[2], 4),
    }
    changed: set[str] = set()

    def run(batch: Mapping[str, Array]) -> Arrays:
        if len(batch["x"]) == 4:
            changed.update(name for name in x if not np.array_equal(batch[name], x[name]))
        return {"y": batch["x"]}

    assert robustness({"m": run}, Samples(x, None), specs, lambda *_: 0.0)
    assert changed == {"x"}
