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
from edge.learning.exchange import HeadRelease, HeadUpdate

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
    [UPDATE, replace(UPDATE, learner="delta"), RELEASE, HeadRelease(backbone=BACKBONE, parameters=RELEASE.parameters)],
)
def test_comes_back_as_it_was(document: HeadUpdate | HeadRelease) -> None:
    assert plain(type(document).decode(document.encode(), "it")) == plain(document)


def test_the_same_release_gives_the_same_bytes() -> None:
    turned = replace(
        RELEASE,
        parameters=dict(reversed(RELEASE.parameters.items())),
        included=dict(reversed(RELEASE.included.items())),
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
    ],
    ids=repr,
)
def test_refuses_an_update_with_a_wrong_field(change: dict[str, Any]) -> None:
    HeadUpdate.decode(head_update(), "it")
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
