"""Device profiles: what a kind of device can do, as one TOML file.

The converter reads ``quantization`` and the sizes, the agent the budgets (docs/profiles.md). A profile is parsed once
and passed down; reading one either gives a whole, checked profile or one `ConfigError` that names every fault of the
file. Nothing here measures the device: `detect_profile` only picks a shipped file by what the kernel says about the
machine.

The meaning of every field stands in ``firmware_configs/README.md``; the ranges stand here, beside the fields.
"""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from edge.contract.documents import DocumentError, Rule, between, decode, did_you_mean
from edge.contract.errors import ConfigError

_MAX_BYTES = 64 * 1024  # the shipped files have about 4 KiB
_NAMED = Rule(lambda text: bool(re.fullmatch("[a-z0-9][a-z0-9_-]{0,63}", text)), "1 to 64 of a-z, 0-9, _ and -")
_ONE_LINE = Rule(lambda text: bool(re.fullmatch(".{1,200}", text)), "one line of text")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationProfile:
    """How the converter makes 8-bit integers for this CPU."""

    activation_type: Literal["uint8", "int8"]
    weight_type: Literal["int8", "uint8"]
    reduce_range: bool
    per_channel: bool
    int8_dot_product: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceProfile:
    """What a session may take, and whether the device has torch: bundles for it hold TorchScript then.

    Attributes:
        threads: Of one session.
        max_bundle_mb: A larger bundle is refused.
        torch: Whether bundles hold TorchScript.
        max_latency_ms: A pushed bundle whose sample takes longer on the CPU is refused; 0 for however long.
    """

    threads: Annotated[int, between(1, 64)]
    max_bundle_mb: Annotated[int, between(1, 4095)]  # the bundle format ends at 4 GiB
    torch: bool = False
    max_latency_ms: Annotated[float, between(0, 600_000)] = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningProfile:
    """What learning on the device may take, and how long it waits for labels."""

    budget_ms_per_s: Annotated[float, between(0, 1000)]
    replay_per_class: Annotated[int, between(1, 10_000)]
    label_ring_size: Annotated[int, between(1, 10_000_000)]
    label_expiry_s: Annotated[float, between(1, 31_536_000)]  # a year
    checkpoint_interval_s: Annotated[float, between(1, 86_400)]  # a day
    max_temperature_c: Annotated[float, between(20, 120)]
    min_battery_percent: Annotated[float, between(0, 100)]
    max_load_per_core: Annotated[float, between(0.01, 1000)]
    max_state_mb: Annotated[int, between(1, 65_536)]
    label_requests: Annotated[float, between(0, 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetryProfile:
    """How often the device reports."""

    interval_s: Annotated[float, between(0.1, 86_400)]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfile:
    """One kind of device.

    Attributes:
        name: Also the stem of the shipped file.
        description: One line for people.
        architecture: As ``platform.machine()`` names it on Linux.
        memory_mb: Physical memory of the smallest variant meant, in MiB. Half of it is the most that a candidate may
            take at its peak in the converter's search.
    """

    name: Annotated[str, _NAMED]
    description: Annotated[str, _ONE_LINE]
    architecture: Literal["x86_64", "aarch64"]
    memory_mb: Annotated[int, between(64, 1_048_576)]
    quantization: QuantizationProfile
    inference: InferenceProfile
    learning: LearningProfile
    telemetry: TelemetryProfile

    def __post_init__(self) -> None:
        if (self.quantization.activation_type, self.quantization.weight_type) == ("int8", "uint8"):
            # onnxruntime.quantization raises on this pair
            raise ValueError("quantization.weight_type 'uint8' does not go with activation_type 'int8'; use 'int8'")
        if self.inference.max_bundle_mb > self.memory_mb:
            raise ValueError(f"inference.max_bundle_mb {self.inference.max_bundle_mb} is more than memory_mb")


def parse_profile(data: bytes, source: str) -> DeviceProfile:
    """Read a profile from the bytes of a TOML file.

    Args:
        data: UTF-8 text.
        source: Where it came from, for the message.

    Raises:
        ConfigError: Not TOML, or keys or values that are wrong; the message names all of them.
    """
    try:
        table = tomllib.loads(data.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{source} is not a text file in UTF-8; expected a device profile in TOML") from exc
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{source} is not TOML: {exc}") from exc
    try:
        return decode(DeviceProfile, table, strict=True)
    except DocumentError as exc:
        lines = "".join(f"\n  - {fault}" for fault in sorted(exc.faults))
        count = "1 fault" if len(exc.faults) == 1 else f"{len(exc.faults)} faults"
        raise ConfigError(f"{source} is not a device profile, {count}:{lines}") from exc


def _shipped() -> dict[str, bytes]:
    # importlib.resources would stay in memory, and zipfile with it.
    spec = find_spec("firmware_configs")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return {path.stem: path.read_bytes() for folder in folders for path in Path(folder).glob("*.toml")}


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with Edgeloop, sorted."""
    return sorted(_shipped())


def load_profile(name_or_path: str) -> DeviceProfile:
    """Read a profile by its shipped name, or from a file.

    Args:
        name_or_path: What ends in ``.toml`` or has a ``/`` is a path; anything else is the name of a shipped profile.

    Raises:
        ConfigError: An unknown name, a file that cannot be read, or a file with faults.
    """
    if not name_or_path.endswith(".toml") and "/" not in name_or_path:
        shipped = _shipped()
        if name_or_path not in shipped:
            hint = did_you_mean(name_or_path, shipped)
            known = ", ".join(sorted(shipped))
            raise ConfigError(
                f"no shipped device profile is named {name_or_path!r}{hint} "
                f"(known: {known}; a path ends in .toml or has a /)"
            )
        return parse_profile(shipped[name_or_path], f"shipped profile {name_or_path}")
    try:
        with Path(name_or_path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise ConfigError(f"device profile {name_or_path} does not exist") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError(f"device profile {name_or_path!r} cannot be read: {reason}") from exc
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{name_or_path} is larger than {_MAX_BYTES} bytes; expected a device profile in TOML")
    return parse_profile(data, name_or_path)


# Searched for in the model and, one a line, the compatible strings of the device tree: a chip that comes on many boards
# is known by the latter. The Compute Modules and the keyboards carry the same chip as the board.
_BOARDS = (
    (re.compile(r"Raspberry Pi (Zero 2\b|3 Model A)"), "raspberry-pi-zero-2-w"),  # the 3 A+ has 512 MB too
    (re.compile(r"Raspberry Pi (3\b|Compute Module 3)"), "raspberry-pi-3"),
    (re.compile(r"Raspberry Pi (4\b|400\b|Compute Module 4)"), "raspberry-pi-4"),
    (re.compile(r"Raspberry Pi (5\b|500|Compute Module 5)"), "raspberry-pi-5"),
    # Not "NVIDIA Jetson ...": some JetPack releases leave the one or the other word out (ThomasKaiser/sbc-bench
    # PR 64, Chr157i4n/PyTmcStepper PR 78).
    (re.compile(r"\bOrin Nano\b"), "jetson-orin-nano"),
    (re.compile(r"^fsl,imx8mp$", re.MULTILINE), "imx8m-plus"),
    (re.compile(r"^rockchip,rk3588s?$", re.MULTILINE), "rockchip-rk3588"),
    (re.compile(r"\bBeagleBone AI-64\b"), "beaglebone-ai-64"),
)
# As the kernel writes it: "Intel(R) N100". Of Alder Lake-N only the models with four cores.
_INTEL_N = re.compile(r"^model name\s*:\s*Intel\(R\) N(95|100|200)\s*$", re.MULTILINE)
_ARM_32 = re.compile(r"arm|armv[1-7].*|armv8l")
_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").rstrip("\0\n ")
    except OSError:
        return ""  # a container may hide it, another kernel may not have it


def _uses_vnni(flags: set[str]) -> bool:
    """Whether ONNX Runtime takes its VNNI kernels on an x86 core with these cpuinfo flags.

    With AVX-512 it looks for ``avx512_vnni`` only, even if there is ``avx_vnni`` (onnxruntime
    ``core/mlas/lib/platform.cpp``); a hypervisor may show the one and hide the other.
    """
    return "avx512_vnni" in flags or ("avx_vnni" in flags and "avx512bw" not in flags)


def _on_every_core(cpuinfo: str, key: str, holds: Callable[[set[str]], bool], unknown: bool) -> bool:
    """Whether something holds for the words after ``key`` of every core; ``unknown`` if cpuinfo has no such line."""
    lines = re.findall(rf"^{key}\s*:(.*)$", cpuinfo, re.MULTILINE)
    return all(holds(set(line.split())) for line in lines) if lines else unknown


def _detect_x86(cpuinfo: str) -> str:
    if not _on_every_core(cpuinfo, "flags", _uses_vnni, unknown=False):
        return "generic-x86_64"
    return "intel-n100" if _INTEL_N.search(cpuinfo) else "x86_64-vnni"


def _detect_arm(cpuinfo: str, model: str, compatible: str) -> str:
    in_cpuinfo = re.search(r"^Model\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    board = "\n".join((model or (in_cpuinfo.group(1) if in_cpuinfo else ""), *compatible.split("\0")))
    # trust the name when cpuinfo lists no features
    has_dot_product = _on_every_core(cpuinfo, "Features", lambda words: "asimddp" in words, unknown=True)
    for pattern, name in _BOARDS:
        if pattern.search(board) and (has_dot_product or not load_profile(name).quantization.int8_dot_product):
            return name
    return "generic-arm64"


def detect_profile(
    *,
    machine: str | None = None,
    cpuinfo_path: Path = Path("/proc/cpuinfo"),
    model_path: Path = Path("/proc/device-tree/model"),
    compatible_path: Path = Path("/proc/device-tree/compatible"),
    is_64_bit: bool = sys.maxsize > 2**32,
    abi: str = EXTENSION_SUFFIXES[0],
) -> str:
    """Name of the shipped profile that suits a machine best.

    A board is known by its device tree, or by the line ``Model`` that Raspberry Pi kernels add to cpuinfo (a container
    often hides the device tree). A board profile that promises the dot product instruction is passed over when cpuinfo
    lists features without ``asimddp``. An x86 machine is known by its flags: without VNNI on every core, or where
    cpuinfo cannot be read, it gets the generic profile, which is made for CPUs that saturate.

    Args:
        machine: As ``platform.machine()`` gives it, which is also the default.
        cpuinfo_path: The kernel's description of the CPU.
        model_path: The device tree's name of the board.
        compatible_path: The device tree's names of board and chip, each ended by a NUL.
        is_64_bit: Whether this Python is: a 64-bit kernel may carry a 32-bit system, as Raspberry Pi OS has it.
        abi: What extension modules are built for, e.g. ``cpython-311-x86_64-linux-musl``.

    Raises:
        ConfigError: A machine or a system that onnxruntime does not exist for.
    """
    machine = platform.machine() if machine is None else machine
    if _ARM_32.fullmatch(machine.lower()) or (machine.lower() in ("aarch64", "arm64") and not is_64_bit):
        raise ConfigError(
            f"this is a 32-bit Arm system ({machine}), for which onnxruntime has no packages: install a 64-bit system "
            f"(Raspberry Pi 3, Zero 2 and later run it, older ones do not)"
        )
    if not is_64_bit:
        raise ConfigError(f"this Python has 32 bits ({machine}): onnxruntime needs a 64-bit one")
    if "musl" in abi:
        raise ConfigError(
            "this system has musl (Alpine), for which onnxruntime has no packages: use one with glibc, e.g. Debian, or "
            "the image python:3-slim"
        )
    architecture = _ARCHITECTURES.get(machine.lower())
    if architecture is None:
        raise ConfigError(
            f"no shipped device profile is for architecture {machine!r}: Edgeloop runs on {', '.join(_ARCHITECTURES)}"
        )
    cpuinfo = _read_or_empty(cpuinfo_path)
    if architecture == "x86_64":
        return _detect_x86(cpuinfo)
    return _detect_arm(cpuinfo, _read_or_empty(model_path), _read_or_empty(compatible_path))
