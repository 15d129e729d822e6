"""``.safetensors``: tensors by name, and nothing that could run."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign


def is_safetensors(begins: bytes, size: int) -> bool:
    """Whether a file of this size that begins so is one: the length of its header, then a JSON object."""
    return len(begins) > 8 and int.from_bytes(begins[:8], "little") <= size - 8 and begins[8:9] == b"{"


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file.

    Raises:
        ConversionError: It is damaged.
    """
    with foreign(f"{path} is not a whole safetensors file", ConversionError):
        return safetensors.torch.load_file(path)
