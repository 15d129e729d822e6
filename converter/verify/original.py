"""The model that everything is compared with: loaded, its preprocessing in front, its data, its outputs on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
import torch
from torch import nn

from converter.data.holdout import LEAST_SAMPLES, different, halves
from converter.data.samples import Samples, SampleStream
from converter.data.stream import open_samples
from converter.data.streams import open_remembered, remembered
from converter.data.subset import random_samples, subset
from converter.export.preprocessing import Preprocessing, parse_preprocessing, preprocessing_onnx
from converter.graph.build import make_model, renamed
from converter.load.constants import constants_in
from converter.load.inputs import Given, check_can_be_made_up, samples_given
from converter.load.load import load_source
from converter.load.source import Source
from converter.load.states import find_states, may_be_states
from converter.plan import CLASSES, YES_OR_NO, ConversionPlan
from converter.program.programs import (
    onnx_file_program,
    onnx_program,
    output_shapes,
    output_specs,
    outputs,
    torch_program,
)
from converter.program.tensors import Array, Arrays, Run, batch_size, select
from converter.verify.axes import FreeAxis, Probe, free_axes
from converter.verify.columns import compare, in_columns
from converter.verify.evidence import (
    CONSTANT,
    FEW,
    REPEATED,
    ZERO,
    Finding,
    chance_of_classes,
    chance_of_targets,
)
from converter.verify.kinds import check_labels, endings_of, kinds_of
from converter.verify.measure import Evaluation, chosen, like
from converter.verify.training_range import out_of_range
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.manifest import StatePair, check_class_names
from edge.contract.tensorspec import BATCH, DTYPES, TensorSpec, axis_name
from edge.inference.streams import zeros

EVALUATION_SAMPLES = 2000
CALIBRATION_SAMPLES = 512
_LEAST_MEASURED = LEAST_SAMPLES // 2
RANDOM_SAMPLES = 256
# Samples in memory; a stream may be as long as it likes.
MAX_BYTES = 96 << 20
# A program takes some ten seconds for so much; it is run on all samples for every candidate.
_MACS = 200_000_000_000
_LEAST_SAMPLES = 256
_FREE_SIZE = 64
_CARRIED_SAMPLES = 4
_RANGE_SAMPLES = 64


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
        return f"{count} samples of {self.origin}" if self.real else f"{count} random inputs"

    def affordable(self, macs: int) -> Original:
        """Measured on fewer samples, evenly spaced, where the model is so large that all would take minutes.

        Args:
            macs: Multiply-accumulate operations for one sample. A time would not give the same samples every time.
        """
        count = batch_size(self.samples.x, self.inputs)
        most = max(_LEAST_SAMPLES, _MACS // max(1, macs))
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

    def with_fixed(self, why: Mapping[str, str], plan: ConversionPlan) -> Original:
        """The same model with some of its free axes fixed at the sizes of the example.

        Args:
            why: What is to be said of each, by name.
            plan: Says where these sizes come from.

        Raises:
            ConversionError: Nobody stated such a size, or the data have others.
        """
        if not why:
            return self
        sizes = {axis.name: axis.size for axis in self.axes if axis.name in why}
        stated = {axis for option in plan.inputs for axis in option.sizes}
        for axis, size in sizes.items():
            spec = next(spec for spec in self.inputs if axis in spec.shape)
            if self.origin == "" and plan.example is None and axis not in stated:
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
        for spec in self.outputs:
            if self.source.carried:  # as it is: a mask may be infinite
                break
            if spec.dtype.startswith("float") and not np.isfinite(reference[spec.name]).all():
                raise ConversionError(f"the model gives a {spec.name} that is not finite on {self.data}")
        y = self.samples.y
        kinds = kinds_of(
            self.outputs, reference, y, said=said, class_names=self.class_names, endings=endings_of(exported)
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
            check_labels(labels, reference[found.classes].shape[1])
        return found

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
    """Whether the original gets the labels by chance."""
    y = evaluation.samples.y
    spec = next((s for s in evaluation.outputs if evaluation.kinds[s.name].labelled), None)
    if y is None or spec is None:
        return None
    judged, wanted = evaluation.kinds[spec.name], evaluation.reference[spec.name]
    if judged.kind == CLASSES:
        return chance_of_classes(y.reshape(-1), chosen(wanted, judged).reshape(-1))
    targets = like(y, wanted, spec)
    if judged.kind == YES_OR_NO:
        columns = zip(in_columns(targets, judged.axis).T, in_columns(wanted, judged.axis).T, strict=True)
        each = [chance_of_classes(true > 0.5, given > judged.threshold) for true, given in columns]
        return each[0] if all(each) else None
    found = compare(targets, wanted, judged.axis)
    known = np.flatnonzero(~found.constant)
    names = [f"{spec.name}[{i}]" if len(found.r2) > 1 else spec.name for i in known]
    return chance_of_targets(found.r2[known], names, len(y))


def load_original(plan: ConversionPlan, carried: str = "") -> Original:
    """Load the model and its data; after this it runs on them.

    Args:
        plan: What to do.
        carried: Why an ONNX model is to be carried as its file has it; "" to work on it.

    Raises:
        ConfigError: An option or a file of samples is wrong or does not fit the model.
        ConversionError: The model cannot be loaded or does not run.
    """
    preprocessing = None if plan.preprocess is None else parse_preprocessing(plan.preprocess)
    source = load_source(Given(plan=plan, real=partial(_real, plan, preprocessing)), carried)
    _check_types(source)
    inputs, example = source.inputs, source.example
    if preprocessing is not None:
        inputs = (preprocessing.raw_input(inputs[0]), *inputs[1:])
        example = _first(plan, inputs, 1) or _raw(source, inputs[0])
    run = _carried_program(source, plan) if carried else _runner(source, preprocessing)
    axes: tuple[FreeAxis, ...] = ()
    if carried:
        specs = carried_outputs(source, run)
    else:
        multiples = {axis: step for option in plan.inputs for axis, step in option.multiples.items()}
        axes = free_axes(Probe(run=run, inputs=inputs, example=example), multiples)
        if any(sizes.most is not None for sizes in source.ranges.values()):
            axes = tuple(axis if axis.range.most is not None else axis.only_tried() for axis in axes)
        specs = output_specs(run, inputs, example, {axis.name: axis.other for axis in axes})
    only = {axis.name for axis in axes if axis.range.most == axis.range.least}
    states = find_states(plan.states, inputs, specs, plan.answer)
    stream = None
    if plan.calibration is not None:
        stream = open_remembered(plan.calibration, "--calibrate", inputs, states, run)
    elif source.samples is not None:
        stream = remembered(source.samples, "the checkpoint's calibration data", inputs, states, run)
    measured = stream
    if plan.evaluation is not None:
        measured = open_remembered(plan.evaluation, "--evaluate", inputs, states, run)
    data = None
    if measured is not None:
        data = _divided(stream, measured if plan.evaluation is not None else None, inputs)
        samples = data.samples
        if plan.loss == "auto" and YES_OR_NO not in plan.kinds.values():
            _check_not_one_hot(samples.y, data.origin)
    elif source.fill is not None:
        samples = Samples(source.fill.draw(_CARRIED_SAMPLES * (source.batch or 1)), None)
    else:
        shown = example
        if plan.example is None:
            check_can_be_made_up(inputs if preprocessing is None else inputs[1:])
        else:
            shown = _first(plan, inputs, RANDOM_SAMPLES) or example
        samples = random_samples(inputs, shown, RANDOM_SAMPLES, real=plan.example is not None)
    names = plan.class_names or source.class_names or (None if measured is None else measured.class_names)
    try:
        check_class_names(names or ())
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    original = Original(
        source=source,
        preprocessing=preprocessing,
        inputs=inputs,
        example=example,
        axes=axes,
        outputs=specs,
        run=run,
        stream=stream,
        calibration=None if data is None else data.calibration,
        samples=samples,
        real=data is not None,
        origin="" if data is None else data.origin,
        class_names=names,
        states=states,
        findings=() if data is None else data.findings,
        notes=() if data is None else data.notes,
    )
    return original.with_fixed({axis: f"the model takes no other size of {axis}" for axis in only}, plan)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Data:
    """Samples to calibrate on and to measure on, and what is to be said of them."""

    calibration: Samples | None
    samples: Samples
    origin: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def _divided(stream: SampleStream | None, evaluation: SampleStream | None, inputs: tuple[TensorSpec, ...]) -> _Data:
    """What to calibrate on, and what to measure on: other samples where there are enough."""
    notes: list[str] = []
    pool = None if stream is None else subset(
        stream, inputs, max_samples=CALIBRATION_SAMPLES + (EVALUATION_SAMPLES if evaluation is None else 0),
        max_bytes=MAX_BYTES * (2 if evaluation is None else 1),
    )  # fmt: skip
    if evaluation is not None:
        given = subset(evaluation, inputs, max_samples=EVALUATION_SAMPLES, max_bytes=MAX_BYTES)
        others = different(given, inputs, without=pool)
        before, after = batch_size(given.x, inputs), batch_size(others.x, inputs)
        if after < before:
            notes.append(
                f"{before - after} of {before} samples of --evaluate are repeated or among those to calibrate on, and "
                f"were left out"
            )
        if after or pool is None:
            text = (
                f"{after} samples to measure on, of {_LEAST_MEASURED} at least: what quantization costs cannot be known"
            )
            findings = () if after >= _LEAST_MEASURED else (Finding(what=FEW, text=text),)
            return _Data(
                calibration=pool, samples=others, origin=evaluation.origin, findings=findings, notes=tuple(notes)
            )
    assert pool is not None
    assert stream is not None
    count, once = batch_size(pool.x, inputs), different(pool, inputs)
    n_different = batch_size(once.x, inputs)
    findings_ = []
    if all(not np.any(pool.x[spec.name]) for spec in inputs):
        findings_.append(Finding(what=ZERO, text=f"all samples of {stream.origin} are zero"))
    elif n_different < count and n_different < LEAST_SAMPLES:
        text = f"of {count} samples of {stream.origin} {n_different} {'is' if n_different == 1 else 'are'} different"
        findings_.append(Finding(what=REPEATED, text=text))
    if n_different < LEAST_SAMPLES:
        findings_.append(_few(n_different))
        return _Data(
            calibration=once, samples=once, origin=stream.origin, findings=tuple(findings_), notes=tuple(notes)
        )
    if n_different < count:
        notes.append(f"{count - n_different} of {count} samples of {stream.origin} are repeated and count once")
    split = halves(once, inputs, most_calibration=CALIBRATION_SAMPLES)
    return _Data(
        calibration=split.calibration,
        samples=split.measured,
        origin=f"{stream.origin}, held out of {n_different}",
        findings=tuple(findings_),
        notes=tuple(notes),
    )


def _few(count: int) -> Finding:
    return Finding(
        what=FEW,
        text=f"{count} different sample{'' if count == 1 else 's'}: {LEAST_SAMPLES} are the least to calibrate on one "
        f"half and to measure on the other, so what quantization costs cannot be known",
    )


def _check_not_one_hot(y: Array | None, origin: str) -> None:
    """Raise ConfigError for float targets that look like one-hot classes: yes-or-no answers are judged otherwise."""
    if y is None or y.dtype.kind != "f" or y.ndim != 2 or y.shape[1] < 2 or not len(y):
        return
    if bool(np.isin(y, (0.0, 1.0)).all()) and bool((y.sum(axis=1) == 1.0).all()):
        raise ConfigError(
            f"{origin}: each y is one 1 among {y.shape[1] - 1} 0, as one-hot classes are: give class numbers "
            f"(y.argmax(axis=1)), or --loss binary-cross-entropy where they are answers of their own"
        )


def _carried_program(source: Source, plan: ConversionPlan) -> Run:
    assert isinstance(source.model, onnx.ModelProto)
    return onnx_file_program(plan.source, constants_in(source.model, plan.constants))


def _first(plan: ConversionPlan, inputs: tuple[TensorSpec, ...], count: int) -> Arrays | None:
    """At most so many of the first real samples that the user gave, None without data."""
    for option, value in samples_given(plan):
        try:
            return next(iter(open_samples(value, option, inputs).batches(count))).x
        except ConfigError:
            states = may_be_states(plan.states, inputs)  # which data need not have
            if not 0 < len(states) < len(inputs):
                raise
            given = [spec for spec in inputs if spec not in states]
            x = next(iter(open_samples(value, option, given).batches(count))).x
            return {**x, **{spec.name: zeros(spec, batch_size(x, given)) for spec in states}}
    return None


def _real(
    plan: ConversionPlan, preprocessing: Preprocessing | None, inputs: tuple[TensorSpec, ...], count: int
) -> Arrays | None:
    """The same, as the model takes them, behind the preprocessing."""
    if preprocessing is None:
        return _first(plan, inputs, count)
    found = _first(plan, (preprocessing.raw_input(inputs[0]), *inputs[1:]), count)
    if found is not None:
        name = inputs[0].name
        with torch.inference_mode():
            found[name] = preprocessing.module(inputs[0])(
                torch.from_numpy(np.require(found[name], requirements=["C", "W"]))
            ).numpy()
    return found


def _raw(source: Source, raw: TensorSpec) -> Arrays:
    """The source's example with made-up values in front of the preprocessing."""
    own = source.inputs[0]
    sizes = {axis: source.example[own.name].shape[i] for i, axis in enumerate(own.shape)}
    shape = tuple(size if isinstance(size, int) else sizes.get(size, _FREE_SIZE) for size in raw.shape)
    rng = np.random.default_rng(0)
    made = rng.standard_normal(shape) if raw.dtype.startswith("float") else rng.integers(0, 256, shape)
    return {**source.example, raw.name: made.astype(raw.dtype)}


def carried_outputs(source: Source, run: Run) -> tuple[TensorSpec, ...]:
    """Names, types and axes of what a carried model gives: as onnxruntime infers them, else free.

    Raises:
        ConversionError: An output is of a type that a bundle cannot state.
    """
    assert isinstance(source.model, onnx.ModelProto)
    assert source.fill is not None
    stated = output_shapes(source.model)
    one, few = run(source.fill.draw()), run(source.fill.draw(3 * (source.batch or 1), seed=1))
    specs = []
    for name, array in one.items():
        if str(array.dtype) not in DTYPES:
            raise ConversionError(f"the output {name} is {array.dtype}, expected one of {', '.join(DTYPES)}")
        axes: list[int | str] = []
        for i, size in enumerate(array.shape):
            is_batch = i == 0 and source.fill.has_batch
            known = i < len(stated[name]) and stated[name][i] == size == few[name].shape[i]
            axes.append(BATCH if is_batch else size if known else axis_name("", name, i))
        specs.append(TensorSpec(name=name, dtype=str(array.dtype), shape=tuple(axes)))
    return tuple(specs)


def _check_types(source: Source) -> None:
    if isinstance(source.model, onnx.ModelProto):
        return
    odd = {str(value.dtype) for value in source.model.parameters() if value.dtype not in (torch.float32, torch.int64)}
    if odd:
        raise ConversionError(f"parameters of the type {', '.join(sorted(odd))}; call model.float() before saving it")


def _runner(source: Source, preprocessing: Preprocessing | None) -> Run:
    if isinstance(source.model, onnx.ModelProto):
        model = onnx_program(source.model, "the model")
    else:
        program = torch_program(source.model, source.inputs, source.output_names)

        def model(batch: Mapping[str, Array]) -> Arrays:
            source.check_sizes(batch)
            return program(batch)

    if preprocessing is None:
        return model
    module = preprocessing.module(source.inputs[0])

    def run(batch: Arrays) -> Arrays:
        name = source.inputs[0].name
        with torch.inference_mode():
            prepared = module(torch.from_numpy(np.ascontiguousarray(batch[name])))
        return model({**batch, name: prepared.numpy()})

    return run  # type: ignore[return-value]


def with_preprocessing(model: onnx.ModelProto, original: Original) -> onnx.ModelProto:
    """The exported model behind its preprocessing, as one graph."""
    if original.preprocessing is None:
        return model
    first = original.source.inputs[0]
    front = preprocessing_onnx(original.preprocessing, first).graph
    return make_model(
        "model",
        [*front.node, *(renamed(node, {first.name: front.output[0].name}) for node in model.graph.node)],
        [*front.input, *(info for info in model.graph.input if info.name != first.name)],
        list(model.graph.output),
        [*front.initializer, *model.graph.initializer],
    )
