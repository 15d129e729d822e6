"""How fast and with how many bytes artifacts reach devices, beside mosquitto_pub on the same broker.

    python benchmarks/transfer.py [--megabytes 20] [--repeats 5] [--devices 50]

The coordinator is the real service in a process of its own, a device is `edge.agent.slots.fetching.Fetch` behind the
real transport in another, the broker is Debian's mosquitto on 127.0.0.1. The baseline sends the same bytes, one message
a device, from `mosquitto_pub` to `mosquitto_sub`. Both by turns; medians of their times. Bytes are payloads of frames,
header included, digests of chunks included, against what the artifact itself has; those of the lossy line are counted
on the broker that tests use: frames are lost there. `benchmarks/lossy_line.py` loses packets of a real line.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edge.agent.slots.fetching import Fetch
from edge.agent.slots.slots import Slots
from edge.channel import forms, topics
from edge.channel.chunks import USUAL_BYTES, chunk_digests, index_digest
from edge.channel.codec import encode
from edge.channel.download import serve
from edge.channel.frames import decode_frame, encode_frame
from edge.channel.memory import Faults, MemoryBroker, MemoryTransport
from edge.channel.messages import Desired, Request
from edge.channel.mqtt import MqttTransport
from edge.channel.transport import Connected, Received, TransportEvent
from edge.channel.url import BrokerUrl
from edge.contract.digest import sha256
from edge.coordinator.machine.broker import DevelopmentBroker
from edge.learning.exchange import HeadRelease

FLEET = "bench"
GOAL_RATE, GOAL_LOSS, GOAL_HEAD = 0.7, 1.15, 1.2


def wanted(data: bytes) -> Desired:
    """What a coordinator would say of these bytes, by no shorter form."""
    return Desired(
        release=1,
        kind="bundle",
        digest=sha256(data),
        size_bytes=len(data),
        chunk_size_bytes=USUAL_BYTES,
        index_digest=index_digest(chunk_digests(data, USUAL_BYTES)),
        backbone="",
        reason="",
        ts_ms=0,
    )


class Device:
    """One that fetches; its events are handled in the loop of `fetch_all`."""

    def __init__(
        self, name: str, broker: str, folder: Path, desired: Desired, inbox: queue.Queue[tuple[str, TransportEvent]]
    ) -> None:
        self.name, self.desired = name, desired
        self.slots = Slots(folder / name, "m")
        self.fetch: Fetch | None = None
        self.transport = MqttTransport(BrokerUrl.parse(broker), name, clean_start=True)
        self.transport.subscribe(topics.device_filters(FLEET, name))
        self.transport.start(lambda event: inbox.put((name, event)))

    def take(self, event: TransportEvent) -> None:
        """Take what came from the broker."""
        if self.fetch is not None and isinstance(event, Received) and "/dn/f/" in event.topic:
            self.fetch.frame(decode_frame(event.payload), time.monotonic())

    def send(self) -> None:
        """Publish what it asks for."""
        assert self.fetch is not None
        for request in self.fetch.requests:
            self.transport.publish(topics.build(FLEET, self.name, topics.UP_REQ), encode(request), qos=1)
        self.fetch.requests.clear()


def fetch_all(broker: str, folder: Path, desired: Desired, count: int) -> float:
    """Seconds until so many devices have it all, from the first request on."""
    inbox: queue.Queue[tuple[str, TransportEvent]] = queue.Queue(2000)
    devices = {f"d{i}": Device(f"d{i}", broker, folder, desired, inbox) for i in range(count)}
    ready = 0
    while ready < count:
        ready += isinstance(inbox.get(timeout=20.0)[1], Connected)
    time.sleep(0.5)  # subscriptions are through
    begin = time.monotonic()
    for device in devices.values():
        device.fetch = Fetch(desired, device.slots, {}, begin)
        device.send()
    left = set(devices)
    while left:
        try:
            name, event = inbox.get(timeout=0.5)
            devices[name].take(event)
        except queue.Empty:
            name = ""
        for each in [name] if name else sorted(left):
            device = devices[each]
            assert device.fetch is not None
            device.fetch.poll(time.monotonic())
            device.send()
            if device.fetch.arrived is not None:
                left.discard(each)
    took = time.monotonic() - begin
    for device in devices.values():
        device.transport.stop()
    return took


def coordinator_code(broker: str, folder: Path, file: Path) -> str:
    """The real service, which has the artifact; what makes releases of artifacts is not needed here."""
    return f"""
from pathlib import Path
from edge.channel.mqtt import MqttTransport
from edge.channel.url import BrokerUrl
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.machine.place import Place
from edge.coordinator.service import CoordinatorService
from edge.coordinator.releases.artifacts import ArtifactStore
folder = Path({str(folder)!r})
ArtifactStore(folder / "artifacts").put(Path({str(file)!r}).read_bytes())
config = CoordinatorConfig(fleet={FLEET!r}, name="c", data_dir=folder)
transport = MqttTransport(BrokerUrl.parse({broker!r}), "c", clean_start=False)
CoordinatorService(config, transport, Place(config, "127.0.0.1", 0, {broker.removeprefix("mqtt://")!r})).run(None)
"""


def baseline(port: int, file: Path, count: int) -> float:
    """Seconds until each `mosquitto_sub` has what a `mosquitto_pub` sends to it."""
    common, null = ["-p", str(port)], subprocess.DEVNULL
    subs = [
        subprocess.Popen(["mosquitto_sub", *common, "-t", f"plain/{i}", "-C", "1", "-N"], stdout=null)
        for i in range(count)
    ]
    time.sleep(0.5 + 0.02 * count)
    begin = time.monotonic()
    pubs = [subprocess.Popen(["mosquitto_pub", *common, "-t", f"plain/{i}", "-f", str(file)]) for i in range(count)]
    for process in pubs + subs:
        process.wait(120.0)
    return time.monotonic() - begin


def rates(megabytes: float, repeats: int, count: int) -> tuple[float, float]:
    """Megabytes a second of all devices together, ours and plain."""
    data = np.random.default_rng(0).bytes(int(megabytes * 1e6))
    with (
        tempfile.TemporaryDirectory() as name,
        DevelopmentBroker.start(Path(name) / "broker", kind="mosquitto") as broker,
    ):
        folder, port = Path(name), int(broker.url.rpartition(":")[2])
        (folder / "file").write_bytes(data)
        code = coordinator_code(broker.url, folder / "coordinator", folder / "file")
        service = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            time.sleep(4.0)
            ours, plain = [], []
            for turn in range(repeats):
                ours.append(fetch_all(broker.url, folder / f"t{turn}", wanted(data), count))
                plain.append(baseline(port, folder / "file", count))
                shutil.rmtree(folder / f"t{turn}")
        finally:
            service.kill()
            service.wait()
    total = count * len(data) / 1e6
    return total / statistics.median(ours), total / statistics.median(plain)


def bytes_on_a_bad_line(data: bytes, drop: float, delay_s: float) -> float:
    """Bytes that were sent over a line that loses frames, by those of the artifact."""
    desired, index = wanted(data), chunk_digests(data, USUAL_BYTES)
    broker = MemoryBroker()
    broker.fault = Faults(rng=random.Random(1), drop=drop)
    events: list[TransportEvent] = []
    device, coordinator = MemoryTransport(broker, "d"), MemoryTransport(broker, "c")
    device.subscribe(topics.device_filters(FLEET, "d"))
    device.start(events.append)
    coordinator.start(lambda _: None)
    now_s, sent, waiting = 0.0, 0, []
    with tempfile.TemporaryDirectory() as name:
        fetch = Fetch(desired, Slots(Path(name), "m"), {}, now_s)
        while fetch.arrived is None:
            for request in fetch.requests:
                if random.Random(now_s).random() >= drop:  # requests are lost as frames are
                    waiting.append((now_s + 2 * delay_s, request))
            fetch.requests.clear()
            for due, request in [each for each in waiting if each[0] <= now_s]:
                waiting.remove((due, request))
                assert isinstance(request, Request)
                for frame in serve(request, lambda a, n: data[a : a + n], len(data), USUAL_BYTES, index):
                    payload = encode_frame(frame)
                    sent += len(payload)
                    coordinator.publish(topics.build(FLEET, "d", topics.frame_leaf(frame.xfer)), payload)
            broker.deliver()
            for event in events:
                if isinstance(event, Received):
                    fetch.frame(decode_frame(event.payload), now_s)
            events.clear()
            now_s += delay_s / 4
            fetch.poll(now_s)
    return sent / len(data)


def bytes_of_heads() -> tuple[float, float]:
    """What a head costs by its compressed size, and one that was trained on by that of the one before."""
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(100, 1280)) / 36).astype(np.float32)
    moved = (weight + 1e-3 * rng.normal(size=weight.shape) / 36).astype(np.float32)
    files = [
        HeadRelease(backbone="0" * 64, parameters={"weight": value}, origin="push", n_samples=1).encode()
        for value in (weight, moved)
    ]
    compressed = subprocess.run(["gzip", "-9"], input=files[1], capture_output=True, check=True).stdout
    plain, delta = forms.shorten(files[1]), forms.shorten(files[1], files[0])
    assert plain is not None
    assert delta is not None
    return len(plain[1]) / len(compressed), len(delta[1]) / len(compressed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, default=50)
    options = parser.parse_args()
    small = options.megabytes / 10
    for size, repeats, count in (
        (options.megabytes, options.repeats, 1),
        (small, max(1, options.repeats // 2), options.devices),
    ):
        ours, plain = rates(size, repeats, count)
        print(
            f"{size:g} MB to each of {count} devices: {ours:.0f} MB/s together, mosquitto_pub {plain:.0f} MB/s: "
            f"{ours / plain:.2f} x (goal for one: {GOAL_RATE})"
        )
    lossy = bytes_on_a_bad_line(np.random.default_rng(1).bytes(20_000_000), 0.1, 0.2)
    print(f"a line that loses 10 % of the frames, with 200 ms of delay: {lossy:.3f} x the bytes (goal {GOAL_LOSS})")
    head, moved = bytes_of_heads()
    print(f"a head: {head:.2f} x its size after gzip -9 (goal {GOAL_HEAD}); one that was trained on: {moved:.2f} x")


if __name__ == "__main__":
    main()
