"""What the pages of rollouts say: which there are, and of one its plan, waves, gates and devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.http.rollout_views import shown, summaries
from edge.coordinator.line import ONLINE, LineState
from edge.coordinator.pages.charts import shares
from edge.coordinator.pages.texts import text
from edge.coordinator.records import UNDECIDED
from edge.coordinator.rollout.states import ENDED, FAILURES, UNSETTLED, RolloutState, TargetState, after
from edge.coordinator.rollout.states import RolloutEvent as Asked
from edge.coordinator.store.store import Store
from edge.coordinator.turns import PAUSED

_MOST_TARGETS = 200
_ORDERS = (Asked.PAUSE, Asked.RESUME, Asked.RETRY, Asked.ABORT, Asked.REVERT)
_UNJUDGED = "unjudged"
_TAKES_BACK = (TargetState.PROBATION, TargetState.ACTIVE)
_WAITS = frozenset({TargetState.WAITING, TargetState.ABSENT})
# Parts of the bar of a wave, in their order.
_PARTS = ("active", _UNJUDGED, "working", "waiting", "failed", "out")


def rollouts(store: Store) -> dict[str, Any]:
    """All rollouts in short."""
    return {"rollouts": summaries(store), "paused": store.rollouts.setting(PAUSED)}


def rollout(store: Store, number: int, line: LineState, now: Now) -> dict[str, Any]:
    """One of them, see `edge.coordinator.http.rollout_views.shown`; and whom it waits for that is not there.

    Raises:
        RolloutError: There is no such rollout.
    """
    found = shown(store, number)
    release = store.releases.get(found["release"])
    state = RolloutState(found["state"])
    waits = sum(each["state"] in _WAITS for each in found["targets"])
    targets = sorted((t for t in found["targets"] if t["state"] not in _WAITS), key=lambda t: _rank(t["state"]))
    return {
        "r": found,
        "rel": release,
        "waves": [_wave(found, i) for i in range(1, len(found["waves"]) + 1)],
        "targets": [each | {"away": _away(store, each, line, now)} for each in targets[:_MOST_TARGETS]],
        "n_targets": len(targets),
        "waits": waits,
        "orders": [str(each) for each in _ORDERS if can(state, each) and _helps(found, each)],
        "has_ended": state in ENDED,
        "plan": _plan(found["plan"]),
    }


def _away(store: Store, target: dict[str, Any], line: LineState, now: Now) -> str:
    """How a device is that is offered something, where it is not online; "" for all others."""
    device = store.devices.get(target["device"]) if target["state"] == TargetState.OFFERED else None
    condition = ONLINE if device is None else line.condition(device, now.wall_ms)
    return "" if condition == ONLINE else condition


def can(state: RolloutState, asked: Asked) -> bool:
    """Whether a person may ask for this now, and it would change something."""
    try:
        return after(state, asked) != str(state) or asked is Asked.RETRY
    except RolloutError:
        return False


def _helps(found: dict[str, Any], asked: Asked) -> bool:
    """Whether it would do something.

    A draft goes on only without the judges that it waits for; after the end only what a device has is taken back.
    """
    if asked is Asked.RESUME and found["state"] == RolloutState.DRAFT:
        return found["evaluation"] is not None and found["evaluation"]["state"] in UNDECIDED
    if asked is Asked.REVERT and found["state"] in (*ENDED, RolloutState.COMPLETED):
        return any(each["state"] in _TAKES_BACK for each in found["targets"])
    return True


def _rank(state: str) -> int:
    """Failures first, then those under way."""
    if TargetState(state) in FAILURES:
        return 0
    return 1 if TargetState(state) in UNSETTLED else 2 if state == TargetState.ACTIVE else 3


def _part(target: dict[str, Any]) -> str:
    state = TargetState(target["state"])
    if state is TargetState.ACTIVE:
        return "active" if target["judged"] else _UNJUDGED
    if state in FAILURES:
        return "failed"
    if state in UNSETTLED or state is TargetState.REVERTING:
        return "working"
    return "waiting" if state in _WAITS else "out"


def _wave(found: dict[str, Any], number: int) -> dict[str, Any]:
    own = [each for each in found["targets"] if each["wave"] == number]
    parts = Counter(_part(each) for each in own)
    looks: Sequence[dict[str, Any]] = [each for each in found["looks"] if each["wave"] == number - 1]
    counted = [(part, parts[part]) for part in _PARTS if parts[part]]
    label = ", ".join(f"{count} {text(f'part.{part}')}" for part, count in counted)
    has_ended = found["state"] in ENDED or found["state"] == RolloutState.COMPLETED
    is_over = number < found["wave"] or (number == found["wave"] and has_ended)
    return {
        "number": number,
        "n": len(own),
        "parts": counted,
        "bar": shares(counted, label or text("wave.empty")),
        "looks": looks,
        "state": "over" if is_over else "not-opened" if has_ended else "open" if number == found["wave"] else "to-come",
    }


def _plan(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, _said(value)) for key, value in sorted(document.items()) if value and key != "seed"]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_said(each) for each in value) or text("none")
    return {True: text("yes"), False: text("no")}[value] if isinstance(value, bool) else str(value) or text("none")
