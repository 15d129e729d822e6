"""Tensor specs, and tensors with a description in one document."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract import tensorfile
from edge.contract.errors import BundleError
from edge.contract.tensorspec import DTYPES, TensorSpec

SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", 2, 3))


def test_a_spec_takes_batches_of_its_shape_and_type_only() -> None:
    SPEC.check(np.zeros((1, 2, 3), np.float32))
    SPEC.check(np.zeros((9, 2, 3), np.float32))
    for shape in [(2, 3), (0, 2, 3), (1, 3, 2), (1, 2, 3, 1), (6,), ()]:
        with pytest.raises(ValueError, match="expected shape"):
            SPEC.check(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="expected float32, got float64"):
        SPEC.check(np.zeros((1, 2, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_spec_of_every_type_comes_back(dtype: str) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=("batch", 1, 2))
    assert TensorSpec.from_json(spec.to_json()) == spec
    spec.check(np.zeros((1, 1, 2), dtype))


def test_axes_are_fixed_or_free_and_the_batch_may_stand_anywhere() -> None:
    state = TensorSpec(name="state", dtype="float32", shape=(2, "batch", 4))
    state.check(np.zeros((2, 7, 4), np.float32))
    assert (state.batch_axis, SPEC.batch_axis, SPEC.sample_shape) == (1, 0, (2, 3))
    scalar = TensorSpec(name="rate", dtype="int64", shape=())
    scalar.check(np.array(3))
    assert scalar.batch_axis is None
    for spec in (state, scalar, TensorSpec(name="t", dtype="int64", shape=("batch", "time"))):
        assert TensorSpec.from_json(spec.to_json()) == spec
        with pytest.raises(ValueError, match="fixed sizes"):
            _ = spec.sample_shape
    with pytest.raises(ValueError, match="expected shape"):
        state.check(np.zeros((3, 7, 4), np.float32))


@pytest.mark.parametrize("shape", [["batch", "batch"], ["a b"], [""], [-1], [2**31], [True], [0.5], [1] * 17])
def test_refuses_a_shape_that_no_tensor_has(shape: list[Any]) -> None:
    with pytest.raises(ValueError):
        TensorSpec.from_json({"name": "x", "dtype": "float32", "shape": shape})


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"name": "x"}, {"name": "x", "dtype": "float32", "shape": 3}])
def test_refuses_what_is_not_a_spec(value: Any) -> None:
    with pytest.raises(ValueError):
        TensorSpec.from_json(value)


TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, -1], np.int8)}


def test_a_document_gives_back_its_description_and_tensors() -> None:
    data = tensorfile.encode("head", {"n": 3, "text": "ä"}, TENSORS)
    description, tensors = tensorfile.decode(data, "head", "it")
    assert description == {"n": 3, "text": "ä"}
    assert {name: (a.dtype, a.tolist()) for name, a in tensors.items()} == {
        name: (a.dtype, a.tolist()) for name, a in TENSORS.items()
    }


def test_the_same_document_gives_the_same_bytes() -> None:
    backwards = {"b": TENSORS["b"], "a": np.asfortranarray(TENSORS["a"])}
    assert tensorfile.encode("k", {"a": 1, "b": 2}, TENSORS) == tensorfile.encode("k", {"b": 2, "a": 1}, backwards)


def test_refuses_another_kind_and_one_without_description() -> None:
    with pytest.raises(BundleError, match="kind 'other'"):
        tensorfile.decode(tensorfile.encode("head", {}, TENSORS), "other", "it")
    for metadata in (None, {"other": "x"}, {"edgeloop": "not json"}, {"edgeloop": "[]"}, {"edgeloop": '{"a":NaN}'}):
        with pytest.raises(BundleError, match="not an edgeloop document"):
            tensorfile.decode(safetensors.numpy.save(TENSORS, metadata=metadata), "head", "it")


def test_refuses_values_that_are_not_finite() -> None:
    for value in (np.nan, np.inf):
        data = tensorfile.encode("head", {}, {"a": np.array([value], np.float32)})
        with pytest.raises(BundleError, match="not finite"):
            tensorfile.decode(data, "head", "it")


def test_refuses_a_document_cut_at_any_byte() -> None:
    data = tensorfile.encode("head", {}, TENSORS)
    for size in range(len(data)):
        with pytest.raises(BundleError):
            tensorfile.decode(data[:size], "head", "it")


def test_refuses_a_pickle() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(BundleError):
            tensorfile.decode(pickle.dumps({"a": 1}, protocol), "head", "it")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_gives_a_document_or_a_bundle_error(data: st.DataObject) -> None:
    document = bytearray(tensorfile.encode("head", {"n": 3}, TENSORS))
    position = data.draw(st.integers(0, len(document) - 1))
    document[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        _, tensors = tensorfile.decode(bytes(document), "head", "it")
    except BundleError:
        return
    assert all(np.isfinite(array).all() for array in tensors.values() if array.dtype.kind == "f")
