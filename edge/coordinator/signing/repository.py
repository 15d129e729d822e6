"""The coordinator's side of signed metadata: what it may sign by itself, kept fresh, and given out by name.

The coordinator has one key. It signs heads, the snapshot, the timestamp, and who runs what; never bundles. Its versions
are at least the time in seconds: a coordinator that was restored from yesterday's backup signs none that devices have
seen as another document.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets
from tuf.api.metadata import Timestamp as TimestampRole

from edge.channel.messages import Desired, Meta, Order
from edge.channel.updates import BUNDLES, HEADS, assigned, is_name, packed, path_of
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, RolloutError
from edge.contract.files import replace_file
from edge.coordinator.signing.ceremony import load_key, newest, signed, versions, write
from edge.coordinator.signing.signing import NOT_SIGNED

HEADS_DAYS, SNAPSHOT_DAYS = 30, 30
TIMESTAMP_DAYS = 7.0
# Signed again when so much of the time is left: devices that sleep for days still find one that holds.
FRESH = 0.8
# Heads that may run; older ones fall out of the list.
MAX_HEADS = 64
KEPT_VERSIONS = 10
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


class Repository:
    """See the module.

    Args:
        folder: ``coordinator`` of `ceremony.init`: ``online.pem`` and ``metadata``.
        now: The time.
        timestamp_days: How long a timestamp holds: a device believes nothing older.

    Raises:
        ConfigError: Something of it is missing, cannot be read, or this key may not sign.
    """

    def __init__(self, folder: Path, now: Now, *, timestamp_days: float = TIMESTAMP_DAYS) -> None:
        self._folder = folder / "metadata"
        self._signer = load_key(folder / "online.pem")
        self._timestamp_days = timestamp_days
        self._listed: dict[str, frozenset[str]] = {}  # by role, the paths of its newest list
        root = newest(self._folder, Root.type, Root)
        if root is None:
            raise ConfigError(
                f"{self._folder} has no root document: expected the folder that `edge-fleet keys init` made"
            )
        self._root = root
        self._targets = self._top()
        may = {*root.roles[TimestampRole.type].keyids, *self._delegated(HEADS)}
        if self._signer.public_key.keyid not in may:
            raise ConfigError(
                f"{folder / 'online.pem'} may not sign by {self._folder}: copy both from where `edge-fleet keys` was"
            )
        self.refresh(now)

    def _top(self) -> Targets:
        top = newest(self._folder, Targets.type, Targets)
        if top is None:
            raise ConfigError(f"{self._folder} has no targets document: expected the folder of `edge-fleet keys init`")
        return top

    def _delegated(self, role: str) -> list[str]:
        delegations = self._targets.delegations
        known = {} if delegations is None or delegations.roles is None else delegations.roles
        return known[role].keyids if role in known else []

    def metadata(self, name: str) -> bytes | None:
        """A document by its name; None for one that is not there."""
        if not is_name(name):
            return None
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return None

    def document(self, name: str) -> Meta:
        """A document as a message, or that there is none of this name."""
        return packed(name, self.metadata(name))

    def names(self) -> list[str]:
        """The documents that a device may ask for: all roots, and the newest of each other role."""
        found = [f"{version}.{Root.type}.json" for version in versions(self._folder, Root.type)]
        roles = (Snapshot.type, Targets.type, BUNDLES, HEADS)
        return [*found, "timestamp.json", *(f"{versions(self._folder, role)[-1]}.{role}.json" for role in roles)]

    def bundles(self) -> bytes:
        """The newest list of bundles."""
        found = self.metadata(f"{versions(self._folder, BUNDLES)[-1]}.{BUNDLES}.json")
        if found is None:
            raise RolloutError("the list of bundles cannot be read; take the folder of metadata from a backup")
        return found

    def take_bundles(self, data: bytes, now: Now) -> int:
        """Take a list of bundles that was signed elsewhere.

        Returns:
            Its version.

        Raises:
            RolloutError: It is none, not newer, expired, or signed by nobody who may.
        """
        try:
            document = Metadata[Targets].from_bytes(data)
            self._targets.verify_delegate(BUNDLES, document.signed_bytes, document.signatures)
        except (tuf.RepositoryError, ValueError) as exc:
            raise RolloutError(f"the list of bundles is not signed by a key that may: {exc}") from exc
        known = versions(self._folder, BUNDLES)
        if not isinstance(document.signed, Targets) or document.signed.version <= known[-1]:
            raise RolloutError(
                f"the list of bundles: expected a version above {known[-1]}, got {document.signed.version}; "
                f"somebody else signed meanwhile, sign again"
            )
        if document.signed.is_expired(_date(now)):
            raise RolloutError("the list of bundles has expired; look at the clock where it was signed")
        write(self._folder, BUNDLES, document)
        self.refresh(now)
        return int(document.signed.version)

    def is_listed(self, kind: str, digest: str) -> bool:
        """Whether a list that devices believe has this artifact."""
        role = BUNDLES if kind == "bundle" else HEADS
        if role not in self._listed:
            found = newest(self._folder, role, Targets)
            self._listed[role] = frozenset(() if found is None else found.targets)
        return path_of(kind, digest) in self._listed[role]

    def sign(self, fleet: str, device: str, desired: Desired | Order, now: Now) -> str:
        """The signature of what a device should run, for `Desired.signature`; a head is put into the list first.

        Raises:
            RolloutError: It is a bundle that nobody signed.
        """
        if isinstance(desired, Desired) and not self.is_listed(desired.kind, desired.digest):
            if desired.kind == "bundle":
                raise RolloutError(f"its bundle {NOT_SIGNED}")
            self._add_head(desired, now)
        made = self._signer.sign(assigned(fleet, device, desired))
        return f"{made.keyid}:{made.signature}"

    def _add_head(self, desired: Desired, now: Now) -> None:
        heads = newest(self._folder, HEADS, Targets) or Targets(version=1)
        path = path_of("head", desired.digest)
        entry = TargetFile(desired.size_bytes, {"sha256": desired.digest}, path)
        entry.unrecognized_fields["custom"] = {"backbone": desired.backbone, "release": desired.release}
        heads.targets[path] = entry
        for old in sorted(heads.targets, key=lambda each: _release(heads.targets[each]))[:-MAX_HEADS]:
            del heads.targets[old]
        self._sign_heads(heads, _date(now))
        self.refresh(now)

    def _sign_heads(self, heads: Targets, now: datetime) -> None:
        heads.version, heads.expires = _next(heads.version, now), now + timedelta(days=HEADS_DAYS)
        write(self._folder, HEADS, signed(heads, [self._signer]))

    def refresh(self, at: Now) -> None:
        """Sign again what has changed or would expire soon. The timestamp comes last: it is what devices begin with."""
        now = _date(at)
        self._listed.clear()
        root = newest(self._folder, Root.type, Root)
        self._root, self._targets = root or self._root, self._top()
        heads = newest(self._folder, HEADS, Targets)
        is_of_this_key = heads is not None and self._is_by_us(HEADS)
        if heads is None or not is_of_this_key or _is_old(heads.expires, HEADS_DAYS, now):
            self._sign_heads(heads or Targets(version=1), now)
        lists = {f"{role}.json": MetaFile(versions(self._folder, role)[-1]) for role in (Targets.type, BUNDLES, HEADS)}
        snapshot = newest(self._folder, Snapshot.type, Snapshot)
        changed = snapshot is None or snapshot.meta != lists or not self._is_by_us(Snapshot.type)
        if snapshot is None or changed or _is_old(snapshot.expires, SNAPSHOT_DAYS, now):
            version = _next(0 if snapshot is None else snapshot.version, now)
            snapshot = Snapshot(version=version, expires=now + timedelta(days=SNAPSHOT_DAYS), meta=lists)
            write(self._folder, Snapshot.type, signed(snapshot, [self._signer]))
            changed = True
        timestamp = self._timestamp()
        if timestamp is None or changed or _is_old(timestamp.expires, self._timestamp_days, now):
            version = _next(0 if timestamp is None else timestamp.version, now)
            timestamp = TimestampRole(
                version=version,
                expires=now + timedelta(days=self._timestamp_days),
                snapshot_meta=MetaFile(snapshot.version),
            )
            with replace_file(self._folder / "timestamp.json") as file:
                file.write(signed(timestamp, [self._signer]).to_bytes())
        for role in (HEADS, Snapshot.type):
            for old in versions(self._folder, role)[:-KEPT_VERSIONS]:
                (self._folder / f"{old}.{role}.json").unlink(missing_ok=True)

    def _is_by_us(self, role: str) -> bool:
        """Whether the newest document of a role is signed by the key that we have now."""
        path = self._folder / f"{versions(self._folder, role)[-1]}.{role}.json"
        return self._signer.public_key.keyid in Metadata[Any].from_bytes(path.read_bytes()).signatures

    def _timestamp(self) -> TimestampRole | None:
        try:
            found = Metadata[TimestampRole].from_bytes((self._folder / "timestamp.json").read_bytes())
        except (OSError, tuf.RepositoryError):
            return None
        return found.signed if self._signer.public_key.keyid in found.signatures else None

    def status(self) -> dict[str, Any]:
        """Who may sign what until when, for people."""
        found: dict[str, Any] = {
            "root": _told(self._root, self._root.roles[Root.type].threshold),
            "targets": _told(self._targets, self._root.roles[Targets.type].threshold),
        }
        below = {
            BUNDLES: newest(self._folder, BUNDLES, Targets),
            HEADS: newest(self._folder, HEADS, Targets),
            Snapshot.type: newest(self._folder, Snapshot.type, Snapshot),
            TimestampRole.type: self._timestamp(),
        }
        return found | {role: _told(document, 1) for role, document in below.items() if document is not None}


def _date(now: Now) -> datetime:
    return datetime.fromtimestamp(now.wall_ms / 1000, UTC)


def _told(document: Any, threshold: int) -> dict[str, Any]:
    return {"version": document.version, "expires": document.expires.isoformat(), "threshold": threshold}


def _release(entry: TargetFile) -> int:
    release = (entry.custom or {}).get("release", 0)
    return release if isinstance(release, int) else 0


def _next(version: int, now: datetime) -> int:
    return max(version + 1, int((now - _EPOCH).total_seconds()))


def _is_old(expires: datetime, days: float, now: datetime) -> bool:
    return expires - now < timedelta(days=days * FRESH)
