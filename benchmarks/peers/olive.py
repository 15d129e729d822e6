"""Olive: a workflow of its ``OnnxConversion`` and its static or dynamic quantization pass, at the passes' defaults.

Its command line cannot take calibration data from a file, so the workflow is given as a configuration in Python.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.peers.onnxruntime import open_model

__all__ = ["convert", "open_model"]
DISTRIBUTIONS = ("olive-ai", "onnxruntime", "onnx", "torch")
INSTALL = "pip install torch onnx onnxruntime onnxscript olive-ai requests  # requests: imported, but not declared"
VARIANTS = ("static", "dynamic")
SUFFIX = ".onnx"

# What Olive wants from a user: a script with the model and the data.
SCRIPT = """
from pathlib import Path
import torch
from olive.data.registry import Registry
from benchmarks.peers.process import calibration_samples, load_network

FOLDER = Path({folder!r})


def load_model(_path):
    return load_network({arch!r}, FOLDER)


@Registry.register_dataset()
def calibration_dataset(**_):
    x = torch.from_numpy(calibration_samples(FOLDER))
    return [({{"x": sample}}, 0) for sample in x]
"""


def convert(variant: str, arch: str, folder: Path, artifact: Path) -> None:
    """See `benchmarks.peers.process.Peer.convert`."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    import numpy as np
    from olive.workflows import run

    work = artifact.with_suffix(".work")
    work.mkdir()
    script = work / "olive_user_script.py"
    script.write_text(SCRIPT.format(folder=str(folder), arch=arch))
    quantization: dict[str, object] = {"type": "OnnxDynamicQuantization"}
    if variant == "static":
        quantization = {"type": "OnnxStaticQuantization", "data_config": "calibration"}
    run(
        {
            "input_model": {
                "type": "PyTorchModel",
                "model_loader": "load_model",
                "model_script": str(script),
                "io_config": {
                    "input_names": ["x"],
                    "input_shapes": [list(np.load(folder / "sample.npy").shape)],
                    "input_types": ["float32"],
                    "output_names": ["y"],
                },
            },
            "data_configs": [
                {
                    "name": "calibration",
                    "user_script": str(script),
                    "load_dataset_config": {"type": "calibration_dataset"},
                    "dataloader_config": {"batch_size": 1},
                }
            ],
            "passes": {
                "export": {"type": "OnnxConversion", "use_dynamo_exporter": False},
                "quantize": quantization,
            },
            "cache_dir": str(work / "cache"),
            "output_dir": str(work / "output"),
            "evaluate_input_model": False,
        }
    )
    found = sorted((work / "output").rglob("*.onnx"))
    if not found:
        raise SystemExit(f"Olive ended without an ONNX file in {work / 'output'}")
    shutil.copy(found[0], artifact)
