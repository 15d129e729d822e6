"""Samples with labels that an operator keeps on the coordinator: candidate heads are tested on them, and nowhere else.

What a head gains there it gains on these samples: how much of the world they are, only the operator knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError, ConfigError, EdgeError, LearningError
from edge.contract.foreign import foreign
from edge.contract.training import FloatArray
from edge.inference.named_arrays import read_arrays
from edge.inference.onnx_session import OnnxSession
from edge.learning.task import Task

# Fewer tell nothing: the interval of a share of 20 is some 40 points wide.
MIN_SAMPLES = 20
_AT_ONCE, _THREADS = 256, 1


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """A head to be tested.

    Attributes:
        parameters: float32 by name.
        class_names: Where some were added: all of them; else empty.
    """

    parameters: Mapping[str, FloatArray]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tested:
    """How a candidate did beside the head in whose place it would come.

    Attributes:
        gain: Mean over samples, from -1 to 1: share of right answers, or of quantities how much smaller the loss is.
        error: Its standard error.
        n: Samples.
        text: For people.
    """

    gain: float
    error: float
    n: int
    text: str


@dataclass(frozen=True, eq=False, slots=True)
class _Opened:
    session: OnnxSession
    features: FloatArray
    task: Task


class Holdout:
    """See the module.

    Args:
        path: An ``.npz`` with ``y`` and the inputs of the model by their names; of one input ``x`` will do.

    Raises:
        ConfigError: It cannot be read, or has too few samples.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays = read_arrays(path)
        if "y" not in self._arrays or len(self._arrays) < 2:
            found = ", ".join(sorted(self._arrays)) or "none"
            raise ConfigError(f"--evaluate {path}: expected the inputs of a model by their names, and y; got {found}")
        self._y = self._arrays.pop("y")
        if self._y.ndim == 0 or len(self._y) < MIN_SAMPLES:
            n = len(self._y) if self._y.ndim else 0
            raise ConfigError(f"--evaluate {path}: expected {MIN_SAMPLES} samples at least, got {n}")
        self._opened: dict[str, _Opened] = {}

    def prepare(self, bundle: Bundle) -> None:
        """Compute the features of all samples, which is most of the work.

        Raises:
            ConfigError: The samples are not of this model.
            BundleError: It cannot be run here.
        """
        if bundle.manifest.backbone_digest not in self._opened:
            self._opened[bundle.manifest.backbone_digest] = self._open(bundle)

    def fault(self, bundle: Bundle) -> str:
        """Why heads of a bundle cannot be tested here; "" where they can."""
        try:
            self.prepare(bundle)
        except EdgeError as exc:
            return str(exc)
        return ""

    def test(self, bundle: Bundle, before: Head, candidate: Head) -> Tested:
        """Test a candidate beside the head that is there. Raises as `prepare`."""
        self.prepare(bundle)
        found = self._opened[bundle.manifest.backbone_digest]
        with foreign("the head cannot be run", LearningError):
            answers = [found.session.logits(found.features, each.parameters) for each in (before, candidate)]
        if found.task.is_classifier:
            names = bundle.manifest.class_names
            gains, scores = _right(answers, [self._targets(each.class_names or names) for each in (before, candidate)])
            said = "right on {1:.3f} of {2} samples kept here, {0:.3f} before"
        else:
            targets = found.task.check(self._y, len(self._y))
            gains = found.task.gains(answers[0], answers[1], targets)
            score = found.task.losses if found.task.is_regression else found.task.right
            scores = [float(score(each, targets).mean()) for each in answers]
            what = "loss {1:.4g}" if found.task.is_regression else "right on {1:.3f}"
            said = what + " on {2} samples kept here, {0:.4g} before"
        n = len(gains)
        error = float(gains.std(ddof=1)) / math.sqrt(n)
        return Tested(float(gains.mean()), error, n, said.format(*scores, n))

    def _targets(self, names: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """Numbers of classes as a head has them; -1 for a class that it does not have."""
        if self._y.dtype.kind != "U":
            return self._y.astype(np.int64)
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers.get(name, -1) for name in self._y.tolist()], np.int64)

    def _open(self, bundle: Bundle) -> _Opened:
        manifest = bundle.manifest
        try:
            if manifest.head is None or manifest.states or manifest.fixed_batch is not None:
                raise LearningError("of such a model no heads are tested: it has none, remembers, or has a fixed batch")
            task = Task(manifest.head.training, manifest.output(manifest.head.output).sample_shape[0])
            inputs, count = self._inputs(bundle), len(self._y)
            if task.is_classifier and self._y.dtype.kind == "U":
                if not set(self._y.tolist()) & set(manifest.class_names):
                    raise LearningError("none of the names in y is a class of it")
            else:
                task.check(self._y, count)
            session = OnnxSession(bundle, _THREADS)
            axes = {spec.name: spec.batch_axis for spec in manifest.sample_inputs}
            parts = []
            at_once = 1 if manifest.one_by_one else _AT_ONCE
            for i in range(0, count, at_once):
                rows = slice(i, min(i + at_once, count))
                part = {name: _rows(array, axes[name], rows) for name, array in inputs.items()}
                with foreign("the model fails on them", LearningError):
                    parts.append(session.features(part))
        except BundleError:
            raise
        except EdgeError as exc:
            raise ConfigError(f"--evaluate {self._path}: not samples of {manifest.name!r}: {exc}") from exc
        return _Opened(session, np.concatenate(parts), task)

    def _inputs(self, bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
        specs = {spec.name: spec for spec in bundle.manifest.sample_inputs}
        arrays = self._arrays
        if arrays.keys() == {"x"} and len(specs) == 1:
            arrays = dict.fromkeys(specs, arrays["x"])
        if arrays.keys() != specs.keys():
            raise LearningError(f"expected the arrays {', '.join(specs)} and y, got {', '.join(sorted(arrays))}")
        found = {}
        for name, spec in specs.items():
            array, axis = arrays[name], spec.batch_axis
            if array.dtype.kind not in "fiub" or (axis is not None and array.ndim != len(spec.shape)):
                raise LearningError(f"{name}: expected numbers of {len(spec.shape)} axes, got {array.ndim}")
            if axis is not None and array.shape[axis] != len(self._y):
                raise LearningError(f"{name}: expected {len(self._y)} samples, as many as y, got {array.shape[axis]}")
            found[name] = array.astype(spec.dtype, copy=False)
            try:
                spec.check(found[name])
            except ValueError as exc:
                raise LearningError(str(exc)) from exc
        return found


def _rows(array: npt.NDArray[Any], axis: int | None, rows: slice) -> npt.NDArray[Any]:
    return array if axis is None else array[(slice(None),) * axis + (rows,)]


def _right(
    answers: list[FloatArray], targets: list[npt.NDArray[np.int64]]
) -> tuple[npt.NDArray[np.float64], list[float]]:
    """Sample by sample what the second gains over the first, and how often each is right; not finite is wrong."""
    right = [
        (found.argmax(axis=1) == wanted) & np.isfinite(found).all(axis=1)
        for found, wanted in zip(answers, targets, strict=True)
    ]
    return right[1].astype(np.float64) - right[0], [float(each.mean()) for each in right]
