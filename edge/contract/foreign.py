"""The boundary to code that is not ours: the user's own, and libraries that raise what they like.

Nothing but one of our errors leaves a ``with foreign(...)`` block, so that nobody above has to guess. What passes as it
is: our own errors, which say more, Ctrl-C and signals, the end of a generator. What the machine lacks (memory,
room on a disk) is told from what the model or the file lacks: nobody can do anything about it by trying another way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator

from edge.contract.errors import EdgeError, ResourceError

_MAX_CHARACTERS = 300
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)
# How libraries in C++ say it (torch, onnxruntime, protobuf), which know neither MemoryError nor OSError.
_MEMORY_TEXT = re.compile(
    r"(?:can't|cannot|failed to|unable to) allocate|bad_?alloc|out of memory|not enough memory", re.IGNORECASE
)
_ROOM_TEXT = re.compile(r"no space left on device|file too large|disk quota exceeded|read-only file system", re.I)

# Where they could not write a file and know no cause.
_UNWRITTEN_TEXT = re.compile(r"protobuf serialization failed|streamwriter failed writing|file write failed", re.I)


def reason(error: BaseException) -> str:
    """What a foreign exception says, on one line of at most 300 characters.

    TorchScript's interpreter prints where it was before it says what went wrong: there the last line counts, elsewhere
    the first. Where the text alone says nothing, the kind of the exception stands in front.

    >>> reason(ValueError("no such axis" + chr(10) + "  at line 3"))
    'no such axis'
    >>> reason(KeyError("size"))
    "KeyError: 'size'"
    >>> reason(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    lines = [line.strip() for line in _text(error).splitlines() if line.strip()]
    kind = type(error)
    if not lines:
        return kind.__name__
    in_interpreter = "TorchScript interpreter" in lines[0]
    said = lines[-1 if in_interpreter else 0][:_MAX_CHARACTERS]
    speaks = kind.__module__ != "builtins" or kind in (ValueError, RuntimeError) or issubclass(kind, OSError)
    return said if speaks else f"{kind.__name__}: {said}"


def shortage(error: BaseException, what: str) -> ResourceError | None:
    """What this machine lacks, where that is the cause of an exception; None where it is not.

    Args:
        error: As it was raised; what it was raised from counts, too.
        what: What was being done, for the message.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = _text(cause)
        if isinstance(cause, MemoryError) or _MEMORY_TEXT.search(text) or getattr(cause, "errno", 0) == errno.ENOMEM:
            return ResourceError(f"{what}: there is not enough memory on this machine")
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            where = f" ({cause.filename})" if isinstance(cause.filename, str) else ""
            return ResourceError(f"{what}: {cause.strerror}{where}")
        if found := _ROOM_TEXT.search(text):
            return ResourceError(f"{what}: {found[0]}")
        if _UNWRITTEN_TEXT.search(text):
            return ResourceError(
                f"{what}: a scratch file could not be written: the disk is full, or files must not become so large "
                f"(`ulimit -f`)"
            )
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def foreign(
    what: str | Callable[[], str], kind: type[EdgeError], advice: str = "", *, cause: bool = False
) -> Iterator[None]:
    """Run foreign code: whatever it raises, ``SystemExit`` included, becomes an `EdgeError`.

    The working directory is afterwards what it was before.

    Args:
        what: Begins the message: ``{what}: {reason}{advice}``. A function where making the text costs something.
        kind: Of the error: who must act when it fails.
        advice: Ends the message, with its own punctuation.
        cause: Say what the exception was raised from, where it wraps one that says more.

    Raises:
        ResourceError: The machine has not enough memory or disk for it.
        EdgeError: Of the given kind.
    """
    folder = _working_folder()
    try:
        yield
    except (EdgeError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as exc:
        said = what if isinstance(what, str) else what()
        raise shortage(exc, said) or kind(
            f"{said}: {reason((exc.__cause__ if cause else None) or exc)}{advice}"
        ) from exc
    finally:
        if folder is not None and _working_folder() != folder:
            with contextlib.suppress(OSError):
                os.chdir(folder)


def _text(error: BaseException) -> str:
    """An exception's text; the user's own exceptions may fail even at that."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # its __str__ is foreign code, too
        return ""


def _working_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # a text to go back to, asked for at every call
    except OSError:  # it was removed
        return None
