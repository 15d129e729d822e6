"""The training step of a head as one ONNX graph: forward, loss, gradients and update.

Inputs: the features, ``labels (batch,)`` int64, ``sample_weights (batch,)``, every parameter, ``learning_rate ()``.
Outputs: ``updated.<parameter>`` for each parameter, ``loss ()`` and ``logits (batch, n_classes)``. The batch is free.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from converter.gradient.differentiate import differentiate
from converter.graph import GraphBuilder, infer_shapes, make_model, shape_of, tensor_info
from edge.inference.onnx_trainer import LABELS, LEARNING_RATE, LOSS, SAMPLE_WEIGHTS, UPDATED


def softmax_cross_entropy(builder: GraphBuilder, logits: str, n_classes: int) -> tuple[str, str]:
    """Append the loss and its gradient.

    ``loss = -sum_i w_i log softmax(z_i)[y_i] / batch`` and ``dz_i = w_i (softmax(z_i) - onehot(y_i)) / batch``:
    softmax and cross-entropy are differentiated together, which is shorter and does not divide by small probabilities.

    Returns:
        Names of the loss ``()`` and of its gradient with respect to the logits ``(batch, n_classes)``.
    """
    b = builder
    log_probability = b.op("LogSoftmax", logits, axis=-1)
    one_hot = b.op("OneHot", LABELS, b.ints(n_classes), b.constant([0.0, 1.0]))
    batch = b.op("CastLike", b.op("Size", LABELS), SAMPLE_WEIGHTS)
    weights = b.op("Unsqueeze", b.op("Div", SAMPLE_WEIGHTS, batch), b.ints(1))
    weighted = b.op("Mul", one_hot, weights)
    loss = b.op("Neg", b.op("ReduceSum", b.op("Mul", log_probability, weighted), keepdims=0), output=LOSS)
    gradient = b.op("Mul", b.op("Sub", b.op("Exp", log_probability), one_hot), weights)
    return loss, gradient


def _descend(builder: GraphBuilder, name: str, gradient: str) -> None:
    """Append ``updated.name = name - learning_rate * gradient``.

    Where the gradient is one matrix product, the rate goes onto its small factor (the gradient of the layer's output)
    and the parameter in as its addend: ``W - (r dZ)ᵀ X`` is one Gemm and does not pass over the matrix three times.
    """
    node = next((node for node in builder.nodes if gradient in node.output), None)
    used_once = sum(gradient in other.input for other in builder.nodes) == 0
    if node is None or node.op_type != "Gemm" or len(node.input) != 2 or not used_once:
        change = builder.op("Mul", gradient, LEARNING_RATE)
        builder.op("Sub", name, change, output=UPDATED + name)
        return
    builder.nodes.remove(node)
    made_here = {output for other in builder.nodes for output in other.output}
    small = 0 if node.input[0] in made_here else 1
    factors = list(node.input)
    factors[small] = builder.op("Mul", factors[small], LEARNING_RATE)
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    attributes["alpha"] = -attributes.get("alpha", 1.0)
    builder.op("Gemm", *factors, name, output=UPDATED + name, **attributes)


def build_training_graph(
    head: onnx.ModelProto, features: str, parameters: Sequence[str], dtype: npt.DTypeLike = np.float32
) -> onnx.ModelProto:
    """Differentiate a head and add a step of stochastic gradient descent: ``p <- p - learning_rate * dp``.

    Args:
        head: Inputs are the features and the parameters, its one output the logits ``(batch, n_classes)``.
        features: Name of the features input.
        parameters: Names of the inputs to train.
        dtype: Float type of the head; float64 serves the finite-difference tests.

    Raises:
        UnsupportedOperatorError: The head has an operator without a rule.
        ConversionError: A parameter does not reach the logits, or a shape is not known.
    """
    graph = head.graph
    logits = graph.output[0]
    n_classes = int(shape_of(logits)[-1])
    infos = {info.name: info for info in graph.input}
    builder = GraphBuilder("train.", dtype)
    _, output_gradient = softmax_cross_entropy(builder, logits.name, n_classes)
    gradients = differentiate(
        graph.node, infer_shapes(head), logits.name, output_gradient, parameters, builder, graph.initializer
    )
    outputs = []
    for name in parameters:
        _descend(builder, name, gradients[name])
        outputs.append(tensor_info(UPDATED + name, shape_of(infos[name]), dtype))
    inputs = [
        infos[features],
        tensor_info(LABELS, ("batch",), np.int64),
        tensor_info(SAMPLE_WEIGHTS, ("batch",), dtype),
        *(infos[name] for name in parameters),
        tensor_info(LEARNING_RATE, (), dtype),
    ]
    return make_model(
        "head_train",
        [*graph.node, *builder.nodes],
        inputs,
        [*outputs, tensor_info(LOSS, (), dtype), logits],
        [*graph.initializer, *builder.initializers],
    )
