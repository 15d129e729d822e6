"""Labels come late: a bounded ring keeps what is needed to learn from a sample until its label names it.

The ring lives in memory: a label for a sample from before a restart is not joined.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from edge.contract.training import FloatArray
from edge.learning.events import Labelled
from edge.learning.packing import PackedFeatures
from edge.learning.shelf import Shelf

MAX_ID_LENGTH = 128
# Samples whose id came again, so that no label can name them: as many as `edge.agent.model.recognition` looks at stay,
# where there is room, so that an application with one name for all of its samples shows what is seen here, too.
_MOST_NAMELESS = 256


@dataclass(frozen=True, eq=False, slots=True)
class Remembered:
    """A sample that waits for its label: features, the answer ``(n_outputs,)``, and when it was seen (seconds)."""

    features: PackedFeatures
    answer: FloatArray
    seen_s: float


class Given(NamedTuple):
    """The label that a sample has.

    Attributes:
        target: Its class, or its quantities.
        weight: How much it is trusted.
        label: Itself while nobody has learned it, else None.
    """

    target: tuple[float, ...]
    weight: float
    label: Labelled | None

    @classmethod
    def of(cls, label: Labelled) -> Given:
        """One that was not learned."""
        return cls(tuple(label.target.reshape(-1).tolist()), label.weight.item(), label)


class _Place(NamedTuple):
    """Where a sample lies."""

    shelf: Shelf
    number: int
    seen_s: float

    def sample(self) -> Remembered:
        features, answer = self.shelf.see(self.number)
        return Remembered(features, answer, self.seen_s)


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of a label; true where it counts.

    Attributes:
        why: It does not count, for people; "" where it does.
        replaced: It took the place of an earlier one that nobody had learned yet.
    """

    why: str = ""
    replaced: bool = False

    def __bool__(self) -> bool:
        return not self.why


class LabelRing:
    """Joins labels to samples by sample id.

    The oldest samples make room for new ones, and a sample that is older than `expiry_s` is no longer joined. A label
    is joined once, unless it turns out that it cannot be learned; `given` is the label of a sample that has one, of as
    many samples as may wait. Once a label is learned nothing else is kept of its sample.

    Args:
        capacity: Samples kept at most.
        expiry_s: How long a label may be late.
    """

    def __init__(self, capacity: int, expiry_s: float) -> None:
        self._capacity = capacity
        self._expiry_s = expiry_s
        self._shelves: dict[tuple[int, int], Shelf] = {}  # by numbers of features and outputs: classes may be added
        self._waiting: OrderedDict[str | int, _Place] = OrderedDict()  # without a name under a number
        self._nameless: deque[int] = deque()
        self._count = 0
        self._given: OrderedDict[str, tuple[Labelled, Remembered]] = OrderedDict()  # and not learned yet
        self._learned: OrderedDict[str, Given] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, sample_id: str, sample: Remembered) -> None:
        """Remember a sample; the same id again replaces the older one, which is only seen from then on."""
        older = self._waiting.pop(sample_id, None)
        if older is not None:
            self._count += 1
            self._waiting[self._count] = older
            self._nameless.append(self._count)
            if len(self._nameless) > _MOST_NAMELESS:
                self._take(self._nameless.popleft())
        self._given.pop(sample_id, None)
        self._learned.pop(sample_id, None)
        self._keep(sample_id, sample)

    def _keep(self, sample_id: str, sample: Remembered, *, oldest: bool = False) -> None:
        shape = sample.features.codes.shape[1], len(sample.answer)
        if shape not in self._shelves:
            self._shelves = {each: shelf for each, shelf in self._shelves.items() if len(shelf)}
            self._shelves[shape] = Shelf(*shape)
        shelf = self._shelves[shape]
        self._waiting[sample_id] = _Place(shelf, shelf.put(sample.features, sample.answer), sample.seen_s)
        if oldest:
            self._waiting.move_to_end(sample_id, last=False)
        while len(self._waiting) > self._capacity:
            self._take(self._nameless.popleft() if self._nameless else next(iter(self._waiting)))

    def _take(self, sample_id: str | int) -> _Place | None:
        """The place that it had; what lies there may be seen until another sample comes."""
        place = self._waiting.pop(sample_id, None)
        if place is not None:
            place.shelf.clear(place.number)
        return place

    def join(self, sample_id: str, now_s: float) -> Remembered | None:
        """The sample that this label is for; None when it is unknown, already labelled or expired."""
        place = self._take(sample_id)
        return None if place is None or now_s - place.seen_s > self._expiry_s else place.sample()

    def waiting(self, sample_id: str) -> Remembered | None:
        """A sample that waits for its label; it stays."""
        place = self._waiting.get(sample_id)
        return None if place is None else place.sample()

    def give(self, sample_id: str, label: Labelled, sample: Remembered) -> None:
        """Remember which label a sample has that was joined."""
        self._given.pop(sample_id, None)
        self._given[sample_id] = label, sample
        if len(self._given) + len(self._learned) > self._capacity:
            (self._learned or self._given).popitem(last=False)

    def given(self, sample_id: str) -> Given | None:
        """The label that a sample has; None for one that has none, or that is not remembered."""
        found = self._given.get(sample_id)
        return self._learned.get(sample_id) if found is None else Given.of(found[0])

    def correct(self, sample_id: str, label: Labelled) -> None:
        """Another label of a sample that has one which nobody learned yet."""
        self.give(sample_id, label, self._given[sample_id][1])

    def learned(self, label: Labelled) -> None:
        """Of the sample that has this very label, keep no more than that."""
        if sample_id := self._whose(label):
            del self._given[sample_id]
            self._learned[sample_id] = Given.of(label)._replace(label=None)

    def put_back(self, label: Labelled) -> str:
        """Let the sample that has this very label wait for one again, as the oldest; its id, "" if it is forgotten."""
        if sample_id := self._whose(label):
            self._keep(sample_id, self._given.pop(sample_id)[1], oldest=True)
        return sample_id

    def _whose(self, label: Labelled) -> str:
        return next((each for each, (given, _) in self._given.items() if given is label), "")

    def newest(self, count: int) -> Sequence[Remembered]:
        """The samples that came last, the newest last, those without a name among them; they stay."""
        return [place.sample() for place in islice(reversed(self._waiting.values()), count)][::-1]
