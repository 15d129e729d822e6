"""What a bundle has learned, kept on disk: a snapshot of the value, and the events since, each whole or absent.

An event is put into the journal before it is acknowledged, so a kill loses nothing that was. Labels may wait for the
learning budget: those are events in the journal that were not applied yet.
"""

from __future__ import annotations

import uuid
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from edge.agent.model import schema2
from edge.agent.model.journal import Saved
from edge.agent.model.shadow import Shadow
from edge.agent.model.store import LearnedStore
from edge.contract.errors import BundleError, EdgeError, LearningError, ResourceError
from edge.contract.training import FloatArray
from edge.learning import saved as saved_value
from edge.learning import tree
from edge.learning.events import (
    ClassAdded,
    Confirmed,
    Contributed,
    Event,
    HeadOffered,
    HeadReplaced,
    Labelled,
    RolledBack,
)
from edge.learning.learned import Learned
from edge.learning.learner import part
from edge.learning.learning import Learning
from edge.learning.packing import PackedFeatures

_LEARNED, _WAITING = "learned", "waiting"


class LearnedState:
    """One `Learned` and its history; see the module.

    Args:
        learning: The rules.
        store: Where it is kept; None for memory only.
        read_only: Take what is in the store, and keep nothing.

    Attributes:
        value: What is known now.
        waiting: Labels that are safe and not learned yet, with the answers that were given, oldest first.
        dropped: Labels that waited, and are not learned since what they waited for was replaced; they may be cleared.
        refused: Labels that were safe and could not be learned, since it was opened.
        warnings: What went wrong and was survived, for whoever shows them; they may be cleared.
        inferences: Answers so far, as they were last saved.
        answered: Of recent labels of classes the class and what was answered, the same; none of another head's.
        restored: Number of the order by which a checkpoint was taken up last; it is in every snapshot since.
        repeated: Labels that were learned at the start, of the journal and of those that waited.
        shadow: The version before the last release, while a fleet judges that; else None. It is not kept on disk.

    Raises:
        BundleError: What is on disk has classes of its own and cannot be read.
    """

    def __init__(self, learning: Learning, store: LearnedStore | None, *, read_only: bool = False) -> None:
        self._learning = learning
        self._store = None if read_only else store
        self.value = learning.begin(uuid.uuid4().hex)
        self.waiting: deque[tuple[Labelled, FloatArray]] = deque()
        self.dropped: list[Labelled] = []
        self.refused = 0
        self.warnings: list[str] = []
        self.inferences = self.restored = self.repeated = 0
        self.answered: list[tuple[int, int]] = []
        self.shadow: Shadow | None = None
        self._is_synced, self._has_events = True, False
        self._unkept, self._why_unkept = 0, ""  # what the disk did not take since the last snapshot
        if store is not None:
            self._take_up(store, read_only)

    # Events

    def keep(self, event: Event, value: Learned) -> None:
        """Take what an event made of the value, and keep the event.

        What must not be lost (a head, a class) is safe from a power cut when this returns.

        Raises:
            OSError: A head or a class cannot be kept; nothing changed.
        """
        self._keep(event)
        self.value = value

    def wait(self, label: Labelled, answer: FloatArray) -> None:
        """Keep a label that is learned later: by who takes it from `waiting`, or after a restart."""
        self._learning.check(self.value, label)
        self._keep(label)
        self.waiting.append((label, answer))
        self.dropped = [each for each in self.dropped if each is not label]

    def compare(self, event: Event) -> None:
        """Let the version before the last release answer labels that come, before anybody learns them."""
        if self.shadow is None or not isinstance(event, Labelled):
            return
        try:
            self.shadow.labelled(self.value, event)
        except Exception as exc:  # noqa: BLE001  # who is only compared must not cost a label
            self.shadow = None
            self.warnings.append(f"the version before the release is not compared any more: {exc}")

    def replace(self, value: Learned) -> None:
        """Go on from another value, which is safe from a power cut when this returns.

        Raises:
            LearningError: It is of another head, or of other learners; nothing changed.
            OSError: It cannot be kept; nothing changed.
        """
        saved_value.check_own(self._learning, value)
        value = _still_told(value, self.value)
        saved_value.read(self._learning, tree.flatten(value))  # what could not be read again is not taken
        before, self.value = (self.value, self.waiting, self.answered), value
        self.waiting, self.answered = deque(), []
        try:
            self.save()
        except OSError:
            self.value, self.waiting, self.answered = before
            raise
        waiting = before[1]
        self.dropped += [label for label, _ in waiting]
        with suppress(OSError):  # no event says this: the snapshot before must hold it, too, should this one be damaged
            self.save()
        if self._store is not None:
            self._store.drop_aside()  # it was of another history

    def correct(self, label: Labelled, other: Labelled) -> bool:
        """Put another label in the place of one that waits; False where it does not wait. Safe when this returns.

        Raises:
            OSError: It cannot be kept; nothing changed.
        """
        at = next((i for i, (each, _) in enumerate(self.waiting) if each is label), -1)
        if at < 0:
            return False
        answer = self.waiting[at][1]
        self.waiting[at] = other, answer
        try:
            self.save()  # the journal has the label of before
        except OSError:
            self.waiting[at] = label, answer
            raise
        with suppress(OSError):  # as in `replace`
            self.save()
        return True

    def waiting_arrays(self) -> dict[str, Any]:
        """Labels that are not learned yet, as `take_up` takes them."""
        return {
            f"{_WAITING}.{name}": array for name, array in _side_by_side([label for label, _ in self.waiting]).items()
        }

    def take_up(self, arrays: dict[str, Any], number: int = 0) -> None:
        """Go on from what another device of the same bundle and learners learned; as `replace`.

        A head that was on trial there stays: here is nothing to go back to.

        Args:
            arrays: Of a checkpoint.
            number: Of the order; it is kept in the same write.

        Raises:
            LearningError: It is of another head, or damaged; nothing changed.
            OSError: It cannot be kept; nothing changed.
        """
        try:
            value = saved_value.read(self._learning, part(arrays, f"{_LEARNED}."))
            events: list[Event] = [*_one_by_one(part(arrays, f"{_WAITING}."))]
            if value.trial is not None:
                events.insert(0, Confirmed())
            for event in events:
                value, _ = self._learning.advance(value, event)
        except (KeyError, TypeError, ValueError) as exc:
            raise LearningError(f"what was learned cannot be read: {exc}") from exc
        before, self.restored = self.restored, max(number, self.restored)
        try:
            self.replace(value)
        except BaseException:
            self.restored = before
            raise
        self.shadow = None

    def reset(self) -> None:
        """Begin anew, under another lineage.

        Raises:
            OSError: It cannot be kept; nothing changed.
        """
        self.replace(self._learning.begin(uuid.uuid4().hex))

    def put_aside(self, value: Learned, replaced_by: int) -> None:
        """Keep what a release replaced, for who wants to go back; in place of what was kept before."""
        if self._store is None:
            return
        try:
            self._store.put_aside(self._description() | {"replaced_by": replaced_by}, _flat(value))
        except OSError as exc:
            self.warnings.append(f"there will be no way back from this head, the disk does not take it: {exc.strerror}")

    def before(self, release: int | None = None) -> Learned | None:
        """What `put_aside` kept last, of these learners; None for nothing that can be used, or of another release."""
        found = None if self._store is None else self._store.aside()
        if found is None or not self._learning.reads(found.description.get("learners") or ()):
            return None
        if release is not None and found.description.get("replaced_by") != release:
            return None
        try:
            return saved_value.read(self._learning, part(found.tensors, f"{_LEARNED}."))
        except LearningError as exc:
            self.warnings.append(f"what was put aside cannot be used: {exc}")
            return None

    # Keeping

    def _keep(self, event: Event) -> None:
        """Append to the journal. What took effect already is kept in memory where the disk takes nothing."""
        self._has_events = True
        if self._store is None:
            return
        is_durable = not isinstance(event, Labelled | Contributed)
        try:
            self._store.append(event, durable=is_durable)
            self._is_synced = is_durable
        except OSError as exc:
            if isinstance(event, ClassAdded | HeadOffered | HeadReplaced):
                raise
            if not self._unkept:
                self.warnings.append(
                    f"what comes is kept in memory only, the disk does not take it: {exc.strerror}; it is lost unless "
                    f"a snapshot can be written before the end"
                )
            self._unkept += len(event) if isinstance(event, Labelled) else 1
            self._why_unkept = str(exc.strerror)

    def save(self) -> None:
        """Write a snapshot; without a state folder this does nothing.

        Raises:
            OSError: The disk is full; what was there before still holds.
        """
        if self._store is None:
            return
        self._store.snapshot(self._description(), _flat(self.value) | self.waiting_arrays())
        self._has_events, self._is_synced, self._unkept = False, True, 0

    def _description(self) -> dict[str, Any]:
        return {
            "learners": list(self._learning.learners),
            "inferences": self.inferences,
            "answered": self.answered,
            "restored": self.restored,
        }

    def sync(self) -> None:
        """Make the journal survive a power cut."""
        if self._store is not None:
            self._store.sync()
        self._is_synced = True

    @property
    def is_safe(self) -> bool:
        """Whether a power cut now would lose nothing."""
        return self._store is None or (self._is_synced and not self._unkept)

    @property
    def journal_suffices(self) -> bool:
        """Whether the last snapshot and the journal hold everything."""
        return not self._unkept

    @property
    def unsafe(self) -> str:
        """What a kill now would lose, and why, for people; empty for nothing."""
        return f"{self._unkept} labels or other events are in memory only: {self._why_unkept}" if self._unkept else ""

    def close(self) -> None:
        """Save what is in the journal only, and close it.

        Raises:
            ResourceError: The disk does not take it, and labels that the journal does not hold are lost.
        """
        try:
            if self._has_events:
                self.save()
        except OSError as exc:
            if self._unkept:
                raise ResourceError(
                    f"{self._unkept} labels or other events that came while the disk took nothing are lost: "
                    f"{exc.strerror}"
                ) from exc
            # The journal holds everything: the next start learns it again.
        finally:
            if self._store is not None:
                self._store.close()

    # Taking up what is there

    def _take_up(self, store: LearnedStore, read_only: bool) -> None:
        own, kept = list(self._learning.learners), store.learners()
        if kept and not self._learning.reads(kept) and not read_only:
            is_back = store.exchange(kept, own)
            went_on = "going on from what they had learned themselves" if is_back else "starting anew"
            self.warnings.append(f"the state of the learners {', '.join(kept)} was put aside; {went_on}")
        saved = store.load()
        if saved is None:
            self.save()  # the lineage must be durable before anything is learned under it
            return
        if saved.warning:
            self.warnings.append(saved.warning)
        if not saved.description:
            self._repeat(saved.journal)
            if saved.warning:
                n = self._learning.n_samples(self.value)
                self.warnings.append(f"learning starts anew, with {n} labels of the journal")
            self.save()  # this lineage, too
            return
        try:
            waiting = self._read(saved)
        except (EdgeError, KeyError, TypeError, ValueError) as exc:
            if _has_own_classes(saved, len(self._learning.shipped_names)):
                raise BundleError(f"the saved state cannot be used: {exc}; delete it to start anew") from exc
            # A new lineage without the journal of the old one, whose labels may already be in a merge.
            self.value, self.waiting = self._learning.begin(uuid.uuid4().hex), deque()
            self.warnings.append(f"the saved state was not used: {exc}")
            self.save()
            return
        self._repeat([*waiting, *saved.journal])
        if saved.schema != 3 and not read_only:
            self.save()

    def _read(self, saved: Saved) -> list[Labelled]:
        """Take the value of a snapshot; the labels that waited then."""
        if not self._learning.reads(saved.description.get("learners") or ()):
            raise LearningError(f"it is of the learners {saved.description.get('learners')}")
        self.inferences = int(saved.description.get("inferences", 0))
        self.restored = int(saved.description.get("restored", 0))
        self.answered = [(int(label), int(said)) for label, said in saved.description.get("answered", ())]
        if saved.schema == 2:
            self.value, waiting = schema2.learned(self._learning, saved)
            return waiting
        found = part(saved.tensors, f"{_LEARNED}.")
        self.value = saved_value.read(self._learning, found)
        return _one_by_one(part(saved.tensors, f"{_WAITING}."))

    def _repeat(self, events: list[Any]) -> None:
        """Do once more what the journal says. Of labels, a contribution knows how many were learned before it."""
        waiting: deque[Labelled] = deque()

        def advance(event: Event) -> None:
            try:
                self.value, _ = self._learning.advance(self.value, event)
                if isinstance(event, HeadReplaced | RolledBack):  # what was answered was another head's
                    self.answered = []
            except EdgeError as exc:
                self.refused += isinstance(event, Labelled)
                self.warnings.append(f"an event of the journal was not repeated: {exc}")

        for event in events:
            self._has_events = True
            if isinstance(event, Labelled):
                self.repeated += len(event)
                waiting.append(event)
                continue
            while waiting and not (
                isinstance(event, Contributed) and self._learning.n_samples(self.value) == event.version
            ):
                advance(waiting.popleft())
            advance(event)
        while waiting:
            advance(waiting.popleft())


def _still_told(value: Learned, now: Learned) -> Learned:
    """A value with what was told under noise by now: told again it would have other noise, which tells more."""
    if value.lineage != now.lineage or now.disclosed is None:
        return value
    is_wider = now.disclosed.told.moment.shape[1] > len(value.class_names)
    return replace(value, disclosed=None if is_wider else now.disclosed.grown(len(value.class_names)))


def _has_own_classes(saved: Saved, shipped: int) -> bool:
    """Whether classes were added on the device: what was learned cannot be begun anew then."""
    names = saved.tensors.get(f"{_LEARNED}.class_names")
    here = names is not None and names.shape == () and int(names) > shipped
    return here or schema2.has_own_classes(saved, shipped)


def _flat(value: Learned) -> dict[str, Any]:
    """A value as arrays, for a snapshot."""
    return {f"{_LEARNED}.{name}": array for name, array in tree.flatten(value).items()}


def _side_by_side(labels: list[Labelled]) -> dict[str, Any]:
    """Labels as arrays, for a snapshot."""
    if not labels:
        return {}
    return {
        "codes": np.concatenate([label.features.codes for label in labels]),
        "scales": np.concatenate([label.features.scales for label in labels]),
        "targets": np.concatenate([label.target for label in labels]),
        "weights": np.concatenate([label.weight for label in labels]),
    }


def _one_by_one(found: dict[str, Any]) -> list[Labelled]:
    """The labels again that `_side_by_side` was given."""
    if not found:
        return []
    features = PackedFeatures(found["codes"], found["scales"])
    return Labelled(features, found["targets"], found["weights"]).each()
