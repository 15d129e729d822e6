"""Alerts over HTTP. See `edge.coordinator.http.api`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query
from pydantic import Field

from edge.contract.clock import Now
from edge.coordinator.alerts.alerts import MAX_SILENCE_S
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.http.access_api import ReasonRequest, RowNumber, Who, says
from edge.coordinator.records import Alert, as_dict
from edge.coordinator.store.store import Store

Submit = Callable[[Callable[[CoordinatorCore, Now], Any]], Any]


class SilenceRequest(ReasonRequest):
    """For how long nobody is told; 0 hours tell again."""

    hours: float = Field(ge=0, le=MAX_SILENCE_S / 3600)


def add_alert_routes(api: FastAPI, store: Store, submit: Submit) -> None:
    """Add the routes.

    Args:
        api: The application.
        store: For reading.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
    """

    @api.get("/api/v1/alerts", responses=says(list[Alert]))
    def alerts(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """The newest alerts, whether they hold or not, newest first."""
        return [as_dict(each) for each in store.alerts.newest(limit)]

    @api.post("/api/v1/alerts/{number}/acknowledge", responses=says(Alert))
    def acknowledge(number: RowNumber, who: Who, body: ReasonRequest | None = None) -> dict[str, Any]:
        """Say that somebody has seen an alert."""
        del body  # the door has kept the reason
        return as_dict(submit(lambda core, now: core.alerts.acknowledge(number, who.who, now)))

    @api.post("/api/v1/alerts/{number}/silence", responses=says(Alert))
    def silence(number: RowNumber, body: SilenceRequest, who: Who) -> dict[str, Any]:
        """Tell nobody of an alert for a while, also if it ends and begins anew."""
        return as_dict(submit(lambda core, now: core.alerts.silence(number, 3600 * body.hours, who.who, now)))
