"""A watched folder: files that are whole are answered in the order of their names, then moved into ``done``.

Whole is what nobody has changed between two looks. Names that begin with a dot or end like a file on its way are left.
No file is asked about twice as long as it stays as it is, else its labels would be learned twice: what cannot be read
may grow still, so it waits, and goes to ``failed`` when it has stayed so for a while; what cannot be moved stays where
it is. A file is moved after its answer went out: a power cut in between answers it twice, under the same id. Lines are
taken as they come, see `edge.agent.sources.growing`, also when their file was moved meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge.agent.sources.growing import GrowingFile
from edge.agent.sources.payloads import MAX_PAYLOAD_BYTES, Payload, SourceOptions, Stop
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

KIND_BY_SUFFIX = {
    ".png": "image", ".jpg": "image", ".jpeg": "image", ".bmp": "image", ".npy": "npy", ".npz": "npz", ".wav": "wav",
    ".json": "json", ".jsonl": "lines",
}  # fmt: skip
_ON_ITS_WAY = (".part", ".tmp", ".partial", ".crdownload", "~")
DONE, FAILED = "done", "failed"
LOOK_S = 0.5
YOUNG_S = 10.0
_MOST_TAILS = 32  # moved files that are read on
_MOVES_A_PRUNING = 100


@dataclass(slots=True)
class _Seen:
    """A file as it was seen last, and what came of it.

    Attributes:
        state: Its number in the file system, size and last change.
        since_s: When it was first seen so.
        is_right: Whether all that is in it could be answered; None before it was asked about.
        lines: Of one of lines that was opened.
    """

    state: tuple[int, int, int]
    since_s: float
    is_right: bool | None = None
    lines: GrowingFile | None = None


class Folder:
    """See the module.

    Args:
        path: The folder.
        options: For its samples.
        clock_s: Seconds of a clock that nobody sets.
        keep: Whether answered files go to ``done``; else they are deleted.
        most: Files that ``done`` and ``failed`` keep, each; the oldest go.
    """

    ends_agent, waits = False, True

    def __init__(
        self,
        path: Path,
        options: SourceOptions,
        clock_s: Callable[[], float],
        *,
        keep: bool = True,
        most: int = 1000,
    ) -> None:
        self.name, self.options = str(path), options
        self._path, self._clock_s, self._keep, self._most = path, clock_s, keep, most
        self._seen: dict[Path, _Seen] = {}
        self._tails: deque[tuple[GrowingFile, float]] = deque()
        self._stuck: dict[Path, str] = {}
        self._moves = 0

    def payloads(self, stop: Stop, _specs: Callable[[], Sequence[TensorSpec]]) -> Iterator[Payload]:
        """See `edge.agent.sources.payloads.Source`."""
        try:
            while not stop.is_set():
                yield from self.look()
                stop.wait(LOOK_S)
        finally:
            if stop.is_set():
                self.close()

    def close(self) -> None:
        """Free the files that are open."""
        for path in list(self._seen):
            self._forget(path)
        while self._tails:
            self._tails.pop()[0].close()

    def look(self) -> Iterator[Payload]:
        """Files that have been whole since the last look, and lines that came to others.

        Raises:
            ConfigError: The folder cannot be read.
        """
        try:
            paths = sorted(path for path in self._path.iterdir() if _may_be_whole(path))
        except OSError as exc:
            raise ConfigError(f"{self._path} cannot be read: {exc.strerror}") from exc
        for path in self._seen.keys() - set(paths):
            self._forget(path)
        self._stuck.clear()
        for path in paths:
            try:
                yield from self._look_at(path)
            except FileNotFoundError:
                self._forget(path)
            except OSError as exc:
                self._stuck[path] = f"it cannot be read: {exc.strerror}"
        yield from self._late_lines()
        self._prune()
        if self._stuck:
            path, why = next(iter(self._stuck.items()))
            others = f"; and {len(self._stuck) - 1} more" if len(self._stuck) > 1 else ""
            yield Payload(name=path.name, data=b"", fault=f"{why}{others}")

    def _look_at(self, path: Path) -> Iterator[Payload]:
        stat = path.stat()
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        seen = self._seen.get(path)
        if seen is None or seen.state[0] != state[0]:
            self._forget(path)
            self._seen[path] = _Seen(state, self._clock_s())
        elif seen.state != state:
            seen.state, seen.since_s, seen.is_right = state, self._clock_s(), None
        elif seen.is_right is not None:
            self._settle(path, seen)
        elif path.is_file():
            yield from self._ask(path, seen)

    def _ask(self, path: Path, seen: _Seen) -> Iterator[Payload]:
        kind = KIND_BY_SUFFIX[path.suffix.lower()]
        if kind == "lines":
            seen.lines = seen.lines or GrowingFile(path, self.name)
            yield from seen.lines.take(is_last=not self._is_young(seen.since_s))
            if not seen.lines.has_half:
                self._dealt_with(path, seen, seen.lines.all_right)
            return
        with path.open("rb") as file:
            data = file.read(MAX_PAYLOAD_BYTES + 1)
        done = partial(self._dealt_with, path, seen)
        yield Payload(name=path.name, data=data, kind=kind, id=path.name[-100:], stream=self.name, done=done)

    def _late_lines(self) -> Iterator[Payload]:
        """What was written to files of lines after they were moved."""
        for _ in range(len(self._tails)):
            lines, since_s = self._tails.popleft()
            if lines.has_more():
                since_s = self._clock_s()
            is_last = not self._is_young(since_s) or len(self._tails) >= _MOST_TAILS
            yield from lines.take(is_last=is_last)
            if is_last:
                lines.close()
            else:
                self._tails.append((lines, since_s))

    def _is_young(self, since_s: float) -> bool:
        return self._clock_s() - since_s < YOUNG_S

    def _dealt_with(self, path: Path, seen: _Seen, is_right: bool) -> None:
        seen.is_right = is_right
        self._settle(path, seen)

    def _settle(self, path: Path, seen: _Seen) -> None:
        """Move a file away that was asked about."""
        if not seen.is_right and self._is_young(seen.since_s):
            return  # it may grow still
        try:
            if seen.is_right and not self._keep:
                path.unlink(missing_ok=True)
            else:
                folder = self._path / (DONE if seen.is_right else FAILED)
                folder.mkdir(exist_ok=True)
                path.replace(folder / path.name)
        except FileNotFoundError:
            pass  # somebody else took it
        except OSError as exc:
            self._stuck[path] = f"it cannot be moved away, and will be answered again after a restart: {exc.strerror}"
            return
        self._seen.pop(path, None)
        if seen.lines is not None:
            seen.lines.forget()
            self._tails.append((seen.lines, self._clock_s()))
        self._moves += 1
        if self._moves >= _MOVES_A_PRUNING:
            self._prune()

    def _forget(self, path: Path) -> None:
        seen = self._seen.pop(path, None)
        if seen is not None and seen.lines is not None:
            seen.lines.close()

    def _prune(self) -> None:
        if not self._moves:
            return
        self._moves = 0
        for folder in (self._path / DONE, self._path / FAILED):
            with suppress(OSError):
                kept = sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
                for old in kept[: -self._most]:
                    old.unlink(missing_ok=True)


def _may_be_whole(path: Path) -> bool:
    name = path.name
    return not name.startswith(".") and not name.endswith(_ON_ITS_WAY) and path.suffix.lower() in KIND_BY_SUFFIX
