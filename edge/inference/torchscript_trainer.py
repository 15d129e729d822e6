"""The torch door for learning: a head's TorchScript, torch's autograd and ``torch.optim``, on the CPU or a GPU.

For a device that has torch and a GPU, e.g. a Jetson; nothing else loads this module, so no other device needs torch.
Parameters and slots stay on the device; a step costs one wait for it, for the loss and whether everything is finite.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.jit._fuser import optimized_execution
from torch.nn import functional

from edge.contract.errors import BundleError, ConfigError, LearningError
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, HUBER, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.contract.training import FloatArray, Parameters
from edge.inference.numpy_trainer import ANCHOR, SLOT, STEPS

HEAD_FILE = "edgeloop.json"
"""In the archive: features, parameters in order, and those of a last linear layer (`converter.head.torchscript`)."""

# What an optimizer remembers of a parameter: our name and torch's.
_SLOTS = {
    "sgd": {},
    "momentum": {"momentum": "momentum_buffer"},
    "nesterov": {"momentum": "momentum_buffer"},
    "adam": {"mean": "exp_avg", "square": "exp_avg_sq"},
    "adamw": {"mean": "exp_avg", "square": "exp_avg_sq"},
}
# Added to the norm as torch.nn.utils.clip_grad_norm_ does.
_CLIP_EPSILON = 1e-6

Tensors = dict[str, torch.Tensor]


def has_cuda() -> bool:
    """Whether torch can use an NVIDIA GPU here."""
    return torch.cuda.is_available()


class TorchScriptTrainer:
    """Implements `edge.contract.training.TrainStep` on torch.

    Args:
        archive: `head.torchscript.pt`.
        recipe: Loss and optimizer.
        parameters: First values, float32 by name; copied.
        device: ``cpu`` or ``cuda``.

    Raises:
        BundleError: The archive does not load, or is of other parameters.
        ConfigError: There is no such device.
        LearningError: The parameters' shapes do not fit or values are not finite.
    """

    def __init__(
        self, archive: bytes, recipe: TrainingRecipe, parameters: Mapping[str, FloatArray], device: str = "cpu"
    ) -> None:
        if device not in ("cpu", "cuda"):
            raise ConfigError(f"the device {device!r} is not known; expected cpu or cuda")
        if device == "cuda" and not has_cuda():
            raise ConfigError("torch finds no CUDA device; use cpu")
        self.recipe = recipe
        self._device = torch.device(device)
        self._script, about = _open(archive, self._device)
        self._names: list[str] = about["parameters"]
        self._growing = frozenset(about["output_layer"])
        if sorted(parameters) != sorted(self._names):
            raise BundleError(
                f"the TorchScript of the head has the parameters {', '.join(self._names)}; expected "
                f"{', '.join(parameters)}"
            )
        self._shapes = {name: np.shape(parameters[name]) for name in self._names}
        self._loss = _LOSSES[recipe.loss]
        self.load(parameters)

    def step(
        self, features: FloatArray, targets: FloatArray, sample_weights: FloatArray, learning_rate: float
    ) -> float:
        """See `edge.contract.training.TrainStep.step`.

        Raises:
            LearningError: The batch has other shapes, or the loss, a parameter or a slot would not be finite; nothing
                changed.
        """
        x, t, w = (
            torch.from_numpy(np.array(array, np.float32, order="C")).to(self._device)
            for array in (features, targets, sample_weights)
        )
        parameters = list(self._live.values())
        try:
            with torch.enable_grad(), optimized_execution(False):
                outputs = self._script(x, *parameters)
                if w.dim() != 1 or not len(w) or t.shape != outputs.shape or len(t) != len(w):
                    raise ValueError(f"the outputs are {tuple(outputs.shape)}")
                loss = self._loss(outputs, t, w, self.recipe)
                gradients = list(torch.autograd.grad(loss, parameters))
        except (RuntimeError, ValueError) as exc:
            shapes = f"features {tuple(x.shape)}, targets {tuple(t.shape)}, weights {tuple(w.shape)}"
            raise LearningError(f"the training step does not take this batch ({shapes})") from exc
        changing = self._changing()
        with torch.no_grad():
            before = [tensor.detach().clone() for tensor in changing]
            self._shape_gradients(gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.param_groups[0]["lr"] = float(learning_rate)
            self._optimizer.step()
            # Anything that is not finite makes its largest value so; one number comes back.
            on_device = [tensor.detach() for tensor in changing if tensor.device.type == self._device.type]
            largest = torch.stack([loss.detach(), *(tensor.abs().max() for tensor in on_device)])
            found = [float(value) for value in (loss.detach(), torch.isfinite(largest).all())]
            if not found[1]:
                for tensor, old in zip(changing, before, strict=True):
                    tensor.copy_(old)
                raise LearningError(
                    f"the training step gave values that are not finite (loss {found[0]}); it was not taken"
                )
        return found[0]

    def _shape_gradients(self, gradients: list[torch.Tensor]) -> None:
        """FedProx's term, then the limit of the norm over all, in place."""
        recipe = self.recipe
        for gradient, parameter, anchor in zip(
            gradients, self._live.values(), self._anchors.values(), strict=bool(recipe.proximal)
        ):
            gradient.add_(parameter - anchor, alpha=recipe.proximal)
        if recipe.clip_norm:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in gradients]))
            factor = torch.clamp(recipe.clip_norm / (norm + _CLIP_EPSILON), max=1.0)
            for gradient in gradients:
                gradient.mul_(factor)

    def parameters(self) -> Parameters:
        """See `edge.contract.training.TrainStep.parameters`."""
        return {name: _array(tensor) for name, tensor in self._live.items()}

    def memory(self) -> Parameters:
        """See `edge.contract.training.TrainStep.memory`; the names are those of the other executors."""
        found = {}
        for kind, key in _SLOTS[self.recipe.optimizer].items():
            for name, parameter in self._live.items():
                found[f"{SLOT}{kind}.{name}"] = _array(self._optimizer.state[parameter][key])
        if self._counts:
            found[STEPS] = _array(self._optimizer.state[self._live[self._names[0]]]["step"])
        return found | {ANCHOR + name: _array(tensor) for name, tensor in self._anchors.items()}

    def load(self, parameters: Mapping[str, FloatArray], memory: Mapping[str, FloatArray] | None = None) -> None:
        """See `edge.contract.training.TrainStep.load`; a last linear layer may have another number of outputs.

        Raises:
            LearningError: Other names, shapes or values that are not finite; nothing changed.
        """
        shapes = self._expected(parameters)
        _check(parameters, shapes, "the parameters of this head")
        slots: dict[str, tuple[int, ...]] = {
            f"{SLOT}{kind}.{name}": shape for kind in _SLOTS[self.recipe.optimizer] for name, shape in shapes.items()
        }
        if self._counts:
            slots[STEPS] = ()
        anchors = {ANCHOR + name: shape for name, shape in shapes.items()} if self.recipe.proximal else {}
        if memory is None:
            memory = {name: np.zeros(shape, np.float32) for name, shape in slots.items()}
            memory |= {name: parameters[name.removeprefix(ANCHOR)] for name in anchors}
        else:
            _check(memory, slots | anchors, "what this optimizer remembers")
        self._live = {name: self._tensor(parameters[name]).requires_grad_() for name in shapes}
        self._anchors = {name.removeprefix(ANCHOR): self._tensor(memory[name]) for name in anchors}
        self._optimizer = _optimizer(self.recipe, list(self._live.values()))
        for name, parameter in self._live.items():
            state = self._optimizer.state[parameter]
            for kind, key in _SLOTS[self.recipe.optimizer].items():
                state[key] = self._tensor(memory[f"{SLOT}{kind}.{name}"])
            if self._counts:
                state["step"] = torch.tensor(float(memory[STEPS]), dtype=torch.float32)  # torch keeps it on the CPU

    @property
    def _counts(self) -> bool:
        return self.recipe.optimizer in ("adam", "adamw")

    def _expected(self, parameters: Mapping[str, FloatArray]) -> dict[str, tuple[int, ...]]:
        """The shapes that parameters must have: the first axis of the last linear layer is free."""
        counts = [np.shape(parameters[name])[:1] for name in self._names if name in self._growing & parameters.keys()]
        if not counts or not counts[0] or not counts[0][0]:
            return self._shapes
        return {
            name: (*counts[0], *shape[1:]) if name in self._growing else shape for name, shape in self._shapes.items()
        }

    def _tensor(self, array: FloatArray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, np.float32, order="C")).to(self._device)

    def _changing(self) -> list[torch.Tensor]:
        """Everything that a step writes."""
        state = self._optimizer.state
        slots = [tensor for parameter in self._live.values() for tensor in state[parameter].values()]
        return [*self._live.values(), *slots]


def _open(archive: bytes, device: torch.device) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Load an archive and what `HEAD_FILE` in it says."""
    extra = {HEAD_FILE: b""}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
            script: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(archive), map_location=device, _extra_files=extra
            )
        about = json.loads(extra[HEAD_FILE])
        lists = [about["parameters"], about["output_layer"]]
        if not all(isinstance(item, list) and all(isinstance(name, str) for name in item) for item in lists):
            raise ValueError(f"{HEAD_FILE} does not name the parameters")
    except Exception as exc:  # the door: torch raises what it likes
        raise BundleError(
            f"the TorchScript of the head does not load in torch {torch.__version__}: {str(exc)[:300]}"
        ) from exc
    return script, about


def _optimizer(recipe: TrainingRecipe, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    if recipe.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        betas = (recipe.beta1, recipe.beta2)
        return kind(parameters, lr=1.0, betas=betas, eps=recipe.epsilon, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=1.0,
        momentum=0.0 if recipe.optimizer == "sgd" else recipe.momentum,
        nesterov=recipe.optimizer == "nesterov" and recipe.momentum > 0,  # torch refuses it without
        weight_decay=recipe.weight_decay,
    )


def _cross_entropy(z: torch.Tensor, t: torch.Tensor, w: torch.Tensor, _: TrainingRecipe) -> torch.Tensor:
    return -(w * (t * torch.log_softmax(z, dim=1)).sum(dim=1)).sum() / len(w)


def _binary_cross_entropy(z: torch.Tensor, t: torch.Tensor, w: torch.Tensor, _: TrainingRecipe) -> torch.Tensor:
    each = functional.binary_cross_entropy_with_logits(z, t, reduction="none")
    return (w * each.mean(dim=1)).sum() / len(w)


def _mean_squared_error(z: torch.Tensor, t: torch.Tensor, w: torch.Tensor, _: TrainingRecipe) -> torch.Tensor:
    return (w * (z - t).square().mean(dim=1)).sum() / len(w)


def _huber(z: torch.Tensor, t: torch.Tensor, w: torch.Tensor, recipe: TrainingRecipe) -> torch.Tensor:
    each = functional.huber_loss(z, t, reduction="none", delta=recipe.huber_delta)
    return (w * each.mean(dim=1)).sum() / len(w)


_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, TrainingRecipe], torch.Tensor]] = {
    CROSS_ENTROPY: _cross_entropy,
    BINARY_CROSS_ENTROPY: _binary_cross_entropy,
    MEAN_SQUARED_ERROR: _mean_squared_error,
    HUBER: _huber,
}


def _array(tensor: torch.Tensor) -> FloatArray:
    return tensor.detach().to("cpu", copy=True).numpy()


def _check(found: Mapping[str, FloatArray], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise LearningError unless the arrays have these names and shapes and are finite."""
    shapes = {name: np.shape(array) for name, array in found.items()}
    if shapes != expected:
        raise LearningError(f"these are not {what}: expected {dict(expected)}, got {shapes}")
    if not all(np.isfinite(array).all() for array in found.values()):
        raise LearningError(f"{what}: values that are not finite were refused")
