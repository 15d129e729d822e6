"""Answers of a bundle whose head can learn: the frozen part, and the samples that wait for a label. It learns nothing.

It is given the head's answers as a function of features, so that it need not know who answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError, LearningError
from edge.contract.manifest import HeadSpec, Manifest
from edge.contract.training import FloatArray
from edge.inference.onnx_session import OnnxSession
from edge.learning.calibration import probabilities
from edge.learning.drift import FeatureShift
from edge.learning.explain import Explanation, occlude
from edge.learning.labels import LabelRing, Remembered
from edge.learning.packing import pack
from edge.learning.queries import LabelRequests
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Task

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
    """

    label_ring_size: int = 512
    label_expiry_s: float = 3600.0
    replay_per_class: int = 40
    max_state_mb: float = 256.0
    label_requests: float = 0.1


def learnable_head(manifest: Manifest) -> HeadSpec:
    """The head of a bundle that can learn on samples of one input.

    Raises:
        BundleError: It has none, or the model does not take one input ``(batch, fixed sizes...)``.
    """
    if manifest.head is None:
        raise BundleError(
            "the bundle has no trainable head; run it with `edge-bundle run`, or convert with --trainable"
        )
    if len(manifest.inputs) != 1:
        raise BundleError(f"the model takes {len(manifest.inputs)} inputs, the agent serves one; use `edge-bundle run`")
    try:
        manifest.inputs[0].sample_shape  # noqa: B018  # raises for what is not (batch, fixed sizes...)
    except ValueError as exc:
        raise BundleError(f"the agent cannot serve this input: {exc}") from exc
    return manifest.head


class Answering:
    """See the module.

    Args:
        bundle: With a head.
        threads: For the frozen part.
        limits: Of what waits for labels.
        known: Statistics of the features as shipped, or None.

    Attributes:
        session: Runs the bundle.
        ring: Samples that wait for a label.
        requests: Whose label to ask for.
    """

    def __init__(self, bundle: Bundle, threads: int, limits: LearningLimits, known: HeadStatistics | None) -> None:
        self._head = learnable_head(bundle.manifest)
        self._input = bundle.manifest.inputs[0]
        self.session = OnnxSession(bundle, threads)
        self.ring = LabelRing(limits.label_ring_size, limits.label_expiry_s)
        self.requests = LabelRequests(limits.label_requests)
        self._shift = None if known is None else FeatureShift(known)

    def features(self, x: npt.NDArray[Any]) -> FloatArray:
        """``(batch, *features)`` of samples ``(batch, *input)``.

        Raises:
            LearningError: Another shape, or values that are not finite.
        """
        return self.session.features({self._input.name: self.checked(x)})

    def checked(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Samples ``(batch, *input)`` in the input's type; LearningError for what `features` would refuse."""
        spec = self._input
        array = as_array(x, "the samples")
        if array.dtype.kind not in "fiub":
            raise LearningError(f"expected numbers of type {spec.dtype}, got {array.dtype}")
        target = np.dtype(spec.dtype)
        limits = np.finfo(target) if target.kind == "f" else np.iinfo(target) if target.kind in "iu" else None
        # False for NaN and infinity, which would otherwise become ordinary numbers in an integer input.
        if limits is not None and array.size and not (array.min() >= limits.min and array.max() <= limits.max):
            raise LearningError(f"the sample has values that are not finite or do not fit {spec.dtype}")
        array = array.astype(target, copy=False)
        try:
            spec.check(array)
        except ValueError as exc:
            hint = "; a single sample x is given as x[None]" if array.ndim == len(spec.shape) - 1 else ""
            raise LearningError(f"{exc}{hint}") from exc
        return array

    def one(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One sample ``(*input)`` or ``(1, *input)`` as a batch."""
        array = as_array(x, "the sample")
        if array.ndim == len(self._input.shape) - 1:
            array = array[None]
        if array.ndim and len(array) != 1:
            raise LearningError(f"expected one sample, got {len(array)}")
        return array

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
        x: npt.NDArray[Any],
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
            x: ``(*input)`` or ``(1, *input)``.
            head: Answers for features.
            task: What the answers mean.
            temperature: Of probabilities.
            output: Class or output to explain; the class that is answered, or the first output, when None.
            on: ``input``, or ``features`` to cover the feature map that the head takes: as coarse as that is, and much
                cheaper, because only the head runs.
            window: Side of the window that covers, see `edge.learning.explain.occlude`.

        Raises:
            LearningError: There is no such output, or the sample or window does not fit.
        """
        array = self.checked(self.one(x))
        if window is not None and window < 1:
            raise LearningError(f"a window of {window}: expected 1 at least")
        if output is not None and not isinstance(output, int | np.integer):
            raise LearningError(f"output {output!r:.40}: expected a number")
        if on not in ("input", "features"):
            raise LearningError(f"on {on!r}: expected input or features")

        def of_features(features: FloatArray) -> npt.NDArray[np.float64]:
            with np.errstate(all="ignore"):  # what is not finite is an error of its own
                return probabilities(head(features), temperature, task)

        features = self.features(array)
        chosen = (int(of_features(features)[0].argmax()) if task.is_classifier else 0) if output is None else output
        if on == "features":
            return occlude(of_features, features[0], chosen, window)
        return occlude(lambda batch: of_features(self.features(batch)), array[0], chosen, window)


def as_array(value: Any, what: str) -> npt.NDArray[Any]:
    """An array; LearningError for nested lists of different lengths."""
    try:
        return np.asarray(value)
    except ValueError as exc:
        raise LearningError(f"{what}: expected numbers in a regular shape: {exc}") from exc
