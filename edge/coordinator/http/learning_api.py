"""What devices learned, over HTTP: contributions, merges, and forgetting. See `edge.coordinator.http.api`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from pydantic import Field

from edge.channel.confusion import together
from edge.contract.errors import RolloutError
from edge.coordinator.http.access_api import Limit, ReasonRequest, Who, says
from edge.coordinator.http.answers import ConfusionAnswer, ContributionAnswer, ForgottenAnswer
from edge.coordinator.http.release_api import Submit
from edge.coordinator.learning.confusions import by_backbone, names_of, summed
from edge.coordinator.records import Confusion, Release, as_dict
from edge.coordinator.store.store import Store
from edge.coordinator.turns import Turns, Waiting


class MergeRequest(ReasonRequest):
    """Who asks for a merge, why, and whether it may end rollouts that are in its way."""

    who: str = Field(default="", max_length=100)
    supersede: bool = False


class ForgetRequest(ReasonRequest):
    """Whose contributions to delete."""

    device: str


def add_learning_routes(api: FastAPI, store: Store, submit: Submit) -> None:
    """Add the routes of learning.

    Args:
        api: The application.
        store: For reading.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
    """

    @api.get("/api/contributions", responses=says(list[ContributionAnswer]))
    @api.get("/api/v1/contributions", responses=says(list[ContributionAnswer]))
    def contributions(limit: Limit | None = None, after: str = "") -> list[dict[str, Any]]:
        """The newest contributions, by device and lineage; `after` is the `id` of the last one of a page."""
        found = [
            as_dict(row) | {"id": f"{row.device}/{row.lineage}/{row.backbone}"} for row in store.contributions.all()
        ]
        return sorted((row for row in found if row["id"] > after), key=lambda row: str(row["id"]))[:limit]

    @api.post("/api/merge", responses=says(list[Release]))
    @api.post("/api/v1/merge", responses=says(list[Release]))
    def merge(who: Who, body: MergeRequest | None = None) -> list[dict[str, Any]]:
        """Merge now what is new; refused where a rollout would be overtaken, unless that may be ended."""
        asked = body or MergeRequest()
        name, may_end = who.named(asked.who), asked.supersede
        return [as_dict(row) for row in submit(lambda core, now: core.merge_now(now, supersede=may_end, who=name))]

    @api.get("/api/v1/merges/waiting", responses=says(list[Waiting]))
    def merges_waiting() -> list[dict[str, Any]]:
        """Merges that wait, each with the rollout that it waits for (0: the fleet is paused) and since when."""
        return [asdict(each) for each in Turns(store).waiting()]

    @api.get("/api/v1/confusion", responses=says(list[ConfusionAnswer]))
    def confusion() -> list[dict[str, Any]]:
        """What all models answered to their recent labels, those of a backbone together; most labels first."""
        names = names_of(store)
        groups = by_backbone(store.confusions.all(), store.devices.models())
        return [_answered("", names.get(backbone, ""), backbone, own) for backbone, own in groups.items()]

    @api.get("/api/v1/devices/{device}/confusion", responses=says(list[ConfusionAnswer]))
    def confusion_of(device: str) -> list[dict[str, Any]]:
        """What each model of a device that has told answered to its recent labels."""
        if store.devices.get(device) is None:
            raise RolloutError(f"unknown device {device[:80]}; `edge-fleet devices` lists them")
        backbones = {model.model: model.backbone for model in store.devices.models(device)}
        said = [each for each in store.confusions.all(device) if each.counts and each.model in backbones]
        return [_answered(device, each.model, backbones[each.model], [each]) for each in said]

    @api.post("/api/forget", responses=says(ForgottenAnswer))
    @api.post("/api/v1/forget", responses=says(ForgottenAnswer))
    def forget(body: ForgetRequest) -> dict[str, Any]:
        result: dict[str, Any] = submit(lambda core, now: core.forget(body.device, now))
        return result


def _answered(device: str, model: str, backbone: str, said: Sequence[Confusion]) -> dict[str, Any]:
    """A `ConfusionAnswer`."""
    counts = together(each.counts for each in said)
    whose = {"device": device, "model": model, "backbone": backbone, "models": len(said)}
    return {**whose, "said_ms": max(each.said_ms for each in said), **asdict(summed(counts)), "counts": counts}
