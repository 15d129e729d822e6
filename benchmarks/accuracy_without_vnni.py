"""Accuracy of int8 files on a CPU that adds products of 8 bits in 16: a Haswell, emulated by QEMU.

    apt-get install qemu-user
    python benchmarks/accuracy_without_vnni.py [--work FOLDER] [--networks depthwise_cnn,...] [--samples N]

On x86 without VNNI two products of 8-bit activations and weights are added in 16 bits and saturate. The same file gives
other answers there than on the machine that made it. QEMU computes those instructions as the processor does, so what
is wrong there is wrong here; its times mean nothing. The files: stock onnxruntime, static U8S8 per channel (the
baseline), edge-convert for a target with VNNI, and edge-convert for generic x86-64, which must lose at most 0.5 points.
The exit status is 1 if it loses more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.networks.training import NETWORKS, prepare

EMULATOR = "qemu-x86_64"
CPU = "Haswell"
MOST_LOST_POINTS = 0.5
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """An ONNX file and how it is made.

    Attributes:
        label: For people.
        command: Its conversion, behind the interpreter; ``{folder}``, ``{arch}``, ``{shape}`` and ``{file}`` are filled
            in.
    """

    label: str
    command: str

    def make(self, values: dict[str, str]) -> None:
        """Convert."""
        done = subprocess.run(
            [sys.executable, *(part.format(**values) for part in self.command.split())],
            env=ENVIRONMENT,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{self.label}: exit {done.returncode}: {done.stderr.strip()[-500:]}")


_EDGE = (
    "-m converter.cli {folder}/model.pth --arch {arch} --input-shape {shape} --calibrate {folder}/calibrate.npz "
    "--evaluate {folder}/evaluate.npz --quantize int8 --format onnx -o {file} --target "
)
_STOCK = "-m benchmarks.peers.process onnxruntime convert "
FILES = (
    File(label="float", command=f"{_STOCK} float {{arch}} {{folder}} {{file}}"),
    File(
        label="stock onnxruntime, static U8S8 per channel",
        command=f"{_STOCK} static-u8s8-per-channel {{arch}} {{folder}} {{file}}",
    ),
    File(label="edge-convert --target x86_64-vnni", command=f"{_EDGE} x86_64-vnni"),
    File(label="edge-convert --target generic-x86_64", command=f"{_EDGE} generic-x86_64"),
)
OURS = FILES[-1]


def accuracy(file: Path, folder: Path, emulated: bool) -> float:
    """On ``evaluate.npz`` in `folder`, here or on the emulated processor."""
    prefix = [EMULATOR, "-cpu", CPU] if emulated else []
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "benchmarks.peers.process", "onnxruntime", "evaluate", str(file), str(folder)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{file} on {CPU if emulated else 'this CPU'}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
    found: float = json.loads(done.stdout.splitlines()[-1])["accuracy"]
    return found


def main() -> int:
    """Convert, run twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgeloop-peers", help="for files")
    parser.add_argument("--networks", default="depthwise_cnn,residual_cnn,mlp", help="separated by commas")
    parser.add_argument("--samples", type=int, default=500, help="to measure on, 500 at most: emulation is slow")
    options = parser.parse_args()
    console = Console()
    if platform.machine() != "x86_64" or shutil.which(EMULATOR) is None:
        console.print(f"needs an x86-64 machine and {EMULATOR}: apt-get install qemu-user", markup=False)
        return 2
    lost = []
    with tempfile.TemporaryDirectory() as place:
        for name in options.networks.split(","):
            network = NETWORKS[name]
            folder = prepare(network, options.work)
            measured = Path(place) / name
            measured.mkdir()
            with np.load(folder / "evaluate.npz") as data:
                np.savez(measured / "evaluate.npz", x=data["x"][: options.samples], y=data["y"][: options.samples])
            table = Table(title=f"{name}, accuracy on {options.samples} digits held out")
            for column in ("file", "this CPU", f"emulated {CPU}"):
                table.add_column(column, justify="left" if column == "file" else "right")
            scores = {}
            for i, file in enumerate(FILES):
                console.print(f"{name}: {file.label}", markup=False)
                path = measured / f"{i}.onnx"
                shape = ",".join(map(str, network.input_shape))
                file.make({"folder": str(folder), "arch": network.arch, "shape": shape, "file": str(path)})
                here, there = (accuracy(path, measured, emulated) for emulated in (False, True))
                scores[file.label] = there
                table.add_row(file.label, f"{here:.4f}", f"{there:.4f}")
            console.print(table)
            lost.append((name, 100 * (scores["float"] - scores[OURS.label])))
    for name, points in lost:
        result = "PASS" if points <= MOST_LOST_POINTS + 1e-9 else "FAIL"
        console.print(f"{result}  {name}, {OURS.label}: {points:+.2f} points lost on {CPU}", soft_wrap=True)
    return int(any(points > MOST_LOST_POINTS + 1e-9 for _, points in lost))


if __name__ == "__main__":
    sys.exit(main())
