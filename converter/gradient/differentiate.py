"""Reverse accumulation over an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from converter.gradient.rules import RULES, Shape, Tape
from converter.graph import GraphBuilder, downstream
from edge.contract.errors import ConversionError


class UnsupportedOperatorError(ConversionError):
    """The head contains an operator that has no rule.

    Attributes:
        op_types: The operators, sorted.
    """

    def __init__(self, op_types: Sequence[str]) -> None:
        self.op_types = sorted(set(op_types))
        super().__init__(
            f"the head cannot be trained: no gradient for the operator {', '.join(self.op_types)}. "
            f"Choose a smaller head (--trainable last:K with a smaller K)"
        )


def differentiate(
    nodes: Sequence[onnx.NodeProto],
    shapes: Mapping[str, Shape],
    output: str,
    output_gradient: str,
    parameters: Sequence[str],
    builder: GraphBuilder,
) -> dict[str, str]:
    """Append the nodes that compute the gradient of a loss with respect to parameters.

    Args:
        nodes: The forward graph in running order; every node must have one output that matters.
        shapes: Shapes of the forward values.
        output: The value whose gradient is known.
        output_gradient: Name of that gradient, already in the graph.
        parameters: Values to differentiate with respect to.
        builder: Gets the new nodes.

    Returns:
        Name of the gradient of each parameter.

    Raises:
        UnsupportedOperatorError: An operator between a parameter and the output has no rule.
        ConversionError: The output does not depend on a parameter.
    """
    active = frozenset(downstream(nodes, parameters))
    path = [node for node in nodes if any(name in active for name in node.input)]
    unsupported = [node.op_type for node in path if node.op_type not in RULES]
    if unsupported:
        raise UnsupportedOperatorError(unsupported)
    tape = Tape(builder=builder, shapes=shapes, active=active)
    contributions: dict[str, list[str]] = {output: [output_gradient]}

    def total(name: str) -> str:
        parts = contributions[name]
        while len(parts) > 1:
            parts = [builder.op("Add", parts[0], parts[1]), *parts[2:]]
        contributions[name] = parts
        return parts[0]

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
