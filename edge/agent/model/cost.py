"""What a bundle takes on this device before it goes live: memory, and time for a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge.agent.model.served_model import ServedModel
from edge.inference.onnx_session import golden_inputs
from edge.learning.quantiles import median

# Runs that are timed, and seconds after which it is enough.
_RUNS, _LONGEST_S = 21, 2.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured.

    Attributes:
        sample_ms: Of a golden sample by itself, milliseconds: the median of some runs on the CPU.
        memory_mb: Of the opened bundle, MiB; None where nobody can tell.
    """

    sample_ms: float
    memory_mb: float | None

    @property
    def text(self) -> str:
        """For people."""
        memory = "" if self.memory_mb is None else f", {max(0.0, self.memory_mb):.0f} MiB"
        return f"{self.sample_ms:.3g} ms a sample{memory}"


def sample_ms(model: ServedModel, stopwatch: Callable[[], float]) -> float:
    """How long one golden sample takes, milliseconds: the median of some runs, after one that is not timed.

    Args:
        model: That was just opened.
        stopwatch: Gives seconds.
    """
    golden, serving = golden_inputs(model.bundle), model.serving
    inputs = {name: golden[name] for name in serving.inputs}
    one = inputs if serving.count(inputs) is None else serving.rows(inputs, slice(0, 1))
    serving.run(one)
    taken: list[float] = []
    begun = stopwatch()
    while len(taken) < _RUNS and (not taken or stopwatch() - begun < _LONGEST_S):
        start = stopwatch()
        serving.run(one)
        taken.append((stopwatch() - start) * 1e3)
    return float(median(np.array(taken)))
