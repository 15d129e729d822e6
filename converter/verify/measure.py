"""Measuring: how much of the model a program keeps, and how fast it is. Every number in a report comes from here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from converter.data.samples import Samples
from converter.plan import CLASSES
from converter.program.programs import outputs
from converter.program.tensors import Array, Arrays, Run, batch_size, select
from converter.verify.columns import compare
from converter.verify.evidence import Finding
from converter.verify.expectation import ENOUGH, expected
from converter.verify.judging import chosen, judge
from converter.verify.kinds import Judged
from converter.verify.quality import Deviation, Quality
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import TensorSpec
from edge.inference.session import sqnr_db


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
        elsewhere: Where else programs are compared.
        least_margins: By output; an answer of the original that is ahead by less need not be kept.
    """

    samples: Samples
    real: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    reference: Arrays
    kinds: Mapping[str, Judged]
    findings: tuple[Finding, ...] = field(default=())
    elsewhere: tuple[Elsewhere, ...] = field(default=())
    least_margins: Mapping[str, float] = field(default_factory=dict)

    @property
    def classes(self) -> str | None:
        """Name of the output that holds one value for each class, or None."""
        names = [
            s.name for s in self.outputs
            if self.kinds[s.name].kind == CLASSES and self.reference[s.name].ndim == 2 and s.dtype.startswith("float")
        ]  # fmt: skip
        return next((name for name in names if self.kinds[name].labelled), names[0] if names else None)

    @property
    def count(self) -> int:
        """Of the samples; what a stream carries on is none of their arrays, but of what the original gives."""
        return batch_size(self.reference, self.outputs)

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
        """The comparison on some samples, and nowhere else."""
        y = self.samples.y
        samples = Samples(select(self.samples.x, self.inputs, rows), None if y is None else y[rows])
        return replace(self, samples=samples, reference=select(self.reference, self.outputs, rows), elsewhere=())

    def run(self, program: Run) -> Arrays:
        """A program's outputs on all samples."""
        return outputs(program, self.samples.x, self.inputs, self.outputs)

    def measured(self, program: Run, most_loss: float = float("inf")) -> Deviation:
        """Compare a program with the original on all samples and elsewhere.

        Args:
            program: It.
            most_loss: In points. One that loses more in one place is looked at in no other: that takes longest.

        Raises:
            ConversionError: It does not run.
        """
        given = self.run(program)
        found = replace(self.deviation(given), expected=self._expected(given))
        for one in self.elsewhere:
            if self.real and found.worst.loss > most_loss:
                break
            found = replace(found, elsewhere=(*found.elsewhere, one.deviation(program)))
        return found

    def deviation(self, found: Arrays) -> Deviation:
        """Compare outputs on all samples with the original's."""
        floats = [spec.name for spec in self.outputs if spec.dtype.startswith("float")]
        with np.errstate(invalid="ignore"):  # a carried model may give infinities where its file does
            errors = {name: float(np.abs(found[name] - self.reference[name]).max(initial=0.0)) for name in floats}
            ratios = [sqnr_db(self.reference[name], found[name]) for name in floats]
        scales = {name: float(np.abs(self.reference[name]).max(initial=0.0)) or 1.0 for name in floats}
        return Deviation(
            qualities=tuple(quality for spec in self.outputs for quality in self.judge(spec, found)),
            sqnr_db=min(ratios, default=200.0),
            max_error=max(errors.values(), default=0.0),
            relative_error=max((errors[name] / scales[name] for name in floats), default=0.0),
            column_db=min((self._column_db(name, found[name]) for name in floats), default=200.0),
            expected=self._expected(found),
        )

    def _expected(self, found: Arrays) -> tuple[Quality, ...]:
        """Of other samples, where these are too few to count on; not where they are no sample of anything."""
        if not self.real or self.count >= ENOUGH:
            return ()
        each = (
            expected(spec, self.kinds[spec.name], self.reference[spec.name], found[spec.name], self._labels(spec))
            for spec in self.outputs
            if np.isfinite(found[spec.name]).all() and np.isfinite(self.reference[spec.name]).all()
        )
        return tuple(quality for quality in each if quality is not None)

    def _labels(self, spec: TensorSpec) -> Array | None:
        return self.samples.y if self.kinds[spec.name].labelled and self.labels_hold else None

    def _column_db(self, name: str, found: Array) -> float:
        columns = compare(self.reference[name], found, self.kinds[name].axis)
        if not (columns.kept | ~columns.constant).all():
            return float("-inf")
        return float(columns.noise_db[~columns.constant].min(initial=200.0))

    def judge(self, spec: TensorSpec, found: Arrays) -> list[Quality]:
        """One output of a program, by what it is.

        Args:
            spec: Which.
            found: All outputs on all samples.
        """
        return judge(
            spec,
            self.kinds[spec.name],
            self.reference,
            found,
            self._labels(spec),
            self.least_margins.get(spec.name, 0.0),
        )

    def level(self, found: Arrays, labels: Array | None) -> float:
        """One number for outputs under corruption, 0 to 1: of the labelled output, else of the worst, by its measure.

        Args:
            found: Outputs on all samples.
            labels: Unused: the evaluation has them.
        """
        del labels
        specs = [spec for spec in self.outputs if self.kinds[spec.name].labelled] or list(self.outputs)
        values = [
            q.value for spec in specs for q in self.judge(spec, found)
            if q.value is not None and not (q.kind == CLASSES and q.column is not None)
        ]  # fmt: skip
        return max(0.0, min(values, default=0.0))


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Elsewhere:
    """Where else than on the samples as they are programs are compared.

    Attributes:
        where: At which sizes, or in what stream, in words that follow a name.
        evaluation: What the original gives there.
        run: What a program gives there.
    """

    where: str
    evaluation: Evaluation
    run: Callable[[Run], Arrays]

    def deviation(self, program: Run) -> Deviation:
        """How far a program is from the original there.

        Raises:
            ConversionError: It does not run there.
        """
        try:
            found = self.evaluation.deviation(self.run(program))
        except ConversionError as exc:
            raise ConversionError(f"{self.where}: {exc}") from exc
        return replace(found, qualities=tuple(replace(quality, at=self.where) for quality in found.qualities))


def confusion(evaluation: Evaluation, found: Arrays) -> Array | None:
    """``(n_classes, n_classes)`` samples by label and answer; None without labelled classes."""
    name, y = evaluation.classes, evaluation.samples.y
    if name is None or y is None or not evaluation.kinds[name].labelled:
        return None
    n_classes = evaluation.reference[name].shape[1]
    counts = np.bincount(y * n_classes + chosen(found[name], evaluation.kinds[name]), minlength=n_classes**2)
    table: Array = counts.reshape(n_classes, n_classes)
    return table


def times_as_long(run: Callable[[], object], other: Callable[[], object], budget_s: float) -> float:
    """How many times as long a run takes as another one: the median of pairs, each run after the other in this process.

    A machine that does other work, or a core that runs at two speeds, slows both.
    """
    for call in (run, other, run, other):
        call()
    ratios: list[float] = []
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end or len(ratios) < 5:
        start = time.perf_counter()
        run()
        between = time.perf_counter()
        other()
        ratios.append((between - start) / (time.perf_counter() - between))
    return float(np.median(ratios))


def level_measure(evaluation: Evaluation) -> str:
    """By which measure `Evaluation.level` is: that of the output that decides there."""
    qualities = evaluation.deviation(evaluation.reference).qualities
    labelled = [q for q in qualities if evaluation.kinds[q.output].labelled]
    found = [q.measure for q in labelled or qualities if q.value is not None]
    return found[0] if len(set(found)) == 1 else "quality"
