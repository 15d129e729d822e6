"""Who is in the fleet: what a device says of itself makes what is known of it.

The decisions are functions of values, and `Registry` keeps what they decide. Late, repeated and made up messages change
nothing but when a device was last heard.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge.channel import confusion
from edge.channel.messages import EXPERTS, Birth, Conn, Event, History, Served, State
from edge.contract.clock import Now
from edge.contract.errors import ResourceError, RolloutError
from edge.contract.names import is_model_name, is_passing
from edge.coordinator.devices.clones import Life, Lives, Seen
from edge.coordinator.events import Events
from edge.coordinator.machine.room import Level, Room
from edge.coordinator.records import (
    APPROVED,
    DECOMMISSIONED,
    Confusion,
    Device,
    KnownDevice,
    LoggedEvent,
    Model,
    TelemetryEntry,
)
from edge.coordinator.store.database import DatabaseError
from edge.coordinator.store.store import Store
from edge.merging.policy import TAG

log = logging.getLogger("edge.coordinator")

_LONGEST_INTERVAL_S = 1e9
# Of one device: tags that people give it, and what it says of itself as it likes, in words of so many characters.
MAX_TAGS, MAX_FACTS, MAX_CHARS = 64, 32, 200
# States that say that a model has dealt with a release.
_DEALT_WITH = ("probation", "active", "refused", "rolled-back")


def set_up_anew(known: KnownDevice, message: Conn | Birth, *, is_reborn: bool = False) -> tuple[KnownDevice, bool]:
    """Take another state folder under the same name for what it is: all numbers begin anew within it.

    Args:
        known: The device as it was.
        message: What it said.
        is_reborn: Whether it counts anew in the same state folder: an older copy of that.

    Returns:
        The device, and whether that is so.
    """
    device = known.device
    if message.state_id in ("", device.state_id) and not is_reborn:
        return known, False
    # Where the folder was not known so far, an agent was perhaps only updated; then its numbers go on.
    is_new = device.state_id != "" or message.session < device.session
    device, models = replace(device, state_id=message.state_id), known.models
    if is_new:
        device = replace(device, session=0, boot=0, epoch=device.epoch + 1)
        models = tuple(
            replace(model, state_seq=0, state="", state_release=0, state_detail="", experts={}) for model in models
        )
    return KnownDevice(device=device, models=models), is_new


def after_conn(known: KnownDevice, message: Conn, *, is_reborn: bool = False) -> tuple[KnownDevice, bool]:
    """A device came or went. An offline of an older session than the last online is dropped.

    Args:
        known: The device as it was.
        message: What it said.
        is_reborn: Whether it counts anew in the same state folder: an older copy of that.

    Returns:
        The device, and whether it was set up anew.
    """
    folder = known.device.state_id
    if not message.online and folder and message.state_id not in ("", folder):
        return known, False  # the last word of a folder that is gone
    known, is_new = set_up_anew(known, message, is_reborn=is_reborn)
    if message.session >= known.device.session:
        device = replace(known.device, online=message.online, session=message.session, boot=message.boot)
        known = replace(known, device=device)
    return known, is_new


def after_birth(
    known: KnownDevice,
    message: Birth,
    name_of: Callable[[str], str],
    is_ours: Callable[[int], bool],
    *,
    is_kept: bool = False,
) -> tuple[KnownDevice, bool]:
    """A device said what it is and runs.

    Args:
        known: The device as it was.
        message: What it said.
        name_of: By a backbone, the name of a bundle that is known here; "" for none.
        is_ours: Whether there is a release of this counter.
        is_kept: Whether the broker kept it: then telemetry of the same session was said later, and its numbers stay.

    Returns:
        The device, and whether it was set up anew.
    """
    known, is_new = set_up_anew(known, message)
    is_old = is_kept and not is_new and known.device.born and message.session <= known.device.session
    device = replace(
        known.device,
        born=True,  # whether it is online, Conn says: a birth may be an old one that the broker kept
        session=max(known.device.session, message.session),
        boot=message.boot,
        agent_version=message.agent_version,
        profile=message.profile,
        hardware=_bounded(message.hardware),
        seal_key=message.seal_key,
        telemetry_s=_interval_s(message, known.device),
        evaluates=message.evaluates,
    )
    before = {model.model: model for model in known.models}
    models = []
    for position, served in enumerate(message.models or (_only_model(message, name_of),)):
        is_nameless = not message.models and len(before) == 1  # then it goes on under the name that it has
        name = served.model if not is_nameless or "" in before else next(iter(before))
        model = before.pop(name, None)
        if model is None and len(message.models) <= 1 and "" in before:  # its name is known by now
            model = before.pop("")
        is_known = is_old and model is not None and model.bundle == served.bundle
        model = replace(
            model or Model(device=device.id),
            model=name,
            position=position,
            bundle=served.bundle,
            backbone=served.backbone,
            head=served.head,
            release=served.release,
            samples=model.samples if is_known and model is not None else served.n_labels,
        )
        if model.state == "refused" and is_ours(model.state_release):  # a device does not count what it refused
            model = replace(model, release=max(model.release, model.state_release))
        models.append(model)
    return KnownDevice(device=device, models=tuple(models)), is_new


def _interval_s(message: Birth, device: Device) -> float:
    """Seconds between two telemetry messages, as it says; devices of before do not."""
    said = message.limits.get("telemetry_s", device.telemetry_s)
    return float(said) if isinstance(said, int | float) and 0 <= said < _LONGEST_INTERVAL_S else 0.0


def _only_model(message: Birth, name_of: Callable[[str], str]) -> Served:
    """What a device says that knows of one model only; named as its bundle is, where that is known."""
    name = name_of(message.backbone) if message.backbone else ""
    return Served(
        model=name if is_model_name(name) else "",
        bundle=message.bundle,
        backbone=message.backbone,
        head=message.head,
        release=message.release,
        n_labels=message.n_labels,
    )


def after_state(known: KnownDevice, message: State, is_ours: Callable[[int], bool]) -> KnownDevice | None:
    """A slot changed its state; None when a newer one is known, or the device does not have the model any more."""
    known, model = with_model(known, message.model)
    is_gone = known.device.state_id and message.state_id not in ("", known.device.state_id)
    if model is None or is_gone or message.seq <= model.state_seq:
        return None
    now = replace(
        model,
        state_seq=message.seq,
        state=message.state,
        state_detail=message.detail,
        state_release=message.release,
    )
    # What a device refuses counts where it is of ours: anybody may have made it up.
    if message.state in _DEALT_WITH and (message.state != "refused" or is_ours(message.release)):
        now = replace(now, release=max(now.release, message.release))
    return _with(known, model, now)


def after_telemetry(known: KnownDevice, values: Mapping[str, Any]) -> KnownDevice:
    """A device said how its models are: what is shown of them without looking at telemetry."""
    name = values.get("model", "")
    known, model = with_model(known, name if isinstance(name, str) and is_model_name(name) else "")
    if model is None:
        return known
    news: dict[str, Any] = {}
    if type(samples := values.get("samples", model.samples)) is int and samples != model.samples:
        news["samples"] = samples
    if (experts := values.get(EXPERTS, model.experts)) != model.experts:
        news["experts"] = experts
    return _with(known, model, replace(model, **news)) if news else known


def with_model(known: KnownDevice, name: str) -> tuple[KnownDevice, Model | None]:
    """The model that a message is of, known by now; None for one that the device does not have any more.

    Devices from before there were several say no name, or one that their birth did not say.
    """
    found = next((model for model in known.models if model.model == name), None)
    if found is not None:
        return known, found
    if len(known.models) == 1 and "" in (name, known.models[0].model):
        return known, known.models[0]
    if known.device.born:
        return known, None
    new = Model(device=known.device.id, model=name)
    return replace(known, models=(*known.models, new)), new


def _with(known: KnownDevice, before: Model, now: Model) -> KnownDevice:
    models = tuple(now if model is before else model for model in known.models)
    return KnownDevice(device=known.device, models=models)


# Between two transactions that keep telemetry: what came in less is lost when the process is killed. Shorter after one
# that kept many: what a transaction costs is little beside so many messages.
KEEP_EVERY_S, _MANY = 0.5, 100


class Registry:
    """See the module.

    Args:
        store: The database.
        events: For what people should see.
        admission: Of devices that nobody knows.
        clone: Is told of a name that several devices go by, and how that is known.
        room: On the disk of the database; None where that is not looked at.
        watch: Is given the telemetry of each device as it comes.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        admission: str = APPROVED,
        clone: Callable[[str, str, Now], None] | None = None,
        room: Room | None = None,
        watch: Callable[[str, Mapping[str, Any], Now], None] | None = None,
    ) -> None:
        self._room = Room() if room is None else room
        self._store = store
        self._events = events
        self._admission = admission
        self._clone = clone
        self._watch = watch
        self.lives = Lives()
        self._telemetry: list[tuple[str, Mapping[str, Any], int]] = []
        self._next_keep_s = -math.inf
        self._born: set[str] = set()

    def conn(self, device: str, message: Conn, now: Now) -> bool:
        """A device came or went; whether it was set up anew.

        Who went is not heard by it: it may be the broker that says so, long after the device fell silent.
        """
        seen = Seen.SAME
        if message.online and message.state_id:
            seen = self.lives.meet(device, Life(message.state_id, message.session, message.ts_ms))
        with self._store.transaction():
            before, heard = self._heard(device, now.wall_ms, is_word=message.online)
            known, is_new = heard, False
            if seen is not Seen.LATE:
                is_reborn = seen is Seen.ANEW or (message.online and message.boot < heard.device.boot)
                known, is_new = after_conn(heard, message, is_reborn=is_reborn and message.state_id != "")
            self._store.devices.keep(known, before)
            self._forget_confusions(heard, known, is_new)
        if known.device.online != heard.device.online:
            log.info("%s %s", device, "joined" if known.device.online else "left")
        return self._told_anew(heard.device, message, is_new, seen, now)

    def birth(self, device: str, message: Birth, now: Now, *, is_kept: bool = False) -> bool:
        """A device said what it is and runs, or the broker kept that; whether it was set up anew."""
        with self._store.transaction():
            before, heard = self._heard(device, now.wall_ms, is_word=not is_kept)
            known, is_new = after_birth(heard, message, self._name_of, self._is_ours, is_kept=is_kept)
            self._store.devices.keep(known, before)
            self._forget_confusions(heard, known, is_new)
        if (kept := len(known.device.hardware)) < (n := len(message.hardware)):
            detail = f"{n} facts about itself: {kept} are kept, plain and short ones, the first by name"
            self._events.fault(device, "too-much-said", detail, now)
        is_back = message.state_id in self.lives.folders(device)
        return self._told_anew(heard.device, message, is_new, Seen.TURNS if is_back else Seen.ANEW, now)

    def state(self, device: str, message: State, now: Now, *, is_kept: bool = False) -> bool:
        """A slot changed its state, or what it counted in it, or the broker kept that; whether that is news."""
        with self._store.transaction():
            before, heard = self._heard(device, now.wall_ms, is_word=not is_kept)
            known = after_state(heard, message, self._is_ours)
            self._store.devices.keep(known or heard, before)
            is_gone = heard.device.admission == DECOMMISSIONED
            if known is not None and message.detail and not is_gone and _standings(known) != _standings(heard):
                detail = f"release {message.release}: {message.detail}"
                self._events.note(device, message.state, detail, now, message.model)
        return known is not None

    def event(self, device: str, message: Event, now: Now) -> None:
        """Something happened on a device. Of one that was decommissioned nothing is kept but that it was heard."""
        with self._store.transaction():
            if self._store.devices.hear(device, now.wall_ms, self._admission) != DECOMMISSIONED:
                self._store.events.add(_logged(device, message, now.wall_ms))

    def history(self, device: str, message: History, now: Now) -> None:
        """What a device could not say when it was, with its own time; durable when this returns, repeats dropped.

        Raises:
            ResourceError: There is no room; the device keeps it, and says it again.
        """
        if self._room.now() is Level.NO_TELEMETRY:
            raise ResourceError("there is no room for telemetry: the device keeps it, and says it again")
        with self._store.transaction():
            if self._store.devices.hear(device, now.wall_ms, self._admission) == DECOMMISSIONED:
                return  # it need not say it again
            for event in message.events:
                self._store.events.add(_logged(device, event, min(event.ts_ms, now.wall_ms)))
            entries = [_entry(device, values, _made_ms(values, now)) for values in message.telemetry]
            self._store.telemetry.add(entries)
            known = self._store.devices.known(device)
            self._keep_confusions(entries, {} if known is None else {device: known})

    def telemetry(self, device: str, values: Mapping[str, Any], now: Now) -> None:
        """A device measured something; kept by the next `keep_telemetry`."""
        self._telemetry.append((device, values, now.wall_ms))
        if self._watch is not None:
            self._watch(device, values, now)

    @property
    def next_deadline_s(self) -> float:
        """Call `keep_telemetry` at this time at the latest."""
        return self._next_keep_s if self._telemetry else math.inf

    def keep_telemetry(self, now: Now, *, at_once: bool = False) -> None:
        """Keep what came, not more often than each `KEEP_EVERY_S`: a transaction costs as much as many messages.

        Where a transaction fails each is kept for itself, so that one message costs no other.
        """
        if not self._telemetry or (now.s < self._next_keep_s and not at_once):
            return
        messages, self._telemetry = self._telemetry, []
        self._next_keep_s = now.s + KEEP_EVERY_S / (1 + len(messages) / _MANY)
        if messages and self._room.now() is Level.NO_TELEMETRY:
            detail = f"{len(messages)} telemetry messages dropped: the disk is nearly full"
            self._events.fault("", "telemetry-dropped", detail, now)
            return
        try:
            self.keep(messages)
        except DatabaseError as exc:  # each for itself would wait as long
            self._events.unforeseen("", "fault", "keeping telemetry", exc, now)
        except Exception:  # noqa: BLE001  # it is told below, with the device
            for message in messages:
                with self._events.survived(message[0], "fault", "keeping telemetry", now):
                    self.keep([message])

    def keep(self, messages: Sequence[tuple[str, Mapping[str, Any], int]]) -> None:
        """Keep telemetry, all of it or none: by device what it measured, and when that came; repeats are dropped."""
        if not messages:
            return
        entries = []
        with self._store.transaction():
            heard_ms = {device: now_ms for device, _, now_ms in messages}
            before = self._store.devices.measured_of(heard_ms)
            known = {
                device: before.get(device) or self._heard_of(device, None, now_ms)
                for device, now_ms in heard_ms.items()
            }
            for device, values, now_ms in messages:
                if known[device].device.admission == DECOMMISSIONED:
                    continue
                known[device] = after_telemetry(known[device], values)
                entries.append(_entry(device, values, now_ms))
            self._store.devices.hear_all({device: heard_ms[device] for device in before})
            self._store.devices.keep_all((each, before.get(device)) for device, each in known.items())
            self._store.telemetry.add(entries)
            self._keep_confusions(entries, known)

    def _keep_confusions(self, entries: Sequence[TelemetryEntry], known: Mapping[str, KnownDevice]) -> None:
        """Keep what models answered to labels, of messages that say it."""
        for each in entries:
            text, name = each.values.get(confusion.KEY), each.values.get("model", "")
            if isinstance(text, str) and isinstance(name, str) and each.device in known:
                _, model = with_model(known[each.device], name)
                if model is not None:
                    counts = confusion.read(text)
                    self._store.confusions.keep(
                        Confusion(device=each.device, model=model.model, said_ms=each.received_ms, counts=counts)
                    )

    def _forget_confusions(self, before: KnownDevice, known: KnownDevice, is_new: bool) -> None:
        """What another bundle, or another state folder, answered says nothing of this one."""
        bundles, name = {model.model: model.bundle for model in known.models}, before.device.id
        gone = [model.model for model in before.models if is_new or bundles.get(model.model) != model.bundle]
        for model in gone:
            self._store.confusions.forget(name, model)
        if gone:  # nor what came before this, and is not kept yet
            self._telemetry = [
                (device, {**values, confusion.KEY: ""} if device == name and confusion.KEY in values else values, ms)
                for device, values, ms in self._telemetry
            ]

    def forget(self, device: str) -> int:
        """Delete what a device measured, and what it said of its experts; how many messages there were."""
        waiting = [each for each in self._telemetry if each[0] == device]
        with self._store.transaction():
            known = self._store.devices.known(device)
            if known is not None:
                models = tuple(replace(model, experts={}) for model in known.models)
                self._store.devices.keep(replace(known, models=models), known)
            self._store.confusions.forget(device)
            n = self._store.telemetry.forget(device)
        self._telemetry = [each for each in self._telemetry if each[0] != device]
        return n + len(waiting)

    def is_born(self, device: str) -> bool:
        """Whether a device has introduced itself."""
        if device not in self._born:
            found = self._store.devices.get(device)
            if found is None or not found.born:
                return False
            self._born.add(device)  # who has will not be unborn, and it is asked with each message
        return True

    def tag(self, device: str, tags: Mapping[str, str]) -> dict[str, str]:
        """Give a device tags, or take those with the value "" away.

        Returns:
            All that it has now.

        Raises:
            RolloutError: An unknown device, or a tag that is none.
        """
        if self._store.devices.get(device) is None:
            raise RolloutError(f"unknown device {device[:80]}; `edge-fleet devices` lists them")
        self.check_tags(tags)
        kept = self._store.devices.tags(device).get(device, {}) | dict(tags)
        if (n := sum(value != "" for value in kept.values())) > MAX_TAGS:
            raise RolloutError(f"{device} would have {n} tags: expected at most {MAX_TAGS}; KEY= takes one away")
        self._store.devices.tag(device, tags)
        return self._store.devices.tags(device).get(device, {})

    @staticmethod
    def check_tags(tags: Mapping[str, str]) -> None:
        """Raise RolloutError for a tag that is none; the value "" is that of one to be taken away."""
        if len(tags) > MAX_TAGS:
            raise RolloutError(f"{len(tags)} tags: expected at most {MAX_TAGS}")
        for key, value in tags.items():
            if not re.fullmatch(TAG, key) or not (value == "" or re.fullmatch(TAG, value)):
                raise RolloutError(
                    f"tag {key[:80]}={value[:80]}: expected at most 64 letters, digits, dots, dashes, underscores"
                )

    def _heard(self, device: str, now_ms: int, *, is_word: bool) -> tuple[KnownDevice | None, KnownDevice]:
        """A device of which something is said now, as it was, and with that; `is_word`: the device says it itself."""
        before = self._store.devices.known(device)
        if before is not None and not is_word:
            return before, before
        return before, self._heard_of(device, before, now_ms)

    def _heard_of(self, device: str, before: KnownDevice | None, now_ms: int) -> KnownDevice:
        """A device as it was, None for one that nobody knows, heard now."""
        new = Device(id=device, first_seen_ms=now_ms, admission=self._admission)
        return _heard_at(before or KnownDevice(device=new), now_ms)

    def _told_anew(self, before: Device, message: Conn | Birth, is_new: bool, seen: Seen, now: Now) -> bool:
        if seen is Seen.TURNS and (is_new or isinstance(message, Conn)):
            folders = sorted({before.state_id, message.state_id, *self.lives.folders(before.id)} - {""})
            if len(folders) > 1:
                which = f"their state folders {', '.join(folders[:4])}"
            else:
                which = f"copies of the state folder {folders[0]} (boot {before.boot} and {message.boot})"
            detail = (
                f"several devices go by this name: {which} take turns, and each pushes the others off the broker; give "
                f"each its own --device"
            )
            self._events.fault(before.id, "same-name", detail, now)
            if self._clone is not None:
                self._clone(before.id, detail, now)
        elif is_new:
            detail = "another state folder under this name: it was set up anew, or two devices have this name"
            of_one = is_passing(message.state_id, before.state_id) or is_passing(before.state_id, message.state_id)
            if of_one:
                detail = "its disk takes, or took, no count of its starts: its numbers begin anew"
            elif before.state_id == message.state_id:
                detail = "an older copy of its state folder: it was set up from an image, or two devices have this name"
            self._events.fault(before.id, "set-up-anew", detail, now)
        return is_new

    def _name_of(self, backbone: str) -> str:
        found = self._store.releases.bundle_of(backbone)
        return "" if found is None else found.name

    def _is_ours(self, counter: int) -> bool:
        return self._store.releases.get(counter) is not None


def _standings(known: KnownDevice) -> list[tuple[str, int, str, str]]:
    """Where the slots stand, in words."""
    return [(each.model, each.state_release, each.state, each.state_detail) for each in known.models]


def _heard_at(known: KnownDevice, now_ms: int) -> KnownDevice:
    return KnownDevice(device=replace(known.device, last_seen_ms=now_ms), models=known.models)


def _logged(device: str, event: Event, at_ms: int) -> LoggedEvent:
    return LoggedEvent(
        device=device,
        name=event.name,
        detail=event.detail,
        at_ms=at_ms,
        model=event.model,
        boot=event.boot,
        seq=event.seq,
        state_id=event.state_id,
    )


def _bounded(said: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a device says as it likes what is plain and short, and of that the first by name."""
    plain = {
        key: value
        for key, value in said.items()
        if len(key) <= MAX_CHARS and (value is None or isinstance(value, bool | int | float | str))
        and len(str(value)) <= MAX_CHARS
    }  # fmt: skip
    return {key: plain[key] for key in sorted(plain)[:MAX_FACTS]} if len(plain) > MAX_FACTS else plain


def _entry(device: str, values: Mapping[str, Any], received_ms: int) -> TelemetryEntry:
    folder = values.get("state_id", "")
    return TelemetryEntry(
        device=device,
        boot=values.get("boot", 0),
        seq=values.get("seq", 0),
        received_ms=received_ms,
        values=dict(values),
        state_id=folder[:64] if isinstance(folder, str) else "",
    )


def _made_ms(values: Mapping[str, Any], now: Now) -> int:
    """When telemetry would have come, had there been a line: a device whose clock is ahead has no say in that."""
    found = values.get("ts", 0)
    return min(found, now.wall_ms) if type(found) is int and found >= 0 else now.wall_ms
