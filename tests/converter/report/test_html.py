"""The page stands alone, shows hostile names as text, and leaves out what was not measured."""

from __future__ import annotations

import copy
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from converter.report.html import render_html
from converter.report.text import print_report
from tests.converter.models import cnn, convert, plan, save

HOSTILE = "<script>alert(1)</script>\"'&[bold]x[/bold]\x1b[31m$x$層"
EMPTY_TAGS = {"meta", "br", "path", "use", "rect", "defs", "link"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    source = save(cnn(), tmp_path_factory.mktemp("report") / "cnn.pth", (1, 8, 8), calibrated=100)
    return convert(plan(source, max_drop=10.0)).report


class Page(HTMLParser):
    """Tags, and everything that could load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in EMPTY_TAGS:
            self.open.append(tag)
        for key, value in attrs:
            if key.startswith("on") or (key in ("src", "href", "xlink:href") and not (value or "").startswith("#")):
                self.loads.append((key, value or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Page:
    found = Page()
    found.feed(page)
    assert found.open == []
    return found


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(report: dict[str, Any]) -> None:
    text = render_html(report)
    page = parsed(text)
    assert page.loads == []
    assert "script" not in page.tags
    assert "url(" not in text.replace("url(#", "")
    assert "default-src 'none'" in text
    for word in ("Candidates", "Verification", "What each layer costs", "Under corruption", report["reason"]):
        assert word in page.text
    for candidate in report["candidates"]:
        assert candidate["name"] in page.text


def test_the_same_report_gives_the_same_page(report: dict[str, Any]) -> None:
    assert render_html(report) == render_html(copy.deepcopy(report))


def hostile(report: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(report)
    for key in ("source", "target", "output", "reason", "data", "machine"):
        found[key] = HOSTILE
    for key in ("name", "why"):
        found["candidates"][-1][key] = HOSTILE
    found["candidates"][-1] |= {"left_in_float": [HOSTILE], "status": "refused"}
    found["sensitivity"][0]["layer"] = found["robustness"][0]["corruption"] = HOSTILE
    found["verification"][0]["what"] = HOSTILE
    found["notes"] = [HOSTILE]
    if found["chosen"] == report["candidates"][-1]["name"]:
        found["chosen"] = HOSTILE
    return found


def test_names_that_look_like_code_are_text(report: dict[str, Any]) -> None:
    page = parsed(render_html(hostile(report)))
    assert "script" not in page.tags
    assert page.loads == []
    assert "<script>alert(1)</script>" in page.text


def test_names_that_look_like_markup_are_printed_as_they_are(report: dict[str, Any]) -> None:
    file = io.StringIO()
    print_report(Console(file=file, width=300), hostile(report))
    assert "[bold]x[/bold]" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_what_was_not_measured_is_left_out(report: dict[str, Any]) -> None:
    nothing = {"sensitivity": [], "robustness": [], "notes": [], "latency_spread": 0.0, "saturation": {"text": ""}}
    less = copy.deepcopy(report) | nothing
    for candidate in less["candidates"]:
        candidate |= {"score": None, "peak_memory_bytes": None, "sqnr_db": None, "int8_layers": None, "layers": None}
    page = parsed(render_html(less))
    for word in ("What each layer costs", "Under corruption", "Notes"):
        assert word not in page.text
    file = io.StringIO()
    print_report(Console(file=file, width=100), less)
    assert "None" not in page.text + file.getvalue()
    assert not re.search(r"\bnan\b", page.text + file.getvalue())


def test_a_terminal_of_80_columns_shows_every_number(report: dict[str, Any]) -> None:
    file = io.StringIO()
    print_report(Console(file=file, width=80), report)
    text = file.getvalue()
    assert "…" not in text
    assert report["bundle_digest"] in text
    assert Path(report["output"]).name in text
