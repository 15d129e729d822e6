"""The coordinator's decisions: events in, messages out.

Holds nothing in memory that is not also in its store, but for uploads on their way, which devices begin again.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from edge.channel import topics
from edge.channel.chunks import AROUND_BYTES, USUAL_BYTES, fitting
from edge.channel.codec import decode, encode
from edge.channel.download import serve
from edge.channel.frames import decode_frame, encode_frame
from edge.channel.messages import (
    Birth,
    Command,
    Conn,
    Desired,
    Event,
    Message,
    Request,
    State,
    Telemetry,
    UploadStatus,
)
from edge.channel.transport import Connected, Disconnected, Limited, Publish, Received, Refused, TransportEvent
from edge.contract.bundle import Bundle, check_parameters
from edge.contract.clock import Now
from edge.contract.errors import BundleError, ChannelError, EdgeError, LearningError, RolloutError
from edge.contract.names import MAX_NAME_CHARS, is_model_name, level_of
from edge.contract.training import FloatArray
from edge.coordinator.artifacts import ArtifactStore
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.events import Events
from edge.coordinator.store import ContributionRow, DatabaseError, RefusedRow, ReleaseRow, Store
from edge.coordinator.uploads import Uploads
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.merging.averaging import account_of
from edge.merging.contributions import check_update
from edge.merging.groups import ALL_DEVICES, EVERYBODY, groups, is_meant
from edge.merging.merge import Merge, merge, shipped_head
from edge.merging.policy import BY_TAG, TAG

log = logging.getLogger("edge.coordinator")

BIRTH_AGAIN_S = 30.0
HOUSEKEEPING_S = 600.0
# When a merge that something unforeseen ended is tried again: a full disk or a locked database may be over by then.
MERGE_AGAIN_S = 600.0
PLAN_AGAIN_S = 60.0
# What the broker refuses is logged again after this.
REFUSED_AGAIN_S, MAX_REFUSALS = 3600.0, 1000
_DAY_S = 86_400.0


class CoordinatorCore:
    """One coordinator of one fleet.

    `transport` and `tick` raise nothing: what comes from outside may be anything, so a fault costs its message or its
    step and becomes an event.

    Args:
        config: Its options.
        store: Its database.
        artifacts: Its files.
        rng: For the noise of merges; nobody may foresee it.
    """

    def __init__(
        self, config: CoordinatorConfig, store: Store, artifacts: ArtifactStore, rng: np.random.Generator | None = None
    ) -> None:
        self._rng = rng
        self._config = config
        self._store = store
        self._artifacts = artifacts
        self.events = Events(store)
        self._connected = False
        self._out: list[Publish] = []
        self._telemetry: list[tuple[str, dict[str, Any], int]] = []
        self._uploads = Uploads()
        self._asked_birth_s: dict[str, float] = {}
        self._told_refusals_s: dict[str, float] = {}
        self._largest_chunk = USUAL_BYTES  # that the broker takes from us
        self._chunk_bytes: dict[str, int] = {}  # by device, what arrives there where that is less
        self._bundles: dict[str, Bundle] = {}
        self._merge_due_s: dict[str, float] = {}
        self._next_reassert_s = -math.inf
        self._next_housekeeping_s = -math.inf
        self._next_plan_s = -math.inf
        self._aged_s: float | None = None  # monotonic
        self._check_merges = True
        self._why_not: dict[str, list[str]] = {}  # by backbone, what the last merge lacked

    # The broker

    def transport(self, event: TransportEvent, now: Now) -> None:
        """Take an event of the broker connection. A message that cannot be read or handled is dropped."""
        if isinstance(event, Received):
            try:
                topic = topics.parse(event.topic)
            except ChannelError as exc:
                self.events.fault("", "bad-message", str(exc), now)
                return
            with self.events.survived(topic.device, "fault", f"a message on {_kind(topic.leaf)}", now):
                try:
                    self._message(topic.device, topic.leaf, event.payload, now)
                except ChannelError as exc:
                    self.events.fault("", "bad-message", f"{event.topic[:120]}: {exc}", now, kind=topic.device)
        elif isinstance(event, Connected | Disconnected):
            self._connected = isinstance(event, Connected)
            if isinstance(event, Connected):
                self._largest_chunk = fitting(event.max_packet_bytes)
                self._next_reassert_s = now.s
        elif isinstance(event, Limited):
            self._largest_chunk = fitting(event.max_packet_bytes)
        elif isinstance(event, Refused):
            self._refused(event, now)

    def _refused(self, event: Refused, now: Now) -> None:
        """The broker did not take something of ours: whoever looks for what a device does not get finds it there."""
        try:
            device = topics.parse(event.topic).device
        except ChannelError:
            device = ""
        what = "publishing to" if event.action == "publish" else "the subscription of"
        text = f"the broker refuses {what} {event.topic}: {event.reason}; look at its access rules and limits"
        kind = f"{event.action} {event.topic}"
        if now.s - self._told_refusals_s.get(kind, -math.inf) >= REFUSED_AGAIN_S:
            if len(self._told_refusals_s) >= MAX_REFUSALS:
                self._told_refusals_s.pop(next(iter(self._told_refusals_s)))
            self._told_refusals_s[kind] = now.s
            log.warning("%s", text)
        self.events.fault(device, "broker-refused", text, now, kind=kind)

    def _message(self, device: str, leaf: str, payload: bytes, now: Now) -> None:
        if leaf.startswith("up/ul/"):
            self._upload_frame(device, leaf, payload, now)
            return
        message = decode(leaf, payload)
        match message:
            case Conn():
                if self._store.conn(device, message, now.wall_ms):
                    self._tell_anew(device, now)
            case Birth():
                if self._store.birth(device, message, now.wall_ms):
                    self._tell_anew(device, now)
                self._send_desired(device, now)
            case State():
                if message.state == "probation" and device in self._chunk_bytes:  # it arrived: the next may be larger
                    self._chunk_bytes[device] = min(2 * self._chunk_bytes[device], USUAL_BYTES)
                if self._store.state(device, message, now.wall_ms) and message.detail:
                    detail = f"release {message.release}: {message.detail}"
                    self._note(device, message.state, detail, now, message.model)
            case Telemetry():
                self._telemetry.append((device, dict(message.values), now.wall_ms))
            case Event():
                self._store.event(device, message, now.wall_ms)
            case Request():
                self._answer(device, message, now)
            case _:
                return
        self._meet(device, now)

    def _tell_anew(self, device: str, now: Now) -> None:
        # Again and again, where two devices have one name and each takes the connection of the other.
        detail = "another state folder under this name: it was set up anew, or two devices have this name"
        self.events.fault(device, "set-up-anew", detail, now)

    def _meet(self, device: str, now: Now) -> None:
        """Ask a device that is not known to introduce itself."""
        row = self._store.device(device)
        if (row is None or not row.born) and now.s - self._asked_birth_s.get(device, -math.inf) >= BIRTH_AGAIN_S:
            self._asked_birth_s[device] = now.s
            command = Command(id=f"birth-{now.wall_ms}", name="birth", args={}, ttl_s=60.0)
            self._send(device, topics.DN_CMD, command, qos=1, expiry_s=60)

    def _answer(self, device: str, request: Request, now: Now) -> None:
        asked = request.chunk_size_bytes or USUAL_BYTES
        size = min(fitting(asked + AROUND_BYTES), self._largest_chunk)
        if request.op == "desired" or asked != size:
            if request.chunk_size_bytes and self._store.device(device) is not None:
                self._chunk_bytes[device] = size
            self._send_desired(device, now)
            return
        try:
            artifact = self._artifacts.get(request.digest, size)
        except RolloutError as exc:
            self.events.fault(device, "artifact-missing", str(exc), now)
            return
        leaf = topics.frame_leaf(request.digest[:16])
        for frame in serve(request, artifact.read, artifact.size_bytes, size, artifact.index):
            # The few of the index are acknowledged: a broker that takes none from us says so only then.
            self._publish(device, leaf, encode_frame(frame), qos=int(request.part == "index"), expiry_s=30)

    def _send_desired(self, device: str, now: Now, *, only_late: bool = False) -> None:
        """Tell a device what its models should run, or those that are not there yet."""
        row = self._store.device(device)
        models = self._store.models(device) if row is not None and row.born else []
        for model in models:
            release = self._store.desired(model, is_only=len(models) == 1)
            if release is not None and not (only_late and model.release >= release.counter):
                level = level_of(model.model) if len(models) > 1 else ""
                self._send_release(release, device, model.model, level, now)

    def _send_release(self, release: ReleaseRow, device: str, model: str, level: str, now: Now) -> None:
        try:
            size = min(self._chunk_bytes.get(device, USUAL_BYTES), self._largest_chunk)
            artifact = self._artifacts.get(release.digest, size)
        except RolloutError as exc:
            self.events.fault(device, "artifact-missing", str(exc), now)
            return
        desired = Desired(
            release=release.counter,
            kind="bundle" if release.kind == "bundle" else "head",
            digest=release.digest,
            size_bytes=artifact.size_bytes,
            chunk_size_bytes=size,
            index_digest=artifact.index_digest,
            backbone=release.backbone,
            reason=release.reason,
            ts_ms=release.created_ms,
            model=model,
        )
        self._send(device, topics.model_leaf(topics.DN_DESIRED, level), desired, qos=1, retain=True)

    # Contributions

    def _upload_frame(self, device: str, leaf: str, payload: bytes, now: Now) -> None:
        xfer = topics.transfer_of(leaf)
        assert xfer is not None
        status, data = self._uploads.receive(device, xfer, decode_frame(payload), now.s)
        if data is not None:
            try:
                self._take_contribution(device, data, now)
            except (BundleError, LearningError) as exc:
                self.events.fault(device, "contribution-refused", str(exc), now, kind=type(exc).__name__)
                status = UploadStatus(have=(), window=0, status="refused", detail=str(exc)[:500])
        if status is not None:
            self._send(device, topics.upload_status_leaf(xfer), status, qos=1)

    def _take_contribution(self, device: str, data: bytes, now: Now) -> None:
        """Keep what a device learned; durable when this returns, and only then it is acknowledged."""
        update = HeadUpdate.decode(data, f"the contribution of {device}")
        if self._store.is_forgotten(update.lineage):
            raise LearningError(
                "an operator had this forgotten; the device may contribute again with an empty state folder"
            )
        if (owner := self._store.owner_of(update.lineage, device, update.state_id)) is not None:
            raise LearningError(
                f"what was learned is that of {owner}, under whose name it came first; a device that takes over the "
                f"state folder of another must have it whole"
            )
        try:
            bundle = self._bundle(update.backbone)
        except EdgeError as exc:  # the bundle is at fault and not the device, and merging checks again
            self.events.fault("", "bundle-unusable", f"{update.backbone[:12]}: {exc}", now, kind=update.backbone)
        else:
            if bundle is not None:
                check_update(update, bundle)
            else:
                detail = f"{update.backbone[:12]}: kept; push or register its bundle to merge it"
                self._note(device, "unknown-backbone", detail, now)
        artifact = self._artifacts.put(data)
        row = ContributionRow(
            device=device,
            lineage=update.lineage,
            backbone=update.backbone,
            learner=update.learner,
            version=update.version,
            n_samples=update.n_samples,
            base_release=update.base_release,
            digest=artifact.digest,
            received_ms=now.wall_ms,
            model=update.model,
            state_id=update.state_id,
        )
        if self._store.contribution(row):
            self._note(device, "contribution", f"{update.n_samples} samples, {update.learner}", now, update.model)
            self._check_merges = True

    def _bundle(self, backbone: str) -> Bundle | None:
        """A known bundle with this backbone, opened."""
        if backbone not in self._bundles:
            row = self._store.bundle_of(backbone)
            if row is None:
                return None
            self._bundles[backbone] = Bundle.open(self._artifacts.get(row.digest).path)
        return self._bundles[backbone]

    # What operators ask for

    def add_artifact(self, data: bytes, path: Path) -> dict[str, Any]:
        """Take a bundle or a head, check it, and keep it.

        Args:
            data: The file.
            path: A copy on disk that a bundle can be opened from.

        Returns:
            ``digest``, ``kind`` and ``backbone``.

        Raises:
            BundleError: It is neither, or does not fit a known bundle.
        """
        if data[:4] == b"PK\3\4":
            bundle = Bundle.open(path)
            artifact = self._artifacts.put(data)
            backbone = bundle.manifest.backbone_digest
            self._store.add_bundle(artifact.digest, backbone, bundle.manifest.name)
            self._check_merges = True
            return {"digest": artifact.digest, "kind": "bundle", "backbone": backbone}
        release = self._read_head(data)
        artifact = self._artifacts.put(release.encode())
        return {"digest": artifact.digest, "kind": "head", "backbone": release.backbone}

    def _read_head(self, data: bytes) -> HeadRelease:
        """A head release, or plain parameters that fit exactly one known bundle's head."""
        try:
            release = HeadRelease.decode(data, "the head")
        except BundleError:
            release = None
        if release is not None:
            bundle = self._bundle(release.backbone)
            if bundle is None:
                raise BundleError("the head belongs to a backbone that is not known here; push its bundle first")
            names = release.class_names
            if names and names[: len(bundle.manifest.class_names)] != bundle.manifest.class_names:
                raise BundleError("the head's classes do not begin with those of its bundle")
            check_parameters(release.parameters, bundle.manifest, "the head", len(names) or None)
            return release
        try:
            tensors = safetensors.numpy.load(data)
        except Exception as exc:  # the parser's errors have no common base
            raise BundleError("expected a bundle (.edge) or a head (.safetensors); this is neither") from exc
        fitting = {}
        for row in self._store.bundles():
            bundle = self._bundle(row.backbone)
            assert bundle is not None
            try:
                check_parameters(tensors, bundle.manifest, "the head")
            except BundleError:
                continue
            fitting[row.backbone] = bundle
        running = {row.backbone for row in self._store.models()}
        if len(fitting) > 1:
            fitting = {backbone: bundle for backbone, bundle in fitting.items() if backbone in running}
        if len(fitting) != 1:
            raise BundleError(
                f"a head with the parameters {sorted(tensors)} fits {len(fitting)} of the bundles that devices run, "
                f"expected one; push a head release, which names its backbone"
            )
        return HeadRelease(backbone=next(iter(fitting)), parameters=dict(tensors), origin="pushed by hand")

    def push(
        self, digest: str, kind: str, backbone: str, devices: list[str], reason: str, now: Now, *, model: str = ""
    ) -> ReleaseRow:
        """Make an artifact what a model of devices should run.

        Args:
            digest: Of the artifact.
            kind: ``head`` or ``bundle``.
            backbone: That it belongs to.
            devices: Names or tags; none for all, also those to come.
            reason: For people.
            now: The time.
            model: Name of the model; "" for that of the bundle, or, if no device has one of that name, for the only one
                that there is; for a head for those with its backbone.

        Raises:
            RolloutError: An unknown device, or no device could take it.
        """
        known = {row.id: row for row in self._store.devices()}
        unknown = [device for device in devices if device not in known and not device.startswith(BY_TAG)]
        if unknown:
            raise RolloutError(f"unknown device {unknown[0]}; `edge-fleet devices` lists them")
        if model and not is_model_name(model):
            raise RolloutError(f"model {model[:80]!r}: expected 1 to {MAX_NAME_CHARS} characters that can be shown")
        self._artifacts.get(digest)
        tags = self._store.tags()
        chosen = [row for row in known.values() if is_meant(devices or EVERYBODY, row.id, tags.get(row.id, {}))]
        served = [row for row in self._store.models() if row.device in {each.id for each in chosen}]
        if kind == "head" and not any(row.backbone == backbone and model in ("", row.model) for row in served):
            raise RolloutError(f"no device runs the backbone {backbone[:12]} that this head belongs to{_as(model)}")
        if kind == "bundle":
            model = self._model_of(digest, model, {row.model for row in served})
        release = self._store.release(
            kind=kind,
            digest=digest,
            backbone=backbone,
            devices=devices or [ALL_DEVICES],
            reason=reason,
            now_ms=now.wall_ms,
            model=model,
        )
        self._note("", "release", f"{release.counter}: {kind} {digest[:12]}{_as(model)}, {reason}", now, model)
        self._next_reassert_s = now.s
        return release

    def _model_of(self, digest: str, model: str, served: set[str]) -> str:
        """The model that a bundle is for, of those that the chosen devices have.

        Raises:
            RolloutError: None of them.
        """
        own = next((row.name for row in self._store.bundles() if row.digest == digest), "")
        name = model or own
        if name in served or not served:
            return name
        if not model and len(served) == 1:
            return next(iter(served))
        raise RolloutError(
            f"no device has a model {name!r}, there are {', '.join(map(repr, sorted(served)))}; say with --model which "
            f"one the bundle is for"
        )

    def merge_now(self, now: Now) -> list[ReleaseRow]:
        """Merge everything that is new, or without what was forgotten, and push it.

        Raises:
            RolloutError: There is something new, but too little of it.
        """
        rows = self._store.contributions() if self._config.policy.merge_by else self._fresh()
        backbones = {row.backbone for row in rows} | self._store.to_be_unlearned()
        releases = [release for backbone in sorted(backbones) for release in self._merge(backbone, now)]
        why_not = [why for backbone in sorted(backbones) for why in self._why_not.get(backbone, ())]
        if why_not and not releases:
            raise RolloutError(f"nothing is merged yet: {'; '.join(why_not)}")
        return releases

    def tag(self, device: str, tags: dict[str, str], now: Now) -> dict[str, str]:
        """Give a device tags, or take those with the value "" away; groups by such a tag are merged anew.

        Returns:
            All that it has now.

        Raises:
            RolloutError: An unknown device, or a tag that is none.
        """
        row = self._store.device(device)
        if row is None:
            raise RolloutError(f"unknown device {device}; `edge-fleet devices` lists them")
        for key, value in tags.items():
            if not re.fullmatch(TAG, key) or not (value == "" or re.fullmatch(TAG, value)):
                raise RolloutError(
                    f"tag {key[:80]}={value[:80]}: expected at most 64 letters, digits, dots, dashes, underscores"
                )
        self._store.tag(device, tags)
        by = self._config.policy.merge_by
        if self._config.auto_merge and by in {BY_TAG + key for key in tags}:
            for backbone in {each.backbone for each in self._store.models(device)}:
                if self._store.bundle_of(backbone):
                    self._merge_due_s.setdefault(backbone, now.s + self._config.merge_delay_s)
        self._next_reassert_s = now.s
        return self._store.tags(device).get(device, {})

    def forget(self, device: str, now: Now) -> dict[str, Any]:
        """Delete what a device contributed; the next merge is made without it, and nothing of it is taken again.

        Returns:
            ``device``, ``statistics`` and ``changes`` (contributions deleted), ``samples`` behind them,
            ``merged_statistics`` and ``merged_changes`` (those that an earlier merge included), ``copies`` (other
            devices with a copy of its state folder, deleted too) and ``merge``: ``now``, ``asked`` (it waits for
            `merge_now`) or ``none`` (there is nothing to merge anew).

        Raises:
            RolloutError: The device never contributed, or was forgotten already.
        """
        rows = self._store.forget(device, now.wall_ms)
        if not rows:
            raise RolloutError(
                f"nothing that {device} learned is here, or it was forgotten already; `edge-fleet devices` lists those "
                f"that were seen"
            )
        needed = {row.digest for row in self._store.contributions()} | {row.digest for row in self._store.releases()}
        for row in rows:
            if row.digest not in needed:
                self._artifacts.remove(row.digest)
        kinds = {kind: [row for row in rows if row.learner == kind] for kind in ("statistics", "delta")}
        is_pending = bool({row.backbone for row in rows} & self._store.to_be_unlearned())
        n_samples = sum(row.n_samples for row in rows)
        self._note(device, "forgotten", f"{len(rows)} contributions, {n_samples} labelled samples", now)
        self._check_merges = True
        return {
            "device": device,
            "statistics": len(kinds["statistics"]),
            "changes": len(kinds["delta"]),
            "samples": n_samples,
            "merged_statistics": sum(row.merged_version >= 0 for row in kinds["statistics"]),
            "merged_changes": sum(row.merged_version >= 0 for row in kinds["delta"]),
            "copies": sorted({row.device for row in rows} - {device}),
            "merge": ("now" if self._config.auto_merge else "asked") if is_pending else "none",
        }

    def _fresh(self) -> list[ContributionRow]:
        """What no merge has looked at yet."""
        refused = {(row.device, row.lineage, row.backbone): row.version for row in self._store.refused()}
        return [
            row
            for row in self._store.contributions()
            if row.version > max(row.merged_version, refused.get((row.device, row.lineage, row.backbone), -1))
        ]

    def _merge(self, backbone: str, now: Now) -> list[ReleaseRow]:
        """Merge; without a release, and the contributions as they were, when that cannot be done."""
        self._merge_due_s.pop(backbone, None)
        try:
            return self._merged(backbone, now)
        except Exception as exc:  # noqa: BLE001  # as `Events.survived`, and it is tried again
            self.events.unforeseen("", "merge-failed", f"merging for {backbone[:12]}", exc, now)
            if self._config.auto_merge:
                self._merge_due_s[backbone] = now.s + MERGE_AGAIN_S
        return []

    def _merged(self, backbone: str, now: Now) -> list[ReleaseRow]:
        """Merge group by group, and push each head to those that it is meant for."""
        self._why_not[backbone] = []
        bundle = self._bundle(backbone)
        if bundle is None:
            return []
        gathered = self._gather(backbone, bundle, now)
        rows = {update.lineage: row for row, update in gathered}
        contributions = [(row.device, update) for row, update in gathered]
        parts = groups(bundle, contributions, self._config.policy.merge_by, self._store.tags())
        is_pending = backbone in self._store.to_be_unlearned()
        merges: dict[tuple[str, ...], Merge] = {}
        if is_pending and EVERYBODY not in parts:  # whoever is in no group any more has what is to be forgotten
            merges[EVERYBODY] = Merge(release=shipped_head(bundle), is_exact=True)
        for meant_for, part in parts.items():
            found = self._merge_group(bundle, meant_for, part, is_pending, now)
            if found is not None:
                merges[meant_for] = found
        left_out: list[RefusedRow] = []
        releases = []
        for i, (meant_for, found) in enumerate(merges.items()):
            looked_at = [rows[update.lineage] for _, update in parts.get(meant_for, ())]
            kept, was_left_out = self._left_out(backbone, found, looked_at, now)
            left_out += kept
            self._why_not[backbone] += self._tell_who_waits(found, rows, now)
            # A change is not in a sum of statistics.
            out = {**found.left_out, **found.waiting}
            used = [r for r in looked_at if r.lineage not in out and (r.learner == "statistics") == found.is_exact]
            is_anew = found.is_exact or not is_pending
            if not is_anew:  # there is no sum of others, and what devices have still contains what was forgotten
                used = []
            published = found if is_anew else Merge(release=shipped_head(bundle), is_exact=True)
            is_news = is_pending or was_left_out or any(row.version > row.merged_version for row in used)
            if is_news or self._is_new_group(backbone, meant_for):
                is_last = i == len(merges) - 1
                releases += self._publish_merge(backbone, meant_for, published, used, is_pending, is_last, now)
        self._store.refuse(backbone, left_out)  # only now: a merge that fails looks at them again
        return releases

    def _merge_group(
        self, bundle: Bundle, meant_for: tuple[str, ...], part: list[tuple[str, HeadUpdate]], is_pending: bool, now: Now
    ) -> Merge | None:
        """What becomes of the contributions of one group; None when they cannot be merged."""
        backbone = bundle.manifest.backbone_digest
        current, counter, names = self._current_head(backbone, bundle, meant_for)
        try:
            return merge(
                bundle,
                part,
                current,
                counter,
                # Statistics are all summed anew: what is in this merge, only this merge says.
                {r.lineage: r.merged_version for r in self._merged_before(backbone) if r.learner == "delta"},
                policy=self._config.policy,
                current_names=names,
                memory=self._store.memory(backbone),
                rng=self._rng,
            )
        except LearningError as exc:  # the same numbers fail again: it waits for others
            if is_pending and not any(update.learner == "statistics" for _, update in part):
                return Merge(release=None)
            self.events.fault("", "merge-failed", _of(meant_for) + str(exc), now, kind=str(exc))
            return None

    def _is_new_group(self, backbone: str, meant_for: tuple[str, ...]) -> bool:
        """Whether groups are made, and this one was never given a head."""
        of_backbone = [row for row in self._store.releases() if row.kind == "head" and row.backbone == backbone]
        return bool(self._config.policy.merge_by) and all(row.devices != list(meant_for) for row in of_backbone)

    def _tell_who_waits(self, found: Merge, rows: dict[str, ContributionRow], now: Now) -> list[str]:
        """Say what contributions and the merge lack."""
        for lineage, why in found.waiting.items():
            self.events.fault(rows[lineage].device, "merge-waits", why, now, kind=why)
        if found.why_not:
            self.events.fault("", "merge-waits", found.why_not, now, kind=found.why_not)
        told = [f"{rows[lineage].device}: {why}" for lineage, why in found.waiting.items()]
        return told + ([found.why_not] if found.why_not else [])

    def _merged_before(self, backbone: str) -> list[ContributionRow]:
        return [row for row in self._store.contributions(backbone) if row.merged_version >= 0]

    def _gather(self, backbone: str, bundle: Bundle, now: Now) -> list[tuple[ContributionRow, HeadUpdate]]:
        """What can be merged: the newest of each lineage, of changes those that no merge has in."""
        newest: dict[str, ContributionRow] = {}
        for row in sorted(self._store.contributions(backbone), key=lambda row: row.version):
            if row.lineage in newest:
                other = newest[row.lineage].device
                detail = f"it has a copy of the state folder of {other}; only one of them is counted"
                self._note(row.device, "copied-state", detail, now)
            newest[row.lineage] = row
        found = []
        for row in newest.values():
            if row.learner == "delta" and (row.version <= row.merged_version or row.base_release < row.merged_release):
                # A change is added once; statistics are summed anew each time. One that starts from before the last
                # merge contains what was merged then: the device sends another once it has the merged head.
                continue
            try:
                update = HeadUpdate.decode(self._artifacts.get(row.digest).path.read_bytes(), row.device)
                check_update(update, bundle)
            except EdgeError as exc:
                self.events.fault(row.device, "contribution-refused", str(exc), now, kind=row.digest)
                continue
            found.append((row, update))
        return found

    def _publish_merge(
        self,
        backbone: str,
        meant_for: tuple[str, ...],
        found: Merge,
        used: list[ContributionRow],
        is_pending: bool,
        is_last: bool,
        now: Now,
    ) -> list[ReleaseRow]:
        if found.release is None:
            return []
        before = self._store.memory(backbone)
        n_devices = len({row.device for row in used})
        reason = f"{_of(meant_for)}merge of {n_devices} devices, {found.release.n_samples} labelled samples"
        if is_pending:
            reason = f"{reason if used else 'the shipped head'}, without what was forgotten"
        release = self._store.release(
            kind="head",
            digest=self._artifacts.put(found.release.encode()).digest,
            backbone=backbone,
            devices=meant_for,
            reason=reason,
            now_ms=now.wall_ms,
            merged=used,
            memory=found.memory,
            without_forgotten=found.is_exact and is_last,
        )
        self._note("", "release", f"{release.counter}: {reason}", now)
        if found.memory.account not in (b"", before.account):
            delta = self._config.policy.privacy_delta
            epsilon = account_of(found.memory).epsilon(delta)
            detail = f"all merges with noise so far: epsilon {epsilon:.3g} at delta {delta:g}, of any one device"
            self._note("", "privacy", detail, now)
        self._next_reassert_s = now.s
        return [release]

    def _left_out(
        self, backbone: str, found: Merge, used: list[ContributionRow], now: Now
    ) -> tuple[list[RefusedRow], bool]:
        """Report what a merge left out.

        Returns:
            It, and whether something is left out now that the merge before had in.
        """
        if found.undecided:
            detail = f"{', '.join(found.undecided)} disagree with others but are no minority: merged all the same"
            self._note("", "screening-undecided", detail, now)
        before = {(row.device, row.lineage): row.reason for row in self._store.refused(backbone)}
        rows, was_left_out = [], False
        for row in used:
            if (reason := found.left_out.get(row.lineage)) is not None:
                kept = RefusedRow(device=row.device, lineage=row.lineage, backbone=backbone, reason=reason)
                kept.version = row.version
                rows.append(kept)
                if before.get((row.device, row.lineage)) != reason:
                    name = "left-out" if row.lineage in found.refused else "another-world"
                    self._note(row.device, name, f"{row.n_samples} samples not merged: {reason}", now)
                    was_left_out |= row.merged_version >= 0
        return rows, was_left_out

    def _current_head(
        self, backbone: str, bundle: Bundle, meant_for: tuple[str, ...]
    ) -> tuple[dict[str, FloatArray], int, tuple[str, ...]]:
        """The head that these were last given, its release counter, and its classes where some were added."""
        named = {row.model for row in self._store.models() if row.backbone == backbone}
        for row in self._store.releases():
            is_of_all = row.model == "" or named <= {row.model}
            is_theirs = row.devices in ([ALL_DEVICES], list(meant_for)) and is_of_all
            if row.kind == "head" and row.backbone == backbone and is_theirs:
                data = self._artifacts.get(row.digest).path.read_bytes()
                release = HeadRelease.decode(data, "the current head")
                return release.parameters, row.counter, release.class_names
        return bundle.head_parameters(), 0, ()

    # Time

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        reassert_s = self._next_reassert_s if self._connected else math.inf
        return min([reassert_s, self._next_housekeeping_s, *self._merge_due_s.values()])

    def tick(self, now: Now) -> list[Publish]:
        """Do what is due and give back what is to be sent. A step that fails is told, and those after it are done."""
        self.events.offer_again(now)
        self._keep_telemetry(now)
        if self._check_merges and now.s >= self._next_plan_s:
            self._next_plan_s = now.s + PLAN_AGAIN_S  # should it fail
            with self.events.survived("", "fault", "planning merges", now):
                self._plan_merges(now)
                self._check_merges, self._next_plan_s = False, -math.inf
        for backbone in [backbone for backbone, due_s in self._merge_due_s.items() if now.s >= due_s]:
            self._merge(backbone, now)
        if self._connected and now.s >= self._next_reassert_s:
            self._next_reassert_s = now.s + self._config.reassert_s
            with self.events.survived("", "fault", "telling devices what to run", now):
                self._reassert(now)
        if now.s >= self._next_housekeeping_s:
            self._next_housekeeping_s = now.s + HOUSEKEEPING_S
            with self.events.survived("", "fault", "deleting old telemetry", now):
                self._age(now)
        self._uploads.expire(now.s)
        out, self._out = self._out, []
        return out if self._connected else []

    def _age(self, now: Now) -> None:
        more_s = 0.0 if self._aged_s is None else max(now.s - self._aged_s, 0.0)
        self._store.aged(more_s, self._config.telemetry_days * _DAY_S)
        self._aged_s = now.s

    def _keep_telemetry(self, now: Now) -> None:
        """In one transaction; where that fails each for itself, so that one message costs no other."""
        rows, self._telemetry = self._telemetry, []
        try:
            self._store.telemetry(rows)
        except DatabaseError as exc:  # each for itself would wait as long
            self.events.unforeseen("", "fault", "keeping telemetry", exc, now)
        except Exception:  # noqa: BLE001  # it is told below, with the device
            for row in rows:
                with self.events.survived(row[0], "fault", "keeping telemetry", now):
                    self._store.telemetry([row])

    def _plan_merges(self, now: Now) -> None:
        """Set when to merge: soon when every device that is there has sent something new, else after the delay."""
        if not self._config.auto_merge:
            return
        for backbone in self._store.to_be_unlearned():
            if self._store.bundle_of(backbone) is not None:
                self._merge_due_s[backbone] = now.s
        fresh: dict[str, set[str]] = {}
        for row in self._fresh():
            fresh.setdefault(row.backbone, set()).add(row.device)
        for backbone, devices in fresh.items():
            if len(devices) < self._config.min_devices or self._store.bundle_of(backbone) is None:
                continue
            there = {row.id for row in self._store.devices() if row.online}
            online = there & {row.device for row in self._store.models() if row.backbone == backbone}
            due_s = now.s if online and online <= devices else now.s + self._config.merge_delay_s
            self._merge_due_s[backbone] = min(due_s, self._merge_due_s.get(backbone, math.inf))

    def _reassert(self, now: Now) -> None:
        """Tell every device that is not where it should be. The database says so, not the broker's memory."""
        for row in self._store.devices():
            if not row.born:
                self._meet(row.id, now)
                continue
            self._send_desired(row.id, now, only_late=True)

    def _note(self, device: str, name: str, detail: str, now: Now, model: str = "") -> None:
        self.events.note(device, name, detail, now, model)

    def _send(
        self, device: str, leaf: str, message: Message, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        self._publish(device, leaf, encode(message), qos=qos, retain=retain, expiry_s=expiry_s)

    def _publish(
        self, device: str, leaf: str, payload: bytes, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        topic = topics.build(self._config.fleet, device, leaf)
        self._out.append(Publish(topic=topic, payload=payload, qos=qos, retain=retain, expiry_s=expiry_s))


def _of(meant_for: tuple[str, ...]) -> str:
    """A group, before what is said of it."""
    return "" if meant_for == EVERYBODY else f"{', '.join(meant_for)}: "


def _as(model: str) -> str:
    """A model, behind what is said of a release; nothing where its backbone decides."""
    return f" for the model {model!r}" if model else ""


def _kind(leaf: str) -> str:
    """A leaf without what a device chooses."""
    return "/".join(leaf.split("/")[:2])
