"""The shape of samples, read from the header of their file alone."""

from __future__ import annotations

import zipfile
from pathlib import Path

from converter.data.fit import reading
from converter.data.header import Header, read_header, read_member_header
from edge.contract.errors import ConfigError


def peek_shapes(value: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and types of the arrays in an ``.npz`` or ``.npy`` file (whose only array is ``x``); none otherwise.

    What is wrong with a file is said when it is opened as samples.
    """
    path = Path(value)
    found: dict[str, Header] = {}
    try:
        with reading(value, "a file of arrays"):
            if path.suffix.lower() == ".npy":
                with path.open("rb") as file:
                    found["x"] = read_header(file)
            elif path.suffix.lower() == ".npz":
                with zipfile.ZipFile(path) as archive:
                    for info in archive.infolist():
                        found[info.filename.removesuffix(".npy")] = read_member_header(archive, info)
    except ConfigError:
        return {}
    return {name: (header.shape, str(header.dtype)) for name, header in found.items()}
