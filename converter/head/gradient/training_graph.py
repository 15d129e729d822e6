"""The training step of a head as one ONNX graph: forward, loss, gradients and update.

Inputs: the features, ``targets (batch, n_outputs)``, ``sample_weights (batch,)``, every parameter, every
``slot.<kind>.<parameter>`` of the optimizer and ``slot.steps ()`` of Adam, ``anchor.<parameter>`` with FedProx's term,
and ``learning_rate ()``. The other numbers of the recipe that the graph uses are scalar inputs ``hyper.<name>`` with
the recipe's values as defaults: they need not be given. Outputs: ``updated.<name>`` for each parameter and slot,
``loss ()`` and the head's output.

The batch is free, and so is the number of outputs where the last layer is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from converter.graph.build import GraphBuilder, infer_shapes, make_model, reads, shape_of, tensor_info
from converter.graph.nodes import linear
from converter.head.gradient.differentiate import differentiate
from converter.head.gradient.losses import append_loss
from converter.head.gradient.optimizers import append_update, slots, takes_scaled_gradients
from converter.head.gradient.recurrent import expanded
from edge.contract.errors import ConversionError
from edge.contract.recipe import TrainingRecipe
from edge.inference.onnx_trainer import ANCHOR, LEARNING_RATE, LOSS, SAMPLE_WEIGHTS, TARGETS, UPDATED

CLASSES = "classes"
HYPER = "hyper."

_DEFAULT = TrainingRecipe()


def build_training_graph(
    head: onnx.ModelProto,
    features: str,
    parameters: Sequence[str],
    recipe: TrainingRecipe = _DEFAULT,
    dtype: npt.DTypeLike = np.float32,
) -> onnx.ModelProto:
    """Differentiate a head and add a step of an optimizer.

    Args:
        head: Inputs are the features and the parameters, its one output ``(batch, n_outputs)``.
        features: Name of the features input.
        parameters: Names of the inputs to train.
        recipe: Loss and optimizer; cross-entropy and plain SGD when not given.
        dtype: Float type of the head; float64 serves the finite-difference tests.

    Raises:
        UnsupportedOperatorError: The head has an operator without a rule.
        ConversionError: A parameter does not reach the output, a shape is not known, or a name is taken.
    """
    head = expanded(head)
    last = class_layer(head, parameters)
    if last is not None:
        head = free_classes(head, *last)
    graph = head.graph
    output = graph.output[0]
    infos = {info.name: info for info in graph.input}
    builder = GraphBuilder("train.", dtype)
    hyper = _HyperParameters(recipe)
    factor = LEARNING_RATE if takes_scaled_gradients(recipe) else None
    output_gradient = append_loss(builder, recipe.loss, output.name, hyper, factor)
    gradients = differentiate(
        graph.node, infer_shapes(head), output.name, output_gradient, parameters, builder, graph.initializer
    )
    append_update(builder, recipe, gradients, hyper)

    shapes: dict[str, Sequence[int | str]] = {name: shape_of(infos[name]) for name in parameters}
    for slot, parameter in slots(recipe, parameters).items():
        shapes[slot] = () if parameter is None else shapes[parameter]
    anchors = parameters if recipe.proximal else ()
    inputs = [
        infos[features],
        tensor_info(TARGETS, ("batch", shape_of(output)[-1]), dtype),
        tensor_info(SAMPLE_WEIGHTS, ("batch",), dtype),
        *(infos[name] if name in infos else tensor_info(name, shape, dtype) for name, shape in shapes.items()),
        *(tensor_info(ANCHOR + name, shapes[name], dtype) for name in anchors),
        tensor_info(LEARNING_RATE, (), dtype),
        *(tensor_info(HYPER + name, (), dtype) for name in hyper.used),
    ]
    outputs = [*(tensor_info(UPDATED + name, shape, dtype) for name, shape in shapes.items())]
    outputs += [tensor_info(LOSS, (), dtype), output]
    _check_names(head, inputs, outputs)
    defaults = [numpy_helper.from_array(np.asarray(getattr(recipe, name), dtype), HYPER + name) for name in hyper.used]
    return make_model(
        "head_train",
        [*graph.node, *builder.nodes],
        inputs,
        outputs,
        [*graph.initializer, *builder.initializers, *defaults],
    )


def class_layer(head: onnx.ModelProto, parameters: Sequence[str]) -> tuple[str, str | None] | None:
    """Weight ``(n_outputs, n_in)`` and bias of the linear layer that gives the head's output.

    Returns:
        Their names; None if the output comes from something else, or if they are not parameters of that layer alone,
        or if the weight is stored as ``(n_in, n_outputs)``.
    """
    output = head.graph.output[0]
    nodes = [node for node in head.graph.node if output.name in node.output]
    if not nodes or len(shape_of(output)) != 2:
        return None
    layer = linear(nodes[0])
    if layer is None or not layer.transposed:
        return None
    weight, bias = layer.weight, layer.bias
    own = [weight] if bias is None else [weight, bias]
    read = [name for other in head.graph.node for name in reads(other)]
    infos = {info.name: shape_of(info) for info in head.graph.input}
    n_outputs = infos.get(weight, ("",))[0]
    if any(name not in parameters or name not in infos or read.count(name) != 1 for name in own):
        return None
    if len(infos[weight]) != 2 or (bias is not None and infos[bias] != (n_outputs,)):
        return None
    return weight, bias


def free_classes(head: onnx.ModelProto, weight: str, bias: str | None) -> onnx.ModelProto:
    """A copy of a head whose last linear layer takes any number of outputs: that axis is ``classes``.

    A layer whose weight is stored as ``(n_in, n_outputs)``, and one that something else follows, e.g. a Softmax, keeps
    its fixed number.

    Args:
        head: One output ``(batch, n_outputs)``.
        weight: Input ``(n_outputs, n_in)`` of the last layer.
        bias: Input ``(n_outputs,)`` of it.

    Raises:
        ConversionError: They are not the last layer's; see `class_layer`.
    """
    if class_layer(head, [weight] if bias is None else [weight, bias]) != (weight, bias):
        raise ConversionError(f"{weight!r} is not the weight (n_outputs, n_in) of a last linear layer of this head")
    copy = deepcopy(head)
    graph = copy.graph
    del graph.value_info[:]  # which say the number
    for info in [*graph.input, *graph.output]:
        if info.name in (weight, bias, graph.output[0].name):
            axis = 1 if info.name == graph.output[0].name else 0
            info.type.tensor_type.shape.dim[axis].dim_param = CLASSES
    onnx.checker.check_model(copy)
    return copy


class _HyperParameters:
    """Names the inputs that hold numbers of a recipe.

    Attributes:
        used: Those that somebody asked for, in that order.
    """

    def __init__(self, recipe: TrainingRecipe) -> None:
        self._known = recipe.to_json()
        self.used: list[str] = []

    def __call__(self, name: str) -> str:
        assert name in self._known, name
        if name not in self.used:
            self.used.append(name)
        return HYPER + name


def _check_names(
    head: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
) -> None:
    """The names of the step must not be those of values of the head."""
    names = [info.name for info in [*inputs, *outputs]]
    inside = {name for node in head.graph.node for name in node.output} | {t.name for t in head.graph.initializer}
    inside -= {head.graph.output[0].name}
    taken = sorted({name for name in names if names.count(name) > 1} | (inside & set(names)))
    if taken:
        raise ConversionError(f"the head has values named {', '.join(taken)}, which the training step needs: rename")
