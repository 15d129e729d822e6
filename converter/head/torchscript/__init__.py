"""A head's ONNX graph as TorchScript: one function of torch per operator, traced and compared."""
