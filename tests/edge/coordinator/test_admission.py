"""Whether a device belongs to the fleet: clones, copies, images, devices that wait, and those that are gone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.channel.codec import decode, encode, encode_history
from edge.channel.messages import Birth, Command, Conn, Event, Message, Reply, Served, Telemetry
from edge.channel.transport import Connected, Publish, Received
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import LearningError, RolloutError
from edge.contract.names import passing_name
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.devices.admission import Admission, Decision, after
from edge.coordinator.devices.clones import Life, Seen, meet
from edge.coordinator.devices.standings import Standings
from edge.coordinator.releases.artifacts import ArtifactStore
from tests.support.contributions import Make
from tests.support.fleet import store_in

NOW = Now(1000.0, 1_800_000_000_000)
A, B = "a" * 16, "b" * 16


class Fleet:
    """A coordinator, and what devices say to it."""

    def __init__(self, folder: Path, bundle: Bundle | None = None, **options: Any) -> None:
        self.store = store_in(folder / "db.sqlite")
        config = CoordinatorConfig(fleet="lab", name="c", data_dir=folder, auto_merge=False, **options)
        self.core = CoordinatorCore(config, self.store, ArtifactStore(folder / "artifacts"))
        self.core.transport(Connected(max_packet_bytes=1 << 20, session_present=False), NOW)
        if bundle is not None:
            self.core.add_artifact(bundle.path.read_bytes(), bundle.path)
        self.ts = itertools.count(1)

    def say(self, device: str, leaf: str, message: Message) -> None:
        self.core.transport(
            Received(topic=f"edge/v1/lab/{device}/{leaf}", payload=encode(message), retained=False), NOW
        )

    def on(self, device: str, session: int, folder: str = A, boot: int = 1, *, ts: int | None = None) -> str:
        """A device connects; where it stands then."""
        at = next(self.ts) if ts is None else ts
        self.say(device, "up/conn", Conn(online=True, session=session, boot=boot, ts_ms=at, state_id=folder))
        return self.admission(device)

    def born(self, device: str, backbone: str = "e" * 64, folder: str = A, admission: str = "") -> None:
        served = Served(model="digits", bundle="", backbone=backbone, head="", release=0, n_labels=0)
        birth = Birth(
            agent_version="", boot=1, session=1, ts_ms=0, profile="", hardware={}, bundle="", backbone=backbone,
            head="", release=0, n_labels=0, limits={"telemetry_s": 10.0}, models=(served,),
            state_id=folder, admission=admission,
        )  # fmt: skip
        self.say(device, "up/birth", birth)

    def admission(self, device: str) -> str:
        return self.core.admissions.get(device).admission

    def told(self, device: str) -> list[Publish]:
        self.core.dialogue.tell(device, NOW)
        return [each for each in self.core.dialogue.drain(NOW) if "/dn/desired" in each.topic]

    def events(self, device: str) -> list[str]:
        return [each.name for each in self.store.events.newest(50, device=device)[::-1]]


@pytest.fixture
def start(tmp_path: Path) -> Any:
    made: list[Fleet] = []

    def start(**options: Any) -> Fleet:
        made.append(Fleet(tmp_path, **options))
        return made[-1]

    yield start
    for each in made:
        each.store.close()


def test_every_way_of_two_devices_under_one_name_is_told_from_one_that_begins_anew(
    start: Callable[..., Fleet],
) -> None:
    fleet = start()
    # Two folders in turns.
    assert [fleet.on("folders", 5), fleet.on("folders", 1, B), fleet.on("folders", 6)][1:] == [
        "approved",
        "quarantined",
    ]
    # A copied folder: both count on from the same number, or the copy from an old one.
    stands = [fleet.on("copy", s) for s in (10, 11)] + [fleet.on("copy", s) for s in (11, 12, 12)]
    assert stands[-1] == "quarantined"
    assert "approved" in stands
    assert [fleet.on("old", 40, boot=9), fleet.on("old", 11, boot=3), fleet.on("old", 41, boot=9)][-1] == "quarantined"
    detail = fleet.store.events.newest(50, device="folders")
    assert any(A in each.detail and B in each.detail for each in detail), "both are named"
    # Set up from an image, and goes on: one device.
    assert [fleet.on("image", s, boot=b) for s, b in ((40, 9), (3, 2), (4, 3), (5, 3))] == ["approved"] * 4
    assert (fleet.core.admissions.get("image").epoch, fleet.core.admissions.get("image").session) == (1, 5)
    # A new folder; connections that were missed; a read-only folder whose numbers come again at each start.
    assert [fleet.on("new", s, f) for s, f in ((9, A), (1, B), (7, B), (8, B))] == ["approved"] * 4
    assert [fleet.on("frozen", s) for s in (5, 6, 7, 5, 6, 5, 6, 7)] == ["approved"] * 8
    # A disk that was full at starts; a copy of the folder beside it is another device all the same.
    full = [passing_name(A) for _ in range(3)]
    assert [fleet.on("full", s, f) for s, f in ((9, A), (1, full[0]), (1, full[1]), (10, A))] == ["approved"] * 4
    assert [fleet.on("full", 1, full[2]), fleet.on("full", 11, A), fleet.on("full", 2, full[2])][-1] == "quarantined"
    # What the broker says again, or late.
    words = [fleet.on("late", s, ts=100 + s) for s in (5, 6, 7, 6, 4, 8)]
    assert words == ["approved"] * 6
    assert fleet.core.admissions.get("late").epoch == 0
    # A person looked at it: it may go on, and is quarantined again when the other one comes back.
    fleet.core.decide("folders", Decision.APPROVE, "kim", "the other one is off", NOW)
    assert [fleet.on("folders", 7), fleet.on("folders", 8)] == ["approved"] * 2
    assert [fleet.on("folders", 2, B), fleet.on("folders", 9)][-1] == "quarantined"


def test_lives_of_many_orders_are_one_life_or_two() -> None:
    """By enumeration: no word of a device alone, missed or repeated, makes a clone; two that both go on always do."""
    for kept in itertools.product([True, False], repeat=6):
        lives: tuple[Life, ...] = ()
        for number in [n for n, is_kept in enumerate(kept, 1) if is_kept for _ in range(2)]:
            lives, seen = meet(lives, Life("a", number, 10 * number))
            assert seen is Seen.SAME
    for begin, other in itertools.product(range(1, 6), repeat=2):
        lives, found = (), []
        for step in range(4):
            for at, session in ((0, begin + step), (5, other + step)):
                lives, seen = meet(lives, Life("a", session, 10 * step + at))
                found.append(seen)
        assert Seen.TURNS in found


def test_what_is_not_approved_is_offered_nothing_and_merged_by_nobody(
    start: Callable[..., Fleet], bundle: Bundle, statistics_update: Make
) -> None:
    backbone = bundle.manifest.backbone_digest
    fleet = start(bundle=bundle)
    for device in ("cam-1", "cam-2", "cam-3"):
        fleet.on(device, 1)
        fleet.born(device, backbone)
    for i, device in enumerate(("cam-1", "cam-2", "cam-3")):
        fleet.core.learning.take(device, statistics_update(i).encode(), NOW)
    kept = fleet.core.add_artifact(bundle.path.read_bytes(), bundle.path)
    fleet.core.decide("cam-3", Decision.QUARANTINE, "kim", "stolen?", NOW)
    assert fleet.events("cam-3")[-1] == "quarantined"
    what = (kept["digest"], "bundle", backbone)
    fleet.core.push(*what, [], "all", NOW, force=True)
    assert len(fleet.told("cam-1")) == 1
    assert fleet.told("cam-3") == []
    release, rollout = fleet.core.roll_out(*what, [], "waves", NOW, who="kim", force=True)
    targets = {each.device for each in fleet.store.rollouts.targets(rollout.id)}
    assert targets == {"cam-1", "cam-2"}
    # Quarantined while a rollout is under way, it is taken out: it judges nothing and fails nothing.
    fleet.core.decide("cam-2", Decision.QUARANTINE, "kim", "", NOW)
    assert {each.device: str(each.state) for each in fleet.store.rollouts.targets(rollout.id)}["cam-2"] == "excluded"
    (merged,) = fleet.core.merge_now(NOW, supersede=True)  # the rollout is under way
    assert "merge of 1 device" in merged.reason
    fleet.core.decide("cam-3", Decision.APPROVE, "kim", "found", NOW)
    assert "merge of 2 devices" in fleet.core.merge_now(NOW)[0].reason
    assert release.counter < fleet.store.releases.highest()


def test_devices_that_nobody_knows_wait_where_that_is_asked_for(start: Callable[..., Fleet]) -> None:
    fleet = start(unknown="pending")
    assert fleet.on("stranger", 1) == "pending"
    fleet.born("stranger")
    assert fleet.told("stranger") == []
    assert fleet.core.decide("stranger", Decision.APPROVE, "kim", "", NOW).admission == "approved"
    assert fleet.on("stranger", 2) == "approved"


def test_a_device_that_nobody_knows_waits_whatever_it_says_first(start: Callable[..., Fleet]) -> None:
    fleet = start(unknown="pending")
    fleet.say("stranger", "up/tele", Telemetry(values={"seq": 1, "boot": 1, "samples": 3}))
    fleet.core.close(NOW)
    assert fleet.admission("stranger") == "pending"


def test_a_decommissioned_device_is_cleared_at_the_broker_and_heard_no_more(
    start: Callable[..., Fleet], bundle: Bundle, statistics_update: Make
) -> None:
    fleet = start(bundle=bundle)
    fleet.on("cam", 1)
    fleet.born("cam", bundle.manifest.backbone_digest)
    fleet.core.dialogue.drain(NOW)
    fleet.core.decide("cam", Decision.DECOMMISSION, "kim", "broken", NOW)
    cleared = [each for each in fleet.core.dialogue.drain(NOW) if each.retain and each.payload == b""]
    leaves = {each.topic.removeprefix("edge/v1/lab/cam/") for each in cleared}
    assert leaves == {"up/conn", "up/birth", "up/state", "dn/desired"}
    for each in cleared:  # the coordinator hears it itself
        fleet.core.transport(Received(topic=each.topic, payload=b"", retained=False), NOW)
    assert "bad-message" not in fleet.events("")
    kept = fleet.events("cam")
    values = {"acc": 0.5, "boot": 1, "seq": 7, "session": 1, "ts_ms": 5, "model": "digits"}
    said = Event(ts_ms=5, name="drift", detail="", boot=1, seq=9)
    fleet.say("cam", "up/tele", Telemetry(values=values))
    fleet.say("cam", "up/event", said)
    away = encode_history([{"ts": 1, "seq": 9, "boot": 1, "state_id": A}])
    fleet.core.transport(Received(topic="edge/v1/lab/cam/up/hist", payload=away, retained=False), NOW)
    fleet.core.registry.keep_telemetry(NOW, at_once=True)
    assert fleet.events("cam") == kept, "nothing of it is taken"
    assert not fleet.store.telemetry.after(0, 10)
    answered = [each.topic for each in fleet.core.dialogue.drain(NOW)]
    assert "edge/v1/lab/cam/dn/hist" in answered, "it need not say it again"
    with pytest.raises(LearningError, match="decommissioned"):
        fleet.core.learning.take("cam", statistics_update(0).encode(), NOW)
    with pytest.raises(RolloutError, match="nothing ends but new hardware"):
        fleet.core.decide("cam", Decision.APPROVE, "kim", "", NOW)


def test_a_contribution_that_a_person_does_not_want_is_told_and_is_no_alarm(
    start: Callable[..., Fleet], bundle: Bundle, statistics_update: Make
) -> None:
    fleet = start(bundle=bundle)
    for device in ("cam", "other"):
        fleet.on(device, 1)
        fleet.born(device, bundle.manifest.backbone_digest)
    data = statistics_update(0).encode()
    assert fleet.core.dialogue.sent("cam", "contribution", data, NOW) == ""
    fleet.core.forget("cam", NOW)
    assert "forgotten" in fleet.core.dialogue.sent("cam", "contribution", data, NOW)
    assert "not a safetensors" in fleet.core.dialogue.sent("other", "contribution", b"no contribution", NOW)
    assert "not-taken" in fleet.events("cam")
    assert "contribution-refused" not in fleet.events("cam")
    assert "contribution-refused" in fleet.events("other")


def test_a_device_that_is_silent_is_gone_whatever_it_said_last(start: Callable[..., Fleet]) -> None:
    fleet = start()
    fleet.on("cam", 1)
    fleet.born("cam")
    device = fleet.core.admissions.get("cam")
    assert device.telemetry_s == 10.0
    assert device.is_there(NOW.wall_ms + 29_000)
    assert not device.is_there(NOW.wall_ms + 31_000)


def test_every_decision_is_defined_or_refused() -> None:
    for admission, order in itertools.product(Admission, Decision):
        if admission is Admission.DECOMMISSIONED and order is not Decision.DECOMMISSION:
            with pytest.raises(RolloutError):
                after(admission, order, "cam")
        else:
            assert after(admission, order, "cam") in Admission
    assert np.all([after("quarantined", Decision.APPROVE, "cam") == "approved"])


def words(fleet: Fleet, now: Now = NOW) -> list[tuple[str, str]]:
    """Who is told where it stands, and what."""
    said = [
        (each.topic.split("/")[3], decode("dn/cmd", each.payload))
        for each in fleet.core.dialogue.drain(now)
        if each.topic.endswith("/dn/cmd")
    ]
    return [
        (name, each.args["admission"]) for name, each in said if isinstance(each, Command) and each.name == "admission"
    ]


def test_devices_are_told_where_they_stand_until_they_know_it_and_older_ones_once_for_each_birth(
    start: Callable[..., Fleet],
) -> None:
    fleet = start(unknown="pending")
    fleet.on("new", 1)
    fleet.born("new")
    assert words(fleet) == [("new", "pending")]
    fleet.core.dialogue.tell_all(NOW)
    assert words(fleet) == [("new", "pending")], "it may not have arrived"
    reply = Reply(id="admission-pending-1", rc=1, detail="unknown command 'admission'", out={})
    fleet.say("new", "up/reply", reply)
    fleet.core.dialogue.tell_all(NOW)
    assert words(fleet) == [], "an older agent"
    fleet.core.decide("new", Decision.APPROVE, "kim", "", NOW)
    assert words(fleet) == [("new", "approved")]
    fleet.say("new", "up/reply", replace(reply, id="admission-approved-2", rc=0))
    fleet.core.decide("new", Decision.APPROVE, "kim", "again", NOW)
    fleet.core.dialogue.tell_all(NOW)
    assert words(fleet) == []
    fleet.born("new", admission="quarantined")  # it missed that
    assert words(fleet) == [("new", "approved")]
    anew = Standings(fleet.core._store)  # of a coordinator that was started again
    assert not list(anew.to_say("new", NOW))
    anew.decided("new")
    assert [command.args["admission"] for _, command in anew.to_say("new", NOW)] == ["approved"]
    fleet.say("new", "up/reply", replace(reply, id="admission-" + "x" * 1000))
    fleet.core.decide("new", Decision.DECOMMISSION, "kim", "sold", NOW)
    assert ("new", "decommissioned") in words(fleet)
    fleet.core.dialogue.tell_all(NOW)
    assert words(fleet) == [], "it is gone"
