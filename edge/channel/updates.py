"""What a device believes about releases: The Update Framework's client, over messages instead of HTTP.

Theory of operation. A device is given a root document once. What may run stands in metadata that other keys sign, below
that root: `Trust.look` walks from the root to the entry of an artifact, with python-tuf's own client and all of its
rules: signatures, thresholds, expiry, versions that only go up, one consistent snapshot. What it lacks it names; who
calls it asks the coordinator, hands the file in with `Trust.take`, and looks again, from the start, which is cheap. No
thread waits for anything.

Who runs *what* is said by a `Desired`, which no metadata knows. It is signed by a key that may sign heads, for one
device, and its counter only goes up: see `assigned`.

Source: The Update Framework Specification 1.0.31; the only file on a device that opens python-tuf.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signature
from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge.channel.forms import restore, shorten
from edge.channel.messages import Desired, Meta, Order
from edge.channel.vetting import DistrustError, called, unsigned
from edge.contract import strictjson
from edge.contract.errors import ChannelError, ConfigError
from edge.contract.files import sync_folder

BUNDLES, HEADS = "bundles", "heads"
MAX_META_BYTES = 512 * 1024
_NAME = re.compile(r"([0-9]{1,12}\.)?(root|timestamp|snapshot|targets|bundles|heads)\.json")
_BASE = "meta/"


def is_name(name: str) -> bool:
    """Whether this names a file of metadata.

    >>> is_name("3.root.json"), is_name("../root.json")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


def path_of(kind: str, digest: str) -> str:
    """Where an artifact stands in the metadata.

    >>> path_of("head", "ab12")
    'head/ab12'
    """
    return f"{kind}/{digest}"


def assigned(fleet: str, device: str, desired: Desired | Order) -> bytes:
    """What is signed of a `Desired`: all that says what runs where; not how the bytes travel, a digest proves them."""
    if isinstance(desired, Order):
        return strictjson.dumps(
            {
                "type": f"edgeloop-{desired.word}",
                "fleet": fleet,
                "device": device,
                "model": desired.model,
                "number": desired.number,
                "digest": desired.digest,
                "size_bytes": desired.size_bytes,
                "backbone": desired.backbone,
            }
        )
    return strictjson.dumps(
        {
            "type": "edgeloop-assignment",
            "fleet": fleet,
            "device": device,
            "model": desired.model,
            "release": desired.release,
            "kind": desired.kind,
            "digest": desired.digest,
            "size_bytes": desired.size_bytes,
            "backbone": desired.backbone,
            "activate": desired.activate,
            "attempt": desired.attempt,
        }
        | ({"undoes": desired.undoes} if desired.undoes else {})
        | ({"anew": True} if desired.anew else {})
    )


def packed(name: str, document: bytes | None) -> Meta:
    """A document of metadata as a message, or that there is none of this name."""
    if not document:
        return Meta(name=name, size_bytes=0, data="")
    codec, data = shorten(document) or ("zstd", b"")
    if codec != "zstd" or not data:
        raise ChannelError(f"{name}: expected a document that zstd makes shorter, got {len(document)} bytes")
    return Meta(name=name, size_bytes=len(document), data=base64.b64encode(data).decode())


def unpacked(message: Meta) -> bytes | None:
    """The document in a message; None where the coordinator has none.

    Raises:
        ChannelError: It is damaged or too large.
    """
    if not message.size_bytes:
        return None
    if message.size_bytes > MAX_META_BYTES:
        raise ChannelError(f"{message.name[:80]}: expected at most {MAX_META_BYTES} bytes, got {message.size_bytes}")
    try:
        data = base64.b64decode(message.data, validate=True)
    except ValueError as exc:
        raise ChannelError(f"{message.name[:80]}: expected base64, got {exc}") from exc
    return restore("zstd", data, message.size_bytes)


class _Files(FetcherInterface):
    """What the coordinator has sent of late; notes what is asked for and is not there."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | None] = {}
        self.missing: str | None = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(_BASE)
        if name not in self.files:
            self.missing = name
            raise tuf.DownloadError(f"{name} is not here yet")
        data = self.files[name]
        if data is None:
            raise tuf.DownloadHTTPError(f"the coordinator has no {name}", 404)
        return iter((data,))


class Trust:
    """See the module.

    Args:
        folder: Where metadata are kept that were believed; created when something is looked at.
        root: The root document that the device was given.
        fleet: Fleet id.
        device: Device id.

    Raises:
        ConfigError: It is no root document.
    """

    def __init__(self, folder: Path, root: bytes, *, fleet: str, device: str) -> None:
        self._folder, self._root, self._fleet, self._device = folder, root, fleet, device
        self._fetched = _Files()
        try:
            self._newest_root()
        except (tuf.RepositoryError, ValueError) as exc:
            raise ConfigError(
                f"expected a signed root document, such as device/root.json of `edge-fleet keys init`: {exc}"
            ) from exc

    def _prepare(self) -> None:
        """Make the folder, and clear away what python-tuf had not finished when it was killed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob("tmp*"):
            path.unlink(missing_ok=True)

    def _updater(self) -> Updater:
        return Updater(
            metadata_dir=str(self._folder),
            metadata_base_url=_BASE,
            fetcher=self._fetched,
            config=UpdaterConfig(
                root_max_length=MAX_META_BYTES,
                snapshot_max_length=MAX_META_BYTES,
                targets_max_length=MAX_META_BYTES,
            ),
            bootstrap=self._newest_root(),
        )

    def _newest_root(self) -> bytes:
        """The newest root that was believed, walked to from the one that the device was given.

        python-tuf replaces ``root.json`` by unlinking it first: after a power cut it may be gone, its history is not.
        """
        known = self._root
        while True:
            root = Metadata[Root].from_bytes(known)
            if not isinstance(root.signed, Root):
                raise tuf.RepositoryError(f"it is of the type {root.signed.type!r:.40}")
            root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
            path = self._folder / "root_history" / f"{root.signed.version + 1}.root.json"
            try:
                found = path.read_bytes()
                following = Metadata[Root].from_bytes(found)
                for each in (root, following):
                    each.signed.verify_delegate(Root.type, following.signed_bytes, following.signatures)
                if following.signed.version != root.signed.version + 1:
                    return known
            except (OSError, tuf.RepositoryError):
                return known
            known = found

    @property
    def missing(self) -> str | None:
        """The file that `look` lacked last."""
        return self._fetched.missing

    def take(self, message: Meta) -> None:
        """Hand in a document, or that the coordinator has none of its name. It is believed by `look` only.

        Raises:
            ChannelError: It cannot be read.
        """
        if is_name(message.name):
            self._fetched.files[message.name] = unpacked(message)

    def begin(self) -> None:
        """Forget what was handed in: the next look is at what the coordinator has then."""
        self._fetched.files.clear()
        self._fetched.missing = None

    def rest(self) -> None:
        """Nothing is held that could be let go."""

    def look(self, desired: Desired | Order) -> bool:
        """Whether a release is to be believed; False while `missing` has to be fetched for that.

        What is ordered stands in no list: the signature is of its digest, too.

        Raises:
            DistrustError: It is not.
            OSError: What is believed could not be kept.
        """
        self._fetched.missing = None
        if not desired.signature:
            raise unsigned(desired)
        try:
            self._prepare()
            updater = self._updater()
            updater.refresh()
            keys = self._assigners()
            self._is_assigned(desired, keys)
            if isinstance(desired, Order):
                self._sync()
                return True
            target = updater.get_targetinfo(path_of(desired.kind, desired.digest))
        except tuf.DownloadLengthMismatchError as exc:
            raise DistrustError("too-large", str(exc)) from exc
        except tuf.DownloadHTTPError as exc:
            raise DistrustError("damaged", f"{exc}; look at the coordinator's folder of metadata") from exc
        except tuf.DownloadError as exc:
            if self.missing is None:
                raise DistrustError("damaged", str(exc)) from exc
            return False
        except tuf.ExpiredMetadataError as exc:
            said = f"{exc}: nobody signed anew in time, or the clock of this device is wrong"
            raise DistrustError("expired", said) from exc
        except (tuf.BadVersionNumberError, tuf.EqualVersionNumberError) as exc:
            raise DistrustError("rollback", f"older than what was believed before: {exc}") from exc
        except tuf.UnsignedMetadataError as exc:
            raise DistrustError("wrong-signer", str(exc)) from exc
        except tuf.LengthOrHashMismatchError as exc:
            raise DistrustError("mix-and-match", str(exc)) from exc
        except (tuf.RepositoryError, ValueError) as exc:
            raise DistrustError("damaged", str(exc)) from exc
        self._sync()
        if target is None:
            raise DistrustError("not-listed", f"no signed list has the {desired.kind} {desired.digest[:12]}")
        if target.length != desired.size_bytes or target.hashes.get("sha256") != desired.digest:
            raise DistrustError("mix-and-match", f"the signed list has another {desired.kind} {desired.digest[:12]}")
        if (target.custom or {}).get("backbone") != desired.backbone:
            raise DistrustError("mix-and-match", f"it was signed for another backbone than {desired.backbone[:12]}")
        return True

    def _assigners(self) -> dict[str, Key]:
        """Keys that may sign heads, by id: they may also say what runs where."""
        targets = Metadata[Targets].from_file(str(self._folder / "targets.json")).signed
        delegations = targets.delegations
        role = None if delegations is None or delegations.roles is None else delegations.roles.get(HEADS)
        if delegations is None or role is None:
            return {}
        return {keyid: delegations.keys[keyid] for keyid in role.keyids if keyid in delegations.keys}

    def _is_assigned(self, desired: Desired | Order, keys: dict[str, Key]) -> None:
        keyid, _, signature = desired.signature.partition(":")
        key = keys.get(keyid)
        if key is None:
            raise DistrustError("wrong-signer", f"{called(desired)} is signed by a key that may not do that")
        try:
            key.verify_signature(Signature(keyid, signature), assigned(self._fleet, self._device, desired))
        except (UnverifiedSignatureError, VerificationError, ValueError) as exc:
            raise DistrustError("wrong-signer", f"the signature of {called(desired)} is not of what it says") from exc

    def _sync(self) -> None:
        """Make safe what was believed: after a power cut no older version must be taken for newer."""
        for path in [*self._folder.glob("*.json"), *(self._folder / "root_history").glob("*.json")]:
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        sync_folder(self._folder)
