"""A float program is compared with the original on its own scale, sample by sample, and not below its rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from converter.data.samples import Samples
from converter.program.tensors import Array, Arrays
from converter.verify.checks import check_float
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
