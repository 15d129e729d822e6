"""Receipts of forgetting: what of a device was deleted, and which heads were made without it, signed.

A receipt is begun with the deletion, in one transaction, and completed when the heads without it are there; that is
read from the database, so no crash between the two loses it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge.contract import receipts
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, EdgeError, RolloutError
from edge.contract.files import replace_file
from edge.coordinator.events import Events
from edge.coordinator.records import Contribution, Receipt, Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease

KEY = "receipts.key"
_LINEAGES = "lineages"
# Heads that a receipt names of a device that was in none.
_MOST_NAMED = 20


class Receipts:
    """See the module.

    Args:
        fleet: Its id.
        folder: With the key that signs, made when it is first needed.
        store: The database.
        artifacts: Files by digest.
        events: For what people should see.
    """

    def __init__(self, fleet: str, folder: Path, store: Store, artifacts: ArtifactStore, events: Events) -> None:
        self._fleet = fleet
        self._path = folder / KEY
        self._store = store
        self._artifacts = artifacts
        self._events = events

    def begin(self, device: str, rows: Sequence[Contribution], now: Now) -> int:
        """Write down what is deleted, inside the transaction that deletes it; the number of the receipt."""
        known = [each for each in self._store.contributions.forgotten(device) if each.backbone]
        statement = {
            "device": device,
            "copies": sorted({row.device for row in rows} - {device}),
            "forgotten_ms": now.wall_ms,
            "after_release": self._store.releases.highest(),
            # Of it, those that were forgotten earlier too.
            _LINEAGES: sorted({each.lineage for each in known}),
            "backbones": sorted({each.backbone for each in known}),
            "contributed": bool(rows) or any(each["contributions"] for each in self._stated_of(device)),
            "contributions": [
                {
                    "lineage": row.lineage,
                    "backbone": row.backbone,
                    "learner": row.learner,
                    "version": row.version,
                    "n_samples": row.n_samples,
                    "digest": row.digest,
                    "in_release": row.merged_release,
                }
                for row in rows
            ],
        }
        return self._store.receipts.add(Receipt(device=device, created_ms=now.wall_ms, statement=statement))

    def state(self, number: int, more: Mapping[str, Any]) -> None:
        """Write down more of what is deleted, inside the same transaction."""
        self._store.receipts.state(number, {**self.get(number).statement, **more})

    def complete(self, now: Now) -> None:
        """Sign those of which all heads that must be made anew are there."""
        pending = self._store.contributions.to_be_unlearned()
        for receipt in self._store.receipts.open():
            if _of(receipt, "backbone") & pending:
                continue
            with self._events.survived(receipt.device, "fault", f"signing receipt {receipt.id}", now):
                self._sign(receipt, now)

    def _sign(self, receipt: Receipt, now: Now) -> None:
        lineages, backbones = _of(receipt, "lineage"), _of(receipt, "backbone")
        contributed = receipt.statement.get("contributed", True)
        heads: list[dict[str, Any]] = []
        before: list[dict[str, Any]] = []
        for release in self._store.releases.all():
            if release.kind != "head" or (contributed and release.backbone not in backbones):
                continue
            included = self.included(release)
            if lineages & set(included):
                before.append({"release": release.counter, "digest": release.digest})
            elif release.counter > receipt.statement["after_release"] or (not contributed and len(heads) < _MOST_NAMED):
                heads.append({"release": release.counter, "digest": release.digest, _LINEAGES: sorted(included)})
        theirs = [each for stated in self._stated_of(receipt.device) for each in stated["contributions"]]
        changes = [each for each in theirs if each["learner"] == "delta" and each["in_release"]]
        statement = {
            "what": "edgeloop: forgotten",
            "fleet": self._fleet,
            "number": receipt.id,
            **receipt.statement,
            "completed_ms": now.wall_ms,
            # Newest first; of a device that never contributed the newest ones that there were. A mean of changes
            # cannot be undone: later ones only leave the device out.
            "heads_without": heads,
            "heads_with": before,
            "is_whole": not changes,
        }
        signed = receipts.sign(statement, receipts.FORGOTTEN, self._key())
        self._store.receipts.complete(receipt.id, statement, signed, now.wall_ms)
        self._events.note(receipt.device, "receipt", f"{receipt.id}: signed", now)

    def _stated_of(self, device: str) -> list[Mapping[str, Any]]:
        """What all receipts of a device state, this one and those of before."""
        return [each.statement for each in self._store.receipts.all() if each.device == device]

    def included(self, release: Release) -> dict[str, int]:
        """By lineage the version that is in a head; of what is no head of a merge, or is gone, nothing."""
        try:
            data = self._artifacts.get(release.digest).path.read_bytes()
            return dict(HeadRelease.decode(data, "a head").included)
        except (EdgeError, OSError):
            return {}

    def get(self, number: int) -> Receipt:
        """A receipt.

        Raises:
            RolloutError: There is none of that number.
        """
        found = self._store.receipts.get(number)
        if found is None:
            raise RolloutError(f"there is no receipt {number}; `edge-fleet receipt list` shows them")
        return found

    def public_key(self) -> bytes:
        """The key by which receipts are checked, PEM."""
        return receipts.public_of(self._key())

    def _key(self) -> bytes:
        try:
            if not self._path.exists():
                made = receipts.make_key()
                with replace_file(self._path) as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(made)
            return self._path.read_bytes()
        except OSError as exc:
            raise ConfigError(f"the key {self._path} cannot be used: {exc.strerror or exc}") from exc

    def lineage(self, release: Release) -> dict[str, Any]:
        """Whose learning is in a head: devices, their samples then, and since which release."""
        included = self.included(release)
        owners = {each.lineage: each for each in self._store.contributions.all(release.backbone)}
        gone = {each.lineage: each.device for each in self._store.contributions.forgotten()}
        heads = [
            each for each in self._store.releases.all() if (each.kind, each.backbone) == ("head", release.backbone)
        ]
        with_it = {each.counter: self.included(each) for each in heads} if included else {}
        parts = []
        for lineage, version in sorted(included.items()):
            owner = owners.get(lineage)
            parts.append(
                {
                    "lineage": lineage,
                    "device": owner.device if owner else gone.get(lineage, ""),
                    "model": owner.model if owner else "",
                    "is_forgotten": lineage in gone,
                    "samples": version,
                    "releases": sorted(counter for counter, found in with_it.items() if lineage in found),
                }
            )
        return {"release": release.counter, "kind": release.kind, "parts": parts, "restores": release.restores}


def _of(receipt: Receipt, what: str) -> set[str]:
    """Lineages or backbones of what was forgotten; receipts that were begun before have them by contribution only."""
    stated = receipt.statement
    return {each[what] for each in stated["contributions"]} | set(stated.get(f"{what}s", ()))
