"""Which sizes a model takes along its free axes, found by trying, and whether a program takes the same ones.

An exporter may write down a size of its example where the model computes with it, behind a floor division or a
comparison, so that the next size does not tell. Programs are therefore compared at halves and doubles, odd and prime
sizes, near and far. Which of these a model takes, only the model can say: strides may want multiples of 32, a table of
positions may end. Nothing is said of sizes beyond those that were tried.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter.program.programs import grown, resized
from converter.program.tensors import Array, Arrays, Run
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH, AxisRange, TensorSpec
from edge.inference.session import sqnr_db

# Float programs compute the same sums in another order: 60 dB is a relative error of 0.001.
MIN_FLOAT_SQNR_DB = 60.0
# Strides that networks have, besides the divisors of the size itself.
_STEPS = (2, 4, 8, 16, 32, 64, 128, 256)
# Sizes to try besides those near the example's own: constants that sizes are compared with are seldom larger.
_SMALL, _FAR = (1, 2, 3, 5, 11), (23, 53, 101, 257, 509)
_MAX_BYTES = 16 << 20
# Entries that are made up along an axis of which the example has none.
_FILLED = (4, 1, 2, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeAxis:
    """A free axis of a model.

    Attributes:
        name: Of the axis.
        size: Of the example.
        range: What the model was found to take.
        tried: Sizes that it took, in order, the example's among them.
    """

    name: str
    size: int
    range: AxisRange
    tried: tuple[int, ...]

    @property
    def other(self) -> int:
        """The size furthest from the example's that was tried; its own where there is no other.

        Strides may leave the same number of places of a near one.
        """
        return max(self.tried, key=lambda size: abs(size - self.size))

    def only_tried(self) -> FreeAxis:
        """The same axis, without sizes beyond those that were tried."""
        return replace(self, range=replace(self.range, least=self.tried[0], most=self.tried[-1]))

    def linked(self) -> FreeAxis:
        """The same axis, which goes along with another: how small it may be is not known."""
        return self if self.tried == (self.size,) else replace(self, range=replace(self.range, least=self.range.step))

    def with_none(self) -> FreeAxis:
        """The same axis, which may be empty; as it is where sizes between 0 and the smallest are none of it."""
        if self.range.least > self.range.step:
            return self
        return replace(self, range=replace(self.range, least=0), tried=(0, *self.tried))

    def fixed(self) -> FreeAxis:
        """The same axis with the size of the example alone."""
        return replace(self, range=AxisRange(least=self.size, most=self.size), tried=(self.size,))

    def describe(self) -> str:
        """For people."""
        return f"{self.name}: {self.range.describe()}; tried at {', '.join(map(str, self.tried))}"


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Probe:
    """A model to be run at other sizes.

    Attributes:
        run: The model.
        inputs: What it takes.
        example: One real sample, if there are real ones.
    """

    run: Run
    inputs: tuple[TensorSpec, ...]
    example: Arrays

    def at(self, sizes: Mapping[str, int]) -> tuple[Arrays, Arrays] | None:
        """Inputs of these sizes and what the model gives; None where it does not run, or gives no finite numbers.

        A length cannot be larger than what it is the length of: integers are cut to the sizes where that is what helps.
        So is another axis that has to grow by as much.
        """
        sample, *others = grown(self.example, self.inputs, sizes)
        for inputs in (sample, *self._cut(sample, sizes), *others):
            try:
                found = self.run(inputs)
            except ConversionError:
                continue
            if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in found.values()):
                return inputs, found
        return None

    def _cut(self, sample: Arrays, sizes: Mapping[str, int]) -> Iterator[Arrays]:
        most = min((size for axis, size in sizes.items() if axis != BATCH), default=0)
        cut = {
            spec.name: np.minimum(sample[spec.name], most)
            for spec in self.inputs
            if spec.dtype.startswith("int") and not set(sizes) - {BATCH} & set(spec.shape)
        }
        if most and any((sample[name] > array).any() for name, array in cut.items()):
            yield {**sample, **cut}


def empty_axes(inputs: Sequence[TensorSpec], example: Arrays) -> frozenset[str]:
    """Free axes of which an example has nothing, as a decoder has of what came before its first step."""
    return frozenset(
        axis for s in inputs for i, axis in enumerate(s.shape) if isinstance(axis, str) and not example[s.name].shape[i]
    )


def filled(run: Run, inputs: Sequence[TensorSpec], example: Arrays) -> Arrays:
    """The example with something along axes of which it has nothing: what is empty shows little of a model.

    Raises:
        ConversionError: The model takes nothing else.
    """
    empty = empty_axes(inputs, example)
    if not empty:
        return example
    fault: ConversionError | None = None
    for size in _FILLED:
        for made in grown(example, inputs, dict.fromkeys(empty, size)):
            try:
                run(made)
            except ConversionError as exc:
                fault = fault or exc
            else:
                return made
    raise ConversionError(
        f"along {', '.join(sorted(empty))} the example has nothing, and the model takes nothing else ({fault}). Name "
        f"an axis that grows with it, e.g. --input mask={BATCH},total:int64"
    )


def free_axes(probe: Probe, multiples: Mapping[str, int], empty: Container[str] = frozenset()) -> tuple[FreeAxis, ...]:
    """The free axes of a model and the sizes that it takes; one at which it takes a single size is among them.

    Args:
        probe: The model.
        multiples: Sizes are multiples of these, where the user says so.
        empty: Axes that may be empty, if the model takes that: see `empty_axes`.
    """
    found = []
    for axis in axis_names(probe.inputs):
        (size,) = {probe.example[s.name].shape[i] for s in probe.inputs for i, a in enumerate(s.shape) if a == axis}
        fixed = sum(array.nbytes for array in probe.example.values()) // size
        most = max(2 * size, min(_FAR[-1], _MAX_BYTES // max(1, fixed)))

        def takes(other: int, axis: str = axis) -> bool:
            return probe.at({axis: other}) is not None

        explored = _explored(axis, size, takes, multiples.get(axis), most)
        if not any(_runs(probe, {axis: size}) for size in explored.tried if size != explored.size):
            explored = explored.linked()  # another axis grew along, and its sizes limited this one's
        found.append(explored.with_none() if axis in empty and takes(0) else explored)
    return tuple(found)


def _runs(probe: Probe, sizes: Mapping[str, int]) -> bool:
    try:
        probe.run(resized(probe.example, probe.inputs, sizes))
    except ConversionError:
        return False
    return True


def axis_names(inputs: Sequence[TensorSpec]) -> list[str]:
    """Names of all free axes but the batch axis, in order."""
    return list(dict.fromkeys(a for spec in inputs for a in spec.shape if isinstance(a, str) and a != BATCH))


def _explored(axis: str, size: int, takes: Callable[[int], bool], multiple: int | None, most: int) -> FreeAxis:
    divisors = [d for d in range(2, min(size, _STEPS[-1]) + 1) if size % d == 0]
    steps = [multiple] if multiple else [1, *sorted({*divisors, *_STEPS})]
    # Strides that round up take 113 to 128, 145 to 160 and so on: a step is one that leads further than to a neighbour.
    far = (d for d in steps if all(takes(size + d * n) for n in (1, 2, 3, max(4, size // d))))
    step = next(far, 0) or next((d for d in steps if takes(size + d) or (size > d and takes(size - d))), 0)
    if not step:
        return FreeAxis(name=axis, size=size, range=AxisRange(least=size, most=size), tried=(size,))

    def near(wanted: int) -> int:
        """The nearest size in whole steps from the example's."""
        other = size + round((wanted - size) / step) * step
        return other if other > 0 else other + step * (-other // step + 1)

    halves = (size // 4, size // 3, size // 2, size // 2 + 1)
    doubles = (_prime_above(size), _prime_above(size + size // 3), 2 * size, 2 * size + 1, 3 * size)
    wanted = {*_SMALL, *_FAR, *halves, *doubles, size - 1, size + 1, size - step, size + step}
    sizes = sorted({near(n) for n in wanted if 0 < n <= most} - {size})
    took = {size} | {n for n in sizes if takes(n)}
    low = max((n for n in sizes if n < size and n not in took), default=None)
    high = min((n for n in sizes if n > size and n not in took), default=None)
    took = {n for n in took if (low is None or n > low) and (high is None or n < high)}
    least, largest = min(took), max(took)
    while low is not None and least - low > step:
        middle = low + (least - low) // step // 2 * step
        low, least = (low, middle) if takes(middle) else (middle, least)
    while high is not None and high - largest > step:
        middle = largest + (high - largest) // step // 2 * step
        largest, high = (middle, high) if takes(middle) else (largest, middle)
    found = AxisRange(least=least, step=step, most=None if high is None else largest)
    return FreeAxis(name=axis, size=size, range=found, tried=tuple(sorted({*took, least, largest})))


def _prime_above(size: int) -> int:
    candidate = size + 1
    while any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate


def baked_axes(run: Run, probe: Probe, axes: Sequence[FreeAxis]) -> dict[str, str]:
    """Free axes of which a program has a size written down, and what shows it; none where it is as free as the model.

    Args:
        run: The program.
        probe: The model.
        axes: Of the model.
    """
    found: dict[str, str] = {}
    for axis in axes:
        for size in axis.tried:
            if axis.name not in found and (fault := _fault(run, probe, {axis.name: size})):
                found[axis.name] = fault
    if len(axes) > 1 and not found:  # all at once, each at another place in its own sizes
        for place in (0, 1, 2):
            sizes = {axis.name: axis.tried[(place + i) % len(axis.tried)] for i, axis in enumerate(axes)}
            if fault := _fault(run, probe, sizes):
                return {axis.name: fault for axis in axes}
    return found


def ending_axes(run: Run, probe: Probe, axes: Sequence[FreeAxis]) -> dict[str, str]:
    """Free axes that end in a program where they do not in the model, and what shows it.

    A table of positions that the model makes larger when it must is as large in the program as the model had it.

    Args:
        run: The program.
        probe: The model.
        axes: Of the model; the program was found to be right where they were tried.
    """
    found: dict[str, str] = {}
    for axis in axes:
        if axis.range.most is None:
            beyond = axis.size + (2 * axis.tried[-1] - axis.size) // axis.range.step * axis.range.step
            if fault := _fault(run, probe, {axis.name: beyond}):
                found[axis.name] = fault
    return found


def agreeing(run: Run, probe: Probe, axis: FreeAxis) -> FreeAxis:
    """An axis with those sizes around the example's, as far as they were tried, at which a program is the model."""
    wrong = [size for size in axis.tried if _fault(run, probe, {axis.name: size})]
    if not wrong:
        return axis
    low = max((size for size in wrong if size < axis.size), default=0)
    high = min((size for size in wrong if size > axis.size), default=axis.tried[-1] + 1)
    tried = tuple(size for size in axis.tried if low < size < high or size == axis.size)
    return axis.fixed() if len(tried) == 1 else replace(axis, tried=tried).only_tried()


def _fault(run: Run, probe: Probe, sizes: Mapping[str, int]) -> str | None:
    both = probe.at({BATCH: 2, **sizes})
    if both is None:  # a size that the model does not take after all
        return None
    sample, wanted = both
    where = ", ".join(f"{axis} is {size}" for axis, size in sizes.items())
    try:
        found = run(sample)
    except ConversionError as exc:
        return f"does not run where {where}: {exc}"
    different = [name for name, array in wanted.items() if not _is_same(array, found[name])]
    return f"gives another {different[0]} than the model where {where}" if different else None


def _is_same(wanted: Array, found: Array) -> bool:
    if wanted.shape != found.shape or not wanted.size:
        return wanted.shape == found.shape
    if wanted.dtype.kind != "f":
        return np.array_equal(wanted, found)
    return sqnr_db(wanted, found) >= MIN_FLOAT_SQNR_DB
