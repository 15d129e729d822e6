"""Contributions made of numbers."""

from __future__ import annotations

from tests.support.contributions import bundle, delta_update, statistics_update

__all__ = ["bundle", "delta_update", "statistics_update"]
