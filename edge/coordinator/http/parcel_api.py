"""Parcels over HTTP: what devices without a network should be told, and what they said."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from edge.coordinator.http.access_api import says, says_file
from edge.coordinator.http.answers import ParcelAnswer
from edge.coordinator.http.release_api import Submit

MAX_PARCEL_BYTES = 256 << 20


def add_parcel_routes(api: FastAPI, submit: Submit) -> None:
    """Add the routes.

    Args:
        api: The application.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
    """

    @api.get("/api/v1/parcel", response_class=Response, responses=says_file())
    def carry_out(device: Annotated[list[str], Query(min_length=1, max_length=1000)]) -> Response:
        data = submit(lambda core, now: core.carry_out(device, now))
        return Response(data, media_type="application/octet-stream")

    @api.post("/api/v1/parcel", responses=says(ParcelAnswer))
    async def carry_in(request: Request, file: Annotated[str, Query(max_length=255)] = "") -> dict[str, Any]:
        """Take what a device wrote; `file` is what it is called in messages."""
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MAX_PARCEL_BYTES:
                raise HTTPException(413, f"a parcel is at most {MAX_PARCEL_BYTES} bytes")

        def take() -> Any:
            with tempfile.NamedTemporaryFile(prefix="edgeloop-", suffix=".parcel") as copy:
                copy.write(data)
                copy.flush()
                return submit(lambda core, now: core.carry_in(Path(copy.name), now, file or "the parcel"))

        result: dict[str, Any] = await run_in_threadpool(take)
        return result
