"""What can happen to what a device has learned; `edge.learning.learning` says what each event does."""

from __future__ import annotations

from dataclasses import dataclass

from edge.contract.training import FloatArray
from edge.learning.compression import EXACT, Compression
from edge.learning.disclosure import Noise
from edge.learning.exchange import HeadRelease
from edge.learning.packing import PackedFeatures
from edge.learning.task import Targets


@dataclass(frozen=True, eq=False, slots=True)
class Labelled:
    """Labels came for one sample or several: all of them are learned, or none.

    Attributes:
        features: ``(n, d)``, packed; n is 1 or more.
        target: ``(n,)`` int64 classes or ``(n, n_outputs)`` float32.
        weight: ``(n,)`` float32 from 0 to 1, how much each is trusted.
    """

    features: PackedFeatures
    target: Targets
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.weight)

    def each(self) -> list[Labelled]:
        """Every label alone."""
        return [self.rows(i, i + 1) for i in range(len(self))]

    def rows(self, start: int, stop: int) -> Labelled:
        """Some of them."""
        return Labelled(self.features.rows(start, stop), self.target[start:stop], self.weight[start:stop])


@dataclass(frozen=True, slots=True)
class Contributed:
    """What was learned so far was sent to the fleet.

    Attributes:
        version: Labelled samples in it: labels that came before this event may have been learned after it.
        compression: How it was sent: what arrives is remembered.
        noise: On what was told for the first time; None where all was sent as it is.
        seed: That the noise follows from.
    """

    version: int
    compression: Compression = EXACT
    noise: Noise | None = None
    seed: bytes = b""


@dataclass(frozen=True, slots=True)
class ClassAdded:
    """There is a further class of this name."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class HeadOffered:
    """A head was pushed that competes with those that are here.

    Attributes:
        release: The head; a merge is one that says whose contributions are in it.
        counter: Of the release.
        fits: Whether the last samples of this device look like those that it was learned from, more than like those
            that the bundle was made with. Then it is trusted until labels say who is right, and speaks for classes
            that this device has not met. None where nobody can tell.
    """

    release: HeadRelease
    counter: int
    fits: bool | None = None


@dataclass(frozen=True, eq=False, slots=True)
class HeadReplaced:
    """A head was pushed that takes everything, on trial.

    Attributes:
        release: The head.
        counter: Of the release.
    """

    release: HeadRelease
    counter: int


@dataclass(frozen=True, slots=True)
class MergeRecognized:
    """What was seen since the newest merge came says whose world this is; when it came nobody could tell.

    Attributes:
        fits: As of `HeadOffered`.
    """

    fits: bool


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The head on trial stays."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The head on trial goes, and what was before it comes back; labels that came meanwhile are learned by that."""


Event = Labelled | Contributed | ClassAdded | HeadOffered | HeadReplaced | MergeRecognized | Confirmed | RolledBack
