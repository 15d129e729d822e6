"""Releases in MLflow's registry: a server that answers as MLflow 3.17 was seen to; by hand also that itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import pytest
from click.testing import CliRunner

from edge.cli.coordinator import coordinator
from edge.contract.errors import ChannelError, ConfigError
from edge.coordinator.machine.backup import DATABASE
from edge.coordinator.records import Device, KnownBundle, KnownDevice, Model, Release
from edge.coordinator.store.store import Store

PAGE = 2


class Registry(BaseHTTPRequestHandler):
    """The part of MLflow's REST API that is asked."""

    models: ClassVar[dict[str, dict[str, Any]]] = {}
    token: ClassVar[str] = ""
    body: ClassVar[bytes] = b""

    def do_GET(self) -> None:  # its name in the library
        asked = dict(parse_qsl(urlsplit(self.path).query))
        name = asked["filter"].removeprefix("name='").removesuffix("'")
        versions = self.models[name]["versions"]
        at = int(asked.get("page_token", 0))
        more = {"next_page_token": str(at + PAGE)} if at + PAGE < len(versions) else {}
        self._say(200, {"model_versions": versions[at : at + PAGE], **more})

    def do_POST(self) -> None:  # its name in the library
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization", "") != self.token:
            self._say(401, {"error_code": "UNAUTHENTICATED"})
        elif self.path.endswith("registered-models/create"):
            if asked["name"] in self.models:
                self._say(400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "it exists"})
                return
            self.models[asked["name"]] = {"versions": [], "aliases": {}}
            self._say(200, {})
        elif self.path.endswith("model-versions/create"):
            versions = self.models[asked["name"]]["versions"]
            versions.append({**asked, "version": str(len(versions) + 1)})
            self._say(200, {"model_version": versions[-1]})
        elif self.path.endswith("set-tag"):
            tags = self.models[asked["name"]]["versions"][int(asked["version"]) - 1]["tags"]
            next(each for each in tags if each["key"] == asked["key"])["value"] = asked["value"]
            self._say(200, {})
        elif self.path.endswith("alias"):
            self.models[asked["name"]]["aliases"][asked["alias"]] = asked["version"]
            self._say(200, {})

    def _say(self, status: int, document: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(self.body or json.dumps(document).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Registry, "models", {})
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    with HTTPServer(("127.0.0.1", 0), Registry) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def fill(folder: Path, created_ms: int = 1_800_000_000_000) -> Store:
    store = Store(folder / DATABASE)
    store.releases.add_bundle(KnownBundle(digest="b" * 64, backbone="c" * 64, name="it's a/model", identity="d" * 64))
    for i in range(1, 6):
        store.releases.add(
            Release(
                counter=i, kind="head", digest=f"{i}" * 64, backbone="c" * 64 if i < 5 else "e" * 64, devices=("*",),
                reason=f"merge {i}", created_ms=created_ms + i * 1000,
            )
        )  # fmt: skip
    return store


def run_by(store: Store, device: str, release: int) -> None:
    model = Model(device=device, model="m", backbone="c" * 64, release=release, state="active")
    store.devices.keep(KnownDevice(device=Device(id=device), models=(model,)), store.devices.known(device))


def ask(folder: Path, server: str) -> Any:
    done = CliRunner().invoke(coordinator, ["export", "mlflow", server, "--data-dir", str(folder), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.output)


def tags(version: dict[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"] for each in version["tags"]}


def test_each_release_is_a_version_once_and_the_alias_is_what_most_devices_run(tmp_path: Path, server: str) -> None:
    store = fill(tmp_path)
    for device, release in (("a", 2), ("b", 2), ("c", 3)):
        run_by(store, device, release)
    assert ask(tmp_path, server) == {"server": server, "made": 5, "known": 0}
    own = Registry.models["it-s a-model"]
    assert [tags(each)["edge.release"] for each in own["versions"]] == ["1", "2", "3", "4"]
    assert [tags(each)["edge.devices"] for each in own["versions"]] == ["0", "2", "1", "0"]
    assert (own["aliases"], own["versions"][0]["description"]) == ({"live": "2"}, "merge 1")
    assert own["versions"][0]["source"] == f"edgeloop://artifacts/{'1' * 64}"
    assert Registry.models[f"backbone-{'e' * 12}"]["aliases"] == {}, "nobody runs it"
    for device in ("a", "b"):
        run_by(store, device, 3)
    assert ask(tmp_path, server) == {"server": server, "made": 0, "known": 5}
    assert [tags(each)["edge.devices"] for each in own["versions"]] == ["0", "0", "3", "0"]
    assert own["aliases"] == {"live": "3"}
    store.close()
    (tmp_path / "other").mkdir()
    fill(tmp_path / "other", 1_900_000_000_000).close()
    assert ask(tmp_path / "other", server)["made"] == 5, "another fleet's release 1 is not ours"


def test_what_is_no_registry_or_refuses_is_told(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path).close()
    monkeypatch.setattr(Registry, "token", "Bearer secret")
    with pytest.raises(ChannelError, match="HTTP 401"):
        ask(tmp_path, server)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    assert ask(tmp_path, server)["made"] == 5
    for body in (b"<html>", b"[]", b"{}", b'{"model_versions": 1}', b'{"model_versions": [{"tags": [1]}]}'):
        monkeypatch.setattr(Registry, "body", body)
        monkeypatch.setattr(Registry, "models", {})
        with pytest.raises(ChannelError, match="MLflow"):
            ask(tmp_path, server)
    with pytest.raises(ChannelError, match="no answer"):
        ask(tmp_path, "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="expected http://"):
        ask(tmp_path, "localhost:5000")
