"""Which of onnxruntime's execution providers there are on this machine, and how each is opened."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from edge.contract.digest import sha256

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# By our names. The others of onnxruntime run a model elsewhere (Azure), or on systems that we do not support.
NAMES: Mapping[str, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": CUDA,
    "qnn": "QNNExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "acl": "ACLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "cpu": CPU,
}
# What tells one CPU from another in /proc/cpuinfo, on x86 and Arm.
_CPU_KEYS = ("model name", "Model", "Hardware", "CPU implementer", "CPU part", "flags", "Features")


def has_cuda() -> bool:
    """Whether this onnxruntime was built for CUDA. That its libraries and a GPU are there shows when it is opened."""
    return CUDA in ort.get_available_providers()


def offered() -> tuple[str, ...]:
    """The execution providers that the installed onnxruntime was built with, by our names; ``cpu`` is always there."""
    there = set(ort.get_available_providers())
    return tuple(name for name, provider in NAMES.items() if provider in there or name == "cpu")


def provider_list(name: str, threads: int) -> list[str | tuple[str, dict[str, str]]]:
    """What onnxruntime is given to open a session on one: what that cannot run stays on the CPU.

    Args:
        name: One of `NAMES`.
        threads: Of the session, for providers that run on the CPU with threads of their own.
    """
    options: Mapping[str, dict[str, str]] = {
        "openvino": {"num_of_threads": str(threads)},
        "xnnpack": {"intra_op_num_threads": str(threads)},
        "qnn": {"backend_path": "libQnnHtp.so"},
    }
    if name == "cpu":
        return [CPU]
    return [(NAMES[name], options.get(name, {})), CPU]


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """This CPU and this onnxruntime: what was measured here holds for no other."""
    try:
        lines = cpuinfo.read_text(errors="replace").split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = "|".join(said.get(key, "") for key in _CPU_KEYS)
    name = said.get("model name") or said.get("Model") or platform.machine()
    return f"{name} {sha256(known.encode())[:12]}, onnxruntime {ort.__version__}"
