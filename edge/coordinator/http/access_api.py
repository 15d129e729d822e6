"""The door of the HTTP API and its pages: who is signed in, what a role may do, and the record of what was asked for.

Every route goes through it. What a route asks of a role says its method (`GET` a viewer's, all else an operator's), or
``x-role`` in its description. A write is in the audit log before it is begun, and what became of it after.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any, get_origin
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from edge.contract.clock import Now
from edge.coordinator.access import MAX_DAYS, MAX_NAME_CHARS, REQUESTS_PER_S, Access, Identity, Role, shown
from edge.coordinator.http.answers import IdentityAnswer, NewTokenAnswer, TokenAnswer
from edge.coordinator.http.once_api import once
from edge.coordinator.records import AuditEntry, as_dict

log = logging.getLogger("edge.coordinator")

# The description of a route that asks something else of a role than its method says.
VIEWER, ADMIN = ({"x-role": name} for name in ("viewer", "admin"))
ANYBODY: dict[str, Any] = {"x-role": "anybody", "security": [{}]}  # beside the token of all others
# Routes that ask for no token, since they have a credential of their own.
PUBLIC = frozenset({"/api/v1/enrol"})
# What a page needs by which people sign in; it counts itself how often they guess.
_OF_SIGN_IN = ("/sign-in", "/static/")
# Where a browser keeps the token of who signed in on a page, and what each form brings with it.
COOKIE, FORM_TOKEN = "edgeloop", "form_token"
_FORM = "application/x-www-form-urlencoded"
# Who uses an open API says so here, for the record.
WHO = "x-edge-who"
# Bodies of these are files; all others are short.
_FILES = ("/artifacts", "/signing/bundles", "/restore", "/parcel")
_MAX_BODY_BYTES = 1 << 20
_MAX_DETAIL_CHARS, _MAX_REASON_CHARS = 2000, 500
_SECRET = frozenset({"token", "password", "csr", "secret", FORM_TOKEN})
# What a request may be about, the first that it has; `who` and `reason` stand in columns of their own.
_SUBJECTS = ("device", "number", "counter", "name", "digest", "to")
_LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class Body(BaseModel):
    """What is asked for: nothing but what is known is taken, and no number for a text or a yes or no."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ReasonRequest(Body):
    """Why, for the record."""

    reason: str = Field(default="", max_length=_MAX_REASON_CHARS)


class Refusal(BaseModel):
    """What is answered where something is refused, whatever it was: why, and the branch of the error."""

    detail: str
    error: str = ""


REFUSALS: dict[int | str, str] = {
    400: "a body that cannot be read",
    401: "a token is needed, and a right one",
    403: "the role of this token does not reach",
    404: "there is no such address",
    409: "somebody changed it since, or the same is under way",
    411: "a body without `Content-Length`",
    413: "a body that is too large",
    422: "a parameter that there is not or that is wrong, or the fleet does not let that happen",
    429: "too many wrong tokens, or requests; `Retry-After` says when to go on",
    500: "a fault inside the coordinator, which goes on",
    503: "there is no room for it, or the database is locked: nothing was changed, and later it may be taken",
}


def refusals() -> dict[int | str, dict[str, Any]]:
    """What every route may answer. It refers to the form that `says_refusals` brings into the description.

    A thousand forms of their own, one for each code of each route, took half of the time that the routes took.
    """
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Refusal.__name__}"}}}
    return {code: {"description": why, "content": content} for code, why in REFUSALS.items()}


def says_refusals() -> dict[int | str, dict[str, Any]]:
    """The same with the form itself, for one route."""
    return {500: {"model": Refusal, "description": REFUSALS[500]}}


def says(answer: Any) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for its description: values of `edge.coordinator.records` go out as they are."""
    return {200: {"model": answer, "description": "done"}}


def says_file(media_type: str = "application/octet-stream") -> dict[int | str, dict[str, Any]]:
    """The same of a route that answers with a file."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"content": content, "description": "the file"}}


class TokenRequest(ReasonRequest):
    """Who gets a token, for what and for how long; 0 days are for ever."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    role: str
    days: float = Field(default=0.0, ge=0, le=MAX_DAYS)


Limit = Annotated[int, Query(ge=1, le=1000, description="So many at most; without it all.")]
Before = Annotated[int, Query(ge=0, lt=2**63, description="Only what has a lower number: the last one of a page.")]
# Of a row, in an address: the database has no larger ones.
RowNumber = Annotated[int, Path(ge=0, lt=2**63)]


def page(rows: Iterable[dict[str, Any]], key: str, limit: int | None, before: int) -> list[dict[str, Any]]:
    """A part of a list that is newest first, by the number of each.

    >>> page([{"id": 3}, {"id": 2}, {"id": 1}], "id", 1, 3)
    [{'id': 2}]
    """
    return [row for row in rows if not before or row[key] < before][:limit]


def signed_in(request: Request) -> Identity:
    """Who asks, as the door found."""
    found: Identity = request.state.identity
    return found


Who = Annotated[Identity, Depends(signed_in)]


def role_of(route: APIRoute) -> Role | None:
    """What a route asks of who calls it; None for nothing."""
    named = (route.openapi_extra or {}).get("x-role", "")
    if named:
        return None if named == "anybody" else Role.named(named)
    return Role.VIEWER if (route.methods or set()) <= {"GET", "HEAD"} else Role.OPERATOR


class Refused(Exception):  # noqa: N818  # what it is, and not what goes wrong
    """The door does not let this through."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers


def form_of(body: bytes) -> dict[str, str]:
    """The fields of a form, as a browser sends them; none of what is no form of ours."""
    try:
        return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=50))
    except ValueError:  # more fields: curl and others send anything as a form, unless they are told otherwise
        return {}


def _refusal(request: Request, exc: Refused) -> Response:
    path = request.url.path
    if "text/html" in request.headers.get("accept", "") and not path.startswith("/api/"):  # a person's browser
        if exc.status == 401:
            asked = f"{path}?{request.url.query}" if request.url.query else path
            return RedirectResponse(f"/sign-in?next={quote(asked, safe='')}", 303)
        found: Response = request.app.state.pages.refusal(request, exc.status, str(exc))
        return found
    return JSONResponse(
        {"detail": str(exc), "error": "AccessError"}, status_code=exc.status, headers=exc.headers or None
    )


def guard(api: FastAPI, access: Access, clock: Callable[[], Now]) -> None:
    """Put the door in front of all routes; `allow` must be a dependency of the application.

    Args:
        api: The application.
        access: Tokens.
        clock: The time.
    """

    @api.exception_handler(Refused)
    async def refused(request: Request, exc: Refused) -> Response:
        request.state.outcome = f"refused: {exc}"
        return _refusal(request, exc)

    @api.exception_handler(RequestValidationError)
    async def not_understood(request: Request, exc: RequestValidationError) -> Response:
        detail = "; ".join(_fault(each) for each in exc.errors()[:5])
        request.state.outcome = f"refused: {detail}"
        if "text/html" in request.headers.get("accept", ""):
            return _refusal(request, Refused(422, detail))
        return JSONResponse({"detail": detail, "error": "ConfigError"}, status_code=422)

    @api.middleware("http")
    async def door(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            _check_origin(request)
            _check_size(request)
            request.state.identity = await run_in_threadpool(_identity, request, access, clock())
        except Refused as exc:
            return _refusal(request, exc)
        request.state.again = lambda: _identity(request, access, clock())
        request.state.form_token = access.form_token(request.cookies.get(COOKIE, ""))
        request.state.entry, request.state.outcome = 0, ""
        request.state.keep = access.store.access.audit
        request.state.now_ms = clock().wall_ms
        try:
            asked = request.state.identity
            whose = f"{asked.who}/{asked.is_proved}"
            response = await once(request, call_next, access.store, whose, request.state.now_ms)
        except Exception as exc:
            await run_in_threadpool(_ended, request, access, f"failed: {type(exc).__name__}: {exc}")
            raise
        status = response.status_code
        if request.url.path in PUBLIC and status >= 400:  # it has a token of its own, which is not to be guessed either
            access.tries.failed(_address(request), clock().s)
        outcome = request.state.outcome or ("done" if status < 400 else f"refused: {status}")
        await run_in_threadpool(_ended, request, access, outcome)
        return response


def _ended(request: Request, access: Access, outcome: str) -> None:
    if request.state.entry:
        try:
            access.store.access.ended(request.state.entry, outcome[:_MAX_DETAIL_CHARS])
        except Exception:  # it was done, or not, in any case; the entry says that it was begun
            log.exception("the outcome of audit entry %d could not be written: %s", request.state.entry, outcome)


async def allow(request: Request) -> None:
    """Let through who may do this, with parameters that there are, and keep what is asked for.

    Raises:
        Refused: They may not, or there is no such parameter, or it stands there twice and is no list.
    """
    route = request.scope["route"]
    known = {each.alias for each in route.dependant.query_params}
    lists = {each.alias for each in route.dependant.query_params if get_origin(each.field_info.annotation) is list}
    if unknown := sorted(set(request.query_params) - known):
        there = ", ".join(sorted(known)) or "none"
        raise Refused(422, f"unknown parameter {unknown[0][:80]!r}; {route.path} has: {there}")
    given = [name for name, _ in request.query_params.multi_items() if name not in lists]
    if twice := sorted(name for name, count in Counter(given).items() if count > 1):
        raise Refused(422, f"{twice[0]}: expected once, it is there {given.count(twice[0])} times")
    await _check_form(request)
    identity, needed = signed_in(request), role_of(route)
    is_allowed = needed is None or identity.role >= needed
    if request.method not in ("GET", "HEAD") and needed not in (None, Role.VIEWER):
        entry = _entry(request, route, identity, await _document(request, route))
        request.state.entry = await run_in_threadpool(request.state.keep, entry)
    if not is_allowed:
        raise Refused(403, f"{identity.who} is {identity.role}; this needs the role {needed}")


async def _check_form(request: Request) -> None:
    """Take from a browser the forms of our pages only: it sends its cookie with what other pages have it send, too."""
    if request.method in ("GET", "HEAD"):
        return
    is_form = request.headers.get("content-type", "").startswith(_FORM)
    if is_form or ("authorization" not in request.headers and COOKIE in request.cookies):
        given = form_of(await request.body()).get(FORM_TOKEN, "") if is_form else ""
        if not hmac.compare_digest(given.encode(), request.state.form_token.encode()):
            if is_form and request.url.path.startswith("/api/"):
                raise Refused(
                    403, f"only pages send forms: send JSON with content-type: application/json, and files with "
                    f"content-type: application/octet-stream, instead of {_FORM}"
                )  # fmt: skip
            raise Refused(403, "this form is not of this coordinator, or it was restarted since: load the page again")


async def _document(request: Request, route: APIRoute) -> Mapping[str, Any]:
    """The body where it is one of ours, and forms; of a file nothing."""
    if request.headers.get("content-type", "").startswith(_FORM):
        return form_of(await request.body())
    if route.body_field is None or not await request.body():
        return {}
    found = await request.json()
    return found if isinstance(found, dict) else {}


def _entry(request: Request, route: APIRoute, identity: Identity, document: Mapping[str, Any]) -> AuditEntry:
    asked = {**request.query_params, **document, **request.path_params}
    who = identity.named(str(asked.pop("who", ""))[:MAX_NAME_CHARS])
    reason = str(asked.pop("reason", ""))[:_MAX_REASON_CHARS]
    told = {key: "..." if key in _SECRET else value for key, value in asked.items()}
    subject = next((str(asked[key]) for key in _SUBJECTS if asked.get(key) not in (None, "")), "")
    return AuditEntry(
        at_ms=request.state.now_ms,
        who=who,
        role=str(identity.role) if identity.is_proved else "open",
        action=f"{request.method} {route.path}",
        subject=subject[:128],
        detail=json.dumps(told, sort_keys=True)[:_MAX_DETAIL_CHARS],
        reason=reason,
    )


def _identity(request: Request, access: Access, now: Now) -> Identity:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    address = _address(request)
    claimed = unquote(request.headers.get(WHO, ""))[:MAX_NAME_CHARS]
    shown = token.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE)
    found = access.identity(shown, claimed, address, now)
    if isinstance(found, Identity):
        if not found.is_proved and (host := _host(request)) not in _LOCAL_HOSTS:
            raise Refused(403, f"this API is open to this machine only, not as {host[:80]!r}; make a token for others")
        if found.is_proved and access.pace.wait_s(found.who, now.s):
            raise Refused(
                429,
                f"more than {REQUESTS_PER_S:g} requests a second of {found.who!r}; go on in 1 s",
                **{"retry-after": "1"},
            )
        return found
    is_tried = request.url.path in PUBLIC and not access.tries.wait_s(address, now.s)
    if is_tried or request.url.path.startswith(_OF_SIGN_IN):
        return Identity(who="", role=Role.VIEWER, is_proved=False)
    wait_s = access.tries.wait_s(address, now.s)
    if found is not None or (request.url.path in PUBLIC and wait_s):
        wait = f"{wait_s:.0f}"
        raise Refused(429, f"too many wrong tokens; try again in {wait} s", **{"retry-after": wait})
    raise Refused(
        401, "a bearer token is needed, and a right one: give --token or EDGE_TOKEN", **{"www-authenticate": "Bearer"}
    )


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _host(request: Request) -> str:
    return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""


def _check_origin(request: Request) -> None:
    """A page of another site must not act with what a browser here may do."""
    origin = request.headers.get("origin")
    if request.method in ("GET", "HEAD") or origin is None:
        return
    if urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Refused(403, f"a page of {origin[:80]} may change nothing here")


def _check_size(request: Request) -> None:
    if request.method in ("GET", "HEAD") or request.url.path.endswith(_FILES):
        return
    length = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or (length and not length.isdigit()):
        raise Refused(411, "a request has a content-length")
    if int(length or 0) > _MAX_BODY_BYTES:
        raise Refused(413, f"a request has at most {_MAX_BODY_BYTES} bytes, got {length[:20]}")


# What a parameter may be, by what it is not.
_EXPECTED = {
    "missing": "a value", "less_than": "less than {lt}", "less_than_equal": "at most {le}",
    "greater_than": "more than {gt}", "greater_than_equal": "at least {ge}", "enum": "{expected}",
    "literal_error": "{expected}", "string_pattern_mismatch": "{pattern}",
    "string_too_short": "at least {min_length} characters", "string_too_long": "at most {max_length} characters",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text", "list_type": "a list", "dict_type": "an object", "model_attributes_type": "an object",
}  # fmt: skip


def _fault(error: Mapping[str, Any]) -> str:
    """What is wrong with a request, by the name of the parameter."""
    where = ".".join(str(each) for each in error["loc"][1:]) or str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"unknown parameter {where[:80]!r}"
    expected = _EXPECTED.get(error["type"])
    if expected is None:
        return f"{where[:80]}: {error['msg']}"
    text = expected.format_map(error.get("ctx") or {})
    if text.startswith("^(") and text.endswith(")$"):
        text = text[2:-2].replace("|", ", ")
    got = "none came" if error["type"] == "missing" else f"got {error.get('input')!r:.80}"
    return f"{where[:80]}: expected {text}" + ("" if _SECRET & {str(each) for each in error["loc"]} else f", {got}")


def add_access_routes(api: FastAPI, access: Access, clock: Callable[[], Now]) -> None:
    """Add the routes of tokens and of the audit log, which are an admin's.

    Args:
        api: The application.
        access: Tokens.
        clock: The time.
    """

    @api.get("/api/v1/tokens", openapi_extra=ADMIN, responses=says(list[TokenAnswer]))
    def tokens() -> list[dict[str, Any]]:
        """All tokens, without their secrets."""
        return [shown(each) for each in access.store.access.tokens()]

    @api.post("/api/v1/tokens", openapi_extra=ADMIN, responses=says(NewTokenAnswer))
    def new_token(body: TokenRequest) -> dict[str, Any]:
        """Make a token; the answer is the only one that has the secret, as `token`."""
        made, secret = access.new_token(body.name, Role.named(body.role), clock(), days=body.days)
        return shown(made) | {"token": secret}

    @api.post("/api/v1/tokens/{number}/revoke", openapi_extra=ADMIN, responses=says(TokenAnswer))
    def revoke(number: RowNumber, body: ReasonRequest) -> dict[str, Any]:
        """Believe a token no more."""
        del body  # as everywhere: the door has kept the reason
        return shown(access.revoke(number, clock()))

    @api.get("/api/v1/audit", openapi_extra=ADMIN, responses=says(list[AuditEntry]))
    def audit(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        who: str = "",
        subject: str = "",
        since: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    ) -> list[dict[str, Any]]:
        """Who asked for what and why, newest first; `before` is the id of the last one of the page before."""
        found = access.store.access.entries(limit, before_id=before, who=who, subject=subject, since_ms=since)
        return [as_dict(each) for each in found]

    @api.get("/api/v1/me", responses=says(IdentityAnswer))
    def me(who: Who) -> dict[str, Any]:
        """Who is signed in."""
        return {"who": who.who, "role": str(who.role), "proved": who.is_proved}
