"""In which order devices come, and how many at a time."""

from __future__ import annotations

from collections.abc import Sequence

from edge.contract.digest import sha256
from edge.coordinator.rollout.plan import share

# Nobody asks for more devices by a number than a quarter of them: with a small fleet "100" would be all of it.
_MOST = 0.25


def shuffled(devices: Sequence[str], seed: str) -> list[str]:
    """The same order for the same seed on any machine; who does not know the seed cannot foresee it."""
    return sorted(devices, key=lambda device: (sha256(f"{seed}\0{device}".encode()), device))


def sizes(n_devices: int, waves: Sequence[int | str]) -> list[tuple[int, int]]:
    """How many devices each wave and those before it have, and which of the plan's waves that is; empty ones fall away.

    >>> sizes(2000, (10, 100, "25 %", "50 %", "100 %"))
    [(10, 0), (100, 1), (500, 2), (1000, 3), (2000, 4)]
    >>> sizes(200, (10, 100, "25 %", "50 %", "100 %"))
    [(10, 0), (50, 1), (100, 3), (200, 4)]
    >>> sizes(3, (10, 100, "25 %", "50 %", "100 %")), sizes(1, (10, 100, "25 %", "50 %", "100 %"))
    ([(1, 0), (3, 4)], [(1, 4)])
    """
    found: list[tuple[int, int]] = []
    for number, size in enumerate(waves):
        part = share(size) if isinstance(size, str) else None
        if part is None:
            count = min(int(size), max(1, int(n_devices * _MOST)), n_devices)
        else:
            count = n_devices if part == 1.0 else int(n_devices * part)
        if count > (found[-1][0] if found else 0):
            found.append((count, number))
        elif found and number == len(waves) - 1:  # all are in already: this is the last wave
            found[-1] = (found[-1][0], number)
    return found


def wave_of(place: int, sized: Sequence[tuple[int, int]]) -> int:
    """The wave of the device at a place of the order, from 0; later ones are of the last wave."""
    return next((wave for wave, (count, _) in enumerate(sized) if place < count), max(len(sized) - 1, 0))
