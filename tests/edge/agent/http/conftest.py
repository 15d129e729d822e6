"""An agent's core with three models, asked as the HTTP server asks it, but that nobody waits for a thread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.config import AgentConfig
from edge.agent.core import AgentCore
from edge.agent.http.guard import Guard
from edge.agent.http.http11 import Answer, Request
from edge.agent.http.site import Site
from edge.agent.model.company import Answered, Company, Job
from edge.agent.models import Models
from edge.contract.clock import Now
from tests.support.fleet import unhurried

LOCAL = {"host": "127.0.0.1:8080"}


class Asked:
    """The agent behind a site."""

    def __init__(self, core: AgentCore) -> None:
        self.core, self.now = core, Now(100.0, 1_800_000_000_000)
        self._company = Company(5.0, time.perf_counter)

    def ask(self, work: Callable[[AgentCore, Now], Any]) -> Any:
        return work(self.core, self.now)

    def infer(self, job: Job) -> Answered:
        found = self._company.answer(self.core, [job], self.now)[0]
        if isinstance(found, Exception):
            raise found
        return found


class Tried:
    """A site, and what is asked of it."""

    def __init__(self, core: AgentCore) -> None:
        self.core = core
        self.site = Site(Asked(core), Guard(), "h")

    def __call__(
        self, method: str, path: str, body: bytes | dict | list = b"", query: dict | None = None, **headers: str
    ) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.site.answer(Request(method, path, query or {}, {**LOCAL, **named}, True, len(data), data))

    def json(self, *arguments: Any, **options: Any) -> Any:
        found = self(*arguments, **options)
        assert found.status == 200, found.body
        return json.loads(found.body)

    def refused(self, status: int, *arguments: Any, **options: Any) -> str:
        found = self(*arguments, **options)
        assert found.status == status, (found.status, found.body)
        return str(json.loads(found.body)["error"])


@pytest.fixture
def tried(
    tmp_path: Path, digits_bundle: Path, voice_bundle: Path, masked_bundles: tuple[Path, Path]
) -> Iterator[Tried]:
    bundles = {"digits": digits_bundle, "a/voice": voice_bundle, "masked": masked_bundles[1]}
    models = Models(AgentConfig(bundles=bundles, state_dir=tmp_path, fleet="f", device="d", profile=unhurried()))
    yield Tried(AgentCore(AgentConfig(bundles=bundles, state_dir=tmp_path, fleet="f", device="d",
                                      profile=unhurried(), outbox_mb=0.0), models, stopwatch=lambda: 0.0))  # fmt: skip
    models.close()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
