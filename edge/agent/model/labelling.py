"""What the coordinator asks of a device that takes part in its questions: sketches, a picture, labels to take."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edge.agent.line.admission import Admission
from edge.agent.model.model_core import ModelCore
from edge.agent.model.pictures import png
from edge.agent.model.questions import Questions
from edge.channel.messages import Command, Reply
from edge.contract.clock import Now
from edge.contract.errors import LearningError

_OFF = "this device takes no part in questions of the fleet: edge-agent run --fleet-labels"
# In base64 four thirds of that, of the 16 KiB of a message.
_MAX_PICTURE_BYTES = 10_000


def give_sketches(command: Command, models: Mapping[str, ModelCore], admission: Admission) -> Reply:
    """Sketches of a model's samples whose label would help (``args.model``)."""
    found = _meant(command, models)
    if isinstance(found, Reply):
        return found
    model, questions = found
    if not admission.is_approved:
        return _refused(command, admission.why_not)
    live = model.host.model
    out = {
        "model": model.host.name,
        "backbone": live.manifest.backbone_digest,
        "sketches": questions.sketches(live) if live.learns else [],
    }
    return Reply(id=command.id, rc=0, detail="", out=out)


def give_picture(command: Command, models: Mapping[str, ModelCore], admission: Admission) -> Reply:
    """A sample (``args.sample``) of a model as a picture, where this device shares them and still has it."""
    found = _meant(command, models)
    if isinstance(found, Reply):
        return found
    _, questions = found
    if not questions.share:
        return _refused(command, "this device shares no pictures: edge-agent run --share-pictures")
    if not admission.is_approved:
        return _refused(command, admission.why_not)
    pixels = questions.pixels(str(command.args.get("sample")))
    if pixels is None:
        return _refused(command, "there is no such sample among those that are offered, or it looks like no picture")
    return Reply(id=command.id, rc=0, detail="", out={"png": base64.b64encode(small(pixels)).decode()})


def small(pixels: npt.NDArray[Any]) -> bytes:
    """A PNG file of a picture, with every second pixel left out until a message has room for it."""
    while len(data := png(pixels)) > _MAX_PICTURE_BYTES:
        pixels = pixels[::2, ::2]
    return data


def give_label(command: Command, models: Mapping[str, ModelCore], now: Now) -> Reply:
    """Take the label (``args.label``, name of a class) of a sample (``args.sample``), with a ``weight``.

    A label that somebody on this device gave is never changed. Said again, a label is answered as it was first.
    """
    found = _meant(command, models)
    if isinstance(found, Reply):
        return found
    model, questions = found
    return questions.once(command.id, lambda: _labelled(command, model, questions, now))


def _labelled(command: Command, model: ModelCore, questions: Questions, now: Now) -> Reply:
    sample_id, label, live = command.args.get("sample"), command.args.get("label"), model.host.model
    if not live.learns:
        return _refused(command, "the model that runs now does not learn")
    if not isinstance(sample_id, str) or not isinstance(label, str):
        return _refused(command, "expected sample and label as texts")
    if why := questions.bring_back(sample_id, live.answering.ring, live.manifest.backbone_digest, now.s):
        return _refused(command, why)
    is_number = not live.class_names and label.isascii() and label.isdecimal() and len(label) < 10
    try:
        said = model.label(
            {"id": sample_id, "y": int(label) if is_number else label, "weight": command.args.get("weight", 1.0)}, now
        )
    except LearningError as exc:
        return _refused(command, str(exc))
    if not said["joined"]:
        return _refused(command, said["why"])
    return Reply(id=command.id, rc=0, detail="", out={"queued": bool(said.get("queued"))})


def _meant(command: Command, models: Mapping[str, ModelCore]) -> tuple[ModelCore, Questions] | Reply:
    """The model that a command names, of a device that takes part."""
    name = command.args.get("model", "")
    model = models.get(name) if isinstance(name, str) else None
    if model is None and name == "" and len(models) == 1:
        model = next(iter(models.values()))
    if model is None:
        return _refused(command, f"there is no model {name!r:.120} here")
    return _refused(command, _OFF) if model.replies.questions is None else (model, model.replies.questions)


def _refused(command: Command, why: str) -> Reply:
    return Reply(id=command.id, rc=1, detail=why[:500], out={})
