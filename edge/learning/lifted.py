"""A linear layer in closed form on lifted features: a learner whose borders between classes are curved.

It is a `StatisticsLearner` on what `Lift` gives; see there what its head is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.training import FloatArray
from edge.learning.closed_form import StatisticsLearner
from edge.learning.lift import Lift
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Task

# What the shipped statistics are worth here, and the share of the scatter that is replaced by a multiple of the
# identity. Both are twice those of features as they are: there are twice as many numbers to learn.
PRIOR_SAMPLES, SHRINKAGE = 40.0, 0.2


def lifted_learner(
    head: LinearLayer, shipped: Mapping[str, FloatArray], task: Task, prior: HeadStatistics, lift: Lift
) -> StatisticsLearner:
    """One that knows nothing yet.

    Args:
        head: Names of the weight and the bias.
        shipped: The layer as shipped, live until the first sample comes.
        task: Of classes.
        prior: The shipped statistics, of features as they are.
        lift: Made of them.

    Raises:
        LearningError: The layer has no bias.
    """
    if head.bias is None:
        raise LearningError("a layer without a bias cannot be lifted")
    return StatisticsLearner(
        head,
        shipped,
        task,
        lift.statistics(prior),
        shrinkage=SHRINKAGE,
        prior_samples=PRIOR_SAMPLES,
        lift=lift,
        precision=np.float32,  # cosines and sines are
    )
