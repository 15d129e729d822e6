"""How the numbers of a report are written, on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.search.candidates import AS_IT_IS
from converter.verify.quality import ACCURACY, SHARES
from edge.inference.onnx_benchmark import SETTLED

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
    """A share in per cent, rounded, but never up to all.

    >>> share(12 / 13), share(13 / 14), share(0.99999), share(1.0)
    ('92.31 %', '92.86 %', '99.99 %', '100.00 %')
    """
    return NONE if value is None else f"{_rounded(100 * value, 2, 100.0):.2f} %"


def coefficient(value: float | None) -> str:
    """What is no share of anything: R², a correlation, a cosine; rounded, but never up to 1.

    >>> coefficient(0.99999), coefficient(-0.5)
    ('0.9999', '-0.5000')
    """
    return NONE if value is None else f"{_rounded(value, 4, 1.0):.4f}"


def _rounded(value: float, digits: int, whole: float) -> float:
    """To the nearest, but where that would be all, which it is not, one digit less."""
    found = round(value + 1e-12, digits)
    return whole - 10**-digits if found >= whole > value + 1e-9 else found


def level(measure: str, value: float | None) -> str:
    """A value as its measure is written.

    >>> level("accuracy", 0.5), level("R2", 0.5)
    ('50.00 %', '0.5000')
    """
    return share(value) if measure in SHARES else coefficient(value)


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


def quality(candidate: Row) -> str:
    """Of the column that decides."""
    worst = candidate["quality"]
    if worst is None:
        return NONE
    if worst["constant"]:
        return "constant"
    whole = candidate["score"] if worst["measure"] == ACCURACY and candidate["score"] is not None else worst["value"]
    return level(worst["measure"], whole)


def speed(report: Row, candidate: Row) -> str:
    """How many times as fast as the float graph."""
    floating = (c for c in report["candidates"] if c["scheme"] == "none" and c["status"] != "reference")
    latency = next((c["latency_ms"] for c in floating), None)
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
    return f"{report['chosen']}: {size(row['size_bytes'])}, {milliseconds(row['latency_ms'])} ms{_kept(report, row)}"


def _kept(report: Row, row: Row) -> str:
    worst = row["quality"]
    if not report["real_data"]:
        return f", {number(row['sqnr_db'], 1)} dB on random inputs; what it keeps on real ones was not measured"
    if worst is None and row["name"] == AS_IT_IS:
        return f"; the graph of the file, {number(row['sqnr_db'], 1)} dB against it"
    if worst is None:
        return "; what it keeps is not known"
    if worst["constant"]:
        return "; every output is constant on these samples"
    columns = sum(judged["n_columns"] for judged in report["judged"])
    where = f" of {worst['of']}, which of {columns} loses most" if worst["column"] is not None and columns > 1 else ""
    if not where and (len(report["judged"]) > 1 or worst["at"]):
        where = f" of {worst['of']}"
    value, original = (level(worst["measure"], worst[key]) for key in ("value", "original"))
    against = f"original {original}" if worst["against"] == "labels" else "against the original"
    return f", {worst['measure']} {value}{where} ({against})"


CANDIDATE_COLUMNS = ("candidate", "size", "quality", "SQNR dB", "ms", "speed", "peak", "int8 layers")


def candidate_cells(report: Row, candidate: Row) -> list[str]:
    """One row of the table of candidates, as `CANDIDATE_COLUMNS` says."""
    peak = candidate["peak_memory_bytes"]
    return [
        candidate["name"],
        size(candidate["size_bytes"]) if candidate["size_bytes"] else NONE,
        quality(candidate),
        number(candidate["sqnr_db"], 1),
        milliseconds(candidate["latency_ms"]),
        speed(report, candidate),
        NONE if peak is None else f"{peak / _MIB:.0f} MiB",
        layers(candidate),
    ]


CHECK_COLUMNS = ("verified", "against", "largest error", "relative", "SQNR dB", "worst column")


def check_cells(check: Row) -> list[str]:
    """One row of the table of checks, as `CHECK_COLUMNS` says."""
    return [
        check["what"],
        check["against"],
        small(check["max_error"]),
        small(check["relative_error"]),
        number(check["sqnr_db"], 1),
        number(check["column_db"], 1),
    ]


ROBUSTNESS_COLUMNS = ("corruption", "severity", "original", "bundle")


def robustness_cells(report: Row, row: Row) -> list[str]:
    """One row of the table of corruptions, as `ROBUSTNESS_COLUMNS` says."""
    scores = (level(report["robustness_measure"], row["scores"][name]) for name in ("original", "bundle"))
    return [row["corruption"], small(row["severity"]), *scores]


CLASS_COLUMNS = ("class", "samples", "original right", "bundle right")


def class_rows(report: Row) -> list[list[str]]:
    """One row for each class that has samples, as `CLASS_COLUMNS` says."""
    classes = report["classes"]
    if classes is None:
        return []
    counts = zip(classes["names"], classes["samples"], classes["right_original"], classes["right"], strict=True)
    return [
        [name, str(samples), share(before / samples), share(after / samples)]
        for name, samples, before, after in counts
        if samples
    ]


JUDGED_COLUMNS = ("output", "judged as", "because", "columns", "worst", "value", "original")


def judged_cells(judged: Row) -> list[str]:
    """One row of the table of outputs, as `JUDGED_COLUMNS` says."""
    worst = next((column for column in judged["columns"] if not column["constant"]), None)
    constant = f", {judged['n_constant']} constant" if judged["n_constant"] else ""
    values: tuple[str, ...] = ("", NONE, NONE)
    if worst is not None:
        both = (level(worst["measure"], worst[key]) for key in ("value", "original"))
        values = (f"{worst['measure']} of {worst['of']}", *both)
    return [judged["output"], judged["kind"], judged["because"], f"{judged['n_columns']}{constant}", *values]


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
        ("data", report["data"]),
        ("judged as", "; ".join(f"{j['output']}: {j['kind']}, because {j['because']}" for j in report["judged"])),
        ("exported by", report["exporter"]),
    ]
    if report["elsewhere"]:
        found.insert(7, ("and", ", and ".join(one["at"] for one in report["elsewhere"])))
    if report["expected"] is not None:
        found.append(("of others", _of_others(report["expected"])))
    if report["learning"] is not None:
        found.insert(4, ("learns", _learning(report["learning"], report["label_ms"])))
    return found


def _of_others(expected: Row) -> str:
    """What the bundle is likely to do to samples that nobody has seen."""
    outputs = (
        f"{quality['of']}: {quality['measure']} {level(quality['measure'], quality['value'])}"
        f"{' (original ' + level(quality['measure'], quality['original']) + ')' if quality['original'] < 1 else ''}"
        for quality in expected["outputs"]
    )
    return (
        f"{'; '.join(outputs)}, as margins move; counted on {expected['samples']} samples alone, up to "
        f"{share(expected['unseen'])} could change unseen"
    )


def notes(report: Row) -> list[str]:
    """What a user should know besides: of this conversion, and of the moment at which it was measured."""
    spread = report["latency_spread"]
    if spread <= SETTLED:
        return list(report["notes"])
    disturbed = (
        f"this machine did other work, too: times of one candidate differed by {spread:.0%} while they were compared, "
        f"and on a quiet machine another one may be the fastest"
    )
    return [*report["notes"], disturbed]


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
