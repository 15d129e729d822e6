"""A database of any earlier version made one of today, in one transaction.

So a process that is killed meanwhile leaves the old database as it was, and of two that start at once the later one
waits, and then has nothing to do.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

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
    _be_quiet()
    found = MigrationContext.configure(connection).get_current_revision()
    if found not in (None, *_revisions()):
        raise ConfigError(
            f"the database is of a later version of Edgeloop (revision {found}); use that one, or restore a backup of "
            f"before"
        )
    if found != _revisions()[0]:
        command.upgrade(_config(connection=connection), "head")
    connection.commit()


def is_of_today(connection: Connection) -> bool:
    """Whether the tables are those of this version."""
    _be_quiet()
    return MigrationContext.configure(connection).get_current_revision() == _revisions()[0]


def _be_quiet() -> None:
    """Alembic tells at each look which database it looks at."""
    logging.getLogger("alembic.runtime").setLevel(logging.WARNING)


def _config(**attributes: object) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


@cache
def _revisions() -> tuple[str, ...]:
    """All that there are, newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())
