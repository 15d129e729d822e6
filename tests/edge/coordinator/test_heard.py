"""When a device was last heard: by its own words, and neither by what the broker keeps of it nor says for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

from edge.channel import topics
from edge.channel.codec import encode
from edge.channel.messages import Conn, Telemetry
from edge.channel.transport import Disconnected, Received
from edge.coordinator.line import NOT_KNOWN
from tests.support.fleet import SimulatedFleet


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path) -> Iterator[SimulatedFleet]:
    made = SimulatedFleet(tmp_path, digits_bundle, ["one", "two"], auto_merge=False)
    yield made
    made.close()


def test_device_that_died_is_heard_by_no_will_and_by_no_restart_of_the_coordinator(fleet: SimulatedFleet) -> None:
    fleet.run(6.0)
    data = load_digits()
    fleet.teach("one", (data.images[:12, None] / 16).astype("float32"), data.target[:12])
    fleet.until("its telemetry", lambda: fleet.device("one").samples == 12)
    died_ms = fleet.now.wall_ms
    fleet.crash_agent("one")
    fleet.run(20.0)
    assert not fleet.device("one").online
    assert fleet.device("one").last_seen_ms <= died_ms
    events = [row.id for row in fleet.store.events.newest(100, device="one")]

    fleet.crash_coordinator()
    fleet.run(5.0)
    fleet.start_coordinator()
    fleet.run(5.0)
    one, two = fleet.device("one"), fleet.device("two")
    assert (one.online, two.online) == (False, True)
    assert one.last_seen_ms <= died_ms, "what the broker kept was said before"
    assert one.samples == 12, "its birth, which the broker kept, is older than its telemetry"
    assert two.last_seen_ms > died_ms + 20_000
    assert [row.id for row in fleet.store.events.newest(100, device="one")] == events


def test_what_waited_while_the_line_was_lost_says_nothing_of_afterwards(fleet: SimulatedFleet) -> None:
    """A broker that ends says of all devices that they are gone, and that is taken after the end of the line."""
    fleet.run(6.0)
    core = fleet.coordinator
    assert core is not None
    core.transport(Disconnected(reason="the broker was stopped"), fleet.now)
    fleet.now_s += 0.5
    gone = Conn(online=False, session=99, boot=9, ts_ms=0)
    for device, leaf, message in (
        ("one", topics.UP_CONN, gone),
        ("two", topics.UP_TELE, Telemetry(values={"samples": 3})),
    ):
        topic = topics.build("lab", device, leaf)
        core.transport(Received(topic=topic, payload=encode(message), retained=False), fleet.now)
    core.close(fleet.now)
    for device in ("one", "two"):
        known = fleet.store.devices.get(device)
        assert known is not None
        assert core.dialogue.line.state.condition(known, fleet.now.wall_ms) == NOT_KNOWN
    assert fleet.device("two").samples == 3
