"""All that pages say is in one place, and nothing there is left over."""

from __future__ import annotations

import re
from pathlib import Path

from edge.coordinator.pages import texts
from edge.coordinator.pages.glossary import WORDS

PAGES = Path(texts.__file__).parent
# Keys that are put together from what a device or the coordinator says.
MADE = (
    "state.",
    "wish.",
    "key.",
    "refused.",
    "chart.",
    "part.",
    "kind.",
    "span.",
    "alert.",
    "order.",
    "action.",
    "admission.",
    "fact.",
)


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


def test_words_that_pages_lead_to_are_explained_there_and_in_the_documentation() -> None:
    led_to: set[str] = set()
    for path in (PAGES / "templates").glob("*.html"):
        led_to |= set(re.findall(r"\|word\('([\w-]+)'\)", path.read_text()))
    assert led_to
    assert led_to <= set(WORDS)
    document = (PAGES.parents[2] / "docs" / "glossary.md").read_text()
    for word, means in WORDS.values():
        assert f"| **{word}** | {means} |" in document, word


def test_what_counts_says_one_and_many() -> None:
    for key, found in texts._TEXTS.items():
        if not isinstance(found, str):
            assert texts.text(key, n=1, least=0, most=1) != texts.text(key, n=2, least=0, most=1), key
    assert (texts.text("learning.n-merges", n=1), texts.text("learning.n-merges", n=0)) == ("1 merge", "0 merges")
