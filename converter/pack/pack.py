"""From verified parts to the members and the manifest of a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from converter.data.holdout import digests
from converter.head.fitting import training_statistics
from converter.head.known import KnownSamples
from converter.head.split import Head, SplitModel, with_layer_input
from converter.load.states import answer_of
from converter.plan import ANYTHING, CLASSES, SEQUENCES, YES_OR_NO, Constant
from converter.program.one_run import OneRun, one_feed, shares_scales
from converter.program.programs import one_run_program, onnx_program
from converter.program.tensors import Arrays, batch_size, rows_not_finite, select
from converter.quantization.saturation import multiplies_int8
from converter.search.candidates import Candidate
from converter.verify.axes import MIN_FLOAT_SQNR_DB, empty_axes
from converter.verify.checks import check_bundle
from converter.verify.measure import Evaluation
from converter.verify.original import Original
from edge import __version__
from edge.contract import manifest as m
from edge.contract import strictjson
from edge.contract.bundle import members_of
from edge.contract.errors import ConversionError
from edge.contract.manifest import HeadSpec, LearningTrial, Manifest, OutputKind, ParameterSpec
from edge.contract.profile import DeviceProfile
from edge.contract.projection import Projection, projected_length
from edge.contract.recipe import TrainingRecipe
from edge.contract.tensorspec import AxisRange
from edge.learning.closed_form import PRIOR_SAMPLES
from edge.learning.sgd import BATCH_RATE

_GOLDEN_SAMPLES = 16
_GOLDEN_BYTES = 1 << 19
# Statistics of more features are not shipped: they would be larger than most models (of 2048, 8 MiB).
MOST_FEATURES = 2048
# A device counts shipped statistics as so many samples, however many they are of: fewer would be believed too far.
LEAST_LEARNED = int(PRIOR_SAMPLES)
# How near a device must come to the golden outputs: its int8 sums are the same integers unless they saturate; fp16 and
# int4 kernels differ between CPUs in how they accumulate.
_GOLDEN_SQNR_DB = {"none": MIN_FLOAT_SQNR_DB, "int8": 25.0, "dynamic": 25.0, "fp16": 40.0, "int4": 25.0}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Parts:
    """What goes into a bundle, all of it verified.

    Attributes:
        original: The model and its data.
        evaluation: What was compared.
        parts: The split.
        training: The training step of the head, None without a head.
        chosen: What to ship.
        class_names: One for each logit; empty when nothing classifies.
        recipe: What the training step minimizes, and how.
        trial: How the head learned, None without a head.
        head_torchscript: The head as TorchScript, None when there is none.
        torchscript: The whole float model, None when there is none or no device would run it.
        target: The device that it is for.
        trainable: How the head was chosen.
        constants: What became part of the graph, by name.
        answer: Name of the output that is for people, None to find it.
    """

    original: Original
    evaluation: Evaluation
    parts: SplitModel
    training: onnx.ModelProto | None
    chosen: Candidate
    class_names: tuple[str, ...]
    recipe: TrainingRecipe
    trial: LearningTrial | None
    head_torchscript: bytes | None
    torchscript: bytes | None
    target: DeviceProfile
    trainable: str
    constants: Mapping[str, Constant]
    answer: str | None


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Packed:
    """A bundle in memory that a device would accept: `digest` is the one that it will have on disk."""

    manifest: Manifest
    blobs: Mapping[str, bytes]
    digest: str


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class LearningData:
    """What devices start learning from.

    Attributes:
        statistics: By name, see `converter.head.fitting.training_statistics`; None where the samples are too few.
        n_samples: Labelled samples behind them.
        n_different: So many of these are different, counted up to `LEAST_LEARNED`.
    """

    statistics: dict[str, npt.NDArray[np.float32]] | None
    n_samples: int
    n_different: int


def learning_data(parts: Parts) -> LearningData | None:
    """Statistics of all labelled calibration data for devices to start learning from; None where there can be none.

    Of what the last layer takes, and of the features where another linear layer takes those: see `HeadSpec`.
    """
    head, stream, calibration = parts.parts.head, parts.original.stream, parts.original.calibration
    if head is None or stream is None or calibration is None or calibration.y is None:
        return None
    if (calibration.y.dtype.kind in "iu") != parts.recipe.is_classifier:
        return None
    if any(finding.spoils_statistics for finding in parts.evaluation.findings):
        return None
    program = onnx_program(parts.chosen.model, "the model", parts.chosen.parameters)
    layers = onnx_program(with_layer_input(head), "the head", parts.chosen.parameters)
    layers_of = {"": head.linear} | ({} if head.is_linear else {m.OF_FEATURES: head.entry})
    prefixes = {
        prefix: layer.input
        for prefix, layer in layers_of.items()
        if layer is not None and head.parameters[layer.weight].shape[1] <= MOST_FEATURES
    }
    if not prefixes:
        return None

    seen: set[bytes] = set()
    known = KnownSamples()

    def labelled() -> Iterator[tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.float64]]]:
        for batch in stream.batches(64):
            assert batch.y is not None
            if len(seen) < LEAST_LEARNED:
                seen.update(digests(batch.x, parts.original.inputs))
            features = program(batch.x)[head.features.name]
            values = {head.features.name: features}
            if not head.is_linear:
                values |= layers(values)
            targets = np.eye(head.n_outputs)[batch.y] if parts.recipe.is_classifier else batch.y.astype(np.float64)
            rows = {prefix: values[name] for prefix, name in prefixes.items()}
            if parts.recipe.is_classifier:
                known.add(rows, batch.y)
            yield rows, targets.reshape(len(features), head.n_outputs)

    statistics, count = training_statistics(labelled())
    length = projection_of(head, parts.target)
    projection = (
        None
        if length is None or head.linear is None
        else Projection(head.parameters[head.linear.weight].shape[1], length)
    )
    statistics |= known.distances(statistics, head.n_outputs, projection)
    n_different = min(len(seen), LEAST_LEARNED)
    enough = n_different == LEAST_LEARNED
    return LearningData(statistics=statistics if enough else None, n_samples=count, n_different=n_different)


def pack(
    parts: Parts,
    name: str,
    report: dict[str, Any],
    statistics: dict[str, npt.NDArray[np.float32]] | None,
) -> Packed:
    """Build every member and the manifest, and open the result once as a device does.

    Args:
        parts: What goes in.
        name: Of the model, for people.
        report: What of the report is the same whenever the same model is converted.
        statistics: See `learning_data`.

    Raises:
        ConversionError: A device would refuse it, or it is too large for the target.
    """
    chosen, head = parts.chosen, parts.parts.head
    golden, outputs = _golden(parts)
    blobs = {
        m.MODEL: chosen.model.SerializeToString(deterministic=True),
        m.GOLDEN: _tensors(
            {m.GOLDEN_INPUT + name: array for name, array in golden.items()}
            | {m.GOLDEN_OUTPUT + spec.name: outputs[spec.name] for spec in parts.original.outputs}
        ),
        m.REPORT: strictjson.dumps(report),
    }
    if head is not None:
        assert parts.training is not None
        blobs |= {
            m.HEAD_INFER: with_layer_input(head).SerializeToString(deterministic=True),
            m.HEAD_TRAIN: parts.training.SerializeToString(deterministic=True),
            m.HEAD_PARAMETERS: _tensors(chosen.parameters),
        }
        if parts.head_torchscript is not None:
            blobs[m.HEAD_TORCHSCRIPT] = parts.head_torchscript
    if statistics is not None:
        blobs[m.STATISTICS] = _tensors(statistics)
    if parts.torchscript is not None:
        blobs[m.TORCHSCRIPT] = parts.torchscript
    source, how = parts.original.source, parts.original.source.one_run
    described = {} if parts.original.preprocessing is None else {"in_graph": parts.original.preprocessing.describe()}
    manifest = Manifest(
        name=name,
        inputs=parts.original.inputs if how is None else how.taken(parts.original.inputs),
        outputs=parts.original.outputs if how is None else how.taken(parts.original.outputs),
        class_names=parts.class_names,
        preprocessing={**source.preprocessing, **described},
        quantization=_quantization(chosen, parts.target),
        head=None if head is None else _head_spec(parts, head),
        golden_min_sqnr_db=_GOLDEN_SQNR_DB["int8" if multiplies_int8(chosen.model) else chosen.scheme],
        source_digest=source.digest,
        created_by=f"edgeloop {__version__}",
        members=members_of(blobs),
        carried=source.carried,
        fixed_batch=None if how is None else how.size,
        batch_axes={} if how is None else _elsewhere(how, parts.original),
        states=parts.original.states,
        answer=answer_of(
            parts.answer,
            None if head is None else head.output,
            parts.evaluation.classes,
            parts.original.outputs,
            parts.original.states,
        ),
        constants=constants_for_people(parts.constants),
        axes={axis: sizes for axis, sizes in _sizes(parts.original).items() if sizes != AxisRange()},
        kinds=_kinds(parts.evaluation),
    )
    size, most = sum(map(len, blobs.values())), parts.target.inference.max_bundle_mb << 20
    if size > most:
        raise ConversionError(
            f"the bundle would have {size >> 20} MiB, {parts.target.name} takes {most >> 20} MiB (max_bundle_mb)"
            + ("; leave the TorchScript out with --no-torchscript" if parts.torchscript is not None else "")
        )
    return Packed(manifest=manifest, blobs=blobs, digest=check_bundle(manifest, blobs))


def _kinds(evaluation: Evaluation) -> dict[str, OutputKind]:
    """What outputs are that are more than anything. Classes that all have values from 0 to 1 are probabilities."""
    found = {}
    for name, judged in evaluation.kinds.items():
        if judged.kind == ANYTHING:
            continue
        values = evaluation.reference[name]
        within = values.dtype.kind == "f" and bool(values.size) and values.min() >= 0 and values.max() <= 1
        found[name] = OutputKind(
            kind=judged.kind,
            axis=judged.axis if judged.kind in (CLASSES, SEQUENCES, YES_OR_NO) else None,
            threshold=judged.threshold if judged.kind == YES_OR_NO else 0.0,
            probabilities=bool(within) if judged.kind == CLASSES else judged.kind == YES_OR_NO and judged.threshold > 0,
        )
    return found


def _sizes(original: Original) -> dict[str, AxisRange]:
    """Of free axes, as far as they were tried; of a model that is carried, that samples of it were empty."""
    empty = dict.fromkeys(empty_axes(original.inputs, original.samples.x), AxisRange(least=0))
    return {**empty, **{axis.name: axis.range for axis in original.axes}}


def _elsewhere(how: OneRun, original: Original) -> dict[str, int | None]:
    """By input and output, where its samples lie, if not along its first axis; None for what has no such axis."""
    axes = {spec.name: how.axes.get(spec.name) for spec in (*original.inputs, *original.outputs)}
    return {name: axis for name, axis in axes.items() if axis != 0}


def constants_for_people(constants: Mapping[str, Constant]) -> dict[str, Any]:
    """The values as JSON has them; others, such as bytes and infinities, as Python writes them.

    >>> constants_for_people({"size": Constant(value=(2, 3)), "limit": Constant(value=float("inf"))})
    {'size': [2, 3], 'limit': 'inf'}
    """
    found: dict[str, Any] = {}
    for name, constant in constants.items():
        try:
            found[name] = json.loads(strictjson.dumps({name: constant.value}))[name]
        except (TypeError, ValueError):
            found[name] = repr(constant.value)
    return found


def _golden(parts: Parts) -> tuple[Arrays, Arrays]:
    """A few samples and their outputs: at most 16, fewer of large ones, but one at least; of a fixed batch one run."""
    x, inputs, chosen = parts.evaluation.samples.x, parts.original.inputs, parts.chosen
    if parts.original.source.one_run is not None:
        golden = one_feed(chosen.model, x, inputs)
        found = one_run_program(chosen.model, "the model", chosen.parameters)(golden)
        return {name: np.asarray(array, order="C") for name, array in golden.items()}, found
    given, made = select(x, inputs, slice(0, 1)), parts.evaluation.reference
    one = sum(array.nbytes for array in (*given.values(), *select(made, parts.original.outputs, slice(0, 1)).values()))
    count = max(1, min(_GOLDEN_SAMPLES, _GOLDEN_BYTES // max(1, one)))
    rows = np.arange(min(count, batch_size(x, inputs)))
    for spec in inputs:  # a device takes what is missing as NaN where it finds it here
        odd = rows_not_finite(x[spec.name], spec)
        if len(odd) and not np.isin(odd, rows).any():
            rows[-1] = odd[0]
    golden = {name: np.asarray(array, order="C") for name, array in select(x, inputs, rows).items()}
    return golden, one_run_program(chosen.model, "the model", chosen.parameters)(golden)  # as devices check them


def _head_spec(parts: Parts, head: Head) -> HeadSpec:
    assert parts.trial is not None
    return HeadSpec(
        features=head.features,
        output=head.output,
        parameters=tuple(ParameterSpec(name=name, shape=array.shape) for name, array in head.parameters.items()),
        linear=head.linear,
        entry=head.entry,
        projection=projection_of(head, parts.target),
        learning_rate=parts.trial.rate / BATCH_RATE,
        trainable=parts.trainable,
        training=parts.recipe,
        trial=parts.trial,
        activation=head.activation,
    )


def projection_of(head: Head, target: DeviceProfile) -> int | None:
    """What brings the features of a linear head to a length that a device of the target can keep statistics of."""
    if head.linear is None or not head.is_linear:
        return None
    n_features = head.parameters[head.linear.weight].shape[1]
    return projected_length(n_features, target.learning.max_state_mb)


def _quantization(chosen: Candidate, target: DeviceProfile) -> dict[str, Any]:
    in_int8, layers = chosen.layers_in_int8 or (0, 0)
    profile = target.quantization
    found: dict[str, Any] = {
        # Of a file that came so, too: by it devices know that they must give one sample at a time.
        "scheme": "dynamic" if shares_scales(chosen.model.graph) else chosen.scheme,
        "target": target.name,
        "int8_layers": in_int8,
        "layers": layers,
        "left_in_float": list(chosen.left_in_float),
    }
    if chosen.scheme == "int8":
        found |= {
            "activation_type": profile.activation_type,
            "weight_type": profile.weight_type,
            "reduce_range": profile.reduce_range,
            "per_channel": profile.per_channel,
        }
    return found


def _tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    return bytes(safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()}))
