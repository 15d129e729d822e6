"""All that pages say is in one place, and nothing there is left over."""

from __future__ import annotations

import re
from pathlib import Path

from edge.coordinator.pages import texts

PAGES = Path(texts.__file__).parent
# Keys that are put together from what a device or the coordinator says.
MADE = ("state.", "wish.", "key.", "chart.", "part.", "kind.", "span.", "alert.", "order.", "action.")


def test_texts_are_what_templates_and_views_ask_for() -> None:
    asked: set[str] = set()
    for path in [*PAGES.glob("*.py"), *(PAGES / "templates").glob("*.html")]:
        asked |= set(re.findall(r"""\b(?:t|text|nav)\((?:'[^']*', )?['"]([\w.-]+)['"]""", path.read_text()))
    known = set(texts._TEXTS)
    assert {key for key in asked if not key.endswith(".")} - known == set()
    assert {key for key in known - asked if not key.startswith(MADE)} == set()


def test_templates_hold_no_words_of_their_own() -> None:
    for path in (PAGES / "templates").glob("*.html"):
        text = re.sub(r"\{%.*?%\}|\{\{.*?\}\}", " ", path.read_text(), flags=re.DOTALL)
        bare = re.sub(r"<[^>]*>", " ", text)
        words = set(re.findall(r"[A-Za-z]{3,}", bare)) - {"Edgeloop", "UTC", "seed", "times"}
        assert words == set(), path.name
