"""What a simulated device sees: real samples, changed as its camera changes them. Pure; all is drawn from seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.simulator.scenario import World


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """Labelled samples that devices see.

    Attributes:
        x: ``(n, *input)``.
        y: ``(n,)`` int64 classes, or targets ``(n, n_outputs)``.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]

    @property
    def is_of_classes(self) -> bool:
        """Whether a label is a class."""
        return self.y.ndim == 1 and self.y.dtype.kind in "iu"

    @property
    def n_classes(self) -> int:
        """How many classes there are samples of; 0 where labels are none."""
        return len(np.unique(self.y)) if self.is_of_classes else 0


@dataclass(frozen=True, slots=True)
class Camera:
    """How one device sees.

    Attributes:
        gain, offset, noise: See `edge.simulator.scenario.World`; the last two in the unit of the samples.
        is_turned: By 90 degrees.
    """

    gain: float
    offset: float
    noise: float
    is_turned: bool

    def see(self, x: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
        """A sample ``(*input)``, of the same type; whole numbers as they are."""
        if self.is_turned and x.ndim >= 2:
            x = np.rot90(x, axes=(-2, -1))
        if x.dtype.kind != "f":
            return np.ascontiguousarray(x)
        seen = x * self.gain + self.offset
        if self.noise:
            seen = seen + rng.normal(0.0, self.noise, x.shape)
        return np.ascontiguousarray(seen, x.dtype)


def camera_of(world: World, recording: Recording, rng: np.random.Generator) -> Camera:
    """Draw a camera. Samples whose last two axes differ cannot be turned, and are not."""
    spread = float(np.std(recording.x)) if recording.x.dtype.kind == "f" else 0.0
    (dark, bright), (low, high) = world.gain, world.offset
    gain, offset = rng.uniform(dark, bright), rng.uniform(low, high) * spread
    is_square = recording.x.ndim >= 3 and recording.x.shape[-1] == recording.x.shape[-2]
    return Camera(gain, offset, world.noise * spread, bool(rng.random() < world.turned) and is_square)


def rows_of(recording: Recording, classes: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows of the samples that one device ever sees, in its order; those of so many classes, 0 for all."""
    rows = rng.permutation(len(recording.y))
    if not classes or not recording.is_of_classes:
        return rows
    known = np.unique(recording.y)
    seen = rng.permutation(known)[:classes]
    return rows[np.isin(recording.y[rows], seen)]


def wrong_label(y: int, n_classes: int, rng: np.random.Generator) -> int:
    """Another class than the right one; where there is no other, the right one."""
    return y if n_classes < 2 else int((y + rng.integers(1, n_classes)) % n_classes)
