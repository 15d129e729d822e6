"""From a file to a `Source`: what kind of file it is, is read from its bytes, never from its name."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.data.fit import Fitter
from converter.load.architecture import build_model
from converter.load.checkpoint_file import is_checkpoint, read_checkpoint
from converter.load.constants import bound
from converter.load.contents import ArraysBeside, arrays_beside, found_at, modules, networks
from converter.load.exported_program import is_exported_program, read_exported_program
from converter.load.files import beginning, check_whole_model, checked_members
from converter.load.inputs import Given, Inputs, determine_inputs, stated, with_entries_of
from converter.load.safetensors_file import index_beside, is_index, is_safetensors, read_index, read_safetensors
from converter.load.source import Source
from converter.load.torch_file import read_document, read_torchscript
from converter.load.weights import Rules, load_into
from converter.load.wrapped import (
    check_size,
    check_tensor,
    how_to_name_the_architecture,
    several_networks,
    unwrapped,
)
from converter.plan import InputOption, ModelOptions
from converter.program.programs import onnx_program, resized, torch_program
from edge.contract.digest import sha256_file
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.tensorspec import BATCH

# First bytes of a pickle, as torch's legacy format begins (opcode PROTO, PEP 307 and 574), and of a protobuf.
_PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(1, 6))
_ONNX_FIRST_FIELDS = (0x08, 0x12, 0x1A, 0x22, 0x3A, 0x42)  # ir_version, producer, domain, graph, opset_import
# Nothing here can be compared with the model itself.
_DECIDES = (
    "the model decided by values in Python ({}); the checkpoint holds the way of its example input only, and what the "
    "model does on other values is not in the bundle"
)


def load_source(given: Given, carried: str = "") -> Source:
    """Load the model that the options name.

    Args:
        given: The options, and samples for what must be run.
        carried: Why an ONNX model is to be carried as its file has it; "" to work on it.

    Raises:
        ConfigError: The file or the architecture cannot be found, or options do not belong to such a file.
        ConversionError: It is not a model, or its parts do not fit.
    """
    options = given.options
    path = options.source
    begins = beginning(path, 16)
    members = checked_members(path)
    if is_exported_program(members) or any(name.endswith("/constants.pkl") for name in members):
        check_whole_model(path)
    if is_exported_program(members):
        _refuse_arch(options, "a torch.export program is a whole model")
        program = read_exported_program(path, given)
        run = torch_program(program.module, program.inputs)
        inputs = stated(program.module, program.inputs, given, "the exported program", run)
        return _whole("torch.export", inputs, options, program.notes)
    if any(name.endswith("/constants.pkl") for name in members):
        _refuse_arch(options, "the file is TorchScript, which is a whole model")
        script = read_torchscript(path, str(path))
        return _whole("TorchScript", determine_inputs(script, given), options)
    if is_index(begins):
        return _from_weights(read_index(path), "safetensors", given)
    if is_safetensors(begins, path.stat().st_size):
        if index := index_beside(path):
            raise ConfigError(f"{path} holds a part of the weights: give {index}, which names all parts")
        return _from_weights(read_safetensors(path), "safetensors", given)
    if is_onnx(path):
        from converter.load.onnx_file import carry_onnx, read_onnx

        _refuse_arch(options, "ONNX is a whole model")
        if not carried:
            graph = read_onnx(path, given)
            inputs = stated(graph.model, graph.inputs, given, "the file", onnx_program(graph.model, "the model"))
            found = _whole("ONNX", inputs, options, graph.notes)
            return replace(found, one_run=graph.one_run, class_names=graph.class_names)
        graph = carry_onnx(path, given)
        described = ", ".join(f"{spec.name} {spec.describe()} {spec.dtype}" for spec in graph.inputs) or "none"
        assert graph.fill is not None
        note = f"inputs {described} from the file"
        inputs = Inputs(specs=graph.inputs, example=graph.fill.draw(), note=note, model=graph.model)
        found = _whole("ONNX", inputs, options, (f"carried as it is: {carried}", *graph.notes))
        return replace(
            found,
            carried=carried,
            one_run=graph.one_run,
            of_file=graph.of_file,
            fill=graph.fill,
            class_names=graph.class_names,
        )
    return _from_torch(given)


def is_onnx(path: Path) -> bool:
    """Whether a file can only be ONNX, by its first bytes."""
    begins = beginning(path, 16)
    return begins[:2] not in _PICKLE and begins[0] in _ONNX_FIRST_FIELDS and not zipfile.is_zipfile(path)


def _from_torch(given: Given) -> Source:
    options = given.options
    document = read_document(options.source, trust=options.trust_pickle, arch=options.arch)
    if is_checkpoint(document):
        _refuse_arch(options, "the checkpoint says what it is")
        held = read_checkpoint(document, str(options.source))
        constants = options.constants
        own = tuple(spec for spec in held.inputs if spec.name not in constants)
        ranges = {
            (spec.name, i): held.ranges[axis]
            for spec in own
            for i, axis in enumerate(spec.shape)
            if isinstance(axis, str) and axis in held.ranges
        }
        model = bound(held.model, [spec.name for spec in own], constants)
        inputs = given.stated(own, "the checkpoint")
        example = given.real(inputs, 1) or resized(held.example, inputs, given.sizes)
        return Source(
            model=model,
            kind="edgeloop checkpoint",
            inputs=inputs,
            example=example,
            output_names=held.output_names,
            class_names=held.class_names,
            preprocessing=held.preprocessing,
            samples=held.samples,
            notes=() if not held.decides else (_DECIDES.format(held.decides),),
            digest=sha256_file(options.source),
            ranges=ranges,
        )
    module = _module_in(document, options)
    if module is not None:
        module = module.float().cpu().eval()
        return _whole("pickled module", determine_inputs(module, given), options, ("its pickle was run",))
    return _from_weights(document, "state_dict", given)


def _module_in(document: Any, options: ModelOptions) -> nn.Module | None:
    """A whole model, which a trusted pickle may hold: the one that the user names, the usual one, or the only one."""
    if options.weights is not None:
        try:
            named = found_at(document, options.weights)
        except KeyError:
            return None
        return named if isinstance(named, nn.Module) else None
    found = modules(document)
    usual = next((found[key] for key in ("", "model", "ema", "net") if key in found), None)
    if usual is not None or not found or networks(document):
        return usual
    if len(found) > 1:
        raise several_networks(options.source, found, document)
    return next(iter(found.values()))


def _from_weights(document: Any, kind: str, given: Given) -> Source:
    options = given.options
    weights = unwrapped(document, str(options.source), options.weights)
    if options.arch is None:
        raise how_to_name_the_architecture(weights, options.source)
    if len(weights.found) == 1:
        tensors = {name: value for name, value in weights.found[0].tensors.items() if isinstance(value, torch.Tensor)}
        for name, value in tensors.items():
            check_tensor(name, value)
        check_size(tensors.values(), str(options.source))
    model = build_model(options.arch, options.arch_arguments, weights.hyper_parameters)
    check_size([*model.parameters(), *model.buffers()], f"--arch {options.arch}")
    rules = Rules(strip=options.strip, allow_unexpected=options.allow_unexpected, allow_missing=options.allow_missing)
    notes = load_into(model, weights, options.source, rules)
    if weights.hyper_parameters:
        kind = "Lightning checkpoint"
    again = build_model(options.arch, options.arch_arguments, weights.hyper_parameters)
    load_into(again, weights, options.source, rules)
    model, again = model.float().eval(), again.float().eval()
    arrays = arrays_beside(document)
    if arrays is None or options.calibration is not None or options.preprocess is not None:
        source = _whole(kind, determine_inputs(model, given), options, notes)
    else:
        source = _with_arrays(model, kind, given, notes, arrays)
    again, _ = with_entries_of(again, given)
    _check_is_whole(source, bound(again, [spec.name for spec in source.inputs], options.constants), options)
    return source


def _check_is_whole(source: Source, again: nn.Module, options: ModelOptions) -> None:
    """Raise ConversionError where the weights are not all there is: the architecture, built once more, differs."""
    assert isinstance(source.model, nn.Module)
    try:
        first, same, other = (
            torch_program(model, source.inputs)(source.example) for model in (source.model, source.model, again)
        )
    except ConversionError:  # it is told where the model is run for what it gives
        return
    known = [name for name, array in first.items() if np.array_equal(array, same[name], equal_nan=True)]  # no chance
    for name in known:
        if not np.allclose(first[name], other[name], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ConversionError(
                f"--arch {options.arch} builds another network each time: with the same weights, two of them give "
                f"another {name}. What {options.source.name} does not hold (a plain tensor, a buffer with "
                f"persistent=False, layers in a list that is no nn.ModuleList) is drawn anew: make it a parameter or a "
                f"buffer, or save the whole model with converter.save_checkpoint"
            )


def _with_arrays(model: nn.Module, kind: str, given: Given, notes: tuple[str, ...], arrays: ArraysBeside) -> Source:
    """A model whose checkpoint holds samples, too: they are calibrated on, if they are what it takes."""
    options = given.options
    where = f"{arrays.x_name!r} of the file"
    stated_here = not (options.inputs or options.evaluation or options.example)
    if stated_here:  # the samples say what comes in
        option = InputOption(name="", shape=(BATCH, *arrays.x.shape[1:]))
        given = replace(given, options=replace(options, inputs=(option,)))
    inputs = determine_inputs(model, given)
    if stated_here:
        inputs = replace(inputs, note=inputs.note.replace(" as given", f" as in {where}"))
    fitter = Fitter(inputs.specs, where)
    try:
        spec = fitter.only_input(where)
        samples = fitter.fit({spec.name: arrays.x}, arrays.y)
    except ConfigError as exc:
        return _whole(kind, inputs, options, (*notes, f"not calibrated on what lies in the file: {exc}"))
    labels = f" and {arrays.y_name!r}" if arrays.y is not None else ""
    note = f"calibrated on {len(arrays.x)} samples, {arrays.x_name!r}{labels} of the file"
    return replace(_whole(kind, inputs, options, (*notes, note)), samples=samples)


def _whole(kind: str, inputs: Inputs, options: ModelOptions, notes: tuple[str, ...] = ()) -> Source:
    return Source(
        model=inputs.model,
        kind=kind,
        inputs=inputs.specs,
        example=inputs.example,
        output_names=None,
        class_names=None,
        preprocessing={},
        samples=None,
        notes=(*notes, inputs.note),
        digest=sha256_file(options.source),
    )


def _refuse_arch(options: ModelOptions, why: str) -> None:
    if options.arch is not None:
        raise ConfigError(f"--arch is not needed: {why}")
