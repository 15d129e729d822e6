"""What devices say of themselves: late, repeated and reordered messages, folders and models that come and go."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from edge.channel import confusion
from edge.channel.messages import Birth, Conn, History, Served, State
from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.devices.registry import Registry
from edge.coordinator.events import Events
from edge.coordinator.records import Device, KnownBundle, KnownDevice, Model
from edge.coordinator.store.store import Store

NOW = Now(1000.0, 1)


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store, Events(store))


def state(seq: int, name: str, release: int = 1) -> State:
    return State(ts_ms=0, seq=seq, slot="head", state=name, release=release, digest="")


def online(store: Store, device: str) -> bool:
    row = store.devices.get(device)
    assert row is not None
    return row.online


def test_offline_of_an_older_session_is_dropped(
    store: Store, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """A will that is delivered after the rebirth (fault 18)."""
    caplog.set_level("INFO", "edge.coordinator")
    registry.conn("d", Conn(online=True, session=5, boot=1, ts_ms=0), NOW)
    registry.conn("d", Conn(online=False, session=4, boot=1, ts_ms=0), NOW)
    assert online(store, "d")
    registry.conn("d", Conn(online=False, session=5, boot=1, ts_ms=0), NOW)
    assert not online(store, "d")
    assert [each.getMessage() for each in caplog.records if each.name == "edge.coordinator"] == ["d joined", "d left"]


def test_where_a_slot_stands_is_an_event_once_however_often_it_counts_on(store: Store, registry: Registry) -> None:
    said = [("probation", "a"), ("probation", "a"), ("active", "b"), ("active", "b"), ("active", "c")]
    for seq, (name, detail) in enumerate(said, 1):
        assert registry.state("d", replace(state(seq, name), detail=detail), NOW), "its numbers are news"
    told = [(each.name, each.detail) for each in store.events.newest(10)]
    assert told == [("active", "release 1: c"), ("active", "release 1: b"), ("probation", "release 1: a")]


def test_what_a_device_says_as_it_likes_is_bounded_and_told(store: Store, registry: Registry) -> None:
    said = {f"k{i:04}": i for i in range(2000)} | {"a": "x" * 300, "b": [1], "c": {"d": 1}, "e" * 300: 1}
    birth = Birth(
        agent_version="1", boot=1, session=1, ts_ms=0, profile="p", hardware=said, bundle="", head="", n_labels=0,
        backbone="", release=0, limits={}, state_id="a" * 16,
    )  # fmt: skip
    registry.birth("d", birth, NOW)
    registry.birth("d", birth, NOW)
    device = store.devices.get("d")
    assert device is not None
    assert device.hardware == {f"k{i:04}": i for i in range(32)}
    (event,) = store.events.newest(10, name="too-much-said")
    assert event.detail == "2004 facts about itself: 32 are kept, plain and short ones, the first by name"
    registry.birth("d", replace(birth, hardware={"machine": "x", "cores": 4, "fast": True}), NOW)
    device = store.devices.get("d")
    assert device is not None
    assert device.hardware == {"machine": "x", "cores": 4, "fast": True}
    with pytest.raises(RolloutError, match="2000 tags: expected at most 64"):
        registry.tag("d", {f"k{i}": "v" for i in range(2000)})
    assert len(registry.tag("d", {f"k{i}": "v" for i in range(64)})) == 64
    with pytest.raises(RolloutError, match="d would have 65 tags: expected at most 64; KEY= takes one away"):
        registry.tag("d", {"more": "v"})
    assert len(registry.tag("d", {"more": "v", "k0": ""})) == 64


def test_state_that_is_late_or_repeated_is_dropped(store: Store, registry: Registry) -> None:
    assert registry.state("d", state(2, "active"), NOW)
    assert not registry.state("d", state(1, "fetching"), NOW)
    assert not registry.state("d", state(2, "failed"), Now(1001.0, 3))
    (row,) = store.devices.models("d")
    assert (row.state, row.release) == ("active", 1)
    device = store.devices.get("d")
    assert device is not None
    assert (device.first_seen_ms, device.last_seen_ms) == (1, 3), "but it was heard"


def test_who_took_a_release_back_runs_what_was_there_before(store: Store, registry: Registry) -> None:
    for seq, (name, release, is_back) in enumerate(
        [("active", 1, False), ("rolled-back", 2, True), ("fetching", 3, False), ("active", 3, False)]
    ):
        registry.state("d", state(seq + 1, name, release), NOW)
        (row,) = store.devices.models("d")
        assert row.went_back is is_back, name


def test_failed_release_does_not_count_as_handled(store: Store, registry: Registry) -> None:
    registry.state("d", state(1, "failed", release=3), NOW)
    (row,) = store.devices.models("d")
    assert row.release == 0


def test_repeated_telemetry_is_kept_once(store: Store, registry: Registry) -> None:
    values = {"boot": 1, "seq": 7, "acc": 0.5}
    for device in ("d", "d", "e"):
        registry.telemetry(device, values, NOW)
    registry.keep_telemetry(NOW)
    registry.telemetry("d", values, NOW)
    assert NOW.s < registry.next_deadline_s <= NOW.s + 1.0
    registry.keep_telemetry(NOW)
    assert registry.next_deadline_s > NOW.s, "a transaction costs as much as many messages: it waits for more"
    registry.keep_telemetry(NOW, at_once=True)
    assert registry.next_deadline_s == math.inf
    assert len(store.telemetry.after(0, 100)) == 2
    folders = [{**values, "state_id": each} for each in ("0" * 16, "1" * 16)]  # set up anew: it counts from one again
    for each in (*folders, *folders):
        registry.telemetry("d", each, NOW)
    registry.keep_telemetry(Now(NOW.s + 1.0, 1))
    assert len(store.telemetry.after(0, 100)) == 4


def test_telemetry_changes_what_it_measured_and_leaves_all_else(store: Store, registry: Registry) -> None:
    """Of a device no more than that is read with its telemetry: what was not read must not be written."""
    served = [
        Served(model=name, bundle="b" * 64, backbone="e" * 64, head="f" * 64, release=3, n_labels=5)
        for name in ("digits", "voice")
    ]
    for device in ("d", "other"):
        registry.conn(device, Conn(online=True, session=5, boot=2, ts_ms=0, state_id="a" * 32), NOW)
        registry.birth(device, Birth(
            agent_version="1", boot=2, session=5, ts_ms=0, profile="p", hardware={"cores": 4}, bundle="b" * 64,
            head="f" * 64, n_labels=5, backbone="e" * 64, release=3, limits={"telemetry_s": 60}, state_id="a" * 32,
            models=tuple(served), seal_key="k",
        ), NOW)  # fmt: skip
        registry.state(device, replace(state(4, "active"), model="voice", detail="as it should be"), NOW)
    store.devices.change("d", note="in the hall")
    before, other = store.devices.known("d"), store.devices.known("other")
    assert before is not None
    experts = {"ridge": [0.75, 0.9, 12]}
    values = {"boot": 2, "seq": 1, "state_id": "a" * 32, "model": "voice", "samples": 9, "experts": experts}
    registry.telemetry("d", values, Now(NOW.s, 777))
    registry.telemetry("d", values | {"seq": 2, "model": "gone", "samples": 1}, Now(NOW.s, 888))
    registry.telemetry("new", {"boot": 1, "seq": 1, "model": "voice", "samples": 3}, Now(NOW.s, 999))
    registry.keep_telemetry(NOW)
    voice = replace(before.models[1], samples=9, experts=experts)
    assert store.devices.known("d") == KnownDevice(
        device=replace(before.device, last_seen_ms=888), models=(before.models[0], voice)
    )
    assert store.devices.known("other") == other
    assert store.devices.known("new") == KnownDevice(
        device=Device(id="new", first_seen_ms=999, last_seen_ms=999),
        models=(Model(device="new", model="voice", samples=3),),
    )
    assert len(store.telemetry.after(0, 10)) == 3


def test_telemetry_is_kept_the_sooner_the_more_of_it_comes(registry: Registry) -> None:
    def kept(n: int, at_s: float) -> float:
        """How long the next ones wait after so many."""
        for seq in range(n):
            registry.telemetry("d", {"boot": n, "seq": seq}, Now(at_s, 1))
        registry.keep_telemetry(Now(at_s, 1))
        registry.telemetry("d", {"boot": 0, "seq": int(at_s)}, Now(at_s, 1))
        return registry.next_deadline_s - at_s

    few, many = kept(1, 10.0), kept(1000, 20.0)
    assert 0.4 < few <= 0.5
    assert 0.0 < many < 0.1


def test_a_device_that_is_set_up_anew_begins_to_count_anew(store: Store, registry: Registry) -> None:
    def conn(session: int, folder: str, *, online: bool = True) -> bool:
        return registry.conn("d", Conn(online=online, session=session, boot=session, ts_ms=0, state_id=folder), NOW)

    def known() -> tuple[bool, int]:
        row = store.devices.get("d")
        assert row is not None
        return row.online, row.session

    a, b = "a" * 16, "b" * 16
    assert not conn(7, "")
    assert not conn(8, a)  # only the agent was updated
    registry.state("d", replace(state(99, "active"), state_id=a), NOW)
    assert known() == (True, 8)
    assert conn(1, b)
    assert known() == (True, 1)
    assert not conn(9, a, online=False)  # the will of the folder that is gone
    assert known() == (True, 1)
    assert not registry.state("d", replace(state(100, "failed"), state_id=a), NOW)
    assert registry.state("d", replace(state(1, "fetching"), state_id=b), NOW)
    assert conn(9, a)  # two devices of one name
    assert known() == (True, 9)
    assert not conn(9, a)
    assert not conn(9, a, online=False)
    assert known() == (False, 9)
    names = [event.name for event in store.events.newest(9)]
    assert names == ["same-name", "set-up-anew"], "one that comes back is no device that was set up anew"
    assert all(folder in store.events.newest(1)[0].detail for folder in (a, b))


def birth(*models: str, bundle: str = "", backbone: str = "b" * 64) -> Birth:
    served = [Served(model=name, bundle=bundle, backbone=backbone, head="", release=0, n_labels=0) for name in models]
    return Birth(
        agent_version="", boot=1, session=1, ts_ms=0, profile="", hardware={}, bundle=bundle, backbone=backbone,
        head="", release=0, n_labels=0, limits={}, models=tuple(served),
    )  # fmt: skip


def test_models_are_those_of_the_last_birth_and_old_devices_have_one(store: Store, registry: Registry) -> None:
    def models() -> list[tuple[str, str]]:
        return [(row.model, row.state) for row in store.devices.models("old")]

    def names() -> list[str]:
        return [name for name, _ in models()]

    assert registry.state("old", state(1, "active"), NOW), "before its birth, and without a name"
    registry.birth("old", birth(), NOW)
    assert names() == [""], "nobody knows the bundle"
    store.releases.add_bundle(KnownBundle(digest="f" * 64, backbone="b" * 64, name="digits"))
    registry.birth("old", birth(), NOW)
    assert models() == [("digits", "active")]
    registry.birth("old", birth(backbone="c" * 64), NOW)
    assert names() == ["digits"], "another bundle was pushed to it"
    assert registry.state("old", state(2, "refused"), NOW)
    registry.telemetry("old", {"boot": 1, "seq": 1, "samples": 7, "model": "digits"}, NOW)
    registry.keep_telemetry(NOW)
    assert [(row.state, row.samples) for row in store.devices.models("old")] == [("refused", 7)]
    # It is updated, and gets a second model.
    registry.birth("old", birth("digits", "voice"), NOW)
    assert models() == [("digits", "refused"), ("voice", "")]
    registry.birth("old", birth("voice", "digits"), NOW)
    assert names() == ["voice", "digits"], "in the order that the device has"
    registry.birth("old", birth("voice"), NOW)
    assert names() == ["voice"]
    late = State(ts_ms=0, seq=9, slot="head", state="active", release=1, digest="", model="digits")
    assert not registry.state("old", late, NOW), "a message that the broker kept brings no model back"
    assert names() == ["voice"]


def test_what_models_answered_to_labels_is_kept_as_said_last_and_goes_with_what_it_was_said_of(
    store: Store, registry: Registry
) -> None:
    def says(text: str, model: str = "a", seq: int = 1, at_ms: int = 10) -> None:
        registry.telemetry("d", {"model": model, "seq": seq, "confusion": text}, Now(1000.0, at_ms))

    def told(n: int) -> str:
        return confusion.told({"x": {"x": n}})

    def kept() -> dict[str, Any]:
        registry.keep_telemetry(Now(1e6, 99), at_once=True)
        return {each.model: each.counts for each in store.confusions.all()}

    registry.birth("d", birth("a", "b", bundle="1" * 64), NOW)
    says(told(3))
    says(confusion.told({"x": {"y": 1}}), "b", 2)
    says(told(9), "gone", 3)
    assert kept() == {"a": {"x": {"x": 3}}, "b": {"x": {"y": 1}}}
    # What comes late, of a time without a line, does not take the place of what was said after it.
    for seq, ts, text in ((4, 5, told(1)), (5, 20, told(5))):
        values = {"model": "a", "seq": seq, "ts": ts, "confusion": text}
        registry.history("d", History(telemetry=(values,), events=(), batch=""), Now(1000.0, 30))
        assert kept()["a"] == {"x": {"x": 3 if ts == 5 else 5}}
    # Another bundle: nothing of it is known, also where the older one's last words were not kept yet.
    says(told(7), "a", 6, 40)
    registry.birth("d", birth("a", bundle="2" * 64), Now(1001.0, 50))
    assert {model: counts for model, counts in kept().items() if counts} == {}
    says("", "a", 7, 60)
    assert kept()["a"] == {}
    says(told(2), "a", 8, 70)
    assert kept()["a"] == {"x": {"x": 2}}
    registry.birth("d", replace(birth("a", bundle="2" * 64), state_id="e" * 16), Now(1002.0, 80))
    registry.conn("d", Conn(online=True, session=1, boot=1, ts_ms=0, state_id="f" * 16), Now(1003.0, 90))
    assert kept() == {}, "another state folder under this name"
