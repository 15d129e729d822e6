"""The time as pure code is given it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Now:
    """A moment.

    Attributes:
        s: Monotonic seconds, for intervals; starts anywhere.
        wall_ms: Milliseconds since 1970, for people; may be wrong by years and may jump.
    """

    s: float
    wall_ms: int
