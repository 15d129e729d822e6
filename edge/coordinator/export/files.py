"""Telemetry and events as files: what is in the database, in the order in which it came."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.contract.errors import ConfigError
from edge.coordinator.pages.amounts import clock
from edge.coordinator.records import LoggedEvent, TelemetryEntry
from edge.coordinator.store.store import Store
from edge.coordinator.summaries import measures

_AT_ONCE = 1000
# A spreadsheet would take a text that begins so for a formula, and devices choose texts.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def telemetry(store: Store, device: str = "", since_ms: int = 0) -> Iterator[TelemetryEntry]:
    """Messages of all devices or of one, oldest first."""
    last_id = 0
    while found := store.telemetry.after(last_id, _AT_ONCE):
        last_id = found[-1].id
        yield from (each for each in found if device in ("", each.device) and each.received_ms >= since_ms)


def events(store: Store, device: str = "", since_ms: int = 0) -> Iterator[LoggedEvent]:
    """Events of all devices or of one, oldest first."""
    last_id = 0
    while found := store.events.after(last_id, _AT_ONCE):
        last_id = found[-1].id
        yield from (each for each in found if device in ("", each.device) and each.at_ms >= since_ms)


def write_csv(store: Store, folder: Path, device: str = "", since_ms: int = 0) -> dict[str, int]:
    """``telemetry.csv``, one line a number, and ``events.csv``; times in UTC and in milliseconds since 1970.

    Returns:
        Lines by file.

    Raises:
        ConfigError: They cannot be written.
    """
    rows: dict[str, tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]] = {
        "telemetry.csv": (
            ("device", "model", "time_utc", "ts_ms", "key", "value"),
            (
                (each.device, each.values.get("model", ""), clock(each.received_ms), each.received_ms, key, repr(value))
                for each in telemetry(store, device, since_ms)
                for key, value in measures(each).items()
            ),
        ),
        "events.csv": (
            ("device", "model", "time_utc", "ts_ms", "event", "detail"),
            (
                (each.device, each.model, clock(each.at_ms), each.at_ms, each.name, each.detail)
                for each in events(store, device, since_ms)
            ),
        ),
    }
    counts = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (head, lines) in rows.items():
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(head)
                counts[name] = 0
                for line in lines:
                    writer.writerow([_plain(each) for each in line])
                    counts[name] += 1
    except OSError as exc:
        raise ConfigError(f"{folder} cannot be written: {exc.strerror}") from exc
    return counts


def _plain(value: object) -> object:
    is_number = isinstance(value, int | float) or (isinstance(value, str) and _is_number(value))
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) and not is_number else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
