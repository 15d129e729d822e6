"""Merges that devices judge before they go out: real agents that learn, the real protocol, on a broker in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.channel import topics
from edge.channel.codec import decode
from edge.channel.messages import Candidate
from edge.coordinator.http.rollout_views import shown
from edge.coordinator.learning.release_policy import ReleasePolicy
from edge.coordinator.signing import ceremony
from tests.support.contributions import policy_of
from tests.support.fleet import SimulatedFleet

Simulate = Callable[..., SimulatedFleet]
Digits = tuple[np.ndarray, np.ndarray]
GIVERS, JUDGES, OTHER = ["a", "b"], ["c", "d", "e"], "f"
MORE = ["g", "h"]


@pytest.fixture
def simulate(tmp_path: Path, digits_bundle: Path) -> Iterator[Simulate]:
    """Make fleets whose devices agree, but for one. Who has fewer than 20 labels is not merged."""
    fleets: list[SimulatedFleet] = []

    def make(needed: int, *more: str, **options: Any) -> SimulatedFleet:
        policy = policy_of(screen=False, prior_samples=1.0, min_samples=20)
        release_policy, agrees = ReleasePolicy().judged_by(needed), {"evaluate_candidates": True}
        fleet = SimulatedFleet(
            tmp_path, digits_bundle, [*GIVERS, *JUDGES, *more], policy=policy, release_policy=release_policy,
            **agrees, **options,
        )  # fmt: skip
        fleets.append(fleet)
        fleet.agent_options = fleet.agent_options | {"evaluate_candidates": False}
        fleet.start_agent(OTHER)
        fleet.agent_options = fleet.agent_options | agrees
        return fleet

    yield make
    for fleet in fleets:
        fleet.close()


def turned(digits: Digits) -> Digits:
    """A world that the shipped head does not know: all digits lie on their side."""
    return np.rot90(digits[0], axes=(2, 3)).copy(), digits[1]


def teach(fleet: SimulatedFleet, digits: Digits, givers_add: int) -> None:
    """All devices get labels; those of who contributes are wrong by so much."""
    x, y = digits
    for i, name in enumerate([each for each in sorted(fleet.agents) if each not in GIVERS]):
        fleet.teach(name, x[15 * i : 15 * i + 15], y[15 * i : 15 * i + 15])
    fleet.run(6.0, dt_s=1.0)  # how many labels they have they say with their telemetry
    for i, name in enumerate(GIVERS):
        part = slice(100 + 40 * i, 140 + 40 * i)
        fleet.teach(name, x[part], (y[part] + givers_add) % 10)


def asked(fleet: SimulatedFleet) -> dict[str, list[Candidate]]:
    """By device, what the coordinator asks it from here on."""
    found: dict[str, list[Candidate]] = {}
    publish = fleet.coordinator_transport.publish

    def tap(topic: str, payload: bytes, **options: Any) -> bool:
        if topic.endswith(topics.DN_CANDIDATE):
            message = decode(topics.DN_CANDIDATE, payload)
            assert isinstance(message, Candidate)
            found.setdefault(topics.parse(topic).device, []).append(message)
        return bool(publish(topic, payload, **options))

    fleet.coordinator_transport.publish = tap  # type: ignore[method-assign]  # only looked at
    return found


def lie(fleet: SimulatedFleet, name: str) -> None:
    """Have a device say the opposite of what it found."""
    evaluating = fleet.agents[name].model.evaluating
    say = evaluating._answer

    def answer(order: Candidate, found: Any) -> None:
        say(order, replace(found, only_new=found.only_old, only_old=found.only_new))

    evaluating._answer = answer  # type: ignore[method-assign]


def state(fleet: SimulatedFleet, number: int = 1) -> str:
    found = fleet.store.rollouts.get(number)
    return "" if found is None else str(found.state)


def told(fleet: SimulatedFleet, name: str) -> list[str]:
    return [each.detail for each in fleet.store.events.newest(100, name=name)[::-1]]


def test_a_good_merge_goes_out_once_devices_found_it_no_worse(
    simulate: Simulate, digits: Digits, tmp_path: Path
) -> None:
    folders = ceremony.init(tmp_path / "keys", datetime.now(UTC))
    fleet = simulate(4, signing=folders.base / "coordinator", trust_root=folders.device_root)
    said = asked(fleet)
    lie(fleet, "d")
    teach(fleet, turned(digits), 0)
    fleet.until("a draft", lambda: state(fleet) == "draft")
    assert all(agent.host.model.release == 0 for agent in fleet.agents.values())
    fleet.until("the end", lambda: state(fleet) == "completed", dt_s=0.5)
    assert all(agent.host.model.release == 1 for agent in fleet.agents.values())
    assert OTHER not in said, "who does not agree is never asked"
    assert all(each.signature for orders in said.values() for each in orders)
    rows = {each.device: each for each in fleet.store.evaluations.judges(1)}
    inside = [name for name, each in rows.items() if each.is_inside]
    assert rows.keys() - inside == set(JUDGES)
    assert len(inside) == 1, "one more is needed than there are others"
    assert set(inside) < set(GIVERS)
    assert all((each.state, each.labelled >= 15) == ("answered", True) for each in rows.values())
    (text,) = told(fleet, "candidate-passed")
    assert text.endswith("in the middle of 4 devices, of which 1 had lent it what they know")
    before = rows["c"].both + rows["c"].only_old
    assert rows["c"].both + rows["c"].only_new > before, "it is better in their world than what they came with"


def test_a_poisoned_merge_is_stopped_by_devices_whatever_one_says_and_whoever_is_killed(
    simulate: Simulate, digits: Digits
) -> None:
    fleet = simulate(3, *MORE)
    lie(fleet, "d")
    teach(fleet, digits, 3)
    fleet.until("a draft", lambda: state(fleet) == "draft")
    fleet.crash_coordinator()
    fleet.start_coordinator()
    fleet.until("whom it asked", lambda: len(fleet.store.evaluations.judges(1)) == 5, dt_s=0.1)
    fleet.crash_agent("c")
    fleet.crash_coordinator()
    fleet.start_agent("c")
    fleet.start_coordinator()
    fleet.until("the end", lambda: state(fleet) != "draft", dt_s=0.5)
    fleet.run(20.0, dt_s=1.0)
    assert state(fleet) == "aborted"
    assert [agent.host.model.release for agent in fleet.agents.values()] == [0] * 8, "it was given to nobody"
    (text,) = told(fleet, "candidate-lost")
    assert text.startswith("release 1: worse on devices: accuracy -")
    found = shown(fleet.store, 1)["evaluation"]
    assert (found["state"], {each["device"] for each in found["judges"]}) == ("lost", {*JUDGES, *MORE})
    assert not any(each["is_inside"] for each in found["judges"]), "who poisons does not judge the poison"
    (release,) = fleet.store.releases.all()
    assert fleet.coordinator is not None
    parts = fleet.coordinator.receipts.lineage(release)["parts"]
    assert sorted(each["device"] for each in parts) == GIVERS, "whose learning is in it is kept"
    # Learning goes on: of what others learn, without those two, another one is made, and judged.
    for name in GIVERS:
        fleet.coordinator.forget(name, fleet.now)
    x, y = digits
    fleet.teach("e", x[300:330], y[300:330], "u")
    fleet.until("another one", lambda: state(fleet, 2) == "completed", dt_s=0.5)
    assert len(told(fleet, "candidate-passed")) == 1
