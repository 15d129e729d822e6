"""Samples of a model whose label would help, offered to the fleet as sketches; and labels that come back for them.

Only where the device takes part (`--fleet-labels`). What is offered is in memory: after a restart nothing is, and a
label that comes then is for a sample that is not there, unless hard samples are kept on disk.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.model.pictures import picture_of
from edge.agent.model.serving import Given
from edge.channel.messages import Reply
from edge.contract.clock import Now
from edge.inference.session import Arrays
from edge.learning.labels import LabelRing, Remembered
from edge.learning.sketches import LEAST_USUAL, USUAL, Sketcher

# The newest ones are offered; more are kept, since a person may answer when there are newer ones.
OFFERED, KEPT = 16, 64
# Of all sketches in a reply, whose message has 16 KiB.
_MAX_BYTES = 12_000
# Of one picture, of which `KEPT` are kept.
_MAX_PIXEL_BYTES = 1 << 16


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """A sample whose label would help.

    Attributes:
        at_ms: When it was answered, ms since 1970.
        answer: The class that was answered, or that is nearest: its name, or its number where classes have none.
        confidence: Of that.
        sample: As it waits for its label.
        backbone: Digest of what its features come from.
        pixels: What it looks like, ``(height, width)`` or ``(height, width, 3)`` uint8; None where it is no picture, or
            pictures are not shared.
    """

    at_ms: int
    answer: str
    confidence: float
    sample: Remembered
    backbone: str
    pixels: npt.NDArray[Any] | None = None


class Questions:
    """See the module.

    Args:
        share: Whether pictures of samples may leave this device.

    Attributes:
        share: As given.
    """

    def __init__(self, *, share: bool = False) -> None:
        self.share = share
        self._wanted: OrderedDict[str, Wanted] = OrderedDict()
        self._replies: OrderedDict[str, Reply] = OrderedDict()

    def __len__(self) -> int:
        return len(self._wanted)

    def answered(self, model: OnDeviceModel, sample_id: str, said: Mapping[str, Any], now: Now, x: Given) -> None:
        """A sample was answered: where its label would help, it is kept to be offered.

        Args:
            model: That answered.
            sample_id: Name of the sample.
            said: What was answered.
            now: The time.
            x: The sample.
        """
        self._wanted.pop(sample_id, None)  # another sample by now
        if not said.get("label_wanted") or not model.task.is_classifier:
            return
        sample = model.answering.ring.waiting(sample_id)
        nearest = said.get("nearest", said)
        if sample is None or "class" not in nearest:
            return
        self._wanted[sample_id] = Wanted(
            at_ms=now.wall_ms,
            answer=str(nearest.get("name", nearest["class"])),
            confidence=float(nearest.get("confidence", 0.0)),
            sample=sample,
            backbone=model.manifest.backbone_digest,
            pixels=_pixels(model.serving.one(x)) if self.share else None,
        )
        while len(self._wanted) > KEPT:
            self._wanted.popitem(last=False)

    def pixels(self, sample_id: str) -> npt.NDArray[Any] | None:
        """What an offered sample looks like; None where that is not kept."""
        found = self._wanted.get(sample_id)
        return None if found is None else found.pixels

    def labelled(self, sample_id: str) -> None:
        """A label was taken."""
        self._wanted.pop(sample_id, None)

    def sketches(self, model: OnDeviceModel) -> list[dict[str, Any]]:
        """The newest of them, the oldest first, for a reply: ``id``, ``at_ms``, ``answer``, ``confidence``, ``codes``.

        None where so few samples were seen that nobody can tell what is usual here.
        """
        backbone = model.manifest.backbone_digest
        wanted = [(name, each) for name, each in self._wanted.items() if each.backbone == backbone][-OFFERED:]
        if not wanted:
            return []
        usual = _flat(model.answering.late_features(USUAL))
        shape = model.learning.shape
        features = _flat(np.concatenate([each.sample.features.unpack(shape) for _, each in wanted]))
        usual = usual[np.isfinite(usual).all(axis=1)]
        if len(usual) < LEAST_USUAL:
            return []
        codes = Sketcher(features.shape[1], backbone).sketches(features, usual)
        rows = [
            {
                "id": name,
                "at_ms": each.at_ms,
                "answer": each.answer,
                "confidence": round(each.confidence, 3),
                "codes": base64.b64encode(code.tobytes()).decode(),
            }
            for (name, each), code in zip(wanted, codes, strict=True)
        ]
        while len(json.dumps(rows)) > _MAX_BYTES:  # names of samples may be long
            rows = rows[1:]
        return rows

    def bring_back(self, sample_id: str, ring: LabelRing, backbone: str, now_s: float) -> str:
        """Let an offered sample wait for its label where it does not any more.

        Returns:
            Why no label from elsewhere is for it; "" where it may be joined.
        """
        if ring.given(sample_id) is not None:
            return "this sample has a label already"
        found = self._wanted.get(sample_id)
        if found is not None and found.backbone == backbone:
            ring.put(sample_id, replace(found.sample, seen_s=now_s))
        return ""

    def once(self, command_id: str, carry_out: Callable[[], Reply]) -> Reply:
        """The answer to a command that may be said again: it is carried out the first time."""
        if command_id not in self._replies:
            self._replies[command_id] = carry_out()
            while len(self._replies) > KEPT:
                self._replies.popitem(last=False)
        return self._replies[command_id]


def _pixels(inputs: Arrays) -> npt.NDArray[Any] | None:
    """The first input that looks like a picture, with every second pixel left out while it is large."""
    found = next((pixels for each in inputs.values() if (pixels := picture_of(each)) is not None), None)
    while found is not None and found.nbytes > _MAX_PIXEL_BYTES:
        found = found[::2, ::2].copy()
    return found


def _flat(features: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return features.reshape(len(features), -1)
