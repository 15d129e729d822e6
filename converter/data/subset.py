"""Samples in memory: a stream over them, some of a longer stream, random ones where there are none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from converter.data.samples import Samples, SampleStream
from converter.program.tensors import Array, Arrays, batch_size, join, select
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

_BATCH_SIZE = 64
_RANDOM_BYTES, _LEAST_RANDOM = 32 << 20, 16


class InMemory:
    """Samples in memory as a `SampleStream`.

    Args:
        samples: All of them.
        origin: What they are.
        inputs: What they are samples of.
    """

    def __init__(self, samples: Samples, origin: str, inputs: Sequence[TensorSpec]) -> None:
        self.origin = origin
        self.class_names: tuple[str, ...] | None = None
        self._samples = samples
        self._inputs = tuple(inputs)

    def batches(self, size: int) -> Iterator[Samples]:
        """See `SampleStream`."""
        x, y = self._samples.x, self._samples.y
        for start in range(0, batch_size(x, self._inputs), size):
            rows = slice(start, start + size)
            yield Samples(select(x, self._inputs, rows), None if y is None else y[rows])


def subset(
    stream: SampleStream, specs: Sequence[TensorSpec], *, max_samples: int, max_bytes: int, seed: int = 0
) -> Samples:
    """Some samples of a stream, each equally likely, in their order; all of them if they fit.

    The stream is read once (reservoir sampling), in memory that does not grow with it.

    Args:
        stream: Where they come from.
        specs: What they are samples of.
        max_samples: At most so many.
        max_bytes: And so many bytes of x, but at least one sample.
        seed: The same seed gives the same samples.

    Raises:
        ConfigError: There are no samples, or they are not what the model takes.
    """
    rng = np.random.default_rng(seed)
    kept: list[tuple[int, Arrays, Array | None]] = []
    position = capacity = 0
    for batch in stream.batches(_read_at_once(specs, max_bytes)):
        for row in range(batch_size(batch.x, specs)):
            if not kept:
                one = select(batch.x, specs, slice(0, 1))
                size = sum(one[spec.name].nbytes for spec in specs if spec.batch_axis is not None)
                capacity = max(1, min(max_samples, max_bytes // max(1, size)))
            slot = position if position < capacity else int(rng.integers(0, position + 1))
            if slot < capacity:
                x, y = select(batch.x, specs, slice(row, row + 1)), batch.y
                # Copies: a view would keep its whole batch in memory.
                held = (
                    position,
                    {name: array.copy() for name, array in x.items()},
                    None if y is None else y[row : row + 1].copy(),
                )
                kept[slot : slot + 1] = [held]
            position += 1
    if not kept:
        raise ConfigError(f"{stream.origin} has no samples; expected at least one")
    kept.sort(key=lambda held: held[0])
    labels = [y for _, _, y in kept if y is not None]
    return Samples(join([x for _, x, _ in kept], specs), np.concatenate(labels) if labels else None)


def random_samples(
    specs: Sequence[TensorSpec], example: Mapping[str, Array], count: int, seed: int = 0, *, real: bool = False
) -> Samples:
    """Random samples without labels: standard normal floats, uint8 from 0 to 255.

    Where the example is real, so are the values: floats and uint8 are those of its samples in another order. What they
    have only one of, such as zeros for a state, tells nothing, and is made up. Other types repeat the example.

    Args:
        specs: What they are samples of.
        example: Samples, one at least; free axes get its sizes, a tensor without a batch axis is passed on.
        count: How many; fewer, 16 at least, where these would be more than 32 MiB.
        seed: The same seed gives the same samples.
        real: Whether the values of the example mean something.
    """
    rng = np.random.default_rng(seed)
    sizes = (example[s.name].nbytes // example[s.name].shape[s.batch_axis] for s in specs if s.batch_axis is not None)
    count = min(count, max(_LEAST_RANDOM, _RANDOM_BYTES // max(1, sum(sizes))))
    x: Arrays = {}
    for spec in specs:
        some, axis = example[spec.name], spec.batch_axis
        if axis is None:
            x[spec.name] = some
            continue
        rows = np.moveaxis(np.take(some, np.arange(count) % some.shape[axis], axis), axis, 0)
        constant = rows[0].size > 1 and rows.min() == rows.max()
        if spec.dtype != "uint8" and not spec.dtype.startswith("float"):
            made = rows
        elif real and not constant:
            made = rng.permuted(rows.reshape(count, -1), axis=1).reshape(rows.shape)
            made[: some.shape[axis]] = rows[: some.shape[axis]]
        else:
            values = rng.integers(0, 256, rows.shape) if spec.dtype == "uint8" else rng.standard_normal(rows.shape)
            made = values.astype(spec.dtype)
        x[spec.name] = np.ascontiguousarray(np.moveaxis(made, 0, axis))
    return Samples(x, None)


def _read_at_once(specs: Sequence[TensorSpec], max_bytes: int) -> int:
    """So many samples that a batch takes little beside those that are kept; one where their size is not known."""
    size = 0
    for spec in specs:
        fixed = [axis for axis in spec.shape if isinstance(axis, int)]
        if spec.batch_axis is not None:
            if len(fixed) + 1 < len(spec.shape):
                return 1
            size += math.prod(fixed) * np.dtype(spec.dtype).itemsize
    return max(1, min(_BATCH_SIZE, max_bytes // (8 * max(1, size))))
