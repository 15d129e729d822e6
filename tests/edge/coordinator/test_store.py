"""The database: what is kept comes back, whole or not at all; those of before are taken over; a file that is none."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event, update

from edge.channel.messages import Conn
from edge.contract.clock import Now
from edge.contract.errors import ConfigError
from edge.coordinator.devices.registry import Registry
from edge.coordinator.events import Events
from edge.coordinator.records import (
    ApiToken,
    AuditEntry,
    Contribution,
    Credential,
    Device,
    Enrolment,
    Forgotten,
    KnownBundle,
    KnownDevice,
    LoggedEvent,
    Model,
    Receipt,
    Refused,
    Release,
    TelemetryEntry,
)
from edge.coordinator.releases.wanted import desired
from edge.coordinator.store.database import Database, DatabaseError
from edge.coordinator.store.store import Store
from edge.coordinator.store.tables import AgeRow, Row
from edge.coordinator.summaries import HOUR_S, MAX_KEYS, MINUTE_S, Keep, measures
from edge.merging.averaging import MergeMemory
from tests.support.postgres import PostgresServer

DATA = Path(__file__).parent / "data"
DEVICE = KnownDevice(
    device=Device(
        id="cam-1", online=True, session=2**53, boot=2, agent_version="1", profile="p", hardware={"cores": [1, 2]},
        born=True, first_seen_ms=1_800_000_000_000, last_seen_ms=1_800_000_000_001, state_id="a" * 16,
    ),
    models=(
        Model(device="cam-1", model="\N{GREEK SMALL LETTER EPSILON} b", experts={"shipped": [1.0, 0.5, 3.0]}),
        Model(device="cam-1", model="a", position=1, release=7, samples=40, state="active", state_detail="it's 100 %"),
    ),
)  # fmt: skip


def entry(seq: int, received_ms: int = 1, device: str = "d", values: dict[str, Any] | None = None) -> TelemetryEntry:
    return TelemetryEntry(device=device, boot=1, seq=seq, received_ms=received_ms, values=values or {})


def happened(detail: str) -> LoggedEvent:
    return LoggedEvent(device="d", name="n", detail=detail, at_ms=1)


def contribution(version: int, lineage: str = "l") -> Contribution:
    return Contribution(
        device="d", lineage=lineage, backbone="b", learner="statistics", version=version, n_samples=version,
        base_release=0, digest=f"{version}", received_ms=0,
    )  # fmt: skip


def release(counter: int, devices: tuple[str, ...] = ("*",)) -> Release:
    return Release(
        counter=counter, kind="head", digest="x", backbone="b", devices=devices, reason="r", created_ms=2**41
    )


def test_what_is_kept_comes_back_as_it_was(store: Store) -> None:
    store.devices.keep(DEVICE, None)
    assert store.devices.known("cam-1") == DEVICE
    assert (store.devices.all(), store.devices.models()) == ([DEVICE.device], list(DEVICE.models))
    store.devices.keep(KnownDevice(device=DEVICE.device, models=DEVICE.models[1:]), DEVICE)
    assert store.devices.models("cam-1") == [DEVICE.models[1]]
    assert (store.devices.highest_release(100), store.devices.highest_release(7)) == (7, 0)
    assert store.devices.known("nobody") is None

    store.devices.tag("cam-1", {"site": "north", "model": "a"})
    store.devices.tag("cam-1", {"site": "south", "model": ""})
    assert store.devices.tags() == store.devices.tags("cam-1") == {"cam-1": {"site": "south"}}

    store.telemetry.add([entry(1, values={"acc": 0.5, "name": "ü"}), entry(1), entry(2, device="e")])
    store.telemetry.add([entry(1), entry(3)])
    assert [(each.device, each.seq) for each in store.telemetry.after(0, 9)] == [("d", 1), ("e", 2), ("d", 3)]
    assert store.telemetry.after(-1, 9)[0].values == {"acc": 0.5, "name": "ü"}
    assert [each.seq for each in store.telemetry.after(-1, 2)] == [2, 3]

    for name in ("one", "two"):
        store.events.add(LoggedEvent(device="d", name=name, detail="", at_ms=2**41))
    assert [each.name for each in store.events.newest(9)] == ["two", "one"]
    for folder, seq in (("a", 1), ("a", 2), ("a", 1), ("b", 1), ("", 0), ("", 0)):
        store.events.add(LoggedEvent(device="d", name=f"{folder}{seq}", detail="", at_ms=1, seq=seq, state_id=folder))
    assert [each.name for each in store.events.newest(5)] == ["0", "0", "b1", "a2", "a1"]

    for each in (release(1), release(2, ("d", "tag.x=y"))):
        store.releases.add(each)
    assert store.releases.all() == [release(2, ("d", "tag.x=y")), release(1)]
    assert (store.releases.get(1), store.releases.get(3), store.releases.highest()) == (release(1), None, 2)
    store.releases.add_bundle(KnownBundle(digest="f", backbone="b", name="digits"))
    assert store.releases.bundle_of("b") == store.releases.bundles()[0]


def test_what_a_device_measured_is_forgotten_and_numbers_go_on(store: Store) -> None:
    kept, keep = store.telemetry, Keep()
    kept.add([entry(seq, 60_000 * seq, device, {"acc": 0.5}) for seq in (1, 2, 3) for device in ("e", "d")])
    kept.aged(60.0, keep)
    kept.add([entry(4, 240_000, "d", {"acc": 0.75})])  # of it is the newest of all
    last = kept.after(-1, 1)[0].id
    assert kept.forget("d") == 4
    assert kept.forget("nobody") == 0
    assert [(each.device, each.values) for each in kept.after(0, 9)] == [*[("e", {"acc": 0.5})] * 3, ("d", {})]
    kept.aged(60.0, keep)
    assert [kept.metric(device, "acc", 0, step) != [] for device in ("d", "e") for step in (0, 60, 3600)] == [
        False, False, False, True, True, True
    ]  # fmt: skip
    kept.add([entry(5, 300_000, "e", {"acc": 1.0})])
    assert kept.after(last, 9)[0].values == {"acc": 1.0}, "who follows is told it"


def test_what_was_learned_comes_back_as_it_was(store: Store) -> None:
    kept = store.contributions
    kept.keep(contribution(10))
    kept.keep(contribution(11))
    kept.keep(contribution(4, "m"))
    assert kept.all() == kept.all("b") == [contribution(11), contribution(4, "m")]
    assert kept.of_lineage("m") == [contribution(4, "m")]
    assert kept.all("c") == []
    kept.merged([contribution(10)], 5)
    found = kept.get("d", "l", "b")
    assert found is not None
    assert (found.version, found.merged_version, found.merged_release) == (11, 10, 5)

    left_out = [Refused(device="d", lineage=lineage, backbone="b", version=1, reason="r") for lineage in ("l", "m")]
    kept.refuse("b", left_out)
    kept.refuse("c", [])
    kept.take_back("m", "b")
    assert kept.refused() == kept.refused("b") == left_out[:1]

    kept.remember("b", MergeMemory(optimizer=b"\0\xff", account=b"a"))
    kept.remember("c", MergeMemory(optimizer=b"", account=b"b"))
    assert kept.memory("b") == MergeMemory(optimizer=b"\0\xff", account=b"b")
    kept.begin_optimizer_anew("b")
    assert kept.memory("b").optimizer == b""

    kept.forget(Forgotten(lineage="l", backbone="b", device="d", pending=True, at_ms=1))
    kept.delete([contribution(11)])
    assert kept.all() == [contribution(4, "m")]
    assert (kept.is_forgotten("l"), kept.is_forgotten("m"), kept.to_be_unlearned()) == (True, False, {"b"})
    kept.unlearned("b")
    assert not kept.to_be_unlearned()


def test_text_that_no_database_takes_is_kept_with_what_can_be_kept(store: Store) -> None:
    for seq, detail in enumerate(("half \ud800", "none \0")):
        store.events.add(LoggedEvent(device="d", name="x", detail=detail, at_ms=1))
        store.telemetry.add([entry(seq, values={"name": detail})])
    assert [each.detail for each in store.events.newest(9)] == ["none \N{REPLACEMENT CHARACTER}", "half ?"]
    assert len(store.telemetry.after(0, 9)) == 2


def test_a_transaction_is_whole_or_nothing(store: Store) -> None:
    def change() -> None:
        with store.transaction():
            store.devices.keep(DEVICE, None)
            with store.transaction():
                store.releases.add(release(1))
            assert store.releases.highest() == 1, "inside of it, it is there"
            raise RuntimeError("the power fails")

    with pytest.raises(RuntimeError):
        change()
    assert store.devices.known("cam-1") is None
    assert store.releases.highest() == 0
    with store.transaction():
        store.releases.add(release(1))
    assert store.releases.highest() == 1


def test_telemetry_ages_while_the_coordinator_runs_whatever_its_clock_says(store: Store) -> None:
    day_s, ten_years_ms = 86_400.0, 10 * 365 * 86_400_000
    for day in range(1, 6):
        # The clock is right, ten years ahead, at 1970, right: it has no say.
        received_ms = (day, ten_years_ms, 0, day, day)[day - 1]
        store.telemetry.add([entry(day, received_ms)])
        store.telemetry.aged(0.0, Keep(messages_s=2.5 * day_s))  # started again
        for _ in range(24):
            store.telemetry.aged(day_s / 24, Keep(messages_s=2.5 * day_s))
        kept = [row.seq for row in store.telemetry.after(0, 100)]
        assert kept == list(range(max(1, day - 1), day + 1))
    store.telemetry.aged(10 * day_s, Keep(messages_s=3 * day_s))
    assert [row.seq for row in store.telemetry.after(0, 100)] == [5], "the newest stays: numbers go on from it"
    store.telemetry.aged(day_s, Keep(messages_s=3 * day_s))


def test_what_comes_after_a_long_silence_is_kept_as_long_as_all_else(store: Store) -> None:
    """In an empty table SQLite numbers from 1 again; numbers tell what is old, what is summed, and what is new."""
    day_s, keep = 86_400.0, Keep(messages_s=2 * 86_400.0, events_s=4 * 86_400.0)
    store.telemetry.add([entry(i, 1, values={"acc": 0.5}) for i in range(10)])
    for i in range(10):
        store.events.add(happened(f"before {i}"))
    for _ in range(8):  # a week of which nothing is heard
        store.telemetry.aged(day_s, keep)
    (last,), (told,) = store.telemetry.after(0, 100), store.events.newest(100)
    assert (last.seq, told.detail) == (9, "before 9")
    for day in range(3):
        store.telemetry.add([entry(100 + day, 60_000 * day, values={"acc": 1.0})])
        store.events.add(happened(f"day {day}"))
        store.telemetry.aged(day_s, keep)
    assert [row.seq for row in store.telemetry.after(last.id, 100)] == [101, 102]
    assert [row.detail for row in store.events.after(told.id, 100)] == ["day 0", "day 1", "day 2"]
    minutes = store.telemetry.metric("d", "acc", 0, MINUTE_S)
    assert sum(each.n for _, each in minutes) == 13, "all are summed"
    store.telemetry.aged(2 * day_s, keep)
    assert [row.detail for row in store.events.newest(100)] == ["day 2", "day 1"]


def test_a_database_whose_numbers_began_anew_before_loses_nothing_more(store: Store) -> None:
    store.telemetry.add([entry(i, 1) for i in range(3)])
    store.telemetry.aged(1.0, Keep(messages_s=100.0))
    with store._database.transaction() as session:
        session.execute(update(AgeRow).values(last_id=1000))  # of the messages that there were before the silence
    store.telemetry.aged(200.0, Keep(messages_s=100.0))
    assert len(store.telemetry.after(0, 100)) == 3


def test_telemetry_is_summed_by_the_minute_and_the_hour_and_each_is_kept_as_long_as_it_is_told(store: Store) -> None:
    hour_s, begin_ms = 3600.0, 1_800_000_000_000
    keep = Keep(messages_s=hour_s, minutes_s=3 * hour_s, hours_s=10 * hour_s)

    def means(step_s: int, since_ms: int = 0) -> list[tuple[int, int, float, float, float]]:
        found = store.telemetry.metric("d", "acc", since_ms, step_s)
        return [((b.start_ms - begin_ms) // 1000, s.n, s.mean, s.least, s.most) for b, s in found]

    for i, acc in enumerate((0.2, 0.4, 0.9)):  # two in the first minute, one in the second
        values = {"acc": acc, "model": "m", "seq": 5, "text": "x", "flag": True}
        store.telemetry.add([entry(i, begin_ms + 40_000 * i, values=values)])
    assert means(0) == [(0, 1, 0.2, 0.2, 0.2), (40, 1, 0.4, 0.4, 0.4), (80, 1, 0.9, 0.9, 0.9)]
    by_minute = [(0, 2, pytest.approx(0.3), 0.2, 0.4), (60, 1, 0.9, 0.9, 0.9)]
    by_hour = [(0, 3, pytest.approx(0.5), 0.2, 0.9)]
    assert (means(MINUTE_S), means(HOUR_S)) == (by_minute, by_hour), "also of what was not summed yet"
    assert store.telemetry.keys("d") == ["acc"]
    endless = {"nan": float("nan"), "inf": float("inf"), **{f"k{i}": i for i in range(100)}}
    assert list(measures(entry(1, values=endless))) == [f"k{i}" for i in range(MAX_KEYS)]
    for _ in range(2):  # a repeat sums nothing twice
        store.telemetry.aged(0.0, keep)
        assert (means(MINUTE_S), means(HOUR_S)) == (by_minute, by_hour)
    store.telemetry.add([entry(9, begin_ms + 59_000, values={"acc": 1.2, "model": "m"})])  # into a minute of before
    by_minute = [(0, 3, pytest.approx(0.6), 0.2, 1.2), (60, 1, 0.9, 0.9, 0.9)]
    assert means(MINUTE_S) == by_minute
    store.telemetry.aged(1.0, keep)
    assert means(MINUTE_S) == by_minute
    assert means(MINUTE_S, begin_ms + 60_000) == by_minute[1:]
    store.telemetry.aged(2 * hour_s, keep)
    newest = [(59, 1, 1.2, 1.2, 1.2)]  # which stays
    assert (means(0), means(MINUTE_S)) == (newest, by_minute), "messages are gone, their sums are there"
    store.telemetry.aged(2 * hour_s, keep)
    assert (means(MINUTE_S), means(HOUR_S)[0][1]) == ([], 4)
    store.telemetry.aged(8 * hour_s, keep)
    assert means(HOUR_S) == []


# Revisions


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def old(path: Path, name: str = "one-model-per-device") -> Path:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript((DATA / f"{name}.sql").read_text())
    return path


def test_revisions_make_the_tables_that_the_code_maps(tmp_path: Path, where: Path | str) -> None:
    places = [where]
    if isinstance(where, Path):
        places += [old(tmp_path / f"{name}.sqlite", name) for name in ("one-model-per-device", "before-revisions")]
    for place in places:
        database = Database(place)
        with database._engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            found = compare_metadata(context, Row.metadata)
        assert found == []
        database.close()


def test_a_database_of_before_there_were_revisions_is_taken_over_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = old(tmp_path / "db.sqlite", "before-revisions")
    before = [line for line in dump(path) if line.startswith("INSERT")]
    store = Store(path)
    device = store.devices.known("cam-1")
    assert device is not None
    assert (device.device.state_id, device.device.hardware, device.device.session) == ("a" * 16, {"cores": 4}, 3)
    assert [(each.model, each.release, each.state) for each in device.models] == [
        ("digits", 1, "active"),
        ("voice", 0, ""),
    ]
    assert device.models[0].experts == {"shipped": [1.0, 0.5, 3]}
    assert [each.id for each in store.devices.all()] == ["cam-1", "cam-2"]
    assert store.devices.tags() == {"cam-1": {"site": "north"}}
    (measured,) = store.telemetry.after(0, 9)
    assert (measured.boot, measured.values["acc"], measured.state_id) == (2, 0.9, "a" * 16)
    assert [each.detail for each in store.events.newest(9)] == ["it’s 100 % ε"]
    assert [(each.counter, each.devices, each.model) for each in store.releases.all()] == [
        (2, ("*",), "digits"),
        (1, ("tag.site=north", "cam-2"), ""),
    ]
    kept = store.contributions
    assert [(each.lineage, each.merged_version, each.merged_release) for each in kept.all()] == [
        ("l1", 40, 1),
        ("l2", 5, 1),
    ]
    assert (kept.memory("b" * 64).optimizer, kept.memory("b" * 64).account) == (b"\0\xffopt", b"acc")
    assert [(each.lineage, each.reason) for each in kept.refused()] == [("l2", "garbage")]
    assert kept.is_forgotten("l3")
    store.close()
    rows = dump(path)  # what is behind a row came with later revisions
    assert all(any(row.startswith(line.removesuffix(");")) for row in rows) for line in before), "not a row is another"
    once = dump(path)
    Store(path).close()
    assert dump(path) == once, "once"


def test_a_database_of_one_model_for_each_device_is_taken_over(tmp_path: Path) -> None:
    store = Store(old(tmp_path / "db.sqlite"))
    (model,) = store.devices.models()
    found = (model.device, model.model, model.release, model.samples, model.state, model.state_seq, model.experts)
    assert found == ("cam-1", "digits", 7, 40, "active", 9, {"shipped": [1.0, 0.5, 3]})
    row = store.devices.get("cam-1")
    assert row is not None
    assert (row.born, row.session, row.hardware, row.first_seen_ms) == (True, 3, {"cores": 4}, 5)
    assert [device.id for device in store.devices.all()] == ["cam-1", "cam-2"]
    assert [each.counter for each in store.releases.all()] == [1 + 7]
    wanted = desired(store.releases.all(), model, {}, is_only=True)
    assert wanted is not None
    assert (wanted.counter, wanted.model) == (8, "")
    assert len(store.telemetry.after(0, 10)) == 1
    registry = Registry(store, Events(store))
    registry.conn("cam-3", Conn(online=True, session=1, boot=1, ts_ms=0), Now(1.0, 1))
    store.close()
    before = dump(tmp_path / "db.sqlite")
    Store(tmp_path / "db.sqlite").close()
    assert dump(tmp_path / "db.sqlite") == before, "once"


@contextlib.contextmanager
def cut_after(n: int) -> Iterator[list[str]]:
    """Let the power fail at the n-th statement that changes something."""
    done: list[str] = []

    def count(_: object, __: object, statement: str, *___: object) -> None:
        if not statement.lstrip().startswith(("PRAGMA", "SELECT")):
            if len(done) == n:
                raise sqlite3.OperationalError("the power fails")
            done.append(statement)

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield done
    finally:
        event.remove(Engine, "before_cursor_execute", count)


def test_a_take_over_that_is_cut_short_leaves_the_old_database(tmp_path: Path) -> None:
    path = old(tmp_path / "0.sqlite")
    before = dump(path)
    with cut_after(10_000) as statements:
        Store(path).close()
    assert len(statements) > 20
    for n in range(len(statements)):
        path = old(tmp_path / f"{n + 1}.sqlite")
        with cut_after(n), pytest.raises((ConfigError, sqlite3.OperationalError)):
            Store(path)
        assert dump(path) == before, statements[n]
    store = Store(path)
    assert [row.model for row in store.devices.models()] == ["digits"]
    store.close()


def test_a_database_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    before = dump(path)
    with pytest.raises(ConfigError, match=r"later version of Edgeloop \(revision 9999\)"):
        Store(path)
    assert dump(path) == before


def cut_connections(server: PostgresServer, url: str) -> None:
    name = url.rsplit("/", maxsplit=1)[-1]
    server.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")


def test_a_postgresql_database_has_one_coordinator(postgres: PostgresServer) -> None:
    url = postgres.new()
    first, second = Store(url), Store(url)
    first.claim()
    first.claim()
    taken = r"test_\d+ is in use by another coordinator"
    with pytest.raises(ConfigError, match=taken):
        second.claim()
    # Connections are lost: the claim is made again by whoever comes first.
    cut_connections(postgres, url)
    first.claim()
    with pytest.raises(ConfigError, match=taken):
        second.claim()
    cut_connections(postgres, url)
    second.claim()
    with pytest.raises(ConfigError, match=taken):
        first.claim()
    second.close()
    first.claim()
    first.close()


def test_a_postgresql_database_that_ends_all_connections_costs_what_is_done_there_and_no_more(
    postgres: PostgresServer,
) -> None:
    url = postgres.new()
    store = Store(url)
    store.devices.keep(DEVICE, None)

    def change() -> None:
        with store.transaction():
            store.releases.add(release(1))
            assert store.releases.highest() == 1
            cut_connections(postgres, url)

    with pytest.raises(DatabaseError):
        change()
    assert store.releases.highest() == 0
    store.releases.add(release(1))
    assert store.devices.known("cam-1") == DEVICE
    store.close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "expected postgresql"),
        ("mysql://u:secret@h/d", r"mysql://u:\*\*\*@h/d: expected postgresql"),
        ("postgresql://u@h", "expected postgresql"),
        ("postgresql://u:secret@127.0.0.1:1/d", r"psycopg://u:\*\*\*@127.0.0.1:1/d cannot be used: .*refused"),
    ],
)
def test_an_address_of_no_database_is_refused_without_its_password(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Store(address)
    assert "secret" not in str(caught.value)


def test_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db.sqlite").write_bytes(b"hello" * 100)
    with pytest.raises(ConfigError, match=r"db\.sqlite"):
        Store(tmp_path / "db.sqlite")
    assert (tmp_path / "db.sqlite").read_bytes() == b"hello" * 100


def test_tokens_enrolments_and_receipts_are_kept_alike(store: Store) -> None:
    access, enrolment = store.access, store.enrolment
    assert not access.has_tokens()
    one = access.add_token(ApiToken(name="kim", role="admin", digest="d" * 64, created_ms=1))
    assert (one.id, access.token_by_hash("d" * 64), access.token_by_hash("e" * 64)) == (1, one, None)
    assert access.revoke(9, 5) is None
    assert [access.revoke(1, at) for at in (5, 7)] == [replace(one, revoked_ms=5)] * 2
    for i in range(5):
        entry = AuditEntry(
            at_ms=i, who="kim", role="admin", action="POST /x", subject=str(i % 2), detail="{}", reason=""
        )
        access.ended(access.audit(entry), "done")
    assert [each.id for each in access.entries(2)] == [5, 4]
    assert [each.id for each in access.entries(2, before_id=4, subject="0")] == [3, 1]
    assert access.entries(9, since_ms=4, who="kim")[0].outcome == "done"
    made = enrolment.add(Enrolment(digest="a" * 64, uses=2, tags={"site": "north"}, created_ms=1))
    enrolment.use(made.id)
    assert enrolment.by_hash("a" * 64) == replace(made, uses=1)
    assert enrolment.revoke(9, 1) is None
    for device in ("a", "a", "b"):
        enrolment.add_credential(
            Credential(device=device, kind="password", proof={"x": "y"}, request="r", created_ms=1)
        )
    enrolment.revoke_credentials("a", 9, "gone")
    assert [each.revoked_ms for each in enrolment.credentials()] == [9, 9, 0]
    store.devices.hear("a", 1, "pending")
    store.devices.hear("b", 1)
    assert store.devices.not_approved() == {"a"}
    store.devices.change("a", admission="approved", note="n")
    assert store.devices.not_approved() == frozenset()
    number = store.receipts.add(Receipt(device="a", created_ms=1, statement={"x": [1]}))
    assert [each.id for each in store.receipts.open()] == [number]
    store.receipts.complete(number, {"x": [2]}, b"signed", 5)
    assert store.receipts.open() == []
    assert store.receipts.all() == [store.receipts.get(number)]
