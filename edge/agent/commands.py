"""What the coordinator asks a device for once: all of it may be repeated without harm."""

from __future__ import annotations

from collections.abc import Mapping

from edge.agent.introduction import asked_checkpoint
from edge.agent.line.admission import Admission
from edge.agent.model.labelling import give_label, give_picture, give_sketches
from edge.agent.model.model_core import ModelCore
from edge.channel.messages import Command, Reply
from edge.contract.clock import Now


def carry_out(command: Command, models: Mapping[str, ModelCore], admission: Admission, now: Now) -> tuple[Reply, bool]:
    """Carry out a command.

    Args:
        command: It.
        models: Of this device.
        admission: Whether it belongs to the fleet.
        now: The time.

    Returns:
        The answer, and whether this device is to introduce itself.
    """
    if command.name == "birth":
        for model in models.values() if command.args.get("learned", True) else ():
            model.contribute_again()
        return _done(command), True
    if command.name == "admission":
        before = admission.admission
        if why := admission.take(command.args):
            return Reply(id=command.id, rc=1, detail=why, out={}), False
        return _done(command, admission=admission.admission), admission.admission != before
    if command.name == "sync":
        for model in models.values():
            model.contribute(now)
        return _done(command, samples=sum(model.host.model.n_samples for model in models.values())), False
    if command.name == "checkpoint":
        return asked_checkpoint(command, models), False
    if command.name == "sketches":
        return give_sketches(command, models, admission), False
    if command.name == "picture":
        return give_picture(command, models, admission), False
    if command.name == "label":
        return give_label(command, models, now), False
    return Reply(id=command.id, rc=1, detail=f"unknown command {command.name!r}", out={}), False


def _done(command: Command, **out: int | str) -> Reply:
    return Reply(id=command.id, rc=0, detail="", out=out)
