"""A device in quarantine is seen on each page that shows it, with why and the way out, and the note goes with it."""

from __future__ import annotations

from pathlib import Path

from edge.channel.codec import encode
from edge.channel.messages import Conn
from edge.channel.transport import Connected, Received
from edge.coordinator.access import Role
from edge.coordinator.devices.admission import Decision
from tests.edge.coordinator.pages.test_actions import Browser
from tests.edge.coordinator.pages.test_line import says, words
from tests.edge.coordinator.test_access import Web
from tests.support.shown import birth


def test_a_quarantine_is_in_state_and_filter_with_its_reason_and_ends_by_a_button(tmp_path: Path) -> None:
    web = Web(tmp_path)
    web.core.transport(Connected(session_present=False, max_packet_bytes=1 << 20), web.now)
    ones = {"a": 1, "b": 1}
    for ts, folder in enumerate("abab"):
        said = Conn(online=True, session=ones[folder], boot=1, ts_ms=ts + 1, state_id=folder * 16)
        ones[folder] += 1
        for device, leaf, message in (("pi", "up/conn", said), ("pi", "up/birth", birth("b" * 64, "c" * 64))):
            topic = f"edge/v1/lab/{device}/{leaf}"
            web.core.transport(Received(topic=topic, payload=encode(message), retained=False), web.now)
    assert web.store.devices.get("pi").admission == "quarantined"  # type: ignore[union-attr]
    home = says(web, "/")
    assert "quarantined 1" in home
    assert "pi is in quarantine until somebody approves it" in home
    assert "several devices go by this name" in home
    assert "pi: several devices have this name" not in home, "once is enough"
    assert "1 device " in says(web, "/?condition=quarantined")
    assert "0 devices" in says(web, "/?condition=pending")
    own = says(web, "/devices/pi")
    for each in ("In quarantine", "several devices go by this name", "edge-fleet device approve pi", "Approve"):
        assert each in own
    tokens = web.tokens()
    viewer, operator = Browser(web, tokens[Role.VIEWER]), Browser(web, tokens[Role.OPERATOR])
    assert "/devices/pi/approve" not in viewer.get("/devices/pi").text
    assert viewer.get("/devices/pi/approve").status_code == 403
    done = operator.send("/devices/pi/approve", {**operator.form("/devices/pi/approve"), "reason": "renamed the other"})
    assert (done.status_code, done.headers["location"]) == (303, "/devices/pi")
    assert web.store.devices.get("pi").admission == "approved"  # type: ignore[union-attr]
    for page in ("/", "/devices/pi"):
        shown = operator.get(page).text
        assert "is in quarantine" not in shown
        assert "In quarantine" not in shown
        assert "several devices have this name" not in shown
    assert operator.get("/devices/nobody/approve").status_code == 200
    web.core.decide("pi", Decision.DECOMMISSION, "kim", "broken", web.now)
    gone = words(operator.get("/").text)
    assert "decommissioned 1" in gone
    assert "0 devices" in gone, "who is gone for good is none of the fleet"
    assert "1 device " in words(operator.get("/?condition=decommissioned").text)
    refused = operator.send("/devices/nobody/approve", operator.form("/devices/nobody/approve"))
    assert (refused.status_code, "unknown device nobody" in refused.text) == (422, True)
    web.close()
