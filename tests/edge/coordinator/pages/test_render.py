"""What pages make of what others say."""

from __future__ import annotations

from edge.coordinator.access import Identity, Role
from edge.coordinator.line import LineState
from edge.coordinator.pages.render import _ENVIRONMENT, fragments, whole

TURNS = "\u202e\u2066\u200f\u061c"


def test_what_turns_text_round_is_seen_and_turns_nothing() -> None:
    said = f"a{TURNS}b"
    frame = {
        "fleet": "lab", "version": "1", "path": "/", "me": Identity(who=said, role=Role.VIEWER, is_proved=True),
        "can": False, "form_token": "", "now_ms": 0, "line": LineState(troubles=(said,)), "why": said, "kind": "done",
        "form": {"reason": said},
    }  # fmt: skip
    for page in (whole("refusal.html", frame), *fragments("refusal.html", frame).values()):
        assert not set(TURNS) & set(page)
    assert "a\ufffd\ufffd\ufffd\ufffdb" in whole("refusal.html", frame)


def test_a_contribution_of_a_site_is_in_a_merge_up_to_a_time() -> None:
    shown = _ENVIRONMENT.from_string("{{ 60|version }}, {{ 1800000000000|version }}").render()
    assert shown == "up to label 60, up to 2027-01-15 08:00:00 UTC"
