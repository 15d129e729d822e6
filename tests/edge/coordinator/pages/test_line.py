"""Pages and the API say at once that no device is heard, and nothing there is called online then."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from edge.channel.codec import encode
from edge.channel.messages import Conn
from edge.channel.transport import Connected, Disconnected, Received
from edge.contract.clock import Now
from edge.coordinator.pages import render
from tests.edge.coordinator.test_access import Web
from tests.support.shown import birth

PAGES = ("/", "/devices/pi", "/rollouts", "/learning", "/releases", "/alerts", "/devices/nobody", "/merge")


def says(web: Web, page: str) -> str:
    return words(web.ask("GET", page, headers={"accept": "text/html"}).text)


def words(html: str) -> str:
    """What a page says, without how it looks."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_a_lost_line_is_on_every_page_with_its_address_and_reason_and_devices_are_not_known(tmp_path: Path) -> None:
    web = Web(tmp_path)
    core = web.core
    core.transport(Connected(session_present=False, max_packet_bytes=1 << 20), web.now)
    for leaf, message in (
        ("up/conn", Conn(online=True, session=1, boot=1, ts_ms=0, state_id="a" * 16)),
        ("up/birth", birth("b" * 64, "c" * 64)),
    ):
        core.transport(Received(topic=f"edge/v1/lab/pi/{leaf}", payload=encode(message), retained=False), web.now)
    assert all("No device is heard" not in says(web, page) for page in PAGES)
    assert "online 1" in says(web, "/")
    (row,) = web.ask("GET", "/api/v1/devices").json()
    assert (row["online"], row["condition"]) == (True, "online")
    assert "x-edge-line" not in web.ask("GET", "/api/v1/devices").headers

    web.now = Now(web.now.s + 60, web.now.wall_ms + 60_000)
    core.transport(Disconnected(reason="connection refused"), web.now)
    for page in PAGES:
        told = says(web, page)
        assert "No device is heard" in told, page
        assert "connection refused" in told, page
        assert "since 2027-01-15 08:01:00 UTC" in told, page
    assert "not known 1" in says(web, "/")
    assert "online 1" not in says(web, "/")
    assert "Nothing: no rollout waits" not in says(web, "/")
    (row,) = web.ask("GET", "/api/v1/devices").json()
    assert (row["online"], row["condition"]) == (None, "not-known")
    for method, path in (("GET", "/api/v1/devices"), ("POST", "/api/v1/merge"), ("GET", "/api/v1/devices/nobody")):
        told = unquote(web.ask(method, path).headers["x-edge-line"])
        assert told == "the coordinator hears no device since 08:01:00 UTC (no connection: connection refused)"
    status = web.ask("GET", "/api/v1/status").json()
    assert (status["connected"], status["hears"], status["since_ms"]) == (False, False, web.now.wall_ms)
    assert 'edgeloop_devices{state="not-known"} 1.0' in web.ask("GET", "/metrics").text
    web.close()


def test_what_stands_on_every_page_is_sent_with_each_that_is_followed(tmp_path: Path) -> None:
    web = Web(tmp_path)
    values = {"line": web.core.dialogue.line.state, "rollouts": [], "paused": "", "can": False}
    assert "data-deaf" in render.fragments("rollouts.html", values)["live_line"]
    web.close()
