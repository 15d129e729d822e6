"""Samples as pictures that a person can look at: which arrays look like one, and PNG files of them."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


def picture_of(array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """``(height, width)`` or ``(height, width, 3)`` uint8 of what looks like a picture; None of what does not."""
    shape: tuple[int, ...] = array.shape[1:] if array.ndim == 4 and array.shape[0] == 1 else array.shape
    found: npt.NDArray[Any] = array.reshape(shape)
    if found.ndim == 3 and found.shape[0] in (1, 3):
        found = np.moveaxis(found, 0, 2)
    if found.ndim == 2 and min(found.shape) > 3:
        found = found[..., None]
    if found.ndim != 3 or found.shape[2] not in (1, 3) or not found.size:
        return None
    wide = found.astype(np.float64)
    low, high = 0.0, 255.0 if array.dtype == np.uint8 else 1.0
    if wide.min() < low or wide.max() > high:
        low, high = float(wide.min()), float(wide.max())
    pixels = np.rint((wide - low) / (high - low or 1.0) * 255).astype(np.uint8)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def png(pixels: npt.NDArray[Any]) -> bytes:
    """A PNG file of ``(height, width)`` or ``(height, width, 3)`` uint8; no library is needed for it."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + pixels[y].tobytes() for y in range(height))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
