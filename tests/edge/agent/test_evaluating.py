"""A device tries a candidate head on its last labels and says counts: a real agent, and who has the bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.line.data_cap import DataCap
from edge.agent.model.evaluating import OFF, evaluated
from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.messages import Candidate, Reply
from edge.channel.transport import Received
from edge.contract.bundle import Bundle
from edge.coordinator.signing import ceremony
from edge.learning.exchange import HeadRelease
from edge.learning.mixture import SHIPPED
from tests.support.fleet import SimulatedFleet

Simulate = Callable[..., SimulatedFleet]
Digits = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def simulate(tmp_path: Path, digits_bundle: Path) -> Iterator[Simulate]:
    """Make fleets of one device that agrees; they are closed at the end of the test."""
    fleets: list[SimulatedFleet] = []

    def make(**options: Any) -> SimulatedFleet:
        given = {"auto_merge": False, "evaluate_candidates": True, **options}
        fleets.append(SimulatedFleet(tmp_path, digits_bundle, ["one"], **given))
        fleets[-1].run(2.0)
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def head(digits_bundle: Path) -> HeadRelease:
    """Of random numbers."""
    bundle = Bundle.open(digits_bundle)
    rng = np.random.default_rng(0)
    parameters = {
        name: rng.standard_normal(each.shape).astype(np.float32) for name, each in bundle.head_parameters().items()
    }
    return HeadRelease(
        backbone=bundle.manifest.backbone_digest, parameters=parameters, included={"somebody": 5}, n_samples=5
    )


def order(fleet: SimulatedFleet, head: HeadRelease, number: int = 1) -> Candidate:
    """What is said of a candidate whose bytes the coordinator has."""
    assert fleet.coordinator is not None
    artifacts = fleet.coordinator._artifacts
    found = artifacts.get(artifacts.put(head.encode()).digest, 4096)
    return Candidate(
        number=number,
        model="",
        digest=found.digest,
        size_bytes=found.size_bytes,
        chunk_size_bytes=4096,
        index_digest=found.index_digest,
        backbone=head.backbone,
        ts_ms=fleet.now.wall_ms,
    )


def say(fleet: SimulatedFleet, said: Candidate) -> None:
    topic = topics.build("lab", "one", topics.DN_CANDIDATE)
    fleet.coordinator_transport.publish(topic, encode(said), qos=1, retain=False)


def replies(fleet: SimulatedFleet) -> list[Reply]:
    """All replies to candidates from here on."""
    found: list[Reply] = []
    assert fleet.coordinator is not None
    said = fleet.coordinator.dialogue.said

    def heard(device: str, message: Any, now: Any, **options: Any) -> None:
        if isinstance(message, Reply) and message.id.startswith("candidate-"):
            found.append(message)
        said(device, message, now, **options)

    fleet.coordinator.dialogue.said = heard  # type: ignore[method-assign]  # only listened to
    return found


def frames(fleet: SimulatedFleet) -> list[str]:
    """Topics of all frames that the coordinator sends from here on."""
    sent: list[str] = []
    publish = fleet.coordinator_transport.publish

    def tap(topic: str, payload: bytes, **options: Any) -> bool:
        if "/dn/f/" in topic:
            sent.append(topic)
        return bool(publish(topic, payload, **options))

    fleet.coordinator_transport.publish = tap  # type: ignore[method-assign]  # only looked at
    return sent


def test_counts_are_of_the_last_labels_and_of_both_heads(
    simulate: Simulate, digits: Digits, digits_bundle: Path, head: HeadRelease
) -> None:
    fleet = simulate()
    fleet.teach("one", digits[0][:40], digits[1][:40])
    agent = fleet.agents["one"]
    before = agent.host.model.learned
    heard = replies(fleet)
    say(fleet, order(fleet, head, 7))
    fleet.until("the answer", lambda: heard)
    (reply,) = heard
    assert (reply.id, reply.rc) == ("candidate-7", 0)
    assert set(reply.out) == {"labelled", "both", "only_new", "only_old"}, "nothing else leaves the device"
    model = agent.host.model
    features = before.recent.features(model.learning.shape)
    right = [
        model.learning.run(features, parameters).argmax(axis=1) == before.recent.targets
        for parameters in (Bundle.open(digits_bundle).head_parameters(), head.parameters)
    ]
    wanted = [40, *(int(each.sum()) for each in (right[0] & right[1], ~right[0] & right[1], right[0] & ~right[1]))]
    assert [reply.out[key] for key in ("labelled", "both", "only_new", "only_old")] == wanted
    assert wanted[3] > 20, "a random head loses"
    assert (model.learned.experts.keys(), model.release) == (before.experts.keys(), 0), "nothing is taken in"


def test_a_head_beside_itself_gains_and_loses_nothing(simulate: Simulate, digits: Digits, digits_bundle: Path) -> None:
    fleet = simulate()
    fleet.teach("one", digits[0][:20], digits[1][:20])
    model = fleet.agents["one"].host.model
    same = HeadRelease(
        backbone=model.manifest.backbone_digest,
        parameters=model.learning.parameters(model.learned, SHIPPED),
        included={"a": 1},
    )
    found = evaluated(model, same, "d")
    assert (found.labelled, found.only_new, found.only_old) == (20, 0.0, 0.0)
    assert found.both > 0


def test_it_is_answered_once_and_again_with_the_same_counts_after_a_kill(
    simulate: Simulate, digits: Digits, head: HeadRelease
) -> None:
    fleet = simulate()
    fleet.teach("one", digits[0][:20], digits[1][:20])
    said, heard = order(fleet, head), replies(fleet)
    say(fleet, said)
    fleet.until("the answer", lambda: heard)
    fleet.teach("one", digits[0][20:40], digits[1][20:40], "t")
    sent = frames(fleet)
    say(fleet, said)
    fleet.until("the same answer", lambda: len(heard) == 2)
    fleet.crash_agent("one")
    fleet.start_agent("one")
    fleet.run(2.0)
    say(fleet, dataclasses.replace(said, number=2))
    fleet.until("the same answer", lambda: len(heard) == 3)
    assert [each.id for each in heard] == ["candidate-1", "candidate-1", "candidate-2"]
    assert heard[0].out == heard[1].out == heard[2].out
    assert sent == [], "nothing is fetched again"


def test_a_kill_on_the_way_costs_nothing(simulate: Simulate, digits: Digits, head: HeadRelease) -> None:
    fleet = simulate()
    fleet.teach("one", digits[0][:20], digits[1][:20])
    said, heard = order(fleet, head), replies(fleet)
    say(fleet, said)
    fleet.until("half of it", lambda: fleet.agents["one"].model.evaluating._fetch is not None, dt_s=0.01)
    fleet.crash_agent("one")
    fleet.start_agent("one")
    fleet.run(2.0)
    assert heard == []
    say(fleet, said)
    fleet.until("the answer", lambda: heard)
    assert heard[0].out["labelled"] == 20


def test_who_does_not_agree_fetches_nothing(simulate: Simulate, head: HeadRelease) -> None:
    fleet = simulate(evaluate_candidates=False)
    sent, heard = frames(fleet), replies(fleet)
    say(fleet, order(fleet, head))
    fleet.until("the answer", lambda: heard)
    assert (heard[0].rc, heard[0].detail) == (1, OFF)
    assert sent == []


def test_what_is_no_head_for_this_model_is_refused_with_the_reason(simulate: Simulate, head: HeadRelease) -> None:
    fleet = simulate()
    heard = replies(fleet)
    say(fleet, order(fleet, dataclasses.replace(head, parameters={"w": np.zeros(3, np.float32)})))
    say(fleet, order(fleet, dataclasses.replace(head, backbone="0" * 64), 2))
    fleet.until("both answers", lambda: len(heard) == 2)
    assert {each.id: each.rc for each in heard} == {"candidate-1": 1, "candidate-2": 1}
    assert all("backbone" in each.detail or "parameter" in each.detail for each in heard)
    assert not [*(fleet.agents["one"].host.slots.folder / "artifacts").iterdir()]


def test_a_data_cap_that_is_used_up_is_kept_to(simulate: Simulate, head: HeadRelease) -> None:
    fleet = simulate(data_cap=DataCap.parse("1MB/day"))
    use = fleet.agents["one"].core._use
    assert use is not None
    use.spend(1_000_000)
    sent, heard = frames(fleet), replies(fleet)
    say(fleet, order(fleet, head))
    fleet.run(30.0)
    assert (sent, heard) == ([], [])


def test_a_device_with_a_root_tries_only_what_the_fleet_signed(
    simulate: Simulate, tmp_path: Path, head: HeadRelease
) -> None:
    folders = ceremony.init(tmp_path / "keys", datetime.now(UTC))
    fleet = simulate(signing=folders.base / "coordinator", trust_root=folders.device_root)
    assert fleet.coordinator is not None
    signing = fleet.coordinator.signing
    assert signing is not None
    heard, agent, said = replies(fleet), fleet.agents["one"], order(fleet, head)
    signed = dataclasses.replace(said, signature=signing.sign("lab", "one", said, fleet.now))
    for lie in (said, dataclasses.replace(signed, number=9)):
        topic = topics.build("lab", "one", topics.DN_CANDIDATE)
        agent.core.transport(Received(topic=topic, payload=encode(lie), retained=False), fleet.now)
        fleet.run(5.0)
    assert heard == []
    events = [row.detail for row in fleet.store.events.newest(100, device="one", name="candidate-distrusted")]
    assert sorted(detail.split(": ")[1] for detail in events) == ["unsigned", "wrong-signer"]
    say(fleet, signed)
    fleet.until("the answer", lambda: heard)
    assert heard[0].out["labelled"] == 0
    assert isinstance(decode(topics.DN_CANDIDATE, encode(signed)), Candidate)
