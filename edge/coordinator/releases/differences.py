"""What two releases have and have not in common: who they are for, and what is in their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.contract.bundle import Bundle
from edge.contract.training import FloatArray
from edge.coordinator.records import Release
from edge.coordinator.releases.artifacts import Artifact
from edge.learning.exchange import HeadRelease


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What is in a release's bytes.

    Attributes:
        facts: By name, for people and programs.
        parameters: Of the head, float32 by name.
    """

    facts: Mapping[str, Any]
    parameters: Mapping[str, FloatArray] = field(default_factory=dict)


def contents(release: Release, artifact: Artifact) -> Contents:
    """What is in a release's bytes.

    Raises:
        BundleError: They are damaged.
    """
    facts: dict[str, Any] = {"size_bytes": artifact.size_bytes}
    if release.kind == "bundle":
        bundle = Bundle.open(artifact.path)
        found = bundle.manifest
        facts |= {
            "bundle": bundle.digest,
            "model": found.name,
            "inputs": [f"{spec.name} {spec.dtype} {spec.describe()}" for spec in found.inputs],
            "outputs": [f"{spec.name} {spec.dtype} {spec.describe()}" for spec in found.outputs],
            "classes": list(found.class_names),
            "created_by": found.created_by,
        }
        return Contents(facts=facts, parameters=bundle.head_parameters())
    head = HeadRelease.decode(artifact.path.read_bytes(), f"release {release.counter}")
    facts |= {"origin": head.origin, "samples": head.n_samples, "classes": list(head.class_names)}
    facts |= {"lineages": len(head.included)}
    return Contents(facts=facts, parameters=head.parameters)


def difference(one: tuple[Release, Contents], other: tuple[Release, Contents]) -> dict[str, Any]:
    """What differs, by name, first and second.

    Returns:
        ``same_bytes``; ``changed``: by name [first, second]; ``parameters``: by name the norm of the difference over
        that of the first, None where shapes differ or one of them has no such parameter.
    """
    first, second = one[0], other[0]
    changed: dict[str, Any] = {}
    for name in ("kind", "model", "backbone", "digest", "devices", "name", "notes", "file", "reason", "restores"):
        before, after = getattr(first, name), getattr(second, name)
        if before != after:
            changed[name] = [before, after]
    for name in sorted(one[1].facts.keys() | other[1].facts.keys()):
        before, after = one[1].facts.get(name), other[1].facts.get(name)
        if before != after:
            changed.setdefault(name, [before, after])
    mine, theirs = one[1].parameters, other[1].parameters
    parameters = {name: _moved(mine.get(name), theirs.get(name)) for name in sorted(mine.keys() | theirs.keys())}
    return {"same_bytes": first.digest == second.digest, "changed": changed, "parameters": parameters}


def _moved(one: FloatArray | None, other: FloatArray | None) -> float | None:
    if one is None or other is None or one.shape != other.shape:
        return None
    norm = float(np.linalg.norm(one))
    return float(np.linalg.norm(other - one)) / norm if norm > 0 else float(np.linalg.norm(other))
