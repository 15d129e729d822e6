"""Whose a contribution is, and which of a lineage is kept."""

from __future__ import annotations

from edge.coordinator.learning.learning import newer, owner_of
from edge.coordinator.records import Contribution


def contribution(version: int, device: str = "d", state_id: str = "") -> Contribution:
    return Contribution(
        device=device, lineage="l", backbone="b", learner="statistics", version=version, n_samples=version,
        base_release=0, digest=f"{version}", received_ms=0, state_id=state_id,
    )  # fmt: skip


def test_a_lineage_is_of_who_came_with_it_first_or_has_its_folder() -> None:
    known = [contribution(1, "a", "a" * 16)]
    assert owner_of([], "evil", "") is None
    assert owner_of(known, "a", "") is None
    assert owner_of(known, "renamed", "a" * 16) is None
    assert owner_of(known, "evil", "") == "a"
    assert owner_of(known, "evil", "b" * 16) == "a"


def test_highest_version_of_a_lineage_wins_and_what_was_merged_is_remembered() -> None:
    known = newer(None, contribution(10))
    assert known is not None
    assert newer(known, contribution(10)) is None
    assert newer(known, contribution(3)) is None
    merged = Contribution(
        device="d", lineage="l", backbone="b", learner="statistics", version=10, n_samples=10, base_release=0,
        digest="10", received_ms=0, merged_version=10, merged_release=4,
    )  # fmt: skip
    found = newer(merged, contribution(12))
    assert found is not None
    assert (found.digest, found.merged_version, found.merged_release) == ("12", 10, 4)
