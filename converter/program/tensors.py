"""Named arrays: what every program in the converter takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.tensorspec import TensorSpec

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
"""Arrays by tensor name; in one batch, all have the same size along their batch axes."""

Run = Callable[[Mapping[str, Array]], Arrays]
"""A program: inputs by name to outputs by name."""


def batch_size(arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> int:
    """Number of samples in a batch; 1 when no tensor has a batch axis."""
    sizes = [arrays[spec.name].shape[spec.batch_axis] for spec in specs if spec.batch_axis is not None]
    return sizes[0] if sizes else 1


def select(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], rows: slice | npt.NDArray[np.int64]) -> Arrays:
    """Some samples of a batch; tensors without a batch axis are passed on whole."""
    chosen: Arrays = {}
    for spec in specs:
        array = arrays[spec.name]
        if spec.batch_axis is not None:
            array = array[(*[slice(None)] * spec.batch_axis, rows)]
        chosen[spec.name] = array
    return chosen


def join(batches: Sequence[Mapping[str, Array]], specs: Sequence[TensorSpec]) -> Arrays:
    """Batches put together along their batch axes; tensors without one are taken from the first."""
    return {
        spec.name: batches[0][spec.name]
        if spec.batch_axis is None
        else np.concatenate([batch[spec.name] for batch in batches], axis=spec.batch_axis)
        for spec in specs
    }


def in_batches(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], size: int) -> Iterator[Arrays]:
    """The same samples, `size` at a time."""
    for start in range(0, batch_size(arrays, specs), size):
        yield select(arrays, specs, slice(start, start + size))


_LARGEST_WHOLE = 1 << 26  # not every whole number of that size is a float32, and as many numbers still fit into memory


def of_whole_range(arrays: Mapping[str, Array], most_bytes: int = 8) -> Iterator[Arrays]:
    """Random whole numbers of the range of their types in place of those that there are, once; never where none are.

    Args:
        arrays: Where no number is below 0, none will be.
        most_bytes: Of a number; of larger types those that there are stay: they may be sizes.
    """
    changed = {name for name, a in arrays.items() if a.dtype.kind in "iu" and a.size and a.itemsize <= most_bytes}
    if not changed:
        return
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for name, array in arrays.items():
        made[name] = array
        if name in changed:
            most = min(int(np.iinfo(array.dtype).max), _LARGEST_WHOLE)
            least = -most if array.min() < 0 else 0
            made[name] = rng.integers(least, most, array.shape, array.dtype, endpoint=True)
    yield made


def rows_not_finite(array: Array, spec: TensorSpec) -> npt.NDArray[np.intp]:
    """Numbers of the samples with a value that is not finite; of an array without samples 0 or none."""
    if array.dtype.kind != "f":
        return np.zeros(0, np.intp)
    rows = array[None] if spec.batch_axis is None else np.moveaxis(array, spec.batch_axis, 0)
    return np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
