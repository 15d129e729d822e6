"""Numbers for Prometheus: what they say, and that devices cannot make them many."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.contract.clock import Now
from edge.coordinator.export import prometheus
from edge.coordinator.line import LineState
from edge.coordinator.records import Alert, Device, KnownDevice, Model
from edge.coordinator.store.store import Store
from tests.support.fleet import store_in

NOW = Now(1000.0, 1_800_000_000_000)
ROOT = Path(__file__).parents[4]
LINE = LineState(is_connected=True, hears=True, since_ms=1)
Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Store]:
    made = store_in(tmp_path / "db.sqlite")
    yield made
    made.close()


def asked(store: Store) -> Found:
    text = prometheus.metrics(store, "lab", LINE, NOW).decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return {(each.name, frozenset(each.labels.items())): each.value for each in samples}


def of(found: Found, name: str, **labels: str) -> float | None:
    return found.get((f"edgeloop_{name}", frozenset(labels.items())))


def add(store: Store, i: int, **fields: object) -> None:
    name = f"d{i}"
    known = {"agent": "1", "model": "digits", "state": "active", "online": True, "right": 0.9, "labels": 40, **fields}
    device = Device(
        id=name, online=bool(known["online"]), born=True, last_seen_ms=NOW.wall_ms, agent_version=str(known["agent"])
    )
    model = Model(
        device=name, model=str(known["model"]), state=str(known["state"]), samples=10,
        experts={"own": [0.2, 0.1, 40], "merge": [0.8, float(str(known["right"])), float(str(known["labels"]))]},
    )  # fmt: skip
    store.devices.keep(KnownDevice(device=device, models=(model,)), None)


def test_numbers_are_of_the_whole_fleet(kept: Store) -> None:
    with kept.transaction():
        for i in range(10):
            add(kept, i, right=0.5 + i / 20, online=i < 7, labels=40 if i else 5)
        kept.alerts.add(Alert(rule="hot", kind="threshold", subject="d1", state="firing", since_ms=1, seen_ms=1))
    found = asked(kept)
    assert (of(found, "devices", state="online"), of(found, "devices", state="offline")) == (7, 3)
    assert of(found, "slots", model="digits", state="active") == 10
    assert of(found, "broker_line") == 1
    assert of(found, "labels_learned", model="digits") == 100
    # The first has too few labels to say anything.
    assert of(found, "head_right_ratio", model="digits", quantile="0.5") == pytest.approx(0.75)
    assert of(found, "head_right_ratio", model="digits", quantile="0.1") == pytest.approx(0.6)
    assert (of(found, "alerts", rule="hot"), of(found, "alerts_unacknowledged")) == (1, 1)
    kept.devices.change("d0", admission="decommissioned")
    found = asked(kept)
    assert (of(found, "devices", state="online"), of(found, "labels_learned", model="digits")) == (6, 90)
    assert of(found, "devices_admission", admission="decommissioned") == 1
    assert of(found, "build_info", fleet="lab", version=__import__("edge").__version__) == 1


def test_devices_cannot_make_time_series_without_end(kept: Store) -> None:
    with kept.transaction():
        for i in range(300):
            add(kept, i, agent=f'"\n{i}', model=f"m{i}", state=f"mad{i}")
    found = asked(kept)
    assert len(found) < 500
    assert of(found, "agents", version=prometheus.OTHER) == 250
    assert sum(value for (name, _), value in found.items() if name == "edgeloop_slots") == 300
    assert {dict(labels)["state"] for name, labels in found if name == "edgeloop_slots"} == {prometheus.OTHER}


def test_the_dashboard_for_grafana_asks_for_metrics_that_there_are(kept: Store) -> None:
    add(kept, 1)
    text = prometheus.metrics(kept, "lab", LINE, NOW).decode()
    there = set(re.findall(r"^# TYPE (\w+)", text, flags=re.MULTILINE))
    dashboard = json.loads((ROOT / "examples/grafana/edgeloop.json").read_text())
    asked_for = [each["expr"] for panel in dashboard["panels"] for each in panel["targets"]]
    wanted = {name for each in asked_for for name in re.findall(r"edgeloop_\w+", each)}
    assert len(wanted) > 8
    assert wanted - there == set()
