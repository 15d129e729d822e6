"""One line out of an exception that is not ours, for the message of one that is."""

from __future__ import annotations

_MAX_CHARACTERS = 300


def reason(error: BaseException) -> str:
    """What a foreign exception says, on one line of at most 300 characters.

    TorchScript's interpreter prints where it was before it says what went wrong: there the last line counts, elsewhere
    the first.

    >>> reason(ValueError("no such axis" + chr(10) + "  at line 3"))
    'no such axis'
    >>> reason(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    in_interpreter = "TorchScript interpreter" in lines[0]
    return lines[-1 if in_interpreter else 0][:_MAX_CHARACTERS]
