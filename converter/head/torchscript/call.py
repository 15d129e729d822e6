"""What the function of an operator is given, and where it is registered.

A value on the device is a tensor; sizes, axes and what is computed from them are numpy arrays of Python numbers, or of
the tracer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import torch

from converter.graph.nodes import attribute
from edge.contract.errors import ConversionError

Host = npt.NDArray[Any]
Value = torch.Tensor | Host

FILL = "value of "  # a ConstantOfShape's

DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


class Constants(Protocol):
    """The constants of a graph."""

    def constant(self, name: str) -> tuple[Host, torch.Tensor]:
        """A constant as an array and as a tensor."""
        ...

    def tensor(self, name: str, value: Host) -> torch.Tensor | None:
        """A constant as a tensor; None for what is not one."""
        ...


class Call:
    """One node and the values that it is given, None for those left out."""

    def __init__(self, module: Constants, node: onnx.NodeProto, values: Sequence[Value | None]) -> None:
        self._module, self.node, self.values = module, node, values

    def __len__(self) -> int:
        return len(self.values)

    def error(self, problem: str) -> ConversionError:
        """To be raised: this node cannot be run."""
        return ConversionError(f"the head as TorchScript: {self.node.op_type} {self.node.name!r} {problem}")

    def has(self, i: int) -> bool:
        """Whether an optional input is there."""
        return i < len(self.values) and self.values[i] is not None

    def on_host(self) -> bool:
        """Whether no input is a tensor."""
        return not any(isinstance(value, torch.Tensor) for value in self.values)

    def x(self, i: int = 0) -> torch.Tensor:
        """An input as a tensor."""
        value = self.values[i]
        if value is None:
            raise self.error(f"lacks its input {i}")
        if isinstance(value, torch.Tensor):
            return value
        found = self._module.tensor(self.node.input[i], value)
        if found is not None:
            return found
        like = next((other for other in self.values if isinstance(other, torch.Tensor)), None)
        items = [torch.as_tensor(item) for item in value.reshape(-1)]
        stacked = torch.stack(items).reshape(value.shape)
        return stacked if like is None else stacked.to(like.device)

    def constant(self, name: str) -> tuple[Host, torch.Tensor]:
        """A constant of the module on the host and as a tensor."""
        return self._module.constant(name)

    def host(self, i: int) -> Host:
        """An input that must not be a tensor."""
        value = self.values[i]
        if value is None or isinstance(value, torch.Tensor):
            raise self.error(f"has an input {self.node.input[i]!r} that must be a constant, and is computed")
        return value

    def ints(self, i: int) -> list[int]:
        """An input that is a constant list of numbers."""
        found = self.host(i).reshape(-1)
        if found.dtype == object and any(isinstance(item, torch.Tensor) for item in found):
            raise self.error(f"has an input {self.node.input[i]!r} that must be a constant, and is computed")
        return [int(item) for item in found]

    def sizes(self, i: int) -> list[Any]:
        """An input that is a list of sizes: Python numbers, or the tracer's."""
        return list(self.host(i).reshape(-1).astype(object))

    def at(self, name: str, default: Any = None) -> Any:
        """An attribute, see `converter.graph.nodes.attribute`."""
        return attribute(self.node, name, default)

    def axes(self, i: int = 1) -> list[int]:
        """Axes as an input, or, as before opset 18, an attribute."""
        if self.has(i):
            return self.ints(i)
        return [int(axis) for axis in self.at("axes", [])]


Operator = Callable[[Call], Any]
OPERATORS: dict[str, Operator] = {"Constant": lambda _: None}


def operator(*op_types: str) -> Callable[[Operator], Operator]:
    """Register a function for some operators."""

    def register(function: Operator) -> Operator:
        for op_type in op_types:
            OPERATORS[op_type] = function
        return function

    return register


def objects(items: Sequence[Any], shape: tuple[int, ...] | None = None) -> Host:
    """Numbers of Python or of the tracer in an array, which must not look into them."""
    found = np.empty(len(items), object)
    for i, item in enumerate(items):
        found[i] = item
    return found if shape is None else found.reshape(shape)


def reversed_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As torch wants pads: the last axis first."""
    return [pad for pair in reversed(pads) for pad in pair]
