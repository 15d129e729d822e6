"""One database: its connections, the transaction that the caller is in, and its tables made or taken over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from edge.contract.errors import ConfigError
from edge.coordinator.migrations.upgrade import upgrade

# The database itself is at fault and not what it was given: locked, full, damaged, gone.
DatabaseError = OperationalError


class Database:
    """See the module.

    Args:
        path: SQLite file, created.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine: Engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

        @event.listens_for(self._engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            # Readers do not wait for the writer, and a commit survives a power cut.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")

        try:
            with self._engine.connect() as connection:
                upgrade(connection)
        except SQLAlchemyError as exc:
            self.close()
            raise ConfigError(f"the database {path} cannot be used: {exc.__cause__ or exc}") from exc

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    def close(self) -> None:
        """Give the file free."""
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
