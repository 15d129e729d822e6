"""A bundle that predicts, learns and remembers: what the agent runs, and the Python face for people who embed it.

    >>> model = OnDeviceModel.open("model.edge", state_dir="state")     # doctest: +SKIP
    >>> model.predict(x).argmax(axis=1)                                 # doctest: +SKIP
    >>> model.learn(x, y)                                               # doctest: +SKIP
    >>> model.save()                                                    # doctest: +SKIP

One thread at a time may use a model. It opens no network.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.store import LearnedStore
from edge.contract import manifest as m
from edge.contract.bundle import Bundle, check_parameters
from edge.contract.digest import sha256
from edge.contract.errors import BundleError, ConfigError, EdgeError, LearningError
from edge.contract.files import lock_folder
from edge.contract.manifest import HeadSpec, Manifest
from edge.contract.training import FloatArray, LabelArray
from edge.inference.onnx_session import OnnxSession
from edge.inference.onnx_trainer import OnnxTrainer
from edge.learning.closed_form import StatisticsLearner
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.gate import Reserve, Verdict
from edge.learning.labels import LabelRing, Remembered
from edge.learning.learner import Learner, State, check_batch
from edge.learning.metrics import RunningMetrics
from edge.learning.packing import PackedFeatures, pack
from edge.learning.sgd import SgdLearner
from edge.learning.statistics import HeadStatistics

LEARNERS = ("auto", "statistics", "sgd")
RESERVE_SIZE = 64
_PREVIOUS = "previous."


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningLimits:
    """How much a model may remember.

    Attributes:
        label_ring_size: Samples that may wait for a label.
        label_expiry_s: How long.
        replay_per_class: Samples of each class that SGD keeps for replay.
    """

    label_ring_size: int = 512
    label_expiry_s: float = 3600.0
    replay_per_class: int = 20


def _learnable_head(manifest: Manifest) -> HeadSpec:
    """The head of a bundle that an agent can serve.

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


class OnDeviceModel:
    """See the module; made by `open`."""

    def __init__(
        self, bundle: Bundle, *, learner: str, threads: int, seed: int, limits: LearningLimits, state_dir: Path | None
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.metrics = RunningMetrics()
        self.warnings: list[str] = []
        self._limits = limits
        self._head = _learnable_head(self.manifest)
        self._input = self.manifest.inputs[0]
        self._session = OnnxSession(bundle, threads)
        self._shape = self._head.features.sample_shape
        self._n_classes = len(self.manifest.class_names)
        self._seed = seed
        self._learner = self._new_learner(learner)
        self._ring = LabelRing(limits.label_ring_size, limits.label_expiry_s)
        self._reserve = Reserve(RESERVE_SIZE, self._shape)
        self._lineage = uuid.uuid4().hex
        self._base_release = 0
        self._previous: tuple[State, int] | None = None
        self._dirty = self._disk_refuses = False
        self._lock: int | None = None
        self._store: LearnedStore | None = None
        if state_dir is not None:
            # One folder for each bundle: a new bundle brings its own head to start from.
            self._store = LearnedStore(state_dir / "learned" / bundle.digest[:16], self.manifest.backbone_digest)
            self._restore(self._store)

    @classmethod
    def open(
        cls,
        path: str | Path,
        state_dir: str | Path | None = None,
        *,
        learner: str = "auto",
        threads: int = 1,
        seed: int = 0,
        limits: LearningLimits | None = None,
    ) -> OnDeviceModel:
        """Open a bundle, check it on this CPU, and go on from what was learned before.

        Args:
            path: The ``.edge`` file.
            state_dir: Where learned state is kept; None keeps nothing. One process at a time may use it.
            learner: ``statistics`` (closed form, linear heads only), ``sgd``, or ``auto``: the first where it can be.
            threads: For the backbone.
            seed: Of SGD's replay draws.
            limits: Memory limits.

        Raises:
            BundleError: The bundle is damaged, or this CPU gives other answers than the one that built it.
            ConfigError: The state folder cannot be used, or the head does not suit the learner.
        """
        folder = None if state_dir is None else Path(state_dir)
        lock = None if folder is None else lock_folder(folder)
        try:
            model = cls(
                Bundle.open(path),
                learner=learner,
                threads=threads,
                seed=seed,
                limits=limits or LearningLimits(),
                state_dir=folder,
            )
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        model._lock = lock
        return model

    def _new_learner(self, name: str) -> Learner:
        if name not in LEARNERS:
            raise ConfigError(f"learner {name!r}: expected one of {', '.join(LEARNERS)}")
        shipped = self.bundle.head_parameters()
        linear = self._head.linear
        if len(self._shape) != 1:
            linear = None
        has_statistics = self.bundle.has(m.STATISTICS)
        if name == "statistics" and linear is None:
            raise ConfigError("the statistics learner needs a head of one linear layer; use sgd")
        if linear is not None and (name == "statistics" or (name == "auto" and has_statistics)):
            prior = None
            if has_statistics:
                tensors = self.bundle.tensors(m.STATISTICS)
                prior = HeadStatistics.from_tensors(tensors, self._shape[0], self._n_classes)
            return StatisticsLearner(linear, shipped, prior)
        trainer = OnnxTrainer(self.bundle.read(m.HEAD_TRAIN), self._head.features.name, shipped)
        return SgdLearner(
            trainer,
            self._shape,
            self._n_classes,
            self._head.learning_rate,
            per_class=self._limits.replay_per_class,
            seed=self._seed,
        )

    # Predicting

    def predict(self, x: npt.NDArray[Any]) -> FloatArray:
        """Logits of the live head.

        Args:
            x: ``(batch, *input)`` of the manifest's input type (other number types are converted).

        Returns:
            ``(batch, n_classes)`` float32.

        Raises:
            LearningError: Another shape, or values that are not finite.
        """
        return self._run(x)[1]

    def _run(self, x: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Features and logits of the live head."""
        return self._session.predict({self._input.name: self._checked(x)}, self._learner.parameters())

    def _checked(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        spec = self._input
        array = np.asarray(x)
        if array.dtype.kind not in "fiub":
            raise LearningError(f"expected numbers of type {spec.dtype}, got {array.dtype}")
        target = np.dtype(spec.dtype)
        limits = np.finfo(target) if target.kind == "f" else np.iinfo(target) if target.kind in "iu" else None
        # False for NaN and infinity, which would otherwise become ordinary numbers in an integer input.
        if limits is not None and array.size and not ((array >= limits.min) & (array <= limits.max)).all():
            raise LearningError(f"the sample has values that are not finite or do not fit {spec.dtype}")
        array = array.astype(target, copy=False)
        try:
            spec.check(array)
        except ValueError as exc:
            raise LearningError(str(exc)) from exc
        return array

    def _logits(self, features: FloatArray) -> FloatArray:
        logits: FloatArray = self._session.logits(features, self._learner.parameters())
        return logits

    def predict_sample(self, sample_id: str, x: npt.NDArray[Any], now_s: float) -> FloatArray:
        """Predict one sample and remember its features until a label names it.

        Args:
            sample_id: The application's name for it.
            x: ``(*input)`` or ``(1, *input)``.
            now_s: Monotonic time.

        Returns:
            ``(n_classes,)`` logits.
        """
        array = np.asarray(x)
        if array.ndim == len(self._input.shape) - 1:
            array = array[None]
        features, batch = self._run(array)
        logits: FloatArray = batch[0]
        self._ring.put(sample_id, Remembered(pack(features), int(logits.argmax()), now_s))
        return logits

    # Learning

    def learn(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        """Learn labelled samples.

        Args:
            x: ``(batch, *input)``.
            y: ``(batch,)`` int64 in ``[0, n_classes)``.

        Raises:
            LearningError: The samples or labels cannot be learned; nothing changed.
        """
        features, _ = self._run(x)
        labels = np.asarray(y)
        check_batch(features, labels, self._shape, self._n_classes)
        self._learn(pack(features), labels.astype(np.int64), None)

    def join_label(self, sample_id: str, label: int, now_s: float) -> bool:
        """Learn a sample that was predicted before, now that its label is known.

        Returns:
            False when the sample is not remembered: unknown, already labelled, or too old.

        Raises:
            LearningError: There is no such class.
        """
        if not 0 <= label < self._n_classes:
            raise LearningError(f"label {label}: expected a class from 0 to {self._n_classes - 1}")
        found = self._ring.join(sample_id, now_s)
        if found is None:
            return False
        self._learn(found.features, np.array([label], np.int64), np.array([found.prediction]))
        return True

    def _learn(self, packed: PackedFeatures, labels: LabelArray, predictions: npt.NDArray[Any] | None) -> None:
        features = packed.unpack(self._shape)
        logits = self._logits(features)
        self._learner.learn_many(features, labels)
        if self._store is not None:
            try:
                self._store.append(packed, labels)  # before it is acknowledged: then a kill does not lose it
                self._disk_refuses = False
            except OSError as exc:
                if not self._disk_refuses:
                    self.warnings.append(f"labels are kept in memory only, the disk does not take them: {exc.strerror}")
                self._disk_refuses = True
        answered = logits.argmax(axis=1) if predictions is None else predictions
        self.metrics.judged(logits, labels, answered)
        self._reserve.put(packed, labels, answered == labels)
        self._dirty = True

    @property
    def n_samples(self) -> int:
        """Labelled samples learned so far, over all restarts."""
        return self._learner.n_samples

    @property
    def learner_kind(self) -> str:
        """``statistics`` or ``delta``: what this model contributes to a merge."""
        return self._learner.kind

    def head_digest(self) -> str:
        """SHA-256 of the live parameters, in the order of the manifest."""
        parameters = self._learner.parameters()
        return sha256(b"".join(parameters[spec.name].tobytes() for spec in self._head.parameters))

    # Exchanging with the fleet

    @property
    def n_contributed(self) -> int:
        """Labelled samples behind what `contribution` would give now."""
        return self._learner.n_contributed

    @property
    def base_release(self) -> int:
        """Counter of the release that the head goes on from, 0 for the shipped one."""
        return self._base_release

    def contribution(self) -> HeadUpdate:
        """What this device learned, for the coordinator."""
        tensors = self._learner.contribution()
        self._dirty = True  # the learner remembers which version is on its way
        return HeadUpdate(
            learner=self._learner.kind,
            backbone=self.manifest.backbone_digest,
            lineage=self._lineage,
            version=self._learner.n_samples,
            n_samples=self._learner.n_contributed,
            base_release=self._base_release,
            tensors=tensors,
        )

    def judge(self, release: HeadRelease) -> Verdict:
        """Compare an offered head with the live one on the most recent labels; changes nothing.

        Raises:
            BundleError: It belongs to another backbone, or its parameters are not this head's.
        """
        if release.backbone != self.manifest.backbone_digest:
            raise BundleError("the offered head belongs to another backbone")
        check_parameters(release.parameters, self.manifest, "the offered head")
        if release.merged and self._learner.kind == "statistics":
            try:
                HeadStatistics.from_tensors(release.merged, self._shape[0], self._n_classes)
            except LearningError as exc:
                raise BundleError(f"the offered head: {exc}") from exc
        return self._reserve.judge_offered(lambda features: self._session.logits(features, release.parameters))

    def apply(self, release: HeadRelease, counter: int) -> None:
        """Make an offered head the live one; `judge` must have accepted it. Saved before it returns.

        Args:
            release: The head.
            counter: Its release counter, the base of later contributions.
        """
        self._previous = (self._learner.state(), self._base_release)
        self._learner.rebase(release.parameters, release.merged, release.included.get(self._lineage, 0))
        self._base_release = counter
        self._reserve = Reserve(RESERVE_SIZE, self._shape)
        self.metrics.forget_judgements()
        self.save()

    def judge_probation(self) -> Verdict:
        """Whether the head applied last holds up against its predecessor on the labels that came since."""
        if self._previous is None:
            return Verdict(True, "there is no predecessor")
        state = self._previous[0]
        before = {spec.name: state[f"live.{spec.name}"].astype(np.float32) for spec in self._head.parameters}
        return self._reserve.judge_live(lambda features: self._session.logits(features, before))

    def confirm(self) -> None:
        """The head applied last stays: forget its predecessor."""
        if self._previous is not None:
            self._previous = None
            self._dirty = True

    def roll_back(self) -> None:
        """Bring back the head, and the learner, from before the last `apply`. Saved before it returns."""
        if self._previous is None:
            raise LearningError("there is no previous head to go back to")
        state, self._base_release = self._previous
        self._learner.restore(state)
        self._previous = None
        self._reserve = Reserve(RESERVE_SIZE, self._shape)
        self.metrics.forget_judgements()
        self.save()

    # Keeping

    def save(self) -> None:
        """Write a checkpoint; without a state folder nothing is kept and this does nothing."""
        if self._store is None:
            return
        description = {
            "learner": self._learner.kind,
            "lineage": self._lineage,
            "base_release": self._base_release,
            "inferences": self.metrics.inferences,
        }
        tensors = self._learner.state()
        if self._previous is not None:  # in probation: a restart must still be able to go back
            description["previous_release"] = self._previous[1]
            tensors |= {_PREVIOUS + name: array for name, array in self._previous[0].items()}
        self._store.checkpoint(description, tensors)
        self._dirty = False

    @property
    def dirty(self) -> bool:
        """Whether a checkpoint would hold more than the last one."""
        return self._dirty

    def _restore(self, store: LearnedStore) -> None:
        saved = store.load()
        if saved is None:
            self.save()  # the lineage must be durable before anything is learned under it
            return
        if saved.warning:
            self.warnings.append(saved.warning)
        if saved.description.get("learner") == self._learner.kind:
            try:
                self._learner.restore(saved.tensors)
                self._lineage = str(saved.description["lineage"])
                self._base_release = int(saved.description["base_release"])
                if "previous_release" in saved.description:
                    parts = {n.removeprefix(_PREVIOUS): a for n, a in saved.tensors.items() if n.startswith(_PREVIOUS)}
                    self._previous = (parts, int(saved.description["previous_release"]))
            except (EdgeError, KeyError) as exc:
                self._start_anew(f"the saved state was not used: {exc}")
                return
        elif saved.description:
            self._start_anew(f"the saved state is of the learner {saved.description['learner']!r}; starting anew")
            return
        for packed, labels in saved.journal:
            features = packed.unpack(self._shape) if packed.codes.shape[1] == int(np.prod(self._shape)) else None
            if features is None:
                continue
            try:
                self._learner.learn_many(features, labels)
            except LearningError as exc:
                self.warnings.append(f"{len(labels)} labels of the journal were not learned again: {exc}")
            self._dirty = True

    def _start_anew(self, why: str) -> None:
        """Begin a new lineage without the journal of the old one, whose labels may already be in a merge."""
        self.warnings.append(why)
        self.save()

    def close(self) -> None:
        """Save what is not saved yet and give the state folder free."""
        if self._dirty:
            self.save()
        if self._store is not None:
            self._store.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
