"""ONNX graphs: building, cutting, one form for each thing."""
