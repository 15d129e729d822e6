"""A float program is compared with the original on its own scale, sample by sample, and not below its rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from converter.data.samples import Samples
from converter.program.tensors import Array, Arrays
from converter.verify.checks import check_float, telling_samples
from edge.contract.errors import ConversionError
from tests.converter.verify.test_measure import evaluation, normal


@pytest.mark.parametrize("n", [1, 8])
def test_a_value_next_to_zero_is_not_held_against_its_rounding(n: int) -> None:
    """The score of one sample may be a difference of large numbers, of which nothing is left."""
    numbers, y = np.arange(n, dtype=np.float32)[:, None], normal(n, 5)
    y[0, 2] = 1e-7
    judged = replace(evaluation({"y": y}), samples=Samples({"x": numbers}, None))

    def moved_by(error: float) -> Array:
        found = y.copy()
        found[0, 2] += error
        return found

    for error, message in ((3e-7, None), (0.5, "gives another y")):
        outputs = moved_by(error)

        def run(feeds: Arrays, outputs: Array = outputs) -> Arrays:
            return {"y": outputs[feeds["x"][:, 0].astype(int)]}

        if message is None:
            check_float("the graph", run, judged, "the model")
        else:
            with pytest.raises(ConversionError, match=message):
                check_float("the graph", run, judged, "the model")


def test_a_share_is_not_held_against_the_rounding_of_its_logit() -> None:
    """Of 1e-5, behind a sigmoid, an error of 1e-5 in the logit is one of 1e-10; what carries a value is more."""
    logits = normal(200, 3) * np.array([1, 1, 0.002]) + np.array([0, 2, -11])
    shares, moved = (1 / (1 + np.exp(-z)) for z in (logits, logits + 3e-5 * normal(200, 3, seed=1)))
    other = shares.copy()
    other[:, 2] *= 1 + 0.02 * normal(200, seed=2)
    y = shares.astype(np.float32)
    for ending, message in (("Sigmoid", None), ("", r"gives another y\[2\]")):
        numbers = {"x": np.arange(200, dtype=np.float32)[:, None]}
        judged = replace(evaluation({"y": y}, endings={"y": ending}), samples=Samples(numbers, None))
        for found, fault in ((moved, message), (other, r"gives another y\[2\]")):

            def run(feeds: Arrays, found: Array = found) -> Arrays:
                return {"y": found.astype(np.float32)[feeds["x"][:, 0].astype(int)]}

            if fault is None:
                check_float("the graph", run, judged, "the model")
            else:
                with pytest.raises(ConversionError, match=fault):
                    check_float("the graph", run, judged, "the model")


def test_samples_that_are_given_alone_are_those_that_differ_most() -> None:
    """One of a rare class, one that is over a limit, and the largest and smallest of a column, of 2,000."""
    n = 2000
    y, odd = normal(n, 3), normal(n, 40, 2, seed=1)
    y[777, 2], odd[1234, 7, 1], y[5] = 9.0, -8.0, 4.0
    judged = evaluation({"y": y, "odd": odd})
    found = telling_samples(judged, 64)
    assert {777, 1234, 5} <= set(found)
    assert len(found) <= 64
    gaps = np.diff(found)
    assert gaps.max() <= n // 16  # and everywhere
    few = evaluation({"y": y[:6]})
    assert telling_samples(few, 64) == list(range(6))
    assert telling_samples(few, 6) == list(range(6))


def test_shares_are_compared_on_the_scale_of_all_shares() -> None:
    """Two steps of float32 at 1 are rounding wherever a share lies; four of them are not, nor are they of a number."""
    shares = (1 / (1 + np.exp(-(normal(200, 3) + np.array([0, -8, -17]))))).astype(np.float32)
    shares[:, 1] = 3e-9  # constant
    numbers = {"x": np.arange(200, dtype=np.float32)[:, None]}
    sign = np.where(normal(200, 3, seed=1) > 0, 1, -1).astype(np.float32)
    for ending, steps, fits in (("Sigmoid", 1.9, True), ("Sigmoid", 2.1, False), ("", 1.9, False)):
        found = shares + sign * steps * np.float32(2.0**-23)
        judged = replace(evaluation({"y": shares}, endings={"y": ending}), samples=Samples(numbers, None))

        def run(feeds: Arrays, found: Array = found) -> Arrays:
            return {"y": found[feeds["x"][:, 0].astype(int)]}

        if fits:
            check_float("the graph", run, judged, "the model")
            assert judged.deviation({"y": found}).worst.loss < 1e-3
        else:
            with pytest.raises(ConversionError, match="gives another y"):
                check_float("the graph", run, judged, "the model")
