"""Uploads: two real ends, a restart of the coordinator in the middle, and liars."""

import dataclasses
import hashlib
import random

import pytest

from edge.channel import topics
from edge.channel.codec import decode, encode, encode_offer
from edge.channel.forms import shorten
from edge.channel.frames import Frame, decode_frame, encode_frame
from edge.channel.memory import Faults, MemoryBroker, MemoryTransport
from edge.channel.messages import UploadOffer, UploadStatus
from edge.channel.transfer import OFFER_FIRST, Upload, UploadReceiver
from edge.channel.transport import Received
from edge.contract.errors import ChannelError

CHUNK = 1024


def offer_of(data: bytes, **fields) -> UploadOffer:
    base = {
        "kind": "head-update",
        "digest": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "chunk_size_bytes": CHUNK,
        "backbone": "",
        "version": 1,
        "n_samples": 9,
    }
    return UploadOffer(**{**base, **fields})


def upload_of(size: int) -> tuple[bytes, Upload]:
    data = random.Random(size).randbytes(size)
    return data, Upload(data, offer_of(data))


@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 1, 50 * CHUNK + 3])
def test_a_clean_line_needs_no_wait(size):
    data, upload = upload_of(size)
    receiver = UploadReceiver(upload.xfer, window=8)
    for _ in range(20):
        for frame in upload.poll(0.0):
            assert frame.offer or len(frame.payload) <= CHUNK
            if (status := receiver.receive(frame)) is not None:
                upload.receive(status, 0.0)
    assert upload.done
    assert receiver.data() == data
    assert upload.poll(1e9) == []


@pytest.mark.parametrize("seed", range(3))
def test_completes_over_a_bad_line_and_a_restarted_coordinator(seed):
    """faults: 4, 31."""
    data, upload = upload_of(60 * CHUNK + 5)
    broker = MemoryBroker()
    broker.fault = Faults(rng=random.Random(seed), drop=0.3, repeat=0.2, reorder=0.3)
    wire, server = MemoryTransport(broker, "pi"), MemoryTransport(broker, "coordinator")
    now_s, most_at_once, receivers = 0.0, 0, {upload.xfer: UploadReceiver(upload.xfer, window=8)}

    def on_device(event) -> None:
        if isinstance(event, Received):
            status = decode(topics.parse(event.topic).leaf, event.payload)
            assert isinstance(status, UploadStatus)
            upload.receive(status, now_s)

    def on_server(event) -> None:
        if isinstance(event, Received):
            topic = topics.parse(event.topic)
            xfer = topics.transfer_of(topic.leaf)
            frame = decode_frame(event.payload)
            if xfer not in receivers and frame.offer:
                receivers[xfer] = UploadReceiver(xfer, window=8)
            status = receivers[xfer].receive(frame) if xfer in receivers else OFFER_FIRST
            if status is not None:
                leaf = topics.upload_status_leaf(xfer)
                server.publish(topics.build("lab", topic.device, leaf), encode(status))

    wire.subscribe(topics.device_filters("lab", "pi"))
    server.subscribe(topics.coordinator_filters("lab"))
    wire.start(on_device)
    server.start(on_server)
    restarted = False
    for _ in range(20_000):
        frames = upload.poll(now_s)
        most_at_once = max(most_at_once, len(frames))
        for frame in frames:
            wire.publish(topics.build("lab", "pi", topics.upload_leaf(frame.xfer)), encode_frame(frame))
        broker.deliver()
        now_s += 0.1
        if not restarted and len(receivers[upload.xfer]._chunks) > 30:
            receivers.clear()
            restarted = True
        if upload.done:
            break
    assert restarted
    assert upload.done
    assert receivers[upload.xfer].data() == data
    assert most_at_once <= 8


def test_a_coordinator_that_forgot_gets_one_new_offer_however_often_it_complains():
    _, upload = upload_of(20 * CHUNK)
    upload.poll(0.0)
    upload.receive(UploadStatus(have=(), window=4, status="receiving"), 0.0)
    assert len(upload.poll(0.0)) == 4
    offers = []
    for _ in range(4):
        upload.receive(OFFER_FIRST, 0.1)
        offers += upload.poll(0.1)
    assert [frame.offer for frame in offers] == [True]


def test_waits_double_to_a_minute_while_nobody_answers():
    _, upload = upload_of(CHUNK)
    now_s, waits = 0.0, []
    for _ in range(8):
        [frame] = upload.poll(now_s)
        assert frame.offer
        waits.append(upload.next_deadline_s - now_s)
        assert upload.poll(upload.next_deadline_s - 0.01) == []
        now_s = upload.next_deadline_s
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]


def test_late_answers_halve_the_window():
    _, upload = upload_of(200 * CHUNK)
    taken = UploadStatus(have=(), window=64, status="receiving")
    now_s, sizes = 0.0, []
    for _ in range(5):
        assert upload.poll(now_s)[0].offer
        upload.receive(taken, now_s)
        sizes.append(len(upload.poll(now_s)))
        now_s = upload.next_deadline_s
    assert sizes == [64, 32, 16, 8, 4]


def test_refusal_is_final_and_says_why():
    _, upload = upload_of(10 * CHUNK)
    receiver = UploadReceiver(upload.xfer, max_size_bytes=5 * CHUNK)
    [offer] = upload.poll(0.0)
    status = receiver.receive(offer)
    assert status is not None
    upload.receive(status, 0.0)
    assert upload.refused is not None
    assert "expected 1 to 5120 bytes, got 10240" in upload.refused
    assert upload.poll(1e9) == []


def frames_of(upload: Upload, receiver: UploadReceiver) -> list[Frame]:
    [offer] = upload.poll(0.0)
    status = receiver.receive(offer)
    assert status is not None
    upload.receive(status, 0.0)
    return upload.poll(0.0)


def test_frames_that_do_not_fit_change_nothing():
    _, upload = upload_of(3 * CHUNK + 1)
    receiver = UploadReceiver(upload.xfer)
    frame = frames_of(upload, receiver)[1]
    change = dataclasses.replace
    for wrong in (
        change(frame, index=2),
        change(frame, payload=b"x"),
        change(frame, index=4, offset=4 * CHUNK),
        change(frame, part="index"),
    ):
        assert receiver.receive(wrong) is None
    with pytest.raises(ChannelError, match="expected all chunks, got 0"):
        receiver.data()


def test_data_that_are_not_what_was_offered_are_refused():
    _, upload = upload_of(2 * CHUNK)
    receiver = UploadReceiver(upload.xfer)
    first, second = frames_of(upload, receiver)
    assert receiver.receive(dataclasses.replace(first, payload=bytes(CHUNK))) is None
    status = receiver.receive(second)
    assert status is not None
    assert (status.status, receiver.done) == ("refused", False)


def test_an_offer_is_held_to_its_first_words_and_to_its_topic():
    data, upload = upload_of(2 * CHUNK)
    [frame] = upload.poll(0.0)
    receiver = UploadReceiver(upload.xfer)
    receiver.receive(frame)
    other = dataclasses.replace(frame, payload=encode_offer(offer_of(data, n_samples=10**6)))
    status = receiver.receive(other)
    assert status is not None
    assert status.status == "refused"
    status = UploadReceiver("0" * 16).receive(frame)
    assert status is not None
    assert "expected the offer of transfer" in status.detail
    with pytest.raises(ChannelError):
        UploadReceiver(upload.xfer).receive(dataclasses.replace(frame, payload=b"{"))


def test_refuses_an_offer_that_does_not_fit_the_data():
    with pytest.raises(ChannelError, match="expected an offer"):
        Upload(b"abc", offer_of(b"abd"))
    with pytest.raises(ChannelError):
        Upload(b"", offer_of(b""))


@pytest.mark.parametrize(("limit", "expected"), [(20_000, 16_384), (5_000, 4_096), (1_200, 1_024)])
def test_frames_that_never_arrive_become_smaller_until_they_do(limit, expected):
    """faults: 59. The broker drops what is too large without a word, as mosquitto does with QoS 0 and MQTT 3.1.1."""
    data = random.Random(5).randbytes(70_001)
    upload, receiver = Upload(data, offer_of(data, chunk_size_bytes=32_768)), None
    now_s, sent = 0.0, 0
    while not upload.done:
        assert now_s < 600.0, "it never arrives"
        for frame in upload.poll(now_s):
            payload = encode_frame(frame)
            sent += len(payload)
            if len(payload) <= limit:
                receiver = receiver or UploadReceiver(upload.xfer)
                if (status := receiver.receive(decode_frame(payload))) is not None:
                    upload.receive(status, now_s)
        now_s += 0.5
    assert receiver is not None
    assert receiver.data() == data
    assert upload.chunk_size_bytes == expected
    assert sent < 8 * len(data)


def test_a_lost_window_or_two_do_not_make_frames_smaller():
    data = random.Random(6).randbytes(300_000)
    upload = Upload(data, offer_of(data, chunk_size_bytes=32_768))
    receiver, now_s, frames = UploadReceiver(upload.xfer), 0.0, 0
    while not upload.done and now_s < 3600.0:
        for frame in upload.poll(now_s):
            frames += not frame.offer
            if not frame.offer and frames % 2:  # every other one is lost
                continue
            if (status := receiver.receive(frame)) is not None:
                upload.receive(status, now_s)
        now_s += 0.5
    assert upload.done
    assert upload.chunk_size_bytes == 32_768


def test_an_upload_is_cut_anew_into_smaller_pieces_only():
    data = random.Random(7).randbytes(10_000)
    offers = {size: offer_of(data, chunk_size_bytes=size) for size in (1024, 2048, 4096)}
    upload = Upload(data, offers[2048])

    def tell(receiver: UploadReceiver, offer: UploadOffer) -> UploadStatus:
        frame = Frame(xfer=upload.xfer, index=0, offset=0, payload=encode_offer(offer), offer=True, last=True)
        status = receiver.receive(frame)
        assert status is not None
        return status

    receiver = UploadReceiver(upload.xfer)
    assert tell(receiver, offers[2048]).status == "receiving"
    assert tell(receiver, offers[1024]).status == "receiving"
    assert receiver.offer == offers[1024]
    assert tell(receiver, offers[4096]).status == "refused"
    upload.resize(4096)
    assert upload.chunk_size_bytes == 2048
    upload.resize(1)
    assert upload.chunk_size_bytes == 1024


def compressed(data: bytes) -> bytes:
    """A zstd frame of it."""
    found = shorten(data)
    assert found is not None
    return found[1]


def framed(data: bytes, **fields) -> tuple[Upload, UploadReceiver]:
    """An upload that says of its data that they are a zstd frame, and who takes it."""
    upload = Upload(data, offer_of(data, codec="int8", **fields))
    return upload, UploadReceiver(upload.xfer, window=8)


def carried(upload: Upload, receiver: UploadReceiver) -> None:
    for _ in range(20):
        for frame in upload.poll(0.0):
            if (status := receiver.receive(frame)) is not None:
                upload.receive(status, 0.0)


def test_what_comes_in_a_zstd_frame_is_given_out_of_it():
    whole = b"the same again " * 1000
    form = compressed(whole)
    upload, receiver = framed(form, whole_bytes=len(whole))
    carried(upload, receiver)
    assert upload.done
    assert receiver.data() == whole
    assert len(form) < len(whole) / 10


@pytest.mark.parametrize("wrong", ["no frame", "cut", "longer", "shorter"])
def test_a_frame_that_does_not_hold_what_it_says_is_refused(wrong):
    whole = random.Random(1).randbytes(4000) * 2
    form = compressed(whole)
    data = {"no frame": whole, "cut": form[:-5]}.get(wrong, form)
    upload, receiver = framed(data, whole_bytes=len(whole) + {"longer": 1, "shorter": -1}.get(wrong, 0))
    carried(upload, receiver)
    assert not upload.done
    assert upload.refused is not None
    assert upload.refused.startswith("form")


def test_a_frame_that_would_hold_too_much_is_refused_before_any_of_it_is_sent():
    upload, receiver = framed(b"small" * 10, whole_bytes=65 << 20)
    (offer,) = upload.poll(0.0)
    upload.receive(receiver.receive(offer), 0.0)
    assert upload.refused is not None
    assert receiver.held_bytes == 0
