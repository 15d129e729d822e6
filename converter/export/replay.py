"""TorchScript run operator by operator in Python, so that a tracer sees the type and shape of every value.

Traced as it is, TorchScript comes out as its stored graph, which says nothing of shapes: the ONNX exporter then fails
at the first operator that needs a rank, as in every `nn.MultiheadAttention`. Run again one operator at a time, the
trace is as good as that of the Python model that the TorchScript came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from converter.program.programs import Flat, named_outputs

_UNPACKED = ("prim::ListUnpack", "prim::TupleUnpack")
_PACKED: dict[str, Callable[[list[Any]], Any]] = {
    "prim::ListConstruct": list,
    "prim::TupleConstruct": tuple,
    "prim::DictConstruct": lambda pairs: dict(zip(pairs[::2], pairs[1::2], strict=True)),
}
# A tracer hands sizes on as tensors: as numbers they would be those of its example for ever.
_NUMBERS = ("prim::NumToTensor", "aten::Int", "aten::ScalarImplicit")


class Replay(Flat):
    """A TorchScript model that has no branches or loops, run operator by operator; flat.

    Args:
        script: The model, in evaluation mode.

    Raises:
        ValueError: It has branches or loops.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__(script)
        self._graph = script.inlined_graph
        branching = sorted({node.kind() for node in self._graph.nodes() if list(node.blocks())})
        if branching:
            raise ValueError(f"its TorchScript has {branching[0]}, which a trace cannot follow")

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All tensors that the model returns, in the order of `named_outputs`."""
        this, *names = (value.debugName() for value in self._graph.inputs())
        values: dict[str, Any] = {this: self.model, **dict(zip(names, inputs, strict=True))}
        for node in self._graph.nodes():
            arguments = [values[value.debugName()] for value in node.inputs()]
            found = [value.debugName() for value in node.outputs()]
            result = _run(node, arguments)
            values |= dict(zip(found, [result] if len(found) == 1 else result, strict=True))
        (result,) = (values[value.debugName()] for value in self._graph.outputs())
        return tuple(named_outputs(result).values())


def _run(node: torch.Node, arguments: list[Any]) -> Any:
    kind = node.kind()
    if kind == "prim::Constant":
        return node.output().toIValue()
    if kind == "prim::GetAttr":
        return getattr(arguments[0], node.s("name"))
    if kind in _PACKED:
        return _PACKED[kind](arguments)
    if kind in _UNPACKED:
        return arguments[0] if node.outputsSize() > 1 else arguments[0][0]
    if kind in _NUMBERS:
        return arguments[0]
    if kind == "aten::size" and len(arguments) == 2:
        return arguments[0].size(arguments[1])
    schema = torch._C.parse_schema(node.schema())
    pairs = list(zip(arguments, schema.arguments, strict=True))
    by_position = [value for value, argument in pairs if not argument.kwarg_only]
    by_name = {argument.name: value for value, argument in pairs if argument.kwarg_only}
    namespace, name = kind.split("::")
    operator = getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")
    if any("Tensor" not in str(argument.type) and _has_tensor(value) for value, argument in pairs):
        # Python's own functions hand on sizes that are tensors to the tracer; the operators turn them into numbers.
        operator = getattr(torch.Tensor, name, None) or getattr(torch, name, operator)
    return operator(*by_position, **by_name)


def _has_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, list) and any(map(_has_tensor, value)))
