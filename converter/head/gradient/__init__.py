"""Reverse-mode differentiation of ONNX graphs, written in standard ONNX operators.

The training step that comes out is data: stock onnxruntime executes it on any of its providers. Nothing here executes
a graph.
"""
