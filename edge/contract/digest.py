"""SHA-256 digests, written as 64 lower-case hexadecimal digits, and files that are whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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


def short(digest: str) -> str:
    """The first 12 digits, for people."""
    return digest[:12]


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file so that a reader, or a power cut, sees the old one or the new one, never a part.

    Writes to a temporary name in the same folder, fsyncs, renames and fsyncs the folder. Whatever interrupts it leaves
    the old file as it was and no temporary file behind (a power cut may leave the temporary file, which the next write
    replaces).

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
