"""What the page of one device says: what it runs and why, how it does, and what happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge.channel.messages import EXPERTS
from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.devices.standings import admitted
from edge.coordinator.line import LineState
from edge.coordinator.pages import confusion_view
from edge.coordinator.pages.charts import Chart, Frame, Point, Series, chart
from edge.coordinator.pages.learning_view import by_share
from edge.coordinator.pages.texts import text
from edge.coordinator.records import LoggedEvent, Model, TelemetryEntry
from edge.coordinator.releases.leftover import leftovers
from edge.coordinator.rollout.states import UNSETTLED
from edge.coordinator.store.store import Store
from edge.coordinator.summaries import HOUR_S, MINUTE_S

# What is shown of the past: how long, and by which sums; 0 for each message by itself.
SPANS = {"hour": (3_600_000, 0), "day": (86_400_000, MINUTE_S), "month": (30 * 86_400_000, HOUR_S)}
_MESSAGES_OF_A_MODEL = 400
_EVENTS = 30
# Events that are marked in the charts of accuracy and of heads.
_MARKED = ("drift", "feature-shift", "believed", "rolled-back")
# Devices go on saying the latency of their last predictions while nothing is predicted.
_LATENCY = "lat_"
# Of a model, then of the device: title, unit, keys of telemetry, lower and upper end.
_OF_A_MODEL = (
    ("latency", "ms", ("lat_p50_ms", "lat_p99_ms"), 0.0, None),
    ("accuracy", "", ("acc",), None, 1.0),
    ("loss", "", ("loss",), 0.0, None),
    ("rate", "1/s", ("infer_per_s",), 0.0, None),
    ("labels", "", ("waiting",), 0.0, None),
)
_OF_THE_DEVICE = (
    ("memory", "MiB", ("mem_mb",), 0.0, None),
    ("temperature", "°C", ("temp_c",), None, None),
    ("cpu", "%", ("cpu_pct",), 0.0, None),
    ("disk", "MiB", ("disk_free_mb",), 0.0, None),
)


def device(
    store: Store, name: str, span: str, standing: Sequence[Mapping[str, Any]], line: LineState, now: Now
) -> dict[str, Any]:
    """All that the page shows.

    Args:
        store: The database.
        name: Of the device.
        span: Of `SPANS`.
        standing: By model the release that it should run, see `Releases.standing`.
        line: To the broker.
        now: The time.

    Raises:
        RolloutError: There is no such device.
    """
    with store.transaction():
        known = store.devices.known(name)
        if known is None:
            raise RolloutError(f"unknown device {name[:80]}")
        length_ms, step_s = SPANS[span]
        since_ms = now.wall_ms - length_ms
        state_id = known.device.state_id
        messages = store.telemetry.newest_of(name, state_id, _MESSAGES_OF_A_MODEL * max(1, len(known.models)))
        points = _summed(store, name, since_ms, step_s) if step_s else _points(messages)
        events = sorted(store.events.newest(200, device=name), key=lambda each: (each.at_ms, each.id), reverse=True)
        targets, left = store.rollouts.of_devices(name), leftovers(store)
        contributions = [each for each in store.contributions.all() if each.device == name]
        left_out = {each.lineage: each.reason for each in store.contributions.refused() if each.device == name}
        releases = {each.counter: each for each in store.releases.all()}
        bundles = {each.identity: each for each in store.releases.bundles() if each.identity}
        stands = admitted(store, name, known.device.admission)
        tags = store.devices.tags(name).get(name, {})
        said = confusion_view.of_device(store.confusions.all(name))
    wanted = {each["model"]: each for each in standing}
    frame = (_since(points, since_ms, now.wall_ms), now.wall_ms)
    models = [
        {
            "model": model,
            "bundle": bundles.get(model.bundle),
            "release": releases.get(model.release),
            "left": None if (rollout := left.get((name, model.model))) is None else rollout.id,
            "wanted": wanted.get(model.model),
            "rollouts": [(r, t) for r, t in targets if t.model in ("", model.model)][-3:][::-1],
            "charts": _charts(_OF_A_MODEL, points, model.model, frame, _marks(events, model.model)),
            "experts": _experts(messages, model, frame, _marks(events, model.model)),
            "standing": by_share(model),
            "confusion": said.get(model.model),
            "newest": _newest(messages, model.model),
        }
        for model in known.models
    ]
    return {
        "device": known.device,
        "condition": line.condition(known.device, now.wall_ms),
        "admitted": stands,
        "tags": tags,
        "models": models,
        "charts": _charts(_OF_THE_DEVICE, points, None, frame, ()),
        "n_messages": len(messages),
        "span": span,
        "spans": tuple(SPANS),
        "events": events[:_EVENTS],
        "transfers": [(r, t) for r, t in targets if t.state in UNSETTLED],
        "contributions": contributions,
        "left_out": left_out,
        "hardware": sorted((key, value) for key, value in known.device.hardware.items()),
    }


Points = Mapping[tuple[str, str], Sequence[Point]]
"""By model and key of telemetry."""


def _since(points: Points, since_ms: int, now_ms: int) -> int:
    """The left end of charts: later, where all that there is would be squeezed into the last quarter."""
    first_ms = min((ms for own in points.values() for ms, _ in own if ms >= since_ms), default=since_ms)
    return first_ms if first_ms > now_ms - (now_ms - since_ms) // 4 else since_ms


def _points(messages: Iterable[TelemetryEntry]) -> Points:
    found: dict[tuple[str, str], list[Point]] = {}
    for each in messages:
        model, is_idle = _model_of(each), each.values.get("infer_per_s") == 0
        for key, value in each.values.items():
            if type(value) in (int, float) and not (is_idle and key.startswith(_LATENCY)):
                found.setdefault((model, key), []).append((each.received_ms, float(value)))
    return found


def _summed(store: Store, name: str, since_ms: int, step_s: int) -> Points:
    found: dict[tuple[str, str], list[Point]] = {}
    for bucket, sums in sorted(store.telemetry.sums(name, since_ms, step_s).items()):
        is_idle = "infer_per_s" in sums and sums["infer_per_s"].most == 0
        for key, each in sums.items():
            if is_idle and key.startswith(_LATENCY):
                continue
            found.setdefault((bucket.model, key), []).append((bucket.start_ms, each.mean))
    return found


def _model_of(message: TelemetryEntry) -> str:
    model = message.values.get("model", "")
    return model if isinstance(model, str) else ""


def _charts(
    wanted: Sequence[tuple[str, str, tuple[str, ...], float | None, float | None]],
    points: Points,
    model: str | None,
    frame: tuple[int, int],
    marks: Sequence[tuple[int, str]],
) -> list[Chart]:
    """Those of which there are numbers; what is of the device stands in the messages of each of its models."""
    found = []
    for title, unit, keys, low, high in wanted:
        series = []
        for key in keys:
            own = [each for (of, name), each in points.items() if name == key and model in (None, of)]
            series.append(Series(text(f"key.{key}"), sorted(point for each in own for point in each)))
        shown = marks if title in ("accuracy", "loss") else ()
        made = chart(text(f"chart.{title}"), unit, series, Frame(*frame, low, high, shown))
        if made is not None:
            found.append(made)
    return found


def _experts(
    messages: Iterable[TelemetryEntry], model: Model, frame: tuple[int, int], marks: Sequence[tuple[int, str]]
) -> list[Chart]:
    """How much say each head has, and how often it was right, over time."""
    weights: dict[str, list[Point]] = {}
    right: dict[str, list[Point]] = {}
    for each in messages:
        experts = each.values.get(EXPERTS)
        if _model_of(each) == model.model and isinstance(experts, dict):
            for name, numbers in experts.items():
                weights.setdefault(name, []).append((each.received_ms, numbers[0]))
                if numbers[2] > 0:
                    right.setdefault(name, []).append((each.received_ms, numbers[1]))
    charts = [
        chart(
            text(f"chart.{title}"),
            "",
            [Series(*each) for each in sorted(values.items())],
            Frame(*frame, 0.0, 1.0, marks),
        )
        for title, values in (("experts", weights), ("experts-right", right))
    ]
    return [each for each in charts if each is not None]


def _marks(events: Iterable[LoggedEvent], model: str) -> list[tuple[int, str]]:
    return [(each.at_ms, each.name) for each in events if each.name in _MARKED and each.model in ("", model)]


def _newest(messages: Sequence[TelemetryEntry], model: str) -> TelemetryEntry | None:
    return next((each for each in reversed(messages) if _model_of(each) == model), None)
