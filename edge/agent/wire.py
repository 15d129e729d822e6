"""The line protocol between the agent and local applications: one JSON object a line, each way.

An array is either nested lists of numbers, or ``{"shape": [...], "dtype": "float32", "base64": "..."}``, exactly; in
answers it is always the latter. Pure: bytes in, values out.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract import strictjson
from edge.contract.errors import LearningError
from edge.contract.tensorspec import DTYPES

MAX_LINE_BYTES = 64 << 20

# What each request may say beside its op and the model that is meant.
KEYS = {
    "predict": ("id", "x", "inputs", "stream", "reset"),
    "label": ("id", "y", "weight"),
    "add-class": ("name",),
    "status": (),
    "review": ("count",),
    "sample": ("id",),
    "rollback": (),
    "export": (),
    "carry-out": ("checkpoint",),
    "carry-in": ("path",),
}
_ALWAYS = ("op", "model")


def decode_request(line: bytes) -> dict[str, Any]:
    """A request with its sample as an array, or its inputs as arrays by name.

    Raises:
        LearningError: Not such a line, or it says something that is not known.
    """
    try:
        request = strictjson.loads(line, max_bytes=MAX_LINE_BYTES)
    except ValueError as exc:
        raise LearningError(f"expected one JSON object a line: {exc}") from exc
    if not isinstance(request, dict):
        raise LearningError("expected one JSON object a line")
    op = request.get("op")
    known = (*_ALWAYS, *KEYS[op]) if isinstance(op, str) and op in KEYS else request.keys()
    if unknown := [key for key in request if key not in known]:
        raise LearningError(f"{unknown[0]!r:.40} is not known of {op}: expected {', '.join(known)}")
    if "x" in request:
        request["x"] = _array(request["x"], "x")
    if "inputs" in request:
        given = request["inputs"]
        if not isinstance(given, dict):
            raise LearningError('inputs: expected an object, {"NAME": array}')
        request["inputs"] = {name: _array(value, name) for name, value in given.items()}
    return request


def _array(value: Any, what: str) -> npt.NDArray[Any]:
    if isinstance(value, dict):
        return _exact(value, what)
    try:
        array = np.asarray(value)
    except ValueError as exc:
        raise LearningError(f"{what}: the nested lists are not of one shape: {exc}") from exc
    if array.dtype.kind not in "fiub":
        raise LearningError(f"{what}: expected numbers in nested lists")
    return array


def _exact(value: dict[str, Any], what: str) -> npt.NDArray[Any]:
    try:
        shape, dtype, text = value["shape"], value["dtype"], value["base64"]
        if dtype not in DTYPES or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
            raise ValueError("shape must be a list of sizes and dtype a number type")
        data = base64.b64decode(text, validate=True)
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype, copy=False)
    except (KeyError, TypeError, ValueError, binascii.Error) as exc:
        raise LearningError(f"{what}: expected shape, dtype and base64 of little-endian numbers: {exc}") from exc


def decode_answer(line: bytes) -> dict[str, Any]:
    """An answer with its arrays.

    Raises:
        ValueError: Not an answer.
    """
    found = _with_arrays(json.loads(line))
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _with_arrays(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"shape", "dtype", "base64"}:
        return _exact(value, "an array of the answer")
    return {key: _with_arrays(each) for key, each in value.items()}


def encode_sample(x: npt.NDArray[Any]) -> dict[str, Any]:
    """An array for a line, exactly."""
    array = np.asarray(x, order="C")  # ascontiguousarray would give a number an axis
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def _encoded(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} is nothing that a line can hold")
    return encode_sample(value)


def encode_line(value: Mapping[str, Any]) -> bytes:
    """One line; arrays in it are exact."""
    return json.dumps(dict(value), separators=(",", ":"), allow_nan=False, default=_encoded).encode() + b"\n"
