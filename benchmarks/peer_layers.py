"""What one layer costs in onnxruntime and in ExecuTorch: where a network of convolutions is slower than a peer's.

    python benchmarks/peer_layers.py [--kinds conv16,residual16] [--peer-python executorch=VENV/bin/python]

Chains of 4 and of 12 equal layers, random weights, are converted as `convert_vs_peers.py` does it and timed in turns;
a layer's time is the difference of their medians, divided by 8. What an addition costs is that of a residual
layer less that of the convolution. Microseconds; one thread, batch 1. A busy machine needs more ``--turns``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from rich.console import Console

from benchmarks.convert_vs_peers import Result, Variant, cpu, measure_all, peer_pythons, run
from benchmarks.networks import chains

VARIANTS = (("onnxruntime", "float"), ("onnxruntime", "static-u8s8-per-channel"), ("executorch", "int8"))


def prepare(kind: str, length: int, folder: Path) -> str:
    """Write weights and samples, and say where the network is."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    name = f"{kind}_{length}"
    torch.save(getattr(chains, name)().state_dict(), folder / "model.pth")
    channels, size, _, _ = chains.KINDS[kind]
    x = np.random.default_rng(0).standard_normal((16, channels, size, size)).astype(np.float32)
    np.savez(folder / "calibrate.npz", x=x)
    np.save(folder / "sample.npy", x[:1])
    return f"{chains.__file__}:{name}"


def layer_us(kind: str, variants: list[Variant], work: Path, turns: int) -> dict[str, str]:
    """By variant the time of one layer in microseconds, or why it is not known."""
    found: dict[str, list[Result]] = {variant.label: [] for variant in variants}
    for length in chains.LENGTHS:
        folder = work / f"{kind}_{length}"
        arch = prepare(kind, length, folder)
        (folder / "converted").mkdir(exist_ok=True)
        results = {}
        for variant in variants:
            artifact = variant.artifact(folder / "converted")
            ended = run(variant.process("convert", variant.name, arch, folder, artifact), folder / "log")
            results[variant.label] = Result(error=ended.error)
        measure_all(variants, folder, results, 1, turns, 0.01)
        for label, result in results.items():
            found[label].append(result)
    layers = chains.LENGTHS[1] - chains.LENGTHS[0]
    return {
        label: short.error
        or long.error
        or f"{1e3 * float(np.median(long.latency_ms) - np.median(short.latency_ms)) / layers:.2f}"
        for label, (short, long) in found.items()
    }


def main() -> int:
    """Print one line for each kind of layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(chains.KINDS), help="separated by commas")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / ".cache" / "layers")
    parser.add_argument("--turns", type=int, default=100)
    options = parser.parse_args()
    if unknown := {*options.kinds.split(",")} - {*chains.KINDS}:
        parser.error(f"{', '.join(sorted(unknown))}: the kinds are {', '.join(chains.KINDS)}")
    pythons, console = peer_pythons(options.peer_python), Console(highlight=False, soft_wrap=True)
    variants = [Variant(peer=p, name=name, python=pythons.get(p, sys.executable)) for p, name in VARIANTS]
    name, flags = cpu()
    console.print(f"CPU: {name}; {' '.join(flags)}")
    for kind in options.kinds.split(","):
        times = layer_us(kind, variants, options.work.resolve(), options.turns)
        console.print(f"{kind:<12} " + ", ".join(f"{label} {text}" for label, text in times.items()), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
