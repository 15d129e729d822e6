"""What is at which address: requests to answers. It asks the agent through a function, and opens nothing.

::

    GET  /                                  a page for people
    GET  /status  /metrics                  what the agent says of itself, for programs
    POST /labels                            what samples were
    GET  /samples  /samples/ID              answers of late, and one sample with its numbers
    GET  /v2  /v2/health/live  /v2/health/ready
    GET  /v2/models/NAME  .../ready  .../config
    POST /v2/models/NAME/infer  /v2/repository/index
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Protocol, TypeVar

from edge import __version__
from edge.agent.core import AgentCore
from edge.agent.http import inference, metrics
from edge.agent.http.guard import Guard
from edge.agent.http.http11 import Answer, RefusedError, Request, compressed, plain_body, unquoted
from edge.agent.model.company import Answered, Job
from edge.agent.wire import encode_line
from edge.contract import strictjson
from edge.contract.clock import Now
from edge.contract.errors import EdgeError, LearningError

T = TypeVar("T")
_log = logging.getLogger(__name__)

_MAX_LABELS = 1000  # in one request
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_PRIVATE = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_OF_PAGE = _PRIVATE | {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class Agent(Protocol):
    """The agent, as this site asks it; from any thread."""

    def ask(self, work: Callable[[AgentCore, Now], T]) -> T:
        """What a function of the agent's core gives, run where that lives.

        Raises:
            EdgeError: As the function does.
        """

    def infer(self, job: Job) -> Answered:
        """What comes of samples, which may be answered together with those of others.

        Raises:
            EdgeError: They cannot be answered.
        """


class Site:
    """See the module.

    Args:
        agent: That is asked.
        guard: Who may ask.
        prefix: Of the names of samples to which clients give none; another one with each start of the agent.

    Attributes:
        answered: Requests by class of status; the server counts them.
    """

    def __init__(self, agent: Agent, guard: Guard, prefix: str) -> None:
        self._agent, self._guard, self._prefix = agent, guard, prefix
        self._numbers = itertools.count(1)
        self.answered: Counter[str] = Counter()

    def answer(self, request: Request) -> Answer:
        """The answer to a request, whatever it is."""
        try:
            return compressed(request, self._routed(request))
        except RefusedError as exc:
            return refused(exc)
        except EdgeError as exc:
            return refused(RefusedError(400 if isinstance(exc, LearningError) else 500, str(exc)))
        except Exception:  # noqa: BLE001  # a request of a stranger ends no thread
            _log.exception("a request over HTTP failed")
            return refused(RefusedError(500, "the request failed inside the agent; its log says why"))

    def _routed(self, request: Request) -> Answer:
        method, path = request.method, request.path
        if path in _PAGE:
            self._guard.check(request, is_open=True)
            _only(method, "GET", "HEAD")
            file, kind = _PAGE[path]
            return Answer(200, files("edge.agent.http").joinpath("page", file).read_bytes(), kind, _OF_PAGE)
        self._guard.check(request)
        if path in ("/labels", "/v2/repository/index"):
            _only(method, "POST")
            return self._labels(request) if path == "/labels" else self._index()
        if path.startswith("/v2/models/") and path.endswith("/infer"):
            _only(method, "POST")
            return self._infer(request)
        _only(method, "GET", "HEAD")
        if path == "/status":
            name = request.query.get("model")
            return _json(self._agent.ask(lambda core, _: core.status(name)))
        if path == "/metrics":
            found = self._agent.ask(lambda core, _: _figures(core))
            return Answer(200, metrics.page(found, self.answered, __version__), metrics.CONTENT_TYPE)
        if path == "/samples" or path.startswith("/samples/"):
            return self._samples(request)
        if path == "/v2":
            return _json(inference.server_metadata(__version__))
        if path in ("/v2/health/live", "/v2/health/ready"):
            self._agent.ask(lambda *_: None)  # the loop goes round
            return Answer(200)
        if path.startswith("/v2/models/"):
            return self._model(path)
        raise RefusedError(404, f"there is nothing at {path:.80}")

    # People's

    def _labels(self, request: Request) -> Answer:
        """Take labels: one object, or a list of them."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "Content-Type: expected application/json")
        body = plain_body(request)
        try:
            is_list = body.lstrip()[:1] == b"["
            given = (
                strictjson.load_list(body, max_bytes=len(body)) if is_list
                else [strictjson.loads(body, max_bytes=len(body))]
            )  # fmt: skip
        except (ValueError, RecursionError) as exc:
            raise RefusedError(400, f'expected {{"id": ..., "label": ...}} or a list of such: {exc}') from exc
        if len(given) > _MAX_LABELS:
            raise RefusedError(413, f"expected at most {_MAX_LABELS} labels in one request, got {len(given)}")
        found = [self._label(each) for each in given]
        if is_list:
            return _json(found)
        if "error" in found[0]:
            raise RefusedError(400, str(found[0]["error"]))
        return _json(found[0])

    def _label(self, given: Any) -> dict[str, Any]:
        known = ("id", "label", "weight", "model")
        if not isinstance(given, dict) or not {"id", "label"} <= given.keys() or given.keys() - set(known):
            return {"error": f"expected an object with id and label, perhaps weight and model; got {given!r:.80}"}
        wish = {"op": "label", "id": given["id"], "y": given["label"]}
        wish |= {key: given[key] for key in ("weight", "model") if key in given}
        try:
            return self._agent.ask(lambda core, now: core.request(wish, now))
        except EdgeError as exc:
            return {"error": str(exc)}

    def _samples(self, request: Request) -> Answer:
        """Answers of late and kept samples of a model, or with a name one sample and its numbers."""
        of_model = {} if (name := request.query.get("model")) is None else {"model": name}
        if request.path != "/samples":
            wish: dict[str, Any] = {"op": "sample", "id": unquoted(request.path.removeprefix("/samples/")), **of_model}
        else:
            count = request.query.get("count", "24")
            wish = {"op": "review", "count": int(count) if count.isascii() and count.isdigit() else count, **of_model}
        found = self._agent.ask(lambda core, now: core.request(wish, now))
        return Answer(200, encode_line(found), headers=_PRIVATE)

    # The Open Inference Protocol

    def _infer(self, request: Request) -> Answer:
        name, version = _named(request.path.removesuffix("/infer"))
        asked = inference.read(request, name, f"{self._prefix}-{next(self._numbers)}")
        if version is not None:
            self._agent.ask(lambda core, _: _check_version(core, name, version))
        found = self._agent.infer(asked.job)
        needs_names = any(each.classes for each in asked.wanted)
        classes = self._agent.ask(lambda core, _: core.named(name).host.model.class_names) if needs_names else ()
        return inference.write(asked, found, classes)

    def _model(self, path: str) -> Answer:
        what = next((word for word in ("ready", "config") if path.endswith(f"/{word}")), "")
        name, version = _named(path.removesuffix(f"/{what}") if what else path)

        def look(core: AgentCore, _: Now) -> dict[str, Any] | None:
            try:
                host = core.named(name).host
            except LearningError as exc:
                raise RefusedError(404, str(exc)) from exc
            _check_version(core, name, version)
            if what == "ready":
                return None
            if what == "config":
                return inference.model_config(name, host.model)
            return inference.model_metadata(name, host.slots.record.release, host.model)

        found = self._agent.ask(look)
        return Answer(200) if found is None else _json(found)

    def _index(self) -> Answer:
        def look(core: AgentCore, _: Now) -> list[dict[str, Any]]:
            status = core.status()
            ready = [
                {"name": name, "version": str(each.get("release", 0)), "state": "READY", "reason": ""}
                for name, each in status["models"].items()
            ]
            return ready + [
                {"name": name, "version": "", "state": "UNAVAILABLE", "reason": why}
                for name, why in status["not_served"].items()
            ]

        return _json(self._agent.ask(look))


def _named(path: str) -> tuple[str, str | None]:
    """Name and version of ``/v2/models/NAME[/versions/VERSION]``."""
    name, _, version = path.removeprefix("/v2/models/").partition("/versions/")
    if not name:
        raise RefusedError(404, "expected the name of a model")
    return unquoted(name), unquoted(version) or None


def _check_version(core: AgentCore, name: str, version: str | None) -> None:
    live = str(core.named(name).host.slots.record.release)
    if version not in (None, live):
        raise RefusedError(404, f"the model {name!r:.80} is of version {live}, its release; asked for {version!r:.20}")


def _only(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise RefusedError(405, f"expected {' or '.join(allowed)}, got {method:.20}")


def _figures(core: AgentCore) -> dict[str, Any]:
    """The status, and figures that disturb no telemetry."""
    figures = {}
    for name, model in core.models.items():
        found = model.host.model.metrics
        figures[name] = {
            "predictions": found.inferences,
            "labels": found.labels if model.host.model.learns else None,
            "accuracy": found.accuracy,
            "p50_ms": found.percentile_ms(50),
            "p99_ms": found.percentile_ms(99),
        }
    return core.status() | {"figures": figures}


def _json(value: Mapping[str, Any] | list[Any], status: int = 200) -> Answer:
    return Answer(status, json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), headers=_PRIVATE)


def refused(error: RefusedError) -> Answer:
    """What is answered to a request that is not taken."""
    found = _json({"error": error.text}, error.status)
    if error.status != 401:
        return found
    return Answer(found.status, found.body, found.kind, {**found.headers, "WWW-Authenticate": "Bearer"})
