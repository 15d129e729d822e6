"""All rows of one database put into another, of either kind: what a backup is made of, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import BigInteger, Connection, Engine, Table, func, insert, select, text

from edge.contract.errors import ConfigError
from edge.coordinator.store.tables import Row

_ROWS = 1000  # at once


def copy_rows(source: Engine, target: Engine) -> dict[str, int]:
    """Copy all rows as they are at one moment; the source may be in use meanwhile.

    Args:
        source: With the tables of today.
        target: With the same tables, all empty.

    Returns:
        Rows by table.

    Raises:
        ConfigError: The target is not empty; then nothing was changed.
    """
    counts = {}
    with _snapshot(source) as rows, target.begin() as into:
        if full := [name for name, count in count_rows(into).items() if count]:
            raise ConfigError(f"the database has rows already ({', '.join(full)}); restore into an empty one")
        for table in Row.metadata.sorted_tables:
            counts[table.name] = 0
            for part in rows.execute(select(table)).mappings().partitions(_ROWS):
                into.execute(insert(table), [dict(row) for row in part])
                counts[table.name] += len(part)
            _count_on(into, table)
    return counts


def count_rows(connection: Connection) -> dict[str, int]:
    """Rows by table."""
    tables = Row.metadata.sorted_tables
    return {table.name: connection.execute(select(func.count()).select_from(table)).scalar() or 0 for table in tables}


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one moment, whatever others write."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
            yield connection
        else:
            with connection.execution_options(isolation_level="REPEATABLE READ").begin():
                yield connection


def _count_on(connection: Connection, table: Table) -> None:
    """Have PostgreSQL number new rows behind those that came with a number of their own."""
    keys = list(table.primary_key.columns)
    if connection.dialect.name != "postgresql" or len(keys) != 1 or not isinstance(keys[0].type, BigInteger):
        return
    sequence = connection.execute(text(f"SELECT pg_get_serial_sequence('\"{table.name}\"', '{keys[0].name}')")).scalar()
    highest = connection.execute(select(func.max(keys[0]))).scalar()
    if sequence and highest is not None:
        connection.execute(text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest})
