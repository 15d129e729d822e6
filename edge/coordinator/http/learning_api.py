"""What devices learned, over HTTP: contributions, merges, and forgetting. See `edge.coordinator.http.api`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from pydantic import Field

from edge.coordinator.http.access_api import Limit, ReasonRequest, Who, says
from edge.coordinator.http.answers import ContributionAnswer, ForgottenAnswer
from edge.coordinator.http.release_api import Submit
from edge.coordinator.records import Release, as_dict
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

    @api.post("/api/forget", responses=says(ForgottenAnswer))
    @api.post("/api/v1/forget", responses=says(ForgottenAnswer))
    def forget(body: ForgetRequest) -> dict[str, Any]:
        result: dict[str, Any] = submit(lambda core, now: core.forget(body.device, now))
        return result
