"""The dashboard with many devices in a real browser: time to the first paint, and how far it is behind the devices.

    python benchmarks/pages.py model.edge --devices 1000

Starts a broker and a coordinator. Devices are their words: each comes (`up/conn`), says what it runs (`up/birth`) and
what it measures (`up/tele`), over one connection; then telemetry of all goes on at one message a device in 30 s. The
browser is Chromium without a window: first byte, last byte and `first-contentful-paint` of a page that is loaded anew
are its own times (what comes after the last byte is the browser's own work), and behind is the time from publishing the
first word of a device to its line in the page that is open. Needs playwright.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from playwright.sync_api import sync_playwright

from edge.channel import confusion
from edge.channel.codec import encode
from edge.channel.messages import Birth, Conn, Message, Served, Telemetry
from edge.contract.bundle import Bundle
from edge.coordinator.machine.broker import DevelopmentBroker

PAGES = ("/", "/?by=site", "/devices/d0000", "/rollouts", "/learning", "/releases", "/alerts")
EVERY_S = 30.0
FOLDER = "a" * 16


class Devices:
    """Their words, over one connection.

    Args:
        broker: Its address.
        bundle: That all run.
    """

    def __init__(self, broker: str, bundle: Path) -> None:
        opened = Bundle.open(bundle)
        self.backbone, self.bundle = opened.manifest.backbone_digest, opened.digest
        self.client = Client(CallbackAPIVersion.VERSION2, "devices")
        self.client.max_queued_messages_set(0)
        self.client.connect("127.0.0.1", int(broker.rpartition(":")[2]))
        self.client.loop_start()

    def say(self, device: str, leaf: str, message: Message, qos: int = 1) -> Any:
        """Publish a word of a device."""
        return self.client.publish(f"edge/v1/lab/{device}/{leaf}", encode(message), qos=qos)

    def come(self, device: str) -> Any:
        """A device connects and introduces itself."""
        served = Served(
            model="digits", bundle=self.bundle, backbone=self.backbone, head="", release=0, n_labels=0
        )  # fmt: skip
        birth = Birth(
            agent_version="0.1.0", boot=1, session=1, ts_ms=0, profile="raspberry-pi-4", bundle=self.bundle, head="",
            n_labels=0, hardware={"machine": "aarch64"}, backbone=self.backbone, release=0,
            limits={"telemetry_s": EVERY_S}, models=(served,), state_id=FOLDER,
        )  # fmt: skip
        self.say(device, "up/conn", Conn(online=True, session=1, boot=1, ts_ms=0, state_id=FOLDER))
        return self.say(device, "up/birth", birth)

    def measure(self, device: str, seq: int) -> None:
        """A device says its numbers."""
        values = {
            "ts": time.time_ns() // 1_000_000, "seq": seq, "boot": 1, "state_id": FOLDER, "model": "digits",
            "lat_p50_ms": 0.4, "lat_p99_ms": 1.1, "infer_per_s": 4.0, "acc": 0.95, "mem_mb": 81.0, "temp_c": 51.0,
            "experts": {"statistics": [0.6, 0.95, seq], "merged": [0.4, 0.9, seq]},
            confusion.KEY: confusion.told(answered(int(device[-1]) if device[-1].isdecimal() else 0, seq)),
        }  # fmt: skip
        self.say(device, "up/tele", Telemetry(values=values), qos=0)


def answered(kind: int, seq: int) -> dict[str, dict[str, int]]:
    """What a device answered to its last 256 labels of ten classes; other counts each time."""
    right = {str(c): {str(c): 20 + (c + kind + seq) % 5} for c in range(10)}
    return right | {str(kind): {str(kind): 15, str((kind + 3) % 10): 1 + seq % 7}}


def get(url: str) -> Any:
    """JSON of the API; None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)
    except OSError:
        return None


# Milliseconds since a page was asked for: its first byte, its last byte, and the first contentful paint.
_TIMES = """() => {
    const page = performance.getEntriesByType('navigation')[0];
    const paint = performance.getEntriesByName('first-contentful-paint')[0];
    return paint ? [page.responseStart, page.responseEnd, paint.startTime] : null;
}"""


def first_paints(browser: Any, url: str, n: int) -> list[tuple[float, float, float]]:
    """By load, each in a new context without a cache: milliseconds to the first byte, the last one, the first paint."""
    found = []
    for _ in range(n):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        tab = context.new_page()
        tab.goto(url, wait_until="load")
        while (times := tab.evaluate(_TIMES)) is None:  # to wait within the page is what its own policy forbids
            time.sleep(0.02)
        found.append(tuple(times))
        context.close()
    return found


def by_part(loads: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Of the loads of a page the middle of each time, and the longest to the first paint."""
    first_byte, last_byte, paint = (round(statistics.median(each)) for each in zip(*loads, strict=True))
    most = round(max(each for *_, each in loads))
    return {"first_byte": first_byte, "last_byte": last_byte, "first_paint": paint, "first_paint_most": most}


def peak_memory_mib(pid: int) -> float:
    """The most memory that a process had at once (resident)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def behind(browser: Any, url: str, devices: Devices, n: int) -> list[float]:
    """Seconds from a new device's first word to its line in an open page."""
    tab = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    tab.goto(f"{url}/?q=late", wait_until="load")
    tab.wait_for_selector("#line.is-live")
    found = []
    for i in range(n):
        time.sleep(2.0 + 0.37 * i)  # at other moments of its turn
        begun = time.monotonic()
        devices.come(f"late{i}")
        tab.wait_for_selector(f"#live_devices tbody tr a:text-is('late{i}')", timeout=60_000)
        found.append(time.monotonic() - begun)
    return found


@dataclass(frozen=True, slots=True)
class Shown:
    """A coordinator that many devices talk to.

    Attributes:
        url: Its address.
        devices: Who speak.
        pid: Of its process.
        known_s: Seconds from the first device's first word until all were known.
    """

    url: str
    devices: Devices
    pid: int
    known_s: float


@contextlib.contextmanager
def coordinator_with(bundle: Path, n: int) -> Iterator[Shown]:
    """A broker, a coordinator, and so many devices, each with telemetry every `EVERY_S`."""
    names = [f"d{i:04}" for i in range(n)]
    stop = threading.Event()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as name, DevelopmentBroker.start(Path(name) / "broker") as broker:
        line = [
            str(Path(sys.executable).with_name("edge-coordinator")), "serve", "--broker", broker.url, "--fleet", "lab",
            "--http", url.removeprefix("http://"), "--data-dir", f"{name}/c", "--bundle", str(bundle),
        ]  # fmt: skip
        with (Path(name) / "log").open("wb") as log:
            coordinator = subprocess.Popen(line, stdout=log, stderr=log)
        try:
            while get(f"{url}/api/health") is None:
                time.sleep(0.2)
            devices = Devices(broker.url, bundle)
            begun = time.monotonic()
            for each in names:
                devices.come(each)

            def go_on() -> None:
                for seq in range(1, 1_000_000):
                    for each in names:
                        devices.measure(each, seq)
                        if stop.wait(EVERY_S / len(names)):
                            return

            threading.Thread(target=go_on, daemon=True).start()
            while sum(row["online"] is True for row in get(f"{url}/api/v1/devices")) < len(names):
                time.sleep(3.0)
            known_s = time.monotonic() - begun
            print(f"{len(names)} devices are known after {known_s:.1f} s", file=sys.stderr)
            yield Shown(url, devices, coordinator.pid, known_s)
        finally:
            stop.set()
            coordinator.terminate()
            coordinator.wait(30)


@contextlib.contextmanager
def chromium(*options: str) -> Iterator[Any]:
    """The browser, without a window."""
    needed = ["--no-sandbox"] if os.geteuid() == 0 else []  # a sandbox needs rights that root in a container has not
    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=path, args=[*needed, *options])
        yield browser
        browser.close()


def main() -> None:
    """Measure, and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    with coordinator_with(given.bundle, given.devices) as shown:
        time.sleep(5.0)
        with chromium() as browser:
            paints = {}
            for page in PAGES:
                paints[page] = first_paints(browser, shown.url + page, given.times)
                print(page, [tuple(map(round, each)) for each in paints[page]], file=sys.stderr)
            late = behind(browser, shown.url, shown.devices, given.times)
        peak_mib = peak_memory_mib(shown.pid)
    found = {
        "devices": given.devices,
        "all_known_s": round(shown.known_s, 1),
        "ms": {page: by_part(each) for page, each in paints.items()},
        "behind_s": {"median": round(statistics.median(late), 2), "most": round(max(late), 2)},
        "coordinator_peak_mib": peak_mib,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
