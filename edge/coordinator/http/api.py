"""The coordinator over HTTP: what operators and ``edge-fleet`` read and ask for.

Reading goes straight to the database; whatever changes something is put on the coordinator's queue, so that one thread
decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge import __version__
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, ConflictError, EdgeError, ResourceError, RolloutError
from edge.coordinator.access import Access
from edge.coordinator.door import core_s
from edge.coordinator.events import reason
from edge.coordinator.http.access_api import add_access_routes, allow, guard, refusals, says, says_refusals
from edge.coordinator.http.alert_api import add_alert_routes
from edge.coordinator.http.answers import HealthAnswer, MetricAnswer, StatusAnswer
from edge.coordinator.http.checkpoint_api import add_checkpoint_routes
from edge.coordinator.http.device_api import add_device_routes, add_enrolment_routes
from edge.coordinator.http.learning_api import add_learning_routes
from edge.coordinator.http.parcel_api import add_parcel_routes
from edge.coordinator.http.question_api import add_question_routes
from edge.coordinator.http.release_api import Submit, add_release_routes
from edge.coordinator.http.rollout_api import add_rollout_routes
from edge.coordinator.http.signing_api import add_signing_routes
from edge.coordinator.line import LineState
from edge.coordinator.pages.actions import add_actions
from edge.coordinator.pages.live import Live
from edge.coordinator.pages.routes import Pages, add_pages
from edge.coordinator.records import LoggedEvent, TelemetryEntry, as_dict
from edge.coordinator.signing.signing import Signing
from edge.coordinator.store.database import DatabaseError
from edge.coordinator.store.store import Store
from edge.coordinator.summaries import HOUR_S, MINUTE_S

Number = Annotated[int, Query(ge=0, lt=2**63)]
LINE = "x-edge-line"
STEPS_S = {"message": 0, "minute": MINUTE_S, "hour": HOUR_S}


def build_api(
    store: Store,
    submit: Submit,
    fleet: str,
    token: str | None,
    signing: Signing | None = None,
    *,
    clock: Callable[[], Now],
    line: Callable[[], LineState],
    stopwatch: Callable[[], float] = core_s,
) -> FastAPI:
    """The application.

    Args:
        store: For reading.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
        fleet: Fleet id, for `/api/health`.
        token: That may everything, beside those in the database; None for none.
        signing: Proves to devices what they are told; None in a fleet without keys.
        clock: The time.
        line: How the line to the broker is now.
        stopwatch: How long the thread that asks has computed so far, in seconds.
    """
    bearer = HTTPBearer(auto_error=False, description="`edge-fleet token new`; none where nobody has to sign in.")
    api = FastAPI(
        title="Edgeloop coordinator",
        version=__version__,
        docs_url=None,  # these pages load scripts from the network
        redoc_url=None,
        dependencies=[Depends(bearer), Depends(allow)],
        responses=refusals(),
    )
    access = Access(store, token)
    guard(api, access, clock)
    api.add_middleware(_TellsOfTheLine, line=line)

    _add_refusals(api, submit)

    @api.get("/api/health", responses=says(HealthAnswer))
    @api.get("/api/v1/health", responses=says(HealthAnswer))
    def health() -> dict[str, Any]:
        """Which fleet this is, whether what devices are told is signed, and whether people have to sign in."""
        access_is = "open" if access.is_open else "tokens"
        return {"fleet": fleet, "version": __version__, "signed": signing is not None, "access": access_is}

    @api.get("/api/telemetry", responses=says(list[TelemetryEntry]))
    @api.get("/api/v1/telemetry", responses=says(list[TelemetryEntry]))
    def telemetry(after: Annotated[int, Query(ge=-1, lt=2**63)] = -1, limit: int = 100) -> list[dict[str, Any]]:
        return [as_dict(row) for row in store.telemetry.after(after, min(max(limit, 1), 1000))]

    @api.get("/api/events", responses=says(list[LoggedEvent]))
    @api.get("/api/v1/events", responses=says(list[LoggedEvent]))
    def events(
        limit: int = 100,
        device: str | None = None,
        kind: str = "",
        since: Number = 0,
        after: Number = 0,
        before: Number = 0,
    ) -> list[dict[str, Any]]:
        """Events, newest first; with `after` those since one, with `before` the page behind its last one."""
        most = min(max(limit, 1), 1000)
        found = store.events.newest(most, device=device, name=kind, since_ms=since, after_id=after, before_id=before)
        return [as_dict(row) for row in found]

    @api.get("/api/v1/metrics/{device}/{key}", responses=says(MetricAnswer))
    def metrics(device: str, key: str, since: Number = 0, step: str = "minute") -> dict[str, Any]:
        if step not in STEPS_S:
            raise ConfigError(f"step {step[:80]!r}: expected {', '.join(STEPS_S)}")
        if store.devices.get(device) is None:
            raise RolloutError(f"unknown device {device[:80]}; `edge-fleet devices` lists them")
        found = store.telemetry.metric(device, key, since, STEPS_S[step])
        points = [
            {
                "ts_ms": bucket.start_ms,
                "model": bucket.model,
                "n": each.n,
                "mean": each.mean,
                "min": each.least,
                "max": each.most,
            }
            for bucket, each in found
        ]
        return {"device": device, "key": key, "step": step, "points": points, "keys": store.telemetry.keys(device)}

    _add_status_route(api, line, health, submit)
    add_access_routes(api, access, clock)
    add_device_routes(api, store, submit, clock, line)
    add_enrolment_routes(api, store, submit, fleet, clock)
    add_signing_routes(api, submit, signing)
    add_release_routes(api, store, submit)
    add_learning_routes(api, store, submit)
    add_question_routes(api, store, submit)
    add_checkpoint_routes(api, store, submit)
    add_parcel_routes(api, submit)
    add_rollout_routes(api, submit, store)
    add_alert_routes(api, store, submit)
    api.state.live = live = Live(clock)
    api.state.pages = pages = Pages(
        store=store,
        submit=submit,
        fleet=fleet,
        signing=signing,
        clock=clock,
        live=live,
        line=line,
        stopwatch=stopwatch,
    )
    add_actions(api, pages, access)
    add_pages(api, pages)
    return api


def _add_status_route(
    api: FastAPI, line: Callable[[], LineState], health: Callable[[], dict[str, Any]], submit: Submit
) -> None:
    @api.get("/api/v1/status", responses=says(StatusAnswer) | says_refusals())
    def status() -> dict[str, Any]:
        """As health, and how the coordinator stands with its broker: since when what; and `troubles` in words.

        That its disk is nearly full, or its database takes nothing, is one of them.
        """
        now, own = line(), submit(lambda core, _: [core.room.says, core.events.says])
        return health() | {
            "broker": now.address,
            "connected": now.is_connected,
            "hears": now.hears,
            "since_ms": now.since_ms,
            "troubles": [*now.troubles, *(each for each in own if each)],
        }


class _TellsOfTheLine:
    """While no device is heard each answer says so: what is known of them is old, and what is asked for waits.

    Args:
        app: What answers.
        line: How the line to the broker is now.
    """

    def __init__(self, app: ASGIApp, line: Callable[[], LineState]) -> None:
        self._app, self._line = app, line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        says = self._line().says if scope["type"] == "http" and scope["path"].startswith("/api/") else ""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[LINE] = quote(says)
            await send(message)

        await self._app(scope, receive, told if says else send)


# What SQLite and PostgreSQL say where another try may succeed.
_NO_ROOM = ("is full", "is locked", "No space left", "readonly")


def _add_refusals(api: FastAPI, submit: Submit) -> None:
    """What is answered where something is refused or fails, always in one form."""

    @api.exception_handler(EdgeError)
    async def refused(request: Request, exc: EdgeError) -> Response:
        request.state.outcome = f"refused: {exc}"
        status = 409 if isinstance(exc, ConflictError) else 503 if isinstance(exc, ResourceError) else 422
        return JSONResponse({"detail": str(exc), "error": type(exc).__name__}, status_code=status)

    @api.exception_handler(HTTPException)
    async def not_taken(request: Request, exc: HTTPException) -> Response:
        """What the framework itself refuses: no such address, a body that cannot be read, one that is too large."""
        request.state.outcome = f"refused: {exc.detail}"
        if _is_of_a_person(request):
            page: Response = request.app.state.pages.refusal(request, exc.status_code, str(exc.detail))
            return page
        what = f"{request.method} {request.url.path[:200]}"
        why = {404: f"there is no {what}; /openapi.json says what there is", 405: f"{what} is not done here"}
        detail = {"detail": why.get(exc.status_code, exc.detail), "error": "ConfigError"}
        headers = {"allow": ", ".join(_methods(request))} if exc.status_code == 405 else exc.headers
        return JSONResponse(detail, status_code=exc.status_code, headers=headers)

    @api.exception_handler(Exception)
    def failed(request: Request, exc: Exception) -> Response:
        doing = f"{request.method} {request.url.path}"
        with contextlib.suppress(Exception):  # it is in the server's log in any case
            submit(lambda core, now: core.events.unforeseen("", "fault", doing, exc, now))
        detail = f"{doing} failed inside the coordinator, which goes on: {reason(exc)}"
        if _is_of_a_person(request):
            with contextlib.suppress(Exception):  # what made it fail may be on that page, too
                page: Response = request.app.state.pages.refusal(request, 500, detail)
                return page
        return JSONResponse({"detail": detail, "error": type(exc).__name__}, status_code=500)

    @api.exception_handler(DatabaseError)
    def not_kept(request: Request, exc: DatabaseError) -> Response:
        if not any(word in str(exc.orig) for word in _NO_ROOM):
            return failed(request, exc)
        request.state.outcome = f"failed: {exc.orig}"
        if "is locked" in str(exc.orig):
            detail = "another program has the database locked: nothing was changed; try again when it has let it go"
            return JSONResponse({"detail": detail, "error": RolloutError.__name__}, status_code=503)
        detail = f"the database does not take it ({exc.orig}): nothing was changed; make room on its disk, or try again"
        return JSONResponse({"detail": detail, "error": ResourceError.__name__}, status_code=503)


def _is_of_a_person(request: Request) -> bool:
    """Whether a browser asks for a page."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")


def _methods(request: Request) -> list[str]:
    """What can be done at an address, by any of its routes."""
    routes = [each for each in request.app.routes if each.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for each in routes for method in each.methods})
