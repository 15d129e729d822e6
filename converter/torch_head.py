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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.jit._trace import TracerWarning
from torch.nn import functional

from converter.gradient.tape import attribute
from converter.gradient.training_graph import class_layer, free_classes
from converter.graph import shape_of
from converter.program import onnx_program
from converter.reason import reason
from edge.contract.errors import ConversionError

FloatArray = npt.NDArray[np.float32]
Host = npt.NDArray[Any]
Value = torch.Tensor | Host

HEAD_FILE = "edgeloop.json"
_TRACED_AT = 3
_TESTED_AT = (1, 5)
_TOLERANCE = 1e-5
_CLASSES, _MORE_CLASSES = 4, 2  # where their number is free
_OLDEST_OPSET = 13  # before it, axes and the meaning of Softmax were others

_FILL = "value of "  # a ConstantOfShape's

_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


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
    missing = sorted({node.op_type for node in head.graph.node if node.domain or node.op_type not in _OPERATORS})
    if missing:
        raise ConversionError(f"the head as TorchScript: no function of torch is known for {', '.join(missing)}")
    values = _values(head, parameters)
    last = class_layer(head, names)
    module = _Nodes(head, [features, *names]).eval()
    example = [_random(head, features, _TRACED_AT), *values.values()]
    try:
        with warnings.catch_warnings(), torch.no_grad():
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
    except ConversionError:
        raise
    except Exception as exc:  # torch raises what it likes
        raise ConversionError(f"the head as TorchScript: torch does not take it: {reason(exc)}") from exc
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
    try:
        with torch.no_grad():
            found = script(*(torch.from_numpy(array) for array in arrays.values())).numpy()
    except Exception as exc:  # the interpreter raises what the graph makes it raise
        raise ConversionError(f"the head as TorchScript fails on {n} samples: {reason(exc)}") from exc
    off = np.abs(found - wanted).max() if found.shape == wanted.shape else np.inf
    if not off <= _TOLERANCE * np.abs(wanted).max():
        raise ConversionError(f"the head as TorchScript gives other outputs on {n} samples: off by {off:.2g}")


class _Nodes(nn.Module):
    """Runs a graph node by node; takes the values of `inputs` by position."""

    def __init__(self, head: onnx.ModelProto, inputs: Sequence[str]) -> None:
        super().__init__()
        self._head, self._names = head, inputs
        self._constants: dict[str, Host] = {t.name: numpy_helper.to_array(t) for t in head.graph.initializer}
        for node in head.graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = _constant(node)
            if node.op_type == "ConstantOfShape":
                value = attribute(node, "value", None)
                self._constants[_FILL + node.output[0]] = (
                    np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
                )
        self._buffer_of: dict[str, str] = {}
        for name, array in self._constants.items():
            if array.dtype.kind not in "fiub":
                continue
            # A buffer goes where the module goes; a constant of the trace would stay on the CPU.
            self._buffer_of[name] = f"constant_{len(self._buffer_of)}"
            self.register_buffer(self._buffer_of[name], torch.from_numpy(array.copy()))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The graph's output."""
        values: dict[str, Value] = {**self._constants, **dict(zip(self._names, inputs, strict=True))}
        for node in self._head.graph.node:
            if node.op_type == "Constant":
                continue
            call = _Call(self, node, [values[name] if name else None for name in node.input])
            found = _OPERATORS[node.op_type](call)
            parts = list(found) if isinstance(found, list | tuple) else [found]
            if any(node.output[len(parts) :]):
                raise call.error("has more outputs than are known here")
            values |= dict(zip(node.output, parts, strict=False))
        output = self._head.graph.output[0].name
        result = values[output]
        if not isinstance(result, torch.Tensor):
            raise ConversionError(f"the head as TorchScript: {output} does not depend on the features")
        return result

    def constant(self, name: str) -> tuple[Host, torch.Tensor]:
        """A constant as an array and as a tensor."""
        return self._constants[name], getattr(self, self._buffer_of[name])

    def tensor(self, name: str, value: Host) -> torch.Tensor | None:
        """A constant as a tensor; None for what is not one."""
        if name in self._buffer_of and value is self._constants[name]:
            found: torch.Tensor = getattr(self, self._buffer_of[name])
            return found
        return None


class _Call:
    """One node and the values that it is given, None for those left out."""

    def __init__(self, module: _Nodes, node: onnx.NodeProto, values: Sequence[Value | None]) -> None:
        self._module, self.node, self.values = module, node, values

    def __len__(self) -> int:
        return len(self.values)

    def error(self, problem: str) -> ConversionError:
        return ConversionError(f"the head as TorchScript: {self.node.op_type} {self.node.name!r} {problem}")

    def has(self, i: int) -> bool:
        """Whether an optional input is there."""
        return i < len(self.values) and self.values[i] is not None

    def on_host(self) -> bool:
        """Whether no input is a tensor."""
        return not any(isinstance(value, torch.Tensor) for value in self.values)

    def x(self, i: int = 0) -> torch.Tensor:
        """An input as a tensor."""
        value = self.values[i]
        if value is None:
            raise self.error(f"lacks its input {i}")
        if isinstance(value, torch.Tensor):
            return value
        found = self._module.tensor(self.node.input[i], value)
        if found is not None:
            return found
        like = next((other for other in self.values if isinstance(other, torch.Tensor)), None)
        items = [torch.as_tensor(item) for item in value.reshape(-1)]
        stacked = torch.stack(items).reshape(value.shape)
        return stacked if like is None else stacked.to(like.device)

    def constant(self, name: str) -> tuple[Host, torch.Tensor]:
        """A constant of the module on the host and as a tensor."""
        return self._module.constant(name)

    def host(self, i: int) -> Host:
        """An input that must not be a tensor."""
        value = self.values[i]
        if value is None or isinstance(value, torch.Tensor):
            raise self.error(f"has an input {self.node.input[i]!r} that must be a constant, and is computed")
        return value

    def ints(self, i: int) -> list[int]:
        """An input that is a constant list of numbers."""
        found = self.host(i).reshape(-1)
        if found.dtype == object and any(isinstance(item, torch.Tensor) for item in found):
            raise self.error(f"has an input {self.node.input[i]!r} that must be a constant, and is computed")
        return [int(item) for item in found]

    def sizes(self, i: int) -> list[Any]:
        """An input that is a list of sizes: Python numbers, or the tracer's."""
        return list(self.host(i).reshape(-1).astype(object))

    def at(self, name: str, default: Any = None) -> Any:
        """An attribute, text as str."""
        found = attribute(self.node, name, default)
        return found.decode() if isinstance(found, bytes) else found

    def axes(self, i: int = 1) -> list[int]:
        """Axes as an input, or, as before opset 18, an attribute."""
        if self.has(i):
            return self.ints(i)
        return [int(axis) for axis in self.at("axes", [])]


Operator = Callable[[_Call], Any]
_OPERATORS: dict[str, Operator] = {"Constant": lambda _: None}


def _operator(*op_types: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        for op_type in op_types:
            _OPERATORS[op_type] = function
        return function

    return register


def _constant(node: onnx.NodeProto) -> Host:
    (item,) = node.attribute
    value = onnx.helper.get_attribute_value(item)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value, np.float32 if item.name.startswith("value_float") else np.int64)


# --- element by element ---

_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Abs": torch.abs, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal,
    "Neg": torch.neg, "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Erf": torch.erf,
    "Softplus": functional.softplus, "Mish": functional.mish, "HardSwish": functional.hardswish,
    "Not": torch.logical_not, "Sign": torch.sign, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Sin": torch.sin, "Cos": torch.cos, "Softsign": functional.softsign, "IsNaN": torch.isnan,
}  # fmt: skip
_BINARY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "Pow": torch.pow,
}  # fmt: skip
_HOST: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Equal": lambda a, b: a == b,
    "Greater": lambda a, b: a > b, "Less": lambda a, b: a < b,
}  # fmt: skip


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    return lambda call: function(call.x())


def _binary(op_type: str, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    def apply(call: _Call) -> Value:
        if call.on_host() and op_type in _HOST:
            return np.asarray(_HOST[op_type](call.host(0).astype(object), call.host(1).astype(object)))
        return function(call.x(0), call.x(1))

    return apply


for _name, _function in _UNARY.items():
    _OPERATORS[_name] = _unary(_function)
for _name, _two in _BINARY.items():
    _OPERATORS[_name] = _binary(_name, _two)


@_operator("Identity", "Dropout")
def _identity(call: _Call) -> Value:
    if call.has(2) and bool(np.any(call.host(2))):
        raise call.error("is in training mode; export the model in evaluation mode")
    return call.x() if isinstance(call.values[0], torch.Tensor) else call.host(0)


@_operator("Div")
def _div(call: _Call) -> Value:
    if call.on_host():
        left, right = call.host(0), call.host(1)
        if "f" in left.dtype.kind + right.dtype.kind:
            return np.asarray(left / right)
        return np.asarray(left.astype(object) // right.astype(object))  # sizes are not negative
    above, below = call.x(0), call.x(1)
    return torch.div(above, below, rounding_mode=None if above.is_floating_point() else "trunc")


@_operator("LeakyRelu")
def _leaky_relu(call: _Call) -> torch.Tensor:
    return functional.leaky_relu(call.x(), float(call.at("alpha", 0.01)))


@_operator("Elu")
def _elu(call: _Call) -> torch.Tensor:
    return functional.elu(call.x(), float(call.at("alpha", 1.0)))


@_operator("Celu")
def _celu(call: _Call) -> torch.Tensor:
    return functional.celu(call.x(), float(call.at("alpha", 1.0)))


@_operator("Selu")
def _selu(call: _Call) -> torch.Tensor:
    alpha = float(call.at("alpha", 1.67326319217681884765625))
    return functional.elu(call.x(), alpha) * float(call.at("gamma", 1.05070102214813232421875))


@_operator("Gelu")
def _gelu(call: _Call) -> torch.Tensor:
    return functional.gelu(call.x(), approximate=call.at("approximate", "none"))


@_operator("HardSigmoid")
def _hard_sigmoid(call: _Call) -> torch.Tensor:
    return torch.clamp(call.x() * float(call.at("alpha", 0.2)) + float(call.at("beta", 0.5)), 0.0, 1.0)


@_operator("PRelu")
def _prelu(call: _Call) -> torch.Tensor:
    return torch.where(call.x() > 0, call.x(), call.x() * call.x(1))


@_operator("Clip")
def _clip(call: _Call) -> torch.Tensor:
    limits = [None if not call.has(i) else call.x(i) for i in (1, 2)]
    return call.x() if limits == [None, None] else torch.clamp(call.x(), limits[0], limits[1])


@_operator("Where")
def _where(call: _Call) -> Value:
    if call.on_host():
        return np.where(call.host(0).astype(bool), call.host(1).astype(object), call.host(2).astype(object))
    return torch.where(call.x(0), call.x(1), call.x(2))


@_operator("Sum", "Mean", "Max", "Min")
def _variadic(call: _Call) -> torch.Tensor:
    two = {"Max": torch.maximum, "Min": torch.minimum}.get(call.node.op_type, torch.add)
    found = call.x()
    for i in range(1, len(call)):
        found = two(found, call.x(i))
    return found / len(call) if call.node.op_type == "Mean" else found


@_operator("Cast")
def _cast(call: _Call) -> Value:
    to = int(call.at("to"))
    if to not in _DTYPES:
        raise call.error(f"to the type {onnx.TensorProto.DataType.Name(to)} is not known")
    if call.on_host():
        if _DTYPES[to].is_floating_point or to == onnx.TensorProto.BOOL:
            return call.x().to(_DTYPES[to])
        return call.host(0)
    return call.x().to(_DTYPES[to])


@_operator("CastLike")
def _cast_like(call: _Call) -> torch.Tensor:
    return call.x().to(call.x(1).dtype)


# --- products ---


@_operator("MatMul")
def _matmul(call: _Call) -> torch.Tensor:
    return torch.matmul(call.x(0), call.x(1))


@_operator("Gemm")
def _gemm(call: _Call) -> torch.Tensor:
    alpha, beta = float(call.at("alpha", 1.0)), float(call.at("beta", 1.0))
    left = call.x(0).t() if call.at("transA", 0) else call.x(0)
    bias = call.x(2) if call.has(2) else None
    if call.at("transB", 0) and alpha == beta == 1.0 and (bias is None or bias.dim() == 1):
        return functional.linear(left, call.x(1), bias)
    product = torch.matmul(left, call.x(1).t() if call.at("transB", 0) else call.x(1))
    product = product if alpha == 1.0 else product * alpha
    return product if bias is None else product + (bias if beta == 1.0 else bias * beta)


@_operator("Einsum")
def _einsum(call: _Call) -> torch.Tensor:
    return torch.einsum(call.at("equation"), *(call.x(i) for i in range(len(call))))


# --- along axes ---


@_operator("Softmax")
def _softmax(call: _Call) -> torch.Tensor:
    return torch.softmax(call.x(), int(call.at("axis", -1)))


@_operator("LogSoftmax")
def _log_softmax(call: _Call) -> torch.Tensor:
    return torch.log_softmax(call.x(), int(call.at("axis", -1)))


_REDUCTIONS: dict[str, Callable[[torch.Tensor, list[int], bool], torch.Tensor]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


def _reduction(op_type: str) -> Operator:
    def apply(call: _Call) -> torch.Tensor:
        axes = call.axes()
        if not axes and call.at("noop_with_empty_axes", 0):
            return call.x()
        return _REDUCTIONS[op_type](call.x(), axes or list(range(call.x().dim())), bool(call.at("keepdims", 1)))

    return apply


for _name in _REDUCTIONS:
    _OPERATORS[_name] = _reduction(_name)


@_operator("ReduceProd")
def _reduce_prod(call: _Call) -> Host:
    total: Any = 1
    for size in call.sizes(0):
        total = total * size
    return _objects([total], (1,) if call.at("keepdims", 1) else ())


@_operator("ArgMax")
def _arg_max(call: _Call) -> torch.Tensor:
    return torch.argmax(call.x(), int(call.at("axis", 0)), keepdim=bool(call.at("keepdims", 1)))


# --- shapes and movement ---


def _objects(items: Sequence[Any], shape: tuple[int, ...] | None = None) -> Host:
    """Numbers of Python or of the tracer in an array, which must not look into them."""
    found = np.empty(len(items), object)
    for i, item in enumerate(items):
        found[i] = item
    return found if shape is None else found.reshape(shape)


@_operator("Shape")
def _shape(call: _Call) -> Host:
    value = call.values[0]
    sizes = list(call.x().size()) if isinstance(value, torch.Tensor) else list(call.host(0).shape)
    rank = len(sizes)
    start, end = (int(call.at(name, default)) for name, default in (("start", 0), ("end", rank)))
    return _objects(sizes[slice(start, end)])


@_operator("Size")
def _size(call: _Call) -> Host:
    total: Any = 1
    for size in call.x().size():
        total = total * size
    return _objects([total], ())


@_operator("ConstantOfShape")
def _constant_of_shape(call: _Call) -> Value:
    number, filled = call.constant(_FILL + call.node.output[0])
    sizes = call.sizes(0)
    if number.dtype.kind in "iu" and not any(isinstance(size, torch.Tensor) for size in sizes):
        return np.full(sizes, number[0])
    return filled.expand(sizes)


@_operator("Flatten")
def _flatten(call: _Call) -> torch.Tensor:
    x, axis = call.x(), int(call.at("axis", 1))
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    x = x.flatten(axis) if axis < x.dim() else x.unsqueeze(-1)
    return x.flatten(0, axis - 1)


@_operator("Reshape")
def _reshape(call: _Call) -> Value:
    sizes = call.sizes(1)
    if call.on_host():
        return call.host(0).reshape([int(size) for size in sizes])
    x = call.x()
    if not call.at("allowzero", 0):
        sizes = [x.size(i) if type(size) is int and size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


@_operator("Squeeze")
def _squeeze(call: _Call) -> Value:
    axes = call.axes()
    if call.on_host():
        return np.squeeze(call.host(0), tuple(axes) or None)
    x = call.x()
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x if axes else x.squeeze()


@_operator("Unsqueeze")
def _unsqueeze(call: _Call) -> Value:
    axes = call.axes()
    if call.on_host():
        return np.expand_dims(call.host(0), tuple(axes))
    x = call.x()
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@_operator("Transpose")
def _transpose(call: _Call) -> torch.Tensor:
    x = call.x()
    return x.permute(list(call.at("perm", range(x.dim())[::-1])))


@_operator("Expand")
def _expand(call: _Call) -> torch.Tensor:
    x, sizes = call.x(), call.sizes(1)
    if all(type(size) is int for size in sizes):
        sizes = [1] * (x.dim() - len(sizes)) + sizes
        return x.expand([-1 if size == 1 and i >= len(sizes) - x.dim() else size for i, size in enumerate(sizes)])
    found: torch.Tensor = torch.broadcast_tensors(x, x.new_zeros(1).expand(sizes))[0]  # type: ignore[no-untyped-call]
    return found


@_operator("Tile")
def _tile(call: _Call) -> torch.Tensor:
    return call.x().repeat(call.sizes(1))


@_operator("Concat")
def _concat(call: _Call) -> Value:
    axis = int(call.at("axis"))
    if call.on_host():
        return np.concatenate([call.host(i).astype(object) for i in range(len(call))], axis)
    return torch.cat([call.x(i) for i in range(len(call))], axis)


@_operator("Split")
def _split(call: _Call) -> list[torch.Tensor]:
    x, axis = call.x(), int(call.at("axis", 0))
    if call.has(1):
        return list(torch.split(x, call.ints(1), axis))
    size, n = int(x.shape[axis]), len(call.node.output)
    step = -(-size // n)
    return list(torch.split(x, [min(step, size - i * step) for i in range(n)], axis))


@_operator("Slice")
def _slice(call: _Call) -> Value:
    starts, ends = call.ints(1), call.ints(2)
    value = call.values[0]
    assert value is not None
    axes = call.ints(3) if call.has(3) else list(range(len(starts)))
    steps = call.ints(4) if call.has(4) else [1] * len(starts)
    ranges = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0 and isinstance(value, torch.Tensor):  # torch has no steps backwards
            size = int(value.shape[axis])
            taken = range(size)[_python_slice(start, end, step)]
            parts = [value.narrow(axis, place, 1) for place in taken]
            value = torch.cat(parts, axis)
            continue
        ranges[axis] = _python_slice(start, end, step)
    return value[tuple(ranges)]


def _python_slice(start: int, end: int, step: int) -> slice:
    """ONNX marks a slice to the very beginning or end by a number far away."""
    far = 1 << 30
    return slice(start, None if (step < 0 and end < -far) or (step > 0 and end > far) else end, step)


@_operator("Gather")
def _gather(call: _Call) -> Value:
    axis = int(call.at("axis", 0))
    if call.on_host():
        data, places = call.host(0), call.host(1).astype(np.int64)
        return _objects(list(data[places].reshape(-1)), places.shape) if data.ndim == 1 else data.take(places, axis)
    x = call.x()
    axis = axis % x.dim()
    if isinstance(call.values[1], torch.Tensor):
        indices = call.x(1).long()
        flat = torch.where(indices < 0, indices + x.size(axis), indices).reshape(-1)
        return _unflattened(x.index_select(axis, flat), axis, list(indices.shape))
    places = call.host(1)
    if not places.ndim:
        return x.select(axis, int(places))
    if (places < 0).any():
        raise call.error("counts from the end")
    return _unflattened(x.index_select(axis, call.x(1).reshape(-1).long()), axis, list(places.shape))


def _unflattened(x: torch.Tensor, axis: int, sizes: Sequence[int]) -> torch.Tensor:
    """One axis as several, or as none."""
    if len(sizes) == 1:
        return x
    found: torch.Tensor = x.unflatten(axis, sizes) if sizes else x.squeeze(axis)  # type: ignore[no-untyped-call]
    return found


@_operator("GatherElements")
def _gather_elements(call: _Call) -> torch.Tensor:
    return torch.gather(call.x(), int(call.at("axis", 0)), call.x(1).long())


@_operator("Trilu")
def _trilu(call: _Call) -> torch.Tensor:
    k = call.ints(1)[0] if call.has(1) else 0
    return torch.triu(call.x(), k) if call.at("upper", 1) else torch.tril(call.x(), k)


@_operator("CumSum")
def _cum_sum(call: _Call) -> torch.Tensor:
    if call.at("exclusive", 0) or call.at("reverse", 0):
        raise call.error("is exclusive or backwards")
    return torch.cumsum(call.x(), call.ints(1)[0])


@_operator("Pad")
def _pad(call: _Call) -> torch.Tensor:
    x, given = call.x(), call.ints(1)
    axes = [axis % x.dim() for axis in call.ints(3)] if call.has(3) else list(range(x.dim()))
    pads = [(0, 0)] * x.dim()
    for i, axis in enumerate(axes):
        pads[axis] = (given[i], given[len(axes) + i])
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = call.at("mode", "constant")
    if mode not in modes:
        raise call.error(f"has the mode {mode}")
    if mode == "constant":
        value = float(call.host(2).reshape(-1)[0]) if call.has(2) else 0.0
        return functional.pad(x, _reversed(pads), value=value)
    if any(any(pair) for pair in pads[:2]):
        raise call.error(f"has the mode {mode} along the batch or the channels")
    return functional.pad(x, _reversed(pads[2:]), mode=modes[mode])


def _reversed(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As torch wants pads: the last axis first."""
    return [pad for pair in reversed(pads) for pad in pair]


# --- windows ---


def _window(call: _Call, n: int) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Strides, dilations and pads for each axis of space."""
    auto = call.at("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        raise call.error("has auto_pad; export it with stated pads")
    pads = list(call.at("pads", [0] * (2 * n))) if auto == "NOTSET" else [0] * (2 * n)
    pairs = list(zip(pads[:n], pads[n:], strict=True))
    return list(call.at("strides", [1] * n)), list(call.at("dilations", [1] * n)), pairs


def _of_rank(call: _Call, functions: Sequence[Any], n: int) -> Any:
    if not 1 <= n <= 3:
        raise call.error(f"has {n} axes of space")
    return functions[n - 1]


@_operator("Conv")
def _conv(call: _Call) -> torch.Tensor:
    x, weight = call.x(), call.x(1)
    n = weight.dim() - 2
    strides, dilations, pads = _window(call, n)
    if any(begin != end for begin, end in pads):
        x, pads = functional.pad(x, _reversed(pads)), [(0, 0)] * n
    convolve = _of_rank(call, (functional.conv1d, functional.conv2d, functional.conv3d), n)
    bias = call.x(2) if call.has(2) else None
    found: torch.Tensor = convolve(
        x, weight, bias, strides, [begin for begin, _ in pads], dilations, int(call.at("group", 1))
    )
    return found


@_operator("ConvTranspose")
def _conv_transpose(call: _Call) -> torch.Tensor:
    x, weight = call.x(), call.x(1)
    n = weight.dim() - 2
    strides, dilations, pads = _window(call, n)
    if call.at("output_shape") is not None:
        raise call.error("has an output_shape; export it with stated pads")
    more = list(call.at("output_padding", [0] * n))
    uneven = any(begin != end for begin, end in pads)
    functions = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    found: torch.Tensor = _of_rank(call, functions, n)(
        x, weight, call.x(2) if call.has(2) else None, strides, [0 if uneven else begin for begin, _ in pads],
        more, int(call.at("group", 1)), dilations,
    )  # fmt: skip
    return functional.pad(found, _reversed([(-begin, -end) for begin, end in pads])) if uneven else found


@_operator("MaxPool")
def _max_pool(call: _Call) -> torch.Tensor:
    x, size = call.x(), list(call.at("kernel_shape"))
    strides, dilations, pads = _window(call, len(size))
    if any(begin != end or begin > k // 2 for (begin, end), k in zip(pads, size, strict=True)):
        x, pads = functional.pad(x, _reversed(pads), value=-math.inf), [(0, 0)] * len(size)
    pool = _of_rank(call, (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d), len(size))
    found: torch.Tensor = pool(
        x, size, strides, [begin for begin, _ in pads], dilations, ceil_mode=bool(call.at("ceil_mode", 0))
    )
    return found


@_operator("AveragePool")
def _average_pool(call: _Call) -> torch.Tensor:
    x, size = call.x(), list(call.at("kernel_shape"))
    strides, dilations, pads = _window(call, len(size))
    if any(dilation != 1 for dilation in dilations):
        raise call.error("has dilations")
    pool = _of_rank(call, (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), len(size))
    ceil, counted = bool(call.at("ceil_mode", 0)), bool(call.at("count_include_pad", 0))
    found: torch.Tensor
    if all(begin == end <= k // 2 for (begin, end), k in zip(pads, size, strict=True)):
        found = pool(x, size, strides, [begin for begin, _ in pads], ceil, counted)
        return found
    flat = _reversed(pads)
    found = pool(functional.pad(x, flat), size, strides, 0, ceil)
    if counted:
        return found
    share: torch.Tensor = pool(functional.pad(torch.ones_like(x[:1, :1]), flat), size, strides, 0, ceil)
    return found / share


@_operator("GlobalAveragePool")
def _global_average_pool(call: _Call) -> torch.Tensor:
    return call.x().mean(list(range(2, call.x().dim())), keepdim=True)


@_operator("GlobalMaxPool")
def _global_max_pool(call: _Call) -> torch.Tensor:
    return torch.amax(call.x(), list(range(2, call.x().dim())), keepdim=True)


# --- normalization ---


@_operator("BatchNormalization")
def _batch_normalization(call: _Call) -> torch.Tensor:
    """By hand, because all five inputs may be parameters."""
    if call.at("training_mode", 0):
        raise call.error("is in training mode; export the model in evaluation mode")
    x = call.x()
    scale, bias, mean, var = (_along_channels(call.x(i), x.dim()) for i in range(1, 5))
    return (x - mean) * (torch.rsqrt(var + float(call.at("epsilon", 1e-5))) * scale) + bias


@_operator("InstanceNormalization")
def _instance_normalization(call: _Call) -> torch.Tensor:
    x = call.x()
    space = list(range(2, x.dim()))
    centered = x - x.mean(space, keepdim=True)
    variance = (centered * centered).mean(space, keepdim=True)
    normal = centered * torch.rsqrt(variance + float(call.at("epsilon", 1e-5)))
    return normal * _along_channels(call.x(1), x.dim()) + _along_channels(call.x(2), x.dim())


@_operator("LayerNormalization")
def _layer_normalization(call: _Call) -> torch.Tensor:
    x, scale = call.x(), call.x(1)
    axis = int(call.at("axis", -1)) % x.dim()
    bias = call.x(2) if call.has(2) else None
    sizes, epsilon = [int(size) for size in x.shape[axis:]], float(call.at("epsilon", 1e-5))
    if list(scale.shape) == sizes and (bias is None or list(bias.shape) == sizes):
        return functional.layer_norm(x, sizes, scale, bias, epsilon)
    normal = functional.layer_norm(x, sizes, None, None, epsilon) * scale
    return normal if bias is None else normal + bias


def _along_channels(value: torch.Tensor, rank: int) -> torch.Tensor:
    """A value for each channel, with the axes behind that of the channels."""
    return value.reshape([-1, *[1] * (rank - 2)]) if rank > 2 else value
