"""What goes wrong inside the coordinator costs its message or its merge, is told, and ends nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from edge.channel.memory import MemoryBroker, MemoryTransport
from edge.channel.transport import Received
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, LearningError
from edge.coordinator import events as events_module
from edge.coordinator import service as service_module
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.events import AGAIN_S, Events
from edge.coordinator.learning.learning import MERGE_AGAIN_S
from edge.coordinator.machine.place import Place
from edge.coordinator.service import CoordinatorService
from edge.learning.exchange import HeadUpdate
from edge.learning.statistics import HeadStatistics
from edge.merging.contributions import check_update
from edge.merging.merge import merge
from edge.merging.policy import MergePolicy
from tests.edge.coordinator.test_core import Coordinator
from tests.support.contributions import Make, policy_of, samples, with_loss
from tests.support.fleet import store_in
from tests.support.postgres import PostgresServer

NOW = Now(1000.0, 1_800_000_000_000)


def later(now: Now, seconds: float) -> Now:
    return Now(now.s + seconds, now.wall_ms + int(1000 * seconds))


def update_of(bundle: Bundle, lineage: str, own: HeadStatistics, n: int) -> HeadUpdate:
    return HeadUpdate(
        learner="statistics",
        backbone=bundle.manifest.backbone_digest,
        lineage=lineage,
        version=n,
        n_samples=n,
        base_release=0,
        tensors=dict(own.to_tensors()),
    )


def labelled(bundle: Bundle, lineage: str, labels: list[int], *, identical: bool = False) -> HeadUpdate:
    """A device that saw these labels, in features that are never negative."""
    names = bundle.manifest.class_names
    x, y = samples(names, sum(lineage.encode()), 1200)
    rows = [np.flatnonzero(y == label)[0 if identical else i] for i, label in enumerate(labels)]
    return update_of(bundle, lineage, HeadStatistics.of(np.abs(x[rows]), np.array(labels), len(names)), len(labels))


# Numbers


DEVICES: dict[str, list[list[int]]] = {
    "one label each": [[0], [1], [2]],
    "the same label": [[7], [7], [7]],
    "the same label, repeated": [[3] * 5] * 4,
    "one device": [[0]],
    "one class only": [[1] * 9],
    "many devices with a label each": [[i % 10] for i in range(12)],
    "one with a label, others with many": [[0], list(range(10)) * 3, list(range(10)) * 3],
}


@pytest.mark.parametrize("identical", [False, True])
@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES.keys())
def test_devices_with_hardly_any_labels_are_merged(
    start: Callable[..., Coordinator], bundle: Bundle, devices: list[list[int]], identical: bool
) -> None:
    fleet = start(auto_merge=True)
    for i, labels in enumerate(devices):
        fleet.take(f"d{i}", labelled(bundle, f"l{i}", labels, identical=identical))
    fleet.core.tick(later(fleet.now, 0))
    fleet.core.tick(later(fleet.now, 100))
    assert fleet.n_releases == 1
    assert all(np.isfinite(array).all() for array in fleet.release().parameters.values())


@pytest.mark.parametrize("screen", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-22, 5.0, 1e18])
def test_features_without_variance_give_a_finite_head_or_a_reason(bundle: Bundle, value: float, screen: bool) -> None:
    policy = policy_of(screen=screen)
    for of in (bundle, with_loss(bundle, "mean-squared-error")):
        own = HeadStatistics.of(np.full((6, 64), value), np.arange(6) % 3, 10)
        updates = [(f"d{i}", update_of(bundle, f"l{i}", own, 6)) for i in range(4)]
        try:
            found = merge(of, updates, bundle.head_parameters(), 0, {}, policy=policy)
        except LearningError:
            continue
        if found.release is None:
            assert found.refused
        else:
            assert all(np.isfinite(array).all() for array in found.release.parameters.values())


def test_sums_that_no_head_can_be_solved_from_end_the_merge_with_an_event(
    start: Callable[..., Coordinator], bundle: Bundle, statistics_update: Make
) -> None:
    fleet = start(policy_of(screen=False), auto_merge=True)
    own = HeadStatistics.of(np.full((1, 64), 1.5e19), np.array([0]), 10)  # its square is the largest of float32
    for i in range(3):
        fleet.take(f"d{i}", update_of(bundle, f"l{i}", own, 1))
    fleet.core.tick(fleet.now)
    fleet.core.tick(later(fleet.now, 100))
    (line,) = fleet.events("merge-failed")
    assert "not finite" in line
    assert fleet.n_releases == 0
    assert fleet.store is not None
    assert len(fleet.store.contributions.all()) == 3


def test_change_of_another_type_than_float32_is_refused(bundle: Bundle, delta_update: Make) -> None:
    update = delta_update(0.1)
    wide = {name: array.astype(np.float64) * 1e300 for name, array in update.tensors.items()}
    with pytest.raises(LearningError, match="float32"):
        check_update(dataclasses.replace(update, tensors=wide), bundle)


# Merges


@pytest.fixture
def start(tmp_path: Path, digits_bundle: Path) -> Iterator[Callable[..., Coordinator]]:
    made: list[Coordinator] = []

    def make(policy: MergePolicy | None = None, auto_merge: bool = False) -> Coordinator:
        made.append(Coordinator(tmp_path / str(len(made)), digits_bundle, policy or policy_of(), auto_merge))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_merge_that_fails_keeps_the_contributions_is_told_and_is_made_when_the_fault_is_over(
    start: Callable[..., Coordinator], statistics_update: Make
) -> None:
    fleet = start(auto_merge=True)
    fleet.take("a", statistics_update(0))
    assert fleet.store is not None
    with sqlite3.connect(fleet.folder / "db.sqlite") as database:
        database.execute("ALTER TABLE release RENAME TO gone")
    database.close()
    for seconds in range(100):
        fleet.core.tick(later(fleet.now, seconds))
    (line,) = fleet.events("merge-failed")
    assert "no such table" in line
    assert fleet.core.learning.next_deadline_s > fleet.now.s + 100, "it is not tried in a loop"
    with sqlite3.connect(fleet.folder / "db.sqlite") as database:
        database.execute("ALTER TABLE gone RENAME TO release")
    database.close()
    fleet.core.tick(later(fleet.now, 100 + MERGE_AGAIN_S))
    assert fleet.n_releases == 1
    assert fleet.store.contributions.all()[0].merged_version == 60


def test_bundle_that_is_gone_costs_the_merge_only(
    start: Callable[..., Coordinator], statistics_update: Make, bundle: Bundle
) -> None:
    fleet = start(auto_merge=True)
    fleet.take("a", statistics_update(0))
    assert fleet.store is not None
    row = fleet.store.releases.bundle_of(bundle.manifest.backbone_digest)
    assert row is not None
    fleet.core.releases._bundles._opened.clear()
    fleet.core.dialogue._artifacts.remove(row.digest)
    fleet.take("b", statistics_update(1))
    assert fleet.events("bundle-unusable"), "what the device sent is kept all the same"
    fleet.core.tick(fleet.now)
    fleet.core.tick(later(fleet.now, 100))
    assert "missing" in fleet.events("merge-failed")[0]
    fleet.core.add_artifact(fleet.bundle.read_bytes(), fleet.bundle)
    fleet.core.tick(later(fleet.now, 101))
    fleet.core.tick(later(fleet.now, 200))
    assert fleet.n_releases == 1
    assert fleet.store.contributions.all()[1].merged_version == 60


# Messages and events


def test_telemetry_that_cannot_be_kept_costs_no_other(start: Callable[..., Coordinator]) -> None:
    fleet = start()
    for device, boot in (("a", "1"), ("rogue", r'"\ud800"'), ("b", "1")):
        payload = f'{{"boot":{boot},"seq":1}}'.encode()
        fleet.core.transport(Received(topic=f"edge/v1/lab/{device}/up/tele", payload=payload, retained=False), NOW)
    fleet.core.tick(NOW)
    assert fleet.store is not None
    rows = fleet.store.telemetry.after(-1, 10)
    assert {"a", "b"} <= {row.device for row in rows}
    for row in rows:  # what is kept can be told to who asks
        json.dumps(row.values, ensure_ascii=False).encode()
    assert all(line.startswith("rogue: keeping telemetry: Unicode") for line in fleet.events("fault"))


def test_fault_that_repeats_is_told_once_and_counted(tmp_path: Path) -> None:
    store = store_in(tmp_path / "db.sqlite")
    events = Events(store)
    for i in range(5000):
        events.fault("a", "bad-message", f"number {i}", later(NOW, i / 1000))
    events.fault("a", "bad-message", "the last", later(NOW, AGAIN_S))
    assert [row.detail for row in store.events.newest(10)] == ["the last; 4999 more since it was last told", "number 0"]
    store.close()


def test_different_faults_do_not_fill_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_FAULTS", 30)
    store = store_in(tmp_path / "db.sqlite")
    events = Events(store)
    for i in range(100):
        events.fault(f"d{i}", "bad-message", "x" * 5000, NOW)
    assert len(store.events.newest(100)) == 30
    events.fault("after", "bad-message", "it was long ago", later(NOW, AGAIN_S))
    assert store.events.newest(1)[0].device == "after"
    store.close()


def test_event_that_cannot_be_recorded_is_logged_and_recorded_when_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(tmp_path / "db.sqlite")
    events = Events(store)
    with sqlite3.connect(tmp_path / "db.sqlite") as database:
        database.execute("ALTER TABLE event RENAME TO gone")
    events.fault("", "merge-failed", "half a character: \ud800", NOW)
    events.note("", "release", "2", NOW)
    assert "could not be recorded" in caplog.text
    assert "(no such table: event)" in events.says, "edge-fleet status says so"
    database.execute("ALTER TABLE gone RENAME TO event")
    database.close()
    events.offer_again(later(NOW, 59))
    assert not store.events.newest(1)
    events.offer_again(later(NOW, 61))
    assert [row.name for row in store.events.newest(5)] == ["release", "merge-failed"]
    assert events.says == ""
    store.close()


# The process


class Served:
    """A coordinator that serves in this thread, while another one talks to it; with a certificate by HTTPS."""

    def __init__(self, folder: Path, database: str = "", tls: tuple[Path, Path] | None = None) -> None:
        self.tls = tls
        self.verify = ssl.create_default_context(cafile=tls[0]) if tls else ssl.create_default_context()
        self.broker = MemoryBroker()
        config = CoordinatorConfig(fleet="lab", name="c", data_dir=folder, database=database)
        place = Place(config, "127.0.0.1", 0, f"memory of {folder}")
        self.port = place.listening.getsockname()[1]
        self.service = CoordinatorService(config, MemoryTransport(self.broker, "c"), place)
        self.failed: list[BaseException] = []

    def run(self, story: Callable[[], None]) -> None:
        def tell() -> None:
            try:
                self.until(lambda: self.api("health").status_code == 200)
                story()
            except BaseException as exc:  # noqa: BLE001  # raised again by the test's own thread
                self.failed.append(exc)
            os.kill(os.getpid(), signal.SIGTERM)

        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        thread = threading.Thread(target=tell)
        thread.start()
        try:
            self.service.run(None, self.tls)
        finally:
            thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.failed:
            raise self.failed[0]

    def api(self, path: str, method: str = "GET", **arguments: Any) -> httpx.Response:
        return httpx.request(method, f"{self.url}/api/{path}", timeout=10, verify=self.verify, **arguments)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def details(self, name: str) -> list[str]:
        return [row["detail"] for row in self.api("events").json() if row["name"] == name]

    def until(self, ready: Callable[[], Any]) -> None:
        for _ in range(200):
            try:
                if ready():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError("it did not happen in 10 s")


def test_a_second_coordinator_is_refused_before_it_touches_the_broker(tmp_path: Path) -> None:
    config = CoordinatorConfig(fleet="lab", name="c", data_dir=tmp_path / "one")
    first = Place(config, "127.0.0.1", 0, "mqtt://b:1883")
    first.settle()
    port = first.listening.getsockname()[1]
    with pytest.raises(ConfigError, match=r"in use.*choose another with --http"):
        Place(dataclasses.replace(config, fleet="other", data_dir=tmp_path / "two"), "127.0.0.1", port, "mqtt://b:1883")
    with pytest.raises(ConfigError, match=r"one is in use by another process"):
        Place(dataclasses.replace(config, fleet="other"), "127.0.0.1", 0, "mqtt://b:1883")
    with pytest.raises(ConfigError, match=r"another edgeloop coordinator of lab at mqtt://b:1883"):
        Place(dataclasses.replace(config, data_dir=tmp_path / "two"), "127.0.0.1", 0, "mqtt://b:1883")
    assert not (tmp_path / "two").exists()
    # A broker knows it by its name: one of another fleet would push it off all the same.
    with pytest.raises(ConfigError, match=rf"another edgeloop coordinator called {config.name} at .*choose --name"):
        Place(dataclasses.replace(config, fleet="other", data_dir=tmp_path / "two"), "127.0.0.1", 0, "mqtt://b:1883")
    Place(dataclasses.replace(config, data_dir=tmp_path / "two"), "127.0.0.1", 0, "mqtt://elsewhere:1883").close()
    first.close()
    Place(config, "127.0.0.1", port, "mqtt://b:1883").close()


def test_a_coordinator_serves_with_its_database_in_postgresql(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.new()
    served = Served(tmp_path / "one", url)

    def story() -> None:
        payload = b'{"boot":1,"seq":1,"acc":0.5}'
        served.service._inbox.put(Received(topic="edge/v1/lab/a/up/tele", payload=payload, retained=False))
        served.until(lambda: served.api("telemetry").json())
        assert [row["id"] for row in served.api("devices").json()] == ["a"]
        place = Place(CoordinatorConfig(fleet="x", name="d", data_dir=tmp_path / "two"), "127.0.0.1", 0, "memory")
        config = CoordinatorConfig(fleet="x", name="d", data_dir=tmp_path / "two", database=url)
        with pytest.raises(ConfigError, match="in use by another coordinator"):
            CoordinatorService(config, MemoryTransport(served.broker, "d"), place)
        place.close()
        assert served.api("merge", "POST").json() == []

    served.run(story)
    assert not list((tmp_path / "one").glob("*.sqlite"))


class Panic(BaseException):
    """As pyo3 raises it for a panic in Rust: no Exception."""


def test_nothing_that_is_raised_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "PAUSE_S", 0.05)
    served = Served(tmp_path)
    core = served.service.core
    faults = itertools.cycle([MemoryError("x"), RecursionError("x"), Panic("x"), SystemExit(3), KeyboardInterrupt()])

    def fail(*_: object, **__: object) -> Any:
        raise next(faults)

    def story() -> None:
        for name in ("tick", "transport", "merge_now"):
            with monkeypatch.context() as patched:
                patched.setattr(core, name, fail)
                for _ in range(5):
                    if name == "merge_now":
                        answer = served.api("merge", "POST")
                        assert answer.status_code == 500
                        assert "goes on" in answer.json()["detail"]
                    elif name == "transport":
                        served.service._inbox.put(Received(topic="edge/v1/lab/a/up/tele", payload=b"", retained=False))
                if name == "tick":
                    served.until(lambda: len(served.details("fault")) >= 5)
        served.until(lambda: any("MemoryError" in detail for detail in served.details("fault")))
        served.until(lambda: any("POST /api/merge" in detail for detail in served.details("fault")))
        assert served.api("merge", "POST").json() == []

    served.run(story)


def test_a_full_database_is_said_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tmp_path)
    full = OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    def fail(*_: object, **__: object) -> Any:
        raise full

    def story() -> None:
        monkeypatch.setattr(served.service.core, "merge_now", fail)
        answer = served.api("merge", "POST")
        assert (answer.status_code, answer.json()["error"]) == (503, "ResourceError")
        assert "(database or disk is full): nothing was changed" in answer.json()["detail"]
        full.orig = sqlite3.OperationalError("database is locked")
        answer = served.api("merge", "POST")
        assert (answer.status_code, answer.json()["error"]) == (503, "RolloutError")
        assert answer.json()["detail"].startswith("another program has the database locked: nothing was changed")
        once = {"headers": {"Idempotency-Key": "a"}, "json": {}}
        assert served.api("merge", "POST", **once).status_code == 503
        monkeypatch.undo()  # nothing was begun: the same key asks anew
        assert served.api("merge", "POST", **once).json() == []

    served.run(story)


def test_database_that_lost_its_tables_costs_what_needs_them(tmp_path: Path) -> None:
    served = Served(tmp_path)

    def story() -> None:
        with sqlite3.connect(tmp_path / "coordinator.sqlite") as database:
            for table in ("device", "event", "contribution"):
                database.execute(f"ALTER TABLE {table} RENAME TO {table}_gone")
        for leaf in ("tele", "conn", "birth", "state", "event", "req"):
            served.service._inbox.put(Received(topic=f"edge/v1/lab/a/up/{leaf}", payload=b"{}", retained=False))
        served.until(lambda: not served.service._inbox._has_any())  # operators are served before devices
        assert served.api("devices").status_code == 500
        assert served.api("merge", "POST").status_code == 500
        assert served.api("health").status_code == 200
        served.until(lambda: not served.service.core.registry._telemetry)
        with database:
            for table in ("device", "event", "contribution"):
                database.execute(f"ALTER TABLE {table}_gone RENAME TO {table}")
        database.close()
        assert served.api("devices").json() == []
        assert served.api("merge", "POST").json() == []

    served.run(story)


def test_web_server_that_is_ended_by_a_request_serves_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served(tmp_path)

    def leave() -> Any:
        raise SystemExit(1)

    def story() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(served.service._store.devices, "all", leave)
            served.until(lambda: served.api("devices") and "the HTTP API ended" in caplog.text)
        served.until(lambda: served.api("devices").status_code == 200)

    served.run(story)
