"""Which of onnxruntime's execution providers there are on this machine."""

from __future__ import annotations

import onnxruntime as ort

CUDA = "CUDAExecutionProvider"


def has_cuda() -> bool:
    """Whether this onnxruntime was built for CUDA. That its libraries and a GPU are there shows when it is opened."""
    return CUDA in ort.get_available_providers()
