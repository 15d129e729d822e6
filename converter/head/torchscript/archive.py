"""A head's ONNX graph as TorchScript, for training with torch's autograd on a device that has torch and a GPU.

The graph is run node by node by functions of torch while torch's tracer looks on. Two kinds of values are kept apart:
those on the device are tensors; sizes, axes and what is computed from them are numpy arrays of Python numbers, or of
the tracer's, so that the batch stays free and no small tensor has to come back from a GPU.

Beside the code the archive holds `HEAD_FILE`, from which `edge.inference.torchscript_trainer` knows the parameters'
order and which of them grow with the number of outputs. The archive is compared with the graph on onnxruntime.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch.jit._trace import TracerWarning

from converter.graph.build import shape_of
from converter.head.gradient.training_graph import class_layer, free_classes
from converter.head.torchscript.nodes import Nodes
from converter.head.torchscript.operators import OPERATORS
from converter.program.programs import onnx_program
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign
from edge.contract.training import FloatArray

HEAD_FILE = "edgeloop.json"
_TRACED_AT = 3
_TESTED_AT = (1, 5)
_TOLERANCE = 1e-5
_CLASSES, _MORE_CLASSES = 4, 2  # where their number is free
_OLDEST_OPSET = 13  # before it, axes and the meaning of Softmax were others
# Records that the writer of an archive adds by itself.
_BY_WRITER = ("version", ".data/serialization_id")


def torch_head(head: onnx.ModelProto, features: str, parameters: Sequence[str] | Mapping[str, FloatArray]) -> bytes:
    """Translate a head.

    Args:
        head: Inputs are the features ``(batch, ...)`` and the parameters, all float32; its one output is ``(batch,
            n_outputs)``.
        features: Name of the features input.
        parameters: Names of the other inputs in the order in which the TorchScript takes them; with their values, those
            are what the archive is tested with, and random numbers otherwise.

    Returns:
        A TorchScript archive: a module that takes ``(features, *parameters)`` and returns the output.

    Raises:
        ConversionError: An operator is not mapped, torch does not take the graph, or it gives other outputs.
    """
    names = list(parameters)
    if sorted([features, *names]) != sorted(info.name for info in head.graph.input):
        raise ConversionError(f"the head's inputs are not {', '.join([features, *names])}")
    opset = max((item.version for item in head.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST_OPSET:
        raise ConversionError(f"the head is of ONNX opset {opset}; TorchScript is made from {_OLDEST_OPSET} on")
    missing = sorted({node.op_type for node in head.graph.node if node.domain or node.op_type not in OPERATORS})
    if missing:
        raise ConversionError(f"the head as TorchScript: no function of torch is known for {', '.join(missing)}")
    values = _values(head, parameters)
    last = class_layer(head, names)
    module = Nodes(head, [features, *names]).eval()
    example = [_random(head, features, _TRACED_AT), *values.values()]
    failed = "the head as TorchScript: torch does not take it"
    with foreign(failed, ConversionError), warnings.catch_warnings(), torch.no_grad():
        # Chosen on purpose (docs/adr/0002); what the tracer takes for a constant shows in the test below.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=TracerWarning)
        tensors = tuple(torch.from_numpy(array) for array in example)
        script = torch.jit.trace(module, tensors, check_trace=False)  # type: ignore[no-untyped-call]
        archive = io.BytesIO()
        about = {"features": features, "parameters": names, "output_layer": [name for name in last or () if name]}
        torch.jit.save(script, archive, _extra_files={HEAD_FILE: json.dumps(about).encode()})
        lasting = _lasting(archive.getvalue())
        loaded = torch.jit.load(io.BytesIO(lasting))  # type: ignore[no-untyped-call]
    for n in (_TRACED_AT, *_TESTED_AT):
        _compare(head, loaded, {features: _random(head, features, n), **values})
    if last is not None:
        grown = {
            name: np.concatenate([array, array[:1].repeat(_MORE_CLASSES, axis=0)]) if name in last else array
            for name, array in values.items()
        }
        _compare(free_classes(head, *last), loaded, {features: _random(head, features, _TRACED_AT), **grown})
    return lasting


def _lasting(archive: bytes) -> bytes:
    """The archive without what differs from run to run: counters in names, source paths, the traced inputs."""
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    with zipfile.ZipFile(io.BytesIO(archive)) as parts:
        for entry in parts.namelist():
            name = entry.partition("/")[2]
            if name.endswith(".debug_pkl") or name.startswith("traced_inputs") or name in _BY_WRITER:
                continue
            data = re.sub(rb"\.___torch_mangle_\d+", b"", parts.read(entry))
            writer.write_record(re.sub(r"/___torch_mangle_\d+", "", name), data, len(data))
    writer.write_end_of_file()
    return buffer.getvalue()


def _values(head: onnx.ModelProto, parameters: Sequence[str] | Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The parameters to test with: random ones are small where many are added up, and above zero for a variance."""
    if isinstance(parameters, Mapping):
        return {name: np.array(array, np.float32) for name, array in parameters.items()}
    shapes = {info.name: shape_of(info) for info in head.graph.input}
    variances = {node.input[4] for node in head.graph.node if node.op_type == "BatchNormalization"}
    rng, found = np.random.default_rng(0), {}
    for name in parameters:
        sizes = tuple(size if isinstance(size, int) else _CLASSES for size in shapes[name])
        fan_in = math.prod(sizes[1:]) if len(sizes) > 1 else 1
        array = rng.normal(scale=fan_in**-0.5, size=sizes).astype(np.float32)
        found[name] = np.abs(array) + np.float32(0.1) if name in variances else array
    return found


def _random(head: onnx.ModelProto, features: str, n: int) -> FloatArray:
    """``(n, ...)`` float32."""
    (shape,) = (shape_of(info) for info in head.graph.input if info.name == features)
    if not all(isinstance(size, int) for size in shape[1:]):
        raise ConversionError(f"the features have the shape ({', '.join(map(str, shape))}); expected fixed sizes")
    return np.random.default_rng(n).normal(size=(n, *map(int, shape[1:]))).astype(np.float32)


def _compare(head: onnx.ModelProto, script: torch.jit.ScriptModule, arrays: Mapping[str, FloatArray]) -> None:
    """Raise ConversionError unless TorchScript and onnxruntime give the same."""
    (wanted,) = onnx_program(head, "the head")(dict(arrays)).values()
    n = len(next(iter(arrays.values())))
    with torch.no_grad(), foreign(f"the head as TorchScript fails on {n} samples", ConversionError):
        found = script(*(torch.from_numpy(array) for array in arrays.values())).numpy()
    off = np.abs(found - wanted).max() if found.shape == wanted.shape else np.inf
    if not off <= _TOLERANCE * np.abs(wanted).max():
        raise ConversionError(f"the head as TorchScript gives other outputs on {n} samples: off by {off:.2g}")
