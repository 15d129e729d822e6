"""What pages make of what others say."""

from __future__ import annotations

import html
import re
from typing import Any

from edge.coordinator.access import Identity, Role
from edge.coordinator.line import LineState
from edge.coordinator.pages.render import _ENVIRONMENT, fragments, whole
from edge.coordinator.records import FleetQuestion

TURNS = "\u202e\u2066\u200f\u061c"


def frame_of(said: str) -> dict[str, Any]:
    return {
        "fleet": "lab", "version": "1", "path": "/", "me": Identity(who=said, role=Role.VIEWER, is_proved=True),
        "can": False, "form_token": "", "now_ms": 0, "line": LineState(troubles=(said,)), "why": said, "kind": "done",
    }  # fmt: skip


def test_what_turns_text_round_is_seen_and_turns_nothing() -> None:
    said = f"a{TURNS}b"
    frame = frame_of(said) | {"form": {"reason": said}}
    for page in (whole("refusal.html", frame), *fragments("refusal.html", frame).values()):
        assert not set(TURNS) & set(page)
    assert "a\ufffd\ufffd\ufffd\ufffdb" in whole("refusal.html", frame)


def test_a_form_sends_back_what_it_was_given_also_what_cannot_be_seen() -> None:
    """A class may have such a name; who chose it on the page named one that is none."""
    name = f'a{TURNS}"<b'
    question = FleetQuestion(
        backbone="b", device="cam", model="m", sample="s", answered_ms=0, said=name, confidence=0.5, devices=1,
        samples=1, asked_ms=0,
    )  # fmt: skip
    answers = {"question": question, "classes": [name], "alike": (), "has_picture": False}
    pages = (
        ("question.html", answers),
        ("refusal.html", {"form": {"label": name, "reason": name}}),
        ("confirm.html", {
            "kind": "merge", "subject": name, "back": "/", "fields": {"label": name}, "is_dangerous": False,
            "choice": "", "why": "", "needs_reason": False,
        }),
    )  # fmt: skip
    for template, values in pages:
        page = whole(template, frame_of("x") | values)
        assert not set(TURNS) & set(page)
        given = [html.unescape(each) for each in re.findall(r'(?:<option|name="label") value="([^"]+)"', page)]
        given += [html.unescape(each) for each in re.findall(r"<textarea[^>]*>([^<]+)<", page)]
        assert given == [name] * (2 if template == "refusal.html" else 1)


def test_a_contribution_of_a_site_is_in_a_merge_up_to_a_time() -> None:
    shown = _ENVIRONMENT.from_string("{{ 60|version }}, {{ 1800000000000|version }}").render()
    assert shown == "up to label 60, up to 2027-01-15 08:00:00 UTC"
