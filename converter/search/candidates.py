"""Candidates: the ways to quantize the frozen part, each built, compared with the original and timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from converter.data.samples import Samples
from converter.graph.build import share_equal
from converter.head.fitting import correct_for_quantization
from converter.head.split import Head, SplitModel, joined
from converter.program.one_run import as_judged, in_runs
from converter.program.programs import available_threads, onnx_program, outputs
from converter.program.tensors import Array, Arrays, Run, select
from converter.quantization.layers import running_in_int8
from converter.verify.measure import Evaluation
from converter.verify.quality import Deviation
from edge.contract.errors import BundleError, ConversionError
from edge.contract.tensorspec import TensorSpec
from edge.inference.onnx_benchmark import Benchmark, Timing
from edge.inference.onnx_session import EXACT
from edge.inference.session import sqnr_db

_CORRECTION_SAMPLES = 512
# Differences in latency and size below this are noise.
TIE = 0.02
# The name of a graph that is carried.
AS_IT_IS = "as it is"
# The same operators, which onnxruntime may take together in another way once the batch axis is free.
MIN_CARRIED_SQNR_DB = 60.0
# So much slower than the fastest, in a quick measurement, needs no better one. A core that is shared runs at two
# speeds, and one time may be of the fast and another of the slow one.
_QUICK = 4
# Part of a latency's time that is enough to see that, and to see how much memory it takes.
_GLANCE = 1 / 8

# A graph, its name for messages, and inputs that are always the same, as a function of named arrays for as long as it
# is needed: in a process of its own, if onnxruntime may end that.
Apart = Callable[[onnx.ModelProto, str, Mapping[str, Array]], contextlib.AbstractContextManager[Run]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What is to be quantized and what counts as good enough.

    Attributes:
        parts: The split model.
        backbone: Its float backbone, optimized.
        evaluation: What candidates are compared on.
        calibration: Real samples that ranges may be taken from, or None.
    """

    parts: SplitModel
    backbone: onnx.ModelProto
    evaluation: Evaluation
    calibration: Samples | None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self.evaluation.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a backbone gives."""
        head = self.parts.head
        if head is None:
            return self.evaluation.outputs
        return (head.features, *(spec for spec in self.evaluation.outputs if spec.name != head.output))

    @property
    def corrects_head(self) -> bool:
        """Whether the head is corrected for what quantization does to its features."""
        head = self.parts.head
        return head is not None and head.linear is not None and head.is_linear and self.calibration is not None

    @cached_property
    def correction_samples(self) -> Arrays:
        """What a head is corrected on."""
        assert self.calibration is not None
        return select(self.calibration.x, self.inputs, slice(0, _CORRECTION_SAMPLES))

    @cached_property
    def wanted_logits(self) -> npt.NDArray[np.float32]:
        """``(n, n_classes)`` what the float model gives for them."""
        head = self.parts.head
        assert head is not None
        run = onnx_program(head.graph, "the head", head.parameters)
        features = features_of(self.backbone, head, self.correction_samples, self.inputs)
        found: npt.NDArray[np.float32] = run({head.features.name: features})[head.output]
        return found


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Candidate:
    """One way to ship the model, and everything that is known about it.

    Attributes:
        name: For the report.
        scheme: ``none``, ``int8``, ``dynamic``, ``fp16`` or ``int4``.
        backbone: The frozen part.
        model: Backbone and head in one graph; the head's parameters are inputs.
        parameters: Of the head, corrected for this backbone.
        head_error: Squared error of the corrected head's logits relative to that of the head as it was, 1.0 without.
        deviation: From the original, None until compared.
        timing: None until measured.
        layers_in_int8: Layers that really run in int8, and layers, after the runtime's own optimizer.
        left_in_float: Layers that were left in float because they hurt, or are faster so.
        why: Why it is not the one to ship, "" while it may be.
        failed: It could not be built or run.
        weight_bits: Of the quantized weights.
    """

    name: str
    scheme: str
    backbone: onnx.ModelProto
    model: onnx.ModelProto
    parameters: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    head_error: float = 1.0
    deviation: Deviation | None = None
    timing: Timing | None = None
    layers_in_int8: tuple[int, int] | None = None
    left_in_float: tuple[str, ...] = ()
    why: str = ""
    failed: bool = False
    weight_bits: int | None = None

    @property
    def size_bytes(self) -> int:
        """Of what has to be shipped for it."""
        return int(self.model.ByteSize()) + sum(array.nbytes for array in self.parameters.values())


@contextlib.contextmanager
def in_this_process(model: onnx.ModelProto, what: str, constants: Mapping[str, Array]) -> Iterator[Run]:
    """`Apart` for a float graph, whose kernels the model itself has."""
    yield onnx_program(model, what, constants)


def build(
    problem: Problem,
    name: str,
    scheme: str,
    backbone: onnx.ModelProto,
    corrected: tuple[dict[str, npt.NDArray[np.float32]], float] | None = None,
    **known: Any,
) -> Candidate:
    """Put a backbone and the head together.

    Equal constants of the backbone become one, in place.

    Args:
        problem: Whose head it is.
        name: For the report.
        scheme: See `Candidate`.
        backbone: One that onnxruntime has run already, apart if it was quantized.
        corrected: See `corrected_head`; None for the head as it is.
        known: Of the candidate.
    """
    parts = problem.parts
    share_equal(backbone)
    parameters, error = corrected or ({} if parts.head is None else dict(parts.head.parameters), 1.0)
    return Candidate(
        name=name,
        scheme=scheme,
        backbone=backbone,
        model=joined(backbone, parts),
        parameters=parameters,
        head_error=error,
        layers_in_int8=running_in_int8(backbone),
        **known,
    )


def corrected_head(
    problem: Problem, backbone: onnx.ModelProto, apart: Apart
) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
    """A linear head's parameters, corrected for what quantization did to its features; see `correct_for_quantization`.

    Args:
        problem: One that `corrects_head`.
        backbone: Quantized.
        apart: Runs it.

    Raises:
        ConversionError: It does not run.
    """
    head = problem.parts.head
    assert head is not None
    assert head.linear is not None
    with apart(backbone, "the backbone", {}) as run:
        features = outputs(run, problem.correction_samples, problem.inputs, [head.features])
    return correct_for_quantization(head.parameters, head.linear, features[head.features.name], problem.wanted_logits)


def features_of(
    backbone: onnx.ModelProto, head: Head, x: Arrays, inputs: Sequence[TensorSpec]
) -> npt.NDArray[np.float32]:
    """``(n, ...)`` what the head gets for these samples."""
    run = onnx_program(backbone, "the backbone")
    return outputs(run, x, inputs, [head.features])[head.features.name]


def compared(candidate: Candidate, evaluation: Evaluation, most_loss: float, apart: Apart) -> Candidate:
    """The candidate with its deviation from the original, or with the reason why it does not run.

    Args:
        candidate: Built.
        evaluation: What is compared.
        most_loss: See `Evaluation.measured`.
        apart: Runs it.
    """
    try:
        with apart(candidate.model, candidate.name, candidate.parameters) as run:
            found = evaluation.measured(run, most_loss)
    except ConversionError as exc:
        return replace(candidate, why=str(exc), failed=True)
    return replace(candidate, deviation=found)


def as_it_is(model: onnx.ModelProto, evaluation: Evaluation) -> Candidate:
    """A graph that nothing is done to; after this it is known to give what the original gives.

    Raises:
        ConversionError: It does not.
    """
    found = evaluation.run(onnx_program(model, "the carried graph"))
    wanted = dict(evaluation.reference)
    for name, one in evaluation.reference.items():
        other = found[name]
        # A mask may be infinite: as it is, it is compared as it is.
        finite = np.isfinite(one) if one.dtype.kind == "f" else np.ones(one.shape, bool)
        same = other.shape == one.shape and np.array_equal(one[~finite], other[~finite], equal_nan=True)
        if not same or (one.dtype.kind != "f" and not np.array_equal(one, other)):
            raise ConversionError(f"the carried graph gives another {name} than the file")
        if one.dtype.kind == "f":
            wanted[name], found[name] = np.where(finite, one, 0), np.where(finite, other, 0)
            ratio = sqnr_db(wanted[name], found[name])
            if ratio < MIN_CARRIED_SQNR_DB:
                raise ConversionError(
                    f"the carried graph gives another {name} than the file: {ratio:.1f} dB, at least "
                    f"{MIN_CARRIED_SQNR_DB:.0f} dB expected"
                )
    deviation = replace(evaluation, reference=wanted).deviation(found)
    try:
        layers = running_in_int8(model)
    except ConversionError:  # onnxruntime runs it, but cannot write down what it makes of it
        layers = None
    return Candidate(
        name=AS_IT_IS,
        scheme="none",
        backbone=model,
        model=model,
        deviation=deviation,
        layers_in_int8=layers,
    )


class Bench:
    """Runs candidates in processes of their own, one thread, one sample.

    Args:
        benchmark: The server that measures.
        folder: To work in.
        sample: What they are run on.

    Attributes:
        spread: Part by which latencies of one candidate differed when they were compared last.
    """

    def __init__(self, benchmark: Benchmark, folder: Path, sample: Arrays) -> None:
        self._benchmark = benchmark
        self._folder = folder
        self._sample = sample
        self.spread = 0.0

    @contextlib.contextmanager
    def program(self, model: onnx.ModelProto, what: str, constants: Mapping[str, Array]) -> Iterator[Run]:
        """`Apart`: as `onnx_program` runs it, with as many threads, but where it can do no harm.

        onnxruntime ends the process in which it runs some graphs that a quantizer made, at some sizes, on several
        threads and not on one: nothing of that sort runs in this process before all of it ran in another.

        Raises:
            ConversionError: It does not load; from the function: it does not run.
        """
        path, fixed = self._folder / "apart.onnx", self._folder / "apart.feeds"
        path.write_bytes(model.SerializeToString())
        safetensors.numpy.save_file({n: np.asarray(a, order="C") for n, a in constants.items()}, fixed)

        def failed(exc: BundleError) -> ConversionError:
            return ConversionError(f"{what} does not run: {exc}")

        how = as_judged(model)
        each = None if how is None else how.one_by_one(output.name for output in model.graph.output)
        with contextlib.ExitStack() as stack:
            threads = available_threads() if how is None else 1
            program = self._benchmark.program(path, fixed, threads=threads, config=EXACT, one_by_one=each)
            try:
                run_once = stack.enter_context(program)
            except BundleError as exc:
                raise failed(exc) from exc

            def run(batch: Mapping[str, Array]) -> Arrays:
                try:
                    return run_once(batch)
                except BundleError as exc:
                    raise failed(exc) from exc

            yield in_runs(run, how) if each is None else run

    def check(self, model: onnx.ModelProto, parameters: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Run a model where it can do no harm: onnxruntime crashes on some graphs, and this process must not.

        Raises:
            ConversionError: It does not run.
        """
        with self.program(model, "it", parameters) as run:
            run(self._sample)

    def timed(self, candidates: Sequence[Candidate], allowed: Collection[Candidate] | None = None) -> list[Candidate]:
        """The candidates with latency and peak memory: each on its own, then the first and all quick ones in turn.

        Args:
            candidates: The first is what the others are compared with.
            allowed: Those of which one may be shipped, None for all; the others are timed for a shorter time.
        """
        timings: dict[int, Timing] = {}
        faults: dict[int, str] = {}
        files = [self._write(str(i), c.model, c.parameters) for i, c in enumerate(candidates)]
        budget_s = self._benchmark.budget_s * (_GLANCE if len(files) > 1 else 1 / 2)
        for i, pair in enumerate(files):
            try:
                timings[i] = self._benchmark.measure(*pair, budget_s=budget_s)
            except BundleError as exc:
                faults[i] = str(exc)
        fastest = min((timing.latency_ms for timing in timings.values()), default=0.0)
        quick = [i for i, timing in timings.items() if i == 0 or timing.latency_ms <= _QUICK * fastest]
        quick = quick if len(quick) > 1 else []  # one alone is compared with nothing
        try:
            if quick:
                wanted = [k for k, i in enumerate(quick) if allowed is None or candidates[i] in allowed]
                found = self._benchmark.compare([files[i] for i in quick], wanted=wanted)
                self.spread = found.spread
                scale = found.latencies_ms[0] / timings[quick[0]].latency_ms
                together = dict(zip(quick, found.latencies_ms, strict=True))
                for i, alone in timings.items():
                    timings[i] = replace(alone, latency_ms=together.get(i, alone.latency_ms * scale))
        except BundleError:  # together they may need more memory than there is
            pass
        return [
            replace(candidate, timing=timings.get(i), why=candidate.why or faults.get(i, ""), failed=i in faults)
            for i, candidate in enumerate(candidates)
        ]

    def faster(self, base: Candidate, others: Sequence[Candidate], share: float = 1 - TIE) -> list[Candidate]:
        """Those of the others that take less than a share of the base's time, the fastest first."""
        candidates = [base, *others]
        try:
            files = [self._write(str(i), c.model, c.parameters) for i, c in enumerate(candidates)]
            # They are compared again in `timed`.
            found = self._benchmark.compare(files, budget_s=self._benchmark.budget_s / 2).latencies_ms
        except BundleError:
            return []
        order = sorted(range(1, len(found)), key=found.__getitem__)
        return [candidates[i] for i in order if found[i] < share * found[0]]

    def _write(
        self, name: str, model: onnx.ModelProto, parameters: Mapping[str, npt.NDArray[np.float32]]
    ) -> tuple[Path, Path]:
        graph, feeds = self._folder / f"{name}.onnx", self._folder / f"{name}.feeds"
        graph.write_bytes(model.SerializeToString())
        arrays = {**self._sample, **parameters}
        safetensors.numpy.save_file({n: np.asarray(a, order="C") for n, a in arrays.items()}, feeds)
        return graph, feeds
