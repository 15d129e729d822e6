"""What is said on the channel, as values. The bytes are the business of `edge.channel.codec`.

Every message keeps the fields that it does not know in `Message.extra` and writes them back: an older reader in the
middle loses nothing. A message checks nothing itself: what came over the wire was checked by the codec, field by field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from edge.contract.digest import Digest, is_digest
from edge.contract.documents import Rule, at_least
from edge.contract.names import is_model_name

MAX_RANGES = 1024
MAX_BASES = 32
_BATCH = re.compile(r"[0-9a-f]{16}")
_STATE_ID = re.compile(r"([0-9a-f]{16,64})?")
MaybeDigest = Annotated[
    str, Rule(lambda text: text == "" or is_digest(text), 'a SHA-256 digest in hexadecimal or "" for none')
]
Count = Annotated[int, at_least(0)]
Amount = Annotated[float, at_least(0)]
Range = Annotated[tuple[int, int], Rule(lambda pair: 0 <= pair[0] <= pair[1], "[first, last] with 0 <= first <= last")]
"""First and last chunk, both included."""
Ranges = Annotated[tuple[Range, ...], Rule(lambda pairs: len(pairs) <= MAX_RANGES, f"at most {MAX_RANGES} ranges")]
Digests = Annotated[tuple[Digest, ...], Rule(lambda digests: len(digests) <= MAX_BASES, f"at most {MAX_BASES} digests")]
ModelName = Annotated[
    str, Rule(lambda text: text == "" or is_model_name(text), 'the name of a model, or "" for the only one')
]
StateId = Annotated[
    str,
    Rule(lambda text: _STATE_ID.fullmatch(text) is not None, '16 to 64 hexadecimal digits, or "" where it is unknown'),
]
"""Identity of a state folder: session, boot and sequence numbers count within it. "" of devices from before it."""
SealKey = Annotated[str, Rule(lambda text: text == "" or is_digest(text), '64 hexadecimal digits, or "" for no key')]
BatchId = Annotated[str, Rule(lambda text: _BATCH.fullmatch(text) is not None, "16 hexadecimal digits")]
Slot = Literal["bundle", "head"]
Part = Literal["index", "data"]
Word = Annotated[str, Rule(lambda text: len(text) <= 32, "a word of at most 32 characters")]
Codecs = Annotated[tuple[Word, ...], Rule(lambda words: len(words) <= MAX_BASES, f"at most {MAX_BASES} words")]
Admitted = Annotated[str, Rule(lambda text: len(text) <= 32, 'a word of at most 32 characters, or "" where none came')]
# Whether a device belongs to the fleet: argument of the command ``admission``, and what a `Birth` says of it.
APPROVED = "approved"
ADMISSIONS = ("pending", APPROVED, "quarantined", "decommissioned")
EXPERTS = "experts"  # key of telemetry
EVENT = "event"  # key of an event in `History`
UploadState = Literal["receiving", "done", "refused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What all messages share.

    Attributes:
        extra: Fields that this version does not know, kept as they came.
    """

    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conn(Message):
    """``up/conn``, retained, also the will: a device is there or gone. Offline of an older session is dropped."""

    online: bool
    session: Count
    boot: Count
    ts_ms: Count
    state_id: StateId = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served(Message):
    """One model of a device, inside a `Birth`: its name, and what is said there of the first."""

    model: ModelName
    bundle: MaybeDigest
    backbone: MaybeDigest
    head: MaybeDigest
    release: Count
    n_labels: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class Birth(Message):
    """``up/birth``: who a device is and what it runs, on each connect and each change; retained.

    What is said of a bundle is of the first model; devices from before there were several say no more.

    Attributes:
        agent_version: Version of Edgeloop on the device.
        boot: Boot number of the agent, only goes up.
        session: Connection number, only goes up.
        ts_ms: Device clock, milliseconds since 1970.
        profile: Name of the device profile.
        hardware: What it found about itself.
        bundle: Digest of the bundle, "" for none.
        backbone: Digest of the backbone, "" for none.
        head: Digest of the live head, "" for none.
        release: Release counter last applied, 0 for none.
        n_labels: Labels seen since the bundle was installed.
        limits: Largest frame, window, free disk.
        models: All models, in the order of the command line.
        state_id: Of its state folder; another one under the same name is a device that was set up anew.
        bases: Digests of artifacts that are there, for forms against them.
        seal_key: Public key that a checkpoint for this device may be sealed to, in hexadecimal; "" for none.
        admission: Whether it belongs to the fleet, as it was told last; "" of devices that know of no such word.
        evaluates: Whether it agrees to be asked about candidate heads, see `Candidate`.
    """

    agent_version: str
    boot: Count
    session: Count
    ts_ms: Count
    profile: str
    hardware: Mapping[str, Any]
    bundle: MaybeDigest
    backbone: MaybeDigest
    head: MaybeDigest
    release: Count
    n_labels: Count
    limits: Mapping[str, Any]
    models: tuple[Served, ...] = ()
    state_id: StateId = ""
    bases: Digests = ()
    seal_key: SealKey = ""
    admission: Admitted = ""
    evaluates: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs(Message):
    """Inside a `State`: running sums of what the version before a release and the release answered to the same samples.

    A bundle does not run beside the one before: its labels are those that came since, and against each stands the
    share of late labels that the one before was right on.

    Attributes:
        labelled: Pairs with a label.
        only_new: Where only the new one was right; of quantities the sum of what it gained, each from 0 to 1.
        only_old: Where only the old one was right; of quantities the sum of what it lost.
        compared: Samples that both answered, whether a label came or not.
        differ: Of these, where the answers differ.
        old_ms: 99th percentile of the time of a prediction before the release; 0 where it is not known.
        new_ms: The same since.
    """

    labelled: Count = 0
    only_new: Amount = 0.0
    only_old: Amount = 0.0
    compared: Count = 0
    differ: Count = 0
    old_ms: Amount = 0.0
    new_ms: Amount = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class State(Message):
    """``up/state``, retained: the state of one slot of one model, on change; a higher `seq` of the model is newer.

    `pairs` is said where the version before is kept beside the release, and now and then anew.
    """

    ts_ms: Count
    seq: Count
    slot: Slot
    state: str
    release: Count
    digest: MaybeDigest
    detail: str = ""
    model: ModelName = ""
    state_id: StateId = ""
    pairs: Pairs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Form(Message):
    """Another way to get an artifact, inside a `Desired`: shorter bytes of which it is made, see `edge.channel.forms`.

    Attributes:
        codec: How it is made of them.
        base: SHA-256 of the artifact that it is made against, "" for none.
        digest: SHA-256 of the shorter bytes.
        size_bytes: Their size.
        index_digest: Of their chunks, which are as large as those of the artifact.
    """

    codec: str
    base: MaybeDigest
    digest: Digest
    size_bytes: Count
    index_digest: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Desired(Message):
    """``dn/desired``, retained: what a model should run. A release counter that is not higher is ignored.

    `forms` are shorter ways to the same artifact; who knows none of them fetches it as it is. `signature` is of who may
    say what runs where, see `edge.channel.updates.assigned`; "" in a fleet without keys.
    `activate` says when: ``now``; ``wait``: be ready, but do not make it live; ``never``: give it up unless it is live.
    `attempt` goes up when a release that was refused is to be tried once more. `undoes` is the release that this one
    takes back: somebody decided so, and no label speaks against it. With `anew` it is this very head that is to be had,
    and not what the device kept of the time before. Devices from before these fields activate at once.
    """

    release: Count
    kind: Slot
    digest: Digest
    size_bytes: Count
    chunk_size_bytes: Count
    index_digest: Digest
    backbone: MaybeDigest
    reason: str
    ts_ms: Count
    model: ModelName = ""
    forms: tuple[Form, ...] = ()
    signature: str = ""
    activate: Literal["now", "wait", "never"] = "now"
    attempt: Count = 1
    undoes: Count = 0
    anew: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Order(Message):
    """What a model of a device is to fetch and do once; said again until the device replies.

    Attributes:
        word: What it is called in replies and in what is signed.
        number: Of the order.
        model: Of this device.
        digest: SHA-256 of the artifact.
        size_bytes: Its size.
        chunk_size_bytes: Of its chunks.
        index_digest: Of their digests.
        backbone: That it belongs to.
        ts_ms: When it was ordered, milliseconds since 1970.
        signature: Of who may say what runs where, as of a `Desired`; "" in a fleet without keys.
        forms: Shorter ways to the same artifact, as of a `Desired`.
    """

    word: ClassVar[str] = ""
    number: Count
    model: ModelName
    digest: Digest
    size_bytes: Count
    chunk_size_bytes: Count
    index_digest: Digest
    backbone: Digest
    ts_ms: Count
    signature: str = ""
    forms: tuple[Form, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Restore(Order):
    """``dn/restore``: take up the checkpoint of a device of the same backbone.

    A model takes up only what is ordered later than what it took up last.
    """

    word: ClassVar[str] = "restore"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate(Order):
    """``dn/candidate``: try a head on the labels that came last, and reply with counts; nothing is taken in.

    Only devices are asked that say in their `Birth` that they agree.
    """

    word: ClassVar[str] = "candidate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request(Message):
    """``up/req``: what a device asks for: chunks of an artifact, or the desired state once more.

    Attributes:
        op: What it wants.
        digest: SHA-256 of the artifact, "" with ``op="desired"``.
        part: The chunk digests or the chunks.
        want: Chunk ranges, both ends included.
        window: At most so many frames.
        chunk_size_bytes: Of the chunks that `want` counts; with ``op="desired"`` the largest that it wants, since
            larger ones do not arrive. 0 for the usual size.
        name: Of a file of metadata, with ``op="meta"``.
    """

    op: Literal["chunks", "desired", "meta"]
    digest: MaybeDigest = ""
    part: Part = "data"
    want: Ranges = ()
    window: Count = 0
    chunk_size_bytes: Count = 0
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta(Message):
    """``dn/meta``: a document of signed metadata that a device asked for.

    Attributes:
        name: As it was asked for.
        size_bytes: Of the document; 0 where the coordinator has none of that name.
        data: The document, as a zstd frame in base64.
    """

    name: str
    size_bytes: Count
    data: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadStatus(Message):
    """``dn/ul/{xfer}``: what the coordinator has of an upload, and how many more frames it takes now.

    `codecs` are those of an `UploadOffer` that it can read; coordinators from before there were any say none.
    """

    have: Ranges
    window: Count
    status: UploadState
    detail: str = ""
    codecs: Codecs = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Event(Message):
    """``up/event``: something happened once: drift, another expert that is believed, an error.

    Attributes:
        ts_ms: Device clock, milliseconds since 1970.
        name: What kind.
        detail: In words.
        model: Of which model, "" for the device.
        boot: Start of the agent, which `seq` counts in; with `state_id` they tell a repeat.
        seq: Number of the event, from 1; 0 from devices that do not count them.
        state_id: Of the state folder.
    """

    ts_ms: Count
    name: str
    detail: str = ""
    model: ModelName = ""
    boot: Count = 0
    seq: Count = 0
    state_id: StateId = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry(Message):
    """``up/tele``: one flat object of live numbers, readable by any MQTT tool. `extra` stays empty.

    Attributes:
        values: Numbers and texts, and under `EXPERTS` the one thing that is not flat: by the name of an expert its
            weight in the answer, how often it agreed with late labels, and with how many. The text under
            `edge.channel.confusion.KEY` is one of counts.
    """

    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class History(Message):
    """``up/hist``: what a device could not say when it was, as an array of flat objects. `extra` stays empty.

    Attributes:
        telemetry: As on ``up/tele``.
        events: As on ``up/event``; in the array they have their name under `EVENT`, and the keys of telemetry else.
        batch: First 16 hexadecimal digits of the SHA-256 of the payload, by which it is acknowledged.
    """

    telemetry: tuple[Mapping[str, Any], ...]
    events: tuple[Event, ...]
    batch: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Here(Message):
    """``all/dn/here/NAME``, retained, also the will of a coordinator: it listens, or does so no more.

    Attributes:
        online: Whether it listens.
        session: Its connection; one that ended says nothing of another one.
        ts_ms: Its clock, milliseconds since 1970.
    """

    online: bool
    session: Count
    ts_ms: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryKept(Message):
    """``dn/hist``: the coordinator has kept a batch of ``up/hist`` durably; the device may delete it."""

    batch: BatchId


@dataclass(frozen=True, kw_only=True, slots=True)
class Command(Message):
    """``dn/cmd``: do something once; the same id is answered with the same reply."""

    id: str
    name: str
    args: Mapping[str, Any]
    ttl_s: Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply(Message):
    """``up/reply``: the answer to a command; `rc` 0 is success."""

    id: str
    rc: int
    detail: str
    out: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadOffer(Message):
    """Payload of the first frame of an upload: what will come.

    Attributes:
        kind: What it is, such as ``head-update``.
        digest: SHA-256 of the whole.
        size_bytes: Size of the whole.
        chunk_size_bytes: Size of every chunk but the last.
        backbone: Digest of the backbone that it belongs to, "" for none.
        version: Version of the payload's own format.
        n_samples: How many samples it was learned from.
        codec: What the coordinator must know to read it; "" for nothing. Who does not name it in its answer is sent
            no frame of it.
        whole_bytes: Size of what a zstd frame holds that is sent instead; 0 where it is sent as it is.
    """

    kind: str
    digest: Digest
    size_bytes: Count
    chunk_size_bytes: Count
    backbone: MaybeDigest
    version: Count
    n_samples: Count
    codec: Word = ""
    whole_bytes: Count = 0
