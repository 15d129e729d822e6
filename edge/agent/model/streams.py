"""What a model remembers of each stream of samples, in memory: bounded in number and bytes, forgotten when silent.

A stream that is not known begins with the state that a model begins with: after a restart, another bundle, a silence
or a time with more streams than there is room for. `steps` of it says so: it is 1 again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from edge.contract.errors import BundleError
from edge.inference.session import Arrays

# The stream of samples that name none.
DEFAULT = "default"


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamLimits:
    """How many streams a model may remember.

    Attributes:
        most: Streams side by side; of more, the one that was silent longest makes room.
        max_mb: Memory of their states, in MiB.
        idle_s: A stream that was silent for so long begins anew.
    """

    most: int = 256
    max_mb: float = 16.0
    idle_s: float = 600.0


@dataclass(frozen=True, eq=False, slots=True)
class _Kept:
    state: Arrays
    steps: int
    seen_s: float


class Streams:
    """See the module.

    Args:
        begin: What a stream begins with, by name of input; empty for a model that remembers nothing: nothing is kept.
        limits: Of what is kept.

    Attributes:
        most: So many are kept, by number and memory.
        forgotten: Streams that made room for others, so far.

    Raises:
        BundleError: Not even one state is allowed so much memory.
    """

    def __init__(self, begin: Arrays, limits: StreamLimits) -> None:
        self._begin, self._limits = begin, limits
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one that was silent longest first
        self.forgotten = 0
        self._size = sum(array.nbytes for array in begin.values())
        self.most = min(limits.most, int(limits.max_mb * 2**20 // max(self._size, 1)))
        if begin and self.most < 1:
            size_mb = self._size / 2**20
            raise BundleError(
                f"what the model remembers of a stream takes {size_mb:.1f} MiB, allowed are {limits.max_mb:g} "
                f"(--stream-memory)"
            )

    def __len__(self) -> int:
        return len(self._kept)

    def state(self, name: str, now_s: float, *, anew: bool = False) -> Arrays:
        """What the next sample of a stream takes, or with `anew` the first one of it."""
        self._expire(now_s)
        kept = None if anew else self._kept.get(name)
        return self._begin if kept is None else kept.state

    def keep(self, name: str, state: Arrays, now_s: float, *, anew: bool = False) -> int:
        """Keep what a sample left behind.

        Args:
            name: Of the stream.
            state: By name of input.
            now_s: Monotonic time.
            anew: Whether the sample was the first of its stream, whatever was there before.

        Returns:
            How many samples the stream has had since it began; 0 where there is nothing to remember.
        """
        if not self._begin:
            return 0
        before = self._kept.pop(name, None)
        steps = 1 if before is None or anew else before.steps + 1
        self._kept[name] = _Kept(state, steps, now_s)
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
            self.forgotten += 1
        return steps

    def _expire(self, now_s: float) -> None:
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if now_s - oldest.seen_s <= self._limits.idle_s:
                return
            self._kept.popitem(last=False)

    def status(self) -> dict[str, Any]:
        """For people: how many there are, how many there may be, and what each takes."""
        return {
            "open": len(self._kept),
            "most": self.most,
            "state_bytes": self._size,
            "idle_s": self._limits.idle_s,
            "forgotten": self.forgotten,
        }
