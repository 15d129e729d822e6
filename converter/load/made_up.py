"""Inputs that a graph runs on: real ones, or made up where nobody gave any.

What an integer means is not known: an index, a length, a shape. So several fills are tried, and the first on which the
graph runs and gives finite numbers is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from converter.program.tensors import Array, Arrays, Run
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.tensorspec import BATCH, TensorSpec

_MAX_BYTES = 1 << 28
_TRIES = 400
_TOGETHER = 4
_ALONE = 4
# Sizes that strides of 64 leave several places of, where that is no more than so many values.
_LARGER, _MOST_VALUES = (12, 4), 1 << 19
_FREE_SIZES = (16, 1, 2, 3, 4, 5, 8, 32, 64)
# Where none of these is enough: windows of sound, images. Each is tried with few fills.
_LARGE_SIZES, _FEW = (128, 224, 320, 512, 640), 4
_FLOATS = ("normal", "positive", "ones", "up", "zeros")
_SMALL = ("bits", "up", "ones", "zeros", "rest", "minus", "twos", "threes")
_BYTES = ("bytes", *_SMALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fill:
    """Where inputs come from.

    Attributes:
        specs: Of the inputs.
        kinds: By input, how it is made up: one of the names in this module.
        sizes: Of free axes, where it is made up.
        real: Real samples, or None.
    """

    specs: tuple[TensorSpec, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    real: Arrays | None = None

    @property
    def has_batch(self) -> bool:
        """Whether there can be several samples."""
        return any(spec.batch_axis is not None for spec in self.specs)

    def draw(self, count: int = 1, seed: int = 0) -> Arrays:
        """Inputs of so many samples.

        Raises:
            ConfigError: They would not fit into memory.
        """
        if self.real is not None:
            return {spec.name: _repeated(self.real[spec.name], spec, count, seed) for spec in self.specs}
        rng = np.random.default_rng(seed)
        made: Arrays = {}
        for spec in self.specs:
            sizes = {**self.sizes, BATCH: count}
            shape = tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
            if math.prod(shape) * np.dtype(spec.dtype).itemsize > _MAX_BYTES:
                raise ConfigError(
                    f"made-up inputs {spec.name} {spec.describe()} would take more than {_MAX_BYTES >> 20} MiB"
                )
            cycle = math.prod(shape[1:] if spec.batch_axis == 0 else shape)
            # Whole numbers that are the same for all samples are an axis, a size, a way to go: they stay as they are.
            constant = spec.batch_axis is None and not spec.dtype.startswith("float")
            drawn = np.random.default_rng(0) if constant else rng
            made[spec.name] = _values(self.kinds[spec.name], shape, cycle, drawn).astype(spec.dtype)
        return made

    def variants(self) -> Iterator[Fill]:
        """The same at larger sizes, and with other values of one input that is the same for all samples.

        Where strides leave one place of all, an axis of places looks as one of samples does. An input may say along
        which axis to add up, or by how much to pad: with one value an axis is that of the samples, and with another it
        is not. On some of them a graph need not run. Of real values there are no others but larger ones.
        """
        if (larger := next(filter(None, map(self._larger, _LARGER)), None)) is not None:
            yield larger
        if self.real is not None:
            return
        for spec in self.specs:
            for kind in _kinds(spec) if spec.batch_axis is None else ():
                if kind != self.kinds[spec.name]:
                    yield replace(self, kinds={**self.kinds, spec.name: kind})

    def _larger(self, factor: int) -> Fill | None:
        """The same with so many times the sizes along free axes; None where there are none, or it is too much."""
        times = {
            spec.name: tuple(factor if isinstance(axis, str) and axis != BATCH else 1 for axis in spec.shape)
            for spec in self.specs
        }
        if all(set(each) <= {1} for each in times.values()):
            return None
        sizes = {axis: factor * size for axis, size in self.sizes.items()}
        real = None if self.real is None else {name: np.tile(self.real[name], each) for name, each in times.items()}
        found = replace(self, sizes=sizes, real=real)
        most = max(array.size for array in found.draw().values())
        return found if most <= _MOST_VALUES else None


def _repeated(array: Array, spec: TensorSpec, count: int, first: int) -> Array:
    """So many samples, from the `first` on; where there are too few, floats go round their last axis to differ."""
    axis = spec.batch_axis
    if axis is None:
        return array
    rows = []
    for i in range(first, first + count):
        turns, row = divmod(i, array.shape[axis])
        one = np.take(array, [row], axis)
        is_float = one.dtype.kind == "f" and one.ndim > 1
        rows.append(np.roll(one, turns, axis=-1) if is_float else one)
    return np.concatenate(rows, axis)


def found_fill(specs: Sequence[TensorSpec], run: Run, sizes: Mapping[str, int]) -> Fill:
    """A fill on which a graph runs, if there is one to be found.

    Args:
        specs: What it takes.
        run: It.
        sizes: Of free axes, where the user named them.

    Raises:
        ConversionError: It runs on none that was tried.
    """
    fault: ConversionError | None = None
    second: Fill | None = None  # it runs, but what comes out is not finite, or a matter of chance
    alone: list[Fill] = []  # on one sample, but not on several
    for fill in itertools.islice(_fills(tuple(specs), sizes), _TRIES):
        try:
            found = run(fill.draw())
            run(fill.draw(seed=1))  # other random integers are as good
            alone.append(fill)
            if fill.has_batch:
                run(fill.draw(_TOGETHER))
        except ConfigError:  # more than fits into memory
            continue
        except ConversionError as exc:
            fault = fault or exc
            if len(alone) > _ALONE:
                break
            continue
        alone.clear()
        second = second or fill
        again = run(fill.draw())
        if all(_is_finite(array) and same_bits(array, again[name]) for name, array in found.items()):
            return fill
    if second is not None or alone:
        return second or alone[0]
    free = [spec for spec in specs if any(isinstance(axis, str) and axis not in (BATCH, *sizes) for axis in spec.shape)]
    say = f", or say how large free axes are, --input {free[0].name}=AXIS@SIZE,..." if free else ""
    raise ConversionError(
        f"no inputs could be made up that the model runs on: give real ones with --example FILE.npz{say} ({fault})"
    )


def _is_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def same_bits(one: Array, other: Array) -> bool:
    """Whether two outputs are equal; what is no number equals what is none."""
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _fills(specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> Iterator[Fill]:
    free = sorted({axis for spec in specs for axis in spec.shape if isinstance(axis, str)} - {BATCH})
    unknown = [axis for axis in free if axis not in sizes]
    choices = [_kinds(spec) for spec in specs]
    for size in (*_FREE_SIZES, *_LARGE_SIZES) if unknown else (0,):
        chosen = {**sizes, **dict.fromkeys(unknown, size)}
        most = _TRIES if not unknown else _FEW if size in _LARGE_SIZES else _TRIES // (len(_FREE_SIZES) + 1)
        for kinds in itertools.islice(_spreading(choices), most):
            yield Fill(specs=specs, kinds={s.name: kind for s, kind in zip(specs, kinds, strict=True)}, sizes=chosen)


def _kinds(spec: TensorSpec) -> tuple[str, ...]:
    """How values of an input may be made up, the likeliest first."""
    if spec.dtype.startswith("float"):
        return _FLOATS
    if spec.dtype == "bool":
        return ("bits", "ones", "zeros")
    return _BYTES if spec.dtype in ("uint8", "int8") else _SMALL


def _spreading(choices: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """All combinations, those near the first choices first."""
    longest = sum(len(each) - 1 for each in choices)
    for total in range(longest + 1):
        for places in _sums(total, [len(each) - 1 for each in choices]):
            yield tuple(each[place] for each, place in zip(choices, places, strict=True))


def _sums(total: int, most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    if not most:
        if total == 0:
            yield ()
        return
    for first in range(min(total, most[0]) + 1):
        for rest in _sums(total - first, most[1:]):
            yield (first, *rest)


def _values(kind: str, shape: tuple[int, ...], cycle: int, rng: np.random.Generator) -> Array:
    """Values of a kind; what is not random is the same for all samples, each of `cycle` values."""
    found: Array
    match kind:
        case "normal":
            found = rng.standard_normal(shape)
        case "positive":
            found = rng.uniform(0.1, 1.0, shape)
        case "bytes":
            found = rng.integers(0, 128, shape)
        case "bits":
            found = rng.integers(0, 2, shape)
        case "up":
            found = np.resize(np.arange(cycle), shape)
        case "rest":  # a shape of which the first size follows from the others
            found = np.resize([-1, *[1] * (cycle - 1)], shape)
        case _:
            found = np.full(shape, {"zeros": 0, "ones": 1, "minus": -1, "twos": 2, "threes": 3}[kind])
    return found
