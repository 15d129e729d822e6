"""Samples whose data name their classes, numbered as the model numbers its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from converter.data.samples import Samples, SampleStream
from edge.contract.errors import ConfigError


class _Renumbered:
    """Samples with other class numbers.

    Args:
        stream: The samples.
        numbers: The new number of each of its classes.
        class_names: All classes of the model.
    """

    def __init__(self, stream: SampleStream, numbers: Sequence[int], class_names: tuple[str, ...]) -> None:
        self.origin = stream.origin
        self.class_names: tuple[str, ...] | None = class_names
        self._stream = stream
        self._numbers = np.array(numbers, np.int64)

    def batches(self, size: int) -> Iterator[Samples]:
        """See `SampleStream`."""
        for batch in self._stream.batches(size):
            yield Samples(batch.x, None if batch.y is None else self._numbers[batch.y])


def numbered_as_model(stream: SampleStream, class_names: Sequence[str] | None, what: str) -> SampleStream:
    """The samples with the class numbers of the model, found by the names of the classes.

    The place of a folder among the folders says nothing when one is missing, or when the model has another order.

    Args:
        stream: Samples, which may name their classes.
        class_names: Of the model, in the order of its outputs; None where nobody has named them.
        what: The data, for messages.

    Raises:
        ConfigError: A class is none of the model's, or nobody can tell in which order the model has them.
    """
    own = stream.class_names
    if own is None:
        return stream
    if class_names is None:
        if all(name.isdecimal() for name in own) and sorted(own, key=int) != list(own):
            raise ConfigError(
                f"{what}: the folders are numbers, and {_some(own)} is another order than that of the numbers: say "
                f"which is that of the model's outputs, with --class-names (torchvision's ImageFolder sorts as text)"
            )
        return stream
    if others := [name for name in own if name not in class_names]:
        raise ConfigError(
            f"{what}: no class of the model is called {_some(others)}; its classes are {_some(class_names)}: rename "
            f"the folders, or say with --class-names what the folders are called, in the order of the model's outputs"
        )
    return _Renumbered(stream, [class_names.index(name) for name in own], tuple(class_names))


def _some(names: Sequence[str], count: int = 12) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
