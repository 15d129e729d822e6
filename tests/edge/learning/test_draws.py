"""Random numbers that are those of numpy."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.learning.draws import Draws

SEEDS = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 1 << 80)), min_size=1, max_size=7)
LIMITS = st.one_of(st.sampled_from([1, 2, 3, 10, (1 << 31) + 1, (1 << 32) - 1]), st.integers(1, (1 << 32) - 1))
# So many shares (limit 0), or whole numbers below a limit: in any order, for a half of 64 bits may wait in between.
LIMITED = st.tuples(st.one_of(st.just(0), LIMITS), st.one_of(st.integers(0, 5), st.integers(20, 40)), st.booleans())
WANTED = st.lists(LIMITED, max_size=12)


@settings(max_examples=200)
@given(SEEDS, WANTED)
def test_the_numbers_are_those_of_numpy(seeds: list[int], wanted: list[tuple[int, int, bool]]) -> None:
    draws, numpy = Draws(seeds), np.random.default_rng(seeds)
    for limit, count, is_together in wanted:
        if not limit:
            assert draws.shares(count).tolist() == numpy.random(count).tolist()
        elif is_together:
            assert draws.all_below(limit, count).tolist() == numpy.integers(0, limit, count).tolist()
        else:
            assert [draws.below(limit) for _ in range(count)] == numpy.integers(0, limit, count).tolist()


@given(SEEDS, st.integers(0, 300))
def test_bits_are_those_of_numpy(seeds: list[int], count: int) -> None:
    raw = np.random.PCG64(seeds).random_raw(-(-count // 64)).astype("<u8")
    assert np.array_equal(Draws(seeds).bits(count), np.unpackbits(raw.view(np.uint8))[:count])


def test_the_numbers_stay_what_they_are() -> None:
    """Whatever a later numpy does: journals are learned again."""
    draws = Draws((5, 1 << 40))
    assert [draws.below(10) for _ in range(6)] == [9, 3, 1, 7, 5, 3]
    assert draws.shares(1).tolist() == [0.07824692947891931]
