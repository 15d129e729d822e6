"""Standard input as a source: a sample or a label on each line; where it ends the agent does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from edge.agent.sources.payloads import MAX_PAYLOAD_BYTES, Payload, SourceOptions, Stop
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec


class Lines:
    """See the module.

    Args:
        file: Standard input.
        options: For its samples.
    """

    ends_agent = waits = True

    def __init__(self, file: BinaryIO, options: SourceOptions) -> None:
        self._file, self.options, self.name = file, options, "standard input"
        self._number = 0

    def payloads(self, _stop: Stop, _specs: Callable[[], Sequence[TensorSpec]]) -> Iterator[Payload]:
        """See `edge.agent.sources.payloads.Source`."""
        while line := self._file.readline(MAX_PAYLOAD_BYTES + 1):
            self._number += 1
            if len(line) > MAX_PAYLOAD_BYTES:
                while line and not line.endswith(b"\n"):
                    line = self._file.readline(MAX_PAYLOAD_BYTES)
                raise ConfigError(f"line {self._number}: expected at most {MAX_PAYLOAD_BYTES} bytes")
            if line.strip():
                yield Payload(name=f"stdin:{self._number}", data=line, kind="json", id=f"stdin:{self._number}")
