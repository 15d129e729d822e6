"""One label teaches the fleet: real agents and a real coordinator on a broker in memory."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge.agent.commands import carry_out
from edge.agent.model.labelling import give_sketches, small
from edge.agent.model.pictures import picture_of
from edge.channel.memory import Faults
from edge.channel.messages import Command
from edge.contract.errors import RolloutError
from edge.coordinator.records import FleetQuestion
from edge.merging.questions import SPREAD_WEIGHT
from tests.support.fleet import SimulatedFleet

Simulate = Callable[..., SimulatedFleet]
Digits = tuple[np.ndarray, np.ndarray]
THREE = ["one", "two", "three"]


@pytest.fixture
def simulate(tmp_path: Path, digits_bundle: Path) -> Iterator[Simulate]:
    """Make fleets in which labels are asked for; they are closed at the end of the test."""
    fleets: list[SimulatedFleet] = []

    def make(devices: list[str], **options: Any) -> SimulatedFleet:
        given = {"auto_merge": False, "ask_labels_s": 30.0, "fleet_labels": True, **options}
        fleets.append(SimulatedFleet(tmp_path, digits_bundle, devices, **given))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


def seen(digits: Digits, name: str) -> np.ndarray:
    """Twelve samples of a device: of "one" and "two" the first, whose label is wanted, is the same but for noise."""
    x, y = digits
    rng = np.random.default_rng(THREE.index(name))
    others = np.flatnonzero(y != y[500])[100 * THREE.index(name) :]
    found = np.rot90(x[others[:12]], axes=(2, 3)).copy()
    if name != "three":
        found[0] = np.rot90(x[500], axes=(1, 2)) + 0.02 * rng.standard_normal(x[500].shape)
    return found.astype(np.float32)


def see(fleet: SimulatedFleet, digits: Digits, *names: str) -> None:
    for name in names:
        for i, x in enumerate(seen(digits, name)):
            fleet.agents[name].core.request({"op": "predict", "id": f"{name}-{i}", "x": x}, fleet.now)


def asked(fleet: SimulatedFleet) -> FleetQuestion:
    """The only question, once it is there."""
    fleet.until("a question", fleet.store.questions.open, 600.0, dt_s=1.0)
    (found,) = fleet.store.questions.open()
    return found


def states(fleet: SimulatedFleet, question: FleetQuestion) -> dict[str, tuple[str, str]]:
    return {each.device: (each.state, each.detail) for each in fleet.store.questions.samples(question.number)}


def ended(fleet: SimulatedFleet, question: FleetQuestion) -> Callable[[], bool]:
    return lambda: not {"open", "waits"} & {state for state, _ in states(fleet, question).values()}


def learned(fleet: SimulatedFleet, name: str) -> int:
    samples: int = fleet.agents[name].host.model.n_samples
    return samples


def names(fleet: SimulatedFleet) -> list[str]:
    return [each.name for each in fleet.store.events.newest(100, device="")]


def test_who_asks_very_often_is_answered_all_the_same(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(THREE, ask_labels_s=1.0)
    see(fleet, digits, *THREE)
    assert asked(fleet).devices == 2


def test_one_answer_teaches_two_devices_and_not_a_third_with_other_samples(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(THREE)
    see(fleet, digits, *THREE)
    question = asked(fleet)
    assert (question.devices, question.samples, question.sample) == (2, 2, f"{question.device}-0")
    rows = fleet.store.questions.samples(question.number)
    assert {each.device for each in rows} == {"one", "two"}
    assert [each.weight for each in rows] == [1.0, SPREAD_WEIGHT]
    assert fleet.coordinator is not None
    with pytest.raises(RolloutError, match="expected one of"):
        fleet.coordinator.questions.answer(question.number, "a cow", "kim", fleet.now)
    fleet.coordinator.questions.answer(question.number, "7", "kim", fleet.now)
    with pytest.raises(RolloutError, match="answered already"):
        fleet.coordinator.questions.answer(question.number, "8", "kim", fleet.now)
    fleet.until("the labels", ended(fleet, question), dt_s=1.0)
    assert states(fleet, question) == {"one": ("taken", ""), "two": ("taken", "")}
    assert [learned(fleet, name) for name in THREE] == [1, 1, 0]
    for name in ("one", "two"):
        label = fleet.agents[name].host.model.answering.ring.given(f"{name}-0")
        assert label is not None
        assert label.target == (7,)
        assert label.weight == (1.0 if name == question.device else SPREAD_WEIGHT)
    assert {"question", "question-answered", "question-learned"} <= set(names(fleet))
    done = fleet.store.questions.get(question.number)
    assert done is not None
    assert (done.state, done.label, done.who) == ("answered", "7", "kim")


def test_who_does_not_take_part_is_not_disturbed_and_is_not_asked_again(
    simulate: Simulate, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = simulate(THREE, fleet_labels=False)
    see(fleet, digits, *THREE)
    told: list[tuple[str, str]] = []
    assert fleet.coordinator is not None
    replied = fleet.coordinator.questions.replied

    def heard(device: str, reply: Any, now: Any) -> None:
        if reply.id.startswith("sketches-"):
            told.append((device, reply.detail))
        replied(device, reply, now)

    monkeypatch.setattr(fleet.coordinator.questions, "replied", heard)
    fleet.run(120.0, dt_s=1.0)
    assert sorted(device for device, _ in told) == sorted(THREE)
    assert all("--fleet-labels" in why for _, why in told)
    assert not fleet.store.questions.newest(10)


def test_a_label_comes_over_a_line_that_loses_and_from_a_coordinator_that_was_killed(
    simulate: Simulate, digits: Digits
) -> None:
    fleet = simulate(THREE, faults=Faults(rng=random.Random(1), drop=0.4))
    see(fleet, digits, *THREE)
    question = asked(fleet)
    assert fleet.coordinator is not None
    fleet.coordinator.questions.answer(question.number, "7", "kim", fleet.now)
    fleet.crash_coordinator()  # before anything was said
    fleet.run(5.0)
    fleet.start_coordinator()
    fleet.until("the labels", ended(fleet, question), dt_s=1.0)
    assert states(fleet, question) == {"one": ("taken", ""), "two": ("taken", "")}


def test_a_device_that_has_the_sample_no_longer_says_so(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(THREE)
    see(fleet, digits, *THREE)
    question = asked(fleet)
    fleet.crash_agent("one")
    fleet.start_agent("one")
    assert fleet.coordinator is not None
    fleet.coordinator.questions.answer(question.number, "7", "kim", fleet.now)
    fleet.until("the labels", ended(fleet, question), dt_s=1.0)
    assert states(fleet, question) == {"one": ("refused", "no such sample waits for a label"), "two": ("taken", "")}
    assert learned(fleet, "one") == 0


def test_the_label_of_somebody_on_the_device_stays(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(THREE)
    see(fleet, digits, *THREE)
    question = asked(fleet)
    fleet.agents["two"].core.request({"op": "label", "id": "two-0", "y": 3}, fleet.now)
    assert fleet.coordinator is not None
    fleet.coordinator.questions.answer(question.number, "7", "kim", fleet.now)
    fleet.until("the labels", ended(fleet, question), dt_s=1.0)
    assert states(fleet, question)["two"] == ("refused", "this sample has a label already")
    label = fleet.agents["two"].host.model.answering.ring.given("two-0")
    assert label is not None
    assert label.target == (3,)


def test_a_label_that_comes_later_than_the_ring_remembers_is_learned(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(THREE)
    see(fleet, digits, *THREE)
    question = asked(fleet)
    assert fleet.coordinator is not None
    ring = fleet.agents["one"].host.model.answering.ring
    assert ring.join("one-0", fleet.now_s) is not None  # as if so many others had come since
    assert ring.waiting("one-0") is None
    fleet.now_s += 5 * 3600.0  # and the other one is too old
    fleet.coordinator.questions.answer(question.number, "7", "kim", fleet.now)
    fleet.until("the labels", ended(fleet, question), dt_s=1.0)
    assert states(fleet, question) == {"one": ("taken", ""), "two": ("taken", "")}


@pytest.mark.parametrize("shares", [True, False])
def test_a_picture_travels_only_where_it_is_shared(simulate: Simulate, digits: Digits, shares: bool) -> None:
    fleet = simulate(THREE, share_pictures=shares)
    see(fleet, digits, *THREE)
    question = asked(fleet)
    fleet.run(5.0)
    found = fleet.store.questions.picture(question.number)
    assert bool(found) == shares
    if shares:
        with Image.open(io.BytesIO(base64.b64decode(found))) as picture:
            pixels = np.asarray(picture)
        assert np.array_equal(pixels, picture_of(seen(digits, question.device)[0]))


def test_a_large_picture_is_made_small_enough_for_a_message() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (640, 480, 3), np.uint8)
    with Image.open(io.BytesIO(small(noise))) as picture:
        assert picture.size == (30, 40)


def test_what_was_skipped_is_never_asked_again(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(THREE)
    see(fleet, digits, *THREE)
    question = asked(fleet)
    assert fleet.coordinator is not None
    fleet.coordinator.questions.skip(question.number, "kim", fleet.now)
    fleet.run(100.0, dt_s=1.0)
    rows = fleet.store.questions.samples(*(each.number for each in fleet.store.questions.newest(10)))
    assert len({(each.device, each.sample) for each in rows}) == len(rows)
    assert set(states(fleet, question).values()) == {("dropped", "the question was skipped")}
    assert [learned(fleet, name) for name in THREE] == [0, 0, 0]


def test_a_question_that_nobody_answers_ends_after_a_day(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(THREE)
    see(fleet, digits, *THREE)
    question = asked(fleet)
    fleet.now_s += 90_000.0
    fleet.run(5.0)
    found = fleet.store.questions.get(question.number)
    assert found is not None
    assert found.state == "expired"
    assert fleet.store.questions.open() == []


def test_what_is_forgotten_of_a_device_is_asked_of_nobody(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(THREE)
    see(fleet, digits, *THREE)
    question = asked(fleet)
    other = "two" if question.device == "one" else "one"
    assert fleet.coordinator is not None
    fleet.coordinator.questions.forget(other)
    assert states(fleet, question).keys() == {question.device}
    fleet.coordinator.questions.forget(question.device)
    assert fleet.store.questions.newest(10) == []


def test_a_model_that_does_not_learn_keeps_no_other_of_the_device_from_being_asked(
    tmp_path: Path, digits_bundle: Path, masked_bundles: tuple[Path, Path], digits: Digits
) -> None:
    bundles = {"digits": digits_bundle, "fixed": masked_bundles[1]}
    fleet = SimulatedFleet(tmp_path, bundles, ["one", "two"], auto_merge=False, ask_labels_s=30.0, fleet_labels=True)
    for name in ("one", "two"):
        for i, x in enumerate(seen(digits, name)):
            request = {"op": "predict", "model": "digits", "id": f"{name}-{i}", "x": x}
            fleet.agents[name].core.request(request, fleet.now)
    for agent in fleet.agents.values():
        command = Command(id="sketches-1", name="sketches", args={"model": "fixed"}, ttl_s=9.0)
        reply = give_sketches(command, agent.core.models, agent.core._admission)
        assert (reply.rc, reply.out["sketches"]) == (0, [])
    question = asked(fleet)
    assert (question.devices, question.model) == (2, "digits")
    fleet.close()


def test_a_label_that_is_none_changes_nothing(simulate: Simulate, digits: Digits) -> None:
    fleet = simulate(["one"], ask_labels_s=0.0)
    see(fleet, digits, "one")
    agent, whole = fleet.agents["one"].core, {"model": "digits", "sample": "one-0", "label": "7"}
    wrong: list[dict[str, Any]] = [
        {},
        whole | {"model": "other"},
        whole | {"model": ["digits"]},
        whole | {"label": "no such class"},
        whole | {"label": 7},
        whole | {"sample": ""},
        whole | {"weight": 2},
    ]
    for i, args in enumerate(wrong):
        reply, _ = carry_out(Command(id=f"label-{i}", name="label", args=args, ttl_s=60.0), agent.models,
                             agent._admission, fleet.now)  # fmt: skip
        assert reply.rc == 1, args
        assert reply.detail, args
    assert learned(fleet, "one") == 0
    right = Command(id="label-9", name="label", args=whole, ttl_s=60.0)
    for _ in range(2):  # said again, it is answered as the first time
        assert carry_out(right, agent.models, agent._admission, fleet.now)[0].rc == 0
    assert learned(fleet, "one") == 1
