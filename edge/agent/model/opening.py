"""What a bundle's model is made of: what runs it, what it remembers and, with a head, what learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from edge.agent.model.answering import Answering, LearningLimits
from edge.agent.model.candidates import Workshop, shipped_statistics
from edge.agent.model.learned_state import LearnedState
from edge.agent.model.rejection import Rejection
from edge.agent.model.serving import Serving
from edge.agent.model.store import LearnedStore
from edge.agent.model.streams import StreamLimits, Streams
from edge.agent.state_folder import home_of
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError
from edge.contract.manifest import HeadSpec
from edge.learning.disclosure import Noise
from edge.learning.learning import Learning
from edge.learning.task import Task


class Options(TypedDict, total=False):
    """How to open a bundle; see `edge.agent.model.on_device_model.OnDeviceModel.open`, which has the same defaults."""

    learner: str
    threads: int
    seed: int
    limits: LearningLimits
    streams: StreamLimits
    state_dir: Path | None
    executor: str
    provider: str
    mixture: bool
    read_only: bool
    noise: Noise | None


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """See the module.

    Attributes:
        serving: Runs it.
        streams: What it remembers.
        learns: Features and what waits for labels, the rules, what was learned, and what is none of the classes; None
            without a head.
    """

    serving: Serving
    streams: Streams
    learns: tuple[Answering, Learning, LearnedState, Rejection] | None


def opened(bundle: Bundle, **options: Unpack[Options]) -> Parts:
    """The parts of an opened bundle; the state folder is the caller's to lock.

    Raises:
        BundleError: This CPU gives other answers than the one that built it.
        ConfigError: The state folder cannot be used, or the head does not suit the learner or the executor.
    """
    # One folder for each bundle: a new bundle brings its own head to start from.
    state_dir = options.get("state_dir")
    home = None if state_dir is None else home_of(state_dir, bundle.manifest.name) / "learned" / bundle.digest[:16]
    serving = Serving(bundle, options.get("threads", 1), options.get("provider", "auto"), home)
    streams = Streams(serving.begin, options.get("streams") or StreamLimits())
    head = bundle.manifest.head
    return Parts(serving, streams, None if head is None else _learns(bundle, head, serving, home, options))


def _learns(
    bundle: Bundle, head: HeadSpec, serving: Serving, home: Path | None, options: Options
) -> tuple[Answering, Learning, LearnedState, Rejection]:
    limits, learner = options.get("limits") or LearningLimits(), options.get("learner", "auto")
    read_only = options.get("read_only", False)
    store = None
    if home is not None:
        if read_only and not home.is_dir():
            raise ConfigError(f"{options.get('state_dir')} holds nothing that this bundle learned")
        store = LearnedStore(home, bundle.manifest.backbone_digest, read_only=read_only)
        if read_only and (saved := store.learners()):
            learner = saved[0] if len(saved) == 1 else "auto"
    task = Task(head.training, bundle.manifest.output(head.output).sample_shape[0])
    answering = Answering(head, serving, limits, shipped_statistics(bundle, task, of_features=True))
    workshop = Workshop(
        bundle=bundle,
        session=serving.session,
        task=task,
        executor=options.get("executor", "auto"),
        per_class=limits.replay_per_class,
        max_state_mb=limits.max_state_mb,
        seed=options.get("seed", 0),
        noise=options.get("noise"),
    )
    learning = workshop.learning(learner, mixture=options.get("mixture", True))
    state = LearnedState(learning, store, read_only=read_only)
    return answering, learning, state, Rejection(bundle, learning, limits.reject_unknown)
