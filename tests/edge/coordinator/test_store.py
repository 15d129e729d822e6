"""The database: late, repeated and reordered messages; counters; a file that is none."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge.channel.messages import Birth, Conn, Served, State
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator import migrations
from edge.coordinator.artifacts import ArtifactStore
from edge.coordinator.store import ContributionRow, ModelRow, Store


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
    (row,) = store.models("d")
    assert (row.state, row.release) == ("active", 1)


def test_failed_release_does_not_count_as_handled(store: Store) -> None:
    store.state("d", state(1, "failed", release=3), 1)
    (row,) = store.models("d")
    assert row.release == 0


def test_repeated_telemetry_is_kept_once(store: Store) -> None:
    values = {"boot": 1, "seq": 7, "acc": 0.5}
    store.telemetry([("d", values, 1), ("d", values, 2), ("e", values, 2)])
    store.telemetry([("d", values, 3)])
    assert len(store.telemetry_after(0, 100)) == 2
    folders = [{**values, "state_id": each} for each in ("0" * 16, "1" * 16)]  # set up anew: it counts from one again
    store.telemetry([("d", each, 4) for each in (*folders, *folders)])
    assert len(store.telemetry_after(0, 100)) == 4


def test_telemetry_ages_while_the_coordinator_runs_whatever_its_clock_says(store: Store) -> None:
    day_s, ten_years_ms = 86_400.0, 10 * 365 * 86_400_000
    for day in range(1, 6):
        # The clock is right, ten years ahead, at 1970, right: it has no say.
        received_ms = (day, ten_years_ms, 0, day, day)[day - 1]
        store.telemetry([("d", {"boot": 1, "seq": day}, received_ms)])
        store.aged(0.0, 2.5 * day_s)  # started again
        for _ in range(24):
            store.aged(day_s / 24, 2.5 * day_s)
        kept = [row.seq for row in store.telemetry_after(0, 100)]
        assert kept == list(range(max(1, day - 1), day + 1))
    store.aged(10 * day_s, 3 * day_s)
    assert not store.telemetry_after(0, 100)
    store.aged(day_s, 3 * day_s)


def test_a_device_that_is_set_up_anew_begins_to_count_anew(store: Store) -> None:
    def conn(session: int, folder: str, *, online: bool = True) -> bool:
        return store.conn("d", Conn(online=online, session=session, boot=session, ts_ms=0, state_id=folder), 1)

    def known() -> tuple[bool, int]:
        row = store.device("d")
        assert row is not None
        return row.online, row.session

    a, b = "a" * 16, "b" * 16
    assert not conn(7, "")
    assert not conn(8, a)  # only the agent was updated
    store.state("d", replace(state(99, "active"), state_id=a), 1)
    assert known() == (True, 8)
    assert conn(1, b)
    assert known() == (True, 1)
    assert not conn(9, a, online=False)  # the will of the folder that is gone
    assert known() == (True, 1)
    assert not store.state("d", replace(state(100, "failed"), state_id=a), 2)
    assert store.state("d", replace(state(1, "fetching"), state_id=b), 2)
    assert conn(9, a)  # two devices of one name
    assert known() == (True, 9)
    assert not conn(9, a)
    assert not conn(9, a, online=False)
    assert known() == (False, 9)


def test_a_lineage_is_of_who_came_with_it_first_or_has_its_folder(store: Store) -> None:
    row = contribution(1)
    row.device, row.state_id = "a", "a" * 16
    assert store.owner_of("l", "evil", "") is None
    store.contribution(row)
    assert store.owner_of("l", "a", "") is None
    assert store.owner_of("l", "renamed", "a" * 16) is None
    assert store.owner_of("l", "evil", "") == "a"
    assert store.owner_of("l", "evil", "b" * 16) == "a"


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
    models = [ModelRow(device=name, model="m", backbone=b, release=0) for name, b in ("db", "eb", "eo")]
    wanted = [store.desired(model, is_only=True) for model in models]
    assert [row and row.counter for row in wanted] == [2, 1, None]


OLD = (Path(__file__).parent / "data" / "one-model-per-device.sql").read_text()


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def old(path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(OLD)
    return path


def test_a_database_of_one_model_for_each_device_is_taken_over(tmp_path: Path) -> None:
    store = Store(old(tmp_path / "db.sqlite"))
    (model,) = store.models()
    found = (model.device, model.model, model.release, model.samples, model.state, model.state_seq, model.experts)
    assert found == ("cam-1", "digits", 7, 40, "active", 9, {"shipped": [1.0, 0.5, 3]})
    row = store.device("cam-1")
    assert row is not None
    assert (row.born, row.session, row.hardware, row.first_seen_ms) == (True, 3, {"cores": 4}, 5)
    assert [device.id for device in store.devices()] == ["cam-1", "cam-2"]
    assert [release.counter for release in store.releases()] == [1 + 7]
    release = store.desired(model, is_only=True)
    assert release is not None
    assert (release.counter, release.model) == (8, "")
    assert len(store.telemetry_after(0, 10)) == 1
    store.conn("cam-3", Conn(online=True, session=1, boot=1, ts_ms=0), 1)
    store.close()
    before = dump(tmp_path / "db.sqlite")
    Store(tmp_path / "db.sqlite").close()
    assert dump(tmp_path / "db.sqlite") == before, "once"


def test_a_take_over_that_is_cut_short_leaves_the_old_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cut in range(len(migrations.TAKE_OVER) + 1):
        path = old(tmp_path / f"{cut}.sqlite")
        before = dump(path)
        monkeypatch.setattr("edge.coordinator.store.TAKE_OVER", (*migrations.TAKE_OVER[:cut], "the power fails"))
        with pytest.raises(ConfigError):
            Store(path)
        assert dump(path) == before
        monkeypatch.undo()
        store = Store(path)
        assert [row.model for row in store.models()] == ["digits"]
        store.close()


def birth(*models: str, bundle: str = "", backbone: str = "b" * 64) -> Birth:
    served = [Served(model=name, bundle=bundle, backbone=backbone, head="", release=0, n_labels=0) for name in models]
    return Birth(
        agent_version="", boot=1, session=1, ts_ms=0, profile="", hardware={}, bundle=bundle, backbone=backbone,
        head="", release=0, n_labels=0, limits={}, models=tuple(served),
    )  # fmt: skip


def test_models_are_those_of_the_last_birth_and_old_devices_have_one(store: Store) -> None:
    def names(device: str) -> list[str]:
        return [row.model for row in store.models(device)]

    assert store.state("old", state(1, "active"), 1), "before its birth, and without a name"
    store.birth("old", birth(), 2)
    assert names("old") == [""], "nobody knows the bundle"
    store.add_bundle("f" * 64, "b" * 64, "digits")
    store.birth("old", birth(), 3)
    assert [(row.model, row.state) for row in store.models("old")] == [("digits", "active")]
    store.birth("old", birth(backbone="c" * 64), 4)
    assert names("old") == ["digits"], "another bundle was pushed to it"
    assert store.state("old", state(2, "refused"), 5)
    store.telemetry([("old", {"boot": 1, "seq": 1, "samples": 7, "model": "digits"}, 6)])
    assert [(row.state, row.samples) for row in store.models("old")] == [("refused", 7)]
    # It is updated, and gets a second model.
    store.birth("old", birth("digits", "voice"), 7)
    assert [(row.model, row.state) for row in store.models("old")] == [("digits", "refused"), ("voice", "")]
    store.birth("old", birth("voice", "digits"), 7)
    assert names("old") == ["voice", "digits"], "in the order that the device has"
    store.birth("old", birth("voice"), 8)
    assert names("old") == ["voice"]
    late = State(ts_ms=0, seq=9, slot="head", state="active", release=1, digest="", model="digits")
    assert not store.state("old", late, 9), "a message that the broker kept brings no model back"
    assert names("old") == ["voice"]


def test_a_release_is_for_the_model_that_it_names_or_that_it_fits(store: Store) -> None:
    store.birth("d", birth("digits", "voice"), 1)
    common = {"digest": "x", "devices": ["*"], "reason": "r", "now_ms": 1}
    models = {row.model: row for row in store.models("d")}

    def wanted(*, is_only: bool = False) -> list[int]:
        found = [store.desired(models[name], is_only=is_only) for name in ("digits", "voice")]
        return [0 if row is None else row.counter for row in found]

    store.release(kind="bundle", backbone="b" * 64, model="", **common)  # type: ignore[arg-type]
    assert wanted() == [0, 0], "an older release, for devices with one model"
    assert wanted(is_only=True) == [1, 1]
    store.release(kind="bundle", backbone="b" * 64, model="voice", **common)  # type: ignore[arg-type]
    assert wanted() == [0, 2]
    models["voice"].release = 2
    store.release(kind="head", backbone="b" * 64, model="", **common)  # type: ignore[arg-type]
    assert wanted() == [3, 3]
    store.release(kind="head", backbone="b" * 64, model="digits", **common)  # type: ignore[arg-type]
    assert wanted() == [4, 3]
    store.release(kind="head", backbone="e" * 64, model="", **common)  # type: ignore[arg-type]
    assert wanted() == [4, 3]


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
