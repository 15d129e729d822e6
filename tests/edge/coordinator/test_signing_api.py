"""What a fleet with keys gives over HTTP to those who sign elsewhere."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from edge.contract.clock import Now
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.http.api import build_api
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.signing import ceremony
from edge.coordinator.signing.repository import Repository
from tests.support.answers import Described
from tests.support.fleet import store_in


def test_the_list_of_bundles_is_what_its_description_says_before_and_after_one_is_signed(
    tmp_path: Path, digits_bundle: Path
) -> None:
    folders = ceremony.init(tmp_path / "keys", datetime.now(UTC))
    now = Now(1000.0, int(datetime.now(UTC).timestamp() * 1000))
    signing = Repository(tmp_path / "keys" / "coordinator", now)
    store = store_in(tmp_path / "db.sqlite")
    config = CoordinatorConfig(fleet="lab", name="c", data_dir=tmp_path, auto_merge=False)
    core = CoordinatorCore(config, store, ArtifactStore(tmp_path / "artifacts"), signing=signing)
    app = build_api(
        store, lambda function: function(core, now), "lab", None, signing, clock=lambda: now,
        line=lambda: core.dialogue.line.state,
    )  # fmt: skip
    described = Described(app)

    async def ask(method: str, content: bytes = b"") -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.request(method, "/api/signing/bundles", content=content)

    with asyncio.Runner() as loop:
        empty = loop.run(ask("GET"))
        assert empty.status_code == 200, empty.text
        described.look(empty)
        assert empty.json()["signed"]["targets"] == {}
        document = ceremony.sign_bundle(empty.content, digits_bundle, folders.bundles, datetime.now(UTC))
        taken = loop.run(ask("POST", document))
        described.look(taken)
        assert taken.json() == {"version": 2}
        full = loop.run(ask("GET"))
    described.look(full)
    assert full.content == document  # the bytes that were signed
    assert len(full.json()["signed"]["targets"]) == 1
    wrong = json.loads(document)
    next(iter(wrong["signed"]["targets"].values()))["length"] = "1"
    with pytest.raises(ValidationError):
        described.look(httpx.Response(200, json=wrong, request=full.request))
