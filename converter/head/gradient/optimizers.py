"""The optimizers of `edge.contract.recipe.TrainingRecipe`, as ONNX nodes: gradients in, new parameters and slots out.

They are torch's of the same names: a slot is what torch keeps in ``optimizer.state``, and zero before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from converter.graph.build import GraphBuilder
from converter.graph.nodes import attribute, stated
from converter.head.gradient.losses import HyperParameter
from edge.contract.recipe import TrainingRecipe
from edge.inference.onnx_trainer import ANCHOR, LEARNING_RATE, SLOT, UPDATED

STEPS = SLOT + "steps"
"""Number of steps so far, of Adam. float32 counts to 16 million, where its correction has long been none."""

_SLOTS = {"momentum": ("momentum",), "nesterov": ("momentum",), "adam": ("mean", "square"), "adamw": ("mean", "square")}
# Added to the norm as torch.nn.utils.clip_grad_norm_ does.
_CLIP_EPSILON = 1e-6


def slots(recipe: TrainingRecipe, parameters: Sequence[str]) -> dict[str, str | None]:
    """Name of each slot, and the parameter whose shape it has; None for a scalar."""
    kinds = _SLOTS.get(recipe.optimizer, ())
    found: dict[str, str | None] = {_slot(kind, name): name for kind in kinds for name in parameters}
    return {**found, STEPS: None} if _is_adam(recipe) else found


def takes_scaled_gradients(recipe: TrainingRecipe) -> bool:
    """Whether the step only subtracts ``learning_rate * gradient``.

    Then the loss's gradient is multiplied by the rate once, while it is small, and none of the parameters' has to be.
    """
    return recipe.optimizer == "sgd" and not recipe.clip_norm


def append_update(
    builder: GraphBuilder, recipe: TrainingRecipe, gradients: Mapping[str, str], hyper: HyperParameter
) -> None:
    """Append ``updated.<parameter>`` and ``updated.<slot>`` for all parameters and slots.

    Args:
        builder: Has the nodes that compute the gradients, and gets the new ones.
        recipe: What to append.
        gradients: Name of the gradient by parameter; multiplied by the learning rate if `takes_scaled_gradients`.
        hyper: Asked for the numbers of the recipe.
    """
    names = list(gradients.values())
    update = _Update(
        builder=builder,
        recipe=recipe,
        hyper=hyper,
        foldable=frozenset(gradient for gradient in names if names.count(gradient) == 1),
    )
    if takes_scaled_gradients(recipe):
        for name, gradient in gradients.items():
            update.descend_scaled(name, gradient)
        return
    gradients = {name: update.with_proximal(name, gradient) for name, gradient in gradients.items()}
    rate = LEARNING_RATE
    if recipe.clip_norm:
        factor = update.clip_factor(gradients)
        if recipe.optimizer == "sgd":
            rate = builder.op("Mul", LEARNING_RATE, factor)
        else:
            gradients = {name: builder.op("Mul", gradient, factor) for name, gradient in gradients.items()}
    if recipe.optimizer == "sgd":
        for name, gradient in gradients.items():
            builder.op("Sub", update.decayed(name), builder.op("Mul", gradient, rate), output=UPDATED + name)
    elif _is_adam(recipe):
        update.adam(gradients)
    else:
        for name, gradient in gradients.items():
            update.momentum(name, gradient)


@dataclass(frozen=True, kw_only=True)
class _Update:
    """Appends the nodes of one step.

    Attributes:
        builder: Gets them.
        recipe: What to append.
        hyper: Asked for the numbers of the recipe.
        foldable: Gradients of one parameter only.
    """

    builder: GraphBuilder
    recipe: TrainingRecipe
    hyper: HyperParameter
    foldable: frozenset[str]

    def plus(self, addend: str, gradient: str, *, output: str | None = None, minus: bool = False) -> str:
        """``addend + gradient``, or minus it.

        Where the gradient is one matrix product, the addend goes into it: ``A + dZᵀ X`` is one Gemm and passes over
        the matrix once and not twice.
        """
        b = self.builder
        node = self._product(gradient)
        if node is None:
            return b.op("Sub" if minus else "Add", addend, gradient, output=output)
        b.nodes.remove(node)
        attributes = stated(node)
        if minus:
            attributes["alpha"] = -attribute(node, "alpha")
        return b.op("Gemm", *node.input, addend, output=output, **attributes)

    def _product(self, gradient: str) -> onnx.NodeProto | None:
        """The Gemm that makes a gradient, if it adds nothing and nobody else reads it."""
        node = next((node for node in self.builder.nodes if gradient in node.output), None)
        if node is None or node.op_type != "Gemm" or len(node.input) != 2 or gradient not in self.foldable:
            return None
        return None if any(gradient in other.input for other in self.builder.nodes) else node

    def descend_scaled(self, name: str, gradient: str) -> None:
        """``p - r decay p - r proximal (p - anchor) - r g``, where ``r g`` is given."""
        b = self.builder
        kept = self.decayed(name)
        if self.recipe.proximal:
            pull = b.op("Mul", b.op("Sub", name, ANCHOR + name), self._times_rate("proximal"))
            kept = b.op("Sub", kept, pull)
        self.plus(kept, gradient, minus=True, output=UPDATED + name)

    def decayed(self, name: str) -> str:
        """``p (1 - r decay)``."""
        b = self.builder
        if not self.recipe.weight_decay:
            return name
        return b.op("Mul", name, self._once("Sub", b.constant(1.0), self._times_rate("weight_decay")))

    def with_proximal(self, name: str, gradient: str) -> str:
        """``g + proximal (p - anchor)``."""
        b = self.builder
        if not self.recipe.proximal:
            return gradient
        return self.plus(b.op("Mul", b.op("Sub", name, ANCHOR + name), self.hyper("proximal")), gradient)

    def clip_factor(self, gradients: Mapping[str, str]) -> str:
        """``min(1, clip_norm / (|g| + 1e-6))`` over all gradients."""
        b = self.builder
        squares = [b.op("ReduceSumSquare", gradient, keepdims=0) for gradient in gradients.values()]
        norm = b.op("Add", b.op("Sqrt", b.op("Sum", *squares)), b.constant(_CLIP_EPSILON))
        return b.op("Min", b.op("Div", self.hyper("clip_norm"), norm), b.constant(1.0))

    def with_decay(self, name: str, gradient: str) -> str:
        """``g + decay p``."""
        if not self.recipe.weight_decay:
            return gradient
        return self.plus(self.builder.op("Mul", name, self.hyper("weight_decay")), gradient)

    def momentum(self, name: str, gradient: str) -> None:
        """``m = momentum m + g``, ``p -= r m``; nesterov: ``p -= r (g + momentum m)``."""
        b = self.builder
        slot, rate = _slot("momentum", name), self.hyper("momentum")
        gradient = self.with_decay(name, gradient)
        before = b.op("Mul", slot, rate)
        if self.recipe.optimizer == "nesterov":
            now = b.op("Add", before, gradient, output=UPDATED + slot)
            now = b.op("Add", gradient, b.op("Mul", now, rate))
        else:
            now = self.plus(before, gradient, output=UPDATED + slot)
        b.op("Sub", name, b.op("Mul", now, LEARNING_RATE), output=UPDATED + name)

    def adam(self, gradients: Mapping[str, str]) -> None:
        """Adam (Kingma and Ba 2015, arXiv:1412.6980), AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

        ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``, ``p -= r (m / c1) / (sqrt(v / c2) + epsilon)`` with
        ``c = 1 - b^steps``; here as ``r sqrt(c2) / c1 * m / (sqrt(v) + epsilon sqrt(c2))``, which leaves two
        divisions of scalars instead of two of matrices.
        """
        b, one = self.builder, self.builder.constant(1.0)
        beta1, beta2 = self.hyper("beta1"), self.hyper("beta2")
        steps = b.op("Add", STEPS, one, output=UPDATED + STEPS)
        rest1, rest2 = b.op("Sub", one, beta1), b.op("Sub", one, beta2)
        correction1 = b.op("Sub", one, b.op("Pow", beta1, steps))
        root2 = b.op("Sqrt", b.op("Sub", one, b.op("Pow", beta2, steps)))
        rate = b.op("Div", b.op("Mul", LEARNING_RATE, root2), correction1)
        epsilon = b.op("Mul", self.hyper("epsilon"), root2)
        for name, found in gradients.items():
            mean, square = _slot("mean", name), _slot("square", name)
            is_decoupled = self.recipe.optimizer == "adamw"
            gradient = found if is_decoupled else self.with_decay(name, found)
            base = self.decayed(name) if is_decoupled else name
            mean = b.op("Add", b.op("Mul", mean, beta1), b.op("Mul", gradient, rest1), output=UPDATED + mean)
            new = b.op("Mul", b.op("Mul", gradient, gradient), rest2)
            square = b.op("Add", b.op("Mul", square, beta2), new, output=UPDATED + square)
            direction = b.op("Div", mean, b.op("Add", b.op("Sqrt", square), epsilon))
            b.op("Sub", base, b.op("Mul", direction, rate), output=UPDATED + name)

    def _times_rate(self, number: str) -> str:
        return self._once("Mul", LEARNING_RATE, self.hyper(number))

    def _once(self, op_type: str, *inputs: str) -> str:
        """A node that is there once however often it is asked for."""
        for node in self.builder.nodes:
            if node.op_type == op_type and list(node.input) == list(inputs):
                return str(node.output[0])
        return self.builder.op(op_type, *inputs)


def _slot(kind: str, parameter: str) -> str:
    return f"{SLOT}{kind}.{parameter}"


def _is_adam(recipe: TrainingRecipe) -> bool:
    return recipe.optimizer in ("adam", "adamw")
