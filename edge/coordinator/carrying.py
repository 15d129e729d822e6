"""Without a network: what devices would have been told goes out in a file, and what they said comes in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.channel import parcel, topics
from edge.channel.chunks import USUAL_BYTES
from edge.channel.codec import encode
from edge.channel.messages import Birth, Message, Reply, Restore, State
from edge.contract.clock import Now
from edge.contract.errors import BundleError, RolloutError
from edge.coordinator.devices.checkpoints import Checkpoints
from edge.coordinator.dialogue import Dialogue
from edge.coordinator.records import not_before
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.releases import Releases
from edge.coordinator.signing.signing import Signing
from edge.coordinator.store.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """What is asked for what a device should be told."""

    dialogue: Dialogue
    releases: Releases
    checkpoints: Checkpoints
    artifacts: ArtifactStore
    store: Store
    signing: Signing | None


def carried_out(fleet: str, devices: list[str], parts: Parts, now: Now) -> bytes:
    """What devices should run, and what they are to go on from, with all that they would fetch for it.

    Raises:
        RolloutError: There is nothing for one of them.
    """
    said: list[parcel.Said] = []
    for device in devices:
        found: list[Message] = []
        for wanted in parts.releases.wanted(device, now):
            desired = parts.dialogue.desired(device, wanted, now)
            if desired is not None and desired.activate != "never":
                found.append(desired)
        for _, order in parts.checkpoints.to_say(device, lambda _: USUAL_BYTES, now):
            if isinstance(order, Restore):
                found.append(parts.dialogue.signed(device, order, now))
        if not found:
            known = parts.store.devices.get(device)
            if known is not None and (why := not_before(known)):
                raise RolloutError(why)
            raise RolloutError(
                f"there is nothing for {device}: no release is meant for it; push one to it first, and `edge-fleet "
                f"import` what it wrote if it was never seen"
            )
        said += [
            parcel.Said(device, topics.DN_RESTORE if isinstance(each, Restore) else topics.DN_DESIRED, each)
            for each in found
        ]
    digests = {getattr(each.message, "digest") for each in said}  # noqa: B009  # both kinds have it
    files = {f"{parcel.ARTIFACT}/{digest}": parts.artifacts.get(digest).path.read_bytes() for digest in sorted(digests)}
    if parts.signing is not None:
        files |= {f"{parcel.META}/{name}": encode(parts.signing.document(name)) for name in parts.signing.names()}
    return parcel.write(fleet, said, files, now.wall_ms)


def carried_in(path: Path, fleet: str, dialogue: Dialogue, now: Now, name: str) -> dict[str, Any]:
    """Take what one device wrote; `name` is the user's for the file.

    Returns:
        ``device``, ``kept`` (documents) and ``refused`` (reasons).

    Raises:
        BundleError: It is no parcel of a device of this fleet, or damaged.
    """
    try:
        found = parcel.Parcel(path, fleet)
    except BundleError as exc:
        raise BundleError(str(exc).replace(str(path), name)) from exc
    devices = found.devices()
    births = [each for each in found.said if isinstance(each.message, Birth)]
    if len(devices) != 1 or not births:
        raise BundleError(f"{name} is not what `edge-agent export --for-fleet` writes: expected the word of one device")
    for each in found.said:
        if isinstance(each.message, Birth | State | Reply):
            dialogue.said(each.device, each.message, now)
    refused = [why for kind, data in found.uploads() if (why := dialogue.sent(devices[0], kind, data, now))]
    return {"device": devices[0], "kept": len(found.uploads()) - len(refused), "refused": refused}
