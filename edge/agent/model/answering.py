"""What a head that learns needs beside it: features, and the samples that wait for a label. It learns nothing.

It is given the head's answers as a function of features, so that it need not know who answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.model.serving import Given, Serving
from edge.contract.errors import ConfigError, LearningError
from edge.contract.manifest import HeadSpec
from edge.contract.training import FloatArray
from edge.inference.session import Arrays
from edge.learning.calibration import probabilities
from edge.learning.drift import FeatureShift
from edge.learning.explain import Explanation, occlude
from edge.learning.labels import LabelRing, Remembered
from edge.learning.packing import pack
from edge.learning.queries import LabelRequests
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Task

# Samples in one run, where there are many.
_AT_ONCE = 64

# Of the limits, where there is one: a profile keeps within narrower ones.
_MOST = {
    "label_ring_size": math.inf,
    "label_expiry_s": math.inf,
    "replay_per_class": math.inf,
    "max_state_mb": math.inf,
    "label_requests": 1.0,
}

Head = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningLimits:
    """How much a model may remember, and ask.

    Attributes:
        label_ring_size: Samples that may wait for a label.
        label_expiry_s: How long.
        replay_per_class: Samples of each class that SGD keeps for replay.
        max_state_mb: Memory that one learner may take, in MiB.
        label_requests: Share of samples whose label may be asked for.
        reject_unknown: Share of known samples that may be answered by "none of these"; 0 never answers so.
    """

    label_ring_size: int = 512
    label_expiry_s: float = 3600.0
    replay_per_class: int = 40
    max_state_mb: float = 256.0
    label_requests: float = 0.1
    reject_unknown: float = 0.0

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 0 <= getattr(self, name) <= most:  # NaN, too
                raise ConfigError(f"{name} {getattr(self, name)}: expected a number from 0 to {most:g}")
        if not 0.0 <= self.reject_unknown <= 0.5:
            raise ConfigError(f"reject_unknown {self.reject_unknown}: expected a share from 0 to 0.5")


class Answering:
    """See the module.

    Args:
        head: Of the bundle.
        serving: Runs it.
        limits: Of what waits for labels.
        known: Statistics of the features as shipped, or None.

    Attributes:
        ring: Samples that wait for a label.
        requests: Whose label to ask for.
    """

    def __init__(self, head: HeadSpec, serving: Serving, limits: LearningLimits, known: HeadStatistics | None) -> None:
        self._head, self._serving = head, serving
        self.ring = LabelRing(limits.label_ring_size, limits.label_expiry_s)
        self.requests = LabelRequests(limits.label_requests)
        self._shift = None if known is None else FeatureShift(known)

    def features(self, x: Given) -> FloatArray:
        """``(batch, *features)`` of samples ``(batch, *input)``, of all inputs.

        Raises:
            LearningError: Another shape, or values that are not finite.
        """
        return self.features_of(self._serving.many(x))

    def features_in_parts(self, inputs: Arrays) -> FloatArray:
        """The same of samples that may be too many for one run; a model that remembers takes them as one stream.

        Args:
            inputs: As `edge.agent.model.serving.Serving.many` gave them.
        """
        count = self._serving.count(inputs) or 1
        at_once = count if self._serving.manifest.states else _AT_ONCE
        parts = [self._serving.rows(inputs, slice(i, i + at_once)) for i in range(0, count, at_once)]
        return np.concatenate([self.features_of(part) for part in parts])

    def features_of(self, inputs: Arrays) -> FloatArray:
        """``(batch, *features)`` of samples as `edge.agent.model.serving.Serving.many` gave them."""
        found: FloatArray = self._serving.run(inputs)[self._head.features.name]
        return found

    def remember(self, sample_id: str, features: FloatArray, answer: FloatArray, now_s: float) -> bool:
        """Keep a sample until its label names it.

        Returns:
            Whether inputs have begun to look different from before.
        """
        self.ring.put(sample_id, Remembered(pack(features), answer, now_s))
        shifted = self._shift is not None and bool(np.isfinite(features).all()) and self._shift.add(features[0])
        if shifted:
            self.requests.wake()
        return shifted

    def late_features(self, count: int) -> FloatArray:
        """``(n, *features)`` of the samples that came last and wait for a label, the newest last."""
        shape = self._head.features.sample_shape
        kept = [sample.features.unpack(shape) for sample in self.ring.newest(count)]
        return np.concatenate([np.zeros((0, *shape), np.float32), *kept])

    def explain(
        self,
        x: Given,
        head: Head,
        task: Task,
        temperature: float,
        output: int | None = None,
        *,
        on: str = "input",
        window: int | None = None,
    ) -> Explanation:
        """Which regions of a sample mattered for an answer.

        Args:
            x: ``(*input)`` or ``(1, *input)``, or such arrays by name.
            head: Answers for features.
            task: What the answers mean.
            temperature: Of probabilities.
            output: Class or output to explain; the class that is answered, or the first output, when None.
            on: ``input``, or of several inputs the name of one, or ``features`` to cover the feature map that the head
                takes: as coarse as that is, and much cheaper, because only the head runs.
            window: Side of the window that covers, see `edge.learning.explain.occlude`.

        Raises:
            LearningError: There is no such output, or the sample or window does not fit.
        """
        if on == "features":
            inputs = self._serving.one(x)
            features = self.features_of(inputs)

            def of_features(many: FloatArray) -> npt.NDArray[np.float64]:
                with np.errstate(all="ignore"):  # what is not finite is an error of its own
                    return probabilities(head(many), temperature, task)

            _check(output, window)
            chosen = _chosen(of_features(features), task, output)
            return occlude(of_features, features[0], chosen, window)

        def scores(inputs: Arrays) -> npt.NDArray[np.float64]:
            with np.errstate(all="ignore"):
                return probabilities(head(self.features_of(inputs)), temperature, task)

        return occluded(self._serving, x, scores, task, output, on=on, window=window, others=("features",))


def occluded(
    serving: Serving,
    x: Given,
    scores: Callable[[Arrays], npt.NDArray[np.float64]],
    task: Task,
    output: int | None,
    *,
    on: str,
    window: int | None,
    others: tuple[str, ...] = (),
) -> Explanation:
    """Cover one input of a sample piece by piece, see `edge.learning.explain.occlude`.

    Args:
        serving: Knows the inputs.
        x: One sample.
        scores: ``(batch, n_outputs)`` of samples.
        task: What they mean.
        output: Whose score to explain; the class that is answered, or the first output, when None.
        on: ``input``, or of several inputs the name of one.
        window: Side of the window.
        others: What else `on` could have been, for people.

    Raises:
        LearningError: There is no such output or input, or the sample or window does not fit.
    """
    inputs, covered = serving.one(x), list(serving.inputs)
    _check(output, window)
    choices = ["input"] if len(covered) == 1 else covered
    if on not in choices:
        *first, last = [*choices, *others]
        raise LearningError(f"on {on!r}: expected {', '.join(first)}{' or ' if first else ''}{last}")
    name = covered[0] if on == "input" else on
    rest = [(each, array, serving.inputs[each].batch_axis) for each, array in inputs.items() if each != name]
    chosen = _chosen(scores(inputs), task, output)
    if serving.inputs[name].batch_axis != 0:
        use = "; use features" if others else ""
        raise LearningError(f"on {on!r}: samples of this input do not lie along its first axis{use}")

    def of_input(batch: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        if serving.manifest.states:  # else each would be answered as what follows on the others
            return np.concatenate([scores({**inputs, name: batch[i : i + 1]}) for i in range(len(batch))])
        rows = {each: array if axis is None else array.repeat(len(batch), axis) for each, array, axis in rest}
        return scores({**rows, name: batch})

    return occlude(of_input, inputs[name][0], chosen, window)


def _check(output: object, window: int | None) -> None:
    if window is not None and window < 1:
        raise LearningError(f"a window of {window}: expected 1 at least")
    if output is not None and not isinstance(output, int | np.integer):
        raise LearningError(f"output {output!r:.40}: expected a number")


def _chosen(scores: npt.NDArray[np.float64], task: Task, output: int | None) -> int:
    if output is not None:
        return output
    return int(scores[0].argmax()) if task.is_classifier else 0
