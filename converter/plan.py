"""What the user asked for, checked whole before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converter.reason import reason
from edge.contract.errors import ConfigError
from edge.contract.profile import DeviceProfile


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionPlan:
    """Options of one conversion.

    Attributes:
        source: The model file.
        output: The bundle to write.
        profile: The target device.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` for a bare state_dict.
        arch_arguments: Keyword arguments for it.
        input_shape: Without the batch axis; None to take it from the checkpoint or the first layer.
        class_names: None to take them from the checkpoint, or to number them.
        trainable: ``last:K``.
        quantize: ``auto``, ``int8`` or ``none``.
        calibration: ``.npz`` with ``x`` and optionally ``y``, or None.
        evaluation: The same, for measuring only.
        max_drop: Accuracy, in points of 100, that int8 may cost.
    """

    source: Path
    output: Path
    profile: DeviceProfile
    arch: str | None = None
    arch_arguments: dict[str, Any] | None = None
    input_shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    trainable: str = "last:1"
    quantize: str = "auto"
    calibration: Path | None = None
    evaluation: Path | None = None
    max_drop: float = 0.5


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Real data: ``x (n, ...)`` as the model takes it, and labels ``y (n,)`` int64 or None."""

    x: npt.NDArray[Any]
    y: npt.NDArray[np.int64] | None


def check_samples(x: npt.NDArray[Any], y: npt.NDArray[Any] | None, what: str) -> Samples:
    """Samples and labels that belong together.

    Raises:
        ConfigError: There are none, the lengths do not match, or the labels are not whole numbers.
    """
    if x.ndim == 0 or len(x) == 0:
        raise ConfigError(f"{what}: x has the shape {x.shape}; expected (n, ...) with one sample at least")
    if y is None:
        return Samples(x, None)
    if y.shape != (len(x),):
        raise ConfigError(f"{what}: x has {len(x)} samples, y has the shape {y.shape}; expected ({len(x)},)")
    if y.dtype.kind not in "iub":
        raise ConfigError(f"{what}: y has the type {y.dtype}; expected class numbers, e.g. int64")
    return Samples(x, y.astype(np.int64))


def read_samples(path: Path, option: str) -> Samples:
    """Read an ``.npz`` of samples; object arrays are refused, since they are pickles.

    Raises:
        ConfigError: Missing, not an .npz, without ``x``, or `check_samples` does not accept it.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "x" not in archive:
                raise ConfigError(f"{option}: {path} has no array named x; it has {', '.join(archive.files) or 'none'}")
            x, y = archive["x"], archive.get("y")
    except FileNotFoundError as exc:
        raise ConfigError(f"{option}: {path} does not exist") from exc
    except ConfigError:
        raise
    except Exception as exc:  # a broken archive raises OSError, ValueError, BadZipFile, zlib.error, ...
        raise ConfigError(f"{option}: {path} is not an .npz of plain arrays: {reason(exc)}") from exc
    return check_samples(x, y, f"{option}: {path}")
