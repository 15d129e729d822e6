"""Rollouts as traces: from the click to active in one, with the same numbers each time, as a collector takes them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from edge.channel.messages import Desired, Pairs
from edge.cli.coordinator import coordinator
from edge.contract.errors import ChannelError, ConfigError
from edge.coordinator.export import traces
from edge.coordinator.machine.backup import DATABASE
from tests.support.light_fleet import Device, Fleet, ends


def behave(device: Device, _: Desired) -> list[tuple[str, str, Pairs | None]]:
    """One device refuses, the others take it."""
    return (
        [("refused", "it gives NaN", None)]
        if device.name == "d003"
        else [("probation", "", None), ("active", "", None)]
    )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("traces"), digits_bundle, 6, behave)
    first = made.start_plan(waves=["100 %"], select='id != "d000"', health={"pause": [1.0, 100], "revert": [1.0, 100]})
    made.pass_time(7200, 300)
    assert made.counts(first) == {"active": 4, "refused": 1}
    made.devices["d000"].behaviour = ends("probation")
    second = made.start_plan(waves=["100 %"], select='id = "d000"')
    made.pass_time(600, 300)
    assert made.counts(second) == {"probation": 1}
    yield made
    made.close()


def by_name(found: list[traces.Span]) -> dict[str, traces.Span]:
    return {each["name"]: each for each in found}


def values(span: traces.Span) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}


def test_a_push_is_one_trace_from_the_click_to_active(fleet: Fleet) -> None:
    assert fleet.store is not None
    found = list(traces.spans(fleet.store, fleet.now.wall_ms))
    own = by_name([each for each in found if each["traceId"] == found[0]["traceId"]])
    root = found[0]
    assert (root["name"], "parentSpanId" in root) == ("rollout 1: release 1", False)
    made = fleet.store.rollouts.made(1)
    assert made is not None
    assert root["startTimeUnixNano"] == str(made.created_ms * 1_000_000)
    assert values(root) | {"edge.author": "ann", "edge.devices": "5", "edge.release": "1"} == values(root)
    assert own["d001"]["parentSpanId"] == root["spanId"]
    assert (own["d001"]["status"], values(own["d001"])["edge.state"]) == ({"code": 1}, "active")
    assert own["d003"]["status"]["code"] == 2
    assert "NaN" in own["d003"]["status"]["message"]
    assert "d000" not in own, "it was not meant"
    last = max(int(own[name]["endTimeUnixNano"]) for name in ("d001", "d002", "d004", "d005"))
    assert (
        int(root["startTimeUnixNano"]) <= int(own["d001"]["startTimeUnixNano"]) <= last <= int(root["endTimeUnixNano"])
    )
    below = [each for each in found if each.get("parentSpanId") == own["d001"]["spanId"]]
    assert [each["name"] for each in below] == ["offered", "probation"]
    assert "opening" in {each["name"] for each in found if each.get("parentSpanId") == root["spanId"]}


def test_numbers_stay_and_what_is_not_over_ends_now(fleet: Fleet) -> None:
    assert fleet.store is not None
    found = list(traces.spans(fleet.store, fleet.now.wall_ms))
    later = list(traces.spans(fleet.store, fleet.now.wall_ms + 60_000))
    assert [each["spanId"] for each in found] == [each["spanId"] for each in later]
    assert len({(each["traceId"], each["spanId"]) for each in found}) == len(found)
    assert len({each["traceId"] for each in found}) == 2
    ongoing = [each for each in later if each["traceId"] != later[0]["traceId"]]
    waiting = by_name(ongoing)
    assert waiting["probation"]["endTimeUnixNano"] == str((fleet.now.wall_ms + 60_000) * 1_000_000)
    assert values(waiting["probation"])["edge.open"] == "1"
    assert by_name(found[: -len(ongoing)]) == by_name(later[: -len(ongoing)]), "what is over does not change"
    of_one = list(traces.spans(fleet.store, fleet.now.wall_ms, "d001"))
    assert {values(each).get("edge.device") for each in of_one} == {None, "d001"}
    assert list(traces.spans(fleet.store, fleet.now.wall_ms, since_ms=fleet.now.wall_ms + 1)) == []


class Collector(BaseHTTPRequestHandler):
    """Takes traces as a collector does, strictly."""

    taken: ClassVar[list[Any]] = []
    refuses: ClassVar[bool] = False

    def do_POST(self) -> None:  # its name in the library
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        is_right = self.path == "/v1/traces" and self.headers["content-type"] == "application/json"
        self.taken.append(body)
        self.send_response(200 if is_right and not self.refuses else 503)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_traces_are_written_and_sent_as_otlp(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "AT_ONCE", 5)
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def run(*more: str) -> Any:
            line = ["export", "traces", str(tmp_path / "out"), "--data-dir", str(tmp_path), *more]
            done = CliRunner().invoke(coordinator, line)
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            return done.output

        assert isinstance(fleet.where, Path)
        (tmp_path / DATABASE).symlink_to(fleet.where)
        to = f"http://127.0.0.1:{server.server_port}"
        said = run("--to", to + "/", "--json")
        lines = (tmp_path / "out" / "traces.json").read_text().splitlines()
        assert [json.loads(each) for each in lines] == Collector.taken
        spans = [each for doc in Collector.taken for each in doc["resourceSpans"][0]["scopeSpans"][0]["spans"]]
        assert json.loads(said)["traces.json"] == len(spans) > 5
        assert len(lines) == -(-len(spans) // 5)
        for each in spans:  # as OTLP in JSON has it: hexadecimal numbers, 64 bits as text, enums as numbers
            assert re.fullmatch("[0-9a-f]{32}", each["traceId"])
            assert re.fullmatch("[0-9a-f]{16}", each["spanId"])
            assert int(each["startTimeUnixNano"]) <= int(each["endTimeUnixNano"])
            assert isinstance(each["startTimeUnixNano"], str)
            assert isinstance(each["kind"], int)
        known = {each["spanId"] for each in spans}
        assert all(each.get("parentSpanId", each["spanId"]) in known for each in spans)
        monkeypatch.setattr(Collector, "refuses", True)
        with pytest.raises(ChannelError, match="took no traces: HTTP 503"):
            run("--to", to)
        server.shutdown()
    with pytest.raises(ConfigError, match="expected http://"):
        run("--to", "collector:4318")
