"""Samples divided: some to calibrate on, others to measure on, and what both cannot show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.data.holdout import LEAST_SAMPLES, different, halves
from converter.data.samples import Samples, SampleStream
from converter.data.subset import subset
from converter.program.programs import has_batch
from converter.program.tensors import Array, batch_size
from converter.verify.evidence import FEW, REPEATED, ZERO, Finding
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

EVALUATION_SAMPLES = 2000
CALIBRATION_SAMPLES = 512
_LEAST_MEASURED = LEAST_SAMPLES // 2
_WHOLE = "the model is given whole tensors, and one was: what is measured on it says nothing of others"
# Samples in memory; a stream may be as long as it likes.
MAX_BYTES = 96 << 20


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Divided:
    """Samples to calibrate on and to measure on, and what is to be said of them."""

    calibration: Samples | None
    samples: Samples
    origin: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def divided(stream: SampleStream | None, evaluation: SampleStream | None, inputs: tuple[TensorSpec, ...]) -> Divided:
    """What to calibrate on, and what to measure on: other samples where there are enough."""
    notes: list[str] = []
    pool = None if stream is None else subset(
        stream, inputs, max_samples=CALIBRATION_SAMPLES + (EVALUATION_SAMPLES if evaluation is None else 0),
        max_bytes=MAX_BYTES * (2 if evaluation is None else 1),
    )  # fmt: skip
    if evaluation is not None:
        given = subset(evaluation, inputs, max_samples=EVALUATION_SAMPLES, max_bytes=MAX_BYTES)
        others = different(given, inputs, without=pool)
        before, after = batch_size(given.x, inputs), batch_size(others.x, inputs)
        if after < before:
            notes.append(
                f"{before - after} of {before} samples of --evaluate are repeated or among those to calibrate on, and "
                f"were left out"
            )
        if after or pool is None:
            text = (
                f"{after} samples to measure on, of {_LEAST_MEASURED} at least: what quantization costs cannot be known"
            )
            findings = () if after >= _LEAST_MEASURED else (Finding(what=FEW, text=text),)
            return Divided(
                calibration=pool, samples=others, origin=evaluation.origin, findings=findings, notes=tuple(notes)
            )
    assert pool is not None
    assert stream is not None
    count, once = batch_size(pool.x, inputs), different(pool, inputs)
    n_different = batch_size(once.x, inputs)
    findings_ = []
    if all(not np.any(pool.x[spec.name]) for spec in inputs):
        findings_.append(Finding(what=ZERO, text=f"all samples of {stream.origin} are zero"))
    elif n_different < count and n_different < LEAST_SAMPLES:
        text = f"of {count} samples of {stream.origin} {n_different} {'is' if n_different == 1 else 'are'} different"
        findings_.append(Finding(what=REPEATED, text=text))
    if n_different < LEAST_SAMPLES:
        findings_.append(_few(n_different) if has_batch(inputs) else Finding(what=FEW, text=_WHOLE))
        return Divided(
            calibration=once, samples=once, origin=stream.origin, findings=tuple(findings_), notes=tuple(notes)
        )
    if n_different < count:
        notes.append(f"{count - n_different} of {count} samples of {stream.origin} are repeated and count once")
    split = halves(once, inputs, most_calibration=CALIBRATION_SAMPLES)
    return Divided(
        calibration=split.calibration,
        samples=split.measured,
        origin=f"{stream.origin}, held out of {n_different}",
        findings=tuple(findings_),
        notes=tuple(notes),
    )


def _few(count: int) -> Finding:
    return Finding(
        what=FEW,
        text=f"{count} different sample{'' if count == 1 else 's'}: {LEAST_SAMPLES} are the least to calibrate on one "
        f"half and to measure on the other, so what quantization costs cannot be known",
    )


def check_not_one_hot(y: Array | None, origin: str) -> None:
    """Raise ConfigError for float targets that look like one-hot classes: yes-or-no answers are judged otherwise."""
    if y is None or y.dtype.kind != "f" or y.ndim != 2 or y.shape[1] < 2 or not len(y):
        return
    if bool(np.isin(y, (0.0, 1.0)).all()) and bool((y.sum(axis=1) == 1.0).all()):
        raise ConfigError(
            f"{origin}: each y is one 1 among {y.shape[1] - 1} 0, as one-hot classes are: give class numbers "
            f"(y.argmax(axis=1)), or --loss binary-cross-entropy where they are answers of their own"
        )
