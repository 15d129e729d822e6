"""Tensor specs: name, element type and shape of one named input or output, with its free axes by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from edge.contract.documents import Rule, decode, encode

if TYPE_CHECKING:  # commands that only talk about specs start without numpy
    import numpy.typing as npt

DTYPES = (
    *("float32", "float16", "float64"),
    *("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    "bool",
)
BATCH = "batch"
_AXIS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")
MAX_AXES = 16

_Size = Annotated[int, Rule(lambda size: 0 < size < 2**31, "a positive number")]
_Axis = (
    Annotated[int, Rule(lambda size: 0 <= size < 2**31, "a size")]
    | Annotated[str, Rule(lambda name: bool(_AXIS_NAME.fullmatch(name)), "a name")]
)
_NAMED = Rule(bool, "a name")
_DTYPE = Rule(lambda name: name in DTYPES, f"one of {', '.join(DTYPES)}")
_FEW = Rule(lambda shape: len(shape) <= MAX_AXES, f"of {MAX_AXES} axes at most")
_ONE_BATCH = Rule(lambda shape: shape.count(BATCH) <= 1, f"of one axis named {BATCH} at most")


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisRange:
    """The sizes that a model takes along a free axis: `least`, and whole steps from there on.

    Attributes:
        least: The smallest; 0 where an input may be empty, as what a decoder remembers at its first step.
        step: From one size to the next, e.g. 32 for a network that halves its input five times.
        most: The largest, None where none was found.
    """

    least: Annotated[int, Rule(lambda size: 0 <= size < 2**31, "a size")] = 1
    step: _Size = 1
    most: _Size | None = None

    def __contains__(self, size: int) -> bool:
        """Whether the model takes this size.

        >>> 64 in AxisRange(least=32, step=32), 65 in AxisRange(least=32, step=32)
        (True, False)
        """
        return size >= self.least and (size - self.least) % self.step == 0 and (self.most is None or size <= self.most)

    def describe(self) -> str:
        """The sizes for people.

        >>> AxisRange(least=32, step=32).describe(), AxisRange(least=3, most=512).describe()
        ('multiples of 32', '3 to 512')
        """
        if self.least == self.step > 1:
            return f"multiples of {self.step}" + ("" if self.most is None else f" up to {self.most}")
        if self.most is None:
            text = "any size" if self.least == 1 else f"{self.least} or more"
        else:
            text = f"{self.least} to {self.most}"
        return text if self.step == 1 else f"{text} in steps of {self.step}"

    def to_json(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return encode(self)

    @classmethod
    def from_json(cls, value: Any) -> AxisRange:
        """Read what `to_json` wrote.

        Raises:
            ValueError: A field is missing or is not of its type.
        """
        return decode(cls, value, "the range of an axis")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One named input or output.

    Attributes:
        name: Name in the graph.
        dtype: numpy name of the element type.
        shape: The whole shape: a number is a fixed size, a text the name of a free axis. The axis named ``batch`` is
            the one along which samples are put together; it is usually the first, a recurrent state has it elsewhere,
            and a tensor without it is the same for all samples. E.g. ``("batch", 1, 8, 8)``, ``(2, "batch", 64)``.
    """

    name: Annotated[str, _NAMED]
    dtype: Annotated[str, _DTYPE]
    shape: Annotated[tuple[_Axis, ...], _FEW, _ONE_BATCH]

    @property
    def batch_axis(self) -> int | None:
        """Position of the batch axis, None for a tensor that has none."""
        return self.shape.index(BATCH) if BATCH in self.shape else None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Sizes behind the batch axis.

        Raises:
            ValueError: The batch axis is not the first one, or another axis is free.
        """
        if self.batch_axis != 0 or not all(isinstance(size, int) for size in self.shape[1:]):
            raise ValueError(f"{self.name}: the shape {self.describe()} is not (batch, fixed sizes...)")
        return tuple(int(size) for size in self.shape[1:])

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape can be it: rank, fixed sizes, a sample at least.

        Other free axes may be empty here, as those of an output that lists what was found are; see `AxisRange`.
        """
        return len(shape) == len(self.shape) and all(
            size == axis if isinstance(axis, int) else size > 0 or axis != BATCH
            for size, axis in zip(shape, self.shape, strict=True)
        )

    def check(self, array: npt.NDArray[Any]) -> None:
        """Raise ValueError with both shapes unless the array fits: see `fits`; and its element type."""
        if not self.fits(array.shape):
            raise ValueError(f"{self.name}: expected shape {self.describe()}, got {tuple(array.shape)}")
        if array.dtype != self.dtype:
            raise ValueError(f"{self.name}: expected {self.dtype}, got {array.dtype}")

    def describe(self) -> str:
        """The shape for people.

        >>> TensorSpec(name="x", dtype="float32", shape=("batch", 784)).describe()
        '(batch, 784)'
        """
        return "(" + ", ".join(map(str, self.shape)) + ")"

    def to_json(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return encode(self)

    @classmethod
    def from_json(cls, value: Any) -> TensorSpec:
        """Read what `to_json` wrote.

        Raises:
            ValueError: A field is missing or is not of its type.
        """
        return decode(cls, value, "tensor spec")


def axis_name(stated: str, tensor: str, axis: int) -> str:
    """A name for a free axis: the file's, where it is one, else made of those of the tensor and of its place.

    ``?`` and its like, which some exporters write on every axis that they do not know, are none.

    >>> axis_name("width", "x", 3), axis_name("?", "x", 3), axis_name("", "x", 2)
    ('width', 'axis_x_3', 'axis_x_2')
    """
    name = _identifier(stated)[:60]
    is_name = name.strip("_") and not name[0].isdigit() and name != BATCH
    return name if is_name else f"axis_{_identifier(tensor)[-48:]}_{axis}"


def _identifier(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in text)
