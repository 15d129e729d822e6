"""Archives of the tests' own data."""

import tarfile
from pathlib import Path
from typing import Any


def unpack(archive: Path, folder: Path) -> None:
    """All of an archive; Python before 3.11.4, as Debian 12 has it, knows no filters, and later ones want one."""
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **options)
