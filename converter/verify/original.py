"""The model that everything is compared with: its preprocessing in front, its data, its outputs on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch import nn

from converter.data.samples import Samples, SampleStream
from converter.export.preprocessing import Preprocessing, preprocessing_onnx
from converter.graph.build import make_model, renamed
from converter.load.source import Source
from converter.plan import CLASSES, YES_OR_NO, ModelOptions
from converter.program.programs import has_batch, output_specs, outputs
from converter.program.tensors import Arrays, Run, batch_size, rows_not_finite, select
from converter.verify.axes import FreeAxis, Probe
from converter.verify.columns import compare, in_columns
from converter.verify.evidence import CONSTANT, Finding, chance_of_classes, chance_of_targets, one_class
from converter.verify.judging import chosen, like
from converter.verify.kinds import check_labels, endings_of, kinds_of
from converter.verify.measure import Evaluation
from converter.verify.training_range import out_of_range
from edge.contract.errors import ConversionError
from edge.contract.manifest import StatePair
from edge.contract.tensorspec import TensorSpec

# A program takes some ten seconds for so much; it is run on all samples for every candidate.
_MACS = 200_000_000_000
_LEAST_SAMPLES = 256
# Of random inputs more tell nothing new: they show whether a program is the same, not what it costs.
_RANDOM_MACS = 20_000_000_000
_LEAST_RANDOM = 16
_RANGE_SAMPLES = 64
# Samples with values that are not finite, of those that are calibrated on, that the model is run on.
_ODD_SAMPLES = 64


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Original:
    """See the module.

    Attributes:
        source: As it was loaded.
        preprocessing: What is put in front of it, or None.
        inputs: What device and data give, in front of the preprocessing.
        example: One sample of that.
        axes: Its free axes but the batch axis, with the sizes that the model takes.
        outputs: What the model gives.
        run: Preprocessing and model.
        stream: Calibration data, or None.
        calibration: Some of them.
        samples: What is measured on.
        real: False when these are random.
        origin: Where they come from, "" when they are random.
        class_names: Of the data, or of the checkpoint, or None.
        states: What of the outputs the next sample takes.
        findings: Why the samples cannot carry a claim, as far as they alone tell.
        notes: What was done with them, for the report.
    """

    source: Source
    preprocessing: Preprocessing | None
    inputs: tuple[TensorSpec, ...]
    example: Arrays
    axes: tuple[FreeAxis, ...]
    outputs: tuple[TensorSpec, ...]
    run: Run
    stream: SampleStream | None
    calibration: Samples | None
    samples: Samples
    real: bool
    origin: str
    class_names: tuple[str, ...] | None
    states: tuple[StatePair, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def data(self) -> str:
        """What is measured on, in words."""
        count = batch_size(self.samples.x, self.inputs)
        if self.real and not has_batch(self.inputs):
            return f"one whole input, of {self.origin}"
        return f"{count} sample{'' if count == 1 else 's'} of {self.origin}" if self.real else f"{count} random inputs"

    def affordable(self, macs: int) -> Original:
        """Measured on fewer samples, evenly spaced, where the model is so large that all would take minutes.

        Args:
            macs: Multiply-accumulate operations for one sample. A time would not give the same samples every time.
        """
        count = batch_size(self.samples.x, self.inputs)
        least, budget = (_LEAST_SAMPLES, _MACS) if self.real else (_LEAST_RANDOM, _RANDOM_MACS)
        most = max(least, budget // max(1, macs))
        if count <= most:
            return self
        rows, y = slice(0, count, -(-count // most)), self.samples.y
        return replace(self, samples=Samples(select(self.samples.x, self.inputs, rows), None if y is None else y[rows]))

    @property
    def module(self) -> nn.Module | None:
        """Preprocessing and model as one torch module; None for an ONNX model."""
        model = self.source.model
        if isinstance(model, onnx.ModelProto):
            return None
        return (
            model
            if self.preprocessing is None
            else _Behind(self.preprocessing.module(self.source.inputs[0]), model).eval()
        )

    @property
    def probe(self) -> Probe:
        """The model, to be run at other sizes."""
        return Probe(run=self.run, inputs=self.inputs, example=self.example)

    def noted(self, *notes: str) -> Original:
        """With notes for the report."""
        return replace(self, source=replace(self.source, notes=(*self.source.notes, *notes)))

    def with_fixed(self, why: Mapping[str, str], given: ModelOptions) -> Original:
        """The same model with some of its free axes fixed at the sizes of the example.

        Args:
            why: What is to be said of each, by name.
            given: Says where these sizes come from.

        Raises:
            ConversionError: Nobody stated such a size, or the data have others.
        """
        if not why:
            return self
        sizes = {axis.name: axis.size for axis in self.axes if axis.name in why}
        stated = {axis for option in given.inputs for axis in option.sizes}
        for axis, size in sizes.items():
            spec = next(spec for spec in self.inputs if axis in spec.shape)
            if self.origin == "" and given.example is None and axis not in stated:
                raise ConversionError(
                    f"{why[axis]}; no other exporter kept {axis} free, and a size to fix it at was not stated. Give "
                    f"one, with a number in place of {axis}: --input "
                    f"{spec.name}={','.join('SIZE' if a == axis else str(a) for a in spec.shape)}"
                )
            for samples in (self.samples, self.calibration):
                found = size if samples is None else samples.x[spec.name].shape[spec.shape.index(axis)]
                if found != size:
                    raise ConversionError(f"{why[axis]}; it cannot be fixed, as the data have {size} and {found}")

        def fixed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(s, shape=tuple(sizes.get(str(a), a) for a in s.shape)) for s in specs)

        inputs = fixed(self.inputs)
        axes = tuple(axis for axis in self.axes if axis.name not in why)
        notes = tuple(f"the axis {axis} is fixed at {size}: {why[axis]}" for axis, size in sizes.items())
        return replace(
            self,
            source=replace(self.source, inputs=fixed(self.source.inputs), notes=(*self.source.notes, *notes)),
            inputs=inputs,
            axes=axes,
            outputs=output_specs(self.run, inputs, self.example, {axis.name: axis.other for axis in axes}),
        )

    def evaluation(self, exported: onnx.ModelProto, said: Mapping[str, str]) -> Evaluation:
        """What to compare programs on.

        Args:
            exported: The model as a graph, whose end says what an output is.
            said: What the user said outputs are.

        Raises:
            ConversionError: The model's own outputs are not finite.
            ConfigError: Labels and outputs do not belong together, or what the user said is none of them.
        """
        reference = outputs(self.run, self.samples.x, self.inputs, self.outputs)
        self._check_finite(self.samples.x, reference, self.data)
        if self.calibration is not None and not self.source.carried:
            x = self.calibration.x
            odd = np.unique(np.concatenate([rows_not_finite(x[spec.name], spec) for spec in self.inputs]))
            if len(odd):
                few = select(x, self.inputs, odd[:_ODD_SAMPLES])
                made = outputs(self.run, few, self.inputs, self.outputs)
                self._check_finite(few, made, f"{len(odd)} samples calibrated on")
        y = self.samples.y
        kinds = kinds_of(
            self.outputs,
            reference,
            y,
            said=said,
            class_names=self.class_names,
            endings=endings_of(exported),
            inputs=self.inputs,
        )
        found = Evaluation(
            samples=self.samples,
            real=self.real,
            inputs=self.inputs,
            outputs=self.outputs,
            reference=reference,
            kinds=kinds,
        )
        labels = None if self.calibration is None else self.calibration.y
        if found.classes is not None and labels is not None and labels.dtype.kind in "iu":
            check_labels(labels, reference[found.classes].shape[1], self.class_names)
        return found

    def _check_finite(self, x: Arrays, found: Arrays, data: str) -> None:
        """Raise ConversionError where an output is not; of a model that is carried as it is, a mask may be infinite."""
        for spec in () if self.source.carried else self.outputs:
            if bad := len(rows_not_finite(found[spec.name], spec)):
                given = [name for name, array in x.items() if not np.isfinite(array).all()]
                raise ConversionError(
                    f"{spec.name} has values that are not finite on {bad} of {data}: "
                    + (
                        f"{given[0]} has some, too; remove those samples"
                        if given
                        else "a mask needs a large number, such as -1e4, in the place of infinity"
                    )
                )

    def examined(self, evaluation: Evaluation) -> Evaluation:
        """The same comparison with everything that is wrong with its samples."""
        if not self.real:
            return evaluation
        found: list[Finding | None] = [*self.findings, _chance(evaluation)]
        if not self.findings and all(q.constant for q in evaluation.deviation(evaluation.reference).qualities):
            text = "every output has the same value for all samples: what is measured on them says nothing"
            found.append(Finding(what=CONSTANT, text=text))
        few = select(self.samples.x, self.inputs, slice(0, _RANGE_SAMPLES))
        model = self.source.model
        behind = with_preprocessing(model, self) if isinstance(model, onnx.ModelProto) else self.module
        assert behind is not None
        found.append(out_of_range(behind, self.inputs, few))
        return replace(evaluation, findings=tuple(finding for finding in found if finding is not None))


class _Behind(nn.Module):
    """A model behind its preprocessing."""

    def __init__(self, preprocessing: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.model(self.preprocessing(inputs[0]), *inputs[1:])


def _chance(evaluation: Evaluation) -> Finding | None:
    """Whether the original gets the labels by chance, or would whatever it did."""
    y = evaluation.samples.y
    spec = next((s for s in evaluation.outputs if evaluation.kinds[s.name].labelled), None)
    if y is None or spec is None:
        return None
    judged, wanted = evaluation.kinds[spec.name], evaluation.reference[spec.name]
    if judged.kind == CLASSES:
        return one_class(y.reshape(-1)) or chance_of_classes(y.reshape(-1), chosen(wanted, judged).reshape(-1))
    targets = like(y, wanted, spec)
    if judged.kind == YES_OR_NO:
        columns = zip(in_columns(targets, judged.axis).T, in_columns(wanted, judged.axis).T, strict=True)
        each = [chance_of_classes(true > 0.5, given > judged.threshold) for true, given in columns]
        return each[0] if all(each) else None
    found = compare(targets, wanted, judged.axis)
    known = np.flatnonzero(~found.constant)
    names = [f"{spec.name}[{i}]" if len(found.r2) > 1 else spec.name for i in known]
    return chance_of_targets(found.r2[known], names, len(y))


def with_preprocessing(model: onnx.ModelProto, original: Original) -> onnx.ModelProto:
    """The exported model behind its preprocessing, as one graph."""
    if original.preprocessing is None:
        return model
    first = original.source.inputs[0]
    front = preprocessing_onnx(original.preprocessing, first).graph
    found = make_model(
        "model",
        [*front.node, *(renamed(node, {first.name: front.output[0].name}) for node in model.graph.node)],
        [*front.input, *(info for info in model.graph.input if info.name != first.name)],
        list(model.graph.output),
        [*front.initializer, *model.graph.initializer],
    )
    if original.source.one_run is not None:
        original.source.one_run.state(found, {})
    return found
