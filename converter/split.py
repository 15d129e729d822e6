"""Cutting a model into a frozen backbone and a trainable head.

The head is every node downstream of a trainable parameter; what it takes from the backbone are the features. This is a
question of reachability, so skip connections inside either half need no special care.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from converter.graph import downstream, infer_shapes, is_float32, make_model, tensor_info, upstream, used_initializers
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.manifest import LinearHead

FEATURES = "features"


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class SplitModel:
    """The two halves.

    Attributes:
        backbone: Input to `FEATURES`.
        head: `FEATURES` and the parameters, by name, to the output.
        parameters: The head's parameters, float32, in graph order.
        linear: Set when the head is one linear layer.
    """

    backbone: onnx.ModelProto
    head: onnx.ModelProto
    parameters: dict[str, npt.NDArray[np.float32]]
    linear: LinearHead | None


def choose_trainable(model: onnx.ModelProto, parameters: Sequence[str], rule: str) -> list[str]:
    """Names of the parameters of the last K modules that have any, in the order in which the graph uses them.

    Args:
        model: The exported model.
        parameters: All parameters of the source model (not its buffers).
        rule: ``last:K``.

    Raises:
        ConfigError: Not such a rule, or K is larger than the number of modules.
    """
    match = re.fullmatch(r"last:([1-9]\d*)", rule)
    if not match:
        raise ConfigError(f"--trainable {rule!r}: expected last:K, e.g. last:1")
    count = int(match[1])
    known = set(parameters)
    modules: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            if name in known:
                found = modules.setdefault(name.rpartition(".")[0], [])
                if name not in found:
                    found.append(name)
    if count > len(modules):
        raise ConfigError(f"--trainable {rule}: the model has {len(modules)} modules with parameters")
    return [name for module in list(modules)[-count:] for name in modules[module]]


def split(model: onnx.ModelProto, trainable: Sequence[str]) -> SplitModel:
    """Cut a model.

    Args:
        model: One input and one output, every parameter an initializer under its own name.
        trainable: Initializers that the head is to learn.

    Raises:
        ConversionError: The features are not one float tensor ``(batch, ...)``.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    shapes = infer_shapes(model)
    source, output = graph.input[0], graph.output[0]
    in_head = downstream(graph.node, trainable)
    from_input = downstream(graph.node, [source.name])
    head_nodes = [node for node in graph.node if any(name in in_head for name in node.input)]
    frontier = sorted(
        {name for node in head_nodes for name in node.input if name in from_input and name not in in_head}
    )
    if len(frontier) != 1:
        raise ConversionError(
            f"the head takes {len(frontier)} tensors from the backbone ({', '.join(frontier[:4])}); one is supported. "
            f"Choose another number of layers with --trainable last:K"
        )
    cut = frontier[0]
    shape = shapes.get(cut, ())
    if len(shape) < 2 or not all(isinstance(size, int) for size in shape[1:]):
        raise ConversionError(f"the features {cut} have the shape {shape}; expected (batch, fixed sizes...)")
    if not is_float32(model, cut):
        raise ConversionError(f"the features {cut} are not float32; choose fewer layers with --trainable last:K")
    head_inputs = {name for node in head_nodes for name in node.input if name and name != cut}
    constant_nodes = upstream(
        [node for node in graph.node if not set(node.output) & (from_input | in_head)], head_inputs
    )
    features = tensor_info(FEATURES, ("batch", *shape[1:]))
    renamed = [_rename_input(node, cut, FEATURES) for node in head_nodes]
    nodes = [*constant_nodes, *renamed]
    arrays = {name: numpy_helper.to_array(tensors[name]).astype(np.float32) for name in trainable}
    head = make_model(
        "head",
        nodes,
        [features, *(tensor_info(name, array.shape) for name, array in arrays.items())],
        [output],
        used_initializers(nodes, [tensor for tensor in graph.initializer if tensor.name not in arrays]),
    )
    body = [*upstream(graph.node, [cut]), helper.make_node("Identity", [cut], [FEATURES], name=FEATURES)]
    backbone = make_model("backbone", body, [source], [features], used_initializers(body, graph.initializer))
    return SplitModel(backbone=backbone, head=head, parameters=arrays, linear=_linear(renamed, trainable))


def _rename_input(node: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for i, name in enumerate(copy.input):
        if name == old:
            copy.input[i] = new
    return copy


def _linear(nodes: Sequence[onnx.NodeProto], trainable: Sequence[str]) -> LinearHead | None:
    """Whether the head is ``features @ W.T + b``, or that without b, with W and b trainable."""
    if [node.op_type for node in nodes] == ["Transpose", "MatMul"]:  # as a linear layer without a bias is exported
        weight, (left, right) = nodes[0].input[0], nodes[1].input
        is_product = (left, right) == (FEATURES, nodes[0].output[0]) and [weight] == list(trainable)
        return LinearHead(weight=weight, bias=None) if is_product else None
    if len(nodes) != 1 or nodes[0].op_type != "Gemm":
        return None
    node = nodes[0]
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
    if not plain or attributes.get("transA", 0) or not attributes.get("transB", 0) or node.input[0] != FEATURES:
        return None
    bias = node.input[2] if len(node.input) > 2 else None
    if {node.input[1], bias} - {None} != set(trainable):
        return None
    return LinearHead(weight=node.input[1], bias=bias)
