"""What a device keeps on disk about learning: a checkpoint, the one before it, and the journal since each.

::

    learned/<bundle>/state.bin            generation g
    learned/<bundle>/state.previous.bin   generation g - 1
    learned/<bundle>/journal-<g>.bin      labelled samples since generation g
    learned/<bundle>/journal-<g-1>.bin    those between the two

A checkpoint is written to a temporary name, fsynced and renamed. If it turns out damaged, the previous one and both
journals give the same state again. Nothing is ever unpickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edge.agent.journal import Journal, read_journal
from edge.contract import tensorfile
from edge.contract.digest import replace_file, sync_folder
from edge.contract.errors import BundleError, ConfigError
from edge.contract.training import LabelArray
from edge.learning.learner import State
from edge.learning.packing import PackedFeatures

_MAGIC = b"EDGESTATE1"
_KIND = "learned-state"
_DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False, slots=True)
class Saved:
    """What was found on disk.

    Attributes:
        description: JSON-able facts beside the tensors.
        tensors: The state.
        journal: Labelled samples to learn again, in order.
        warning: What was damaged, or None.
    """

    description: dict[str, Any]
    tensors: State
    journal: list[tuple[PackedFeatures, LabelArray]]
    warning: str | None


def lock_folder(folder: Path) -> int:
    """Take a folder for this process alone; the lock goes when the returned descriptor is closed or the process ends.

    Raises:
        ConfigError: It cannot be written, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise ConfigError(f"the state folder {folder} cannot be written: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise ConfigError(f"the state folder {folder} is in use by another process; give each its own") from exc
    return descriptor


class LearnedStore:
    """The folder of one bundle's learned state.

    Args:
        folder: Of this bundle; created.
        backbone: Digest that the state must be bound to.
    """

    def __init__(self, folder: Path, backbone: str) -> None:
        self._folder = folder
        self._backbone = backbone
        self._generation = 0
        self._journal: Journal | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def _journal_path(self, generation: int) -> Path:
        return self._folder / f"journal-{generation}.bin"

    def load(self) -> Saved | None:
        """The newest whole state; None when nothing was ever saved. Call once, before `append`."""
        warnings = []
        for name in ("state.bin", "state.previous.bin"):
            path = self._folder / name
            if not path.exists():
                continue
            try:
                description, tensors = self._read(path)
            except BundleError as exc:
                warnings.append(str(exc))
                path.replace(path.with_suffix(".damaged"))  # never again taken for a whole one
                continue
            generation = int(description.pop("generation"))
            # Behind the previous checkpoint stand two journals: its own and that of the damaged one.
            journals = [generation, generation + 1]
            records = [record for number in journals for record in read_journal(self._journal_path(number))]
            self._generation = generation + self._journal_path(generation + 1).exists()
            self._journal = Journal(self._journal_path(self._generation))
            return Saved(description, tensors, records, "; ".join(warnings) or None)
        if warnings:
            return Saved({}, {}, [], "; ".join(warnings))
        records = list(read_journal(self._journal_path(0)))
        return Saved({}, {}, records, None) if records else None

    def _read(self, path: Path) -> tuple[dict[str, Any], State]:
        data = path.read_bytes()
        start = len(_MAGIC) + _DIGEST_BYTES
        body = data[start:]
        if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:
            raise BundleError(f"{path} is damaged")
        description, tensors = tensorfile.decode(body, _KIND, str(path))
        if description.pop("backbone", None) != self._backbone:
            raise BundleError(f"{path} belongs to another backbone")
        return description, tensors

    def append(self, features: PackedFeatures, labels: LabelArray) -> None:
        """Add labelled samples to the journal; they survive a kill of this process from here on."""
        if self._journal is None:
            self._journal = Journal(self._journal_path(self._generation))
        self._journal.append(features, labels)

    def sync(self) -> None:
        """Make the journal survive a power cut."""
        if self._journal is not None:
            self._journal.sync()

    def checkpoint(self, description: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Save a state that contains everything in the journal.

        Raises:
            OSError: The disk is full; the old checkpoint and the journal still hold everything.
        """
        generation = self._generation + 1
        document = {**description, "generation": generation, "backbone": self._backbone}
        body = tensorfile.encode(_KIND, document, tensors)
        state, previous = self._folder / "state.bin", self._folder / "state.previous.bin"
        self._journal_path(generation).unlink(missing_ok=True)  # left by a history that was lost
        if state.exists():
            # A second name for the old checkpoint, in place before the new one takes its first name.
            spare = self._folder / ".state.previous.tmp"
            spare.unlink(missing_ok=True)
            os.link(state, spare)
            os.replace(spare, previous)
        with replace_file(state) as file:
            file.write(_MAGIC + hashlib.sha256(body).digest() + body)
        if self._journal is not None:
            self._journal.close()
        self._journal = Journal(self._journal_path(generation))
        self._generation = generation
        for path in self._folder.glob("journal-*.bin"):
            if int(path.stem.partition("-")[2]) < generation - 1:
                path.unlink()
        sync_folder(self._folder)

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
