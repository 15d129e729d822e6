"""Classifiers that name their classes in text give scores, with these names; what is nothing but text is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from converter.load.texts import without_texts
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import convert, plan

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])


def classifier(names: list[Any], ends: str) -> onnx.ModelProto:
    """As skl2onnx exports one: a label and a map of scores by name, or with ``zipmap=False`` a tensor."""
    is_text = isinstance(names[0], str)
    weights = np.random.default_rng(0).normal(size=6 * len(names)).tolist()
    stated = {"classlabels_strings" if is_text else "classlabels_ints": names}
    nodes = [
        helper.make_node("LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", coefficients=weights,
                         intercepts=[0.0] * len(names), multi_class=1, post_transform="SOFTMAX", **stated),
    ]  # fmt: skip
    outputs = [helper.make_tensor_value_info("label", TensorProto.STRING if is_text else TensorProto.INT64, ["batch"])]
    if ends == "map":
        stated = {"classlabels_strings" if is_text else "classlabels_int64s": names}
        nodes.append(helper.make_node("ZipMap", ["scores"], ["probability"], domain="ai.onnx.ml", **stated))
        map_type = helper.make_map_type_proto(
            TensorProto.STRING if is_text else TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
        outputs.append(helper.make_value_info("probability", helper.make_sequence_type_proto(map_type)))
    elif ends == "tensor":
        outputs.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(names)]))
    graph = helper.make_graph(nodes, "g", [X], outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 2)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_a_classifier_with_a_map_of_scores_becomes_a_bundle_with_class_names(tmp_path: Path) -> None:
    path, x = tmp_path / "net.onnx", np.random.default_rng(1).normal(size=(80, 6)).astype(np.float32)
    onnx.save(classifier(["cat", "dog", "cow"], "map"), path)
    np.savez(tmp_path / "x.npz", x=x)
    report = convert(plan(path, calibration=str(tmp_path / "x.npz"))).report
    assert any("label is text" in note for note in report["notes"])
    bundle = Bundle.open(path.with_suffix(".edge"))
    assert bundle.manifest.class_names == ("cat", "dog", "cow")
    assert bundle.manifest.kinds["probability"].kind == "classes"
    label, maps = ort.InferenceSession(str(path)).run(None, {"x": x})
    (found,) = OnnxSession(bundle).run({"x": x}).values()
    assert [bundle.manifest.class_names[i] for i in found.argmax(axis=1)] == label.tolist()
    np.testing.assert_allclose(found, [[row[name] for name in ("cat", "dog", "cow")] for row in maps], rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "ends", "left", "classes"),
    [
        (["b", "a"], "map", ["probability"], ("b", "a")),
        ([3, 7, 5], "map", ["label", "probability"], ("3", "7", "5")),
        (["b", "a"], "tensor", ["scores"], ("b", "a")),
        ([0, 1], "tensor", ["label", "scores"], None),  # nothing has to be changed
    ],
)
def test_what_stays_are_tensors_of_numbers(
    names: list[Any], ends: str, left: list[str], classes: tuple[str, ...] | None
) -> None:
    model = classifier(names, ends)
    notes, found = without_texts(model)
    assert [info.name for info in model.graph.output] == left
    assert (found, bool(notes)) == (classes, classes is not None)
    x = np.ones((5, 6), np.float32)
    given = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert {array.dtype.kind for array in given} <= set("fi")
    assert given[-1].shape == (5, len(names))


def test_text_alone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(classifier(["b", "a"], "label"), path)
    with pytest.raises(ConversionError, match="label is text, and nothing else is given: a bundle gives numbers"):
        convert(plan(path, quantize="none"))
    text = helper.make_tensor_value_info("words", TensorProto.STRING, ["batch", 1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])
    known = {"keys_strings": ["a"], "values_floats": [1.0]}
    node = helper.make_node("LabelEncoder", ["words"], ["y"], domain="ai.onnx.ml", **known)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", [text], [out]), opset_imports=opsets, ir_version=8), path
    )
    with pytest.raises(ConversionError, match="the input words is text, and a bundle is given numbers"):
        convert(plan(path, quantize="none"))
    assert not path.with_suffix(".edge").exists()
