"""What a conversion calibrates and measures on: real samples where there are some, random ones where there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from converter.load import Source
from converter.plan import ConversionPlan, Samples, read_samples
from converter.quantize import random_inputs
from edge.contract.errors import ConfigError, ConversionError

EVALUATION_SAMPLES = 2000
RANDOM_SAMPLES = 256


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Data:
    """What a conversion measures on.

    Attributes:
        calibration: Real data, or None.
        x: Samples to measure on.
        y: Their labels, or None.
        origin: What they are, in words.
        real: False when they are random.
    """

    calibration: Samples | None
    x: npt.NDArray[Any]
    y: npt.NDArray[np.int64] | None
    origin: str
    real: bool

    def check_labels(self, n_classes: int) -> None:
        """Raise ConfigError unless every label names an output."""
        for labels in (self.y, None if self.calibration is None else self.calibration.y):
            if labels is not None and not (labels.min() >= 0 and labels.max() < n_classes):
                raise ConfigError(
                    f"labels from {labels.min()} to {labels.max()}, but the model has {n_classes} outputs: "
                    f"expected 0 to {n_classes - 1}"
                )


def gather_data(plan: ConversionPlan, source: Source) -> Data:
    """Real data where there is some, else random inputs, fitted to the model's input.

    Raises:
        ConfigError: A file of samples cannot be read, or does not fit the model.
        ConversionError: The model takes integers and there is no real data.
    """
    dtype = source.example.numpy().dtype
    shape = tuple(source.example.shape[1:])
    calibration = source.samples
    if plan.calibration is not None:
        calibration = read_samples(plan.calibration, "--calibrate")
    if calibration is not None:
        calibration = _fitted(calibration, shape, dtype, "calibration data")
    measured, origin = calibration, "the calibration data"
    if plan.evaluation is not None:
        measured = _fitted(read_samples(plan.evaluation, "--evaluate"), shape, dtype, "--evaluate")
        origin = "the --evaluate data"
    if measured is None:
        if dtype.kind != "f":
            raise ConversionError(
                f"the model takes {dtype}, for which no inputs can be made up: give --calibrate DATA.npz with x"
            )
        x = random_inputs(shape, dtype, RANDOM_SAMPLES)
        return Data(calibration=None, x=x, y=None, origin=f"{RANDOM_SAMPLES} random inputs", real=False)
    x, y = measured.x[:EVALUATION_SAMPLES], None if measured.y is None else measured.y[:EVALUATION_SAMPLES]
    return Data(calibration=calibration, x=x, y=y, origin=f"{len(x)} samples of {origin}", real=True)


def _fitted(samples: Samples, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> Samples:
    """The samples in the model's own element type."""
    if samples.x.shape[1:] != shape:
        raise ConfigError(f"{what}: samples of shape {samples.x.shape[1:]}, the model takes {shape}")
    if samples.x.dtype.kind not in "fiub" or (samples.x.dtype.kind == "f" and dtype.kind != "f"):
        raise ConfigError(f"{what}: samples of type {samples.x.dtype}, the model takes {dtype}")
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is refused below
        x = samples.x.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(x).all():
        raise ConfigError(f"{what}: samples with values that are not finite")
    return Samples(x, samples.y)
