"""Queries and rollouts know of a device what pages know: whether it is there, or that nobody can tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.channel.messages import Conn
from edge.channel.transport import Connected, Disconnected
from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.selection import chosen
from tests.support.light_fleet import Fleet, ends

HOUR_S = 3600.0


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path, digits_bundle, 4, ends("probation"))
    yield made
    made.close()


def whom(fleet: Fleet, query: str) -> set[str]:
    assert fleet.store is not None
    return set(chosen(fleet.store, query, fleet.core.dialogue.line.state, fleet.now))


def later(fleet: Fleet, seconds: float) -> None:
    fleet.now = Now(fleet.now.s + seconds, fleet.now.wall_ms + int(seconds * 1000))


def test_a_query_on_online_is_what_pages_say_and_refuses_where_nobody_can_tell(fleet: Fleet) -> None:
    there, gone, silent, unheard = fleet.devices.values()
    assert fleet.store is not None
    gone.say("up/conn", Conn(online=False, session=1, boot=1, ts_ms=1, state_id="a" * 16))
    fleet.store.devices.change(silent.name, telemetry_s=10.0)
    later(fleet, HOUR_S)
    fleet.core.transport(Disconnected(reason="the broker is away"), fleet.now)
    later(fleet, 60.0)
    fleet.core.transport(Connected(session_present=False, max_packet_bytes=1 << 20), fleet.now)
    gone.say("up/conn", Conn(online=False, session=1, boot=1, ts_ms=1, state_id="a" * 16))
    silent.connect()
    later(fleet, HOUR_S)
    there.connect()
    assert whom(fleet, "online = true") == {there.name}
    assert whom(fleet, "online = false") == whom(fleet, "online != true") == {gone.name, silent.name}
    assert unheard.name not in whom(fleet, "online in (true, false)"), "it has said nothing since there is a line"
    assert whom(fleet, "heard < 5 min") == {there.name}
    silent.say("up/conn", Conn(online=False, session=1, boot=1, ts_ms=2, state_id="a" * 16))  # the broker's last word
    fleet.core.transport(Disconnected(reason="no route to it"), fleet.now)
    known = fleet.store.devices.get(silent.name)
    assert known is not None
    assert fleet.core.dialogue.line.state.condition(known, fleet.now.wall_ms) == "not-known"
    later(fleet, 30.0)
    for query in ("online = true", "online = false", "not online = true", f'id = "{gone.name}" or online = true'):
        with pytest.raises(RolloutError, match=r"not known.*no device since.*no route to it"):
            whom(fleet, query)
    assert whom(fleet, f'id = "{there.name}" and heard < 5 min') == {there.name}
    with pytest.raises(RolloutError, match="not known"):
        fleet.start_plan(select="online = true")


def test_no_deadline_runs_and_nobody_is_absent_while_no_device_can_be_heard(fleet: Fleet) -> None:
    number = fleet.start_plan(waves=["100 %"], select="online = true")
    fleet.deliver()
    fleet.pass_time(HOUR_S, 900.0)
    assert fleet.counts(number) == {"probation": 4}, "the devices do not say how it went"
    fleet.core.transport(Disconnected(reason="the broker is away"), fleet.now)
    fleet.pass_time(48 * HOUR_S, 8 * HOUR_S)
    assert (fleet.counts(number), fleet.state(number)) == ({"probation": 4}, "opening")
    assert fleet.store is not None
    assert not fleet.store.events.newest(9, name="fault"), "whom it means cannot be told, which is no fault"
    fleet.core.transport(Connected(session_present=False, max_packet_bytes=1 << 20), fleet.now)
    for each in fleet.devices.values():
        each.connect()
    fleet.pass_time(HOUR_S / 2, 900.0)
    assert fleet.counts(number) == {"probation": 4}, "half an hour of two is left"
    fleet.pass_time(HOUR_S, 900.0)
    assert fleet.counts(number) == {"timed-out": 4}
