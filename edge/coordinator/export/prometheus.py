"""Numbers of the fleet for Prometheus. However many devices there are, the time series are as many: none is a device's.

What one device measures is asked of the HTTP API (`/api/v1/metrics`), or exported to files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge import __version__
from edge.contract.clock import Now
from edge.coordinator.line import LineState
from edge.coordinator.records import DECOMMISSIONED, Model
from edge.coordinator.rollout.states import TargetState
from edge.coordinator.store.store import Store

TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Names that devices choose: so many are told by name, all others together.
MAX_NAMES = 50
OTHER = "(other)"
# Of the fleet: how often the head with most say is right on late labels, where it has so many.
_STATES = frozenset(map(str, (*TargetState, "idle", "fetching", "verified", "held", "activating")))
_MIN_LABELS, _QUANTILES = 20, (0.1, 0.5, 0.9)


def metrics(store: Store, fleet: str, line: LineState, now: Now) -> bytes:
    """All of them, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fleet(store, fleet, line, now))
    return generate_latest(registry)


class _Fleet(Collector):
    def __init__(self, store: Store, fleet: str, line: LineState, now: Now) -> None:
        self._store, self._fleet, self._line, self._now = store, fleet, line, now

    def collect(self) -> Iterator[Metric]:
        """All numbers, of one moment."""
        with self._store.transaction():
            everyone = self._store.devices.all()
            devices = [each for each in everyone if each.admission != DECOMMISSIONED]
            here = {each.id for each in devices}
            models = [each for each in self._store.devices.models() if each.device in here]
            rollouts, targets = self._store.rollouts.open(), Counter[str]()
            for rollout in rollouts:
                targets.update(str(each.state) for each in self._store.rollouts.targets(rollout.id))
            contributions = self._store.contributions.all()
            left_out = self._store.contributions.refused()
            highest = self._store.releases.highest()
            alerts = self._store.alerts.open()
        yield _gauge("build_info", "Version of the coordinator.", ("fleet", "version"), {(self._fleet, __version__): 1})
        hears = float(self._line.hears)
        yield _gauge("broker_line", "Whether what devices say arrives at the coordinator.", (), {(): hears})
        by_state = Counter(self._line.condition(each, self._now.wall_ms) for each in devices)
        yield _gauge("devices", "Devices by what was heard of them.", ("state",), _keyed(by_state))
        admissions = Counter(each.admission for each in everyone)
        yield _gauge("devices_admission", "Devices by whether they may.", ("admission",), _keyed(admissions))
        agents = _bounded(Counter(each.agent_version for each in devices))
        yield _gauge("agents", "Devices by the version of their agent.", ("version",), _keyed(agents))
        names = _bounded(Counter(each.model for each in models))
        yield _gauge("models", "Devices that have a model.", ("model",), _keyed(names))
        states = Counter((_name(each.model, names), _state(each.state)) for each in models)
        yield _gauge("slots", "Models by where their newest release stands.", ("model", "state"), dict(states))
        labels: Counter[tuple[str, ...]] = Counter()
        for each in models:
            labels[_name(each.model, names),] += each.samples
        yield _gauge("labels_learned", "Labelled samples that devices have learned.", ("model",), labels)
        yield _gauge(
            "head_right_ratio",
            f"Of the head with most say on each device: how often it was right on late labels, from {_MIN_LABELS} on.",
            ("model", "quantile"),
            _right(models, names),
        )
        yield _gauge("release_highest", "Counter of the newest release.", (), {(): highest})
        yield _gauge("contributions", "Newest contributions that are kept.", (), {(): len(contributions)})
        waiting = sum(each.merged_version < each.version for each in contributions) - len(left_out)
        yield _gauge("contributions_waiting", "Contributions that no merge has in.", (), {(): max(0, waiting)})
        yield _gauge("contributions_left_out", "Contributions that merges leave out.", (), {(): len(left_out)})
        open_ones = Counter(str(each.state) for each in rollouts)
        yield _gauge("rollouts", "Rollouts that have not ended.", ("state",), _keyed(open_ones))
        yield _gauge("rollout_targets", "Devices in these rollouts.", ("state",), _keyed(targets))
        firing = _bounded(Counter(each.rule for each in alerts))
        yield _gauge("alerts", "Alerts that hold now.", ("rule",), _keyed(firing))
        seen = sum(not each.acknowledged_ms for each in alerts)
        yield _gauge("alerts_unacknowledged", "Of these, the ones that nobody has acknowledged.", (), {(): seen})


def _gauge(name: str, help_: str, labels: Iterable[str], values: Mapping[Any, float]) -> Metric:
    found = GaugeMetricFamily(f"edgeloop_{name}", help_, labels=list(labels))
    for key, value in sorted(values.items()):
        found.add_metric(list(key), value)
    return found


def _keyed(counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    return {(key,): float(value) for key, value in counts.items()}


def _bounded(counts: Counter[str]) -> Counter[str]:
    """The most frequent names; all others under one."""
    kept: Counter[str] = Counter(dict(counts.most_common(MAX_NAMES)))
    if rest := counts.total() - kept.total():
        kept[OTHER] += rest
    return kept


def _name(model: str, known: Mapping[str, int]) -> str:
    return model if model in known else OTHER


def _right(models: Iterable[Model], names: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    found: dict[str, list[float]] = {}
    for each in models:
        most = max(each.experts.values(), key=lambda numbers: numbers[0], default=None)
        if most is not None and most[2] >= _MIN_LABELS:
            found.setdefault(_name(each.model, names), []).append(most[1])
    return {
        (name, f"{q:g}"): sorted(values)[round(q * (len(values) - 1))]
        for name, values in found.items()
        for q in _QUANTILES
    }


def _state(said: str) -> str:
    """Of a slot; a device may say anything."""
    return said if said in _STATES else OTHER if said else "idle"
