"""What a learner that sends changes must remember: the head it started from, and what is still on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters
from edge.learning.compression import Compression, Packed, same

# Contributions that may still be on their way when a merge comes back.
KEPT_CONTRIBUTIONS = 4

Head = Mapping[str, FloatArray]


@dataclass(frozen=True, eq=False, slots=True)
class SentHead:
    """A head whose change may still be on its way.

    Attributes:
        version: Samples that had been learned when it was sent.
        head: As it was then; where the change was sent shorter, the base and what arrives of it.
    """

    version: int
    head: Head


@dataclass(frozen=True, eq=False, slots=True)
class Changes:
    """The base of a head, and the contributions that may come back in a merge.

    Attributes:
        base: The head that changes are counted from: the shipped one at first.
        version: Samples that had been learned when it was current.
        sent: Contributions on their way, oldest first.
    """

    base: Head
    version: int = 0
    sent: tuple[SentHead, ...] = ()

    def __post_init__(self) -> None:
        if self.version < 0 or any(each.version < 0 for each in self.sent):
            raise LearningError("changes are counted from a negative number of samples")

    @classmethod
    def template(cls, head: Head) -> Changes:
        """For `edge.learning.tree.build`, of heads like this one."""
        return cls(head, 0, (SentHead(0, head),))

    def since(self, live: Head) -> Parameters:
        """The change since the base."""
        return {name: live[name] - self.base[name] for name in live}

    def contributed(self, live: Head, n_samples: int, compression: Compression) -> tuple[Changes, Packed]:
        """The change since the base as it is sent, remembered as it arrives under the number of samples.

        What does not arrive stays the difference between the live head and the one that is remembered, so `rebased`
        puts it on top of the merge: the next change has it.
        """
        packed = compression.pack(self.since(live))
        head = {name: self.base[name] + packed.tensors[name] for name in live} if packed.codes else live
        if not self.sent or self.sent[-1].version != n_samples:
            return replace(self, sent=(*self.sent, SentHead(n_samples, head))[-KEPT_CONTRIBUTIONS:]), packed
        before = self.sent[-1].head
        return self, packed if same(before, head) else Packed(self.since(before))

    def rebased(self, parameters: Head, included: int, live: Head, n_samples: int) -> tuple[Changes, Parameters]:
        """Put what was learned since the included version on top of a merged head.

        Returns:
            The changes since that, and the head to go on from.

        Raises:
            LearningError: The merged head has other parameters, or not finite ones.
        """
        if {n: a.shape for n, a in parameters.items()} != {n: a.shape for n, a in live.items()}:
            raise LearningError("the merged head has other parameters than this one")
        version = max(included, self.version)
        known = {self.version: self.base, n_samples: live, **{each.version: each.head for each in self.sent}}
        if version not in known:
            version = n_samples  # no longer known which part is included: taken as all of it
        start, base = known[version], {name: np.array(array, np.float32) for name, array in parameters.items()}

        def moved(head: Head) -> Parameters:
            return {name: base[name] + (head[name] - start[name]) for name in base}

        head = moved(live)
        if not all(np.isfinite(array).all() for array in head.values()):
            raise LearningError("the merged head has values that are not finite")
        still_out = tuple(SentHead(each.version, moved(each.head)) for each in self.sent if each.version > version)
        return Changes(base, version, still_out), head

    def grown(self, wider: Callable[[Head], Head]) -> Changes:
        """With further classes in every head that is remembered."""
        sent = tuple(SentHead(each.version, wider(each.head)) for each in self.sent)
        return Changes(wider(self.base), self.version, sent)
