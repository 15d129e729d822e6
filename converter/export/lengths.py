"""Recurrent layers that read packed sequences, of which only the last state is used.

torch's exporter gives a recurrent layer of ONNX the lengths only where all of its steps are padded again, and fails
with an index out of range where nobody reads them, as a classifier of sentences does not. So that it does not, an
operator of our own reads the steps beside the state, and is taken away again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

_LAYERS: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.GRU, nn.LSTM)
_DOMAIN, _BESIDE = "edgeloop.exporter", "Beside"


class _Beside(torch.autograd.Function):
    """The first as it is; the second is read, and nothing comes of it."""

    @staticmethod
    def forward(_ctx: Any, state: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        del steps
        return state.clone()

    @staticmethod
    def symbolic(g: Any, state: Any, steps: Any) -> Any:
        return g.op(f"{_DOMAIN}::{_BESIDE}", state, steps).setType(state.type())


_beside: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _Beside.apply


@contextlib.contextmanager
def steps_read() -> Iterator[None]:
    """Within this, whoever takes the state that such a layer leaves reads its steps, too; see `without_readers`."""
    forwards = [layer.forward for layer in _LAYERS]
    for layer, forward in zip(_LAYERS, forwards, strict=True):
        layer.forward = _reading(forward)
    try:
        yield
    finally:
        for layer, forward in zip(_LAYERS, forwards, strict=True):
            layer.forward = forward


def _reading(forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward_and_read(self: nn.RNNBase, x: torch.Tensor | PackedSequence, hx: Any = None) -> Any:
        steps, state = forward(self, x, hx)
        if not isinstance(x, PackedSequence):
            return steps, state
        padded, _ = pad_packed_sequence(steps, batch_first=self.batch_first)
        if isinstance(state, tuple):
            return steps, tuple(_beside(one, padded) for one in state)
        return steps, _beside(state, padded)

    return forward_and_read


def without_readers(model: onnx.ModelProto) -> None:
    """Take those operators away again, in place."""
    for node in model.graph.node:
        if node.domain == _DOMAIN:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
    for entry in [entry for entry in model.opset_import if entry.domain == _DOMAIN]:
        model.opset_import.remove(entry)
