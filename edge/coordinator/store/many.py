"""Many rows of a table by one statement.

SQLite has it cheap to run one statement with row after row. PostgreSQL answers for each of them, so it is given all
rows as one document, and reads them out of that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Executable,
    Insert,
    String,
    Table,
    Update,
    bindparam,
    cast,
    column,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from edge.coordinator.store.tables import cleaned

_ROWS, _HALF = "rows", "\\ud"
Rows = Iterable[Sequence[Any]]


def insert_many(connection: Connection, table: Table, names: tuple[str, ...], rows: Rows, *, repeats: bool) -> None:
    """Insert rows.

    Args:
        connection: To the database.
        table: Where.
        names: Of columns.
        rows: At least one; their values in the order of `names`.
        repeats: Whether rows that are there already are dropped; else they are an error.
    """
    if connection.dialect.name == "postgresql":
        _run_document(connection, _insert_document(table, names, repeats), names, rows)
    else:
        _run_rows(connection, *_insert_row(table, names, repeats), rows)


def update_many(connection: Connection, table: Table, key: tuple[str, ...], names: tuple[str, ...], rows: Rows) -> None:
    """Change columns of rows.

    Args:
        connection: To the database.
        table: Where.
        key: Columns that tell which row; they do not change.
        names: Columns that change.
        rows: At least one; their values in the order of `key` and `names`. No row comes twice.
    """
    if connection.dialect.name == "postgresql":
        _run_document(connection, _update_document(table, key, names), (*key, *names), rows)
    else:
        _run_rows(connection, *_update_row(table, key, names), rows)


def _run_document(connection: Connection, statement: Executable, names: tuple[str, ...], rows: Rows) -> None:
    document = [dict(zip(names, map(_plain, row), strict=True)) for row in rows]
    connection.execute(statement, {_ROWS: document})


def _run_rows(connection: Connection, statement: str, order: tuple[int, ...], rows: Rows) -> None:
    """Past the statements' own way to their parameters, which takes longer than SQLite for a row."""
    arranged = itemgetter(*order)
    connection.exec_driver_sql(statement, [arranged([*map(_plain, row)]) for row in rows])


@cache
def _insert_document(table: Table, names: tuple[str, ...], repeats: bool) -> Executable:
    there = postgresql.insert(table).from_select(names, select(*_given(table, names).values()))
    return there.on_conflict_do_nothing() if repeats else there


@cache
def _insert_row(table: Table, names: tuple[str, ...], repeats: bool) -> tuple[str, tuple[int, ...]]:
    there = sqlite.insert(table).values({name: bindparam(f"p{i}") for i, name in enumerate(names)})
    return _written(there.on_conflict_do_nothing() if repeats else there)


@cache
def _update_document(table: Table, key: tuple[str, ...], names: tuple[str, ...]) -> Executable:
    return _update(table, key, names, _given(table, (*key, *names)))


@cache
def _update_row(table: Table, key: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, tuple[int, ...]]:
    return _written(_update(table, key, names, {name: bindparam(f"p{i}") for i, name in enumerate((*key, *names))}))


def _update(table: Table, key: tuple[str, ...], names: tuple[str, ...], given: Mapping[str, Any]) -> Update:
    is_it = (table.c[name] == given[name] for name in key)
    return update(table).values({name: given[name] for name in names}).where(*is_it)


def _written(statement: Insert | Update) -> tuple[str, tuple[int, ...]]:
    """A statement as SQLite has it; of each of its parameters, p0, p1, ..., the number."""
    found = statement.compile(dialect=sqlite.dialect())
    return str(found), tuple(int(name[1:]) for name in found.positiontup or ())


def _given(table: Table, names: tuple[str, ...]) -> dict[str, Any]:
    """Rows out of one document: their columns, as the table has them."""
    of_json = {name for name in names if isinstance(table.c[name].type, JSON)}
    columns = [column(name, String() if name in of_json else table.c[name].type) for name in names]
    rows = func.json_to_recordset(bindparam(_ROWS, type_=JSON()))
    there = rows.table_valued(*columns, name="given").render_derived(with_types=True)
    return {name: cast(there.c[name], JSON()) if name in of_json else there.c[name] for name in names}


def _plain(value: Any) -> Any:
    """As text what is JSON: else PostgreSQL would look at each of its characters, and not take them all."""
    if isinstance(value, str):
        return cleaned(value)
    if not isinstance(value, dict | list):
        return value
    text = json.dumps(value)
    # Half of a character, which JSON can name and nobody can write, or perhaps two whole halves.
    return json.dumps(_clean(value)) if _HALF in text else text


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {_clean(key): _clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return cleaned(value) if isinstance(value, str) else value
