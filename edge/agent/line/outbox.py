"""Reports that wait for a connection: a bounded file of SQLite in the state folder, and nothing that a device hangs on.

Theory of operation. What is added is in memory first and written in batches, so that a device without a line costs its
flash one small commit a minute (events sooner). What was written survives `kill -9` and a power cut. When the whole is
larger than allowed, live metrics thin out: of the older half every second one of each model goes, so that what is left
of a long time becomes sparser the older it is; events go last, the oldest first.

A file that the disk does not take, or that is damaged, costs what is in it, is told, and is tried again: meanwhile as
much as fits waits in memory. No method raises.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge.contract import strictjson

KEEP_S, KEEP_EVENTS_S = 60.0, 2.0
AGAIN_S = 60.0
# Waiting in memory: so many begin a commit early, and so many are kept where there is no file.
_BATCH, _MOST_IN_MEMORY = 256, 500
_AROUND_BYTES = 64  # of a row: its other columns, and its place in the index
_PAGE_BYTES = 4096
_KINDS = ("telemetry", "event")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS report (
    id INTEGER PRIMARY KEY, state_id TEXT NOT NULL, boot INTEGER NOT NULL, kind INTEGER NOT NULL, seq INTEGER NOT NULL,
    model TEXT NOT NULL, at_s REAL NOT NULL, body BLOB NOT NULL, UNIQUE (state_id, boot, kind, seq)
)
"""
_MEASURE = "SELECT count(*), coalesce(sum(length(body) + ?), 0) FROM report"
_INSERT = "INSERT OR IGNORE INTO report (state_id, boot, kind, seq, model, at_s, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
_FIND = "SELECT id, length(body) FROM report WHERE state_id = ? AND boot = ? AND kind = ? AND seq = ?"
_DROP = "DELETE FROM report WHERE id IN (SELECT id FROM report ORDER BY id LIMIT ?)"
_OLDEST = "SELECT state_id, boot, seq, model, at_s, body FROM report WHERE kind = ? ORDER BY id LIMIT ?"
_NEWEST = "SELECT state_id, boot, seq, model, at_s, body FROM report WHERE kind = ? ORDER BY id DESC LIMIT ?"
# Every second one of each model, of the older half.
_THIN = """
DELETE FROM report WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER (PARTITION BY model ORDER BY id) AS place FROM report WHERE kind = 0
        ORDER BY id LIMIT (SELECT (count(*) + 1) / 2 FROM report WHERE kind = 0)
    ) WHERE place % 2 = 0
)
"""

Kind = Literal["telemetry", "event"]
Key = tuple[str, int, str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One telemetry message or event.

    Attributes:
        kind: Which of the two.
        state_id: Identity of the state folder that `boot` and `seq` count in.
        boot: Start of the agent.
        seq: Number among those of its kind since then.
        model: Of which model, for thinning.
        at_s: Monotonic seconds when it was made.
        values: What is sent.
    """

    kind: Kind
    state_id: str
    boot: int
    seq: int
    model: str
    at_s: float
    values: dict[str, Any]

    @property
    def key(self) -> Key:
        """What tells a repeat."""
        return self.state_id, self.boot, self.kind, self.seq


class Outbox:
    """See the module.

    Args:
        path: Of the file; made when something has to be written.
        max_bytes: Of what waits.

    Attributes:
        warnings: What went wrong and was survived; they may be cleared.
        thinned: Telemetry that had to go, since the start.
        lost: Events that had to go, since the start.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._pending: dict[Key, Report] = {}
        self._done: set[Key] = set()  # what is not on its way any more, and is to be deleted
        self._keep_due_s = math.inf
        self._again_s = -math.inf
        self._database: sqlite3.Connection | None = None
        self._rows = self._bytes = 0
        self._trouble = ""  # the last that was told, "" for none
        self.warnings: list[str] = []
        self.thinned = self.lost = 0
        if os.path.lexists(path):
            self._attempt(self._open, -math.inf)

    def __len__(self) -> int:
        return len(self._pending) + self._rows - len(self._done)

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        return max(self._keep_due_s, self._again_s)

    def add(self, report: Report, now_s: float) -> None:
        """Let a report wait."""
        self._pending[report.key] = report
        soon_s = KEEP_EVENTS_S if report.kind == "event" else KEEP_S
        self._keep_due_s = min(self._keep_due_s, now_s if len(self._pending) >= _BATCH else now_s + soon_s)
        if len(self._pending) > _MOST_IN_MEMORY:
            self._make_room_in_memory()

    def _make_room_in_memory(self) -> None:
        key = next((key for key, each in self._pending.items() if each.kind == "telemetry"), next(iter(self._pending)))
        self._count(self._pending.pop(key).kind, 1)

    def _count(self, kind: str, number: int) -> None:
        if kind == "telemetry":
            self.thinned += number
        else:
            self.lost += number

    def poll(self, now_s: float) -> None:
        """Write what is due."""
        if now_s >= self.next_deadline_s:
            self.keep(now_s)

    def keep(self, now_s: float) -> None:
        """Write all that waits in memory, where the disk takes it."""
        if self._pending or self._done or self._trouble:
            self._attempt(self._write, now_s)
        self._keep_due_s = self._again_s if self._pending or self._done or self._trouble else math.inf

    def some(self, kind: Kind, limit: int, now_s: float, *, newest: bool = False) -> list[Report]:
        """Some of what waits, the oldest or the newest first."""
        found = [each for each in self._pending.values() if each.kind == kind]
        found = found[::-1] if newest else found
        if newest and len(found) >= limit:
            return found[:limit]
        stored: list[Report] = []
        if self._rows:
            self._attempt(lambda: stored.extend(self._read(kind, limit + len(self._done), newest=newest)), now_s)
        both = found + stored if newest else stored + found
        return both[:limit]

    def _read(self, kind: Kind, limit: int, *, newest: bool) -> Iterator[Report]:
        found = self._open().execute(_NEWEST if newest else _OLDEST, (_KINDS.index(kind), limit))
        for state_id, boot, seq, model, at_s, body in found:
            with contextlib.suppress(ValueError, TypeError):  # who cannot be read is thinned out some day
                values = strictjson.loads(body, max_bytes=self._max_bytes)
                report = Report(kind=kind, state_id=state_id, boot=boot, seq=seq, model=model, at_s=at_s, values=values)
                if report.key not in self._done:
                    yield report

    def forget(self, keys: Collection[Key], now_s: float) -> None:
        """These have arrived; what the disk does not take of that is known in memory."""
        stored = {key for key in keys if self._pending.pop(key, None) is None}
        self._done |= stored if self._rows else set()
        if self._done:
            self.keep(now_s)

    def close(self, now_s: float) -> None:
        """Write what waits and give the file free."""
        self._again_s = -math.inf
        self.keep(now_s)
        self._shut()

    # The file

    def _attempt(self, step: Callable[[], object], now_s: float) -> None:
        """Do something with the file; where that fails it is told once, and the file is left alone for a while."""
        if now_s < self._again_s:
            return
        try:
            step()
        except (sqlite3.Error, OSError) as exc:
            self._shut()
            is_damaged = getattr(exc, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
            aside = self._put_aside() if is_damaged else "what comes waits in memory, and it is tried again"
            trouble = f"{self._path.name}, the outbox, cannot be used: {_said(exc)}; {aside}"
            if trouble != self._trouble:
                self.warnings.append(trouble)
            self._trouble, self._again_s = trouble, now_s + AGAIN_S
            self._keep_due_s = self._again_s
            return
        if self._trouble:
            self.warnings.append(f"{self._path.name}, the outbox, is used again")
        self._trouble, self._again_s = "", -math.inf

    def _put_aside(self) -> str:
        self._rows = self._bytes = 0
        self._done.clear()
        for suffix in ("-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()
        try:
            self._path.replace(self._aside)
        except OSError as exc:
            return f"it is still there, it could not be put aside: {exc.strerror}"
        return f"what waited in it is lost, it is kept as {self._aside.name}"

    @property
    def _aside(self) -> Path:
        return self._path.with_name(f"{self._path.name}.damaged")

    def _open(self) -> sqlite3.Connection:
        if self._database is not None:
            return self._database
        if os.path.lexists(self._path) and not self._path.is_file():
            self._path.replace(self._aside)  # a folder, a FIFO, a dead link
            self.warnings.append(f"{self._path.name}, the outbox, is no file; it is kept as {self._aside.name}")
        database = sqlite3.connect(self._path, timeout=0.0, isolation_level=None)
        try:
            # One process only, so no file of shared memory; a commit is on the disk when it returns, whole or absent.
            for setting in (
                "locking_mode=EXCLUSIVE",
                "journal_mode=WAL",
                "synchronous=FULL",
                "wal_autocheckpoint=64",
                f"max_page_count={64 + 2 * self._max_bytes // _PAGE_BYTES}",
            ):
                database.execute(f"PRAGMA {setting}")
            if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise _damage(str(found))
            database.execute(_SCHEMA)
            try:
                database.execute(_OLDEST, (0, 1)).fetchone()
            except sqlite3.OperationalError as exc:
                raise _damage(f"it is of something else: {exc}") from exc
            self._measure(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _shut(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
        self._database = None

    def _write(self) -> None:
        """Everything that waits in memory, in one transaction; raises, and changes nothing, where the disk is full."""
        database = self._open()
        rows = [
            (
                each.state_id,
                each.boot,
                _KINDS.index(each.kind),
                each.seq,
                each.model,
                each.at_s,
                strictjson.dumps(each.values),
            )
            for each in self._pending.values()
        ]
        before = self._rows, self._bytes, self.thinned, self.lost
        database.execute("BEGIN IMMEDIATE")
        try:
            for state_id, boot, kind, seq in self._done:
                self._delete(database, (state_id, boot, _KINDS.index(kind), seq))
            self._rows += database.executemany(_INSERT, rows).rowcount
            self._bytes += sum(len(row[-1]) + _AROUND_BYTES for row in rows)
            if self._bytes > self._max_bytes:
                self._make_room(database)
            database.execute("COMMIT")
        except BaseException:
            self._rows, self._bytes, self.thinned, self.lost = before
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise
        self._pending.clear()
        self._done.clear()

    def _delete(self, database: sqlite3.Connection, key: tuple[str, int, int, int]) -> None:
        for number, size in database.execute(_FIND, key).fetchall():
            database.execute("DELETE FROM report WHERE id = ?", (number,))
            self._rows -= 1
            self._bytes -= size + _AROUND_BYTES

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Delete what is too much."""
        while self._measure(database) > self._max_bytes:
            thinned = database.execute(_THIN).rowcount
            if not thinned:
                thinned = database.execute("DELETE FROM report WHERE kind = 0").rowcount
            self._count("telemetry", thinned)
            if not thinned:
                self._count("event", database.execute(_DROP, (1 + self._rows // 8,)).rowcount)

    def _measure(self, database: sqlite3.Connection) -> int:
        """Count what is there: bytes."""
        self._rows, self._bytes = database.execute(_MEASURE, (_AROUND_BYTES,)).fetchone()
        return self._bytes


def _damage(said: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(said)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _said(exc: Exception) -> str:
    return (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)
