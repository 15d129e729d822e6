"""Rollouts over HTTP: plans, what becomes of them, and what people decide about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Header
from pydantic import Field

from edge.contract.clock import Now
from edge.contract.errors import ConfigError
from edge.contract.names import MAX_NAME_CHARS
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.http.access_api import VIEWER, Before, Body, Limit, RowNumber, Who, page, says
from edge.coordinator.http.answers import (
    ForecastAnswer,
    NamedRelease,
    PausedAnswer,
    PushAnswer,
    RolloutAnswer,
    RolloutSummary,
)
from edge.coordinator.http.release_api import PushRequest, named
from edge.coordinator.http.rollout_views import shown, summaries, summary
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import RolloutEvent
from edge.coordinator.store.store import Store

Submit = Callable[[Callable[[CoordinatorCore, Now], Any]], Any]
# What people may ask of a rollout.
_ORDERS = "^(start|pause|resume|retry|abort|revert)$"


class RolloutPushRequest(PushRequest):
    """What to bring to whom with the default plan; no devices means all, also those to come."""

    who: str = Field(default="", max_length=100)


class ReleaseRequest(Body):
    """What to make a release of, that a plan may name; nobody runs it yet."""

    digest: str
    kind: str = Field(pattern="^(head|bundle)$")
    backbone: str
    model: str = Field(default="", max_length=MAX_NAME_CHARS)
    reason: str = Field(default="", max_length=200)
    name: str = Field(default="", max_length=100)
    notes: str = Field(default="", max_length=4000)
    file: str = Field(default="", max_length=255)
    force: bool = False


class PlanRequest(Body):
    """A plan, as its TOML says it."""

    plan: dict[str, Any]


class StartRequest(PlanRequest):
    """A plan to start: by whom, why, and whether it may end rollouts that are in its way."""

    who: str = Field(default="", max_length=100)
    reason: str = Field(default="", max_length=500)
    supersede: bool = False


class OrderRequest(Body):
    """Who asks for something, and why."""

    order: str = Field(pattern=_ORDERS)
    who: str = Field(default="", max_length=100)
    reason: str = Field(default="", max_length=500)


class WidenRequest(Body):
    """How many more devices the open wave gets."""

    count: int = Field(ge=1, lt=2**31)
    who: str = Field(default="", max_length=100)
    reason: str = Field(default="", max_length=500)


class ApproveRequest(Body):
    """Who approves a plan, why, and whether it may end rollouts that are in its way."""

    who: str = Field(default="", max_length=100)
    reason: str = Field(default="", max_length=500)
    supersede: bool = False


class ExcludeRequest(Body):
    """Which device to take out of a rollout."""

    device: str
    who: str = Field(default="", max_length=100)
    reason: str = Field(default="", max_length=500)


class PauseRequest(Body):
    """Whether the whole fleet is paused."""

    paused: bool
    who: str = Field(default="", max_length=100)
    reason: str = Field(default="", max_length=500)


Seen = Annotated[str | None, Header(alias="if-match", max_length=40)]


def version_of(seen: str | None) -> int | None:
    """The version of a rollout that somebody saw, out of ``If-Match: "7"``; None where they say none.

    Raises:
        ConfigError: It is no number.

    >>> version_of('"7"'), version_of("7"), version_of("*")
    (7, 7, None)
    """
    if seen is None or seen.strip() == "*":
        return None
    text = seen.strip().strip('"')
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f'If-Match: expected the version of the rollout, such as "7", got {seen!r}')
    return int(text)


def add_rollout_routes(api: FastAPI, submit: Submit, store: Store) -> None:
    """Add the routes of rollouts.

    Args:
        api: The application.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
        store: For reading.
    """

    @api.post("/api/v1/push", responses=says(PushAnswer))
    def push(body: RolloutPushRequest, who: Who) -> dict[str, Any]:
        whom = (body.devices, body.reason)
        release, rollout = submit(
            lambda core, now: core.roll_out(
                body.digest,
                body.kind,
                body.backbone,
                *whom,
                now,
                who=who.named(body.who),
                **body.model_dump(include={"model", "name", "notes", "file", "force"}),
            )
        )
        return {"release": named(store, [release])[0], "rollout": summary(rollout)}

    @api.post("/api/v1/releases", responses=says(NamedRelease))
    def release(body: ReleaseRequest) -> dict[str, Any]:
        what = (body.digest, body.kind, body.backbone)
        more = body.model_dump(include={"model", "name", "notes", "file", "force"})
        made = submit(lambda core, now: core.push(*what, [], body.reason, now, at_once=False, **more))
        return named(store, [made])[0]

    @api.post("/api/v1/plan", openapi_extra=VIEWER, responses=says(ForecastAnswer))
    def plan(body: PlanRequest) -> dict[str, Any]:
        wanted = plans.of_document(body.plan)
        found: dict[str, Any] = submit(lambda core, now: core.rollouts.plan(wanted, now))
        return found

    @api.get("/api/v1/rollouts", responses=says(list[RolloutSummary]))
    def rollouts(limit: Limit | None = None, before: Before = 0) -> list[dict[str, Any]]:
        """Rollouts in short, newest first."""
        return page(summaries(store), "id", limit, before)

    @api.post("/api/v1/rollouts", responses=says(RolloutSummary))
    def start(body: StartRequest, who: Who) -> dict[str, Any]:
        wanted = plans.of_document(body.plan)
        name = who.named(body.who)
        return summary(submit(lambda core, now: core.rollouts.start(wanted, name, now, supersede=body.supersede)))

    @api.get("/api/v1/rollouts/{number}", responses=says(RolloutAnswer))
    def rollout(number: RowNumber) -> dict[str, Any]:
        return shown(store, number)

    @api.post("/api/v1/rollouts/{number}/order", responses=says(RolloutSummary))
    def order(number: RowNumber, body: OrderRequest, who: Who, seen: Seen = None) -> dict[str, Any]:
        what = (number, RolloutEvent(body.order), who.named(body.who), body.reason)
        return summary(submit(lambda core, now: core.rollouts.order(*what, now, version=version_of(seen))))

    @api.post("/api/v1/rollouts/{number}/approve", responses=says(RolloutSummary))
    def approve(number: RowNumber, body: ApproveRequest, who: Who, seen: Seen = None) -> dict[str, Any]:
        what, may_end = (number, who.named(body.who), body.reason), body.supersede
        return summary(
            submit(lambda core, now: core.rollouts.approve(*what, now, version=version_of(seen), supersede=may_end))
        )

    @api.post("/api/v1/rollouts/{number}/widen", responses=says(RolloutSummary))
    def widen(number: RowNumber, body: WidenRequest, who: Who, seen: Seen = None) -> dict[str, Any]:
        what = (number, body.count, who.named(body.who), body.reason)
        return summary(submit(lambda core, now: core.rollouts.widen(*what, now, version=version_of(seen))))

    @api.post("/api/v1/rollouts/{number}/exclude", responses=says(RolloutAnswer))
    def exclude(number: RowNumber, body: ExcludeRequest, who: Who, seen: Seen = None) -> dict[str, Any]:
        what = (number, body.device, who.named(body.who), body.reason)
        submit(lambda core, now: core.rollouts.exclude(*what, now, version=version_of(seen)))
        return shown(store, number)

    @api.get("/api/v1/paused", responses=says(PausedAnswer))
    def paused() -> dict[str, str]:
        return {"paused": submit(lambda core, _: core.rollouts.paused)}

    @api.post("/api/v1/paused", responses=says(PausedAnswer))
    def pause(body: PauseRequest, who: Who) -> dict[str, str]:
        name = who.named(body.who)
        submit(lambda core, now: core.pause_all(name, body.reason, now, paused=body.paused))
        return {"paused": submit(lambda core, _: core.rollouts.paused)}
