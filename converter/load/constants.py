"""Arguments of a model that are always the same, ``--constant NAME=VALUE``, made part of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from converter.plan import Constant
from converter.program.tensors import Array
from edge.contract.documents import did_you_mean
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.foreign import foreign, reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One parameter of ``forward``.

    Attributes:
        name: Its name.
        kind: Its type as the code states it, "" where it does not.
        optional: Whether it has a default.
    """

    name: str
    kind: str
    optional: bool


def parameters_of(model: nn.Module) -> tuple[list[Parameter], float]:
    """Parameters that ``forward`` takes by name, and how many tensors it takes at most; none where it does not say."""
    if isinstance(model, torch.jit.ScriptModule):
        arguments = model.forward.schema.arguments[1:]  # type: ignore[attr-defined]
        found = [
            Parameter(name=argument.name, kind=str(argument.type), optional=argument.has_default_value())
            for argument in arguments
        ]
        return found, len(found)
    try:
        parameters = inspect.signature(_unbound(model)).parameters.values()
    except (TypeError, ValueError):
        return [], math.inf
    found = [
        Parameter(
            name=p.name,
            kind="" if p.annotation is p.empty else str(getattr(p.annotation, "__name__", p.annotation)),
            optional=p.default is not p.empty,
        )
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    return found, math.inf if any(p.kind == p.VAR_POSITIONAL for p in parameters) else len(found)


def _unbound(model: nn.Module) -> Callable[..., Any]:
    """``forward`` as it was before `bound`, which may be asked again with other constants or inputs."""
    forward: Callable[..., Any] = getattr(model.forward, "unbound", model.forward)
    return forward


def bound(model: nn.Module, inputs: Sequence[str], constants: Mapping[str, Constant]) -> nn.Module:
    """A model that takes these inputs, in this order, and has the constants in it.

    Inputs are found by their names where ``forward`` has these, else they are its parameters in order.

    Args:
        model: The model; that of Python code is changed in place, so that its parts keep their names.
        inputs: Their names.
        constants: By the names of parameters.

    Raises:
        ConfigError: It has no such parameter, or a value does not fit it.
        ConversionError: TorchScript does not take the value.
    """
    parameters, _ = parameters_of(model)
    names = [parameter.name for parameter in parameters]
    for name in constants:
        if name not in names:
            raise ConfigError(
                f"--constant {name}: forward takes {', '.join(names) or 'no parameters by name'}"
                f"{did_you_mean(name, names)}"
            )
        if name in inputs:
            raise ConfigError(f"--constant {name}: it is given with --input, too")
    free = [name for name in names if name not in constants]
    taken = list(inputs) if set(inputs) <= set(free) else free[: len(inputs)]
    if len(taken) < len(inputs) or (not constants and taken == names[: len(taken)]):
        return model  # as it is; whether it takes so many, running it says
    kinds = {parameter.name: parameter.kind for parameter in parameters}
    values = {name: _value(name, constant, kinds[name]) for name, constant in constants.items()}
    if isinstance(model, torch.jit.ScriptModule):
        return _bound_script(model, taken, values)
    forward = _unbound(model)

    def with_constants(*tensors: torch.Tensor) -> Any:
        return forward(**dict(zip(taken, tensors, strict=True)), **values)

    with_constants.unbound = forward  # type: ignore[attr-defined]
    model.forward = with_constants
    return model


def _value(name: str, constant: Constant, kind: str) -> Any:
    """What the parameter is to be: a tensor where its type says so, or the user does."""
    if constant.dtype is None and "Tensor" not in kind:
        return constant.value
    return torch.from_numpy(array_of(name, constant, constant.dtype))


def array_of(name: str, constant: Constant, dtype: str | None) -> Array:
    """The value as an array of this type; of the one that torch gives such a value where it is None.

    Raises:
        ConfigError: It is no number, or does not fit the type.
    """
    try:
        array = np.asarray(constant.value)
        made = array.astype(dtype or ("float32" if array.dtype.kind == "f" else array.dtype))
    except (TypeError, ValueError, OverflowError) as exc:
        raise ConfigError(f"--constant {name}: {reason(exc)}") from exc
    if made.dtype.kind not in "fiub" or (array.dtype.kind in "iu" and not np.array_equal(made, array)):
        raise ConfigError(f"--constant {name}: {constant.value!r} is no {dtype or 'number'}")
    return made


def _bound_script(model: torch.jit.ScriptModule, taken: Sequence[str], values: Mapping[str, Any]) -> nn.Module:
    module = nn.Module()
    module.model = model
    said = []
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            module.register_buffer(f"constant_{name}", value)
            said.append(f"{name}=self.constant_{name}")
        else:
            said.append(f"{name}={value!r}")
    arguments = ", ".join([*(f"{name}={name}" for name in taken), *said])
    with foreign(f"the TorchScript does not take {', '.join(said)} as constants", ConversionError):
        holder = torch.jit.script(module)
        holder.define(f"def forward(self, {', '.join(taken)}):\n    return self.model({arguments})\n")
        torch._C._jit_pass_inline(holder.graph)  # so that branches on constants are taken once and for all
        torch._C._jit_pass_constant_propagation(holder.graph)
    return holder.eval()


def constants_in(model: onnx.ModelProto, constants: Mapping[str, Constant]) -> dict[str, Array]:
    """The constants of a graph that `bind_onnx` made, as arrays."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in constants}


def bind_onnx(model: onnx.ModelProto, constants: Mapping[str, Constant]) -> list[str]:
    """Make inputs of a graph constants, in place; free axes have the size 1.

    Returns:
        A note for each.

    Raises:
        ConfigError: It has no such input, or a value does not fit it.
    """
    inputs = {info.name: info for info in model.graph.input}
    for name, constant in constants.items():
        if name not in inputs:
            raise ConfigError(
                f"--constant {name}: the file has the inputs {', '.join(inputs)}{did_you_mean(name, inputs)}"
            )
        tensor = inputs[name].type.tensor_type
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if constant.dtype not in (None, dtype):
            raise ConfigError(f"--constant {name}: the type {constant.dtype}, but the file takes {dtype}")
        array = array_of(name, constant, dtype)
        shape = [axis.dim_value or 1 for axis in tensor.shape.dim]
        try:
            whole = np.broadcast_to(array, shape) if array.ndim < len(shape) or 1 in array.shape else array
        except ValueError as exc:
            raise ConfigError(f"--constant {name}: the shape {array.shape}, but the file takes {shape}") from exc
        model.graph.initializer.append(numpy_helper.from_array(np.require(whole, requirements="C"), name))
        model.graph.input.remove(inputs[name])
    return [f"{name} is always {constant.value}" for name, constant in constants.items()]
