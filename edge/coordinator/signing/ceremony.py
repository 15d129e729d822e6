"""What people do with keys, away from the coordinator: make a fleet's keys, exchange them, sign a bundle.

::

    offline/root-N.pem         sign the root: take them to different places, off the network
    offline/targets.pem        says who may sign what
    workstation/bundles.pem    signs bundles
    coordinator/online.pem     signs heads, the snapshot, the timestamp, and what runs where
    coordinator/metadata/      the signed documents; the coordinator adds to them
    device/root.json           what devices are given

Keys are Ed25519 in PEM files (PKCS #8), with a password where one is given. Whole documents are written, or none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api import exceptions as tuf
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, Snapshot, TargetFile, Targets
from tuf.api.metadata import Timestamp as TimestampRole

from edge.channel.updates import BUNDLES, HEADS, path_of
from edge.contract.bundle import Bundle
from edge.contract.digest import sha256_file
from edge.contract.errors import ConfigError, RolloutError
from edge.contract.files import replace_file

ROOT_DAYS, TARGETS_DAYS, BUNDLES_DAYS = 730, 365, 365
MOST_ROOT_KEYS = 16
_ONLINE = (Snapshot.type, TimestampRole.type)

_S = TypeVar("_S", Root, Targets, Snapshot, TimestampRole)


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a fleet's keys and documents lie, below one folder until people take them apart."""

    base: Path

    @property
    def online(self) -> Path:
        """The coordinator's key."""
        return self.base / "coordinator" / "online.pem"

    @property
    def metadata(self) -> Path:
        """The coordinator's documents."""
        return self.base / "coordinator" / "metadata"

    @property
    def targets(self) -> Path:
        """The key that says who may sign what."""
        return self.base / "offline" / "targets.pem"

    @property
    def bundles(self) -> Path:
        """The key that signs bundles."""
        return self.base / "workstation" / "bundles.pem"

    @property
    def device_root(self) -> Path:
        """What devices are given."""
        return self.base / "device" / "root.json"

    def roots(self) -> list[Path]:
        """The root keys that are here."""
        return sorted((self.base / "offline").glob("root-*.pem"))


def init(base: Path, now: datetime, *, n_root: int = 3, threshold: int = 2, password: bytes | None = None) -> Folders:
    """Make the keys and first documents of a fleet.

    Args:
        base: A folder that does not exist, or is empty.
        now: The time.
        n_root: Root keys.
        threshold: How many of them a root document needs.
        password: Of all keys but the coordinator's, which has to start without a person.

    Raises:
        ConfigError: The folder is not empty or cannot be written, or the numbers do not fit.
    """
    if not 1 <= threshold <= n_root <= MOST_ROOT_KEYS:
        raise ConfigError(
            f"root keys: expected 1 to {MOST_ROOT_KEYS}, and a threshold they can reach, got {threshold} of {n_root}"
        )
    if base.exists() and any(base.iterdir()):
        raise ConfigError(f"{base} is not empty: keys are never overwritten; name a new folder")
    folders = Folders(base)
    try:
        roots = [_new_key(base / "offline" / f"root-{i + 1}.pem", password) for i in range(n_root)]
        targets, bundles = _new_key(folders.targets, password), _new_key(folders.bundles, password)
        online = _new_key(folders.online, None)
        folders.metadata.mkdir(parents=True)
        root = Root(version=1, expires=now + timedelta(days=ROOT_DAYS))
        for signer in roots:
            root.add_key(signer.public_key, Root.type)
        root.roles[Root.type].threshold = threshold
        root.add_key(targets.public_key, Targets.type)
        for role in _ONLINE:
            root.add_key(online.public_key, role)
        write(folders.metadata, Root.type, signed(root, roots))
        delegations = Delegations(
            keys={each.public_key.keyid: each.public_key for each in (bundles, online)},
            roles={
                BUNDLES: _delegated(BUNDLES, [bundles.public_key.keyid], path_of("bundle", "*")),
                HEADS: _delegated(HEADS, [online.public_key.keyid], path_of("head", "*")),
            },
        )
        top = Targets(version=1, expires=now + timedelta(days=TARGETS_DAYS), delegations=delegations)
        write(folders.metadata, Targets.type, signed(top, [targets]))
        empty = Targets(version=1, expires=now + timedelta(days=BUNDLES_DAYS))
        write(folders.metadata, BUNDLES, signed(empty, [bundles]))
        _give_root(folders)
    except OSError as exc:
        raise ConfigError(f"{base}: {exc.strerror or exc}; nothing of it is a fleet's keys yet, delete it") from exc
    return folders


def sign_bundle(data: bytes, bundle: Path, key: Path, now: datetime, password: bytes | None = None) -> bytes:
    """The list of bundles with one more in it, signed.

    Args:
        data: The list as the coordinator has it.
        bundle: The file.
        key: That signs bundles.
        now: The time.
        password: Of the key.

    Raises:
        BundleError: It is no bundle.
        ConfigError: The key cannot be used.
        RolloutError: That is no list of bundles.
    """
    opened, signer = Bundle.open(bundle), load_key(key, password)
    try:
        listed = Metadata[Targets].from_bytes(data).signed
    except tuf.RepositoryError as exc:
        raise RolloutError(f"the list of bundles: expected a signed document, got one with {exc}") from exc
    digest = sha256_file(bundle)
    path = path_of("bundle", digest)
    entry = TargetFile(bundle.stat().st_size, {"sha256": digest}, path)
    entry.unrecognized_fields["custom"] = {"backbone": opened.manifest.backbone_digest, "name": opened.manifest.name}
    listed.targets[path] = entry
    listed.version += 1
    listed.expires = now + timedelta(days=BUNDLES_DAYS)
    return signed(listed, [signer]).to_bytes()


def rotate(base: Path, what: str, now: datetime, password: bytes | None = None) -> list[str]:
    """Exchange a key: the old one counts for nothing from the next documents on.

    Args:
        base: The folder of `init`, with the offline keys back in it.
        what: ``online``, ``bundles``, ``targets`` or ``root`` (all root keys, signed by the old and the new ones).
        now: The time.
        password: Of the keys.

    Returns:
        The documents that are new; the coordinator needs them.

    Raises:
        ConfigError: A key is missing or cannot be used.
    """
    folders = Folders(base)
    old_roots = [load_key(path, password) for path in folders.roots()]
    root, top = newest(folders.metadata, Root.type, Root), newest(folders.metadata, Targets.type, Targets)
    if root is None or top is None:
        raise ConfigError(f"{folders.metadata} has no root or targets document: expected the folder of `keys init`")
    changed = []
    root_signers: list[Signer] = list(old_roots)
    delegations = top.delegations
    if delegations is None or delegations.roles is None:
        raise ConfigError(f"the targets document in {folders.metadata} delegates nothing: expected that of `keys init`")
    if what == "root":
        paths = folders.roots()
        threshold = root.roles[Root.type].threshold
        for keyid in list(root.roles[Root.type].keyids):
            root.revoke_key(keyid, Root.type)
        new_roots = [_renewed(path, password) for path in paths]
        for signer in new_roots:
            root.add_key(signer.public_key, Root.type)
        root.roles[Root.type].threshold = threshold
        root_signers += new_roots
    targets_signer: Signer = load_key(folders.targets, password)
    if what == "targets":
        targets_signer = _replaced(root, Targets.type, _renewed(folders.targets, password))
    elif what == "online":
        online = _renewed(folders.online, None)
        for role in _ONLINE:
            _replaced(root, role, online)
        _delegate_anew(delegations, HEADS, online)
    elif what == "bundles":
        bundles = _renewed(folders.bundles, password)
        _delegate_anew(delegations, BUNDLES, bundles)
        listed = newest(folders.metadata, BUNDLES, Targets) or Targets(version=1)
        listed.version, listed.expires = listed.version + 1, now + timedelta(days=BUNDLES_DAYS)
        changed.append(write(folders.metadata, BUNDLES, signed(listed, [bundles])))
    elif what != "root":
        raise ConfigError(f"{what!r}: expected online, bundles, targets or root")
    if what in ("online", "bundles", "targets"):
        top.version, top.expires = top.version + 1, now + timedelta(days=TARGETS_DAYS)
        changed.append(write(folders.metadata, Targets.type, signed(top, [targets_signer])))
    if what != "bundles":
        root.version, root.expires = root.version + 1, now + timedelta(days=ROOT_DAYS)
        changed.append(write(folders.metadata, Root.type, signed(root, root_signers)))
        _give_root(folders)
    return changed


def signed(document: _S, signers: Iterable[Signer]) -> Metadata[_S]:
    """A document with the signatures of all who are given."""
    made = Metadata(document)
    for signer in signers:
        made.sign(signer, append=True)
    return made


def write(folder: Path, role: str, document: Metadata[_S]) -> str:
    """Keep a document under its version, whole or not at all; returns its name."""
    name = f"{document.signed.version}.{role}.json"
    with replace_file(folder / name) as file:
        file.write(document.to_bytes())
    return name


def versions(folder: Path, role: str) -> list[int]:
    """The versions of a role that a folder has, rising."""
    found = (path.name.split(".")[0] for path in folder.glob(f"*.{role}.json"))
    return sorted(int(each) for each in found if each.isdigit())


def newest(folder: Path, role: str, kind: type[_S]) -> _S | None:  # noqa: ARG001  # says what comes back
    """The newest document of a role that a folder has.

    Raises:
        ConfigError: It cannot be read.
    """
    known = versions(folder, role)
    if not known:
        return None
    path = folder / f"{known[-1]}.{role}.json"
    try:
        return Metadata[_S].from_bytes(path.read_bytes()).signed
    except (OSError, tuf.RepositoryError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}; take it from a backup") from exc


def load_key(path: Path, password: bytes | None = None) -> CryptoSigner:
    """A key to sign with.

    Raises:
        ConfigError: It cannot be read, or is no Ed25519 key, or the password is missing or wrong.
    """
    try:
        pem = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"the key {path} cannot be read: {exc.strerror}") from exc
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not password:
        raise ConfigError(f"the key {path} is encrypted; put its password into the variable EDGE_SIGN_PASSWORD")
    try:
        key = load_pem_private_key(pem, password if encrypted else None)
    except (ValueError, TypeError) as exc:
        hint = "is the password in EDGE_SIGN_PASSWORD right?" if encrypted else "expected a PEM file with PRIVATE KEY"
        raise ConfigError(f"{path} is not a private key that can be read; {hint}") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: expected an Ed25519 key of `edge-fleet keys init`, got {type(key).__name__}")
    return CryptoSigner(key)


def _new_key(path: Path, password: bytes | None) -> CryptoSigner:
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    how: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
    # Nobody else may read it, at no moment.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return CryptoSigner(key)


def _renewed(path: Path, password: bytes | None) -> CryptoSigner:
    """A new key in the place of an old one, which is kept beside it until somebody deletes it."""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.old"))
    return _new_key(path, password)


def _replaced(root: Root, role: str, signer: CryptoSigner) -> CryptoSigner:
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    root.add_key(signer.public_key, role)
    return signer


def _delegated(name: str, keyids: list[str], path: str) -> DelegatedRole:
    return DelegatedRole(name, keyids, threshold=1, terminating=True, paths=[path])


def _delegate_anew(delegations: Delegations, name: str, signer: CryptoSigner) -> None:
    roles = delegations.roles or {}
    role: Role = roles[name]
    role.keyids = [signer.public_key.keyid]
    delegations.keys[signer.public_key.keyid] = signer.public_key
    used = {keyid for each in roles.values() for keyid in each.keyids}
    for keyid in [each for each in delegations.keys if each not in used]:
        del delegations.keys[keyid]


def _give_root(folders: Folders) -> None:
    newest_root = folders.metadata / f"{versions(folders.metadata, Root.type)[-1]}.root.json"
    folders.device_root.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(folders.device_root) as file:
        file.write(newest_root.read_bytes())
