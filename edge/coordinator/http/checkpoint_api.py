"""Checkpoints over HTTP: asked for, listed, downloaded, and given to a device."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from edge.channel.upload import MAX_UPLOAD_BYTES
from edge.contract.errors import RolloutError
from edge.contract.names import MAX_NAME_CHARS
from edge.coordinator.devices.checkpoints import CHECKPOINT, SYNC
from edge.coordinator.http.access_api import RowNumber, says, says_file
from edge.coordinator.http.release_api import Submit
from edge.coordinator.records import KeptCheckpoint, Order, as_dict
from edge.coordinator.store.store import Store

Name = Annotated[str, Query(max_length=MAX_NAME_CHARS)]


def add_checkpoint_routes(api: FastAPI, store: Store, submit: Submit) -> None:
    """Add the routes.

    Args:
        api: The application.
        store: For reading.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
    """

    @api.get("/api/v1/devices/{device}/checkpoints", responses=says(list[KeptCheckpoint]))
    def checkpoints(device: str) -> list[dict[str, Any]]:
        return [as_dict(row) for row in store.checkpoints.of(device)]

    @api.post("/api/v1/devices/{device}/checkpoint", responses=says(Order))
    def ask(device: str, model: Name = "") -> dict[str, Any]:
        return as_dict(submit(lambda core, now: core.ask(device, model, now, CHECKPOINT)))

    @api.post("/api/v1/devices/{device}/sync", responses=says(Order))
    def sync(device: str) -> dict[str, Any]:
        return as_dict(submit(lambda core, now: core.ask(device, "", now, SYNC)))

    # All that a device learned is more than who only looks may have.
    @api.get(
        "/api/v1/checkpoints/{digest}",
        openapi_extra={"x-role": "operator"},
        response_class=Response,
        responses=says_file(),
    )
    def download(digest: str) -> Response:
        data = submit(lambda core, _: core.checkpoints.data(digest))
        return Response(data, media_type="application/octet-stream")

    @api.post("/api/v1/devices/{device}/restore", responses=says(Order))
    async def restore(
        request: Request,
        device: str,
        source: Annotated[str, Query(max_length=64)],
        model: Name = "",
        digest: Annotated[str, Query(max_length=64)] = "",
        force: bool = False,
    ) -> dict[str, Any]:
        brought = await request.body()
        if len(brought) > MAX_UPLOAD_BYTES:
            raise HTTPException(413, f"a checkpoint is at most {MAX_UPLOAD_BYTES} bytes")

        def give() -> Any:
            more = {"model": model, "digest": digest, "brought": brought, "force": force}
            return submit(lambda core, now: core.restore(device, source, now, **more))

        return as_dict(await run_in_threadpool(give))

    @api.get("/api/v1/orders/{number}", responses=says(Order))
    def order(number: RowNumber) -> dict[str, Any]:
        found = store.checkpoints.get_order(number)
        if found is None:
            raise RolloutError(f"there is no order {number}")
        return as_dict(found)
