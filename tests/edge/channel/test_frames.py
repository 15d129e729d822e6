"""Frames: no damaged byte gets through."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.channel.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, Frame, decode_frame, encode_frame, xfer_of
from edge.contract.errors import ChannelError

FRAME = Frame(xfer="0123456789abcdef", index=3, offset=3 * 1024, payload=bytes(range(200)), last=True)


@given(
    st.builds(
        Frame,
        xfer=st.binary(min_size=8, max_size=8).map(bytes.hex),
        index=st.integers(0, 2**32 - 1),
        offset=st.integers(0, 2**64 - 1),
        payload=st.binary(max_size=300),
        part=st.sampled_from(["index", "data"]),
        last=st.booleans(),
        offer=st.booleans(),
    )
)
def test_every_frame_survives_the_wire(frame):
    assert decode_frame(encode_frame(frame)) == frame


def test_header_is_48_bytes():
    assert len(encode_frame(FRAME)) == HEADER_BYTES + len(FRAME.payload) == 248


def test_one_flipped_bit_anywhere_is_refused():
    data = encode_frame(FRAME)
    for at in range(len(data)):
        for bit in range(8):
            with pytest.raises(ChannelError):
                decode_frame(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


def test_a_cut_or_padded_frame_is_refused():
    data = encode_frame(FRAME)
    for end in range(len(data)):
        with pytest.raises(ChannelError):
            decode_frame(data[:end])
    with pytest.raises(ChannelError):
        decode_frame(data + b"\0")


@given(st.binary(max_size=300))
def test_random_bytes_never_crash(data):
    with pytest.raises(ChannelError):
        decode_frame(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"xfer": "01"},
        {"xfer": "z" * 16},
        {"index": 2**32},
        {"index": -1},
        {"offset": 2**64},
        {"payload": bytes(MAX_PAYLOAD_BYTES + 1)},
    ],
)
def test_fields_that_do_not_fit_are_refused(fields):
    base = {"xfer": "0" * 16, "index": 0, "offset": 0, "payload": b""}
    with pytest.raises(ChannelError, match="frame: expected"):
        encode_frame(Frame(**{**base, **fields}))


def test_transfer_is_the_head_of_the_digest():
    assert xfer_of(hashlib.sha256(b"").hexdigest()) == "e3b0c44298fc1c14"
    with pytest.raises(ChannelError):
        xfer_of("../../../../etc/")
