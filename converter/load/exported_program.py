"""What ``torch.export.save`` writes, ``.pt2``.

``torch.export.load`` can run code in several ways: it unpickles what says that it is pickled, falls back to plain
pickle for sample inputs, takes any attribute of ``torch`` as a node's target (``torch.os.system``), gives expressions
to ``sympy.sympify`` (which calls eval), and loads compiled libraries. So the archive is checked first, and refused
unless it holds plain tensors and a graph of torch's own operators.
"""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from converter.load.constants import bound
from converter.load.exported_graph import opened, take_tensors
from converter.load.free_batch import fixed_batches, freed_note, is_free, with_batch, with_outputs
from converter.load.inputs import Given
from converter.load.made_up import Fill
from converter.load.training_mode import check_evaluates, in_program
from converter.program.one_run import OneRun
from converter.program.programs import torch_program
from converter.program.tensors import Run
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign
from edge.contract.tensorspec import BATCH, TensorSpec

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
    r"|models/model\.json|data/weights/(?:weight_\d+|model_weights_config\.json)"
    r"|data/constants/(?:tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten\.(?!from_file|save)\w+|prims\.\w+)\.\w+"
    r"|torch\.ops\.higher_order\.(?:cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(?:add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|getitem|and_|or_|not_)"
    r"|math\.(?:floor|ceil|trunc|sqrt)"
    r"|torch\.(?:sym_int|sym_float|sym_max|sym_min|sym_not|sym_ite|sym_sum|_sym_sqrt)"
)
_EXPRESSION = re.compile(
    r"(?:Symbol\('[suz]\d+'|[suz]\d+|\d+(?:\.\d+)?|(?:positive|nonnegative|integer)=True|Max|Min|Mod|FloorDiv|CeilDiv"
    r"|CleanDiv|PythonMod|Add|Mul|Pow|Integer|Rational|Eq|Ne|Lt|Le|Gt|Ge|True|False|oo|int_oo|[-+*/%(),<>&|~ ])*"
)
_MAX_EXPRESSION = 1000
_MAX_JSON = 256 << 20
# Samples to try whether a batch is free.
_REAL = 8


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ExportedProgram:
    """A loaded program.

    Attributes:
        module: Its parameters have the names that they had in the model.
        inputs: In order; the first axis, where it is free, is named ``batch``.
        notes: What was changed.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


def is_exported_program(members: Sequence[str]) -> bool:
    """Whether an archive with these members is a ``.pt2``."""
    return any(name.partition("/")[2] == "models/model.json" for name in members)


def read_exported_program(path: Path, given: Given) -> ExportedProgram:
    """Load a ``.pt2`` that was found to be harmless.

    Args:
        path: The file.
        given: What the user says about the inputs, and samples to try.

    Raises:
        ConversionError: It is not, or it is damaged, or takes something else than tensors.
    """
    _check(path)
    failed = f"{path} cannot be loaded as a torch.export program"
    with foreign(failed, ConversionError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
        module: GraphModule = program.module(check_guards=False)
    for name in ("train", "eval"):  # what was exported has one mode; exporters set it all the same
        module.__dict__.pop(name, None)
    for key, hook in list(module._forward_pre_hooks.items()):  # it fixes sizes that the graph may not depend on
        if getattr(hook, "__name__", "") == "_check_input_constraints_pre_hook":
            del module._forward_pre_hooks[key]
    check_evaluates(in_program(program.graph), str(path), "torch.export.export")
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    constants = given.options.constants
    taken = [
        name for name in program.graph_signature.user_inputs if isinstance(name, str)
    ]  # else the values of numbers
    for name in taken:
        if name not in constants and not isinstance(values.get(name), torch.Tensor):
            raise ConversionError(f"the input {name} of {path} is no tensor; export it with tensors only")
    with foreign(failed, ConversionError):
        take_tensors(module, taken)
    names = [name for name in taken if name not in constants]
    specs = []
    for name in names:
        value = values[name]
        shape = tuple(
            int(size) if isinstance(size, int) else BATCH if i == 0 else f"{name}_{i}"
            for i, size in enumerate(value.shape)
        )
        specs.append(TensorSpec(name="input" if len(names) == 1 else name, dtype=str(value.dtype)[6:], shape=shape))
    inputs = given.stated(specs, "the exported program")
    if any(BATCH in spec.shape for spec in inputs):
        return ExportedProgram(module=bound(module, names, constants), inputs=inputs, notes=())
    return _freed(module, names, inputs, given)


def _freed(module: GraphModule, names: Sequence[str], specs: tuple[TensorSpec, ...], given: Given) -> ExportedProgram:
    """A program that was exported with a fixed number of samples, as one that takes any.

    Raises:
        ConversionError: For several samples it gives other outputs than for each run of as many as it takes.
    """
    run = torch_program(bound(copy.deepcopy(module), names, given.options.constants), specs)
    for inputs in fixed_batches(specs):
        many = with_batch(specs, inputs)
        real = given.real(many, _REAL) or given.example(many, _first_run(run, inputs), _REAL)
        fill = Fill(specs=many, real=real)
        how = with_outputs(inputs, run, fill)
        for candidate in opened(module, how.size):
            free = bound(candidate, names, given.options.constants)
            with torch.backends.mkldnn.flags(enabled=False):  # torch's own kernels take no state for more than it is
                found = is_free(torch_program(free, many), how, run, fill)
            if found:
                return ExportedProgram(module=free, inputs=many, notes=(freed_note(how.size),))
    described = ", ".join(f"{spec.name} {spec.describe()}" for spec in specs)
    raise ConversionError(
        f"the program was exported with the fixed shape {described}, and with several samples it does not run or gives "
        f"others than for each; export it with a free batch axis: torch.export.export(model, (x,), dynamic_shapes="
        f"({{0: torch.export.Dim.DYNAMIC}},)), or to ONNX with a batch of 1, which it then keeps"
    )


def _first_run(run: Run, how: OneRun) -> Run:
    """A program of as many samples as it takes, of the first of more."""
    return lambda batch: run(next(how.runs(batch)))


def _check(path: Path) -> None:
    """Raise ConversionError unless loading the archive runs no code of its own."""
    failed = f"{path} cannot be loaded as a torch.export program without running code"
    with foreign(failed, ConversionError), zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        strange = [short for short in names if not _MEMBERS.fullmatch(short)]
        if strange:
            raise ConversionError(
                f"{path} holds {strange[0]!r}, which is not part of a plain exported program; nothing of it was run"
            )
        for short, name in names.items():
            if short.endswith(".json"):
                if archive.getinfo(name).file_size > _MAX_JSON:
                    raise ConversionError(f"{path}: {short} is too large")
                for key, value in _fields(json.loads(archive.read(name))):
                    _check_field(path, key, value)
        if sample := names.get("data/sample_inputs/model.pt"):
            data = archive.read(sample)
            if data:
                torch.load(io.BytesIO(data), weights_only=True)


def _check_field(path: Path, key: str, value: Any) -> None:
    bad = (
        (key == "use_pickle" and value is not False)
        or (key == "target" and isinstance(value, str) and not _OPERATOR.fullmatch(value))
        or (
            key == "expr_str"
            and not (isinstance(value, str) and len(value) < _MAX_EXPRESSION and _EXPRESSION.fullmatch(value))
        )
        or (key == "path_name" and not (isinstance(value, str) and re.fullmatch(r"(?:weight|tensor)_\d+", value)))
    )
    if bad:
        raise ConversionError(
            f"{path} has {key} = {str(value)[:80]!r}, which could run code; nothing of it was run. Export the model "
            f"again without custom operators, or give the state_dict with --arch"
        )


def _fields(document: Any) -> Iterator[tuple[str, Any]]:
    """All members of all objects in a JSON document, without recursion."""
    waiting = [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item.items()
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
