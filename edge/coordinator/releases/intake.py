"""Artifacts that operators send: bundles and heads, looked at before they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from edge.contract.bundle import Bundle, check_parameters, read_tensors
from edge.contract.errors import BundleError
from edge.coordinator.records import KnownBundle
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease


class Intake:
    """See the module.

    Args:
        store: The database.
        artifacts: Files by digest.
        bundles: Those that are known.
    """

    def __init__(self, store: Store, artifacts: ArtifactStore, bundles: Bundles) -> None:
        self._store = store
        self._artifacts = artifacts
        self._bundles = bundles

    def add_artifact(self, data: bytes, path: Path, name: str = "") -> dict[str, Any]:
        """Take a bundle or a head, check it, and keep it.

        Args:
            data: The file.
            path: A copy on disk that a bundle can be opened from.
            name: Of the user's file, for messages.

        Returns:
            ``digest``, ``kind``, ``backbone`` and ``size_bytes``.

        Raises:
            BundleError: It is neither, or does not fit a known bundle.
        """
        name = name or path.name
        if is_bundle(data):
            bundle = open_named(path, name)
            digest, backbone, kind = self._artifacts.put(data).digest, bundle.manifest.backbone_digest, "bundle"
            known = KnownBundle(digest=digest, backbone=backbone, name=bundle.manifest.name, identity=bundle.digest)
            self._store.releases.add_bundle(known)
        else:
            release = self._read_head(data, name)
            digest, backbone, kind = self._artifacts.put(release.encode()).digest, release.backbone, "head"
        return {"digest": digest, "kind": kind, "backbone": backbone, "size_bytes": len(data)}

    def _read_head(self, data: bytes, name: str) -> HeadRelease:
        """A head release, or plain parameters that fit exactly one known bundle's head."""
        try:
            release = HeadRelease.decode(data, name)
        except BundleError:
            release = None
        if release is not None:
            bundle = self._bundles.of(release.backbone)
            if bundle is None:
                raise BundleError(f"{name} belongs to a backbone that is not known here; push its bundle first")
            names = release.class_names
            if names and names[: len(bundle.manifest.class_names)] != bundle.manifest.class_names:
                raise BundleError(f"{name}: the head's classes do not begin with those of its bundle")
            check_parameters(release.parameters, bundle.manifest, name, len(names) or None)
            return release
        try:
            safetensors.numpy.load(data)
        except Exception as exc:  # the parser's errors have no common base
            raise BundleError(f"{name}: expected a bundle (.edge) or a head (.safetensors); this is neither") from exc
        tensors = read_tensors(data, name)
        fitting = set()
        for known in self._store.releases.bundles():
            bundle = self._bundles.of(known.backbone)
            assert bundle is not None
            try:
                check_parameters(tensors, bundle.manifest, name)
            except BundleError:
                continue
            fitting.add(known.backbone)
        if len(fitting) > 1:
            fitting &= {model.backbone for model in self._store.devices.models()}
        if len(fitting) != 1:
            shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in sorted(tensors.items()))
            todo = "a head release, which names its backbone" if fitting else "one with the shapes of its bundle"
            raise BundleError(
                f"{name}: a head with the parameters {shapes} fits {len(fitting) or 'none'} of the bundles that "
                f"devices run, expected one; push {todo}"
            )
        parameters = {key: np.asarray(array, np.float32) for key, array in tensors.items()}  # they are, it was checked
        return HeadRelease(backbone=next(iter(fitting)), parameters=parameters, origin="pushed by hand")


def is_bundle(data: bytes) -> bool:
    """Whether a file says of itself that it is one."""
    return data[:4] == b"PK\3\4"


def open_named(path: Path, name: str) -> Bundle:
    """Open a copy of a user's file, and call it by the user's name where it cannot be.

    Raises:
        BundleError: It is damaged.
    """
    try:
        return Bundle.open(path)
    except BundleError as exc:
        raise BundleError(str(exc).replace(str(path), name)) from exc
