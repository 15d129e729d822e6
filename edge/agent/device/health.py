"""What a device can say about itself, from Linux's own files. What cannot be read is left out."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


def resident_mb(status: Path = Path("/proc/self/status")) -> float | None:
    """Resident memory of this process in MiB."""
    try:
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return round(int(line.split()[1]) / 1024, 1)
    except (OSError, ValueError, IndexError):
        return None
    return None


def temperature_c(zones: Path = Path("/sys/class/thermal")) -> float | None:
    """The hottest thermal zone in °C."""
    found = []
    for path in zones.glob("thermal_zone*/temp"):
        try:
            found.append(int(path.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return max(found, default=None)


def battery_percent(supplies: Path = Path("/sys/class/power_supply")) -> float | None:
    """Charge of the emptiest battery that is being used up; None on mains power or without a battery."""
    found = []
    for path in supplies.glob("*/capacity"):
        try:
            if (path.parent / "status").read_text().strip() == "Discharging":
                found.append(float(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def load_per_core() -> float | None:
    """Processes that run or wait to run, over the last minute, for each core."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Strain:
    """What speaks for doing less for a while; None where it cannot be read.

    Attributes:
        temperature_c: See `temperature_c`.
        battery_percent: See `battery_percent`.
        load_per_core: See `load_per_core`.
    """

    temperature_c: float | None = None
    battery_percent: float | None = None
    load_per_core: float | None = None


def strain() -> Strain:
    """Of this device, now."""
    return Strain(temperature_c=temperature_c(), battery_percent=battery_percent(), load_per_core=load_per_core())


def disk_free_mb(folder: Path) -> float | None:
    """Free space where the state is kept, in MiB."""
    try:
        return round(shutil.disk_usage(folder).free / 2**20, 1)
    except OSError:
        return None


def cpu_seconds() -> float:
    """CPU time of this process and its threads, in seconds."""
    times = os.times()
    return times.user + times.system


def machine_id(path: Path = Path("/etc/machine-id")) -> str:
    """What tells this machine from all others; "" where it does not say."""
    try:
        return path.read_text(errors="replace").strip().removeprefix("uninitialized")
    except OSError:
        return ""


def utc_offset_min(wall_ms: int) -> int:
    """How many minutes the local time here is ahead of UTC at a moment."""
    try:
        offset = datetime.fromtimestamp(wall_ms / 1000, UTC).astimezone().utcoffset()
    except (OverflowError, OSError, ValueError):  # a clock that is set to nonsense
        offset = None
    return 0 if offset is None else int(offset.total_seconds()) // 60


def hardware() -> dict[str, str | int]:
    """What does not change: processor architecture, cores, kernel, Python."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "system": platform.release(),
        "python": platform.python_version(),
    }
