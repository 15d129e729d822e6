"""The tables, as SQLAlchemy maps them. Rows stay in this package: what goes out is a `Record` of the same fields.

A change here needs a revision in `edge.coordinator.migrations`; a test compares the two.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Dialect,
    Index,
    Integer,
    Result,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from edge.coordinator.records import Record, as_dict

Found = TypeVar("Found", bound=Record)
AnyRow = TypeVar("AnyRow", bound="Row")

# Milliseconds and counters need 64 bits. SQLite's INTEGER has them, and only a key of this very name counts by itself.
Number = BigInteger().with_variant(Integer(), "sqlite")


class Text(TypeDecorator[str]):
    """Text as every database takes it: half a character, or none at all, becomes a replacement character."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """See the class."""
        del dialect
        return None if value is None else cleaned(value)


def cleaned(text: str) -> str:
    """See `Text`."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


class Row(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: Number,
        str: Text,
        dict[str, Any]: JSON,
        dict[str, list[float]]: JSON,
        list[str]: JSON,
    }

    @classmethod
    def of(cls: type[AnyRow], record: Record) -> AnyRow:
        """A row of what a record says."""
        return cls(**columns(record))

    def to(self, kind: type[Found]) -> Found:
        """A record of what this row says."""
        return kind(**{each.key: _as_record_has_it(getattr(self, each.key)) for each in self.__table__.columns})


def table(row: type[Row]) -> Table:
    """The table of a kind of rows."""
    found = row.__table__
    assert isinstance(found, Table)
    return found


def columns(record: Record) -> dict[str, Any]:
    """What a record says, as a table has it."""
    return {name: as_column(value) for name, value in as_dict(record).items()}


def as_column(value: Any) -> Any:
    """A value of a record, as a table has it."""
    return list(value) if isinstance(value, tuple) else value


def records(kind: type[Found], result: Result[Any]) -> list[Found]:
    """Records of what a query of columns found; the fields that it did not ask for are as `kind` has them by itself."""
    names = tuple(result.keys())
    return [
        kind(**dict(zip(names, map(_as_record_has_it, row) if list in map(type, row) else row, strict=True)))
        for row in result
    ]


def _as_record_has_it(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class DeviceRow(Row):
    """`Device`."""

    __tablename__ = "device"
    id: Mapped[str] = mapped_column(primary_key=True)
    online: Mapped[bool]
    session: Mapped[int]
    boot: Mapped[int]
    agent_version: Mapped[str]
    profile: Mapped[str]
    hardware: Mapped[dict[str, Any]]
    born: Mapped[bool]
    first_seen_ms: Mapped[int]
    last_seen_ms: Mapped[int]
    state_id: Mapped[str]
    seal_key: Mapped[str]
    admission: Mapped[str]
    epoch: Mapped[int]
    note: Mapped[str]
    telemetry_s: Mapped[float]
    evaluates: Mapped[bool]


class ModelRow(Row):
    """`Model`."""

    __tablename__ = "device_model"
    device: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    bundle: Mapped[str]
    backbone: Mapped[str]
    head: Mapped[str]
    release: Mapped[int]
    samples: Mapped[int]
    state_seq: Mapped[int]
    state: Mapped[str]
    state_release: Mapped[int]
    state_detail: Mapped[str]
    experts: Mapped[dict[str, list[float]]]


class ConfusionRow(Row):
    """`Confusion`."""

    __tablename__ = "confusion"
    device: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    said_ms: Mapped[int]
    counts: Mapped[dict[str, Any]]


class TagRow(Row):
    """What an operator calls a device: ``model=A``."""

    __tablename__ = "device_tag"
    device: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class TelemetryRow(Row):
    """`TelemetryEntry`."""

    __tablename__ = "telemetry"
    __table_args__ = (UniqueConstraint("device", "state_id", "boot", "seq"), Index("telemetry_received", "received_ms"))
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    boot: Mapped[int]
    seq: Mapped[int]
    received_ms: Mapped[int]
    values: Mapped[dict[str, Any]]
    state_id: Mapped[str]


class BucketRow(Row):
    """Telemetry of one model summed over a span: by key how many values, their sum, the least and the largest.

    `run_s` is how long coordinators of this database had run when it was begun, see `AgeRow`.
    """

    __tablename__ = "telemetry_bucket"
    __table_args__ = (Index("telemetry_bucket_age", "step_s", "run_s"),)
    step_s: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    start_ms: Mapped[int] = mapped_column(primary_key=True)
    run_s: Mapped[float]
    sums: Mapped[dict[str, list[float]]]


class AgeRow(Row):
    """How long coordinators of this database had run, in seconds, when they had telemetry and events up to an id.

    What is kept "for thirty days" is kept while the coordinator runs for thirty days. No clock has a say in it: one
    that is ahead for a minute, before it is set, would have everything deleted.
    """

    __tablename__ = "age"
    run_s: Mapped[float] = mapped_column(primary_key=True)
    last_id: Mapped[int]
    event_id: Mapped[int] = mapped_column(server_default="0")


class ContributionRow(Row):
    """`Contribution`."""

    __tablename__ = "contribution"
    device: Mapped[str] = mapped_column(primary_key=True)
    lineage: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    learner: Mapped[str]
    version: Mapped[int]
    n_samples: Mapped[int]
    base_release: Mapped[int]
    digest: Mapped[str]
    received_ms: Mapped[int]
    merged_version: Mapped[int]
    merged_release: Mapped[int]
    model: Mapped[str]
    state_id: Mapped[str]
    noise: Mapped[str]


class PartRow(Row):
    """A device that is in the contribution of a site: by its lineage, with the version that is in it."""

    __tablename__ = "part"
    __table_args__ = (Index("part_lineage", "backbone", "lineage"),)
    device: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    lineage: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]


class RefusedRow(Row):
    """`Refused`."""

    __tablename__ = "refused"
    device: Mapped[str] = mapped_column(primary_key=True)
    lineage: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    reason: Mapped[str]


class ForgottenRow(Row):
    """`Forgotten`."""

    __tablename__ = "forgotten"
    lineage: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str]
    pending: Mapped[bool]
    at_ms: Mapped[int]


class ReceiptRow(Row):
    """`Receipt`."""

    __tablename__ = "receipt"
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    created_ms: Mapped[int]
    completed_ms: Mapped[int]
    statement: Mapped[dict[str, Any]]
    signed: Mapped[str]


class MemoryRow(Row):
    """What merges must remember: a document by name and backbone; "" is the backbone of what is the whole fleet's."""

    __tablename__ = "merge_memory"
    name: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[bytes]


class BundleRow(Row):
    """`KnownBundle`."""

    __tablename__ = "bundle"
    digest: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str]
    name: Mapped[str]
    identity: Mapped[str]


class ReleaseRow(Row):
    """`Release`."""

    __tablename__ = "release"
    counter: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    digest: Mapped[str]
    backbone: Mapped[str]
    devices: Mapped[list[str]]
    reason: Mapped[str]
    created_ms: Mapped[int]
    model: Mapped[str]
    name: Mapped[str]
    notes: Mapped[str]
    file: Mapped[str]
    restores: Mapped[int]
    undoes: Mapped[int]
    anew: Mapped[bool]


class EventRow(Row):
    """`LoggedEvent`."""

    __tablename__ = "event"
    __table_args__ = (
        Index("event_device", "device", "id"),
        Index(
            "event_number", "device", "state_id", "boot", "seq",
            unique=True, sqlite_where=text("seq > 0"), postgresql_where=text("seq > 0"),
        ),
    )  # fmt: skip
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    name: Mapped[str]
    detail: Mapped[str]
    at_ms: Mapped[int]
    model: Mapped[str]
    boot: Mapped[int]
    seq: Mapped[int]
    state_id: Mapped[str]


class RolloutRow(Row):
    """A rollout: `edge.coordinator.rollout.advance.Rollout`, who made it and when."""

    __tablename__ = "rollout"
    id: Mapped[int] = mapped_column(primary_key=True)
    release: Mapped[int]
    kind: Mapped[str]
    plan: Mapped[dict[str, Any]]
    seed: Mapped[str]
    n_selected: Mapped[int]
    state: Mapped[str]
    before: Mapped[str]
    wave: Mapped[int]
    since_s: Mapped[float]
    looks: Mapped[int]
    seen_s: Mapped[float]
    reason: Mapped[str]
    version: Mapped[int]
    author: Mapped[str]
    created_ms: Mapped[int]


class TargetRow(Row):
    """One model of one device in a rollout: `edge.coordinator.rollout.advance.Target`; sums of pairs by their names."""

    __tablename__ = "target"
    __table_args__ = (Index("target_device", "device"),)
    rollout: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    wave: Mapped[int]
    place: Mapped[int]
    state: Mapped[str]
    attempt: Mapped[int]
    since_s: Mapped[float]
    left_s: Mapped[float]
    counted_s: Mapped[float]
    former: Mapped[str]
    restore: Mapped[int]
    detail: Mapped[str]
    pairs: Mapped[dict[str, Any]]


class LeaseRow(Row):
    """Of PostgreSQL: which coordinator may write, see `edge.coordinator.store.lease`."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(primary_key=True)
    fence: Mapped[int]
    until_ms: Mapped[int]


class LookRow(Row):
    """`LoggedLook`."""

    __tablename__ = "look"
    id: Mapped[int] = mapped_column(primary_key=True)
    rollout: Mapped[int]
    wave: Mapped[int]
    number: Mapped[int]
    decision: Mapped[str]
    code: Mapped[str]
    detail: Mapped[str]
    at_ms: Mapped[int]


class TransitionRow(Row):
    """`Transition`."""

    __tablename__ = "transition"
    __table_args__ = (Index("transition_rollout", "rollout"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    rollout: Mapped[int]
    subject: Mapped[str]
    before: Mapped[str]
    event: Mapped[str]
    now: Mapped[str]
    who: Mapped[str]
    why: Mapped[str]
    at_ms: Mapped[int]


class TokenRow(Row):
    """`ApiToken`."""

    __tablename__ = "token"
    __table_args__ = (Index("token_digest", "digest", unique=True),)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    digest: Mapped[str]
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    revoked_ms: Mapped[int]


class EnrolmentRow(Row):
    """`Enrolment`."""

    __tablename__ = "enrolment"
    __table_args__ = (Index("enrolment_digest", "digest", unique=True),)
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str]
    uses: Mapped[int]
    tags: Mapped[dict[str, Any]]
    approves: Mapped[bool]
    replaces: Mapped[str]
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    revoked_ms: Mapped[int]


class CredentialRow(Row):
    """`Credential`."""

    __tablename__ = "credential"
    __table_args__ = (Index("credential_device", "device"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    kind: Mapped[str]
    proof: Mapped[dict[str, Any]]
    request: Mapped[str]
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    revoked_ms: Mapped[int]
    why: Mapped[str]


class AuditRow(Row):
    """`AuditEntry`."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_subject", "subject", "id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    at_ms: Mapped[int]
    who: Mapped[str]
    role: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str]
    reason: Mapped[str]
    outcome: Mapped[str]


class AnswerRow(Row):
    """`Answer`."""

    __tablename__ = "answer"
    number: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    at_ms: Mapped[int]
    status: Mapped[int]
    body: Mapped[str]


class FleetRow(Row):
    """A setting of the whole fleet, or a number that outlives the process."""

    __tablename__ = "fleet"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class CheckpointRow(Row):
    """`KeptCheckpoint`."""

    __tablename__ = "checkpoint"
    device: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    backbone: Mapped[str]
    lineage: Mapped[str]
    learners: Mapped[str]
    samples: Mapped[int]
    release: Mapped[int]
    made_ms: Mapped[int]
    received_ms: Mapped[int]
    has_samples: Mapped[bool]
    sealed_to: Mapped[str]
    size_bytes: Mapped[int]


class OrderRow(Row):
    """`Order`."""

    __tablename__ = "device_order"
    __table_args__ = (Index("device_order_device", "device"),)
    number: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    model: Mapped[str]
    kind: Mapped[str]
    state: Mapped[str]
    detail: Mapped[str]
    digest: Mapped[str]
    lineage: Mapped[str]
    source: Mapped[str]
    at_ms: Mapped[int]


class AlertRow(Row):
    """`Alert`."""

    __tablename__ = "alert"
    __table_args__ = (Index("alert_state", "state"), Index("alert_subject", "rule", "subject", "id"))
    id: Mapped[int] = mapped_column(primary_key=True)
    rule: Mapped[str]
    kind: Mapped[str]
    subject: Mapped[str]
    device: Mapped[str]
    detail: Mapped[str]
    state: Mapped[str]
    since_ms: Mapped[int]
    seen_ms: Mapped[int]
    ended_ms: Mapped[int]
    acknowledged_by: Mapped[str]
    acknowledged_ms: Mapped[int]
    silenced_by: Mapped[str]
    silenced_ms: Mapped[int]
    told_mqtt: Mapped[str]
    told_webhook: Mapped[str]


class QuestionRow(Row):
    """`FleetQuestion`."""

    __tablename__ = "question"
    __table_args__ = (Index("question_state", "state"),)
    number: Mapped[int] = mapped_column(primary_key=True)
    backbone: Mapped[str]
    device: Mapped[str]
    model: Mapped[str]
    sample: Mapped[str]
    answered_ms: Mapped[int]
    said: Mapped[str]
    confidence: Mapped[float]
    devices: Mapped[int]
    samples: Mapped[int]
    asked_ms: Mapped[int]
    state: Mapped[str]
    label: Mapped[str]
    who: Mapped[str]
    closed_ms: Mapped[int]


class PictureRow(Row):
    """`QuestionPicture`."""

    __tablename__ = "question_picture"
    question: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    png: Mapped[str]


class AlikeRow(Row):
    """`AlikeSample`."""

    __tablename__ = "question_sample"
    __table_args__ = (
        Index("question_sample_question", "question"),
        Index("question_sample_state", "state", "device"),
        Index("question_sample_device", "device"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    question: Mapped[int]
    device: Mapped[str]
    model: Mapped[str]
    sample: Mapped[str]
    alike: Mapped[float]
    weight: Mapped[float]
    state: Mapped[str]
    detail: Mapped[str]


class EvaluationRow(Row):
    """`Evaluation`."""

    __tablename__ = "evaluation"
    rollout: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    due_s: Mapped[float]
    detail: Mapped[str]


class JudgeRow(Row):
    """`Judge`."""

    __tablename__ = "judge"
    __table_args__ = (Index("judge_device", "device"),)
    rollout: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    is_inside: Mapped[bool]
    state: Mapped[str]
    labelled: Mapped[int]
    both: Mapped[float]
    only_new: Mapped[float]
    only_old: Mapped[float]
    detail: Mapped[str]
    asked_ms: Mapped[int]
