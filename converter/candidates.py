"""Candidates: the ways to quantize the frozen part, each built, compared with the original and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from converter.head import correct_for_quantization
from converter.measure import Deviation, Evaluation
from converter.program import onnx_program, outputs
from converter.quantization.layers import running_in_int8
from converter.source import Samples
from converter.split import SplitModel, joined
from converter.tensors import Arrays, select
from edge.contract.errors import BundleError, ConversionError
from edge.contract.tensorspec import TensorSpec
from edge.inference.onnx_benchmark import Benchmark, Timing

_CORRECTION_SAMPLES = 512
_ROUNDS = 2


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
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
        left_in_float: Layers that were left in float because they hurt.
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


def build(problem: Problem, name: str, scheme: str, backbone: onnx.ModelProto, **known: Any) -> Candidate:
    """Put a backbone and the head together; a linear head is corrected for what quantization did to its features."""
    parts = problem.parts
    model = joined(backbone, parts)
    parameters = {} if parts.head is None else dict(parts.head.parameters)
    error = 1.0
    if (
        parts.head is not None
        and parts.head.linear is not None
        and problem.calibration is not None
        and scheme != "none"
    ):
        few = select(problem.calibration.x, problem.inputs, slice(0, _CORRECTION_SAMPLES))
        features = features_of(model, parts, few, problem.inputs)
        original = features_of(joined(problem.backbone, parts), parts, few, problem.inputs)
        wanted = _logits(parts, original)
        parameters, error = correct_for_quantization(parameters, parts.head.linear, features, wanted)
    return Candidate(
        name=name,
        scheme=scheme,
        backbone=backbone,
        model=model,
        parameters=parameters,
        head_error=error,
        layers_in_int8=running_in_int8(backbone),
        **known,
    )


def features_of(
    model: onnx.ModelProto, parts: SplitModel, x: Arrays, inputs: Sequence[TensorSpec]
) -> npt.NDArray[np.float32]:
    """``(n, ...)`` what the head gets for these samples."""
    assert parts.head is not None
    run = onnx_program(model, "the model", parts.head.parameters)
    return outputs(run, x, inputs, [parts.head.features])[parts.head.features.name]


def _logits(parts: SplitModel, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    assert parts.head is not None
    run = onnx_program(parts.head.graph, "the head", parts.head.parameters)
    found: npt.NDArray[np.float32] = run({parts.head.features.name: features})[parts.head.output]
    return found


def compared(candidate: Candidate, evaluation: Evaluation) -> Candidate:
    """The candidate with its deviation from the original, or with the reason why it does not run."""
    from dataclasses import replace

    try:
        found = evaluation.run(onnx_program(candidate.model, candidate.name, candidate.parameters))
    except ConversionError as exc:
        return replace(candidate, why=str(exc), failed=True)
    return replace(candidate, deviation=evaluation.deviation(found))


def timed(candidates: Sequence[Candidate], sample: Arrays, folder: Path) -> list[Candidate]:
    """The candidates with latency and peak memory, one thread, one sample, measured in turn so that noise hits all."""
    from dataclasses import replace

    best: dict[int, Timing] = {}
    faults: dict[int, str] = {}
    with Benchmark() as benchmark:
        for i, candidate in enumerate(candidates):
            (folder / f"{i}.onnx").write_bytes(candidate.model.SerializeToString())
            feeds = {**sample, **candidate.parameters}
            safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in feeds.items()}, folder / f"{i}.feeds")
        for _ in range(_ROUNDS):
            for i in range(len(candidates)):
                try:
                    timing = benchmark.measure(folder / f"{i}.onnx", folder / f"{i}.feeds")
                except BundleError as exc:
                    faults[i] = str(exc)
                    continue
                if i not in best or timing.latency_ms < best[i].latency_ms:
                    best[i] = timing
    return [
        replace(candidate, timing=best.get(i), why=candidate.why or faults.get(i, ""), failed=i in faults)
        for i, candidate in enumerate(candidates)
    ]


Quantizer = Callable[[], onnx.ModelProto]
