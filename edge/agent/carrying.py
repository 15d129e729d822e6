"""Without a network: what a device would have said goes out in a file, and what it would have been told comes in.

Nothing is believed more than over the line: releases are proved, judged and watched as they are there.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.agent.config import AgentConfig
from edge.agent.introduction import introduction, meant_model
from edge.agent.line.admission import Admission
from edge.agent.model import releases
from edge.agent.model.model_core import ModelCore
from edge.agent.slots.slots import DeviceRecord
from edge.channel import parcel, topics
from edge.channel.messages import Desired, Meta, Order, Restore, State
from edge.contract.clock import Now
from edge.contract.digest import sha256
from edge.contract.errors import LearningError
from edge.learning.checkpoint import KIND as CHECKPOINT
from edge.learning.exchange import UPDATE_KIND

OUT, IN = "carry-out", "carry-in"


class Carrying:
    """See the module.

    Args:
        config: Of the agent.
        identity: Gives the identity of its state folder.
        models: Its models.
        offer: Takes what is for a model, as from the line, and all documents that may prove it.
        seal_key: That checkpoints for this device may be sealed to.
        admission: Whether it belongs to the fleet.
    """

    def __init__(
        self,
        config: AgentConfig,
        identity: Callable[[], DeviceRecord],
        models: Mapping[str, ModelCore],
        offer: Callable[[str, Desired | Order, str, Now, Mapping[str, Meta]], None],
        seal_key: str,
        admission: Admission,
    ) -> None:
        self._config = config
        self._identity = identity
        self._models = models
        self._offer = offer
        self._seal_key, self._admission = seal_key, admission

    def answer(self, op: str, request: Mapping[str, Any], now: Now) -> dict[str, Any]:
        """Answer a local application: ``carry-out``, perhaps with ``checkpoint``, or ``carry-in`` with a ``path``.

        Raises:
            LearningError: It cannot be carried out.
        """
        if op == OUT:
            data, count = self._out(now, checkpoint=request.get("checkpoint") is True)
            return {"parcel": base64.b64encode(data).decode(), "documents": count}
        path = request.get("path")
        if not isinstance(path, str):
            raise LearningError("path: expected a text")
        try:
            return {"taken": self._in(Path(path), now)}
        except OSError as exc:
            raise LearningError(f"nothing was taken, the disk does not take it: {exc.strerror}") from exc

    def _out(self, now: Now, *, checkpoint: bool) -> tuple[bytes, int]:
        """What the coordinator would have been told: who this is, where releases stand, what was learned.

        Returns:
            A parcel, and how many documents are in it.
        """
        record, device = self._identity(), self._config.device
        served = [model.served() for model in self._models.values()]
        birth = introduction(self._config, record, self._models, served, now, self._seal_key, self._admission)
        said = [parcel.Said(device, topics.UP_BIRTH, birth)]
        files: dict[str, bytes] = {}
        for name, model in self._models.items():
            if (state := _standing(model, record, now)) is not None:
                said.append(parcel.Said(device, topics.UP_STATE, state))
            if (answer := model.checkpoints.answered) is not None:
                said.append(parcel.Said(device, topics.UP_REPLY, answer))
            if not model.host.model.learns:
                continue
            documents = {}
            if model.host.model.n_contributed:
                update = releases.contribution(model.host.model, name, record.state_id)
                model.make_safe(now)
                if not model.host.model.state.is_safe:
                    raise LearningError(
                        f"nothing was exported: {model.host.model.state.unsafe or 'the disk takes nothing'}"
                    )
                documents[UPDATE_KIND] = update.encode()
            if checkpoint:
                documents[CHECKPOINT] = model.checkpoints.document(now)
            model.make_safe(now)
            files |= {f"{parcel.UPLOAD}/{kind}/{sha256(data)}": data for kind, data in documents.items()}
        return parcel.write(self._config.fleet, said, files, now.wall_ms), len(files)

    def _in(self, path: Path, now: Now) -> list[str]:
        """Take releases, and checkpoints to go on from, out of a parcel.

        Returns:
            What there was, for people; what became of it `status` and events say.

        Raises:
            EdgeError: The file is no parcel, has nothing for this device, or what belongs to it is missing.
            OSError: The disk does not take it.
        """
        found = parcel.Parcel(path, self._config.fleet)
        mine = [each.message for each in found.said if each.device == self._config.device]
        if not mine:
            whose = ", ".join(found.devices()[:8])
            raise LearningError(f"{path} has nothing for {self._config.device}; it is for {whose or 'nobody'}")
        told = []
        for message in mine:
            if not isinstance(message, Desired | Restore):
                continue
            name = meant_model(message, self._models, len(self._config.bundles))
            if name is None:
                told.append(f"something for the model {message.model!r}, which is not served")
                continue
            called = f"release {message.release}" if isinstance(message, Desired) else "a checkpoint"
            if message.size_bytes > self._config.profile.inference.max_bundle_mb << 20:
                raise LearningError(f"{called} has {message.size_bytes} bytes, more than this device takes")
            self._models[name].host.slots.keep_artifact(message.digest, found.artifact(message.digest))
            self._offer(name, message, topics.DN_DESIRED, now, found.documents())
            told.append(f"{called} for {name}")
        return told


def _standing(model: ModelCore, record: DeviceRecord, now: Now) -> State | None:
    """Where the slot of a model stands."""
    model.deployment.report()
    state = model.deployment.outbox[-1]
    if not isinstance(state, State):
        return None
    return replace(state, ts_ms=now.wall_ms, seq=state.seq + (record.boot << 32), state_id=record.state_id)
