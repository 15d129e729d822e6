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
from converter.graph.nodes import OPSET
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign

ONNX_DOMAINS = ("", "ai.onnx")
# Not in operator set 18, or not as they are today (GroupNormalization has one scale a channel since 21).
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
