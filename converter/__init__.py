"""The workshop: a trained PyTorch model in, one verified bundle out.

`save_checkpoint` writes a file that says what it is, so that ``edge-convert model.pth`` needs no option. It is imported
when it is first used: ``edge-convert --help`` must not wait for torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.checkpoint import save_checkpoint

# onnxruntime 1.29 and later send usage data to Microsoft from Linux, too, and write an identifier of the device to
# ~/.cache, from the moment they are imported (onnxruntime pull request 27379). Models are nobody's business: off, before
# anything here imports it. Who wants it says ORT_DISABLE_TELEMETRY=0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["save_checkpoint"]


def __getattr__(name: str) -> Any:
    if name != "save_checkpoint":
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    from converter.checkpoint import save_checkpoint

    return save_checkpoint
