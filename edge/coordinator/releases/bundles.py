"""The bundles that are known here, opened when they are needed."""

from __future__ import annotations

from edge.contract.bundle import Bundle
from edge.coordinator.records import Model
from edge.coordinator.releases.artifacts import ArtifactStore
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
        self._opened: dict[str, Bundle] = {}  # by the digest of the file
        self._of: dict[str, str] = {}  # by backbone, such a digest

    def get(self, digest: str) -> Bundle:
        """The bundle in an artifact.

        Raises:
            RolloutError: Its file is missing, or changed on disk.
            BundleError: It cannot be opened.
        """
        if digest not in self._opened:
            self._opened[digest] = Bundle.open(self._artifacts.get(digest).path)
        return self._opened[digest]

    def of(self, backbone: str) -> Bundle | None:
        """A known bundle with this backbone; raises as `get`."""
        if backbone not in self._of:
            known = self._store.releases.bundle_of(backbone)
            if known is None:
                return None
            self._of[backbone] = known.digest
        return self.get(self._of[backbone])

    def of_model(self, model: Model) -> Bundle | None:
        """The bundle that a model runs; where that is not known here, one with its backbone. Raises as `get`."""
        known = self._store.releases.bundle_named(model.bundle) if model.bundle else None
        return self.of(model.backbone) if known is None else self.get(known.digest)
