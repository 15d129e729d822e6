"""Whether two devices go by one name: their lives take turns, and a device has one life at a time.

A life is a state folder on a device: within it each connection has the number after that of the one before. A copied
folder has the identity of the first one and counts on by itself, so each number comes twice, or old ones come back. A
folder that could not count a start has had a name for that start alone: its life goes on, under this name and after it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from edge.contract.names import is_passing

# Of one device; who has more of them is told often enough. And devices that are remembered.
_MAX_LIVES, _MAX_DEVICES = 8, 100_000


@dataclass(frozen=True, slots=True)
class Life:
    """The newest word of one life.

    Attributes:
        state_id: Of its state folder.
        session: Number of its connection.
        ts_ms: The device's clock then; the same word again has the same.
    """

    state_id: str
    session: int
    ts_ms: int


class Seen(Enum):
    """What a word says of whoever speaks."""

    SAME = "the life goes on"
    ANEW = "another life began"
    TURNS = "an earlier life is back"
    LATE = "said before what is known already"


def meet(lives: tuple[Life, ...], said: Life) -> tuple[tuple[Life, ...], Seen]:
    """Take a word; lives as they are then, the newest last.

    A connection may have been missed, so a number that jumps is the newest life's where none fits exactly. What is
    older by number and clock is late, and nobody's new life.

    >>> a, b = Life("a", 7, 0), Life("a", 7, 5)  # a copied folder
    >>> lives, _ = meet((), a)
    >>> lives, seen = meet(lives, b); seen
    <Seen.ANEW: 'another life began'>
    >>> lives, seen = meet(lives, Life("a", 8, 9))  # it may be the copy's next
    >>> meet(lives, Life("a", 8, 12))[1]
    <Seen.TURNS: 'an earlier life is back'>
    """
    if not lives:
        return (said,), Seen.SAME
    if said in lives:  # a repeat of the broker, of whichever life
        return lives, Seen.SAME
    own = [life for life in reversed(lives) if life.state_id == said.state_id]
    if own and all(said.session <= life.session and said.ts_ms < life.ts_ms for life in own):
        return lives, Seen.LATE
    next_of = [life for life in own if said.session == life.session + 1]
    later_than = [life for life in own if said.session > life.session]
    fitting = next_of or later_than
    if not fitting:
        return (*lives[1 - _MAX_LIVES :], said), Seen.ANEW
    found = fitting[0]
    later = lives[lives.index(found) + 1 :]
    seen = Seen.SAME if all(is_passing(life.state_id, found.state_id) for life in later) else Seen.TURNS
    return (*(life for life in lives if life is not found), said), seen


class Lives:
    """Lives of devices since the coordinator began; retained words bring the newest back at its start."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, tuple[Life, ...]] = OrderedDict()

    def meet(self, device: str, said: Life) -> Seen:
        """Take a word of a device, see `meet`."""
        lives, seen = meet(self._of.pop(device, ()), said)
        self._of[device] = lives
        if len(self._of) > _MAX_DEVICES:
            self._of.popitem(last=False)
        return seen

    def begin(self, device: str) -> None:
        """Whatever comes next is expected: a person looked at it, or it has other hardware."""
        self._of.pop(device, None)

    def folders(self, device: str) -> list[str]:
        """Identities of the state folders that came under a name."""
        return sorted({life.state_id for life in self._of.get(device, ())})
