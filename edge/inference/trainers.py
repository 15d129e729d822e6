"""Choosing who executes a bundle's training steps: numpy, onnxruntime or torch, on the CPU or an NVIDIA GPU.

They compute the same; which is fastest depends on the head and the machine, so it is measured. Small heads are as a
rule fastest without a runtime, large ones on a GPU.

With ``auto`` torch is not even imported unless it is installed and the machine has an NVIDIA device file: torch takes
hundreds of megabytes, and without a GPU it is slower than the others on small heads.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.choices import EXECUTORS
from edge.contract.errors import ConfigError, EdgeError
from edge.contract.manifest import HeadSpec
from edge.contract.training import TrainStep
from edge.inference.numpy_trainer import NumpyTrainer
from edge.inference.onnx_providers import CUDA, has_cuda
from edge.inference.onnx_trainer import OnnxTrainer

# Of a graphics card, and of a Jetson's own GPU.
GPU_FILES = (Path("/dev/nvidia0"), Path("/dev/nvhost-gpu"))

# A batch as the SGD learner draws: a new sample and sixteen replayed ones.
BATCH_SIZE = 17
_WARM_UP_STEPS = 3
_TIMED_STEPS = 15

Make = Callable[[], TrainStep]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opened:
    """A training step and how it was chosen.

    Attributes:
        step: Holds the head's shipped parameters.
        executor: ``numpy``, ``onnx``, ``onnx-cuda``, ``torch`` or ``torch-cuda``.
        measured_us: Time of a step by executor, in microseconds; empty where there was no choice.
        failed: What an executor that could not be used said, by executor.
    """

    step: TrainStep
    executor: str
    measured_us: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


def open_trainer(
    bundle: Bundle,
    executor: str = "auto",
    *,
    clock: Callable[[], float] = time.perf_counter,
    gpu_files: Sequence[Path] = GPU_FILES,
) -> Opened:
    """Open a bundle's training step with the fastest executor, or with a given one.

    Args:
        bundle: With a head.
        executor: One of `EXECUTORS`. ``numpy`` takes heads of one linear layer; ``torch`` needs torch and a bundle that
            holds `edge.contract.manifest.HEAD_TORCHSCRIPT`. ``onnx`` and ``torch`` run on the CPU or on CUDA, whichever
            is faster.
        clock: A stopwatch, in seconds.
        gpu_files: The machine has an NVIDIA GPU if one of these exists.

    Raises:
        ConfigError: The name is not known, this bundle cannot be trained by it here, or the bundle has no head.
        BundleError: The bundle's training graph does not load.
    """
    if bundle.manifest.head is None:
        raise ConfigError(f"{bundle.path} has no trainable head")
    if executor not in EXECUTORS:
        raise ConfigError(f"the executor {executor!r} is not known; expected one of {', '.join(EXECUTORS)}")
    possible = _Possible(bundle, bundle.manifest.head)
    problem = possible.problem(executor)
    if problem is not None:
        names = [name for name in EXECUTORS if possible.problem(name) is None]
        raise ConfigError(f"the executor {executor} cannot train this head: {problem}; possible: {', '.join(names)}")
    has_gpu = any(path.exists() for path in gpu_files)
    candidates = possible.candidates(executor, has_gpu=has_gpu)
    n_outputs = int(bundle.manifest.output(bundle.manifest.head.output).sample_shape[0])
    failed: dict[str, str] = {}
    steps: dict[str, TrainStep] = {}
    measured: dict[str, float] = {}
    errors: list[EdgeError] = []
    for name, make in candidates.items():
        try:
            steps[name] = make()
            if len(candidates) > 1:
                measured[name] = _least_us(steps[name], bundle.manifest.head, n_outputs, clock)
                steps[name].load(bundle.head_parameters())
        except EdgeError as exc:  # e.g. a GPU without memory left: the others remain
            steps.pop(name, None)
            measured.pop(name, None)
            errors.append(exc)
            failed[name] = str(exc)
    if not steps:
        raise errors[0]
    chosen = min(steps, key=lambda name: measured.get(name, 0.0))
    return Opened(step=steps[chosen], executor=chosen, measured_us=measured, failed=failed)


class _Possible:
    """What can train a bundle's head on this machine."""

    def __init__(self, bundle: Bundle, head: HeadSpec) -> None:
        self._bundle, self._head = bundle, head

    def problem(self, executor: str) -> str | None:
        """Why an executor cannot be used, None if it can."""
        if executor == "numpy" and not self._head.is_linear:
            return "it is not one linear layer"
        if executor == "torch" and not self._bundle.has(m.HEAD_TORCHSCRIPT):
            return f"the bundle has no {m.HEAD_TORCHSCRIPT}"
        if executor == "torch" and not _is_installed("torch"):
            return "torch is not installed"
        return None

    def candidates(self, executor: str, *, has_gpu: bool) -> dict[str, Make]:
        """How to make each that may be chosen; torch is imported only where it is one of them."""
        found: dict[str, Make] = {}
        if executor in ("auto", "numpy") and self.problem("numpy") is None:
            found["numpy"] = self._numpy
        if executor in ("auto", "onnx"):
            found["onnx"] = self._onnx
            if has_gpu and has_cuda():
                found["onnx-cuda"] = lambda: self._onnx((CUDA, "CPUExecutionProvider"))
        if executor == "torch" or (executor == "auto" and has_gpu and self.problem("torch") is None):
            from edge.inference import torchscript_trainer

            found["torch"] = self._torch
            if torchscript_trainer.has_cuda():
                found["torch-cuda"] = lambda: self._torch("cuda")
        return found

    def _numpy(self) -> TrainStep:
        assert self._head.linear is not None
        return NumpyTrainer(self._head.training, self._head.linear, self._bundle.head_parameters())

    def _onnx(self, providers: Sequence[str] = ("CPUExecutionProvider",)) -> TrainStep:
        graph = self._bundle.read(m.HEAD_TRAIN)
        return OnnxTrainer(graph, self._head.features.name, self._bundle.head_parameters(), providers)

    def _torch(self, device: str = "cpu") -> TrainStep:
        from edge.inference.torchscript_trainer import TorchScriptTrainer

        archive, recipe = self._bundle.read(m.HEAD_TORCHSCRIPT), self._head.training
        return TorchScriptTrainer(archive, recipe, self._bundle.head_parameters(), device)


def _is_installed(library: str) -> bool:
    """Whether a library can be imported, without importing it."""
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):
        return False


def _least_us(step: TrainStep, head: HeadSpec, n_outputs: int, clock: Callable[[], float]) -> float:
    """Time of a step on some features, in microseconds; the learning rate is 0, so no head diverges.

    Of all steps the one that was disturbed least: on a busy machine a median says more about the others.
    """
    shape = (BATCH_SIZE, *head.features.sample_shape)
    features = np.sin(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape)
    targets = np.zeros((BATCH_SIZE, n_outputs), np.float32)
    targets[np.arange(BATCH_SIZE), np.arange(BATCH_SIZE) % n_outputs] = 1.0
    weights = np.ones(BATCH_SIZE, np.float32)
    times = []
    for _ in range(_WARM_UP_STEPS + _TIMED_STEPS):
        begin = clock()
        step.step(features, targets, weights, 0.0)
        times.append(clock() - begin)
    return min(times[_WARM_UP_STEPS:]) * 1e6
