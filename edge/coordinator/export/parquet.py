"""Telemetry and events as Parquet files, by fastparquet: loaded on demand, for few need it.

fastparquet and the pandas that it builds on are wheels of 17 MB together; pyarrow, which writes the same files, is one
of 55 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from edge.contract.errors import ConfigError
from edge.coordinator.export.files import Lines, written
from edge.coordinator.store.store import Store

# Lines of one row group: what is in memory at once.
_AT_ONCE = 100_000
_KINDS = {str: "object", int: "int64", float: "float64", datetime: "datetime64[ms]"}


def write_parquet(store: Store, folder: Path, device: str = "", since_ms: int = 0) -> dict[str, int]:
    """``telemetry.parquet`` and ``events.parquet``, with the columns of the CSV files; ``time_utc`` is a time.

    See `edge.coordinator.export.files.written`.

    Raises:
        ConfigError: fastparquet is not installed, or they cannot be written.
    """
    try:
        import fastparquet
    except ImportError as exc:
        raise ConfigError("export parquet needs fastparquet: pip install 'edgeloop[parquet]'") from exc

    def as_parquet(of: Lines, path: Path) -> int:
        count = 0
        for number, group in enumerate(_groups(of)):
            fastparquet.write(
                str(path), _frame(of, group), compression="ZSTD", object_encoding="utf8", has_nulls=False,
                write_index=False, append=number > 0,
            )  # fmt: skip
            count += len(group)
        return count

    return written(store, folder, device, since_ms, "parquet", as_parquet)


def _groups(of: Lines) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Lines in parts; one that is empty where there are none, for a file with its columns is one, too."""
    group = list(islice(of.lines, _AT_ONCE))
    yield group
    while group := list(islice(of.lines, _AT_ONCE)):
        yield group


def _frame(of: Lines, group: Sequence[tuple[Any, ...]]) -> Any:
    import pandas

    values = zip(*group, strict=True) if group else [()] * len(of.columns)
    return pandas.DataFrame(
        {
            name: pandas.Series(list(column), dtype="int64" if kind is datetime else _KINDS[kind]).astype(_KINDS[kind])
            for (name, kind), column in zip(of.columns.items(), values, strict=True)
        }
    )
