"""Programs: a torch model, an ONNX graph, or a backbone and a head together, each as a function of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from converter.reason import reason
from converter.split import FEATURES
from edge.contract.errors import BundleError, ConversionError
from edge.inference.onnx_session import open_onnx

FloatArray = npt.NDArray[np.float32]
Run = Callable[[npt.NDArray[Any]], FloatArray]

_BATCH = 64


def torch_program(model: nn.Module) -> Run:
    """A torch model as a function of arrays.

    The function raises ConversionError when the model does not run, or gives no logits ``(batch, n_classes)``.
    """

    def run(batch: npt.NDArray[Any]) -> FloatArray:
        try:
            with torch.inference_mode():
                output = model(torch.from_numpy(batch))
        except Exception as exc:  # the model is the user's code: it may raise anything
            raise ConversionError(
                f"the model does not run on a batch of shape {batch.shape} and type {batch.dtype}: {reason(exc)}"
            ) from exc
        if not isinstance(output, torch.Tensor) or output.ndim != 2 or not output.is_floating_point():
            found = f"{tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"of type {type(output).__name__}"
            raise ConversionError(f"the model's output must be one float tensor (batch, n_classes); it is {found}")
        return output.to(torch.float32).numpy()

    return run


def onnx_program(model: onnx.ModelProto, what: str) -> Run:
    """A graph of one input and one output as a function of arrays, on one thread.

    Raises:
        ConversionError: onnxruntime does not load it.
    """
    session = _open(model, what)
    name = session.get_inputs()[0].name

    def run(batch: npt.NDArray[Any]) -> FloatArray:
        found: FloatArray = session.run(None, {name: batch})[0]
        return found

    return run


def joined_program(backbone: Run, head: onnx.ModelProto, parameters: Mapping[str, FloatArray]) -> Run:
    """Backbone and head together, as a device runs them.

    Raises:
        ConversionError: onnxruntime does not load the head.
    """
    session = _open(head, "the head")

    def run(batch: npt.NDArray[Any]) -> FloatArray:
        found: FloatArray = session.run(None, {FEATURES: backbone(batch), **parameters})[0]
        return found

    return run


def _open(model: onnx.ModelProto, what: str) -> Any:
    try:
        return open_onnx(model.SerializeToString(), what)
    except BundleError as exc:  # at conversion there is no bundle yet to be distrusted
        raise ConversionError(str(exc)) from exc


def outputs(run: Run, x: npt.NDArray[Any]) -> FloatArray:
    """Outputs on many samples, in batches, so that memory does not grow with them."""
    return np.concatenate([run(x[i : i + _BATCH]) for i in range(0, len(x), _BATCH)])
