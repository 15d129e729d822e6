"""Do labels of quantities go with the samples? Whatever their unit, offset and scale; and shuffled ones do not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edge.learning.correlation import DECAY, SUPPOSED, Correlation, goes_on
from edge.learning.mixture import LEAST_CORRELATION, RAMP, TRUST_CORRELATION

FULL = LEAST_CORRELATION + RAMP
Array = npt.NDArray[np.float32]


def of(outputs: Array, targets: Array, trusts: npt.NDArray[np.float64] | None = None) -> Correlation:
    """Of answers ``(k, n, q)`` and labels ``(n, q)``, one after another."""
    found = Correlation.none(len(outputs), targets.shape[1])
    for i, trust in enumerate(np.ones(len(targets)) if trusts is None else trusts):
        found = found.heard(outputs[:, i], targets[i], float(trust))
    return found


def world(seed: int, n: int, noise: float = 0.5, q: int = 2) -> tuple[Array, Array]:
    """Two experts, of which the second is the better one, and what is true."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, q))
    outputs = true + noise * np.array([2.0, 1.0])[:, None, None] * rng.normal(size=(2, n, q))
    return outputs.astype(np.float32), true.astype(np.float32)


def test_the_moments_are_those_of_all_labels_weighted_by_their_age() -> None:
    outputs, true = world(0, 70)
    trusts = np.random.default_rng(1).uniform(0.1, 1.0, 70)
    found = of(outputs, true, trusts)
    weights = trusts * DECAY ** np.arange(69, -1, -1)
    assert found.mass == pytest.approx(weights.sum())
    for expert in range(2):
        for j in range(2):
            pair = np.stack([outputs[expert, :, j], true[:, j]]).astype(np.float64)
            np.testing.assert_allclose(found.means[expert, :, j], np.average(pair, axis=1, weights=weights), rtol=1e-9)
            wanted = np.cov(pair, aweights=weights, bias=True)[[0, 0, 1], [0, 1, 1]]
            np.testing.assert_allclose(found.products[expert, :, j], wanted, rtol=1e-9)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1.2, 0.0), (1.0, 3.0), (1e6, -1e7), (-1.0, 0.0)])
def test_true_labels_are_believed_from_the_first_to_the_last_in_any_unit(scale: float, offset: float) -> None:
    for seed in range(10):
        outputs, true = world(seed, 120)
        found = Correlation.none(2, 2)
        for i in range(120):
            found = found.heard(outputs[:, i], scale * true[i] + offset, 1.0)
            assert float(found.strengths().mean()) >= (FULL if scale > 0 else LEAST_CORRELATION)
        assert float(found.strengths().mean()) >= TRUST_CORRELATION


def test_shuffled_labels_are_not_believed_after_some() -> None:
    believed = []
    for seed in range(40):
        outputs, true = world(seed, 60)
        found = of(outputs, np.random.default_rng([seed, 1]).permutation(true))
        believed.append((float(found.strengths().mean()) - LEAST_CORRELATION) / RAMP)
    assert np.clip(believed, 0.0, 1.0).mean() < 0.1
    assert max(believed) < 1.0


def test_labels_that_are_all_the_same_are_not_believed_where_answers_vary() -> None:
    outputs, true = world(0, 30)
    assert of(outputs, np.broadcast_to(true[:1], true.shape)).strengths()[0] < LEAST_CORRELATION


def test_nobody_can_tell_at_one_operating_point() -> None:
    rng = np.random.default_rng(0)
    outputs = (1.0 + 0.05 * rng.normal(size=(2, 60, 1))).astype(np.float32)
    labels = (4.0 + 0.05 * rng.normal(size=(60, 1))).astype(np.float32)
    assert of(outputs, labels).strengths()[0] >= FULL


def test_an_answer_that_is_not_finite_says_nothing_and_who_is_new_has_to_show_it_for_as_long() -> None:
    outputs, true = world(0, 60)
    broken = outputs.copy()
    broken[1, 20] = np.nan
    found = of(broken, true)
    rest = of(outputs, true, (np.arange(60) != 20).astype(np.float64))
    np.testing.assert_allclose(found.products[1], rest.products[1])
    np.testing.assert_array_equal(found.products[0], of(outputs, true).products[0])
    outputs, shuffled = outputs[:, :50], true[np.random.default_rng(3).permutation(60)][:50]
    found = of(outputs, shuffled).chosen([0, 1, -1])
    before = float(found.strengths().mean())
    more = np.concatenate([outputs, true[None, :50]])  # the new one answers what labels say
    for i in range(2):
        found = found.heard(more[:, i], true[i], 1.0)
    assert float(found.strengths().mean()) < before + 0.15
    assert found.chosen([2]).mass == pytest.approx(1.0 + DECAY)


def test_before_the_first_label_they_are_believed() -> None:
    found = Correlation.none(3, 1)
    assert float(found.strengths().mean()) == pytest.approx(SUPPOSED)
    assert SUPPOSED >= FULL
    assert of(*world(0, 1)).strengths()[0] == pytest.approx(SUPPOSED)  # one label cannot show anything


def test_each_output_is_judged_for_itself() -> None:
    outputs, true = world(0, 80, q=3)
    labels = true.copy()
    labels[:, 1] = np.random.default_rng(1).permutation(labels[:, 1])
    found = of(outputs, labels).strengths()
    assert found[1] < LEAST_CORRELATION
    assert (found[[0, 2]] >= FULL).all()


def test_labels_that_turned_bad_are_seen_in_the_last_ones() -> None:
    outputs, true = world(0, 100)
    labels = true.copy()
    labels[60:] = labels[0]
    assert (of(outputs, labels).strengths() >= TRUST_CORRELATION).all()
    assert goes_on(outputs[1, 28:60], labels[28:60] + 7.0, TRUST_CORRELATION)
    assert not goes_on(outputs[1, 68:], labels[68:], TRUST_CORRELATION)
    alike = np.full((32, 2), 2.0, np.float32)  # one operating point: nobody can tell
    assert goes_on(alike, labels[:32] + 9.0, TRUST_CORRELATION)
