"""The losses of `edge.contract.recipe.TrainingRecipe` and their gradients, as ONNX nodes.

Each is differentiated by hand: what belongs together is differentiated together, which is shorter than the rules of
the single operators and does not divide by small probabilities. None asks for the number of outputs, so it may be free.
"""

from __future__ import annotations

from collections.abc import Callable

from converter.graph.build import GraphBuilder
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, HUBER, MEAN_SQUARED_ERROR
from edge.inference.onnx_trainer import LOSS, SAMPLE_WEIGHTS, TARGETS

HyperParameter = Callable[[str], str]
"""Gives the name of the graph's input that holds a number of the recipe, and thereby asks for that input."""


def append_loss(
    builder: GraphBuilder, loss: str, outputs: str, hyper: HyperParameter, factor: str | None = None
) -> str:
    """Append the loss, under the name ``loss``, and its gradient with respect to the outputs.

    Args:
        builder: Gets the nodes.
        loss: One of `edge.contract.recipe.LOSSES`.
        outputs: Name of the head's outputs ``(batch, n_outputs)``.
        hyper: Asked for the numbers of the loss.
        factor: Name of a scalar by which the gradient, but not the loss, is multiplied.

    Returns:
        Name of the gradient ``(batch, n_outputs)``.
    """
    return _LOSSES[loss](builder, outputs, hyper, factor)


def _cross_entropy(builder: GraphBuilder, logits: str, _: HyperParameter, factor: str | None) -> str:
    """``-sum_i w_i sum_c t_ic log softmax(z_i)_c / batch``; ``dz_i = w_i (softmax(z_i) - t_i) / batch``.

    The gradient holds for rows of t that sum to 1.
    """
    b = builder
    log_probability = b.op("LogSoftmax", logits, axis=-1)
    weights = _weights(b, SAMPLE_WEIGHTS)
    weighted = b.op("Mul", TARGETS, weights)
    b.op("Neg", b.op("ReduceSum", b.op("Mul", log_probability, weighted), keepdims=0), output=LOSS)
    error = b.op("Sub", b.op("Exp", log_probability), TARGETS)
    return b.op("Mul", error, _times(b, weights, factor))


def _binary_cross_entropy(builder: GraphBuilder, logits: str, _: HyperParameter, factor: str | None) -> str:
    """``mean_c log(1 + exp(z_ic)) - t_ic z_ic``; ``dz = (sigmoid(z) - t) / n_outputs``.

    ``log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|))``, which does not overflow.
    """
    b = builder
    weights = _weights(b, TARGETS)
    beyond = b.op("Log", b.op("Add", b.op("Exp", b.op("Neg", b.op("Abs", logits))), b.constant(1.0)))
    softplus = b.op("Add", b.op("Relu", logits), beyond)
    each = b.op("Sub", softplus, b.op("Mul", TARGETS, logits))
    b.op("ReduceSum", b.op("Mul", each, weights), keepdims=0, output=LOSS)
    error = b.op("Sub", b.op("Sigmoid", logits), TARGETS)
    return b.op("Mul", error, _times(b, weights, factor))


def _mean_squared_error(builder: GraphBuilder, outputs: str, _: HyperParameter, factor: str | None) -> str:
    """``mean_c (z_ic - t_ic)^2``; ``dz = 2 (z - t) / n_outputs``."""
    b = builder
    error = b.op("Sub", outputs, TARGETS)
    weighted = b.op("Mul", error, _weights(b, TARGETS))
    b.op("ReduceSum", b.op("Mul", error, weighted), keepdims=0, output=LOSS)
    return b.op("Mul", weighted, _times(b, b.constant(2.0), factor))


def _huber(builder: GraphBuilder, outputs: str, hyper: HyperParameter, factor: str | None) -> str:
    """``mean_c h(e_ic)`` with ``e = z - t`` and ``h(e) = c (e - c / 2)``, ``c = min(max(e, -delta), delta)``.

    That is ``e^2 / 2`` inside and ``delta (|e| - delta / 2)`` outside; ``dz = c / n_outputs``.
    """
    b = builder
    delta = hyper("huber_delta")
    error = b.op("Sub", outputs, TARGETS)
    clipped = b.op("Clip", error, b.op("Neg", delta), delta)
    weighted = b.op("Mul", clipped, _weights(b, TARGETS))
    rest = b.op("Sub", error, b.op("Mul", clipped, b.constant(0.5)))
    b.op("ReduceSum", b.op("Mul", weighted, rest), keepdims=0, output=LOSS)
    return weighted if factor is None else b.op("Mul", weighted, factor)


_LOSSES: dict[str, Callable[[GraphBuilder, str, HyperParameter, str | None], str]] = {
    CROSS_ENTROPY: _cross_entropy,
    BINARY_CROSS_ENTROPY: _binary_cross_entropy,
    MEAN_SQUARED_ERROR: _mean_squared_error,
    HUBER: _huber,
}


def _weights(builder: GraphBuilder, counted: str) -> str:
    """``w_i`` divided by the number of entries of another input, as a column ``(batch, 1)``."""
    b = builder
    count = b.op("CastLike", b.op("Size", counted), SAMPLE_WEIGHTS)
    return b.op("Unsqueeze", b.op("Div", SAMPLE_WEIGHTS, count), b.ints(1))


def _times(builder: GraphBuilder, value: str, factor: str | None) -> str:
    return value if factor is None else builder.op("Mul", value, factor)
