"""A release that is taken back: somebody decided so, and what labels say of the older head does not count."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.agent.model import releases
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract.bundle import Bundle
from edge.coordinator.devices.admission import Decision
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path) -> Iterator[SimulatedFleet]:
    made = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    yield made
    made.close()


def samples(bundle: Path, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``(n, *input)`` and what the shipped model makes of them, ``(n,)``."""
    with OnDeviceModel.open(bundle) as model:
        x = np.random.default_rng(seed).random((n, *model.manifest.inputs[0].sample_shape), np.float32)
        return x, model.predict(x).argmax(axis=1)


def push(fleet: SimulatedFleet, bundle: Bundle, *, turned: int = 0, scale: float = 1.0, until: str = "active") -> int:
    """Bring a head that calls class k what was class k + `turned`; its counter, once it is where it should come to."""
    parameters = {
        name: np.float32(scale) * np.roll(array, turned, axis=0) for name, array in bundle.head_parameters().items()
    }
    data = HeadRelease(backbone=bundle.manifest.backbone_digest, parameters=parameters).encode()
    assert fleet.coordinator is not None
    kept = fleet.coordinator.add_artifact(data, Path("head"))
    counter = fleet.coordinator.push(kept["digest"], kept["kind"], kept["backbone"], [], "test", fleet.now).counter
    fleet.until(until, lambda: (fleet.device("one").state, fleet.device("one").state_release) == (until, counter))
    return counter


def logged(fleet: SimulatedFleet) -> list[tuple[str, str]]:
    """What the device's own log says of releases: where one stands, and which."""
    said = [(kind, text.split(":")[0]) for _, kind, text in fleet.agents["one"].core.news]
    return [(kind, text) for kind, text in said if text.startswith("release ")]


def features(fleet: SimulatedFleet, x: np.ndarray) -> np.ndarray:
    return fleet.agents["one"].host.model.answering.features(x)


def test_what_a_device_had_before_answers_again_and_after_that_the_older_head_though_labels_speak_against_it(
    fleet: SimulatedFleet, digits_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(digits_bundle)
    x, y = samples(digits_bundle, 70, 3)
    fleet.run(5.0)
    fleet.teach("one", x[:20], y[:20])
    first = push(fleet, bundle, turned=0)
    fleet.teach("one", x[20:], (y[20:] + 1) % 10, "turned")  # the world turned, and the device learns it
    model = fleet.agents["one"].host.model
    before = model.learned
    second = push(fleet, bundle, turned=1)
    fleet.teach("one", x[:40], (y[:40] + 1) % 10, "on")
    assert (model.predict(x).argmax(axis=1) == (y + 1) % 10).mean() > 0.9

    # To the first again. Labels are for the second, and what was there before it had learned the turn, too.
    assert fleet.coordinator is not None
    back = fleet.coordinator.rollback(fleet.now)
    assert (back.restores, back.undoes) == (first, second)
    fleet.until("back", lambda: fleet.converged(back.counter))
    assert f"release {second} is taken back: what was here before it answers" in fleet.device("one").state_detail
    told = [each for counter in (first, second, back.counter) for each in [("probation", counter), ("active", counter)]]
    assert logged(fleet) == [(kind, f"release {counter}") for kind, counter in told]
    np.testing.assert_array_equal(model.predict(x), model.learning.answer(before, features(fleet, x)))
    assert (model.release, model.trial) == (back.counter, None)

    # What was put aside is used up: the older head alone, which labels are against, answers as it was told to.
    third = push(fleet, bundle, turned=1, scale=1.5)
    fleet.crash_agent("one")
    for aside in tmp_path.rglob("state.before.bin"):
        aside.unlink()
    fleet.start_agent("one")
    again = fleet.coordinator.rollback(fleet.now, to=first)
    assert again.undoes == third
    fleet.until("back again", lambda: fleet.converged(again.counter))
    assert f"release {third} is taken back: the older head answers" in fleet.device("one").state_detail
    model = fleet.agents["one"].host.model
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9
    fleet.crash_agent("one")
    model = fleet.start_agent("one").host.model
    fleet.run(60.0)
    assert (model.release, model.trial, fleet.device("one").state) == (again.counter, None, "active")
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9


def test_who_goes_further_back_has_the_head_that_was_named_and_not_what_was_there_last(
    fleet: SimulatedFleet, digits_bundle: Path
) -> None:
    bundle = Bundle.open(digits_bundle)
    x, y = samples(digits_bundle, 20, 3)
    fleet.run(5.0)
    fleet.teach("one", x, y)
    first, _, third = (push(fleet, bundle, scale=scale) for scale in (1.5, 2.0, 3.0))
    assert fleet.coordinator is not None
    back = fleet.coordinator.rollback(fleet.now, to=first)
    fleet.until("back", lambda: fleet.converged(back.counter))
    assert f"release {third} is taken back: the older head answers" in fleet.device("one").state_detail
    model = fleet.agents["one"].host.model
    pushed = model.learning.parameters(model.learned, "pushed")
    assert all(np.array_equal(pushed[name], 1.5 * array) for name, array in bundle.head_parameters().items())


def test_where_a_release_never_became_live_what_is_there_stays_when_it_is_taken_back(
    tmp_path: Path, digits_bundle: Path
) -> None:
    """The first is in place, the second was refused: what was learned meanwhile is kept."""
    options = {"auto_merge": False, "probation_s": 1e6, "probation_labels": 10_000}
    with contextlib.closing(SimulatedFleet(tmp_path, digits_bundle, ["one"], **options)) as fleet:
        bundle = Bundle.open(digits_bundle)
        x, y = samples(digits_bundle, 40, 3)
        fleet.run(5.0)
        fleet.teach("one", x[:20], y[:20])
        older = push(fleet, bundle, scale=2.0, until="probation")
        fleet.teach("one", x[20:], y[20:], "since")
        refused = push(fleet, bundle, turned=1, until="refused")
        learned = fleet.agents["one"].host.model.n_samples
        assert fleet.coordinator is not None
        back = fleet.coordinator.rollback(fleet.now, to=older)
        fleet.until("back", lambda: fleet.converged(back.counter))
        model = fleet.agents["one"].host.model
        assert f"release {refused} is not live here: what is here stays" in fleet.device("one").state_detail
        assert (model.n_samples, model.trial, model.release) == (learned, None, back.counter)


@pytest.mark.parametrize("named", [False, True])
def test_who_joins_tries_the_head_that_others_went_back_to(
    fleet: SimulatedFleet, digits_bundle: Path, named: bool
) -> None:
    """Everybody refused it, and a rollback brings it all the same: to who never had what is taken back it is a push."""
    bundle = Bundle.open(digits_bundle)
    x, y = samples(digits_bundle, 40, 3)
    fleet.run(5.0)
    fleet.teach("one", x, y)
    refused = push(fleet, bundle, turned=1, until="refused")
    if named:  # then it is not what was there last, and devices are to have that very head
        push(fleet, bundle, scale=3.0)
    newest = push(fleet, bundle, scale=2.0)
    assert fleet.coordinator is not None
    back = fleet.coordinator.rollback(fleet.now, to=refused if named else 0, force=named)
    assert (back.restores, back.undoes, back.anew) == (refused, newest, named)
    fleet.until("back", lambda: fleet.converged(back.counter))
    answers = fleet.agents["one"].host.model.predict(x).argmax(axis=1)
    assert (answers == (y + 1 if named else y) % 10).all()

    joined = fleet.start_agent("two").host.model
    fleet.run(5.0)
    fleet.until("looked at", lambda: fleet.device("two").state_release == back.counter)
    fleet.run(60.0)
    assert fleet.device("two").state == "held"
    assert joined.release == 0
    assert (joined.predict(x).argmax(axis=1) == y).all()


def test_who_has_gone_back_by_itself_to_what_it_came_with_tries_the_older_head(
    fleet: SimulatedFleet, digits_bundle: Path
) -> None:
    """It joined between the two: the older head is a new one to it, and wrong there."""
    bundle = Bundle.open(digits_bundle)
    x, y = samples(digits_bundle, 40, 3)
    fleet.run(5.0)
    fleet.teach("one", x, y)
    push(fleet, bundle, turned=1, until="refused")
    newest = push(fleet, bundle, scale=2.0)
    model = fleet.start_agent("two").host.model
    fleet.run(5.0)
    fleet.until("taken", lambda: fleet.device("two").state_release == newest and model.release == newest)
    assert fleet.agents["two"].core.request({"op": "rollback"}, fleet.now)["slot"] == "head"
    fleet.run(5.0)
    fleet.teach("two", x, y)
    assert fleet.coordinator is not None
    back = fleet.coordinator.rollback(fleet.now)
    fleet.until("looked at", lambda: fleet.device("two").state_release == back.counter)
    fleet.until("refused", lambda: fleet.device("two").state == "refused")
    assert (model.predict(x).argmax(axis=1) == y).all()


def test_a_head_that_is_here_is_known_where_a_class_was_added_since(digits_bundle: Path) -> None:
    with OnDeviceModel.open(digits_bundle) as model:
        given = model.bundle.head_parameters()
        twice = HeadRelease(
            backbone=model.manifest.backbone_digest,
            parameters={name: np.float32(2.0) * array for name, array in given.items()},
        )
        model.add_class("smudge")
        assert releases.has(model, dataclasses.replace(twice, parameters=given))
        assert not releases.has(model, twice)
        releases.take(model, releases.look_at(model, twice, competes=False), 1)
        model.add_class("blank")
        assert releases.has(model, twice)
        assert not releases.has(model, dataclasses.replace(twice, parameters=given))


def test_an_older_head_that_competes_again_is_not_said_to_answer(tmp_path: Path, digits_bundle: Path) -> None:
    with OnDeviceModel.open(digits_bundle, tmp_path) as model:
        given, offers = model.bundle.head_parameters(), list[releases.Offer]()
        for counter, scale in ((1, 2.0), (2, 3.0)):
            parameters = {name: np.float32(scale) * array for name, array in given.items()}
            head = HeadRelease(backbone=model.manifest.backbone_digest, parameters=parameters, is_rival=True)
            offer = releases.look_at(model, head, competes=True)
            releases.take(model, offer, counter)
            offers.append(offer)
        said = releases.bring_back(model, offers[0], 3, undoes=2)
        assert said == "release 2 is taken back: the older head competes again"
        pushed = model.learning.parameters(model.learned, "pushed")
        assert all(np.array_equal(pushed[name], 2 * array) for name, array in given.items())
        assert (model.trial, "shipped" in model.learned.experts) == (None, True)
        # Back to what was shipped, which still competes: the pushed one has to go all the same.
        shipped = releases.look_at(
            model, HeadRelease(backbone=model.manifest.backbone_digest, parameters=given), competes=False
        )
        assert "the older head answers" in releases.bring_back(model, shipped, 4, undoes=3)
        pushed = model.learning.parameters(model.learned, "pushed")
        assert all(np.array_equal(pushed[name], array) for name, array in given.items())


def test_device_that_leaves_the_fleet_takes_what_the_broker_forgets_for_no_damage(fleet: SimulatedFleet) -> None:
    fleet.run(5.0)
    assert fleet.coordinator is not None
    fleet.coordinator.decide("one", Decision.DECOMMISSION, "kim", "broken", fleet.now)
    fleet.run(5.0)
    kinds = [kind for _, kind, _ in fleet.agents["one"].core.news]
    assert "admission" in kinds
    assert "bad-message" not in kinds
