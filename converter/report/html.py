"""The report as one page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from converter.report.plots import latency_plot, robustness_plot, sensitivity_plot, size_plot
from converter.report.values import (
    CANDIDATE_COLUMNS,
    CHECK_COLUMNS,
    ROBUSTNESS_COLUMNS,
    Row,
    candidate_cells,
    check_cells,
    facts,
    headline,
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
        cells = [(robustness_cells(row), "") for row in report["robustness"]]
        parts += ["<details><summary>numbers</summary>", _table(ROBUSTNESS_COLUMNS, cells), "</details>"]
    if report["notes"]:
        parts += ["<h2>Notes</h2><ul>", *(f"<li>{escape(note)}</li>" for note in report["notes"]), "</ul>"]
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
