"""Heads that have something in that was forgotten since: nobody is given one of them again.

Every way of giving a head asks here: a new release of any origin (`add_release`), the way back of a rollout, and a
rollout that begins or goes on. What counts is the lineages that the head names; a head without any, such as one whose
numbers somebody copied into a file of their own, tells nothing of whose learning is in it.
"""

from __future__ import annotations

from edge.contract.errors import EdgeError, RolloutError
from edge.coordinator.records import Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease


def forgotten_in(store: Store, artifacts: ArtifactStore, digest: str) -> list[str]:
    """Devices that were forgotten and whose learning is in a head, by name.

    Args:
        store: The database.
        artifacts: Files by digest.
        digest: Of the head; of what is none, or is not here, nothing is said.
    """
    gone = {each.lineage: each.device for each in store.contributions.forgotten()}
    if not gone or not digest:
        return []
    try:
        included = HeadRelease.decode(artifacts.get(digest).path.read_bytes(), "a head").included
    except (EdgeError, OSError):
        return []
    return sorted({gone[lineage] for lineage in gone.keys() & included.keys()})


def check_head(store: Store, artifacts: ArtifactStore, digest: str, what: str, cure: str = "") -> None:
    """Raise RolloutError where a head has something in that was forgotten.

    Args:
        store: The database.
        artifacts: Files by digest.
        digest: Of the head.
        what: It is, for people.
        cure: What to do instead; "" for what always holds.
    """
    if devices := forgotten_in(store, artifacts, digest):
        named = ", ".join(devices[:5]) + (f" and {len(devices) - 5} more" if len(devices) > 5 else "")
        raise RolloutError(
            f"{what} has in it what {named} learned, which was forgotten since: nobody is given it again; "
            f"{cure or 'the next merge is without it (`edge-fleet merge`)'}"
        )


def check_release(store: Store, artifacts: ArtifactStore, release: Release, cure: str = "") -> None:
    """Raise RolloutError where a release is a head that has something in that was forgotten; see `check_head`."""
    if release.kind == "head":
        check_head(store, artifacts, release.digest, f"release {release.counter}", cure)
