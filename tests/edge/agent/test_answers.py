"""What the outputs of a sample say, by their kinds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edge.agent.model.answers import document, kinds_of
from edge.agent.wire import decode_answer, encode_line
from edge.contract.bundle import Bundle
from edge.contract.manifest import OutputKind

NAMES = ["ok", "scratch", "dent"]


def said(
    array: Any, kind: str, names: list[str] | None = None, temperature: float = 1.0, **more: Any
) -> dict[str, Any]:
    output = {"y": np.asarray(array)}
    return document(output, {"y": OutputKind(kind=kind, **more)}, "y", {"y": names or []}, temperature)


def test_classes_have_a_number_a_name_and_a_confidence() -> None:
    logits = np.array([0.0, 2.0, 1.0], np.float32)
    likely = np.exp(logits) / np.exp(logits).sum()
    found = said(logits, "classes", NAMES, axis=0)
    assert found == {"class": 1, "name": "scratch", "confidence": round(float(likely[1]), 6), "logits": [0.0, 2.0, 1.0]}
    assert said(logits, "classes", NAMES, 2.0, axis=0)["confidence"] < found["confidence"]
    given = said(np.array([0.25, 0.75]), "classes", axis=0, probabilities=True)
    assert given == {"class": 1, "confidence": 0.75, "probabilities": [0.25, 0.75]}, "what is one already stays"
    assert said(np.array([2]), "classes", NAMES) == {"class": 2, "name": "dent"}, "the graph has chosen"
    assert said(np.array(2), "classes") == {"class": 2}


def test_classes_at_many_places_are_arrays() -> None:
    scores = np.random.default_rng(0).random((3, 4, 5), np.float32)
    found = said(scores, "classes", NAMES, axis=0)
    assert (found["classes"] == scores.argmax(axis=0)).all()
    assert found["logits"] is scores


def test_yes_or_no_answers_have_what_they_rest_on() -> None:
    found = said(np.array([-2.0, 0.5], np.float32), "yes-or-no")
    assert found["yes"] == [False, True]
    assert found["values"] == pytest.approx([1 / (1 + np.e**2), 1 / (1 + np.e**-0.5)])
    assert found["logits"] == [-2.0, 0.5]
    assert said(np.array([0.25, 0.75]), "yes-or-no", threshold=0.5, probabilities=True) == {
        "yes": [False, True], "values": [0.25, 0.75]
    }  # fmt: skip
    assert said(np.array([True]), "yes-or-no", threshold=0.5)["yes"] == [True]


def test_other_kinds_are_numbers_or_arrays_that_travel_exactly() -> None:
    assert said(np.array([1.5]), "quantities") == {"values": [1.5]}
    assert said(np.array([0.5]), "scores") == {"values": [0.5]}
    rng = np.random.default_rng(0)
    outputs: dict[str, Any] = {
        "boxes": rng.random((0, 4)),
        "mask": np.array([[0.0, -np.inf], [np.nan, 1.0]], np.float16),
        "ids": np.array([[2**62]], np.int64),
        "depth": rng.random((2, 3), np.float32),
        "one": np.array(0.5, np.float32),
    }
    kinds = {
        "boxes": "boxes",
        "mask": "anything",
        "ids": "of-a-later-version",
        "depth": "quantities",
        "one": "anything",
    }
    found = document(outputs, {name: OutputKind(kind=kind) for name, kind in kinds.items()}, "boxes", {})
    assert found["outputs"].keys() == outputs.keys(), "an array that is for people stands among the others"
    there = decode_answer(encode_line(found))["outputs"]
    for name, what in there.items():
        array = what["values"] if name == "depth" else what["array"]
        assert (what["kind"], array.dtype, array.shape) == (kinds[name], outputs[name].dtype, outputs[name].shape)
        assert array.tobytes() == outputs[name].tobytes()


def test_the_manifest_says_what_outputs_are_and_older_ones_say_it_by_class_names(
    masked_bundles: tuple[Any, Any],
) -> None:
    learns, fixed = (Bundle.open(path).manifest for path in masked_bundles)
    for manifest in (learns, fixed):
        kinds = kinds_of(manifest)
        assert (kinds["output_0"].kind, kinds["output_0"].axis, kinds["output_1"].kind) == ("classes", 0, "embedding")
        older = dataclasses.replace(manifest, kinds={})
        assert (kinds_of(older)["output_0"], kinds_of(older)["output_1"].kind) == (kinds["output_0"], "anything")
