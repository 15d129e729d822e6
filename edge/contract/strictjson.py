"""JSON as we accept it from strangers: bounded, no duplicate keys, no NaN or infinity, an object at the top.

Python's parser accepts all of these quietly; two readers that resolve a duplicate key differently can be made to see
two different documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 32  # our deepest document has 6 levels


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    _check_numbers(found.values())
    return found


def _check_numbers(values: Iterable[Any]) -> None:
    """Of an object or an array, and of arrays therein; objects were checked when they were read.

    Python reads numbers four times as fast as a function that is called for each of them would.
    """
    for value in values:
        kind = type(value)
        if kind is float:
            if not math.isfinite(value):
                raise ValueError("a number is too large: beyond 1.8e308")
        elif kind is int:
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"the integer {str(value)[:20]} does not fit 64 bits")
        elif kind is list:
            _check_numbers(value)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


# One for all: to make one takes as long as to read a short message.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=_refuse_constant,
)


def _depth(text: str) -> int:
    """Nesting depth, counted without recursion; brackets inside strings do not count."""
    deepest = depth = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def loads(data: bytes, *, max_bytes: int) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        data: UTF-8 text.
        max_bytes: Refuse anything longer before parsing it.

    Raises:
        ValueError: Too long, not UTF-8, not JSON, nested deeper than 32 levels, a duplicate key, a non-finite number,
            an integer beyond 64 bits, or not an object. Callers translate it into the error of their room.
    """
    value = _parse(data, max_bytes)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def load_list(data: bytes, *, max_bytes: int) -> list[Any]:
    """Parse one JSON array, as strictly.

    Raises:
        ValueError: As `loads`, or it is no array.
    """
    value = _parse(data, max_bytes)
    if not isinstance(value, list):
        raise ValueError(f"expected a JSON array, got {type(value).__name__}")
    _check_numbers(value)
    return value


def _parse(data: bytes, max_bytes: int) -> Any:
    if len(data) > max_bytes:
        raise ValueError(f"{len(data)} bytes, at most {max_bytes} are accepted")
    text = data.decode("utf-8")  # UnicodeDecodeError is a ValueError
    # Only a document with that many brackets can be that deep: the exact count is rarely needed.
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return _DECODER.decode(text)


def dumps(value: dict[str, Any]) -> bytes:
    """Write an object canonically: sorted keys, no spaces, UTF-8, no NaN. The same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
