"""A sample beside others that are nothing like it: what works over the axis of the samples shows there.

A peak that is divided by only where it clips, a branch on the largest value, a mean that counts above a limit: on
samples of one kind such a program gives for several what it gives for each alone, and yet one loud sample changes the
answers of all others that are run with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from converter.program.tensors import Array, Arrays, Run, join
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import TensorSpec

_NEAR, _NEAR_HALF = 1e-4, 1e-2
# Of what is ten times as large more is left to the order of the sums: shares of large logits.
_NEAR_ODD = 1e-2
_LOUD, _QUIET = 10.0, 1e-3
_LARGE, _SMALL = "larger", "smaller"
# Of samples of more values fewer others are tried: each run takes a second.
_MUCH = 1 << 17
# Integers of so many bytes are pixels and sound.
_LEVEL_BYTES = 2

Change = Callable[[Array], Array]
"""One sample of an input to another, of the same shape and type."""


def swayed(run: Run, alone: Run, sample: Arrays, specs: Sequence[TensorSpec]) -> str | None:
    """What is seen where others of its batch change what a program gives for a sample, in words; None where none does.

    The others are as the sample but larger and smaller, of other signs, all zero, all the same, in another order; they
    lie before it and behind it. What the program does not take is passed over, and so is one whose answers grow with
    the values.

    Args:
        run: Takes three samples at once.
        alone: What it is compared with; takes one.
        sample: One, with its batch axis.
        specs: Of the inputs.
    """
    wanted = _given(alone, sample)
    if wanted is None or not any(spec.batch_axis is not None for spec in specs):
        return None
    odd = {_LARGE: _changed(sample, specs, _times(_LOUD)), _SMALL: _changed(sample, specs, _times(1 / _LOUD))}
    answers = {words: _given(alone, other) for words, other in odd.items()}
    if any(found is not None and _shapes(found) != _shapes(wanted) for found in answers.values()):
        return None
    for words, before, behind in _others(sample, specs):
        name = _differs(run, (before, sample, behind), specs, wanted, None)
        if name is not None:
            return f"{name} is another beside samples that are {words}"
    odd[_SMALL] = _changed(sample, specs, _times(_QUIET))
    answers[_SMALL] = _given(alone, odd[_SMALL])
    for words, found in answers.items():
        name = None if found is None else _differs(run, (sample, odd[words], sample), specs, found, _NEAR_ODD)
        if name is not None:
            return f"{name} of a sample that is {words} than others is another beside these"
    return None


def _others(sample: Arrays, specs: Sequence[TensorSpec]) -> Iterator[tuple[str, Arrays, Arrays]]:
    """What they are, and two samples of it; where nothing changes there are none."""

    def both(words: str, first: Change, second: Change) -> Iterator[tuple[str, Arrays, Arrays]]:
        before, behind = _changed(sample, specs, first), _changed(sample, specs, second)
        if any(not np.array_equal(array, sample[name]) for name, array in before.items()):
            yield words, before, behind

    if sum(array.size for array in sample.values()) > _MUCH:
        yield from both("up to 1000 times as large", _times(1000), _times(10))
        yield from both("up to 1000 times as large and negative", _times(-1000), _times(-10))
        yield from both("all zero or all the same", _times(0), _all(1))
        return
    for factor in (10, 100, 1000):
        yield from both(f"{factor} times as large", _times(factor), _times(factor))
        yield from both(f"{factor} times as large and negative", _times(-factor), _times(-factor))
    yield from both("a tenth or less as large", _times(0.1), _times(0.001))
    yield from both("of other signs", _times(-1), _turned_signs)
    yield from both("all zero", _times(0), _times(0))
    yield from both("the same everywhere, and large", _all(1), _all(100))
    yield from both("the same everywhere, and small", _all(-1), _all(-100))
    yield from both("in another order", _reversed, _reversed)


def _changed(sample: Arrays, specs: Sequence[TensorSpec], change: Change) -> Arrays:
    """The sample with other values where it has a batch axis."""
    with np.errstate(all="ignore"):
        return {
            spec.name: sample[spec.name] if spec.batch_axis is None else change(sample[spec.name]) for spec in specs
        }


def _times(factor: float) -> Change:
    """Levels are multiplied, those of few bits within their range; what wider integers count or name stays as it is."""

    def change(array: Array) -> Array:
        if array.dtype.kind == "f":
            return np.asarray((array.astype(np.float64) * factor).astype(array.dtype))
        if array.dtype.kind not in "iu" or array.dtype.itemsize > _LEVEL_BYTES:
            return array
        limits = np.iinfo(array.dtype)
        values = array.astype(np.float64)
        if factor < 0 and not limits.min:
            values = values - limits.max
        return np.clip(values * factor, limits.min, limits.max).astype(array.dtype)

    return change


def _turned_signs(array: Array) -> Array:
    if array.dtype.kind != "f":
        return array
    signs = np.resize(np.array([1.0, -1.0, -1.0, 1.0, -1.0]), array.shape)
    return np.asarray((array * signs * _LOUD).astype(array.dtype))


def _all(factor: float) -> Change:
    """So many times its largest value everywhere, its smallest where `factor` is negative; of integers just that."""

    def change(array: Array) -> Array:
        if not array.size:
            return array
        full = np.full_like(array, array.max() if factor > 0 else array.min())
        return _times(abs(factor))(full) if array.dtype.kind == "f" else full

    return change


def _reversed(array: Array) -> Array:
    return array[..., ::-1] if array.ndim > 1 else array


def _given(run: Run, inputs: Mapping[str, Array]) -> Arrays | None:
    """What a program gives, None where it does not run."""
    try:
        return run(inputs)
    except ConversionError:
        return None


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _differs(
    run: Run, samples: Sequence[Arrays], specs: Sequence[TensorSpec], wanted: Arrays, tolerance: float | None
) -> str | None:
    """The name of an output that is not what was wanted for the sample in the middle."""
    found = _given(run, join(samples, specs))
    if found is None:
        return None
    for name, one in wanted.items():
        if tolerance is not None and one.dtype.kind != "f":
            continue
        row = _of_sample(found[name], one, len(samples), len(samples) // 2)
        if row is None or not near(one, row, tolerance):
            return name
    return None


def _of_sample(array: Array, one: Array, count: int, place: int) -> Array | None:
    """The part of an output that is of one of so many samples; None where that cannot be said."""
    if array.shape == one.shape:
        return array  # the same for all samples
    for axis, size in enumerate(one.shape):
        if array.shape == (*one.shape[:axis], count * size, *one.shape[axis + 1 :]):
            return np.take(array, np.arange(place * size, (place + 1) * size), axis)
    return None


def near(wanted: Array, found: Array, tolerance: float | None = None) -> bool:
    """Whether two arrays of a shape differ by no more than the order of the sums can explain."""
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(wanted, found))
    if tolerance is None:
        tolerance = _NEAR_HALF if wanted.dtype == np.float16 else _NEAR
    finite = np.abs(wanted[np.isfinite(wanted)], dtype=np.float64)
    scale = float(finite.max(initial=0.0))
    return bool(np.allclose(found, wanted, rtol=tolerance, atol=tolerance * min(scale, 1.0), equal_nan=True))
