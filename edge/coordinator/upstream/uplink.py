"""The conversation with the coordinator above, in which this site is a device: no second protocol.

Theory of operation. Up: who is there, what its models run, where a release stands, and the sum of what its devices
learned. Down: bundles and heads, by the same downloads as on a device, and proved before they are looked at where this
site was given a root. A bundle, and a head that a person pushed, goes on to the devices by a rollout of the site's own,
and is `active` above once that has gone through; the merge of all sites becomes part of the site's next merge.

Nothing of it ends or stops the site: without a line it goes on with what it has, and what it gives is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge import __version__
from edge.channel import confusion, topics
from edge.channel.chunks import UPLOAD_BYTES, fitting
from edge.channel.codec import decode, encode
from edge.channel.frames import decode_frame, encode_frame
from edge.channel.messages import (
    APPROVED,
    Birth,
    Command,
    Conn,
    Desired,
    Message,
    Meta,
    Reply,
    Served,
    State,
    Telemetry,
    UploadOffer,
    UploadStatus,
)
from edge.channel.transport import Connected, Disconnected, Limited, Publish, Received, TransportEvent
from edge.channel.upload import Upload
from edge.channel.vetting import Believed, NotJudged, Trust, Vetting
from edge.contract.clock import Now
from edge.contract.digest import sha256
from edge.contract.errors import ChannelError
from edge.contract.names import level_of
from edge.coordinator.config import SiteConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.devices.sites import LEAVE
from edge.coordinator.learning.confusions import by_backbone
from edge.coordinator.line import ONLINE
from edge.coordinator.store.store import Store
from edge.coordinator.upstream.arriving import Arriving
from edge.coordinator.upstream.pools import Pools

# What was given is said again after this: the coordinator above may have lost it (its database was restored).
RESYNC_S = 6 * 3600.0
# What was refused is tried again after this.
REFUSED_AGAIN_S = 3600.0
TELEMETRY_S = 60.0
# Whether a rollout here has come to an end is looked at so often.
LOOK_S = 2.0


class Uplink:
    """See the module.

    Args:
        config: Where and as whom.
        core: This coordinator.
        store: Its database.
        pools: What it gives, and has from above.
        folder: For downloads; created.
        trust: Proves releases; None takes those of anybody who may publish.
    """

    def __init__(
        self,
        config: SiteConfig,
        core: CoordinatorCore,
        store: Store,
        pools: Pools,
        folder: Path,
        trust: Trust | None = None,
    ) -> None:
        self._config, self._core, self._store, self._pools = config, core, store, pools
        self._folder = folder
        self._vetting = None if trust is None else Vetting(trust)
        document = pools.read()
        document["boot"] += 1
        pools.write(document)
        self._boot, self._state_id = int(document["boot"]), str(document["state_id"])
        self._session = int(document["session"])
        self._connected = False
        self._out: list[Publish] = []
        self._arriving: dict[str, Arriving] = {}  # by model
        self._upload: tuple[str, int, Upload] | None = None  # backbone and version
        self._sent: dict[str, tuple[int, float]] = {}  # by backbone, the version that is above, and until when
        self._composed: dict[str, int] = {}  # by backbone, what the newest contribution was made of
        self._answered: dict[tuple[str, str], confusion.Teller] = {}  # by model and bundle
        self._chunk_bytes = UPLOAD_BYTES
        self._is_to_send = True
        self._next_s: dict[str, float] = {"give": -math.inf, "look": -math.inf, "telemetry": -math.inf}
        self._seq = self._telemetry_seq = 0
        self._admission = APPROVED

    # In

    def transport(self, event: TransportEvent, now: Now) -> None:
        """Take an event of the connection to the broker above. What cannot be handled costs itself, and is told."""
        with self._core.events.survived("", "fault", "a message from above", now):
            match event:
                case Connected(max_packet_bytes=limit):
                    self._chunk_bytes = min(UPLOAD_BYTES, fitting(limit))
                    self._connect(now)
                case Limited(max_packet_bytes=limit):
                    self._chunk_bytes = min(self._chunk_bytes, fitting(limit))
                    if self._upload is not None:
                        self._upload[2].resize(self._chunk_bytes)
                case Disconnected():
                    self._connected = False
                case Received(topic=topic, payload=payload) if payload:
                    try:
                        self._message(topics.parse(topic).leaf, payload, now)
                    except ChannelError as exc:
                        self._core.events.fault("", "bad-message", f"from above: {exc}", now, kind="above")

    def _connect(self, now: Now) -> None:
        document = self._pools.read()
        document["session"] += 1
        self._pools.write(document)
        self._session, self._connected, self._is_to_send = int(document["session"]), True, True
        self._send(topics.UP_CONN, self._word(self._session, now, online=True), qos=1, retain=True)
        self._introduce(now)
        for arriving in self._arriving.values():
            self._report(arriving, now)

    def _word(self, session: int, now: Now, *, online: bool) -> Conn:
        return Conn(online=online, session=session, boot=self._boot, ts_ms=now.wall_ms, state_id=self._state_id)

    def will(self, now: Now) -> Publish:
        """What the broker above is to say when the next connection breaks."""
        return self._letter(topics.UP_CONN, self._word(self._session + 1, now, online=False), qos=1, retain=True)

    def farewell(self, now: Now) -> Publish:
        """What to say before stopping in good order."""
        return self._letter(topics.UP_CONN, self._word(self._session, now, online=False), qos=1, retain=True)

    def _message(self, leaf: str, payload: bytes, now: Now) -> None:
        if leaf.startswith("dn/f/"):
            frame = decode_frame(payload)
            for arriving in list(self._arriving.values()):
                arriving.frame(frame, now)
            return
        message = decode(leaf, payload)
        if isinstance(message, Desired):
            self._desired(message, now)
        elif isinstance(message, UploadStatus) and self._upload is not None:
            if topics.transfer_of(leaf) == self._upload[2].xfer:
                self._upload[2].receive(message, now.s)
        elif isinstance(message, Meta) and self._vetting is not None:
            self._vetting.take(message)
        elif isinstance(message, Command):
            self._command(message, now)

    def _stands(self, said: Mapping[str, Any], now: Now) -> None:
        """Where this site stands above: what it gives is merged there only while it is approved."""
        before, self._admission = self._admission, str(said.get("admission", APPROVED))[:32]
        if self._admission != before:
            detail = f"the fleet above says: this site is {self._admission} {str(said.get('why', ''))[:300]}".rstrip()
            self._core.events.note("", "admission-above", detail, now)

    def _command(self, command: Command, now: Now) -> None:
        reply = Reply(id=command.id, rc=0, detail="", out={})
        if command.name == "birth":
            self._sent.clear()
            self._is_to_send = True
            self._introduce(now)
        elif command.name == "sync":
            self._next_s["give"] = now.s
        elif command.name == LEAVE:
            lineages, again_s = command.args.get("lineages"), command.args.get("again_s", 0.0)
            if not isinstance(lineages, dict) or not isinstance(again_s, int | float):
                raise ChannelError("leave: expected lineages with their versions")
            self._pools.leave({str(each): int(version) for each, version in lineages.items()}, again_s, now)
            detail = f"{len(lineages)} contributions count elsewhere in the fleet above, and are left out"
            self._core.events.note("", "left-to-others", detail, now)
            self._composed.clear()
            self._next_s["give"] = now.s
        elif command.name == "admission":
            self._stands(command.args, now)
        else:
            reply = replace(reply, rc=1, detail=f"unknown command {command.name!r:.60}")
        self._send(topics.UP_REPLY, reply, qos=1, expiry_s=3600)

    # Down

    def _desired(self, desired: Desired, now: Now) -> None:
        names = [served.model for served in self._served()]
        model = desired.model or (names[0] if len(names) == 1 else "")
        known = self._arriving.get(model)
        if self._vetting is not None and (known is None or desired.release >= known.desired.release):
            self._vetting.offer(model, desired)
            return
        self._take(model, desired, now)

    def _take(self, model: str, desired: Desired, now: Now, refused: str = "") -> None:
        """A release for a model: one that is older than what was handled changes nothing."""
        known = self._arriving.get(model) or self._remembered(model)
        if known is not None and desired.release <= known.desired.release:
            if desired.release == known.desired.release:
                self._arriving[model] = known
                known.again(desired, now)
                self._report(known, now)
            return
        if known is not None:
            known.stop()
        made = Arriving(self._core, self._store, self._pools, self._folder, model, desired)
        self._arriving[model] = made
        made.begin(now, refused)

    def _remembered(self, model: str) -> Arriving | None:
        """The release that came last, before a restart."""
        found = self._pools.read()["models"].get(model)
        if found is None:
            return None
        return Arriving.remembered(self._core, self._store, self._pools, self._folder, model, found)

    # Time

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        if not self._connected:
            return self._next_s["look"] if self._arriving else math.inf
        waits = [each.next_deadline_s for each in self._arriving.values()]
        waits += [] if self._upload is None else [self._upload[2].next_deadline_s]
        waits += [] if self._vetting is None else [self._vetting.next_deadline_s]
        return min([*self._next_s.values(), *waits])

    def tick(self, now: Now) -> list[Publish]:
        """Do what is due and give back what is to be said above."""
        with self._core.events.survived("", "fault", "the conversation with the coordinator above", now):
            self._vet(now)
            is_to_look = now.s >= self._next_s["look"]
            self._next_s["look"] = now.s + LOOK_S if is_to_look else self._next_s["look"]
            is_settled = False
            for arriving in list(self._arriving.values()):
                arriving.tick(now, look=is_to_look)
                self._out += [self._letter(topics.UP_REQ, r, qos=1, expiry_s=60) for r in arriving.take_requests()]
                if arriving.is_changed:
                    self._report(arriving, now)
                    is_settled |= arriving.is_settled
            if is_settled:
                self._introduce(now)
            self._give(now)
            if self._connected and now.s >= self._next_s["telemetry"]:
                self._next_s["telemetry"] = now.s + TELEMETRY_S
                self._tell_numbers(now)
        out, self._out = self._out, []
        return out if self._connected else []

    def _vet(self, now: Now) -> None:
        if self._vetting is None:
            return
        for request in self._vetting.poll(now.s, may_ask=self._connected):
            self._send(topics.UP_REQ, request, qos=1, expiry_s=60)
        for verdict in self._vetting.verdicts:
            if isinstance(verdict.desired, Desired) and not isinstance(verdict, NotJudged):
                why = "" if isinstance(verdict, Believed) else f"not believed, {verdict.kind}: {verdict.detail}"
                self._take(verdict.model, verdict.desired, now, why)
        self._vetting.verdicts.clear()

    # Up

    def _give(self, now: Now) -> None:
        """Send what the devices here learned, a backbone at a time, each version once."""
        if self._upload is not None:
            self._go_on(now)
        if now.s >= self._next_s["give"]:
            self._next_s["give"] = now.s + self._config.interval_s
            for backbone in {each.backbone for each in self._store.contributions.all()}:
                with self._core.events.survived("", "fault", "summing what is given above", now):
                    self._compose(backbone, now)
            self._is_to_send = True
        if self._upload is not None or not self._connected or not self._is_to_send:
            return
        self._is_to_send = False
        for backbone in self._pools.backbones():
            newest = self._pools.newest(backbone)
            version, until_s = self._sent.get(backbone, (-1, math.inf))
            if newest is not None and (newest[0] != version or now.s >= until_s):
                self._begin(backbone, *newest)
                self._go_on(now)
                self._is_to_send = True  # there may be another one
                return

    def _compose(self, backbone: str, now: Now) -> None:
        bundle = self._core.bundles.of(backbone)
        returns = self._pools.returns_ms()
        rows = self._store.contributions.all(backbone)
        made_of = hash((tuple((r.lineage, r.version, r.merged_version, r.base_release) for r in rows), returns))
        if bundle is None or (self._composed.get(backbone) == made_of and not 0 < returns <= now.wall_ms):
            return
        self._pools.compose(bundle, self._core.merges.inside(backbone, bundle, now), now)
        self._composed[backbone] = made_of

    def _begin(self, backbone: str, version: int, data: bytes) -> None:
        offer = UploadOffer(
            kind="head-update",
            digest=sha256(data),
            size_bytes=len(data),
            chunk_size_bytes=self._chunk_bytes,
            backbone=backbone,
            version=version,
            n_samples=self._pools.samples(backbone),
        )
        self._upload = backbone, version, Upload(data, offer)

    def _go_on(self, now: Now) -> None:
        assert self._upload is not None
        backbone, version, upload = self._upload
        if upload.refused is not None:
            self._core.events.fault("", "refused-above", upload.refused, now, kind=upload.refused)
            self._sent[backbone] = version, now.s + REFUSED_AGAIN_S
        elif upload.done:
            self._sent[backbone] = version, now.s + RESYNC_S
        elif self._connected:
            leaf = topics.upload_leaf(upload.xfer)
            self._out += [self._letter(leaf, encode_frame(frame), qos=1, expiry_s=3600) for frame in upload.poll(now.s)]
            return
        else:
            return
        self._upload = None

    # What is said

    def _served(self) -> list[Served]:
        """What most of the devices here run, by model; of no devices, the bundles that are known."""
        runs: dict[str, Counter[tuple[str, str]]] = {}
        for model in self._store.devices.models():
            if model.bundle and model.backbone:
                runs.setdefault(model.model, Counter())[model.bundle, model.backbone] += 1
        if not runs:
            for known in self._store.releases.bundles():
                runs.setdefault(known.name, Counter())[known.identity, known.backbone] += 1
        kept = self._pools.read()["models"]
        return [
            Served(
                model=name,
                bundle=bundle,
                backbone=backbone,
                head="",
                release=int(kept.get(name, {}).get("release", 0)),
                n_labels=self._pools.samples(backbone),
            )
            for name, counts in sorted(runs.items())
            for (bundle, backbone), _ in counts.most_common(1)
        ]

    def _introduce(self, now: Now) -> None:
        served = self._served()
        first = served[0] if served else Served(model="", bundle="", backbone="", head="", release=0, n_labels=0)
        birth = Birth(
            agent_version=__version__,
            boot=self._boot,
            session=self._session,
            ts_ms=now.wall_ms,
            profile="site",
            hardware={"site": self._config.name, "devices": len(self._store.devices.all())},
            bundle=first.bundle,
            backbone=first.backbone,
            head=first.head,
            release=first.release,
            n_labels=first.n_labels,
            limits={"telemetry_s": TELEMETRY_S, "learner": "site"},
            models=tuple(served),
            state_id=self._state_id,
        )
        self._send(topics.UP_BIRTH, birth, qos=1, retain=True)

    def _report(self, arriving: Arriving, now: Now) -> None:
        arriving.is_changed = False
        self._seq += 1
        names = [served.model for served in self._served()]
        level = level_of(arriving.model) if len(names) > 1 else ""
        state = State(
            ts_ms=now.wall_ms,
            seq=self._seq + (self._boot << 32),
            slot=arriving.desired.kind,
            state=arriving.state,
            release=arriving.desired.release,
            digest=arriving.desired.digest,
            detail=arriving.detail[:500],
            model=arriving.model,
            state_id=self._state_id,
        )
        self._send(topics.model_leaf(topics.UP_STATE, level), state, qos=1, retain=True)

    def _tell_numbers(self, now: Now) -> None:
        devices = self._store.devices.all()
        line = self._core.dialogue.line.state
        there = sum(line.condition(device, now.wall_ms) == ONLINE for device in devices)
        answered = by_backbone(self._store.confusions.all(), self._store.devices.models())
        for served in self._served():
            self._telemetry_seq += 1
            head = {"ts": now.wall_ms, "seq": self._telemetry_seq, "boot": self._boot, "state_id": self._state_id}
            numbers = {"model": served.model, "release": served.release, "samples": served.n_labels}
            values = {**head, **numbers, "devices": len(devices), "devices_online": there}
            counts = [each.counts for each in answered.get(served.backbone, ()) if each.model == served.model]
            teller = self._answered.setdefault((served.model, served.bundle), confusion.Teller())
            values |= teller.news(confusion.told(confusion.together(counts)), now.s)
            self._send(topics.UP_TELE, Telemetry(values=values), qos=0)

    def _send(
        self, leaf: str, message: Message, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        self._out.append(self._letter(leaf, message, qos=qos, retain=retain, expiry_s=expiry_s))

    def _letter(
        self, leaf: str, content: Message | bytes, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> Publish:
        payload = content if isinstance(content, bytes) else encode(content)
        topic = topics.build(self._config.fleet, self._config.name, leaf)
        return Publish(topic=topic, payload=payload, qos=qos, retain=retain, expiry_s=expiry_s)
