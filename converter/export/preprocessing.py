"""Preprocessing inside the graph, so that a device cannot get it wrong: ``--preprocess KIND[:KEY=VALUE,...]``.

``image[:scale=255,mean=0.485|0.456|0.406,std=0.229|0.224|0.225,size=HxW|any,channels=3,resize=bilinear|none,order=rgb|bgr]``
    uint8 pixels ``(batch, height, width, channels)``. They become ``(batch, channels, height, width)``, in the model's
    own size. `size` is that of the raw image where it is another; ``any`` leaves it free. `order` is that of the raw
    channels, for a model that takes RGB; `mean` and `std` are in the model's order.
``audio[:scale=32768,mean=0,std=1]``
    int16 samples, with the axes of the model's input: ``(batch, samples)`` or ``(batch, channels, samples)``.
``affine[:scale=1,mean=0,std=1,dtype=float32,axis=1]``
    Numbers of any type, with the axes of the model's input.

All of them give ``(x / scale - mean) / std`` as float32. `mean` and `std` are in units of ``x / scale``, one number or
one for each channel, separated by ``|``: along axis 1, for affine along the axis that is named. So they are the
features of ``(batch, features)`` and the channels of ``(batch, channels, time)``; ``axis=2`` makes them the features of
``(batch, time, features)``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn
from torch.nn import functional

from converter.graph.build import GraphBuilder, make_model, tensor_info
from edge.contract.documents import did_you_mean
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

FloatArray = npt.NDArray[np.float32]

AFFINE_DTYPES = ("float32", "float16", "uint8", "int8", "int16", "uint16", "int32")
MAX_SIDE = 16384
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_WHOLE = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Steps:
    """What is to be done for one model, in this order.

    Attributes:
        raw: What comes in.
        channels_first: Move the last of four axes to the place behind the first.
        reverse: Turn the order of the channels, then axis 1, around.
        resize: Height and width in pixels that axes 2 and 3 are resized to, or None.
        gain: Multiplied with the values as float32; a scalar, or as many axes as to broadcast from behind.
        offset: Added to that; shaped alike.
    """

    raw: TensorSpec
    channels_first: bool = False
    reverse: bool = False
    resize: tuple[int, int] | None = None
    gain: FloatArray
    offset: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing(ABC):
    """``(x / scale - mean) / std`` and what comes before it.

    Attributes:
        scale: In units of the raw values.
        mean: One number or one for each channel, in units of ``x / scale``.
        std: Likewise; greater than zero.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @abstractmethod
    def steps(self, spec: TensorSpec) -> Steps:
        """What is to be done for a model's input.

        Args:
            spec: Of the model's own input, float32.

        Raises:
            ConfigError: The model does not take what this gives.
        """

    def raw_input(self, spec: TensorSpec) -> TensorSpec:
        """What comes in where a model takes `spec`, under the same name.

        Raises:
            ConfigError: As for `steps`.
        """
        return self.steps(spec).raw

    def module(self, spec: TensorSpec) -> nn.Module:
        """From the raw tensor to the one that a model takes as `spec`; can be traced and scripted.

        Raises:
            ConfigError: As for `steps`.
        """
        return _Module(self.steps(spec)).eval()

    def describe(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return {
            "formula": "(x / scale - mean) / std",
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def _factors(self, spec: TensorSpec, axis: int) -> tuple[FloatArray, FloatArray]:
        """Gain and offset that broadcast against an input with its channels on the given axis."""
        shape = spec.shape
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) > 1 and (axis >= len(shape) or shape[axis] != len(values)):
                size = f"{shape[axis]}" if axis < len(shape) else "nothing"
                raise ConfigError(
                    f"--preprocess: {name} has {len(values)} values, but axis {axis} of the model's input {spec.name} "
                    f"{spec.describe()} has {size}: expected one value, or one for each channel on that axis"
                )
        with np.errstate(all="ignore"):
            std = np.asarray(self.std)
            gain = (1.0 / (self.scale * std)).astype(np.float32)
            offset = (0.0 - np.asarray(self.mean) / std).astype(np.float32)
        if not (np.isfinite(gain).all() and np.isfinite(offset).all() and (gain > 0).all()):
            raise ConfigError("--preprocess: scale, mean and std are too large or too small for float32 numbers")
        axes_behind = (1,) * (len(shape) - axis - 1)

        def broadcast(values: FloatArray) -> FloatArray:
            return values.reshape((-1, *axes_behind) if len(values) > 1 else ())

        return broadcast(gain), broadcast(offset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Image(Preprocessing):
    """See the module.

    Attributes:
        size: Height and width of the raw image in pixels, ``any``, or None for the model's own.
        channels: Of the raw image; None for the model's own.
        resize: ``bilinear``, with half-pixel centers and without antialiasing, or ``none``.
        order: Of the raw channels, ``rgb`` or ``bgr``.
    """

    scale: float = 255.0
    size: tuple[int, int] | str | None = None
    channels: int | None = None
    resize: str = "bilinear"
    order: str = "rgb"

    def steps(self, spec: TensorSpec) -> Steps:
        """See `Preprocessing.steps`."""
        _check_float(spec)
        if len(spec.shape) != 4 or spec.batch_axis not in (0, None):
            raise ConfigError(
                f"--preprocess image: expected a model that takes (batch, channels, height, width), got {spec.name} "
                f"{spec.describe()}; affine: takes any shape"
            )
        batch, channels, *own = spec.shape
        if isinstance(channels, str):
            if self.channels is None:
                raise ConfigError(
                    f"--preprocess image: {spec.name} {spec.describe()} leaves the number of channels open: add "
                    f"channels=3 or as many as the image has"
                )
            channels = self.channels
        if self.channels not in (None, channels):
            raise ConfigError(
                f"--preprocess image: channels={self.channels}, but the model's input {spec.name} {spec.describe()} "
                f"has {channels}"
            )
        if self.order == "bgr" and channels != 3:
            raise ConfigError(
                f"--preprocess image: order=bgr needs 3 channels, but the model's input {spec.name} {spec.describe()} "
                f"has {channels}"
            )
        raw = self._raw_size(own)
        differs = [a for a, b in zip(own, raw, strict=True) if isinstance(a, int) and a != b]
        to = [size for size in own if isinstance(size, int)]
        if differs and (self.resize == "none" or len(to) != 2):
            why = "resize=none" if self.resize == "none" else "its height or width is free, so nothing can be resized"
            raise ConfigError(
                f"--preprocess image: size={_size_text(self.size)}, but the model's input {spec.name} is "
                f"{spec.describe()} and {why}"
            )
        gain, offset = self._factors(replace(spec, shape=(batch, channels, *own)), 1)
        return Steps(
            raw=TensorSpec(name=spec.name, dtype="uint8", shape=(batch, *raw, channels)),
            channels_first=True,
            reverse=self.order == "bgr",
            resize=(to[0], to[1]) if differs else None,
            gain=gain,
            offset=offset,
        )

    def describe(self) -> dict[str, Any]:
        """See `Preprocessing.describe`."""
        return {
            "kind": "image",
            "input": "uint8 pixels, (batch, height, width, channels)",
            "units": {"x": "grey levels, 0 to 255", "scale": "grey levels", "mean": "x / scale", "std": "x / scale"},
            **Preprocessing.describe(self),
            "size": _size_text(self.size),
            "channels": self.channels if self.channels is not None else "as the model",
            "order": self.order,
            "resize": "bilinear, half-pixel centers, no antialiasing" if self.resize == "bilinear" else "none",
        }

    def _raw_size(self, own: list[int | str]) -> tuple[int | str, ...]:
        if self.size is None:
            return tuple(own)
        return ("height", "width") if isinstance(self.size, str) else self.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Affine(Preprocessing):
    """See the module.

    Attributes:
        dtype: Of the raw values.
        axis: Where the values of mean and std belong.
    """

    kind: ClassVar[str] = "affine"
    unit: ClassVar[str] = "as the sensor gives"

    dtype: str = "float32"
    axis: int = 1

    def steps(self, spec: TensorSpec) -> Steps:
        """See `Preprocessing.steps`."""
        _check_float(spec)
        gain, offset = self._factors(spec, self.axis)
        raw = TensorSpec(name=spec.name, dtype=self.dtype, shape=spec.shape)
        return Steps(raw=raw, gain=gain, offset=offset)

    def describe(self) -> dict[str, Any]:
        """See `Preprocessing.describe`."""
        return {
            "kind": self.kind,
            "input": f"{self.dtype}, with the axes of the model's input",
            "units": {"x": self.unit, "scale": self.unit, "mean": "x / scale", "std": "x / scale"},
            **Preprocessing.describe(self),
            "axis": self.axis,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Audio(Affine):
    """See the module."""

    kind: ClassVar[str] = "audio"
    unit: ClassVar[str] = "steps of the converter, -32768 to 32767"

    scale: float = 32768.0
    dtype: str = "int16"

    def steps(self, spec: TensorSpec) -> Steps:
        """See `Preprocessing.steps`."""
        if len(spec.shape) not in (2, 3):
            raise ConfigError(
                f"--preprocess audio: expected a model that takes (batch, samples) or (batch, channels, samples), got "
                f"{spec.name} {spec.describe()}"
            )
        return Affine.steps(self, spec)


class _Module(nn.Module):
    """The steps on a torch tensor."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.channels_first = steps.channels_first
        self.reverse = steps.reverse
        self.resizes = steps.resize is not None
        self.height, self.width = steps.resize or (0, 0)
        self.gain = nn.Buffer(torch.from_numpy(steps.gain))
        self.offset = nn.Buffer(torch.from_numpy(steps.offset))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.channels_first:
            x = x.permute(0, 3, 1, 2)
        if self.reverse:
            x = x.flip(1)
        x = x.to(torch.float32)
        if self.resizes:
            x = functional.interpolate(x, [self.height, self.width], mode="bilinear", align_corners=False)
        return x * self.gain + self.offset


def preprocessing_onnx(preprocessing: Preprocessing, spec: TensorSpec) -> onnx.ModelProto:
    """The steps as a graph with one input, named as `spec`, and one output, ``preprocessing/`` and that name.

    All other names in it begin with ``preprocessing/`` too. It differs from the torch module by rounding, and where it
    resizes by less than 0.05 grey levels, because onnxruntime rounds the places between pixels differently.

    Args:
        preprocessing: What to do.
        spec: Of the model's own input.

    Raises:
        ConfigError: The model does not take what this gives.
    """
    steps = preprocessing.steps(spec)
    graph = GraphBuilder("preprocessing/")
    x = spec.name
    if steps.channels_first:
        x = graph.op("Transpose", x, perm=[0, 3, 1, 2])
    if steps.reverse:
        x = graph.op("Gather", x, graph.ints(2, 1, 0), axis=1)
    if steps.raw.dtype != "float32":
        x = graph.op("Cast", x, to=onnx.TensorProto.FLOAT)
    if steps.resize is not None:
        # All four sizes: in a quantized graph, onnxruntime 1.32's layout optimizer breaks a Resize with `axes`.
        sizes = graph.op("Concat", graph.op("Shape", x, start=0, end=2), graph.ints(*steps.resize), axis=0)
        x = graph.op("Resize", x, "", "", sizes, mode="linear")
    made = f"preprocessing/{spec.name}"
    if steps.offset.any():
        x = graph.op("Mul", x, graph.constant(steps.gain))
        graph.op("Add", x, graph.constant(steps.offset), output=made)
    else:
        graph.op("Mul", x, graph.constant(steps.gain), output=made)
    return make_model(
        "preprocessing",
        graph.nodes,
        [tensor_info(steps.raw.name, steps.raw.shape, steps.raw.dtype)],
        [tensor_info(made, spec.shape)],
        graph.initializers,
    )


def parse_preprocessing(text: str) -> Preprocessing:
    """Read the value of ``--preprocess``, see the module.

    >>> parse_preprocessing("affine:mean=1|2,dtype=int16").describe()["mean"]
    [1.0, 2.0]

    Raises:
        ConfigError: It is not of that form.
    """
    kind, _, rest = text.partition(":")
    if kind not in _KINDS:
        raise ConfigError(
            f"--preprocess: {kind[:60]!r} is not known, expected {', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}"
        )
    make, readers = _KINDS[kind]
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else []:
        key, equals, value = item.partition("=")
        if key not in readers:
            raise ConfigError(
                f"--preprocess {kind}: {key[:60]!r} is not known, expected {', '.join(readers)}"
                f"{did_you_mean(key, readers)}"
            )
        if not equals or key in options:
            raise ConfigError(f"--preprocess {kind}: expected {key}=VALUE once")
        try:
            options[key] = readers[key](value)
        except ValueError as exc:
            raise ConfigError(f"--preprocess {kind}: {key}={value[:60]}: expected {exc}") from exc
    return make(**options)


def _numbers(text: str) -> tuple[float, ...]:
    expected = "numbers separated by |, e.g. 0.5 or 0.485|0.456|0.406"
    try:
        values = tuple(map(float, text.split("|")))
    except ValueError:
        raise ValueError(expected) from None
    if not np.isfinite(values).all():
        raise ValueError(f"finite {expected}")
    return values


def _positive_numbers(text: str) -> tuple[float, ...]:
    values = _numbers(text)
    if min(values) <= 0:
        raise ValueError("numbers greater than 0")
    return values


def _scale(text: str) -> float:
    values = _positive_numbers(text)
    if len(values) != 1:
        raise ValueError("one number")
    return values[0]


def _size(text: str) -> tuple[int, int] | str:
    if text == "any":
        return text
    match = _SIZE.fullmatch(text)
    if match is None or not all(0 < int(side) <= MAX_SIDE for side in match.groups()):
        raise ValueError(f"HEIGHTxWIDTH in pixels, each from 1 to {MAX_SIDE}, e.g. 480x640, or any")
    return int(match[1]), int(match[2])


def _whole(smallest: int, largest: int, text: str) -> int:
    if _WHOLE.fullmatch(text) is None or not smallest <= int(text) <= largest:
        raise ValueError(f"a whole number from {smallest} to {largest}")
    return int(text)


def _choice(allowed: tuple[str, ...], text: str) -> str:
    if text not in allowed:
        raise ValueError(f"one of {', '.join(allowed)}{did_you_mean(text, allowed)}")
    return text


def _size_text(size: tuple[int, int] | str | None) -> str:
    if size is None:
        return "as the model"
    return size if isinstance(size, str) else f"{size[0]}x{size[1]}"


def _check_float(spec: TensorSpec) -> None:
    if spec.dtype != "float32":
        raise ConfigError(
            f"--preprocess gives float32, but the model takes {spec.name} as {spec.dtype}: leave the option out"
        )


_FORMULA: dict[str, Callable[[str], Any]] = {"scale": _scale, "mean": _numbers, "std": _positive_numbers}
_KINDS: dict[str, tuple[Callable[..., Preprocessing], dict[str, Callable[[str], Any]]]] = {
    "image": (
        Image,
        _FORMULA
        | {
            "size": _size,
            "channels": partial(_whole, 1, 4096),
            "resize": partial(_choice, ("bilinear", "none")),
            "order": partial(_choice, ("rgb", "bgr")),
        },
    ),
    "audio": (Audio, _FORMULA),
    "affine": (
        Affine,
        _FORMULA | {"dtype": partial(_choice, AFFINE_DTYPES), "axis": partial(_whole, 1, 15)},
    ),
}
