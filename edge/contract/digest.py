"""SHA-256 digests, written as 64 lower-case hexadecimal digits.

OpenSSL takes digests four times as fast as the interpreter's own code, and 3.5 MiB resident. So it is not loaded for
what is smaller than `_LARGE_BYTES`, which takes 11 ms without it; where it is loaded, it takes all.
"""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol

from edge.contract.documents import Rule

_HEX = re.compile(r"[0-9a-f]{64}")
_LARGE_BYTES = 4 << 20
_PIECE = 1 << 20


class Sha256(Protocol):
    """As those of `hashlib`."""

    def update(self, data: Any, /) -> None:
        """Take further bytes in."""
        ...

    def digest(self) -> bytes:
        """Of all bytes so far."""
        ...

    def hexdigest(self) -> str:
        """The same in hexadecimal."""
        ...


def new_sha256(size_bytes: int) -> Sha256:
    """A digest of no bytes yet; about so many will come."""
    made: Sha256 = _module(size_bytes > _LARGE_BYTES or "_hashlib" in sys.modules).sha256()
    return made


@cache
def _module(is_fast: bool) -> Any:
    for name in () if is_fast else ("_sha2", "_sha256"):  # since Python 3.12, and before: as `random` has its own
        with suppress(ImportError):
            return importlib.import_module(name)
    return importlib.import_module("hashlib")


def sha256_bytes(data: bytes | memoryview) -> bytes:
    """Digest of a byte string, 32 bytes."""
    found = new_sha256(len(data))
    found.update(data)
    return found.digest()


def sha256(data: bytes) -> str:
    """Digest of a byte string.

    >>> sha256(b"")[:12]
    'e3b0c44298fc'
    """
    return sha256_bytes(data).hex()


def sha256_file(path: Path) -> str:
    """Digest of a file, read in pieces."""
    with path.open("rb") as file:
        found = new_sha256(path.stat().st_size)
        while piece := file.read(_PIECE):
            found.update(piece)
        return found.hexdigest()


def is_digest(text: object) -> bool:
    """Whether this is a digest as we write it."""
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


Digest = Annotated[str, Rule(is_digest, "a SHA-256 digest in hexadecimal")]
"""A field that holds one."""


def short(digest: str) -> str:
    """The first 12 digits, for people."""
    return digest[:12]
