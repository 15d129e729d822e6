"""The report of a conversion as a document; `converter.report` shows it."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from converter.export.exporters import Exported
from converter.graph.nodes import tensors_of
from converter.pack.pack import Parts
from converter.program.programs import onnx_program
from converter.search.candidates import TIE, Candidate
from converter.search.search import Found
from converter.verify.checks import Check
from converter.verify.expectation import unseen_share
from converter.verify.measure import Evaluation, confusion, level_measure
from converter.verify.quality import Deviation, Quality
from edge import __version__
from edge.contract.tensorspec import TensorSpec

# What depends on the machine and the moment stays out of the bundle: the same model gives the same bytes.
_PASSING = ("label_ms", "latency_spread", "machine", "stages", "size_bytes", "bundle_digest", "output")
# Of an output; more are counted only.
_MOST_COLUMNS = 32
# A table of more is not read.
_MOST_CLASSES = 64
# A candidate that may be shipped, and was not; with the times it is told whether it is slower.
_LEFT, _SLOWER = "not chosen", "slower"
_PASSING_OF_CANDIDATE = ("latency_ms", "peak_memory_bytes", "start_up_s")


def describe(
    parts: Parts,
    source_name: str,
    exported: Exported,
    found: Found,
    checks: Sequence[Check],
    robustness: list[dict[str, Any]],
    notes: Sequence[str],
    original_latency_ms: float,
    label_ms: float | None,
    *,
    max_drop: float,
    forced: bool,
    searched: bool,
) -> dict[str, Any]:
    """Everything that a conversion found out, as docs/converting.md ("The report") describes it."""
    original, evaluation, source = parts.original, parts.evaluation, parts.original.source
    layers = dict(_operators(found))
    shipped = found.chosen.deviation
    assert shipped is not None
    worst = shipped.worst
    return {
        "schema": 2,
        "source": source_name,
        "source_kind": source.kind,
        "source_digest": source.digest,
        "created_by": f"edgeloop {__version__}",
        "target": parts.target.name,
        "target_description": parts.target.description,
        "machine": machine(),
        "threads": 1,
        "data": original.data,
        "metric": worst.measure,
        "real_data": evaluation.real,
        "says_quality": evaluation.says_quality,
        "findings": [{"what": finding.what, "text": finding.text} for finding in evaluation.findings],
        "forced": forced and bool(evaluation.findings) and found.chosen.scheme != "none",
        "max_drop": max_drop,
        "inputs": [_spec(spec) for spec in original.inputs],
        "outputs": [_spec(spec) for spec in original.outputs],
        "axes": {axis.name: {**axis.range.to_json(), "tried": list(axis.tried)} for axis in original.axes},
        "judged": [_judged(spec.name, evaluation, shipped) for spec in original.outputs],
        "elsewhere": [_elsewhere(one, evaluation) for one in shipped.elsewhere if one.qualities],
        "expected": _expected(evaluation, shipped),
        "classes": _classes(parts),
        "n_parameters": _n_parameters(parts, exported),
        "trainable": [] if parts.parts.head is None else list(parts.parts.head.parameters),
        "learning": None if parts.trial is None else dataclasses.asdict(parts.trial),
        "label_ms": None if label_ms is None else round(label_ms, 3),
        "exporter": exported.exporter,
        "candidates": [
            {
                "name": "PyTorch" if original.module is not None else "ONNX file",
                "scheme": "none",
                "status": "reference",
                "why": "what everything is compared with",
                "size_bytes": source.size_bytes,
                "score": shipped.original_score if evaluation.says_quality else None,
                "agreement": None,
                "quality": _quality(replace(worst, value=worst.original, loss=0.0))
                if evaluation.says_quality
                else None,
                "sqnr_db": None,
                "column_db": None,
                "max_error": 0.0,
                "relative_error": 0.0,
                "latency_ms": round(original_latency_ms, 4),
                "peak_memory_bytes": None,
                "start_up_s": None,
                "int8_layers": None,
                "layers": None,
                "left_in_float": [],
                "weight_bits": None,
            },
            *(_candidate(candidate, found, evaluation, searched=searched) for candidate in found.candidates),
        ],
        "chosen": found.chosen.name,
        "reason": found.reason,
        "sensitivity": [
            {
                "layer": layer,
                "op_type": layers.get(layer, ""),
                "sqnr_db": _rounded(ratio),
                "left_in_float": layer in found.chosen.left_in_float,
            }
            for layer, ratio in found.sensitivity
        ],
        "robustness": robustness,
        "robustness_measure": level_measure(evaluation),
        "verification": [_check(check) for check in checks],
        "saturation": {"text": found.saturation, "difference_db": _rounded(found.saturation_db)},
        "latency_spread": round(found.latency_spread, 3),
        "notes": list(notes),
    }


def lasting(report: dict[str, Any]) -> dict[str, Any]:
    """The report without what depends on the machine and the moment, as it goes into the bundle."""
    kept = {key: value for key, value in report.items() if key not in _PASSING}
    kept["candidates"] = [
        {key: value for key, value in candidate.items() if key not in _PASSING_OF_CANDIDATE}
        | ({"status": _LEFT, "why": _LEFT} if candidate["status"] in (_LEFT, _SLOWER) else {})
        for candidate in report["candidates"]
    ]
    return kept


def machine() -> str:
    """Processor, architecture and whether it multiplies 8-bit integers in one instruction."""
    name, flags = platform.processor() or "unknown processor", ""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
        name = next(
            (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), name
        )
        found = [flag for flag in ("avx2", "avx512_vnni", "avx_vnni", "asimddp") if flag in text.split()]
        flags = ", " + ", ".join(found) if found else ""
    except OSError:
        pass
    return f"{name}, {platform.machine()}{flags}"


def _candidate(candidate: Candidate, found: Found, evaluation: Evaluation, *, searched: bool) -> dict[str, Any]:
    deviation, timing = candidate.deviation, candidate.timing
    known = deviation if evaluation.says_quality else None
    in_int8, layers = candidate.layers_in_int8 or (None, None)
    status, why = _outcome(candidate, found, searched=searched)
    return {
        "name": candidate.name,
        "scheme": candidate.scheme,
        "status": status,
        "why": why,
        "size_bytes": candidate.size_bytes,
        "score": None if known is None else known.score,
        "agreement": None if known is None else known.agreement,
        "quality": None if known is None else _quality(known.worst),
        "sqnr_db": None if deviation is None else _rounded(deviation.sqnr_db),
        "column_db": None if deviation is None else _rounded(deviation.column_db),
        "max_error": None if deviation is None else _rounded(deviation.max_error, 6),
        "relative_error": None if deviation is None else _rounded(deviation.relative_error, 6),
        "latency_ms": None if timing is None else round(timing.latency_ms, 4),
        "peak_memory_bytes": None if timing is None else timing.peak_memory_bytes,
        "start_up_s": None if timing is None else round(timing.load_s + timing.first_ms / 1e3, 4),
        "int8_layers": in_int8,
        "layers": layers,
        "left_in_float": list(candidate.left_in_float),
        "weight_bits": candidate.weight_bits,
    }


def _outcome(candidate: Candidate, found: Found, *, searched: bool) -> tuple[str, str]:
    """What became of a candidate, and why: slower only where it was measured to be."""
    if candidate is found.chosen:
        return "chosen", found.reason
    if candidate.failed or candidate.why:
        return "failed" if candidate.failed else "refused", candidate.why
    if not searched:
        return _LEFT, "not asked for"
    here, there = candidate.timing, found.chosen.timing
    if here is None or there is None or not found.by_latency:
        return _LEFT, _LEFT
    if here.latency_ms > (1 + TIE) * there.latency_ms:
        return _SLOWER, f"takes {here.latency_ms / there.latency_ms:.2f} times as long as {found.chosen.name}"
    if candidate.size_bytes < (1 - TIE) * found.chosen.size_bytes:
        return _LEFT, f"smaller, but not as fast as {found.chosen.name} by {TIE:.0%}"
    return _LEFT, f"neither clearly faster nor clearly smaller than {found.chosen.name}"


def _rounded(value: float | None, digits: int = 2) -> float | None:
    """For a document that holds no infinities."""
    return None if value is None or value in (float("inf"), float("-inf")) or value != value else round(value, digits)  # noqa: PLR0124


def _check(check: Check) -> dict[str, Any]:
    return {
        "what": check.what,
        "against": check.against,
        "max_error": _rounded(check.deviation.max_error, 9),
        "relative_error": _rounded(check.deviation.relative_error, 9),
        "sqnr_db": _rounded(check.deviation.sqnr_db),
        "column_db": _rounded(check.deviation.column_db),
        "required": check.required,
        "passed": True,
    }


def _quality(quality: Quality) -> dict[str, Any]:
    return {
        "of": quality.name,
        "output": quality.output,
        "column": quality.column,
        "measure": quality.measure,
        "against": quality.against,
        "value": _rounded(quality.value, 6),
        "original": _rounded(quality.original, 6),
        "loss": _rounded(quality.loss, 4),
        "constant": quality.constant,
        "at": quality.at,
    }


def _judged(name: str, evaluation: Evaluation, shipped: Deviation) -> dict[str, Any]:
    """What an output is, and how much of its columns is kept: the worst first."""
    judged = evaluation.kinds[name]
    own = [q for q in shipped.qualities if q.output == name]
    qualities = sorted((q for q in shipped.everywhere if q.output == name), key=lambda q: -q.loss)
    said = [_quality(q) for q in qualities[:_MOST_COLUMNS]] if evaluation.says_quality else []
    return {
        "output": name,
        "kind": judged.kind,
        "because": judged.because,
        "labelled": judged.labelled,
        "columns": said,
        "n_columns": len({q.column for q in own}),
        "constant": [q.column for q in own if q.constant][:_MOST_COLUMNS],
        "n_constant": sum(q.constant for q in own),
    }


def _elsewhere(deviation: Deviation, evaluation: Evaluation) -> dict[str, Any]:
    """At which sizes or in what stream the shipped model was compared, too, and the column that lost most there."""
    worst = deviation.worst
    return {"at": worst.at, "worst": _quality(worst) if evaluation.says_quality else None}


def _expected(evaluation: Evaluation, shipped: Deviation) -> dict[str, Any] | None:
    """What the samples are too few to show, and what is expected of others."""
    if not shipped.expected or not evaluation.says_quality:
        return None
    return {
        "samples": evaluation.count,
        "unseen": round(unseen_share(evaluation.count), 4),
        "outputs": [_quality(quality) for quality in shipped.expected],
    }


def _classes(parts: Parts) -> dict[str, Any] | None:
    """Of labelled classes how many samples each has, how many are right, and what they were taken for."""
    evaluation, chosen = parts.evaluation, parts.chosen
    if not evaluation.says_quality:
        return None
    before = confusion(evaluation, evaluation.reference)
    if before is None:
        return None
    after = confusion(evaluation, evaluation.run(onnx_program(chosen.model, chosen.name, chosen.parameters)))
    assert after is not None
    names = parts.class_names or tuple(map(str, range(len(before))))
    small = len(before) <= _MOST_CLASSES
    return {
        "names": list(names),
        "samples": before.sum(axis=1).tolist(),
        "right_original": before.diagonal().tolist(),
        "right": after.diagonal().tolist(),
        "confusion_original": before.tolist() if small else None,
        "confusion": after.tolist() if small else None,
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return spec.to_json()


def _operators(found: Found) -> list[tuple[str, str]]:
    return [(node.name, node.op_type) for candidate in found.candidates for node in candidate.backbone.graph.node]


def _n_parameters(parts: Parts, exported: Exported) -> int:
    model = parts.original.source.model
    if not isinstance(model, onnx.ModelProto):
        return sum(parameter.numel() for parameter in model.parameters())
    return sum(math.prod(tensor.dims) for tensor in tensors_of(exported.model.graph))
