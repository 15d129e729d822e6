"""A bundle that predicts, learns and remembers: what the agent runs, and the Python face for people who embed it.

    >>> model = OnDeviceModel.open(bundle, state_dir=folder)
    >>> model.predict(x[:2]).shape                          # logits of the live head
    (2, 10)
    >>> bool(abs(model.probabilities(x[:1]).sum() - 1) < 1e-6)
    True
    >>> for start in range(0, 96, 8):                       # labels arrive
    ...     model.learn(x[start : start + 8], y[start : start + 8])
    >>> model.n_samples, model.metrics.labels
    (96, 96)
    >>> explanation = model.explain(x[0])                   # which pixels spoke for the answer
    >>> explanation.importance.shape
    (8, 8)
    >>> model.add_class("smudge")                           # a class that nobody had thought of
    10
    >>> model.learn(x[:1], np.array([10]))
    >>> model.close()                                       # saved; the next one goes on from here
    >>> again = OnDeviceModel.open(bundle, state_dir=folder)
    >>> again.n_samples, again.class_names[-1]
    (97, 'smudge')
    >>> again.close()

One thread at a time may use a model. It opens no network.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.candidates import Workshop, shipped_statistics
from edge.agent.journal import CONTRIBUTED, Record, one_by_one, side_by_side
from edge.agent.store import LearnedStore, Saved
from edge.contract.bundle import Bundle, check_parameters
from edge.contract.digest import sha256
from edge.contract.errors import BundleError, ConfigError, EdgeError, LearningError
from edge.contract.files import lock_folder
from edge.contract.manifest import HeadSpec, Manifest
from edge.contract.training import FloatArray
from edge.inference.onnx_session import OnnxSession
from edge.learning.calibration import probabilities
from edge.learning.drift import FeatureShift
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.explain import Explanation, occlude
from edge.learning.gate import Verdict
from edge.learning.labels import LabelRing, Remembered
from edge.learning.learner import Learner, State, check_batch, part
from edge.learning.metrics import RunningMetrics
from edge.learning.packing import PackedFeatures, pack
from edge.learning.queries import LabelRequests
from edge.learning.shadow import Happened, Shadow
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Targets, Task

_PREVIOUS, _WAITING, _PROBATION = "previous.", "waiting.", "probation."
# Probation ends after some dozens of labels; who never confirms loses no more than older ones when it is rolled back.
_MOST_ON_PROBATION = 1024
_MAX_EVENTS = 100


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
    """See the module; made by `open`.

    Attributes:
        bundle: That it was opened from.
        manifest: Its manifest.
        class_names: Of the bundle, and those that were added here; empty for quantities.
        metrics: Running figures.
        warnings: What went wrong and was survived, for whoever shows them; they may be cleared.
        events: What the gate decided, for whoever shows it; they may be cleared.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        learner: str,
        threads: int,
        seed: int,
        limits: LearningLimits,
        state_dir: Path | None,
        executor: str = "auto",
        gate: bool = True,
        read_only: bool = False,
    ) -> None:
        store = None
        if state_dir is not None:
            # One folder for each bundle: a new bundle brings its own head to start from.
            folder = state_dir / "learned" / bundle.digest[:16]
            if read_only and not folder.is_dir():
                raise ConfigError(f"{state_dir} holds nothing that this bundle learned")
            store = LearnedStore(folder, bundle.manifest.backbone_digest)
            if read_only and (saved := store.learners()):
                learner = saved[0] if len(saved) == 1 else "auto"
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.metrics = RunningMetrics()
        self.warnings: list[str] = []
        self.events: list[Happened] = []
        self._head = _learnable_head(self.manifest)
        self._input = self.manifest.inputs[0]
        self._session = OnnxSession(bundle, threads)
        self._shape = self._head.features.sample_shape
        self.class_names = self.manifest.class_names
        self._task = Task(self._head.training, self.manifest.output(self._head.output).sample_shape[0])
        workshop = Workshop(
            bundle=bundle,
            session=self._session,
            task=self._task,
            executor=executor,
            per_class=limits.replay_per_class,
            max_state_mb=limits.max_state_mb,
            seed=seed,
        )
        candidates = workshop.candidates(learner)
        self._shadow = Shadow(
            self._task, self._shape, bundle.head_parameters(), candidates, self._session.logits, gated=gate
        )
        self._ring = LabelRing(limits.label_ring_size, limits.label_expiry_s)
        self._requests = LabelRequests(limits.label_requests)
        known = shipped_statistics(bundle, self._task, of_features=True)
        self._shift = None if known is None else FeatureShift(known)
        self._lineage = uuid.uuid4().hex
        self._base_release = 0
        self._previous: tuple[State, int] | None = None
        self._on_probation: list[Record] = []  # what was learned since the last `apply`
        self._waiting: deque[tuple[Record, FloatArray]] = deque()  # kept safe, with the answers, and not learned yet
        self._unsaved = self._beyond_journal = self._unsynced = self._disk_refuses = False
        self._lock: int | None = None
        self._store = None if read_only else store
        if store is not None:
            self._restore(store)

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
        executor: str = "auto",
        gate: bool = True,
        read_only: bool = False,
    ) -> OnDeviceModel:
        """Open a bundle, check it on this CPU, and go on from what was learned before.

        Args:
            path: The ``.edge`` file.
            state_dir: Where learned state is kept; None keeps nothing. One process at a time may use it.
            learner: One of `edge.contract.choices.LEARNERS`; ``auto`` lets all that suit the head learn, and the gate
                choose.
            threads: For the backbone.
            seed: Of SGD's replay draws.
            limits: Memory limits.
            executor: Of training steps: ``auto``, ``onnx``, ``numpy`` or ``torch``.
            gate: Whether a learner must prove itself before the live head follows it. False: it follows the learner
                (of ``auto``, the first) from the first label on.
            read_only: Take what was learned by whichever learner, and keep nothing; the state folder must be there.

        Raises:
            BundleError: The bundle is damaged, or this CPU gives other answers than the one that built it.
            ConfigError: The state folder cannot be used, or the head does not suit the learner or the executor.
        """
        folder = None if state_dir is None else Path(state_dir)
        if seed < 0:
            raise ConfigError(f"the seed {seed}: expected a number from 0 up")
        if read_only and (folder is None or not folder.is_dir()):
            raise ConfigError(f"there is no state folder {folder}")
        lock = None if folder is None else lock_folder(folder)
        try:
            model = cls(
                Bundle.open(path),
                learner=learner,
                threads=threads,
                seed=seed,
                limits=limits or LearningLimits(),
                state_dir=folder,
                executor=executor,
                gate=gate,
                read_only=read_only,
            )
        except BaseException as exc:
            if lock is not None:
                os.close(lock)
            if isinstance(exc, OSError):
                raise ConfigError(f"the state folder {folder} cannot be used: {exc.strerror}") from exc
            raise
        model._lock = lock
        return model

    # Predicting

    def predict(self, x: npt.NDArray[Any]) -> FloatArray:
        """Outputs of the live head: logits, or quantities.

        Args:
            x: ``(batch, *input)`` of the manifest's input type (other number types are converted).

        Returns:
            ``(batch, n_outputs)`` float32.

        Raises:
            LearningError: Another shape, or values that are not finite.
        """
        return self._run(x)[1]

    def probabilities(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """``(batch, n_outputs)`` how likely each class is, by a temperature fitted on the labels of this device.

        For several yes-or-no answers, how likely each yes is; quantities come as they are.
        """
        return self.probabilities_of(self.predict(x))

    def probabilities_of(self, outputs: FloatArray) -> npt.NDArray[np.float64]:
        """The same, from outputs ``(batch, n_outputs)`` of the live head."""
        return probabilities(outputs, self._shadow.temperature, self._task)

    def _run(self, x: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Features and outputs of the live head."""
        return self._session.predict({self._input.name: self._checked(x)}, self._shadow.live())

    def check_samples(self, x: npt.NDArray[Any]) -> None:
        """Raise LearningError for samples ``(batch, *input)`` that `predict` would refuse."""
        self._checked(x)

    def _checked(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        spec = self._input
        array = _array(x, "the samples")
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

    def predict_sample(self, sample_id: str, x: npt.NDArray[Any], now_s: float) -> FloatArray:
        """Predict one sample and remember its features until a label names it.

        Args:
            sample_id: The application's name for it.
            x: ``(*input)`` or ``(1, *input)``.
            now_s: Monotonic time.

        Returns:
            ``(n_outputs,)``.
        """
        features, batch = self._run(self._one(x))
        outputs: FloatArray = batch[0]
        self._ring.put(sample_id, Remembered(pack(features), outputs.copy(), now_s))
        if self._shift is not None and np.isfinite(features).all() and self._shift.add(features[0]):
            self.events.append(Happened("feature-shift", "the inputs look different from before; labels would help"))
            self._requests.wake()
        return outputs

    def _one(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One sample as a batch."""
        array = _array(x, "the sample")
        if array.ndim == len(self._input.shape) - 1:
            array = array[None]
        if array.ndim and len(array) != 1:
            raise LearningError(f"expected one sample, got {len(array)}")
        return array

    def wants_label(self, outputs: FloatArray) -> bool:
        """Whether the label of the sample that was answered so ``(n_outputs,)`` would help; call once a sample."""
        if self._task.is_regression:
            return False
        found = self.probabilities_of(outputs[None])[0]
        confidence = found.max() if self._task.is_classifier else np.abs(2.0 * found - 1.0).min()
        return self._requests.wants(float(confidence))

    def explain(
        self, x: npt.NDArray[Any], output: int | None = None, *, on: str = "input", window: int | None = None
    ) -> Explanation:
        """Which regions of a sample mattered for an answer.

        Args:
            x: ``(*input)`` or ``(1, *input)``.
            output: Class or output to explain; the class that is answered, or the first output, when None.
            on: ``input``, or ``features`` to cover the feature map that the head takes: as coarse as that is, and much
                cheaper, because only the head runs.
            window: Side of the window that covers, see `edge.learning.explain.occlude`.

        Raises:
            LearningError: There is no such output, or the sample or window does not fit.
        """
        array = self._one(x)
        if window is not None and window < 1:
            raise LearningError(f"a window of {window}: expected 1 at least")
        if output is not None and not isinstance(output, int | np.integer):
            raise LearningError(f"output {output!r:.40}: expected a number")
        features, outputs = self._run(array)
        chosen = (int(outputs[0].argmax()) if self._task.is_classifier else 0) if output is None else output
        if on == "features":
            return occlude(lambda f: self.probabilities_of(self._outputs(f)), features[0], chosen, window)
        if on != "input":
            raise LearningError(f"on {on!r}: expected input or features")
        return occlude(self.probabilities, self._checked(array)[0], chosen, window)

    def _outputs(self, features: FloatArray) -> FloatArray:
        return self._session.logits(features, self._shadow.live())

    # Learning

    def learn(self, x: npt.NDArray[Any], y: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None) -> None:
        """Learn labelled samples.

        Args:
            x: ``(batch, *input)``.
            y: ``(batch,)`` int64 classes, or ``(batch, n_outputs)`` targets.
            weights: ``(batch,)`` from 0 to 1, how much each label is trusted; None for 1.

        Raises:
            LearningError: The samples or labels cannot be learned. Where that shows only while they are learned, those
                before the one that cannot be learned stay.
        """
        features, outputs = self._run(x)
        _, targets, trust = check_batch(features, _array(y, "the labels"), weights, self._shape, self._task)
        self._learn_all_waiting()
        packed = pack(features)
        for i in range(len(targets)):
            rows = slice(i, i + 1)
            one = PackedFeatures(packed.codes[rows], packed.scales[rows])
            self._learn(Record(one, targets[rows], trust[rows]), outputs[rows])

    def join_label(self, sample_id: str, label: Any, now_s: float, weight: float = 1.0, *, later: bool = False) -> bool:
        """Learn a sample that was predicted before, now that its label is known.

        Args:
            sample_id: As `predict_sample` was told.
            label: Its class, or its targets ``(n_outputs,)``.
            now_s: Monotonic time.
            weight: How much the label is trusted, from 0 to 1.
            later: Only put it into the journal: `learn_waiting` learns it, or a restart.

        Returns:
            False when the sample is not remembered: unknown, already labelled, or too old.

        Raises:
            LearningError: There is no such class, or no such target or weight is possible.
        """
        targets = self.check_label(label)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise LearningError(f"weight {weight!r:.40}: expected a number from 0 to 1")
        found = self._ring.join(sample_id, now_s)
        if found is None:
            return False
        trust = np.array([weight], np.float32)
        check_batch(found.features.unpack(self._shape), targets, trust, self._shape, self._task)
        record = Record(found.features, targets, trust)
        if later:
            self._note(record)
            self._waiting.append((record, found.answer))
            return True
        self._learn_all_waiting()
        self._learn(record, self._padded(found.answer))
        return True

    def _learn_all_waiting(self) -> None:
        """What cannot be learned is said in `warnings`: it is not the fault of who asks now."""
        while self._waiting:
            try:
                self.learn_waiting()
            except LearningError as exc:
                self.warnings.append(f"a label that waited was not learned: {exc}")

    @property
    def n_waiting(self) -> int:
        """Labels that were joined for later."""
        return len(self._waiting)

    def learn_waiting(self) -> bool:
        """Learn the label that has waited longest; False when there is none.

        Raises:
            LearningError: It cannot be learned; it does not wait any more.
        """
        if not self._waiting:
            return False
        record, answer = self._waiting.popleft()
        self._learn(record, self._padded(answer), is_noted=True)
        return True

    def _padded(self, answer: FloatArray) -> FloatArray:
        """``(1, n_outputs)`` an answer ``(n_outputs,)``, also one from before a class was added."""
        more = self._task.n_outputs - len(answer)
        return np.pad(answer, (0, more), constant_values=answer.min())[None] if more else answer[None]

    def check_label(self, label: Any) -> Targets:
        """One label as it is kept, ``(1,)`` or ``(1, n_outputs)``; LearningError for what is none."""
        if self._task.is_classifier and (isinstance(label, bool) or not isinstance(label, int | np.integer)):
            raise LearningError(f"label {label!r:.40}: expected a class from 0 to {self._task.n_outputs - 1}")
        array = _array(label, "the label")
        return self._task.check(array[None] if self._task.is_classifier else array.reshape(1, -1), 1)

    def _learn(self, record: Record, answers: FloatArray, is_noted: bool = False) -> None:
        """Learn a batch whose samples were answered so, and which may be in the journal already."""
        features = record.features.unpack(self._shape)
        happened = self._shadow.learn(record.features, features, record.targets, record.weights)
        if not is_noted:
            self._note(record)  # before it is acknowledged: then a kill does not lose it
        self.events = [*self.events, *happened][-_MAX_EVENTS:]
        if any(event.kind == "drift" for event in happened):
            self._requests.wake()
        if self._previous is not None:
            self._on_probation = [*self._on_probation, record][-_MOST_ON_PROBATION:]
        if record.weights.any():
            self.metrics.judged(self._task, answers, record.targets)

    def _note(self, record: Record) -> None:
        """Append to the journal."""
        self._unsaved = self._unsynced = True
        if self._store is None:
            return
        try:
            self._store.append(record)
            self._disk_refuses = False
        except OSError as exc:
            if not self._disk_refuses:
                self.warnings.append(f"labels are kept in memory only, the disk does not take them: {exc.strerror}")
            self._disk_refuses = self._beyond_journal = True

    def add_class(self, name: str) -> int:
        """Make room for a further class, which is answered from its first labels on. Saved before it returns.

        Returns:
            Its number.

        Raises:
            LearningError: There is one of that name, or the head cannot grow: its last layer is not linear.
        """
        if not self._task.is_classifier or self._head.linear is None:
            raise LearningError("no class can be added to this head: its last layer is not a linear one of classes")
        if not _is_name(name) or name in self.class_names:
            raise LearningError(f"class {name!r:.40}: expected a name of 1 to 128 characters that no class has")
        try:
            self.save()  # where the disk takes nothing, there will be no class whose labels a restart would drop
        except OSError as exc:
            raise LearningError(f"class {name!r:.40} was not added, it cannot be saved: {exc.strerror}") from exc
        self._grow((*self.class_names, name))
        self._save_or_warn()
        return len(self.class_names) - 1

    def _grow(self, class_names: tuple[str, ...]) -> None:
        if len(class_names) > len(self.class_names):
            if self._head.linear is None:
                raise LearningError("no class can be added to this head: its last layer is not linear")
            self._shadow.grow(len(class_names), self._head.linear)
            self._task = Task(self._task.recipe, len(class_names))
            self.class_names = class_names
            self._previous = None  # it has fewer classes
            self._unsaved = self._beyond_journal = True

    @property
    def _contributor(self) -> Learner:
        """Whose knowledge is sent to the fleet: of statistics where there are any, because they merge exactly."""
        learners = list(self._shadow.candidates.values())
        return next((learner for learner in learners if learner.kind == "statistics"), learners[0])

    @property
    def n_samples(self) -> int:
        """Labelled samples learned so far, over all restarts."""
        return self._contributor.n_samples

    @property
    def learner_kind(self) -> str:
        """``statistics`` or ``delta``: what this model contributes to a merge."""
        return self._contributor.kind

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the learners in the shadow."""
        return tuple(self._shadow.candidates)

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        return self._task

    @property
    def leader(self) -> str:
        """Name of the learner that the live head follows; empty while it stays as it is."""
        return self._shadow.leader

    @property
    def temperature(self) -> float:
        """What logits are divided by for honest probabilities."""
        return self._shadow.temperature

    def head_digest(self) -> str:
        """SHA-256 of the live parameters, in the order of the manifest."""
        parameters = self._shadow.live()
        return sha256(b"".join(parameters[spec.name].tobytes() for spec in self._head.parameters))

    # Exchanging with the fleet

    @property
    def n_contributed(self) -> int:
        """Labelled samples behind what `contribution` would give now."""
        return self._contributor.n_contributed

    @property
    def base_release(self) -> int:
        """Counter of the release that the head goes on from, 0 for the shipped one."""
        return self._base_release

    def contribution(self) -> HeadUpdate:
        """What this device learned, for the coordinator."""
        learner = self._contributor
        tensors = learner.contribution()
        if self._waiting:  # the journal has them before the mark, and a restart would learn them before it
            self.save()
        else:
            self._note(CONTRIBUTED)  # after a restart the learner must know which version is on its way
        return HeadUpdate(
            learner=learner.kind,
            backbone=self.manifest.backbone_digest,
            lineage=self._lineage,
            version=learner.n_samples,
            n_samples=learner.n_contributed,
            base_release=self._base_release,
            tensors=tensors,
            class_names=self.class_names if self.class_names != self.manifest.class_names else (),
        )

    def _aligned(self, release: HeadRelease) -> HeadRelease:
        """A release in the order of this device's classes; those that it does not know keep what they have here.

        Raises:
            BundleError: It belongs to another backbone, or its parameters are not this head's.
        """
        self._check_offered(release)
        if not self._task.is_classifier or self._head.linear is None:
            return release
        given = release.class_names or self.manifest.class_names
        return release.aligned(given, self.class_names, self._head.linear, self._shadow.live())

    def _check_offered(self, release: HeadRelease) -> None:
        """Raise BundleError for a head that is not one of this bundle."""
        if release.backbone != self.manifest.backbone_digest:
            raise BundleError("the offered head belongs to another backbone")
        check_parameters(release.parameters, self.manifest, "the offered head", len(release.class_names) or None)
        if not all(_is_name(name) for name in release.class_names):
            raise BundleError("the offered head has classes whose names are none")

    def judge(self, release: HeadRelease) -> Verdict:
        """Compare an offered head with the live one on the most recent labels; changes nothing.

        Raises:
            BundleError: It belongs to another backbone, or its parameters are not this head's.
        """
        release = self._aligned(release)
        if release.merged and self._contributor.kind == "statistics":
            try:
                HeadStatistics.from_tensors(
                    release.merged,
                    self._head.n_statistics,
                    self._task.n_outputs,
                    is_classifier=self._task.is_classifier,
                )
            except LearningError as exc:
                raise BundleError(f"the offered head: {exc}") from exc
        return self._shadow.reserve.judge_offered(lambda features: self._session.logits(features, release.parameters))

    def apply(self, release: HeadRelease, counter: int) -> None:
        """Make an offered head the live one; `judge` must have accepted it. Saved before it returns.

        Args:
            release: The head.
            counter: Its release counter, the base of later contributions.
        """
        self._check_offered(release)
        before = (self._shadow.state(), self._base_release)
        self._grow((*self.class_names, *(name for name in release.class_names if name not in self.class_names)))
        release = self._aligned(release)
        included = release.included.get(self._lineage, 0)
        for learner in self._shadow.candidates.values():
            learner.rebase(release.parameters, release.merged if learner.kind == "statistics" else {}, included)
        self._shadow.place(release.parameters)
        base_before, self._base_release = self._base_release, counter
        since_before, self._on_probation = self._on_probation, []
        can_go_back = len(before[0]["usual"]) == self._task.n_groups
        previous, self._previous = self._previous, before if can_go_back else None
        self.metrics.forget_judgements()
        try:
            self.save()
        except OSError as exc:
            if not can_go_back:
                self._beyond_journal = True
                self.warnings.append(f"the head that was applied is not saved: {exc.strerror}")
                return
            self._shadow.restore(before[0])
            self._previous, self._base_release, self._on_probation = previous, base_before, since_before
            raise

    def judge_probation(self) -> Verdict:
        """Whether the head applied last holds up against its predecessor on the labels that came since."""
        if self._previous is None:
            return Verdict(True, "there is no predecessor")
        before = part(self._previous[0], "live.")
        return self._shadow.reserve.judge_live(lambda features: self._session.logits(features, before))

    def confirm(self) -> None:
        """The head applied last stays: forget its predecessor."""
        if self._previous is not None:
            self._previous, self._on_probation = None, []
            self._unsaved = self._beyond_journal = True

    def roll_back(self) -> None:
        """Bring back the head, and the learners, from before the last `apply`. Saved before it returns."""
        if self._previous is None:
            raise LearningError("there is no previous head to go back to")
        state, self._base_release = self._previous
        self._shadow.restore(state)
        self._previous = None
        again, self._on_probation = self._on_probation, []
        for record in again:  # acknowledged, and learned on the head that is gone
            self._learn_again(record)
        self.metrics.forget_judgements()
        self._save_or_warn()

    # Keeping

    def _save_or_warn(self) -> None:
        """Save what has taken effect already; where the disk takes nothing, say so and try again later."""
        try:
            self.save()
        except OSError as exc:
            self._unsaved = self._beyond_journal = True
            self.warnings.append(f"kept in memory only, the disk does not take it: {exc.strerror}")

    def save(self) -> None:
        """Write a checkpoint; without a state folder nothing is kept and this does nothing."""
        if self._store is None:
            return
        description = {
            "learners": list(self._shadow.candidates),
            "class_names": list(self.class_names),
            "lineage": self._lineage,
            "base_release": self._base_release,
            "inferences": self.metrics.inferences,
        }
        tensors = self._shadow.state()
        if self._previous is not None:  # in probation: a restart must still be able to go back
            description["previous_release"] = self._previous[1]
            tensors |= {_PREVIOUS + name: array for name, array in self._previous[0].items()}
        tensors |= side_by_side(_WAITING, [record for record, _ in self._waiting])
        tensors |= side_by_side(_PROBATION, self._on_probation)
        self._store.checkpoint(description, tensors)
        self._unsaved = self._beyond_journal = self._unsynced = False

    @property
    def is_safe(self) -> bool:
        """Whether a power cut now would lose nothing."""
        return not (self._beyond_journal or self._unsynced)

    @property
    def journal_suffices(self) -> bool:
        """Whether the last checkpoint and the journal hold everything."""
        return not self._beyond_journal

    def sync(self) -> None:
        """Make the journal survive a power cut; without a state folder this does nothing."""
        if self._store is not None:
            self._store.sync()
        self._unsynced = False

    def _restore(self, store: LearnedStore) -> None:
        own, kept = list(self._shadow.candidates), store.learners()
        if kept and kept != own and self._store is not None:
            is_back = store.exchange(kept, own)
            went_on = "going on from what they had learned themselves" if is_back else "starting anew"
            self.warnings.append(f"the state of the learners {', '.join(kept)} was put aside; {went_on}")
        saved = store.load()
        if saved is None:
            self.save()  # the lineage must be durable before anything is learned under it
            return
        if saved.warning:
            self.warnings.append(saved.warning)
        if saved.description:
            if saved.description.get("learners") != own:
                self._start_anew(f"the saved state is of the learners {saved.description.get('learners')}")
                return
            before = self._shadow.state()
            try:
                self._take(saved)
            except (EdgeError, KeyError, TypeError, ValueError) as exc:
                if len(self.class_names) == len(self.manifest.class_names):
                    self._shadow.restore(before)
                    self._start_anew(f"the saved state was not used: {exc}")
                    return
                raise BundleError(f"the saved state cannot be used: {exc}; delete it to start anew") from exc
        for record in saved.journal:
            self._learn_again(record)
        if not saved.description:
            self.save()  # this lineage, too

    def _take(self, saved: Saved) -> None:
        """Go on from a saved state of the same learners."""
        names = tuple(map(str, saved.description["class_names"]))
        known = self.manifest.class_names
        if names[: len(known)] != known:
            raise LearningError("its classes are others")
        self._grow(names)
        others = (_PREVIOUS, _WAITING, _PROBATION)
        self._shadow.restore({n: a for n, a in saved.tensors.items() if not n.startswith(others)})
        self._lineage = str(saved.description["lineage"])
        self._base_release = int(saved.description["base_release"])
        if "previous_release" in saved.description:
            self._previous = (part(saved.tensors, _PREVIOUS), int(saved.description["previous_release"]))
        self._unsaved = self._beyond_journal = False
        self._on_probation = one_by_one(_PROBATION, saved.tensors)
        for record in one_by_one(_WAITING, saved.tensors):
            self._learn_again(record)

    def _learn_again(self, record: Record) -> None:
        """Do once more what the journal says."""
        self._unsaved = self._beyond_journal = True  # with the next checkpoint a restart need not do it again
        if record.is_mark:
            self._contributor.contribution()
            return
        if record.features.codes.shape[1] != int(np.prod(self._shape)):
            return
        features = record.features.unpack(self._shape)
        try:
            _, targets, weights = check_batch(features, record.targets, record.weights, self._shape, self._task)
            self._shadow.learn(record.features, features, targets, weights)
            if self._previous is not None:
                self._on_probation = [*self._on_probation, record][-_MOST_ON_PROBATION:]
        except LearningError as exc:
            self.warnings.append(f"{len(features)} labels of the journal were not learned again: {exc}")

    def _start_anew(self, why: str) -> None:
        """Begin a new lineage without the journal of the old one, whose labels may already be in a merge."""
        self.warnings.append(why)
        self.save()

    def close(self) -> None:
        """Save what is not saved yet and give the state folder free."""
        if self._unsaved:
            self.save()
        if self._store is not None:
            self._store.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _array(value: Any, what: str) -> npt.NDArray[Any]:
    """An array; LearningError for nested lists of different lengths."""
    try:
        return np.asarray(value)
    except ValueError as exc:
        raise LearningError(f"{what}: expected numbers in a regular shape: {exc}") from exc


def _is_name(name: object) -> bool:
    """Whether a class may be called so: text that can be written down."""
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        return False
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in name)
