"""How much a device may send and receive in a day or a month, and how much of that it has: counted over restarts.

What is counted are MQTT messages both ways with what is around them on the line (`edge.channel.transport.packet_bytes`,
which is generous), acknowledgements and keep-alive. What TLS adds, and what TCP sends twice, is not known here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from edge.agent.slots.slots import read_record, write_record
from edge.contract.clock import Now
from edge.contract.errors import ConfigError

# The part of a cap that is kept for what must be said: liveness, states, events.
_ESSENTIAL = 0.05
# A count is written when it has grown by this part of the cap: what a kill can lose of it.
_UNWRITTEN = 0.001
_LEAST_UNWRITTEN_BYTES = 4096
ACKNOWLEDGED_BYTES = 44  # of a QoS 1 message: IP, TCP and PUBACK
KEEP_ALIVE_BYTES_PER_S = 170 / 30  # a PINGREQ, its answer and their TCP acknowledgements every 30 s
_LONGEST_PAUSE_S = 60.0  # who was not asked for longer slept, and kept nothing alive
_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9}
_LEAST = {"day": 10**6, "month": 20 * 10**6}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(kb|mb|gb)\s*/\s*(day|month)\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCap:
    """So much in so long.

    Attributes:
        max_bytes: In one period.
        period: Of UTC.
    """

    max_bytes: int
    period: Literal["day", "month"]

    @classmethod
    def parse(cls, text: str) -> DataCap:
        """Read ``20MB/day``, ``1.5GB/month`` (a MB is 10^6 bytes, as on an invoice).

        Raises:
            ConfigError: It is no such text.

        >>> DataCap.parse("20 MB/day").max_bytes
        20000000
        """
        match = _TEXT.fullmatch(text)
        found = 0 if match is None else round(float(match[1]) * _UNITS[match[2].lower()])
        if match is None or not _LEAST[match[3].lower()] <= found <= 10**14:
            raise ConfigError(
                f"data cap {text[:40]!r}: expected such as 20MB/day or 1.5GB/month, at least 1MB/day or 20MB/month "
                f"(keeping a connection alive takes half of that)"
            )
        return cls(max_bytes=found, period="day" if match[3].lower() == "day" else "month")

    def __str__(self) -> str:
        return f"{self.max_bytes / 1e6:g} MB a {self.period}"

    def begin_of(self, wall_ms: int) -> datetime:
        """When the period began that a moment lies in."""
        found = _moment(wall_ms).replace(hour=0, minute=0, second=0, microsecond=0)
        return found if self.period == "day" else found.replace(day=1)

    def end_of(self, begin: datetime) -> datetime:
        """When a period ends."""
        return begin + timedelta(days=1) if self.period == "day" else (begin + timedelta(days=31)).replace(day=1)


def _moment(wall_ms: int) -> datetime:
    return datetime.fromtimestamp(min(max(wall_ms // 1000, 0), 250_000_000_000), UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """What ``data-used.json`` holds.

    Attributes:
        begin: Of the period, seconds since 1970.
        used: Bytes in it.
        ran: Seconds that the agent has run in it.
        left_begin: Of the period that was left for this one.
        left_used: Bytes in that.
        left_ran: Seconds that the agent ran in that.
    """

    begin: int = 0
    used: int = 0
    ran: int = 0
    left_begin: int = 0
    left_used: int = 0
    left_ran: int = 0


class DataUse:
    """The count.

    A period ends when the clock is in a later one. The one that was left is remembered: a clock that was ahead, and
    goes back to it, goes on with its count, and one that goes back to a period between the two was ahead in the later
    one. A clock that goes back further, as one that is not set yet, ends nothing; where that is how it stays, the
    period ends after its length of running.

    Args:
        path: Of the file.
        cap: What may be used.

    Attributes:
        warnings: What went wrong and was survived; they may be cleared.
    """

    def __init__(self, path: Path, cap: DataCap) -> None:
        self._path, self.cap = path, cap
        self.warnings: list[str] = []
        self._count = read_record(path, Count, self.warnings)
        self._used, self._ran_s = float(self._count.used), float(self._count.ran)
        self._begin = self._count.begin
        self._left = self._count.left_begin, float(self._count.left_used), float(self._count.left_ran)
        self._is_behind = False  # the clock, the period
        self._last_s: float | None = None
        self._is_told = False
        self._said = ""  # why nothing may be sent, as it was told last

    @property
    def used_bytes(self) -> int:
        """In this period, so far."""
        return round(self._used)

    @property
    def left_bytes(self) -> int:
        """In this period."""
        return max(0, self.cap.max_bytes - self.used_bytes)

    @property
    def is_used_up(self) -> bool:
        """Whether only what must be said may be sent."""
        return self._used >= (1 - _ESSENTIAL) * self.cap.max_bytes

    @property
    def end(self) -> datetime:
        """Of this period."""
        return self.cap.end_of(_moment(self._begin * 1000))

    @property
    def why_not(self) -> str:
        """Why only what must be said may be sent; "" where everything may."""
        if not self.is_used_up:
            return ""
        return f"the data cap of {self.cap} is used up until {self._until}"

    def status(self) -> dict[str, float | str]:
        """For an operator."""
        left = {"used_mb": round(self.used_bytes / 1e6, 3), "left_mb": round(self.left_bytes / 1e6, 3)}
        return {"cap": str(self.cap), **left, "until": self._until}

    @property
    def _until(self) -> str:
        if self._is_behind:
            return f"it has run for {max(0.0, self._length_s - self._ran_s) / 3600:.0f} h more, as the clock went back"
        return f"{self.end:%Y-%m-%d %H:%M} UTC"

    @property
    def _length_s(self) -> float:
        return (self.end - _moment(self._begin * 1000)).total_seconds()

    def poll(self, now: Now, *, connected: bool) -> None:
        """Let time pass: begin a new period, and count what a connection costs by being there."""
        passed_s = 0.0 if self._last_s is None else max(0.0, now.s - self._last_s)
        self._last_s = now.s
        self._ran_s += passed_s
        self._move(round(self.cap.begin_of(now.wall_ms).timestamp()))
        if connected:
            self.spend(min(passed_s, _LONGEST_PAUSE_S) * KEEP_ALIVE_BYTES_PER_S)

    def _move(self, begin: int) -> None:
        """Go on in the period that begins there, if it is another one and the clock may be believed."""
        here, left = (self._begin, self._used, self._ran_s), self._left
        self._is_behind = False
        if begin == self._begin:
            return
        if begin == left[0] > 0:
            (self._begin, self._used, self._ran_s), self._left = left, here
        elif begin > self._begin or 0 < left[0] < begin or self._ran_s >= self._length_s:
            self._left = here if begin > self._begin else left
            self._begin, self._used, self._ran_s = begin, 0.0, 0.0
        else:
            self._is_behind = True
            return
        self._write()

    def news(self) -> list[tuple[str, str]]:
        """What has happened since the last call, by kind and text."""
        before, self._said = self._said, self.why_not
        told = [("warning", text) for text in self.warnings]
        self.warnings.clear()
        if self._said and not before:
            told.append(("data-cap", f"{self._said}: telemetry, downloads and uploads wait"))
        elif before and not self._said:
            told.append(("data-cap", "a new period begins: telemetry, downloads and uploads go on"))
        return told

    def spend(self, n_bytes: float) -> None:
        """So much was sent or received."""
        self._used += n_bytes
        if self._used - self._count.used >= max(_UNWRITTEN * self.cap.max_bytes, _LEAST_UNWRITTEN_BYTES):
            self._write()

    def close(self) -> None:
        """Keep the count."""
        self._write()

    def _write(self) -> None:
        left_begin, left_used, left_ran = self._left
        self._count = Count(
            begin=self._begin,
            used=self.used_bytes,
            ran=round(self._ran_s),
            left_begin=left_begin,
            left_used=round(left_used),
            left_ran=round(left_ran),
        )
        try:
            write_record(self._path, self._count)
        except OSError as exc:
            if not self._is_told:
                why = f"{self._path.name} could not be written, a restart forgets the count: {exc.strerror}"
                self.warnings.append(why)
            self._is_told = True
