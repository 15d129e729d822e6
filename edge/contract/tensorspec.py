"""Tensor specs: name, element type and shape of one named input or output, with its free axes by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisRange:
    """The sizes that a model takes along a free axis: `least`, and whole steps from there on.

    Attributes:
        least: The smallest.
        step: From one size to the next, e.g. 32 for a network that halves its input five times.
        most: The largest, None where none was found.
    """

    least: int = 1
    step: int = 1
    most: int | None = None

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
        return {"least": self.least, "step": self.step, "most": self.most}

    @classmethod
    def from_json(cls, value: Any) -> AxisRange:
        """Read what `to_json` wrote.

        Raises:
            ValueError: A field is missing or is not of its type.
        """
        try:
            least, step, most = value["least"], value["step"], value["most"]
        except (KeyError, TypeError) as exc:
            raise ValueError("the range of an axis needs least, step and most") from exc
        if not all(type(n) is int and 0 < n < 2**31 for n in (least, step, least if most is None else most)):
            raise ValueError("the range of an axis needs positive integers")
        return cls(least=least, step=step, most=most)


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

    name: str
    dtype: str
    shape: tuple[int | str, ...]

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

    def check(self, array: npt.NDArray[Any], *, empty: bool = False) -> None:
        """Raise ValueError with both shapes unless the array fits: rank, fixed sizes, element type.

        Args:
            array: Of any shape and type.
            empty: Whether free axes may have the size 0, as those of an output that lists what was found have.
        """
        fits = array.ndim == len(self.shape) and all(
            size == axis if isinstance(axis, int) else size > 0 or (empty and axis != BATCH)
            for size, axis in zip(array.shape, self.shape, strict=False)
        )
        if not fits:
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
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Any) -> TensorSpec:
        """Read what `to_json` wrote.

        Raises:
            ValueError: A field is missing or is not of its type.
        """
        try:
            name, dtype, shape = value["name"], value["dtype"], value["shape"]
        except (KeyError, TypeError) as exc:
            raise ValueError("a tensor spec needs name, dtype and shape") from exc
        if not isinstance(name, str) or not name or dtype not in DTYPES:
            raise ValueError(f"tensor spec {name!r}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(map(_is_axis, shape)):
            raise ValueError(f"tensor spec {name!r}: the shape must be a list of sizes (0 and up) and axis names")
        if shape.count(BATCH) > 1:
            raise ValueError(f"tensor spec {name!r}: more than one axis is named {BATCH}")
        return cls(name=name, dtype=dtype, shape=tuple(shape))


def _is_axis(value: object) -> bool:
    if isinstance(value, str):
        return _AXIS_NAME.fullmatch(value) is not None
    return type(value) is int and 0 <= value < 2**31


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
