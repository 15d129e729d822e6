"""Whether answers of the HTTP API are what its description says, and of which operations there was one."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

JSON = "application/json"


class Described:
    """The operations that an application describes.

    Args:
        app: The application.

    Attributes:
        answered: Operations of which an answer was looked at, as ``GET /api/v1/me``.
    """

    def __init__(self, app: FastAPI) -> None:
        self.routes = [each for each in app.routes if isinstance(each, APIRoute) and each.include_in_schema]
        self.answered: set[str] = set()

    @property
    def operations(self) -> set[str]:
        return {f"{method} {route.path}" for route in self.routes for method in route.methods or ()}

    def look(self, response: httpx.Response) -> None:
        """Look at an answer: it has the fields that are described, of those types, and no others."""
        method, path = response.request.method, response.request.url.path
        found = [each for each in self.routes if method in (each.methods or ()) and each.path_regex.fullmatch(path)]
        if response.status_code != 200 or not found:
            return
        route = found[0]
        said = route.responses[200]
        kind = response.headers["content-type"].partition(";")[0]
        if "model" not in said:
            assert kind in said["content"], f"{method} {path}: {kind}"
        else:
            assert kind == JSON, f"{method} {path}: {kind}"
            _adapter(said["model"]).validate_json(response.content, strict=True, extra="forbid")
        self.answered.add(f"{method} {route.path}")


@cache  # it is compiled
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def is_named(schema: dict[str, Any]) -> bool:
    """Whether a schema says what the fields of an answer are, and not only that it has some."""
    if "anyOf" in schema:
        return all(is_named(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return is_named(schema["items"])
    is_text = schema.get("additionalProperties", {}) in ({"type": "string"},) or re.fullmatch(
        "string|binary", schema.get("type", "")
    )
    return "$ref" in schema or bool(is_text)
