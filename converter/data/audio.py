"""One sample out of one ``.wav`` file."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter.data.fit import MAX_BYTES, reading, sample_axes
from converter.program.tensors import Array
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec


class AudioReader:
    """Reads PCM sounds for one input, ``(batch, samples)`` (mixed to mono) or ``(batch, channels, samples)``.

    An int16 input gets 16-bit numbers, a float32 input numbers in -1..1. Sounds are cut or padded with zeros at the end
    where the model's number of samples is fixed. All files must have the same sampling rate.
    """

    def __init__(self, spec: TensorSpec, what: str) -> None:
        self._what = what
        axes = sample_axes(spec)
        if len(axes) not in (1, 2) or spec.dtype not in ("int16", "float32"):
            raise ConfigError(
                f"{what} has sounds, but the model takes {spec.dtype} {spec.describe()}; sounds can be given for int16 "
                f"or float32 (batch, samples) or (batch, channels, samples): give an .npz instead"
            )
        self._dtype = spec.dtype
        self._channels = axes[0] if len(axes) == 2 else None
        self._samples = axes[-1]
        self._rate: int | None = None

    def __call__(self, path: Path) -> Array:
        """One sound.

        Raises:
            ConfigError: It is damaged or too large, or does not go with the model or the files before it.
        """
        what = f"{self._what}: {path.name}"
        with reading(what, "a PCM .wav that can be read"), wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            if count == 0:
                raise ConfigError(f"{what} has no samples; expected at least one")
            wanted = self._samples if isinstance(self._samples, int) else count
            used = min(wanted, count)
            if used * channels * 4 > MAX_BYTES:
                raise ConfigError(f"{what} is too long, {count} samples: cut it into pieces")
            frames = file.readframes(used)
            if len(frames) < used * channels * width or count * channels * width > path.stat().st_size:
                raise ConfigError(f"{what} is cut off: it says {count} samples, but its file is shorter than that")
        if self._rate is None:
            self._rate = rate
        if rate != self._rate:
            raise ConfigError(f"{what} has {rate} samples each second, the files before it {self._rate}: resample it")
        values = _left_aligned(frames, width).reshape(-1, channels).T
        values = self._mixed(values, what)
        missing = wanted - values.shape[-1]
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
        if self._dtype == "int16":
            return (values >> 16).astype(np.int16)
        return values.astype(np.float32) / np.float32(2**31)

    def _mixed(self, values: npt.NDArray[np.int32], what: str) -> npt.NDArray[np.int32]:
        if self._channels is None or self._channels == 1:
            mixed: npt.NDArray[np.int32] = values.mean(axis=0, dtype=np.float64).astype(np.int32)
            return mixed if self._channels is None else mixed[None]
        if isinstance(self._channels, int) and len(values) != self._channels:
            raise ConfigError(f"{what} has {len(values)} channels, but the model takes {self._channels}")
        return values


def _left_aligned(frames: bytes, width: int) -> npt.NDArray[np.int32]:
    """Little-endian numbers of `width` bytes as the highest bytes of 32-bit ones; single bytes are unsigned."""
    raw = np.frombuffer(frames, np.uint8).reshape(-1, width)
    wide = np.zeros((len(raw), 4), np.uint8)
    wide[:, 4 - width :] = raw ^ 0x80 if width == 1 else raw
    return wide.view("<i4")[:, 0].astype(np.int32)
