"""Uploads on their way: no device takes the room of another."""

from __future__ import annotations

import hashlib

import pytest

from edge.channel.messages import UploadOffer
from edge.channel.upload import Upload
from edge.contract.errors import ChannelError
from edge.coordinator.releases.uploads import IDLE_S, MAX_OF_A_DEVICE, Uploads

CHUNK = 1024


def upload(number: int, n_chunks: int = 3) -> Upload:
    data = bytes([number % 256, number // 256]) * (CHUNK * n_chunks // 2)
    digest = hashlib.sha256(data).hexdigest()
    sizes = {"size_bytes": len(data), "chunk_size_bytes": CHUNK, "version": 1, "n_samples": 1}
    return Upload(data, UploadOffer(digest=digest, kind="head-update", backbone="", **sizes))


def sent(uploads: Uploads, device: str, what: Upload, now_s: float, rounds: int = 10) -> bytes | None:
    """All of it, as a device does; None when it did not get through."""
    for _ in range(rounds):
        for frame in what.poll(now_s):
            status, whole = uploads.receive(device, what.xfer, frame, now_s)
            if whole is not None:
                return whole.data
            if status is not None:
                what.receive(status, now_s)
        now_s += 0.01
    return None


@pytest.mark.parametrize("n_devices", [1, 40])
def test_uploads_that_are_opened_and_never_ended_keep_nobody_out(n_devices: int) -> None:
    uploads = Uploads()
    for number in range(2000):
        what = upload(number)
        offer = what.poll(0.0)[0]
        uploads.receive(f"rogue-{number % n_devices}", what.xfer, offer, 0.0)
    assert sent(uploads, "honest", upload(1), 1.0) is not None
    assert sum(map(len, uploads._open.values())) <= n_devices * MAX_OF_A_DEVICE


def test_memory_is_taken_from_who_holds_most() -> None:
    uploads = Uploads(max_bytes=60 * CHUNK)
    slow = upload(7, 10)
    begun = slow.poll(0.0)
    status, _ = uploads.receive("slow", slow.xfer, begun[0], 0.0)
    assert status is not None
    slow.receive(status, 0.0)
    for frame in slow.poll(0.0)[:5]:
        uploads.receive("slow", slow.xfer, frame, 0.0)
    for number in range(20):  # each of 20 chunks, of which the last never comes
        what = upload(100 + number, 20)
        status, _ = uploads.receive("rogue", what.xfer, what.poll(0.0)[0], 0.0)
        assert status is not None
        what.receive(status, 0.0)
        for frame in what.poll(0.0)[:15]:
            uploads.receive("rogue", what.xfer, frame, 0.0)
    assert uploads._held() <= 60 * CHUNK
    assert uploads._held_by("slow") == 5 * CHUNK


def test_of_a_device_the_one_is_given_up_that_has_been_quiet_for_longest() -> None:
    uploads = Uploads()
    first = upload(0)
    uploads.receive("camera", first.xfer, first.poll(0.0)[0], 0.0)
    for number in range(1, MAX_OF_A_DEVICE + 1):
        what = upload(number)
        uploads.receive("camera", what.xfer, what.poll(0.0)[0], float(number))
    assert first.xfer not in uploads._open["camera"]
    assert sent(uploads, "camera", first, 100.0) is not None  # it offers again when no answer comes


def test_what_nothing_comes_of_any_more_is_given_up_in_the_end() -> None:
    uploads = Uploads()
    what = upload(0)
    uploads.receive("camera", what.xfer, what.poll(0.0)[0], 0.0)
    uploads.expire(IDLE_S - 1.0)
    assert uploads._open
    uploads.expire(IDLE_S + 1.0)
    assert not uploads._open


def test_an_offer_that_cannot_be_read_opens_nothing() -> None:
    uploads, what = Uploads(), upload(0)
    frame = what.poll(0.0)[0]
    broken = type(frame)(xfer=frame.xfer, index=0, offset=0, payload=b"nonsense", offer=True, last=True)
    with pytest.raises(ChannelError):
        uploads.receive("camera", what.xfer, broken, 0.0)
    assert not uploads._open
