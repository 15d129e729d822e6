"""The workshop: a trained PyTorch model in, one verified bundle out.

`save_checkpoint` writes a file that says what it is, so that ``edge-convert model.pth`` needs no option, and
`load_head_into` takes a head that a device learned back into the model. They are imported when they are first used:
``edge-convert --help`` must not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import edge  # noqa: F401  # first of all: it keeps onnxruntime from sending usage data

if TYPE_CHECKING:
    from converter.checkpoint import save_checkpoint
    from converter.head.from_device import load_head_into

__all__ = ["load_head_into", "save_checkpoint"]

_MODULES = {"load_head_into": "converter.head.from_device", "save_checkpoint": "converter.checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
