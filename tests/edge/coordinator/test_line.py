"""What the broker keeps from the coordinator is told, also where it says nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge.channel import topics
from edge.channel.codec import decode
from edge.channel.messages import Here, Reply, Request
from edge.channel.transport import Received, Refused
from edge.contract.clock import Now
from edge.coordinator.line import SILENCE_S, Line
from edge.coordinator.records import Device
from tests.support.fleet import SimulatedFleet

UP, DN = "edge/v1/lab/_c/up/probe/coordinator", "edge/v1/lab/_c/dn/probe/coordinator"


def at(s: float) -> Now:
    return Now(s, 1_000_000 + int(1000 * s))


def test_what_does_not_come_back_is_told_unless_a_device_shows_that_it_works() -> None:
    line = Line("lab", "coordinator")
    assert [each.topic for each in line.connected(at(0.0))] == [UP, DN, "edge/v1/lab/all/dn/here/coordinator"]
    assert line.poll(SILENCE_S - 1) == []
    up, dn = line.poll(SILENCE_S)
    assert "edge/v1/lab/+/up/#" in up
    assert "edge/v1/lab/+/dn/#" in dn
    assert line.troubles == [up, dn]
    assert line.poll(1e6) == [], "once a connection"
    assert line.heard("edge/v1/lab/_c/up/probe/another"), "of a coordinator beside this one"
    assert len(line.troubles) == 2
    assert not line.heard("edge/v1/lab/pi/up/tele")
    assert line.troubles == [dn]
    line.said(Request(op="desired", digest="", part="data", want=(), window=0))
    assert line.troubles == [dn], "it may ask that of itself"
    line.said(Reply(id="c", rc=0, detail="", out={}))
    assert line.troubles == []
    line.connected(at(100.0))
    assert line.heard(UP)
    assert line.heard(DN)
    assert line.poll(1e6) == []


def test_refusals_and_a_lost_connection_are_trouble_until_the_next_one() -> None:
    line = Line("lab", "coordinator")
    line.connected(at(0.0))
    assert line.refused(Refused(action="subscribe", topic="edge/v1/lab/_c/dn/#", reason="Not authorized")) == ""
    said = line.refused(Refused(action="publish", topic="edge/v1/lab/pi/dn/cmd", reason="Not authorized"))
    line.disconnected("cut off", at(0.5))
    assert line.troubles == ["no connection: cut off", said]
    assert line.poll(1e6) == []
    line.connected(at(1.0))
    assert line.troubles == []


def test_how_a_device_is_is_said_only_as_far_as_it_can_be_known() -> None:
    line = Line("lab", "coordinator", "mqtt://broker:1883")

    def seen(s: float, **fields: bool) -> str:
        device = Device(
            id="pi", **{"online": True, "born": True, "telemetry_s": 10.0, "last_seen_ms": at(s).wall_ms, **fields}
        )
        return line.state.condition(device, at(60.0).wall_ms)

    assert (seen(50.0), seen(50.0, online=False), seen(50.0, born=False)) == ("not-known", "not-known", "unknown")
    assert "since it began" in line.state.says
    line.connected(at(40.0))
    assert (seen(50.0), seen(50.0, online=False), seen(20.0, online=False)) == ("online", "offline", "offline")
    assert seen(35.0) == "not-known", "it said so before the line was there, and may be gone"
    assert (seen(20.0), line.state.says) == ("silent", "")
    line.disconnected("connection refused", at(55.0))
    line.disconnected("no answer from mqtt://broker:1883", at(57.0))
    assert (seen(50.0), seen(50.0, online=False)) == ("not-known", "not-known")
    assert seen(56.0) == "online", "another coordinator of this fleet hears it"
    assert line.state.since_ms == at(55.0).wall_ms, "since it was lost, not since the newest try"
    assert line.troubles == ["no connection: no answer from mqtt://broker:1883"]
    line.connected(at(58.0))
    line.poll(58.0 + SILENCE_S)
    assert (line.state.is_connected, line.state.hears, seen(50.0)) == (True, False, "not-known")


def test_a_broker_that_denies_without_a_word_is_an_event_and_one_that_grants_is_none(
    tmp_path: Path, digits_bundle: Path
) -> None:
    """faults: 13."""

    def denying(way: str) -> Callable[[SimulatedFleet], None]:
        def deny(fleet: SimulatedFleet) -> None:
            kept = fleet.coordinator_events

            def take(event: object) -> None:
                if not (isinstance(event, Received) and f"/{way}/" in event.topic):
                    kept.append(event)  # type: ignore[arg-type]

            fleet.coordinator_transport.stop()
            fleet.coordinator_transport = fleet.connect("coordinator")
            fleet.coordinator_transport.subscribe(topics.coordinator_filters("lab"))
            fleet.coordinator_transport.start(take)

        return deny

    for name, spoil, count in (("none", None, 0), ("up", denying("up"), 1), ("dn", denying("dn"), 1)):
        # A device that answers would show that it hears us.
        fleet = SimulatedFleet(tmp_path / name, digits_bundle, [] if name == "dn" else ["one"], auto_merge=False)
        try:
            assert fleet.coordinator is not None
            if spoil is not None:
                spoil(fleet)
            fleet.run(SILENCE_S + 2.0)
            told = [row.detail for row in fleet.store.events.newest(50, name="broker-silent") if not row.device]
            assert len(told) == count, name
            assert fleet.coordinator.dialogue.line.troubles == told
        finally:
            fleet.close()


def test_devices_are_told_who_listens_and_the_end_of_one_connection_is_not_that_of_the_next() -> None:
    line, said = Line("lab", "c"), []
    for number in range(3):
        will = line.will(at(0.0))  # of a clock that stands still
        *_, here = line.connected(at(0.0))
        said += [decode("dn/here/c", each.payload) for each in (will, here)]
        assert (will.topic, will.retain, here.topic, here.retain) == (
            here.topic,
            True,
            "edge/v1/lab/all/dn/here/c",
            True,
        )
        assert line.connected(at(0.0))[-1].payload != here.payload, number
    sessions = [each.session for each in said if isinstance(each, Here)]
    assert [each.online for each in said if isinstance(each, Here)] == [False, True] * 3
    assert sessions[::2] == sessions[1::2]
    assert len(set(sessions)) == 3
    last = decode("dn/here/c", line.farewell(at(1.0)).payload)
    assert isinstance(last, Here)
    assert (last.online, last.session) == (False, line._session)
