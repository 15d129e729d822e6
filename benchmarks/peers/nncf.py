"""NNCF: ``nncf.quantize`` on the exported ONNX model at its defaults, run in onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.peers.onnxruntime import export, open_model
from benchmarks.peers.process import calibration_samples

__all__ = ["convert", "open_model"]
DISTRIBUTIONS = ("nncf", "onnxruntime", "onnx", "torch")
INSTALL = "pip install torch onnx onnxruntime nncf"
VARIANTS = ("int8",)
SUFFIX = ".onnx"


def convert(variant: str, arch: str, folder: Path, artifact: Path) -> None:  # noqa: ARG001 - there is one variant
    """See `benchmarks.peers.process.Peer.convert`."""
    os.environ.setdefault("NNCF_CI", "1")  # sends no usage data
    import nncf
    import onnx

    exported = artifact.with_suffix(".float.onnx")
    export(arch, folder, exported)
    x = calibration_samples(folder)
    data = nncf.Dataset(range(len(x)), lambda i: {"x": x[i : i + 1]})
    onnx.save(nncf.quantize(onnx.load(exported), data, subset_size=len(x)), artifact)
