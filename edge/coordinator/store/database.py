"""One database: its connections, the transaction that the caller is in, and its tables made or taken over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from edge.contract.errors import ConfigError, ResourceError
from edge.coordinator.migrations.upgrade import is_of_today, upgrade
from edge.coordinator.store.copying import copy_rows, count_rows
from edge.coordinator.store.lease import Lease, is_free

# The database itself is at fault and not what it was given: locked, full, damaged, gone.
DatabaseError = OperationalError
# How SQLite says that there is no room.
_FULL = "disk is full"
# Another coordinator wrote the same row at the same moment; done once more it is seen.
RacedError = IntegrityError
WAIT_S = 30
_WRITES = ("INSERT", "UPDATE", "DELETE")


class Damaged(ConfigError):  # noqa: N818  # what it is, and not what goes wrong
    """A database file that no longer holds together."""

    help_line = "Restore a backup into an empty data folder: edge-coordinator restore FILE --data-dir FOLDER"


class Database:
    """See the module.

    Args:
        where: A SQLite file, created, or the address of a PostgreSQL database: ``postgresql+psycopg://USER@HOST/NAME``.
        journal: Of a SQLite file; with WAL readers do not wait for the writer.

    Raises:
        ConfigError: It cannot be used.
    """

    def __init__(self, where: Path | str, *, journal: str = "WAL") -> None:
        self._lease: Lease | None = None
        if isinstance(where, Path):
            self._name = str(where)
            self._engine = _sqlite(where, journal)
        else:
            url = _address(where)
            self._name = url.render_as_string(hide_password=True)
            # A connection that was lost is made again at its next use, and not at the cost of what is done there.
            self._engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": WAIT_S})
        with self._opening() as connection:
            if isinstance(where, Path):
                self._check(connection)
            upgrade(connection)

    @classmethod
    def existing(cls, where: Path | str, *, or_new: bool = False) -> Self:
        """One that somebody else uses, perhaps at this moment: its tables are left as they are.

        Args:
            where: As above.
            or_new: Whether it is made where there is none yet.

        Raises:
            ConfigError: It cannot be used, or its tables are not of today.
        """
        found = cls.__new__(cls)
        found._lease = None
        if isinstance(where, Path):
            found._name, found._engine = str(where), _sqlite(where, "")
        else:
            found._name = _address(where).render_as_string(hide_password=True)
            found._engine = create_engine(_address(where), connect_args={"connect_timeout": WAIT_S})
        with found._opening() as connection:
            if or_new and not inspect(connection).get_table_names():
                connection.rollback()
                upgrade(connection)
            if not is_of_today(connection):
                raise ConfigError(
                    f"the database {found._name} is of another version of Edgeloop; start a coordinator of this one on "
                    f"it, or use that of the coordinator that runs"
                )
        return found

    @contextlib.contextmanager
    def _opening(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as exc:
            self.close()
            if _is_damaged(exc):
                raise self._damaged(exc) from exc
            kind = ResourceError if _FULL in str(exc) else ConfigError
            raise kind(f"the database {self._name} cannot be used: {exc.__cause__ or exc}") from exc
        except BaseException:
            self.close()
            raise

    def _check(self, connection: Connection) -> None:
        """Look whether the pages of a file hold together; a file that is none is told by whoever reads it first."""
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        connection.rollback()
        if found != "ok":
            raise self._damaged(found)

    def _damaged(self, why: object) -> Damaged:
        cause = " ".join(str(getattr(why, "orig", why)).split())[:200]
        return Damaged(
            f"the database {self._name} is damaged ({cause}): a page was written wrongly, or changed since. Stop the "
            f"coordinator, keep the file, and restore the newest backup into an empty data folder (`edge-coordinator "
            f"restore`); without one `sqlite3 FILE .recover` saves what can be read. Devices send their contributions "
            f"again, and releases are numbered above all that devices have seen"
        )

    def copy_to(self, other: Database) -> dict[str, int]:
        """Copy all rows as they are at one moment into another database, which is empty; their number by table.

        Raises:
            ConfigError: It is not empty, or one of the two cannot be used.
            ResourceError: The disk of the other one is full.
        """
        with self._opening():
            try:
                return copy_rows(self._engine, other._engine)
            except OperationalError as exc:
                if _FULL not in str(exc):
                    raise
                raise ResourceError(f"there is no room for the rows of {self._name} in {other._name}") from exc

    def count(self) -> dict[str, int]:
        """Rows by table."""
        with self._engine.connect() as connection:
            return count_rows(connection)

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    def claim(self) -> None:
        """Have a PostgreSQL database for this process alone; a file is that of whoever has its folder.

        Called again it is looked at, and made again if it was lost and nobody else has it. See
        `edge.coordinator.store.lease`.

        Raises:
            ConfigError: Another process has it.
            DatabaseError: The database does not answer.
        """
        if self.dialect == "postgresql":
            if self._lease is None:
                self._lease = Lease(self._engine, self._name)
                event.listen(self._engine, "before_cursor_execute", _see_writes)
            self._lease.take()

    def close(self) -> None:
        """Give it free."""
        if self._lease is not None:
            self._lease.release()
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
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                is_fenced = self._lease is not None and self._lease.fence > 0
                if is_fenced:
                    session.connection().info.pop("wrote", None)
                token = _CURRENT.set((self, session))
                try:
                    yield session
                finally:
                    _CURRENT.reset(token)
                if is_fenced and self._lease is not None:
                    session.flush()
                    if session.connection().info.pop("wrote", False):
                        self._lease.check(session)
        except SQLAlchemyError as exc:
            if _is_damaged(exc):
                raise self._damaged(exc) from exc
            raise


_CURRENT: ContextVar[tuple[Database, Session] | None] = ContextVar("edge-transaction", default=None)


def _see_writes(connection: Connection, _: Any, statement: str, *__: Any) -> None:
    if statement.lstrip()[:6].upper() in _WRITES:
        connection.info["wrote"] = True


def _is_damaged(exc: SQLAlchemyError) -> bool:
    """Whether SQLite says so (SQLITE_CORRUPT)."""
    return "malformed" in str(getattr(exc, "orig", ""))


def _sqlite(path: Path, journal: str) -> Engine:
    make_private(path)
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": WAIT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        # Readers do not wait for the writer, and a commit survives a power cut.
        if journal:
            connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=FULL")

    return engine


def make_private(path: Path) -> None:
    """Make an empty file that only its owner reads, in a folder of the same kind; what is there stays as it is.

    SQLite gives the files beside it the same mode.
    """
    make_folder(path.parent)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as exc:
        raise ConfigError(f"the database {path} cannot be used: {exc.strerror}") from exc


def make_folder(folder: Path) -> None:
    """Make a folder that is its owner's alone; one that is there stays as it is.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"the folder {folder} cannot be made: {exc.strerror}") from exc


def is_taken(address: str) -> bool:
    """Whether a coordinator has a PostgreSQL database now.

    Raises:
        ConfigError: It is no address of one.
        DatabaseError: It does not answer.
    """
    engine = create_engine(_address(address), connect_args={"connect_timeout": WAIT_S})
    try:
        return not is_free(engine)
    finally:
        engine.dispose()


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
