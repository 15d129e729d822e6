"""Artifacts by digest: files that are whole or absent, proved again before they are sent.

Beside them, in ``forms/``, shorter forms of them, made when they are first asked for: see `edge.channel.forms`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edge.channel.chunks import DIGEST_BYTES, USUAL_BYTES, chunk_digests, index_digest
from edge.channel.download import serve
from edge.channel.forms import shorten
from edge.channel.frames import Frame
from edge.channel.messages import Form, Order, Request
from edge.contract.digest import is_digest, sha256
from edge.contract.errors import ResourceError, RolloutError
from edge.contract.files import replace_file
from edge.coordinator.machine.room import Room

# Forms that are kept on disk; one that was deleted is made again when a device that lacks it is told of it.
MAX_FORMS = 256
OrderT = TypeVar("OrderT", bound=Order)
MOST_UNLIKE = 2  # in size, of two artifacts of which one may be made of the other


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Artifact:
    """An artifact ready to be sent.

    Attributes:
        digest: SHA-256 of the file.
        path: The file.
        size_bytes: Its size.
        chunk_bytes: Size of its chunks.
        index: Their concatenated SHA-256.
    """

    digest: str
    path: Path
    size_bytes: int
    chunk_bytes: int
    index: bytes

    @property
    def index_digest(self) -> str:
        """SHA-256 of the index, which a release names."""
        return index_digest(self.index)

    def ordered(self, kind: type[OrderT], *, number: int, model: str, backbone: str, ts_ms: int) -> OrderT:
        """An order to fetch it and do something with it.

        Args:
            kind: Of order.
            number: Of the order.
            model: That is to do it.
            backbone: That it belongs to.
            ts_ms: When it was ordered, milliseconds since 1970.
        """
        return kind(
            number=number,
            model=model,
            digest=self.digest,
            size_bytes=self.size_bytes,
            chunk_size_bytes=self.chunk_bytes,
            index_digest=self.index_digest,
            backbone=backbone,
            ts_ms=ts_ms,
        )

    def read(self, offset: int, length: int) -> bytes:
        """A piece of the file.

        Raises:
            RolloutError: The file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as exc:
            raise RolloutError(f"artifact {self.digest[:12]} cannot be read: {exc.strerror}; push it again") from exc

    def frames(self, request: Request) -> Iterator[Frame]:
        """What answers a request, each chunk compared with its digest.

        Raises:
            RolloutError: The file cannot be read, or changed on disk.
        """
        for frame in serve(request, self.read, self.size_bytes, self.chunk_bytes, self.index):
            proof = self.index[frame.index * DIGEST_BYTES : (frame.index + 1) * DIGEST_BYTES]
            if frame.part == "data" and frame.digest() != proof:
                raise RolloutError(f"the artifact {self.digest[:12]} changed on disk; push it again")
            yield frame


class ArtifactStore:
    """A folder of artifacts.

    Args:
        folder: Created.
        room: On its disk; None where that is not looked at.

    Attributes:
        room: On its disk.
    """

    def __init__(self, folder: Path, room: Room | None = None) -> None:
        self._folder = folder
        self.room = Room() if room is None else room
        self._proved: dict[str, dict[int, Artifact]] = {}  # by digest and size of chunks
        self._forms: dict[tuple[str, str], tuple[str, str] | None] = {}  # by artifact and base, codec and digest
        (folder / "forms").mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> Artifact:
        """Keep an artifact; durable when it returns. The same bytes again change nothing.

        Raises:
            ResourceError: There is too little room for it.
        """
        digest = sha256(data)
        path = self._folder / digest
        if not path.exists():
            self.room.check(len(data))
            with replace_file(path) as file:
                file.write(data)
        return self.get(digest)

    def remove(self, digest: str) -> None:
        """Delete an artifact; one that is not there is none."""
        self._proved.pop(digest, None)
        if is_digest(digest):
            (self._folder / digest).unlink(missing_ok=True)

    def get(self, digest: str, chunk_bytes: int = USUAL_BYTES) -> Artifact:
        """An artifact whose bytes were compared with its digest, once in the life of this process.

        Args:
            digest: Of it.
            chunk_bytes: Size of the chunks that it is to be sent in.

        Raises:
            RolloutError: It is not there, or changed on disk.
        """
        if chunk_bytes not in self._proved.get(digest, {}):
            path, data = self._read(digest)
            self._proved.setdefault(digest, {})[chunk_bytes] = Artifact(
                digest=digest,
                path=path,
                size_bytes=len(data),
                chunk_bytes=chunk_bytes,
                index=chunk_digests(data, chunk_bytes),
            )
        return self._proved[digest][chunk_bytes]

    def _read(self, digest: str) -> tuple[Path, bytes]:
        """An artifact or a form, compared with its digest."""
        path = next((each for each in self._places(digest) if each.exists()), None)
        if path is None:
            raise RolloutError(f"the artifact {digest[:12]} is missing; push it again")
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise RolloutError(f"the artifact {digest[:12]} cannot be read: {exc.strerror}; push it again") from exc
        if sha256(data) != digest:
            raise RolloutError(f"the artifact {digest[:12]} changed on disk; push it again")
        return path, data

    def _places(self, digest: str) -> list[Path]:
        return [self._folder / digest, self._folder / "forms" / digest] if is_digest(digest) else []

    def doubt(self, digest: str) -> None:
        """Compare an artifact with its digest again before it is sent once more."""
        self._proved.pop(digest, None)

    def forms(self, digest: str, bases: Iterable[str], chunk_bytes: int = USUAL_BYTES) -> tuple[Form, ...]:
        """Shorter ways to an artifact, for a device that has some others: the shortest, and one that needs none.

        Args:
            digest: Of the artifact.
            bases: Digests of what the device has; those that are not here are left out.
            chunk_bytes: Size of the chunks.

        Raises:
            RolloutError: The artifact is not there, or changed on disk.
        """
        against = [form for base in bases if (form := self._form(digest, base, chunk_bytes)) is not None]
        best = min(against, key=lambda form: form.size_bytes, default=None)
        return tuple(form for form in (best, self._form(digest, "", chunk_bytes)) if form is not None)

    def _form(self, digest: str, base: str, chunk_bytes: int) -> Form | None:
        if (digest, base) not in self._forms:
            try:
                self._forms[digest, base] = self._made(digest, base)
            except (OSError, ResourceError):  # a full disk costs the form, and it is tried again
                return None
        known = self._forms[digest, base]
        if known is None:
            return None
        try:
            form = self.get(known[1], chunk_bytes)
        except RolloutError:  # deleted to make room, or damaged: made again the next time
            del self._forms[digest, base]
            return None
        return Form(
            codec=known[0],
            base=base,
            digest=form.digest,
            size_bytes=form.size_bytes,
            index_digest=form.index_digest,
        )

    def _made(self, digest: str, base: str) -> tuple[str, str] | None:
        """Make a form and keep it; None where it would not pay."""
        before = None
        if base:
            path = self._folder / base
            # What differs much in size is something else: a head and a bundle.
            if base == digest or not path.exists() or not self._is_alike(path, self._folder / digest):
                return None
            before = self._read(base)[1]
        made = shorten(self._read(digest)[1], before)
        if made is None:
            return None
        codec, data = made
        name = sha256(data)
        self.room.check(len(data))
        with replace_file(self._folder / "forms" / name) as file:
            file.write(data)
        self._make_room()
        return codec, name

    @staticmethod
    def _is_alike(base: Path, artifact: Path) -> bool:
        sizes = sorted((base.stat().st_size, artifact.stat().st_size if artifact.exists() else 0))
        return sizes[1] <= MOST_UNLIKE * sizes[0]

    def _make_room(self) -> None:
        kept = sorted((self._folder / "forms").iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[:-MAX_FORMS]:
            self._proved.pop(path.name, None)
            path.unlink(missing_ok=True)
