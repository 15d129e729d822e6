"""The conversation with devices: what they say goes to whom it concerns, and what they should run is said to them.

Nothing here is kept over a restart but what the store has.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Set
from dataclasses import replace
from typing import TypeVar

from edge.channel import topics
from edge.channel.chunks import AROUND_BYTES, USUAL_BYTES, fitting
from edge.channel.codec import decode, encode
from edge.channel.frames import decode_frame, encode_frame
from edge.channel.messages import (
    Birth,
    Command,
    Conn,
    Desired,
    Event,
    History,
    HistoryKept,
    Message,
    Order,
    Reply,
    Request,
    State,
    Telemetry,
    UploadStatus,
)
from edge.channel.transport import Connected, Disconnected, Limited, Publish, Received, Refused, TransportEvent
from edge.contract.clock import Now
from edge.contract.errors import BundleError, ChannelError, EdgeError, LearningError, RolloutError
from edge.contract.names import level_of
from edge.coordinator.devices.checkpoints import CHECKPOINT, RESTORE_WAITS, Checkpoints
from edge.coordinator.devices.registry import Registry
from edge.coordinator.devices.sites import Sites
from edge.coordinator.devices.standings import Standings
from edge.coordinator.events import Events
from edge.coordinator.learning.evaluations import Evaluations
from edge.coordinator.learning.learning import Learning, Unwanted
from edge.coordinator.learning.questions import Questions
from edge.coordinator.line import Line
from edge.coordinator.pacing import Pacing
from edge.coordinator.recent import MAX_REMEMBERED, Recent
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.releases import Releases
from edge.coordinator.releases.uploads import Uploads
from edge.coordinator.releases.wanted import Wanted
from edge.coordinator.rollouts import Rollouts
from edge.coordinator.signing.signing import Signing
from edge.coordinator.store.database import DatabaseError, RacedError
from edge.coordinator.store.store import Store
from edge.learning.compression import CODECS

log = logging.getLogger("edge.coordinator")
OrderT = TypeVar("OrderT", bound=Order)

BIRTH_AGAIN_S = 30.0
# What the database did not take, for it was away, is tried again after this.
AGAIN_S = 1.0
# What the broker refuses is logged again after this.
REFUSED_AGAIN_S, MAX_REFUSALS = 3600.0, 1000


class Dialogue:
    """See the module.

    Args:
        fleet: Its id.
        store: The database.
        artifacts: What is sent.
        registry: Who is in the fleet.
        releases: What devices should run.
        learning: What they learned.
        checkpoints: All of what they learned, kept and given.
        rollouts: How releases go out.
        events: For what people should see.
        sites: What coordinators below are asked for.
        questions: Labels that help several devices.
        evaluations: What devices think of candidate heads.
        signing: Proves what is sent; None in a fleet without keys.
        name: Of this coordinator.
        broker: Its address, without a login.

    Attributes:
        is_connected: Whether there is a connection to the broker.
        line: What is wrong with that.
    """

    def __init__(
        self,
        fleet: str,
        store: Store,
        artifacts: ArtifactStore,
        registry: Registry,
        releases: Releases,
        learning: Learning,
        checkpoints: Checkpoints,
        rollouts: Rollouts,
        events: Events,
        sites: Sites,
        questions: Questions,
        evaluations: Evaluations,
        signing: Signing | None = None,
        name: str = "coordinator",
        broker: str = "",
    ) -> None:
        self._sites, self._questions, self._evaluations = sites, questions, evaluations
        self.line = Line(fleet, name, broker)
        self._checkpoints = checkpoints
        self._signing = signing
        self._fleet = fleet
        self._store = store
        self._artifacts = artifacts
        self._registry = registry
        self._releases = releases
        self._learning = learning
        self._rollouts = rollouts
        self._events = events
        self._pacing = Pacing(store)
        self._standings = Standings(store)
        self.is_connected = False
        self._out: list[Publish] = []
        self._again: deque[Received] = deque(maxlen=MAX_REMEMBERED)  # that the database did not take
        self._next_again_s = -math.inf
        self._uploads = Uploads()
        self._asked_birth_s = Recent[float](MAX_REMEMBERED)
        self._met = Recent[bool](MAX_REMEMBERED)  # who has introduced itself on this connection
        self._told_refusals_s = Recent[float](MAX_REFUSALS)
        self._largest_chunk = USUAL_BYTES  # that the broker takes from us
        # By device, and forgotten where so many others came since: it costs a transfer that is larger than it need be.
        self._bases = Recent[tuple[str, ...]](MAX_REMEMBERED)  # the artifacts that it said it has
        self._chunk_bytes = Recent[int](MAX_REMEMBERED)  # what arrives there where that is less

    def transport(self, event: TransportEvent, now: Now) -> None:
        """Take an event of the broker connection. A message that cannot be read or handled is dropped."""
        if isinstance(event, Received):
            self._received(event, now)
        elif isinstance(event, Connected | Disconnected):
            self.is_connected = isinstance(event, Connected)
            if isinstance(event, Connected):
                self._met.clear()
                self._largest_chunk = fitting(event.max_packet_bytes)
                self._out += self.line.connected(now)
            else:
                self.line.disconnected(event.reason, now)
        elif isinstance(event, Limited):
            self._largest_chunk = fitting(event.max_packet_bytes)
        elif isinstance(event, Refused):
            self._refused(event, now)

    def _received(self, event: Received, now: Now) -> None:
        if self.line.heard(event.topic):
            return
        try:
            topic = topics.parse(event.topic)
        except ChannelError as exc:
            self._events.fault("", "bad-message", str(exc), now)
            return
        if not event.payload:
            return  # what the broker kept is cleared
        if not self.is_connected:  # it waited here, and was said while there was a line
            now = replace(now, wall_ms=min(now.wall_ms, self.line.state.since_ms or now.wall_ms))
        try:
            try:
                self._message(topic.device, topic.leaf, event, now)
            except RacedError:
                self._message(topic.device, topic.leaf, event, now)
        except ChannelError as exc:
            self._events.fault("", "bad-message", f"{event.topic[:120]}: {exc}", now, kind=topic.device)
        except Exception as exc:  # noqa: BLE001  # nothing that is said may end the process
            if isinstance(exc, DatabaseError):
                self._again.append(event)
                self._next_again_s = now.s + AGAIN_S
            self._events.unforeseen(topic.device, "fault", f"a message on {_kind(topic.leaf)}", exc, now)

    def retry(self, now: Now) -> None:
        """Take what came while the database was away, in its order."""
        if not self._again or now.s < self._next_again_s:
            return
        for _ in range(len(self._again)):
            self._received(self._again.popleft(), now)
            if self._next_again_s > now.s:  # it still is
                return

    def _refused(self, event: Refused, now: Now) -> None:
        """The broker did not take something of ours: whoever looks for what a device does not get finds it there."""
        try:
            device = topics.parse(event.topic).device
        except ChannelError:
            device = ""
        text = self.line.refused(event)
        if not text:
            return
        kind = f"{event.action} {event.topic}"
        if now.s - self._told_refusals_s.get(kind, -math.inf) >= REFUSED_AGAIN_S:
            self._told_refusals_s[kind] = now.s
            log.warning("%s", text)
        self._events.fault(device, "broker-refused", text, now, kind=kind)

    def _message(self, device: str, leaf: str, event: Received, now: Now) -> None:
        if leaf.startswith("up/ul/"):
            self._upload_frame(device, leaf, event.payload, now)
            return
        self.said(device, decode(leaf, event.payload), now, is_kept=event.retained)
        self._meet(device, now)

    def said(self, device: str, message: Message, now: Now, *, is_kept: bool = False) -> None:
        """A device said something, on whichever way; `is_kept`: some time ago, and the broker kept it."""
        self.line.said(message)
        match message:
            case Conn():
                self._registry.conn(device, message, now)
                self._met[device] = True
                self._rollouts.came()
            case Birth():
                self._registry.birth(device, message, now, is_kept=is_kept)
                self._met[device] = True  # an older agent answers with this alone, and would be asked for ever
                self._bases[device] = message.bases
                self._standings.born(device, message)
                self._rollouts.came()
                self._sites.came(device, now)
                self._questions.born(device)
                self.tell(device, now)
            case State():
                if message.state == "probation" and device in self._chunk_bytes:  # it arrived: the next may be larger
                    self._chunk_bytes[device] = min(2 * self._chunk_bytes[device], USUAL_BYTES)
                if self._registry.state(device, message, now, is_kept=is_kept):
                    self._rollouts.state(device, message, now)
            case Telemetry():
                self._registry.telemetry(device, dict(message.values), now)
            case Event():
                self._registry.event(device, message, now)
                if message.name == RESTORE_WAITS:
                    self._checkpoints.waits(device, message)
            case History(batch=batch):
                self._registry.history(device, message, now)
                # Only now it is kept: where that fails the device is told nothing, and says it again.
                self._send(device, topics.DN_HIST, HistoryKept(batch=batch), qos=1, expiry_s=60)
            case Request():
                self._answer(device, message, now)
            case Reply():
                self._standings.replied(device, message)
                self._checkpoints.replied(device, message, now)
                self._questions.replied(device, message, now)
                self._evaluations.replied(device, message)

    def _meet(self, device: str, now: Now) -> None:
        """Ask a device to introduce itself that is not known, or that may have come or gone while we were away.

        Of what devices say once, when they connect, a broker may keep nothing for us: RabbitMQ gives wildcards nothing
        that is retained.
        """
        if now.s - self._asked_birth_s.get(device, -math.inf) < BIRTH_AGAIN_S:
            return  # before the database is asked: who never answers would have it asked with each message
        is_born = self._registry.is_born(device)
        if is_born and device in self._met:
            return
        self._asked_birth_s[device] = now.s
        args = {"learned": not is_born}  # who does not know it has lost what it learned, too
        command = Command(id=f"birth-{now.wall_ms}", name="birth", args=args, ttl_s=60.0)
        self._send(device, topics.DN_CMD, command, qos=1, expiry_s=60)

    def _answer(self, device: str, request: Request, now: Now) -> None:
        if request.op == "meta":
            if self._signing is not None:
                self._send(device, topics.DN_META, self._signing.document(request.name), qos=1, expiry_s=60)
            return
        asked = request.chunk_size_bytes or self._chunk(device)
        size = min(fitting(asked + AROUND_BYTES), self._largest_chunk)
        if request.op == "desired" or asked != size:
            if request.chunk_size_bytes and self._store.devices.get(device) is not None:
                self._chunk_bytes[device] = size
            self.tell(device, now)
            return
        try:
            artifact = self._artifacts.get(request.digest, size)
        except RolloutError as exc:
            self._events.fault(device, "artifact-missing", str(exc), now)
            return
        leaf = topics.frame_leaf(request.digest[:16])
        try:
            left, n_bytes = self._pacing.allowed(device, now), 0
            for frame in artifact.frames(request) if left > 0 else ():
                payload = encode_frame(frame)
                if n_bytes + len(payload) > left:  # it asks again, and more rarely each time
                    break
                n_bytes += len(payload)
                # The few of the index are acknowledged: a broker that takes none from us says so only then.
                self._publish(device, leaf, payload, qos=int(request.part == "index"), expiry_s=30)
            self._pacing.sent(device, n_bytes, now)
        except RolloutError as exc:
            self._artifacts.doubt(request.digest)
            self._events.fault(device, "artifact-damaged", str(exc), now)

    def _upload_frame(self, device: str, leaf: str, payload: bytes, now: Now) -> None:
        xfer = topics.transfer_of(leaf)
        assert xfer is not None
        status, whole = self._uploads.receive(device, xfer, decode_frame(payload), now.s)
        if whole is not None and (why := self.sent(device, whole.kind, whole.data, now)):
            status = UploadStatus(have=(), window=0, status="refused", detail=why[:500])
        if status is not None:
            self._send(device, topics.upload_status_leaf(xfer), replace(status, codecs=CODECS), qos=1)

    def sent(self, device: str, kind: str, data: bytes, now: Now) -> str:
        """Take what a device sent whole, on whichever way; why it is refused, "" where it is kept."""
        try:
            if kind == CHECKPOINT:
                self._checkpoints.take(device, data, now)
            else:
                self._learning.take(device, data, now)
        except Unwanted as exc:  # as it should be: nobody has to do anything
            self._events.fault(device, "not-taken", str(exc), now)
            return str(exc)
        except (BundleError, LearningError) as exc:
            what = "checkpoint-refused" if kind == CHECKPOINT else "contribution-refused"
            self._events.fault(device, what, str(exc), now, kind=type(exc).__name__)
            return str(exc)
        return ""

    # What devices should run

    def tell(self, device: str, now: Now) -> None:
        """Tell a device what its models should run."""
        for each in self._releases.wanted(device, now):
            self._send_desired(device, each, now)
        self._say_orders(device, now)

    def tell_some(self, devices: Set[str], now: Now) -> None:
        """Tell devices what their models should run; what goes wrong with one costs that one."""
        if not devices:
            return
        for device, wanted in self._releases.wanted_by_all(now, devices):
            with self._events.survived(device.id, "fault", "telling it what to run", now):
                for each in wanted if device.born else ():
                    self._send_desired(device.id, each, now)
                self._say_orders(device.id, now)

    def tell_all(self, now: Now) -> None:
        """Tell every device that is not where it should be. The database says so, not the broker's memory."""
        for device, wanted in self._releases.wanted_by_all(now):
            if not device.born:
                self._meet(device.id, now)
            for each in wanted:
                if each.is_late:
                    self._send_desired(device.id, each, now)
        self._say_orders(None, now)

    def _say_once(self) -> None:
        for asking in (self._sites.to_say, self._questions.to_say):
            for device, command in asking:
                self._send(device, topics.DN_CMD, command, qos=1, expiry_s=60)
            asking.clear()

    def _say_orders(self, device: str | None, now: Now) -> None:
        """Say where devices stand that do not know it, and what they are to do once, until they answer."""
        for whom, command in (*self._standings.to_say(device, now), *self._questions.to_tell(device, now)):
            self._send(whom, topics.DN_CMD, command, qos=1, expiry_s=60)
        for whom, message in self._checkpoints.to_say(device, self._chunk, now):
            if isinstance(message, Command):
                self._send(whom, topics.DN_CMD, message, qos=1, expiry_s=60)
                continue
            self._send(whom, topics.DN_RESTORE, self.signed(whom, message, now), qos=1, expiry_s=60)
        for whom, asked in self._evaluations.to_say(device, self._chunk, now):
            forms = self._artifacts.forms(asked.digest, self._bases.get(whom, ()), asked.chunk_size_bytes)
            self._send(
                whom, topics.DN_CANDIDATE, self.signed(whom, replace(asked, forms=forms), now), qos=1, expiry_s=60
            )

    def signed(self, device: str, order: OrderT, now: Now) -> OrderT:
        """An order for a device, signed where this fleet has keys."""
        if self._signing is None:
            return order
        return replace(order, signature=self._signing.sign(self._fleet, device, order, now))

    def _chunk(self, device: str) -> int:
        """Size of the chunks that arrive at a device."""
        return min(self._chunk_bytes.get(device, USUAL_BYTES), self._largest_chunk)

    def _send_desired(self, device: str, wanted: Wanted, now: Now) -> None:
        message = self.desired(device, wanted, now)
        if message is not None:
            self._send(device, topics.model_leaf(topics.DN_DESIRED, wanted.level), message, qos=1, retain=True)

    def desired(self, device: str, wanted: Wanted, now: Now) -> Desired | None:
        """What a model of a device should run, signed where there are keys; None, and told, where that cannot be."""
        release = wanted.release
        try:
            size = self._chunk(device)
            artifact = self._artifacts.get(release.digest, size)
            forms = self._artifacts.forms(release.digest, self._bases.get(device, ()), size)
        except RolloutError as exc:
            self._events.fault(device, "artifact-missing", str(exc), now)
            return None
        message = Desired(
            release=release.counter,
            kind="bundle" if release.kind == "bundle" else "head",
            digest=release.digest,
            size_bytes=artifact.size_bytes,
            chunk_size_bytes=size,
            index_digest=artifact.index_digest,
            backbone=release.backbone,
            reason=release.reason,
            ts_ms=release.created_ms,
            model=wanted.model.model,
            forms=forms,
            activate=wanted.activate,
            attempt=wanted.attempt,
            undoes=release.undoes,
            anew=self._releases.is_anew(wanted),
        )
        if self._signing is not None:
            try:
                message = replace(message, signature=self._signing.sign(self._fleet, device, message, now))
            except EdgeError as exc:
                why = f"release {release.counter} is not sent: {exc}"
                self._events.fault(device, "not-signed", why, now)
                self._rollouts.not_sent(device, release.counter, why)
                return None
        return message

    def decided(self, device: str, now: Now) -> None:
        """Tell a device where it stands: that was decided just now."""
        self._standings.decided(device)
        self._say_orders(device, now)

    def clear(self, device: str) -> None:
        """Have the broker forget what it keeps of a device that is gone for good."""
        models = self._store.devices.models(device)
        levels = ["", *(level_of(model.model) for model in models if len(models) > 1)]
        leaves = [topics.model_leaf(leaf, level) for leaf in (topics.UP_STATE, topics.DN_DESIRED) for level in levels]
        for leaf in (topics.UP_CONN, topics.UP_BIRTH, *leaves):
            self._publish(device, leaf, b"", qos=1, retain=True)

    # Out

    def drain(self, now: Now) -> list[Publish]:
        """What is to be sent now; without a connection nothing, and it is not kept."""
        for text in self.line.poll(now.s):
            self._events.fault("", "broker-silent", text, now, kind=text)
        self._uploads.expire(now.s)
        self._say_once()
        out, self._out = self._out, []
        return out if self.is_connected else []

    def _send(
        self, device: str, leaf: str, message: Message, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        self._publish(device, leaf, encode(message), qos=qos, retain=retain, expiry_s=expiry_s)

    def _publish(
        self, device: str, leaf: str, payload: bytes, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        topic = topics.build(self._fleet, device, leaf)
        self._out.append(Publish(topic=topic, payload=payload, qos=qos, retain=retain, expiry_s=expiry_s))


def _kind(leaf: str) -> str:
    """A leaf without what a device chooses."""
    return "/".join(leaf.split("/")[:2])
