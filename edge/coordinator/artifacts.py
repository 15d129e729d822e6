"""Artifacts by digest: files that are whole or absent, proved again before they are sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.channel.chunks import USUAL_BYTES, chunk_digests, index_digest
from edge.contract.digest import is_digest, sha256
from edge.contract.errors import RolloutError
from edge.contract.files import replace_file


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

    def read(self, offset: int, length: int) -> bytes:
        """A piece of the file."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


class ArtifactStore:
    """A folder of artifacts.

    Args:
        folder: Created.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._proved: dict[str, dict[int, Artifact]] = {}  # by digest and size of chunks
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> Artifact:
        """Keep an artifact; durable when it returns. The same bytes again change nothing."""
        digest = sha256(data)
        path = self._folder / digest
        if not path.exists():
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
            path = self._folder / digest
            if not is_digest(digest) or not path.exists():
                raise RolloutError(f"the artifact {digest[:12]} is missing; push it again")
            data = path.read_bytes()
            if sha256(data) != digest:
                raise RolloutError(f"the artifact {digest[:12]} changed on disk; push it again")
            self._proved.setdefault(digest, {})[chunk_bytes] = Artifact(
                digest=digest,
                path=path,
                size_bytes=len(data),
                chunk_bytes=chunk_bytes,
                index=chunk_digests(data, chunk_bytes),
            )
        return self._proved[digest][chunk_bytes]
