"""Messages are taken out of the stream and nothing else is: cut where it may be, in the order in which it came."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers

from edge.channel.sieve import Message, Sieve

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
MESSAGES = st.builds(Message, TEXTS, st.binary(max_size=300), st.booleans(), st.sampled_from([0, 1, 20, 65535]))
# CONNACK, SUBACK, PINGRESP, a PUBACK of two bytes, and a PUBLISH of QoS 2.
OTHERS = st.sampled_from([b"\x20\x03\0\0\0", b"\x90\x04\0\1\0\1", b"\xd0\0", b"\x40\x02\0\7", b"\x34\x06\0\1a\0\1\0"])


def packet(message: Message, *, is_5: bool) -> bytes:
    """As a broker sends it; with a property, where there are some."""
    topic = message.topic.encode()
    body = len(topic).to_bytes(2, "big") + topic
    body += message.number.to_bytes(2, "big") if message.number else b""
    if is_5:
        properties = Properties(PacketTypes.PUBLISH)
        properties.MessageExpiryInterval = 60
        body += properties.pack()
    body += message.payload
    kind = 0x30 | (2 if message.number else 0) | message.retained
    return bytes([kind]) + bytes(VariableByteIntegers.encode(len(body))) + body


def through(sieve: Sieve, pieces: Sequence[bytes]) -> list[Message | bytes]:
    """What comes out, in its order; what is handed through in one piece where nothing stands between."""
    found: list[Message | bytes] = []
    for piece in pieces:
        sieve.put(piece)
        while sieve.pending:
            found += (messages := sieve.messages())
            if rest := sieve.read(3):
                if found and isinstance(found[-1], bytes):
                    rest = found.pop() + rest  # type: ignore[operator]
                found.append(rest)
            elif not messages:
                break
    return found


@given(st.lists(MESSAGES | OTHERS, max_size=8), st.booleans())
def test_whole_messages_are_taken_and_all_else_is_handed_through(each: list[Message | bytes], is_5: bool) -> None:
    stream = b"".join(one if isinstance(one, bytes) else packet(one, is_5=is_5) for one in each)
    expected: list[Message | bytes] = []
    for one in each:
        if isinstance(one, bytes) and expected and isinstance(expected[-1], bytes):
            expected[-1] += one
        else:
            expected.append(one)
    assert through(Sieve(is_5=is_5), [stream]) == expected


@given(st.lists(MESSAGES | OTHERS, max_size=6), st.lists(st.integers(1, 50), max_size=8), st.booleans())
def test_however_the_stream_is_cut_nothing_is_lost_and_the_order_stays(
    each: list[Message | bytes], cuts: list[int], is_5: bool
) -> None:
    stream = b"".join(one if isinstance(one, bytes) else packet(one, is_5=is_5) for one in each)
    pieces, left = [], stream
    for cut in cuts:
        pieces.append(left[:cut])
        left = left[cut:]
    found = through(Sieve(is_5=is_5), [piece for piece in [*pieces, left] if piece])
    assert b"".join(one if isinstance(one, bytes) else packet(one, is_5=is_5) for one in found) == stream


@given(st.binary(max_size=400), st.booleans())
@example(b"0\x80\x80\x80\x80", True)
@example(b"0\x00", False)
def test_of_bytes_that_are_no_packets_none_is_lost_and_none_is_waited_for_twice(junk: bytes, is_5: bool) -> None:
    sieve = Sieve(is_5=is_5)
    found = through(sieve, [junk])
    assert sieve.pending == 0, "nobody would wait for the socket"
    handed = sum(len(one) if isinstance(one, bytes) else 1 for one in found)
    assert handed <= len(junk)


@pytest.mark.parametrize(
    "body", [b"\0\0\0\1\0x", b"\0\2\xff\xfe\0\1\0x", b"\0\x09a", b"\0\1a\0\0\0x", b"\0\1a\0\1\x80"]
)
def test_what_is_no_proper_message_is_for_whoever_speaks_the_protocol(body: bytes) -> None:
    stream = bytes([0x32, len(body)]) + body
    assert through(Sieve(is_5=True), [stream]) == [stream]


def test_what_is_read_before_it_is_asked_for_is_known_to_be_there() -> None:
    """The socket has nothing any more, and whoever waits for it would wait for ever."""
    sieve = Sieve(is_5=False)
    one, other = Message("a", b"1", False, 1), Message("b", b"2", False, 2)
    sieve.put(b"\xd0\0" + packet(one, is_5=False) + b"\xd0\0" + packet(other, is_5=False)[:5])
    assert sieve.messages() == []
    assert sieve.read(10) == b"\xd0\0"
    assert sieve.pending
    assert sieve.messages() == [one]
    assert sieve.read(10) == b"\xd0\0"
    assert sieve.messages() == []
    assert sieve.read(100) == packet(other, is_5=False)[:5], "the part of a message that is there"
    assert sieve.pending == 0
    sieve.put(packet(other, is_5=False)[5:])
    assert sieve.read(100) == packet(other, is_5=False)[5:]
