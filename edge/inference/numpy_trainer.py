"""The training step of a head that is one linear layer, ``z = x Wᵀ + b``, in numpy alone.

Such a step is two small matrix products; what a runtime adds to each run is then most of the time. The formulas are
those of `edge.contract.recipe.TrainingRecipe`, all in float32.

Nothing changes before it is known that the step is finite. Plain SGD changes the parameters in place: by Cauchy and
Schwarz no entry of ``dZᵀ X`` is larger than ``|dZ| |X|``, which is cheaper to look at than the new parameters. The
other optimizers write what is new beside what is old, and the two change places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, HUBER, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.contract.training import FloatArray, Parameters

SLOT, ANCHOR = "slot.", "anchor."
STEPS = SLOT + "steps"
_PARAMETERS = ""
_SLOTS = {"momentum": ("momentum",), "nesterov": ("momentum",), "adam": ("mean", "square"), "adamw": ("mean", "square")}
# Added to the norm as torch.nn.utils.clip_grad_norm_ does.
_CLIP_EPSILON = 1e-6
# Parameters up to here are surely finite after rounding: float32 ends at 3.4e38.
_SAFE = 1e38
# A float32 sum of a million squares may be this much too small.
_SLACK = 1.1
# So many numbers of a gradient, 128 KiB, stay in the cache until they are subtracted.
_BLOCK = 1 << 15


class NumpyTrainer:
    """Implements `edge.contract.training.TrainStep` for one linear layer.

    Args:
        recipe: Loss and optimizer.
        head: Names of weight and bias.
        parameters: First values: the weight ``(n_outputs, n_inputs)`` and, where there is one, the bias
            ``(n_outputs,)``, float32; copied.

    Raises:
        LearningError: Other names, shapes or values that are not finite.
    """

    def __init__(self, recipe: TrainingRecipe, head: LinearLayer, parameters: Mapping[str, FloatArray]) -> None:
        self.recipe = recipe
        self._weight, self._bias = head.weight, head.bias
        self._kinds = _SLOTS.get(recipe.optimizer, ())
        self._counts = recipe.optimizer in ("adam", "adamw")
        self._loss = _LOSSES[recipe.loss]
        self._is_plain = recipe.optimizer == "sgd" and not (recipe.weight_decay or recipe.proximal or recipe.clip_norm)
        self._n_inputs: int | None = None
        self.load(parameters)

    def step(
        self, features: FloatArray, targets: FloatArray, sample_weights: FloatArray, learning_rate: float
    ) -> float:
        """See `edge.contract.training.TrainStep.step`.

        Args:
            features: ``(batch, n_inputs)`` float32.
            targets: ``(batch, n_outputs)`` float32.
            sample_weights: ``(batch,)`` float32.
            learning_rate: Step size.

        Raises:
            LearningError: The batch has other shapes, or the loss, a parameter or a slot would not be finite; nothing
                changed.
        """
        features = np.ascontiguousarray(features, np.float32)
        targets = np.ascontiguousarray(targets, np.float32)
        sample_weights = np.ascontiguousarray(sample_weights, np.float32)
        weight, bias = self._parts
        n_outputs, n_inputs = weight.shape
        n = len(sample_weights) if sample_weights.ndim == 1 else 0
        if not n or features.shape != (n, n_inputs) or targets.shape != (n, n_outputs):
            raise LearningError(
                f"the training step does not take this batch (features {features.shape}, targets {targets.shape}, "
                f"weights {sample_weights.shape}; expected ({n_inputs}) and ({n_outputs}) for each sample)"
            )
        rate = float(learning_rate)
        with np.errstate(all="ignore"):  # what is not finite is found below
            outputs = np.dot(features, weight.T)
            if bias is not None:
                outputs += bias
            loss = self._loss(outputs, targets, sample_weights, rate if self._is_plain else 1.0, self.recipe)
            if not math.isfinite(loss):
                raise LearningError(f"the training step gave a loss that is not finite ({loss}); it was not taken")
            taken = self._descend(features, outputs) if self._is_plain else self._update(features, outputs, rate)
        if not taken:
            raise LearningError(f"the training step gave values that are not finite (loss {loss}); it was not taken")
        return loss

    def parameters(self) -> Parameters:
        """See `edge.contract.training.TrainStep.parameters`."""
        return self._named(self._live[_PARAMETERS])

    def memory(self) -> Parameters:
        """See `edge.contract.training.TrainStep.memory`."""
        found: Parameters = {}
        for kind in self._kinds:
            found |= self._named(self._live[kind], f"{SLOT}{kind}.")
        if self._counts:
            found[STEPS] = np.array(self._steps, np.float32)
        return found | ({} if self._anchor is None else self._named(self._anchor, ANCHOR))

    def load(self, parameters: Mapping[str, FloatArray], memory: Mapping[str, FloatArray] | None = None) -> None:
        """See `edge.contract.training.TrainStep.load`; the number of outputs may be another one than before.

        Raises:
            LearningError: Other names, shapes or values that are not finite; nothing changed.
        """
        shape = np.shape(parameters.get(self._weight, 0.0))
        if len(shape) != 2 or not all(shape) or self._n_inputs not in (None, shape[1]):
            raise LearningError(f"these are not the parameters of this head: it has the weight {self._weight}")
        shapes: dict[str, tuple[int, ...]] = {self._weight: shape}
        if self._bias is not None:
            shapes[self._bias] = shape[:1]
        _check(parameters, shapes, "the parameters of this head")
        prefixes = {kind: f"{SLOT}{kind}." for kind in self._kinds} | ({ANCHOR: ANCHOR} if self.recipe.proximal else {})
        if memory is not None:
            expected = {prefix + name: size for prefix in prefixes.values() for name, size in shapes.items()}
            _check(memory, expected | ({STEPS: ()} if self._counts else {}), "what this optimizer remembers")
        first = _joined(parameters, "", shapes)
        self._live = {_PARAMETERS: first} | {
            kind: np.zeros_like(first) if memory is None else _joined(memory, prefixes[kind], shapes)
            for kind in self._kinds
        }
        self._steps = 0.0 if memory is None or not self._counts else float(memory[STEPS])
        self._anchor = None
        if self.recipe.proximal:
            self._anchor = first.copy() if memory is None else _joined(memory, ANCHOR, shapes)
        self._prepare(shape[0], shape[1])

    def _prepare(self, n_outputs: int, n_inputs: int) -> None:
        """Make the room that the steps use, for the number of outputs that there is now."""
        self._n_outputs, self._n_inputs = n_outputs, n_inputs
        parameters = self._live[_PARAMETERS]
        self._parts = self._split(parameters)
        self._largest = _largest(parameters)
        if self._is_plain:
            self._rows = max(1, min(n_outputs, _BLOCK // n_inputs))
            self._block = np.empty((self._rows, n_inputs), np.float32)
            return
        self._spare = {name: np.zeros_like(array) for name, array in self._live.items()}
        self._gradient, self._room = np.zeros_like(parameters), np.zeros_like(parameters)
        self._gradient_parts = self._split(self._gradient)

    def _split(self, array: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """Weight ``(n_outputs, n_inputs)`` and bias in one buffer, as views."""
        assert self._n_inputs is not None
        size = self._n_outputs * self._n_inputs
        weight = array[:size].reshape(self._n_outputs, self._n_inputs)
        return weight, None if self._bias is None else array[size:]

    def _named(self, array: FloatArray, prefix: str = "") -> Parameters:
        """Copies of weight and bias in one buffer, by name."""
        weight, bias = self._split(array)
        found = {prefix + self._weight: weight.copy()}
        if self._bias is not None and bias is not None:
            found[prefix + self._bias] = bias.copy()
        return found

    def _descend(self, features: FloatArray, error: FloatArray) -> bool:
        """Plain SGD in place.

        Args:
            features: ``(batch, n_inputs)``.
            error: The learning rate times the gradient of the outputs, ``(batch, n_outputs)``.

        Returns:
            Whether the step was taken: everything stays finite.
        """
        weight, bias = self._parts
        squares = float(np.vdot(error, error)) * max(float(np.vdot(features, features)), len(features))
        largest = self._largest + _SLACK * math.sqrt(squares) if squares >= 0 else math.nan
        if not largest < _SAFE:  # not so if one of them is not a number
            return self._descend_with_care(features, error)
        self._largest = largest
        if bias is not None:
            bias -= np.add.reduce(error, axis=0)
        across = error.T
        if self._rows == len(weight):
            weight -= np.dot(across, features, out=self._block)
            return True
        for start in range(0, len(weight), self._rows):
            part = weight[start : start + self._rows]
            part -= np.dot(across[start : start + self._rows], features, out=self._block[: len(part)])
        return True

    def _descend_with_care(self, features: FloatArray, error: FloatArray) -> bool:
        """The same, where only looking at each new parameter tells whether it is finite."""
        changed = self._live[_PARAMETERS].copy()
        weight, bias = self._split(changed)
        weight -= np.dot(error.T, features)
        if bias is not None:
            bias -= np.add.reduce(error, axis=0)
        if not _is_finite(changed):
            return False
        self._live[_PARAMETERS][...] = changed
        self._largest = _largest(changed)
        return True

    def _update(self, features: FloatArray, error: FloatArray, rate: float) -> bool:
        """Any recipe: write everything new into the spare arrays and take them if all of it is finite."""
        recipe, gradient, room, old = self.recipe, self._gradient, self._room, self._live[_PARAMETERS]
        weight, bias = self._gradient_parts
        np.dot(error.T, features, out=weight)
        if bias is not None:
            np.add.reduce(error, axis=0, out=bias)
        if self._anchor is not None:
            np.subtract(old, self._anchor, out=room)
            room *= recipe.proximal
            gradient += room
        if recipe.clip_norm:
            gradient *= min(1.0, recipe.clip_norm / (_norm(gradient) + _CLIP_EPSILON))
        if recipe.weight_decay and recipe.optimizer != "adamw":
            gradient += np.multiply(old, recipe.weight_decay, out=room)
        steps = float(np.float32(self._steps) + np.float32(1))  # as executors that keep it in float32
        if self._counts:
            self._adam(rate, steps)
        else:
            self._momentum(rate)
        if not all(map(_is_finite, self._spare.values())):
            return False
        self._live, self._spare, self._steps = self._spare, self._live, steps
        self._parts = self._split(self._live[_PARAMETERS])
        return True

    def _momentum(self, rate: float) -> None:
        """``m = momentum m + g``, ``p -= r m``; nesterov: ``p -= r (g + momentum m)``; sgd: ``p -= r g``."""
        momentum, change = self.recipe.momentum, self._gradient
        if self._kinds:
            change = np.multiply(self._live["momentum"], momentum, out=self._spare["momentum"])
            change += self._gradient
        if self.recipe.optimizer == "nesterov":
            change = np.multiply(change, momentum, out=self._room)
            change += self._gradient
        np.multiply(change, rate, out=self._room)
        np.subtract(self._live[_PARAMETERS], self._room, out=self._spare[_PARAMETERS])

    def _adam(self, rate: float, steps: float) -> None:
        """Adam (Kingma and Ba 2015, arXiv:1412.6980), AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

        ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``, ``p -= r (m / c1) / (sqrt(v / c2) + epsilon)`` with
        ``c = 1 - b^steps``. b is rounded to float32 first: so ``1 - b`` and c belong to the b that m and v see.
        """
        recipe, gradient, room, base = self.recipe, self._gradient, self._room, self._live[_PARAMETERS]
        beta1, beta2 = float(np.float32(recipe.beta1)), float(np.float32(recipe.beta2))
        correction1, correction2 = 1.0 - beta1**steps, 1.0 - beta2**steps
        np.multiply(gradient, gradient, out=room)
        room *= 1.0 - beta2
        square = np.multiply(self._live["square"], beta2, out=self._spare["square"])
        square += room
        gradient *= 1.0 - beta1
        mean = np.multiply(self._live["mean"], beta1, out=self._spare["mean"])
        mean += gradient
        np.sqrt(square, out=room)
        room *= 1.0 / math.sqrt(correction2)
        room += recipe.epsilon
        np.divide(mean, room, out=room)
        room *= rate / correction1
        if recipe.optimizer == "adamw" and recipe.weight_decay:
            base = np.multiply(base, 1.0 - rate * recipe.weight_decay, out=self._spare[_PARAMETERS])
        np.subtract(base, room, out=self._spare[_PARAMETERS])


# Each gives the loss and turns the outputs into `factor` times the loss's gradient with respect to them.


def _cross_entropy(z: FloatArray, t: FloatArray, w: FloatArray, factor: float, _: TrainingRecipe) -> float:
    """``-sum_c t_c log softmax(z)_c``; ``dz = softmax(z) - t``, for rows of t that sum to 1."""
    z -= np.maximum.reduce(z, axis=1, keepdims=True)
    told = np.add.reduce(t * z, axis=1)
    np.exp(z, out=z)
    total = np.add.reduce(z, axis=1, keepdims=True)
    each = np.log(total[:, 0])
    each -= told
    z /= total
    z -= t
    z *= (w * (factor / len(w)))[:, None]
    return float(np.dot(w, each)) / len(w)


def _binary_cross_entropy(z: FloatArray, t: FloatArray, w: FloatArray, factor: float, _: TrainingRecipe) -> float:
    """``mean_c log(1 + exp(z_c)) - t_c z_c``; ``dz = (sigmoid(z) - t) / n``.

    ``log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|))``, which does not overflow.
    """
    small = np.exp(-np.abs(z))
    each = np.maximum(z, 0)
    each += np.log1p(small)
    each -= t * z
    np.divide(np.where(z >= 0, np.float32(1), small), small + np.float32(1), out=z)
    z -= t
    return _finish(z, each, w, factor)


def _mean_squared_error(z: FloatArray, t: FloatArray, w: FloatArray, factor: float, _: TrainingRecipe) -> float:
    """``mean_c (z_c - t_c)^2``; ``dz = 2 (z - t) / n``."""
    z -= t
    return _finish(z, z * z, w, 2.0 * factor)


def _huber(z: FloatArray, t: FloatArray, w: FloatArray, factor: float, recipe: TrainingRecipe) -> float:
    """``mean_c c (e - c / 2)`` with ``e = z - t`` and ``c = min(max(e, -delta), delta)``; ``dz = c / n``."""
    z -= t
    clipped = np.clip(z, -recipe.huber_delta, recipe.huber_delta)
    each = clipped * (z - 0.5 * clipped)
    z[...] = clipped
    return _finish(z, each, w, factor)


def _finish(z: FloatArray, each: FloatArray, w: FloatArray, factor: float) -> float:
    """The weighted mean of a loss for each output, whose gradient is multiplied accordingly."""
    z *= (w * (factor / z.size))[:, None]
    return float(np.dot(w, np.add.reduce(each, axis=1))) / z.size


_LOSSES: dict[str, Callable[[FloatArray, FloatArray, FloatArray, float, TrainingRecipe], float]] = {
    CROSS_ENTROPY: _cross_entropy,
    BINARY_CROSS_ENTROPY: _binary_cross_entropy,
    MEAN_SQUARED_ERROR: _mean_squared_error,
    HUBER: _huber,
}


def _norm(array: FloatArray) -> float:
    """Length of a vector; in float64 where its square is beyond float32."""
    square = float(np.vdot(array, array))
    if not math.isfinite(square):
        square = float(np.sum(np.square(array, dtype=np.float64)))
    return math.sqrt(square)


def _is_finite(array: FloatArray) -> bool:
    """A sum of squares is finite only if everything in it is, and is quicker than looking at each."""
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _largest(array: FloatArray) -> float:
    return float(max(array.max(), -array.min()))


def _joined(arrays: Mapping[str, FloatArray], prefix: str, names: Iterable[str]) -> FloatArray:
    """Some of the arrays, one behind the other in a new buffer."""
    return np.concatenate([np.asarray(arrays[prefix + name], np.float32).reshape(-1) for name in names])


def _check(found: Mapping[str, FloatArray], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise LearningError unless the arrays have these names and shapes and are finite."""
    shapes = {name: np.shape(array) for name, array in found.items()}
    if shapes != expected:
        raise LearningError(f"these are not {what}: expected {dict(expected)}, got {shapes}")
    if not all(np.isfinite(array).all() for array in found.values()):
        raise LearningError(f"{what}: values that are not finite were refused")
