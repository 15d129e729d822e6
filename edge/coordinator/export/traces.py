"""Rollouts as traces for OpenTelemetry: one a rollout, from the click to the last device that has it live.

Made of what is kept: transitions, looks of gates, who asked. The numbers of a trace and of its spans follow from the
rollout, so that writing it again gives the same ones, longer by what happened since. Documents are OTLP in JSON
(``ExportTraceServiceRequest``), as collectors take it over HTTP and from files; no package is needed for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from edge import __version__
from edge.contract.errors import ConfigError
from edge.coordinator.records import LoggedLook, Transition
from edge.coordinator.rollout.states import ENDED, RolloutState, TargetState
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.store.rollouts import Made
from edge.coordinator.store.store import Store

# A collector takes some megabytes at one time.
FILE, AT_ONCE = "traces.json", 1000
# What a device waits for, or does: each is a span. Behind the last one it is at an end, good or bad.
_UNDER_WAY = frozenset({TargetState.OFFERED, TargetState.STAGED, TargetState.PROBATION, TargetState.REVERTING})
_FAILED = frozenset({TargetState.REFUSED, TargetState.FAILED, TargetState.ROLLED_BACK, TargetState.TIMED_OUT})
_GAVE_UP = frozenset({RolloutState.ABORTED, RolloutState.REVERTED, RolloutState.SUPERSEDED})
_INTERNAL, _OK, _ERROR = 1, 1, 2
Span = dict[str, Any]


def spans(store: Store, now_ms: int, device: str = "", since_ms: int = 0) -> Iterator[Span]:
    """Spans of all rollouts, oldest first; what is not over yet ends now.

    Args:
        store: The database.
        now_ms: The time, ms since 1970.
        device: Of the devices only this one; "" for all.
        since_ms: Only rollouts to which something happened since.
    """
    for rollout in reversed(store.rollouts.all()):
        made, moved = store.rollouts.made(rollout.id), store.rollouts.transitions(rollout.id, None)
        if made is not None and max([made.created_ms, *(each.at_ms for each in moved)]) >= since_ms:
            yield from of_rollout(rollout, made, moved, store.rollouts.looks(rollout.id), now_ms, device)


def of_rollout(
    rollout: Rollout,
    made: Made,
    moved: Iterable[Transition],
    looks: Iterable[LoggedLook],
    now_ms: int,
    device: str = "",
) -> Iterator[Span]:
    """Spans of one rollout: the whole, below it its states and its devices, and below these theirs.

    Args:
        rollout: It.
        made: By whom it was made, and when.
        moved: What happened, oldest first.
        looks: What gates saw.
        now_ms: The time; what is not over yet ends then.
        device: Of the devices only this one; "" for all.
    """
    trace = _Trace(rollout, made, now_ms)
    by_subject: dict[str, list[Transition]] = {"": []}
    for each in moved:
        if each.subject in ("", device) or not device:
            by_subject.setdefault(each.subject, []).append(each)
    own = by_subject.pop("")
    is_over = rollout.state in ENDED or rollout.state is RolloutState.COMPLETED
    last_ms = max([made.created_ms, *(each.at_ms for own in [own, *by_subject.values()] for each in own)])
    yield trace.span(
        "rollout", f"rollout {rollout.id}: release {rollout.plan.release}", made.created_ms,
        last_ms if is_over else now_ms, "",
        {
            "edge.rollout": rollout.id, "edge.release": rollout.plan.release, "edge.kind": rollout.kind,
            "edge.author": made.author, "edge.state": str(rollout.state), "edge.devices": rollout.n_selected,
            "edge.select": rollout.plan.select,
        },
        error=(rollout.reason or str(rollout.state)) if rollout.state in _GAVE_UP else "",
        is_good=rollout.state is RolloutState.COMPLETED,
        events=[(each.at_ms, f"gate: {each.decision}", {"edge.code": each.code, "edge.detail": each.detail,
                                                       "edge.wave": each.wave}) for each in looks],
    )  # fmt: skip
    yield from _states(trace, own, "rollout", "")
    for name, theirs in by_subject.items():
        yield from _device(trace, name, theirs)


def documents(found: Iterable[Span]) -> Iterator[dict[str, Any]]:
    """OTLP documents of spans, so many in each that a collector takes it."""
    resource = {"attributes": _attributes({"service.name": "edgeloop-coordinator", "service.version": __version__})}
    scope = {"name": "edgeloop", "version": __version__}
    left = iter(found)
    while some := list(islice(left, AT_ONCE)):
        yield {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": some}]}]}


def write(found: Iterable[Span], folder: Path) -> tuple[list[bytes], dict[str, int]]:
    """Write ``traces.json``, a document a line, as the collector's reader of OTLP files takes it.

    Returns:
        The documents, and how many spans are in the file.

    Raises:
        ConfigError: It cannot be written.
    """
    made = list(documents(found))
    bodies = [json.dumps(each, separators=(",", ":")).encode() for each in made]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(b"".join(each + b"\n" for each in bodies))
    except OSError as exc:
        raise ConfigError(f"{folder} cannot be written: {exc.strerror}") from exc
    return bodies, {FILE: sum(len(each["resourceSpans"][0]["scopeSpans"][0]["spans"]) for each in made)}


class _Trace:
    """The trace of one rollout: its numbers, and spans with them."""

    def __init__(self, rollout: Rollout, made: Made, now_ms: int) -> None:
        self.now_ms = now_ms
        self._root = f"edgeloop {rollout.seed} {rollout.id} {made.created_ms}"

    def _number(self, of: str, n_bytes: int) -> str:
        return hashlib.sha256(f"{self._root} {of}".encode()).hexdigest()[: 2 * n_bytes]

    def span(
        self,
        key: str,
        name: str,
        begin_ms: int,
        end_ms: int,
        parent: str,
        values: Mapping[str, str | int],
        *,
        error: str = "",
        is_good: bool = False,
        events: Iterable[tuple[int, str, Mapping[str, str | int]]] = (),
    ) -> Span:
        """A span; `key` and `parent` tell spans of this trace apart."""
        made: Span = {
            "traceId": self._number("trace", 16),
            "spanId": self._number(f"span {key}", 8),
            "name": name,
            "kind": _INTERNAL,
            "startTimeUnixNano": _nanoseconds(begin_ms),
            "endTimeUnixNano": _nanoseconds(max(begin_ms, end_ms)),
            "attributes": _attributes(values),
            "events": [
                {"timeUnixNano": _nanoseconds(at_ms), "name": what, "attributes": _attributes(more)}
                for at_ms, what, more in events
            ],
            "status": {"code": _ERROR, "message": error} if error else {"code": _OK} if is_good else {},
        }
        return made | ({"parentSpanId": self._number(f"span {parent}", 8)} if parent else {})


def _states(trace: _Trace, moved: list[Transition], parent: str, device: str) -> Iterator[Span]:
    """A span for each time that something was under way: of a device, or of the rollout itself."""
    for at, each in enumerate(moved):
        is_over = (each.now not in _UNDER_WAY) if device else (each.now in ENDED or each.now == RolloutState.COMPLETED)
        if is_over or each.now == each.before:
            continue
        later = next((other for other in moved[at + 1 :] if other.now != each.now), None)
        values: dict[str, str | int] = {"edge.event": each.event, "edge.who": each.who, "edge.why": each.why}
        yield trace.span(
            f"{parent} {at} {each.now}",
            each.now,
            each.at_ms,
            trace.now_ms if later is None else later.at_ms,
            parent,
            {**values, "edge.open": int(later is None)},
            error=later.why or later.now if later is not None and later.now in _FAILED else "",
        )


def _device(trace: _Trace, name: str, moved: list[Transition]) -> Iterator[Span]:
    """Of a device from the moment that it was offered the release to the last that it did with it."""
    begun = next((at for at, each in enumerate(moved) if each.now in _UNDER_WAY), None)
    if begun is None:  # it was never its turn
        return
    theirs = moved[begun:]
    last = theirs[-1]
    key = f"device {name}"
    yield trace.span(
        key, name, theirs[0].at_ms, trace.now_ms if last.now in _UNDER_WAY else last.at_ms, "rollout",
        {"edge.device": name, "edge.state": last.now},
        error=(last.why or last.now) if last.now in _FAILED else "",
        is_good=last.now == TargetState.ACTIVE,
    )  # fmt: skip
    yield from _states(trace, theirs, key, name)


def _nanoseconds(ms: int) -> str:
    return str(ms * 1_000_000)


def _attributes(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    """As OTLP has them; what is "" is left out, and whole numbers are texts there."""
    return [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}}
        for key, value in values.items()
        if value != ""
    ]
