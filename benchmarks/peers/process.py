"""What a peer's process does: convert, measure or evaluate. Started by ``convert_vs_peers.py``, with the peer's Python.

    PYTHON -m benchmarks.peers.process PEER convert VARIANT ARCH FOLDER ARTIFACT
    PYTHON -m benchmarks.peers.process PEER measure ARTIFACT FOLDER --seconds 0.01
    PYTHON -m benchmarks.peers.process PEER evaluate ARTIFACT FOLDER

``measure`` times itself whenever it is given a line. FOLDER is what `benchmarks.networks.training` writes. Little is
imported here, as it would count as the peer's memory and start-up time.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FIRST_OUTPUT = "first output"
WARM_UP_RUNS = 5
LEAST_RUNS = 3

Model = Callable[[Any], Any]
"""A batch of one float32 sample to its outputs, batch axis first."""


class Peer(Protocol):
    """A module in this package."""

    DISTRIBUTIONS: tuple[str, ...]
    INSTALL: str
    VARIANTS: tuple[str, ...]

    def convert(self, variant: str, arch: str, folder: Path, artifact: Path) -> None:
        """Weights and calibration data in `folder` to `artifact`."""

    def open_model(self, artifact: Path) -> Model:
        """Load with one thread."""


def load_network(arch: str, folder: Path) -> Any:
    """The trained torch module in evaluation mode, from ``FILE.py:NAME`` and ``model.pth``."""
    import torch

    torch.set_num_threads(1)
    path, _, name = arch.rpartition(":")
    spec = importlib.util.spec_from_file_location("network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = getattr(module, name)()
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    return model.eval()


def calibration_samples(folder: Path) -> Any:
    """``(n, *input)`` float32."""
    with np.load(folder / "calibrate.npz") as data:
        return data["x"]


def peak_memory_bytes() -> int:
    """Largest resident set of this process (``VmHWM``)."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def measure(peer: Peer, artifact: Path, folder: Path, seconds: float) -> dict[str, float]:
    """Say when the first output is there, then time single runs for a moment whenever a line comes.

    Of each such turn the median is printed, in milliseconds: somebody else may have the next turn.

    Returns:
        Once no line can come any more, the largest resident set in bytes.
    """
    sample = np.load(folder / "sample.npy")
    model = peer.open_model(artifact)
    model(sample)
    print(FIRST_OUTPUT, flush=True)
    for _ in range(WARM_UP_RUNS):
        model(sample)
    for _ in sys.stdin:
        model(sample)  # the one before it emptied the caches
        times: list[float] = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end or len(times) < LEAST_RUNS:
            model(sample)
            times.append(time.perf_counter() - start)
        print(json.dumps({"latency_ms": float(np.median(times)) * 1e3}), flush=True)
    return {"peak_memory_bytes": peak_memory_bytes()}


def evaluate(peer: Peer, artifact: Path, folder: Path) -> dict[str, float]:
    """Accuracy on ``evaluate.npz``, one sample at a time."""
    with np.load(folder / "evaluate.npz") as data:
        x, y = data["x"], data["y"]
    model = peer.open_model(artifact)
    right = sum(int(np.argmax(model(x[i : i + 1])[0]) == y[i]) for i in range(len(x)))
    return {"accuracy": right / len(x)}


def main() -> int:
    """Do one thing and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert")
    for name, kind in (("variant", str), ("arch", str), ("folder", Path), ("artifact", Path)):
        command.add_argument(name, type=kind)
    for name in ("measure", "evaluate"):
        command = commands.add_parser(name)
        command.add_argument("artifact", type=Path)
        command.add_argument("folder", type=Path)
        if name == "measure":
            command.add_argument("--seconds", type=float, default=0.01)
    options = parser.parse_args()
    peer: Peer = importlib.import_module(f"benchmarks.peers.{options.peer}")
    found: dict[str, float] = {}
    if options.command == "convert":
        peer.convert(options.variant, options.arch, options.folder, options.artifact)
    elif options.command == "measure":
        found = measure(peer, options.artifact, options.folder, options.seconds)
    else:
        found = evaluate(peer, options.artifact, options.folder)
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
