"""Tensor specs: name, element type and shape; the first axis is the batch and is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One named input or output.

    Attributes:
        name: Name in the graph.
        dtype: numpy name of the element type.
        shape: Sizes of the axes behind the batch axis, e.g. ``(1, 8, 8)`` for a batch ``(n, 1, 8, 8)``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def check(self, array: npt.NDArray[Any]) -> None:
        """Raise ValueError with both shapes unless the array is a batch of this spec."""
        if array.ndim != len(self.shape) + 1 or tuple(array.shape[1:]) != self.shape or array.shape[0] == 0:
            raise ValueError(f"{self.name}: expected shape {self.describe()}, got {tuple(array.shape)}")
        if array.dtype != np.dtype(self.dtype):
            raise ValueError(f"{self.name}: expected {self.dtype}, got {array.dtype}")

    def describe(self) -> str:
        """The shape for people.

        >>> TensorSpec(name="x", dtype="float32", shape=(784,)).describe()
        '(batch, 784)'
        """
        return "(" + ", ".join(["batch", *map(str, self.shape)]) + ")"

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
        if not isinstance(name, str) or dtype not in DTYPES:
            raise ValueError(f"tensor spec {name!r}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**31 for n in shape):
            raise ValueError(f"tensor spec {name!r}: the shape must be a list of positive integers")
        return cls(name=name, dtype=dtype, shape=tuple(shape))
