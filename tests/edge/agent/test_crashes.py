"""What was learned is whole after a crash between any two writes, whatever happens in a device's life."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.agent.model import model_core
from edge.agent.model.learned_state import LearnedState
from edge.agent.model.store import LearnedStore
from edge.contract.manifest import LinearLayer
from edge.contract.recipe import TrainingRecipe
from edge.learning.closed_form import StatisticsLearner
from edge.learning.compression import EXACT, Compression
from edge.learning.disclosure import Disclosing, Noise
from edge.learning.events import (
    ClassAdded,
    Confirmed,
    Contributed,
    Event,
    HeadOffered,
    HeadReplaced,
    Labelled,
    MergeRecognized,
    RolledBack,
)
from edge.learning.exchange import HeadRelease
from edge.learning.experts import Product
from edge.learning.learned import Learned
from edge.learning.learner import Learner
from edge.learning.learning import Learning
from edge.learning.lift import Lift
from edge.learning.lifted import lifted_learner
from edge.learning.packing import pack
from edge.learning.statistics import HeadStatistics
from edge.learning.subspace import Subspace
from edge.learning.task import Task
from tests.support.fleet import SimulatedFleet
from tests.support.values import same

BACKBONE, D = "ab" * 32, 5
LINEAR = LinearLayer(weight="w", bias="b", input="features")
SHIPPED = {
    "w": np.random.default_rng(1).normal(size=(3, D)).astype(np.float32),
    "b": np.zeros(3, np.float32),
}
Step = Callable[[LearnedState], object]
Files = tuple[tuple[str, int, bytes], ...]  # names, which of them are one file, and what is in them


def rules() -> Learning:
    """Of a head with two learners that need no graph; what one of them keeps is there for no other device."""
    task, rng = Task(TrainingRecipe(), 3), np.random.default_rng(2)
    labels = rng.integers(0, 3, 60)
    known = HeadStatistics.of(labels[:, None] + rng.normal(0, 0.5, (60, D)), labels, 3)
    lift = Lift(known, n_waves=8)
    learners: dict[str, Callable[[], Learner]] = {
        "statistics": lambda: StatisticsLearner(LINEAR, SHIPPED, task, None),
        "lifted": lambda: lifted_learner(LINEAR, SHIPPED, task, known, lift),
    }
    under_noise = Disclosing(Noise(4.0), Subspace(known).coordinates(""))
    product = Product(LINEAR, lift)
    return Learning(task, (D,), SHIPPED, ("a", "b", "c"), LINEAR, learners, product, disclosing=under_noise)


LEARNING = rules()


def label(number: int, classes: int = 3) -> Labelled:
    rng = np.random.default_rng(number)
    y = int(rng.integers(0, classes))
    x = np.full((1, D), y, np.float32) + rng.normal(0, 0.3, (1, D)).astype(np.float32)
    return Labelled(pack(x), np.array([y]), np.ones(1, np.float32))


def happen(state: LearnedState, event: Event) -> None:
    """As a model does: labels that wait are learned before, see `edge.agent.model.learning_model`."""
    while state.waiting and not isinstance(event, Contributed):
        learn_next(state)
    state.keep(event, LEARNING.advance(state.value, event)[0])


def learn_next(state: LearnedState) -> None:
    state.value, _ = LEARNING.advance(state.value, state.waiting.popleft()[0])


def learn(number: int, classes: int = 3) -> Step:
    return lambda state: happen(state, label(number, classes))


def wait(number: int) -> Step:
    return lambda state: state.wait(label(number, 4), np.zeros(4, np.float32))


def contribute(state: LearnedState, compression: Compression = EXACT) -> None:
    LEARNING.contribution(state.value, compression)
    happen(state, Contributed(LEARNING.n_samples(state.value), compression))


def contribute_shorter(state: LearnedState) -> None:
    contribute(state, Compression("int8"))


def tell(state: LearnedState) -> None:
    """Under noise."""
    n = LEARNING.n_samples(state.value)
    happen(state, Contributed(n, EXACT, Noise(4.0), n.to_bytes(32, "big")))


def merge(counter: int, *, fits: bool | None = True) -> Step:
    """A head with what this device has sent, and a class that it does not know."""

    def offer(state: LearnedState) -> None:
        head = LEARNING.parameters(state.value, "statistics")
        tensors = LEARNING.contribution(state.value)[1].tensors
        sent = state.value.experts["statistics"].sent[-1].version
        release = HeadRelease(
            backbone=BACKBONE,
            parameters={name: array.copy() for name, array in head.items()},
            merged=tensors,
            included={state.value.lineage: sent},
            class_names=state.value.class_names,
        )
        happen(state, HeadOffered(release, counter, fits=fits))

    return offer


def push(counter: int, *names: str) -> Step:
    rng = np.random.default_rng(counter)
    parameters = {
        "w": rng.normal(size=(len(names), D)).astype(np.float32),
        "b": rng.normal(size=len(names)).astype(np.float32),
    }
    release = HeadRelease(backbone=BACKBONE, parameters=parameters, class_names=names)
    return lambda state: happen(state, HeadReplaced(release, counter))


def save(state: LearnedState) -> None:
    state.save()


LIFE: tuple[Step, ...] = (
    *(learn(number) for number in range(4)),
    save,
    lambda state: happen(state, ClassAdded("d")),
    tell,
    learn(4, 4),
    contribute,
    wait(5),
    wait(6),
    contribute_shorter,
    learn_next,
    merge(1),
    learn(7, 4),
    save,
    push(2, "a", "b", "c", "d", "e"),
    learn(8, 5),
    wait(9),
    tell,
    save,
    learn(10, 4),
    lambda state: happen(state, RolledBack()),
    contribute_shorter,
    tell,
    learn(11, 5),
    push(3, "a", "b", "c", "d", "e"),
    learn(12, 4),
    lambda state: happen(state, Confirmed()),
    merge(4, fits=None),
    save,
    learn(13, 4),
    lambda state: happen(state, MergeRecognized(fits=True)),
    lambda state: state.replace(replace(state.value, temperature=2.0)),
    learn(14, 4),
    lambda state: state.close(),
)


def nameless(value: Learned) -> Learned:
    """Of no lineage: that is random."""
    trial = value.trial
    return replace(value, lineage="", trial=trial and replace(trial, before=replace(trial.before, lineage="")))


def lived() -> list[Learned]:
    """What is known before each step and at the end, when the labels that wait are learned."""
    twin = LearnedState(LEARNING, None)
    found = []
    for step in (*LIFE, None):
        value = twin.value
        for each, _ in twin.waiting:
            value, _ = LEARNING.advance(value, each)
        found.append(nameless(value))
        if step is not None:
            step(twin)
    return found


# Calls of the operating system that change files, as Python's own functions of C name them. A crash comes before one.
CHANGES = {"open", "write", "fsync", "mkdir", "rename", "replace", "link", "remove", "unlink", "truncate", "ftruncate"}


def live(folder: Path, crash: Callable[[int], None]) -> int:
    """A whole life: calls ``crash`` before each change of a file with the number of steps that were done until then.

    Returns:
        How many changes there were.
    """
    changes = done = 0

    def called(_: object, event: str, function: object) -> None:
        nonlocal changes
        if event == "c_call" and getattr(function, "__name__", "") in CHANGES:
            changes += 1
            crash(done)

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        state = LearnedState(LEARNING, LearnedStore(folder, BACKBONE))
        for step in LIFE:
            step(state)
            done += 1
    finally:
        sys.setprofile(before)
    return changes


def left_behind(folder: Path) -> Files:
    """What another process finds."""
    return tuple(sorted((path.name, path.stat().st_ino, path.read_bytes()) for path in folder.glob("*")))


def put(files: Files, folder: Path) -> Path:
    """A folder as a crash left it."""
    folder.mkdir()
    first: dict[int, Path] = {}
    for name, number, data in files:
        if number in first:
            (folder / name).hardlink_to(first[number])
        else:
            first[number] = folder / name
            first[number].write_bytes(data)
    return folder


def opened(folder: Path) -> tuple[Learned, list[str]]:
    store = LearnedStore(folder, BACKBONE)
    state = LearnedState(LEARNING, store)
    store.close()
    return nameless(state.value), state.warnings


def test_a_crash_between_any_two_writes_leaves_what_was_known_before_or_after_the_step(tmp_path: Path) -> None:
    expected = lived()
    crashes: dict[tuple[int, Files], None] = {}
    folder = tmp_path / "life"

    def crash(acknowledged: int) -> None:
        if folder.exists():
            crashes[acknowledged, left_behind(folder)] = None  # in order; most calls change nothing that is seen

    assert live(folder, crash) > 120
    crash(len(LIFE))
    seen = set()
    for n, (acknowledged, files) in enumerate(crashes):
        value, warnings = opened(put(files, tmp_path / f"{n}"))
        assert warnings == [], n
        neighbours = expected[acknowledged : acknowledged + 2]
        assert any(same(value, each) for each in neighbours), (n, acknowledged)
        seen.add((acknowledged, same(value, neighbours[-1])))
        assert same(opened(tmp_path / f"{n}")[0], value), "and it stays"
        if any(name == "state.bin" for name, _, _ in files):  # and then the newest snapshot turns out damaged
            damaged = put(files, tmp_path / f"{n}.damaged")
            has_one_before = (damaged / "state.previous.bin").exists()
            data = bytearray((damaged / "state.bin").read_bytes())
            data[len(data) // 2] ^= 1
            (damaged / "state.bin").unlink()
            (damaged / "state.bin").write_bytes(data)
            again, warnings = opened(damaged)
            assert warnings, "it is said"
            if (damaged / "state.damaged").exists() and has_one_before:
                assert any(same(again, each) for each in neighbours), (n, acknowledged)
    in_memory = {12}  # to learn what waited writes nothing
    assert {step for step, _ in seen} >= set(range(len(LIFE))) - in_memory


def test_a_record_torn_at_any_byte_is_as_if_it_had_not_come(tmp_path: Path) -> None:
    """Each step of the life, cut off in the middle of what it wrote to the journal."""
    folder = tmp_path / "whole"
    state = LearnedState(LEARNING, LearnedStore(folder, BACKBONE))
    expected = lived()
    for number, step in enumerate(LIFE[:-1]):
        before = {path.name: path.stat().st_size for path in folder.glob("journal-*.bin")}
        step(state)
        after = {path.name: path.stat().st_size for path in folder.glob("journal-*.bin")}
        grown = [name for name in before.keys() & after.keys() if after[name] > before[name]]
        for name in grown:
            for size in {before[name] + 1, before[name] + 15, (before[name] + after[name]) // 2, after[name] - 1}:
                shutil.copytree(folder, tmp_path / "torn")
                os.truncate(tmp_path / "torn" / name, size)
                value, warnings = opened(tmp_path / "torn")
                assert warnings == []
                assert same(value, expected[number]), (number, size)
                shutil.rmtree(tmp_path / "torn")
    state.close()


def test_a_device_that_is_cut_off_again_and_again_does_not_start_ever_more_slowly(
    tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """faults: 21. What a start learns once more is bounded, also where no run lasts until a snapshot is due."""
    ticks = itertools.count()
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, stopwatch=lambda _: next(ticks) * 1e-4)
    x, y = np.random.default_rng(0).random((3, 1, 8, 8), np.float32), np.array([1, 2, 3])

    def cut_off() -> tuple[int, int]:
        """What a start has learned in all, and how much of that once more, when it has been up for a second."""
        fleet.crash_agent("one")
        state = fleet.start_agent("one").host.model.state
        fleet.run(1.0)
        return fleet.agents["one"].host.model.n_samples, state.repeated

    try:
        for number in range(3):
            fleet.teach("one", x, y, f"{number}-")
            assert cut_off() == (3 * number + 3, 3 * number + 3), "a short journal is cheaper than a snapshot"
        monkeypatch.setattr(model_core, "MAX_REPLAY_MS", 1e-6)
        fleet.teach("one", x, y, "long-")
        assert cut_off()[0] == 12
        assert cut_off() == (12, 0), "a long one is not learned again and again"
        before = sorted((tmp_path / "one").rglob("journal-*.bin"))
        assert cut_off() == (12, 0)
        assert sorted((tmp_path / "one").rglob("journal-*.bin")) == before, "nor is there a snapshot for nothing"
        fleet.teach("one", x, y, "more-")
        fleet.run(0.5)
        assert cut_off() == (15, 0), "and it is written as soon as it is long"
    finally:
        fleet.close()
