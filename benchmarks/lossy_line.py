"""What a transfer costs over a line that loses packets: kernels, TCP and broker are real, the line is this script.

    python -m benchmarks.lossy_line [--megabytes 1] [--loss 0.1] [--delay-ms 200]

The device is in a network namespace of its own, coordinator and broker (Debian's mosquitto) in another. Between them
lie two TUN interfaces, and a process that hands IP packets from one to the other: each is lost with the probability
`--loss`, in either direction, and a round trip takes `--delay-ms`. So no `tc netem` is needed, which many kernels lack.
Needs root, `ip` and /dev/net/tun; says what is missing and ends with 0 where it may not.

Two ratios to the bytes of the artifact: payloads of frames that the coordinator sent, which is what the protocol
decides (goal 1.15), and IP packets put on the line towards the device, retransmissions and headers included.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import os
import random
import selectors
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.transfer import FLEET, GOAL_LOSS, coordinator_code
from edge.coordinator.machine.broker import find_mosquitto

NEAR, FAR = f"edge-near-{os.getpid()}", f"edge-far-{os.getpid()}"
ADDRESS = {NEAR: "10.15.0.1", FAR: "10.15.0.2"}
BROKER = f"mqtt://{ADDRESS[NEAR]}:1883"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_QUEUED = 1000  # packets that wait in each direction, as `tc netem` has it


def missing() -> str:
    """What this machine lacks; empty for nothing."""
    if os.geteuid() != 0:
        return "root"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun"
    return next((what for what, path in (("ip", shutil.which("ip")), ("mosquitto", find_mosquitto())) if not path), "")


def enter(namespace: str) -> None:
    """Let this thread, and what it starts, live in a namespace."""
    with Path(f"/run/netns/{namespace}").open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"{namespace} cannot be entered")


def interface(namespace: str) -> int:
    """A TUN interface there, up, with its address; the end at which its packets come out."""
    enter(namespace)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", b"edge0", _IFF_TUN | _IFF_NO_PI))
    for line in ("addr add {}/24 dev edge0", "link set edge0 up", "link set lo up"):
        subprocess.run(["ip", *line.format(ADDRESS[namespace]).split()], check=True)
    return end


class Line:
    """Hands packets over, late, and not all of them.

    Args:
        near: End of the interface of broker and coordinator.
        far: Of that of the device.
        loss: Share of packets that are lost, in each direction.
        delay_s: From one end to the other.

    Attributes:
        down_bytes: Of packets towards the device, the lost ones included.
    """

    def __init__(self, near: int, far: int, loss: float, delay_s: float) -> None:
        self._to = {near: far, far: near}
        self._near, self._loss, self._delay_s = near, loss, delay_s
        self._rng = random.Random(1)
        self.down_bytes = 0

    def run(self) -> None:
        """For ever."""
        eyes, waiting, number = selectors.DefaultSelector(), list[tuple[float, int, int, bytes]](), 0
        for end in self._to:
            eyes.register(end, selectors.EVENT_READ)
        while True:
            due = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            for key, _ in eyes.select(due):
                packet = os.read(key.fd, 1 << 16)
                self.down_bytes += len(packet) if key.fd == self._near else 0
                if self._rng.random() >= self._loss and len(waiting) < 2 * _QUEUED:
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + self._delay_s, number, self._to[key.fd], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                os.write(waiting[0][2], heapq.heappop(waiting)[3])


def measure(megabytes: float, loss: float, delay_s: float, folder: Path) -> tuple[float, float, float]:
    """Seconds of a transfer; frames and packets by the bytes of the artifact."""
    data = np.random.default_rng(0).bytes(int(megabytes * 1e6))
    (folder / "file").write_bytes(data)
    far, near = interface(FAR), interface(NEAR)  # from here on, all that is started is near
    line = Line(near, far, loss, delay_s / 2)
    threading.Thread(target=line.run, daemon=True).start()
    conf = folder / "mosquitto.conf"
    conf.write_text(f"listener 1883 {ADDRESS[NEAR]}\nallow_anonymous true\nuser root\n")
    mosquitto = find_mosquitto()
    assert mosquitto is not None
    started = [subprocess.Popen([mosquitto, "-c", conf], stderr=subprocess.DEVNULL)]
    try:
        time.sleep(1.0)
        sub = ["mosquitto_sub", "-h", ADDRESS[NEAR], "-t", f"edge/v1/{FLEET}/+/dn/f/#", "-F", "%l"]
        with (folder / "frames").open("wb") as frames:
            started.append(subprocess.Popen(sub, stdout=frames))
        code = coordinator_code(BROKER, folder / "coordinator", folder / "file")
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        time.sleep(5.0)
        fetch = f"""
from pathlib import Path
from benchmarks.transfer import fetch_all, wanted
data = Path({str(folder / "file")!r}).read_bytes()
print(fetch_all({BROKER!r}, Path({str(folder / "device")!r}), wanted(data), 1))
"""
        ran = subprocess.run(
            ["ip", "netns", "exec", FAR, sys.executable, "-c", fetch], check=True, capture_output=True, text=True
        )
        time.sleep(1.0)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()
    sent = sum(int(each) for each in (folder / "frames").read_text().split())
    return float(ran.stdout), sent / len(data), line.down_bytes / len(data)


def main() -> int:
    """Print the table; the exit code says whether the goal was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--loss", type=float, default=0.1)
    parser.add_argument("--delay-ms", type=float, default=200.0)
    options = parser.parse_args()
    if what := missing():
        print(f"skipped: this needs {what}")
        return 0
    made = []
    try:
        for name in (NEAR, FAR):
            if subprocess.run(["ip", "netns", "add", name], check=False).returncode:
                print("skipped: network namespaces are not allowed here")
                return 0
            made.append(name)
        with tempfile.TemporaryDirectory() as folder:
            took, frames, packets = measure(options.megabytes, options.loss, options.delay_ms / 1000, Path(folder))
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)
    print(f"{options.megabytes:g} MB, {options.loss:.0%} of packets lost each way, round trip {options.delay_ms:g} ms")
    print(f"  {took:.1f} s, {options.megabytes * 1e3 / took:.0f} kB/s")
    print(f"  frames sent     {frames:.3f} x the bytes (goal {GOAL_LOSS})")
    print(f"  packets, TCP/IP {packets:.3f} x the bytes")
    return int(frames > GOAL_LOSS)


if __name__ == "__main__":
    sys.exit(main())
