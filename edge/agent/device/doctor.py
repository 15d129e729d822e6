"""What may be wrong with a device before an agent runs on it: findings, each with its cure.

Reads files and asks nobody; where files of the system stand, and the time, are handed in. The broker, and whether
onnxruntime runs on this processor, are asked by `edge.cli.doctor`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warning", "fault"]

# No device had this software before (2026-11-01, ms since 1970); a clock that says so was never set.
BUILT_MS = 1_793_491_200_000
_FAR_MS = 20 * 365 * 86_400_000
_BACK_MS = 3_600_000
_LONGEST_SOCKET = 107
_LEAST_MB, _LITTLE_MB = 16, 64


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what was found.

    Attributes:
        level: A fault keeps the agent from working; a warning may.
        what: Which part of the device.
        text: What was seen.
        cure: What to do; "" where nothing is to be done.
    """

    level: Level
    what: str
    text: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.level:<7} {self.what}: {self.text}" + (f"; {self.cure}" if self.cure else "")

    def to_json(self) -> dict[str, str]:
        """As an object of JSON."""
        return asdict(self)


def clock(now_ms: int, state_dir: Path, synchronized: Path = Path("/run/systemd/timesync/synchronized")) -> Finding:
    """Whether the time can be right: not before this software, not long after, not before what is in the state folder.

    Args:
        now_ms: What the clock says, ms since 1970.
        state_dir: Of the agent.
        synchronized: Exists where systemd-timesyncd has set the clock.
    """
    cure = "set the clock: `timedatectl set-ntp true`, or a hardware clock; certificates and signatures need it"
    if not BUILT_MS <= now_ms <= BUILT_MS + _FAR_MS:
        years = 1970 + now_ms / (365.2425 * 86_400_000)
        return Finding("fault", "clock", f"it says the year {years:.0f}, this software is of 2026", cure)
    newest_ms = max((_changed_ms(path) for path in [state_dir, *_entries(state_dir)]), default=0)
    if newest_ms > now_ms + _BACK_MS:
        hours = (newest_ms - now_ms) / 3_600_000
        return Finding("warning", "clock", f"{state_dir} was written {hours:.0f} hours after the time it says", cure)
    return Finding("ok", "clock", "set by systemd-timesyncd" if synchronized.exists() else "plausible")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _changed_ms(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns // 1_000_000
    except OSError:
        return 0


def disk(state_dir: Path, max_bundle_mb: float) -> Iterator[Finding]:
    """Whether the state folder takes a file, and has room for an update.

    Args:
        state_dir: Of the agent; it need not exist.
        max_bundle_mb: Largest bundle that the profile takes.
    """
    folder = next(each for each in (state_dir, *state_dir.absolute().parents) if each.exists())
    made = "" if folder == state_dir else f" ({state_dir} does not exist yet)"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        cure = f"give it to the user that runs the agent (`chown`), or name another --state-dir; tried as user {_me()}"
        yield Finding("fault", "state folder", f"{folder} takes no file: {exc.strerror}", cure)
        return
    yield Finding("ok", "state folder", f"{folder} takes files{made}")
    try:
        free_mb = shutil.disk_usage(folder).free / 2**20
    except OSError as exc:
        yield Finding("warning", "disk", f"what is free cannot be read: {exc.strerror}")
        return
    text, cure = f"{free_mb:.0f} MiB free in {folder}", "make room, or name another --state-dir"
    if free_mb < _LEAST_MB:
        yield Finding("fault", "disk", f"{text}: the agent cannot keep what it learns", cure)
    elif free_mb < max(2 * max_bundle_mb, _LITTLE_MB):
        need = max(2 * max_bundle_mb, _LITTLE_MB)
        yield Finding("warning", "disk", f"{text}: an update may need {need:.0f} (two bundles)", cure)
    else:
        yield Finding("ok", "disk", text)


def _me() -> int:
    return os.geteuid()


def processor(machine: str, bits: int, libc: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Finding]:
    """Whether onnxruntime is built for such a machine, and what it would run int8 by.

    Args:
        machine: Such as ``x86_64``.
        bits: Of an address: 32 or 64.
        libc: ``glibc``, or "" for another one.
        cpuinfo: Linux's own file.
    """
    if bits < 64:
        yield Finding("fault", "processor", f"{machine} with {bits} bits: onnxruntime has no wheels for it",
                      "install a 64-bit system (on a Raspberry Pi 3 or later: Raspberry Pi OS 64-bit)")  # fmt: skip
        return
    if libc != "glibc":
        yield Finding("warning", "processor", f"the C library is {libc or 'no glibc'}: onnxruntime's wheels need glibc",
                      "use a system with glibc (Debian, Ubuntu), or build onnxruntime for this one")  # fmt: skip
    features = _features(cpuinfo)
    wanted = {"x86_64": ({"avx2"}, {"avx512_vnni", "avx_vnni"}), "aarch64": ({"asimd"}, {"asimddp"})}.get(machine)
    if not features or wanted is None:
        yield Finding("ok", "processor", f"{machine}, {bits} bits; its features are not known")
        return
    base, fast = wanted
    if not features & base:
        yield Finding("warning", "processor", f"{machine} without {' or '.join(base)}: models run several times slower",
                      "measure with `edge-bundle bench`, and choose a smaller model")  # fmt: skip
    elif not features & fast:
        yield Finding("ok", "processor", f"{machine} without instructions for int8 ({' or '.join(sorted(fast))})")
    else:
        yield Finding("ok", "processor", f"{machine} with {', '.join(sorted(features & fast))}")


def _features(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {
        word for line in lines if line.partition(":")[0].strip().lower() in ("flags", "features")
        for word in line.partition(":")[2].split()
    }  # fmt: skip


def heat(temperature_c: float | None, limit_c: float, sysfs: Path = Path("/sys")) -> Iterator[Finding]:
    """How hot it is, and whether the processor was slowed down for heat or for want of power.

    Args:
        temperature_c: Of the hottest zone, None where it cannot be read.
        limit_c: At which the profile pauses learning.
        sysfs: Where Linux says it.
    """
    if temperature_c is None:
        yield Finding("ok", "temperature", "this device does not say it")
    elif temperature_c >= limit_c:
        yield Finding("warning", "temperature", f"{temperature_c:.0f} °C: learning pauses at {limit_c:.0f}",
                      "cool it, or set max_temperature_c in a profile")  # fmt: skip
    else:
        yield Finding("ok", "temperature", f"{temperature_c:.0f} °C, learning pauses at {limit_c:.0f}")
    throttled = _number(sysfs / "devices/platform/soc/soc:firmware/get_throttled", 16)
    if throttled is not None and throttled & 0xF:  # bits 0 to 3 are now, 16 to 19 since the start (Raspberry Pi)
        why = "its power supply is too weak" if throttled & 1 else "it is too hot"
        yield Finding("warning", "throttling", f"the processor is slowed down now: {why}",
                      "use the power supply that the maker names" if throttled & 1 else "cool it")  # fmt: skip
    counts = [_number(path, 10) for path in sysfs.glob("devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")]
    if total := sum(filter(None, counts)):
        yield Finding("warning", "throttling", f"slowed down for heat {total} times since the start", "cool it")


def _number(path: Path, base: int) -> int | None:
    try:
        return int(path.read_text(), base)
    except (OSError, ValueError):
        return None


def local_socket(path: Path) -> Finding:
    """Whether the socket for applications can be made there, and by whom its folder can be changed."""
    length = len(os.fsencode(path))
    if length > _LONGEST_SOCKET:
        return Finding("fault", "socket", f"its path has {length} bytes, Linux takes {_LONGEST_SOCKET}",
                       "name a shorter one with --socket")  # fmt: skip
    folder = path.absolute().parent
    if not folder.exists():
        return Finding("ok", "socket", f"{path}; its folder is made at the start")
    mode = folder.stat().st_mode
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("fault", "socket", f"user {_me()} cannot write in {folder}", "name another one with --socket")
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        return Finding("fault", "socket", f"{path} is no socket", "name another one with --socket")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return Finding("warning", "socket", f"everybody can write in {folder}, and put another socket there",
                       f"`chmod o-w {folder}`")  # fmt: skip
    return Finding("ok", "socket", str(path))


def packages(*, signed: bool, broker: bool, old_python: bool) -> Iterator[Finding]:
    """Whether the packages for what is asked are installed.

    Args:
        signed: Releases must be signed (--trust).
        broker: There is one.
        old_python: Before 3.14, where zstd is a package.
    """
    needed = {"numpy": "edgeloop", "onnxruntime": "edgeloop", "safetensors": "edgeloop"}
    if broker:
        needed["paho.mqtt"] = "edgeloop"
        needed |= {"backports.zstd": "edgeloop"} if old_python else {}
    if signed:
        needed |= {"tuf": "edgeloop[signed]", "cryptography": "edgeloop[signed]"}
    missing = [name for name in needed if not _is_installed(name)]
    for name in missing:
        yield Finding("fault", "packages", f"{name} is not installed", f"pip install '{needed[name]}'")
    if not missing:
        yield Finding("ok", "packages", f"{', '.join(needed)} are installed")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def secret_file(path: Path | None) -> Iterator[Finding]:
    """Whether others can read the file of a password."""
    if path is None or not path.exists():  # one that is missing is a fault of the options
        return
    if path.stat().st_mode & 0o077:
        yield Finding("warning", "password", f"{path} can be read by others", f"`chmod 600 {path}`")
