"""A second bundle, as for the tests of the agent."""

from __future__ import annotations

from tests.edge.agent.conftest import other_bundle

__all__ = ["other_bundle"]
