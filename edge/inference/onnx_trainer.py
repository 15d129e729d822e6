"""The onnxruntime door for learning: runs a bundle's training graph, an ordinary ONNX graph of standard operators.

Two sets of parameter buffers are used in turn (ping-pong): a step reads one and writes the other. Binding an output
onto the buffer of an input is wrong, because onnxruntime does not promise in which order nodes read and write it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from edge.contract.errors import BundleError, LearningError
from edge.contract.training import FloatArray, LabelArray, Parameters
from edge.inference.onnx_session import open_onnx

LABELS = "labels"
SAMPLE_WEIGHTS = "sample_weights"
LEARNING_RATE = "learning_rate"
LOSS = "loss"
UPDATED = "updated."  # prefix of the output that holds a parameter's new value


class OnnxTrainer:
    """Implements `edge.contract.training.TrainStep` on one thread of the CPU.

    Args:
        graph: `head.train.onnx`.
        features: Name of the features input.
        parameters: First values, float32 by name; copied.

    Raises:
        BundleError: The graph does not load or does not have these inputs and outputs.
    """

    def __init__(self, graph: bytes, features: str, parameters: Mapping[str, FloatArray]) -> None:
        self._session = open_onnx(graph, "the training graph")
        self._features = features
        expected = {features, LABELS, SAMPLE_WEIGHTS, LEARNING_RATE, *parameters}
        found = {item.name for item in self._session.get_inputs()}
        outputs = {item.name for item in self._session.get_outputs()}
        if found != expected or not {LOSS, *(UPDATED + name for name in parameters)} <= outputs:
            raise BundleError(f"the training graph has the inputs {sorted(found)}, expected {sorted(expected)}")
        self._names = list(parameters)
        self._loss = np.zeros((), np.float32)
        self._rate = np.zeros((), np.float32)
        self._sets = tuple(
            {name: np.array(array, np.float32, order="C") for name, array in parameters.items()} for _ in range(2)
        )
        self._live = 0
        self._bindings = tuple(self._bind(source) for source in range(2))

    def _bind(self, source: int) -> ort.IOBinding:
        """A binding that reads parameter set `source` and writes the other one."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(LEARNING_RATE, self._rate)
        for name in self._names:
            binding.bind_cpu_input(name, self._sets[source][name])
            target = self._sets[1 - source][name]
            binding.bind_output(UPDATED + name, "cpu", 0, np.float32, target.shape, target.ctypes.data)
        binding.bind_output(LOSS, "cpu", 0, np.float32, (), self._loss.ctypes.data)
        return binding

    def step(self, features: FloatArray, labels: LabelArray, sample_weights: FloatArray, learning_rate: float) -> float:
        """See `edge.contract.training.TrainStep.step`. That labels are in range is checked by the learner, not here.

        Raises:
            LearningError: The batch has other shapes, the loss is no longer finite, or a parameter is not or is beyond
                1e19; the parameters stay as they were.
        """
        binding = self._bindings[self._live]
        features = np.ascontiguousarray(features, np.float32)
        labels = np.ascontiguousarray(labels, np.int64)
        sample_weights = np.ascontiguousarray(sample_weights, np.float32)
        self._rate[()] = learning_rate
        binding.bind_cpu_input(self._features, features)
        binding.bind_cpu_input(LABELS, labels)
        binding.bind_cpu_input(SAMPLE_WEIGHTS, sample_weights)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as exc:  # the door: onnxruntime's exceptions have no common base
            shapes = f"features {features.shape}, labels {labels.shape}, weights {sample_weights.shape}"
            raise LearningError(f"the training step does not take this batch ({shapes})") from exc
        loss = float(self._loss)
        written = self._sets[1 - self._live]
        # A sum of squares is finite only if everything in it is, and is quicker than looking at each. It overflows
        # float32 beyond 1e19, where a head has diverged anyway.
        if not (math.isfinite(loss) and all(math.isfinite(np.vdot(array, array)) for array in written.values())):
            raise LearningError(f"the training step gave values that are not finite (loss {loss}); it was not taken")
        self._live = 1 - self._live
        return loss

    def parameters(self) -> Parameters:
        """See `edge.contract.training.TrainStep.parameters`."""
        return {name: array.copy() for name, array in self._sets[self._live].items()}

    def load(self, parameters: Mapping[str, FloatArray]) -> None:
        """See `edge.contract.training.TrainStep.load`.

        Raises:
            LearningError: Other names, shapes or values that are not finite; the parameters stay as they were.
        """
        live = self._sets[self._live]
        if {n: a.shape for n, a in parameters.items()} != {n: a.shape for n, a in live.items()}:
            raise LearningError("these are not the parameters of this head")
        if not all(np.isfinite(array).all() for array in parameters.values()):
            raise LearningError("parameters with values that are not finite were refused")
        for name, array in live.items():
            array[...] = parameters[name]
