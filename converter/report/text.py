"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from converter.report.values import (
    CANDIDATE_COLUMNS,
    CHECK_COLUMNS,
    Row,
    candidate_cells,
    check_cells,
    facts,
    headline,
    share,
    size,
)

_STYLES = {"chosen": "bold green", "failed": "red", "refused": "red", "reference": "dim"}


def print_report(console: Console, report: Row) -> None:
    """Print what was found out and what was written."""
    grid = Table.grid(padding=(0, 2))
    for key, value in facts(report):
        grid.add_row(Text(key, "dim"), _plain(value))
    console.print(grid)
    rows = [(candidate_cells(report, c), _STYLES.get(c["status"], "")) for c in report["candidates"]]
    console.print(_table(CANDIDATE_COLUMNS, rows))
    for candidate in report["candidates"]:
        if candidate["status"] in ("failed", "refused"):
            _line(console, f"{candidate['name']}: {candidate['why']}")
        elif candidate["left_in_float"]:
            _line(console, f"{candidate['name']}: {', '.join(candidate['left_in_float'])}")
    console.print(_table(CHECK_COLUMNS, [(check_cells(check), "") for check in report["verification"]]))
    worst = min(
        (row for row in report["robustness"] if row["corruption"] != "none"),
        key=lambda row: row["scores"]["bundle"] - row["scores"]["original"],
        default=None,
    )
    if worst is not None and worst["scores"]["bundle"] < worst["scores"]["original"]:
        _line(
            console,
            f"under corruption it loses most with {worst['corruption']}: {share(worst['scores']['bundle'])}, the "
            f"original {share(worst['scores']['original'])} ({len(report['robustness']) - 1} kinds, see --html)",
        )
    if report["saturation"]["text"]:
        _line(console, report["saturation"]["text"])
    for note in report["notes"]:
        _line(console, note)
    seconds = sum(stage["seconds"] for stage in report["stages"])
    console.print(Text.assemble(("chosen ", "bold"), _plain(headline(report))), soft_wrap=True)
    console.print(
        _plain(f"because it is {report['reason']}" if report["reason"].startswith("the ") else report["reason"])
    )
    done = (
        f"wrote {report['output']} ({size(report['size_bytes'])}) in {seconds:.1f} s, digest {report['bundle_digest']}"
    )
    console.print(_plain(done, "bold"), soft_wrap=True)


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
