"""Measuring: accuracy, agreement, signal to noise, latency, memory. Every number in a report comes from here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter.data.samples import Samples
from converter.program.programs import outputs
from converter.program.tensors import Array, Arrays, Run, select
from edge.contract.tensorspec import TensorSpec
from edge.inference.session import sqnr_db


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """How far a program's outputs are from the original's.

    Attributes:
        score: Accuracy in 0..1 against the labels, or R² against float targets; None without any.
        agreement: Of the output that classifies, the share of samples on which it chooses the original's class; of
            other float outputs, the share of the original's variance that is kept (R² against it, 0 at least); of
            integers, the share that is equal. The smallest over all outputs.
        sqnr_db: Signal to quantization noise ratio against the original, the smallest over all float outputs.
        max_error: Largest absolute difference.
        relative_error: That difference relative to the largest absolute value of its output.
    """

    score: float | None
    agreement: float
    sqnr_db: float
    max_error: float
    relative_error: float


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Evaluation:
    """What programs are compared on.

    Attributes:
        samples: Real or random ones.
        real: False when they are random.
        inputs: Of every program.
        outputs: Of every program.
        reference: The original's outputs on the samples.
        classes: Name of the output that holds one logit for each class, or None.
        binary: Whether the first float output holds logits of several yes-or-no answers.
    """

    samples: Samples
    real: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    reference: Arrays
    classes: str | None
    binary: bool = False

    @property
    def metric(self) -> str:
        """``accuracy``, ``R2``, or without labels ``agreement`` (of classes) or ``fidelity``."""
        if self.samples.y is not None:
            return "accuracy" if self.classes or self.binary else "R2"
        return "agreement" if self.classes else "fidelity"

    def first(self, count: int) -> Evaluation:
        """The comparison on the first samples only."""
        rows, y = slice(0, count), self.samples.y
        samples = Samples(select(self.samples.x, self.inputs, rows), None if y is None else y[rows])
        return replace(self, samples=samples, reference=select(self.reference, self.outputs, rows))

    def run(self, program: Run) -> Arrays:
        """A program's outputs on all samples."""
        return outputs(program, self.samples.x, self.inputs, self.outputs)

    def score(self, found: Arrays, y: Array | None) -> float | None:
        """Accuracy, the share of right yes-or-no answers, or R² against targets of the shape of the first float output.

        None without labels.
        """
        if y is None:
            return None
        if self.classes is not None and y.dtype.kind in "iu":
            return float((found[self.classes].argmax(axis=1) == y).mean())
        first = next((found[spec.name] for spec in self.outputs if spec.dtype.startswith("float")), None)
        if first is None or first.size != y.size:
            return None
        if self.binary:
            return float(((first > 0) == (y.reshape(first.shape) > 0.5)).mean())
        return kept_variance(y.reshape(first.shape), first)

    def quality(self, found: Arrays, y: Array | None, reference: Arrays) -> float:
        """The score where there is one, else the agreement with a reference."""
        score = self.score(found, y)
        return self._agreement(found, reference) if score is None else score

    def deviation(self, found: Arrays) -> Deviation:
        """Compare outputs on all samples with the original's."""
        floats = [spec.name for spec in self.outputs if spec.dtype.startswith("float")]
        errors = {name: float(np.abs(found[name] - self.reference[name]).max(initial=0.0)) for name in floats}
        scales = {name: float(np.abs(self.reference[name]).max(initial=0.0)) or 1.0 for name in floats}
        return Deviation(
            score=self.score(found, self.samples.y),
            agreement=self._agreement(found, self.reference),
            sqnr_db=min((sqnr_db(self.reference[name], found[name]) for name in floats), default=200.0),
            max_error=max(errors.values(), default=0.0),
            relative_error=max((errors[name] / scales[name] for name in floats), default=0.0),
        )

    def _agreement(self, found: Arrays, reference: Arrays) -> float:
        shares = []
        for spec in self.outputs:
            wanted, got = reference[spec.name], found[spec.name]
            if spec.name == self.classes:
                shares.append(float((got.argmax(axis=1) == wanted.argmax(axis=1)).mean()))
            elif spec.dtype.startswith("float"):
                shares.append(kept_variance(wanted, got))
            else:
                shares.append(float((got == wanted).mean()))
        return min(shares)


def kept_variance(wanted: Array, found: Array) -> float:
    """Coefficient of determination ``1 - sum (w - f)^2 / sum (w - mean w)^2``, 0 at least.

    >>> kept_variance(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0]))
    1.0
    """
    wanted = wanted.astype(np.float64)
    error = float(np.square(wanted - found).sum())
    variance = float(np.square(wanted - wanted.mean()).sum())
    if not np.isfinite(error):
        return 0.0
    if variance == 0.0:
        return 1.0 if error <= 1e-12 * max(1.0, float(np.square(wanted).sum())) else 0.0
    return max(0.0, 1.0 - error / variance)


def latency_ms(run: Run, sample: Arrays, budget_s: float = 0.1) -> float:
    """Median time of one sample in this process, after warming up; for programs that are no ONNX files."""
    for _ in range(3):
        run(sample)
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while (start := time.perf_counter()) < end or len(times) < 5:
        run(sample)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def classifying_output(specs: Sequence[TensorSpec]) -> str | None:
    """The output that has one logit for each class: the only one, if it is float ``(batch, n >= 2)``."""
    if len(specs) == 1 and specs[0].dtype == "float32" and len(specs[0].shape) == 2 and specs[0].batch_axis == 0:
        size = specs[0].shape[1]
        return specs[0].name if isinstance(size, int) and size >= 2 else None
    return None
