"""Binary frames: a 48-byte header and one chunk of an artifact.

Big-endian: magic ``EF``, version, flags, transfer (8 bytes), index, offset, length, CRC-32, first 16 bytes of the
payload's SHA-256. Promises that `decode_frame` refuses every frame with a flipped bit, cut or padded. The CRC (of the
header with a zero CRC, then the payload) finds faults of the line before anything is hashed; it is the standard
library's CRC-32, since the SHA-256 is what proves. A frame that decodes is intact, *not* trusted: whether its payload
belongs to the artifact is decided by the chunk digests in `edge.channel.download`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from edge.channel.messages import Part
from edge.contract.digest import is_digest, sha256_bytes
from edge.contract.errors import ChannelError

MAGIC = b"EF"
VERSION = 1
LAST, OFFER, INDEX_PART = 1, 2, 4
MAX_PAYLOAD_BYTES = 1024 * 1024

_HEADER = struct.Struct(">2sBB8sIQII16s")
HEADER_BYTES = _HEADER.size  # 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One chunk under way.

    Attributes:
        xfer: Transfer identifier, see `xfer_of`.
        index: Number of the chunk.
        offset: Its place in the part, in bytes.
        payload: The chunk.
        part: Whether this is a piece of the chunk digests or of the artifact.
        last: The last frame of this window: what follows waits for an answer.
        offer: The payload is an `UploadOffer`, not a chunk.
    """

    xfer: str
    index: int
    offset: int
    payload: bytes
    part: Part = "data"
    last: bool = False
    offer: bool = False
    _sha: bytes = field(default=b"", init=False, compare=False, repr=False)  # never copied to a changed frame

    def digest(self) -> bytes:
        """SHA-256 of the payload, computed once."""
        if not self._sha:
            object.__setattr__(self, "_sha", sha256_bytes(self.payload))
        return self._sha


def xfer_of(digest: str) -> str:
    """Transfer identifier of an artifact: the first 16 digits of its SHA-256.

    Raises:
        ChannelError: It is not a digest.
    """
    if not is_digest(digest):
        raise ChannelError(f"artifact: expected a SHA-256 in hexadecimal, got {digest[:80]!r}; ask by digest")
    return digest[:16]


def encode_frame(frame: Frame) -> bytes:
    """Write a frame.

    Raises:
        ChannelError: A field does not fit the header.
    """
    flags = LAST * frame.last | OFFER * frame.offer | INDEX_PART * (frame.part == "index")
    if len(frame.xfer) != 16:
        raise ChannelError(f"frame: expected a transfer of 16 hexadecimal digits, got {frame.xfer[:80]!r}; use xfer_of")
    if len(frame.payload) > MAX_PAYLOAD_BYTES:
        raise ChannelError(f"frame: expected at most {MAX_PAYLOAD_BYTES} bytes, got {len(frame.payload)}; cut smaller")

    def header(crc: int) -> bytes:
        return _HEADER.pack(
            MAGIC, VERSION, flags, bytes.fromhex(frame.xfer), frame.index, frame.offset, len(frame.payload), crc, sha
        )

    sha = frame.digest()[:16]
    try:
        crc = zlib.crc32(frame.payload, zlib.crc32(header(0)))
        return header(crc) + frame.payload
    except (struct.error, ValueError) as exc:
        raise ChannelError(f"frame: expected fields that fit the header, got {exc}") from exc


def decode_frame(data: bytes) -> Frame:
    """Read a frame.

    Raises:
        ChannelError: It is cut, padded, damaged, or of another version.
    """
    if len(data) < HEADER_BYTES:
        raise ChannelError(f"frame: expected at least {HEADER_BYTES} bytes, got {len(data)}; ask for it again")
    magic, version, flags, xfer, index, offset, length, crc, sha = _HEADER.unpack_from(data)
    payload = data[HEADER_BYTES:]
    if magic != MAGIC or version != VERSION or flags & ~(LAST | OFFER | INDEX_PART):
        raise ChannelError(f"frame: expected EF version {VERSION}, got {data[:4]!r}; update the older side")
    if length != len(payload) or length > MAX_PAYLOAD_BYTES:
        raise ChannelError(f"frame: expected {length} bytes of payload, got {len(payload)}; ask for it again")
    blank = _HEADER.pack(magic, version, flags, xfer, index, offset, length, 0, sha)
    frame = Frame(
        xfer=xfer.hex(),
        index=index,
        offset=offset,
        payload=payload,
        part="index" if flags & INDEX_PART else "data",
        last=bool(flags & LAST),
        offer=bool(flags & OFFER),
    )
    if zlib.crc32(payload, zlib.crc32(blank)) != crc or frame.digest()[:16] != sha:
        raise ChannelError("frame: expected matching checksums, got others; ask for it again")
    return frame
