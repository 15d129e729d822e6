"""The state folder of a device: whose it is, and what happens when its small files are not what they should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.channel import topics
from edge.learning.exchange import HeadUpdate
from tests.support.fleet import FLEET, SimulatedFleet


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path) -> Iterator[SimulatedFleet]:
    made = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    yield made
    made.close()


def said(fleet: SimulatedFleet, leaf: str) -> dict[str, object]:
    """The retained message of the device."""
    found = json.loads(fleet.broker.retained[topics.build(FLEET, "one", leaf)][0])
    assert isinstance(found, dict)
    return found


def told(fleet: SimulatedFleet) -> set[object]:
    """All identities that the device goes by now."""
    fleet.run(6.0)
    leaves = (topics.UP_CONN, topics.UP_BIRTH, topics.UP_STATE)
    telemetry = fleet.store.telemetry.after(-1, 1)[0].values
    contribution = fleet.store.contributions.all()[0]
    update = (fleet.folder / "coordinator" / "artifacts").rglob(contribution.digest)
    described = HeadUpdate.decode(next(update).read_bytes(), "the update").state_id
    return {*(said(fleet, leaf)["state_id"] for leaf in leaves), telemetry["state_id"], described}


def learn(fleet: SimulatedFleet, n: int) -> None:
    x = np.random.default_rng(n).random((n, 1, 8, 8), np.float32)
    fleet.teach("one", x, np.arange(n) % 10, tag=f"{n}-")


def test_everything_that_a_device_says_carries_the_identity_of_its_state_folder(fleet: SimulatedFleet) -> None:
    learn(fleet, 10)
    (first,) = told(fleet)
    fleet.crash_agent("one")
    fleet.start_agent("one")
    learn(fleet, 11)
    assert told(fleet) == {first}, "a restart is no other device"
    fleet.broker.disconnect("one")
    assert said(fleet, topics.UP_CONN) | {"online": False, "state_id": first} == said(fleet, topics.UP_CONN)
    fleet.crash_agent("one")
    shutil.rmtree(fleet.folder / "one")
    agent = fleet.start_agent("one")
    fleet.run(6.0)
    again = said(fleet, topics.UP_CONN)
    assert again["state_id"] == agent.core.status()["state_id"] != first, "set up anew"
    assert (again["boot"], again["session"]) == (1, 1)


def test_a_start_that_cannot_be_counted_is_an_identity_of_its_own_until_it_can(fleet: SimulatedFleet) -> None:
    fleet.run(2.0)
    first = said(fleet, topics.UP_CONN)["state_id"]
    fleet.crash_agent("one")
    record = fleet.folder / "one" / "device.json"
    record.chmod(0o444)
    agent = fleet.start_agent("one")
    fleet.run(2.0)
    second = said(fleet, topics.UP_CONN)["state_id"]
    assert second != first
    assert any("device.json could not be written" in row.detail for row in fleet.store.events.newest(50))
    record.chmod(0o644)
    fleet.broker.connect("one")  # a new session is written down
    fleet.run(2.0)
    assert json.loads(record.read_bytes())["state_id"] == second == agent.core.status()["state_id"]


def test_a_disk_that_was_full_at_a_start_makes_no_two_devices_of_one(fleet: SimulatedFleet) -> None:
    learn(fleet, 10)
    (first,) = told(fleet)
    record = fleet.folder / "one" / "device.json"
    passing = []
    for _ in range(2):  # full, and full again after it was not
        for _ in range(2):
            fleet.crash_agent("one")
            record.chmod(0o444)
            fleet.start_agent("one")
            fleet.run(2.0)
            passing.append(str(said(fleet, topics.UP_CONN)["state_id"]))
        fleet.crash_agent("one")
        record.chmod(0o644)
        fleet.start_agent("one")
        fleet.run(2.0)
        assert said(fleet, topics.UP_CONN)["state_id"] == first
    assert len({*passing, first}) == 5
    assert all(each.startswith(str(first)) for each in passing)
    told_of = fleet.store.events.newest(50)
    assert {row.detail for row in told_of if row.name == "set-up-anew"} == {
        "its disk takes, or took, no count of its starts: its numbers begin anew"
    }
    assert not any(row.name in ("same-name", "quarantined") for row in told_of)
    before = fleet.store.contributions.all()[0].version
    learn(fleet, 11)
    fleet.run(6.0)
    assert fleet.store.contributions.all()[0].version > before, "and what it learns is heard"
