"""Artifacts proved before the fleet sees them: a bundle answers here as it did when it was made, and fits what runs."""

from __future__ import annotations

from pathlib import Path

from edge.contract.manifest import Manifest

# A bundle is tried on one thread: the coordinator has other things to do meanwhile.
_THREADS = 1


def golden_fault(path: Path) -> str:
    """Why a bundle does not give its golden outputs on this machine; "" where it does.

    It runs in a process of its own, which it may crash, or keep for long.
    """
    from edge.inference.onnx_provider_trial import LIMIT_S, in_child, trial_command

    return in_child(trial_command(path, "cpu", _THREADS), LIMIT_S).why


def mismatch(new: Manifest, running: Manifest) -> str:
    """In what a bundle differs, for applications, from the one in whose place it comes; "" where they see no change."""
    found = []
    if new.sample_inputs != running.sample_inputs:
        found.append(f"it takes {_specs(new)} instead of {_specs(running)}")
    names, before = [spec.name for spec in new.outputs], [spec.name for spec in running.outputs]
    if names != before:
        found.append(f"it gives {', '.join(names)} instead of {', '.join(before)}")
    if new.class_names != running.class_names:
        found.append(f"its classes are {_classes(new)} instead of {_classes(running)}")
    return "; ".join(found)


def _specs(manifest: Manifest) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {spec.describe()}" for spec in manifest.sample_inputs)


def _classes(manifest: Manifest) -> str:
    names = manifest.class_names
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"{len(names)} ({shown})" if names else "none"
