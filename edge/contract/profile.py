"""Device profiles: what a kind of device can do, as one TOML file.

The converter reads ``quantization`` and the sizes, the agent the budgets (docs/profiles.md). A profile is parsed once
and passed down; reading one either gives a whole, checked profile or one `ConfigError` that names every fault of the
file. Nothing here measures the device: `detect_profile` only picks a shipped file by what the kernel says about the
machine.

The meaning of every field stands in ``firmware_configs/README.md``; the ranges stand here, beside the fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import platform
import re
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from edge.contract.errors import ConfigError

_MAX_BYTES = 64 * 1024  # the shipped files have about 4 KiB
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

# A rule takes the value, its name for messages and the list of faults; it returns the value or notes a fault.
_Rule = Callable[[object, str, list[str]], object]


def _read_number(low: float, high: float, whole: bool, value: object, label: str, faults: list[str]) -> object:
    kind = "an integer" if whole else "a number"
    if type(value) is not int and (whole or type(value) is not float):  # `type`, because bool is a subclass of int
        faults.append(f"{label} must be {kind}, got {_type_name(value)}")
    elif not low <= value <= high:  # False for nan
        faults.append(f"{label} must be from {low} to {high}, got {value!r:.40}")
    return value if whole or not isinstance(value, int) else float(max(min(value, 2**53), -(2**53)))


def _read_choice(choices: tuple[str, ...], value: object, label: str, faults: list[str]) -> object:
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        faults.append(f"{label} must be {' or '.join(map(repr, choices))}, got {value!r:.60}{hint}")
    return value


def _read_flag(value: object, label: str, faults: list[str]) -> object:
    if not isinstance(value, bool):
        faults.append(f"{label} must be true or false, got {_type_name(value)}")
    return value


def _read_text(pattern: re.Pattern[str], want: str, value: object, label: str, faults: list[str]) -> object:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        faults.append(f"{label} must be {want}, got {value!r:.60}")
    return value


def _rule(read: _Rule) -> Mapping[str, _Rule]:
    return {"read": read}


def _whole(low: int, high: int) -> Mapping[str, _Rule]:
    return _rule(partial(_read_number, low, high, True))


def _number(low: float, high: float) -> Mapping[str, _Rule]:
    return _rule(partial(_read_number, low, high, False))


def _choice(*choices: str) -> Mapping[str, _Rule]:
    return _rule(partial(_read_choice, choices))


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationProfile:
    """How the converter makes 8-bit integers for this CPU."""

    activation_type: Literal["uint8", "int8"] = field(metadata=_choice("uint8", "int8"))
    weight_type: Literal["int8", "uint8"] = field(metadata=_choice("int8", "uint8"))
    reduce_range: bool = field(metadata=_rule(_read_flag))
    per_channel: bool = field(metadata=_rule(_read_flag))
    int8_dot_product: bool = field(metadata=_rule(_read_flag))


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceProfile:
    """What a session may take, and whether the device has torch: bundles for it hold TorchScript then."""

    threads: int = field(metadata=_whole(1, 64))
    max_bundle_mb: int = field(metadata=_whole(1, 4095))  # the bundle format ends at 4 GiB
    torch: bool = field(default=False, metadata=_rule(_read_flag))


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningProfile:
    """What learning on the device may take, and how long it waits for labels."""

    budget_ms_per_s: float = field(metadata=_number(0, 1000))
    replay_per_class: int = field(metadata=_whole(1, 10_000))
    label_ring_size: int = field(metadata=_whole(1, 10_000_000))
    label_expiry_s: float = field(metadata=_number(1, 31_536_000))  # a year
    checkpoint_interval_s: float = field(metadata=_number(1, 86_400))  # a day
    max_temperature_c: float = field(metadata=_number(20, 120))
    min_battery_percent: float = field(metadata=_number(0, 100))
    max_load_per_core: float = field(metadata=_number(0.01, 1000))
    max_state_mb: int = field(metadata=_whole(1, 65_536))
    label_requests: float = field(metadata=_number(0, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetryProfile:
    """How often the device reports."""

    interval_s: float = field(metadata=_number(0.1, 86_400))


def _decode(cls: type[Any], value: object, label: str, faults: list[str]) -> Any:
    """An object of the dataclass, or None after noting faults; reads every key before it gives up."""
    if not isinstance(value, dict):
        faults.append(f"{label} must be a table [{label}], got {_type_name(value)}")
        return None
    before = len(faults)
    prefix = f"{label}." if label else ""
    rules = {item.name: item.metadata["read"] for item in dataclasses.fields(cls)}
    meant = set()
    for key in value.keys() - rules.keys():
        near = difflib.get_close_matches(key, rules.keys() - value.keys(), n=1)
        meant.update(near)  # the misspelt key is one fault, not two
        faults.append(f"{prefix}{key[:60]} is not known{did_you_mean(key, near or rules)}")
    optional = {item.name for item in dataclasses.fields(cls) if item.default is not dataclasses.MISSING}
    for name in rules.keys() - value.keys() - meant - optional:
        faults.append(f"{prefix}{name} is missing")
    values = {name: read(value[name], prefix + name, faults) for name, read in rules.items() if name in value}
    return cls(**values) if len(faults) == before else None


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

    name: str = field(metadata=_rule(partial(_read_text, _NAME, "1 to 64 of a-z, 0-9, _ and -")))
    description: str = field(metadata=_rule(partial(_read_text, re.compile(r".{1,200}"), "one line of text")))
    architecture: Literal["x86_64", "aarch64"] = field(metadata=_choice("x86_64", "aarch64"))
    memory_mb: int = field(metadata=_whole(64, 1_048_576))
    quantization: QuantizationProfile = field(metadata=_rule(partial(_decode, QuantizationProfile)))
    inference: InferenceProfile = field(metadata=_rule(partial(_decode, InferenceProfile)))
    learning: LearningProfile = field(metadata=_rule(partial(_decode, LearningProfile)))
    telemetry: TelemetryProfile = field(metadata=_rule(partial(_decode, TelemetryProfile)))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message that names the nearest known word; empty when none is near.

    >>> did_you_mean("raspbery-pi-4", ["raspberry-pi-4", "jetson-orin-nano"])
    "; did you mean 'raspberry-pi-4'?"
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _type_name(value: object) -> str:
    return f"{type(value).__name__} {value!r:.40}"


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
    faults: list[str] = []
    profile: DeviceProfile | None = _decode(DeviceProfile, table, "", faults)
    if profile is not None:
        if (profile.quantization.activation_type, profile.quantization.weight_type) == ("int8", "uint8"):
            # onnxruntime.quantization raises on this pair
            faults.append("quantization.weight_type 'uint8' does not go with activation_type 'int8'; use 'int8'")
        if profile.inference.max_bundle_mb > profile.memory_mb:
            faults.append(f"inference.max_bundle_mb {profile.inference.max_bundle_mb} is more than memory_mb")
    if profile is None or faults:
        lines = "".join(f"\n  - {fault}" for fault in sorted(faults))
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{source} is not a device profile, {count}:{lines}")
    return profile


def _shipped() -> dict[str, bytes]:
    files = resources.files("firmware_configs").iterdir()
    return {item.name.removesuffix(".toml"): item.read_bytes() for item in files if item.name.endswith(".toml")}


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
    abi: str = str(sysconfig.get_config_var("SOABI") or ""),
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
