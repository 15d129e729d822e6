"""``.safetensors``: tensors by name, and nothing that could run."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from converter.program.reason import reason
from edge.contract.errors import ConversionError


def is_safetensors(begins: bytes, size: int) -> bool:
    """Whether a file of this size that begins so is one: the length of its header, then a JSON object."""
    return len(begins) > 8 and int.from_bytes(begins[:8], "little") <= size - 8 and begins[8:9] == b"{"


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file.

    Raises:
        ConversionError: It is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except Exception as exc:  # SafetensorError, and what torch raises for a type that it does not know
        raise ConversionError(f"{path} is not a whole safetensors file: {reason(exc)}") from exc
