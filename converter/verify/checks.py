"""Is what came out near enough to what went in? Compares programs; changes nothing and keeps nothing."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch import nn

from converter.graph.build import inferred_types
from converter.program.attention import traceable
from converter.program.beside import swayed
from converter.program.programs import one_torch_thread, onnx_program, outputs, torch_program
from converter.program.scratch import scratch_folder
from converter.program.tensors import Array, Arrays, Run, batch_size, of_whole_range, select
from converter.verify.axes import MIN_FLOAT_SQNR_DB, FreeAxis, Probe, baked_axes
from converter.verify.columns import Numbers, compare, in_columns
from converter.verify.judging import ROUNDING_OF_SHARES, are_shares, scores_behind_boxes
from converter.verify.kinds import Judged
from converter.verify.measure import Evaluation
from converter.verify.quality import Deviation
from edge.contract.bundle import Bundle, write_bundle
from edge.contract.errors import BundleError, ConversionError
from edge.contract.foreign import foreign
from edge.contract.manifest import Manifest
from edge.inference.onnx_session import EXACT, OnnxSession
from edge.inference.session import sqnr_db

# Of one column, about its mean: a difference of large numbers keeps fewer digits than they have.
MIN_COLUMN_DB = 40.0
_ROUNDING = 1e-6
_SMALLEST = 1e-30
_TORCHSCRIPT_SAMPLES = 16
_ONE_BY_ONE = 4
_UNLIKE = 8
_TELLING_COLUMNS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One comparison that was passed.

    Attributes:
        what: Which program.
        against: The one that it was compared with.
        deviation: How far it is.
        required: What was asked of it, in words.
    """

    what: str
    against: str
    deviation: Deviation
    required: str


def check_float(what: str, run: Run, evaluation: Evaluation, against: str) -> Check:
    """A float program, compared with the original on all samples and, for the batch axis's sake, one by one.

    Raises:
        ConversionError: It does not run, or gives other outputs.
    """
    found = evaluation.run(run)
    _compare(what, evaluation, evaluation.reference, found, "")
    x = evaluation.samples.x
    for i in range(min(_ONE_BY_ONE, batch_size(x, evaluation.inputs))):
        rows = slice(i, i + 1)
        single = run(select(x, evaluation.inputs, rows))
        _compare(what, evaluation, select(evaluation.reference, evaluation.outputs, rows), single, " one by one")
    return Check(
        what=what,
        against=against,
        deviation=evaluation.deviation(found),
        required=f"SQNR at least {MIN_FLOAT_SQNR_DB:.0f} dB",
    )


def unlike_the_data(what: str, run: Run, original: Run, evaluation: Evaluation) -> str | None:
    """What a float program gives otherwise than the original on samples that no data were like; None for nothing.

    An exporter may write an operator down so that it is right for some values only. Samples that the original does
    not take, or on which its outputs are not finite, tell nothing.

    Args:
        what: The program, for the message.
        run: It.
        original: What it is compared with.
        evaluation: On whose first samples, changed.
    """
    few = select(evaluation.samples.x, evaluation.inputs, slice(0, _UNLIKE))
    changed = [
        (change, {n: np.asarray(a * factor, a.dtype) if a.dtype.kind in "fi" else a for n, a in few.items()})
        for change, factor in (("with the other sign", -1), ("three times as large", 3))
    ]
    changed += [
        (change, {n: np.round(a / step) * a.dtype.type(step) if a.dtype.kind == "f" else a for n, a in few.items()})
        for change, step in (("of whole numbers", 1), ("with one decimal", 0.1))
        if any(a.dtype.kind == "f" for a in few.values())
    ]
    changed += [("of the whole range of their types", others) for others in of_whole_range(few, most_bytes=2)]
    for change, x in changed:
        try:
            reference = outputs(original, x, evaluation.inputs, evaluation.outputs)
        except ConversionError:
            continue
        if not all(np.isfinite(array).all() for array in reference.values()):
            continue
        try:
            found = outputs(run, x, evaluation.inputs, evaluation.outputs)
            _compare(what, replace(evaluation, reference=reference), reference, found, f" on samples {change}")
        except ConversionError as exc:
            return str(exc)
    return None


def check_alone(run: Run, evaluation: Evaluation, count: int) -> None:
    """After this a model gives for a sample alone, as on a device, what it gives among others, as it was compared.

    Args:
        run: The original.
        evaluation: Of it.
        count: How many samples to look at, see `telling_samples`.

    Raises:
        ConversionError: It does not.
    """
    for i in telling_samples(evaluation, count):
        rows = slice(i, i + 1)
        with one_torch_thread():
            single = run(select(evaluation.samples.x, evaluation.inputs, rows))
        try:
            wanted = select(evaluation.reference, evaluation.outputs, rows)
            _compare("the model", evaluation, wanted, single, " among others")
        except ConversionError as exc:
            raise ConversionError(
                f"the model answers a sample alone otherwise than among others ({exc}): it decides, sorts or "
                f"normalizes over the batch, and devices give one sample at a time"
            ) from exc


def check_beside(run: Run, evaluation: Evaluation, count: int) -> None:
    """After this a model was found to give for a sample the same beside others that are nothing like it.

    Args:
        run: The original.
        evaluation: Of it.
        count: How many samples to look at, see `telling_samples`.

    Raises:
        ConversionError: It does not.
    """
    for i in telling_samples(evaluation, count):
        sample = select(evaluation.samples.x, evaluation.inputs, slice(i, i + 1))
        with one_torch_thread():
            why = swayed(run, run, sample, evaluation.inputs)
        if why is not None:
            raise ConversionError(
                f"the model answers a sample otherwise than alone where others of its batch are unusual ({why}): it "
                f"decides, sorts or normalizes over the batch, and devices give one sample at a time. Compute along "
                f"the axes of each sample (dim=...), or export it to ONNX with a batch of 1, which it then keeps"
            )


def telling_samples(evaluation: Evaluation, count: int) -> list[int]:
    """Numbers of samples: half of them those with a value that is furthest from the usual of its column.

    What a model does with one sample in a thousand, of a rare class or above a limit, it does with such a one. The
    others are evenly spaced.

    Args:
        evaluation: Whose samples and reference.
        count: How many at most.
    """
    size = batch_size(evaluation.samples.x, evaluation.inputs)
    if size <= count:
        return list(range(size))
    far = np.zeros(size)
    for spec in evaluation.outputs:
        array = evaluation.reference[spec.name]
        if spec.batch_axis is None or not array.size or array.dtype.kind not in "fiub":
            continue
        rows = np.moveaxis(array, spec.batch_axis, 0).reshape(size, -1)
        rows = rows[:, :: -(-rows.shape[1] // _TELLING_COLUMNS)].astype(np.float64)
        spread = rows.std(axis=0)
        far = np.maximum(far, (np.abs(rows - rows.mean(axis=0)) / np.where(spread > 0, spread, np.inf)).max(axis=1))
    chosen = np.argsort(-far, kind="stable")[: count // 2]
    evenly = range(0, size, -(-size // max(1, count - len(chosen))))
    return sorted({*chosen.tolist(), *evenly})


def _compare(what: str, evaluation: Evaluation, wanted: Arrays, found: Arrays, how: str) -> None:
    for spec in evaluation.outputs:
        one, other = wanted[spec.name], found[spec.name]
        if one.shape != other.shape:
            raise ConversionError(f"{what} gives {spec.name} of the shape {other.shape}{how}, the model {one.shape}")
        if one.dtype.kind != "f":
            if not np.array_equal(one, other):
                raise ConversionError(f"{what} gives another {spec.name} than the model{how}")
            continue
        judged = evaluation.kinds[spec.name]
        every = evaluation.reference[spec.name]
        ratio = sqnr_db(one, other)
        if ratio < MIN_FLOAT_SQNR_DB and not (are_shares(judged, every) and _are_rounded(one, other)):
            raise ConversionError(
                f"{what} gives another {spec.name} than the model{how}: {ratio:.1f} dB, at least "
                f"{MIN_FLOAT_SQNR_DB:.0f} dB expected"
            )
        size = np.abs(in_columns(every, judged.axis)).max(axis=0, initial=0.0).astype(np.float64)
        if len(every) == 1 and size.size:
            size = np.maximum(size, np.median(size))
        rounding = _rounding(spec.name, judged, every, size)
        _compare_columns(what, spec.name, one, other, judged.axis, size, rounding, how)


def _are_rounded(one: Array, other: Array) -> bool:
    """Whether no share differs by more than rounding: then all of them may be too small to have 60 dB."""
    return bool((np.abs(one.astype(np.float64) - other) <= ROUNDING_OF_SHARES).all())


def _rounding(name: str, judged: Judged, every: Array, size: Numbers) -> Numbers:
    """Error of each column that is rounding alone, ``(n_columns,)``.

    Args:
        name: Of the output.
        judged: What it is.
        every: Its values on all samples.
        size: Largest absolute value of each column.
    """
    rounding = _ROUNDING * np.maximum(size, _SMALLEST)
    if are_shares(judged, every):
        return np.maximum(rounding, ROUNDING_OF_SHARES)
    first, last = scores_behind_boxes(judged, name)
    rounding[first:last] = np.maximum(rounding[first:last], ROUNDING_OF_SHARES)
    return rounding


def _compare_columns(
    what: str, name: str, wanted: Array, found: Array, axis: int | None, size: Numbers, rounding: Numbers, how: str
) -> None:
    """Each column on its own scale: one of small numbers weighs nothing beside one of large.

    Args:
        what: For the message, as `how`.
        name: Of the output.
        wanted: What is right.
        found: What the program gives.
        axis: Of the columns.
        size: Largest absolute value of each on all samples; of a single sample at least the usual one.
        rounding: Error of each that is rounding alone.
        how: See `what`.
    """
    columns = compare(wanted, found, axis)
    near = np.where(columns.constant, columns.kept, columns.noise_db >= MIN_COLUMN_DB)
    if len(wanted) == 1:  # of one sample a column has no spread, and its only value may lie next to 0
        near = columns.kept | ~columns.constant | (columns.error <= 10 ** (-MIN_COLUMN_DB / 20) * size)
    near |= columns.error <= rounding
    if not near.all():
        worst = int(np.flatnonzero(~near)[0])
        raise ConversionError(
            f"{what} gives another {name}[{worst}] than the model{how}: {columns.noise_db[worst]:.1f} dB about its "
            f"mean, at least {MIN_COLUMN_DB:.0f} dB expected"
        )


def first_diverging_layer(model: nn.Module, exported: onnx.ModelProto, evaluation: Evaluation) -> str | None:
    """Name of the first layer of a torch model whose output differs from that of its nodes in the exported graph.

    The exporter names a node after the module that it comes from. None when no such layer is found.
    """
    if isinstance(model, torch.jit.ScriptModule):
        return None
    few = select(evaluation.samples.x, evaluation.inputs, slice(0, 2))
    seen: dict[str, torch.Tensor] = {}

    def remember(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                seen.setdefault(name, output.detach())

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if name and not list(module.children())]
    handles = [module.register_forward_hook(remember(name)) for name, module in leaves]
    try:
        torch_program(model, evaluation.inputs)(few)
    finally:
        for handle in handles:
            handle.remove()
    last: dict[str, str] = {}
    for node in exported.graph.node:
        last[node.name.rpartition("/")[0]] = node.output[0]
    values = {name: last[_scope(name)] for name in seen if _scope(name) in last}
    types = inferred_types(exported)
    watched = onnx.ModelProto()
    watched.CopyFrom(exported)
    present = {info.name for info in exported.graph.output}
    watched.graph.output.extend(types[v] for v in values.values() if v in types and v not in present)
    found = onnx_program(watched, "the exported graph")(few)
    for name, value in values.items():
        if value not in found:
            continue
        wanted = seen[name].numpy()
        if wanted.shape != found[value].shape or sqnr_db(wanted, found[value]) < MIN_FLOAT_SQNR_DB:
            return name
    return None


def _scope(module: str) -> str:
    """The exporter's name for a module: ``layer1.0.conv`` is ``/layer1/layer1.0/conv``."""
    parts: list[str] = []
    for part in module.split("."):
        parts.append(f"{parts[-1]}.{part}" if part.isdigit() and parts else part)
    return "/" + "/".join(parts)


def torchscript_of(
    model: nn.Module, evaluation: Evaluation, probe: Probe, axes: Sequence[FreeAxis], *, scripted: bool
) -> tuple[bytes, Check]:
    """The whole float model as TorchScript, saved, loaded again and compared.

    Args:
        model: A torch module.
        evaluation: What to compare on.
        probe: The model, to be compared at other sizes of its free axes.
        axes: These.
        scripted: Compile its source instead of tracing it.

    Raises:
        ConversionError: TorchScript does not take it, or it gives other outputs than the model.
    """
    few = select(evaluation.samples.x, evaluation.inputs, slice(0, 2))
    script = model
    with foreign("TorchScript does not take the model", ConversionError):
        if not isinstance(model, torch.jit.ScriptModule):
            example = tuple(torch.tensor(few[spec.name]) for spec in evaluation.inputs)
            with torch.no_grad(), contextlib.nullcontext() if scripted else traceable():
                script = (
                    torch.jit.script(model)
                    if scripted
                    else torch.jit.trace(model, example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
                )
        archive = io.BytesIO()
        torch.jit.save(script, archive)
        # It writes names that it cannot read: of files with blanks, of classes and layers that are not ASCII.
        loaded = torch.jit.load(io.BytesIO(archive.getvalue()))  # type: ignore[no-untyped-call]
    run = torch_program(loaded, evaluation.inputs, [spec.name for spec in evaluation.outputs])
    check = check_float("the TorchScript", run, evaluation.first(_TORCHSCRIPT_SAMPLES), "the model")
    if written := baked_axes(run, probe, axes):
        raise ConversionError(f"the TorchScript {next(iter(written.values()))}")
    return archive.getvalue(), check


def check_bundle(manifest: Manifest, blobs: Mapping[str, bytes]) -> str:
    """Open a bundle as a device of the target opens it, digests and golden outputs, in a folder that is thrown away.

    Returns:
        Its digest.

    Raises:
        ConversionError: A device would refuse it.
    """
    with scratch_folder() as folder:
        path = folder / "bundle.edge"
        try:
            write_bundle(path, manifest, blobs)
            bundle = Bundle.open(path)
            OnnxSession(bundle, config=EXACT)
        except BundleError as exc:
            raise ConversionError(f"a device would refuse the bundle: {exc}. Nothing was written") from exc
        return bundle.digest
