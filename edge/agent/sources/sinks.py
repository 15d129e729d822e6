"""Where answers go: a function, lines of JSON, or topics of a broker. Each takes one answer as a mapping."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from edge.agent.wire import encode_line
from edge.channel.transport import Transport
from edge.contract.errors import ChannelError, ConfigError

_MAX_LINES_BYTES = 16 << 20  # then the file is put aside, in place of the one before
_PLACES = ("device", "model", "source", "stream", "id")


class Sink(Protocol):
    """Where answers go."""

    def give(self, answer: Mapping[str, Any]) -> None:
        """One answer.

        Raises:
            EdgeError: It was not taken.
        """

    def close(self) -> None:
        """There are no more."""


class Callback:
    """Calls a function of the application with each answer, on the thread of its source.

    Args:
        function: It; what it raises is told, and stops nothing.
    """

    def __init__(self, function: Callable[[Mapping[str, Any]], object]) -> None:
        self._function = function

    def give(self, answer: Mapping[str, Any]) -> None:
        """See `Sink`."""
        try:
            self._function(answer)
        except Exception as exc:
            raise ConfigError(f"the callback failed: {type(exc).__name__}: {exc}") from exc

    def close(self) -> None:
        """See `Sink`."""


class Lines:
    """One JSON object a line, appended to a file of at most 16 MiB and the one before it.

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._opened()

    def _opened(self) -> BinaryIO:
        try:
            return self._path.open("ab", buffering=0)
        except OSError as exc:
            raise ConfigError(f"--answers {self._path} cannot be written: {exc.strerror}") from exc

    def give(self, answer: Mapping[str, Any]) -> None:
        """See `Sink`."""
        try:
            if os.fstat(self._file.fileno()).st_size > _MAX_LINES_BYTES:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._opened()
            self._file.write(encode_line(answer))
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{self._path} cannot be written: {exc}") from exc

    def close(self) -> None:
        """See `Sink`."""
        self._file.close()


class Stream:
    """One JSON object a line to a stream that is open already, such as standard output.

    Args:
        file: It.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def give(self, answer: Mapping[str, Any]) -> None:
        """See `Sink`."""
        try:
            self._file.write(encode_line(answer))
            self._file.flush()
        except (OSError, ValueError) as exc:
            raise ConfigError(f"an answer could not be written: {exc}") from exc

    def close(self) -> None:
        """See `Sink`."""


class Topics:
    """Each answer as a message, QoS 0 where there is no connection it is lost.

    Args:
        transport: To the broker; started here.
        topic: May have ``{device}``, ``{model}``, ``{source}``, ``{stream}`` and ``{id}`` in it.
        retain: Whether the broker keeps the last one of each topic.
    """

    def __init__(self, transport: Transport, topic: str, *, retain: bool = False) -> None:
        self._transport, self._topic, self._retain = transport, topic, retain
        transport.start(lambda _: None)

    def give(self, answer: Mapping[str, Any]) -> None:
        """See `Sink`."""
        topic = self._topic
        for place in _PLACES:
            if "{" + place + "}" in topic:
                topic = topic.replace("{" + place + "}", _level(str(answer.get(place, "-"))))
        if not self._transport.publish(topic, encode_line(answer).rstrip(b"\n"), qos=0, retain=self._retain):
            raise ChannelError(f"an answer to {topic[:80]} was not sent: there is no connection")

    def close(self) -> None:
        """See `Sink`."""
        self._transport.stop()


def _level(text: str) -> str:
    """What may stand in a topic: no wildcards, and of what came by topic or path the last levels stay apart.

    >>> _level("frigate/front door/+")
    'frigate/front door/_'
    """
    return "".join("_" if c in "+#$\0" or not c.isprintable() else c for c in text)[:200] or "-"
