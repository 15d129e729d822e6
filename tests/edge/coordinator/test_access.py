"""Tokens and roles of the HTTP API, tried on every route; what was asked for is kept, and by whom."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import ValidationError

from edge.cli import fleet as cli
from edge.contract.clock import Now
from edge.contract.errors import ChannelError, ConfigError, RolloutError
from edge.coordinator.access import TRIES, Access, Role, check_reach, make_token
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.http.access_api import role_of
from edge.coordinator.http.api import build_api
from edge.coordinator.records import Contribution, LoggedEvent, Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.store.rollouts import Made
from tests.edge.coordinator.test_faults import Served
from tests.support.answers import Described, is_named
from tests.support.fleet import store_in

DAY_MS = 86_400_000
DAY = datetime.timedelta(days=1)


class Web:
    """The application, asked as over HTTP; its time is what a test says it is."""

    def __init__(self, folder: Path, fixed: str | None = None) -> None:
        self.now = Now(1000.0, 1_800_000_000_000)
        self.store = store_in(folder / "db.sqlite")
        config = CoordinatorConfig(fleet="lab", name="c", data_dir=folder, auto_merge=False)
        self.core = CoordinatorCore(config, self.store, ArtifactStore(folder / "artifacts"))
        self.app: FastAPI = build_api(
            self.store, lambda function: function(self.core, self.now), "lab", fixed, clock=lambda: self.now,
            line=lambda: self.core.dialogue.line.state,
        )  # fmt: skip
        self.described = Described(self.app)
        self._loop = asyncio.Runner()

    def close(self) -> None:
        self._loop.close()
        self.store.close()

    def ask(self, method: str, path: str, token: str | None = None, **arguments: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        headers |= arguments.pop("headers", {})
        address = arguments.pop("address", "10.0.0.1")
        host = arguments.pop("host", "localhost")

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(address, 1), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.request(method, path, headers=headers, **arguments)

        answer = self._loop.run(ask())
        self.described.look(answer)
        return answer

    def tokens(self) -> dict[Role, str]:
        access = Access(self.store)
        return {role: access.new_token(str(role), role, self.now)[1] for role in reversed(Role)}

    @property
    def n_audited(self) -> int:
        newest = self.store.access.entries(1)
        return newest[0].id if newest else 0

    def audit(self) -> list[tuple[str, str, str]]:
        return [(each.who, each.action, each.outcome) for each in self.store.access.entries(1000)[::-1]]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path)
    yield made
    made.close()


def routes(app: FastAPI) -> list[tuple[str, APIRoute]]:
    """Every method of every route, also those of documentation pages."""
    return [
        (method, route)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods or set())
    ]


def filled(route: APIRoute) -> str:
    return re.sub(r"{[^}]*}", "9", route.path)


def test_every_route_asks_for_the_role_that_it_says_and_every_write_is_kept(web: Web) -> None:
    tokens = web.tokens()
    found = routes(web.app)
    assert len(found) > 30
    for method, route in found:
        path, needed = filled(route), role_of(route)
        if needed is None:
            continue
        assert web.ask(method, path, "edge_wrong" if method == "GET" else None, address=path).status_code == 401, path
        assert needed is not Role.VIEWER or method == "GET" or path == "/api/v1/plan", "a write is an operator's"
        for role, token in tokens.items():
            before = web.n_audited
            status = web.ask(method, path, token, json={} if route.body_field is not None else None).status_code
            assert (status == 403) == (role < needed), (method, path, role, status)
            assert status != 401
            # A body that is not understood begins nothing; it is kept all the same that it was asked for.
            is_write = method != "GET" and needed is not Role.VIEWER
            assert web.n_audited - before == int(is_write), (method, path, role)
    assert web.ask("GET", "/openapi.json").status_code == 401
    for path in ("/docs", "/redoc"):  # they would load scripts from the network
        assert web.ask("GET", path, tokens[Role.VIEWER]).status_code == 404
    described = web.ask("GET", "/openapi.json", tokens[Role.VIEWER]).json()
    for method, route in found:
        if not route.include_in_schema:  # a page
            continue
        said = described["paths"][route.path][method.lower()] if route.include_in_schema else None
        assert said is None or (
            said["summary"] and said["security"] and {"401", "403", "422"} <= set(said["responses"])
        )


def test_a_token_holds_until_it_is_revoked_or_expires_and_is_nowhere(web: Web, tmp_path: Path) -> None:
    admin = web.tokens()[Role.ADMIN]
    made = web.ask("POST", "/api/v1/tokens", admin, json={"name": "kim", "role": "operator", "days": 2})
    kim = made.json()["token"]
    assert made.json()["role"] == "operator"
    assert "digest" not in made.json()
    assert web.ask("GET", "/api/v1/me", kim).json() == {"who": "kim", "role": "operator", "proved": True}
    data = b"".join(path.read_bytes() for path in tmp_path.glob("db.sqlite*"))
    assert kim.encode() not in data
    assert kim not in str(web.store.access.entries(100))
    listed = web.ask("GET", "/api/v1/tokens", admin).json()
    assert [each["name"] for each in listed] == ["admin", "operator", "viewer", "kim"]
    assert "token" not in listed[0]
    assert "kim" in web.ask("POST", "/api/v1/tokens", admin, json={"name": "kim", "role": "viewer"}).json()["detail"]
    web.now = Now(1000.0, web.now.wall_ms + 2 * DAY_MS)
    assert web.ask("GET", "/api/v1/me", kim).status_code == 401, "it expired"
    number = next(each["id"] for each in listed if each["name"] == "viewer")
    viewer = Access(web.store).new_token("other", Role.VIEWER, web.now)[1]
    assert web.ask("POST", f"/api/v1/tokens/{number}/revoke", admin, json={"reason": "left"}).status_code == 200
    assert web.ask("GET", "/api/v1/me", viewer).status_code == 200
    for each in web.store.access.tokens():
        web.store.access.revoke(each.id, 1)
    assert web.ask("GET", "/api/health").status_code == 401, "with no token left it stays closed"
    with pytest.raises(RolloutError, match="begin with one of an admin"):
        Access(web.store).new_token("late", Role.OPERATOR, web.now)


def test_without_a_token_it_is_open_to_this_machine_only_and_says_so(web: Web) -> None:
    assert web.ask("GET", "/api/health").json()["access"] == "open"
    assert web.ask("GET", "/api/v1/me").json()["proved"] is False
    assert web.ask("GET", "/api/devices", host="evil.example").status_code == 403, "a name that was bound to 127.0.0.1"
    assert web.ask("POST", "/api/merge", headers={"origin": "http://evil.example"}).status_code == 403
    assert web.ask("POST", "/api/merge", headers={"origin": "http://localhost"}).status_code == 200
    web.ask("POST", "/api/merge?", headers={"x-edge-who": "k%C3%AFm"}, json={"reason": "noon"})
    newest = web.store.access.entries(1)[0]
    assert (newest.who, newest.role, newest.reason, newest.outcome) == ("kïm", "open", "noon", "done")
    for host in ("127.0.0.1", "::1", "localhost"):
        check_reach(host)
    for host in ("0.0.0.0", "::", "10.1.2.3", "fleet.example"):  # what is refused
        with pytest.raises(ConfigError, match="make a token first"):
            check_reach(host)


def test_a_token_that_was_made_ends_when_it_is_revoked_also_where_serve_was_given_the_same(tmp_path: Path) -> None:
    made = make_token(tmp_path / "db.sqlite", "kim", "admin", Now(1000.0, 1_800_000_000_000))["token"]
    web = Web(tmp_path, fixed=made)  # EDGE_TOKEN of the shell where kim works and `serve` is started
    assert web.ask("GET", "/api/v1/me", made).json()["who"] == "kim"
    number = web.ask("GET", "/api/v1/tokens", made).json()[0]["id"]
    assert web.ask("POST", f"/api/v1/tokens/{number}/revoke", made, json={}).status_code == 200
    assert web.ask("GET", "/api/v1/me", made).status_code == 401
    web.close()


def test_who_asks_too_often_waits_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.coordinator.access.BURST", 5)
    web = Web(tmp_path, fixed="hunter2")
    made = make_token(tmp_path / "db.sqlite", "kim", "admin", web.now)["token"]
    for _ in range(5):
        assert web.ask("GET", "/api/health", made).status_code == 200
    told = web.ask("GET", "/api/health", made)
    assert (told.status_code, told.headers["retry-after"]) == (429, "1")
    assert "'kim'" in told.json()["detail"]
    assert web.ask("GET", "/api/health", "hunter2").status_code == 200
    web.now = Now(web.now.s + 1.0, web.now.wall_ms)
    assert web.ask("GET", "/api/health", made).status_code == 200
    web.close()


def test_who_guesses_waits_and_locks_out_nobody_with_a_token(tmp_path: Path) -> None:
    web = Web(tmp_path, fixed="hunter2")
    made = make_token(tmp_path / "db.sqlite", "kim", "admin", web.now)["token"]
    for _ in range(TRIES):
        assert web.ask("GET", "/api/health", "hunter1").status_code == 401
    told = web.ask("GET", "/api/health", "hunter2")
    assert (told.status_code, told.headers["retry-after"]) == (429, "60")
    assert web.ask("GET", "/api/health", made).status_code == 200
    assert web.ask("GET", "/api/health", "hunter2", address="10.0.0.2").status_code == 200
    web.now = Now(web.now.s + 60.0, web.now.wall_ms)
    assert web.ask("GET", "/api/health", "hunter2").status_code == 200
    # Tokens by which devices join are guessed by nobody either.
    join = {"token": "join_x", "device": "cam", "number": "0" * 16}
    codes = [web.ask("POST", "/api/v1/enrol", json=join, address="10.0.0.9").status_code for _ in range(TRIES + 1)]
    assert codes == [422] * TRIES + [429]
    web.close()


def test_what_is_not_known_is_refused_by_its_name(web: Web) -> None:
    for method, path, arguments, words in (
        ("GET", "/api/devices?onlin=1", {}, "'onlin'"),
        ("GET", "/api/v1/events?device=a&dveice=b", {}, "'dveice'"),
        ("POST", "/api/merge?now=1", {}, "'now'"),
        ("GET", "/api/v1/audit?before=x&before=2", {}, "before: expected once, it is there 2 times"),
        ("GET", "/?q=a&q=b", {}, "q: expected once"),
        ("POST", "/api/forget", {"json": {"device": "a", "all": True}}, "'all'"),
        ("POST", "/api/tags", {"json": {"device": "a"}}, "tags: expected a value, none came"),
        ("POST", "/api/releases", {"json": {"digest": 1}}, "digest: "),
        ("POST", "/api/v1/devices/a/decommission", {"json": {"forget": 1}}, "forget: "),
        ("POST", "/api/v1/devices/a/replace", {"json": {"days": True}}, "days: "),
        ("POST", "/api/v1/enrolments", {"json": {"uses": "2"}}, "uses: "),
        ("GET", "/api/v1/audit?limit=0", {}, "limit: "),
        ("POST", "/api/v1/plan", {"json": {"plan": {"release": 2**63}}}, "release must be from 1"),
        ("GET", f"/api/telemetry?after={2**63}", {}, "after: "),
        ("GET", f"/api/v1/rollouts/{-(2**70)}", {}, "number: "),
        ("POST", f"/api/v1/alerts/{-(2**70)}/acknowledge", {}, "number: "),
        ("GET", "/api/v1/releases/-1", {}, "counter: expected at least 0, got '-1'"),
        ("GET", f"/api/v1/rollouts/{10**20}", {}, f"number: expected less than {2**63}, got '1000"),
        ("POST", "/api/v1/rollouts/1/order", {"json": {"order": "x"}}, "order: expected start, pause, resume, retry, "),
    ):
        told = web.ask(method, path, **arguments)
        assert told.status_code == 422, path
        assert words in told.json()["detail"], told.text
    assert web.ask("POST", "/api/merge", content=b"x" * (1 << 21)).status_code == 413
    # What is asked for without end is not read to its end.
    assert web.ask("POST", "/api/tags", content=iter_bytes()).status_code == 411


def test_a_write_that_is_asked_for_again_answers_what_the_first_answered(web: Web) -> None:
    body = {"device": "cam-1", "tags": {"site": "north"}}
    key = {"idempotency-key": "k-1"}
    refused = web.ask("POST", "/api/v1/tags", json=body, headers=key)
    assert refused.status_code == 422
    web.store.devices.hear("cam-1", 1)
    first = web.ask("POST", "/api/v1/tags", json=body, headers=key)
    assert (first.status_code, first.json()) == (200, {"site": "north"}), "what was refused is asked anew"
    web.store.devices.tag("cam-1", {"site": "", "floor": "2"})
    before = web.n_audited
    again = web.ask("POST", "/api/v1/tags", json=body, headers=key)
    assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (200, {"site": "north"}, "true")
    assert web.store.devices.tags("cam-1") == {"cam-1": {"floor": "2"}}, "nothing was done twice"
    assert web.n_audited == before
    other = web.ask("POST", "/api/v1/tags", json={**body, "tags": {}}, headers=key)
    assert (other.status_code, other.json()["error"]) == (422, "ConfigError")
    assert "used for another request" in other.json()["detail"]
    whose = web.ask("POST", "/api/v1/tags", json=body, headers=key | {"x-edge-who": "kim"})
    assert "idempotency-replayed" not in whose.headers, "keys of one are not those of another"
    for path, headers, status in (
        ("/api/v1/tags", {"idempotency-key": "x" * 129}, 422),
        ("/api/v1/tokens", key, 422),
    ):
        answer = web.ask("POST", path, json={"name": "a", "role": "admin"}, headers=headers)
        assert answer.status_code == status
        assert answer.json()["detail"].startswith("Idempotency-Key: ")
    assert web.store.access.tokens() == []
    # Begun, and the coordinator was killed in its course: nobody knows what became of it.
    number = hashlib.sha256(b"/False\0k-2").hexdigest()
    digest = hashlib.sha256(b"/api/v1/merge?\0").hexdigest()
    assert web.store.access.begin_once(number, digest, web.now.wall_ms) is None
    unknown = web.ask("POST", "/api/v1/merge", headers={"idempotency-key": "k-2"})
    assert (unknown.status_code, unknown.json()["error"]) == (409, "ConflictError")
    web.now = Now(web.now.s + 90_000, web.now.wall_ms + 90_000_000)
    assert web.ask("POST", "/api/v1/merge", headers={"idempotency-key": "k-2"}).status_code == 200, "after a day"


def test_answers_are_what_the_description_says_that_they_are(web: Web) -> None:
    release = {"kind": "head", "digest": "d", "backbone": "b", "devices": ("*",), "reason": "r", "created_ms": 1}
    web.store.releases.add(Release(counter=1, **release))  # type: ignore[arg-type]
    web.store.events.add(LoggedEvent(device="", name="release", detail="1", at_ms=1))
    plan = plans.of_document({"release": 1})
    web.store.rollouts.add(Rollout(id=1, plan=plan, kind="head", seed="", n_selected=3), [], Made("ann", 0))
    for path in ("/api/v1/releases", "/api/v1/events", "/api/v1/rollouts", "/api/v1/rollouts/1"):
        answer = web.ask("GET", path)  # which looks at it
        assert answer.json()
        assert f"GET {path.replace('/1', '/{number}')}" in web.described.answered
    document = answer.json()
    join = web.ask("POST", "/api/v1/enrolments", json={"uses": 1}).json()["token"]
    assert web.ask("POST", "/api/v1/enrol", json={"token": join, "device": "cam", "number": "0" * 16}).is_success
    for wrong in (document | {"colour": "red"}, document | {"wave": "1"}, {"id": 1}):
        with pytest.raises(ValidationError):
            web.described.look(httpx.Response(200, json=wrong, request=answer.request))


def test_every_operation_says_what_it_answers(web: Web) -> None:
    described = web.ask("GET", "/openapi.json").json()
    unnamed = set()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            content = operation["responses"]["200"]["content"]
            if not all(is_named(each.get("schema", {})) for each in content.values()) or not content:
                unnamed.add(f"{method} {path}")
    assert unnamed == set()


_FORM = "application/x-www-form-urlencoded"


def test_what_the_framework_refuses_has_the_form_of_all_other_refusals(web: Web) -> None:
    nested = "[" * 200_000 + "]" * 200_000
    for method, path, arguments, status in (
        ("POST", "/api/v1/plan", {"content": nested, "headers": {"content-type": "application/json"}}, 400),
        (
            "POST",
            "/api/tags",
            {"content": '{"device": ' + nested + "}", "headers": {"content-type": "application/json"}},
            400,
        ),
        ("POST", "/api/v1/plan", {"content": "{", "headers": {"content-type": "application/json"}}, 422),
        # curl calls whatever it sends a form, unless it is told otherwise.
        ("POST", "/api/artifacts", {"content": b"&=" * 100, "headers": {"content-type": _FORM}}, 403),
        ("POST", "/api/artifacts", {"content": b"\xff" * 100, "headers": {"content-type": _FORM}}, 403),
        ("POST", "/api/tags", {"content": b"{}", "headers": {"content-type": _FORM}}, 403),
        ("GET", "/api/v1/nothing", {}, 404),
        ("DELETE", "/api/v1/rollouts", {}, 405),
    ):
        answer = web.ask(method, path, **arguments)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["detail"], path
        assert answer.json()["error"] == ("AccessError" if status == 403 else "ConfigError"), path
        assert status != 403 or "application/json" in answer.json()["detail"], answer.text
    assert answer.headers["allow"] == "GET, POST", "of all routes of that address"
    assert "text/html" in web.ask("GET", "/nothing", headers={"accept": "text/html"}).headers["content-type"]


def test_a_number_larger_than_any_row_has_is_refused_by_every_route(web: Web) -> None:
    numbered = [each for each in routes(web.app) if re.search(r"{(number|counter|other)", each[1].path)]
    assert len(numbered) > 20
    for method, route in numbered:
        path = re.sub(r"{[^}]*}", str(10**30), route.path)
        told = web.ask(method, path, json={} if method == "POST" else None)
        assert told.status_code in (403, 422), (method, path, told.text)  # 403: forms of pages


async def iter_bytes() -> Any:
    while True:
        yield b"[" * 65536


def test_the_audit_log_says_who_did_what_and_why_page_by_page(web: Web) -> None:
    tokens = web.tokens()
    operator, admin = tokens[Role.OPERATOR], tokens[Role.ADMIN]
    web.core.registry.event("cam", _event(), web.now)
    for i in range(3):
        body = {"device": "cam", "tags": {"site": f"s{i}"}, "reason": "moved"}
        assert web.ask("POST", "/api/tags", operator, json=body).status_code == 200
    nobody = {"device": "nobody", "reason": "asked"}
    assert web.ask("POST", "/api/forget", operator, json=nobody).status_code == 422
    assert web.audit()[-1][2].startswith("refused: nothing that nobody learned is here")
    assert web.ask("POST", "/api/forget", operator, json={"device": "cam", "reason": "asked"}).status_code == 200
    web.ask("POST", "/api/v1/tokens", operator, json={"name": "me", "role": "admin"})
    found = web.ask("GET", "/api/v1/audit?subject=cam", admin).json()
    assert [each["reason"] for each in found] == ["asked", "moved", "moved", "moved"]
    assert found[0]["outcome"] == "done"
    assert json.loads(found[1]["detail"]) == {"device": "cam", "tags": {"site": "s2"}}
    assert web.audit()[-1] == (
        "operator",
        "POST /api/v1/tokens",
        "refused: operator is operator; this needs the role admin",
    )
    pages, before = [], 0
    while page := web.ask("GET", f"/api/v1/audit?limit=2&before={before}", admin).json():
        pages += page
        before = page[-1]["id"]
    assert pages == web.ask("GET", "/api/v1/audit", admin).json()
    # Whoever is signed in cannot say to be another.
    web.ask("POST", "/api/v1/paused", operator, json={"paused": True, "who": "root", "reason": "fire"})
    assert web.store.rollouts.transitions(0)[-1].who == "operator"
    assert web.store.access.entries(1)[0].who == "operator"


def test_lists_are_given_page_by_page(web: Web) -> None:
    for i in range(5):
        web.core.events.note("", "x", str(i), web.now)
        web.core.registry.event(f"cam-{i}", _event(), web.now)
        release = {"kind": "head", "digest": "d", "backbone": "b", "devices": ("*",), "reason": "", "created_ms": 1}
        web.store.releases.add(Release(counter=i + 1, **release))  # type: ignore[arg-type]
        of = {"learner": "delta", "version": 1, "n_samples": 1, "base_release": 0, "digest": "d", "received_ms": 1}
        kept = Contribution(device=f"cam-{i}", lineage="l", backbone="b", **of)  # type: ignore[arg-type]
        web.store.contributions.keep(kept)
    for path, key, way in (
        ("releases", "counter", "before"), ("events", "id", "before"), ("devices", "id", "after"),
        ("contributions", "id", "after"), ("audit", "id", "before"),
    ):  # fmt: skip
        web.ask("POST", "/api/merge")
        whole = web.ask("GET", f"/api/v1/{path}?limit=1000").json()
        found: list[Any] = []
        since: dict[str, Any] = {}
        while page := web.ask("GET", f"/api/v1/{path}", params={"limit": 2} | since).json():
            found += page
            since = {way: found[-1][key]}
        assert found == whole, path
        assert len(whole) >= 5
    assert len(web.ask("GET", "/api/releases").json()) == 5, "without a limit all, as before"


def test_what_fails_is_in_the_audit_log_too(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(web.core.learning, "forget", broken)
    assert web.ask("POST", "/api/forget", json={"device": "cam"}).status_code == 500
    assert "No space left" in web.audit()[-1][2]
    # In a browser that is a page with a way back.
    monkeypatch.setattr(type(web.store.questions), "get", broken)
    page = web.ask("GET", "/questions/1/answer", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["content-type"]) == (500, "text/html; charset=utf-8")
    assert "No space left" in page.text
    assert 'href="/"' in page.text
    # What cannot be kept is not done.
    monkeypatch.setattr(type(web.store.access), "audit", broken)
    told = web.ask("POST", "/api/v1/paused", json={"paused": True, "reason": "fire"})
    assert told.status_code == 500
    assert web.ask("GET", "/api/v1/paused").json() == {"paused": ""}


def test_https_is_spoken_with_the_certificate_that_is_given(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    served = Served(tmp_path / "data", tls=tls)

    def story() -> None:
        words = ["--coordinator", served.url, "--ca", str(tls[0])]
        done = CliRunner().invoke(cli.fleet, [*words, "merge", "--reason", "tried"], catch_exceptions=False)
        assert done.stdout == "nothing new to merge\n"
        with pytest.raises(ChannelError, match="CERTIFICATE_VERIFY_FAILED"):
            CliRunner().invoke(cli.fleet, ["--coordinator", served.url, "devices"], catch_exceptions=False)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{served.port}/api/health")

    served.run(story)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    begin = datetime.datetime.now(datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), begin, begin + DAY)
    found = made.add_extension(here, critical=False).sign(key, hashes.SHA256())
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(found.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return paths


def _event() -> Any:
    from edge.channel.messages import Event

    return Event(ts_ms=0, name="drift")
