"""Which execution provider runs a bundle's frozen part here, by measuring: the fastest that answers right.

Each is tried in a process of its own (`edge.inference.onnx_provider_trial`), because one may crash or hang; what came
out is kept beside the learned state, for this bundle, CPU and onnxruntime. Where there is only the CPU, none is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.contract import strictjson
from edge.contract.bundle import Bundle
from edge.contract.choices import PROVIDERS
from edge.contract.errors import BundleError, ConfigError
from edge.contract.files import replace_file
from edge.inference.onnx_providers import machine, offered
from edge.inference.onnx_session import OnnxSession

if TYPE_CHECKING:
    from edge.inference.onnx_provider_trial import Trial

KEPT = "provider.json"
# The CPU is left for what is clearly faster: golden outputs are its own, and times of two processes differ by as much.
_CLEARLY = 0.9
# A provider is given up that was being opened when the process ended, so many times in a row.
_OPENINGS = 2
_MAX_KEPT_BYTES = 1 << 16
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """A provider, and what else there was.

    Attributes:
        name: Of the one that is used.
        latency_ms: Of each that answers right, by name; empty where nothing was measured.
        left_out: Why each other one is not used, by name.
    """

    name: str
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For status."""
        return {"name": self.name, "latency_ms": dict(self.latency_ms), "left_out": dict(self.left_out)}

    def __str__(self) -> str:
        """For people."""
        times = sorted(self.latency_ms.items(), key=lambda item: item[1])
        parts = [", ".join(f"{name} {ms:.3f} ms" for name, ms in times)] if times else []
        parts += [f"{name} left out: {why}" for name, why in self.left_out.items()]
        return f"{self.name} ({'; '.join(parts)})" if parts else self.name


def open_session(
    bundle: Bundle,
    threads: int = 1,
    provider: str = "auto",
    folder: Path | None = None,
    *,
    names: Sequence[str] | None = None,
    try_one: Callable[[str], Trial] | None = None,
    make: Callable[[str], OnnxSession] | None = None,
) -> tuple[OnnxSession, Chosen]:
    """Open a bundle on the fastest provider that answers right, or on a given one.

    Args:
        bundle: Opened.
        threads: For the model.
        provider: One of `PROVIDERS`.
        folder: Where to keep what was measured; None measures each time.
        names: The providers that there are; those of the installed onnxruntime when None.
        try_one: Tries one of them; in a process of its own when None.
        make: Opens the bundle on one of them in this process.

    Raises:
        ConfigError: The given provider is not there, or cannot be used.
        BundleError: The bundle does not give its golden outputs on this CPU.
    """
    if provider not in PROVIDERS:
        raise ConfigError(f"provider {provider!r:.40}: expected one of {', '.join(PROVIDERS)}")
    make = make or (lambda name: OnnxSession(bundle, threads, provider=name))
    if provider == "cpu":
        return make("cpu"), Chosen(name="cpu")
    names = offered() if names is None else names
    try_one = try_one or (lambda name: _tried(bundle.path, name, threads))
    if provider != "auto":
        return _given(provider, names, try_one, make)
    if set(names) == {"cpu"}:
        return make("cpu"), Chosen(name="cpu")
    about = {
        "version": _VERSION,
        "bundle": bundle.digest,
        "machine": machine(),
        "offered": list(names),
        "threads": threads,
    }
    place = None if folder is None else folder / KEPT
    chosen, openings = _kept(place, about) or (measured(names, try_one), 0)
    if openings >= _OPENINGS:
        chosen = _without(chosen, chosen.name, "ended the process that opened it")
        openings = 0
    if chosen.name == "cpu":
        _keep(place, about, chosen, 0)
        return make("cpu"), chosen
    _keep(place, about, chosen, openings + 1)
    try:
        session = make(chosen.name)
    except BundleError as exc:  # not kept: a GPU may have no memory left today
        _keep(place, about, chosen, 0)
        return make("cpu"), _without(chosen, chosen.name, f"at opening: {exc}", best="cpu")
    _keep(place, about, chosen, 0)
    return session, chosen


def _tried(bundle: Path, name: str, threads: int) -> Trial:
    """In a process of its own; most devices have nothing to try, and never import what starts one."""
    from edge.inference.onnx_provider_trial import LIMIT_S, in_child, trial_command

    return in_child(trial_command(bundle, name, threads), LIMIT_S)


def _given(
    name: str, names: Sequence[str], try_one: Callable[[str], Trial], make: Callable[[str], OnnxSession]
) -> tuple[OnnxSession, Chosen]:
    if name not in names:
        raise ConfigError(f"the provider {name} is not in the installed onnxruntime; there are: {', '.join(names)}")
    found = try_one(name)
    if found.latency_ms is None:
        raise ConfigError(f"the provider {name} cannot be used: {found.why}; --provider auto takes another one")
    try:
        return make(name), Chosen(name=name, latency_ms={name: found.latency_ms})
    except BundleError as exc:
        raise ConfigError(f"the provider {name} cannot be used: {exc}; --provider auto takes another one") from exc


def measured(names: Sequence[str], try_one: Callable[[str], Trial]) -> Chosen:
    """Try all, and choose the fastest that answers right; the CPU unless another one is clearly faster."""
    found = {name: try_one(name) for name in names}
    latency = {name: trial.latency_ms for name, trial in found.items() if trial.latency_ms is not None}
    left_out = {name: trial.why for name, trial in found.items() if trial.latency_ms is None}
    return Chosen(name=_best(latency), latency_ms=latency, left_out=left_out)


def _best(latency_ms: Mapping[str, float]) -> str:
    others = {name: ms for name, ms in latency_ms.items() if name != "cpu"}
    if not others:
        return "cpu"
    name = min(others, key=lambda each: others[each])
    return name if others[name] < _CLEARLY * latency_ms.get("cpu", math.inf) else "cpu"


def _without(chosen: Chosen, name: str, why: str, best: str | None = None) -> Chosen:
    latency = {each: ms for each, ms in chosen.latency_ms.items() if each != name}
    return Chosen(name=best or _best(latency), latency_ms=latency, left_out={**chosen.left_out, name: why})


# What was measured before


def _kept(place: Path | None, about: Mapping[str, Any]) -> tuple[Chosen, int] | None:
    """What was measured here before, and how often it was being opened when the process ended; None for nothing."""
    if place is None:
        return None
    try:
        found = strictjson.loads(place.read_bytes(), max_bytes=_MAX_KEPT_BYTES)
        if any(found[key] != value for key, value in about.items()):
            return None
        latency = {str(name): float(ms) for name, ms in found["latency_ms"].items()}
        left_out = {str(name): str(why) for name, why in found["left_out"].items()}
        openings = found["openings"]
        if latency.keys() | left_out.keys() != set(about["offered"]) or type(openings) is not int:
            return None
        if not all(math.isfinite(ms) and ms > 0 for ms in latency.values()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # damaged, or of another program: measured anew
    return Chosen(name=_best(latency), latency_ms=latency, left_out=left_out), openings


def _keep(place: Path | None, about: Mapping[str, Any], chosen: Chosen, openings: int) -> None:
    """Write it down; where that cannot be, it is measured again next time."""
    if place is None:
        return
    document = {**about, "latency_ms": dict(chosen.latency_ms), "left_out": dict(chosen.left_out), "openings": openings}
    data = strictjson.dumps(document)
    with suppress(OSError):
        if not (place.exists() and place.read_bytes() == data):
            place.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(place) as file:
                file.write(data)
