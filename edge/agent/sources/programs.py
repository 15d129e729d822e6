"""Camera and microphone by the programs that every distribution has: ``ffmpeg`` (V4L2, files) and ``arecord`` (ALSA).

A frame, or a piece of sound, is as large as the model takes it; pictures are scaled by ffmpeg. What comes while the
model works waits in a pipe of 64 KiB, and then in the driver, which drops it.
"""

from __future__ import annotations

import math
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.sources.payloads import Payload, SourceOptions, Stop
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

_LOOK_S = 0.5
_CHANNELS = {1: "gray", 3: "rgb24"}


class Camera:
    """Frames of a camera, or of a film for a trial.

    Args:
        place: ``/dev/video0``, or a file.
        fps: Frames in a second.
        options: For its samples.
    """

    ends_agent = waits = False

    def __init__(self, place: str, fps: float, options: SourceOptions) -> None:
        self._place, self._fps, self.options, self.name = place, fps, options, f"camera {place}"

    def payloads(self, stop: Stop, specs: Callable[[], Sequence[TensorSpec]]) -> Iterator[Payload]:
        """See `edge.agent.sources.payloads.Source`."""
        spec = _single(specs(), "a camera")
        height, width, channels, axis = _picture(spec)
        form = ["-f", "v4l2"] if self._place.startswith("/dev/") else []
        line = [_program("ffmpeg"), "-nostdin", "-loglevel", "error", *form, "-i", self._place]
        line += ["-vf", f"fps={self._fps:g},scale={width}:{height}", "-pix_fmt", _CHANNELS[channels]]
        line += ["-f", "rawvideo", "-"]
        with _Running(line, self.name) as program:
            for frame in program.pieces(height * width * channels, stop):
                pixels = np.moveaxis(np.frombuffer(frame, np.uint8).reshape(height, width, channels), 2, axis)
                made = pixels if spec.dtype == "uint8" else pixels.astype(np.float32) / np.float32(255)
                yield Payload(name=self.name, data=_bytes(made, spec), kind="raw", stream=self.name)


class Microphone:
    """Sound of an ALSA device, in pieces as long as the model takes them.

    Args:
        device: As ``arecord -L`` names it.
        rate: Samples in a second, that the model expects.
        options: For its samples.
    """

    ends_agent = waits = False

    def __init__(self, device: str, rate: int, options: SourceOptions) -> None:
        self._device, self._rate, self.options, self.name = device, rate, options, f"microphone {device}"

    def payloads(self, stop: Stop, specs: Callable[[], Sequence[TensorSpec]]) -> Iterator[Payload]:
        """See `edge.agent.sources.payloads.Source`."""
        spec = _single(specs(), "a microphone")
        sizes = [size for i, size in enumerate(spec.shape) if i != spec.batch_axis]
        if not all(isinstance(size, int) for size in sizes) or spec.dtype not in ("float32", "int16"):
            raise ConfigError(f"the model takes {spec.dtype} {spec.describe()}: expected sound of a fixed length")
        length = math.prod(int(size) for size in sizes)
        line = [_program("arecord"), "-q", "-D", self._device, "-f", "S16_LE", "-c", "1", "-r", str(self._rate)]
        with _Running([*line, "-t", "raw"], self.name) as program:
            for piece in program.pieces(2 * length, stop):
                found = np.frombuffer(piece, "<i2")
                made = found if spec.dtype == "int16" else found.astype(np.float32) / np.float32(32768)
                yield Payload(name=self.name, data=_bytes(made, spec), kind="raw", stream=self.name)


def _bytes(array: npt.NDArray[Any], spec: TensorSpec) -> bytes:
    return array.astype(np.dtype(spec.dtype).newbyteorder("<"), copy=False).tobytes()


def _single(specs: Sequence[TensorSpec], what: str) -> TensorSpec:
    if len(specs) != 1:
        raise ConfigError(f"the model takes {', '.join(spec.name for spec in specs)}: {what} gives one of them only")
    return specs[0]


def _picture(spec: TensorSpec) -> tuple[int, int, int, int]:
    """Height, width, channels, and where the channels lie in a sample."""
    sizes = [size for i, size in enumerate(spec.shape) if i != spec.batch_axis]
    for axis in (0, 2) if spec.dtype == "float32" else (2, 0):
        if len(sizes) == 3 and spec.dtype in ("float32", "uint8") and sizes[axis] in _CHANNELS:
            height, width = (size for i, size in enumerate(sizes) if i != axis)
            if isinstance(height, int) and isinstance(width, int):
                return height, width, int(sizes[axis]), axis
    raise ConfigError(f"the model takes {spec.dtype} {spec.describe()}: expected pictures of a fixed size")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = {"ffmpeg": "ffmpeg", "arecord": "alsa-utils"}[name]
        raise ConfigError(f"{name} is not installed: apt install {package}")
    return found


class _Running:
    """A program whose output is read; it ends with the context.

    Args:
        line: Its command line.
        name: Of the source, for messages.
    """

    def __init__(self, line: Sequence[str], name: str) -> None:
        self._line, self._name = line, name

    def __enter__(self) -> _Running:
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(self._line, stdout=subprocess.PIPE, stderr=self._said)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def pieces(self, size: int, stop: Stop) -> Iterator[bytes]:
        """Its output in pieces of so many bytes.

        Raises:
            ConfigError: It ended with an error; what it said last.
        """
        assert self._process.stdout is not None
        number, data = self._process.stdout.fileno(), bytearray()
        while not stop.is_set():
            if not select.select([number], [], [], _LOOK_S)[0]:
                continue
            if not (more := os.read(number, size - len(data))):
                break
            data += more
            if len(data) == size:
                yield bytes(data)
                data.clear()
        if not stop.is_set() and self._process.wait():
            self._said.seek(0)
            said = self._said.read()[-300:].decode(errors="replace").strip()
            raise ConfigError(f"{self._name}: {said or 'the program ended with an error'}")
