"""The report as one page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from converter.report.plots import latency_plot, robustness_plot, sensitivity_plot, size_plot
from converter.report.values import (
    CANDIDATE_COLUMNS,
    CHECK_COLUMNS,
    CLASS_COLUMNS,
    JUDGED_COLUMNS,
    NONE,
    ROBUSTNESS_COLUMNS,
    Row,
    candidate_cells,
    check_cells,
    class_rows,
    facts,
    headline,
    judged_cells,
    level,
    notes,
    number,
    robustness_cells,
    size,
)

_CSS = """
:root { color-scheme: light dark; --line: #8884; --good: #087f5b; --bad: #c92a2a; }
@media (prefers-color-scheme: dark) { :root { --good: #63e6be; --bad: #ff8787; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: right; vertical-align: top; }
th { font-weight: 600; } th:first-child, td:first-child, td.text, th.text { text-align: left; }
td { white-space: nowrap; } td:first-child, td.text { white-space: normal; }
td.text { min-width: 12rem; }
tr.chosen { color: var(--good); font-weight: 600; } tr.failed, tr.refused { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
figure { background: #fff; border-radius: 8px; margin: 0 0 1rem; overflow-x: auto; padding: .8rem; }
figure svg { display: block; height: auto; margin: auto; max-width: 100%; min-width: 30rem; }
.finding { border-left: .3rem solid var(--bad); padding: .1rem 1rem; }
code { overflow-wrap: anywhere; }
"""


def render_html(report: Row) -> str:
    """The page.

    Args:
        report: What `converter.report.describe.describe` made, with what the pipeline added.
    """
    parts = [
        f"<h1>{escape(report['source'])} for {escape(report['target'])}</h1>",
        f"<p><strong>{escape(headline(report))}</strong><br>{escape(report['reason'])}</p>",
        f"<p>{escape(report['output'])}, {size(report['size_bytes'])}",
        f"<br><code>{escape(report['bundle_digest'])}</code></p>",
        "<dl>",
        *(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts(report)),
        "</dl>",
        *_findings(report),
        "<h2>Candidates</h2>",
        _table(
            (*CANDIDATE_COLUMNS, "why"),
            [([*candidate_cells(report, c), _why(c)], c["status"]) for c in report["candidates"]],
        ),
        *_figures([size_plot(report), latency_plot(report)]),
        "<h2>Verification</h2>",
        _table((*CHECK_COLUMNS, "required"), [([*check_cells(c), c["required"]], "") for c in report["verification"]]),
        f"<p>{escape(report['saturation']['text'])}</p>" if report["saturation"]["text"] else "",
    ]
    parts += ["<h2>Outputs</h2>", _table(JUDGED_COLUMNS, [(judged_cells(row), "") for row in report["judged"]])]
    for judged in report["judged"]:
        if judged["n_columns"] > 1 and judged["columns"]:
            cells = [(_column_cells(column), "") for column in judged["columns"]]
            more = judged["n_columns"] - len(judged["columns"])
            title = f"columns of {judged['output']}{f', the worst {len(cells)}' if more else ''}"
            parts += [f"<details><summary>{escape(title)}</summary>", _table(_COLUMNS, cells), "</details>"]
    if report["classes"] is not None:
        parts += ["<h2>Classes</h2>", _table(CLASS_COLUMNS, [(row, "") for row in class_rows(report)])]
        parts += _confusion(report["classes"])
    if report["sensitivity"]:
        rows = [
            (
                [
                    r["layer"],
                    number(r["sqnr_db"], 1),
                    f"{r['op_type']}{', left in float' if r['left_in_float'] else ''}",
                ],
                "",
            )
            for r in report["sensitivity"]
        ]
        parts += ["<h2>What each layer costs</h2>", *_figures([sensitivity_plot(report)])]
        parts += ["<details><summary>all layers</summary>", _table(("layer", "SQNR dB", "kind"), rows), "</details>"]
    if report["robustness"]:
        parts += ["<h2>Under corruption</h2>", *_figures([robustness_plot(report)])]
        cells = [(robustness_cells(report, row), "") for row in report["robustness"]]
        parts += ["<details><summary>numbers</summary>", _table(ROBUSTNESS_COLUMNS, cells), "</details>"]
    if told := notes(report):
        parts += ["<h2>Notes</h2><ul>", *(f"<li>{escape(note)}</li>" for note in told), "</ul>"]
    stages = [([stage["name"], number(stage["seconds"])], "") for stage in report["stages"]]
    parts += ["<h2>Time</h2>", _table(("stage", "seconds"), stages), f"<p>{escape(report['created_by'])}</p>"]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(report['source'])}: conversion</title><style>{_CSS}</style></head><body>",
            *parts,
            "</body></html>\n",
        ]
    )


def _findings(report: Row) -> list[str]:
    """What the data cannot show, in front of every number."""
    if not report["findings"]:
        return []
    items = [f"<li>{escape(finding['text'])}</li>" for finding in report["findings"]]
    return ['<div class="finding"><strong>What these data cannot show</strong><ul>', *items, "</ul></div>"]


_COLUMNS = ("column", "measure", "value", "original", "points lost")


def _column_cells(column: Row) -> list[str]:
    if column["constant"]:
        return [column["of"], "constant", NONE, NONE, number(column["loss"])]
    both = (level(column["measure"], column[key]) for key in ("value", "original"))
    return [column["of"], column["measure"], *both, number(column["loss"])]


def _confusion(classes: Row) -> list[str]:
    """Labels down, answers across; the original's number beside the bundle's where they differ."""
    if classes["confusion"] is None:
        return []
    rows = [
        (
            [name, *(str(a) if a == b else f"{a} (was {b})" for a, b in zip(after, before, strict=True))],
            "",
        )
        for name, after, before in zip(
            classes["names"], classes["confusion"], classes["confusion_original"], strict=True
        )
    ]
    table = _table(("label \\ answer", *classes["names"]), rows)
    return ["<details><summary>confusion</summary>", table, "</details>"]


def _why(candidate: Row) -> str:
    left = ", ".join(candidate["left_in_float"])
    return f"{candidate['why']}; in float: {left}" if left else str(candidate["why"])


def _table(columns: Sequence[str], rows: Iterable[tuple[list[str], str]]) -> str:
    last = columns[-1] in ("why", "required", "kind")

    def cells(tag: str, texts: Sequence[str]) -> str:
        kinds = [""] * (len(texts) - 1) + [' class="text"' if last else ""]
        return "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))

    body = "".join(f'<tr class="{escape(status)}">{cells("td", texts)}</tr>' for texts, status in rows)
    return f'<div class="scroll"><table><tr>{cells("th", columns)}</tr>{body}</table></div>'


def _figures(plots: Iterable[str]) -> list[str]:
    return [f"<figure>{plot}</figure>" for plot in plots if plot]
