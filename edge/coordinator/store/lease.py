"""Whose turn it is: of the coordinators that know one PostgreSQL database one at a time has its lease, and writes.

Theory of operation. The lease is a row: a *fence*, a number that each new holder raises, and until when it holds, by
the database's clock. The holder also has an advisory lock, which ends with its connection: where that is free the
holder is dead, and nobody has to wait until the lease runs out. Each transaction that wrote something looks at the
fence before it is kept: who slept while another took over keeps nothing, and is told so.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from edge.contract.errors import ConfigError

LEASE_S = 15.0
# Of the advisory lock; any number that nobody else takes there.
_LOCK = 0xED6E0001
_NOW_MS = "(SELECT CAST(1000 * EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT))"


class LeaseLost(ConfigError):  # noqa: N818  # what it is, and not what goes wrong
    """Another coordinator has the database by now."""

    help_line = "This one has ended, or will; give each coordinator a database of its own, or start it with --standby."


class Lease:
    """See the module.

    Args:
        engine: Of the database.
        name: Of the database, for messages.

    Attributes:
        fence: The number of this holder; 0 while it has never had the lease.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._lock: Connection | None = None
        self.fence = 0

    def take(self) -> None:
        """Have the lease; where this one has it already, look whether that is still so.

        Raises:
            LeaseLost: Another coordinator has it.
            OperationalError: The database does not answer.
        """
        # Who has had the lock all the while, and not the row, slept while another took over: it says nothing then.
        is_free = not self._has_lock() and self._take_lock()
        with self._engine.begin() as connection:
            connection.execute(
                text("INSERT INTO lease (name, fence, until_ms) VALUES ('coordinator', 0, 0) ON CONFLICT DO NOTHING")
            )
            query = text(f"SELECT fence, until_ms < {_NOW_MS} AS is_over FROM lease FOR UPDATE")  # noqa: S608  # ours
            row = connection.execute(query).one()
            if row.fence != self.fence and not is_free and not row.is_over:
                raise LeaseLost(f"the database {self._name} is in use by another coordinator; give each its own")
            self.fence = row.fence if row.fence == self.fence and self.fence else row.fence + 1
            update = f"UPDATE lease SET fence = :fence, until_ms = {_NOW_MS} + :ms"  # noqa: S608  # ours
            connection.execute(text(update), {"fence": self.fence, "ms": int(1000 * LEASE_S)})

    def check(self, session: Session) -> None:
        """Before what a session wrote is kept: whether this one may still write. None takes over until it is kept.

        Raises:
            LeaseLost: Another coordinator has it.
        """
        query = text("SELECT 1 FROM lease WHERE fence = :fence FOR SHARE")
        if session.execute(query, {"fence": self.fence}).scalar() is None:
            raise LeaseLost(f"the database {self._name} is in use by another coordinator, which took this one's place")

    def _has_lock(self) -> bool:
        if self._lock is None:
            return False
        try:
            self._lock.exec_driver_sql("SELECT 1")
        except OperationalError:
            self.release()
            return False
        return True

    def _take_lock(self) -> bool:
        lock = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not lock.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK})").scalar():
            lock.close()
            return False
        self._lock = lock
        return True

    def release(self) -> None:
        """Give it free: the next one need not wait."""
        if self._lock is not None:
            self._lock.invalidate()  # the lock is that of the connection, which must not go back into the pool
            self._lock.close()
            self._lock = None


def is_free(engine: Engine) -> bool:
    """Whether nobody has the lease of a database; what it says may be over a moment later.

    Raises:
        OperationalError: The database does not answer.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK})").scalar():
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_LOCK})")
            return True
        try:
            return bool(connection.exec_driver_sql(f"SELECT until_ms < {_NOW_MS} FROM lease").scalar())  # noqa: S608
        except ProgrammingError:  # of a version before there were leases: it has the lock, and will not lose it
            return False
