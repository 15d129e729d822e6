"""Questions over HTTP and on pages, and what devices may say that is no sketch."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.model.pictures import png
from edge.channel.messages import Birth, Conn, Reply, Served
from edge.contract.clock import Now
from edge.coordinator.access import Role
from edge.coordinator.learning.questions import HEARD_S, SKETCHES
from edge.coordinator.records import FleetQuestion
from edge.learning.sketches import LENGTH
from tests.edge.coordinator.pages.test_actions import Browser
from tests.edge.coordinator.test_access import Web

BACKBONE = "b" * 64
CODES = base64.b64encode(bytes(range(1, 1 + LENGTH))).decode()
ROW = {"id": "s-1", "at_ms": 5, "answer": "three", "confidence": 0.4, "codes": CODES}


class Asking(Web):
    """The application with devices that answer when they are asked for sketches."""

    def __init__(self, folder: Path, devices: tuple[str, ...] = ("a", "b")) -> None:
        super().__init__(folder)
        self.core.questions._every_s = 600.0
        self.core.dialogue.is_connected = True
        served = Served(model="m", bundle="", backbone=BACKBONE, head="", release=0, n_labels=0)
        for name in devices:
            birth = Birth(
                agent_version="1", boot=1, session=1, ts_ms=0, profile="p", hardware={}, bundle="", head="", n_labels=0,
                backbone=BACKBONE, release=0, limits={}, models=(served,), state_id="a" * 16,
            )  # fmt: skip
            self.core.dialogue.said(name, Conn(online=True, session=1, boot=1, ts_ms=0, state_id="a" * 16), self.now)
            self.core.dialogue.said(name, birth, self.now)

    def asked(self) -> list[tuple[str, str]]:
        """Devices that are asked for sketches now, with the command."""
        self.core.questions.tick(self.now, is_connected=True)
        found = [(device, each.id) for device, each in self.core.questions.to_say if each.name == SKETCHES]
        self.core.questions.to_say.clear()
        return found

    def round(self, rows: Any, **more: Any) -> FleetQuestion | None:
        """Ask devices, who all say the same; what a person is asked then."""
        for device, command in self.asked():
            out = {"model": "m", "backbone": BACKBONE, "sketches": rows, **more}
            self.core.dialogue.said(device, Reply(id=command, rc=0, detail="", out=out), self.now)
        self.now = Now(self.now.s + HEARD_S, self.now.wall_ms + 10_000)
        self.core.questions.tick(self.now, is_connected=True)
        return next(iter(self.store.questions.open()), None)

    def events(self) -> list[str]:
        return [each.detail for each in self.store.events.newest(100, name="bad-sketches")]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Asking]:
    made = Asking(tmp_path)
    yield made
    made.close()


def test_who_looks_sees_questions_who_operates_answers_them_and_it_is_kept(web: Asking) -> None:
    question = web.round([ROW])
    assert question is not None
    assert (question.devices, question.samples) == (2, 2)
    tokens = web.tokens()
    viewer, operator = tokens[Role.VIEWER], tokens[Role.OPERATOR]
    path = f"/api/v1/questions/{question.number}"
    assert [each["number"] for each in web.ask("GET", "/api/v1/questions", viewer).json()] == [question.number]
    found = web.ask("GET", path, viewer).json()
    assert (found["classes"], found["has_picture"]) == ([], False)
    assert {(each["device"], each["state"]) for each in found["alike"]} == {("a", "waits"), ("b", "waits")}
    assert web.ask("POST", f"{path}/answer", viewer, json={"label": "three"}).status_code == 403
    assert web.ask("POST", f"{path}/answer", operator, json={"label": "x" * 129}).status_code == 422
    done = web.ask("POST", f"{path}/answer", operator, json={"label": "three", "reason": "seen"}).json()
    assert (done["state"], done["who"]) == ("answered", "operator")
    assert web.ask("POST", f"{path}/answer", operator, json={"label": "four"}).status_code == 422
    assert web.ask("POST", f"{path}/skip", operator).status_code == 422
    assert web.ask("GET", "/api/v1/questions/99", viewer).status_code == 422
    kept = [(who, outcome.partition(":")[0]) for who, action, outcome in web.audit() if action.endswith("/answer")]
    assert ("operator", "done") in kept
    assert ("operator", "refused") in kept
    told = web.core.questions.to_say
    assert {(device, each.name, each.args.get("label")) for device, each in told} >= {
        ("a", "label", "three"), ("b", "label", "three")
    }  # fmt: skip


def test_the_picture_is_for_operators(web: Asking) -> None:
    question = web.round([ROW])
    assert question is not None
    path = f"/api/v1/questions/{question.number}/picture"
    tokens = web.tokens()
    assert web.ask("GET", path, tokens[Role.OPERATOR]).status_code == 422
    data = png(np.zeros((3, 4), np.uint8))
    said = {"id": f"picture-{question.number}", "rc": 0, "detail": ""}
    other = {"a": "b", "b": "a"}[question.device]
    whole = base64.b64encode(data).decode()
    for device, text in ((question.device, "bm8="), (question.device, 7), (question.device, "é"), (other, whole)):
        web.core.dialogue.said(device, Reply(**said, out={"png": text}), web.now)
    assert web.ask("GET", path, tokens[Role.OPERATOR]).status_code == 422
    web.core.dialogue.said(question.device, Reply(**said, out={"png": whole}), web.now)
    assert web.ask("GET", path, tokens[Role.VIEWER]).status_code == 403
    found = web.ask("GET", path, tokens[Role.OPERATOR])
    assert (found.content, found.headers["content-type"]) == (data, "image/png")
    shown = Browser(web, tokens[Role.OPERATOR]).get(f"/questions/{question.number}/answer").text
    assert f'src="{path}"' in shown


def test_people_answer_and_skip_on_the_page(web: Asking) -> None:
    tokens = web.tokens()
    operator, viewer = (Browser(web, tokens[role]) for role in (Role.OPERATOR, Role.VIEWER))
    assert "Nothing was asked" in operator.get("/learning").text
    question = web.round([ROW])
    assert question is not None
    path = f"/questions/{question.number}/answer"
    assert path in operator.get("/learning").text
    assert path not in viewer.get("/learning").text
    assert viewer.get(path).status_code == 403
    assert operator.get("/questions/99/answer").status_code == 404
    form = operator.form(path)
    refused = operator.send(path, {**form, "label": ""})
    assert refused.status_code == 422
    assert operator.send(path, {**form, "label": "three"}).status_code == 303
    assert re.search(r"answered.*three.*operator", operator.get("/learning").text, re.DOTALL)
    web.now = Now(web.now.s + 600.0, web.now.wall_ms + 600_000)
    again = web.round([{**ROW, "id": "s-2"}])
    assert again is not None
    skip = f"/questions/{again.number}/skip"
    assert operator.send(skip, operator.form(skip)).status_code == 303
    found = web.store.questions.get(again.number)
    assert found is not None
    assert (found.state, found.who) == ("skipped", "operator")


@pytest.mark.parametrize(
    "row",
    [
        7, {}, {**ROW, "id": ""}, {**ROW, "id": "x" * 129}, {**ROW, "at_ms": -1}, {**ROW, "at_ms": True},
        {**ROW, "answer": 3}, {**ROW, "answer": ""}, {**ROW, "confidence": 1.5}, {**ROW, "confidence": True},
        {**ROW, "codes": "AAAA"}, {**ROW, "codes": "no base64"}, {**ROW, "codes": "é" * 88}, {**ROW, "codes": None},
    ],
)  # fmt: skip
def test_what_is_no_sketch_is_told_and_asks_nobody(web: Asking, row: Any) -> None:
    assert web.round([row]) is None
    assert web.events()


def test_sketches_of_what_a_device_does_not_run_or_was_not_asked_for_are_passed_over(web: Asking) -> None:
    assert web.round([ROW], backbone="c" * 64) is None
    assert web.round([ROW], model="other") is None
    assert web.round("rows") is None
    unasked = Reply(id="sketches-1", rc=0, detail="", out={"model": "m", "backbone": BACKBONE, "sketches": [ROW]})
    for device in ("a", "b"):
        web.core.dialogue.said(device, unasked, web.now)
    web.now = Now(web.now.s + HEARD_S, web.now.wall_ms)
    web.core.questions.tick(web.now, is_connected=True)
    assert web.store.questions.newest(10) == []


def test_while_a_question_is_open_nobody_is_asked_for_sketches_and_no_quarantined_device_ever(web: Asking) -> None:
    from edge.coordinator.devices.admission import Decision

    question = web.round([ROW])
    assert question is not None
    later = Now(web.now.s + 600.0, web.now.wall_ms)
    web.now = later
    assert web.asked() == []
    web.core.questions.skip(question.number, "", web.now)
    web.core.decide("a", Decision.QUARANTINE, "", "odd", web.now)
    web.now = Now(web.now.s + 600.0, web.now.wall_ms)
    assert [device for device, _ in web.asked()] == ["b"]


def test_of_many_devices_some_are_asked_at_a_time_and_all_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.coordinator.learning.questions.MOST_ASKED", 2)
    web = Asking(tmp_path, ("a", "b", "c", "d", "e"))
    rounds = []
    for _ in range(3):
        rounds.append([device for device, _ in web.asked()])
        web.now = Now(web.now.s + 600.0, web.now.wall_ms)
    assert rounds == [["a", "b"], ["c", "d"], ["e", "a"]]
    web.close()


def test_a_label_whose_device_does_not_come_for_a_week_is_dropped(web: Asking) -> None:
    question = web.round([ROW])
    assert question is not None
    done = web.core.questions.answer(question.number, "three", "", web.now)
    assert len(list(web.core.questions.to_tell("a", web.now))) == 1
    web.now = Now(web.now.s + 8 * 86_400.0, web.now.wall_ms + 8 * 86_400_000)
    web.core.questions.tick(web.now, is_connected=False)
    assert {each.state for each in web.store.questions.samples(done.number)} == {"dropped"}
    assert list(web.core.questions.to_tell(None, web.now)) == []
    web.store.questions.save(replace(done, closed_ms=0))
    web.now = Now(web.now.s + 600.0, web.now.wall_ms)
    web.core.questions.tick(web.now, is_connected=False)
    assert web.store.questions.newest(1) == [], "after three months it is deleted"
