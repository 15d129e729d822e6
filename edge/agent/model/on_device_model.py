"""A bundle that predicts, learns and remembers: what the agent runs, and the Python face for people who embed it.

Any bundle can be opened. One without a trainable head predicts; whatever learns raises `LearningError` there, and
``model.learns`` is False.

    >>> with OnDeviceModel.open(bundle, state_dir=folder) as model:
    ...     model.predict(x[:2]).shape                      # logits of all experts together
    ...     for start in range(0, 96, 8):                   # labels arrive
    ...         happened = model.learn(x[start : start + 8], y[start : start + 8])
    ...     model.n_samples, model.metrics.labels
    ...     explanation = model.explain(x[0])               # which pixels spoke for the answer
    ...     explanation.importance.shape
    ...     model.add_class("smudge")                       # a class that nobody had thought of
    ...     happened = model.learn(x[:1], np.array([10]))
    (2, 10)
    (96, 96)
    (8, 8)
    10
    >>> with OnDeviceModel.open(bundle, state_dir=folder) as again:    # it was saved; this one goes on from there
    ...     again.n_samples, again.class_names[-1]
    (97, 'smudge')

Threads that use one model take turns. It opens no network. A label goes from `edge.agent.model.learning_model` as an
event to `edge.learning.learning` (what it changes), and from there to the learners, such as
`edge.learning.closed_form`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from edge.agent.model.answering import LearningLimits
from edge.agent.model.evaluation import Evaluation, evaluated, explained
from edge.agent.model.learning_model import LearningModel
from edge.agent.model.opening import Options, opened
from edge.agent.model.served_model import ServedModel
from edge.agent.model.serving import Given
from edge.agent.model.streams import StreamLimits
from edge.agent.model.turns import in_turns
from edge.agent.model.warm_start import Mapped, Warmed, warm_start
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, LearningError
from edge.contract.files import lock_folder
from edge.learning.explain import Explanation
from edge.learning.learned import Learned

# As of a device's profile.
_MOST_THREADS = 64


class OnDeviceModel(ServedModel):
    """See the module; made by `open`."""

    _lock: int | None = None

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
        streams: StreamLimits | None = None,
        executor: str = "auto",
        provider: str = "auto",
        mixture: bool = True,
        read_only: bool = False,
    ) -> OnDeviceModel:
        """Open a bundle, check it on this CPU, and go on from what was learned before.

        Args:
            path: The ``.edge`` file.
            state_dir: Where learned state is kept; None keeps nothing. One process at a time may use it.
            learner: One of `edge.contract.choices.LEARNERS`; ``auto`` lets all that suit the head learn and compete.
            threads: For the frozen part, 1 to 64.
            seed: Of SGD's replay draws.
            limits: Memory limits of what learns.
            streams: Limits of what is remembered of streams, by a model with recurrent state.
            executor: Of training steps: ``auto``, ``onnx``, ``numpy`` or ``torch``.
            provider: Who runs the frozen part, one of `edge.contract.choices.PROVIDERS`. Where the installed
                onnxruntime has more than the CPU, ``auto`` measures them, once with a state folder, else each time.
            mixture: False lets the (first) learner answer alone, from the first label on, whatever it learns.
            read_only: Take what was learned by whichever learner, and write nothing: the state folder must be
                there, and an agent may have it.

        Raises:
            BundleError: The bundle is damaged, or this CPU gives other answers than the one that built it.
            ConfigError: The state folder cannot be used, or the head does not suit the learner or the executor.
        """
        folder = None if state_dir is None else Path(state_dir)
        if seed < 0:
            raise ConfigError(f"the seed {seed}: expected a number from 0 up")
        if not 1 <= threads <= _MOST_THREADS:
            raise ConfigError(f"threads {threads}: expected a number from 1 to {_MOST_THREADS}")
        if read_only and (folder is None or not folder.is_dir()):
            raise ConfigError(f"there is no state folder {folder}")
        lock = None if folder is None or read_only else lock_folder(folder)
        try:
            model = of_bundle(
                Bundle.open(path),
                shared=True,
                learner=learner,
                threads=threads,
                seed=seed,
                limits=limits or LearningLimits(),
                streams=streams or StreamLimits(),
                state_dir=folder,
                executor=executor,
                provider="cpu" if read_only else provider,
                mixture=mixture,
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

    def __enter__(self) -> OnDeviceModel:
        """Itself; `close` follows."""
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save and close, whatever happened inside."""
        self.close()

    def close(self) -> None:
        """Save what is not saved yet and give the state folder free; nothing works afterwards."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._shut()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def evaluate(self, x: Given, y: Any) -> Evaluation:
        """How right it is on labelled samples, and what it is as shipped; it learns nothing here.

        Args:
            x: ``(n, *input)``, or such arrays by name.
            y: ``(n,)`` classes, by number or name, or ``(n, n_outputs)`` targets.

        Raises:
            LearningError: The samples or labels do not fit.
        """
        self._open()
        return evaluated(self, x, y)

    def explain(
        self, x: Given, output: int | str | None = None, *, on: str = "input", window: int | None = None
    ) -> Explanation:
        """Which regions of a sample ``(*input)`` mattered; of one that learns see `edge.agent.model.learning_model`."""
        self._open()
        return explained(self, x, output, on=on, window=window)

    def snapshot(self) -> Learned:
        """All that is known now, a value: what `restore` takes. It stays what it is whatever is learned later."""
        self._open()
        return self.learned

    def restore(self, learned: Learned) -> None:
        """Go back to what `learned` was, of this bundle and these learners. Safe before it returns.

        Raises:
            LearningError: It is of another bundle or of other learners, or it cannot be saved; nothing changed.
        """
        self._open()
        if not isinstance(learned, Learned):
            raise LearningError(f"restore: expected what `snapshot()` or `learned` gave, got {type(learned).__name__}")
        try:
            self.state.replace(learned)
        except OSError as exc:
            raise LearningError(f"nothing was restored, it cannot be saved: {exc.strerror}") from exc

    def warm_start(
        self,
        other: OnDeviceModel,
        *,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        features: Mapped | None = None,
    ) -> Warmed:
        """Take what an earlier bundle's model learned, see `edge.agent.model.warm_start`. Safe before it returns.

        Raises:
            LearningError: They do not fit, or there is nothing to take over; nothing changed.
        """
        self._open()
        if not isinstance(other, OnDeviceModel):
            raise LearningError(f"warm start: expected a model that `OnDeviceModel.open` gave, got {other!r:.60}")
        other._open()
        return warm_start(self, other, class_names=class_names, features=features)

    def reset(self) -> None:
        """Forget everything that was learned: the head is the shipped one, under a new lineage.

        Raises:
            LearningError: That cannot be saved; nothing changed.
        """
        self._open()
        try:
            self.state.reset()
        except OSError as exc:
            raise LearningError(f"nothing was forgotten, that cannot be saved: {exc.strerror}") from exc
        self.metrics.forget_judgements()


class _WithHead(LearningModel, OnDeviceModel):
    """A bundle with a head that learns."""


@in_turns
class _WithHeadInTurns(_WithHead):
    """What `open` makes of it."""


@in_turns
class _InTurns(OnDeviceModel):
    """What `open` makes of any other bundle."""


def of_bundle(bundle: Bundle, *, shared: bool = False, **options: Unpack[Options]) -> OnDeviceModel:
    """A model of an opened bundle, see `OnDeviceModel.open`; the state folder is the caller's to lock.

    Only where it is `shared` do threads take turns with it; an agent's take turns with all that it is.
    """
    parts = opened(bundle, **options)
    if parts.learns is None:
        return (_InTurns if shared else OnDeviceModel)(bundle, parts.serving, parts.streams)
    with_head = _WithHeadInTurns if shared else _WithHead
    return with_head(bundle, parts.serving, parts.streams, *parts.learns)
