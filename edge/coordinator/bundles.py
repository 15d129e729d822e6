"""The bundles that are known here, opened when they are needed."""

from __future__ import annotations

from edge.contract.bundle import Bundle
from edge.coordinator.artifacts import ArtifactStore
from edge.coordinator.store.store import Store


class Bundles:
    """See the module.

    Args:
        store: Which there are.
        artifacts: Their files.
    """

    def __init__(self, store: Store, artifacts: ArtifactStore) -> None:
        self._store = store
        self._artifacts = artifacts
        self._opened: dict[str, Bundle] = {}

    def of(self, backbone: str) -> Bundle | None:
        """A known bundle with this backbone.

        Raises:
            RolloutError: Its file is missing, or changed on disk.
            BundleError: It cannot be opened.
        """
        if backbone not in self._opened:
            row = self._store.releases.bundle_of(backbone)
            if row is None:
                return None
            self._opened[backbone] = Bundle.open(self._artifacts.get(row.digest).path)
        return self._opened[backbone]
