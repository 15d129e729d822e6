"""From a torch model to one float ONNX graph."""
