"""The onnxruntime door for learning: runs a bundle's training graph, an ordinary ONNX graph of standard operators.

Two sets of buffers for the parameters and the optimizer's slots are used in turn (ping-pong): a step reads one and
writes the other. Binding an output onto the buffer of an input is wrong, because onnxruntime does not promise in which
order nodes read and write it. It also makes refusing a step free: the set that was read is still there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from edge.contract.errors import BundleError, LearningError
from edge.contract.training import FloatArray, Parameters
from edge.inference.onnx_providers import CPU
from edge.inference.onnx_session import session_options

TARGETS = "targets"
SAMPLE_WEIGHTS = "sample_weights"
LEARNING_RATE = "learning_rate"
LOSS = "loss"
UPDATED = "updated."  # prefix of the output that holds the new value of a parameter or a slot
SLOT = "slot."  # what the optimizer remembers: slot.<kind>.<parameter>, or slot.<kind> for a scalar
ANCHOR = "anchor."  # a parameter's value that FedProx pulls it to

_Axes = Sequence[int | str | None]
# Arrays in one buffer begin at multiples of this many float32, so that each has a cache line of its own.
_LINE = 16


class OnnxTrainer:
    """Implements `edge.contract.training.TrainStep`, on one thread where it runs on the CPU.

    Args:
        graph: `head.train.onnx`.
        features: Name of the features input.
        parameters: First values, float32 by name; copied.
        providers: onnxruntime's execution providers by preference. On others than the CPU parameters are copied to the
            device and back at each step, because that they are finite is checked here.

    Raises:
        BundleError: The graph does not load, does not have these inputs and outputs, or not of these shapes.
    """

    def __init__(
        self,
        graph: bytes,
        features: str,
        parameters: Mapping[str, FloatArray],
        providers: Sequence[str] = (CPU,),
    ) -> None:
        self._session = _open(graph, providers)
        self._features = features
        self._axes: dict[str, _Axes] = {item.name: item.shape for item in self._session.get_inputs()}
        self._names = list(parameters)
        given = {features, TARGETS, SAMPLE_WEIGHTS, LEARNING_RATE, *parameters}
        rest = [name for name in self._axes if name not in given]
        self._slots = [name for name in rest if name.startswith(SLOT)]
        self._anchors = [name for name in rest if name.removeprefix(ANCHOR) in parameters and name not in self._slots]
        expected = {*given, *self._slots, *self._anchors}
        written = [UPDATED + name for name in (*self._names, *self._slots)]
        missing = {LOSS, *written} - {item.name for item in self._session.get_outputs()}
        if self._axes.keys() != expected or missing:
            raise BundleError(
                f"the training graph has the inputs {sorted(self._axes)}, expected {sorted(expected)}"
                + (f"; it has no output {', '.join(sorted(missing))}" if missing else "")
            )
        self._on_cpu = self._session.get_providers()[0] == CPU
        self._loss = np.zeros((), np.float32)
        self._rate = np.zeros((), np.float32)
        # What the bindings read a batch from: the next one is mostly of the same size.
        self._batch: tuple[FloatArray, ...] = ()
        try:
            self._allocate({name: np.shape(array) for name, array in parameters.items()})
        except ValueError as exc:
            raise BundleError(f"these are not the parameters of the training graph: {exc}") from exc
        self._put(parameters, None)

    def _sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Sizes of the graph's free axes for parameters of these shapes.

        Raises:
            ValueError: The graph does not take these shapes.
        """
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            axes = self._axes[name]
            wanted = [sizes.setdefault(a, n) if isinstance(a, str) else a for a, n in zip(axes, shape, strict=False)]
            if len(axes) != len(shape) or any(a not in (None, n) for a, n in zip(wanted, shape, strict=True)):
                raise ValueError(f"{name} has the shape {shape}, expected {tuple(axes)}")
        return sizes

    def _remembered(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of slots and anchors for parameters of these shapes."""
        slots = {name: shapes.get(name.removeprefix(SLOT).partition(".")[2], ()) for name in self._slots}
        return slots | {name: shapes[name.removeprefix(ANCHOR)] for name in self._anchors}

    def _allocate(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make buffers and bindings for parameters of these shapes.

        Raises:
            ValueError: The graph does not take these shapes; nothing changed.
        """
        sizes = self._sizes(shapes)
        remembered = self._remembered(shapes)
        both = {name: shapes[name] for name in self._names} | {name: remembered[name] for name in self._slots}
        # In one piece, so that one sum of squares tells whether all values are finite.
        (first, one), (second, other) = _arrays(both), _arrays(both)
        self._buffers, self._sets = (first, second), (one, other)
        self._fixed = {name: np.zeros(remembered[name], np.float32) for name in self._anchors}
        axis = self._axes[TARGETS][-1]
        self._n_outputs = sizes.get(axis) if isinstance(axis, str) else axis
        self._live = 0
        self._bindings = tuple(self._bind(source) for source in range(2)) if self._on_cpu else ()
        self._batch = ()

    def _bind(self, source: int) -> ort.IOBinding:
        """A binding that reads the buffers of one set and writes those of the other."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(LEARNING_RATE, self._rate)
        for name, array in {**self._sets[source], **self._fixed}.items():
            binding.bind_cpu_input(name, array)
        for name, target in self._sets[1 - source].items():
            binding.bind_output(UPDATED + name, "cpu", 0, np.float32, target.shape, target.ctypes.data)
        binding.bind_output(LOSS, "cpu", 0, np.float32, (), self._loss.ctypes.data)
        return binding

    def step(
        self, features: FloatArray, targets: FloatArray, sample_weights: FloatArray, learning_rate: float
    ) -> float:
        """See `edge.contract.training.TrainStep.step`.

        Raises:
            LearningError: The batch has other shapes, the loss is no longer finite, or a parameter or slot is not or is
                beyond 1e19; nothing changed.
        """
        features = np.ascontiguousarray(features, np.float32)
        targets = np.ascontiguousarray(targets, np.float32)
        sample_weights = np.ascontiguousarray(sample_weights, np.float32)
        n = len(sample_weights)
        n_outputs = self._n_outputs or targets.shape[-1]
        # onnxruntime would repeat arrays along axes of size 1.
        if not n or len(features) != n or sample_weights.ndim != 1 or targets.shape != (n, n_outputs):
            raise _refused(features, targets, sample_weights)
        self._rate[()] = learning_rate
        try:
            if self._on_cpu:
                self._fill(features, targets, sample_weights)
                self._session.run_with_iobinding(self._bindings[self._live])
            else:
                self._run({self._features: features, TARGETS: targets, SAMPLE_WEIGHTS: sample_weights})
        except Exception as exc:  # the door: onnxruntime's exceptions have no common base
            raise _refused(features, targets, sample_weights) from exc
        loss = float(self._loss)
        written = self._buffers[1 - self._live]
        # A sum of squares is finite only if everything in it is, and is quicker than looking at each. It overflows
        # float32 beyond 1e19, where a head has diverged anyway.
        if not (math.isfinite(loss) and math.isfinite(np.vdot(written, written))):
            raise LearningError(f"the training step gave values that are not finite (loss {loss}); it was not taken")
        self._live = 1 - self._live
        return loss

    def _fill(self, *batch: FloatArray) -> None:
        """Copy a batch to where the bindings read it: less than a fourth of the time that binding takes."""
        if [array.shape for array in batch] != [array.shape for array in self._batch]:
            self._batch = tuple(np.empty_like(array) for array in batch)
            for binding in self._bindings:
                for name, array in zip((self._features, TARGETS, SAMPLE_WEIGHTS), self._batch, strict=True):
                    binding.bind_cpu_input(name, array)
        for place, array in zip(self._batch, batch, strict=True):
            place[...] = array

    def _run(self, batch: Mapping[str, FloatArray]) -> None:
        """A step on another device than the CPU: everything is copied to it and back."""
        target = self._sets[1 - self._live]
        feed = {**batch, **self._sets[self._live], **self._fixed, LEARNING_RATE: self._rate}
        loss, *found = self._session.run([LOSS, *(UPDATED + name for name in target)], feed)
        self._loss[...] = loss
        for array, new in zip(target.values(), found, strict=True):
            array[...] = new

    def parameters(self) -> Parameters:
        """See `edge.contract.training.TrainStep.parameters`."""
        live = self._sets[self._live]
        return {name: live[name].copy() for name in self._names}

    def memory(self) -> Parameters:
        """See `edge.contract.training.TrainStep.memory`: by the names of the graph's inputs."""
        live = self._sets[self._live]
        return {name: array.copy() for name, array in ({n: live[n] for n in self._slots} | self._fixed).items()}

    def load(self, parameters: Mapping[str, FloatArray], memory: Mapping[str, FloatArray] | None = None) -> None:
        """See `edge.contract.training.TrainStep.load`. Axes that are free in the graph may change their sizes.

        Raises:
            LearningError: Other names, shapes or values that are not finite; nothing changed.
        """
        shapes = {name: np.shape(array) for name, array in parameters.items()}
        if shapes.keys() != set(self._names):
            raise LearningError("these are not the parameters of this head")
        try:
            self._sizes(shapes)
        except ValueError as exc:
            raise LearningError(f"these are not the parameters of this head: {exc}") from exc
        if memory is not None and {n: np.shape(a) for n, a in memory.items()} != self._remembered(shapes):
            raise LearningError("this is not what the optimizer of this head remembers")
        if not all(np.isfinite(array).all() for array in (*parameters.values(), *(memory or {}).values())):
            raise LearningError("parameters with values that are not finite were refused")
        if any(self._sets[0][name].shape != shape for name, shape in shapes.items()):
            self._allocate(shapes)
        self._put(parameters, memory)

    def _put(self, parameters: Mapping[str, FloatArray], memory: Mapping[str, FloatArray] | None) -> None:
        """Copy values into the buffers that the next step reads."""
        live = self._sets[self._live]
        if memory is None:
            memory = {name: np.zeros((), np.float32) for name in self._slots}
            memory |= {name: parameters[name.removeprefix(ANCHOR)] for name in self._anchors}
        for name, array in {**live, **self._fixed}.items():
            array[...] = parameters[name] if name in parameters else memory[name]


def _open(graph: bytes, providers: Sequence[str]) -> ort.InferenceSession:
    """A session that keeps the memory of a step for the next.

    A step keeps all activations for its way back: asked for anew at each step, they fragment the process's memory.
    """
    options = session_options(1)
    options.enable_cpu_mem_arena = True
    try:
        return ort.InferenceSession(graph, options, providers=list(providers))
    except Exception as exc:  # the door: onnxruntime's exceptions have no common base
        raise BundleError(f"the training graph does not load in onnxruntime {ort.__version__}: {exc}") from exc


def _arrays(shapes: Mapping[str, tuple[int, ...]]) -> tuple[FloatArray, Parameters]:
    """One buffer of zeros, and its parts as arrays of these shapes."""
    starts = [0]
    for shape in shapes.values():
        starts.append(starts[-1] + -(-math.prod(shape) // _LINE) * _LINE)
    buffer = np.zeros(starts[-1], np.float32)
    parts = zip(starts, shapes.items(), strict=False)
    return buffer, {name: buffer[start : start + math.prod(shape)].reshape(shape) for start, (name, shape) in parts}


def _refused(features: FloatArray, targets: FloatArray, sample_weights: FloatArray) -> LearningError:
    shapes = f"features {features.shape}, targets {targets.shape}, weights {sample_weights.shape}"
    return LearningError(f"the training step does not take this batch ({shapes})")
