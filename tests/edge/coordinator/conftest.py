"""Contributions made of numbers, and a database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.coordinator.store.store import Store
from tests.support.contributions import bundle, delta_update, statistics_update

__all__ = ["bundle", "delta_update", "statistics_update"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "db.sqlite")
    yield made
    made.close()
