"""Are samples in the range that a model was trained on? Its first batch normalization remembers what it saw."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from converter.export.replay import Replay
from converter.graph.links import Links
from converter.program.programs import onnx_program
from converter.program.tensors import Array, Arrays
from converter.verify.evidence import RANGE, Finding
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign
from edge.contract.tensorspec import TensorSpec

# Standard deviations that inputs lie from the mean of training, in the channel between: 1 in training itself.
_FAR = 5.0
# Or they vary so many times less than in training.
_NARROW = 10.0
_LEAST = 16


@dataclass(frozen=True, eq=False, slots=True)
class _Seen:
    """Input ``(n, channels, ...)`` of a batch normalization, and the mean and variance that it keeps."""

    values: Array
    mean: Array
    variance: Array


def out_of_range(model: nn.Module | onnx.ModelProto, inputs: Sequence[TensorSpec], few: Arrays) -> Finding | None:
    """What the first batch normalization says of samples; None when nothing is wrong, or there is none that learned.

    Args:
        model: Behind its preprocessing.
        inputs: What it takes, in order.
        few: Some samples.
    """
    seen = (
        _in_onnx(model, few)
        if isinstance(model, onnx.ModelProto)
        else _in_torch(model, [few[spec.name] for spec in inputs])
    )
    if seen is None or seen.values.ndim < 2 or seen.values.shape[1] != len(seen.mean) or not seen.values.size:
        return None
    if (seen.mean == 0).all() and (seen.variance == 1).all():
        return None  # as it was made: it saw nothing
    values = np.moveaxis(seen.values, 1, -1).reshape(-1, len(seen.mean)).astype(np.float64)
    variance = np.maximum(seen.variance.astype(np.float64), 1e-12)
    distance = float(np.median(np.sqrt(np.square(values - seen.mean).mean(axis=0) / variance)))
    spread = values.var(axis=0)
    varies = len(seen.values) >= _LEAST and bool(spread.any())  # few or equal samples are another matter
    narrower = float(np.median(np.sqrt(variance / np.maximum(spread, 1e-12 * variance)))) if varies else 1.0
    if distance > _FAR:
        text = f"what reaches the first batch normalization is {distance:.3g} times as far from its mean as in training"
    elif narrower > _NARROW:
        text = f"what reaches the first batch normalization varies {narrower:.3g} times less than in training"
    else:
        return None
    return Finding(what=RANGE, text=f"{text}: check preprocessing (scale, mean, order of channels; --preprocess)")


class _First(TorchFunctionMode):
    """Remembers the first batch normalization that Python calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: _Seen | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See torch."""
        self.called(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def called(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A function or an operator is called."""
        if self.seen is None and "batch_norm" in str(func):
            names = _FUNCTIONAL if func is functional.batch_norm else _OPERATOR
            named = {**dict(zip(names, args, strict=False)), **kwargs}
            held = [named.get(name) for name in ("input", "running_mean", "running_var")]
            if all(isinstance(value, torch.Tensor) for value in held):
                self.seen = _Seen(*(value.detach().numpy().copy() for value in held if value is not None))


def _replayed(script: torch.jit.ScriptModule) -> nn.Module:
    """TorchScript operator by operator; frozen, so that no branch is left that asks whether it trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch say that TorchScript is old
        frozen: torch.jit.ScriptModule = torch.jit.freeze(script.eval(), optimize_numerics=False)
    return Replay(frozen)


class _Watched(fx.Interpreter):
    """An exported program, node by node: its operators are not called by way of Python's functions."""

    def __init__(self, module: fx.GraphModule, first: _First) -> None:
        super().__init__(module)
        self._first = first

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See torch."""
        self._first.called(target, args, kwargs)
        return super().call_function(target, args, kwargs)


_FUNCTIONAL = ("input", "running_mean", "running_var")
_OPERATOR = ("input", "weight", "bias", "running_mean", "running_var")


def _in_torch(module: nn.Module, few: Sequence[Array]) -> _Seen | None:
    tensors = [torch.tensor(array) for array in few]
    try:
        with foreign("the model does not run watched", ConversionError), torch.no_grad(), _First() as first:
            # TorchScript does not call Python: its operators do when they are run one by one.
            program = _replayed(module) if isinstance(module, torch.jit.ScriptModule) else module
            if isinstance(program, fx.GraphModule):
                _Watched(program, first).run(*tensors)
            else:
                program(*tensors)
    except ConversionError:  # branches in TorchScript, or a model that minds being watched: then nothing is known
        return None
    seen: _Seen | None = first.seen
    return seen


def _in_onnx(model: onnx.ModelProto, few: Arrays) -> _Seen | None:
    links = Links(model.graph)
    node = next((n for n in model.graph.node if n.op_type == "BatchNormalization"), None)
    if node is None or not all(name in links.constants for name in node.input[3:5]):
        return None
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    if all(info.name != node.input[0] for info in [*watched.graph.output, *watched.graph.input]):
        watched.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
    try:
        found = {**few, **onnx_program(watched, "the model")(few)}
    except ConversionError:
        return None
    mean, variance = map(links.array, node.input[3:5])
    return _Seen(found[node.input[0]], mean, variance)
