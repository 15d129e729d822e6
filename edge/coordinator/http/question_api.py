"""Questions over HTTP: labels that would help several devices, and what a person says."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import Response
from pydantic import Field

from edge.contract.errors import RolloutError
from edge.coordinator.http.access_api import ReasonRequest, RowNumber, Who, says, says_file
from edge.coordinator.http.answers import QuestionAnswer
from edge.coordinator.http.release_api import Submit
from edge.coordinator.records import FleetQuestion, as_dict
from edge.coordinator.store.store import Store


class LabelRequest(ReasonRequest):
    """The class of the asked sample."""

    label: str = Field(min_length=1, max_length=128)


def add_question_routes(api: FastAPI, store: Store, submit: Submit) -> None:
    """Add the routes.

    Args:
        api: The application.
        store: For reading.
        submit: Runs a function of the core on the coordinator's own thread and gives its result.
    """

    @api.get("/api/v1/questions", responses=says(list[FleetQuestion]))
    def questions(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> list[dict[str, Any]]:
        """The newest questions, whether they are open or not, newest first."""
        return [as_dict(each) for each in store.questions.newest(limit)]

    @api.get("/api/v1/questions/{number}", responses=says(QuestionAnswer))
    def question(number: RowNumber) -> dict[str, Any]:
        found = store.questions.get(number)
        if found is None:
            raise RolloutError(f"there is no question {number}; `edge-fleet question list` shows them")
        classes = submit(lambda core, _: core.questions.classes(found.backbone))
        alike = [as_dict(each) for each in store.questions.samples(number)]
        has_picture = bool(store.questions.picture(number))
        return as_dict(found) | {"has_picture": has_picture, "classes": list(classes), "alike": alike}

    # What a camera saw is more than who only looks may have.
    @api.get(
        "/api/v1/questions/{number}/picture",
        openapi_extra={"x-role": "operator"},
        response_class=Response,
        responses=says_file("image/png"),
    )
    def picture(number: RowNumber) -> Response:
        """What the asked sample looks like, where its device shares that."""
        found = store.questions.picture(number)
        if not found:
            raise RolloutError(f"there is no picture of question {number}: its device shares none")
        return Response(base64.b64decode(found), media_type="image/png", headers={"x-content-type-options": "nosniff"})

    @api.post("/api/v1/questions/{number}/answer", responses=says(FleetQuestion))
    def answer(number: RowNumber, body: LabelRequest, who: Who) -> dict[str, Any]:
        """Say the class of the asked sample; every device with a sample like it is given it as a label."""
        return as_dict(submit(lambda core, now: core.questions.answer(number, body.label, who.who, now)))

    @api.post("/api/v1/questions/{number}/skip", responses=says(FleetQuestion))
    def skip(number: RowNumber, who: Who, body: ReasonRequest | None = None) -> dict[str, Any]:
        """Say nothing, and never be asked about these samples again."""
        del body  # the door has kept the reason
        return as_dict(submit(lambda core, now: core.questions.skip(number, who.who, now)))
