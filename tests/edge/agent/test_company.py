"""Samples of several requests in one run: each is told what it would be told alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.agent.config import AgentConfig
from edge.agent.core import AgentCore
from edge.agent.model.company import Answered, Company, Job, is_like_alone
from edge.agent.models import Models
from edge.contract.clock import Now
from edge.contract.errors import LearningError
from tests.support.fleet import unhurried

NOW = Now(1.0, 1_800_000_000_000)


@pytest.fixture
def core(tmp_path: Path, digits_bundle: Path, voice_bundle: Path, fragile_bundle: Path) -> Iterator[AgentCore]:
    bundles = {"digits": digits_bundle, "voice": voice_bundle, "fragile": fragile_bundle}
    config = AgentConfig(bundles=bundles, state_dir=tmp_path, fleet="f", device="d", profile=unhurried(), outbox_mb=0.0)
    models = Models(config)
    yield AgentCore(config, models, stopwatch=lambda: 0.0)
    models.close()


class Clock:
    """A stopwatch by which each run takes as long as it is told."""

    def __init__(self, run_s: float) -> None:
        self.run_s, self._ticks = run_s, 0

    def __call__(self) -> float:
        self._ticks += 1
        return self._ticks // 2 * self.run_s


def count_runs(core: AgentCore, model: str) -> list[int]:
    """Samples of each run from now on."""
    serving, runs = core.models[model].host.model.serving, list[int]()
    step = serving.step

    def counted(inputs: dict, state: dict) -> tuple:
        runs.append(serving.count(inputs) or 1)
        return step(inputs, state)

    serving.step = counted
    return runs


def rows(found: list[Answered | Exception]) -> list[np.ndarray]:
    return [each.outputs[next(iter(each.outputs))] for each in found if isinstance(each, Answered)]


def test_what_waits_runs_together_and_is_answered_and_remembered_each_for_itself(core: AgentCore) -> None:
    x = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)
    wanted = core.models["digits"].host.model.predict(x)
    jobs = [Job(model="digits", id=f"j{i}", given=x[i : i + 1]) for i in range(30)]
    jobs += [Job(model="digits", id="many", given=x[30:])]
    company = Company(5.0, Clock(1e-3))
    company.answer(core, jobs[:1], NOW)  # what one takes is known from then on: 1 ms
    runs = count_runs(core, "digits")
    found = company.answer(core, jobs, NOW)
    np.testing.assert_allclose(np.concatenate(rows(found)), wanted, atol=1e-4)
    assert runs[0] == 5  # of 1 ms each, as far as was known
    assert len(runs) < 12
    assert max(runs) > 5  # together they take less
    assert [each.ids for each in found[:2]] == [("j0",), ("j1",)]
    assert found[-1].ids == tuple(f"many:{i}" for i in range(10))
    labels = [("j7", 3), ("many:9", 4)]
    for name, y in labels:
        assert core.request({"op": "label", "model": "digits", "id": name, "y": y}, NOW) == {"joined": True}
    assert core.models["digits"].host.model.metrics.inferences == 41


def test_a_fault_is_told_to_whom_it_concerns_alone(core: AgentCore) -> None:
    good = {"x": np.ones((1, 4), np.float32), "word": np.ones(1, np.int64)}
    bad = {"x": -np.ones((1, 4), np.float32), "word": np.ones(1, np.int64)}  # of which there is no root
    jobs = [Job(model="fragile", id=str(i), given=each) for i, each in enumerate([good, bad, good, {"x": 1}])]
    jobs += [Job(model="zebra", id="z", given=good), Job(model="fragile", id="", given=good)]
    company = Company(1000.0, Clock(1e-3))
    company.answer(core, jobs[:1], NOW)
    found = company.answer(core, jobs, NOW)
    assert [isinstance(each, Answered) for each in found] == [True, False, True, False, False, False]
    assert all(isinstance(found[i], LearningError) for i in (1, 3, 4, 5))
    assert "not finite" in str(found[1])


def test_a_model_that_remembers_is_asked_one_request_at_a_time(core: AgentCore) -> None:
    frames = np.random.default_rng(0).standard_normal((6, 1, 128)).astype(np.float32)
    jobs = [Job(model="voice", id=str(i), given=frames[i], stream=f"s{i % 2}") for i in range(6)]
    company = Company(1000.0, Clock(0.0))
    found = rows(company.answer(core, jobs, NOW))
    alone = [
        core.models["voice"].host.model.respond("a", frames[i, 0], 1.0, stream=f"again{i % 2}")["values"]
        for i in range(6)
    ]
    np.testing.assert_allclose(np.concatenate(found).reshape(6, -1), np.reshape(alone, (6, -1)), atol=1e-6)
    assert not is_like_alone(core.models["voice"].host.model)


def test_a_model_that_decides_otherwise_in_company_is_asked_alone(core: AgentCore) -> None:
    live = core.models["digits"].host.model
    assert is_like_alone(live)
    run = live.serving.run

    def by_the_batch(inputs: dict) -> dict:  # as quantization does that takes the range of all samples
        scale = max(float(np.abs(array).max()) for array in inputs.values())
        return {
            name: (np.round(array * 8 / scale) * scale / 8).astype(np.float32) for name, array in run(inputs).items()
        }

    live.serving.run = by_the_batch
    assert not is_like_alone(live)
    runs = count_runs(core, "digits")
    x = np.random.default_rng(0).random((3, 1, 1, 8, 8), np.float32)
    Company(1000.0, Clock(0.0)).answer(core, [Job(model="digits", id=str(i), given=x[i]) for i in range(3)], NOW)
    assert runs[-3:] == [1, 1, 1]
    live.serving.run = run
    runs.clear()
    Company(0.0, Clock(0.0)).answer(core, [Job(model="digits", id=str(i), given=x[i]) for i in range(3)], NOW)
    assert runs == [1, 1, 1]  # 0: one by one
