"""Lines between the agent and applications."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge.agent.wire import KEYS, decode_answer, decode_request, encode_line, encode_sample
from edge.contract.errors import LearningError
from edge.contract.tensorspec import DTYPES


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, max_side=3))
    ),
    st.booleans(),
)
def test_a_sample_comes_back_exactly(array: np.ndarray, big_endian: bool) -> None:
    given_array = array.astype(array.dtype.newbyteorder(">")) if big_endian else array
    found = decode_request(encode_line({"op": "predict", "x": encode_sample(given_array)}))["x"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def test_an_array_in_any_memory_order_comes_back() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for view in (array.T, array[::-1], array[:, 1], np.asfortranarray(array)):
        found = decode_request(encode_line({"x": encode_sample(view)}))["x"]
        assert (found == view).all()


def test_nested_lists_are_arrays() -> None:
    request = decode_request(b'{"op":"predict","id":"a","x":[[1,2],[3,4.5]]}\n')
    assert request["x"].tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert (request["op"], request["id"]) == ("predict", "a")
    assert decode_request(b'{"op":"status"}') == {"op": "status"}


def test_inputs_come_by_name_and_keys_that_are_not_known_are_refused() -> None:
    found = decode_request(b'{"op":"predict","id":"a","inputs":{"a":[[1,2]],"b":5},"stream":"m","reset":true}')
    assert {name: array.shape for name, array in found["inputs"].items()} == {"a": (1, 2), "b": ()}
    assert (found["stream"], found["reset"]) == ("m", True)
    assert decode_request(b'{"op":"sleep","whatever":1}')["op"] == "sleep", "who does not know the op says so"
    for op, known in KEYS.items():
        for key in ("op", "model", *known):
            value: Any = {"op": op, "inputs": {}}.get(key, [1])
            assert decode_request(json.dumps({"op": op, key: value}).encode())["op"] == op
        with pytest.raises(LearningError) as refused:
            decode_request(json.dumps({"op": op, "Id": "a"}).encode())
        assert str(refused.value) == f"'Id' is not known of {op}: expected {', '.join(('op', 'model', *known))}"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3))
    )
)
def test_an_array_of_an_answer_comes_back_exactly(array: np.ndarray) -> None:
    answer = {"step": 3, "outputs": {"y": {"kind": "anything", "array": array}}}
    found = decode_answer(encode_line(answer))
    there = found["outputs"]["y"]["array"]
    assert (found["step"], there.dtype, there.shape, there.tobytes()) == (3, array.dtype, array.shape, array.tobytes())


def test_what_is_no_answer_is_an_error() -> None:
    for line in (b"[1]", b"5", b"{", b'{"y":{"shape":[2],"dtype":"float32","base64":"?"}}'):
        with pytest.raises((ValueError, LearningError)):
            decode_answer(line)
    for wrong in ({"y": np.float32(1)}, {"y": {1, 2}}, {"y": object()}):
        with pytest.raises(TypeError):
            encode_line(wrong)


def packed(**changes: Any) -> bytes:
    sample = {"shape": [2], "dtype": "float32", "base64": base64.b64encode(bytes(8)).decode()} | changes
    return json.dumps({"x": {key: value for key, value in sample.items() if value != "gone"}}).encode()


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "an empty line": b"\n",
    "not JSON": b"predict\n",
    "a list": b"[1]",
    "cut short": b'{"op":"predict"',
    "not UTF-8": b'{"op":"\xff"}',
    "not a number": b'{"x":[NaN]}',
    "an infinity": b'{"x":[1e999]}',
    "an integer beyond 64 bits": b'{"x":[99999999999999999999]}',
    "nested deeply": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "two documents": b"{}{}",
    "a sample of text": b'{"x":"1"}',
    "a sample of texts": b'{"x":["1"]}',
    "a sample of nothing": b'{"x":null}',
    "a sample of objects": b'{"x":[{}]}',
    "a ragged sample": b'{"x":[[1,2],[3]]}',
    "a sample of lists and numbers": b'{"x":[1,[2]]}',
    "an empty object": b'{"x":{}}',
    "no shape": packed(shape="gone"),
    "no dtype": packed(dtype="gone"),
    "no data": packed(base64="gone"),
    "another size": packed(shape=[3]),
    "a negative size": packed(shape=[-1]),
    "a size of half": packed(shape=[2.0]),
    "a size of true": packed(shape=[True, 2]),
    "a huge size": packed(shape=[2**31]),
    "sizes whose product overflows": packed(shape=[2**30, 2**30, 2**30, 2**30]),
    "a shape that is a number": packed(shape=2),
    "70 axes": packed(shape=[1] * 70 + [2]),
    "objects": packed(dtype="object"),
    "a dtype that is a list": packed(dtype=["float32"]),
    "another dtype": packed(dtype="complex64"),
    "not base64": packed(base64="?"),
    "base64 that is a number": packed(base64=5),
    "base64 that is not ASCII": packed(base64="ä"),
    "inputs that are a list": b'{"op":"predict","inputs":[1]}',
    "an input of text": b'{"op":"predict","inputs":{"a":"b"}}',
    "a ragged input": b'{"op":"predict","inputs":{"a":[[1],[1,2]]}}',
    "base64 cut short": packed(base64="AAAAAAAAAA"),
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=list(MALFORMED))
def test_refuses_a_malformed_line(line: bytes) -> None:
    with pytest.raises(LearningError):
        decode_request(line)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,x0123456789.e- ', max_size=40).map(str.encode))
def test_strange_bytes_give_a_request_or_a_learning_error(line: bytes) -> None:
    try:
        request = decode_request(line)
    except LearningError:
        return
    assert isinstance(request, dict)


def test_an_answer_is_one_line() -> None:
    line = encode_line({"text": "a\nb\u2028", "logits": [0.1]})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == {"text": "a\nb\u2028", "logits": [0.1]}
    with pytest.raises(ValueError):
        encode_line({"logits": [float("nan")]})
