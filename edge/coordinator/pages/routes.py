"""Where pages are: their addresses, and what each answers. A page asked for as ``text/event-stream`` is followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from edge import __version__
from edge.contract.clock import Now
from edge.contract.errors import EdgeError, RolloutError
from edge.coordinator.access import Identity, Role
from edge.coordinator.alerts.rules import AlertRules
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.export import prometheus
from edge.coordinator.http.access_api import ANYBODY, Refused, RowNumber, signed_in
from edge.coordinator.line import LineState
from edge.coordinator.pages import (
    alert_view,
    device_view,
    fleet_view,
    learning_view,
    release_view,
    render,
    rollout_view,
)
from edge.coordinator.pages.glossary import WORDS
from edge.coordinator.pages.live import MAX_VIEWERS, Live, Look
from edge.coordinator.pages.texts import text
from edge.coordinator.releases.releases import Releases
from edge.coordinator.signing.signing import Signing
from edge.coordinator.store.store import Store

Submit = Callable[[Callable[[CoordinatorCore, Now], Any]], Any]
View = Callable[[], Mapping[str, Any]]
Word = Annotated[str, Query(max_length=200)]
Number = Annotated[int, Query(ge=0, lt=2**63)]
# Nothing is run, shown, or asked for that does not come from here, and no other page may hold this one in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
NOBODY = Identity(who="", role=Role.VIEWER, is_proved=False)
_FILES = {"pages.css": "text/css", "pages.js": "text/javascript", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """What pages are made with.

    Attributes:
        store: The database.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
        fleet: Its name.
        signing: Proves to devices what they are told; None in a fleet without keys.
        clock: The time.
        live: Who follows pages.
        line: How the line to the broker is now.
        stopwatch: How long the thread that asks has computed so far, in seconds.
    """

    store: Store
    submit: Submit
    fleet: str
    signing: Signing | None
    clock: Callable[[], Now]
    live: Live
    line: Callable[[], LineState]
    stopwatch: Callable[[], float]

    async def answer(self, request: Request, template: str, view: View) -> Response:
        """A page, or what changes in it from now on."""

        def values() -> dict[str, Any]:
            return {**self.frame(request), **view()}

        if "text/event-stream" in request.headers.get("accept", ""):
            if self.live.viewers >= MAX_VIEWERS:
                return Response(text("too-many-viewers", n=MAX_VIEWERS), status_code=503, headers=HEADERS)

            def look() -> Look:
                begun_s = self.stopwatch()
                fragments = render.fragments(template, values())
                return Look(fragments, self.stopwatch() - begun_s)

            async def may_still() -> bool:
                try:
                    await run_in_threadpool(request.state.again)
                except Refused:
                    return False
                return True

            # What it shows depends on what a role may do, and on nobody's name.
            page = f"{signed_in(request).role} {request.url}"
            stream = self.live.updates(page, lambda: run_in_threadpool(look), may_still)
            return StreamingResponse(stream, media_type="text/event-stream", headers=HEADERS)
        try:
            html = await run_in_threadpool(lambda: render.whole(template, values()))
        except EdgeError as exc:
            return self.refusal(request, 404 if isinstance(exc, RolloutError) else 422, str(exc))
        return HTMLResponse(html, headers=HEADERS)

    def frame(self, request: Request) -> dict[str, Any]:
        """What stands on every page."""
        identity: Identity = getattr(request.state, "identity", NOBODY)
        return {
            "fleet": self.fleet,
            "version": __version__,
            "path": request.url.path,
            "me": identity,
            "can": identity.role >= Role.OPERATOR,
            "form_token": getattr(request.state, "form_token", ""),
            "now_ms": self.clock().wall_ms,
            "line": self.line(),
        }

    def refusal(self, request: Request, status: int, why: str, form: Mapping[str, str] | None = None) -> Response:
        """A page that says why there is none; or why nothing was done, with the fields that were sent to try again."""
        kind = {404: "missing", 403: "role", 500: "failed"}.get(status, "shown" if form is None else "done")
        html = render.whole("refusal.html", {**self.frame(request), "why": why, "kind": kind, "form": form})
        return HTMLResponse(html, status_code=status, headers=HEADERS)

    def standing(self, device: str) -> list[dict[str, Any]]:
        """By model of a device the release that it should run."""
        found: list[dict[str, Any]] = self.submit(lambda core, _: core.releases.standing(device))
        return found

    def rules(self) -> AlertRules:
        """By which people are told."""
        found: AlertRules = self.submit(lambda core, _: core.alerts.rules)
        return found

    def releases(self) -> Releases:
        """Of the core: to read what is in them, on this thread."""
        found: Releases = self.submit(lambda core, _: core.releases)
        return found


def add_pages(api: FastAPI, pages: Pages) -> None:
    """Add the routes."""
    get = _Get(api)

    @get("/")
    async def fleet(
        request: Request,
        q: Word = "",
        condition: Word = "",
        by: Word = "",
        page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    ) -> Response:
        query = fleet_view.FleetQuery(q=q, condition=condition, by=by, page=page)
        return await pages.answer(
            request, "fleet.html", lambda: fleet_view.fleet(pages.store, query, pages.line(), pages.clock())
        )

    @get("/devices/{name}")
    async def device(request: Request, name: str, span: Literal["hour", "day", "month"] = "hour") -> Response:
        return await pages.answer(
            request,
            "device.html",
            lambda: device_view.device(pages.store, name, span, pages.standing(name), pages.line(), pages.clock()),
        )

    @get("/rollouts")
    async def rollouts(request: Request) -> Response:
        return await pages.answer(request, "rollouts.html", lambda: rollout_view.rollouts(pages.store))

    @get("/rollouts/{number}")
    async def rollout(request: Request, number: RowNumber) -> Response:
        return await pages.answer(
            request, "rollout.html", lambda: rollout_view.rollout(pages.store, number, pages.line(), pages.clock())
        )

    @get("/learning")
    async def learning(request: Request) -> Response:
        return await pages.answer(
            request, "learning.html", lambda: learning_view.learning(pages.store, pages.releases())
        )

    @get("/alerts")
    async def alerts(request: Request) -> Response:
        def view() -> Mapping[str, Any]:
            return alert_view.alerts(pages.store, pages.rules(), pages.clock())

        return await pages.answer(request, "alerts.html", view)

    @get("/releases")
    async def releases(request: Request) -> Response:
        return await pages.answer(request, "releases.html", lambda: release_view.releases(pages.store))

    @get("/releases/compare")
    async def compare(request: Request, one: Number = 0, other: Number = 0) -> Response:
        def view() -> Mapping[str, Any]:
            return release_view.compare(pages.store, pages.releases(), pages.signing, one, other)

        return await pages.answer(request, "compare.html", view)

    @get("/releases/{counter}")
    async def release(request: Request, counter: RowNumber) -> Response:
        def view() -> Mapping[str, Any]:
            return release_view.release(pages.store, pages.releases(), pages.signing, counter)

        return await pages.answer(request, "release.html", view)

    @get("/words")
    async def words(request: Request) -> Response:
        return await pages.answer(request, "words.html", lambda: {"words": WORDS})

    @get("/static/{name}", openapi_extra=ANYBODY)
    async def static(name: str) -> Response:
        if name not in _FILES:
            return Response(status_code=404, headers=HEADERS)
        data = resources.files("edge.coordinator.pages").joinpath("static", name).read_bytes()
        headers = {**HEADERS, "cache-control": "public, max-age=300"}
        return Response(data, media_type=_FILES[name], headers=headers)

    @get("/metrics")
    def metrics() -> Response:
        return Response(
            prometheus.metrics(pages.store, pages.fleet, pages.line(), pages.clock()), media_type=prometheus.TYPE
        )

    @get("/favicon.ico")
    async def icon() -> Response:
        return RedirectResponse("/static/icon.svg", headers=HEADERS)


class _Get:
    """Pages are for people: they are no part of the description of the API."""

    def __init__(self, api: FastAPI) -> None:
        self._api = api

    def __call__(self, path: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return self._api.get(path, include_in_schema=False, response_model=None, **options)
