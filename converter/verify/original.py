"""The model that everything is compared with: loaded, its preprocessing in front, its data, its outputs on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
import torch
from torch import nn

from converter.data.samples import Samples, SampleStream
from converter.data.stream import open_samples
from converter.data.streams import open_remembered
from converter.data.subset import InMemory, random_samples, subset
from converter.export.preprocessing import Preprocessing, parse_preprocessing, preprocessing_onnx
from converter.graph.build import make_model, renamed
from converter.load.inputs import Given, check_can_be_made_up, samples_given
from converter.load.load import load_source
from converter.load.source import Source
from converter.load.states import find_states, may_be_states
from converter.plan import ConversionPlan
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
from converter.verify.measure import Evaluation, classifying_output
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.manifest import StatePair
from edge.contract.tensorspec import BATCH, DTYPES, TensorSpec, axis_name
from edge.inference.streams import zeros

EVALUATION_SAMPLES = 2000
CALIBRATION_SAMPLES = 512
RANDOM_SAMPLES = 256
# Samples in memory; a stream may be as long as it likes.
MAX_BYTES = 96 << 20
# A program takes some ten seconds for so much; it is run on all samples for every candidate.
_MACS = 200_000_000_000
_LEAST_SAMPLES = 256
_FREE_SIZE = 64
_CARRIED_SAMPLES = 4


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

    def evaluation(self) -> Evaluation:
        """What to compare programs on.

        Raises:
            ConversionError: The model's own outputs are not finite.
            ConfigError: Labels and outputs do not belong together.
        """
        y = self.samples.y
        classes = None if y is not None and y.dtype.kind == "f" else classifying_output(self.outputs)
        if y is not None and y.dtype.kind != "f" and classes is None:
            classes = next((s.name for s in self.outputs if classifying_output([s])), None)
            if classes is None:
                raise ConfigError("the data have class numbers as y, but no output has one value for each class")
        reference = outputs(self.run, self.samples.x, self.inputs, self.outputs)
        for spec in self.outputs:
            if self.source.carried:  # as it is: a mask may be infinite
                break
            if spec.dtype.startswith("float") and not np.isfinite(reference[spec.name]).all():
                raise ConversionError(f"the model gives a {spec.name} that is not finite on {self.data}")
        found = Evaluation(
            samples=self.samples,
            real=self.real,
            inputs=self.inputs,
            outputs=self.outputs,
            reference=reference,
            classes=None,
        )
        return found if classes is None else self.with_classes(found, classes)

    def with_classes(self, evaluation: Evaluation, output: str) -> Evaluation:
        """The same comparison, where one output is known to have one logit for each class.

        Raises:
            ConfigError: There are labels that it has no logit for.
        """
        n_classes = evaluation.reference[output].shape[1]
        for labels in (self.samples.y, None if self.calibration is None else self.calibration.y):
            if labels is not None and labels.dtype.kind in "iu":
                _check_labels(labels, n_classes)
        return replace(evaluation, classes=output)


class _Behind(nn.Module):
    """A model behind its preprocessing."""

    def __init__(self, preprocessing: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.model(self.preprocessing(inputs[0]), *inputs[1:])


def _check_labels(labels: Array, n_classes: int) -> None:
    if not (labels.min() >= 0 and labels.max() < n_classes):
        raise ConfigError(
            f"labels from {labels.min()} to {labels.max()}, but the model has {n_classes} outputs: "
            f"expected 0 to {n_classes - 1}"
        )


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
    run = onnx_file_program(plan.source) if carried else _runner(source, preprocessing)
    axes: tuple[FreeAxis, ...] = ()
    if carried:
        specs = carried_outputs(source, run)
    else:
        multiples = {axis: step for option in plan.inputs for axis, step in option.multiples.items()}
        axes = free_axes(Probe(run=run, inputs=inputs, example=example), multiples)
        specs = output_specs(run, inputs, example, {axis.name: axis.other for axis in axes})
    only = {axis.name for axis in axes if axis.range.most == axis.range.least}
    states = find_states(plan.states, inputs, specs, plan.answer)
    stream = None
    if plan.calibration is not None:
        stream = open_remembered(plan.calibration, "--calibrate", inputs, states, run)
    elif source.samples is not None:
        stream = InMemory(source.samples, "the checkpoint's calibration data", inputs)
    calibration = None
    if stream is not None:
        calibration = subset(stream, inputs, max_samples=CALIBRATION_SAMPLES, max_bytes=MAX_BYTES)
    measured = stream
    if plan.evaluation is not None:
        measured = open_remembered(plan.evaluation, "--evaluate", inputs, states, run)
    if measured is not None:
        samples = subset(measured, inputs, max_samples=EVALUATION_SAMPLES, max_bytes=MAX_BYTES)
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
    original = Original(
        source=source,
        preprocessing=preprocessing,
        inputs=inputs,
        example=example,
        axes=axes,
        outputs=specs,
        run=run,
        stream=stream,
        calibration=calibration,
        samples=samples,
        real=measured is not None,
        origin="" if measured is None else measured.origin,
        class_names=names,
        states=states,
    )
    return original.with_fixed({axis: f"the model takes no other size of {axis}" for axis in only}, plan)


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
        model = torch_program(source.model, source.inputs, source.output_names)
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
