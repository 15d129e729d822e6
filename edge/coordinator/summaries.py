"""Telemetry summed over time: what is left of messages that are too many to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge.coordinator.records import TelemetryEntry

MINUTE_S, HOUR_S = 60, 3600
# What counts messages, or says when one was sent, has no mean; a device that makes up keys costs no more than this.
NO_MEASURES = frozenset({"boot", "seq", "ts", "state_id", "model"})
MAX_KEYS = 64

_DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """How long telemetry and events are kept, in seconds that coordinators of the database ran.

    Attributes:
        messages_s: As it came.
        minutes_s: Summed by the minute.
        hours_s: Summed by the hour.
        events_s: What happened, on devices and here.
    """

    messages_s: float = 7 * _DAY_S
    minutes_s: float = 90 * _DAY_S
    hours_s: float = 730 * _DAY_S
    events_s: float = 90 * _DAY_S


@dataclass(frozen=True, slots=True)
class Sum:
    """Values of one key: how many, their sum, the least and the largest."""

    n: int
    total: float
    least: float
    most: float

    def with_(self, other: Sum) -> Sum:
        """Of both."""
        least, most = min(self.least, other.least), max(self.most, other.most)
        return Sum(self.n + other.n, self.total + other.total, least, most)

    @property
    def mean(self) -> float:
        """Of all values."""
        return self.total / self.n


@dataclass(frozen=True, order=True, slots=True)
class Bucket:
    """A span of time of one model of a device: so many seconds from a time on, in milliseconds since 1970."""

    step_s: int
    device: str
    model: str
    start_ms: int


Sums = dict[str, Sum]


def measures(entry: TelemetryEntry) -> dict[str, float]:
    """The numbers in a message that have a mean."""
    found: dict[str, float] = {}
    for key, value in entry.values.items():
        is_number = type(value) in (int, float) and key not in NO_MEASURES
        if is_number and math.isfinite(value) and abs(value) < 1e300 and len(found) < MAX_KEYS:
            found[key] = float(value)
    return found


def summed(entries: Iterable[TelemetryEntry], steps_s: Iterable[int]) -> dict[Bucket, Sums]:
    """Messages summed by model and by each step of time.

    >>> entry = TelemetryEntry(device="d", boot=1, seq=1, received_ms=61_000, values={"acc": 0.5})
    >>> summed([entry, entry], [60])
    {Bucket(step_s=60, device='d', model='', start_ms=60000): {'acc': Sum(n=2, total=1.0, least=0.5, most=0.5)}}
    """
    found: dict[Bucket, Sums] = {}
    steps = tuple(steps_s)
    for entry in entries:
        model = entry.values.get("model", "")
        ones = {key: Sum(1, value, value, value) for key, value in measures(entry).items()}
        for step_s in steps:
            start_ms = entry.received_ms // (1000 * step_s) * 1000 * step_s
            bucket = Bucket(step_s, entry.device, model if isinstance(model, str) else "", start_ms)
            found[bucket] = together(found.get(bucket, {}), ones)
    return found


def together(one: Mapping[str, Sum], other: Mapping[str, Sum]) -> Sums:
    """The sums of both."""
    more = {key: one[key].with_(value) if key in one else value for key, value in other.items()}
    return {**one, **more}
