"""What devices and coordinator give each other about a head, as safetensors documents.

A `HeadUpdate` goes up: what one device learned. A `HeadRelease` goes down: a head for everyone, with the pooled
statistics that a closed-form learner goes on from. Both are bound to the backbone's digest: features of another
backbone mean something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeGuard

import numpy as np

from edge.contract import tensorfile
from edge.contract.digest import is_digest
from edge.contract.errors import BundleError, LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.names import is_model_name
from edge.contract.training import FloatArray, Parameters
from edge.learning.compression import Packed, unpack
from edge.learning.learner import State

_PARAMETER = "parameter."
_MERGED = "merged."
_UPDATE = UPDATE_KIND = "head-update"
_RELEASE = "head-release"
_LONGEST_LINEAGE = 64
_LARGEST_VARIANCE = 1e12
_STATE_ID = re.compile(r"([0-9a-f]{16,64})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Noised:
    """That a device told of its samples under noise, see `edge.learning.disclosure`.

    Attributes:
        epsilon: Promised of each labelled sample.
        delta: Likewise.
        variance: Of the noise on each number.
        frame: Digest of the shipped statistics that the coordinates follow from.
    """

    epsilon: float
    delta: float
    variance: float
    frame: str

    @property
    def text(self) -> str:
        """For people."""
        return f"noise: epsilon {self.epsilon:g}, delta {self.delta:g}"


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class HeadUpdate:
    """What a device learned.

    Attributes:
        learner: ``statistics`` (all since the beginning) or ``delta`` (change since the release `base_release`).
        backbone: Digest of the backbone.
        lineage: Random identity of the device's saved state: statistics of one lineage replace each other, those of
            different lineages add up.
        version: Labelled samples of this lineage so far; only grows, so the highest version is the newest.
        n_samples: Labelled samples behind these tensors.
        base_release: Counter of the release that a delta starts from, 0 for the shipped head.
        tensors: As the learner gave them.
        class_names: Of the device, where it has added some to those of the bundle, which come first; else empty.
        model: Name of the model on the device, for people; "" of devices from before there were several.
        state_id: Of the state folder that it comes from; "" of devices from before there was one.
        parts: Of a site, whose devices' sum it is: by their lineages, the versions that are in it.
        noised: Where the tensors are sums of coordinates with noise on them, how much; None where they are as they are.
        packed: Another way to write the same tensors, shorter; None writes them as they are. Not of one that was read.
    """

    learner: str
    backbone: str
    lineage: str
    version: int
    n_samples: int
    base_release: int
    tensors: State
    class_names: tuple[str, ...] = ()
    model: str = ""
    state_id: str = ""
    parts: Mapping[str, int] = field(default_factory=dict)
    noised: Noised | None = None
    packed: Packed | None = None

    @property
    def codec(self) -> str:
        """What the reader must know to read it; "" for nothing more than float32."""
        return str(self.packed.description["codec"]) if self.packed is not None and self.packed.codes else ""

    def encode(self) -> bytes:
        """As one document."""
        description: dict[str, Any] = {
            "learner": self.learner,
            "backbone": self.backbone,
            "lineage": self.lineage,
            "version": self.version,
            "n_samples": self.n_samples,
            "base_release": self.base_release,
            "class_names": list(self.class_names),
            "model": self.model,
            "state_id": self.state_id,
        }
        if self.parts:
            description["parts"] = dict(self.parts)
        if self.noised is not None:
            description["noised"] = asdict(self.noised)
        if self.packed is not None and self.packed.codes:
            description["packed"] = dict(self.packed.description)
            return tensorfile.encode(_UPDATE, description, self.packed.codes)
        return tensorfile.encode(_UPDATE, description, self.tensors)

    @classmethod
    def decode(cls, data: bytes, what: str) -> HeadUpdate:
        """Read a document; its tensors are finite.

        Raises:
            BundleError: Damaged, or not a head update.
        """
        found, tensors = tensorfile.decode(data, _UPDATE, what)
        numbers = [found.get(key) for key in ("version", "n_samples", "base_release")]
        if (
            found.get("learner") not in ("statistics", "delta")
            or not is_digest(found.get("backbone"))
            or not isinstance(found.get("lineage"), str)
            or not 0 < len(found["lineage"]) <= _LONGEST_LINEAGE
            or not all(type(number) is int and number >= 0 for number in numbers)
            or not (found.get("model", "") == "" or (isinstance(found["model"], str) and is_model_name(found["model"])))
            or not (isinstance(found.get("state_id", ""), str) and _STATE_ID.fullmatch(found.get("state_id", "")))
            or not _is_included(found.get("parts", {}))
        ):
            raise BundleError(f"{what}: a field of the head update is missing or not of its type")
        if (packed := found.get("packed")) is not None:
            try:
                tensors = unpack(packed if isinstance(packed, dict) else {}, tensors)
            except LearningError as exc:
                raise BundleError(f"{what}: {exc}") from exc
        return cls(
            learner=found["learner"],
            backbone=found["backbone"],
            lineage=found["lineage"],
            version=found["version"],
            n_samples=found["n_samples"],
            base_release=found["base_release"],
            tensors=tensors,
            class_names=_names(found, what),
            model=found.get("model", ""),
            state_id=found.get("state_id", ""),
            parts=found.get("parts", {}),
            noised=_noised(found.get("noised"), what),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """What a merge is worth on devices that are not in it, see `edge.merging.outsiders`.

    Attributes:
        gain: In accuracy over the shipped head, on the one that gains least, and less what could be luck.
        distance: Mean squared distance of samples from the classes of the others, on the one that is farthest.
        devices: That were left out in turn.
        each: By lineage of such a device, in accuracy over the shipped head what the merge of the others gives it.
    """

    gain: float
    distance: float
    devices: int
    each: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class HeadRelease:
    """A head for the fleet.

    Attributes:
        backbone: Digest of the backbone that it belongs to.
        parameters: float32 by name.
        merged: Pooled statistics (`HeadStatistics.to_tensors`), or nothing.
        included: By lineage, the version of the contribution that is in it.
        n_samples: Labelled samples behind it.
        origin: In words, for people: ``merge of 3 devices``.
        class_names: Where devices have added classes: those of the bundle and theirs; else empty.
        is_rival: Whether it competes with the heads that a device has; None for what a merge does (it competes) and
            what an operator pushes (it replaces them, on trial).
        outside: Of a merge, what it is worth on devices without labels; None where nobody can tell.
    """

    backbone: str
    parameters: Parameters
    merged: State = field(default_factory=dict)
    included: Mapping[str, int] = field(default_factory=dict)
    n_samples: int = 0
    origin: str = ""
    class_names: tuple[str, ...] = ()
    is_rival: bool | None = None
    outside: Outside | None = None

    @property
    def competes(self) -> bool:
        """Whether it becomes one more expert on a device, or replaces all."""
        return self.is_merge if self.is_rival is None else self.is_rival

    @property
    def is_merge(self) -> bool:
        """Whether it is what devices learned, and not a head that somebody made elsewhere."""
        return bool(self.included)

    def encode(self) -> bytes:
        """As one document; the same release gives the same bytes."""
        description: dict[str, Any] = {
            "backbone": self.backbone,
            "included": dict(self.included),
            "n_samples": self.n_samples,
            "origin": self.origin,
            "class_names": list(self.class_names),
        }
        if self.is_rival is not None:
            description["is_rival"] = self.is_rival
        if self.outside is not None:
            description["outside"] = {name: value for name, value in asdict(self.outside).items() if value != {}}
        tensors: State = {_PARAMETER + name: array for name, array in self.parameters.items()}
        tensors |= {_MERGED + name: array for name, array in self.merged.items()}
        return tensorfile.encode(_RELEASE, description, tensors)

    @classmethod
    def decode(cls, data: bytes, what: str) -> HeadRelease:
        """Read a document; its tensors are finite. Names and shapes are the business of whoever applies it.

        Raises:
            BundleError: Damaged, or not a head release.
        """
        found, tensors = tensorfile.decode(data, _RELEASE, what)
        included = found.get("included")
        if (
            not is_digest(found.get("backbone"))
            or not _is_included(included)
            or type(found.get("n_samples")) is not int
            or found["n_samples"] < 0
            or not isinstance(found.get("origin"), str)
            or not isinstance(found.get("is_rival"), bool | None)
        ):
            raise BundleError(f"{what}: a field of the head release is missing or not of its type")
        parameters: Parameters = {}
        for name, array in tensors.items():
            if name.startswith(_PARAMETER):
                if array.dtype != np.float32:  # not converted: a large float64 would become an infinity
                    raise BundleError(f"{what}: the parameter {name} must be float32, got {array.dtype}")
                parameters[name.removeprefix(_PARAMETER)] = array.astype(np.float32, copy=False)
        return cls(
            backbone=found["backbone"],
            parameters=parameters,
            merged={n.removeprefix(_MERGED): a for n, a in tensors.items() if n.startswith(_MERGED)},
            included=included,
            n_samples=found["n_samples"],
            origin=found["origin"],
            class_names=_names(found, what),
            is_rival=found.get("is_rival"),
            outside=_outside(found.get("outside"), what),
        )

    def aligned(
        self, given: Sequence[str], wanted: Sequence[str], head: LinearLayer, own: Mapping[str, FloatArray]
    ) -> HeadRelease:
        """The release with its classes in another order.

        Args:
            given: Names of its classes.
            wanted: Names of the classes to come out.
            head: The last layer.
            own: A head with the wanted classes; those that the release does not have are taken from it.
        """
        if tuple(given) == tuple(wanted):
            return self
        columns = [given.index(name) if name in given else -1 for name in wanted]
        parameters = dict(self.parameters)
        for name in (head.weight, head.bias):
            if name is not None:
                rows = [own[name][i] if c < 0 else self.parameters[name][c] for i, c in enumerate(columns)]
                parameters[name] = np.stack(rows).astype(np.float32)
        merged = dict(self.merged)
        if "moment" in merged:
            moment = np.pad(merged["moment"], ((0, 0), (0, 1)))  # the last column, -1, is of a class without samples
            merged["moment"] = np.ascontiguousarray(moment[:, columns])
        return replace(self, parameters=parameters, merged=merged, class_names=tuple(wanted))


def _is_included(found: Any) -> TypeGuard[dict[str, int]]:
    """Whether this says versions by lineage."""
    return isinstance(found, dict) and all(
        0 < len(lineage) <= _LONGEST_LINEAGE and type(version) is int and version >= 0
        for lineage, version in found.items()
    )


def _noised(found: Any, what: str) -> Noised | None:
    if found is None:
        return None
    given: dict[str, Any] = found if isinstance(found, dict) else {}
    numbers: list[Any] = [given.get(key) for key in ("epsilon", "delta", "variance")]
    if not all(type(number) is float and 0 < number <= _LARGEST_VARIANCE for number in numbers):
        raise BundleError(f"{what}: expected under noised the numbers epsilon, delta and variance above 0")
    if not is_digest(given.get("frame")):
        raise BundleError(f"{what}: expected under noised as frame a digest")
    epsilon, delta, variance = numbers
    return Noised(epsilon=epsilon, delta=delta, variance=variance, frame=given["frame"])


def _outside(found: Any, what: str) -> Outside | None:
    if found is None:
        return None
    given: dict[str, Any] = found if isinstance(found, dict) else {}
    numbers: list[Any] = [given.get(key) for key in ("gain", "distance")]
    is_finite = all(type(number) is float and math.isfinite(number) for number in numbers)
    if not is_finite or type(given.get("devices")) is not int:
        raise BundleError(f"{what}: expected under outside the numbers gain, distance and devices")
    each = given.get("each", {})
    if not isinstance(each, dict) or not all(type(gain) is float and math.isfinite(gain) for gain in each.values()):
        raise BundleError(f"{what}: expected under outside as each numbers by lineage")
    return Outside(gain=given["gain"], distance=given["distance"], devices=given["devices"], each=each)


def _names(found: Mapping[str, Any], what: str) -> tuple[str, ...]:
    names = found.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise BundleError(f"{what}: class_names must be a list of different texts")
    return tuple(names)


def is_class_name(name: object) -> bool:
    """Whether a class may be called so: text that can be written down."""
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        return False
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in name)
