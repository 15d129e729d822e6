"""The workshop: a trained PyTorch model in, one verified bundle out.

`save_checkpoint` writes a file that says what it is, so that ``edge-convert model.pth`` needs no option. It is imported
when it is first used: ``edge-convert --help`` must not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import edge  # noqa: F401  # first of all: it keeps onnxruntime from sending usage data

if TYPE_CHECKING:
    from converter.checkpoint import save_checkpoint

__all__ = ["save_checkpoint"]


def __getattr__(name: str) -> Any:
    if name != "save_checkpoint":
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    from converter.checkpoint import save_checkpoint

    return save_checkpoint
