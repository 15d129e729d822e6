"""How fast, and when: limits of bytes and windows of plans, on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.channel.messages import Request
from edge.channel.transport import Publish
from edge.contract.bundle import Bundle
from edge.contract.errors import RolloutError
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import RolloutEvent
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet
from tests.support.light_fleet import Fleet, ends

NewFleet = Callable[..., Fleet]
MB = 10**6


@pytest.fixture
def new(tmp_path: Path, digits_bundle: Path) -> Iterator[NewFleet]:
    made: list[Fleet] = []

    def make(n: int, **options: Any) -> Fleet:
        made.append(Fleet(tmp_path / str(len(made)), digits_bundle, n, ends("active"), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def fetched(fleet: Fleet, device: str, artifact: Any) -> int:
    """How many bytes of frames answer a device that asks for all of an artifact."""
    last = -(-artifact.size_bytes // artifact.chunk_bytes) - 1
    request = Request(
        op="chunks", digest=artifact.digest, part="data", want=((0, last),), window=64,
        chunk_size_bytes=artifact.chunk_bytes,
    )  # fmt: skip
    fleet.devices[device].say("up/req", request)
    sent: list[Publish] = fleet.core.dialogue.drain(fleet.now)
    return sum(len(each.payload) for each in sent if f"/{device}/dn/f/" in each.topic)


def test_a_device_is_sent_no_more_than_its_plan_allows_in_a_day_whatever_restarts(new: NewFleet) -> None:
    fleet = new(2)
    going = fleet.start_plan(waves=["100 %"], pace={"device_mb_per_day": 1})
    for device in fleet.devices.values():
        device.receive = lambda _: None  # type: ignore[method-assign]  # it fetches for long
    fleet.pass_time(10, 10)
    data = np.random.default_rng(0).bytes(3 * MB)  # whatever it fetches meanwhile

    def artifact() -> Any:
        return fleet.core.dialogue._artifacts.get(fleet.core.dialogue._artifacts.put(data).digest)

    assert fetched(fleet, "d000", artifact()) <= MB
    got = sum(fetched(fleet, "d000", artifact()) for _ in range(5))
    assert got < MB
    assert fetched(fleet, "d000", artifact()) == 0
    assert fetched(fleet, "d001", artifact()) > MB / 2, "each for itself"
    fleet.start()
    assert fetched(fleet, "d000", artifact()) == 0, "and a restart gives no more"
    fleet.pass_time(86_000, 43_000)
    assert fetched(fleet, "d000", artifact()) == 0
    fleet.pass_time(1000, 500)
    assert fetched(fleet, "d000", artifact()) > MB / 2, "the next day"
    fleet.core.rollouts.order(going, RolloutEvent.ABORT, "ann", "", fleet.now)
    fleet.pass_time(20, 10)
    assert fetched(fleet, "d000", artifact()) > MB, "nothing limits it any more"


def test_a_plan_whose_limits_leave_no_time_is_refused_and_the_forecast_says_how_long_it_takes(new: NewFleet) -> None:
    fleet = new(4)
    size = len(fleet.head)
    with pytest.raises(RolloutError, match=r"4 devices that fetch \d+ bytes each at 1 bytes a second in all need .* h"):
        fleet.start_plan(pace={"bytes_per_s": 1}, deadline={"fetch": "1 h"})
    plan = plans.of_document({"release": 1, "waves": ["50 %", "100 %"], "pace": {"bytes_per_s": 10}})
    assert [wave["fetch_s"] for wave in fleet.core.rollouts.plan(plan, fleet.now)["waves"]] == [size / 5, size / 5]


def test_devices_activate_in_their_own_night(new: NewFleet) -> None:
    """The clock stands at 2027-01-15 08:00 UTC. A device that says no local time is taken to have UTC."""
    fleet = new(3, reassert_s=60.0)
    for name, ahead in (("d000", 0), ("d001", -5 * 60)):
        device = fleet.devices[name]
        device.hardware = {"utc_offset_min": ahead}
        device.connect()
    plan = {"waves": ["100 %"], "window": "02:00-05:00", "model": "off", "deadline": {"activate": "1 d"}}
    kept = fleet.core.add_artifact(fleet.head, Path("/nonexistent"))
    release = fleet.core.push(kept["digest"], "head", kept["backbone"], [], "t", fleet.now, at_once=False)
    found = fleet.core.rollouts.plan(plans.of_document({"release": release.counter, **plan}), fleet.now)
    assert found["without_local_time"] == ["d002"]
    going = fleet.start_plan(**plan)
    fleet.pass_time(180, 60)
    # It is 08:03 in UTC and 03:03 where d001 is.
    assert {name: device.release for name, device in fleet.devices.items()} == {"d000": 0, "d001": 2, "d002": 0}
    assert fleet.counts(going) == {"active": 1, "staged": 2}
    fleet.pass_time(17 * 3600, 3600)
    assert fleet.counts(going) == {"active": 1, "staged": 2}
    fleet.pass_time(2 * 3600, 1800)
    fleet.pass_time(120, 60)
    assert fleet.counts(going) == {"active": 3}
    assert fleet.state(going) == "completed"


def test_real_agents_share_the_line_and_wait_for_their_window(tmp_path: Path, digits_bundle: Path) -> None:
    """The real protocol: who gets no frames asks again, more rarely, until it has all."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["a", "b"], auto_merge=False, probation_s=1.0)
    try:
        fleet.until("births", lambda: all(d is not None and d.born for d in map(fleet.device, ("a", "b"))))
        assert fleet.coordinator is not None
        assert isinstance(fleet.device("a").hardware["utc_offset_min"], int)
        bundle = Bundle.open(digits_bundle)
        head = HeadRelease(backbone=bundle.manifest.backbone_digest, parameters=bundle.head_parameters(), origin="t")
        data = head.encode()
        kept = fleet.coordinator.add_artifact(data, Path("h.safetensors"))
        release = fleet.coordinator.push(kept["digest"], "head", kept["backbone"], [], "t", fleet.now, at_once=False)
        ahead_s = 60 * fleet.device("a").hardware["utc_offset_min"]
        local_s = fleet.now.wall_ms // 1000 + ahead_s
        opens = (local_s // 3600 + 1) % 24
        rate = len(data) / 20
        plan = {
            "release": release.counter, "waves": ["100 %"], "pace": {"bytes_per_s": int(rate)},
            "window": f"{opens:02}:00-{(opens + 1) % 24 or 24:02}:00",
        }  # fmt: skip
        began_s = fleet.now_s
        fleet.coordinator.rollouts.start(plans.of_document(plan), "ann", fleet.now)
        fleet.until("both staged", lambda: all(fleet.device(n).state == "staged" for n in ("a", "b")))
        assert fleet.now_s - began_s >= 20, "the second came when the bytes of the first were paid for"
        fleet.now_s += 3600 - local_s % 3600  # to the hour
        fleet.until("both live", lambda: all(fleet.device(n).release == release.counter for n in ("a", "b")))
    finally:
        fleet.close()
