"""Pages that are left open: what the browser keeps of them as time goes on, with many devices that go on talking.

    python -m benchmarks.open_browser model.edge --minutes 60 [--devices 1000] [--every 20]

The fleet is that of `benchmarks.pages`. Each page has a tab of its own, which follows it. Every few seconds garbage is
collected, and then are counted: the JavaScript heap, nodes and listeners of each page, as the browser counts them, and
the memory of the coordinator. Who looks into a browser has it keep what came over the network, so the memory of a page
(its renderer, resident) is that of a second tab, in a browser that nobody looks into. One line
of JSON each time; at the end by series what the second half began and ended with, the most, and the slope of a straight
line through it, per hour and as a share of what it began with. A page that is not followed any more, a word on the
console, and a request to another host are faults: the exit code is 1 then. What is flat enough is for the reader to
say: over minutes a slope says little. Needs playwright.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import chromium, coordinator_with

PAGES = ("/", "/devices/d0000", "/learning")
_COUNTED = {"JSHeapUsedSize": "heap_mb", "Nodes": "nodes", "JSEventListeners": "listeners"}


class Open:
    """A page in a tab of its own.

    Args:
        browser: Opens it.
        url: Of the coordinator.
        page: Its path.
        faults: Are told to.
    """

    def __init__(self, browser: Any, url: str, page: str, faults: list[str]) -> None:
        self.page, self._faults = page, faults
        self._tab = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        self._tab.on("console", lambda said: faults.append(f"{page}: console: {said.text}"))
        self._tab.on("pageerror", lambda error: faults.append(f"{page}: {error}"))
        self._tab.on("request", lambda asked: self._asked(asked.url, url))
        self._tab.goto(url + page, wait_until="load")
        self._tab.wait_for_selector("#line.is-live")
        self._inside = self._tab.context.new_cdp_session(self._tab)
        self._inside.send("Performance.enable")

    def _asked(self, asked: str, ours: str) -> None:
        if not asked.startswith(ours + "/"):
            self._faults.append(f"{self.page}: asks {asked}")

    def counts(self) -> dict[str, float]:
        """What the browser keeps of it, after a collection of garbage."""
        if not self._tab.locator("#line.is-live").count():
            self._faults.append(f"{self.page}: is not followed")
        self._inside.send("HeapProfiler.collectGarbage")
        found = {each["name"]: each["value"] for each in self._inside.send("Performance.getMetrics")["metrics"]}
        numbers = {short: found[name] for name, short in _COUNTED.items()}
        return numbers | {"heap_mb": round(numbers["heap_mb"] / 1e6, 3)}


@contextlib.contextmanager
def unwatched(url: str, folder: Path) -> Iterator[int]:
    """A browser with one page that nobody looks into; its process."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path is not None
    needed = ["--no-sandbox"] if os.geteuid() == 0 else []
    line = [path, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", *needed, url]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def memory_mib(pid: int) -> float:
    """Resident memory of a process; 0 for one that is gone."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def renderers(above: int) -> list[int]:
    """Processes below another one that draw pages."""
    parents: dict[int, int] = {}
    drawing = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if b"--type=renderer" in (path / "cmdline").read_bytes():
                drawing.add(int(path.name))
        except (OSError, ValueError):  # it ended meanwhile
            continue
    return [pid for pid in drawing if above in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: Mapping[int, int]) -> list[int]:
    found = []
    while pid in parents:
        pid = parents[pid]
        found.append(pid)
    return found


def second_half(hours: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """How a series went on once it had begun.

    Args:
        hours: When each value was taken.
        values: The series, at least four of them.
    """
    half = len(values) // 2
    slope = statistics.linear_regression(hours[half:], values[half:]).slope
    first = statistics.median(values[half : half + 3])
    return {
        "first": round(first, 3),
        "last": round(statistics.median(values[-3:]), 3),
        "most": round(max(values[half:]), 3),
        "per_hour": round(slope, 3),
        "share_per_hour": round(slope / first, 4) if first else 0.0,
    }


def main() -> int:
    """Measure; the exit code says whether a page had a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--every", type=float, default=20.0, metavar="SECONDS")
    given = parser.parse_args()
    if given.minutes * 60 < 4 * given.every:
        parser.error("--minutes: at least four looks are needed, one each --every SECONDS")
    faults: list[str] = []
    hours: list[float] = []
    series: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(coordinator_with(given.bundle, given.devices))
        browser = stack.enter_context(chromium("--js-flags=--expose-gc"))
        tabs = [Open(browser, shown.url, page, faults) for page in PAGES]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        others = {
            page: stack.enter_context(unwatched(shown.url + page, folder / str(i))) for i, page in enumerate(PAGES)
        }
        time.sleep(10.0)
        begun = time.monotonic()
        while (passed_s := time.monotonic() - begun) < given.minutes * 60:
            row = {f"{tab.page} {name}": value for tab in tabs for name, value in tab.counts().items()}
            row |= {
                f"{page} renderer_mib": round(sum(map(memory_mib, renderers(pid))), 1) for page, pid in others.items()
            }
            row["coordinator_mib"] = round(memory_mib(shown.pid), 1)
            hours.append(passed_s / 3600)
            for name, value in row.items():
                series.setdefault(name, []).append(value)
            print(json.dumps({"s": round(passed_s)} | row), file=sys.stderr, flush=True)
            time.sleep(given.every)
    found = {
        "minutes": given.minutes,
        "devices": given.devices,
        "looks": len(hours),
        "load": os.getloadavg()[0],
        "second_half": {name: second_half(hours, values) for name, values in series.items()},
        "faults": faults[:20],
    }
    print(json.dumps(found, indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
