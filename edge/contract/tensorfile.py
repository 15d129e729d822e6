"""Tensors with a description, as one safetensors document: learned heads, what devices send, and saved state.

The description is one JSON object in the document's metadata. Data only: reading never executes or unpickles anything.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from edge.contract import strictjson
from edge.contract.bundle import Tensors, read_tensors
from edge.contract.errors import BundleError

_KEY = "edgeloop"
_MAX_HEADER_BYTES = 4 << 20


def encode(kind: str, description: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Write a document.

    Args:
        kind: What it is, e.g. ``head``; `decode` asks for the same.
        description: JSON-able.
        tensors: By name; stored as they are, so float32 stays float32.
    """
    document = strictjson.dumps({"kind": kind, **description}).decode()
    arrays = {name: np.asarray(array, order="C") for name, array in sorted(tensors.items())}
    return bytes(safetensors.numpy.save(arrays, metadata={_KEY: document}))


def decode(data: bytes, kind: str, what: str) -> tuple[dict[str, Any], Tensors]:
    """Read a document of a given kind; all its floats are finite.

    Raises:
        BundleError: Damaged, or of another kind.
    """
    tensors = read_tensors(data, what)
    try:
        (size,) = struct.unpack_from("<Q", data)
        header = strictjson.loads(data[8 : 8 + size], max_bytes=_MAX_HEADER_BYTES)
        metadata = header.get("__metadata__")
        if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
            raise ValueError("it does not say what it is")
        description = strictjson.loads(metadata[_KEY].encode(), max_bytes=_MAX_HEADER_BYTES)
    except (struct.error, ValueError) as exc:
        raise BundleError(f"{what} is not an edgeloop document: {exc}") from exc
    if description.pop("kind", None) != kind:
        raise BundleError(f"{what} is not a document of the kind {kind!r}")
    return description, tensors
