"""One database: its connections, the transaction that the caller is in, and its tables made or taken over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from edge.contract.errors import ConfigError
from edge.coordinator.migrations.upgrade import upgrade

# The database itself is at fault and not what it was given: locked, full, damaged, gone.
DatabaseError = OperationalError
WAIT_S = 30
# Of the lock that the one coordinator of a PostgreSQL database has; any number that nobody else takes there.
_CLAIM = 0xED6E0001


class Database:
    """See the module.

    Args:
        where: A SQLite file, created, or the address of a PostgreSQL database: ``postgresql+psycopg://USER@HOST/NAME``.

    Raises:
        ConfigError: It cannot be used.
    """

    def __init__(self, where: Path | str) -> None:
        if isinstance(where, Path):
            self._name = str(where)
            self._engine = _sqlite(where)
        else:
            url = _address(where)
            self._name = url.render_as_string(hide_password=True)
            # A connection that was lost is made again at its next use, and not at the cost of what is done there.
            self._engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": WAIT_S})
        self._claim: Connection | None = None
        try:
            with self._engine.connect() as connection:
                upgrade(connection)
        except SQLAlchemyError as exc:
            self.close()
            raise ConfigError(f"the database {self._name} cannot be used: {exc.__cause__ or exc}") from exc
        except BaseException:
            self.close()
            raise

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    def claim(self) -> None:
        """Have a PostgreSQL database for this process alone; a file is that of whoever has its folder.

        Raises:
            ConfigError: Another process has it.
        """
        if self.dialect != "postgresql" or self._claim is not None:
            return
        claim = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not claim.exec_driver_sql(f"SELECT pg_try_advisory_lock({_CLAIM})").scalar():
            claim.close()
            raise ConfigError(f"the database {self._name} is in use by another coordinator; give each its own")
        self._claim = claim

    def close(self) -> None:
        """Give it free."""
        if self._claim is not None:
            self._claim.invalidate()  # the lock is that of the connection, which must not go back into the pool
            self._claim.close()
            self._claim = None
        self._engine.dispose()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose changes are durable together when the block ends, or not made at all when it raises.

        Inside of another one it is the same.
        """
        current = _CURRENT.get()
        if current is not None and current[0] is self:
            yield current[1]
            return
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            token = _CURRENT.set((self, session))
            try:
                yield session
            finally:
                _CURRENT.reset(token)


_CURRENT: ContextVar[tuple[Database, Session] | None] = ContextVar("edge-transaction", default=None)


def _sqlite(path: Path) -> Engine:
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": WAIT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        # Readers do not wait for the writer, and a commit survives a power cut.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    return engine


def _address(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as exc:
        raise ConfigError("--database: expected postgresql+psycopg://USER:PASSWORD@HOST/NAME, got no address") from exc
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername != "postgresql+psycopg" or not url.database:
        raise ConfigError(
            f"--database {url.render_as_string(hide_password=True)}: expected postgresql+psycopg://USER@HOST/NAME; a "
            f"SQLite database lies in --data-dir"
        )
    return url
