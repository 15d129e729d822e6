"""Random numbers: those of ``numpy.random.default_rng``, to the bit, without the 3 MiB that numpy.random keeps.

What was learned is journalled as labels and learned again, so the same numbers must come in every version: numpy
promises that of a seed for one of its versions only (NEP 19). Seeds are spread by O'Neill's `seed_seq_fe` (Developing a
seed_seq Alternative, 2015) as numpy's ``SeedSequence`` has it, drawn by PCG64 (XSL-RR 128/64; O'Neill, PCG, 2014), and
bounded by Lemire's method (Fast Random Integer Generation in an Interval, 2019) on 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_32, _64, _128 = (1 << 32) - 1, (1 << 64) - 1, (1 << 128) - 1
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_POOL = 4
# Fewer whole numbers are faster drawn one by one.
_FEW = 24


class Draws:
    """A stream of random numbers.

    Args:
        seeds: Whole numbers, 0 or more; other ones give another stream.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        high, low, increment_high, increment_low = _spread(seeds)
        self._increment = ((increment_high << 64 | increment_low) << 1 | 1) & _128
        self._state = self._increment + (high << 64 | low)
        self._half: int | None = None  # of 64 bits that `below` has not used yet
        self._next()

    def _next(self) -> int:
        """64 bits."""
        self._state = state = (self._state * _MULTIPLIER + self._increment) & _128
        mixed, turn = (state >> 64 ^ state) & _64, state >> 122
        return (mixed >> turn | mixed << (64 - turn)) & _64

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        """``(count,)`` of 64 bits each: `_next` so many times, in a third of the time."""
        state, increment, states = self._state, self._increment, []
        for _ in range(count):
            state = (state * _MULTIPLIER + increment) & _128
            states.append(state.to_bytes(16, "little"))
        self._state = state
        low, high = np.frombuffer(b"".join(states), "<u8").reshape(count, 2).T
        mixed, turn = high ^ low, high >> 58
        return np.asarray(mixed >> turn | mixed << (-turn & 63), np.uint64)

    def bits(self, count: int) -> npt.NDArray[np.uint8]:
        """``(count,)`` of 0 and 1: of each 64 bits the lowest eight first, and of these the highest."""
        return np.unpackbits(self._words(-(-count // 64)).astype("<u8").view(np.uint8))[:count]

    def shares(self, count: int) -> npt.NDArray[np.float64]:
        """``(count,)`` from 0 to less than 1."""
        return np.asarray((self._words(count) >> 11) * 2.0**-53, np.float64)

    def all_below(self, limit: int, count: int) -> npt.NDArray[np.int64]:
        """``(count,)``: `below` so many times."""
        if limit == 1 or count < _FEW:
            return np.array([self.below(limit) for _ in range(count)], np.int64)
        half = np.array([] if self._half is None else [self._half], "<u4")
        halves = np.concatenate([half, self._words((count - len(half) + 1) // 2).astype("<u8").view("<u4")])
        self._half = int(halves[count]) if len(halves) > count else None
        found = halves[:count].astype(np.uint64) * np.uint64(limit)
        is_fair = found & _32 >= (1 << 32) % limit
        fair = (found[is_fair] >> 32).astype(np.int64)
        return fair if len(fair) == count else np.concatenate([fair, self.all_below(limit, count - len(fair))])

    def below(self, limit: int) -> int:
        """A whole number from 0 to less than `limit`, which is 1 to 2^32 - 1."""
        if limit == 1:
            return 0
        unfair = (1 << 32) % limit
        while True:
            found = self._half_word() * limit
            if found & _32 >= unfair:
                return found >> 32

    def _half_word(self) -> int:
        """32 bits, the low half of 64 first."""
        if self._half is not None:
            bits, self._half = self._half, None
            return bits
        both = self._next()
        self._half = both >> 32
        return both & _32


def _spread(seeds: Sequence[int]) -> list[int]:
    """Four numbers of 64 bits in which each bit of the seeds counts."""
    words = [word for seed in seeds for word in _words(seed)]
    words += [0] * (_POOL - len(words))
    factor = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal factor
        value ^= factor
        factor = factor * 0x931E8875 & _32
        value = value * factor & _32
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        value = (0xCA01F9DD * x - 0x4973F715 * y) & _32
        return value ^ value >> 16

    pool = [hashed(word) for word in words[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in words[_POOL:]:
        pool = [mixed(each, hashed(word)) for each in pool]
    found, factor = [], 0x8B51F9DD
    for i in range(8):
        value = pool[i % _POOL] ^ factor
        factor = factor * 0x58F38DED & _32
        value = value * factor & _32
        found.append(value ^ value >> 16)
    return [high << 32 | low for low, high in zip(found[::2], found[1::2], strict=True)]


def _words(seed: int) -> list[int]:
    """Its 32-bit parts, the lowest first."""
    return [seed >> shift & _32 for shift in range(0, max(seed.bit_length(), 1), 32)]
