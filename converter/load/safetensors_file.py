"""``.safetensors``: tensors by name, and nothing that could run; also in several files, of which there is an index."""

from __future__ import annotations

import json
import re
from pathlib import Path

import safetensors.torch
import torch

from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign


def is_safetensors(begins: bytes, size: int) -> bool:
    """Whether a file of this size that begins so is one: the length of its header, then a JSON object."""
    return len(begins) > 8 and int.from_bytes(begins[:8], "little") <= size - 8 and begins[8:9] == b"{"


_INDEX_BYTES = 64 << 20
_ONE_OF_SEVERAL = re.compile(r"(.*)-\d{5}-of-\d{5}(\.safetensors)")


def is_index(begins: bytes) -> bool:
    """Whether a file that begins so lists what lies in several files."""
    return begins.lstrip()[:1] == b"{"


def index_beside(path: Path) -> Path | None:
    """The index of the files of which this is one by its name; None where there is none."""
    found = _ONE_OF_SEVERAL.fullmatch(path.name)
    index = path.with_name(f"{found[1]}{found[2]}.index.json") if found else path
    return index if found and index.exists() else None


def read_index(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of the files that an index names, which lie beside it.

    Raises:
        ConversionError: It is none, or a file is missing or damaged, or a tensor is not where it should be.
    """
    with foreign(f"{path} is no index of safetensors files", ConversionError):
        if path.stat().st_size > _INDEX_BYTES:
            raise ValueError(f"it has more than {_INDEX_BYTES >> 20} MiB")
        where: dict[str, str] = dict(json.loads(path.read_bytes())["weight_map"])
        if odd := [name for name in where.values() if Path(name).name != name]:
            raise ValueError(f"{odd[0]!r:.80} is not the name of a file beside it")
    read = {name: read_safetensors(path.with_name(name)) for name in sorted(set(where.values()))}
    if missing := [tensor for tensor, name in where.items() if tensor not in read[name]]:
        raise ConversionError(f"{path}: {missing[0]} is not in {where[missing[0]]}, where the index has it")
    return {tensor: read[name][tensor] for tensor, name in where.items()}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file.

    Raises:
        ConversionError: It is damaged.
    """
    with foreign(f"{path} is not a whole safetensors file", ConversionError):
        return safetensors.torch.load_file(path)
