"""Questions: one label that a person gives, and that helps several devices.

Off unless the operator has devices asked. Then those that take part send sketches of samples whose label would help;
the sample that most devices have one like (`edge.merging.questions`) becomes a question, one at a time for each
backbone. Its answer is said to every device that has such a sample, until the device says what became of it.

Sketches are in memory only, until the next time that devices are asked; questions and labels are kept.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edge.channel.messages import Command, Reply
from edge.contract.clock import Now
from edge.contract.errors import EdgeError, RolloutError
from edge.coordinator.events import Events
from edge.coordinator.recent import MAX_REMEMBERED, Recent
from edge.coordinator.records import APPROVED, AlikeSample, FleetQuestion, Model, QuestionPicture
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.store.store import Store
from edge.learning.exchange import is_class_name
from edge.learning.labels import MAX_ID_LENGTH
from edge.learning.sketches import LENGTH
from edge.merging.questions import MOST_COMPARED, SPREAD_WEIGHT, Question, Sketch, best_question

SKETCHES, PICTURE, LABEL = "sketches", "picture", "label"
# What a device sends of one model at the most, and so many models in one round: as many sketches as are compared.
MOST_SKETCHES = 16
MOST_ASKED = MOST_COMPARED // MOST_SKETCHES
# After devices were asked, until what has come is looked at.
HEARD_S = 10.0
# A question that nobody answers ends, and so does a label whose device does not come.
QUESTION_S, LABEL_S = 86_400.0, 7 * 86_400.0
KEPT_S = 90 * 86_400.0
_LOOK_S = 600.0
_PNG = b"\x89PNG\r\n\x1a\n"


class Questions:
    """See the module.

    Args:
        store: The database.
        bundles: Say which classes there are.
        events: For what people should see.
        every_s: How often devices are asked for sketches; 0 for never.

    Attributes:
        to_say: By device, what it is asked for; the caller empties it.
    """

    def __init__(self, store: Store, bundles: Bundles, events: Events, every_s: float) -> None:
        self._store, self._log = store, store.questions
        self._bundles, self._events, self._every_s = bundles, events, every_s
        self._sketches: dict[tuple[str, str], tuple[str, list[Sketch]]] = {}  # by device and model: backbone, sketches
        self._asked: set[tuple[str, str]] = set()  # devices and models, in this round
        self._last = ("", "")  # device and model that were asked last: the next round begins behind
        self._declined = Recent[bool](MAX_REMEMBERED)  # devices that take no part, as they said since they came
        self._next_s = self._look_s = -math.inf
        self._heard_s = math.inf
        self.to_say: list[tuple[str, Command]] = []

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        asking_s = self._next_s if self._every_s else math.inf
        return min(self._look_s, self._heard_s, asking_s)

    def tick(self, now: Now, *, is_connected: bool) -> None:
        """End what nobody answers, ask devices for sketches, and a person for a label."""
        if now.s >= self._look_s:
            self._look_s = now.s + _LOOK_S
            self._end_old(now)
        if now.s >= self._heard_s:
            self._heard_s = math.inf
            self._ask_people(now)
        if self._every_s and now.s >= self._next_s:
            self._next_s = now.s + max(self._every_s, HEARD_S)  # not before this round is over
            if is_connected:
                self._ask_devices(now)

    # Devices

    def _ask_devices(self, now: Now) -> None:
        """Ask models for sketches, all in turn: of backbones about which no question is open."""
        busy = {each.backbone for each in self._log.open()}
        devices, models = self._store.devices.at_a_glance()
        there = {each.id for each in devices if each.born and each.admission == APPROVED and each.is_there(now.wall_ms)}
        meant = sorted(
            (each.device, each.model)
            for each in models
            if each.device in there
            and each.backbone
            and each.backbone not in busy
            and each.device not in self._declined
        )
        meant = [*(each for each in meant if each > self._last), *(each for each in meant if each <= self._last)]
        self._sketches.clear()
        self._asked = set(meant[:MOST_ASKED])
        for device, model in meant[:MOST_ASKED]:
            self._last = (device, model)
            args = {"model": model}
            command = Command(id=f"{SKETCHES}-{now.wall_ms}", name=SKETCHES, args=args, ttl_s=HEARD_S)
            self.to_say.append((device, command))
        if self._asked:
            self._heard_s = now.s + HEARD_S

    def born(self, device: str) -> None:
        """A device introduced itself: it may take part by now."""
        self._declined.pop(device, None)

    def replied(self, device: str, reply: Reply, now: Now) -> None:
        """A device answers: with sketches, or what became of a label."""
        kind, _, text = reply.id.partition("-")
        if kind == SKETCHES and self._asked:
            if reply.rc:
                self._declined[device] = True
            else:
                self._take(device, reply.out, now)
        elif text.isascii() and text.isdecimal() and len(text) < 16:
            if kind == LABEL:
                self._labelled(device, int(text), reply, now)
            elif kind == PICTURE and not reply.rc:
                self._pictured(device, int(text), reply.out.get("png"), now)

    def _take(self, device: str, said: Mapping[str, Any], now: Now) -> None:
        model = said.get("model")
        known = {each.model: each for each in self._store.devices.models(device)}
        if not isinstance(model, str) or model not in known or (device, model) not in self._asked:
            return
        if said.get("backbone") != known[model].backbone:
            return  # it runs something else by now, and will say so
        rows = said.get("sketches")
        try:
            found = [_sketch(known[model], row) for row in rows] if isinstance(rows, list) else []
        except ValueError as exc:
            self._events.fault(device, "bad-sketches", f"what it sent are no sketches: {exc}", now)
            return
        self._sketches[device, model] = known[model].backbone, found[-MOST_SKETCHES:]

    def _labelled(self, device: str, number: int, reply: Reply, now: Now) -> None:
        one = self._log.sample(number)
        if one is None or (one.device, one.state) != (device, "open"):
            return
        self._log.save_sample(replace(one, state="refused" if reply.rc else "taken", detail=reply.detail[:500]))
        rows = self._log.samples(one.question)
        if not any(each.state == "open" for each in rows):
            taken = [each for each in rows if each.state == "taken"]
            on = len({each.device for each in taken})
            text = f"question {one.question}: {len(taken)} of {len(rows)} samples have the label, on {on} devices"
            self._events.note("", "question-learned", text, now)

    def _pictured(self, device: str, number: int, png: object, now: Now) -> None:
        question = self._log.get(number)
        if question is None or (question.device, question.state) != (device, "open"):
            return
        if not isinstance(png, str) or not _decoded(png).startswith(_PNG):
            self._events.fault(device, "bad-picture", f"what it sent for question {number} is no PNG file", now)
            return
        self._log.keep_picture(QuestionPicture(question=number, png=png))

    def to_tell(self, device: str | None, now: Now) -> Iterator[tuple[str, Command]]:
        """Labels that devices have not answered to, of one device or of all."""
        for one, question in self._log.to_say(device):
            yield one.device, _label(one, question, now)

    # People

    def _ask_people(self, now: Now) -> None:
        """Of what has come, ask the question of each backbone that helps most devices."""
        of_backbones: dict[str, list[Sketch]] = {}
        for backbone, sketches in self._sketches.values():
            of_backbones.setdefault(backbone, []).extend(sketches)
        self._sketches.clear()
        self._asked.clear()
        for backbone, sketches in of_backbones.items():
            before = self._log.asked(backbone)
            new = [each for each in sketches if (each.device, each.model, each.id) not in before]
            found = best_question(sorted(new, key=lambda each: each.at_ms))
            if found is not None:
                self._open(backbone, found, now)

    def _open(self, backbone: str, found: Question, now: Now) -> None:
        asked = found.asked
        question = FleetQuestion(
            backbone=backbone,
            device=asked.device,
            model=asked.model,
            sample=asked.id,
            answered_ms=asked.at_ms,
            said=asked.answer,
            confidence=asked.confidence,
            devices=found.n_devices,
            samples=1 + len(found.alike),
            asked_ms=now.wall_ms,
        )
        everybody = [(asked, 1.0, 1.0), *((each, alike, SPREAD_WEIGHT) for each, alike in found.alike)]
        rows = [
            AlikeSample(
                question=0, device=each.device, model=each.model, sample=each.id, alike=round(alike, 4), weight=weight
            )
            for each, alike, weight in everybody
        ]
        kept = self._log.add(question, rows)
        args = {"model": kept.model, "sample": kept.sample}
        ask = Command(id=f"{PICTURE}-{kept.number}", name=PICTURE, args=args, ttl_s=QUESTION_S)
        self.to_say.append((kept.device, ask))
        text = f"{kept.number}: the class of {asked.id!r:.140} on {asked.device} would help {found.n_devices} devices"
        self._events.note("", "question", text, now)

    def classes(self, backbone: str) -> tuple[str, ...]:
        """Names of the classes that an answer may have; none where the bundle is not known here, or has no names."""
        try:
            bundle = self._bundles.of(backbone)
        except EdgeError:
            return ()
        return () if bundle is None else bundle.manifest.class_names

    def answer(self, number: int, label: str, who: str, now: Now) -> FleetQuestion:
        """Give the label that was asked for to all devices with such a sample.

        Raises:
            RolloutError: There is no such question, it has ended, or there is no such class; nothing changed.
        """
        question = self._is_open(number)
        names = self.classes(question.backbone)
        if (names and label not in names) or not is_class_name(label):
            expected = f"one of {', '.join(names)}" if names else "the name of a class"
            raise RolloutError(f"class {label[:120]!r}: expected {expected[:1000]}; nothing was answered")
        done = replace(question, state="answered", label=label, who=who, closed_ms=now.wall_ms)
        with self._store.transaction():
            self._log.save(done)
            self._log.move(number, "waits", "open")
        rows = self._log.samples(number)
        self.to_say += [(each.device, _label(each, done, now)) for each in rows if each.state == "open"]
        self._events.note("", "question-answered", f"{number}: {label}, by {who or 'nobody who is known'}", now)
        return done

    def skip(self, number: int, who: str, now: Now) -> FleetQuestion:
        """Give no label, and never ask for that of these samples again.

        Raises:
            RolloutError: There is no such question, or it has ended.
        """
        return self._end(self._is_open(number), "skipped", who, now)

    def _is_open(self, number: int) -> FleetQuestion:
        question = self._log.get(number)
        if question is None:
            raise RolloutError(f"there is no question {number}; `edge-fleet question list` shows them")
        if question.state != "open":
            raise RolloutError(f"question {number} was {question.state} already; nothing changed")
        return question

    def _end(self, question: FleetQuestion, state: str, who: str, now: Now) -> FleetQuestion:
        done = replace(question, state=state, who=who, closed_ms=now.wall_ms)
        with self._store.transaction():
            self._log.save(done)
            self._log.move(done.number, "waits", "dropped", f"the question was {state}")
        self._events.note("", f"question-{state}", f"{done.number}", now)
        return done

    def _end_old(self, now: Now) -> None:
        for question in self._log.open():
            if now.wall_ms - question.asked_ms > QUESTION_S * 1000:
                self._end(question, "expired", "", now)
        late = {question.number for _, question in self._log.to_say(None) if _left_s(question, now) <= 0}
        for number in late:
            self._log.move(number, "open", "dropped", "its device was not there for too long")
        self._log.forget(closed_before_ms=now.wall_ms - int(KEPT_S * 1000))

    def forget(self, device: str) -> int:
        """Delete what is known of a device's samples, their sketches too; how many there were."""
        n_sketches = sum(len(own) for key, (_, own) in self._sketches.items() if key[0] == device)
        self._sketches = {key: value for key, value in self._sketches.items() if key[0] != device}
        return n_sketches + self._log.forget(device)


def _left_s(question: FleetQuestion, now: Now) -> float:
    """How long a label is still said."""
    return LABEL_S - (now.wall_ms - question.closed_ms) / 1000


def _label(one: AlikeSample, question: FleetQuestion, now: Now) -> Command:
    args = {"model": one.model, "sample": one.sample, "label": question.label, "weight": one.weight}
    return Command(id=f"{LABEL}-{one.id}", name=LABEL, args=args, ttl_s=max(0.0, _left_s(question, now)))


def _decoded(text: str) -> bytes:
    """What stands there in base64; nothing where that is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _sketch(model: Model, row: object) -> Sketch:
    """A sketch as a device sends it.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {row!r:.40}")
    sample, answer, codes = (row.get(key) for key in ("id", "answer", "codes"))
    at_ms, confidence = row.get("at_ms"), row.get("confidence")
    if not isinstance(sample, str) or not 0 < len(sample) <= MAX_ID_LENGTH:
        raise ValueError(f"id: expected 1 to {MAX_ID_LENGTH} characters, got {sample!r:.40}")
    if not isinstance(answer, str) or not is_class_name(answer):
        raise ValueError(f"answer: expected the name of a class, got {answer!r:.40}")
    if type(at_ms) is not int or not 0 <= at_ms < 2**53:
        raise ValueError(f"at_ms: expected a time, got {at_ms!r:.40}")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
        raise ValueError(f"confidence: expected a number from 0 to 1, got {confidence!r:.40}")
    raw = _decoded(codes) if isinstance(codes, str) else b""
    if len(raw) != LENGTH:
        raise ValueError(f"codes: expected {LENGTH} bytes in base64, got {codes!r:.40}")
    return Sketch(
        model.device, model.model, sample, at_ms, answer, float(confidence), np.frombuffer(raw, np.int8).copy()
    )
