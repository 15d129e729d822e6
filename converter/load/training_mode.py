"""Whole models that were written down in training mode: their normalizations and dropout stay as they were then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from converter.graph.nodes import attribute
from edge.contract.errors import ConversionError

_NORMALIZES, _DROPS = "batch normalization over the samples of a run", "dropout"


def check_evaluates(found: Iterable[str], what: str, call: str) -> None:
    """Raise ConversionError where operators were found that only training has.

    Args:
        found: What they do.
        what: The file, for the message.
        call: By which it was made.
    """
    names = sorted(set(found))
    if names:
        raise ConversionError(
            f"{what} was written in training mode ({' and '.join(names)}): call model.eval() before {call}, and let "
            f"forward itself not ask for training=True"
        )


def check_keeps_statistics(model: torch.nn.Module) -> None:
    """Raise ConversionError where a normalization kept no statistics, and takes those of the samples of each run."""
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ConversionError(
                f"its layer {name} ({type(layer).__name__}, track_running_stats=False) normalizes over the samples of "
                f"a batch, and devices give one at a time: train it with statistics that are kept"
            )


def in_program(graph: torch.fx.Graph) -> list[str]:
    """What of an exported program only training does."""
    found = []
    for node in graph.nodes:
        name, arguments = str(node.target), list(node.args)
        found += _of_call(name.replace("aten.", "aten::").partition(".")[0], arguments)
    return found


def in_script(script: torch.jit.ScriptModule) -> list[str]:
    """What of a trace only training does; what is compiled asks for the mode that it is in."""
    graph: Any = script.inlined_graph
    found = []
    for kind in ("aten::batch_norm", "aten::dropout"):
        for node in graph.findAllNodes(kind, True):
            found += _of_call(kind, [_constant(value) for value in node.inputs()])
    return found


def _constant(value: Any) -> object:
    """A value of TorchScript where it is written down, else an object of its own."""
    if value.node().kind() != "prim::Constant":
        return object()
    return value.toIValue()


def _of_call(name: str, arguments: Sequence[object]) -> list[str]:
    if name == "aten::batch_norm" and len(arguments) > 5 and arguments[3] is not None and arguments[5] is True:
        return [_NORMALIZES]
    if name in ("aten::dropout", "aten::native_dropout") and len(arguments) > 2:
        return [_DROPS] if arguments[2] is True and arguments[1] != 0 else []
    return []


def in_onnx(model: onnx.ModelProto) -> list[str]:
    """What of an ONNX graph only training does."""
    return [
        _NORMALIZES
        for node in model.graph.node
        if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0)
    ]
