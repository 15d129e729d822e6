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
