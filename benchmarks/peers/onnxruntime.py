"""Plain onnxruntime: torch's tracing exporter, then ``onnxruntime.quantization``, as its documentation shows it.

``static`` and ``dynamic`` are at the defaults; ``static-u8s8-per-channel`` is what people who read further choose on
x86: unsigned activations, signed weights with one scale a channel, and without ``reduce_range`` the file that saturates
on a CPU without VNNI.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from benchmarks.peers.process import Model, calibration_samples, load_network

DISTRIBUTIONS = ("onnxruntime", "onnx", "torch")
INSTALL = "pip install torch onnx onnxruntime"
VARIANTS = ("float", "static", "static-u8s8-per-channel", "dynamic")
SUFFIX = ".onnx"


def export(arch: str, folder: Path, path: Path) -> None:
    """Trained weights to float ONNX, batch 1, at the exporter's own defaults apart from ``dynamo=False``."""
    import numpy as np
    import torch

    warnings.simplefilter("ignore")
    sample = torch.from_numpy(np.load(folder / "sample.npy"))
    torch.onnx.export(load_network(arch, folder), (sample,), path, input_names=["x"], dynamo=False)


def convert(variant: str, arch: str, folder: Path, artifact: Path) -> None:
    """See `benchmarks.peers.process.Peer.convert`."""
    if variant == "float":
        export(arch, folder, artifact)
        return
    from onnxruntime import quantization as q

    exported = artifact.with_suffix(".float.onnx")
    export(arch, folder, exported)
    if variant == "dynamic":
        q.quantize_dynamic(exported, artifact)
        return

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        """One sample at a time."""

        def __init__(self) -> None:
            x = calibration_samples(folder)
            self.batches = iter([{"x": x[i : i + 1]} for i in range(len(x))])

        def get_next(self) -> dict[str, object] | None:
            """The next feed."""
            return next(self.batches, None)

    options = {}
    if variant == "static-u8s8-per-channel":
        options = {"activation_type": q.QuantType.QUInt8, "weight_type": q.QuantType.QInt8, "per_channel": True}
    q.quantize_static(exported, artifact, Reader(), **options)


def open_model(artifact: Path) -> Model:
    """See `benchmarks.peers.process.Peer.open_model`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    output = [session.get_outputs()[0].name]
    return lambda x: session.run(output, {name: x})[0]
