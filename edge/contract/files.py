"""Files that are whole or absent, and folders that belong to one process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edge.contract.errors import ConfigError

_LONGEST = 240  # bytes of a name: file systems take 255


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file so that a reader, or a power cut, sees the old one or the new one, never a part.

    Writes to a temporary name in the same folder, fsyncs, renames and fsyncs the folder. Whatever interrupts it leaves
    the old file as it was and no temporary file behind (a power cut may leave the temporary file, which the next write
    replaces). Of two processes that write the same file at once, the later one waits and then replaces it. A symbolic
    link stays one: the file behind it is replaced, in its own folder. What is no plain file (a FIFO, a device, this
    process's own output) is written through once all data are there. A write-protected file stays as it is.

    Raises:
        OSError: The disk is full, the folder or the file cannot be written.
    """
    target, status = _place(path)
    if status is not None and not stat.S_ISREG(status.st_mode):
        data = io.BytesIO()
        yield data
        with _through(path, status) as stream:
            stream.write(data.getbuffer())
        return
    temporary = _temporary(target)
    with _alone(temporary) as file:
        if status is not None:
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
        yield file
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(target)
    sync_folder(target.parent)


@contextlib.contextmanager
def _alone(temporary: Path) -> Iterator[BinaryIO]:
    """An empty file that no other process writes at the same time; it is gone when what is inside fails."""
    while True:
        file = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who had it before has renamed or removed it: then this is another's file by now.
            if not _is_at(temporary, os.fstat(file.fileno())):
                file.close()
                continue
            try:
                file.truncate()
                yield file
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        finally:
            file.close()
        return


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False


def is_special(path: Path) -> bool:
    """Whether writing to it goes through it: a FIFO, a device, this process's own output."""
    try:
        _, status = _place(path)
    except OSError:
        return False
    return status is not None and not stat.S_ISREG(status.st_mode)


def _place(path: Path) -> tuple[Path, os.stat_result | None]:
    """Where a path leads, and what is there; of this process's own output, whatever it is, never as a plain file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    if not path.name or (status is not None and stat.S_ISDIR(status.st_mode)):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if status is not None and _descriptor(status) is not None:
        return path, os.stat_result((stat.S_IFIFO | 0o600, *status[1:]))
    if status is not None and not stat.S_ISREG(status.st_mode):
        return path, status
    if status is not None and not (status.st_mode & 0o222 and os.access(path, os.W_OK)):
        raise PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)}, it is write-protected", str(path))
    return Path(os.path.realpath(path)) if path.is_symlink() else path, status


def _descriptor(status: os.stat_result) -> int | None:
    """The descriptor of this process's standard output or error that writes to this very file."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            own = os.fstat(number)
            if (own.st_dev, own.st_ino) == (status.st_dev, status.st_ino) and not stat.S_ISCHR(own.st_mode):
                return number
    return None


def _through(path: Path, status: os.stat_result) -> BinaryIO:
    number = _descriptor(status)
    return path.open("wb") if number is None else os.fdopen(os.dup(number), "wb")


def _temporary(target: Path) -> Path:
    name = target.name if len(os.fsencode(target.name)) < _LONGEST else target.name[: _LONGEST // 4]
    return target.with_name(f".{name}.tmp")


def check_writable(path: Path) -> None:
    """Raise ConfigError, before long work, unless a file of this name can be written. Nothing is changed by asking."""
    try:
        target, status = _place(path)
        if status is not None and not stat.S_ISREG(status.st_mode):
            if _descriptor(status) is None and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        import tempfile  # with it comes random: devices write and never ask

        with tempfile.TemporaryFile(dir=target.parent):
            pass
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
