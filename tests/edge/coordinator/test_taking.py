"""What coordinators take in together is kept once, whoever takes it, and however often it comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.channel import topics
from edge.channel.codec import encode, encode_history
from edge.channel.messages import Event, Telemetry
from edge.channel.transport import Publish, Received
from edge.contract.clock import Now
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.dialogue import AGAIN_S
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.store.database import DatabaseError
from edge.coordinator.store.store import Store
from edge.coordinator.taking import Taker

NOW = Now(1.0, 1_800_000_000_000)
FOLDER = "a" * 32


def said(device: str, leaf: str, payload: bytes) -> Received:
    return Received(topic=topics.build("lab", device, leaf), payload=payload, retained=False)


def telemetry(seq: int) -> Telemetry:
    return Telemetry(values={"ts": 1, "seq": seq, "boot": 1, "state_id": FOLDER, "model": "digits", "acc": 0.5})


def event(seq: int) -> Event:
    return Event(ts_ms=1, name="drift", boot=1, seq=seq, state_id=FOLDER)


def test_two_take_the_same_and_it_is_kept_once(where: Path | str) -> None:
    store = Store(where)
    others = Store(where, is_shared=True)
    answers: list[Publish] = []
    one, two = (Taker("lab", each, "approved", answers.append) for each in (store, others))
    batch = [said("d1", "up/tele", encode(telemetry(i))) for i in range(1, 6)]
    batch += [said("d1", "up/event", encode(event(i))) for i in range(1, 4)]
    batch.append(said("d1", "up/tele", b"no message"))
    batch.append(said("d1", "up/hist", encode_history([{"ts": 1, "seq": 9, "boot": 1, "state_id": FOLDER}])))
    one.take(batch, NOW)
    two.take(batch[::-1], NOW)
    assert sorted(row.seq for row in store.telemetry.newest_of("d1", FOLDER, 99)) == [1, 2, 3, 4, 5, 9]
    assert sorted(row.seq for row in store.events.newest(99) if row.name == "drift") == [1, 2, 3]
    assert [each.topic for each in answers] == ["edge/v1/lab/d1/dn/hist"] * 2
    others.close()
    store.close()


def test_what_the_database_did_not_take_for_it_was_away_is_taken_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "db.sqlite")
    config = CoordinatorConfig(fleet="lab", name="c", data_dir=tmp_path)
    core = CoordinatorCore(config, store, ArtifactStore(tmp_path / "artifacts"))

    def away(*_: object) -> None:
        raise DatabaseError("SELECT", {}, Exception("connection refused"))

    with monkeypatch.context() as patched:
        patched.setattr(store.events, "add", away)
        core.transport(said("d1", "up/event", encode(event(1))), NOW)
        core.tick(NOW)
    assert not [row for row in store.events.newest(99) if row.name == "drift"]
    core.tick(Now(NOW.s + 2 * AGAIN_S, NOW.wall_ms))
    assert [row.seq for row in store.events.newest(99) if row.name == "drift"] == [1]
    store.close()
