"""Many rows of a table by one statement.

SQLite has it cheap to run one statement with row after row. PostgreSQL answers for each of them, so it is given all
rows as one document, and reads them out of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Executable,
    String,
    Table,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from edge.coordinator.store.tables import cleaned

_KEY, _ROWS = "key_", "rows"
Rows = Sequence[Mapping[str, Any]]


def insert_many(connection: Connection, table: Table, rows: Rows, *, repeats: bool) -> None:
    """Insert rows, which all have the same columns.

    Args:
        connection: To the database.
        table: Where.
        rows: By column; at least one.
        repeats: Whether rows that are there already are dropped; else they are an error.
    """
    names = tuple(rows[0])
    _run(connection, _insert(table, names, connection.dialect.name, repeats), names, rows)


def update_many(connection: Connection, table: Table, key: tuple[str, ...], names: tuple[str, ...], rows: Rows) -> None:
    """Change columns of rows.

    Args:
        connection: To the database.
        table: Where.
        key: Columns that tell which row; they do not change.
        names: Columns that change.
        rows: By column: all of these. No row comes twice.
    """
    _run(connection, _update(table, key, names, connection.dialect.name), (*key, *names), rows)


def _run(connection: Connection, statement: Executable, names: tuple[str, ...], rows: Rows) -> None:
    if connection.dialect.name == "postgresql":
        document = [{name: _in_document(row[name]) for name in names} for row in rows]
        connection.execute(statement, {_ROWS: document})
    else:
        connection.execute(statement, [{_KEY + name: row[name] for name in names} for row in rows])


@cache
def _insert(table: Table, names: tuple[str, ...], dialect: str, repeats: bool) -> Executable:
    if dialect == "postgresql":
        there = postgresql.insert(table).from_select(names, select(*_given(table, names).values()))
        return there.on_conflict_do_nothing() if repeats else there
    values: dict[str, Any] = {name: bindparam(_KEY + name) for name in names}
    return sqlite.insert(table).values(values).on_conflict_do_nothing() if repeats else insert(table).values(values)


@cache
def _update(table: Table, key: tuple[str, ...], names: tuple[str, ...], dialect: str) -> Executable:
    given: Mapping[str, Any] = {name: bindparam(_KEY + name) for name in (*key, *names)}
    if dialect == "postgresql":
        given = _given(table, (*key, *names))
    is_it = (table.c[name] == given[name] for name in key)
    return update(table).values({name: given[name] for name in names}).where(*is_it)


def _given(table: Table, names: tuple[str, ...]) -> dict[str, Any]:
    """Rows out of one document: their columns, as the table has them."""
    of_json = {name for name in names if isinstance(table.c[name].type, JSON)}
    columns = [column(name, String() if name in of_json else table.c[name].type) for name in names]
    rows = func.json_to_recordset(bindparam(_ROWS, type_=JSON()))
    there = rows.table_valued(*columns, name="given").render_derived(with_types=True)
    return {name: cast(there.c[name], JSON()) if name in of_json else there.c[name] for name in names}


def _in_document(value: Any) -> Any:
    """As text what is JSON: else PostgreSQL would look at each of its characters, and not take them all."""
    if isinstance(value, str):
        return cleaned(value)
    return json.dumps(value) if isinstance(value, dict | list) else value
