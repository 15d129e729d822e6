"""JSON from strangers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract import strictjson

LIMIT = 1 << 20

refused: dict[str, bytes] = {
    "nested 100,000 arrays deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested 100,000 objects deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "opened and never closed": b"[" * 100_000,
    "one level too deep": b'{"a":' + b"[" * 32 + b"]" * 32 + b"}",
    "not a number": b'{"a":NaN}',
    "infinity": b'{"a":Infinity}',
    "minus infinity": b'{"a":-Infinity}',
    "a float that overflows": b'{"a":1e999}',
    "a negative float that overflows": b'{"a":-1e999}',
    "2 to the 63": b'{"a":9223372036854775808}',
    "below minus 2 to the 63": b'{"a":-9223372036854775809}',
    "numbers of these kinds in an array": b'{"a":[1,1e999]}',
    "in an array in an array": b'{"a":[1,[2,9223372036854775808]]}',
    "in an object in an array": b'{"a":[1,{"b":-1e999}]}',
    "an integer of 100,000 digits": b'{"a":' + b"9" * 100_000 + b"}",
    "invalid UTF-8": b'{"a":"\xff"}',
    "an encoded surrogate": b'{"a":"\xed\xa0\x80"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a":1}',
    "a key that stands twice": b'{"a":1,"a":1}',
    "a key that stands twice inside": b'{"a":[{"b":1,"b":2}]}',
    "a key that stands twice by an escape": b'{"a":1,"\\u0061":2}',
    "an array": b"[1]",
    "a number": b"1",
    "null": b"null",
    "nothing": b"",
    "two documents": b"{}{}",
    "a trailing comma": b'{"a":1,}',
    "a comment": b'{"a":1}//',
    "cut short": b'{"a":1',
}


@pytest.mark.parametrize("document", refused.values(), ids=list(refused))
def test_refuses(document: bytes) -> None:
    with pytest.raises(ValueError):
        strictjson.loads(document, max_bytes=LIMIT)


@pytest.mark.parametrize("document", [b"[1e999]", b"[[9223372036854775808]]", b'[{"a":1,"a":1}]', b"{}"])
def test_refuses_as_an_array(document: bytes) -> None:
    with pytest.raises(ValueError):
        strictjson.load_list(document, max_bytes=LIMIT)


def test_refuses_what_is_too_long_before_parsing_it() -> None:
    document = b'{"a":1}'
    assert strictjson.loads(document, max_bytes=len(document)) == {"a": 1}
    with pytest.raises(ValueError, match="at most 6"):
        strictjson.loads(document, max_bytes=len(document) - 1)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 0, -1])
def test_reads_every_integer_of_64_bits(number: int) -> None:
    assert strictjson.loads(b'{"a":%d}' % number, max_bytes=LIMIT) == {"a": number}


def test_reads_32_levels() -> None:
    document = b'{"a":' + b"[" * 31 + b"]" * 31 + b"}"
    assert strictjson.dumps(strictjson.loads(document, max_bytes=LIMIT)) == document


def test_brackets_inside_texts_are_not_levels() -> None:
    value = {"a": '[{"\\' * 100, '"[' * 50: 1}
    assert strictjson.loads(strictjson.dumps(value), max_bytes=LIMIT) == value


def test_writes_the_same_bytes_whatever_the_order_of_keys() -> None:
    assert strictjson.dumps({"b": 1, "a": {"d": 1, "c": 2}}) == strictjson.dumps({"a": {"c": 2, "d": 1}, "b": 1})
    with pytest.raises(ValueError):
        strictjson.dumps({"a": float("nan")})


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=4), values, max_size=4))
def test_reads_what_it_wrote(value: dict[str, Any]) -> None:
    assert strictjson.loads(strictjson.dumps(value), max_bytes=LIMIT) == value


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64) | st.text('[]{}",:0123456789.eE+-truefalsn\\u ', max_size=40).map(str.encode))
def test_strange_bytes_give_an_object_or_a_value_error(data: bytes) -> None:
    try:
        value = strictjson.loads(data, max_bytes=LIMIT)
    except ValueError:
        return
    assert isinstance(value, dict)
    assert json.loads(data) == value
