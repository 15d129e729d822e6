"""SHA-256 digests, written as 64 lower-case hexadecimal digits."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated

from edge.contract.documents import Rule

_HEX = re.compile(r"[0-9a-f]{64}")


def sha256(data: bytes) -> str:
    """Digest of a byte string.

    >>> sha256(b"")[:12]
    'e3b0c44298fc'
    """
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_digest(text: object) -> bool:
    """Whether this is a digest as we write it."""
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


Digest = Annotated[str, Rule(is_digest, "a SHA-256 digest in hexadecimal")]
"""A field that holds one."""


def short(digest: str) -> str:
    """The first 12 digits, for people."""
    return digest[:12]
