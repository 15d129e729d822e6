"""When a device may activate: days and times of its own local time, as a plan says them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

# What a device says its clock is ahead of UTC, in minutes, stands under this name in what it found about itself.
UTC_OFFSET = "utc_offset_min"
_MOST_AHEAD_MIN = 14 * 60
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TEXT = re.compile(r"(?:([A-Za-z,\- ]+) )?(\d{1,2}):(\d\d) ?- ?(\d{1,2}):(\d\d)")
_DAY_MIN = 24 * 60
EXPECTED = 'a window such as "Mon-Fri 02:00-05:00", "Sat,Sun 22:00-06:00" or "02:00-05:00"'


@dataclass(frozen=True, slots=True)
class Window:
    """So long on these days; one that ends before it begins ends on the next day.

    Attributes:
        days: On which it begins, 0 for Monday.
        begin_min: Minute of the day.
        end_min: The first minute after it.
    """

    days: frozenset[int]
    begin_min: int
    end_min: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read ``Mon-Fri 02:00-05:00``; without days it is every day.

        >>> sorted(Window.parse("Fri-Mon 22:00-06:00").days)
        [0, 4, 5, 6]

        Raises:
            ValueError: It is no such text.
        """
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"expected {EXPECTED}, got {text[:80]!r}")
        hours, minutes = (int(found[2]), int(found[4])), (int(found[3]), int(found[5]))
        begin, end = (60 * hour + minute for hour, minute in zip(hours, minutes, strict=True))
        if max(minutes) > 59 or begin >= _DAY_MIN or end > _DAY_MIN or begin == end:
            raise ValueError(f"expected {EXPECTED}, with times from 00:00 to 24:00, got {text[:80]!r}")
        return cls(_days(found[1] or "Mon-Sun", text), begin, end)

    def is_open(self, wall_ms: int, offset_min: int) -> bool:
        """Whether a device may activate.

        Args:
            wall_ms: The time, milliseconds since 1970 UTC.
            offset_min: Its local time is so far ahead of UTC.
        """
        local = datetime.fromtimestamp(max(wall_ms, 0) / 1000, UTC) + timedelta(minutes=offset_min)
        minute, day = 60 * local.hour + local.minute, local.weekday()
        if self.begin_min < self.end_min:
            return day in self.days and self.begin_min <= minute < self.end_min
        is_of_yesterday = (day - 1) % 7 in self.days and minute < self.end_min
        return is_of_yesterday or (day in self.days and minute >= self.begin_min)


def _days(text: str, whole: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.replace(" ", "").lower().split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"expected {EXPECTED}, got {whole[:80]!r}")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        found |= {(begin + i) % 7 for i in range((end - begin) % 7 + 1)}
    return frozenset(found)


def offset_min(hardware: Mapping[str, Any]) -> int | None:
    """How far the local time of a device is ahead of UTC; None where it has not said that."""
    said = hardware.get(UTC_OFFSET)
    is_one = isinstance(said, int) and not isinstance(said, bool) and abs(said) <= _MOST_AHEAD_MIN
    return said if is_one else None
