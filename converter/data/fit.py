"""Samples as they lie in data, made into what the model takes: checked, cast, batch axis at its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from converter.data.samples import Samples
from converter.program.tensors import Array, Arrays
from edge.contract.errors import ConfigError
from edge.contract.foreign import foreign
from edge.contract.tensorspec import BATCH, TensorSpec

MAX_BYTES = 1 << 28
"""Of what has to be in memory whole: one sample, an image, an array in Fortran order."""


SAMPLES = ("x", "images", "inputs", "samples", "data", "features", "calibration_x", "calibration_images", "x_train")
"""What people call their samples."""

LABELS = ("y", "labels", "targets", "classes", "calibration_y", "calibration_labels", "y_train")
"""What they call the labels."""


def reading(what: str, expected: str) -> AbstractContextManager[None]:
    """Turn whatever a damaged file raises into a ConfigError: ``{what} is not {expected}: ...``."""
    return foreign(f"{what} is not {expected}", ConfigError)


def sample_axes(spec: TensorSpec) -> tuple[int | str, ...]:
    """The axes of one sample.

    >>> sample_axes(TensorSpec(name="state", dtype="float32", shape=(2, "batch", 64)))
    (2, 64)
    """
    return tuple(axis for axis in spec.shape if axis != BATCH)


class Fitter:
    """Checks and casts the samples of one stream.

    In data, samples lie along axis 0 of every array, wherever the model has its batch axis; an input that has none is
    given once, in its own shape. Of a model that has no batch axis at all, several samples may be given: along axis 0,
    behind which comes its own shape, or in place of a first axis of 1; it takes the first. Sizes along free axes must
    be the same in all samples of a stream.

    Attributes:
        inputs: What the model takes.
        what: The data, in front of messages, e.g. ``--calibrate: data.npz``.
    """

    def __init__(self, inputs: Sequence[TensorSpec], what: str) -> None:
        self.inputs = tuple(inputs)
        self.what = what
        self._sizes: dict[tuple[str, str], int] = {}
        self._target: tuple[str, tuple[int, ...]] | None = None

    def only_input(self, kind: str) -> TensorSpec:
        """The only input of the model, for data that have one array for each sample.

        Raises:
            ConfigError: There are several, or it takes no batches.
        """
        if len(self.inputs) != 1:
            names = ", ".join(spec.name for spec in self.inputs)
            raise ConfigError(
                f"{self.what}: {kind} has one array for each sample, but the model takes {len(self.inputs)} inputs "
                f"({names}): give an .npz with an array for each"
            )
        spec = self.inputs[0]
        if spec.batch_axis is None:
            raise ConfigError(
                f"{self.what}: {kind} has many samples, but the model takes one, {spec.describe()}, without a batch "
                f"axis: give an .npz with x of that shape"
            )
        return spec

    def keys(self, names: Iterable[str]) -> dict[str, str]:
        """Under which name each input is found: its own; the only one also by a usual name, or whatever is alone there.

        Raises:
            ConfigError: One is missing.
        """
        names = list(names)
        has = f"it has {', '.join(names) or 'none'}"
        if len(self.inputs) == 1:
            own = self.inputs[0].name
            key = next((key for key in ("x", own, "arr_0", *SAMPLES) if key in names), None)
            others = [name for name in names if name not in LABELS]
            if key is None and len(others) != 1:
                raise ConfigError(f"{self.what} has no array named x{'' if own == 'x' else f' or {own}'}; {has}")
            return {own: key or others[0]}
        for spec in self.inputs:
            if spec.name not in names:
                wanted = ", ".join(spec.name for spec in self.inputs)
                raise ConfigError(
                    f"{self.what} has no array named {spec.name}; {has}; expected one for each input: {wanted}"
                )
        return {spec.name: spec.name for spec in self.inputs}

    def check(self, spec: TensorSpec, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Check an array of samples by its shape, samples first, and type alone.

        Raises:
            ConfigError: It is not what the model takes as `spec`.
        """
        what = self._named(spec)
        kind = np.dtype(dtype).kind
        if kind not in "fiub":
            raise ConfigError(f"{what}: samples of the type {dtype}; expected numbers, {spec.dtype}")
        if kind == "f" and not spec.dtype.startswith("float"):
            raise ConfigError(
                f"{what}: samples of the type {dtype}, but the model takes {spec.dtype}: give whole numbers of an "
                f"integer type"
            )
        axes = sample_axes(spec)
        sizes = self._alone(spec, shape) if spec.batch_axis is None else shape[1:]
        fits = len(sizes) == len(axes) and all(
            size == axis if isinstance(axis, int) else size > 0 or len(self.inputs) > 1  # one of several may be empty
            for size, axis in zip(sizes, axes, strict=True)
        )
        if not fits:
            hint = _hint(shape, sizes, axes, batched=spec.batch_axis is not None)
            raise ConfigError(f"{what}: samples of the shape {_text(sizes)}, but the model takes {_text(axes)}{hint}")
        for size, axis in zip(sizes, axes, strict=True):
            if isinstance(axis, str) and self._sizes.setdefault((spec.name, axis), size) != size:
                raise ConfigError(
                    f"{what}: a sample of the size {size} along {axis} after samples of the size "
                    f"{self._sizes[spec.name, axis]}: all must have the same, cut or pad them"
                )
        if spec.batch_axis is not None and shape[0] == 0:
            raise ConfigError(f"{what}: no samples in an array of the shape {_text(shape)}; expected at least one")

    def check_target(self, shape: tuple[int, ...], dtype: npt.DTypeLike, count: int) -> None:
        """Check labels or targets by their shape and type alone.

        Raises:
            ConfigError: They are neither class numbers nor targets, or not one for each of `count` samples.
        """
        kind = np.dtype(dtype).kind
        if kind not in "fiub":
            raise ConfigError(f"{self.what}: y of the type {dtype}; expected class numbers (integers) or float targets")
        if shape[:1] != (1,) and not any(spec.batch_axis is not None for spec in self.inputs):
            raise ConfigError(
                f"{self.what}: y for a model that is given whole tensors: none of their axes is one of samples, and "
                f"nothing says what each y belongs to. Leave y out"
            )
        if not shape or shape[0] != count:
            raise ConfigError(
                f"{self.what}: y of the shape {_text(shape)} for {count} samples; expected one y for each"
            )
        if kind != "f" and len(shape) > 2:
            raise ConfigError(f"{self.what}: integers {_not_labels(shape)}")
        form = ("targets" if kind == "f" or len(shape) > 1 else "class numbers", shape[1:])
        if self._target is None:
            self._target = form
        if self._target != form:
            raise ConfigError(
                f"{self.what}: y are {form[0]} of the shape {_text(form[1])} after {self._target[0]} of the shape "
                f"{_text(self._target[1])}; expected the same for all samples"
            )

    def fit(self, x: Mapping[str, Array], y: Array | None) -> Samples:
        """One batch as the model takes it.

        Args:
            x: By input name, samples first.
            y: Class numbers, targets or None.

        Raises:
            ConfigError: It is not what the model takes, or has values that are not finite or do not fit.
        """
        fitted: Arrays = {}
        counts: dict[str, int] = {}
        for spec in self.inputs:
            array = x[spec.name]
            self.check(spec, array.shape, array.dtype)
            if array.shape != (alone := self._alone(spec, array.shape)):
                array = array[:1].reshape(alone)
            array = self._cast(spec, array)
            if spec.batch_axis is not None:
                counts[spec.name] = len(array)
                array = np.moveaxis(array, 0, spec.batch_axis)
            fitted[spec.name] = array
        count = self.count(counts)
        return Samples(fitted, None if y is None else self._cast_target(y, count))

    def count(self, counts: Mapping[str, int]) -> int:
        """The number of samples that all inputs have; 1 when none has a batch axis.

        Raises:
            ConfigError: They have different numbers.
        """
        if len(set(counts.values())) > 1:
            each = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ConfigError(
                f"{self.what}: different numbers of samples: {each}; expected the same for all inputs. Where "
                f"a first axis is none of samples, name it: --input NAME=AXIS,..."
            )
        return next(iter(counts.values()), 1)

    def _alone(self, spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample in an array of samples of a model that takes no batches, else the array's own."""
        if any(one.batch_axis is not None for one in self.inputs) or not shape or not shape[0]:
            return shape
        if len(shape) == len(spec.shape) + 1:
            return shape[1:]
        if len(shape) == len(spec.shape) and spec.shape[0] == 1:
            return (1, *shape[1:])
        return shape

    def _named(self, spec: TensorSpec) -> str:
        return self.what if len(self.inputs) == 1 else f"{self.what}: {spec.name}"

    def _cast(self, spec: TensorSpec, array: Array) -> Array:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite and is refused
                cast = array.astype(dtype, copy=False)
            # What is not finite may stand for a value that is missing: whether the model takes it shows in its outputs.
            if cast is not array and not np.array_equal(np.isfinite(cast), np.isfinite(array)):
                raise ConfigError(
                    f"{self._named(spec)}: samples with values that are too large for {dtype}; remove them"
                )
            return cast
        low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        least, most = int(array.min()), int(array.max())
        if least < low or most > high:
            raise ConfigError(
                f"{self._named(spec)}: samples with values from {least} to {most}, but the model takes {dtype}: "
                f"expected {low} to {high}"
            )
        return array.astype(dtype, copy=False)

    def _cast_target(self, y: Array, count: int) -> Array:
        self.check_target(y.shape, y.dtype, count)
        try:
            return labels_or_targets(y)
        except ValueError as exc:
            raise ConfigError(f"{self.what}: {exc}") from exc


def labels_or_targets(y: Array) -> Array:
    """What belongs to samples, as float32 where they are targets, as int64 where they are class numbers ``(n,)``.

    Whole numbers ``(n, k)`` of 0 and 1 are targets, too: k answers that are yes or no.

    Args:
        y: Numbers, samples first.

    Raises:
        ValueError: They are neither.
    """
    if y.dtype.kind != "f" and y.ndim == 1:
        if y.size and int(y.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"y with the class number {y.max()}; expected numbers from 0 on")
        return y.astype(np.int64, copy=False)
    if y.dtype.kind != "f" and not (y.ndim == 2 and np.isin(y, (0, 1)).all()):
        raise ValueError(f"integers {_not_labels(y.shape)}")
    with np.errstate(over="ignore", invalid="ignore"):
        targets = y.astype(np.float32, copy=False)
    if not np.isfinite(targets).all():
        raise ValueError("y with values that are not finite as float32; remove them")
    return targets


def _not_labels(shape: tuple[int, ...]) -> str:
    whole = ", ".join(map(str, ("n", *shape[1:])))
    return (
        f"y of the shape ({whole}); expected class numbers (n,), y[:, 0] where that is one, or (n, k) of 0 and 1 for k "
        f"answers that are yes or no; a float type for targets. Leave y out where each position has a class of its "
        f"own, as in segmentation"
    )


def _text(axes: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "") + ")"


def _hint(shape: tuple[int, ...], sizes: tuple[int, ...], axes: tuple[int | str, ...], *, batched: bool) -> str:
    if batched and shape == axes:
        return ": this is one sample without the axis for samples in front, save x[None]"
    if len(sizes) == len(axes) and sorted(map(str, sizes)) == sorted(map(str, axes)):
        return ": bring the axes into this order"
    return ""
