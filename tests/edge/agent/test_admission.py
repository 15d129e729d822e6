"""A device that the fleet does not want knows it: it says so, keeps what nobody would read, and goes on when it may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent.line.admission import FILE, Admission
from edge.channel.messages import Command
from edge.cli.running import _status_lines
from edge.coordinator.devices.admission import Decision
from tests.edge.agent.test_agent_and_coordinator import samples
from tests.support.fleet import SimulatedFleet


@pytest.fixture
def fleet(digits_bundle: Path, tmp_path: Path) -> Iterator[SimulatedFleet]:
    made = SimulatedFleet(tmp_path, digits_bundle, ["good", "bad"])
    yield made
    made.close()


def said(fleet: SimulatedFleet, name: str, seconds: float, dt_s: float = 0.25) -> set[str]:
    """The kinds of messages that a device sends meanwhile."""
    leaves: set[str] = set()
    publish = fleet.agents[name].transport.publish

    def seen(topic: str, *arguments: object, **options: object) -> None:
        leaves.add("/".join(topic.split("/")[4:6]))
        publish(topic, *arguments, **options)  # type: ignore[arg-type]

    fleet.agents[name].transport.publish = seen  # type: ignore[method-assign]
    for _ in range(round(seconds / dt_s)):
        fleet.step(dt_s)
    fleet.agents[name].transport.publish = publish  # type: ignore[method-assign]
    return leaves


def stands(fleet: SimulatedFleet, name: str) -> str:
    return str(fleet.agents[name].core.status()["admission"]["is"])


def test_a_quarantined_device_says_so_keeps_what_nobody_reads_and_goes_on_over_restarts_of_both(
    fleet: SimulatedFleet, digits_bundle: Path
) -> None:
    x, y = samples(digits_bundle, 30, seed=1)
    fleet.run(8)
    assert {"up/tele"} <= said(fleet, "bad", 6, 1.0)
    assert stands(fleet, "bad") == "approved"
    assert fleet.coordinator is not None
    fleet.coordinator.decide("bad", Decision.QUARANTINE, "kim", "stolen?\x1b[2J", fleet.now)
    fleet.run(2)
    found = fleet.agents["bad"].core.status()
    assert (found["admission"]["is"], stands(fleet, "good")) == ("quarantined", "approved")
    shown = "\n".join(_status_lines(found))
    for words in ("is quarantined since 20", "by kim: stolen?", "edge-fleet device approve bad"):
        assert words in shown
    assert "\x1b" not in shown
    # It predicts and learns; neither what it learned nor telemetry goes out, and it is there all the same.
    fleet.teach("bad", x, y)
    sent = said(fleet, "bad", 60, 2.0)
    assert not {"up/tele", "up/ul", "up/hist"} & sent
    assert (
        fleet.coordinator.dialogue.line.state.condition(fleet.store.devices.get("bad"), fleet.now.wall_ms) == "online"
    )  # type: ignore[arg-type]
    assert "up/birth" in said(fleet, "bad", 660, 60.0), "it may have missed a word"
    # Both forget what they have in memory.
    fleet.crash_agent("bad")
    fleet.start_agent("bad")
    assert stands(fleet, "bad") == "quarantined"
    fleet.run(5)
    assert not {"up/tele", "up/ul"} & said(fleet, "bad", 20, 1.0)
    fleet.crash_coordinator()
    fleet.start_coordinator()
    said(fleet, "bad", 15, 1.0)
    assert not {"up/tele", "up/ul"} & said(fleet, "bad", 20, 1.0)
    # It is released while it is away, and what it kept comes.
    fleet.crash_agent("bad")
    fleet.run(1)
    assert fleet.coordinator is not None
    fleet.coordinator.decide("bad", Decision.APPROVE, "kim", "found", fleet.now)
    fleet.crash_coordinator()
    fleet.start_coordinator()
    fleet.start_agent("bad")
    fleet.until(
        "what it learned and kept arrives",
        lambda: any(each.device == "bad" for each in fleet.store.contributions.all()),
    )
    assert stands(fleet, "bad") == "approved"
    assert {"up/tele"} <= said(fleet, "bad", 10, 1.0)
    fleet.until("the outbox is empty", lambda: fleet.agents["bad"].core._reports.waiting == 0)
    events = [each.detail for each in fleet.store.events.newest(100, device="bad", name="admission")]
    assert any("is approved" in each for each in events)
    assert any("is quarantined" in each for each in events)


@pytest.mark.parametrize(
    "args",
    [
        {}, {"admission": "expelled"}, {"admission": ["pending"]}, {"admission": "pending", "why": 3},
        {"admission": "pending", "since_ms": -1}, {"admission": "pending", "since_ms": 2**60},
        {"admission": "pending", "since_ms": True},
    ],
)  # fmt: skip
def test_a_word_that_is_none_changes_nothing(args: dict[str, object], tmp_path: Path) -> None:
    found = Admission(tmp_path, "pi")
    assert found.take(args)
    assert (found.is_approved, (tmp_path / FILE).exists(), found.events) == (True, False, [])


def test_what_was_said_is_kept_and_a_damaged_file_is_told_and_means_approved(tmp_path: Path) -> None:
    found = Admission(tmp_path, "pi")
    command = Command(id="admission-1", name="admission", args={"admission": "decommissioned"}, ttl_s=1)
    assert found.take(command.args) == ""
    again = Admission(tmp_path, "pi")
    assert (again.admission, again.is_approved) == ("decommissioned", False)
    assert "edge-fleet device replace pi" in again.status()["says"]
    for damaged in (
        "{",
        json.dumps({"admission": 3}),
        json.dumps({"admission": "expelled"}),
        json.dumps({"since_ms": 2**47, "admission": "pending"}),
    ):
        (tmp_path / FILE).write_text(damaged)
        assert Admission(tmp_path, "pi").is_approved


def test_a_disk_that_takes_nothing_is_told_and_the_word_counts_until_a_restart(tmp_path: Path) -> None:
    found = Admission(tmp_path / "nowhere", "pi")
    assert found.take({"admission": "pending"}) == ""
    assert [kind for kind, _ in found.events] == ["storage", "admission"]
    assert "waits for approval" in found.why_not
