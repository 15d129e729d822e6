"""Quality under corrupted inputs: what a dirty lens, a loose cable or a worn sensor does to a model.

The same corrupted samples are given to every program, so that one can see whether a conversion made the model more
brittle. What is corrupted is the first input that holds measurements: floats, or integers of 8 or 16 bits. Others are
tokens or indices, for which a small error means nothing.

======================  ================================================================================
corruption              severity
======================  ================================================================================
``gaussian noise``      standard deviation, relative to that of the channel
``impulse noise``       share of the values that become the channel's smallest or largest
``missing values``      share of the values that become 0
``dropped sensor``      share of the features, neighbours, that become 0: the others of the sample stay
``dropped channel``     share of the channels that become 0: one
``gain``                factor on all values
``offset``              added to all values, relative to the standard deviation of the channel
``gain drift``          change of the factor from 1 at the beginning to the end of a sequence
``time gap``            share of the time, in one piece, that becomes 0
``blur``                standard deviation of the Gaussian in pixels
``brightness``          added to all values, relative to the range of the data
``contrast``            factor on the distance from the image's mean
``occlusion``           side of a patch, relative to the image's, that becomes the mean of the data
======================  ================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.data.samples import Samples
from converter.program.tensors import Array, Arrays, Run, in_batches, join, select
from edge.contract.tensorspec import BATCH, TensorSpec

_MEASUREMENTS = ("float32", "float16", "float64", "uint8", "int8", "int16", "uint16")
_AT_ONCE = 64
_SENSORS = 8
_MOST_SENSORS = 128


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Statistics:
    """Of all clean samples.

    Attributes:
        shape: Of one, ``(channels, ...)``.
        low: Smallest value of each channel, ``(channels, 1, ...)``.
        high: Largest, likewise.
        mean: Of all values.
        deviation: Standard deviation of each channel, ``(channels, 1, ...)``.
    """

    shape: tuple[int, ...]
    low: Array
    high: Array
    mean: float
    deviation: Array


_Apply = Callable[[Array, np.random.Generator], Array]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Corruption:
    """One row.

    Attributes:
        name: See the module.
        severity: See the module.
        apply: From ``(n, channels, ...)`` floats to the same shape.
    """

    name: str
    severity: float
    apply: _Apply


def robustness(
    runs: Mapping[str, Run],
    samples: Samples,
    specs: Sequence[TensorSpec],
    score: Callable[[Arrays, Array | None], float],
) -> list[dict[str, Any]]:
    """Score programs on corrupted samples; the same numbers every time.

    Args:
        runs: The programs.
        samples: Real ones.
        specs: Of the inputs.
        score: From the outputs on all samples, and the labels, to a number; greater is better.

    Returns:
        ``{"corruption": name, "severity": number, "scores": {program: score}}`` for ``none`` and for each corruption.
        Empty when no input holds measurements.
    """
    spec = next((s for s in specs if s.dtype in _MEASUREMENTS and s.batch_axis == 0 and len(s.shape) > 1), None)
    if spec is None:
        return []
    statistics = _measure(spec, samples.x[spec.name])
    found_specs = {name: _outputs_of(run, samples.x, specs) for name, run in runs.items()}
    rows = []
    for i, corruption in enumerate([None, *_corruptions(statistics)]):
        rng = np.random.default_rng(i)
        found: dict[str, list[Arrays]] = {name: [] for name in runs}
        for batch in in_batches(samples.x, specs, _AT_ONCE):
            if corruption is not None:
                batch[spec.name] = _corrupted(spec, batch[spec.name], corruption, statistics, rng)
            for name, run in runs.items():
                found[name].append(run(batch))
        rows.append(
            {
                "corruption": corruption.name if corruption else "none",
                "severity": corruption.severity if corruption else 0.0,
                "scores": {name: score(join(found[name], found_specs[name]), samples.y) for name in runs},
            }
        )
    return rows


def _outputs_of(run: Run, x: Arrays, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """A program's outputs; where their batch axis is, is seen on two batches of other sizes."""
    two, three = (run(select(x, specs, slice(0, n))) for n in (2, 3))
    return [
        TensorSpec(
            name=name,
            dtype=str(array.dtype),
            shape=tuple(BATCH if a != b else a for a, b in zip(array.shape, three[name].shape, strict=True)),
        )
        for name, array in two.items()
    ]


def _measure(spec: TensorSpec, clean: Array) -> _Statistics:
    """In pieces: a copy of all images as floats would be four times as large."""
    pieces = [_channels_first(spec, clean[i : i + _AT_ONCE]) for i in range(0, len(clean), _AT_ONCE)]
    axes = (0, *range(2, pieces[0].ndim))
    sizes = np.array([len(piece) for piece in pieces]) / len(clean)
    means = np.array([piece.mean(axis=axes, keepdims=True, dtype=np.float64)[0] for piece in pieces])
    variances = np.array([piece.var(axis=axes, keepdims=True, dtype=np.float64)[0] for piece in pieces])
    mean = np.average(means, axis=0, weights=sizes)
    variance = np.average(variances + np.square(means - mean), axis=0, weights=sizes)
    return _Statistics(
        shape=pieces[0].shape[1:],
        low=np.min([piece.min(axis=axes, keepdims=True)[0] for piece in pieces], axis=0),
        high=np.max([piece.max(axis=axes, keepdims=True)[0] for piece in pieces], axis=0),
        mean=float(mean.mean()),
        deviation=np.sqrt(variance).astype(np.result_type(clean.dtype, np.float32)),
    )


def _corrupted(
    spec: TensorSpec, clean: Array, corruption: _Corruption, statistics: _Statistics, rng: np.random.Generator
) -> Array:
    """A corrupted copy: same shape, same type; integers within their type, float images within the data's range."""
    x = _channels_first(spec, clean.astype(np.result_type(clean.dtype, np.float32)))
    made = _as_it_was(spec, corruption.apply(x, rng))
    if clean.dtype.kind in "iu":
        limits = np.iinfo(clean.dtype)
        made = np.rint(made).clip(limits.min, limits.max)
    elif clean.ndim == 4:
        made = made.clip(statistics.low.min(), statistics.high.max())
    return np.asarray(made, dtype=clean.dtype, order="C")


def _channel_axis(spec: TensorSpec) -> int:
    """Where the channels are.

    The last of ``(batch, height, width, 1 to 4)`` uint8. Of a sequence's two axes, the one that is not time, which is
    the free one or else the longer one. Otherwise 1.
    """
    size = spec.shape[-1]
    if len(spec.shape) == 4 and spec.dtype == "uint8" and isinstance(size, int) and size <= 4:
        return 3
    if len(spec.shape) == 3:
        one, two = (np.inf if isinstance(axis, str) else axis for axis in spec.shape[1:])
        return 2 if one > two else 1
    return 1


def _is_wave(spec: TensorSpec) -> bool:
    """Whether ``(batch, n)`` are samples in time: as many as there are, or more int16 than a device has sensors."""
    if len(spec.shape) != 2:
        return False
    size = spec.shape[1]
    return isinstance(size, str) or (spec.dtype == "int16" and size > _MOST_SENSORS)


def _channels_first(spec: TensorSpec, x: Array) -> Array:
    return x[:, None] if _is_wave(spec) else np.moveaxis(x, _channel_axis(spec), 1)


def _as_it_was(spec: TensorSpec, x: Array) -> Array:
    return x[:, 0] if _is_wave(spec) else np.moveaxis(x, 1, _channel_axis(spec))


def _corruptions(of: _Statistics) -> list[_Corruption]:
    """What can happen to an input of this shape."""
    channels = of.shape[0]
    common = [
        *(_Corruption(name="gaussian noise", severity=s, apply=_noise(s * of.deviation)) for s in (0.1, 0.5)),
        _Corruption(name="impulse noise", severity=0.02, apply=_impulses(0.02, of.low, of.high)),
    ]
    if len(of.shape) == 1:
        dropped = -(-channels // _SENSORS)
        return [
            *common,
            *(_Corruption(name="missing values", severity=s, apply=_missing(s)) for s in (0.1, 0.3)),
            _Corruption(name="dropped sensor", severity=round(dropped / channels, 3), apply=_dropped(dropped)),
            *(_Corruption(name="gain", severity=s, apply=_gain(s)) for s in (0.03, 0.9, 1.1)),
            *(_Corruption(name="offset", severity=s, apply=_shift(s * of.deviation)) for s in (-0.25, 0.25)),
        ]
    if len(of.shape) == 2:
        drop = _Corruption(name="dropped channel", severity=round(1 / channels, 3), apply=_dropped(1))
        return [
            *common,
            _Corruption(name="missing values", severity=0.1, apply=_missing(0.1)),
            *([drop] if channels > 1 else []),
            _Corruption(name="gain", severity=0.03, apply=_gain(0.03)),  # another microphone, further away
            *(_Corruption(name="time gap", severity=s, apply=_gap(s)) for s in (0.1, 0.25)),
            *(_Corruption(name="gain drift", severity=s, apply=_drift(s)) for s in (-0.3, 0.3)),
            _Corruption(name="offset", severity=0.25, apply=_shift(0.25 * of.deviation)),
        ]
    if len(of.shape) == 3:
        side = min(of.shape[1:])
        spread = np.asarray(float(of.high.max()) - float(of.low.min()), of.deviation.dtype)
        blurs = (max(0.5, side / 200), max(1.0, side / 100))
        return [
            *common,
            *(_Corruption(name="blur", severity=s, apply=_blur(s)) for s in blurs),
            *(_Corruption(name="brightness", severity=s, apply=_shift(s * spread)) for s in (-0.2, 0.2)),
            *(_Corruption(name="contrast", severity=s, apply=_contrast(s)) for s in (0.5, 1.5)),
            *(_Corruption(name="occlusion", severity=s, apply=_occlusion(s, of.mean)) for s in (0.25, 0.5)),
        ]
    return common


def _noise(deviation: Array) -> _Apply:
    return lambda x, rng: x + deviation * rng.standard_normal(x.shape, np.float32)


def _impulses(share: float, low: Array, high: Array) -> _Apply:
    def apply(x: Array, rng: np.random.Generator) -> Array:
        chance = rng.random(x.shape, np.float32)
        return np.where(chance < share / 2, low, np.where(chance < share, high, x))

    return apply


def _missing(share: float) -> _Apply:
    return lambda x, rng: x * (rng.random(x.shape, np.float32) >= share)


def _dropped(count: int) -> _Apply:
    """As many neighbouring channels, others in each sample, are 0."""

    def apply(x: Array, rng: np.random.Generator) -> Array:
        first = rng.integers(0, x.shape[1] - count + 1, len(x))[:, None]
        channel = np.arange(x.shape[1])
        kept = (channel < first) | (channel >= first + count)
        return x * kept.reshape(*kept.shape, *[1] * (x.ndim - 2))

    return apply


def _gain(factor: float) -> _Apply:
    return lambda x, _: x * factor


def _gap(share: float) -> _Apply:
    def apply(x: Array, rng: np.random.Generator) -> Array:
        length = max(1, round(share * x.shape[2]))
        first = rng.integers(0, x.shape[2] - length + 1, len(x))[:, None, None]
        time = np.arange(x.shape[2])
        kept: Array = (time < first) | (time >= first + length)
        return x * kept

    return apply


def _drift(change: float) -> _Apply:
    return lambda x, _: x * np.linspace(1.0, 1.0 + change, x.shape[2], dtype=x.dtype)


def _shift(amount: Array) -> _Apply:
    return lambda x, _: x + amount


def _contrast(factor: float) -> _Apply:
    def apply(x: Array, _: np.random.Generator) -> Array:
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        made: Array = mean + factor * (x - mean)
        return made

    return apply


def _blur(deviation: float) -> _Apply:
    """Convolution with a Gaussian, one axis after the other; the edge is repeated outwards."""
    radius = int(np.ceil(3 * deviation))
    weights = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / deviation))
    weights /= weights.sum()

    def apply(x: Array, _: np.random.Generator) -> Array:
        for _axis in range(2):  # along the width, then turned and along the height
            size = x.shape[3]
            wide = np.pad(x, ((0, 0), (0, 0), (0, 0), (radius, radius)), mode="edge")
            blurred = np.zeros_like(x)
            for i, weight in enumerate(weights):
                blurred += float(weight) * wide[..., i : i + size]
            x = blurred.swapaxes(2, 3)
        return x

    return apply


def _occlusion(share: float, value: float) -> _Apply:
    """A rectangle in each image, wherever it fits."""

    def apply(x: Array, rng: np.random.Generator) -> Array:
        inside = np.ones((len(x), 1, 1, 1), np.bool_)
        for axis in (2, 3):
            size = x.shape[axis]
            length = max(1, round(share * size))
            first = rng.integers(0, size - length + 1, len(x)).reshape(-1, 1, 1, 1)
            place = np.arange(size).reshape((-1, 1) if axis == 2 else (-1,))
            inside = inside & (place >= first) & (place < first + length)
        return np.where(inside, np.asarray(value, x.dtype), x)

    return apply
