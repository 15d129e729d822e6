"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from converter.report.values import (
    CANDIDATE_COLUMNS,
    CHECK_COLUMNS,
    CLASS_COLUMNS,
    Row,
    candidate_cells,
    check_cells,
    class_rows,
    facts,
    headline,
    level,
    notes,
    size,
)

_MOST_CLASSES = 10
_MOST_CONFUSIONS = 5
_STYLES = {"chosen": "bold green", "failed": "red", "refused": "red", "reference": "dim"}


def print_report(console: Console, report: Row) -> None:
    """Print what was found out and what was written."""
    grid = Table.grid(padding=(0, 2))
    for key, value in facts(report):
        grid.add_row(Text(key, "dim"), _plain(value))
    console.print(grid)
    rows = [(candidate_cells(report, c), _STYLES.get(c["status"], "")) for c in report["candidates"]]
    console.print(_table(CANDIDATE_COLUMNS, rows))
    for judged in report["judged"]:
        if judged["n_constant"] and judged["n_constant"] < judged["n_columns"]:
            which = ", ".join(map(str, judged["constant"][:_MOST_CLASSES]))
            _line(console, f"constant in {judged['output']} on these samples: column {which}; nothing is known of them")
    for candidate in report["candidates"]:
        if candidate["status"] in ("failed", "refused"):
            _line(console, f"{candidate['name']}: {candidate['why']}")
        elif candidate["left_in_float"]:
            _line(console, f"{candidate['name']}: {', '.join(candidate['left_in_float'])}")
    _print_classes(console, report)
    console.print(_table(CHECK_COLUMNS, [(check_cells(check), "") for check in report["verification"]]))
    worst = min(
        (row for row in report["robustness"] if row["corruption"] != "none"),
        key=lambda row: row["scores"]["bundle"] - row["scores"]["original"],
        default=None,
    )
    measure = report["robustness_measure"]
    before, after = (level(measure, worst and worst["scores"][name]) for name in ("original", "bundle"))
    if worst is not None and worst["scores"]["bundle"] < worst["scores"]["original"]:
        _line(
            console,
            f"under corruption it loses most with {worst['corruption']} {worst['severity']:g}: {after}, the original "
            f"{before} ({len(report['robustness']) - 1} kinds, see --html)",
        )
    if report["saturation"]["text"]:
        _line(console, report["saturation"]["text"])
    for note in notes(report):
        _line(console, note)
    for finding in report["findings"]:
        console.print(_plain(f"! {finding['text']}", "bold yellow"), soft_wrap=True)
    seconds = sum(stage["seconds"] for stage in report["stages"])
    console.print(Text.assemble(("chosen ", "bold"), _plain(headline(report))), soft_wrap=True)
    console.print(
        _plain(f"because it is {report['reason']}" if report["reason"].startswith("the ") else report["reason"])
    )
    done = (
        f"wrote {report['output']} ({size(report['size_bytes'])}) in {seconds:.1f} s, digest {report['bundle_digest']}"
    )
    console.print(_plain(done, "bold"), soft_wrap=True)


def _print_classes(console: Console, report: Row) -> None:
    """Right answers by class, and what the bundle takes samples for; of many classes the worst."""
    classes, rows = report["classes"], class_rows(report)
    if classes is None:
        return
    if len(rows) > _MOST_CLASSES:
        right = [r / n for r, n in zip(classes["right"], classes["samples"], strict=True) if n]
        order = sorted(range(len(rows)), key=lambda i: right[i])[:_MOST_CLASSES]
        _line(console, f"the worst {_MOST_CLASSES} of {len(rows)} classes:")
        rows = [rows[i] for i in order]
    console.print(_table(CLASS_COLUMNS, [(row, "") for row in rows]))
    if classes["confusion"] is None:
        return
    names = classes["names"]
    taken = [
        (count, names[i], names[j])
        for i, row in enumerate(classes["confusion"])
        for j, count in enumerate(row)
        if count and i != j
    ]
    most = sorted(taken, key=lambda item: -item[0])[:_MOST_CONFUSIONS]
    if most:
        _line(console, "confused most: " + ", ".join(f"{a} taken for {b} {count} ×" for count, a, b in most))


def _table(columns: Sequence[str], rows: Iterable[tuple[list[str], str]]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, show_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    for cells, style in rows:
        table.add_row(*(_plain(cell) for cell in cells), style=style)
    return table


def _line(console: Console, text: str) -> None:
    console.print(_plain(f"• {text}"), soft_wrap=True)


def _plain(text: str, style: str = "") -> Text:
    """Names from a model file as text: nothing in them is markup, and nothing commands the terminal."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text), style)
