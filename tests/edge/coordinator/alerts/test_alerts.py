"""Alerts: when one begins and ends, who is told of it, and that a person can keep it quiet. Time is a number."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.channel.messages import Conn, Event
from edge.channel.transport import Connected, Publish
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator.alerts import webhook
from edge.coordinator.alerts.rules import AlertRules, of_document, of_file
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.devices.admission import Decision
from edge.coordinator.records import Alert
from edge.coordinator.releases.artifacts import ArtifactStore
from tests.support.fleet import store_in

HOT = {"name": "hot", "kind": "threshold", "key": "temp_c", "above": 75, "lasting": "1 min"}


class Fleet:
    """A coordinator that can be started anew on its files, and what it publishes."""

    def __init__(self, folder: Path, rules: AlertRules) -> None:
        self.folder, self.rules, self.now = folder, rules, Now(1000.0, 1_800_000_000_000)
        self.published: list[Publish] = []
        self.store = store_in(folder / "db.sqlite")
        self.start()

    def start(self) -> None:
        config = CoordinatorConfig(fleet="lab", name="c", data_dir=self.folder, auto_merge=False, alerts=self.rules)
        self.core = CoordinatorCore(config, self.store, ArtifactStore(self.folder / "artifacts"))
        self.core.transport(Connected(session_present=False, max_packet_bytes=1 << 20), self.now)
        self.pass_time(0)

    def pass_time(self, seconds: float) -> None:
        self.now = Now(self.now.s + seconds, self.now.wall_ms + int(1000 * seconds))
        self.published += [each for each in self.core.tick(self.now) if "/alert/" in each.topic]

    def hear(self, device: str, **values: Any) -> None:
        self.core.registry.telemetry(device, {"boot": 1, "seq": self.now.wall_ms, "model": "m", **values}, self.now)
        self.core.registry.keep_telemetry(self.now)

    def event(self, device: str, name: str, seq: int = 1) -> None:
        event = Event(ts_ms=1, name=name, detail="why", model="m", boot=1, seq=seq, state_id="a" * 16)
        self.core.registry.event(device, event, self.now)

    @property
    def open(self) -> list[tuple[str, str]]:
        return [(each.rule, each.subject) for each in self.store.alerts.open()]

    def one(self) -> Alert:
        (found,) = self.store.alerts.open()
        return found

    def said(self) -> list[tuple[str, bool]]:
        """What was published since: the state, "" for what clears it at the broker; and whether it is kept there."""
        found = [(json.loads(each.payload)["state"] if each.payload else "", each.retain) for each in self.published]
        self.published.clear()
        return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made: list[Fleet] = []

    def new(document: dict[str, Any]) -> Fleet:
        made.append(Fleet(tmp_path, of_document(document)))
        return made[-1]

    yield new
    for each in made:
        each.store.close()


def test_a_threshold_must_last_and_ends_by_a_message_and_not_by_silence(make: Any) -> None:
    fleet = make({"rule": [HOT]})
    fleet.hear("a", temp_c=80)
    fleet.pass_time(30)
    fleet.hear("a", temp_c=70)  # that was a peak
    fleet.hear("a", temp_c=81)
    fleet.pass_time(50)
    assert fleet.open == []
    for value in (float("nan"), True, "90", None):
        fleet.hear("b", temp_c=value)
    fleet.hear("a", temp_c=82.5)
    fleet.pass_time(15)
    assert fleet.open == [("hot", "a m")]
    assert (fleet.one().device, fleet.one().detail) == ("a", "temp_c is 82.5, above 75")
    assert fleet.said() == [("firing", True)]
    fleet.pass_time(7200)  # it says nothing any more
    fleet.start()
    assert fleet.open == [("hot", "a m")]
    assert fleet.said() == [("firing", True)], "the broker may have lost it"
    fleet.hear("a", temp_c=74)
    fleet.pass_time(10)
    assert fleet.open == []
    assert fleet.said() == [("resolved", False), ("", True)]
    fleet.pass_time(10)
    assert fleet.said() == []


def test_absence_is_not_the_coordinators_own(make: Any) -> None:
    fleet = make({"rule": [{"name": "gone", "kind": "absence", "after": "5 min", "select": 'id = "a" or id = "c"'}]})
    for name in "abc":
        fleet.hear(name)
    fleet.now = Now(fleet.now.s, fleet.now.wall_ms + 86_400_000)  # it was off for a day
    fleet.start()
    fleet.pass_time(200)
    assert fleet.open == []
    fleet.hear("c")
    fleet.pass_time(290)
    assert fleet.open == [("gone", "a")], "c was heard since, b is not meant"
    fleet.hear("a")
    fleet.hear("c")
    fleet.pass_time(10)
    assert fleet.open == []


def test_a_device_that_left_the_fleet_is_no_alert_any_more(make: Any) -> None:
    fleet = make({"rule": [HOT, {"name": "gone", "kind": "absence", "after": "5 min"}]})
    fleet.hear("a", temp_c=80)
    fleet.hear("b", temp_c=80)
    for _ in range(2):
        fleet.pass_time(400)
    assert set(fleet.open) == {("hot", "a m"), ("hot", "b m"), ("gone", "a"), ("gone", "b")}
    fleet.core.decide("a", Decision.DECOMMISSION, "kim", "broken", fleet.now)
    for _ in range(2):
        fleet.pass_time(400)
        assert set(fleet.open) == {("hot", "b m"), ("gone", "b")}


def test_what_happens_is_an_alert_until_it_has_not_happened_for_the_rules_time(make: Any) -> None:
    fleet = make({})  # the rules that hold without a file
    fleet.event("a", "believed", 1)
    fleet.event("a", "drift", 2)
    fleet.event("b", "data-cap", 1)
    fleet.core.events.note("a", "left-out", "60 samples not merged", fleet.now)
    fleet.pass_time(10)
    assert sorted(fleet.open) == [("data-cap", "b m"), ("drift", "a m"), ("merge-refused", "a")]
    fleet.pass_time(3000)
    fleet.core.registry.conn("a", Conn(online=True, session=1, boot=1, ts_ms=0, state_id="a" * 16), fleet.now)
    fleet.core.registry.conn("b", Conn(online=True, session=1, boot=1, ts_ms=0, state_id="a" * 16), fleet.now)
    fleet.event("a", "feature-shift", 3)
    fleet.pass_time(700)
    assert fleet.open == [("drift", "a m")]
    fleet.start()  # nothing that was told is told again
    fleet.pass_time(10)
    assert len(fleet.store.alerts.newest(100)) == 3


def test_who_is_silenced_or_away_is_told_later_and_only_of_what_still_holds(make: Any) -> None:
    fleet = make({"rule": [{**HOT, "lasting": "0 s"}], "webhook": "http://127.0.0.1:1/hook"})
    fleet.hear("a", temp_c=80)
    fleet.pass_time(10)
    number = fleet.one().id
    fleet.said()
    fleet.core.alerts.silence(number, 3600, "kim", fleet.now)
    assert fleet.core.alerts.due(fleet.now) == []
    for value in (70, 80):  # it ends and begins anew, and nobody hears of it
        fleet.hear("a", temp_c=value)
        fleet.pass_time(10)
    assert (fleet.said(), fleet.core.alerts.due(fleet.now)) == ([], [])
    again = fleet.one()
    assert (again.id > number, again.silenced_by) == (True, "kim")
    fleet.pass_time(3600)
    assert ("firing", True) in fleet.said()
    # The one that ended before the webhook was told is never told; what it does not take comes again, ever later.
    ((alert, body),) = fleet.core.alerts.due(fleet.now)
    assert (alert.id, json.loads(body)["state"], json.loads(body)["fleet"]) == (again.id, "firing", "lab")
    assert "told_webhook" not in json.loads(body)
    waits = []
    for _ in range(12):
        fleet.core.alerts.told(alert, fleet.now, failed=True)
        begun = fleet.now.s
        while not fleet.core.alerts.due(fleet.now):
            fleet.now = Now(fleet.now.s + 5, fleet.now.wall_ms + 5000)
        waits.append(fleet.now.s - begun)
    assert waits[:4] == [10, 20, 40, 80]
    assert waits[-1] == 3600
    fleet.core.alerts.told(alert, fleet.now, failed=False)
    assert fleet.core.alerts.due(fleet.now) == []
    fleet.core.alerts.acknowledge(again.id, "kim", fleet.now)
    assert fleet.one().acknowledged_by == "kim"
    with pytest.raises(RolloutError, match="no alert 999"):
        fleet.core.alerts.acknowledge(999, "", fleet.now)
    with pytest.raises(RolloutError, match="silenced for 0 to"):
        fleet.core.alerts.silence(again.id, -1, "", fleet.now)


def test_a_rule_that_is_gone_holds_of_nothing(make: Any) -> None:
    fleet = make({"rule": [{**HOT, "lasting": "0 s"}]})
    fleet.hear("a", temp_c=80)
    fleet.pass_time(10)
    assert len(fleet.open) == 1
    fleet.rules = of_document({"rule": []})
    fleet.start()
    fleet.pass_time(10)
    assert fleet.open == []


def test_rules_that_are_none_are_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    for document, why in (
        ({"rule": [{"name": "x", "kind": "threshold"}]}, "needs key"),
        ({"rule": [{"name": "x", "kind": "drift", "above": 3}]}, "are of a threshold"),
        ({"rule": [{"name": "x", "kind": "absence", "after": "soon"}]}, "duration"),
        ({"rule": [{"name": "x", "kind": "absence", "select": "tag."}]}, "select"),
        ({"rule": [HOT, HOT]}, "two rules"),
        ({"rule": [{"name": "", "kind": "absence"}]}, "printable"),
        ({"rule": [{**HOT, "above": float("nan")}]}, "finite"),
        ({"rule": [{**HOT, "below": float("-inf")}]}, "finite"),
        ({"webhook": "ftp://x"}, "http://"),
        ({"webhok": ""}, "webhook"),
    ):
        with pytest.raises(ConfigError, match=why):
            of_document(document)
    path = tmp_path / "alerts.toml"
    for data in (b"\xff", b"[[rule]", b"x" * 300_000):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="--alerts"):
            of_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        of_file(tmp_path / "none")


def test_the_webhook_gets_what_it_can_prove_and_no_other_address_does() -> None:
    got: list[tuple[str, bytes, str]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, body, self.headers.get(webhook.SIGNATURE, "")))
            status = {"/hook": 200, "/moved": 307, "/full": 503}[self.path]
            self.send_response(status)
            self.send_header("location", "/hook")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, now = f"http://127.0.0.1:{server.server_port}", Now(0.0, 1_800_000_000_000)
    assert webhook.post(f"{address}/hook", "secret", b'{"id":1}', now) == ""
    assert got == [("/hook", b'{"id":1}', webhook.signature(b"secret", 1_800_000_000, b'{"id":1}'))]
    assert webhook.signature(b"other", 1_800_000_000, b'{"id":1}') != got[0][2]
    assert webhook.post(f"{address}/moved", "", b"{}", now) == "HTTP 307"
    assert webhook.post(f"{address}/full", "", b"{}", now) == "HTTP 503"
    assert [each[0] for each in got] == ["/hook", "/moved", "/full"]
    server.shutdown()
    server.server_close()
    assert "refused" in webhook.post(f"{address}/hook", "", b"{}", now)
