"""The error tree, branched by *who must act*.

::

    EdgeError
      +-- ConfigError      edit the option or the file
      +-- ConversionError  change the model or the plan
      +-- BundleError      do not trust this artifact
      +-- ChannelError     look at the broker or the network
      +-- LearningError    look at the data that is being learned
      +-- RolloutError     look at the fleet

A message says what was expected, what came and what to do. Doors translate foreign exceptions into one of these with
``raise ... from exc``; the command line turns them into one line and an exit code.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import ClassVar


class EdgeError(Exception):
    """Root of every error that Edgeloop raises on purpose. Raise a branch, not this."""

    exit_code: ClassVar[int] = 1
    help_line: ClassVar[str] = "An error inside Edgeloop; please report it with the whole message."


class ConfigError(EdgeError):
    """An option, a profile or a configuration file is wrong."""

    exit_code = 3
    help_line = "Correct the option or the file named in the message and run the command again."


class ConversionError(EdgeError):
    """The model cannot be converted as asked."""

    exit_code = 4
    help_line = "Change the model or the options; nothing was written."


class BundleError(EdgeError):
    """An artifact is damaged, incomplete or not what it says it is."""

    exit_code = 5
    help_line = "Do not use this file; build it or fetch it again."


class ChannelError(EdgeError):
    """The broker, the network or a message on it is at fault."""

    exit_code = 6
    help_line = "Check the broker's address, that it runs, and its log."


class LearningError(EdgeError):
    """Data given to a learner cannot be learned from; the learner is unchanged."""

    exit_code = 7
    help_line = "Look at the samples and labels; the model is unchanged."


class RolloutError(EdgeError):
    """A push to the fleet cannot be done as asked."""

    exit_code = 8
    help_line = "Look at the fleet with `edge-fleet devices` and `edge-fleet events`."


def run_to_exit(command: Callable[[], object]) -> None:
    """Run a command; turn an `EdgeError` into its message, its help line and its exit code, without a traceback.

    What the terminal has no characters for is written as question marks.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        command()
    except EdgeError as error:
        print(f"error: {error}\n{error.help_line}", file=sys.stderr)  # noqa: T201  # the roof calls this to speak
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        sys.stderr.close()
        sys.exit(141)
