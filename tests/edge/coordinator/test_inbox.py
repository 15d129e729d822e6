"""What waits for the coordinator's thread: nobody takes the turn or the room of another."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from edge.channel.transport import Connected, Disconnected, Received
from edge.coordinator import inbox as box
from edge.coordinator.inbox import Inbox


def message(device: str, kind: str = "up/tele", payload: bytes = b"{}") -> Received:
    return Received(topic=f"edge/v1/lab/{device}/{kind}", payload=payload, retained=False)


def taken(inbox: Inbox[str]) -> list[object]:
    found: list[object] = []
    while (item := inbox.take(0.0)) is not None:
        found.append(item)
    return found


def test_operators_come_first_then_the_connection_then_devices_in_turn() -> None:
    inbox = Inbox[str](lambda: 0.0)
    for n in range(3):
        inbox.put(message("loud", payload=b"%d" % n))
    inbox.put(message("quiet"))
    inbox.put(Connected(session_present=False, max_packet_bytes=1000))
    inbox.put(Disconnected(reason="gone"))
    inbox.call("push")
    first, up, down, *rest = taken(inbox)
    assert first == "push"
    assert isinstance(up, Connected)
    assert isinstance(down, Disconnected)
    messages = [each for each in rest if isinstance(each, Received)]
    assert [each.topic.split("/")[3] for each in messages] == ["loud", "quiet", "loud", "loud"]
    assert [each.payload for each in messages] == [b"0", b"{}", b"1", b"2"]
    assert inbox.dropped() == {}


@pytest.mark.parametrize("kind", ["up/tele", "up/event", "up/birth", "up/state/voice", "up/conn", "up/reply", "x", ""])
def test_who_sends_too_much_loses_that_and_nobody_else_loses_anything(kind: str) -> None:
    now = [0.0]
    inbox = Inbox[str](lambda: now[0])
    for second in range(30):
        now[0] = float(second)
        for _ in range(3000):
            inbox.put(message("loud", kind))
        inbox.put(message("quiet"))
        inbox.put(message("other", "up/state"))
        taken(inbox)
    dropped = inbox.dropped()
    assert {device for device, _ in dropped} == {"loud"}
    rate = box.ALLOWED[next(iter(dropped))[1]]
    assert sum(dropped.values()) >= 90_000 - rate.burst - 30 * rate.per_s
    assert inbox.dropped() == {}
    now[0] += 60.0  # after a pause it is as good as any other
    inbox.put(message("loud", kind))
    assert len(taken(inbox)) == 1


def test_a_transfer_within_its_window_is_never_slowed_down() -> None:
    now = [0.0]
    inbox = Inbox[str](lambda: now[0])
    for second in range(60):
        now[0] = float(second)
        for _ in range(300):
            inbox.put(message("camera", "up/ul/0123456789abcdef"))
        assert len(taken(inbox)) == 300
    assert inbox.dropped() == {}


def test_of_who_cannot_be_served_in_time_the_oldest_telemetry_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "MAX_WAITING", 5)
    inbox = Inbox[str](lambda: 0.0)
    for n in range(4):
        inbox.put(message("slow", payload=b"%d" % n))
    for n in range(3):
        inbox.put(message("slow", "up/state", b"state %d" % n))
    payloads = [each.payload for each in taken(inbox) if isinstance(each, Received)]
    assert payloads == [b"2", b"3", b"state 0", b"state 1", b"state 2"]
    assert inbox.dropped() == {("slow", "telemetry"): 2}
    for n in range(7):  # and where there is none, what comes last
        inbox.put(message("slow", "up/state", b"state %d" % n))
    assert len(taken(inbox)) == 5
    assert inbox.dropped() == {("slow", "messages"): 2}


def test_when_all_is_full_it_is_at_the_cost_of_who_has_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "MAX_OF_ALL", 20)
    inbox = Inbox[str](lambda: 0.0)
    for _ in range(19):
        inbox.put(message("loud"))
    for n in range(9):
        inbox.put(message(f"quiet-{n}"))
    found = Counter(each.topic.split("/")[3] for each in taken(inbox) if isinstance(each, Received))
    assert found["loud"] == 11
    assert all(found[f"quiet-{n}"] == 1 for n in range(9))
    assert inbox.dropped() == {("loud", "telemetry"): 8}


def test_devices_without_end_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "_MAX_KNOWN", 100)
    now = [0.0]
    inbox = Inbox[str](lambda: now[0])
    for n in range(1000):
        now[0] += 10.0
        inbox.put(message(f"device-{n}"))
        inbox.take(0.0)
    assert len(inbox._lines) <= 100
    assert inbox.dropped() == {}
    for n in range(500):  # at once: who is known is served all the same
        inbox.put(message(f"rogue-{n}"))
    inbox.put(message("device-999"))
    assert len(inbox._lines) <= 100
    assert "device-999" in {each.topic.split("/")[3] for each in taken(inbox) if isinstance(each, Received)}
    assert {device for device, _ in inbox.dropped()} == {""}


def test_who_waits_is_woken_and_who_puts_never_waits() -> None:
    inbox = Inbox[str](time.monotonic)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(inbox.take(30.0)))
    thread.start()
    begin = time.monotonic()
    inbox.call("push")
    thread.join(30.0)
    assert found == ["push"]
    assert time.monotonic() - begin < 25.0
    assert inbox.take(0.0) is None
