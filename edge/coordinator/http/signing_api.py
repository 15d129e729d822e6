"""What is signed, and what people signed elsewhere, over HTTP."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, Field

from edge.contract.errors import RolloutError
from edge.coordinator.http.access_api import says
from edge.coordinator.http.answers import SigningAnswer, VersionAnswer
from edge.coordinator.http.release_api import Submit
from edge.coordinator.signing.signing import Signing


class OfBundle(BaseModel):
    """What a list says of a bundle beside its bytes."""

    backbone: str
    name: str


class ListedBundle(BaseModel):
    """A bundle that devices may run: its bytes."""

    length: int
    hashes: dict[str, str]
    custom: OfBundle


class BundleList(BaseModel):
    """A targets document of The Update Framework: by path, the bundles that devices may run."""

    type_: Literal["targets"] = Field(alias="_type")
    spec_version: str
    version: int
    expires: str
    targets: dict[str, ListedBundle]


class Signature(BaseModel):
    """By one key."""

    keyid: str
    sig: str


class SignedBundleList(BaseModel):
    """The newest list of bundles as it was signed: these very bytes."""

    signatures: list[Signature]
    signed: BundleList


def add_signing_routes(api: FastAPI, submit: Submit, signing: Signing | None) -> None:
    """What is signed, and what people signed elsewhere."""

    @api.get("/api/signing", responses=says(SigningAnswer))
    def signing_status() -> dict[str, Any]:
        return {"signed": signing is not None, "roles": {} if signing is None else signing.status()}

    @api.get("/api/signing/bundles", responses=says(SignedBundleList))
    def signed_bundles() -> Response:
        return Response(_keys(signing).bundles(), media_type="application/json")

    @api.post("/api/signing/bundles", responses=says(VersionAnswer))
    async def sign_bundles(request: Request) -> dict[str, Any]:
        data = await request.body()
        keys = _keys(signing)
        return {"version": await run_in_threadpool(submit, lambda _, now: keys.take_bundles(data, now))}


def _keys(signing: Signing | None) -> Signing:
    if signing is None:
        raise RolloutError("this coordinator has no keys: start it with --signing, see `edge-fleet keys init`")
    return signing
