"""Reverse accumulation over an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx

from converter.graph.build import GraphBuilder, reads
from converter.graph.nodes import attribute
from converter.head.gradient.movement import slices_of
from converter.head.gradient.rules import RULES
from converter.head.gradient.tape import Shape, Tape
from edge.contract.errors import ConversionError

# What comes out of these does not change with small changes of what goes in.
_FLAT = {"Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonZero"}
_FLAT |= {"Not", "And", "Or", "IsNaN", "IsInf", "Sign", "Floor", "Ceil", "Round"}


_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


class UnsupportedOperatorError(ConversionError):
    """The head contains an operator that has no rule.

    Attributes:
        op_types: The operators, sorted.
    """

    def __init__(self, op_types: Sequence[str]) -> None:
        self.op_types = sorted(set(op_types))
        super().__init__(f"the head cannot be trained: no gradient for the operator {', '.join(self.op_types)}")


def differentiate(
    nodes: Sequence[onnx.NodeProto],
    shapes: Mapping[str, Shape],
    output: str,
    output_gradient: str,
    parameters: Sequence[str],
    builder: GraphBuilder,
    constants: Iterable[onnx.TensorProto] = (),
) -> dict[str, str]:
    """Append the nodes that compute the gradient of a loss with respect to parameters.

    Args:
        nodes: The forward graph in running order; every node but Split must have one output that matters.
        shapes: Shapes of the forward values.
        output: The value whose gradient is known.
        output_gradient: Name of that gradient, already in the graph.
        parameters: Values to differentiate with respect to.
        builder: Gets the new nodes.
        constants: Initializers of the forward graph.

    Returns:
        Name of the gradient of each parameter.

    Raises:
        UnsupportedOperatorError: An operator between a parameter and the output has no rule.
        ConversionError: The output does not depend on a parameter.
    """
    active = _active(nodes, parameters)
    path = [node for node in nodes if any(name in active for name in node.output)]
    unsupported = [node.op_type for node in path if node.op_type not in {*RULES, "Split"}]
    if unsupported:
        raise UnsupportedOperatorError(unsupported)
    tape = Tape(builder=builder, shapes=shapes, active=active, constants={tensor.name: tensor for tensor in constants})
    path = [part for node in path for part in (slices_of(node, tape) if node.op_type == "Split" else [node])]
    tape = replace(tape, constants={**tape.constants, **{tensor.name: tensor for tensor in builder.initializers}})
    contributions: dict[str, list[str]] = {output: [output_gradient]}

    def total(name: str) -> str:
        contributions[name] = [tape.total(contributions[name])]
        return contributions[name][0]

    for node in reversed(path):
        if node.output[0] not in contributions:
            continue  # it does not reach the output
        gradients = RULES[node.op_type](tape, node, total(node.output[0]))
        for name, gradient in zip(node.input, gradients, strict=False):
            if gradient is not None and name in active:
                contributions.setdefault(name, []).append(gradient)
    idle = [name for name in parameters if name not in contributions]
    if idle:
        raise ConversionError(f"the output does not depend on {', '.join(idle)}; leave it out of --trainable")
    return {name: total(name) for name in parameters}


def _active(nodes: Sequence[onnx.NodeProto], parameters: Sequence[str]) -> frozenset[str]:
    """Values that change smoothly with a parameter. Shapes that are computed from such a value do not."""
    active = set(parameters)
    for node in nodes:
        if not _is_flat(node) and any(name in active for name in reads(node)):
            active.update(node.output)
    return frozenset(active)


def _is_flat(node: onnx.NodeProto) -> bool:
    return node.op_type in _FLAT or (node.op_type == "Cast" and attribute(node, "to", 0) not in _FLOATS)
