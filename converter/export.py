"""From a torch model to a float ONNX graph in which every parameter keeps its own name.

The tracing exporter is used: it took 3 s where the dynamo exporter took 11 s for graphs of equal speed, and it takes
TorchScript (docs/adr/0002). Constants are not folded and BatchNorm is not fused here, so that parameters stay whole and
under their own names; the backbone is optimized later, on its own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from converter.graph import OPSET
from converter.reason import reason
from edge.contract.errors import ConversionError

INPUT = "input"
OUTPUT = "logits"


def export_onnx(model: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """Export with a free batch axis.

    Args:
        model: In evaluation mode.
        example: ``(1, ...)``.

    Returns:
        A graph with the input `INPUT`, the output `OUTPUT`, and one initializer per parameter, named as in the
        state_dict.

    Raises:
        ConversionError: The exporter does not take the model, or wrote another opset than asked.
    """
    file = io.BytesIO()
    # Two samples: a batch of one would let the exporter mistake the batch axis for one that broadcasts.
    batch = torch.cat([example, example])
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_exporter():
            warnings.simplefilter("ignore")  # the exporter's own noise; what matters is checked on the result
            torch.onnx.export(
                model,
                (batch,),
                file,  # type: ignore[arg-type]  # the tracing exporter writes to any binary file
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
    except Exception as exc:  # the exporter raises what the model and its own passes raise
        raise ConversionError(f"torch could not export the model to ONNX: {reason(exc)}") from exc
    exported = onnx.load_from_string(file.getvalue())
    written = {entry.domain: entry.version for entry in exported.opset_import}
    if written != {"": OPSET}:
        raise ConversionError(f"torch wrote the operator sets {written}, asked for opset {OPSET}")
    if len(exported.graph.output) != 1:
        raise ConversionError(f"the model has {len(exported.graph.output)} outputs; one is supported")
    _separate_equal_parameters(exported)
    return exported


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
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
