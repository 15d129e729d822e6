"""What a device says without a line arrives later, once, with its own time; a data cap holds back bulk."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.config import AgentConfig
from edge.agent.line.data_cap import DataCap
from edge.agent.line.outbox import Outbox
from edge.agent.reports import ANSWER_S, QUIET_S, SPREAD_S, Reports
from edge.agent.slots.slots import DeviceRecord
from edge.channel.codec import MAX_HISTORY_BYTES, decode
from edge.channel.memory import Faults
from edge.channel.messages import Here, History, HistoryKept, Telemetry
from edge.channel.transport import Publish, Received
from edge.contract.clock import Now
from tests.support.fleet import SimulatedFleet, unhurried

STATE_ID = "0123456789abcdef"
LATE_S = QUIET_S + SPREAD_S


def config(folder: Path) -> AgentConfig:
    return AgentConfig(bundles={}, state_dir=folder, fleet="lab", device="one", profile=unhurried())


def reports(folder: Path, boot: int = 1) -> Reports:
    record = DeviceRecord(boot=boot, session=1, state_id=STATE_ID)
    return Reports(config(folder), record, Outbox(folder / "outbox.sqlite", 1 << 20))


def at(s: float, wall_ms: int = 1_800_000_000_000) -> Now:
    return Now(s, wall_ms + round(1000 * s))


def history(sent: list[Publish]) -> History:
    ((payload),) = [each.payload for each in sent]
    assert len(payload) <= MAX_HISTORY_BYTES
    found = decode("up/hist", payload)
    assert isinstance(found, History)
    return found


def test_backfill_comes_late_one_array_at_a_time_and_only_the_coordinators_word_deletes_it(tmp_path: Path) -> None:
    one = reports(tmp_path)
    for s in range(600):
        assert one.telemetry({"model": "kws", "load": s, "text": "x" * 80}, at(s), may_send=True) == []
        assert one.poll(at(s), may_send=True) == []
    one.event("drift", "p = 0.01", "kws", at(600))
    assert one.waiting == 601
    one.online(1 << 20, at(1000.0))
    (live,) = one.event("drift", "again", "kws", at(1000.0))
    assert b'"seq":2' in live.payload
    assert one.poll(at(1000.0 + QUIET_S - 1), may_send=True) == [], "live traffic first"
    s, seen = 1000.0 + LATE_S, []
    assert one.next_deadline_s <= s
    first = one.poll(at(s), may_send=True)
    found = history(first)
    assert [event.detail for event in found.events] == ["p = 0.01"]
    assert found.events[0].ts_ms == 1_800_000_600_000
    assert found.telemetry[0]["load"] == 599, "the newest first"
    assert len(first[0].payload) > MAX_HISTORY_BYTES - 500
    assert one.poll(at(s + 1), may_send=True) == [], "one that is not acknowledged at a time"
    again = one.poll(at(s + ANSWER_S), may_send=True)
    assert history(again) == found, "nobody answered"
    assert one.poll(at(s + ANSWER_S * 2), may_send=True) == [], "and then more rarely"
    one.kept(HistoryKept(batch="0" * 16), at(s))
    assert one.waiting == 601
    while True:
        seen += [values["load"] for values in found.telemetry]
        one.kept(HistoryKept(batch=found.batch), at(s))
        if not one.waiting:
            break
        assert one.poll(at(s), may_send=True) == [], "not faster than one a second"
        s += 1.0
        found = history(one.poll(at(s), may_send=True))
    assert sorted(seen) == list(range(600))
    assert reports(tmp_path / "other").waiting == 0


def test_telemetry_that_comes_often_goes_together_but_for_one_live_message_in_five_seconds(tmp_path: Path) -> None:
    often = replace(config(tmp_path), telemetry_interval_s=0.5)
    one = Reports(often, DeviceRecord(boot=1, session=1, state_id=STATE_ID), Outbox(tmp_path / "o.sqlite", 1 << 20))
    one.online(4096, at(0.0))
    sent: list[Publish] = []
    for n in range(120):
        for model in ("kws", "digits"):
            sent += one.telemetry({"model": model, "load": n, "text": "x" * 100}, at(n / 2), may_send=True)
        sent += one.poll(at(n / 2), may_send=True)
    live = [decode("up/tele", each.payload) for each in sent if each.topic.endswith("up/tele")]
    assert 24 <= len(live) <= 28
    arrays = [history([each]) for each in sent if each.topic.endswith("up/hist")]
    assert len(sent) < 240 / 3
    assert all(len(each.payload) + len(each.topic) < 4096 for each in sent)
    said = [values["seq"] for array in arrays for values in array.telemetry] + [
        each.values["seq"] for each in live if isinstance(each, Telemetry)
    ]
    assert sorted(said) == list(range(1, len(said) + 1))
    assert 240 - len(said) == len(one._between) > 0
    one.offline(at(60.0))
    assert one.waiting >= 240 - len(said), "what had not gone yet waits in the outbox"
    assert one.telemetry({"model": "kws"}, at(61.0), may_send=True) == []
    assert one.next_deadline_s > 60.0


def test_the_coordinator_has_all_of_telemetry_that_comes_often(tmp_path: Path, digits_bundle: Path) -> None:
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, telemetry_interval_s=1.0)
    try:
        fleet.run(40.0)
        found = sorted(row.seq for row in fleet.store.telemetry.after(0, 1000))
        assert found[-1] >= 30
        assert found == list(range(found[0], found[-1] + 1))
        assert found[0] <= 2
    finally:
        fleet.close()


def test_what_was_sent_just_before_a_line_is_lost_waits_too_and_survives_a_restart(tmp_path: Path) -> None:
    """faults: 5. On a half-open line nobody knows how much of the last minute arrived."""
    one = reports(tmp_path)
    one.online(1 << 20, at(0.0))
    for s in (10.0, 100.0, 130.0):
        assert len(one.telemetry({"model": "kws", "load": s}, at(s), may_send=True)) == 1
    one.offline(at(150.0))
    assert one.waiting == 2
    one.offline(at(151.0))
    one.close(152.0)
    two = reports(tmp_path, boot=2)
    two.online(1 << 20, at(5.0))
    found = history(two.poll(at(5.0 + LATE_S), may_send=True))
    assert [(values["boot"], values["seq"]) for values in found.telemetry] == [(1, 3), (1, 2)]


def test_a_clock_that_was_set_since_dates_what_was_made_before(tmp_path: Path) -> None:
    """faults: 8. A device without a battery for its clock begins in 1970; what another start made stays as it is."""
    one = reports(tmp_path)
    one.telemetry({"model": "kws"}, Now(10.0, 5_000), may_send=True)
    one.online(1 << 20, at(70.0))
    (values,) = history(one.poll(at(70.0 + LATE_S), may_send=True)).telemetry
    assert values["ts"] == at(10.0).wall_ms
    one.close(80.0)
    two = reports(tmp_path, boot=2)
    two.online(1 << 20, at(1.0))
    (values,) = history(two.poll(at(1.0 + LATE_S), may_send=True)).telemetry
    assert values["ts"] == 5_000


def test_an_array_fits_what_the_broker_takes(tmp_path: Path) -> None:
    one = reports(tmp_path)
    for s in range(50):
        one.telemetry({"model": "kws", "text": "x" * 200}, at(s), may_send=True)
    one.telemetry({"model": "kws", "text": "x" * 9000}, at(60.0), may_send=True)
    one.online(1 << 20, at(100.0))
    one.limit(4096)
    s = 100.0 + LATE_S
    while one.waiting:
        (sent,) = one.poll(at(s), may_send=True)
        assert len(sent.payload) <= 4096
        one.kept(HistoryKept(batch=history([sent]).batch), at(s))
        s += 1.0


def test_the_coordinator_has_all_of_a_time_without_a_line_once_and_with_the_time_of_the_device(
    tmp_path: Path, digits_bundle: Path
) -> None:
    """faults: 2, 4, 5, 21. Lost lines, an agent and a coordinator that are killed, messages that come twice."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    try:
        fleet.broker.fault = Faults(rng=random.Random(1), repeat=0.3)
        fleet.run(20.0)
        fleet.broker.disconnect("one")
        lost_ms = fleet.now.wall_ms
        fleet.run(400.0)
        assert fleet.agents["one"].core.status()["outbox"]["waiting"] > 80
        fleet.broker.connect("one")
        fleet.run(
            4.0
        )  # the line does not last until anything was made up for: that begins after `QUIET_S` at the least
        fleet.broker.disconnect("one")
        fleet.run(200.0)
        fleet.crash_agent("one")  # up to a minute was not on the disk yet
        fleet.now_s += 3600.0
        fleet.crash_coordinator()
        agent = fleet.start_agent("one")
        fleet.run(100.0)
        assert agent.core.status()["outbox"]["waiting"] > 100, "nobody has acknowledged it"
        fleet.start_coordinator()
        fleet.until("made up for", lambda: agent.core.status()["outbox"]["waiting"] == 0, 300.0)
        fleet.run(10.0)
        rows = [row for row in fleet.store.telemetry.after(0, 9999) if row.boot == 1]
        made = sorted((row.seq, row.values["ts"]) for row in rows)
        assert [seq for seq, _ in made] == list(range(1, len(made) + 1)), "each once, without a gap"
        assert len(made) >= 620 // 5 - 12, "but for what a kill may lose"
        times = [ts for _, ts in made]
        assert max(after - before for before, after in itertools.pairwise(times)) <= 6000
        assert all(abs(row.received_ms - row.values["ts"]) <= 2000 for row in rows), "not when it was made up for"
        lost = [event for event in fleet.store.events.newest(99) if event.name == "broker-lost"]
        assert [0 <= event.at_ms - lost_ms < 1000 for event in lost] == [True], "told once an hour, and kept once"
        assert lost[0].boot == 1 <= lost[0].seq
        assert agent.core.status()["outbox"] == {"waiting": 0, "thinned": 0, "lost": 0}
    finally:
        fleet.close()


@pytest.fixture
def capped(tmp_path: Path, digits_bundle: Path) -> Iterator[SimulatedFleet]:
    fleet = SimulatedFleet(
        tmp_path,
        digits_bundle,
        ["one"],
        auto_merge=False,
        probation_s=1.0,
        telemetry_interval_s=1.0,
        data_cap=DataCap.parse("1MB/day"),
    )
    yield fleet
    fleet.close()


def published(fleet: SimulatedFleet, seconds: float) -> Counter[str]:
    """What the device says meanwhile, by leaf."""
    found: Counter[str] = Counter()
    send = fleet.agents["one"].transport.publish

    def counted(topic: str, payload: bytes, **options: Any) -> bool:
        found["/".join(topic.split("/")[4:6])] += 1
        return send(topic, payload, **options)

    fleet.agents["one"].transport.publish = counted  # type: ignore[method-assign]
    fleet.run(seconds)
    fleet.agents["one"].transport.publish = send  # type: ignore[method-assign]
    return found


def test_with_the_data_cap_used_up_only_what_must_be_said_is_and_a_download_goes_on_in_the_next_period(
    capped: SimulatedFleet, other_bundle: Path
) -> None:
    fleet = capped
    assert fleet.coordinator is not None
    fleet.broker.swallows_above = 3000  # so that the download is one of many windows
    fleet.run(2.0)
    use = fleet.agents["one"].core._use
    assert use is not None
    use.spend(935_000)  # what else there was today
    kept = fleet.coordinator.add_artifact(other_bundle.read_bytes(), other_bundle)
    counter = fleet.coordinator.push(kept["digest"], "bundle", kept["backbone"], [], "test", fleet.now).counter
    fleet.until("used up", lambda: fleet.agents["one"].core.status()["data"]["waits"], 120.0)
    fleet.run(3.0)
    assert "data cap of 1 MB a day is used up until" in fleet.device("one").state_detail
    assert fleet.device("one").state == "fetching"
    assert any(row.name == "data-cap" for row in fleet.store.events.newest(20))
    said = published(fleet, 60.0)
    assert said["up/tele"] == said["up/req"] == said["up/ul"] == said["up/hist"] == 0
    fleet.teach("one", np.zeros((1, 1, 8, 8), np.float32), np.array([3]))
    fleet.crash_agent("one")
    agent = fleet.start_agent("one")
    said = published(fleet, 60.0)
    assert said["up/tele"] + said["up/req"] <= 5, "counted over restarts; a kill may lose 4 KB of the count"
    assert said["up/conn"] == said["up/birth"] == 1
    status = agent.core.status()
    assert status["data"]["used_mb"] <= 1 + 8 * 3000 / 1e6, "at most a window too much"
    assert status["outbox"]["waiting"] > 100, "telemetry waits as without a line"
    days = 0
    while fleet.device("one").state_release != counter or fleet.device("one").state != "active":
        fleet.now_s += 86_400.0
        days += 1
        fleet.run(30.0)
        used = agent.core.status()["data"]["used_mb"]
        assert used <= 1 + 64 * 3000 / 1e6, "at most a window too much"
        assert days < 10
    assert days >= 1
    assert any("new period" in row.detail for row in fleet.store.events.newest(50))


def said_here(*, online: bool, session: int) -> Here:
    return Here(online=online, session=session, ts_ms=0)


def test_what_nobody_listens_to_is_said_live_for_others_and_waits_for_the_coordinator(tmp_path: Path) -> None:
    """faults: 21. Who reads a broker without a coordinator gets everything at once, and nothing piles up."""
    one = reports(tmp_path)
    seconds = itertools.count(10.0, 10.0)

    def say() -> tuple[int, int]:
        """How many messages go out at once, and how many wait then."""
        s = next(seconds)
        return len(one.telemetry({"model": "kws"}, at(s), may_send=True)) + len(
            one.event("drift", "", "kws", at(s))
        ), one.waiting

    one.online(1 << 20, at(0.0))
    assert [say() for _ in range(9)] == [(2, 0)] * 9
    assert str(one.listeners) == "unknown"
    one.here("c", said_here(online=True, session=1), at(91.0))  # it has come: what came before that may be lost
    assert one.waiting == 2 * 6
    one.here("c", said_here(online=True, session=1), at(91.5))
    assert say() == (2, 12)
    one.here("c", said_here(online=False, session=7), at(101.0))  # the end of another connection of it
    assert say() == (2, 12)
    one.here("c", said_here(online=False, session=1), at(111.0))
    assert one.waiting == 16, "what went out just before its end may not be kept"
    assert say() == (2, 18)
    assert str(one.listeners) == "gone"
    assert one.poll(at(1000.0), may_send=True) == [], "nobody would answer"
    one.here("d", said_here(online=True, session=1), at(1000.0))
    sent = one.poll(at(1000.0 + LATE_S), may_send=True)
    one.kept(HistoryKept(batch=history(sent).batch), at(1031.0))
    assert one.waiting == 0
    one.offline(at(1100.0))
    one.online(1 << 20, at(1200.0))  # what is known of before the line was lost is old news
    assert say() == (2, 2)
    assert str(one.listeners) == "unknown"
    one.answered(at(1200.0))  # brokers that keep nothing for wildcards
    assert say() == (2, 2)
    assert str(one.listeners) == "here"


def test_what_was_sent_in_the_minute_before_a_line_is_lost_waits_however_often_it_is_said(tmp_path: Path) -> None:
    often = replace(config(tmp_path), telemetry_interval_s=0.5)
    record = DeviceRecord(boot=1, session=1, state_id=STATE_ID)
    one = Reports(often, record, Outbox(tmp_path / "o.sqlite", 1 << 20))
    one.online(1 << 20, at(0.0))
    for number in range(118):
        one.telemetry({"model": "kws"}, at(0.5 * number), may_send=True)
        one.poll(at(0.5 * number), may_send=True)
    one.offline(at(59.0))
    assert one.waiting == 118


def test_after_everything_was_started_anew_nothing_is_missing_of_the_time_without_a_coordinator(
    tmp_path: Path, digits_bundle: Path
) -> None:
    """faults: 21. A power cut for a whole site: the coordinator comes back last, and the broker knows nothing."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, telemetry_interval_s=3.0)
    try:
        fleet.run(10.0)
        fleet.crash_coordinator()
        fleet.crash_agent("one")
        fleet.broker.retained.clear()
        agent = fleet.start_agent("one")
        fleet.run(60.0)
        agent.core.tell([("drift", "meanwhile")])
        fleet.run(100.0)
        fleet.start_coordinator()
        fleet.run(LATE_S)
        fleet.until("made up for", lambda: agent.core.status()["outbox"]["waiting"] == 0)
        rows = fleet.store.telemetry.after(0, 9999)
        found = sorted(row.seq for row in rows if row.boot == agent.core.status()["boot"])
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= 160.0 / 3.0
        assert [each.detail for each in fleet.store.events.newest(99) if each.name == "drift"] == ["meanwhile"]

        fleet.crash_coordinator()  # for good: somebody takes back what it said, and says so
        topic = "edge/v1/lab/all/dn/here/coordinator"
        fleet.broker.retained.clear()
        agent.core.transport(Received(topic=topic, payload=b"", retained=False), fleet.now)
        fleet.crash_agent("one")
        agent = fleet.start_agent("one")
        fleet.run(10.0)
        status = agent.core.status()
        assert (status["coordinator"], status["outbox"]["waiting"]) == ("unknown", 0)
    finally:
        fleet.close()


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_coordinator_that_is_away_for_a_while_has_all_telemetry_and_events_once(
    tmp_path: Path, digits_bundle: Path, is_killed: bool
) -> None:
    """faults: 21. The broker and its other readers were there all the time."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, telemetry_interval_s=3.0)
    try:
        agent, begun_s = fleet.agents["one"], fleet.now_s
        fleet.run(31.0)
        live = published(fleet, 0.0)
        fleet.crash_coordinator()
        if not is_killed:  # also of one that is here again before anybody was told that it had gone
            fleet.start_coordinator()
        else:
            for number in range(5):
                agent.core.tell([("drift", f"number {number}")])
                live += published(fleet, 20.0)
            assert live["up/tele"] >= 30, "others read it at once"
            assert live["up/event"] == 5
            fleet.start_coordinator()
        fleet.run(LATE_S)
        fleet.until("made up for", lambda: agent.core.status()["outbox"]["waiting"] == 0)
        fleet.run(10.0)
        found = sorted(row.seq for row in fleet.store.telemetry.after(0, 9999))
        assert found == list(range(1, len(found) + 1)), "each once, without a gap"
        assert len(found) >= (fleet.now_s - begun_s - 10.0) / 3.0
        told = [event.detail for event in fleet.store.events.newest(99) if event.name == "drift"]
        assert sorted(told) == [f"number {number}" for number in range(5 * is_killed)]
    finally:
        fleet.close()
