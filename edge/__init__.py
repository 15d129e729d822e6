"""Edgeloop: deploy a model to small Linux devices and keep its last layers learning there."""

import os

__version__ = "0.1.0"

# onnxruntime 1.29 and later send usage data to its maker from Linux, too, and write an identifier of the device to
# ~/.cache, from the moment they are imported. Models and devices are nobody's business: off, before anything of ours
# imports it. Whoever wants it sets ORT_DISABLE_TELEMETRY=0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
