"""Samples of several requests in one run of the model: what each is told is what it would be told alone.

Theory of operation. Nobody waits for company: what is there when the model is free is run together, as much of it as is
expected to take no longer than a bound, by what the runs before took. So a request waits for one such run at most, and
the more there is to do, the more is done at once. A model that remembers, or that decides otherwise for a sample in
company (its quantization takes the range of all of them, for instance: the golden samples show it), gets each request
alone. Where a run of several fails, each is run alone, and a fault is told to whom it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.agent.core import AgentCore
from edge.agent.model.model_core import ModelCore
from edge.agent.model.served_model import ServedModel
from edge.agent.model.serving import Given
from edge.contract.clock import Now
from edge.contract.errors import EdgeError, LearningError
from edge.inference.onnx_session import golden_inputs
from edge.inference.session import Arrays

# Of the largest value: other orders of summing are far below it, another quantization far above.
_SAME = 1e-3
MAX_SAMPLES = 4096  # of one request
_REMEMBERED = 0.2  # share of a new measurement in what a sample is expected to take


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Job:
    """Samples of one request.

    Attributes:
        model: Its name; None for the only one.
        id: Name of the sample; of several, they are ``id:0``, ``id:1`` and so on.
        given: Along the batch axes of the inputs.
        stream: Whose samples they are, of a model that remembers.
        reset: Whether the stream begins anew with the first.
        outputs: That must be there.
    """

    model: str | None
    id: str
    given: Given
    stream: str | None = None
    reset: bool = False
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Answered:
    """What came of a job.

    Attributes:
        model: That answered.
        release: Of it; 0 for as shipped.
        ids: Of the samples.
        outputs: By name, along the batch axes.
        said: What the outputs of each sample say.
    """

    model: str
    release: int
    ids: tuple[str, ...]
    outputs: Arrays
    said: list[dict[str, Any]]


@dataclass(slots=True)
class _Pace:
    """Of one bundle: whether its samples may be run together, and what one takes; None before there was a run."""

    together: bool
    ms_per_sample: float | None = None

    def measured(self, ms: float, samples: int) -> None:
        found = ms / samples
        before = found if self.ms_per_sample is None else self.ms_per_sample
        self.ms_per_sample = before + _REMEMBERED * (found - before)


@dataclass(frozen=True, eq=False, slots=True)
class _Asked:
    """A job whose samples fit."""

    place: int
    job: Job
    inputs: Arrays
    ids: tuple[str, ...]


@dataclass(slots=True)
class Company:
    """See the module.

    Args:
        bound_ms: That one run is expected to take at most, where it has samples of several requests; 0: each alone.
        stopwatch: Gives seconds.
    """

    bound_ms: float
    stopwatch: Callable[[], float]
    _paces: dict[tuple[str, str], _Pace] = field(default_factory=dict)

    def answer(self, core: AgentCore, jobs: Sequence[Job], now: Now) -> list[Answered | Exception]:
        """What comes of each job, in their order; a fault is its answer."""
        found: list[Answered | Exception] = [LearningError("not answered")] * len(jobs)
        waiting: dict[str, list[_Asked]] = {}
        for i, job in enumerate(jobs):
            try:
                model = core.named(job.model)
                waiting.setdefault(model.host.name, []).append(_asked(i, job, model))
            except Exception as exc:  # noqa: BLE001  # it is the answer
                found[i] = exc
        for name, asked in waiting.items():
            while asked:
                model = core.models[name]
                count = self._count(model, asked)
                for place, outcome in self._run(model, asked[:count], now):
                    found[place] = outcome
                del asked[:count]
        return found

    def _count(self, model: ModelCore, asked: Sequence[_Asked]) -> int:
        """How many of the jobs go into the next run; one at least."""
        pace = self._pace(model)
        if pace.ms_per_sample is None or not pace.together:
            return 1
        most = self.bound_ms / max(pace.ms_per_sample, 1e-6)
        samples = len(asked[0].ids)
        for count, each in enumerate(asked[1:], 1):
            samples += len(each.ids)
            if samples > most or not _alike(each.inputs, asked[0].inputs, model):
                return count
        return len(asked)

    def _pace(self, model: ModelCore) -> _Pace:
        live = model.host.model
        key = (model.host.name, live.bundle.digest)
        if key not in self._paces:
            for old in [old for old in self._paces if old[0] == key[0]]:
                del self._paces[old]
            self._paces[key] = _Pace(self.bound_ms > 0 and is_like_alone(live))
        return self._paces[key]

    def _run(self, model: ModelCore, asked: Sequence[_Asked], now: Now) -> list[tuple[int, Answered | Exception]]:
        ids = tuple(each for one in asked for each in one.ids)
        job = asked[0].job
        start = self.stopwatch()
        try:
            inputs = asked[0].inputs
            if len(asked) > 1:
                axes = {name: spec.batch_axis for name, spec in model.host.model.serving.inputs.items()}
                inputs = {name: np.concatenate([one.inputs[name] for one in asked], axes[name] or 0) for name in axes}
            outputs, said = model.replies.infer(ids, inputs, now, stream=job.stream, reset=job.reset)
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is told to whom it concerns
            if len(asked) > 1:
                return [each for one in asked for each in self._run(model, [one], now)]
            return [(asked[0].place, exc)]
        self._pace(model).measured((self.stopwatch() - start) * 1e3, len(ids))
        serving = model.host.model.serving  # of the bundle that answered: one on probation may have been taken back
        answered, begin = list[tuple[int, Answered | Exception]](), 0
        for one in asked:
            rows = slice(begin, begin + len(one.ids))
            begin = rows.stop
            part = outputs if len(asked) == 1 else serving.part(outputs, rows)
            release = model.host.slots.record.release
            name = model.host.name
            answered.append(
                (one.place, Answered(model=name, release=release, ids=one.ids, outputs=part, said=said[rows]))
            )
        return answered


def _asked(place: int, job: Job, model: ModelCore) -> _Asked:
    serving = model.host.model.serving
    for name in job.outputs:
        if name not in serving.outputs:
            raise LearningError(f"outputs: expected of {', '.join(serving.outputs)}, got {name!r:.60}")
    inputs = serving.many(job.given)
    count = serving.count(inputs)
    if count is not None and not 0 < count <= MAX_SAMPLES:
        raise LearningError(f"expected 1 to {MAX_SAMPLES} samples in one request, got {count}")
    ids = (job.id,) if count in (None, 1) else tuple(f"{job.id}:{i}" for i in range(count or 1))
    return _Asked(place, job, inputs, ids)


def _alike(one: Arrays, other: Arrays, model: ModelCore) -> bool:
    """Whether two can lie in one array: of the same sizes but for the batch axis."""
    for name, spec in model.host.model.serving.inputs.items():
        axis = spec.batch_axis
        if axis is None or one[name].ndim != other[name].ndim:
            return False
        sizes = [[size for i, size in enumerate(array.shape) if i != axis] for array in (one[name], other[name])]
        if sizes[0] != sizes[1]:
            return False
    return True


def is_like_alone(model: ServedModel) -> bool:
    """Whether samples that are run together give what each gives alone, as far as the golden samples show it."""
    manifest, serving = model.manifest, model.serving
    whole = any(axis is None for axis in (spec.batch_axis for spec in serving.inputs.values()))
    if manifest.one_by_one or manifest.fixed_batch == 1 or whole:
        return False
    inputs = {name: array for name, array in golden_inputs(model.bundle).items() if name in serving.inputs}
    count = serving.count(inputs) or 1
    if count < 2:
        return False
    try:
        together = serving.run(inputs)
        for i in range(count):
            alone, row = serving.run(serving.rows(inputs, slice(i, i + 1))), serving.part(together, slice(i, i + 1))
            for name, wanted in alone.items():
                if wanted.shape != row[name].shape or not _is_close(row[name], wanted):
                    return False
    except EdgeError:
        return False
    return True


def _is_close(found: Any, wanted: Any) -> bool:
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(found, wanted))
    scale = float(np.abs(wanted).max(initial=0.0))
    return bool(np.allclose(found, wanted, rtol=0.0, atol=_SAME * scale + 1e-6, equal_nan=True))
