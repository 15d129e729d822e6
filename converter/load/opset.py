"""Bringing an ONNX graph to the operator set that the converter works with.

Operators that came later and are made of older ones (ONNX calls them functions) are replaced by those. So a network of
operator set 20 and up, as torch's newer exporter writes it, is quantized and differentiated by the rules of the older
operators; Gelu and Swish are put together again by onnxruntime when it loads the graph.
"""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
import onnx.version_converter
from onnx import helper

from converter.graph.build import inferred_types
from converter.graph.names import FreshNames
from converter.graph.nodes import OPSET
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign

ONNX_DOMAINS = ("", "ai.onnx")
# Not in operator set 18, or not as they are today (GroupNormalization has one scale a channel since 21).
SEVEN = 7
"""The oldest operator set that stock onnxruntime promises to run."""
_BROADCASTING = {"Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"}
_LAID_OUT = ("broadcast", "axis")
_GONE = {
    "BatchNormalization": ("is_test",),
    "Dropout": ("is_test",),
    "Gemm": ("broadcast",),
    "GRU": ("output_sequence",),
    "LSTM": ("output_sequence",),
    "RNN": ("output_sequence",),
}
_COMPOSED = ("Attention", "Gelu", "GroupNormalization", "RMSNormalization", "RotaryEmbedding", "Swish")


def version_of(model: onnx.ModelProto) -> int:
    """Operator set of a model."""
    return next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), OPSET)


def in_our_opset(model: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """The same function in operator set `OPSET`; whether it is the same, the caller compares.

    Raises:
        ConversionError: There is an operator that cannot be brought there.
    """
    version = version_of(model)
    failed = f"{what} is in operator set {version} and cannot be brought to {OPSET}"
    advice = f"; export it with opset_version={OPSET}"
    try:
        with foreign(failed, ConversionError, advice):
            model = _decomposed(model, version)
            if version == OPSET:
                return model
            return onnx.version_converter.convert_version(model, OPSET)
    except ConversionError as exc:
        # Most operators mean the same in both sets; whether these do, the checker and the comparison after it say.
        relabelled = onnx.ModelProto()
        relabelled.CopyFrom(model)
        for entry in relabelled.opset_import:
            if entry.domain in ONNX_DOMAINS:
                entry.version = OPSET
        try:
            with foreign(failed, ConversionError, advice):
                onnx.checker.check_model(relabelled, full_check=True)
        except ConversionError:
            raise exc from exc.__cause__  # the first message says more
        return relabelled


def in_set_seven(model: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """A graph of an older operator set than stock onnxruntime has, as one of set 7: broadcasts are written out.

    Before set 7 the second input of a sum was laid along the first from a stated axis on; since then, as in numpy,
    along its last axes. The other operators that changed lost attributes that mean nothing when a model is only run.

    Raises:
        ConversionError: An operator is another one in set 7, or it is not known how one broadcasts.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    for name, info in inferred_types(model).items():
        if info.type.tensor_type.HasField("shape"):
            ranks[name] = len(info.type.tensor_type.shape.dim)
    fresh = FreshNames(found.graph)
    nodes: list[onnx.NodeProto] = []
    for node in found.graph.node:
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        broadcasts = node.op_type == "PRelu" or (node.op_type in _BROADCASTING and given.get("broadcast"))
        if broadcasts and node.input[0] in ranks and node.input[1] in ranks:
            rank, other = ranks[node.input[0]], ranks[node.input[1]]
            axis = given.get("axis", 1 if node.op_type == "PRelu" and other == 1 and rank > 1 else rank - other)
            behind = rank - (axis + rank if axis < 0 else axis) - other
            if behind > 0:
                axes, along = list(range(other, other + behind)), fresh(f"{node.output[0]}/{node.input[1]}")
                nodes.append(helper.make_node("Unsqueeze", [node.input[1]], [along], axes=axes))
                node.input[1] = along
        elif broadcasts:
            raise ConversionError(f"{what}: it is not known how {node.op_type} {node.output[0]} broadcasts its inputs")
        gone = (*_GONE.get(node.op_type, ()), "consumed_inputs", *(_LAID_OUT if node.op_type in _BROADCASTING else ()))
        kept = [item for item in node.attribute if item.name not in gone]
        del node.attribute[:]
        node.attribute.extend(kept)
        nodes.append(node)
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    for entry in found.opset_import:
        if entry.domain in ONNX_DOMAINS:
            entry.version = SEVEN
    with foreign(f"{what} is in an operator set before {SEVEN} and cannot be read as one of {SEVEN}", ConversionError):
        onnx.checker.check_model(found, full_check=True)
    return found


def _decomposed(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    composed = [node for node in found.graph.node if node.domain in ONNX_DOMAINS and node.op_type in _COMPOSED]
    if not composed:
        return model
    for node in composed:  # bodies refer to attributes, which the inliner does not fill with their defaults
        given = {attribute.name for attribute in node.attribute}
        for name, schema in onnx.defs.get_schema(node.op_type, version).attributes.items():
            if name not in given and schema.default_value.name:
                node.attribute.append(schema.default_value)
    known = {info.name for info in [*found.graph.input, *found.graph.value_info]}
    for tensor in found.graph.initializer:  # which the inliner does not know the types of
        if tensor.name not in known:
            found.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    names = [(domain, name) for domain in ONNX_DOMAINS for name in _COMPOSED]
    found = onnx.inliner.inline_selected_functions(found, names, inline_schema_functions=True)
    types = inferred_types(found)
    for node in found.graph.node:  # bodies fit any type of number; here it is known, and constants become constants
        if node.op_type == "CastLike" and node.input[1] in types:
            to = types[node.input[1]].type.tensor_type.elem_type
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, name=node.name, to=to))
        elif node.op_type == "Sum" and len(node.input) == 2:  # which onnxruntime looks for where it fuses operators
            node.op_type = "Add"
    return found
