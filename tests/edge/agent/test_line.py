"""What a broker refuses, denies without a word, or gives to another device of the same name, is told."""

from __future__ import annotations

from dataclasses import replace

from edge.agent.line.line import AGAIN_S, GONE_S, SILENCE_S, Line
from edge.channel.messages import Conn
from edge.channel.transport import Connected, Disconnected, Refused

CONN = "edge/v1/lab/one/up/conn"
OWN = Conn(online=True, session=4, boot=2, ts_ms=1000, state_id="a" * 16)


def line(*, tells_reasons: bool) -> Line:
    made = Line(CONN)
    made.connected(Connected(session_present=False, max_packet_bytes=1, tells_reasons=tells_reasons), 0.0)
    return made


def test_a_refusal_is_told_once_an_hour_and_is_trouble_until_the_next_connection() -> None:
    one = line(tells_reasons=True)
    for action, topic in (("publish", "edge/v1/lab/one/up/req"), ("subscribe", "edge/v1/lab/one/dn/#")):
        refused = Refused(action=action, topic=topic, reason="Not authorized")  # type: ignore[arg-type]
        ((kind, text),) = one.refused(refused, 1.0)
        assert kind == "broker-refused"
        assert topic in text
        assert "Not authorized" in text
        assert one.refused(refused, AGAIN_S) == []
        assert len(one.refused(refused, 1.0 + AGAIN_S)) == 1
        assert text in one.troubles
    assert one.refused(Refused(action="subscribe", topic=CONN, reason="Not authorized"), 1.0) == [], "not needed"
    one.connected(Connected(session_present=False, max_packet_bytes=1), 2.0)
    assert one.troubles == []


def test_silence_is_told_where_refusals_look_like_successes_and_nowhere_else() -> None:
    silent = line(tells_reasons=False)
    assert silent.poll(SILENCE_S - 1) == []
    ((kind, text),) = silent.poll(SILENCE_S)
    assert kind == "broker-silent"
    assert silent.troubles == [text]
    assert silent.poll(1e6) == [], "once a connection"
    silent.answered()
    assert silent.troubles == [], "the coordinator hears it after all"
    heard = line(tells_reasons=False)
    old = Conn(online=True, session=3, boot=2, ts_ms=900, state_id="a" * 16)
    assert heard.heard(CONN, old, OWN, 1.0) == [], "what the broker kept of an earlier connection proves nothing"
    assert heard.poll(SILENCE_S) != []
    for one in (line(tells_reasons=True), line(tells_reasons=False)):
        one.heard(CONN, OWN, OWN, 1.0)
        assert one.poll(1e6) == []
    answered = line(tells_reasons=False)
    answered.answered()
    assert answered.poll(1e6) == []
    gone = line(tells_reasons=False)
    assert gone.disconnected(Disconnected(reason="cut off"), 1.0) == [("broker-lost", "cut off")]
    assert gone.poll(1e6) == []


def test_another_device_of_the_same_name_is_told_and_an_earlier_life_of_this_one_is_not() -> None:
    """faults: 27. Two that push each other off: each comes back, and finds what the other said meanwhile."""
    one = line(tells_reasons=True)
    other = Conn(online=True, session=9, boot=1, ts_ms=2000, state_id="b" * 16)
    for _ in range(3):
        assert one.heard(CONN, other, OWN, 1.0) == [], "the broker may have kept it from before a new start"
    assert one.heard(CONN, replace(other, online=False, session=10), OWN, 1.5) == []
    ((kind, text),) = one.heard(CONN, replace(other, session=10), OWN, 2.0)
    assert kind == "same-name"
    assert "b" * 16 in text
    assert one.troubles == [text]
    assert one.heard(CONN, replace(other, session=11), OWN, 3.0) == [], "not each time"
    assert one.poll(2.5 + GONE_S) == []
    assert one.troubles == [text], "it was heard since"
    assert one.poll(3.0 + GONE_S) == []
    assert one.troubles == [], "somebody gave it another name"
    assert one.heard(CONN, replace(other, session=12), OWN, 400.0) == [], "told within the hour"
    assert one.troubles == [text], "and it is back"
    assert line(tells_reasons=True).heard(CONN, replace(other, state_id=""), OWN, 1.0) == []
