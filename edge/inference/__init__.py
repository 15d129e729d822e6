"""Executing a bundle: the backbone and head graphs and the training step on ONNX Runtime.

Knows nothing of learning rules, labels or networks. The only room of `edge` that imports onnxruntime, and only in the
files named ``onnx_*``.
"""
