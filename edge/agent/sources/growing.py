"""A file of samples and labels, one a line, that may grow while it is read: each line is taken once.

A note beside the file says how far it was read, so that an agent that is started anew learns no label twice. Samples
are in memory: those before that place are asked again, so that the labels behind it find them.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from edge.agent.sources.payloads import MAX_PAYLOAD_BYTES, Payload

_NOTE_BYTES = 64


class GrowingFile:
    """See the module; it stays open, so that what is written to it after it was moved away is read as well.

    Args:
        path: The file.
        stream: Whose samples they are.

    Attributes:
        all_right: Whether all that was taken so far could be answered.
        has_half: Whether its last line was not whole.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, stream: str) -> None:
        self._file, self._name, self._stream = path.open("rb"), path.name, stream
        self._note = path.with_name(f".{path.name}.read")
        self._number = self._taken = 0
        self._is_moved = False
        self.all_right, self.has_half, self._size = True, False, 0
        with suppress(OSError, ValueError):
            node, taken = map(int, self._note.read_text().split())
            stat = os.fstat(self._file.fileno())
            if node == stat.st_ino and taken <= stat.st_size:
                self._taken = taken

    def has_more(self) -> bool:
        """Whether something was written since lines were last taken."""
        return os.fstat(self._file.fileno()).st_size != self._size

    def take(self, *, is_last: bool = False) -> Iterator[Payload]:
        """Lines that were not taken yet.

        Args:
            is_last: Also one that has no end and may be half of one.
        """
        self._size, self.has_half = os.fstat(self._file.fileno()).st_size, False
        if self._size < self._file.tell():  # written anew
            self._file.seek(0)
            self._number = self._taken = 0
        while line := self._file.readline(MAX_PAYLOAD_BYTES + 1):
            at = self._file.tell() - len(line)
            if not line.endswith(b"\n"):
                if len(line) > MAX_PAYLOAD_BYTES:  # told as too long; the rest of it is passed over
                    while (rest := self._file.readline(MAX_PAYLOAD_BYTES)) and not rest.endswith(b"\n"):
                        pass
                elif not (is_last or _is_json(line)):
                    self._file.seek(at)
                    self.has_half = True
                    return
            self._number += 1
            if line.strip():
                name = f"{self._name}:{self._number}"
                is_again = at < self._taken
                yield Payload(name=name, data=line, kind="json", id=name[-100:], stream=self._stream, is_again=is_again,
                              done=partial(self._done, self._file.tell()))  # fmt: skip

    def _done(self, taken: int, is_right: bool) -> None:
        self.all_right = self.all_right and is_right
        if not is_right or taken <= self._taken or self._is_moved:
            return
        self._taken = taken
        said = f"{os.fstat(self._file.fileno()).st_ino} {taken}".ljust(_NOTE_BYTES).encode()
        with suppress(OSError):  # a full disk: whoever is killed then begins anew
            file = os.open(self._note, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(file, said, 0)
            finally:
                os.close(file)

    def forget(self) -> None:
        """Delete the note: the file is moved away, and is not read from its beginning again."""
        self._is_moved = True
        with suppress(OSError):
            self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Free it."""
        self._file.close()


def _is_json(line: bytes) -> bool:
    """Whether an object or a list is whole; of a number that cannot be told."""
    try:
        return isinstance(json.loads(line.removeprefix(codecs.BOM_UTF8)), dict | list)
    except (ValueError, RecursionError):
        return False
