"""A database of any earlier version made one of today, in one transaction.

So a process that is killed meanwhile leaves the old database as it was, and of two that start at once the later one
waits, and then has nothing to do. Where nothing is to be done, as at nearly every start, Alembic is not imported.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, inspect

from edge.contract.errors import ConfigError

# Of the lock that upgrades of one PostgreSQL database take; any number that nobody else has.
_LOCK = 0xED6E1009


def upgrade(connection: Connection) -> None:
    """Make the tables, or those of an earlier version today's.

    Args:
        connection: That is in no transaction.

    Raises:
        ConfigError: The database is of a later version.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # else a change of the tables were no part of a transaction
    else:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    found = _revision(connection)
    if found not in (None, *_revisions()):
        raise ConfigError(
            f"the database is of a later version of Edgeloop (revision {found}); use that one, or restore a backup of "
            f"before"
        )
    if found != _revisions()[0]:
        _run(connection)
    connection.commit()


def is_of_today(connection: Connection) -> bool:
    """Whether the tables are those of this version."""
    return _revision(connection) == _revisions()[0]


def _run(connection: Connection) -> None:
    logging.getLogger("alembic.runtime").setLevel(logging.WARNING)  # it tells, from its import on, what nobody asked
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    """Of the database; None where it has none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


@cache
def _revisions() -> tuple[str, ...]:
    """All that there are, newest first: their files are named by them."""
    return tuple(sorted((path.name[1:5] for path in Path(__file__).parent.glob("versions/r*.py")), reverse=True))
