"""Shorter forms of an artifact: what is sent in its place, and how the artifact is made of it again.

A form is bytes like any others: it has a digest of its own and travels as every artifact does. Three ways to make one:

* ``zstd``: compressed.
* ``zstd-patch``: compressed, with an artifact that the device has before it (a raw dictionary, as ``zstd --patch-from``
  does). Whatever stands in both, wherever, is not sent again: an unchanged backbone, most of a manifest.
* ``zstd-xor``: the difference of two files of one size, bit by bit, all first bytes of four before all second ones, and
  so on, compressed. Parameters that were trained on differ in their last bits only, which no patch finds.

Promises that `restore` uses no more memory than the sizes that it is given ask for. It does not promise that what comes
out is the artifact: that is what the artifact's own digest is for. The only file that opens zstd.
"""

from __future__ import annotations

import sys
from typing import Literal, get_args

import numpy as np

from edge.channel.spared import spared
from edge.contract.errors import ChannelError

if sys.version_info >= (3, 14):
    with spared("compression.zstd"):
        from compression import zstd
else:
    with spared("backports.zstd"):
        from backports import zstd

Codec = Literal["zstd", "zstd-patch", "zstd-xor"]
CODECS: frozenset[str] = frozenset(get_args(Codec))
# Both ends hold the artifact and what it is made of in memory.
MAX_BYTES = 64 * 1024 * 1024
# A form that saves less is not worth that it can fail.
WORTH = 0.95
_LEVEL = 6
_LANES = 4  # bytes of a float32
_LEAST_BYTES = 8  # of a dictionary, by zstd


def shorten(target: bytes, base: bytes | None = None) -> tuple[Codec, bytes] | None:
    """The shortest form of an artifact.

    Args:
        target: The artifact.
        base: Another one that the other end has; None for a form that needs nothing.

    Returns:
        How it was made and what it is; None where nothing is shorter than `WORTH` of the artifact, or one of the two is
        too large for it.
    """
    if len(target) > MAX_BYTES or not _is_usable(base):
        return None
    made: list[tuple[Codec, bytes]] = []
    if base is None:
        made.append(("zstd", _compress(target)))
    else:
        made.append(("zstd-patch", _compress(target, base)))
        if len(base) == len(target):
            made.append(("zstd-xor", _compress(_lanes(_xor(target, base)))))
    codec, form = min(made, key=lambda each: len(each[1]))
    return (codec, form) if len(form) <= WORTH * len(target) else None


def restore(codec: str, form: bytes, size_bytes: int, base: bytes | None = None) -> bytes:
    """The artifact of which a form was made.

    Args:
        codec: How it was made.
        form: What came.
        size_bytes: Of the artifact.
        base: What it was made against, where it was made against something.

    Raises:
        ChannelError: No such way, damaged, or of another size.
    """
    if (base is None) != (codec == "zstd") or size_bytes > MAX_BYTES or not _is_usable(base):
        raise ChannelError(f"form {codec[:20]!r}: expected a known one of at most {MAX_BYTES} bytes; fetch it whole")
    if codec == "zstd":
        return _decompress(form, size_bytes)
    assert base is not None
    if codec == "zstd-patch":
        return _decompress(form, size_bytes, base)
    if codec != "zstd-xor" or len(base) != size_bytes:
        raise ChannelError(f"form {codec[:20]!r}: expected a known one with its base; fetch it whole")
    return _xor(_of_lanes(_decompress(form, size_bytes)), base)


def _is_usable(base: bytes | None) -> bool:
    return base is None or _LEAST_BYTES <= len(base) <= MAX_BYTES


def _window_log(size: int) -> int:
    """Power of two that a window has to have to reach over so many bytes; 10 is the least that zstd knows."""
    return max(10, size.bit_length())


def _compress(data: bytes, base: bytes | None = None) -> bytes:
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: _LEVEL,
        zstd.CompressionParameter.window_log: _window_log(len(data) + len(base or b"")),
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    before = None if base is None else zstd.ZstdDict(base, is_raw=True).as_prefix
    return zstd.compress(data, options=options, zstd_dict=before)


def _decompress(data: bytes, size_bytes: int, base: bytes | None = None) -> bytes:
    before = None if base is None else zstd.ZstdDict(base, is_raw=True).as_prefix
    limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _window_log(size_bytes + len(base or b""))}
    reader = zstd.ZstdDecompressor(zstd_dict=before, options=limit)
    try:
        found = reader.decompress(data, max_length=size_bytes + 1)
    except (zstd.ZstdError, MemoryError) as exc:
        raise ChannelError(f"form: expected a whole zstd frame, got {exc}; fetch it whole") from exc
    if not reader.eof or reader.unused_data or len(found) != size_bytes:
        raise ChannelError(f"form: expected {size_bytes} bytes of it, got {len(found)} or more; fetch it whole")
    return found


def _xor(a: bytes, b: bytes) -> bytes:
    return (np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).tobytes()


def _lanes(data: bytes) -> bytes:
    """All first bytes of four, all second, third, fourth ones; then what is left over."""
    whole = len(data) - len(data) % _LANES
    return np.frombuffer(data[:whole], np.uint8).reshape(-1, _LANES).T.tobytes() + data[whole:]


def _of_lanes(data: bytes) -> bytes:
    whole = len(data) - len(data) % _LANES
    return np.frombuffer(data[:whole], np.uint8).reshape(_LANES, -1).T.tobytes() + data[whole:]
