"""A watched folder: files that are whole are answered in the order of their names, then moved into ``done``.

Whole is what nobody has changed between two looks. Names that begin with a dot or end like a file on its way are left.
What cannot be read may still be on its way: it is tried again as long as it is young, then it goes to ``failed``. A
file is moved after its answer went out: a power cut in between answers it twice, under the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from edge.agent.sources.payloads import Payload, SourceOptions, Stop
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


class Folder:
    """See the module.

    Args:
        path: The folder.
        options: For its samples.
        clock_s: Seconds since 1970, as files have them.
        keep: Whether answered files go to ``done``; else they are deleted.
        most: Files that ``done`` and ``failed`` keep, each; the oldest go.
    """

    ends_agent = False

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
        self._seen: dict[Path, tuple[int, int]] = {}

    def payloads(self, stop: Stop, _specs: Callable[[], Sequence[TensorSpec]]) -> Iterator[Payload]:
        """See `edge.agent.sources.payloads.Source`."""
        while not stop.is_set():
            yield from self.look()
            stop.wait(LOOK_S)

    def look(self) -> Iterator[Payload]:
        """Files that have been whole since the last look.

        Raises:
            ConfigError: The folder cannot be read.
        """
        try:
            paths = sorted(path for path in self._path.iterdir() if _may_be_whole(path))
        except OSError as exc:
            raise ConfigError(f"{self._path} cannot be read: {exc.strerror}") from exc
        before, self._seen = self._seen, {}
        for path in paths:
            try:
                stat = path.stat()
                now = (stat.st_size, stat.st_mtime_ns)
                self._seen[path] = now
                if before.get(path) != now or not path.is_file():
                    continue
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
            kind = KIND_BY_SUFFIX[path.suffix.lower()]
            done = partial(self._dealt_with, path, now)
            if kind == "lines":
                yield from self._lines(path, data, done)
            else:
                yield Payload(name=path.name, data=data, kind=kind, id=path.name[-100:], stream=self.name, done=done)

    def _lines(self, path: Path, data: bytes, done: Callable[[bool], None]) -> Iterator[Payload]:
        """Samples and labels of a file, one a line; it is moved after the last."""
        right = [True]
        for number, line in enumerate(data.splitlines(), 1):
            if line.strip():
                name = f"{path.name}:{number}"
                yield Payload(name=name, data=line, kind="json", id=name, stream=self.name,
                              done=lambda ok: right.__setitem__(0, right[0] and ok))  # fmt: skip
        done(right[0])

    def _dealt_with(self, path: Path, state: tuple[int, int], is_right: bool) -> None:
        is_young = self._clock_s() - state[1] / 1e9 < YOUNG_S
        if not is_right and is_young:
            return  # it may grow still
        try:
            if is_right and not self._keep:
                path.unlink(missing_ok=True)
                return
            folder = self._path / (DONE if is_right else FAILED)
            folder.mkdir(exist_ok=True)
            path.replace(folder / path.name)
            kept = sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
            for old in kept[: -self._most]:
                old.unlink(missing_ok=True)
        except OSError as exc:
            raise ConfigError(f"{path} cannot be moved away, it will be answered again: {exc.strerror}") from exc


def _may_be_whole(path: Path) -> bool:
    name = path.name
    return not name.startswith(".") and not name.endswith(_ON_ITS_WAY) and path.suffix.lower() in KIND_BY_SUFFIX
