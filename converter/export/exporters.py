"""From a torch model to a float ONNX graph in which every parameter keeps its own name.

Several exporters, the cheapest first: the tracing exporter (3 s where the other takes 11 s, for graphs of equal speed,
and it takes TorchScript), then torch.export's, which needs no trace (docs/adr/0002). Last comes torch.jit.script, which
keeps branches but takes few real models. The caller checks what comes out and asks for the next one when it is wrong.
Constants are not folded and BatchNorm is not fused here, so that parameters stay whole and under their own names; the
frozen part is optimized later, on its own.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from converter.export.decisions import decisions_of, described, is_own, takes_number
from converter.export.indices import cast_indices
from converter.export.lengths import steps_read, without_readers
from converter.export.replay import Replay
from converter.export.symbolics import right_symbolics
from converter.graph.build import renamed
from converter.graph.nodes import OPSET
from converter.load.source import Source
from converter.program.attention import traceable
from converter.program.lengths import with_lengths
from converter.program.programs import Flat, resized
from converter.program.rounding import rounded_sizes
from converter.program.tensors import Arrays
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign
from edge.contract.tensorspec import BATCH, TensorSpec

_WRAPPED = "model"  # what `Flat` puts before the names of parameters


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Exported:
    """A float graph.

    Attributes:
        model: Inputs and outputs named and ordered as asked; one initializer per parameter, named as in the state_dict.
        exporter: Which one made it.
        notes: What the user should know about it.
        decides: Where the model's code decides by values and the graph does not; None for nowhere.
        sizes: Where the model's code takes a size as a number, which the graph may have written down; None for nowhere.
    """

    model: onnx.ModelProto
    exporter: str
    notes: tuple[str, ...] = ()
    decides: str | None = None
    sizes: str | None = None


def exporters(source: Source) -> tuple[Callable[[Source, Sequence[TensorSpec]], Exported], ...]:
    """The ways to export this source, cheapest first."""
    if isinstance(source.model, onnx.ModelProto):
        return (_as_it_is,)
    if isinstance(source.model, torch.jit.ScriptModule):  # torch.export does not take it
        return (by_tracing, by_replay)
    return (by_tracing, by_torch_export, by_scripting)


def _as_it_is(source: Source, outputs: Sequence[TensorSpec]) -> Exported:
    assert isinstance(source.model, onnx.ModelProto)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    _state_types(model, [*source.inputs, *outputs])
    if source.one_run is not None:
        source.one_run.state(model, {})
    return Exported(model=model, exporter="none")


def by_tracing(source: Source, outputs: Sequence[TensorSpec]) -> Exported:
    """Export by running the model on an example and noting what it does.

    Raises:
        ConversionError: The exporter does not take the model, or wrote another opset than asked.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        flat = _flat(source)
        model = with_lengths(flat, lambda: _by_old_exporter(flat, source, outputs, "by tracing"))
    taken = [(w.filename, w.lineno) for w in caught if takes_number(w) and is_own(w.filename)]
    depending = []
    if taken:
        depending = decisions_of(_module(source), map(torch.from_numpy, _two_samples(source).values()))
    return Exported(
        model=model,
        exporter="tracing",
        decides=described(depending),
        sizes=described([place for place in taken if place not in depending]),
    )


def by_replay(source: Source, outputs: Sequence[TensorSpec]) -> Exported:
    """Export TorchScript by running it operator by operator: a stored graph does not tell the exporter its shapes.

    Raises:
        ConversionError: As `by_tracing`.
    """
    script = _module(source)
    assert isinstance(script, torch.jit.ScriptModule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            replay = Replay(script).eval()
        except ValueError as exc:
            raise ConversionError(str(exc)) from exc
        model = _by_old_exporter(replay, source, outputs, "operator by operator")
    return Exported(model=model, exporter="replaying")


def _flat(source: Source) -> nn.Module:
    """The model returning plain tensors; TorchScript that does so already is exported as it is."""
    module = _module(source)
    if isinstance(module, torch.jit.ScriptModule):
        example = tuple(torch.from_numpy(array) for array in _two_samples(source).values())
        with foreign("the TorchScript cannot be traced", ConversionError):
            with torch.inference_mode():
                found = module(*example)
            if isinstance(found, torch.Tensor | tuple):
                return module
            return torch.jit.trace(Flat(module), example, check_trace=False)  # type: ignore[no-any-return, no-untyped-call]
    return Flat(module).eval()


def by_scripting(source: Source, outputs: Sequence[TensorSpec]) -> Exported:
    """Export from the model's Python source, branches included.

    Raises:
        ConversionError: TorchScript does not take the model, or wrote another opset than asked.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with foreign("torch.jit.script does not take the model", ConversionError):
            scripted = torch.jit.script(_module(source))
        model = _by_old_exporter(scripted, source, outputs, "from TorchScript")
    return Exported(
        model=model,
        exporter="scripting",
        notes=(
            "exported from its source by torch.jit.script, which keeps branches and sizes that a trace writes down",
        ),
    )


def _by_old_exporter(model: nn.Module, source: Source, outputs: Sequence[TensorSpec], how: str) -> onnx.ModelProto:
    file = io.BytesIO()
    specs = [*source.inputs, *outputs]
    with (
        _quiet(),
        rounded_sizes(),
        right_symbolics(),
        steps_read(),
        foreign(f"torch could not export the model to ONNX {how}", ConversionError),
    ):
        torch.onnx.export(
            model,
            tuple(torch.from_numpy(array) for array in _two_samples(source).values()),
            file,  # type: ignore[arg-type]  # the tracing exporter writes to any binary file
            dynamo=False,
            opset_version=OPSET,
            input_names=[spec.name for spec in source.inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_axes={
                spec.name: {i: axis for i, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in specs
            },
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    exported = onnx.load_from_string(file.getvalue())
    without_readers(exported)
    cast_indices(exported.graph)
    _check_opset(exported)
    _separate_equal_parameters(exported)
    return _finished(exported, source, outputs)


def by_torch_export(source: Source, outputs: Sequence[TensorSpec]) -> Exported:
    """Export by torch.export, which follows shapes instead of one run; slower, for what tracing gets wrong.

    Raises:
        ConversionError: The exporter does not take the model, or wrote another opset than asked.
    """
    from converter.export.translations import TRANSLATIONS  # half a second, which most conversions do without

    example = _two_samples(source)
    dimensions = {axis: torch.export.Dim.AUTO for spec in source.inputs for axis in spec.shape if isinstance(axis, str)}
    shapes = [
        {i: dimensions[axis] for i, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in source.inputs
    ]
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with foreign("torch.export could not take the model", ConversionError, cause=True):
            program = torch.onnx.export(
                Flat(_module(source)).eval(),
                tuple(torch.from_numpy(array) for array in example.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in source.inputs],
                dynamic_shapes=(tuple(shapes),),
                external_data=False,
                verbose=False,
                custom_translation_table=dict(TRANSLATIONS),
            )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _check_opset(model)
    return Exported(
        model=_finished(model, source, outputs),
        exporter="torch.export",
        notes=("exported by torch.export, because the traced graph was not right",),
    )


def _module(source: Source) -> nn.Module:
    assert isinstance(source.model, nn.Module)
    return source.model


def _two_samples(source: Source) -> Arrays:
    """Two samples: a batch of one would let an exporter mistake the batch axis for one that broadcasts."""
    return resized(source.example, source.inputs, {BATCH: 2})


def _check_opset(model: onnx.ModelProto) -> None:
    written = {entry.domain: entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    if set(written.values()) != {OPSET}:
        raise ConversionError(f"torch wrote the operator sets {written}, asked for opset {OPSET}")


def _finished(model: onnx.ModelProto, source: Source, outputs: Sequence[TensorSpec]) -> onnx.ModelProto:
    """The graph with the names that were asked for, without the wrapper's prefix and without unused inputs missing."""
    graph = model.graph
    _name_outputs(graph, [spec.name for spec in outputs])
    missing = {spec.name for spec in source.inputs} - {info.name for info in graph.input}
    if missing:  # the exporter leaves out what is not read
        raise ConversionError(
            f"the model does not use its input {sorted(missing)[0]}: its output is the same whatever comes in, or it "
            f"computes with NumPy, which no exporter follows; "
            f"give the model without it"
        )
    own = {name for name, _ in _module(source).named_parameters()}
    if not any(tensor.name in own for tensor in graph.initializer):  # they have the wrapper's prefix
        names = {tensor.name: tensor.name.removeprefix(f"{_WRAPPED}.") for tensor in graph.initializer}
        for tensor in graph.initializer:
            tensor.name = names[tensor.name]
        nodes = [renamed(node, names) for node in graph.node]
        for node in nodes:
            node.name = node.name.replace(f"/{_WRAPPED}/", "/", 1)
        del graph.node[:]
        graph.node.extend(nodes)
    _state_types(model, [*source.inputs, *outputs])
    return model


def _name_outputs(graph: onnx.GraphProto, wanted: Sequence[str]) -> None:
    """Give the outputs their names; values inside that have one of these already step aside."""
    given = [info.name for info in graph.output]
    taken = {name for node in graph.node for name in [*node.input, *node.output]} | set(wanted)
    made_here = {name for node in graph.node for name in node.output}
    names: dict[str, str] = {}
    copied = []
    for old, new in zip(given, wanted, strict=True):
        if old in names or old not in made_here:  # given twice, or an input given back
            copied.append((old, new))
        else:
            names[old] = new
    for name in wanted:
        if name in taken and name not in names:
            names[name] = next(f"{name}_{i}" for i in itertools.count() if f"{name}_{i}" not in taken)
    nodes = [renamed(node, names) for node in graph.node]
    nodes += [helper.make_node("Identity", [names.get(old, old)], [new], name=f"{new}/copy") for old, new in copied]
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for info, name in zip(graph.output, wanted, strict=True):
        info.name = name


def _state_types(model: onnx.ModelProto, specs: Sequence[TensorSpec]) -> None:
    """Give inputs and outputs the types and axes that they were found to have."""
    types = {spec.name: spec for spec in specs}
    for info in [*model.graph.input, *model.graph.output]:
        spec = types[info.name]
        element = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        info.CopyFrom(helper.make_tensor_value_info(spec.name, element, list(spec.shape)))
    del model.graph.value_info[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own noise off the user's screen; what matters is checked on the result."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sink = io.StringIO()
    tell = torch._C._jit_onnx_log  # of a failure it writes the whole graph, past Python's standard output
    torch._C._jit_onnx_log = lambda *_: None
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), traceable():
            yield
    finally:
        torch._C._jit_onnx_log = tell
        logger.setLevel(level)


def _separate_equal_parameters(model: onnx.ModelProto) -> None:
    """Undo the exporter's merging of equal parameters.

    Two LayerNorms still at their initial ones come out as one initializer and an Identity node that names the other:
    trained, they must be two again.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Identity" and node.input[0] in tensors:
            copy = numpy_helper.from_array(numpy_helper.to_array(tensors[node.input[0]]), node.output[0])
            tensors[copy.name] = copy
            model.graph.initializer.append(copy)
            model.graph.node.remove(node)
