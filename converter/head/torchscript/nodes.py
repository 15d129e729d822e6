"""Runs a graph node by node, so that torch's tracer can look on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from converter.graph.nodes import attribute
from converter.head.torchscript.call import FILL, Call, Host, Value
from converter.head.torchscript.operators import OPERATORS
from edge.contract.errors import ConversionError


class Nodes(nn.Module):
    """Runs a graph node by node; takes the values of `inputs` by position."""

    def __init__(self, head: onnx.ModelProto, inputs: Sequence[str]) -> None:
        super().__init__()
        self._head, self._names = head, inputs
        self._constants: dict[str, Host] = {t.name: numpy_helper.to_array(t) for t in head.graph.initializer}
        for node in head.graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = _constant(node)
            if node.op_type == "ConstantOfShape":
                value = attribute(node, "value", None)
                self._constants[FILL + node.output[0]] = (
                    np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
                )
        self._buffer_of: dict[str, str] = {}
        for name, array in self._constants.items():
            if array.dtype.kind not in "fiub":
                continue
            # A buffer goes where the module goes; a constant of the trace would stay on the CPU.
            self._buffer_of[name] = f"constant_{len(self._buffer_of)}"
            self.register_buffer(self._buffer_of[name], torch.from_numpy(array.copy()))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The graph's output."""
        values: dict[str, Value] = {**self._constants, **dict(zip(self._names, inputs, strict=True))}
        for node in self._head.graph.node:
            if node.op_type == "Constant":
                continue
            call = Call(self, node, [values[name] if name else None for name in node.input])
            found = OPERATORS[node.op_type](call)
            parts = list(found) if isinstance(found, list | tuple) else [found]
            if any(node.output[len(parts) :]):
                raise call.error("has more outputs than are known here")
            values |= dict(zip(node.output, parts, strict=False))
        output = self._head.graph.output[0].name
        result = values[output]
        if not isinstance(result, torch.Tensor):
            raise ConversionError(f"the head as TorchScript: {output} does not depend on the features")
        return result

    def constant(self, name: str) -> tuple[Host, torch.Tensor]:
        """A constant as an array and as a tensor."""
        return self._constants[name], getattr(self, self._buffer_of[name])

    def tensor(self, name: str, value: Host) -> torch.Tensor | None:
        """A constant as a tensor; None for what is not one."""
        if name in self._buffer_of and value is self._constants[name]:
            found: torch.Tensor = getattr(self, self._buffer_of[name])
            return found
        return None


def _constant(node: onnx.NodeProto) -> Host:
    (item,) = node.attribute
    value = onnx.helper.get_attribute_value(item)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value, np.float32 if item.name.startswith("value_float") else np.int64)
