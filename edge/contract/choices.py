"""Names that people choose from; without imports, so that a command line can show them at once."""

from __future__ import annotations

LEARNERS = ("auto", "statistics", "ridge", "ncm", "sgd", "sgd-plain", "layered")
EXECUTORS = ("auto", "onnx", "numpy", "torch")
PROVIDERS = ("auto", "cpu", "cuda", "tensorrt", "openvino", "xnnpack", "acl", "qnn")
