"""What the rest of the coordinator knows of signed metadata: a fleet without keys opens no library for them."""

from __future__ import annotations

from typing import Any, Protocol

from edge.channel.messages import Desired, Meta, Order
from edge.contract.clock import Now

NOT_SIGNED = "is in no signed list: sign it with `edge-fleet keys sign`, which needs the key of bundles"


class Signing(Protocol):
    """What proves to devices what they are told; see `edge.coordinator.signing.repository`."""

    def document(self, name: str) -> Meta:
        """A document of metadata, or that there is none of this name."""

    def names(self) -> list[str]:
        """The documents that a device may ask for: all roots, and the newest of each other role."""

    def sign(self, fleet: str, device: str, desired: Desired | Order, now: Now) -> str:
        """The signature of what a device should run; a head is put into the list first."""

    def is_listed(self, kind: str, digest: str) -> bool:
        """Whether a list that devices believe has this artifact."""

    def bundles(self) -> bytes:
        """The newest list of bundles."""

    def take_bundles(self, data: bytes, now: Now) -> int:
        """Take a list of bundles that was signed elsewhere; returns its version."""

    def refresh(self, now: Now) -> None:
        """Sign again what changed, or would expire soon."""

    def status(self) -> dict[str, Any]:
        """Who may sign what until when."""
