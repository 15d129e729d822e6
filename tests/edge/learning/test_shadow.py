"""Who is live: the better one, and never one that learned rubbish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.contract.errors import LearningError
from edge.contract.recipe import MEAN_SQUARED_ERROR, TrainingRecipe
from edge.contract.training import FloatArray, Parameters
from edge.inference.numpy_trainer import NumpyTrainer
from edge.learning.closed_form import StatisticsLearner
from edge.learning.learner import Learner, State
from edge.learning.packing import pack
from edge.learning.sgd import SgdLearner
from edge.learning.shadow import SNAPSHOT_EVERY, Happened, Shadow
from edge.learning.solve import head_of
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Targets, Task
from edge.learning.whitening import Whitening
from tests.edge.learning.conftest import LINEAR, Samples, linear_outputs

K, D = 5, 16
TASK = Task(TrainingRecipe(), K)
RUN = linear_outputs(LINEAR)
World = npt.NDArray[np.float64]


def world(seed: int) -> World:
    """Where the classes are."""
    return np.random.default_rng(seed).normal(0, 0.9, (K, D))


def draw(where: World, n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(where), n)
    return (where[labels] + rng.normal(0, 1, (n, D))).astype(np.float32), labels


def random_labels(samples: Samples, seed: int) -> Samples:
    return samples[0], np.random.default_rng([seed, 1]).integers(0, K, len(samples[1]))


def statistics_of(where: World, seed: int = 1000) -> HeadStatistics:
    return HeadStatistics.of(*draw(where, 400, seed), K)


def head_for(where: World) -> Parameters:
    return head_of(statistics_of(where), LINEAR)


def learners(where: World, seed: int = 0) -> dict[str, Learner]:
    """Those of a linear head that was trained in this world."""
    shipped, statistics = head_for(where), statistics_of(where)
    return {
        "statistics": StatisticsLearner(LINEAR, shipped, TASK, statistics),
        "sgd": SgdLearner(
            NumpyTrainer(TASK.recipe, LINEAR, shipped),
            (D,),
            TASK,
            0.01,
            per_class=20,
            seed=seed,
            head=LINEAR,
            whitening=Whitening(statistics, LINEAR),
        ),
    }


def real(where: World, seed: int = 0, gated: bool = True) -> Shadow:
    return Shadow(TASK, (D,), head_for(where), learners(where, seed), RUN, gated=gated)


class Scripted:
    """A learner that learns nothing and serves what it is told to."""

    kind = "delta"

    def __init__(self, serve: Callable[[int], Parameters], refuses: bool = False) -> None:
        self.serve = serve
        self.refuses = refuses
        self.n_samples = 0

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        if self.refuses:
            raise LearningError("no")
        self.n_samples += len(features)

    def parameters(self) -> Parameters:
        return self.serve(self.n_samples)

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        pass

    def grow(self, n_classes: int) -> None:
        pass

    @property
    def n_contributed(self) -> int:
        return self.n_samples

    def contribution(self) -> State:
        return {}

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        pass

    @property
    def value(self) -> int:
        return self.n_samples

    def load(self, value: int) -> None:
        self.n_samples = value

    def template(self, n_outputs: int) -> int:
        return 0


def scripted(shipped: Parameters, gated: bool = True, **serve: Parameters | Callable[[int], Parameters]) -> Shadow:
    def always(head: Parameters) -> Callable[[int], Parameters]:
        return lambda _: head

    candidates = {name: Scripted(each if callable(each) else always(each)) for name, each in serve.items()}
    return Shadow(TASK, (D,), shipped, candidates, RUN, gated=gated)


def teach(shadow: Shadow, samples: Samples, weight: float = 1.0) -> list[tuple[int, str]]:
    """Let it learn one by one; what happened, and when."""
    happened: list[tuple[int, Happened]] = []
    for i in range(len(samples[0])):
        packed = pack(samples[0][i : i + 1])
        features = packed.unpack(samples[0].shape[1:])
        found = shadow.learn(packed, features, samples[1][i : i + 1], np.full(1, weight, np.float32))
        assert all(event.text for event in found)
        happened += [(i, event) for event in found]
    return [(i, event.kind) for i, event in happened]


def kinds(happened: Sequence[tuple[int, str]]) -> list[str]:
    return [kind for _, kind in happened]


def accuracy(head: Parameters, where: World) -> float:
    features, labels = draw(where, 500, 77)
    return float((RUN(features, head).argmax(axis=1) == labels).mean())


def plain(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}


# Promotion


@pytest.mark.parametrize("seed", range(3))
def test_a_candidate_that_answers_better_is_promoted(seed: int) -> None:
    shadow, there = real(world(seed)), world(seed + 50)
    before = accuracy(shadow.live(), there)
    assert shadow.leader == ""
    happened = teach(shadow, draw(there, 150, seed))
    assert "promoted" in kinds(happened)
    assert "rolled-back" not in kinds(happened)
    assert happened[0][0] < 60
    assert shadow.leader in shadow.candidates
    assert accuracy(shadow.live(), there) > before + 0.3
    assert plain(shadow.live()) == plain(shadow.candidates[shadow.leader].parameters())


def test_the_head_that_is_shipped_stays_where_nothing_is_better() -> None:
    here = world(0)
    for seed in range(3):
        shadow = real(here)
        assert teach(shadow, draw(here, 200, seed)) == []
        assert plain(shadow.live()) == plain(head_for(here))


@pytest.mark.parametrize("seed", range(4))
def test_random_labels_never_promote(seed: int) -> None:
    here = world(seed)
    shadow = real(here, seed)
    happened = teach(shadow, random_labels(draw(here, 300, seed), seed))
    assert "promoted" not in kinds(happened)
    assert plain(shadow.live()) == plain(head_for(here))


def test_labels_without_weight_prove_nothing() -> None:
    here, there = world(0), world(50)
    shadow = scripted(head_for(here), better=head_for(there))
    assert teach(shadow, draw(there, 150, 0), weight=0.0) == []
    assert shadow.leader == ""
    assert "promoted" in kinds(teach(shadow, draw(there, 150, 0)))


def test_of_candidates_that_are_as_good_the_first_is_preferred() -> None:
    here, there = world(0), world(50)
    good = head_for(there)
    other = {name: array * np.float32(1.01) for name, array in good.items()}  # answers the same
    for order in (("a", "b"), ("b", "a")):
        heads = {"a": good, "b": other}
        first, second = (Scripted(lambda _, head=heads[name]: head) for name in order)  # type: ignore[misc]
        shadow = Shadow(TASK, (D,), head_for(here), dict(zip(order, (first, second), strict=True)), RUN)
        teach(shadow, draw(there, 100, 1))
        assert shadow.leader == order[0]


@pytest.mark.parametrize("seed", range(4))
def test_of_candidates_that_are_nearly_as_good_the_first_is_preferred(seed: int) -> None:
    here, there = world(0), world(50)
    good = head_for(there)
    bad = {name: -array for name, array in good.items()}
    shipped = {name: 0.5 * good[name] + 0.5 * head_for(here)[name] for name in good}
    # Wrong once: the evidence for it is a bit weaker when that for the other one is strong.
    shadow = scripted(shipped, nearly=lambda n: bad if n == 5 else good, good=good)
    teach(shadow, draw(there, 150, seed))
    assert shadow.leader == "nearly"


def test_a_candidate_that_is_much_better_than_the_first_is_preferred() -> None:
    here, there = world(0), world(50)
    good = head_for(there)
    poor = {name: 0.5 * good[name] + 0.5 * head_for(here)[name] for name in good}
    assert accuracy(good, there) > accuracy(poor, there) + 0.15 > accuracy(head_for(here), there) + 0.2
    shadow = scripted(head_for(here), poor=poor, good=good)
    teach(shadow, draw(there, 200, 1))
    assert shadow.leader == "good"


def only(where: World, classes: Sequence[int], n: int, seed: int) -> Samples:
    features, labels = draw(where, 20 * n, seed)
    chosen = np.flatnonzero(np.isin(labels, classes))[:n]
    return features[chosen], labels[chosen]


@pytest.mark.parametrize("forgets", [True, False])
def test_a_candidate_that_forgot_other_classes_is_not_promoted(forgets: bool) -> None:
    here = world(0)
    good = head_for(here)
    live = {name: array.copy() for name, array in good.items()}
    live["bias"][:2] -= 40.0  # never answers the first two classes
    narrow = {name: array.copy() for name, array in good.items()}
    if forgets:
        narrow["bias"][2:] -= 40.0  # answers nothing else
    shadow = scripted(live, narrow=lambda n: narrow if n >= 100 else live)
    assert teach(shadow, draw(here, 100, 0)) == []
    happened = kinds(teach(shadow, only(here, (0, 1), 80, 1)))
    assert ("promoted" in happened) is not forgets
    assert shadow.leader == ("" if forgets else "narrow")


def test_a_head_that_gives_no_numbers_is_never_promoted() -> None:
    here, there = world(0), world(50)
    broken = {name: array * np.float32(np.nan) for name, array in head_for(there).items()}
    shadow = scripted(head_for(here), broken=broken)
    with np.errstate(all="ignore"):
        assert "promoted" not in kinds(teach(shadow, draw(there, 150, 0)))
    assert shadow.leader == ""


# Turning back


def test_the_head_before_is_brought_back_when_its_successor_turns_bad() -> None:
    here, there = world(0), world(50)
    shipped = {name: 0.35 * head_for(there)[name] + 0.65 * head_for(here)[name] for name in LINEAR_NAMES}
    bad = {name: -array for name, array in head_for(there).items()}
    turned: list[int] = []
    shadow = scripted(shipped, candidate=lambda n: bad if turned else head_for(there))
    happened = []
    samples = draw(there, 300, 2)
    for i in range(300):
        found = teach(shadow, (samples[0][i : i + 1], samples[1][i : i + 1]))
        happened += [(i, kind) for _, kind in found]
        if "promoted" in kinds(found):
            turned.append(i)
    assert kinds(happened)[:2] == ["promoted", "rolled-back"]
    assert happened[1][0] - happened[0][0] < 40
    assert shadow.leader == ""
    assert plain(shadow.live()) == plain(shipped)


LINEAR_NAMES = ("weight", "bias")


def test_a_good_leader_is_not_turned_back() -> None:
    here, there = world(0), world(50)
    shadow = scripted(head_for(here), candidate=head_for(there))
    assert kinds(teach(shadow, draw(there, 600, 2))).count("promoted") == 1
    assert shadow.leader == "candidate"


# Drift


@pytest.mark.parametrize("seed", range(3))
def test_after_a_real_change_somebody_is_promoted_again(seed: int) -> None:
    worlds = [world(seed), world(seed + 50), world(seed + 90)]
    shadow = real(worlds[0], seed)
    for i, where in enumerate(worlds[1:]):
        happened = teach(shadow, draw(where, 160 if i else 300, seed + i))
        assert kinds(happened) == (["drift", "promoted"] if i else ["promoted"])
        assert happened[-1][0] < 90
        assert shadow.leader
        assert accuracy(shadow.live(), where) > accuracy(head_for(where), where) - 0.06


@pytest.mark.parametrize("seed", range(4))
def test_labels_that_go_bad_do_no_harm(seed: int) -> None:
    there = world(seed + 50)
    shadow = real(world(seed), seed)
    teach(shadow, draw(there, 250, seed))
    assert shadow.leader
    good = accuracy(shadow.live(), there)
    happened: list[str] = []
    for part in range(6):
        happened += kinds(teach(shadow, random_labels(draw(there, 50, 1000 * seed + part), part)))
        if part:  # the alarm comes within the first fifty
            assert accuracy(shadow.live(), there) >= good - 0.02
    assert happened == ["drift"]
    assert shadow.leader == ""


def test_on_drift_the_live_head_goes_back_to_how_it_was_some_time_before() -> None:
    there = world(51)
    shadow = real(world(1), 1)
    heads = []
    samples = draw(there, 250, 1)
    for i in range(250):
        teach(shadow, (samples[0][i : i + 1], samples[1][i : i + 1]))
        heads.append(plain(shadow.live()))
    spoiled = random_labels(draw(there, 60, 2), 3)
    assert "drift" in kinds(teach(shadow, spoiled))
    back = plain(shadow.live())
    assert shadow.leader == ""
    assert back in heads
    assert 250 - 3 * SNAPSHOT_EVERY <= heads.index(back) < 250


def test_the_candidates_distrust_the_past_on_drift() -> None:
    here, there = world(0), world(50)
    shadow = real(here)
    told: list[tuple[int, ...]] = []
    learner = shadow.candidates["statistics"]
    original = learner.distrust_the_past

    def distrust(features: FloatArray, targets: Targets) -> None:
        told.append(targets.shape)
        original(features, targets)

    learner.distrust_the_past = distrust  # type: ignore[method-assign]
    teach(shadow, draw(here, 150, 0))
    assert told == []
    assert "drift" in kinds(teach(shadow, draw(there, 100, 0)))
    assert len(told) == 1
    assert 5 <= told[0][0] <= 64


# State


def everything(shadow: Shadow) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return plain(shadow.state())


def test_a_restored_shadow_goes_on_the_same_wherever_it_was_cut() -> None:
    worlds = (world(0), world(50))
    parts = [draw(worlds[0], 40, 0), draw(worlds[1], 240, 1), random_labels(draw(worlds[1], 60, 2), 3)]
    features = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    running = [real(worlds[0])]
    cuts = {0, 31, 55, 140, 290, 325}
    seen: list[str] = []
    for i in range(len(labels)):
        if i in cuts:
            saved = [shadow.state() for shadow in running]  # all of them: it rounds what is kept up to date
            again = real(worlds[0])
            again.restore({name: array.copy() for name, array in saved[0].items()})
            running.append(again)
            assert everything(again) == everything(running[0])
        found = [teach(shadow, (features[i : i + 1], labels[i : i + 1])) for shadow in running]
        assert all(each == found[0] for each in found)
        seen += kinds(found[0])
        heads = [plain(shadow.live()) for shadow in running]
        assert all(head == heads[0] for head in heads)
        assert len({shadow.leader for shadow in running}) == 1
        assert len({shadow.temperature for shadow in running}) == 1
    assert {"drift", "promoted"} <= set(seen)
    assert all(everything(shadow) == everything(running[0]) for shadow in running)


def test_refuses_a_state_that_is_not_its_own() -> None:
    shadow = real(world(0))
    teach(shadow, draw(world(50), 60, 0))
    good = shadow.state()
    for name in ("counts", "temperature", "usual", "fixed.weight", "drift.buckets", "return.evidence", "reserve.live"):
        for bad in ({n: a for n, a in good.items() if n != name}, good | {name: np.zeros((2, 2, 2))}):
            with pytest.raises(LearningError):
                real(world(0)).restore(bad)
    with pytest.raises(LearningError):
        real(world(0)).restore(good | {"counts": np.array([3, 0, 0, 0])})  # there are two candidates
    with pytest.raises(LearningError):
        real(world(0)).restore(good | {"temperature": np.array([np.nan])})


def test_the_same_calls_give_the_same_heads() -> None:
    first, second = real(world(0)), real(world(0))
    for shadow in (first, second):
        teach(shadow, draw(world(50), 100, 0))
    assert everything(first) == everything(second)


# Refusals


def test_a_candidate_that_refuses_does_not_stop_the_others() -> None:
    here, there = world(0), world(50)
    shadow = scripted(head_for(here), stubborn=head_for(here), good=head_for(there))
    stubborn = shadow.candidates["stubborn"]
    assert isinstance(stubborn, Scripted)
    stubborn.refuses = True
    assert "promoted" in kinds(teach(shadow, draw(there, 100, 0)))
    assert shadow.leader == "good"
    assert stubborn.n_samples == 0


def test_what_all_refuse_is_refused_and_nothing_changes() -> None:
    here, there = world(0), world(50)
    shadow = real(here)
    teach(shadow, draw(there, 40, 0))
    before = everything(shadow)
    packed = pack(np.full((1, D), 1.0, np.float32))
    with pytest.raises(LearningError), np.errstate(all="ignore"):
        shadow.learn(packed, np.full((1, D), np.inf, np.float32), np.array([0]), np.ones(1, np.float32))
    assert everything(shadow) == before


# Without a gate


def test_without_a_gate_the_live_head_follows_at_once() -> None:
    here, there = world(0), world(50)
    shadow = real(here, gated=False)
    assert shadow.leader == "statistics"
    samples = draw(there, 60, 0)
    for i in range(60):
        assert teach(shadow, (samples[0][i : i + 1], samples[1][i : i + 1])) == []
        assert plain(shadow.live()) == plain(shadow.candidates["statistics"].parameters())
    assert accuracy(shadow.live(), there) > 0.6
    teach(shadow, random_labels(draw(there, 200, 1), 2))
    assert shadow.leader == "statistics"
    assert accuracy(shadow.live(), there) < 0.9


# From outside


@pytest.mark.parametrize("gated", [True, False])
def test_a_head_that_was_pushed_is_live_and_judged_anew(gated: bool) -> None:
    here, there = world(0), world(50)
    shadow = scripted(head_for(here), gated=gated, good=head_for(there))
    teach(shadow, draw(there, 100, 0))
    assert shadow.leader == "good"
    pushed = {name: array.copy() for name, array in head_for(world(7)).items()}
    shadow.place(pushed)
    assert len(shadow.reserve) == 0
    assert len(shadow.reserve.balanced()[0]) > 0
    if gated:
        assert shadow.leader == ""
        assert plain(shadow.live()) == plain(pushed)
        for array in pushed.values():
            array[:] = 9.0
        assert plain(shadow.live()) == plain(head_for(world(7)))
        assert teach(shadow, draw(there, 5, 3)) == []  # five labels prove nothing
        assert "promoted" in kinds(teach(shadow, draw(there, 100, 4)))
    else:
        assert shadow.leader == "good"
        assert plain(shadow.live()) == plain(head_for(there))


@pytest.mark.parametrize("leads", [True, False])
def test_a_further_class_is_learned_and_becomes_live(leads: bool) -> None:
    here = world(0)
    wider = np.concatenate([here, np.full((1, D), 1.5)])
    shadow = real(world(50) if leads else here)
    teach(shadow, draw(here, 120, 0))
    assert bool(shadow.leader) is leads
    features = draw(here, 200, 5)[0]
    before = RUN(features, shadow.live())
    shadow.grow(K + 1, LINEAR)
    after = RUN(features, shadow.live())
    assert after.shape == (200, K + 1)
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    teach(shadow, draw(wider, 250, 6))
    assert shadow.leader
    features, labels = draw(wider, 400, 7)
    answers = RUN(features, shadow.live()).argmax(axis=1)
    assert (answers[labels == K] == K).mean() > 0.8
    assert (answers == labels).mean() > 0.8
    again = real(here)
    again.grow(K + 1, LINEAR)
    again.restore(shadow.state())
    assert everything(again) == everything(shadow)


# What else it knows


def test_the_temperature_makes_overconfident_answers_honest() -> None:
    here = world(0)
    loud = {name: array * np.float32(20) for name, array in head_for(here).items()}
    shadow = scripted(loud, other=loud)
    assert shadow.temperature == 1.0
    teach(shadow, draw(here, 64, 0))
    assert shadow.temperature > 4.0
    features, labels = draw(here, 400, 1)
    outputs = RUN(features, loud)
    assert TASK.losses(outputs / shadow.temperature, labels).mean() < TASK.losses(outputs, labels).mean()


def test_heads_of_quantities_are_promoted_by_their_losses() -> None:
    task = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 2)
    slopes = np.random.default_rng(0).normal(size=(D, 2))

    def samples(n: int, seed: int, turn: float) -> Samples:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, D)).astype(np.float32)
        return x, (turn * (x @ slopes) + 1 + rng.normal(0, 0.2, (n, 2))).astype(np.float32)

    statistics = HeadStatistics.of_targets(*samples(200, 1, 1.0), np.ones(200))
    shipped = head_of(statistics, LINEAR, "ridge")
    candidates: dict[str, Learner] = {"ridge": StatisticsLearner(LINEAR, shipped, task, statistics, "ridge")}
    shadow = Shadow(task, (D,), shipped, candidates, RUN)
    assert teach(shadow, samples(100, 2, 1.0)) == []
    assert "promoted" in kinds(teach(shadow, samples(200, 3, -1.0)))
    assert shadow.leader == "ridge"
    assert shadow.temperature == 1.0
    x, y = samples(200, 4, -1.0)
    assert task.losses(RUN(x, shadow.live()), y).mean() < 0.2 * task.losses(RUN(x, shipped), y).mean()
    x, y = samples(300, 5, -1.0)
    loss = task.losses(RUN(x, shadow.live()), y).mean()
    teach(shadow, (x[:200], np.random.default_rng(6).permutation(y[:200])))
    assert task.losses(RUN(x[200:], shadow.live()), y[200:]).mean() < 1.3 * loss


def quantities(n: int, seed: int) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(1.0, 1.0, (n, D)).astype(np.float32)
    return x, (x[:, :1] - 0.5 * x[:, 1:2] + rng.normal(0, 0.1, (n, 1))).astype(np.float32)


@pytest.mark.parametrize("bad", [300.0, 1e4, 1e8])
@pytest.mark.parametrize("at", [20, 60, 150])
def test_one_wrong_quantity_does_not_ruin_the_head(bad: float, at: int) -> None:
    """Sums of squares would never get over it."""
    task = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 1)
    shipped = {LINEAR.weight: np.zeros((1, D), np.float32), "bias": np.zeros(1, np.float32)}
    x, y = quantities(300, 0)
    later = quantities(200, 1)
    losses = {}
    for name, wrong in (("clean", False), ("wrong", True)):
        learner = StatisticsLearner(LINEAR, shipped, task, None, "ridge")
        shadow = Shadow(task, (D,), shipped, {"ridge": learner}, RUN, gated=False)
        targets = y.copy()
        if wrong:
            targets[at] = bad
        packed = pack(x)
        shadow.learn(packed, packed.unpack((D,)), targets, np.ones(300, np.float32))
        losses[name] = float(task.losses(RUN(later[0], shadow.live()), later[1]).mean())
    assert losses["wrong"] < 1.5 * losses["clean"] + 0.01
