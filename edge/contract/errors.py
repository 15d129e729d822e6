"""The error tree, branched by *who must act*.

::

    EdgeError
      +-- ConfigError      edit the option or the file
      |     +-- ResourceError  make room: memory, disk
      +-- ConversionError  change the model or the plan
      +-- BundleError      do not trust this artifact
      |     +-- NoBundleError  name a bundle
      +-- ChannelError     look at the broker or the network
      |     +-- TakenError     use what answers there, or choose another port
      |     +-- NoAgentError   start the agent, or name its socket
      +-- LearningError    look at the data that is being learned
      +-- RolloutError     look at the fleet
            +-- HeldError      decide, nothing else can tell
            +-- WaitError      wait longer

A message says what was expected, what came and what to do. Doors translate foreign exceptions into one of these with
``raise ... from exc``; the command line turns them into one line and an exit code.
"""

from __future__ import annotations

import signal
from typing import ClassVar


class EdgeError(Exception):
    """Root of every error that Edgeloop raises on purpose. Raise a branch, not this."""

    exit_code: ClassVar[int] = 1
    help_line: ClassVar[str] = (
        "An error inside Edgeloop: please report it with this message and what EDGE_DEBUG=1 in the environment adds."
    )


class ConfigError(EdgeError):
    """An option, a profile or a configuration file is wrong."""

    exit_code = 3
    help_line = "Correct the option or the file named in the message and run the command again."


class ResourceError(ConfigError):
    """This machine has not enough memory or disk, or a file cannot be written: no other way would succeed."""

    help_line = "Free memory or disk space (TMPDIR names the folder for scratch files) and run the command again."


class ConversionError(EdgeError):
    """The model cannot be converted as asked."""

    exit_code = 4
    help_line = "Change the model or the options; nothing was written."


class BundleError(EdgeError):
    """An artifact is damaged, incomplete or not what it says it is."""

    exit_code = 5
    help_line = "Do not use this file; build it or fetch it again."


class NoBundleError(BundleError):
    """There is no file of that name, or it is another kind of file: nothing is wrong with a bundle."""

    help_line = "Correct the path; `edge-convert MODEL` makes a bundle of a trained model."


class ChannelError(EdgeError):
    """The broker, the network or a message on it is at fault."""

    exit_code = 6
    help_line = "Check the address, that what should answer there runs, and its log."


class TakenError(ChannelError):
    """Something answers where nothing should: a port is taken."""

    help_line = "Use what answers there, or choose another port with --port."


class NoAgentError(ChannelError):
    """No agent answers on this device."""

    help_line = "Start `edge-agent run BUNDLE`, or name the socket with --socket or its folder with --state-dir."


class LearningError(EdgeError):
    """Data given to a learner cannot be learned from; the learner is unchanged."""

    exit_code = 7
    help_line = "What the message names was not taken; look at that."


class RolloutError(EdgeError):
    """A push to the fleet cannot be done as asked."""

    exit_code = 8
    help_line = "Look at the fleet with `edge-fleet devices` and `edge-fleet events`."


class ConflictError(RolloutError):
    """It is another one by now than the one that somebody meant."""

    help_line = "Look at it as it is now, and ask again if it still should be so."


class HeldError(RolloutError):
    """A rollout waits for a person, because nothing can tell whether the release is good."""

    exit_code = 9
    help_line = "Look at it; then resume it with a reason, or revert or abort it."


class WaitError(RolloutError):
    """What was waited for did not happen in time; it may still."""

    exit_code = 10
    help_line = "It goes on without you."


class Stopped(KeyboardInterrupt):
    """A signal ended the work. Like Ctrl-C it passes through everything.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


def harmless(text: str) -> str:
    """A text from elsewhere, with what could command a terminal made visible."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
