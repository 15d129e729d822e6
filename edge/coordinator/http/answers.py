"""What the HTTP API answers where that is no row of the database: the types that its OpenAPI document names.

Rows go out as the records that they are, see `edge.coordinator.records`; times are wall clock, milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.channel.messages import Pairs
from edge.coordinator.learning.confusions import Summed
from edge.coordinator.records import (
    AlikeSample,
    Contribution,
    Device,
    FleetQuestion,
    Judge,
    LoggedLook,
    Model,
    Release,
    Transition,
)
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.states import RolloutState, TargetState


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthAnswer:
    """Which fleet this is, whether releases are signed, and whether people have to sign in."""

    fleet: str
    version: str
    signed: bool
    access: Literal["open", "tokens"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusAnswer(HealthAnswer):
    """The same, and how the coordinator stands with its broker since when; what is wrong, in words."""

    broker: str
    connected: bool
    hears: bool
    since_ms: int
    troubles: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityAnswer:
    """Who is signed in; `proved`: by a token."""

    who: str
    role: str
    proved: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenAnswer:
    """A token without its secret."""

    id: int
    name: str
    role: str
    created_ms: int
    expires_ms: int
    revoked_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTokenAnswer(TokenAnswer):
    """A token with its secret, which no other answer has."""

    token: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrolmentAnswer:
    """A token by which devices join, without its secret; `holds` while somebody may still join by it."""

    id: int
    uses: int
    tags: dict[str, str]
    approves: bool
    replaces: str
    created_ms: int
    expires_ms: int
    revoked_ms: int
    holds: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class NewEnrolmentAnswer(EnrolmentAnswer):
    """The same with its secret, which no other answer has."""

    token: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinAnswer:
    """A device's login at the broker: a password, or a certificate and that of the authority."""

    device: str
    fleet: str
    admission: str
    password: str = ""
    certificate: str = ""
    authority: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Definitions:
    """Definitions of RabbitMQ, to be imported there."""

    users: list[dict[str, Any]]
    permissions: list[dict[str, str]]
    topic_permissions: list[dict[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelAnswer(Model):
    """A model of a device.

    `artifact` is the digest of its bundle's file, "" where that is not here; `stopped_rollout` is the one that brought
    what it runs and was stopped before it went through, 0 for none.
    """

    artifact: str
    stopped_rollout: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceAnswer(Device):
    """A device with its models; the fields of the first model stand beside its own, too.

    `online` is None where nobody can know, see `edge.coordinator.line.LineState.condition`.
    """

    online: bool | None  # type: ignore[assignment]  # of a device it is what it said
    condition: Literal["online", "silent", "offline", "not-known", "unknown"]
    tags: dict[str, str]
    models: list[ModelAnswer]
    model: str
    position: int
    bundle: str
    backbone: str
    head: str
    release: int
    samples: int
    state_seq: int
    state: str
    state_release: int
    state_detail: str
    experts: dict[str, list[float]]
    device: str = ""
    artifact: str = ""
    stopped_rollout: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgottenAnswer:
    """What was deleted of a device, see `edge.coordinator.learning.learning.Learning.forget`."""

    device: str
    statistics: int
    changes: int
    samples: int
    merged_statistics: int
    merged_changes: int
    copies: list[str]
    merge: Literal["now", "waits", "asked", "none"]
    receipt: int
    ended: list[int]
    contributed: bool
    checkpoints: int
    telemetry: int
    shared_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OneDeviceAnswer(DeviceAnswer):
    """The same with its login at the broker, and what was forgotten of it by this request."""

    login: str
    login_expires_ms: int
    forgotten: ForgottenAnswer | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ContributionAnswer(Contribution):
    """A contribution; `id` is for the next page."""

    id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusionAnswer(Summed):
    """What models answered to their recent labels: one of a device, or all of a backbone together.

    Attributes:
        device: "" of all together.
        model: Its name; of all together that of the bundle, "" where that is not here.
        backbone: Digest; "" of a model that has not said it.
        models: How many have told.
        said_ms: When the last of them did.
        counts: By label, by what was answered, how many; "" stands for all that had no room in a message.
    """

    device: str
    model: str
    backbone: str
    models: int
    said_ms: int
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionAnswer(FleetQuestion):
    """A question, the classes that an answer may have (none where they have no names here), and its samples."""

    has_picture: bool
    classes: tuple[str, ...]
    alike: tuple[AlikeSample, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A number of a device's telemetry, over a time that begins at `ts_ms`."""

    ts_ms: int
    model: str
    n: int
    mean: float
    min: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricAnswer:
    """One number of a device over time; `keys` are those that there are."""

    device: str
    key: str
    step: str
    points: list[Point]
    keys: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactAnswer:
    """A file that was taken in."""

    digest: str
    kind: Literal["bundle", "head"]
    backbone: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StandingAnswer:
    """A model that should run a release, and where it stands."""

    device: str
    model: str
    state: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedRelease(Release):
    """A release; `digest` is of its file, `bundle` the one by which devices name a bundle, "" of a head."""

    bundle: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSummary:
    """A rollout in short; `wave` is 0 before the first, `waves` are cumulative."""

    id: int
    release: int
    kind: str
    state: RolloutState
    wave: int
    waves: list[int]
    devices: int
    reason: str
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseAnswer(NamedRelease):
    """A release, what is in it (as `edge.coordinator.releases.differences.contents` names it), and whom it is for.

    `rollouts` are those that bring it, or were to, newest first.
    """

    contents: dict[str, Any]
    standing: list[StandingAnswer]
    rollouts: list[RolloutSummary]


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceAnswer:
    """What differs between two releases, by name; of parameters how far they moved, None where shapes differ."""

    same_bytes: bool
    changed: dict[str, tuple[Any, Any]]
    parameters: dict[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedAnswer:
    """The release that a model should run, and whether it has dealt with it."""

    model: str
    release: int
    name: str
    is_dealt_with: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LineagePart:
    """Whose learning is in a head: samples then, and the releases that have it in."""

    lineage: str
    device: str
    model: str
    is_forgotten: bool
    samples: int
    releases: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class LineageAnswer:
    """Whose learning is in a release."""

    release: int
    kind: str
    parts: list[LineagePart]
    restores: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """A role's newest document."""

    version: int
    expires: str
    threshold: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningAnswer:
    """Whether releases are signed, and by whom until when."""

    signed: bool
    roles: dict[str, Signed]


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionAnswer:
    """The version of a signed list that was taken."""

    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParcelAnswer:
    """What was taken of a device's parcel: documents kept, and why others were not."""

    device: str
    kept: int
    refused: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PausedAnswer:
    """Why the whole fleet is paused; "" while it is not."""

    paused: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BackAnswer:
    """What a rollback would do: the release that it undoes, the one whose bytes come again, and for whom."""

    undone: NamedRelease
    wanted: NamedRelease
    devices: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PushAnswer:
    """A release and the rollout that brings it."""

    release: NamedRelease
    rollout: RolloutSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class Approvals:
    """How many approvals a plan needs, and whose it has."""

    needed: int
    by: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationAnswer:
    """What devices think of a head before its rollout begins; `left_s` is how long they are still waited for."""

    state: Literal["asking", "unjudged", "passed", "lost", "dropped"]
    detail: str
    left_s: float
    judges: list[Judge]


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetAnswer:
    """A model of a device in a rollout; `of_several`: the device has others."""

    device: str
    model: str
    wave: int
    state: TargetState
    attempt: int
    detail: str
    judged: bool
    pairs: Pairs
    of_several: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutAnswer(RolloutSummary):
    """All that is known of a rollout."""

    author: str
    created_ms: int
    seed: str
    plan: Plan
    counts: dict[TargetState, int]
    paused_all: str
    merge_waits_since_ms: int
    approvals: Approvals
    evaluation: EvaluationAnswer | None
    targets: list[TargetAnswer]
    looks: list[LoggedLook]
    transitions: list[Transition]


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveForecast:
    """A wave of a plan; `fetch_s` is 0 without a limit of bytes a second."""

    devices: int
    cumulative: int
    bytes: int
    fetch_s: float
    soak_s: float
    gate: Literal["model", "screen", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastAnswer:
    """What a plan would do; `agree` devices may be asked to judge a head before it begins.

    `judged` is what devices found that judged it worse before.
    """

    release: int
    kind: str
    plan: Plan
    devices: int
    bytes: int
    waves: list[WaveForecast]
    order: list[str]
    judged: str
    agree: int
    without_local_time: list[str] = field(default_factory=list)


# All tags that a device has.
TagsAnswer = Mapping[str, str]
# Files of mosquitto by name, or definitions of RabbitMQ.
BrokerConfigAnswer = Definitions | dict[str, str]
