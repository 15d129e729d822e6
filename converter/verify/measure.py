"""Measuring: how much of the model a program keeps, and how fast it is. Every number in a report comes from here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from converter.data.samples import Samples
from converter.plan import ANYTHING, BOXES, CLASSES, EMBEDDING, QUANTITIES, SCORES, YES_OR_NO
from converter.program.programs import outputs
from converter.program.tensors import Array, Arrays, Run, select
from converter.verify.columns import Columns, compare, cosines, in_columns, overlaps
from converter.verify.evidence import Finding
from converter.verify.kinds import Judged
from edge.contract.tensorspec import TensorSpec
from edge.inference.session import sqnr_db

ACCURACY, AGREEMENT, R2, CORRELATION = "accuracy", "agreement", "R2", "correlation"
COSINE, BOXES_KEPT, EQUAL = "cosine", "boxes kept", "equal"
SHARES = (ACCURACY, AGREEMENT, BOXES_KEPT, EQUAL)
"""Measures that are shares of samples; the others are no per cent of anything."""

# A box is kept if it overlaps so much with the original's (COCO's strict limit).
_KEPT_OVERLAP = 0.75
# A class is lost with more than this share of its answers, and so many: the total hides it where it is rare.
_LOST_SHARE = 0.1
_LOST_LEAST = 3
# The worst vectors count as well: those below this percentile, a quarter as much.
_WORST_PERCENT = 5
_WORST_WEIGHT = 0.25
MOST_LOSS = 100.0
"""Of a column that is finite: ``--max-drop 100`` allows any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How much a program keeps of one column of an output, or of an output that is judged whole.

    Attributes:
        output: Name.
        column: Which one; None for all together. Of classes, the class.
        kind: What it was judged as, one of `converter.plan.KINDS`.
        measure: ``accuracy``, ``agreement``, ``R2``, ...
        against: ``labels`` or ``original``.
        value: By that measure; None where there is none, because it is constant or not finite.
        original: The original's own.
        loss: By how much it is worse, in points of 100: what ``--max-drop`` limits.
        constant: Whether the original gives one value for all samples, of which no measure says anything.
    """

    output: str
    column: int | None
    kind: str
    measure: str
    against: str
    value: float | None
    original: float | None
    loss: float
    constant: bool = False

    @property
    def name(self) -> str:
        """What it is the quality of.

        >>> Quality(output="o", column=2, kind="quantities", measure="R2", against="original", value=1.0, original=1.0,
        ...         loss=0.0).name
        'o[2]'
        """
        if self.column is None:
            return self.output
        return f"class {self.column} of {self.output}" if self.kind == CLASSES else f"{self.output}[{self.column}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """How far a program's outputs are from the original's.

    Attributes:
        qualities: Of every output and column.
        sqnr_db: Signal to quantization noise ratio against the original, the smallest over all float outputs.
        max_error: Largest absolute difference.
        relative_error: That difference relative to the largest absolute value of its output.
        column_db: Signal about its mean to noise, of the worst column that is not constant.
    """

    qualities: tuple[Quality, ...]
    sqnr_db: float
    max_error: float
    relative_error: float
    column_db: float

    @property
    def worst(self) -> Quality:
        """The column that decides: with the largest loss, and of equal ones that with the lowest value."""

        def order(quality: Quality) -> tuple[bool, float, float]:
            value = quality.value if quality.value is not None else float("inf")
            return (quality.constant and quality.loss == 0, -quality.loss, value)

        return min(self.qualities, key=order)

    @property
    def score(self) -> float | None:
        """Accuracy, or the worst column's R², against the labels; None without any."""
        found = [q.value for q in self.qualities if q.against == "labels" and q.value is not None]
        whole = [q.value for q in self.qualities if q.against == "labels" and q.column is None and q.value is not None]
        return min(whole or found, default=None)

    @property
    def original_score(self) -> float | None:
        """The original's own."""
        found = [q for q in self.qualities if q.against == "labels"]
        whole = [q for q in found if q.column is None]
        return min((q.original for q in whole or found if q.original is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """The smallest share of the original's answers that are given, too; None where outputs are no answers."""
        return min(
            (q.value for q in self.qualities if q.measure in (AGREEMENT, EQUAL) and q.value is not None), default=None
        )


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Evaluation:
    """What programs are compared on.

    Attributes:
        samples: Real or random ones.
        real: False when they are random.
        inputs: Of every program.
        outputs: Of every program.
        reference: The original's outputs on the samples.
        kinds: What each output is.
        findings: Why the samples cannot carry a claim; empty when they can.
    """

    samples: Samples
    real: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    reference: Arrays
    kinds: Mapping[str, Judged]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def classes(self) -> str | None:
        """Name of the output that holds one value for each class, or None."""
        names = [
            s.name for s in self.outputs
            if self.kinds[s.name].kind == CLASSES and self.reference[s.name].ndim == 2 and s.dtype.startswith("float")
        ]  # fmt: skip
        return next((name for name in names if self.kinds[name].labelled), names[0] if names else None)

    @property
    def says_quality(self) -> bool:
        """Whether what is measured on the samples may be called the quality of a program."""
        return self.real and not any(finding.hides_quality for finding in self.findings)

    @property
    def labels_hold(self) -> bool:
        """Whether programs may be judged by the labels: not where the original itself gets them by chance only."""
        return not any(finding.spoils_labels for finding in self.findings)

    def first(self, count: int) -> Evaluation:
        """The comparison on the first samples only."""
        return self.on(slice(0, count))

    def on(self, rows: slice) -> Evaluation:
        """The comparison on some samples."""
        y = self.samples.y
        samples = Samples(select(self.samples.x, self.inputs, rows), None if y is None else y[rows])
        return replace(self, samples=samples, reference=select(self.reference, self.outputs, rows))

    def run(self, program: Run) -> Arrays:
        """A program's outputs on all samples."""
        return outputs(program, self.samples.x, self.inputs, self.outputs)

    def deviation(self, found: Arrays) -> Deviation:
        """Compare outputs on all samples with the original's."""
        floats = [spec.name for spec in self.outputs if spec.dtype.startswith("float")]
        with np.errstate(invalid="ignore"):  # a carried model may give infinities where its file does
            errors = {name: float(np.abs(found[name] - self.reference[name]).max(initial=0.0)) for name in floats}
            ratios = [sqnr_db(self.reference[name], found[name]) for name in floats]
        scales = {name: float(np.abs(self.reference[name]).max(initial=0.0)) or 1.0 for name in floats}
        return Deviation(
            qualities=tuple(quality for spec in self.outputs for quality in self.judge(spec, found[spec.name])),
            sqnr_db=min(ratios, default=200.0),
            max_error=max(errors.values(), default=0.0),
            relative_error=max((errors[name] / scales[name] for name in floats), default=0.0),
            column_db=min((self._column_db(name, found[name]) for name in floats), default=200.0),
        )

    def _column_db(self, name: str, found: Array) -> float:
        columns = compare(self.reference[name], found, self.kinds[name].axis)
        if not (columns.kept | ~columns.constant).all():
            return float("-inf")
        return float(columns.noise_db[~columns.constant].min(initial=200.0))

    def judge(self, spec: TensorSpec, found: Array) -> list[Quality]:
        """One output of a program, by what it is.

        Args:
            spec: Which.
            found: Its values on all samples.
        """
        judged, wanted = self.kinds[spec.name], self.reference[spec.name]
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            return [_quality(spec, judged, "finite", None, None, float("inf"))]
        if not wanted.size:
            return [_quality(spec, judged, EQUAL, None, None, 0.0, constant=True)]
        y = self.samples.y if judged.labelled and self.labels_hold else None
        if judged.kind == CLASSES:
            return _classes(spec, judged, wanted, found, y)
        if wanted.dtype.kind not in "f" and judged.kind in (ANYTHING, YES_OR_NO, SCORES):
            return _equal(spec, judged, wanted, found)
        if judged.kind == YES_OR_NO:
            return _answers(spec, judged, wanted, found, None if y is None else like(y, wanted, spec))
        if judged.kind == QUANTITIES and y is not None:
            return _targets(spec, judged, wanted, found, like(y, wanted, spec))
        if judged.kind == EMBEDDING:
            return _vectors(spec, judged, wanted, found)
        if judged.kind == BOXES and (kept := _boxes(spec, judged, wanted, found)):
            return kept
        return _numbers(spec, judged, wanted, found)

    def level(self, found: Arrays, labels: Array | None) -> float:
        """One number for outputs under corruption, 0 to 1: of the labelled output, else of the worst, by its measure.

        Args:
            found: Outputs on all samples.
            labels: Unused: the evaluation has them.
        """
        del labels
        specs = [spec for spec in self.outputs if self.kinds[spec.name].labelled] or list(self.outputs)
        values = [
            q.value for spec in specs for q in self.judge(spec, found[spec.name])
            if q.value is not None and not (q.kind == CLASSES and q.column is not None)
        ]  # fmt: skip
        return max(0.0, min(values, default=0.0))


def _quality(
    spec: TensorSpec,
    judged: Judged,
    measure: str,
    value: float | None,
    original: float | None,
    loss: float,
    *,
    column: int | None = None,
    against: str = "original",
    constant: bool = False,
) -> Quality:
    loss = min(loss, MOST_LOSS) if np.isfinite(loss) else loss
    return Quality(
        output=spec.name, column=column, kind=judged.kind, measure=measure, against=against, value=value,
        original=original, loss=loss, constant=constant,
    )  # fmt: skip


def _classes(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array | None) -> list[Quality]:
    before, after = chosen(wanted, judged), chosen(found, judged)
    if y is None and wanted.dtype.kind == "f" and bool((before == before.flat[0]).all()):
        return _numbers(spec, judged, wanted, found)  # the same class for all samples: to agree on it says nothing
    truth = before if y is None else y.reshape(before.shape)
    share, original = float((after == truth).mean()), float((before == truth).mean())
    measure, against = (AGREEMENT, "original") if y is None else (ACCURACY, "labels")
    found_ = [_quality(spec, judged, measure, share, original, 100 * (original - share), against=against)]
    for label, (count, had, has) in _by_class(truth, before, after).items():
        if _is_lost(count, had, has):
            found_.append(
                _quality(spec, judged, measure, has / count, had / count, 100 * (had - has) / count, column=label,
                         against=against)
            )  # fmt: skip
    return found_


def _answers(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array | None) -> list[Quality]:
    """Yes or no, each column at its threshold; those with one answer for all samples as numbers."""
    before, after = (in_columns(array, judged.axis) > judged.threshold for array in (wanted, found))
    truth = before if y is None else in_columns(y, judged.axis) > 0.5
    measure, against = (AGREEMENT, "original") if y is None else (ACCURACY, "labels")
    as_numbers = _numbers(spec, judged, wanted, found)
    qualities = []
    for i in range(before.shape[1]):
        if bool((truth[:, i] == truth[0, i]).all()) and bool((before[:, i] == truth[0, i]).all()):
            qualities.append(as_numbers[i])
            continue
        share, original = (float((answers[:, i] == truth[:, i]).mean()) for answers in (after, before))
        rare = [
            100 * (had - has) / count
            for count, had, has in _by_class(truth[:, i], before[:, i], after[:, i]).values()
            if _is_lost(count, had, has)
        ]
        loss = max([100 * (original - share), *rare])
        column = i if before.shape[1] > 1 else None
        qualities.append(_quality(spec, judged, measure, share, original, loss, column=column, against=against))
    return qualities


def _equal(spec: TensorSpec, judged: Judged, wanted: Array, found: Array) -> list[Quality]:
    """Integers and booleans."""
    one, other = in_columns(wanted, judged.axis), in_columns(found, judged.axis)
    qualities = []
    for i in range(one.shape[1]):
        share = float((one[:, i] == other[:, i]).mean())
        constant = bool((one[:, i] == one[0, i]).all())
        rare = [
            100 * (had - has) / count
            for count, had, has in _by_class(one[:, i], one[:, i], other[:, i]).values()
            if _is_lost(count, had, has)
        ]
        qualities.append(
            _quality(spec, judged, EQUAL, None if constant else share, None if constant else 1.0,
                     max([100 * (1 - share), *rare]), column=i if one.shape[1] > 1 else None, constant=constant)
        )  # fmt: skip
    return qualities


def _targets(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array) -> list[Quality]:
    """Quantities by their targets; against the original where these say nothing, or the original nothing of them."""
    before, after = compare(y, wanted, judged.axis), compare(y, found, judged.axis)
    plain = _numbers(spec, judged, wanted, found)
    many = len(plain) > 1
    return [
        plain[i]
        if before.constant[i] or plain[i].constant or not before.r2[i] > 0
        else _quality(
            spec, judged, R2, float(after.r2[i]), float(before.r2[i]), 100 * float(before.r2[i] - after.r2[i]),
            column=i if many else None, against="labels",
        )
        for i in range(len(plain))
    ]  # fmt: skip


def _vectors(spec: TensorSpec, judged: Judged, wanted: Array, found: Array) -> list[Quality]:
    if compare(wanted, found, judged.axis).constant.all():
        return _numbers(spec, judged, wanted, found)
    similar = cosines(wanted, found)
    mean, low = float(similar.mean()), float(np.percentile(similar, _WORST_PERCENT))
    loss = 100 * max(1 - mean, _WORST_WEIGHT * (1 - low))
    return [_quality(spec, judged, COSINE, mean, 1.0, loss)]


def _boxes(spec: TensorSpec, judged: Judged, wanted: Array, found: Array) -> list[Quality]:
    one, other = (in_columns(array, judged.axis).astype(np.float64) for array in (wanted, found))
    shares = overlaps(one, other)
    if shares is None or compare(wanted, found, judged.axis).constant.all():
        return []
    kept = float((shares >= _KEPT_OVERLAP).mean())
    return [_quality(spec, judged, BOXES_KEPT, kept, 1.0, 100 * (1 - kept))]


def _numbers(spec: TensorSpec, judged: Judged, wanted: Array, found: Array) -> list[Quality]:
    """Column by column: R² of quantities, else correlation, and of scores the error on their common scale."""
    columns = compare(wanted, found, judged.axis)
    low, high = float(wanted.min()), float(wanted.max())
    scale = 1.0 if low >= 0 and high <= 1 else high - low
    return [_number(spec, judged, columns, i, scale) for i in range(len(columns.r2))]


def _number(spec: TensorSpec, judged: Judged, columns: Columns, i: int, scale: float) -> Quality:
    column = i if len(columns.r2) > 1 else None
    measure = R2 if judged.kind == QUANTITIES else CORRELATION
    if columns.constant[i]:
        loss = 0.0 if columns.kept[i] else MOST_LOSS
        return _quality(spec, judged, measure, None, None, loss, column=column, constant=True)
    r2, correlation = float(columns.r2[i]), float(columns.correlation[i])
    if judged.kind == QUANTITIES:
        return _quality(spec, judged, R2, r2, 1.0, 100 * (1 - r2), column=column)
    # A correlation of c leaves, at best, a share of 1 - c^2 of the variance unexplained: about 2 (1 - c).
    loss = 100 * max(1 - correlation, (1 - r2) / 2)
    if judged.kind in (SCORES, YES_OR_NO):
        # Root mean square, so that one event in a thousand samples counts.
        error = float(columns.spread[i]) * float(np.sqrt(max(0.0, 1 - r2)))
        loss = min(loss, 100 * error / scale) if np.isfinite(error) and scale > 0 else loss
    return _quality(spec, judged, CORRELATION, correlation, 1.0, loss, column=column)


def chosen(array: Array, judged: Judged) -> Array:
    """The class of each row: the largest value's, or the integer itself."""
    if array.dtype.kind != "f":
        return array
    return np.asarray(array.argmax(axis=judged.axis))


def like(y: Array, array: Array, spec: TensorSpec) -> Array:
    """Targets, samples first, in the axes of an output."""
    assert spec.batch_axis is not None
    shape = np.moveaxis(array, spec.batch_axis, 0).shape
    return np.moveaxis(y.reshape(shape), 0, spec.batch_axis)


def _by_class(truth: Array, before: Array, after: Array) -> dict[int, tuple[int, int, int]]:
    """For each class its samples, and how many of them two programs get right."""
    labels, places = np.unique(truth, return_inverse=True)
    places = places.reshape(-1)
    counts = (np.bincount(places, right.reshape(-1), len(labels)) for right in (before == truth, after == truth))
    rows = zip(labels.tolist(), np.bincount(places, minlength=len(labels)), *counts, strict=True)
    return {int(label): (int(count), int(had), int(has)) for label, count, had, has in rows}


def _is_lost(count: int, had: int, has: int) -> bool:
    return had - has >= _LOST_LEAST and had - has > _LOST_SHARE * count


def confusion(evaluation: Evaluation, found: Arrays) -> Array | None:
    """``(n_classes, n_classes)`` samples by label and answer; None without labelled classes."""
    name, y = evaluation.classes, evaluation.samples.y
    if name is None or y is None or not evaluation.kinds[name].labelled:
        return None
    n_classes = evaluation.reference[name].shape[1]
    counts = np.bincount(y * n_classes + chosen(found[name], evaluation.kinds[name]), minlength=n_classes**2)
    table: Array = counts.reshape(n_classes, n_classes)
    return table


def latency_ms(run: Run, sample: Arrays, budget_s: float = 0.1) -> float:
    """Median time of one sample in this process, after warming up; for programs that are no ONNX files."""
    for _ in range(3):
        run(sample)
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while (start := time.perf_counter()) < end or len(times) < 5:
        run(sample)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def level_measure(evaluation: Evaluation) -> str:
    """By which measure `Evaluation.level` is: that of the output that decides there."""
    qualities = evaluation.deviation(evaluation.reference).qualities
    labelled = [q for q in qualities if evaluation.kinds[q.output].labelled]
    found = [q.measure for q in labelled or qualities if q.value is not None]
    return found[0] if len(set(found)) == 1 else "quality"
