"""Releases: artifacts that come in and are checked, who should run what, and what an operator pushes.

A release is never changed. Its counter is above all that this database and any device have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy

from edge.contract.bundle import Bundle, check_parameters
from edge.contract.clock import Now
from edge.contract.errors import BundleError, RolloutError
from edge.contract.names import MAX_NAME_CHARS, is_model_name, level_of
from edge.coordinator.artifacts import ArtifactStore
from edge.coordinator.bundles import Bundles
from edge.coordinator.events import Events
from edge.coordinator.records import Device, KnownBundle, KnownDevice, Model, Release
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease
from edge.merging.groups import ALL_DEVICES, EVERYBODY, is_meant
from edge.merging.policy import BY_TAG

# A device must not be able to use the counters up: what it says from here on counts for nothing.
MAX_COUNTER = 2**48


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model of a device should run, and the level of its topics; "" where the device has one model."""

    release: Release
    model: Model
    level: str


def fits(release: Release, model: Model, *, is_only: bool) -> bool:
    """Whether a release that is meant for a device is for this model of it, which `is_only` one there or not."""
    if release.kind == "head":
        return release.backbone == model.backbone and release.model in ("", model.model)
    return release.model == model.model or ("" in (release.model, model.model) and is_only)


def desired(releases: Sequence[Release], model: Model, tags: Mapping[str, str], *, is_only: bool) -> Release | None:
    """What a model should run: the newest bundle meant for it until it has dealt with that, then the newest head.

    A head must not overtake a bundle: the model's counter would then be past the bundle's for ever.

    Args:
        releases: All, newest first.
        model: Of a device.
        tags: Of that device.
        is_only: Whether it is the only one there.
    """
    meant = [each for each in releases if is_meant(each.devices, model.device, tags)]
    meant = [each for each in meant if fits(each, model, is_only=is_only)]
    bundle = next((each for each in meant if each.kind == "bundle"), None)
    head = next((each for each in meant if each.kind == "head"), None)
    if bundle is None or (head is not None and model.release >= bundle.counter and head.counter > bundle.counter):
        return head
    return bundle


def wanted(releases: Sequence[Release], known: KnownDevice, tags: Mapping[str, str]) -> list[Wanted]:
    """What the models of a device should run; nothing for one that has not introduced itself."""
    models = known.models if known.device.born else ()
    found = []
    for model in models:
        release = desired(releases, model, tags, is_only=len(models) == 1)
        if release is not None:
            found.append(Wanted(release, model, level_of(model.model) if len(models) > 1 else ""))
    return found


def add_release(
    store: Store,
    *,
    kind: str,
    digest: str,
    backbone: str,
    devices: Sequence[str],
    reason: str,
    now_ms: int,
    model: str = "",
) -> Release:
    """Make a release, with a counter one above the highest that this database or any device has seen.

    After yesterday's backup was restored the devices know higher ones, and would ignore anything below.
    """
    with store.transaction():
        highest = max(store.releases.highest(), store.devices.highest_release(MAX_COUNTER))
        release = Release(
            counter=highest + 1,
            kind=kind,
            digest=digest,
            backbone=backbone,
            devices=tuple(devices),
            reason=reason,
            created_ms=now_ms,
            model=model,
        )
        store.releases.add(release)
    return release


class Releases:
    """See the module.

    Args:
        store: The database.
        artifacts: Files by digest.
        bundles: Those that are known.
        events: For what people should see.
    """

    def __init__(self, store: Store, artifacts: ArtifactStore, bundles: Bundles, events: Events) -> None:
        self._store = store
        self._artifacts = artifacts
        self._bundles = bundles
        self._events = events

    def add_artifact(self, data: bytes, path: Path) -> dict[str, Any]:
        """Take a bundle or a head, check it, and keep it.

        Args:
            data: The file.
            path: A copy on disk that a bundle can be opened from.

        Returns:
            ``digest``, ``kind`` and ``backbone``.

        Raises:
            BundleError: It is neither, or does not fit a known bundle.
        """
        if data[:4] == b"PK\3\4":
            bundle = Bundle.open(path)
            digest = self._artifacts.put(data).digest
            backbone = bundle.manifest.backbone_digest
            self._store.releases.add_bundle(KnownBundle(digest=digest, backbone=backbone, name=bundle.manifest.name))
            return {"digest": digest, "kind": "bundle", "backbone": backbone}
        release = self._read_head(data)
        digest = self._artifacts.put(release.encode()).digest
        return {"digest": digest, "kind": "head", "backbone": release.backbone}

    def _read_head(self, data: bytes) -> HeadRelease:
        """A head release, or plain parameters that fit exactly one known bundle's head."""
        try:
            release = HeadRelease.decode(data, "the head")
        except BundleError:
            release = None
        if release is not None:
            bundle = self._bundles.of(release.backbone)
            if bundle is None:
                raise BundleError("the head belongs to a backbone that is not known here; push its bundle first")
            names = release.class_names
            if names and names[: len(bundle.manifest.class_names)] != bundle.manifest.class_names:
                raise BundleError("the head's classes do not begin with those of its bundle")
            check_parameters(release.parameters, bundle.manifest, "the head", len(names) or None)
            return release
        try:
            tensors = safetensors.numpy.load(data)
        except Exception as exc:  # the parser's errors have no common base
            raise BundleError("expected a bundle (.edge) or a head (.safetensors); this is neither") from exc
        fitting = set()
        for known in self._store.releases.bundles():
            bundle = self._bundles.of(known.backbone)
            assert bundle is not None
            try:
                check_parameters(tensors, bundle.manifest, "the head")
            except BundleError:
                continue
            fitting.add(known.backbone)
        if len(fitting) > 1:
            fitting &= {model.backbone for model in self._store.devices.models()}
        if len(fitting) != 1:
            raise BundleError(
                f"a head with the parameters {sorted(tensors)} fits {len(fitting)} of the bundles that devices run, "
                f"expected one; push a head release, which names its backbone"
            )
        return HeadRelease(backbone=next(iter(fitting)), parameters=dict(tensors), origin="pushed by hand")

    def push(
        self, digest: str, kind: str, backbone: str, devices: list[str], reason: str, now: Now, *, model: str = ""
    ) -> Release:
        """Make an artifact what a model of devices should run.

        Args:
            digest: Of the artifact.
            kind: ``head`` or ``bundle``.
            backbone: That it belongs to.
            devices: Names or tags; none for all, also those to come.
            reason: For people.
            now: The time.
            model: Name of the model; "" for that of the bundle, or, if no device has one of that name, for the only one
                that there is; for a head for those with its backbone.

        Raises:
            RolloutError: An unknown device, or no device could take it.
        """
        known = {each.id for each in self._store.devices.all()}
        unknown = [device for device in devices if device not in known and not device.startswith(BY_TAG)]
        if unknown:
            raise RolloutError(f"unknown device {unknown[0]}; `edge-fleet devices` lists them")
        if model and not is_model_name(model):
            raise RolloutError(f"model {model[:80]!r}: expected 1 to {MAX_NAME_CHARS} characters that can be shown")
        self._artifacts.get(digest)
        tags = self._store.devices.tags()
        chosen = {device for device in known if is_meant(devices or EVERYBODY, device, tags.get(device, {}))}
        served = [each for each in self._store.devices.models() if each.device in chosen]
        if kind == "head" and not any(each.backbone == backbone and model in ("", each.model) for each in served):
            raise RolloutError(f"no device runs the backbone {backbone[:12]} that this head belongs to{_as(model)}")
        if kind == "bundle":
            model = self._model_of(digest, model, {each.model for each in served})
        release = add_release(
            self._store,
            kind=kind,
            digest=digest,
            backbone=backbone,
            devices=devices or [ALL_DEVICES],
            reason=reason,
            now_ms=now.wall_ms,
            model=model,
        )
        self._events.note("", "release", f"{release.counter}: {kind} {digest[:12]}{_as(model)}, {reason}", now, model)
        return release

    def _model_of(self, digest: str, model: str, served: set[str]) -> str:
        """The model that a bundle is for, of those that the chosen devices have.

        Raises:
            RolloutError: None of them.
        """
        own = next((each.name for each in self._store.releases.bundles() if each.digest == digest), "")
        name = model or own
        if name in served or not served:
            return name
        if not model and len(served) == 1:
            return next(iter(served))
        raise RolloutError(
            f"no device has a model {name!r}, there are {', '.join(map(repr, sorted(served)))}; say with --model which "
            f"one the bundle is for"
        )

    def wanted(self, device: str) -> list[Wanted]:
        """What the models of a device should run."""
        known = self._store.devices.known(device)
        if known is None or not known.device.born:
            return []
        return wanted(self._store.releases.all(), known, self._store.devices.tags(device).get(device, {}))

    def wanted_by_all(self) -> list[tuple[Device, list[Wanted]]]:
        """What the models of all devices should run."""
        with self._store.transaction():
            releases, tags = self._store.releases.all(), self._store.devices.tags()
            models: dict[str, list[Model]] = {}
            for model in self._store.devices.models():
                models.setdefault(model.device, []).append(model)
            devices = self._store.devices.all()
        known = [KnownDevice(device=device, models=tuple(models.get(device.id, ()))) for device in devices]
        return [(each.device, wanted(releases, each, tags.get(each.device.id, {}))) for each in known]


def _as(model: str) -> str:
    """A model, behind what is said of a release; nothing where its backbone decides."""
    return f" for the model {model!r}" if model else ""
