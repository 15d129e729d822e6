"""What a device says of itself, and which of its models a message of the coordinator means."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from edge import __version__
from edge.agent.config import AgentConfig
from edge.agent.device import health
from edge.agent.line.admission import Admission
from edge.agent.model.model_core import ModelCore
from edge.agent.slots.slots import DeviceRecord
from edge.channel.messages import MAX_BASES, Birth, Command, Conn, Desired, Order, Reply, Served
from edge.contract.clock import Now
from edge.contract.errors import ChannelError


def introduction(
    config: AgentConfig,
    record: DeviceRecord,
    models: Mapping[str, ModelCore],
    served: Sequence[Served],
    now: Now,
    seal_key: str,
    admission: Admission,
) -> Birth:
    """Who a device is and what it runs.

    Args:
        config: Of the agent.
        record: Identity of its state folder, and how often it was started and connected.
        models: Its models.
        served: What they run, at least one.
        now: The time.
        seal_key: That checkpoints for it may be sealed to; "" for none.
        admission: Whether it belongs to the fleet: one that does not sends no telemetry to be waited for.
    """
    first = served[0]
    learner = models[first.model].status()["learner"]
    bases = sorted({digest for model in models.values() for digest in model.host.bases()})
    return Birth(
        agent_version=__version__,
        boot=record.boot,
        session=record.session,
        ts_ms=now.wall_ms,
        profile=config.profile.name,
        hardware={**health.hardware(), "utc_offset_min": health.utc_offset_min(now.wall_ms)},
        bundle=first.bundle,
        backbone=first.backbone,
        head=first.head,
        release=first.release,
        n_labels=first.n_labels,
        limits={
            "max_bytes": config.profile.inference.max_bundle_mb << 20,
            "learner": learner,
            "telemetry_s": config.telemetry_interval_s if admission.is_approved else 0.0,
        },
        models=tuple(served),
        state_id=record.state_id,
        bases=tuple(bases)[:MAX_BASES],
        seal_key=seal_key,
        admission=admission.admission,
        evaluates=config.evaluate_candidates,
    )


def asked_checkpoint(command: Command, models: Mapping[str, ModelCore]) -> Reply:
    """Begin a checkpoint of the models that a command names; without a name, of all."""
    name = command.args.get("model", "")
    meant = [model for each, model in models.items() if name in ("", each)]
    if not meant:
        return Reply(id=command.id, rc=1, detail=f"there is no model {name!r:.120} here", out={})
    for model in meant:
        model.checkpoints.ask(command.id)
    return Reply(id=command.id, rc=0, detail="on its way", out={})


def own_word(record: DeviceRecord, session: int, now: Now, *, online: bool) -> Conn:
    """That a device is there, or gone."""
    return Conn(online=online, session=session, boot=record.boot, ts_ms=now.wall_ms, state_id=record.state_id)


def meant_model(desired: Desired | Order, models: Collection[str], n_bundles: int) -> str | None:
    """The model that a release is for; None for one that is not served any more.

    Raises:
        ChannelError: A coordinator that knows one model for each device cannot tell.
    """
    if desired.model:
        return desired.model if desired.model in models else None
    if n_bundles > 1:
        raise ChannelError("Desired.model: this device has several models; update the coordinator")
    return next(iter(models))
