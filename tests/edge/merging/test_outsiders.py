"""What a merge is worth on devices that are not in it, from statistics alone."""

from __future__ import annotations

import numpy as np
import pytest

from edge.learning.familiarity import fits
from edge.learning.solve import solve
from edge.learning.statistics import HeadStatistics
from edge.merging.outsiders import accuracy, worth_outside

K, D = 5, 12
Samples = tuple[np.ndarray, np.ndarray]


def world(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1.5, (K, D))


HOME, AWAY = world(1), world(2)


def draw(where: np.ndarray, n: int, seed: int, classes: tuple[int, ...] = tuple(range(K))) -> Samples:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    return (where[labels] + rng.normal(0, 1, (n, D))).astype(np.float32), labels


def of(samples: Samples) -> HeadStatistics:
    return HeadStatistics.of(*samples, K)


KNOWN = of(draw(HOME, 2000, 0)).scaled_to(1.0)
PRIOR, SHIPPED = KNOWN.scaled_to(50.0), solve(KNOWN)


def right(layer: tuple[np.ndarray, np.ndarray], samples: Samples) -> float:
    return float(((samples[0] @ layer[0].T + layer[1]).argmax(axis=1) == samples[1]).mean())


def test_accuracy_of_a_head_is_told_from_statistics() -> None:
    for where in (HOME, AWAY, HOME + 0.3 * AWAY):
        samples = draw(where, 1500, 3)
        for layer in (SHIPPED, solve(of(draw(where, 300, 4)))):
            expected = right(layer, samples)
            assert accuracy(of(samples), np.ones(K, bool), layer) == pytest.approx(expected, abs=0.03)


def test_one_world_is_worth_what_a_stranger_gains() -> None:
    """Also where devices share few classes; and a device that is at home, and would not take it, says nothing."""
    whole = [of(draw(AWAY, 80, seed)) for seed in (5, 6, 7)]
    parts = [of(draw(AWAY, 80, 5 + i, ((i, i + 1, (i + 2) % K)))) for i in range(3)]
    at_home = of(draw(HOME, 80, 8))
    for devices in (whole, parts, [*whole, at_home], [*parts, at_home]):
        names = [f"lineage {i}" for i in range(len(devices))]
        found = worth_outside(devices, PRIOR, SHIPPED, KNOWN, names)
        assert found is not None
        assert set(found.each) == set(names[:3]), "the one at home says nothing"
        assert found.gain <= min(found.each.values()) + 1e-6
        stranger = draw(AWAY, 400, 9)
        gain = right(solve(sum(devices, start=PRIOR)), stranger) - right(SHIPPED, stranger)
        assert 0.3 < found.gain <= gain + 0.05
        seen = stranger[0][:64]
        merged = sum(devices, start=PRIOR)
        assert fits(seen, merged, KNOWN, found, labelled=False) is True
        assert fits(draw(HOME, 64, 9)[0], merged, KNOWN, found, labelled=False) is False
        elsewhere = draw(world(77), 64, 9)[0]
        assert fits(elsewhere, merged, KNOWN, found, labelled=False) is not True, "a third world is not this one"
        assert fits(elsewhere, merged, KNOWN, None, labelled=False) is not True


def shipped_answers(x: np.ndarray) -> np.ndarray:
    return np.asarray((x @ SHIPPED[0].T + SHIPPED[1]).argmax(axis=1))


def test_a_merge_with_nothing_to_give_is_found() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.normal(0.4, 1.5, (150, D)).astype(np.float32) for _ in range(4)]
    cases = {
        "noise, named as the shipped head names it": [(x, shipped_answers(x)) for x in noise],
        "another world, named as the shipped head names it": [
            (x, shipped_answers(x)) for x, _ in (draw(AWAY, 150, s) for s in range(4))
        ],
        "labels that mean nothing": [(x, rng.integers(0, K, len(x))) for x in noise],
        "three labels of each class": [draw(HOME + 0.15 * AWAY, 3 * K, 20 + s) for s in range(4)],
        "each in a world of its own": [draw(world(30 + s), 150, s) for s in range(4)],
    }
    for title, devices in cases.items():
        found = worth_outside([of(samples) for samples in devices], PRIOR, SHIPPED, KNOWN)
        assert found is None or found.gain <= 0.0, title


def test_where_nobody_can_tell_nothing_is_said() -> None:
    one = of(draw(AWAY, 80, 5))
    apart = [of(draw(AWAY, 80, 5, (0, 1))), of(draw(AWAY, 80, 6, (2, 3)))]
    empty = HeadStatistics.empty(D, K)
    assert worth_outside([one], PRIOR, SHIPPED, KNOWN) is None
    assert worth_outside(apart, PRIOR, SHIPPED, KNOWN) is None
    assert worth_outside([one, one], PRIOR, SHIPPED, empty) is None
    assert worth_outside([one, empty], PRIOR, SHIPPED, KNOWN) is None
    assert worth_outside([], PRIOR, SHIPPED, KNOWN) is None
