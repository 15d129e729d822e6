"""Samples of a model that remembers: the states that their files do not have are those of the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from converter.data.classes import numbered_as_model
from converter.data.samples import Samples, SampleStream
from converter.data.stream import open_samples
from converter.data.subset import InMemory
from converter.program.tensors import Array, Arrays, Run, batch_size, join, select
from edge.contract.errors import ConfigError
from edge.contract.manifest import StatePair
from edge.contract.tensorspec import TensorSpec
from edge.inference.streams import Stream


class Remembered:
    """Samples in their order as one stream, each with the state that the ones before it left.

    A model that is calibrated and judged with states of zeros alone would be calibrated for what it never sees again.

    Args:
        stream: Samples without states.
        inputs: What the model takes, states among them.
        states: Which of these.
        run: The model.

    Attributes:
        given: The samples without states.
    """

    def __init__(
        self, stream: SampleStream, inputs: Sequence[TensorSpec], states: Sequence[StatePair], run: Run
    ) -> None:
        self.origin = f"{stream.origin}, one stream in its order"
        self.class_names = stream.class_names
        self.given = stream
        self._inputs = tuple(inputs)
        self._states = tuple(states)
        self._run = run

    def batches(self, size: int) -> Iterator[Samples]:
        """See `SampleStream`; the model runs once for each sample."""
        remembered = Stream(self._run, self._inputs, self._states)
        given = without_states(self._inputs, self._states)
        for batch in self.given.batches(size):
            steps: list[Arrays] = []
            for row in range(batch_size(batch.x, given)):
                one = select(batch.x, given, slice(row, row + 1))
                steps.append({**one, **remembered.state})
                remembered.step(one)
            yield Samples(join(steps, self._inputs), batch.y)


def without_states(inputs: Sequence[TensorSpec], states: Sequence[StatePair]) -> tuple[TensorSpec, ...]:
    """What each sample brings with it."""
    names = {pair.input for pair in states}
    return tuple(spec for spec in inputs if spec.name not in names)


def open_remembered(
    value: str,
    option: str,
    inputs: Sequence[TensorSpec],
    states: Sequence[StatePair],
    run: Run,
    class_names: Sequence[str] | None,
) -> SampleStream:
    """Open samples as `open_samples` does; where they are without states, the model's own are added.

    Args:
        value: What the user typed.
        option: Where, for messages.
        inputs: What the model takes.
        states: Which of these it remembers by itself.
        run: The model.
        class_names: See `numbered_as_model`.

    Raises:
        ConfigError: There is no such thing, or it is not what the model takes, with or without states.
    """

    def opened(inputs: Sequence[TensorSpec]) -> SampleStream:
        return numbered_as_model(open_samples(value, option, inputs), class_names, f"{option}: {value}")

    if not states:
        return opened(inputs)
    try:
        stream = opened(inputs)
        next(stream.batches(1), None)  # a callable is not asked for samples before
    except ConfigError:
        return Remembered(opened(without_states(inputs, states)), inputs, states, run)
    return stream


def remembered(
    samples: Samples, origin: str, inputs: Sequence[TensorSpec], states: Sequence[StatePair], run: Run
) -> SampleStream:
    """Samples in memory as a stream; where they are without states, the model's own are added.

    Raises:
        ConfigError: Inputs that are no states, or some states, are missing.
    """
    missing = [spec.name for spec in inputs if spec.name not in samples.x]
    if not missing:
        return InMemory(samples, origin, inputs)
    given = without_states(inputs, states)
    if rest := set(missing) - {pair.input for pair in states}:
        name = min(rest)
        raise ConfigError(f"{origin} have no {name}, which is no state: say --state {name}=OUTPUT, or give samples")
    if len(given) + len(missing) != len(inputs):
        raise ConfigError(f"{origin} have some of the states, but not {', '.join(missing)}: give all or none")
    return Remembered(InMemory(samples, origin, given), inputs, states, run)


_LOOKED_AT = 64
# What is that small beside what a stream leaves stands for nothing: zeros, or noise in their place.
_SMALL = 0.2


def is_contradicted(stream: SampleStream, inputs: Sequence[TensorSpec], states: Sequence[StatePair], run: Run) -> bool:
    """Whether data have states of their own for each sample, which are not what the sample before it left.

    Args:
        stream: The data.
        inputs: What the model takes.
        states: Which of these it would remember by itself.
        run: The model.
    """
    if not states or isinstance(stream, Remembered):
        return False
    x = next(iter(stream.batches(_LOOKED_AT))).x
    given = without_states(inputs, states)
    alone = InMemory(Samples({spec.name: x[spec.name] for spec in given}, None), "", given)
    left = next(Remembered(alone, inputs, states, run).batches(_LOOKED_AT)).x
    found = run(x)
    specs = {spec.name: spec for spec in inputs}
    for pair in states:
        axis = specs[pair.input].batch_axis
        own, after, remembered = (
            np.moveaxis(array, axis or 0, 0) for array in (x[pair.input], found[pair.output], left[pair.input])
        )
        if axis is None or len(own) < 2:
            continue
        followed = [np.allclose(own[i + 1], after[i], rtol=1e-2, atol=1e-3) for i in range(len(own) - 1)]
        if _size(own) > _SMALL * _size(remembered[len(own) // 2 :]) and sum(followed) < len(followed) / 2:
            return True
    return False


def _size(array: Array) -> float:
    return float(np.sqrt(np.square(array, dtype=np.float64).mean()))
