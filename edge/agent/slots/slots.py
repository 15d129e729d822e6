"""What a model keeps on disk about releases: which bundle is live, the one before it, and downloads on their way.

::

    model.json                 its name, last release, live and previous bundle
    bundles/<digest>.edge      bundles that were pushed
    incoming/<digest>.part     a download, with <digest>.index beside it
    artifacts/<digest>         a finished download, proved by its digest

A pushed bundle is on trial until its probation has passed: an agent that was started `MAX_ATTEMPTS` times in that while
goes back to the bundle before. One that ends the agent `MAX_ATTEMPTS` times when it is opened for the first time, as a
system does that runs out of memory, is refused.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from edge.agent.slots.states import SlotState
from edge.contract import strictjson
from edge.contract.digest import is_digest, sha256, sha256_file
from edge.contract.errors import ChannelError
from edge.contract.files import replace_file, sync_folder

RECORD = "model.json"
_COPY = "model.copy.json"
_MAX_BYTES = 1 << 16
MAX_ATTEMPTS = 3
MAX_NUMBER = 2**48
# Of starts and connections: their product with 2^32 must fit 64 bits, and no device lives that long.
_MAX_STARTS = 2**30
_STATE_ID = re.compile(r"([0-9a-f]{16,64})?")
_SLOTS = ("head", "bundle")

_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """The facts in ``model.json``.

    Attributes:
        name: Of the model; its folder may be named otherwise.
        release: Counter of the last release that was live, whatever became of it.
        refused: Counter of the last release that was refused; it is not looked at again, and counts for nothing else.
        slot: Its slot, ``head`` or ``bundle``.
        state: What became of it.
        judged: Whether labels or samples spoke for it when it was taken.
        replaces: Whether it is a head that replaced everything, on trial.
        bundle: Digest of the pushed bundle that is live, "" for the one the device came with.
        previous: The one before it, "" for the one the device came with; kept when the probation has passed, too.
        trying: Whether `bundle` has not passed its probation yet.
        attempts: Starts of the agent since then.
        tested: Digest of a pushed bundle that is being opened for the first time, "" for none.
        tests: How often that was begun and not ended.
        head: Digest of the newest head that was taken; its file is kept, the next one may come as what differs.
        restored: Number of the order by which what another device had learned was taken up last.
        checkpointed_ms: Wall clock when what was learned was sent as a checkpoint last, milliseconds since 1970.
    """

    name: str = ""
    release: int = 0
    refused: int = 0
    slot: str = "head"
    state: str = "idle"
    judged: bool = False
    replaces: bool = False
    bundle: str = ""
    previous: str = ""
    trying: bool = False
    attempts: int = 0
    tested: str = ""
    tests: int = 0
    head: str = ""
    restored: int = 0
    checkpointed_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRecord:
    """The facts in ``device.json``.

    Attributes:
        boot: Starts of the agent so far.
        session: Connections so far.
        state_id: Identity of the state folder, made once; the numbers count within it. "" where there was none yet.
        device: Name that it went by last. "" of folders from before it was kept.
        has_coordinator: Whether one said, ever, that it listens.
    """

    boot: int = 0
    session: int = 0
    state_id: str = ""
    device: str = ""
    has_coordinator: bool = False


def read_record(path: Path, kind: type[_R], warnings: list[str] | None = None) -> _R:
    """Facts that were written with `write_record`; the default ones where there are none, or they are damaged.

    They are written whole or not at all, so damage is a bad disk. Learned state is elsewhere: only counters are lost.

    Args:
        path: The file.
        kind: Of the facts.
        warnings: Is told of damage, and what is damaged is put aside then; None leaves it where it is.
    """
    try:
        found = strictjson.loads(path.read_bytes(), max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as exc:
        found, wrong = {}, [exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)]
    else:
        known = {each.name: each.default for each in fields(kind)}  # type: ignore[arg-type]  # a dataclass
        given = {name: value for name, value in found.items() if name in known}
        wrong = [f"{name} is {value!r:.40}" for name, value in given.items() if not _is_sound(name, value, known[name])]
        found = {} if wrong else given
    if wrong and warnings is not None:
        aside = _put_aside(path)
        warnings.append(f"{path.name} was damaged ({'; '.join(wrong)}), what it said is lost{aside}")
    return kind(**found)


def _is_sound(name: str, value: object, default: object) -> bool:
    """Whether a fact can have this value."""
    if type(value) is not type(default):
        return False
    if isinstance(value, int) and not isinstance(value, bool):
        return 0 <= value < (_MAX_STARTS if name in ("boot", "session", "attempts") else MAX_NUMBER)
    if name in ("bundle", "previous", "tested", "head"):
        return value == "" or is_digest(value)
    if name == "state_id":
        return _STATE_ID.fullmatch(str(value)) is not None
    if name == "device":
        return re.fullmatch("[a-z0-9-]{0,64}", str(value)) is not None
    return not (name == "state" and value not in set(SlotState)) and not (name == "slot" and value not in _SLOTS)


def _put_aside(path: Path) -> str:
    """Keep what is damaged for who wants to look, out of the way of what is written next."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        if aside.is_dir():
            shutil.rmtree(aside)
        path.replace(aside)
    except OSError as exc:
        return f"; it is still there, it could not be put aside: {exc.strerror}"
    return f"; it is kept as {aside.name}"


class Facts(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def write_record(path: Path, record: Facts) -> None:
    """Keep facts, durably."""
    with replace_file(path) as file:
        file.write(strictjson.dumps(asdict(record)))


def old_record(path: Path) -> bytes:
    """A ``model.json`` of the ``device.json`` of before there were several models, which held the facts of both."""
    return strictjson.dumps(asdict(read_record(path, ModelRecord)))


class Slots:
    """The folder of one model.

    Args:
        folder: Created.
        name: Of the model.

    Attributes:
        record: What is known; also what the disk did not take.
        warnings: What went wrong and was survived; they may be cleared.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        for each in ("bundles", "incoming", "artifacts"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        self.warnings: list[str] = []
        self.is_kept = True
        self.record = self._read(name)
        if self.record.name != name or self.warnings:
            self.note(name=name)

    def _read(self, name: str) -> ModelRecord:
        """The record, else its copy: which bundle is live shall not hang on one block of a disk."""
        found = read_record(self.folder / RECORD, ModelRecord, self.warnings)
        if self.warnings and (copy := read_record(self.folder / _COPY, ModelRecord)).name == name:
            self.warnings[-1] = self.warnings[-1].replace("what it said is lost", "its copy is used")
            return copy
        return found

    def note(self, **changes: int | str | bool) -> ModelRecord:
        """Change the record, also where the disk does not take it: then it is known, told, and written by `keep`."""
        try:
            return self.update(**changes)
        except OSError as exc:
            if self.is_kept:
                self.warnings.append(f"{RECORD} could not be written, it is tried again: {exc.strerror}")
            self.is_kept = False
            self.record = replace(self.record, **changes)  # type: ignore[arg-type]  # the fields are these
            return self.record

    def keep(self) -> None:
        """Write what the disk did not take before; when it still does not, another time."""
        with contextlib.suppress(OSError):
            if not self.is_kept:
                self.update()

    def update(self, **changes: int | str | bool) -> ModelRecord:
        """Change the record, durably.

        Raises:
            OSError: It cannot be written; nothing changed.
        """
        record = replace(self.record, **changes)  # type: ignore[arg-type]  # the fields are these
        write_record(self.folder / RECORD, record)
        self.record, self.is_kept = record, True
        with contextlib.suppress(OSError):
            write_record(self.folder / _COPY, record)
        return record

    def bundle_path(self, digest: str) -> Path:
        """Where a pushed bundle is kept, by the digest of its file."""
        return self.folder / "bundles" / f"{digest}.edge"

    def partial(self, digest: str) -> tuple[Path, Path]:
        """Partial file and index of a download."""
        folder = self.folder / "incoming"
        return folder / f"{digest}.part", folder / f"{digest}.index"

    def finish(self, digest: str) -> Path | None:
        """Prove a complete partial file and move it to the artifacts; None when its digest is wrong (it is deleted)."""
        part, index = self.partial(digest)
        index.unlink(missing_ok=True)
        if sha256_file(part) != digest:
            part.unlink()
            return None
        target = self.folder / "artifacts" / digest
        part.replace(target)
        sync_folder(target.parent)
        return target

    def keep_artifact(self, digest: str, data: bytes) -> Path:
        """Keep an artifact that was made here.

        Raises:
            ChannelError: It does not have this digest.
        """
        if sha256(data) != digest:
            raise ChannelError("what it gives does not have the digest of the release")
        path = self.folder / "artifacts" / digest
        with replace_file(path) as file:
            file.write(data)
        return path

    def artifact(self, digest: str) -> Path | None:
        """An artifact that was fetched before, proved again; None when it is not there."""
        path = self.folder / "artifacts" / digest
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
            (self.folder / "artifacts" / digest).replace(path)
            sync_folder(path.parent)
        return path

    def bases(self) -> dict[str, Path]:
        """By digest, what is kept and the next release may be made of."""
        found = {path.stem: path for path in sorted((self.folder / "bundles").glob("*.edge"))}
        head = self.folder / "artifacts" / self.record.head
        return found | ({self.record.head: head} if self.record.head and head.exists() else {})

    def clean(self) -> None:
        """Delete artifacts, downloads and bundles that nothing refers to."""
        kept = {self.record.bundle, self.record.previous}
        for path in (self.folder / "bundles").glob("*.edge"):
            if path.stem not in kept:
                _delete(path)
        for folder in ("artifacts", "incoming"):
            for path in (self.folder / folder).glob("*"):
                if path.name != self.record.head:
                    _delete(path)


def _delete(path: Path) -> None:
    """Make room; what cannot be deleted now is another time."""
    with contextlib.suppress(OSError):
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
