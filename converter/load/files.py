"""Files that nobody vouches for: what can be said of them before a parser sees them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from edge.contract.errors import ConfigError, ConversionError
from edge.contract.foreign import foreign

# torch stores tensors as they are and compresses only the code of TorchScript, which is small.
_MAX_COMPRESSED_BYTES = 64 << 20
_MAX_RATIO = 200
_MAX_MEMBERS = 100_000
_BLOCK = 1 << 20
MOST_BYTES = (1 << 31) - (1 << 24)  # of a protobuf, less names and operators


def beginning(path: Path, size: int = 8) -> bytes:
    """The first bytes of a file.

    Raises:
        ConfigError: It is not there, is no file, or cannot be read.
        ConversionError: It is empty.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is {'a folder' if path.is_dir() else 'not a file'}; give the model file")
        with path.open("rb") as file:
            begins = file.read(size)
    except FileNotFoundError as exc:
        raise ConfigError(f"{path} does not exist") from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    if not begins:
        raise ConversionError(f"{path} is empty")
    return begins


def refuse_bundle(path: Path) -> None:
    """Raise ConfigError for what `edge-convert` has written itself, by the first member, which no model file has so."""
    try:
        with path.open("rb") as file:
            begins = file.read(64)
    except OSError:  # that is told where it is read
        return
    if begins[:4] == b"PK\3\4" and begins[30:].startswith(b"manifest.json"):
        raise ConfigError(
            f"{path} is a bundle already: `edge-bundle inspect` says what is in it, `edge-agent run` runs it; give the "
            f"model that it was made of"
        )


def check_whole_model(path: Path) -> None:
    """Raise ConversionError when a file that is a model and nothing else is too large for one ONNX file."""
    if path.stat().st_size > MOST_BYTES:
        raise ConversionError(
            f"{path} has {path.stat().st_size / (1 << 30):.1f} GiB; a bundle keeps its model in one ONNX file, which "
            f"holds 2 GiB: make the model smaller, or convert a part of it"
        )


def checked_members(path: Path) -> list[str]:
    """Names in a ZIP archive whose members are whole and no larger than they should be; none when it is not one.

    torch does not check the checksums.

    Raises:
        ConversionError: It is damaged, or a member unpacks to far more than it takes.
    """
    if not zipfile.is_zipfile(path):
        return []
    with (
        foreign(f"{path} is damaged, copy or save it again", ConversionError),
        zipfile.ZipFile(path) as archive,
    ):
        infos = archive.infolist()
        stored = sum(info.file_size for info in infos if info.compress_type == zipfile.ZIP_STORED)
        packed = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
        unpacked = sum(info.file_size for info in packed)
        if (
            len(infos) > _MAX_MEMBERS
            or stored > path.stat().st_size
            or unpacked > _MAX_COMPRESSED_BYTES
            or any(info.file_size > _MAX_RATIO * max(info.compress_size, 64) for info in packed)
        ):
            raise ConversionError(
                f"{path} unpacks to {stored + unpacked} bytes in {len(infos)} members, which no model file of this "
                f"size does; nothing of it was read"
            )
        for info in infos:
            _read_through(archive, info)
        return [info.filename for info in infos]


def _read_through(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Raise BadZipFile unless the member has the size and the checksum that the archive states."""
    size = 0
    with archive.open(info) as member:
        while block := member.read(_BLOCK):
            size += len(block)
            if size > info.file_size:
                break
    if size != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename} has another size than stated")
