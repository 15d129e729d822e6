"""Writes that are asked for again: with the same ``Idempotency-Key`` a repeat answers what the first one answered.

Who lost the answer asks again, and nothing is made twice. The key is kept before anything is done and the answer after
it, for a day. What was refused changed nothing, and is asked anew.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from edge.coordinator.records import Answer
from edge.coordinator.store.database import DatabaseError
from edge.coordinator.store.store import Store

HEADER, REPEATED = "idempotency-key", "idempotency-replayed"
_MAX_KEY_CHARS = 128
# The answer has a secret that is shown once, and kept nowhere.
_SECRETS = ("/tokens", "/enrolments", "/replace", "/enrol")
# Files go by their digest: the same bytes again change nothing.
_FILES = ("/artifacts", "/signing/bundles", "/restore", "/parcel")

Next = Callable[[Request], Awaitable[Response]]


async def once(request: Request, call_next: Next, store: Store, who: str, now_ms: int) -> Response:
    """Answer a request, or say again what was answered when it was asked before.

    Args:
        request: It.
        call_next: Answers it.
        store: Keeps answers.
        who: Asks: keys of one person are not those of another.
        now_ms: The time.
    """
    key = request.headers.get(HEADER, "")
    path = request.url.path
    if HEADER not in request.headers or request.method != "POST" or path.endswith(_FILES):
        return await call_next(request)
    if not 0 < len(key) <= _MAX_KEY_CHARS or not key.isprintable():
        return _refusal(422, f"Idempotency-Key: expected 1 to {_MAX_KEY_CHARS} printable characters")
    if path.endswith(_SECRETS):
        return _refusal(422, f"Idempotency-Key: not for {path}, whose answer has a secret that is kept nowhere")
    digest = hashlib.sha256(f"{path}?{request.url.query}\0".encode() + await request.body()).hexdigest()
    number = hashlib.sha256(f"{who}\0{key}".encode()).hexdigest()
    known = await run_in_threadpool(store.access.begin_once, number, digest, now_ms)
    if known is not None:
        return _again(known, digest)
    response = await call_next(request)
    if response.status_code >= 500 and response.status_code != 503:  # what became of it nobody knows
        return response
    if response.status_code >= 400:
        with contextlib.suppress(DatabaseError):  # one that is full may take not even that
            await run_in_threadpool(store.access.forget_once, number)
        return response
    body = b"".join([piece async for piece in response.body_iterator])  # type: ignore[attr-defined]
    await run_in_threadpool(store.access.answered, number, response.status_code, body.decode())
    return Response(body, response.status_code, dict(response.headers))


def _again(known: Answer, digest: str) -> Response:
    if known.digest != digest:
        return _refusal(422, "Idempotency-Key: it was used for another request; take a new one")
    if not known.status:
        return _refusal(
            409,
            "the same was asked for under this Idempotency-Key and is under way, or the coordinator was stopped in "
            "its course: look what became of it before you ask with a new key",
        )
    return Response(known.body, known.status, {REPEATED: "true"}, "application/json")


def _refusal(status: int, detail: str) -> Response:
    error = "ConflictError" if status == 409 else "ConfigError"
    return JSONResponse({"detail": detail, "error": error}, status_code=status)
