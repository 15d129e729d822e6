"""The line protocol between the agent and local applications: one JSON object a line, each way.

A sample ``x`` is either nested lists of numbers, or ``{"shape": [...], "dtype": "float32", "base64": "..."}``. Pure:
bytes in, values out.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract import strictjson
from edge.contract.errors import LearningError
from edge.contract.tensorspec import DTYPES

MAX_LINE_BYTES = 64 << 20


def decode_request(line: bytes) -> dict[str, Any]:
    """A request with its sample as an array.

    Raises:
        LearningError: Not such a line.
    """
    try:
        request = strictjson.loads(line, max_bytes=MAX_LINE_BYTES)
    except ValueError as exc:
        raise LearningError(f"expected one JSON object a line: {exc}") from exc
    if "x" in request:
        request["x"] = _array(request["x"])
    return request


def _array(value: Any) -> npt.NDArray[Any]:
    if isinstance(value, dict):
        try:
            shape, dtype, text = value["shape"], value["dtype"], value["base64"]
            if dtype not in DTYPES or not all(type(size) is int and 0 < size < 2**31 for size in shape):
                raise ValueError("shape must be a list of positive integers and dtype a number type")
            data = base64.b64decode(text, validate=True)
            return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)
        except (KeyError, TypeError, ValueError, binascii.Error) as exc:
            raise LearningError(f"x: expected shape, dtype and base64 of little-endian numbers: {exc}") from exc
    try:
        array = np.asarray(value)
    except ValueError as exc:
        raise LearningError(f"x: the nested lists are not of one shape: {exc}") from exc
    if array.dtype.kind not in "fiub":
        raise LearningError("x: expected numbers in nested lists")
    return array


def encode_sample(x: npt.NDArray[Any]) -> dict[str, Any]:
    """A sample for a request, exactly."""
    array = np.asarray(x, order="C")  # ascontiguousarray would give a number an axis
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def encode_line(value: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
