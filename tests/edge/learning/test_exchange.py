"""What goes up and comes down: data only, bound to a backbone, refused when damaged."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract import tensorfile
from edge.contract.errors import BundleError
from edge.contract.manifest import LinearLayer
from edge.learning.exchange import HeadRelease, HeadUpdate, Noised, Outside

BACKBONE = "ab" * 32
UPDATE = HeadUpdate(
    learner="statistics",
    backbone=BACKBONE,
    lineage="0123",
    version=12,
    n_samples=10,
    base_release=3,
    tensors={"gram": np.arange(3, dtype=np.float32), "moment": np.ones((2, 2), np.float32)},
)
RELEASE = HeadRelease(
    backbone=BACKBONE,
    parameters={"w": np.arange(4, dtype=np.float32).reshape(2, 2), "b": np.zeros(2, np.float32)},
    merged={"gram": np.arange(3, dtype=np.float32)},
    included={"0123": 12, "4567": 0},
    n_samples=22,
    origin="merge of 2 devices",
)


def plain(value: Any) -> Any:
    """Equal for what is equal, arrays included."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, HeadUpdate | HeadRelease):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    return value


@pytest.mark.parametrize(
    "document",
    [
        UPDATE,
        replace(UPDATE, learner="delta"),
        replace(UPDATE, class_names=("cat", "dög")),
        replace(UPDATE, noised=Noised(epsilon=4.0, delta=1e-5, variance=2.5, frame=BACKBONE)),
        RELEASE,
        replace(RELEASE, class_names=("cat", "dög")),
        replace(RELEASE, outside=Outside(gain=-0.25, distance=12.5, devices=3)),
        replace(RELEASE, outside=Outside(gain=0.25, distance=12.5, devices=2, each={"a": 0.25, "b": 0.5})),
        HeadRelease(backbone=BACKBONE, parameters=RELEASE.parameters),
    ],
)
def test_comes_back_as_it_was(document: HeadUpdate | HeadRelease) -> None:
    assert plain(type(document).decode(document.encode(), "it")) == plain(document)


def test_the_same_release_gives_the_same_bytes() -> None:
    turned = replace(
        RELEASE,
        parameters=dict(reversed(RELEASE.parameters.items())),
        included=dict(reversed(list(RELEASE.included.items()))),
    )
    assert turned.encode() == RELEASE.encode()


@pytest.mark.parametrize("document", [UPDATE, RELEASE])
def test_refuses_what_is_cut_short_anywhere(document: HeadUpdate | HeadRelease) -> None:
    data = document.encode()
    for size in range(len(data)):
        with pytest.raises(BundleError):
            type(document).decode(data[:size], "it")
    with pytest.raises(BundleError):
        type(document).decode(data + b"\0", "it")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([UPDATE, RELEASE]), st.data())
def test_a_flipped_bit_gives_a_document_or_a_bundle_error(
    document: HeadUpdate | HeadRelease, data: st.DataObject
) -> None:
    damaged = bytearray(document.encode())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = type(document).decode(bytes(damaged), "it")
    except BundleError:
        return
    assert type(found).decode(found.encode(), "it").backbone == found.backbone


@pytest.mark.parametrize("kind", [HeadUpdate, HeadRelease])
def test_refuses_a_pickle_random_bytes_and_the_other_document(kind: type[HeadUpdate] | type[HeadRelease]) -> None:
    other = RELEASE if kind is HeadUpdate else UPDATE
    rng = np.random.default_rng(0)
    strange = [pickle.dumps({"w": 1}, protocol) for protocol in range(6)]
    strange += [rng.bytes(n) for n in range(0, 200, 7)] + [other.encode()]
    for data in strange:
        with pytest.raises(BundleError):
            kind.decode(data, "it")


NOISED = {"epsilon": 4.0, "delta": 1e-5, "variance": 2.5, "frame": BACKBONE}


def head_update(**changes: Any) -> bytes:
    names = ("learner", "backbone", "lineage", "version", "n_samples", "base_release")
    found = {name: getattr(UPDATE, name) for name in names} | changes
    return tensorfile.encode("head-update", {k: v for k, v in found.items() if v is not None}, UPDATE.tensors)


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("learner", "backbone", "lineage", "version", "n_samples", "base_release")),
        {"learner": "other"},
        {"learner": ["delta"]},
        {"backbone": "ab"},
        {"lineage": ""},
        {"lineage": "x" * 65},
        {"lineage": 5},
        {"version": -1},
        {"version": 1.0},
        {"version": True},
        {"n_samples": "1"},
        {"base_release": -3},
        {"class_names": "cat"},
        {"class_names": [1]},
        {"class_names": ["cat", "cat"]},
        {"noised": 4.0},
        {"noised": {}},
        *(
            {"noised": NOISED | {name: wrong}}
            for name in ("epsilon", "variance")
            for wrong in (0.0, -1.0, 1e13, 4, "4")
        ),
        {"noised": NOISED | {"frame": "ab"}},
    ],
    ids=repr,
)
def test_refuses_an_update_with_a_wrong_field(change: dict[str, Any]) -> None:
    HeadUpdate.decode(head_update(noised=NOISED), "it")
    with pytest.raises(BundleError):
        HeadUpdate.decode(head_update(**change), "it")


def head_release(tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> bytes:
    found: dict[str, Any] = {"backbone": BACKBONE, "included": {"a": 1}, "n_samples": 1, "origin": "x"} | changes
    description = {key: value for key, value in found.items() if value is not None}
    return tensorfile.encode("head-release", description, tensors or {"parameter.w": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("backbone", "included", "n_samples", "origin")),
        {"backbone": "AB" * 32},
        {"included": [1]},
        {"included": {"a": -1}},
        {"included": {"a": "1"}},
        {"included": {"a": True}},
        {"n_samples": -1},
        {"n_samples": 0.5},
        {"origin": 1},
        {"class_names": {"cat": 1}},
        {"class_names": [None]},
        {"class_names": ["cat", "dog", "cat"]},
        {"outside": 1},
        {"outside": {"gain": 0.5, "distance": 1.0}},
        {"outside": {"gain": 1, "distance": 1.0, "devices": 2}},
        {"outside": {"gain": 0.5, "distance": None, "devices": 2}},
    ],
    ids=repr,
)
def test_refuses_a_release_with_a_wrong_field(change: dict[str, Any]) -> None:
    HeadRelease.decode(head_release(), "it")
    with pytest.raises(BundleError):
        HeadRelease.decode(head_release(**change), "it")


def test_refuses_parameters_that_are_not_finite_in_float32() -> None:
    for value in (np.array([1e300]), np.array([np.inf], np.float32), np.array([np.nan], np.float32), np.array([1])):
        with pytest.raises(BundleError):
            HeadRelease.decode(head_release({"parameter.w": value}), "it")


@pytest.mark.parametrize("document", [head_update(), head_release()], ids=["update", "release"])
def test_a_document_without_class_names_has_those_of_the_bundle(document: bytes) -> None:
    kind: type[HeadUpdate] | type[HeadRelease] = HeadUpdate if document == head_update() else HeadRelease
    assert kind.decode(document, "it").class_names == ()


# Classes in another order

HEAD = LinearLayer(weight="w", bias="b", input="x")
NAMES = ("cat", "dog", "bird")
OF_THREE = HeadRelease(
    backbone=BACKBONE,
    parameters={
        "w": np.arange(6, dtype=np.float32).reshape(3, 2),
        "b": np.array([10, 11, 12], np.float32),
        "below": np.full((2, 2), 5, np.float32),
    },
    merged={"gram": np.arange(6, dtype=np.float32), "moment": np.arange(9, dtype=np.float32).reshape(3, 3)},
    included={"a": 3},
    n_samples=7,
)


def own(n: int) -> dict[str, np.ndarray]:
    return {"w": np.full((n, 2), -1, np.float32), "b": np.full(n, -2, np.float32)}


def test_classes_in_the_same_order_need_nothing() -> None:
    assert OF_THREE.aligned(NAMES, list(NAMES), HEAD, own(3)) is OF_THREE


def test_classes_are_put_into_the_order_that_is_wanted() -> None:
    wanted = ("bird", "cat", "dog")
    found = OF_THREE.aligned(NAMES, wanted, HEAD, own(3))
    assert found.parameters["w"].tolist() == [[4, 5], [0, 1], [2, 3]]
    assert found.parameters["b"].tolist() == [12, 10, 11]
    assert found.merged["moment"].tolist() == [[2, 0, 1], [5, 3, 4], [8, 6, 7]]
    assert found.merged["gram"].tolist() == OF_THREE.merged["gram"].tolist()
    assert (found.parameters["below"] == 5).all()
    assert found.class_names == wanted
    assert (found.included, found.n_samples) == ({"a": 3}, 7)
    back = found.aligned(wanted, NAMES, HEAD, own(3))
    assert plain(back.parameters) == plain(OF_THREE.parameters)
    assert plain(back.merged) == plain(OF_THREE.merged)


def test_a_class_that_the_release_does_not_have_is_kept_and_has_no_samples_in_it() -> None:
    found = OF_THREE.aligned(NAMES, ("cat", "fish", "dog", "bird"), HEAD, own(4))
    assert found.parameters["w"].tolist() == [[0, 1], [-1, -1], [2, 3], [4, 5]]
    assert found.parameters["b"].tolist() == [10, -2, 11, 12]
    assert found.merged["moment"].tolist() == [[0, 0, 1, 2], [3, 0, 4, 5], [6, 0, 7, 8]]
    assert {array.dtype for array in found.parameters.values()} == {np.dtype(np.float32)}
    assert plain(HeadRelease.decode(found.encode(), "it")) == plain(found)


def test_aligning_leaves_the_release_as_it_is() -> None:
    before = OF_THREE.encode()
    found = OF_THREE.aligned(NAMES, ("bird", "cat", "dog"), HEAD, own(3))
    for array in [*found.parameters.values(), *found.merged.values()]:
        array.setflags(write=True)
    found.parameters["w"][:] = 99
    assert OF_THREE.encode() == before


def test_a_head_without_bias_or_statistics_is_aligned_too() -> None:
    bare = HeadRelease(backbone=BACKBONE, parameters={"w": OF_THREE.parameters["w"]})
    found = bare.aligned(NAMES, ("dog", "cat", "bird"), replace(HEAD, bias=None), own(3))
    assert found.parameters["w"].tolist() == [[2, 3], [0, 1], [4, 5]]
    assert found.merged == {}
