"""Everything that one device learned, as a document that another device of the same backbone can go on from.

Beside the state, which may be sealed (`edge.contract.sealing`), stands in the open what a coordinator has to know to
keep it: whose it is, and what it fits. Samples (features of what was seen, kept for replay and to judge heads by) are
in it only where the device was told so.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import numpy as np

from edge.contract import documents, sealing, strictjson, tensorfile
from edge.contract.digest import Digest
from edge.contract.documents import at_least
from edge.contract.errors import BundleError
from edge.learning import tree
from edge.learning.closed_form import StatisticsKnowledge
from edge.learning.learned import Learned, Trial
from edge.learning.recent import Recent
from edge.learning.replay import ReplayBuffer

KIND = "checkpoint"
_STATE = "learned-state"
# Of the state, unpacked: a document of a few kilobytes must not fill the memory.
MAX_STATE_BYTES = 512 * 2**20

Value = TypeVar("Value")
Count = Annotated[int, at_least(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What stands in the open.

    Attributes:
        device: Whose state it is.
        state_id: Of its state folder.
        model: Name of the model there.
        backbone: Digest of the frozen part, which must be the same where it is taken up.
        lineage: Identity of what was learned.
        learners: That learned it, which must be the same, too.
        samples: Labels learned.
        release: Counter of the last release that the model took.
        made_ms: Clock of the device, milliseconds since 1970.
        has_samples: Whether features of what was seen are in it.
        sealed_to: Name of the key that opens it; "" where it is not sealed.
    """

    device: str
    state_id: str
    model: str
    backbone: Digest
    lineage: str
    learners: tuple[str, ...]
    samples: Count
    release: Count
    made_ms: Count
    has_samples: bool
    sealed_to: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Checkpoint:
    """A document, read.

    Attributes:
        facts: What stands in the open.
        packed: The state, compressed, and sealed where the facts say so.
    """

    facts: Facts
    packed: bytes

    @classmethod
    def of(cls, facts: Facts, value: Learned, more: Mapping[str, Any], to: bytes | None = None) -> Checkpoint:
        """A checkpoint of a value.

        Args:
            facts: What to say in the open.
            value: Without samples where the facts say that there are none, see `without_samples`.
            more: Further arrays, under names of their own.
            to: The public key to seal it to.
        """
        arrays = {f"learned.{name}": array for name, array in tree.flatten(value).items()} | dict(more)
        return cls(facts, zlib.compress(tensorfile.encode(_STATE, {}, arrays))).sealed(to)

    def sealed(self, to: bytes | None) -> Checkpoint:
        """The same, sealed to a public key; as it is without one."""
        if to is None:
            return self
        facts = replace(self.facts, sealed_to=sealing.key_name(to))
        return Checkpoint(facts, sealing.seal(self.packed, to, _about(facts)))

    def opened(self, key: sealing.OpeningKey, what: str) -> Checkpoint:
        """The same, not sealed any more.

        Raises:
            BundleError: It was sealed to another key, or is damaged.
        """
        plain = sealing.unseal(self.packed, key, _about(self.facts), what)
        return Checkpoint(replace(self.facts, sealed_to=""), plain)

    def arrays(self, what: str) -> dict[str, Any]:
        """The arrays of the state; of the value under ``learned.``.

        Raises:
            BundleError: It is sealed, or damaged.
        """
        if self.facts.sealed_to:
            raise BundleError(f"{what} is sealed to the key {self.facts.sealed_to}; open it with that")
        unpacking = zlib.decompressobj()
        try:
            data = unpacking.decompress(self.packed, MAX_STATE_BYTES)
        except zlib.error as exc:
            raise BundleError(f"{what} is damaged: {exc}") from exc
        if not unpacking.eof:
            raise BundleError(f"{what} is cut short, or has more than {MAX_STATE_BYTES >> 20} MiB of state")
        return dict(tensorfile.decode(data, _STATE, what)[1])

    def encode(self) -> bytes:
        """The document."""
        state = {"state": np.frombuffer(self.packed, np.uint8)}
        return tensorfile.encode(KIND, documents.encode(self.facts), state)

    @classmethod
    def decode(cls, data: bytes, what: str) -> Checkpoint:
        """Read a document; the state in it is read by `arrays`.

        Raises:
            BundleError: It is damaged, or no checkpoint.
        """
        description, tensors = tensorfile.decode(data, KIND, what)
        state = tensors.get("state")
        if state is None or state.dtype != np.uint8 or state.ndim != 1:
            raise BundleError(f"{what} has no state in it")
        try:
            facts = documents.decode(Facts, description, what)
        except documents.DocumentError as exc:
            raise BundleError(str(exc)) from exc
        return cls(facts, state.tobytes())


def _about(facts: Facts) -> bytes:
    return strictjson.dumps(documents.encode(facts))


def without_samples(value: Value) -> Value:
    """A value of which no sample can be seen any more.

    What is kept for replay and to judge by is emptied, and what waits beside the sums is added to them.
    """
    found: Value = _bare(value)
    return found


def _bare(value: Any) -> Any:
    if isinstance(value, ReplayBuffer):
        return ReplayBuffer(
            np.zeros_like(value.seen),
            tuple(np.zeros_like(each) for each in value.codes),
            np.zeros_like(value.scales),
            np.zeros_like(value.targets),
        )
    if isinstance(value, Recent):
        return value.last(0)
    if isinstance(value, StatisticsKnowledge):
        value = value.settled()
    if isinstance(value, Trial):
        value = replace(value, events=np.zeros(0, np.int64))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: _bare(each) for name, each in parts.items()}
        is_same = all(changed[name] is each for name, each in parts.items())
        return value if is_same else replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(_bare(each) for each in value)
    if isinstance(value, Mapping):
        return {key: _bare(each) for key, each in value.items()}
    return value
