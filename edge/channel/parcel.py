"""What the line would have carried, in one file on a stick: for sites without a network.

Messages as they would have been published, and beside them what would have been fetched: artifacts by digest, documents
of signed metadata, uploads. Whoever takes it looks at each as at what comes over the line: the same signatures, the
same digests, the same rules. An archive as bundles are (`edge.contract.archive`), with ``parcel.json`` first.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.messages import Message, Meta
from edge.contract import strictjson
from edge.contract.archive import Archive, write_archive
from edge.contract.digest import is_digest, sha256
from edge.contract.errors import BundleError, ChannelError

_CONTENTS, _KIND, _VERSION = "parcel.json", "edgeloop-parcel", 1
_MAX_CONTENTS_BYTES = 4 << 20
ARTIFACT, META, UPLOAD = "artifact", "meta", "upload"


@dataclass(frozen=True, slots=True)
class Said:
    """A message on a leaf of a device."""

    device: str
    leaf: str
    message: Message


def write(fleet: str, said: list[Said], files: Mapping[str, bytes], made_ms: int) -> bytes:
    """A parcel.

    Args:
        fleet: Whose it is.
        said: Messages, in order.
        files: By ``artifact/DIGEST``, ``meta/NAME`` or ``upload/KIND/DIGEST``.
        made_ms: When, milliseconds since 1970.

    Raises:
        BundleError: There is too much for one file.
    """
    messages = [{"device": each.device, "leaf": each.leaf, "payload": encode(each.message).decode()} for each in said]
    contents = {"kind": _KIND, "version": _VERSION, "fleet": fleet, "made_ms": made_ms, "messages": messages}
    out = io.BytesIO()
    write_archive(out, {_CONTENTS: strictjson.dumps(contents), **files})
    return out.getvalue()


class Parcel:
    """A parcel, opened.

    Args:
        path: The file.
        fleet: That it must be of.

    Attributes:
        said: Its messages, in order.

    Raises:
        BundleError: It is no parcel, damaged, or of another fleet.
    """

    def __init__(self, path: Path, fleet: str) -> None:
        self._archive = Archive(path)
        try:
            contents = strictjson.loads(
                self._archive.read(_CONTENTS, _MAX_CONTENTS_BYTES), max_bytes=_MAX_CONTENTS_BYTES
            )
            if contents.get("kind") != _KIND or contents.get("version") != _VERSION:
                raise ValueError("it does not say that it is a parcel of this version")
            whose = str(contents["fleet"])
            self.said = [_said(each) for each in contents["messages"]]
        except (ValueError, KeyError, TypeError, AttributeError, ChannelError) as exc:
            raise BundleError(
                f"{path} is no parcel of `edge-agent export` or `edge-fleet export-release`: {exc}"
            ) from exc
        if whose != fleet:
            raise BundleError(f"{path} is of the fleet {whose[:64]!r}, this is {fleet!r}")

    def devices(self) -> list[str]:
        """Of whom, or for whom, there is something in it."""
        return sorted({each.device for each in self.said})

    def artifact(self, digest: str) -> bytes:
        """An artifact, proved.

        Raises:
            BundleError: It is not in it, or damaged.
        """
        return self._proved(f"{ARTIFACT}/{digest}", digest)

    def documents(self) -> dict[str, Meta]:
        """Messages with documents of metadata, by name; those that cannot be read are none."""
        found = {}
        for member in self._archive.entries:
            if member.startswith(f"{META}/"):
                with suppress(ChannelError):
                    message = decode(topics.DN_META, self._archive.read(member, _MAX_CONTENTS_BYTES))
                    assert isinstance(message, Meta)
                    found[message.name] = message
        return found

    def uploads(self) -> list[tuple[str, bytes]]:
        """What would have been uploaded, with its kind, proved.

        Raises:
            BundleError: One is damaged.
        """
        found = []
        for member in self._archive.entries:
            parts = member.split("/")
            if parts[0] == UPLOAD and len(parts) == 3:
                found.append((parts[1], self._proved(member, parts[2])))
        return found

    def _proved(self, member: str, digest: str) -> bytes:
        data = self._archive.read(member)
        if not is_digest(digest) or sha256(data) != digest:
            raise BundleError(f"{self._archive.path}: {member} is damaged")
        return data


def _said(item: Any) -> Said:
    device, leaf = str(item["device"]), str(item["leaf"])
    parsed = topics.parse(f"{topics.ROOT}/x/{device}/{leaf}")
    return Said(parsed.device, leaf, decode(leaf, str(item["payload"]).encode()))
