"""Any bundle on this device: named arrays in, named arrays out. It learns nothing, and keeps nothing between samples.

It takes what applications give: numbers of other types, one sample without its batch axis, constants that stand in the
graph already. What a model remembers comes in as a value, and goes out as one (`edge.agent.model.streams` keeps it).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, LearningError
from edge.contract.foreign import reason, shortage
from edge.contract.tensorspec import BATCH, TensorSpec
from edge.inference.out_of_bounds import OutOfBoundsError
from edge.inference.providers import open_session
from edge.inference.session import Arrays
from edge.inference.streams import Stream, zeros

# One array, where the model has one input, or arrays by the names of the inputs.
Given = npt.ArrayLike | Mapping[str, npt.ArrayLike]


class ModelError(LearningError):
    """The model failed on a sample that is as it must be, or what it answers is not finite: it may be at fault."""


class Serving:
    """See the module.

    Args:
        bundle: Whichever.
        threads: For the model.
        provider: Which execution provider runs it, see `edge.inference.providers.open_session`.
        folder: Where that keeps what it measured, or None.

    Attributes:
        manifest: Of the bundle.
        session: Runs it.
        provider: The execution provider that does, and what else there was.
        inputs: What samples bring with them, by name, as of many samples.
        outputs: What comes of them, by name, as of many samples; without states.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, provider: str = "cpu", folder: Path | None = None) -> None:
        self.manifest = manifest = bundle.manifest
        self.session, self.provider = open_session(bundle, threads, provider, folder)
        self._states = {pair.output: pair.input for pair in manifest.states}
        self.inputs = {spec.name: spec for spec in manifest.together(manifest.sample_inputs)}
        self.outputs = {s.name: s for s in manifest.together(manifest.outputs) if s.name not in self._states}
        golden = bundle.tensors(m.GOLDEN)
        # A mask may be infinite; what never is on the golden samples is not to be here.
        self._finite = {
            spec.name for spec in manifest.outputs if bool(np.isfinite(golden[m.GOLDEN_OUTPUT + spec.name]).all())
        }
        # What is missing may be NaN where the model was shown such samples.
        self._open = {name for name in self.inputs if not np.isfinite(golden[m.GOLDEN_INPUT + name]).all()}

    @property
    def begin(self) -> Arrays:
        """What a stream begins with, by name of input; empty for a model that remembers nothing."""
        specs = {spec.name: spec for spec in self.manifest.inputs}
        return {pair.input: zeros(specs[pair.input]) for pair in self.manifest.states}

    # What comes in

    def one(self, given: Given) -> Arrays:
        """One sample, with or without its batch axis, as many samples are given.

        Raises:
            LearningError: An input is missing or not known, or its numbers or their shape do not fit.
        """
        found = {}
        for name, value in self._named(given).items():
            spec, array = self.inputs[name], self._numbers(name, value)
            axis = spec.batch_axis
            if axis is not None and array.ndim == len(spec.shape) - 1:
                array = np.expand_dims(array, axis)
            if axis is not None and array.ndim == len(spec.shape) and array.shape[axis] > 1 and _fits(spec, array):
                raise LearningError(f"{name}: expected one sample, got {array.shape[axis]}")
            if not _fits(spec, array):
                alone = tuple(size for i, size in enumerate(spec.shape) if i != axis)
                raise LearningError(_misfit(spec, np.asarray(value).shape, alone))
            found[name] = array
        return found

    def many(self, given: Given) -> Arrays:
        """Samples along the batch axis of each input, in the input's type.

        Raises:
            LearningError: As `one`.
        """
        found = {}
        for name, value in self._named(given).items():
            spec = self.inputs[name]
            found[name] = array = self._numbers(name, value)
            if not _fits(spec, array):
                raise LearningError(_misfit(spec, array.shape, spec.shape))
        self.count(found)
        return found

    def _numbers(self, name: str, value: Any) -> npt.NDArray[Any]:
        return numbers(self.inputs[name], value, finite=name not in self._open)

    def _named(self, given: Given) -> dict[str, npt.ArrayLike]:
        """By name, without constants, in the order of the manifest."""
        if not isinstance(given, Mapping):
            if len(self.inputs) != 1:
                raise LearningError(f"expected arrays by name: {self._expected()}; got one array")
            given = dict.fromkeys(self.inputs, given)
        states = {pair.input for pair in self.manifest.states}
        for name, value in given.items():
            if name in states:
                raise LearningError(f"{name} is what the model remembers; it is kept here, leave it out")
            constant = self.manifest.constants.get(name)
            if name not in self.inputs and constant is not None and not _is_equal(value, constant):
                raise LearningError(f"{name} is a constant of this bundle, {constant!r:.60}; leave it out")
        unknown = [name for name in given if name not in self.inputs and name not in self.manifest.constants]
        missing = [name for name in self.inputs if name not in given]
        if unknown or missing:
            wrong = f"{unknown[0]!r:.40} is none of them" if unknown else f"{missing[0]} is missing"
            raise LearningError(f"expected the inputs {self._expected()}; {wrong}")
        return {name: given[name] for name in self.inputs}

    def _expected(self) -> str:
        return ", ".join(f"{spec.name} {spec.describe()} {spec.dtype}" for spec in self.inputs.values())

    def count(self, inputs: Arrays) -> int | None:
        """How many samples there are; None where no input has a batch axis: then all of it is one.

        Raises:
            LearningError: One input has others than another.
        """
        counts = {
            name: inputs[name].shape[spec.batch_axis]
            for name, spec in self.inputs.items()
            if spec.batch_axis is not None
        }
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise LearningError(f"expected as many samples of each input, got {said}")
        return next(iter(counts.values()), None)

    def rows(self, inputs: Arrays, rows: slice | npt.NDArray[np.int64]) -> Arrays:
        """Some of many samples."""
        axes = {name: self.inputs[name].batch_axis for name in inputs}
        return {
            name: array if (axis := axes[name]) is None else array[(*[slice(None)] * axis, rows)]
            for name, array in inputs.items()
        }

    # What goes out

    def run(self, inputs: Arrays) -> Arrays:
        """What comes of many samples, and the features where there is a head.

        A model that remembers takes them in their order, as a stream of its own.

        Raises:
            LearningError: They do not fit together, or sizes of free axes are none that the model takes.
            ModelError: The model failed on them.
        """
        count = self.count(inputs)
        at_once = self.manifest.fixed_batch or (1 if self.manifest.one_by_one else count) or 1
        state, parts = self.begin, []
        for start in range(0, count or 1, at_once):
            outputs, state = self.step(self.rows(inputs, slice(start, start + at_once)), state)
            parts.append(outputs)
        return parts[0] if len(parts) == 1 else {name: self._joined(name, parts) for name in parts[0]}

    def step(self, inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """One run of the model: at most as many samples as it takes at once.

        Args:
            inputs: As `one` or `many` gave them.
            state: What the model remembers, by name of input.

        Returns:
            As `run`, and what the model remembers now.
        """
        count, size = self.count(inputs), self.manifest.fixed_batch
        short = size is not None and count is not None and count < size
        feeds = self._filled(inputs, size or 1) if short else inputs
        stream = Stream(self.session.served, self.manifest.inputs, self.manifest.states, state)
        try:
            found = stream.step(feeds)
        except OutOfBoundsError as exc:  # the bundle before may have had it
            raise ModelError(f"the model failed on this sample: {exc}") from exc
        except ConfigError as exc:  # what only all inputs together show
            raise LearningError(str(exc)) from exc
        except Exception as exc:  # onnxruntime's have no common base; `foreign` would cost a tenth of a prediction
            fault = ModelError(f"the model failed on this sample: {reason(exc)}")
            raise shortage(exc, "a prediction") or fault from exc
        outputs = {name: array for name, array in found.items() if name not in self._states}
        if size is not None:
            outputs = {name: self._laid(name, array, count or 1) for name, array in outputs.items()}
        return outputs, stream.state

    def _filled(self, inputs: Arrays, size: int) -> Arrays:
        """As many samples as the graph takes, the last one repeated."""
        axes = {name: self.inputs[name].batch_axis for name in inputs}
        return {
            name: array if (axis := axes[name]) is None else np.take(array, range(size), axis, mode="clip")
            for name, array in inputs.items()
        }

    def _laid(self, name: str, array: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
        """The output of so many samples of one run of a graph that takes as many as it takes."""
        axis = self._axis(name)
        if axis is None:
            return array
        whole = array.ndim == len(self.outputs[name].shape) - 1  # a sample is all of it
        return array[None] if whole else np.take(array, range(count), axis)

    def _axis(self, name: str) -> int | None:
        """Along which samples lie in an output; features have them first."""
        return self.outputs[name].batch_axis if name in self.outputs else 0

    def _joined(self, name: str, parts: list[Arrays]) -> npt.NDArray[Any]:
        axis, arrays = self._axis(name), [part[name] for part in parts]
        if axis is None:
            return arrays[-1]
        try:
            return np.concatenate(arrays, axis)
        except ValueError as exc:
            raise LearningError(f"{name} has another shape for other samples; give them one by one") from exc

    def part(self, outputs: Arrays, rows: slice) -> Arrays:
        """The outputs of some of many samples."""
        axes = {name: self._axis(name) for name in outputs}
        return {
            name: array if (axis := axes[name]) is None else array[(*[slice(None)] * axis, rows)]
            for name, array in outputs.items()
        }

    def together(self, parts: list[Arrays]) -> Arrays:
        """Outputs of single samples, without their batch axes as `alone` gives them, as of many samples."""
        whole = [
            {name: a if (axis := self._axis(name)) is None else np.expand_dims(a, axis) for name, a in part.items()}
            for part in parts
        ]
        return whole[0] if len(whole) == 1 else {name: self._joined(name, whole) for name in whole[0]}

    def alone(self, outputs: Arrays) -> Arrays:
        """Outputs of one sample without their batch axis."""
        return {
            name: array if (axis := self._axis(name)) is None else np.asarray(array.take(0, axis))
            for name, array in outputs.items()
        }

    def check_finite(self, outputs: Arrays, state: Arrays) -> None:
        """Raise ModelError where an output is not finite that always is on the golden samples, or what is remembered.

        Args:
            outputs: By name.
            state: By name of input.
        """
        for name in self._finite:
            array = state.get(self._states[name]) if name in self._states else outputs[name]
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ModelError(f"the model's answer for this sample is not finite ({name})")


def numbers(spec: TensorSpec, value: Any, *, finite: bool = True) -> npt.NDArray[Any]:
    """An array in the type of an input.

    Args:
        spec: Of the input.
        value: What is given for it.
        finite: Floats must be.

    Raises:
        LearningError: No numbers, not of a regular shape, not finite, or they do not fit the type.
    """
    array, target = as_array(value, spec.name), np.dtype(spec.dtype)
    if array.dtype == target and target.kind in "iub":
        return array
    if array.dtype.kind not in "fiub":
        raise LearningError(f"{spec.name}: expected numbers of type {spec.dtype}, got {array.dtype}")
    limits = np.finfo(target) if target.kind == "f" else np.iinfo(target) if target.kind in "iu" else None
    low, high = (0, 1) if limits is None else (limits.min, limits.max)
    # False for NaN and infinity, which would otherwise become ordinary numbers in an integer input.
    some = array if finite or target.kind != "f" else array[np.isfinite(array)]
    if some.size and not (some.min() >= low and some.max() <= high):
        raise LearningError(f"{spec.name}: the sample has values that are not finite or do not fit {spec.dtype}")
    if target.kind in "iub" and array.dtype.kind == "f" and not (array == np.trunc(array)).all():
        raise LearningError(f"{spec.name}: expected whole numbers, {spec.dtype}")
    return array.astype(target, copy=False)


def as_array(value: Any, what: str) -> npt.NDArray[Any]:
    """An array; LearningError for nested lists of different lengths, and for what is masked or wants its gradient."""
    masked = sys.modules.get("numpy.ma")  # whoever has such an array has loaded it
    if masked is not None and isinstance(value, masked.MaskedArray) and masked.is_masked(value):
        raise LearningError(f"{what}: some of it is masked; fill in what it should be")
    try:
        return np.asarray(value)
    except ValueError as exc:
        raise LearningError(f"{what}: expected numbers in a regular shape: {exc}") from exc
    except RuntimeError as exc:  # a tensor of torch says what to do
        raise LearningError(f"{what}: {exc}") from exc


def _fits(spec: TensorSpec, array: npt.NDArray[Any]) -> bool:
    return _has_shape(array.shape, spec.shape)


def _has_shape(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size == axis if isinstance(axis, int) else size > 0 or axis != BATCH
        for size, axis in zip(shape, wanted, strict=True)
    )


def _misfit(spec: TensorSpec, shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> str:
    """What is said of an array of another shape, with the axes that make it fit where they do."""
    found = f"{spec.name}: expected shape ({', '.join(map(str, wanted))}), got {shape}"
    if _has_shape(tuple(size or 1 for size in shape), wanted):
        return f"{found}: there is nothing in it"
    places = [[":"] * axis + ["None"] for axis in range(len(shape) + 1)] + [["None", "None"]]
    for index in places:
        sizes = iter(shape)
        more = (*(1 if place == "None" else next(sizes) for place in index), *sizes)
        if _has_shape(more, wanted) or _has_shape(more, spec.shape):
            return f"{found}; x[{', '.join(index)}] has the axis that is missing"
    return found


def _is_equal(value: npt.ArrayLike, constant: Any) -> bool:
    try:
        return np.array_equal(np.asarray(value), np.asarray(constant))
    except ValueError:
        return False
