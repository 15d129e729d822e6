"""What a device keeps on disk about releases: which bundle is live, the one before it, and downloads on their way.

::

    device.json                boot and session numbers, last release, live and previous bundle
    bundles/<digest>.edge      bundles that were pushed
    incoming/<digest>.part     a download, with <digest>.index beside it
    artifacts/<digest>         a finished download, proved by its digest

A pushed bundle is on trial until its probation has passed: an agent that was started `MAX_ATTEMPTS` times in that while
goes back to the bundle before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from edge.contract import strictjson
from edge.contract.digest import is_digest, sha256, sha256_file
from edge.contract.files import replace_file, sync_folder

_MAX_BYTES = 1 << 16
MAX_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRecord:
    """The facts in ``device.json``.

    Attributes:
        boot: Starts of the agent so far.
        session: Connections so far.
        release: Counter of the last release that was handled, whatever became of it.
        slot: Its slot, ``head`` or ``bundle``.
        state: What became of it.
        judged: Whether labels or samples spoke for it when it was taken.
        replaces: Whether it is a head that replaced everything, on trial.
        bundle: Digest of the pushed bundle that is live, "" for the one the device came with.
        previous: The one before it, "" for the one the device came with; kept when the probation has passed, too.
        trying: Whether `bundle` has not passed its probation yet.
        attempts: Starts of the agent since then.
    """

    boot: int = 0
    session: int = 0
    release: int = 0
    slot: str = "head"
    state: str = "idle"
    judged: bool = False
    replaces: bool = False
    bundle: str = ""
    previous: str = ""
    trying: bool = False
    attempts: int = 0


class Slots:
    """The folder of one device.

    Args:
        folder: Created.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("bundles", "incoming", "artifacts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.record = self._read()

    def _read(self) -> DeviceRecord:
        try:
            found = strictjson.loads((self._folder / "device.json").read_bytes(), max_bytes=_MAX_BYTES)
            record = DeviceRecord(**found)
            if any(type(getattr(record, each.name)) is not type(each.default) for each in fields(record)):
                raise ValueError("a field is of another type")
            return record
        except FileNotFoundError:
            return DeviceRecord()
        except (ValueError, TypeError):
            # Written whole or not at all, so this is a bad disk. Learned state is elsewhere; only counters are lost.
            return DeviceRecord()

    def update(self, **changes: int | str | bool) -> DeviceRecord:
        """Change the record, durably.

        Raises:
            OSError: It cannot be written; nothing changed.
        """
        record = replace(self.record, **changes)  # type: ignore[arg-type]  # the fields are these
        with replace_file(self._folder / "device.json") as file:
            file.write(strictjson.dumps(asdict(record)))
        self.record = record
        return record

    def bundle_path(self, digest: str) -> Path:
        """Where a pushed bundle is kept, by the digest of its file."""
        return self._folder / "bundles" / f"{digest}.edge"

    def partial(self, digest: str) -> tuple[Path, Path]:
        """Partial file and index of a download."""
        folder = self._folder / "incoming"
        return folder / f"{digest}.part", folder / f"{digest}.index"

    def finish(self, digest: str) -> Path | None:
        """Prove a complete partial file and move it to the artifacts; None when its digest is wrong (it is deleted)."""
        part, index = self.partial(digest)
        index.unlink(missing_ok=True)
        if sha256_file(part) != digest:
            part.unlink()
            return None
        target = self._folder / "artifacts" / digest
        part.replace(target)
        sync_folder(target.parent)
        return target

    def artifact(self, digest: str) -> Path | None:
        """An artifact that was fetched before, proved again; None when it is not there."""
        path = self._folder / "artifacts" / digest
        if not is_digest(digest) or not path.exists():
            return None
        if sha256_file(path) != digest:
            path.unlink()
            return None
        return path

    def adopt_bundle(self, digest: str) -> Path:
        """Make a fetched artifact a bundle that stays."""
        path = self.bundle_path(digest)
        if not path.exists():
            (self._folder / "artifacts" / digest).replace(path)
            sync_folder(path.parent)
        return path

    def clean(self) -> None:
        """Delete artifacts, downloads and bundles that nothing refers to."""
        kept = {self.record.bundle, self.record.previous}
        for path in (self._folder / "bundles").glob("*.edge"):
            if path.stem not in kept:
                path.unlink()
        for folder in ("artifacts", "incoming"):
            for path in (self._folder / folder).iterdir():
                path.unlink()


def new_part(part: Path, index: Path, document: bytes, size_bytes: int) -> None:
    """Begin a partial file of a known size, with its proved index beside it."""
    with replace_file(index) as file:
        file.write(document)
    with part.open("ab") as file:
        file.truncate(size_bytes)


def proved_chunks(part: Path, size_bytes: int, chunk_size_bytes: int, digests: list[str]) -> list[int]:
    """The chunks of a partial file that have their digest."""
    found: list[int] = []
    if not part.exists() or part.stat().st_size != size_bytes:
        return found
    with part.open("rb") as file:
        for number, digest in enumerate(digests):
            if sha256(file.read(chunk_size_bytes)) == digest:
                found.append(number)
    return found
