"""Checkpoints: the last ones of each model of a device, and who takes them up.

An order (send one, take one up, contribute now) is a row that is said to the device until the device answers: over its
restarts and ours, and when it is there only days later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from edge.channel.messages import Command, Event, Reply, Restore
from edge.contract.clock import Now
from edge.contract.digest import short
from edge.contract.errors import BundleError, EdgeError, RolloutError
from edge.contract.sealing import key_name
from edge.coordinator.events import Events
from edge.coordinator.records import KeptCheckpoint, Order, not_before
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.going_back import fates
from edge.coordinator.rollout.states import FAILURES
from edge.coordinator.store.store import Store
from edge.learning.checkpoint import Checkpoint, Facts

# Of each model of a device.
KEPT = 2
CHECKPOINT, RESTORE, SYNC = "checkpoint", "restore", "sync"
# What a device calls it that it has not taken up a checkpoint yet.
RESTORE_WAITS = "restore-waits"
ToSay = Command | Restore


class Checkpoints:
    """See the module.

    Args:
        store: The database.
        artifacts: Files by digest.
        events: For what people should see.
    """

    def __init__(self, store: Store, artifacts: ArtifactStore, events: Events) -> None:
        self._store = store
        self._kept = store.checkpoints
        self._artifacts = artifacts
        self._events = events

    # What comes in

    def take(self, device: str, data: bytes, now: Now) -> KeptCheckpoint:
        """Keep a checkpoint that a device sent; durable when this returns.

        Raises:
            BundleError: It is damaged, or says what cannot be.
        """
        what = f"the checkpoint of {device}"
        facts = Checkpoint.decode(data, what).facts
        if facts.device != device:
            raise BundleError(f"{what} says that it is of {facts.device[:64]}")
        newest = max((each.counter for each in self._store.releases.all()), default=0)
        if facts.release > newest:
            raise BundleError(f"{what} names the release {facts.release}, the newest is {newest}")
        found = self._keep(device, facts, data, now)
        done = f"{facts.samples} labels, {short(found.digest)}"
        for order in self._kept.open_orders(device):
            if order.kind == CHECKPOINT and order.model in ("", facts.model):
                self._kept.order(replace(order, state="done", detail=done))
        self._events.note(device, "checkpoint-kept", done, now, facts.model)
        return found

    def _keep(self, device: str, facts: Facts, data: bytes, now: Now) -> KeptCheckpoint:
        found = KeptCheckpoint(
            device=device,
            model=facts.model,
            digest=self._artifacts.put(data).digest,
            backbone=facts.backbone,
            lineage=facts.lineage,
            learners=", ".join(facts.learners),
            samples=facts.samples,
            release=facts.release,
            made_ms=facts.made_ms,
            received_ms=now.wall_ms,
            has_samples=facts.has_samples,
            sealed_to=facts.sealed_to,
            size_bytes=len(data),
        )
        with self._store.transaction():
            self._kept.keep(found)
            gone = self._kept.of(device, facts.model)[KEPT:]
            for each in gone:
                self._kept.delete(each)
        self._remove({each.digest for each in gone})
        return found

    def _remove(self, digests: set[str]) -> None:
        """Delete files that nobody names any more."""
        needed = self._kept.digests() | {each.digest for each in self._store.contributions.all()}
        needed |= {each.digest for each in self._store.releases.all()}
        for digest in digests - needed:
            self._artifacts.remove(digest)

    def forget(self, device: str) -> int:
        """Delete all checkpoints of a device, and those of devices that went on from them; how many there were."""
        own = self._kept.of(device)
        rows = [*own, *self._kept.of_lineages({row.lineage for row in own})]
        with self._store.transaction():
            for row in rows:
                self._kept.delete(row)
        gone = {row.digest for row in rows}
        self._remove(gone)
        return len(gone)

    def data(self, digest: str) -> bytes:
        """A checkpoint, to be downloaded.

        Raises:
            RolloutError: There is none, or it changed on disk.
        """
        if digest not in self._kept.digests():
            raise RolloutError(f"there is no checkpoint {digest[:12]}; `edge-fleet device checkpoints` lists them")
        return self._artifacts.get(digest).path.read_bytes()

    # What devices are to do

    def ask(self, device: str, model: str, now: Now, kind: str) -> Order:
        """Have a device send a checkpoint, of one model or of all; or, with `SYNC`, what it has to contribute.

        Raises:
            RolloutError: There is no such device or model.
        """
        if model not in ("", *self._models(device)):
            raise RolloutError(f"{device} has no model {model[:80]}")
        same = [order for order in self._kept.open_orders(device) if (order.kind, order.model) == (kind, model)]
        return same[0] if same else self._order(Order(number=0, device=device, model=model, kind=kind), now)

    def restore(
        self,
        device: str,
        source: str,
        now: Now,
        *,
        model: str = "",
        digest: str = "",
        brought: bytes = b"",
        force: bool = False,
    ) -> Order:
        """Have a device take up what another one, or itself, had learned.

        Args:
            device: Takes it up.
            source: Whose checkpoint it is.
            now: The time.
            model: Of the source; "" for the only one.
            digest: Of the checkpoint, or how it begins; "" for the newest.
            brought: The same checkpoint, which somebody has opened and sealed for the device; b"" to send it as it is.
            force: Also where the source is there, and would go on beside it, or where it is of a head that fell.

        Raises:
            BundleError: What was brought is damaged.
            RolloutError: There is no such device, model or checkpoint, or it does not fit; nothing changed.
        """
        own = self._models(device)
        found = [each for each in self._kept.of(source, model) if each.digest.startswith(digest)]
        if not found:
            raise RolloutError(
                f"there is no such checkpoint of {source}; `edge-fleet device checkpoint {source}` asks for one, "
                f"`edge-fleet device checkpoints {source}` lists them"
            )
        if len({each.model for each in found}) > 1:
            raise RolloutError(f"{source} has checkpoints of several models; choose one with --model")
        one = found[0]
        name = one.model if one.model in own or len(own) != 1 else next(iter(own))
        if name not in own:
            raise RolloutError(f"{device} has no model {name}")
        self._fits(one, device, own[name], force=force)
        sealed_to, digest = one.sealed_to, one.digest
        if brought:
            facts = Checkpoint.decode(brought, "what was brought").facts
            if facts.lineage != one.lineage or facts.backbone != one.backbone:
                raise RolloutError(f"what was brought is no checkpoint of {source}")
            sealed_to, digest = facts.sealed_to, self._artifacts.put(brought).digest
        self._opens(device, sealed_to)
        with self._store.transaction():
            for earlier in self._kept.open_orders(device):
                if earlier.kind == RESTORE and earlier.model == name:
                    self._kept.order(replace(earlier, state="refused", detail="another one was ordered"))
            order = Order(
                number=0, device=device, model=name, kind=RESTORE, digest=digest, lineage=one.lineage, source=source
            )
            return self._order(order, now)

    def _fits(self, one: KeptCheckpoint, device: str, backbone: str, *, force: bool) -> None:
        if backbone != one.backbone:
            raise RolloutError(
                f"the checkpoint belongs to the backbone {short(one.backbone)}, {device} runs "
                f"{short(backbone) or 'an unknown one'}; give it the same bundle first"
            )
        if self._store.contributions.is_forgotten(one.lineage):
            raise RolloutError(f"what {one.device} learned was forgotten; nobody may go on from it")
        other = self._store.devices.get(one.device)
        if one.device != device and other is not None and other.online and not force:
            raise RolloutError(
                f"{one.device} is online: two devices would go on from one history, and a merge takes only one of "
                f"them; stop it first, or say --force"
            )

        release = self._store.releases.get(one.release)
        if force or release is None or release.kind != "head" or release.digest not in fates(self._store).fell:
            return
        theirs = [
            each for rollout, each in self._store.rollouts.of_devices(one.device) if rollout.plan.release == one.release
        ]
        if not any(each.model == one.model and each.state in FAILURES for each in theirs):  # it did not run that then
            raise RolloutError(
                f"the checkpoint was made with the head of release {one.release}, which never went through or was "
                f"taken back: {device} would run it; take another one with --digest (`edge-fleet device checkpoints "
                f"{one.device}`), or say --force"
            )

    def _opens(self, device: str, sealed_to: str) -> None:
        """Whether a device can open what is sealed to a key."""
        known = self._store.devices.get(device)
        own = "" if known is None or not known.seal_key else key_name(bytes.fromhex(known.seal_key))
        if sealed_to not in ("", own):
            raise RolloutError(
                f"the checkpoint is sealed to the key {sealed_to}; give the private one with --key, and it is sealed "
                f"anew to {device}" + ("" if own else ", which must run with --checkpoint-key")
            )

    def _models(self, device: str) -> dict[str, str]:
        """By its models, the backbones that a device has.

        Raises:
            RolloutError: It is not known.
        """
        found = {each.model: each.backbone for each in self._store.devices.models(device)}
        if self._store.devices.get(device) is None or not found:
            raise RolloutError(f"unknown device {device[:80]}; `edge-fleet device list` shows them")
        return found

    def _order(self, order: Order, now: Now) -> Order:
        number = max(now.wall_ms, self._kept.last_number() + 1)
        order = replace(order, number=number, at_ms=now.wall_ms, detail=self._not_before(order.device))
        self._kept.order(order)
        return order

    def _not_before(self, device: str) -> str:
        """What a device waits for that is not approved; "" for one that is."""
        known = self._store.devices.get(device)
        return "" if known is None else not_before(known)

    def to_say(self, device: str | None, chunk_bytes: Callable[[str], int], now: Now) -> Iterator[tuple[str, ToSay]]:
        """Open orders, as messages, of one device or of all.

        Args:
            device: None for all.
            chunk_bytes: Size of the chunks that arrive at a device.
            now: The time.
        """
        for order in self._kept.open_orders(device):
            if order.kind != RESTORE:
                args = {"model": order.model} if order.model else {}
                command = Command(id=f"{order.kind}-{order.number}", name=order.kind, args=args, ttl_s=60.0)
                yield order.device, command
                continue
            try:
                artifact = self._artifacts.get(order.digest, chunk_bytes(order.device))
                facts = Checkpoint.decode(artifact.path.read_bytes(), "it").facts
            except (EdgeError, OSError) as exc:
                self._end(order, "refused", f"the checkpoint cannot be read: {exc}", now)
                continue
            yield (
                order.device,
                artifact.ordered(
                    Restore, number=order.number, model=order.model, backbone=facts.backbone, ts_ms=order.at_ms
                ),
            )

    def replied(self, device: str, reply: Reply, now: Now) -> None:
        """A device answers: an order of its own ends. A checkpoint that is on its way is not there yet."""
        kind, _, text = reply.id.partition("-")
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else -1
        order = self._kept.get_order(number)
        if order is None or (order.device, order.kind, order.state) != (device, kind, "open"):
            return
        if reply.rc:
            self._end(order, "refused", reply.detail, now)
        elif kind == RESTORE:
            self._end(order, "done", reply.detail, now)
        elif kind == SYNC:
            samples = reply.out.get("samples")
            said = f"it sends what is new, of {samples} labels" if samples else ""
            if why := self._not_before(device):
                said = f"what is new, of {samples} labels, waits: {why}" if samples else why
            self._end(order, "done", said, now)

    def waits(self, device: str, event: Event) -> None:
        """A device says why it has not taken a checkpoint up yet: that is told to who asked for it."""
        for order in self._kept.open_orders(device):
            if order.kind == RESTORE and event.model in ("", order.model):
                self._kept.order(replace(order, detail=f"it waits: {event.detail}"[:500]))

    def _end(self, order: Order, state: str, detail: str, now: Now) -> None:
        self._kept.order(replace(order, state=state, detail=detail[:500]))
        event = f"{order.kind}-{'done' if state == 'done' else 'refused'}"
        self._events.note(order.device, event, detail, now, order.model)
        if order.digest:
            self._remove({order.digest})
