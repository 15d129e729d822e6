"""Files that are whole or absent, and folders that belong to one process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edge.contract.errors import ConfigError


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file so that a reader, or a power cut, sees the old one or the new one, never a part.

    Writes to a temporary name in the same folder, fsyncs, renames and fsyncs the folder. Whatever interrupts it leaves
    the old file as it was and no temporary file behind (a power cut may leave the temporary file, which the next write
    replaces).

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    if not path.name or path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
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


def check_writable(path: Path) -> None:
    """Raise ConfigError, before long work, unless a file of this name can be written."""
    try:
        with replace_file(path.with_name(f"{path.name}.try")):
            pass
        path.with_name(f"{path.name}.try").unlink()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"{path} cannot be written: {why}") from exc


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int:
    """Take a folder for this process alone; the lock goes when the returned descriptor is closed or the process ends.

    Raises:
        ConfigError: It cannot be written, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise ConfigError(f"the folder {folder} cannot be written: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise ConfigError(f"the folder {folder} is in use by another process; give each its own") from exc
    return descriptor
