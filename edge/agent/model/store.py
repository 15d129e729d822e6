"""What a device keeps on disk about learning: a snapshot, the one before it, and the events since each.

::

    learned/<bundle>/state.bin            generation g
    learned/<bundle>/state.previous.bin   the generation before, p: g - 1, or less where one was damaged
    learned/<bundle>/state.before.bin     what was there before the last head that took everything over
    learned/<bundle>/journal-<g>.bin      events since generation g
    learned/<bundle>/journal-<p>.bin ...  those between the two

Generation 0 is the bundle as shipped and has no file. A snapshot is written to a temporary name, fsynced and renamed.
If it turns out damaged, the one before and all journals since give the same state again. If that one is damaged too,
everything starts anew, and the old journals are put aside: without the state that they continue, and its identity, what
the fleet has merged already would count twice. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edge.agent.model.journal import Journal, Saved, read_journal
from edge.agent.model.schema2 import read_old_journal
from edge.contract import tensorfile
from edge.contract.digest import sha256_bytes
from edge.contract.errors import BundleError, ConfigError, LearningError
from edge.contract.files import replace_file, sync_folder
from edge.learning.events import Event
from edge.learning.learner import State

_MAGIC, _MAGIC_2 = b"EDGESTATE3", b"EDGESTATE2"
_KIND = "learned-state"
_DIGEST_BYTES = 32
_ASIDE = "state.before.bin"


class _OtherBackboneError(BundleError):
    """A whole state, but of features that mean something else."""


class LearnedStore:
    """The folder of one bundle's learned state.

    Args:
        folder: Of this bundle; created.
        backbone: Digest that the state must be bound to.
        read_only: Only read; nothing in the folder changes, damaged files included.
    """

    def __init__(self, folder: Path, backbone: str, *, read_only: bool = False) -> None:
        self._folder = folder
        self._backbone = backbone
        self._generation = 0  # of the journal that is written to
        self._state_generation = 0  # of state.bin: the journals from here on continue it
        self._journal: Journal | None = None
        self._closed = self._read_only = read_only
        if read_only:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"the folder {folder} cannot be used: {exc.strerror}") from exc

    def _journal_path(self, generation: int) -> Path:
        return self._folder / f"journal-{generation}.bin"

    def _journals(self) -> dict[int, Path]:
        """The journals on disk by generation, in order."""
        numbers = {path.stem.removeprefix("journal-"): path for path in self._folder.glob("journal-*.bin")}
        return {number: numbers[str(number)] for number in sorted(int(text) for text in numbers if text.isdecimal())}

    def _continue(self, generation: int, warnings: list[str]) -> list[Event]:
        """Go on from a generation: what its journals hold. One with damage inside is kept beside as it was."""
        journals = {number: path for number, path in self._journals().items() if number >= generation}
        self._state_generation = generation
        self._generation = max(journals, default=generation)
        found: list[Event] = []
        if generation > 1 and generation not in journals:  # it is made before the snapshot that it continues
            lost = "what was learned since the snapshot, if anything, is lost"
            warnings.append(f"{self._journal_path(generation)} is not there: {lost}")
        for path in journals.values():
            events, n_damaged = read_journal(path)
            if not events and (old := read_old_journal(path))[0]:
                events, n_damaged = old
            found += events
            if n_damaged:
                warnings.append(f"{path} is damaged: {n_damaged} or more of its records are lost")
                if not self._read_only:
                    shutil.copyfile(path, path.with_suffix(".damaged"))
        return found

    def learners(self) -> list[str]:
        """Names of the learners whose state is here; empty for none that can be read."""
        for name in ("state.bin", "state.previous.bin"):
            try:
                found = self._read(self._folder / name)[1].get("learners")
            except (OSError, BundleError):
                continue
            if isinstance(found, list):
                return [str(each) for each in found]
        return []

    def exchange(self, away: list[str], wanted: list[str]) -> bool:
        """Put the state of some learners into a folder of theirs, and take back that of others.

        Returns:
            Whether there was one.
        """
        for source, target in ((self._folder, self._aside(away)), (self._aside(wanted), self._folder)):
            for path in [*source.glob("state*.bin"), *source.glob("journal-*.bin")]:
                target.mkdir(exist_ok=True)
                path.replace(target / path.name)
        sync_folder(self._folder)
        return bool(self.learners())

    def _aside(self, learners: list[str]) -> Path:
        name = "".join(c if c.isalnum() or c in "-+" else "_" for c in "+".join(learners))
        return self._folder / f"of-{name[:100]}"

    def load(self) -> Saved | None:
        """The newest whole state; None when nothing was ever saved. Call once, before `append`."""
        warnings = []
        is_foreign = False
        for name in ("state.bin", "state.previous.bin"):
            path = self._folder / name
            if not path.exists():
                continue
            try:
                schema, description, tensors = self._read(path)
            except BundleError as exc:
                warnings.append(str(exc))
                is_foreign |= isinstance(exc, _OtherBackboneError)
                self._put_away(path)  # never again taken for a whole one
                continue
            if name != "state.bin" and not self._read_only:
                path.replace(self._folder / "state.bin")  # the next snapshot keeps it as the one before
            records = self._continue(int(description.pop("generation")), warnings)
            return Saved(description, tensors, records, "; ".join(warnings) or None, schema)
        journals = self._journals()
        if journals and (is_foreign or 0 not in journals):
            for path in journals.values():
                self._put_away(path)
            warnings = warnings or [f"{self._folder} has journals, and not the snapshot that they continue"]
            return Saved({}, {}, [], "; ".join(warnings))
        records = self._continue(0, warnings)
        return Saved({}, {}, records, "; ".join(warnings) or None) if records or warnings else None

    def _put_away(self, path: Path) -> None:
        if not self._read_only:
            path.replace(path.with_suffix(".damaged"))

    def _read(self, path: Path) -> tuple[int, dict[str, Any], State]:
        """Its schema, the description and the tensors."""
        data = path.read_bytes()
        start = len(_MAGIC) + _DIGEST_BYTES
        body = data[start:]
        if data[: len(_MAGIC)] not in (_MAGIC, _MAGIC_2) or sha256_bytes(body) != data[len(_MAGIC) : start]:
            raise BundleError(f"{path} is damaged")
        description, tensors = tensorfile.decode(body, _KIND, str(path))
        if description.pop("backbone", None) != self._backbone:
            raise _OtherBackboneError(f"{path} belongs to another backbone")
        return 3 if data.startswith(_MAGIC) else 2, description, tensors

    def append(self, event: Event, *, durable: bool = False) -> None:
        """Add an event to the journal; it survives a kill of this process from here on, or even a power cut.

        Raises:
            OSError: It cannot be kept; the journal is as it was.
        """
        self._check_open()
        if self._journal is None:
            self._journal = Journal(self._journal_path(self._generation))
        self._journal.append(event, durable=durable)

    def _check_open(self) -> None:
        if self._closed:
            raise LearningError("the model was closed: its state folder may belong to another one by now")

    def put_aside(self, description: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep a state beside the one that is gone on from, in place of the one that was kept so before.

        Raises:
            OSError: The disk is full; the one before still holds.
        """
        self._check_open()
        with replace_file(self._folder / _ASIDE) as file:
            file.write(self._encoded({**description, "generation": 0}, tensors))

    def aside(self) -> Saved | None:
        """What `put_aside` kept last; None where there is none that is whole."""
        try:
            _, description, tensors = self._read(self._folder / _ASIDE)
        except (OSError, BundleError):
            return None
        return Saved(description, tensors, [], None)

    def drop_aside(self) -> None:
        """Keep nothing aside any more."""
        with suppress(OSError):
            (self._folder / _ASIDE).unlink(missing_ok=True)

    def _encoded(self, description: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
        body = tensorfile.encode(_KIND, {**description, "backbone": self._backbone}, tensors)
        return _MAGIC + sha256_bytes(body) + body

    def sync(self) -> None:
        """Make the journal survive a power cut."""
        if self._journal is not None:
            self._journal.sync()

    def snapshot(self, description: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Save a state that contains everything in the journal.

        Raises:
            OSError: The disk is full, or cannot make what was written last; snapshots and journals hold everything.
        """
        self._check_open()
        generation = self._generation + 1
        data = self._encoded({**description, "generation": generation}, tensors)
        state, previous = self._folder / "state.bin", self._folder / "state.previous.bin"
        if self._journal is not None:
            self._journal.sync()  # the one before rests on it
        # Not before the first snapshot: a journal without one must not look like a snapshot that was lost.
        journal = Journal(self._journal_path(generation)) if self._generation else None
        written: os.stat_result | None = None
        try:
            with replace_file(state) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                written = os.fstat(file.fileno())
                if state.exists():
                    # A second name for the old snapshot, when the new one is whole and before it takes the first name.
                    spare = self._folder / ".state.previous.tmp"
                    spare.unlink(missing_ok=True)
                    spare.hardlink_to(state)
                    spare.replace(previous)
        except BaseException:
            if written is not None and state.exists() and os.path.samestat(state.stat(), written):
                # It has its name, and may keep it: what comes is of it. All journals stay, in case it does not.
                self._go_on(generation, journal)
            elif journal is not None:
                journal.close()
                with suppress(OSError):
                    journal.path.unlink()
            raise
        before = self._state_generation
        self._go_on(generation, journal or Journal(self._journal_path(generation)))
        for number, path in self._journals().items():
            if number < before:
                path.unlink()
        sync_folder(self._folder)

    def _go_on(self, generation: int, journal: Journal | None) -> None:
        """From a snapshot of this generation; its journal is made with the next event where there is none yet."""
        self._state_generation = self._generation = generation
        if self._journal is not None:
            self._journal.close()
        self._journal = journal

    def close(self) -> None:
        """Close the journal; nothing more can be kept."""
        self._closed = True
        if self._journal is not None:
            self._journal.close()
            self._journal = None
