"""What was learned is whole after a crash between any two writes, whatever happens in a device's life."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.agent.learned_state import LearnedState
from edge.agent.store import LearnedStore
from edge.contract.manifest import LinearLayer
from edge.contract.recipe import TrainingRecipe
from edge.contract.training import FloatArray, Parameters
from edge.learning.closed_form import StatisticsLearner
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
from edge.learning.learned import Learned
from edge.learning.learning import Learning
from edge.learning.packing import pack
from edge.learning.task import Task
from tests.support.values import same

BACKBONE, D = "ab" * 32, 5
LINEAR = LinearLayer(weight="w", bias="b", input="features")
SHIPPED = {
    "w": np.random.default_rng(1).normal(size=(3, D)).astype(np.float32),
    "b": np.zeros(3, np.float32),
}
Step = Callable[[LearnedState], object]


def rules() -> Learning:
    """Of a head with a learner that needs no graph."""
    task = Task(TrainingRecipe(), 3)

    def run(features: FloatArray, parameters: Parameters) -> FloatArray:
        return np.asarray(features @ parameters["w"].T + parameters["b"])

    def learner() -> StatisticsLearner:
        return StatisticsLearner(LINEAR, SHIPPED, task, None)

    return Learning(task, (D,), SHIPPED, ("a", "b", "c"), LINEAR, {"statistics": learner}, run)


LEARNING = rules()


def label(number: int, classes: int = 3) -> Labelled:
    rng = np.random.default_rng(number)
    y = int(rng.integers(0, classes))
    x = np.full((1, D), y, np.float32) + rng.normal(0, 0.3, (1, D)).astype(np.float32)
    return Labelled(pack(x), np.array([y]), np.ones(1, np.float32))


def happen(state: LearnedState, event: Event) -> None:
    """As a model does: labels that wait are learned before, see `edge.agent.learning_model`."""
    while state.waiting and not isinstance(event, Contributed):
        learn_next(state)
    state.keep(event, LEARNING.advance(state.value, event)[0])


def learn_next(state: LearnedState) -> None:
    state.value, _ = LEARNING.advance(state.value, state.waiting.popleft()[0])


def learn(number: int, classes: int = 3) -> Step:
    return lambda state: happen(state, label(number, classes))


def wait(number: int) -> Step:
    return lambda state: state.wait(label(number, 4), np.zeros(4, np.float32))


def contribute(state: LearnedState) -> None:
    LEARNING.contribution(state.value)
    happen(state, Contributed(LEARNING.n_samples(state.value)))


def merge(counter: int, *, fits: bool | None = True) -> Step:
    """A head with what this device has sent, and a class that it does not know."""

    def offer(state: LearnedState) -> None:
        head = LEARNING.parameters(state.value, "statistics")
        tensors = LEARNING.contribution(state.value)[1]
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
    learn(4, 4),
    contribute,
    wait(5),
    wait(6),
    contribute,
    learn_next,
    merge(1),
    learn(7, 4),
    save,
    push(2, "a", "b", "c", "d", "e"),
    learn(8, 5),
    wait(9),
    save,
    learn(10, 4),
    lambda state: happen(state, RolledBack()),
    contribute,
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


def live(folder: Path, acknowledged: int) -> None:
    """A whole life; the length of a file says how far it is."""
    state = LearnedState(LEARNING, LearnedStore(folder, BACKBONE))
    for step in LIFE:
        step(state)
        os.write(acknowledged, b".")


# Runs the life above again and again, each time one step further, and ends there without any clearing up. The steps are
# Python's own audit events of files: opened, renamed, linked, removed, truncated; and every write and fsync, of which
# there are none: a profile function sees those.
CRASHES = """
import os, sys
from pathlib import Path
from tests.edge.agent.test_crashes import live
root = Path(sys.argv[1])
for n in range(2000):
    folder = root / str(n)
    child = os.fork()
    if child == 0:
        acknowledged = os.open(root / f"{n}.acknowledged", os.O_WRONLY | os.O_CREAT)
        left = n
        def step():
            global left
            if left == 0:
                os._exit(9)
            left -= 1
        def audited(event, arguments):
            if event in ("open", "os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir"):
                if any(str(folder) in str(argument) for argument in arguments[:2]):
                    step()
        def called(frame, event, function):
            if event == "c_call" and function.__name__ in ("write", "fsync") and frame.f_code.co_name != "live":
                step()
        sys.addaudithook(audited)
        sys.setprofile(called)
        live(folder, acknowledged)
        os._exit(0)
    if (code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) != 9:
        break
assert code == 0
print(n)
"""


def opened(folder: Path) -> tuple[Learned, list[str]]:
    store = LearnedStore(folder, BACKBONE)
    state = LearnedState(LEARNING, store)
    store.close()
    return nameless(state.value), state.warnings


@pytest.mark.timeout(1200)  # 15 s on a machine that is not busy
def test_a_crash_between_any_two_writes_leaves_what_was_known_before_or_after_the_step(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1000,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    crashes = int(done.stdout)
    assert crashes > 120
    expected, seen = lived(), set()
    for n in range(crashes):
        folder, acknowledged = tmp_path / str(n), (tmp_path / f"{n}.acknowledged").stat().st_size
        damaged = tmp_path / f"{n}.damaged"
        if (folder / "state.bin").exists():
            shutil.copytree(folder, damaged)
        value, warnings = opened(folder)
        assert warnings == [], n
        neighbours = expected[acknowledged : acknowledged + 2]
        assert any(same(value, each) for each in neighbours), (n, acknowledged)
        seen.add((acknowledged, same(value, neighbours[-1])))
        assert same(opened(folder)[0], value), "and it stays"
        if damaged.exists():  # and on top of the crash the newest snapshot turns out damaged
            has_one_before = (damaged / "state.previous.bin").exists()
            data = bytearray((damaged / "state.bin").read_bytes())
            data[len(data) // 2] ^= 1
            (damaged / "state.bin").unlink()
            (damaged / "state.bin").write_bytes(data)
            again, warnings = opened(damaged)
            assert warnings, "it is said"
            if (damaged / "state.damaged").exists() and has_one_before:
                assert any(same(again, each) for each in neighbours), (n, acknowledged)
    in_memory = {11}  # to learn what waited writes nothing
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
