"""The database: late, repeated and reordered messages; counters; a file that is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.channel.messages import Conn, State
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator.artifacts import ArtifactStore
from edge.coordinator.store import ContributionRow, DeviceRow, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "db.sqlite")
    yield made
    made.close()


def state(seq: int, name: str, release: int = 1) -> State:
    return State(ts_ms=0, seq=seq, slot="head", state=name, release=release, digest="")


def test_offline_of_an_older_session_is_dropped(store: Store) -> None:
    """A will that is delivered after the rebirth (fault 18)."""
    store.conn("d", Conn(online=True, session=5, boot=1, ts_ms=0), 1)
    store.conn("d", Conn(online=False, session=4, boot=1, ts_ms=0), 2)
    row = store.device("d")
    assert row is not None
    assert row.online
    store.conn("d", Conn(online=False, session=5, boot=1, ts_ms=0), 3)
    row = store.device("d")
    assert row is not None
    assert not row.online


def test_state_that_is_late_or_repeated_is_dropped(store: Store) -> None:
    assert store.state("d", state(2, "active"), 1)
    assert not store.state("d", state(1, "fetching"), 2)
    assert not store.state("d", state(2, "failed"), 3)
    row = store.device("d")
    assert row is not None
    assert (row.state, row.release) == ("active", 1)


def test_failed_release_does_not_count_as_handled(store: Store) -> None:
    store.state("d", state(1, "failed", release=3), 1)
    row = store.device("d")
    assert row is not None
    assert row.release == 0


def test_repeated_telemetry_is_kept_once(store: Store) -> None:
    values = {"boot": 1, "seq": 7, "acc": 0.5}
    store.telemetry([("d", values, 1), ("d", values, 2), ("e", values, 2)])
    store.telemetry([("d", values, 3)])
    assert len(store.telemetry_after(0, 100)) == 2
    store.forget_telemetry(before_ms=2)
    assert len(store.telemetry_after(0, 100)) == 1


def contribution(version: int) -> ContributionRow:
    row = ContributionRow(device="d", lineage="l", backbone="b", learner="statistics", version=version)
    row.n_samples, row.base_release, row.digest, row.received_ms = version, 0, f"{version}", 0
    return row


def test_highest_version_of_a_lineage_wins(store: Store) -> None:
    assert store.contribution(contribution(10))
    assert not store.contribution(contribution(10))
    assert not store.contribution(contribution(3))
    assert store.contribution(contribution(11))
    assert [row.digest for row in store.contributions()] == ["11"]


def test_release_counters_only_go_up_and_remember_what_was_merged(store: Store) -> None:
    store.contribution(contribution(10))
    rows = store.contributions()
    common = {"kind": "head", "digest": "x", "backbone": "b", "reason": "r", "now_ms": 1}
    assert store.release(devices=["*"], merged=rows, **common).counter == 1  # type: ignore[arg-type]
    assert store.release(devices=["d"], **common).counter == 2  # type: ignore[arg-type]
    assert store.contributions()[0].merged_version == 10
    store.contribution(contribution(12))
    assert store.contributions()[0].merged_version == 10
    devices = [DeviceRow(id=name, backbone=b, release=0) for name, b in (("d", "b"), ("e", "b"), ("e", "o"))]
    wanted = [store.desired(device) for device in devices]
    assert [row and row.counter for row in wanted] == [2, 1, None]


def test_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db.sqlite").write_bytes(b"hello" * 100)
    with pytest.raises(ConfigError, match=r"db\.sqlite"):
        Store(tmp_path / "db.sqlite")
    assert (tmp_path / "db.sqlite").read_bytes() == b"hello" * 100


def test_artifact_changed_on_disk_is_not_served(tmp_path: Path) -> None:
    """Fault 34."""
    artifacts = ArtifactStore(tmp_path)
    digest = artifacts.put(b"x" * 100_000).digest
    assert ArtifactStore(tmp_path).get(digest).size_bytes == 100_000
    (tmp_path / digest).write_bytes(b"y" * 100_000)
    with pytest.raises(RolloutError, match="changed on disk"):
        ArtifactStore(tmp_path).get(digest)
    with pytest.raises(RolloutError, match="missing"):
        artifacts.get("0" * 64)
    with pytest.raises(RolloutError, match="missing"):
        artifacts.get("../../etc/passwd")
