"""``edge-convert``, run as its users run it; the bundle is opened by ``edge.inference``, as a device opens it.

``auto`` and ``int8`` are values of ``--quantize``. ``...-onnx`` asks for ``--format onnx``: a plain file that is
measured in onnxruntime exactly as the peers' files are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import onnxruntime
from benchmarks.peers.process import Model

DISTRIBUTIONS = ("onnxruntime", "onnx", "torch", "safetensors")
INSTALL = "pip install -e '.[convert]'"
VARIANTS = ("auto", "auto-onnx", "int8")


def suffix(variant: str) -> str:
    """Of the file that is written."""
    return ".onnx" if variant.endswith("-onnx") else ".edge"


def command(python: str, variant: str, arch: str, folder: Path, artifact: Path, target: str) -> list[str]:
    """The command line: the installed script where there is one, else the module that it calls."""
    script = Path(python).with_name("edge-convert")
    shape = ",".join(str(size) for size in _sample_shape(folder))
    return [
        *([str(script)] if script.exists() else [python, "-m", "converter.cli"]),
        str(folder / "model.pth"),
        *("--arch", arch, "--input-shape", shape, "--calibrate", str(folder / "calibrate.npz")),
        # Random weights have no accuracy to lose, and decide between their classes by nothing.
        *(["--evaluate", str(evaluate)] if (evaluate := folder / "evaluate.npz").exists() else ["--max-drop", "100"]),
        *("--quantize", variant.removesuffix("-onnx"), "--target", target),
        *(["--format", "onnx"] if variant.endswith("-onnx") else []),
        *("-o", str(artifact)),
    ]


def _sample_shape(folder: Path) -> tuple[int, ...]:
    shape: tuple[int, ...] = np.load(folder / "sample.npy").shape[1:]
    return shape


def open_model(artifact: Path) -> Model:
    """See `benchmarks.peers.process.Peer.open_model`."""
    if artifact.suffix == ".onnx":
        return onnxruntime.open_model(artifact)
    from edge.contract.bundle import Bundle
    from edge.inference.onnx_session import OnnxSession

    session = OnnxSession(Bundle.open(artifact), threads=1)
    name, output = session.manifest.inputs[0].name, session.manifest.outputs[0].name

    def run(x: Any) -> Any:
        return session.run({name: x})[output]

    return run
