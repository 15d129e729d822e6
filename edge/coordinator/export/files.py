"""Telemetry and events as files: what is in the database, in the order in which it came."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
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


@dataclass(frozen=True, slots=True)
class Lines:
    """What one file has.

    Attributes:
        name: Of the file, without its ending.
        columns: By name their kind: `str`, `int`, `float`, or `datetime` for a time in UTC that is also told in
            milliseconds since 1970, as all of them come.
        lines: Their values, in this order.
    """

    name: str
    columns: Mapping[str, type]
    lines: Iterator[tuple[Any, ...]]


def lines(store: Store, device: str = "", since_ms: int = 0) -> tuple[Lines, Lines]:
    """Of telemetry, one line a number, and of events; of all devices or of one, oldest first."""
    return (
        Lines(
            "telemetry",
            {"device": str, "model": str, "time_utc": datetime, "ts_ms": int, "key": str, "value": float},
            (
                (each.device, _text(each.values.get("model")), each.received_ms, each.received_ms, key, value)
                for each in telemetry(store, device, since_ms)
                for key, value in measures(each).items()
            ),
        ),
        Lines(
            "events",
            {"device": str, "model": str, "time_utc": datetime, "ts_ms": int, "event": str, "detail": str},
            (
                (each.device, each.model, each.at_ms, each.at_ms, each.name, each.detail)
                for each in events(store, device, since_ms)
            ),
        ),
    )


def written(
    store: Store, folder: Path, device: str, since_ms: int, ending: str, write: Callable[[Lines, Path], int]
) -> dict[str, int]:
    """Each of `lines` in a file of its own; one that is there is replaced when the new one is whole.

    Args:
        store: The database.
        folder: For the files; made where there is none.
        device: Of which; "" for all.
        since_ms: From when, milliseconds since 1970.
        ending: Of the files' names.
        write: Writes one, and says how many lines it has.

    Returns:
        Lines by file.

    Raises:
        ConfigError: They cannot be written.
    """
    counts = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in lines(store, device, since_ms):
            path = folder / f"{each.name}.{ending}"
            part = path.with_suffix(f".{ending}.part")
            try:
                counts[path.name] = write(each, part)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigError(f"{folder} cannot be written: {exc.strerror or exc}") from exc
    return counts


def write_csv(store: Store, folder: Path, device: str = "", since_ms: int = 0) -> dict[str, int]:
    """``telemetry.csv`` and ``events.csv``, see `written`."""
    return written(store, folder, device, since_ms, "csv", _as_csv)


def _as_csv(of: Lines, path: Path) -> int:
    kinds, count = of.columns.values(), 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(of.columns)
        for line in of.lines:
            writer.writerow([_plain(value, kind) for value, kind in zip(line, kinds, strict=True)])
            count += 1
    return count


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _plain(value: Any, kind: type) -> object:
    if kind is datetime:
        return clock(value)
    if kind is float:
        return repr(value)
    return f"'{value}" if kind is str and value.startswith(_FORMULA) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
