"""A bundle on disk: one ``.edge`` file, content-addressed inside.

``manifest.json`` comes first and names every member by role and SHA-256; the members stand behind it as
``blobs/<sha256>``. The bundle's own digest is that of the manifest, which covers everything. Opening a bundle checks
every digest; nothing in it is executed or unpickled here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from edge.contract import manifest as m
from edge.contract.archive import Archive, size_of, write_archive
from edge.contract.digest import sha256
from edge.contract.errors import BundleError
from edge.contract.files import replace_file
from edge.contract.manifest import Manifest, Member

FloatArray = npt.NDArray[np.float32]
Tensors = dict[str, npt.NDArray[np.generic]]

_MANIFEST = "manifest.json"


def blob_name(digest: str) -> str:
    """Name of a member inside the archive."""
    return f"blobs/{digest}"


def members_of(blobs: Mapping[str, bytes]) -> dict[str, Member]:
    """Digest and size of each member, as the manifest holds them."""
    return {role: Member(digest=sha256(data), size_bytes=len(data)) for role, data in blobs.items()}


def write_bundle(path: Path, manifest: Manifest, blobs: Mapping[str, bytes]) -> None:
    """Write a bundle whole or not at all.

    Args:
        path: Where to; an existing file is replaced in one step.
        manifest: Its `members` must be `members_of(blobs)`.
        blobs: Data by role.
    """
    if manifest.members != members_of(blobs):
        raise BundleError("the manifest does not describe these members")
    with replace_file(path) as file:
        write_archive(file, _archived(manifest, blobs))


def archive_size(manifest: Manifest, blobs: Mapping[str, bytes]) -> int:
    """Bytes of the bundle that `write_bundle` writes, wherever to."""
    return size_of(_archived(manifest, blobs))


def _archived(manifest: Manifest, blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    archive = {_MANIFEST: manifest.encode()}
    return archive | {blob_name(manifest.members[role].digest): data for role, data in sorted(blobs.items())}


def read_tensors(data: bytes, what: str, *, finite: bool = True) -> Tensors:
    """Parse a safetensors document: data only, never code.

    Args:
        data: The document.
        what: For messages.
        finite: Whether a value that is not finite is a fault, as it is in parameters and statistics.

    Raises:
        BundleError: Not safetensors, or a tensor is not finite where it must be.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as exc:
        raise BundleError(f"{what} is not a safetensors document: {exc}") from exc
    for name, tensor in tensors.items():
        if finite and tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise BundleError(f"{what}: the tensor {name} has values that are not finite")
    return tensors


def check_parameters(
    parameters: Mapping[str, npt.NDArray[np.generic]], manifest: Manifest, what: str, n_classes: int | None = None
) -> None:
    """Raise BundleError unless these are the parameters that the head has: names, float32, shapes.

    Args:
        parameters: By name.
        manifest: Of the head.
        what: For the message.
        n_classes: Of a head to whose last layer classes were added, else None.
    """
    expected = {} if manifest.head is None else {spec.name: spec.shape for spec in manifest.head.parameters}
    if n_classes is not None and manifest.head is not None and manifest.head.linear is not None:
        for name in expected.keys() & {manifest.head.linear.weight, manifest.head.linear.bias}:
            expected[name] = (n_classes, *expected[name][1:])
    found = {name: tuple(array.shape) for name, array in parameters.items()}
    if found != expected:
        raise BundleError(f"{what}: expected the parameters {expected}, got {found}")
    for name, array in parameters.items():
        if array.dtype != np.float32:
            raise BundleError(f"{what}: {name} must be float32, got {array.dtype}")


def read_manifest(path: Path) -> Manifest:
    """What a bundle says it is, without looking at the rest of it.

    Raises:
        BundleError: Missing, not a bundle, or its manifest is damaged.
    """
    return Manifest.decode(Archive(path).read(_MANIFEST, m.MAX_MANIFEST_BYTES))


class Bundle:
    """An opened and verified bundle.

    Attributes:
        manifest: What it is.
        digest: SHA-256 of the manifest, the identity of the bundle.
        path: The file, which must stay where it is while the bundle is in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = Archive(path)
        document = self._archive.read(_MANIFEST, m.MAX_MANIFEST_BYTES)
        self.digest = sha256(document)
        self.manifest = Manifest.decode(document)
        self._verify()

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Open a bundle and check every digest in it.

        Raises:
            BundleError: Missing, cut short, damaged, or not a bundle.
        """
        return cls(Path(path))

    def _verify(self) -> None:
        members = self.manifest.members
        expected = {_MANIFEST} | {blob_name(member.digest) for member in members.values()}
        if set(self._archive.entries) != expected:
            odd = sorted(set(self._archive.entries) ^ expected)
            raise BundleError(f"{self.path}: manifest and members do not match: {', '.join(odd[:3])}")
        for role, member in members.items():
            name = blob_name(member.digest)
            if self._archive.entries[name].size_bytes != member.size_bytes:
                raise BundleError(f"{self.path}: {role} does not have the size that the manifest states")
            if self._archive.sha256(name) != member.digest:
                raise BundleError(f"{self.path}: {role} does not have the digest that the manifest states")

    def read(self, role: str) -> bytes:
        """The data of a member.

        Raises:
            BundleError: The bundle has no such member, or it changed on disk since it was opened.
        """
        member = self.manifest.members.get(role)
        if member is None:
            raise BundleError(f"{self.path} has no {role}")
        data = self._archive.read(blob_name(member.digest))
        if sha256(data) != member.digest:
            raise BundleError(f"{self.path}: {role} changed while it was in use")
        return data

    def has(self, role: str) -> bool:
        """Whether an optional member is there."""
        return role in self.manifest.members

    def tensors(self, role: str) -> Tensors:
        """A safetensors member as arrays by name; only golden values may be other than finite, as a mask may be."""
        return read_tensors(self.read(role), f"{self.path}: {role}", finite=role != m.GOLDEN)

    def head_parameters(self) -> dict[str, FloatArray]:
        """The head as shipped: float32 arrays by parameter name, checked against the manifest; none without a head."""
        if self.manifest.head is None:
            return {}
        tensors = self.tensors(m.HEAD_PARAMETERS)
        check_parameters(tensors, self.manifest, f"{self.path}: {m.HEAD_PARAMETERS}")
        return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()}
