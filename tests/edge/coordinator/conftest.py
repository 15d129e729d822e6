"""Contributions made of numbers, and a database of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.coordinator.store.store import Store
from tests.support.contributions import bundle, delta_update, statistics_update
from tests.support.fleet import store_in
from tests.support.postgres import PostgresServer, serve

__all__ = ["bundle", "delta_update", "statistics_update"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with serve() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty place for a database."""
    if request.param == "sqlite":
        return tmp_path / "db.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new()


@pytest.fixture
def store(request: pytest.FixtureRequest, where: Path | str) -> Iterator[Store]:
    made = store_in(where) if isinstance(where, Path) else request.getfixturevalue("postgres").new_store(where)
    yield made
    made.close()
