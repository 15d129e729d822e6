"""What people do on pages: signing in, and what changes something. Each asks first; the door keeps who did it, and why.

A page asks (`GET`) and its form does it (`POST`, same address), so that nothing is done by following a link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from edge.contract.errors import EdgeError, RolloutError
from edge.coordinator.access import Access, Identity
from edge.coordinator.devices.admission import Decision
from edge.coordinator.http.access_api import ANYBODY, COOKIE, RowNumber, Who, form_of
from edge.coordinator.pages import render
from edge.coordinator.pages.rollout_view import can
from edge.coordinator.pages.routes import HEADERS, Pages, Word
from edge.coordinator.pages.texts import text
from edge.coordinator.rollout.states import RolloutEvent
from edge.coordinator.turns import in_the_way, named

Order = Literal["pause", "resume", "retry", "abort", "revert"]
SIGNED_IN_S = 43_200
OPERATOR = {"x-role": "operator"}
# What cannot be taken back by doing something else.
_DANGEROUS = frozenset({"abort", "revert", "exclude"})
# What is not done without saying why.
_NEEDS_REASON = frozenset({"resume"})
_MAX_REASON_CHARS = 500


def add_actions(api: FastAPI, pages: Pages, access: Access) -> None:
    """Add the routes.

    Args:
        api: The application.
        pages: What pages are made with.
        access: Tokens.
    """
    _add_sign_in(api, pages, access)
    _add_rollouts(api, pages)
    _add_fleet(api, pages)
    _add_alerts(api, pages)
    _add_admission(api, pages)
    _add_questions(api, pages)


def _ask(
    pages: Pages, request: Request, kind: str, subject: str, back: str, choice: str = "", why: str = "", **fields: str
) -> Response:
    """A page that says what would be done, with a form that does it, perhaps with a choice to make and why."""
    values = {"kind": kind, "subject": subject, "back": back, "fields": fields, "is_dangerous": kind in _DANGEROUS}
    values |= {"choice": choice, "why": why, "needs_reason": kind in _NEEDS_REASON}
    return HTMLResponse(render.whole("confirm.html", {**pages.frame(request), **values}), headers=HEADERS)


async def _do(pages: Pages, request: Request, back: str, what: Callable[[Mapping[str, str]], Any]) -> Response:
    """Do what a form asks for, and go back to the page; a refusal is a page, and is in the audit log."""
    given = form_of(await request.body())
    try:
        await run_in_threadpool(what, given)
    except EdgeError as exc:
        request.state.outcome = f"refused: {exc}"
        return pages.refusal(
            request, 422, str(exc), {name: each for name, each in given.items() if name != "form_token"}
        )
    return RedirectResponse(back, 303, headers=HEADERS)


def _reason(given: Mapping[str, str]) -> str:
    return given.get("reason", "")[:_MAX_REASON_CHARS]


def _add_rollouts(api: FastAPI, pages: Pages) -> None:
    @api.get("/rollouts/{number}/order", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_order(request: Request, number: RowNumber, order: Order) -> Response:
        rollout = pages.store.rollouts.get(number)
        if rollout is None:
            return _no_rollout(pages, request, number)
        if not can(rollout.state, _one_of(order)):
            return pages.refusal(request, 422, f"rollout {number} is {rollout.state}: to {order} it would do nothing")
        return _ask(pages, request, order, text("rollout.n", n=number), f"/rollouts/{number}", order=order)

    @api.post("/rollouts/{number}/order", include_in_schema=False, response_model=None)
    async def give_order(request: Request, number: RowNumber, who: Who) -> Response:
        def give(given: Mapping[str, str]) -> None:
            event = _one_of(given.get("order", ""))
            pages.submit(lambda core, now: core.rollouts.order(number, event, who.who, _reason(given), now))

        return await _do(pages, request, f"/rollouts/{number}", give)

    @api.get("/rollouts/{number}/exclude", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_exclude(request: Request, number: RowNumber, device: Word) -> Response:
        if pages.store.rollouts.get(number) is None:
            return _no_rollout(pages, request, number)
        subject = f"{text('rollout.n', n=number)}, {device}"
        return _ask(pages, request, "exclude", subject, f"/rollouts/{number}", device=device)

    @api.post("/rollouts/{number}/exclude", include_in_schema=False, response_model=None)
    async def exclude(request: Request, number: RowNumber, who: Who) -> Response:
        def give(given: Mapping[str, str]) -> None:
            device = given.get("device", "")
            pages.submit(lambda core, now: core.rollouts.exclude(number, device, who.who, _reason(given), now))

        return await _do(pages, request, f"/rollouts/{number}", give)


def _no_rollout(pages: Pages, request: Request, number: int) -> Response:
    return pages.refusal(request, 404, f"there is no rollout {number}; all of them are under Rollouts")


def _one_of(order: str) -> RolloutEvent:
    """What a form asks of a rollout.

    Raises:
        RolloutError: It is nothing that people may ask for.
    """
    if order not in ("pause", "resume", "retry", "abort", "revert"):
        raise RolloutError(f"order {order[:80]!r}: expected pause, resume, retry, abort or revert")
    return RolloutEvent(order)


def _add_fleet(api: FastAPI, pages: Pages) -> None:
    @api.get("/paused", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_paused(request: Request, paused: Literal["yes", "no"]) -> Response:
        kind = "pause-all" if paused == "yes" else "resume-all"
        return _ask(pages, request, kind, text("fleet.of", name=pages.fleet), "/rollouts", paused=paused)

    @api.post("/paused", include_in_schema=False, response_model=None)
    async def pause(request: Request, who: Who) -> Response:
        def give(given: Mapping[str, str]) -> None:
            paused = given.get("paused") == "yes"
            pages.submit(lambda core, now: core.pause_all(who.who, _reason(given), now, paused=paused))

        return await _do(pages, request, "/rollouts", give)

    @api.get("/merge", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_merge(request: Request) -> Response:
        backbones = {each.backbone for each in pages.store.contributions.all()}
        overtaken = {each.id: each for name in sorted(backbones) for each in in_the_way(pages.store, name)}
        choice = {"choice": "supersede", "why": named(list(overtaken.values()))} if overtaken else {}
        return _ask(pages, request, "merge", text("fleet.of", name=pages.fleet), "/learning", **choice)

    @api.post("/merge", include_in_schema=False, response_model=None)
    async def merge(request: Request, who: Who) -> Response:
        def give(given: Mapping[str, str]) -> None:
            may_end = given.get("supersede") == "yes"
            pages.submit(lambda core, now: core.merge_now(now, supersede=may_end, who=who.who))

        return await _do(pages, request, "/learning", give)


def _add_admission(api: FastAPI, pages: Pages) -> None:
    @api.get("/devices/{name}/approve", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_approve(request: Request, name: str) -> Response:
        return _ask(pages, request, "approve", name, f"/devices/{quote(name, safe='')}")

    @api.post("/devices/{name}/approve", include_in_schema=False, response_model=None)
    async def approve(request: Request, name: str, who: Who) -> Response:
        def give(given: Mapping[str, str]) -> None:
            pages.submit(lambda core, now: core.decide(name, Decision.APPROVE, who.who, _reason(given), now))

        return await _do(pages, request, f"/devices/{quote(name, safe='')}", give)


def _add_questions(api: FastAPI, pages: Pages) -> None:
    @api.get("/questions/{number}/answer", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_answer(request: Request, number: RowNumber) -> Response:
        question = pages.store.questions.get(number)
        if question is None:
            return pages.refusal(request, 404, f"there is no question {number}")
        classes = pages.submit(lambda core, _: core.questions.classes(question.backbone))
        values = {"question": question, "classes": classes, "alike": pages.store.questions.samples(number)}
        values["has_picture"] = bool(pages.store.questions.picture(number))
        return HTMLResponse(render.whole("question.html", {**pages.frame(request), **values}), headers=HEADERS)

    @api.post("/questions/{number}/answer", include_in_schema=False, response_model=None)
    async def answer(request: Request, number: RowNumber, who: Who) -> Response:
        def give(given: Mapping[str, str]) -> None:
            label = given.get("label", "")
            pages.submit(lambda core, now: core.questions.answer(number, label, who.who, now))

        return await _do(pages, request, "/learning", give)

    @api.get("/questions/{number}/skip", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_skip(request: Request, number: RowNumber) -> Response:
        return _ask(pages, request, "skip", text("question.n", n=number), "/learning")

    @api.post("/questions/{number}/skip", include_in_schema=False, response_model=None)
    async def skip(request: Request, number: RowNumber, who: Who) -> Response:
        def give(_: Mapping[str, str]) -> None:
            pages.submit(lambda core, now: core.questions.skip(number, who.who, now))

        return await _do(pages, request, "/learning", give)


def _add_alerts(api: FastAPI, pages: Pages) -> None:
    @api.get("/alerts/{number}/acknowledge", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_acknowledge(request: Request, number: RowNumber) -> Response:
        return _ask(pages, request, "acknowledge", text("alert.n", n=number), "/alerts")

    @api.post("/alerts/{number}/acknowledge", include_in_schema=False, response_model=None)
    async def acknowledge(request: Request, number: RowNumber, who: Who) -> Response:
        def give(_: Mapping[str, str]) -> None:
            pages.submit(lambda core, now: core.alerts.acknowledge(number, who.who, now))

        return await _do(pages, request, "/alerts", give)

    @api.get("/alerts/{number}/silence", include_in_schema=False, openapi_extra=OPERATOR, response_model=None)
    def ask_silence(request: Request, number: RowNumber, hours: Annotated[int, Query(ge=0, le=720)] = 24) -> Response:
        kind = "silence" if hours else "unsilence"
        return _ask(pages, request, kind, text("alert.n", n=number), "/alerts", hours=str(hours))

    @api.post("/alerts/{number}/silence", include_in_schema=False, response_model=None)
    async def silence(request: Request, number: RowNumber, who: Who) -> Response:
        def give(given: Mapping[str, str]) -> None:
            hours = given.get("hours", "")
            if not hours.isascii() or not hours.isdigit() or int(hours) > 720:
                raise RolloutError(f"hours {hours[:20]!r}: expected 0 to 720")
            pages.submit(lambda core, now: core.alerts.silence(number, 3600.0 * int(hours), who.who, now))

        return await _do(pages, request, "/alerts", give)


def _add_sign_in(api: FastAPI, pages: Pages, access: Access) -> None:
    @api.get("/sign-in", include_in_schema=False, openapi_extra=ANYBODY, response_model=None)
    def ask_sign_in(request: Request, next: Word = "/") -> Response:  # noqa: A002  # it stands in the address
        return _sign_in(pages, request, next, "")

    @api.post("/sign-in", include_in_schema=False, openapi_extra=ANYBODY, response_model=None)
    async def sign_in(request: Request) -> Response:
        given = form_of(await request.body())
        token, after = given.get("token", "").strip(), given.get("next", "/")
        address = request.client.host if request.client else ""
        found = await run_in_threadpool(access.identity, token, "", address, pages.clock())
        if not isinstance(found, Identity):
            why = text("sign-in.wait", n=f"{found:.0f}") if found is not None else text("sign-in.wrong")
            return _sign_in(pages, request, after, why)
        # An address of another host would begin with a second slash, or with a scheme.
        is_ours = after.startswith("/") and not after.startswith(("//", "/\\"))
        answer = RedirectResponse(after if is_ours else "/", 303, headers=HEADERS)
        answer.set_cookie(
            COOKIE, token, max_age=SIGNED_IN_S, httponly=True, samesite="lax", secure=request.url.scheme == "https"
        )
        return answer

    @api.post("/sign-out", include_in_schema=False, openapi_extra=ANYBODY, response_model=None)
    async def sign_out() -> Response:
        answer = RedirectResponse("/sign-in", 303, headers=HEADERS)
        answer.delete_cookie(COOKIE)
        return answer


def _sign_in(pages: Pages, request: Request, after: str, why: str) -> Response:
    html = render.whole("sign-in.html", {**pages.frame(request), "next": after, "why": why})
    return HTMLResponse(html, status_code=401 if why else 200, headers=HEADERS)
