"""How the numbers of a report are written, on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
NONE = "–"
_KIB = 1 << 10
_MIB = 1 << 20
# What a core of a workstation takes so long for is a matter of seconds on a small device.
_SLOW_LABEL_MS = 20.0


def size(n_bytes: int | None) -> str:
    """A size in KiB or MiB.

    >>> size(3 << 20), size(1536), size(None)
    ('3.00 MiB', '1.5 KiB', '–')
    """
    if n_bytes is None:
        return NONE
    return f"{n_bytes / _MIB:.2f} MiB" if n_bytes >= _MIB else f"{n_bytes / _KIB:.1f} KiB"


def share(value: float | None) -> str:
    """A share in per cent.

    >>> share(0.9876)
    '98.76 %'
    """
    return NONE if value is None else f"{100 * value:.2f} %"


def number(value: float | None, digits: int = 2) -> str:
    """A number with some digits behind the point."""
    return NONE if value is None else f"{value:.{digits}f}"


def small(value: float | None) -> str:
    """A number of any magnitude, three digits."""
    return NONE if value is None else f"{value:.3g}"


def milliseconds(value: float | None) -> str:
    """A latency; three digits count.

    >>> milliseconds(0.01234), milliseconds(12.34)
    ('0.0123', '12.3')
    """
    return NONE if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def layers(candidate: Row) -> str:
    """How many layers really run in int8."""
    return NONE if candidate["layers"] is None else f"{candidate['int8_layers']}/{candidate['layers']}"


def quality(candidate: Row) -> float | None:
    """The score where there are labels, else the agreement with the original."""
    value: float | None = candidate["agreement"] if candidate["score"] is None else candidate["score"]
    return value


def speed(report: Row, candidate: Row) -> str:
    """How many times as fast as the float graph."""
    latency = next((c["latency_ms"] for c in report["candidates"] if c["name"] == "float"), None)
    if not latency or not candidate["latency_ms"]:
        return NONE
    return f"{latency / candidate['latency_ms']:.2f} ×"


def by_name(report: Row, name: str) -> Row:
    """A candidate."""
    found: Row = next(candidate for candidate in report["candidates"] if candidate["name"] == name)
    return found


def headline(report: Row) -> str:
    """What came out, in one sentence."""
    row = by_name(report, report["chosen"])
    original, shipped = (quality(r) for r in (report["candidates"][0], row))
    kept = "" if shipped is None else f", {report['metric']} {share(shipped)} (original {share(original)})"
    return f"{report['chosen']}: {size(row['size_bytes'])}, {milliseconds(row['latency_ms'])} ms{kept}"


CANDIDATE_COLUMNS = ("candidate", "size", "quality", "SQNR dB", "ms", "speed", "peak", "int8 layers")


def candidate_cells(report: Row, candidate: Row) -> list[str]:
    """One row of the table of candidates, as `CANDIDATE_COLUMNS` says."""
    peak = candidate["peak_memory_bytes"]
    return [
        candidate["name"],
        size(candidate["size_bytes"]) if candidate["size_bytes"] else NONE,
        share(quality(candidate)),
        number(candidate["sqnr_db"], 1),
        milliseconds(candidate["latency_ms"]),
        speed(report, candidate),
        NONE if peak is None else f"{peak / _MIB:.0f} MiB",
        layers(candidate),
    ]


CHECK_COLUMNS = ("verified", "against", "largest error", "relative", "SQNR dB", "agreement")


def check_cells(check: Row) -> list[str]:
    """One row of the table of checks, as `CHECK_COLUMNS` says."""
    return [
        check["what"],
        check["against"],
        small(check["max_error"]),
        small(check["relative_error"]),
        number(check["sqnr_db"], 1),
        share(check["agreement"]),
    ]


ROBUSTNESS_COLUMNS = ("corruption", "severity", "original", "bundle")


def robustness_cells(row: Row) -> list[str]:
    """One row of the table of corruptions, as `ROBUSTNESS_COLUMNS` says."""
    return [row["corruption"], small(row["severity"]), share(row["scores"]["original"]), share(row["scores"]["bundle"])]


def facts(report: Row) -> list[tuple[str, str]]:
    """What was converted, from what, for what and on what."""
    inputs, outputs = (
        ", ".join(f"{s['name']} ({', '.join(map(str, s['shape']))}) {s['dtype']}" for s in report[key])
        for key in ("inputs", "outputs")
    )
    found = [
        ("model", f"{report['source']} ({report['source_kind']}, {report['n_parameters']:,} parameters)"),
        ("inputs", inputs),
        ("outputs", outputs),
        ("trainable", ", ".join(report["trainable"]) or "nothing"),
        ("target", f"{report['target']}: {report['target_description']}"),
        ("measured on", f"{report['machine']}, {report['threads']} thread"),
        ("data", f"{report['data']}; {report['metric']}"),
        ("exported by", report["exporter"]),
    ]
    if report["learning"] is not None:
        found.insert(4, ("learns", _learning(report["learning"], report["label_ms"])))
    return found


def _learning(trial: Row, label_ms: float) -> str:
    """What the head's training step did on trial, and what a label costs."""
    kind = "of its own answers" if trial["own_answers"] else "of the data"
    judged = f"on {trial['held_out']} samples held out" if trial["held_out"] else "on the same sample"
    cost = f"a label takes {label_ms:.3g} ms on this machine"
    if label_ms > _SLOW_LABEL_MS:
        cost += ", which is slow: fewer layers (--trainable last:1) take less"
    return (
        f"at rate {trial['rate']:g}, {trial['labels']} labels {kind} bring the loss from {trial['loss_before']:.3g} to "
        f"{trial['loss_after']:.3g} {judged}; as many with other meanings from {trial['turned_before']:.3g} to "
        f"{trial['turned_after']:.3g}; {cost}"
    )
