"""Cutting a model into a frozen backbone and a trainable head, and putting the two together again.

The head is every node downstream of a trainable parameter; what it takes from the backbone are the features. This is a
question of reachability, so skip connections need no special care: where the head takes several tensors, the features
are all of them, flattened, one behind the other. A tensor with the batch on a later axis, as recurrent layers have it
behind the time, goes from one half to the other with the batch in front.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Container, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from converter.graph.build import (
    GraphBuilder,
    downstream,
    inferred_types,
    make_model,
    reads,
    renamed,
    shape_of,
    tensor_info,
    type_of,
    upstream,
    used_initializers,
)
from converter.graph.links import Links
from converter.graph.nodes import attribute, linear
from converter.head.gradient.training_graph import class_layer, free_classes
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.manifest import SIGMOID, SOFTMAX, LinearLayer
from edge.contract.tensorspec import BATCH, TensorSpec

FEATURES = "features"
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "PRelu", "Gather"}
# Behind these, scales and biases still belong to the layer before.
_PASSES = {"Reshape", "Transpose", "Cast", "Div", "Sub", "Identity", "Flatten", "Squeeze", "Unsqueeze"}
_LAYERS |= {"BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Head:
    """The trainable half.

    Attributes:
        graph: The features and the parameters, by name, to the output, without the activation. Where the last layer is
            linear, the axis of the outputs is free: a class can be added.
        features: What it takes.
        output: Name of the output that it gives; in its graph, of the logits.
        n_outputs: Its length.
        parameters: float32, in the order in which the graph uses them.
        linear: The last layer, where that is linear.
        entry: The layer that alone takes the features, where that is linear.
        activation: What makes the output of the logits, see `edge.contract.manifest.HeadSpec`.
    """

    graph: onnx.ModelProto
    features: TensorSpec
    output: str
    n_outputs: int
    parameters: dict[str, npt.NDArray[np.float32]]
    linear: LinearLayer | None
    entry: LinearLayer | None
    activation: str

    @property
    def is_linear(self) -> bool:
        """Whether all of it is one linear layer."""
        return self.linear is not None and self.linear.input == self.features.name


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class SplitModel:
    """The two halves.

    Attributes:
        backbone: The model's inputs to the features and to the outputs that need no head.
        head: None when nothing is trainable; then the backbone is the whole model.
        outputs: Names of the whole model's outputs, in order.
    """

    backbone: onnx.ModelProto
    head: Head | None
    outputs: tuple[str, ...]


def trainable_groups(model: onnx.ModelProto, named: Sequence[str]) -> dict[str, list[str]]:
    """Parameters by the layer that they belong to, in the order in which the graph uses them.

    Args:
        model: The graph.
        named: Parameters of the torch module, by which a layer is what stands before the last dot; empty for a graph
            without one, where a layer is a node with the constants that it reads, and those by which what comes out of
            it is scaled and shifted: a bias, or the scale of a normalization that was taken to pieces.
    """
    groups: dict[str, list[str]] = {}
    known = set(named) & {tensor.name for tensor in model.graph.initializer}
    if known:
        for node in model.graph.node:
            for name in reads(node):
                layer = name.partition(".parametrizations.")[0]  # as torch writes a weight that is computed of others
                layer = name.rpartition(".")[0] if layer == name else layer
                if name in known and name not in groups.setdefault(layer, []):
                    groups[layer].append(name)
        return {module: names for module, names in groups.items() if names}
    floats = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and prod(t.dims) > 1}
    layer_of: dict[str, str] = {}
    seen_as: dict[str, str] = {}  # initializers in another shape or type
    for node in model.graph.node:
        read = node.input[:3] if node.op_type == "BatchNormalization" else node.input  # its statistics stay
        weights = [seen_as.get(name, name) for name in read if seen_as.get(name, name) in floats]
        if node.op_type in ("Reshape", "Cast") and weights and len(weights) == 1:
            seen_as[node.output[0]] = weights[0]
            continue
        before = next((layer_of[name] for name in node.input if name in layer_of), None)
        if node.op_type in _LAYERS and weights:
            layer = node.name or node.output[0]
            groups[layer] = [n for n in weights if node.op_type != "InstanceNormalization" or _says(floats[n])]
            layer_of[node.output[0]] = layer
        elif node.op_type in ("Add", "Mul") and before is not None:
            groups[before] += [name for name in weights if max(floats[name].dims) == prod(floats[name].dims)]
            layer_of[node.output[0]] = before
        elif node.op_type in _PASSES and node.input[0] in layer_of:
            layer_of[node.output[0]] = layer_of[node.input[0]]
    return {layer: names for layer, names in groups.items() if names}


def _says(tensor: onnx.TensorProto) -> bool:
    """Whether it is more than the ones or zeros that an exporter fills an operator's place with."""
    array = numpy_helper.to_array(tensor)
    return bool((array != array.reshape(-1)[0]).any()) or array.reshape(-1)[0] not in (0.0, 1.0)


def choose_trainable(groups: dict[str, list[str]], rule: str, also: Mapping[str, str] | None = None) -> list[str]:
    """Names of the parameters that a rule means.

    Args:
        groups: See `trainable_groups`.
        rule: ``last:K``, or names with wildcards (``*``, ``?``, ``[..]``) separated by commas.
        also: The name in the graph by other names of a parameter that several layers share.

    Raises:
        ConfigError: K is larger than the number of layers, or nothing has such a name.
    """
    if rule.startswith("last:"):
        match = re.fullmatch(r"last:([1-9]\d{0,5})", rule)
        if not match:
            raise ConfigError(f"--trainable {rule!r}: expected last:K, e.g. last:1, names such as 'head.*', or none")
        if int(match[1]) > len(groups):
            raise ConfigError(f"--trainable {rule}: the model has {len(groups)} layers with parameters")
        return [name for layer in list(groups)[-int(match[1]) :] for name in groups[layer]]
    names = [name for layer in groups.values() for name in layer]
    shared = {other: name for other, name in (also or {}).items() if name in names}
    known = [*names, *shared]
    chosen: set[str] = set()
    for pattern in (part.strip() for part in rule.split(",")):
        found = fnmatch.filter(known, pattern)
        if not found:
            near = get_close_matches(pattern, known, n=3, cutoff=0.3) or names[-3:]
            raise ConfigError(
                f"--trainable {pattern!r}: no parameter has such a name; there are e.g. {', '.join(near)}"
            )
        chosen.update(shared.get(name, name) for name in found)
    return [name for name in names if name in chosen]


def whole(model: onnx.ModelProto) -> SplitModel:
    """A model of which nothing is trainable."""
    return SplitModel(backbone=model, head=None, outputs=tuple(info.name for info in model.graph.output))


def split(model: onnx.ModelProto, trainable: Sequence[str], activation: str = "") -> SplitModel:
    """Cut a model.

    Args:
        model: Every trainable parameter is an initializer under its own name.
        trainable: Initializers that the head is to learn.
        activation: What its loss takes the logits before, where the model ends in it.

    Raises:
        ConversionError: The features are not float tensors ``(batch, fixed sizes...)``, or the head gives something
            else than one output of logits ``(batch, n_classes)``.
    """
    graph = model.graph
    types = inferred_types(model)
    in_head = downstream(graph.node, trainable)
    from_input = downstream(graph.node, [info.name for info in graph.input])
    output = _head_output([info for info in graph.output if info.name in in_head])
    head_nodes = [node for node in upstream(graph.node, [output.name]) if any(name in in_head for name in reads(node))]
    ending = _ending(head_nodes, output.name, activation)
    if ending is not None:
        head_nodes = [renamed(n, {ending.input[0]: output.name}) for n in head_nodes if n is not ending]
    frontier = list(
        dict.fromkeys(n for node in head_nodes for n in reads(node) if n in from_input and n not in in_head)
    )
    sizes = {name: _feature_shape(name, types) for name in frontier}
    if not frontier:
        raise ConversionError("the trainable layers do not depend on the model's input")
    taken = {name for node in graph.node for name in [*reads(node), *node.output]}
    features = next(name for name in (FEATURES, f"{FEATURES}_", f"{FEATURES}__") if name not in taken)
    one = len(frontier) == 1
    shape = sizes[frontier[0]] if one else (sum(prod(size) for size in sizes.values()),)
    spec = TensorSpec(name=features, dtype="float32", shape=(BATCH, *shape))

    backbone_outputs = [info for info in graph.output if info.name not in in_head]
    body = upstream(graph.node, [*frontier, *(info.name for info in backbone_outputs)])
    builder = GraphBuilder("split.")
    orders = {name: _batch_first(shape_of(types[name])) for name in frontier}
    if one and orders[frontier[0]] is None:
        builder.op("Identity", frontier[0], output=features)
        head_nodes = [renamed(node, {frontier[0]: features}) for node in head_nodes]
    elif one:
        builder.op("Transpose", frontier[0], output=features, perm=orders[frontier[0]])
    else:
        turned = [
            name if order is None else builder.op("Transpose", name, perm=order) for name, order in orders.items()
        ]
        flat = [builder.op("Flatten", name, axis=1) for name in turned]
        builder.op("Concat", *flat, output=features, axis=1)
    backbone = make_model(
        "backbone",
        [*body, *builder.nodes],
        list(graph.input),
        [tensor_info(features, spec.shape), *backbone_outputs],
        used_initializers(body, graph.initializer, backbone_outputs),
    )
    apart = GraphBuilder("apart.")
    if not one:
        _take_apart(apart, features, sizes, orders)
    elif (order := orders[frontier[0]]) is not None:
        apart.op("Transpose", features, output=frontier[0], perm=np.argsort(order).tolist())
    constant = upstream(
        [node for node in graph.node if not set(node.output) & (from_input | in_head)],
        {name for node in head_nodes for name in reads(node)},
    )
    nodes = [*constant, *apart.nodes, *head_nodes]
    links = Links(graph)
    arrays = {name: links.array(name).astype(np.float32) for name in trainable}
    head = make_model(
        "head",
        nodes,
        [tensor_info(features, spec.shape), *(tensor_info(name, array.shape) for name, array in arrays.items())],
        [output],
        [
            *used_initializers(nodes, [t for t in graph.initializer if t.name not in arrays], [output]),
            *apart.initializers,
        ],
    )
    n_outputs = shape_of(output)[1]
    assert isinstance(n_outputs, int)
    last = None
    if (layer := class_layer(head, trainable)) is not None:
        head = free_classes(head, *layer)
        (made_by,) = (node for node in head.graph.node if output.name in node.output)
        last = LinearLayer(weight=layer[0], bias=layer[1], input=made_by.input[0])
    return SplitModel(
        backbone=backbone,
        head=Head(
            graph=head,
            features=spec,
            output=output.name,
            n_outputs=n_outputs,
            parameters=arrays,
            linear=last,
            entry=_entry(head, features, arrays),
            activation="" if ending is None else activation,
        ),
        outputs=tuple(info.name for info in graph.output),
    )


def _ending(nodes: Sequence[onnx.NodeProto], output: str, activation: str) -> onnx.NodeProto | None:
    """The node that gives the output, where it is this activation, over the classes, of what the others compute."""
    last = next((node for node in nodes if output in node.output), None)
    made = {name for node in nodes for name in node.output}
    if last is None or last.op_type.lower() != activation or last.input[0] not in made:
        return None
    return last if activation == SIGMOID or attribute(last, "axis", -1) in (1, -1) else None


def _head_output(reached: Sequence[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    if len(reached) != 1:
        names = ", ".join(info.name for info in reached) or "none"
        raise ConversionError(f"the trainable layers must lead to one output, they lead to {len(reached)} ({names})")
    shape = shape_of(reached[0])
    if len(shape) != 2 or shape[0] != BATCH or not isinstance(shape[1], int) or type_of(reached[0]) != np.float32:
        raise ConversionError(
            f"the trainable layers must lead to logits (batch, n_classes), float32; {reached[0].name} has the shape "
            f"({', '.join(map(str, shape))}) and the type {type_of(reached[0])}"
        )
    return reached[0]


def _feature_shape(name: str, types: dict[str, onnx.ValueInfoProto]) -> tuple[int, ...]:
    """Sizes of a feature's axes but the batch."""
    info = types.get(name)
    shape = () if info is None else shape_of(info)
    order = _batch_first(shape)
    turned = shape if order is None else tuple(shape[axis] for axis in order)
    sizes = tuple(size for size in turned[1:] if isinstance(size, int))
    if len(shape) < 2 or len(sizes) != len(shape) - 1 or isinstance(turned[0], int):
        found = ", ".join(map(str, shape)) or "not known"
        raise ConversionError(f"the features {name} have the shape ({found}); expected (batch, fixed sizes...)")
    assert info is not None
    if type_of(info) != np.float32:
        raise ConversionError(f"the features {name} are {type_of(info)}, not float32; choose fewer layers")
    return sizes


def _batch_first(shape: Sequence[int | str]) -> list[int] | None:
    """The order of the axes that puts the batch in front; None where there is nothing to put."""
    if BATCH not in shape[1:] or not isinstance(shape[0], int):
        return None
    axis = list(shape).index(BATCH)
    return [axis, *(i for i in range(len(shape)) if i != axis)]


def _take_apart(
    builder: GraphBuilder, features: str, sizes: dict[str, tuple[int, ...]], orders: dict[str, list[int] | None]
) -> None:
    """Append nodes that get the single tensors back out of the features."""
    start = 0
    for name, size in sizes.items():
        end, order = start + prod(size), orders[name]
        part = builder.op("Slice", features, builder.ints(start), builder.ints(end), builder.ints(1))
        whole_part = builder.op("Reshape", part, builder.ints(-1, *size), output=name if order is None else None)
        if order is not None:
            builder.op("Transpose", whole_part, output=name, perm=np.argsort(order).tolist())
        start = end


def _entry(head: onnx.ModelProto, features: str, parameters: Container[str]) -> LinearLayer | None:
    """The linear layer that alone takes the features, with parameters that nobody else reads."""
    readers = [node for node in head.graph.node if features in reads(node)]
    layer = linear(readers[0]) if len(readers) == 1 else None
    if layer is None or not layer.transposed or layer.input != features:
        return None
    own = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    read = [name for node in head.graph.node for name in reads(node)]
    if any(name not in parameters or read.count(name) != 1 for name in own):
        return None
    return LinearLayer(weight=layer.weight, bias=layer.bias, input=features)


def with_layer_input(head: Head) -> onnx.ModelProto:
    """The head with a second output, what its last layer takes, where that is linear and not the whole head."""
    if head.linear is None or head.is_linear:
        return head.graph
    graph = head.graph.graph
    n_inputs = head.parameters[head.linear.weight].shape[1]
    outputs = [*graph.output, tensor_info(head.linear.input, (BATCH, n_inputs))]
    return make_model("head", list(graph.node), list(graph.input), outputs, list(graph.initializer))


def joined(backbone: onnx.ModelProto, parts: SplitModel) -> onnx.ModelProto:
    """Backbone and head as one graph: the model's inputs and the head's parameters to the outputs and the features.

    Args:
        backbone: As it came out of quantization; its inputs and outputs have the names of ``parts.backbone``.
        parts: The split that it comes from.
    """
    if parts.head is None:
        return backbone
    head = parts.head.graph.graph
    kept = {parts.head.features.name, *parts.head.parameters}
    kept |= set() if parts.head.activation else {parts.head.output}
    made = {name for node in head.node for name in node.output} | {tensor.name for tensor in head.initializer}
    names = {name: f"head/{name}" for name in made - kept}
    tensors = []
    for tensor in head.initializer:
        copy = deepcopy(tensor)
        copy.name = names[tensor.name]
        tensors.append(copy)
    behind = GraphBuilder("behind.")
    if parts.head.activation:
        axis = {"axis": 1} if parts.head.activation == SOFTMAX else {}
        behind.op(parts.head.activation.capitalize(), names[parts.head.output], output=parts.head.output, **axis)
    infos = {info.name: info for info in [*backbone.graph.output, *head.output]}
    parameters = [info for info in head.input if info.name in parts.head.parameters]
    return make_model(
        "model",
        [*backbone.graph.node, *(renamed(node, names) for node in head.node), *behind.nodes],
        [*backbone.graph.input, *parameters],
        [*(infos[name] for name in parts.outputs), infos[parts.head.features.name]],
        [*backbone.graph.initializer, *tensors],
    )


def with_constants(model: onnx.ModelProto, constants: dict[str, npt.NDArray[np.float32]]) -> onnx.ModelProto:
    """The graph with some of its inputs made constants: a plain model for other programs."""
    inputs = [info for info in model.graph.input if info.name not in constants]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return make_model(
        "model", list(model.graph.node), inputs, list(model.graph.output), [*model.graph.initializer, *tensors]
    )
