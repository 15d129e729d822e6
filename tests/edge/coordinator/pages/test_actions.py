"""Signing in on a page, and what people change there: by whom, with which form, and what is kept of it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.coordinator.access import Role
from edge.coordinator.http.access_api import COOKIE
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import RolloutState
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.store.rollouts import Made
from edge.coordinator.turns import PAUSED
from tests.edge.coordinator.test_access import Web

BROWSER = {"accept": "text/html"}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path)
    yield made
    made.close()


class Browser:
    """Keeps a cookie, and sends forms as they came."""

    def __init__(self, web: Web, token: str = "", **headers: str) -> None:
        self.web, self.headers = web, {**BROWSER, **headers}
        if token:
            self.headers["cookie"] = f"{COOKIE}={token}"

    def get(self, path: str) -> Any:
        return self.web.ask("GET", path, headers=self.headers)

    def send(self, path: str, fields: dict[str, str], **headers: str) -> Any:
        return self.web.ask("POST", path, data=fields, headers={**self.headers, **headers})

    def form(self, path: str) -> dict[str, str]:
        page = self.get(path).text
        found = page[page.index("<main") :]
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', found))


def test_who_is_not_signed_in_is_asked_for_a_token_and_comes_back_to_the_page(web: Web) -> None:
    token = web.tokens()[Role.VIEWER]
    nobody = Browser(web)
    asked = nobody.get("/?q=north")
    assert (asked.status_code, asked.headers["location"]) == (303, "/sign-in?next=%2F%3Fq%3Dnorth")
    assert nobody.get("/static/pages.css").status_code == 200
    fields = nobody.form(asked.headers["location"])
    assert fields["next"] == "/?q=north"
    wrong = nobody.send("/sign-in", {**fields, "token": "edge_wrong"})
    assert (wrong.status_code, COOKIE in wrong.headers.get("set-cookie", "")) == (401, False)
    right = nobody.send("/sign-in", {**fields, "token": token})
    assert (right.status_code, right.headers["location"]) == (303, "/?q=north")
    cookie = right.headers["set-cookie"]
    assert all(each in cookie for each in (f"{COOKIE}={token}", "HttpOnly", "SameSite=lax"))
    for elsewhere in ("//evil.example/", "https://evil.example/", "/\\evil.example"):
        assert nobody.send("/sign-in", {**fields, "token": token, "next": elsewhere}).headers["location"] == "/"
    viewer = Browser(web, token)
    assert "viewer · viewer" in viewer.get("/").text
    out = viewer.send("/sign-out", {"form_token": web_form_token(viewer)})
    assert "Max-Age=0" in out.headers["set-cookie"]
    # Without a browser it is the API's answer, and the API asks for the header as ever.
    assert web.ask("GET", "/").json()["error"] == "AccessError"


def web_form_token(browser: Browser) -> str:
    return re.findall(r'name="form_token" value="([0-9a-f]{64})"', browser.get("/").text)[0]


def test_who_guesses_tokens_on_the_page_has_to_wait(web: Web) -> None:
    web.tokens()
    nobody = Browser(web)
    fields = nobody.form("/sign-in")
    answers = [nobody.send("/sign-in", {**fields, "token": f"edge_{i}"}).text for i in range(12)]
    assert "Too many wrong tokens" in answers[-1]
    assert "Too many wrong tokens" not in answers[0]


def test_a_form_of_another_page_changes_nothing_and_one_of_ours_is_kept_with_who_and_why(web: Web) -> None:
    tokens = web.tokens()
    operator, viewer = Browser(web, tokens[Role.OPERATOR]), Browser(web, tokens[Role.VIEWER])
    fields = operator.form("/paused?paused=yes")
    assert fields["paused"] == "yes"
    paused = lambda: web.store.rollouts.setting(PAUSED)  # noqa: E731
    for sent, headers in (
        ({"paused": "yes"}, {}),
        ({**fields, "form_token": "0" * 64}, {}),
        ({**fields, "form_token": web_form_token(viewer)}, {}),
        (fields, {"origin": "https://evil.example"}),
        (fields, {"origin": "null"}),
    ):
        assert operator.send("/paused", sent, **headers).status_code == 403
    # Neither does the API take what a browser sends by itself.
    by_cookie = web.ask("POST", "/api/v1/paused", json={"paused": True}, headers=operator.headers)
    assert by_cookie.status_code == 403
    assert (paused(), web.audit()) == ("", [])
    refused = viewer.send("/paused", {"paused": "yes", "form_token": web_form_token(viewer)})
    assert refused.status_code == 403
    assert viewer.get("/paused?paused=yes").status_code == 403
    assert paused() == ""
    done = operator.send("/paused", {**fields, "reason": "<b>storm</b>"})
    assert (done.status_code, done.headers["location"], paused()) == (303, "/rollouts", "<b>storm</b>")
    entry = web.store.access.entries(1)[0]
    assert (entry.who, entry.reason, entry.action, entry.outcome) == (
        "operator", "<b>storm</b>", "POST /paused", "done",
    )  # fmt: skip
    assert fields["form_token"] not in entry.detail
    assert "&lt;b&gt;storm&lt;/b&gt;" in viewer.get("/rollouts").text
    assert "/paused?paused=no" in operator.get("/rollouts").text
    assert "/paused?paused=no" not in viewer.get("/rollouts").text


def test_what_cannot_be_done_is_a_page_that_says_why_and_is_kept(web: Web) -> None:
    operator = Browser(web, web.tokens()[Role.OPERATOR])
    fields = {"form_token": web_form_token(operator), "order": "abort"}
    answer = operator.send("/rollouts/7/order", fields)
    assert answer.status_code == 422
    assert "there is no rollout 7" in answer.text
    assert "refused: there is no rollout 7" in web.store.access.entries(1)[0].outcome
    assert "expected pause" in operator.send("/rollouts/7/order", {**fields, "order": "start"}).text
    assert operator.get("/rollouts/7/order?order=start").status_code == 422
    # Nothing is asked that cannot be.
    for path in ("/rollouts/7/order?order=abort", "/rollouts/7/exclude?device=a"):
        assert (operator.get(path).status_code, operator.get(path).text.count("<form")) == (404, 1)  # to sign out


def test_what_was_written_is_still_there_when_a_form_is_refused(web: Web) -> None:
    operator = Browser(web, web.tokens()[Role.OPERATOR])
    plan = plans.of_document({"release": 4})
    for number, state in ((1, RolloutState.HELD), (2, RolloutState.ABORTED)):
        rollout = Rollout(id=number, plan=plan, kind="head", seed="", n_selected=3, state=state)
        web.store.rollouts.add(rollout, [], Made("ann", 0))
    assert " required" in operator.get("/rollouts/1/order?order=resume").text
    gone = operator.get("/rollouts/2/order?order=resume")
    assert (gone.status_code, "rollout 2 is aborted" in gone.text) == (422, True)

    fields = {"form_token": web_form_token(operator), "order": "exclude me", "reason": 'seen "it" & <b>more</b>'}
    refused = operator.send("/rollouts/1/order", fields)
    assert refused.status_code == 422
    assert "That was not done" in refused.text
    assert 'name="order" value="exclude me"' in refused.text
    assert html.unescape(re.findall(r"<textarea [^>]*>(.*?)</textarea>", refused.text)[0]) == fields["reason"]


def test_an_open_coordinator_takes_forms_of_its_own_pages_only(web: Web) -> None:
    browser = Browser(web)
    fields = browser.form("/paused?paused=yes")
    assert browser.send("/paused", {"paused": "yes"}).status_code == 403
    assert browser.send("/paused", fields).status_code == 303
    assert web.store.rollouts.setting(PAUSED)
