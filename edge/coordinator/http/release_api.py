"""Artifacts and releases over HTTP: what comes in is proved; what is there is listed, shown, compared, fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from pydantic import Field

from edge.contract.clock import Now
from edge.contract.errors import BundleError
from edge.contract.names import MAX_NAME_CHARS
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.http.access_api import Before, Body, Limit, RowNumber, page, says, says_file
from edge.coordinator.http.answers import (
    ArtifactAnswer,
    BackAnswer,
    DifferenceAnswer,
    LineageAnswer,
    NamedRelease,
    ReleaseAnswer,
    WantedAnswer,
)
from edge.coordinator.http.rollout_views import summaries
from edge.coordinator.records import Receipt, Release, as_dict
from edge.coordinator.releases.checks import golden_fault
from edge.coordinator.releases.intake import is_bundle, open_named
from edge.coordinator.store.store import Store

MAX_ARTIFACT_BYTES = 1 << 30
Submit = Callable[[Callable[[CoordinatorCore, Now], Any]], Any]


class PushRequest(Body):
    """What to push to whom; no devices means all, also those to come."""

    digest: str
    kind: str = Field(pattern="^(head|bundle)$")
    backbone: str
    model: str = Field(default="", max_length=MAX_NAME_CHARS)
    devices: list[str] = Field(default=[])
    reason: str = Field(default="pushed by hand", max_length=200)
    name: str = Field(default="", max_length=100)
    notes: str = Field(default="", max_length=4000)
    file: str = Field(default="", max_length=255)
    force: bool = False


class RollbackRequest(Body):
    """To which release to go back, 0 for the one before; of which model, "" for that of the newest release.

    `force`: also to what devices judged worse, or what never went through a rollout.
    """

    to: int = Field(default=0, ge=0, lt=2**63)
    model: str = Field(default="", max_length=MAX_NAME_CHARS)
    reason: str = Field(default="", max_length=200)
    force: bool = False


def named(store: Store, releases: Iterable[Release]) -> list[dict[str, Any]]:
    """Releases as they go out: `digest` is of the file, `bundle` the one by which devices and tools name a bundle."""
    bundles = {each.digest: each.identity for each in store.releases.bundles()}
    return [as_dict(each) | {"bundle": bundles.get(each.digest, "")} for each in releases]


def add_release_routes(api: FastAPI, store: Store, submit: Submit) -> None:
    """Add the routes.

    Args:
        api: The application.
        store: For reading.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
    """

    @api.get("/api/releases", responses=says(list[NamedRelease]))
    @api.get("/api/v1/releases", responses=says(list[NamedRelease]))
    def releases(limit: Limit | None = None, before: Before = 0) -> list[dict[str, Any]]:
        """Releases, newest first."""
        return page(named(store, store.releases.all()), "counter", limit, before)

    @api.post("/api/artifacts", responses=says(ArtifactAnswer))
    @api.post("/api/v1/artifacts", responses=says(ArtifactAnswer))
    async def add_artifact(
        request: Request,
        file: Annotated[str, Query(max_length=255)] = "the file",
        force: bool = False,
        reason: Annotated[str, Query(max_length=500)] = "",
    ) -> dict[str, Any]:
        del reason  # the door has kept it
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MAX_ARTIFACT_BYTES:
                raise HTTPException(413, f"an artifact is at most {MAX_ARTIFACT_BYTES} bytes")

        def add() -> Any:
            with tempfile.NamedTemporaryFile(prefix="edgeloop-", suffix=".edge") as copy:
                copy.write(data)
                copy.flush()
                path = Path(copy.name)
                if is_bundle(bytes(data[:4])) and not force:  # here, and not on the thread that devices wait for
                    open_named(path, file)
                    if why := golden_fault(path):
                        raise BundleError(f"{file}: {why.replace(copy.name, file)}; --force takes it all the same")
                return submit(lambda core, _: core.add_artifact(bytes(data), path, file))

        result: dict[str, Any] = await run_in_threadpool(add)
        return result

    @api.post("/api/releases", responses=says(NamedRelease))
    def push(body: PushRequest) -> dict[str, Any]:
        whom = (body.devices, body.reason)
        more = body.model_dump(include={"model", "name", "notes", "file", "force"})
        row = submit(lambda core, now: core.push(body.digest, body.kind, body.backbone, *whom, now, **more))
        return named(store, [row])[0]

    @api.get("/api/v1/releases/{counter}", responses=says(ReleaseAnswer))
    def show_release(counter: RowNumber) -> dict[str, Any]:
        found: dict[str, Any] = submit(lambda core, _: core.releases.show(counter))
        rollouts = [each for each in summaries(store) if each["release"] == counter]
        return found | {"bundle": found["contents"].get("bundle", ""), "rollouts": rollouts}

    @api.get("/api/v1/releases/{counter}/lineage", responses=says(LineageAnswer))
    def lineage(counter: RowNumber) -> dict[str, Any]:
        """Whose learning is in a head: devices, samples, and the releases that have it in."""
        found: dict[str, Any] = submit(lambda core, _: core.receipts.lineage(core.releases.get(counter)))
        return found

    @api.get("/api/v1/receipts", responses=says(list[Receipt]))
    def receipts(limit: Limit | None = None, before: Before = 0) -> list[dict[str, Any]]:
        """Receipts of forgetting, newest first."""
        return page(map(as_dict, store.receipts.all()), "id", limit, before)

    @api.get("/api/v1/receipts/key", response_class=Response, responses=says_file("application/x-pem-file"))
    def receipts_key() -> Response:
        """The public key by which they are checked, PEM."""
        return Response(submit(lambda core, _: core.receipts.public_key()), media_type="application/x-pem-file")

    @api.get("/api/v1/receipts/{number}", responses=says(Receipt))
    def receipt(number: RowNumber) -> dict[str, Any]:
        """One, with its envelope as `signed`."""
        return as_dict(submit(lambda core, _: core.receipts.get(number)))

    @api.get("/api/v1/releases/{counter}/difference/{other}", responses=says(DifferenceAnswer))
    def difference(counter: RowNumber, other: RowNumber) -> dict[str, Any]:
        found: dict[str, Any] = submit(lambda core, _: core.releases.difference(counter, other))
        return found

    @api.get("/api/v1/releases/{counter}/artifact", response_class=Response, responses=says_file())
    def download(counter: RowNumber) -> Response:
        artifact = submit(lambda core, _: core.releases.artifact(counter))
        return FileResponse(artifact.path, media_type="application/octet-stream", headers={"x-digest": artifact.digest})

    @api.get("/api/v1/devices/{device}/wanted", responses=says(list[WantedAnswer]))
    def wanted(device: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = submit(lambda core, _: core.releases.standing(device))
        return found

    @api.get("/api/v1/rollback", responses=says(BackAnswer))
    def back(
        to: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        model: Annotated[str, Query(max_length=MAX_NAME_CHARS)] = "",
        force: bool = False,
    ) -> dict[str, Any]:
        """What a rollback would do; it is refused as that would be."""
        found = submit(lambda core, _: core.releases.back(to=to, model=model, force=force))
        undone, wanted = named(store, [found.undone, found.wanted])
        return {"undone": undone, "wanted": wanted, "devices": list(found.devices)}

    @api.post("/api/v1/rollback", responses=says(NamedRelease))
    def rollback(body: RollbackRequest) -> dict[str, Any]:
        back = body.model_dump()
        return named(store, [submit(lambda core, now: core.rollback(now, **back))])[0]
