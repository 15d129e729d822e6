"""Streams: samples in their order through a model that remembers, its state going from each to the next.

>>> pair, spec = StatePair(input="sum", output="sumN"), TensorSpec(name="sum", dtype="float32", shape=("batch", 1))
>>> def add(given: Mapping[str, npt.NDArray[Any]]) -> Arrays:
...     return {"sumN": given["sum"] + given["x"]}
>>> stream = Stream(add, [spec], [pair])
>>> [float(stream.step({"x": np.full((1, 1), n, np.float32)})["sumN"][0, 0]) for n in (1, 2, 3)]
[1.0, 3.0, 6.0]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.manifest import StatePair
from edge.contract.tensorspec import TensorSpec
from edge.inference.session import Arrays


class Stream:
    """One stream, or several side by side.

    Args:
        run: The model: all inputs by name to outputs by name, those of the states among them.
        inputs: What it takes.
        states: What of that goes on from the outputs; see `StatePair`.
        initial: States by the names of their inputs, where a stream does not begin with zeros.
        width: Streams side by side: the size of every batch axis.
    """

    def __init__(
        self,
        run: Callable[[Mapping[str, npt.NDArray[Any]]], Arrays],
        inputs: Sequence[TensorSpec],
        states: Sequence[StatePair],
        initial: Mapping[str, npt.NDArray[Any]] | None = None,
        width: int = 1,
    ) -> None:
        self._run = run
        self._states = tuple(states)
        specs = {spec.name: spec for spec in inputs}
        self._state = {pair.input: zeros(specs[pair.input], width) for pair in states} | dict(initial or {})

    @property
    def state(self) -> Arrays:
        """What the next sample takes, by name of input."""
        return dict(self._state)

    def step(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """One sample of each stream, without the states, to all outputs."""
        outputs = self._run({**inputs, **self._state})
        self._state = {pair.input: outputs[pair.output] for pair in self._states}
        return outputs


def zeros(spec: TensorSpec, width: int = 1) -> npt.NDArray[Any]:
    """What a state is before the first sample; its only free axis is the batch axis."""
    return np.zeros([size if isinstance(size, int) else width for size in spec.shape], spec.dtype)
