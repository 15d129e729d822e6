"""Outputs that no device can give: texts, and the maps of scores by name that classifiers of scikit-learn end in.

What they say is the name of a class, which a bundle has beside the scores: so the names are taken, the scores are given
as a tensor, and the texts are left out, with a note. Texts as inputs are refused: a bundle is given numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from edge.contract.errors import ConversionError

_TEXT = onnx.TensorProto.STRING
_ZIP_MAP = "ZipMap"
_NAMES = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


def without_texts(model: onnx.ModelProto) -> tuple[list[str], tuple[str, ...] | None]:
    """Change a graph so that it gives tensors of numbers only.

    Returns:
        What was changed, and the names of the classes, None where nothing names them.

    Raises:
        ConversionError: Nothing would be left, or something else than texts and maps of scores is given.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    notes: list[str] = []
    names: tuple[str, ...] | None = None
    kept = []
    for info in graph.output:
        node = made_by.get(info.name)
        kind = info.type.WhichOneof("value")
        if kind == "sequence_type" and node is not None and node.op_type == _ZIP_MAP:
            names = names or class_names_of(node)
            element = onnx.TensorProto.FLOAT
            kept.append(helper.make_tensor_value_info(info.name, element, [None, len(names) if names else None]))
            node.CopyFrom(helper.make_node("Identity", node.input, node.output, name=node.name))
            notes.append(f"{info.name} gives the scores as a tensor, one for each class, and not as a map by name")
        elif kind == "tensor_type" and info.type.tensor_type.elem_type == _TEXT:
            names = names or (None if node is None else class_names_of(node))
            notes.append(
                f"{info.name} is text, which no device gives: left out{', its names are kept' if names else ''}"
            )
        elif kind not in (None, "tensor_type"):
            what = (kind or "").removesuffix("_type").replace("_", " ")
            raise ConversionError(f"{info.name} is of the type {what}; inputs and outputs must be tensors")
        else:
            kept.append(info)
    if not notes:
        return [], None
    if not kept:
        raise ConversionError(
            f"{graph.output[0].name} is text, and nothing else is given: a bundle gives numbers. Export the model with "
            f"its scores, or with numbers of classes, as outputs"
        )
    del graph.output[:]
    graph.output.extend(kept)
    return notes, names


def class_names_of(node: onnx.NodeProto) -> tuple[str, ...] | None:
    """The names of classes that an operator of ``ai.onnx.ml`` states, None where it has none."""
    values: Sequence[bytes | int] = next(
        (helper.get_attribute_value(a) for a in node.attribute if a.name in _NAMES and (a.strings or a.ints)), ()
    )
    return tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values) or None


def check_no_text(info: onnx.ValueInfoProto) -> None:
    """Raise ConversionError where an input is text."""
    if info.type.tensor_type.elem_type == _TEXT:
        raise ConversionError(
            f"the input {info.name} is text, and a bundle is given numbers: export the model from behind what looks "
            f"texts up (LabelEncoder, StringNormalizer, TfIdfVectorizer, a tokenizer), and give it their numbers"
        )
