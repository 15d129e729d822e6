"""The manifest: everything in it is checked once, unknown fields are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract import manifest as m
from edge.contract import strictjson
from edge.contract.errors import BundleError
from edge.contract.manifest import LinearLayer, Manifest, OutputKind
from edge.contract.recipe import TrainingRecipe

DIGEST = "0123456789abcdef" * 4


def document() -> dict[str, Any]:
    """A manifest as JSON."""
    return {
        "format": "edgeloop-bundle",
        "schema_version": 3,
        "name": "digits",
        "inputs": [{"name": "input", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
        "outputs": [{"name": "output", "dtype": "float32", "shape": ["batch", 2]}],
        "class_names": ["no", "yes"],
        "preprocessing": {"scale": "1/16"},
        "quantization": {"scheme": "int8"},
        "head": {
            "features": {"name": "features", "dtype": "float32", "shape": ["batch", 64]},
            "output": "output",
            "parameters": [{"name": "w", "shape": [2, 64]}, {"name": "b", "shape": [2]}],
            "linear": {"weight": "w", "bias": "b", "input": "features"},
            "entry": {"weight": "w", "bias": "b", "input": "features"},
            "projection": 48,
            "learning_rate": 0.1,
            "trainable": "last:1",
            "activation": "",
            "training": TrainingRecipe(optimizer="adam").to_json(),
            "trial": {
                "rate": 0.3,
                "whitened": None,
                "labels": 100,
                "batch_size": 17,
                "held_out": 50,
                "own_answers": False,
                "loss_before": 0.5,
                "loss_after": 0.4,
                "turned_before": 5.0,
                "turned_after": 1.5,
            },
        },
        "golden_min_sqnr_db": 25,
        "source_digest": DIGEST,
        "created_by": "test",
        "members": {role: {"digest": DIGEST, "size_bytes": 1} for role in (*m.REQUIRED_MEMBERS, *m.HEAD_MEMBERS)},
    }


def decode(value: dict[str, Any]) -> Manifest:
    return Manifest.decode(strictjson.dumps(value))


def test_round_trip_keeps_everything_and_unknown_fields() -> None:
    value = document() | {"from_the_future": {"a": [1, 2]}, "another": None}
    manifest = decode(value)
    assert strictjson.loads(manifest.encode(), max_bytes=1 << 20) == value
    assert Manifest.decode(manifest.encode()) == manifest
    assert manifest.extra == {"from_the_future": {"a": [1, 2]}, "another": None}


def test_the_same_manifest_gives_the_same_bytes() -> None:
    value = document()
    backwards = dict(reversed(value.items()))
    assert decode(value).encode() == decode(backwards).encode()


@pytest.mark.parametrize("key", sorted(document()))
def test_refuses_a_missing_field(key: str) -> None:
    value = document()
    del value[key]
    words = {"schema_version": "schema version"}
    with pytest.raises(BundleError, match=words.get(key, key)):
        decode(value)


@pytest.mark.parametrize("wrong", [None, True, [], {}, "text", 7, 0.5, [None], [[]], [{}], {"a": []}], ids=repr)
@pytest.mark.parametrize("key", sorted(document()))
def test_refuses_a_field_of_another_type(key: str, wrong: Any) -> None:
    right = document()[key]
    if type(right) is type(wrong) and key in ("name", "preprocessing", "quantization", "source_digest", "created_by"):
        return
    if (key == "head" and wrong is None) or (key == "inputs" and wrong == []):  # a bundle that has, or takes, none
        return
    if key == "golden_min_sqnr_db" and type(wrong) in (int, float):
        return
    with pytest.raises(BundleError):
        decode(document() | {key: wrong})


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(target: Any) -> None:
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


REFUSED: dict[str, Callable[[dict[str, Any]], None]] = {
    "another format": put("format", value="zip"),
    "a newer schema": put("schema_version", value=4),
    "an older schema": put("schema_version", value=0),
    "a schema of true": put("schema_version", value=True),
    "a schema of text": put("schema_version", value="3"),
    "a dtype that does not exist": put("inputs", 0, "dtype", value="float128"),
    "a dtype of another type": put("inputs", 0, "dtype", value=["float32"]),
    "a shape of text": put("inputs", 0, "shape", value="batch"),
    "a shape of numbers as texts": put("inputs", 0, "shape", value=["1"]),
    "a shape of truths": put("inputs", 0, "shape", value=[True]),
    "a negative shape": put("inputs", 0, "shape", value=[-1]),
    "a head parameter of no size": put("head", "parameters", 0, "shape", value=[0, 2]),
    "a shape of 2 to the 31": put("inputs", 0, "shape", value=[2**31]),
    "a tensor spec of text": put("inputs", 0, value="float32"),
    "a tensor name of another type": put("inputs", 0, "name", value=1),
    "class names of another type": put("class_names", value=["no", 1]),
    "two classes of one name": put("class_names", value=["no", " no"]),
    "a class without a name": put("class_names", value=["no", " "]),
    "more class names than outputs": put("class_names", value=["no", "yes", "maybe"]),
    "an output without classes": put("outputs", 0, "shape", value=["batch"]),
    "an output of two axes": put("outputs", 0, "shape", value=["batch", 2, 2]),
    "an output of integers": put("outputs", 0, "dtype", value="int64"),
    "features without an axis": put("head", "features", "shape", value=["batch"]),
    "features of bytes": put("head", "features", "dtype", value="uint8"),
    "no outputs": put("outputs", value=[]),
    "two outputs of one name": put("outputs", value=[document()["outputs"][0]] * 2),
    "a head of an unknown output": put("head", "output", value="other"),
    "an output without a batch axis": put("outputs", 0, "shape", value=[1, 2]),
    "no head parameters": put("head", "parameters", value=[]),
    "a head parameter without a name": put("head", "parameters", 0, value={"shape": [1]}),
    "a head parameter that is a text": put("head", "parameters", 0, value="w"),
    "a head parameter without a shape": put("head", "parameters", 0, value={"name": "w"}),
    "a head parameter of half a shape": put("head", "parameters", 0, "shape", value=[0.5]),
    "two head parameters of one name": put("head", "parameters", 1, "name", value="w"),
    "a linear head of an unknown weight": put("head", "linear", "weight", value="other"),
    "a linear head of an unknown bias": put("head", "linear", "bias", value="other"),
    "a linear head whose weight is a list": put("head", "linear", "weight", value=["w"]),
    "a linear head whose bias is an object": put("head", "linear", "bias", value={}),
    "an entry of an unknown weight": put("head", "entry", value={"weight": "v", "bias": "b", "input": "features"}),
    "an entry that takes something else": put("head", "entry", value={"weight": "w", "bias": "b", "input": "hidden"}),
    "an entry that is a number": put("head", "entry", value=3),
    "a projection to nothing": put("head", "projection", value=0),
    "a projection to as many": put("head", "projection", value=64),
    "a projection to true": put("head", "projection", value=True),
    "a linear head that is a list": put("head", "linear", value=["w", "b"]),
    "a linear head whose weight has another shape": put("head", "parameters", 0, "shape", value=[64, 2]),
    "a linear head whose bias has another shape": put("head", "parameters", 1, "shape", value=[3]),
    "a linear head without an input": put("head", "linear", value={"weight": "w", "bias": "b"}),
    "a linear head with another length than the features": put("head", "features", "shape", value=["batch", 63]),
    "no training": put("head", "training", value=None),
    "an unknown loss": put("head", "training", "loss", value="hinge"),
    "an unknown optimizer": put("head", "training", "optimizer", value="lion"),
    "a momentum of one": put("head", "training", "momentum", value=1.0),
    "a momentum of true": put("head", "training", "momentum", value=True),
    "a negative weight decay": put("head", "training", "weight_decay", value=-1),
    "a huber delta of zero": put("head", "training", "huber_delta", value=0),
    "a training field from the future": put("head", "training", "schedule", value="cosine"),
    "a learning rate of zero": put("head", "learning_rate", value=0),
    "a negative learning rate": put("head", "learning_rate", value=-0.1),
    "a learning rate of true": put("head", "learning_rate", value=True),
    "a huge learning rate": put("head", "learning_rate", value=1e300),
    "a role that climbs": put("members", "../../etc/passwd", value={"digest": DIGEST, "size_bytes": 1}),
    "a role with a slash": put("members", "a/b", value={"digest": DIGEST, "size_bytes": 1}),
    "a role with a backslash": put("members", "a\\b", value={"digest": DIGEST, "size_bytes": 1}),
    "a role that is absolute": put("members", "/a", value={"digest": DIGEST, "size_bytes": 1}),
    "a role that is hidden": put("members", ".a", value={"digest": DIGEST, "size_bytes": 1}),
    "a role that is two dots": put("members", "..", value={"digest": DIGEST, "size_bytes": 1}),
    "a role that is empty": put("members", "", value={"digest": DIGEST, "size_bytes": 1}),
    "a role that ends a line": put("members", "a\n", value={"digest": DIGEST, "size_bytes": 1}),
    "a role of 65 letters": put("members", "a" * 65, value={"digest": DIGEST, "size_bytes": 1}),
    "a member without a digest": put("members", m.MODEL, value={"size_bytes": 1}),
    "a member with a short digest": put("members", m.MODEL, value={"digest": "00", "size_bytes": 1}),
    "a member without a size": put("members", m.MODEL, value={"digest": DIGEST}),
    "a member of half a size": put("members", m.MODEL, value={"digest": DIGEST, "size_bytes": 0.5}),
    "a member that is a text": put("members", m.MODEL, value=DIGEST),
    "a kind of no output": put("kinds", value={"nobody": {"kind": "classes"}}),
    "an output of no kind": put("kinds", value={"output": {"axis": 1}}),
    "a kind that is a text": put("kinds", value={"output": "classes"}),
    "a kind along an axis that is not there": put("kinds", value={"output": {"kind": "classes", "axis": 2}}),
}


def test_outputs_say_what_they_are_and_a_later_kind_is_kept() -> None:
    value = document()
    assert decode(copy.deepcopy(value)).kinds == {}
    value["kinds"] = {"output": {"kind": "of-tomorrow", "axis": 1, "threshold": 0.5}}
    manifest = decode(copy.deepcopy(value))
    assert manifest.kinds == {"output": OutputKind(kind="of-tomorrow", axis=1, threshold=0.5)}
    assert Manifest.decode(manifest.encode()) == manifest


@pytest.mark.parametrize("change", REFUSED.values(), ids=list(REFUSED))
def test_refuses(change: Callable[[dict[str, Any]], None]) -> None:
    value = document()
    decode(copy.deepcopy(value))
    change(value)
    with pytest.raises(BundleError, match=r"the manifest cannot be used: \S"):
        decode(value)


@pytest.mark.parametrize("role", [*m.REQUIRED_MEMBERS, *m.HEAD_MEMBERS])
def test_refuses_a_required_member_that_is_missing(role: str) -> None:
    value = document()
    del value["members"][role]
    with pytest.raises(BundleError, match=role):
        decode(value)


def remembering() -> dict[str, Any]:
    """A manifest with a state, constants and an answer."""
    value = document()
    state = {"name": "h", "dtype": "float32", "shape": [1, "batch", 8]}
    value["inputs"].append(state)
    value["outputs"].append(state | {"name": "hn"})
    return value | {"states": [{"input": "h", "output": "hn"}], "constants": {"sr": 16000}, "answer": "output"}


def test_states_constants_and_the_answer_are_read_and_written() -> None:
    value = remembering()
    manifest = decode(value)
    assert [(pair.input, pair.output) for pair in manifest.states] == [("h", "hn")]
    assert (manifest.constants, manifest.answer) == ({"sr": 16000}, "output")
    assert [spec.name for spec in manifest.sample_inputs] == ["input"]
    assert strictjson.loads(manifest.encode(), max_bytes=1 << 20) == value
    older = decode(document())  # of a converter that knew none of these
    assert (older.states, older.constants, older.answer) == ((), {}, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("states", value={}), "states must be a list, got dict"),
        (put("states", 0, value="h"), r"states\[0\] must be an object"),
        (put("states", 0, "output", value=1), r"states\[0\].output must be a text"),
        (put("states", 0, "input", value="g"), "g is no input"),
        (put("states", 0, "output", value="g"), "g is no output"),
        (put("states", 0, "input", value="input"), "as it is"),
        (put("inputs", 1, "shape", 0, value="layers"), "only its batch axis may be free"),
        (put("states", value=[{"input": "h", "output": "hn"}] * 2), "two pairs"),
        (put("constants", value=[]), "constants must be an object, got list"),
        (put("answer", value="hn"), "is a state"),
        (put("answer", value="logits"), "not one of the outputs"),
        (put("answer", value=None), "answer must be there or left out"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_refuses_states_that_cannot_be(change: Callable[[dict[str, Any]], None], words: str) -> None:
    value = remembering()
    change(value)
    with pytest.raises(BundleError, match=words):
        decode(value)


def test_says_to_update_when_the_schema_is_newer() -> None:
    with pytest.raises(BundleError, match="update edgeloop"):
        decode(document() | {"schema_version": 4})


def test_a_head_of_several_layers_and_one_without_bias_are_read() -> None:
    value = document()
    value["head"] |= {"linear": None, "projection": None}
    head = decode(value).head
    assert head is not None
    assert head.linear is None
    value["head"]["linear"] = {"weight": "w", "bias": None, "input": "hidden"}
    found = decode(value).head
    assert found == replace(head, linear=LinearLayer(weight="w", bias=None, input="hidden"))
    assert (found.is_linear, found.n_inputs) == (False, 64)


def test_a_head_of_quantities_needs_no_class_names() -> None:
    value = document() | {"class_names": []}
    with pytest.raises(BundleError, match="class_names"):
        decode(value)
    value["head"]["training"]["loss"] = "huber"
    head = decode(value).head
    assert head is not None
    assert head.training.is_regression


def test_a_bundle_without_a_head_needs_no_members_of_a_head() -> None:
    value = document() | {"head": None, "class_names": []}
    for role in m.HEAD_MEMBERS:
        del value["members"][role]
    manifest = decode(value)
    assert manifest.head is None
    assert strictjson.loads(manifest.encode(), max_bytes=1 << 20) == value


def test_the_backbone_digest_is_that_of_the_backbone() -> None:
    value = document()
    value["members"][m.MODEL]["digest"] = "f" * 64
    assert decode(value).backbone_digest == "f" * 64


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_strange_value_anywhere_gives_a_manifest_or_a_bundle_error(data: st.DataObject) -> None:
    value = document()
    target: Any = value
    while True:
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else list(range(len(target)))))
        if isinstance(target[key], dict | list) and target[key] and data.draw(st.booleans()):
            target = target[key]
            continue
        break
    strange = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3)
    target[key] = data.draw(strange | st.lists(strange, max_size=2) | st.dictionaries(st.text(max_size=2), strange))
    try:
        manifest = decode(value)
    except BundleError:
        return
    assert Manifest.decode(manifest.encode()) == manifest
