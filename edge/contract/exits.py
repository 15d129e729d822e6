"""The last boundary of a command: whatever ends it becomes a message and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from edge.contract.errors import ConfigError, EdgeError, Stopped, harmless
from edge.contract.foreign import reason, shortage


def run_to_exit(command: Callable[[], object]) -> None:
    """Run a command; turn whatever ends it into a message, a help line and an exit code, without a traceback.

    What the terminal has no characters for is written as question marks, and nothing in a message commands it. An
    exception that nobody foresaw is one line, too; with ``EDGE_DEBUG=1`` in the environment its traceback is shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        command()
    except BrokenPipeError as error:
        if error.filename is None:  # the reader of our output went away, e.g. `| head`
            sys.stderr.close()
            sys.exit(141)
        _end(error)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else int(signal.SIGINT)
        _say(f"stopped by {signal.Signals(number).name}")
        sys.exit(128 + number)
    except Exception as error:  # noqa: BLE001  # the last boundary: behind it there is only a traceback
        _end(error)


def _end(error: Exception) -> None:
    if os.environ.get("EDGE_DEBUG"):
        traceback.print_exception(error)
    known = error if isinstance(error, EdgeError) else _foreseen(error)
    _say(f"error: {known}\n{known.help_line}")
    sys.exit(known.exit_code)


def _foreseen(error: Exception) -> EdgeError:
    notes = "; ".join(getattr(error, "__notes__", ()))
    what = notes or "the command"
    if found := shortage(error, what):
        return found
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f": {error.filename}"
        return ConfigError(f"{what}: {error.strerror}{where}")
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f", at {Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    return EdgeError(f"{what}: {type(error).__name__} was not foreseen{place}: {reason(error)}")


def _say(text: str) -> None:
    """On standard error."""
    print(harmless(text), file=sys.stderr)  # noqa: T201  # the roof calls this to speak
