"""Quantizing ONNX graphs: static int8 from observed ranges, dynamic int8, fp16 and 4-bit weights.

Takes and returns models; changes no input; the same input gives the same bytes. Knows nothing of files, plans or heads.
"""
