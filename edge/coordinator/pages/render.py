"""Pages as HTML: the door of Jinja. Whatever is put into a page is escaped, unless it was made here as `Markup`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from edge.channel.confusion import FEW
from edge.contract.digest import short
from edge.coordinator.pages import amounts
from edge.coordinator.pages.glossary import WORDS, meaning
from edge.coordinator.pages.texts import has, text

# Blocks of a template that are sent again when they change; each is alone in the element of this id.
_LIVE = "live_"
_EVERY_PAGE = "base.html"
# Nobody gives so many labels.
_FIRST_TIME_MS = 1_000_000_000_000
# What turns round the text beside it, or cannot be seen: devices and people may have that in what they say.
_UNSEEN = dict.fromkeys((0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)


def _time(ms: int) -> Markup:
    """A time; the script beside the page says how long ago that is."""
    shown = amounts.clock(ms)
    if not shown:
        return Markup('<span class="none">{}</span>').format(text("never"))
    iso = datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}" data-ms="{}" title="{} UTC">{}</time>').format(iso, ms, shown, shown)


def _version(number: int) -> str:
    """Up to where a contribution is in a merge: a label; of a site, whose versions are milliseconds, a time."""
    return text("version.time", at=amounts.clock(number)) if _is_time(number) else text("version.label", n=number)


def _is_time(version: int) -> bool:
    return version >= _FIRST_TIME_MS


def _exact(value: object) -> Markup:
    """What a form sends back, character by character: also what would not be shown as it is."""
    seen = (Markup("&#{};").format(ord(each)) if ord(each) in _UNSEEN else escape(each) for each in str(value))
    return Markup("").join(seen)


def _state(name: str) -> Markup:
    """A state as a word with a colour; the word says it, too, and what it means is told beside it."""
    shown = text(f"state.{name}") if has(f"state.{name}") else name
    if means := meaning(name):
        return Markup('<span class="state is-{}" title="{}">{}</span>').format(name, means, shown)
    return Markup('<span class="state is-{}">{}</span>').format(name, shown)


def _word(shown: str, place: str) -> Markup:
    """A word that leads to what it means."""
    return Markup('<a class="word" href="/words#{}" title="{}">{}</a>').format(place, meaning(place), shown)


def _head(name: str) -> Markup:
    """The name of one of the heads of a device."""
    first = name.split(" ", maxsplit=1)[0]
    is_learner = first in ("statistics", "lifted", "sgd")
    place = "on-merge" if name.endswith(" on merge") else "statistics" if is_learner else first
    return _word(name, place) if place in WORDS else Markup("{}").format(name)


def _commands(said: str) -> Markup:
    """A text in which what is to be typed stands between backticks."""
    parts = re.split(r"`([^`]+)`", said)
    return Markup("").join(Markup("<code>{}</code>").format(each) if i % 2 else each for i, each in enumerate(parts))


_ENVIRONMENT = Environment(
    loader=PackageLoader("edge.coordinator.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,  # a newer version on the disk is for the next start: it knows texts that this one does not
)
_ENVIRONMENT.globals.update(t=text, has_text=has, svg=Markup, few=FEW)
_ENVIRONMENT.filters.update(
    amount=amounts.amount,
    size=amounts.size,
    clock=amounts.clock,
    time=_time,
    state=_state,
    short=short,
    word=_word,
    head=_head,
    commands=_commands,
    version=_version,
    exact=_exact,
    is_time=_is_time,
)


# Macros of all pages; a fragment is made without the head of its template, which would import them.
_ENVIRONMENT.globals["parts"] = _ENVIRONMENT.get_template("parts.html").module
_ENVIRONMENT.globals["confusion"] = _ENVIRONMENT.get_template("confusion.html").module
_ENVIRONMENT.globals["fate"] = _ENVIRONMENT.get_template("fate.html").module


def whole(template: str, values: Mapping[str, Any]) -> str:
    """A page."""
    return _ENVIRONMENT.get_template(template).render(values).translate(_UNSEEN)


def fragments(template: str, values: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a page that are sent again when they change, by the id of the element that holds each."""
    made: dict[str, str] = {}
    for found in (_ENVIRONMENT.get_template(_EVERY_PAGE), _ENVIRONMENT.get_template(template)):
        context = found.new_context(dict(values))
        made |= {
            name: "".join(block(context)).translate(_UNSEEN)
            for name, block in found.blocks.items()
            if name.startswith(_LIVE)
        }
    return made
