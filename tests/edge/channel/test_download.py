"""Downloads: two real ends, a bad line, and cuts everywhere."""

import dataclasses
import hashlib
import random

import pytest

from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.frames import Frame, decode_frame, encode_frame
from edge.channel.memory import Faults, MemoryBroker, MemoryTransport
from edge.channel.messages import Request
from edge.channel.transfer import Download, Finished, SendRequest, WriteChunk, chunk_digests, index_digest, serve
from edge.channel.transport import Received
from edge.contract.errors import ChannelError

CHUNK = 1024


def artifact(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def download_of(data: bytes, **options) -> Download:
    index = chunk_digests(data, CHUNK)
    return Download(
        digest=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_size_bytes=CHUNK,
        index_digest=index_digest(index),
        **options,
    )


def answer(data: bytes, request: Request) -> list[Frame]:
    return list(serve(request, lambda at, n: data[at : at + n], len(data), CHUNK, chunk_digests(data, CHUNK)))


class Device:
    """The shell around a download: a dictionary for the disk."""

    def __init__(self, download: Download, disk: dict[int, bytes]) -> None:
        self.download, self.disk, self.requests = download, disk, list[Request]()
        self.finished = False

    def perform(self, effects) -> None:
        for effect in effects:
            match effect:
                case WriteChunk(index=index, data=data):
                    assert index not in self.disk, "written twice"
                    self.disk[index] = data
                case SendRequest(request=request):
                    self.requests.append(request)
                case Finished():
                    self.finished = True

    def bytes(self) -> bytes:
        return b"".join(self.disk[i] for i in sorted(self.disk))


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 40 * CHUNK, 100 * CHUNK + 7])
def test_a_clean_line_needs_no_wait(size):
    data, now_s = artifact(size), 5.0
    device = Device(download_of(data), {})
    device.perform(device.download.poll(now_s))
    while device.requests:
        for frame in answer(data, device.requests.pop(0)):
            device.perform(device.download.receive(frame, now_s))
    assert device.finished
    assert device.bytes() == data
    assert device.download.progress == 1.0
    assert device.download.rejected == 0
    assert device.download.poll(now_s + 1e6) == []


@pytest.mark.parametrize("seed", range(3))
def test_completes_over_a_bad_line_with_one_window_in_flight(seed):
    """faults: 3, 4."""
    data = artifact(60 * CHUNK + 5)
    broker = MemoryBroker()
    broker.fault = Faults(rng=random.Random(seed), drop=0.3, repeat=0.2, reorder=0.3)
    device = Device(download_of(data), {})
    wire, server = MemoryTransport(broker, "pi"), MemoryTransport(broker, "coordinator")
    now_s, asked_at_once = 0.0, []

    def on_device(event) -> None:
        if isinstance(event, Received):
            assert topics.transfer_of(topics.parse(event.topic).leaf) == device.download.xfer
            device.perform(device.download.receive(decode_frame(event.payload), now_s))

    def on_server(event) -> None:
        if isinstance(event, Received):
            topic = topics.parse(event.topic)
            request = decode(topic.leaf, event.payload)
            assert isinstance(request, Request)
            for frame in answer(data, request):
                leaf = topics.frame_leaf(frame.xfer)
                server.publish(topics.build("lab", topic.device, leaf), encode_frame(frame))

    wire.subscribe(topics.device_filters("lab", "pi"))
    server.subscribe(topics.coordinator_filters("lab"))
    wire.start(on_device)
    server.start(on_server)
    for _ in range(20_000):
        device.perform(device.download.poll(now_s))
        for request in device.requests:
            asked_at_once.append(sum(last - first + 1 for first, last in request.want))
            assert asked_at_once[-1] == request.window <= 64
            # QoS 0 here, so that requests are lost too.
            wire.publish(topics.build("lab", "pi", topics.UP_REQ), encode(request))
        assert sum(request.window for request in device.requests) <= 64
        device.requests.clear()
        broker.deliver()
        now_s += 0.1
        if device.finished:
            break
    assert device.finished
    assert device.bytes() == data
    assert max(asked_at_once) <= 64


def test_resumes_at_every_chunk_boundary_without_writing_twice():
    """faults: 1."""
    data = artifact(12 * CHUNK + 1)
    n_chunks = 13
    for cut in range(n_chunks + 1):
        disk: dict[int, bytes] = {}
        first = Device(download_of(data, window=3), disk)
        first.perform(first.download.poll(0.0))
        while first.requests and len(disk) < cut:
            for frame in answer(data, first.requests.pop(0)):
                if len(disk) < cut or frame.part == "index":
                    first.perform(first.download.receive(frame, 0.0))
        assert len(disk) == cut
        second = Device(download_of(data), disk)
        kept = chunk_digests(data, CHUNK)
        again = second.download
        again.restore(kept, (i for i, c in disk.items() if hashlib.sha256(c).hexdigest() == again.chunk_digest(i)))
        assert again.index == kept
        second.perform(again.poll(0.0))
        while second.requests:
            request = second.requests.pop(0)
            assert request.part == "data"
            for frame in answer(data, request):
                second.perform(again.receive(frame, 0.0))
        assert second.finished
        assert second.bytes() == data


def test_refuses_a_kept_index_of_another_release():
    download = download_of(artifact(5 * CHUNK))
    with pytest.raises(ChannelError, match="kept index"):
        download.restore(chunk_digests(artifact(5 * CHUNK + 1)[1:], CHUNK), [])
    assert download.index is None
    with pytest.raises(ChannelError, match="fetch the index first"):
        download.chunk_digest(0)


def damaged(frame: Frame) -> list[Frame]:
    """Frames that are intact as frames and wrong for this transfer."""
    change = dataclasses.replace
    flipped = bytes([frame.payload[0] ^ 1]) + frame.payload[1:]
    return [
        change(frame, payload=flipped),
        change(frame, payload=frame.payload[:-1]),
        change(frame, payload=frame.payload + b"\0"),
        change(frame, xfer="f" * 16),
        change(frame, offset=frame.offset + 1),
        change(frame, index=99, offset=99 * CHUNK),
        change(frame, part="index"),
        change(frame, offer=True),
    ]


def test_a_wrong_chunk_is_never_written():
    """faults: 40."""
    data = artifact(4 * CHUNK)
    download = download_of(data)
    download.restore(chunk_digests(data, CHUNK), [])
    [ask] = download.poll(0.0)
    assert isinstance(ask, SendRequest)
    frames = answer(data, ask.request)
    before = download.rejected
    for wrong in damaged(frames[1]):
        assert download.receive(wrong, 0.0) == []
    assert download.rejected == before + 8
    assert download.progress == 0.0
    [written] = download.receive(frames[1], 0.0)
    assert written == WriteChunk(index=1, offset=CHUNK, data=data[CHUNK : 2 * CHUNK])
    assert download.receive(frames[1], 0.0) == []


def test_a_forged_index_is_thrown_away_and_fetched_again_after_a_wait():
    data = artifact(3 * CHUNK)
    download = download_of(data)
    [ask] = download.poll(0.0)
    [frame] = answer(data, ask.request)
    assert download.receive(dataclasses.replace(frame, payload=bytes(96)), 0.0) == []
    assert download.index is None
    assert download.poll(1.0) == []
    [ask] = download.poll(10.0)
    assert ask.request.part == "index"
    [ask] = download.receive(frame, 10.0)
    assert ask.request.part == "data"


def test_waits_double_to_a_minute_the_window_halves_and_it_never_gives_up():
    download = download_of(artifact(200 * CHUNK), window=8)
    now_s, waits, windows = 0.0, [], []
    for _ in range(10):
        assert len(download.poll(now_s)) == 1
        windows.append(download.window)
        waits.append(download.next_deadline_s - now_s)
        assert download.poll(download.next_deadline_s - 0.01) == []
        now_s = download.next_deadline_s
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert windows == [8, 4, 2, 1, 1, 1, 1, 1, 1, 1]


def test_a_time_out_asks_for_the_holes_only_and_clean_windows_grow():
    data = artifact(30 * CHUNK)
    download = download_of(data, window=4)
    download.restore(chunk_digests(data, CHUNK), [])
    [ask] = download.poll(0.0)
    frames = answer(data, ask.request)
    for frame in (frames[0], frames[2]):
        download.receive(frame, 0.0)
    [ask] = download.poll(2.0)
    assert ask.request.want == ((1, 1), (3, 3))
    assert download.window == 2
    effects = [e for frame in answer(data, ask.request) for e in download.receive(frame, 2.0)]
    # Half of the window is here: it asks for as much again, and a window without a loss lets it grow.
    assert [e.request.want for e in effects if isinstance(e, SendRequest)] == [((4, 4),), ((5, 6),)]
    assert download.window == 3


def test_what_is_lost_in_the_middle_is_asked_for_again_before_any_time_out():
    data = artifact(200 * CHUNK)
    download = download_of(data, window=8)
    download.restore(chunk_digests(data, CHUNK), [])
    [ask] = download.poll(0.0)
    waiting, lost, asked = [ask.request], {3, 9, 20, 21}, 0
    while waiting:
        request = waiting.pop(0)
        asked += request.window
        for frame in answer(data, request):
            if frame.index in lost and not frame.last:  # the first time
                lost.discard(frame.index)
                continue
            waiting += [e.request for e in download.receive(frame, 0.0) if isinstance(e, SendRequest)]
    assert download.finished
    assert asked <= 204
    assert download.fruitless == 0


def test_serve_gives_no_more_than_the_window_and_never_more_than_64():
    data = artifact(100 * CHUNK)
    digest = hashlib.sha256(data).hexdigest()

    def ask(want, window, part="data") -> list[Frame]:
        return answer(data, Request(op="chunks", digest=digest, part=part, want=want, window=window))

    assert [f.index for f in ask(((5, 9), (20, 2**62)), 7)] == [5, 6, 7, 8, 9, 20, 21]
    assert [f.last for f in ask(((5, 7),), 7)] == [False, False, True]
    assert len(ask(((0, 2**62),), 10**6)) == 64
    assert ask(((100, 200), (2**40, 2**62)), 8) == []
    assert ask(((0, 5),), 0) == []
    assert b"".join(f.payload for f in ask(((0, 9),), 64, "index")) == chunk_digests(data, CHUNK)


@pytest.mark.parametrize(
    "sizes",
    [
        {"size_bytes": 0},
        {"size_bytes": 2**31},
        {"chunk_size_bytes": 1023},
        {"chunk_size_bytes": 2**20 + 1},
        {"digest": "nonsense"},
        {"max_size_bytes": 10},
    ],
)
def test_refuses_sizes_that_nobody_honest_announces(sizes):
    good = {"digest": "0" * 64, "size_bytes": 5000, "chunk_size_bytes": CHUNK, "index_digest": "0" * 64}
    with pytest.raises(ChannelError):
        Download(**{**good, **sizes})
