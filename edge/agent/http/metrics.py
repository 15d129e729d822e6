"""What Prometheus reads: a page of plain numbers, with one series for each model and expert and no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_EXPERTS = 32  # of one model; what is not shown of more is the least believed

Series = tuple[Mapping[str, str], float]


def page(found: Mapping[str, Any], requests: Mapping[str, int], version: str) -> bytes:
    """The page.

    Args:
        found: What the agent says of itself, with ``figures`` of each model beside its ``models``.
        requests: Answered requests by class of status (``2xx``).
        version: Of the agent.
    """
    models: Mapping[str, Mapping[str, Any]] = found["models"]
    figures: Mapping[str, Mapping[str, float | None]] = found["figures"]
    lines: list[str] = []

    def add(name: str, kind: str, text: str, series: Iterable[Series]) -> None:
        rows = [f"{name}{_labels(labels)} {value:.10g}" for labels, value in series]
        if rows:
            lines.extend([f"# HELP {name} {text}", f"# TYPE {name} {kind}", *rows])

    def of_models(key: str, factor: float = 1.0) -> list[Series]:
        return [
            ({"model": name}, factor * value) for name, each in figures.items() if (value := each.get(key)) is not None
        ]

    def said(key: str) -> list[Series]:
        return [({"model": name}, float(each[key])) for name, each in models.items() if key in each]

    add("edge_agent_info", "gauge", "The agent.", [({"version": version, "device": found["device"]}, 1.0)])
    add("edge_agent_starts_total", "counter", "Starts of the agent.", [({}, float(found["boot"]))])
    add("edge_agent_connected", "gauge", "Whether it has a broker.", [({}, float(found["connected"]))])
    if found["resident_mb"] is not None:
        add("edge_agent_resident_bytes", "gauge", "Resident memory.", [({}, found["resident_mb"] * 2**20)])
    add("edge_agent_outbox_messages", "gauge", "Reports that wait for a connection.",
        [({}, float(found["outbox"]["waiting"]))])  # fmt: skip
    add("edge_model_inferences_total", "counter", "Samples that were answered since the model was opened.",
        of_models("predictions"))  # fmt: skip
    add("edge_model_labels_total", "counter", "Labels that came since the model was opened.", of_models("labels"))
    add("edge_model_learned_samples", "gauge", "Labelled samples learned, over restarts.", said("samples"))
    add("edge_model_waiting_labels", "gauge", "Labels that wait for the learning budget.", said("waiting"))
    add("edge_model_accuracy_ratio", "gauge", "Right answers among the last 256 labels.", of_models("accuracy"))
    add("edge_model_latency_p50_seconds", "gauge", "Median time of the last 256 runs.", of_models("p50_ms", 1e-3))
    add("edge_model_latency_p99_seconds", "gauge", "99th percentile of it.", of_models("p99_ms", 1e-3))
    add("edge_model_release", "gauge", "Release that the model came with; 0 as shipped.", said("release"))
    experts = [
        ({"model": name, "expert": expert}, float(row[0]))
        for name, each in models.items()
        for expert, row in sorted(each.get("experts", {}).items(), key=lambda item: -item[1][0])[:MAX_EXPERTS]
    ]
    add("edge_model_expert_weight_ratio", "gauge", "Share of the say.", experts)
    add("edge_model_failed", "gauge", "1 for a model that is not served.",
        [({"model": name}, 1.0) for name in found["not_served"]])  # fmt: skip
    add("edge_http_requests_total", "counter", "Answered requests by class of status.",
        [({"status": status}, float(count)) for status, count in sorted(requests.items())])  # fmt: skip
    return ("\n".join(lines) + "\n").encode()


def _labels(labels: Mapping[str, str]) -> str:
    r"""As the text format has them.

    >>> print(_labels({"model": 'a"b'}))
    {model="a\"b"}
    """
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
