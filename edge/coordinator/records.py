"""What the coordinator knows, as values: frozen, and the same whichever database keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

APPROVED, DECOMMISSIONED = "approved", "decommissioned"
# A device that was not heard for so many of its telemetry intervals is gone, whatever it said last.
SILENT_INTERVALS = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Root of what a table keeps: its fields are the columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device(Record):
    """A device, from its first message on.

    Attributes:
        id: Its name.
        online: As its newest word was.
        session: Highest number of its connections; counts within `state_id`.
        boot: Number of its last start.
        agent_version: Version of Edgeloop there.
        profile: Name of its device profile.
        hardware: What it found about itself.
        born: Whether it has introduced itself.
        first_seen_ms: Wall clock of its first message, milliseconds since 1970.
        last_seen_ms: Of its newest one.
        state_id: Of its state folder; "" while that is unknown.
        seal_key: Public key that checkpoints for it may be sealed to; "" for none.
        admission: Whether it belongs to the fleet, see `edge.coordinator.devices.admission`.
        epoch: How often it began anew under its name.
        note: What an operator wrote of it.
        telemetry_s: Seconds between two of its telemetry messages; 0 while that is unknown.
        evaluates: Whether it agrees to be asked about candidate heads.
    """

    id: str
    online: bool = False
    session: int = 0
    boot: int = 0
    agent_version: str = ""
    profile: str = ""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    born: bool = False
    first_seen_ms: int = 0
    last_seen_ms: int = 0
    state_id: str = ""
    seal_key: str = ""
    admission: str = APPROVED
    epoch: int = 0
    note: str = ""
    telemetry_s: float = 0.0
    evaluates: bool = False

    def is_there(self, now_ms: int) -> bool:
        """Whether it is online: it says so, and was heard within three of its telemetry intervals."""
        silent_s = (now_ms - self.last_seen_ms) / 1000
        return self.online and not 0 < SILENT_INTERVALS * self.telemetry_s < silent_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Model(Record):
    """A model of a device, and its newest word on its experts.

    Attributes:
        device: Whose it is.
        model: Its name; "" while nobody has said it: of a device from before there were several, with an unknown
            bundle.
        position: Among the models of the device.
        bundle: Digest, as all three; "" for none.
        backbone: Of its bundle.
        head: That answers.
        release: Highest counter that it has dealt with.
        samples: Labels that it has learned.
        state_seq: Number of its newest `State`.
        state: That it named.
        state_release: The release that this was said of.
        state_detail: Why, for people.
        experts: By name weight, accuracy and labels.
    """

    device: str = ""
    model: str = ""
    position: int = 0
    bundle: str = ""
    backbone: str = ""
    head: str = ""
    release: int = 0
    samples: int = 0
    state_seq: int = 0
    state: str = ""
    state_release: int = 0
    state_detail: str = ""
    experts: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def went_back(self) -> bool:
        """Whether it runs what was there before `release`: it refused that one, or took it back."""
        return self.state in ("refused", "rolled-back") and self.state_release == self.release


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion(Record):
    """What a model of a device answered to its recent labels, as it said last.

    Attributes:
        device: Whose it is.
        model: Its name.
        said_ms: When that was, or would have been, had there been a line; milliseconds since 1970.
        counts: As `edge.channel.confusion` has them.
    """

    device: str
    model: str
    said_ms: int
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDevice:
    """A device with its models, in the order that it has them."""

    device: Device
    models: tuple[Model, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetryEntry(Record):
    """One telemetry message; (device, state_id, boot, seq) tells a repeat. `id` is 0 until it is kept."""

    id: int = 0
    device: str
    boot: int
    seq: int
    received_ms: int
    values: Mapping[str, Any]
    state_id: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedEvent(Record):
    """Something that happened, on a device or, with the device "", here.

    Attributes:
        id: 0 until it is kept.
        device: Whose it is.
        name: Of what kind.
        detail: In words.
        at_ms: Wall clock here when it came; of the device, where it had no line then.
        model: Of which model.
        boot: Start of the agent that `seq` counts in.
        seq: Number that the device gave it; with `boot` and `state_id` it tells a repeat. 0 for none.
        state_id: Of the device's state folder.
    """

    id: int = 0
    device: str
    name: str
    detail: str
    at_ms: int
    model: str = ""
    boot: int = 0
    seq: int = 0
    state_id: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution(Record):
    """The newest contribution of one lineage of learned state.

    Attributes:
        device: Who sent it.
        lineage: Of what was learned.
        backbone: That its features are of.
        learner: ``statistics`` or ``delta``.
        version: Labelled samples of the lineage so far.
        n_samples: Behind these tensors.
        base_release: That a change starts from.
        digest: Of its artifact.
        received_ms: Wall clock.
        merged_version: The version that is in a merge; -1 for none.
        merged_release: The release that this was.
        model: Name of the model there.
        state_id: Of the state folder that it comes from.
        noise: What the device promises of each labelled sample, where it told of them under noise; "" where not.
    """

    device: str
    lineage: str
    backbone: str
    learner: str
    version: int
    n_samples: int
    base_release: int
    digest: str
    received_ms: int
    merged_version: int = -1
    merged_release: int = 0
    model: str = ""
    state_id: str = ""
    noise: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptCheckpoint(Record):
    """A checkpoint of a model of a device.

    Attributes:
        device: Whose it is.
        model: Of that device.
        digest: Of its artifact.
        backbone: That it belongs to.
        lineage: Of what was learned.
        learners: That learned it, with commas between.
        samples: Labels learned.
        release: Counter of the last release that the model had taken.
        made_ms: Clock of the device.
        received_ms: Wall clock here.
        has_samples: Whether features of what was seen are in it.
        sealed_to: Name of the key that opens it; "" where it is not sealed.
        size_bytes: Of the document.
    """

    device: str
    model: str
    digest: str
    backbone: str
    lineage: str
    learners: str
    samples: int
    release: int
    made_ms: int
    received_ms: int
    has_samples: bool
    sealed_to: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetQuestion(Record):
    """A label that a person is asked for, since it would help several devices.

    Attributes:
        number: Of the question.
        backbone: That all of its samples are of.
        device: That has the asked sample.
        model: Of that device.
        sample: Name of the asked sample there.
        answered_ms: When the device answered it, by its clock.
        said: The class that it answered.
        confidence: Of that, 0 to 1.
        devices: That have a sample like it, the asked one among them.
        samples: That they have, the asked one among them.
        asked_ms: When the question was asked.
        state: ``open``, ``answered``, ``skipped`` or ``expired``.
        label: Name of the class, once it is answered.
        who: Ended it; "" where nobody did.
        closed_ms: When it ended; 0 while it is open.
    """

    number: int = 0
    backbone: str
    device: str
    model: str
    sample: str
    answered_ms: int
    said: str
    confidence: float
    devices: int
    samples: int
    asked_ms: int
    state: str = "open"
    label: str = ""
    who: str = ""
    closed_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionPicture(Record):
    """What the asked sample of a question looks like.

    Attributes:
        question: Its number.
        png: A PNG file, in base64.
    """

    question: int
    png: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AlikeSample(Record):
    """A sample that the label of a question is for.

    Attributes:
        id: Of the row; 0 until it is kept.
        question: Its number.
        device: That has it.
        model: Of that device.
        sample: Its name there.
        alike: Cosine of its sketch and that of the asked sample; 1 of that one itself.
        weight: How much the label is trusted there, 0 to 1.
        state: ``waits`` for an answer, ``open`` while its device has not said what became of the label, ``taken``,
            ``refused`` (the device says why), or ``dropped``: no label came, or the device was not there for too long.
        detail: In words.
    """

    id: int = 0
    question: int
    device: str
    model: str
    sample: str
    alike: float
    weight: float
    state: str = "waits"
    detail: str = ""


# States of an `Evaluation` that nobody has decided.
UNDECIDED = ("asking", "unjudged")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(Record):
    """A head that devices judge before its rollout begins.

    Attributes:
        rollout: Number of the draft.
        state: ``asking``; ``unjudged``, too few have answered in time, and a person, or those who come late, lead on;
            ``passed``, ``lost``, or ``dropped``: somebody decided without them.
        due_s: Until when they are waited for, of the time that coordinators have run.
        detail: What they found, or why it is where it is.
    """

    rollout: int
    state: str = "asking"
    due_s: float = 0.0
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge(Record):
    """A model of a device that is asked about a head; what the counts are says `edge.agent.model.evaluating`.

    Attributes:
        rollout: Number of the draft.
        device: Who is asked.
        model: Of that device.
        is_inside: Whether the head was made of what this device learned, among others: it has seen those labels.
        state: ``open``, ``answered`` or ``refused``.
        labelled: Labels that it tried the head on.
        both: Where both were right.
        only_new: Where only the head was.
        only_old: Where only the one before was.
        detail: Why it refused.
        asked_ms: Wall clock.
    """

    rollout: int
    device: str
    model: str
    is_inside: bool = False
    state: str = "open"
    labelled: int = 0
    both: float = 0.0
    only_new: float = 0.0
    only_old: float = 0.0
    detail: str = ""
    asked_ms: int = 0


def not_before(device: Device) -> str:
    """That nothing goes to a device, or comes from it, which is not approved, and the way out; "" for one that is."""
    if device.admission == APPROVED:
        return ""
    way = "" if device.admission == DECOMMISSIONED else f"until `edge-fleet device approve {device.id}` "
    return f"{device.id} is {device.admission}: {way}nothing is sent to it, and it sends nothing of what it learned"


@dataclass(frozen=True, kw_only=True, slots=True)
class Order(Record):
    """Something that a model of a device is to do once, said until it is answered.

    Attributes:
        number: Goes up; by the clock, so that it does so over a restored backup, too.
        device: Who is to do it.
        model: Of that device; "" for all of its models.
        kind: ``checkpoint``, ``restore`` or ``sync``.
        state: ``open``, ``done`` or ``refused``.
        detail: Why, for people; of an open one why it waits.
        digest: Of the checkpoint to restore.
        lineage: Of what is in it: the device may contribute under it from then on.
        source: The device that it is of.
        at_ms: Wall clock.
    """

    number: int
    device: str
    model: str
    kind: str
    state: str = "open"
    detail: str = ""
    digest: str = ""
    lineage: str = ""
    source: str = ""
    at_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused(Record):
    """A version of a contribution that the last merge left out, because its statistics are implausible."""

    device: str
    lineage: str
    backbone: str
    version: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten(Record):
    """A lineage that an operator had forgotten; nothing of it is taken any more.

    Of what a device had never contributed no lineage is known here: its state folder stands in place of one, and
    `backbone` is "". `pending` while the fleet's newest sum of statistics still has it in.
    """

    lineage: str
    backbone: str
    device: str
    pending: bool
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt(Record):
    """What was deleted of a device, see `edge.coordinator.learning.receipts`.

    Attributes:
        id: Its number; 0 until it is kept.
        device: Whose it was.
        created_ms: Wall clock, as both.
        completed_ms: 0 until it is signed.
        statement: What is stated.
        signed: The same in an envelope that others can check; "" until then.
    """

    id: int = 0
    device: str
    created_ms: int
    completed_ms: int = 0
    statement: Mapping[str, Any]
    signed: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownBundle(Record):
    """A bundle that the coordinator has.

    Attributes:
        digest: Of its file: the name of the artifact.
        backbone: Of the bundle.
        name: Of the model in it.
        identity: Digest of its manifest, by which devices name it; "" of one that came before this was kept.
    """

    digest: str
    backbone: str
    name: str
    identity: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Release(Record):
    """Something pushed. Counters only go up; going back is a new release of older bytes.

    Attributes:
        counter: Its number.
        kind: ``bundle`` or ``head``.
        digest: Of its artifact.
        backbone: That it belongs to.
        devices: Whom it is meant for, see `edge.merging.groups.is_meant`.
        reason: For people.
        created_ms: Wall clock.
        model: Which model of these devices; "" for those that it fits: a head its backbone, a bundle the only model of
            a device.
        name: That an operator gave it.
        notes: What an operator wrote of it.
        file: Name of the file that the artifact came as; "" of a merge.
        restores: The release whose bytes these are again; 0 for none.
        undoes: The release that it takes back; 0 for none.
        anew: Devices are to have this very head, and not what they kept of the time before what it takes back.
    """

    counter: int
    kind: str
    digest: str
    backbone: str
    devices: tuple[str, ...]
    reason: str
    created_ms: int
    model: str = ""
    name: str = ""
    notes: str = ""
    file: str = ""
    restores: int = 0
    undoes: int = 0
    anew: bool = False


def is_merge(release: Release) -> bool:
    """Whether it was made here, of contributions; what people push has a file, what goes back takes one back."""
    is_by_hand = bool(release.file or release.restores or release.undoes)
    return release.kind == "head" and not is_by_hand and "merge" in release.reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition(Record):
    """Something that happened to a rollout, or with the rollout 0 to the fleet; `id` is 0 until it is kept.

    Attributes:
        id: Goes up.
        rollout: Its number.
        subject: A device; "" for the rollout itself.
        before: State.
        event: That made it.
        now: State.
        who: Asked for it; "" for what nobody asked for.
        why: For people.
        at_ms: Wall clock.
    """

    id: int = 0
    rollout: int
    subject: str
    before: str
    event: str
    now: str
    who: str
    why: str
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedLook(Record):
    """What a gate saw, see `edge.coordinator.rollout.advance.Look`; `id` is 0 until it is kept."""

    id: int = 0
    rollout: int
    wave: int
    number: int
    decision: str
    code: str
    detail: str
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiToken(Record):
    """A token of the HTTP API; the secret itself is nowhere.

    Attributes:
        id: Its number; 0 until it is kept.
        name: Who has it.
        role: ``viewer``, ``operator`` or ``admin``.
        digest: SHA-256 of the secret.
        created_ms: Wall clock, as all three.
        expires_ms: 0 for never.
        revoked_ms: 0 while it holds.
    """

    id: int = 0
    name: str
    role: str
    digest: str
    created_ms: int
    expires_ms: int = 0
    revoked_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolment(Record):
    """A token by which devices join the fleet; the secret itself is nowhere.

    Attributes:
        id: Its number; 0 until it is kept.
        digest: SHA-256 of the secret.
        uses: How often it may still be used.
        tags: That devices get.
        approves: Whether they are approved by it, or wait for a person.
        replaces: The device whose place new hardware takes by it; "" for none.
        created_ms: Wall clock, as all three.
        expires_ms: 0 for never.
        revoked_ms: 0 while it holds.
    """

    id: int = 0
    digest: str
    uses: int
    tags: Mapping[str, Any] = field(default_factory=dict)
    approves: bool = True
    replaces: str = ""
    created_ms: int
    expires_ms: int = 0
    revoked_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Credential(Record):
    """By what a device logs in to the broker.

    Attributes:
        id: Its number; 0 until it is kept.
        device: Whose it is.
        kind: ``password`` or ``certificate``.
        proof: By broker the hash of a password, as ``mosquitto`` and ``rabbitmq`` have it; the ``serial`` of a
            certificate.
        request: SHA-256 of the number by which the device asked, so that it may ask again when no answer came.
        created_ms: Wall clock, as all three.
        expires_ms: 0 for never.
        revoked_ms: 0 while it holds.
        why: It holds no more.
    """

    id: int = 0
    device: str
    kind: str
    proof: Mapping[str, Any]
    request: str
    created_ms: int
    expires_ms: int = 0
    revoked_ms: int = 0
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer(Record):
    """What was answered to a write with an ``Idempotency-Key``.

    Attributes:
        number: SHA-256 of who asked and of the key.
        digest: SHA-256 of what was asked.
        at_ms: When.
        status: Of HTTP; 0 while it is not answered.
        body: JSON.
    """

    number: str
    digest: str
    at_ms: int
    status: int = 0
    body: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry(Record):
    """Something that somebody asked for.

    Attributes:
        id: Goes up; 0 until it is kept.
        at_ms: Wall clock.
        who: Name of the token, or of whom the request named where nobody has to sign in.
        role: That they had; "open" where nobody has to sign in.
        action: Method and path of the request.
        subject: Which device, rollout, release or token; "" for none.
        detail: What was asked for, as JSON.
        reason: Why.
        outcome: "" from before it was begun until it ended; ``done``, or ``refused`` or ``failed`` and why.
    """

    id: int = 0
    at_ms: int
    who: str
    role: str
    action: str
    subject: str
    detail: str
    reason: str
    outcome: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert(Record):
    """Something that people are told of without asking.

    Attributes:
        id: Goes up; 0 until it is kept.
        rule: Name of the rule that holds.
        kind: Of the rule.
        subject: What it holds of: a device, a device and its model, a rollout.
        device: Whose it is; "" for none.
        detail: Why, for people.
        state: ``firing`` or ``resolved``.
        since_ms: Wall clock when it began.
        seen_ms: When it last held.
        ended_ms: When it ended; 0 while it holds.
        acknowledged_by: Who has seen it; "" for nobody.
        acknowledged_ms: When.
        silenced_by: Who does not want to hear of it.
        silenced_ms: Until when nobody is told.
        told_mqtt: The state that the broker was told last; "" for none.
        told_webhook: The same of the webhook.
    """

    id: int = 0
    rule: str
    kind: str
    subject: str
    device: str = ""
    detail: str = ""
    state: str
    since_ms: int
    seen_ms: int
    ended_ms: int = 0
    acknowledged_by: str = ""
    acknowledged_ms: int = 0
    silenced_by: str = ""
    silenced_ms: int = 0
    told_mqtt: str = ""
    told_webhook: str = ""


def as_dict(record: Record) -> dict[str, Any]:
    """By name, its values as they are.

    >>> as_dict(KnownBundle(digest="d", backbone="b", name="digits"))
    {'digest': 'd', 'backbone': 'b', 'name': 'digits', 'identity': ''}
    """
    return {name: getattr(record, name) for name in names_of(type(record))}


def names_of(kind: type[Record]) -> tuple[str, ...]:
    """What a kind of records says, by name, in its order."""
    return tuple(kind.__dataclass_fields__)  # not `fields`, which takes ten times as long and is asked with each row
